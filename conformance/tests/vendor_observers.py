"""A vendor's calibration observers: right ones of other choices, and ones with one planted fault each."""

from functools import partial

import numpy as np

from lowbit_cts.kernels import Backend, Semantics
from lowbit_cts.kernels.numpy import observers as plain

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

F = np.float32
WIDE = {"intermediate": "float64"}
MAGNITUDES, VALUES = {"histogram": "magnitudes"}, {"histogram": "values"}


def _pair(low, high):
    return F(low), F(high)


def _mirrored(end):
    return _pair(-end, end)


# Histograms ---------------------------------------------------------------------------------------------------------


def _by_position(x, low, high, bins, dtype=F, last=True, most=np.int64):
    x = x.astype(dtype)
    x = x[(x >= low) & (x <= high)]
    at = np.floor((x - dtype(low)) * dtype(bins) / (dtype(high) - dtype(low))).astype(int)
    if not last:
        at = at[at < bins]
    return np.bincount(np.minimum(at, bins - 1), minlength=bins).astype(most).astype(np.int32)


@right.implements("histogram", semantics=Semantics(bin_search="position"))
def by_position(x, low, high, *, bins):
    return _by_position(x, low, high, bins)


@right.implements("histogram")
def float32_edges(x, low, high, *, bins, out):
    edges = np.linspace(low, high, bins + 1, dtype=F)
    x = x[(x >= low) & (x <= high)]
    at = np.clip(np.searchsorted(edges, x.astype(F), side="right") - 1, 0, bins - 1)
    out[...] = np.bincount(at, minlength=bins)


def _same_bins(counts, low, high, new_low, new_high, parts=16, offset=0.5):
    bins = counts.size
    middles = low + (np.arange(bins * parts) + offset) * ((high - low) / (bins * parts))
    at = np.clip(np.floor((middles - new_low) * bins / (new_high - new_low)).astype(int), 0, bins - 1)
    return np.bincount(at, np.repeat(counts / parts, parts), minlength=bins).astype(F)


