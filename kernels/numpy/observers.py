"""Calibration observers in NumPy: histograms, and searches in float64 over all candidates at once."""

import numpy as np

from lowbit_cts.kernels import Backend, BinPoint, BinSearch, EntropyRule, EqualCandidates, Precision, Semantics

_WIDE = Semantics(intermediate=Precision.FLOAT64)
#: About so many numbers of candidates by bins are held at once.
_HELD = 1 << 20
_STEP = 1e-5
_PARTS = 16


def _positive(name, value):
    if not value > 0:
        raise ValueError(f"{name}: must be positive; got {value}")


def _filled(counts):
    if counts.size == 0 or not counts.any():
        raise ValueError("counts: must not be all zero")
    return counts.astype(np.float64)


def _width(low, high, bins):
    _positive("high - low", float(high) - float(low))
    return (float(high) - float(low)) / bins


def _pair(low, high):
    return np.float32(low), np.float32(high)


def histogram(x, low, high, *, bins):
    """Return the counts of numpy.histogram."""
    _positive("high - low", float(high) - float(low))
    return np.histogram(x.astype(np.float64), bins, range=(float(low), float(high)))[0].astype(np.int32)


def widen_histogram(counts, low, high, new_low, new_high, *, histogram, growth, capacity):
    """Return the histogram over a wider range, and its ends."""
    low, new_low = (0.0 if end is None else float(end) for end in (low, new_low))
    high, new_high, bins = float(high), float(new_high), counts.size
    width = _width(low, high, bins)
    if growth == "same_width":
        reach = max(-new_low, new_high)
        over = (reach - high) / width
        added = 0 if reach <= high else int(np.floor(over)) + 1 if histogram == "values" else int(np.ceil(over))
        start = added if histogram == "values" else 0
        if bins + added + start > capacity:
            raise ValueError(f"capacity: must be at least {bins + added + start}; got {capacity}")
        grown = np.zeros(capacity, np.float32)
        grown[start : start + bins] = counts
        return grown, *_pair(low - start * width, high + added * width)
    if (low, high) != (new_low, new_high):
        middles = low + (np.arange(bins * _PARTS) + 0.5) * (width / _PARTS)
        place = np.floor((middles - new_low) / _width(new_low, new_high, bins)).astype(int)
        weights = np.repeat(counts / np.float64(_PARTS), _PARTS)
        counts = np.bincount(np.clip(place, 0, bins - 1), weights, minlength=bins)
    return counts.astype(np.float32), *_pair(new_low, new_high)


def moving_average_range(x, constant):
    """Return m + c (new - m) of minima and maxima, in float32."""
    x = x.astype(np.float32, copy=False)
    low, high = x.min(axis=1), x.max(axis=1)
    ends = [low[0], high[0]]
    for batch in range(1, len(x)):
        ends = [m + constant * (new[batch] - m) for m, new in zip(ends, (low, high), strict=True)]
    return tuple(np.float32(end) for end in ends)


def _parts(percentile, histogram):
    part = float(percentile) / 100
    cut = (100 - float(percentile)) / 200
    return (part,) if histogram == "magnitudes" else (cut, 1 - cut)


def _range(ends):
    """Return the two ends, of magnitudes from the one."""
    return _pair(-ends[0], ends[0]) if len(ends) == 1 else _pair(*ends)


def percentile_range(x, percentile, *, histogram):
    """Return quantiles by linear interpolation."""
    x = x.astype(np.float64)
    return _range(np.quantile(np.abs(x) if histogram == "magnitudes" else x, _parts(percentile, histogram)))


def histogram_percentile_range(counts, low, high, percentile, *, histogram):
    """Return left edges of the first bins where the running sum of counts / total reaches the parts."""
    low = 0.0 if low is None else low
    counts, width = _filled(counts), _width(low, high, counts.size)
    places = np.searchsorted(np.cumsum(counts / counts.sum()), _parts(percentile, histogram))
    return _range([float(low) + place * width for place in places])