def _wider(counts, low, high, new_low, new_high, histogram, growth, capacity, more=0, shift=0, **options):
    low, new_low = (0.0 if end is None else float(end) for end in (low, new_low))
    if growth == "same_bins":
        wide = _same_bins(counts, low, float(high), new_low, float(new_high), **options)
        return wide, *_pair(new_low, new_high)
    width, over = (high - low) / counts.size, (max(-new_low, float(new_high)) - float(high))
    added = 0 if over <= 0 else int(over // width) + 1 if histogram == "values" else int(np.ceil(over / width))
    added += more if over > 0 else 0
    start = added if histogram == "values" else 0
    grown = np.zeros(capacity, F)
    if counts.size + start + added > capacity:
        raise ValueError("capacity: is too small")
    grown[start + shift * (over > 0) :][: counts.size] = counts
    return grown, *_pair(low - start * width, high + added * width)


@right.implements("widen_histogram", semantics=Semantics(**WIDE))
def wider(counts, low, high, new_low, new_high, *, histogram, growth, capacity):
    high, new_high = float(high), float(new_high)
    if counts.size == 0 or not high > (0 if low is None else low):
        raise ValueError("counts: must hold bins")
    same = growth == "same_bins" and (0 if low is None else low, high) == (0 if low is None else new_low, new_high)
    if same:
        return counts.copy(), *_pair(0 if low is None else low, high)
    return _wider(counts, low, high, new_low, new_high, histogram, growth, capacity)


# Ranges of samples --------------------------------------------------------------------------------------------------


def _averages(x, start, step):
    x = x.astype(F)
    ends = []
    for batches in (x.min(axis=1), x.max(axis=1)):
        m, rest = start(batches)
        for new in rest:
            m = F(step(m, new))
        ends.append(F(m))
    return tuple(ends)


def _from_first(batches):
    return batches[0], batches[1:]


@right.implements("moving_average_range", semantics=Semantics(average_form="weighted"))
def weighted(x, constant):
    kept = F(1) - constant
    return _averages(x, _from_first, lambda m, new: kept * m + constant * new)


@right.implements("moving_average_range", semantics=Semantics(contraction="either"))
def fused(x, constant):
    """In float64, so that the product is exact."""
    return _averages(x, _from_first, lambda m, new: np.float64(m) + np.float64(constant) * np.float64(new - m))


def _quantiles(x, percentile, histogram, method):
    if x.size == 0:
        raise ValueError("x: must not be empty")
    x = x.astype(np.float64)
    if histogram == "magnitudes":
        return _mirrored(np.quantile(np.abs(x), float(percentile) / 100, method=method))
    cut = (100 - float(percentile)) / 200
    return _pair(*np.quantile(x, [cut, 1 - cut], method=method))


for _rule, _method in {
    "nearest_rank": "inverted_cdf",
    "lower": "lower",
    "higher": "higher",
    "nearest": "nearest",
}.items():

    @right.implements("percentile_range", name=_rule, semantics=Semantics(quantile_rule=_rule, **WIDE))
    def quantiles(x, percentile, *, histogram, _method=_method):
        return _quantiles(x, percentile, histogram, _method)


@right.implements("percentile_range")
def quantiles_in_float32(x, percentile, *, histogram):
    if x.size == 0:
        raise ValueError("x: must not be empty")
    if histogram == "magnitudes":
        return _mirrored(np.quantile(np.abs(x).astype(F), F(percentile) / F(100)))
    cut = (F(100) - F(percentile)) / F(200)
    return _pair(np.quantile(x.astype(F), cut), np.quantile(x.astype(F), F(1) - cut))


# Ranges of histograms -----------------------------------------------------------------------------------------------


def _edge(low, high, bins, position):
    low = 0.0 if low is None else float(low)
    return low + position * ((float(high) - low) / bins)


def _percentile(counts, low, high, percentile, point=0.0, side="left", dtype=np.float64, skip=0):
    if not counts.any():
        raise ValueError("counts: must not be all zero")
    sums = np.cumsum(counts[skip:].astype(dtype) / dtype(counts.sum()), dtype=dtype)
    part, cut = float(percentile) / 100, (100 - float(percentile)) / 200
    parts = (part,) if low is None else (cut, 1 - cut)
    places = np.minimum(np.searchsorted(sums, np.array(parts, dtype), side=side) + skip + point, counts.size)
    ends = [_edge(low, high, counts.size, place) for place in places]
    return _mirrored(ends[0]) if low is None else _pair(*ends)


@right.implements("histogram_percentile_range", semantics=Semantics(bin_point="right", **WIDE))
def right_edges(counts, low, high, percentile):
    return _percentile(counts, low, high, percentile, 1.0)


@right.implements("histogram_percentile_range", semantics=Semantics(bin_point="centre"))
def middles_in_float32(counts, low, high, percentile):
    return _percentile(counts, low, high, percentile, 0.5, dtype=F)


def _least_error(counts, high, bits, start, point=0.0, equal="first", largest=None, power=2, dtype=np.float64):
    if counts.size <= start or not counts.any():
        raise ValueError("counts: must have more bins than start")
    width, largest = dtype(high) / dtype(counts.size), dtype(largest or 2 ** (bits - 1) - 1)
    middles = (np.arange(counts.size, dtype=dtype) + dtype(0.5)) * width
    ends = (np.arange(start, counts.size, dtype=dtype) + dtype(point)) * width
    scale = ends[:, None] / largest
    error = np.abs(np.minimum(np.rint(middles / scale), largest) * scale - middles) ** power @ counts.astype(dtype)
    best = np.argmin(error) if equal == "first" else error.size - 1 - np.argmin(error[::-1])
    return _mirrored(ends[best])


EVERY = {"bits": tuple(range(2, 9))}


@right.implements("mse_range", semantics=Semantics(equal_candidates="last", **WIDE), supports={**EVERY, **MAGNITUDES})
def last_left_edge(counts, low, high, *, bits, start):
    return _least_error(counts, high, bits, start, equal="last")


@right.implements("mse_range", semantics=Semantics(bin_point="right"), supports={**EVERY, **MAGNITUDES})
def right_edge_in_float32(counts, low, high, *, bits, start):
    return _least_error(counts, high, bits, start, 1.0, dtype=F)


def _distributions(counts, first, end, levels, smoothed=False, tails=True, all_bins=False, from_p=False):
    window = counts[first:end].astype(np.float64)
    p = window.copy()
    if tails:
        p[0] += counts[:first].sum()
        p[-1] += counts[end:].sum()
    source = p if from_p else window
    if smoothed:
        each = window.size // levels
        q = np.zeros(window.size)
        for level in range(levels):
            bins = slice(level * each, (level + 1) * each)
            total = source[bins.start : None if level == levels - 1 else bins.stop].sum()
            taking = np.count_nonzero(p[bins])
            q[bins] = total // taking if taking else 0
        return _smooth(p), _smooth(q)
    level = np.arange(window.size) * levels // window.size
    taking = np.ones(window.size) if all_bins else source > 0
    share = np.bincount(level, source, minlength=levels) / np.maximum(np.bincount(level, taking, minlength=levels), 1)
    return p, np.where(taking > 0, share[level], 0.0)


def _smooth(p):
    zeros = p == 0
    if zeros.all() or not zeros.any():
        return p
    return np.where(zeros, 1e-4, p - 1e-4 * zeros.sum() / (~zeros).sum())


def _divergence(p, q):
    with np.errstate(all="ignore"):
        p, q = p / p.sum(), q / q.sum()
        found = np.where(p > 0, p * np.log(p / q), 0.0).sum()
    return np.inf if np.isnan(found) else found


def _least_divergence(counts, low, high, levels, point=0, equal="first", measure=_divergence, begin=0, **options):
    bins, middle = counts.size, counts.size // 2
    if bins < levels or not counts.any():
        raise ValueError("levels: must be at most the number of bins")
    if low is None:
        windows = [(0, n) for n in range(levels + begin, bins + 1)] or [(0, bins)]
    else:
        windows = [(middle - n, min(middle + n + 1, bins)) for n in range(levels // 2, middle + 1)]
    found = np.array([measure(*_distributions(counts, *window, levels, **options)) for window in windows])
    best = np.argmin(found) if equal == "first" else found.size - 1 - np.argmin(found[::-1])
    first, end = windows[best]
    if low is None:
        return _mirrored(_edge(low, high, bins, end + point))
    return _pair(_edge(low, high, bins, first - point), _edge(low, high, bins, end + point))


@right.implements(
    "entropy_range",
    semantics=Semantics(entropy_rule="neighbour", equal_candidates="last", **WIDE),
    supports=MAGNITUDES,
)
def neighbour_for_the_first_bin(counts, low, high, *, levels):
    counts = counts.copy()
    counts[:1] = counts[1:2]
    return _least_divergence(counts, low, high, levels, equal="last")


@right.implements("entropy_range", semantics=Semantics(bin_point="centre", **WIDE))
def beyond_the_window(counts, low, high, *, levels):
    return _least_divergence(counts, low, high, levels, 0.5)


@right.implements("entropy_range", semantics=Semantics(entropy_rule="smoothed", **WIDE))
def smoothed(counts, low, high, *, levels):
    return _least_divergence(counts, low, high, levels, smoothed=True)


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def _wrong(operation, word="must be", **options):
    def register(function):
        EXPECTED[function.__name__] = word
        return wrong.implements(operation, **options)(function)

    return register


_counts = partial(_wrong, "histogram", semantics=Semantics(**WIDE))


@_counts()
def upper_end_left_out(x, low, high, *, bins):
    return _by_position(x, low, high, bins, np.float64, last=False)


@_counts()
def edges_belong_to_the_bin_below(x, low, high, *, bins):
    edges = np.linspace(float(low), float(high), bins + 1)
    x = x[(x >= low) & (x <= high)]
    return np.bincount(np.clip(np.searchsorted(edges, x, side="left") - 1, 0, bins - 1), minlength=bins).astype(
        np.int32
    )


@_counts()
def outside_goes_to_the_ends(x, low, high, *, bins):
    return plain.histogram(np.clip(x, low, high), low, high, bins=bins)


@_counts()
def range_of_the_samples(x, low, high, *, bins):
    inside = x[(x >= low) & (x <= high)]
    return plain.histogram(inside, *((inside.min(), inside.max()) if np.ptp(inside) > 0 else (low, high)), bins=bins)


@_counts()
def counts_in_16_bits(x, low, high, *, bins):
    return plain.histogram(x, low, high, bins=bins).astype(np.int16).astype(np.int32)


@_counts()
def truncates_below_zero(x, low, high, *, bins):
    """Bins counted from zero, by a conversion to an integer that goes toward it."""
    width = (float(high) - float(low)) / bins
    x = x[(x >= low) & (x <= high)].astype(np.float64)
    at = (x / width).astype(int) - int(np.floor(float(low) / width))
    return np.bincount(np.clip(at, 0, bins - 1), minlength=bins).astype(np.int32)


@_counts()
def position_undeclared(x, low, high, *, bins):
    return _by_position(x, low, high, bins)


_widens = partial(_wrong, "widen_histogram", semantics=Semantics(**WIDE))


@_widens()
def one_bin_too_few_where_the_end_is_met(counts, low, high, new_low, new_high, *, histogram, growth, capacity):
    width = (float(high) - (0 if low is None else float(low))) / counts.size
    reach = float(new_high) if low is None else max(-float(new_low), float(new_high))
    met = histogram == "values" and reach > high and (reach - float(high)) % width == 0
    return _wider(counts, low, float(high), new_low, float(new_high), histogram, growth, capacity, -1 if met else 0)


@_widens()
def old_counts_at_the_old_place(counts, low, high, new_low, new_high, *, histogram, growth, capacity):
    grown, *ends = _wider(counts, low, float(high), new_low, float(new_high), histogram, growth, capacity)
    if growth == "same_width":
        grown[...] = np.pad(counts, (0, capacity - counts.size))
    return grown, *ends


@_widens()
def only_the_upper_end_counts(counts, low, high, new_low, new_high, *, histogram, growth, capacity):
    reach = None if low is None else (float(new_low) if growth == "same_bins" else -float(new_high))
    return _wider(counts, low, float(high), reach, float(new_high), histogram, growth, capacity)


@_widens()
def whole_bins_move(counts, low, high, new_low, new_high, *, histogram, growth, capacity):
    return _wider(counts, low, float(high), new_low, float(new_high), histogram, growth, capacity, parts=1)


@_widens()
def parts_by_their_lower_ends(counts, low, high, new_low, new_high, *, histogram, growth, capacity):
    return _wider(counts, low, float(high), new_low, float(new_high), histogram, growth, capacity, offset=0.0)


_averaged = partial(_wrong, "moving_average_range")


@_averaged()
def averages_from_zero(x, constant):
    return _averages(x, lambda batches: (F(0), batches), lambda m, new: m + constant * (new - m))


@_averaged()
def constant_weighs_the_old(x, constant):
    return _averages(x, _from_first, lambda m, new: new + constant * (m - new))


@_averaged()
def least_and_greatest_of_all(x, constant):
    return F(x.min()), F(x.max())


@_averaged()
def ranges_never_shrink(x, constant):
    low = _averages(x, _from_first, lambda m, new: min(m, m + constant * (new - m)))[0]
    return low, _averages(x, _from_first, lambda m, new: max(m, m + constant * (new - m)))[1]


@_averaged()
def mean_of_the_batches(x, constant):
    return F(x.min(axis=1).mean()), F(x.max(axis=1).mean())


@_averaged()
def weighted_undeclared(x, constant):
    return weighted(x, constant)


_ranked = partial(_wrong, "percentile_range", semantics=Semantics(**WIDE))


@_ranked()
def all_is_cut_off_at_each_end(x, percentile, *, histogram):
    if histogram == "magnitudes":
        return plain.percentile_range(x, percentile, histogram=histogram)
    return plain.percentile_range(x, max(2 * percentile - 100, F(0)), histogram=histogram)


@_ranked()
def rank_among_n(x, percentile, *, histogram):
    return _quantiles(x, percentile, histogram, "weibull")


@_ranked()
def nearest_rank_undeclared(x, percentile, *, histogram):
    return _quantiles(x, percentile, histogram, "inverted_cdf")


@_ranked(supports=MAGNITUDES)
def magnitude_of_the_upper_quantile(x, percentile):
    return _mirrored(np.abs(np.quantile(x.astype(np.float64), float(percentile) / 100)))


_cut = partial(_wrong, "histogram_percentile_range", semantics=Semantics(**WIDE))


@_cut()
def bin_after_one_that_is_met(counts, low, high, percentile):
    return _percentile(counts, low, high, percentile, side="right")


@_cut()
def first_bin_skipped(counts, low, high, percentile):
    return _percentile(counts, low, high, percentile, skip=min(1, counts.size - 1))


@_cut()
def right_edge_undeclared(counts, low, high, percentile):
    return _percentile(counts, low, high, percentile, 1.0)


@_cut()
def bins_instead_of_counts(counts, low, high, percentile):
    return _percentile((counts > 0).astype(int), low, high, percentile)


_errs = partial(_wrong, "mse_range", semantics=Semantics(**WIDE))
_of_magnitudes = partial(_errs, supports={**EVERY, **MAGNITUDES})


@_of_magnitudes()
def absolute_error(counts, low, high, *, bits, start):
    return _least_error(counts, high, bits, start, power=1)


@_of_magnitudes()
def one_code_too_many(counts, low, high, *, bits, start):
    return _least_error(counts, high, bits, start, largest=2 ** (bits - 1))


@_of_magnitudes()
def last_of_equal_errors(counts, low, high, *, bits, start):
    return _least_error(counts, high, bits, start, equal="last")


@_of_magnitudes()
def middle_undeclared(counts, low, high, *, bits, start):
    return _least_error(counts, high, bits, start, 0.5)


@_of_magnitudes()
def number_of_bits_as_a_bias(counts, low, high, *, bits, start):
    """Trap: Model Optimizer passes it in the place of an optional bias, so that all codes are alike."""
    return _mirrored((start + 0.5) * float(high) / counts.size)


_searches = partial(_errs, supports={**EVERY, **VALUES})


@_searches()
def always_256_levels(counts, low, high, *, bits):
    return plain.mse_range(counts, low, high, histogram="values", bits=8, start=None)


@_searches()
def whole_range(counts, low, high, *, bits):
    if not counts.any():
        raise ValueError("counts: must not be all zero")
    return _pair(low, high)


@_searches()
def left_edge_of_the_last_bin(counts, low, high, *, bits):
    least, most = plain.mse_range(counts, low, high, histogram="values", bits=bits, start=None)
    return least, F(most - (high - low) / F(counts.size))


_diverges = partial(_wrong, "entropy_range", semantics=Semantics(**WIDE))


@_diverges()
def tails_dropped(counts, low, high, *, levels):
    return _least_divergence(counts, low, high, levels, tails=False)


@_diverges()
def levels_made_of_the_tails_too(counts, low, high, *, levels):
    return _least_divergence(counts, low, high, levels, from_p=True)


@_diverges()
def empty_bins_share(counts, low, high, *, levels):
    return _least_divergence(counts, low, high, levels, all_bins=True)


@_diverges()
def divergence_of_q_from_p(counts, low, high, *, levels):
    return _least_divergence(counts, low, high, levels, measure=lambda p, q: _divergence(q, p))


@_diverges()
def last_of_equal_divergences(counts, low, high, *, levels):
    return _least_divergence(counts, low, high, levels, equal="last")


@_diverges(supports=MAGNITUDES)
def fewest_bins_never_tried(counts, low, high, *, levels):
    return _least_divergence(counts, low, high, levels, begin=1)


@_diverges(supports=MAGNITUDES)
def first_bin_replaced_undeclared(counts, low, high, *, levels):
    counts = counts.copy()
    counts[:1] = counts[1:2]
    return _least_divergence(counts, low, high, levels)


@_diverges(semantics=Semantics(entropy_rule="smoothed", **WIDE))
def smoothing_left_out(counts, low, high, *, levels):
    return _least_divergence(counts, low, high, levels)