def _chunks(candidates, bins):
    return np.array_split(candidates, max(1, candidates.size * bins // _HELD))


def _least_error(counts, high, bits, start):
    if counts.size <= start:
        raise ValueError(f"start: must be less than the number of bins, {counts.size}; got {start}")
    width, largest = _width(0, high, counts.size), 2 ** (bits - 1) - 1
    middles = (np.arange(counts.size) + 0.5) * width
    errors = []
    for chunk in _chunks(np.arange(start, counts.size), counts.size):
        scale = middles[chunk, None] / largest
        quantized = np.minimum(np.rint(middles / scale), largest) * scale
        errors.append(((quantized - middles) ** 2) @ counts)
    return _range([middles[start + np.argmin(np.concatenate(errors))]])


def _spread_error(counts, width, first, last, levels):
    begin = (np.arange(counts.size) - first) * width
    end = begin + width
    share = width * (last - first + 1) / levels
    of_begin, of_end = (np.clip(np.floor(place / share), 0, levels - 1) for place in (begin, end))
    left, right, half = begin - (of_begin + 0.5) * share, end - (of_end + 0.5) * share, share / 2
    cubes = right**3 - left**3 + 2 * (of_end - of_begin) * half**3
    return float(cubes @ counts)


def _greedy(counts, low, high, bits):
    width, sums = _width(low, high, counts.size), np.cumsum(counts)
    total, lower, upper = sums[-1], 0.0, 1.0
    first, last, least = 0, counts.size - 1, np.inf
    while lower < upper:
        left = first
        while left < last and sums[left] < (lower + _STEP) * total:
            left += 1
        right = last
        while right > first and sums[right] > (upper - _STEP) * total:
            right -= 1
        if left - first > last - right:
            lower, kept = lower + _STEP, (left, last)
        else:
            upper, kept = upper - _STEP, (first, right)
        if kept == (first, last):
            continue
        error = _spread_error(counts, width, *kept, 2**bits)
        if error > least:
            break
        least, (first, last) = error, kept
    return _range([float(low) + first * width, float(low) + (last + 1) * width])


def mse_range(counts, low, high, *, histogram, bits, start):
    """Return the range of the least squared error among the middles of bins; of values by the greedy search."""
    counts = _filled(counts)
    return _greedy(counts, low, high, bits) if low is not None else _least_error(counts, high, bits, start)


def _divergence(p, q):
    """Return the divergences of rows, inf where there are levels of nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        p = p / p.sum(axis=1, keepdims=True)
        q = q / q.sum(axis=1, keepdims=True)
        terms = np.where(p > 0, p * np.log(p / q), 0.0)
    found = terms.sum(axis=1)
    return np.where(np.isnan(found), np.inf, found)


def _window(counts, first, end, levels):
    """Return P and Q of some windows, a row each: bins outside a window are 0."""
    bins = np.arange(counts.size)
    first, end = first[:, None], end[:, None]
    inside = (bins >= first) & (bins < end)
    window = np.where(inside, counts, 0.0)
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    p = window + (bins == first) * sums[first] + (bins == end - 1) * (sums[-1] - sums[end])
    level = np.where(inside, (bins - first) * levels // (end - first), 0) + levels * np.arange(len(first))[:, None]
    size = len(first) * levels
    filled = np.bincount(level.ravel(), (window > 0).ravel(), minlength=size)
    share = np.bincount(level.ravel(), window.ravel(), minlength=size) / np.maximum(filled, 1)
    return p, np.where(window > 0, share[level], 0.0)


def entropy_range(counts, low, high, *, histogram, levels):
    """Return the left edge of the bin after the window with the least divergence, and the end before it."""
    counts, bins = _filled(counts), counts.size
    if bins < levels:
        raise ValueError(f"levels: must be at most the number of bins, {bins}; got {levels}")
    middle, width = bins // 2, _width(0 if low is None else low, high, bins)
    if histogram == "magnitudes":
        end = np.arange(levels, bins + 1)
        first = np.zeros_like(end)
    else:
        reach = np.arange(levels // 2, middle + 1)
        first, end = middle - reach, np.minimum(middle + reach + 1, bins)
    divergences = [
        _divergence(*_window(counts, first[chunk], end[chunk], levels)) for chunk in _chunks(np.arange(end.size), bins)
    ]
    best = int(np.argmin(np.concatenate(divergences)))
    if low is None:
        return _range([end[best] * width])
    return _range([float(low) + first[best] * width, float(low) + end[best] * width])


def register(backend: Backend) -> None:
    """Register the kernels."""
    backend.implements("histogram", semantics=Semantics(bin_search=BinSearch.EDGES, intermediate=Precision.FLOAT64))(
        histogram
    )
    backend.implements("widen_histogram", semantics=_WIDE)(widen_histogram)
    backend.implements("moving_average_range")(moving_average_range)
    backend.implements("percentile_range", semantics=_WIDE)(percentile_range)
    backend.implements("histogram_percentile_range", semantics=_WIDE)(histogram_percentile_range)
    backend.implements(
        "mse_range",
        semantics=Semantics(bin_point=BinPoint.CENTRE, intermediate=Precision.FLOAT64),
        supports={"bits": tuple(range(2, 9))},
    )(mse_range)
    backend.implements(
        "entropy_range",
        semantics=Semantics(
            entropy_rule=EntropyRule.MIGACZ, equal_candidates=EqualCandidates.FIRST, intermediate=Precision.FLOAT64
        ),
    )(entropy_range)
