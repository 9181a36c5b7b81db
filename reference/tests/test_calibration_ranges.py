"""Ranges by moving averages, percentiles, squared error and entropy, against searches by brute force and libraries."""

import contextlib
import io
import json
from fractions import Fraction
from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np
import pytest

from lowbit_cts.reference.calibration.candidates import least
from lowbit_cts.reference.calibration.entropy import distributions, divergence, entropy_enclosure
from lowbit_cts.reference.calibration.moving_average import moving_average_enclosure
from lowbit_cts.reference.calibration.mse import greedy_enclosure, greedy_path, mse_enclosure, spread_error
from lowbit_cts.reference.calibration.percentile import percentile_enclosure, percentile_of_histogram_enclosure
from lowbit_cts.reference.choices import EntropyRule

F = np.float32
#: What Model Optimizer 0.47 finds in `made` histograms whose bins have the width 1: bins, bits, the ends by entropy,
#: by the squared error (from bin 2**(bits - 1) on, with its number of bits passed as such) and by three percentiles.
PINNED = json.loads(Path(__file__).with_name("calibration_model_optimizer.json").read_text())


def made(kind, bins):
    """Return counts of a shape."""
    i = np.arange(bins)
    counts = {
        "exponential": 1e5 * np.exp(-i / (bins / 12)),
        "normal": 1e5 * np.exp(-((i / (bins / 4)) ** 2) / 2),
        "outlier": 1e4 * np.exp(-((i / (bins / 20)) ** 2) / 2),
        "gaps": np.where(i % 3 == 0, 1e4 * np.exp(-i / (bins / 6)), 0),
        "flat": np.full(bins, 7.0),
        "peak": 50 * np.exp(-i / (bins / 8)),
    }[kind]
    counts = np.floor(counts)
    if kind == "outlier":
        counts[-1] = 1
    if kind == "peak":
        counts[0] = 1e6
    return counts.astype(np.int64)


KINDS = ("exponential", "normal", "outlier", "gaps", "flat", "peak")


def point(found, name="high"):
    """Return an end that is determined."""
    end = found[name]
    assert end.lo == end.hi == end.exact
    return float(end.exact)


# The choice among candidates ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("equal", ["first", "last"])
@pytest.mark.parametrize("seed", range(30))
def test_admissible_candidates_are_those_of_some_objectives(seed, equal):
    """Every objective at one of the ends of its bound, and all of these: which candidates are ever chosen."""
    rng = np.random.default_rng(seed)
    objective = rng.integers(0, 6, 5).astype(float)
    bound = rng.integers(0, 3, 5) / 2
    seen = set()
    for signs in np.ndindex(*(3,) * 5):
        tried = objective + bound * (np.array(signs) - 1)
        best = [i for i in range(5) if tried[i] == min(tried)]
        seen.add(best[0] if equal == "first" else best[-1])
    best, admissible = least(objective, bound, equal=equal)
    assert set(np.flatnonzero(admissible)) == seen
    exact = [i for i in range(5) if objective[i] == min(objective)]
    assert best == (exact[0] if equal == "first" else exact[-1])


def test_where_no_candidate_is_possible_the_first_or_the_last_is_taken():
    never = np.full(4, np.inf)
    assert least(never, np.zeros(4))[0] == 0
    assert least(never, np.zeros(4), equal="last")[0] == 3
    assert least(never, np.zeros(4))[1].tolist() == [True, False, False, False]


# Moving averages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", [0.01, 0.5, 1.0, 0.3])
def test_torch_moving_averages(constant):
    torch = pytest.importorskip("torch")
    from torch.ao.quantization import MovingAverageMinMaxObserver

    rng = np.random.default_rng(1)
    x = (rng.standard_normal((50, 20)) * 2.0 ** rng.integers(-20, 20, (50, 1))).astype(F)
    observer = MovingAverageMinMaxObserver(averaging_constant=constant)
    for batch in x:
        observer(torch.from_numpy(batch))
    found = moving_average_enclosure(x, F(constant))
    assert point(found, "low") == observer.min_val
    assert point(found) == observer.max_val
    for contraction in ("fused", "either"):
        other = moving_average_enclosure(x, F(constant), contraction=contraction)
        assert abs(other["high"].exact - float(observer.max_val)) <= 1e-5 * np.abs(x).max()
        assert moving_average_enclosure(x, F(constant), contraction="either")["low"].admits(other["low"].exact)


@pytest.mark.parametrize("seed", range(5))
def test_fused_and_weighted_averages_are_within_the_open_ones(seed):
    rng = np.random.default_rng(seed)
    x, c = rng.standard_normal((30, 4)).astype(F), F(rng.uniform(0.001, 1))
    kept = F(1) - c
    plain, low, wide = x[0].min(), x[0].min(), float(x[0].min())
    for batch in x[1:]:
        plain = kept * plain + c * batch.min()
        low = F(float(kept) * float(low) + float(c * batch.min()))
        wide = float(np.float64(kept) * wide + np.float64(c) * batch.min())
    assert moving_average_enclosure(x, c, average_form="weighted")["low"].exact == plain
    for contraction in ("fused", "either"):
        found = moving_average_enclosure(x, c, average_form="weighted", contraction=contraction)["low"]
        assert found.admits(np.array([plain, low], np.float64)).all()
        assert abs(found.exact - wide) < 1e-5


def test_published_moving_average():
    found = moving_average_enclosure(F([[-1, 1], [-2, 4]]), F(0.01))
    assert point(found, "low") == F(-1.01)
    assert point(found) == F(1.03)


def test_one_batch_is_its_range_and_a_constant_of_one_forgets():
    x = np.random.default_rng(5).standard_normal((6, 9)).astype(F)
    assert point(moving_average_enclosure(x[:1], 0.01)) == x[0].max()
    assert point(moving_average_enclosure(np.round(x * 64) / 64, 1.0)) == np.round(x * 64)[-1].max() / 64


@pytest.mark.parametrize(
    ("x", "constant", "word"),
    [
        (np.zeros((0, 3)), 0.5, "x: must hold batches"),
        (np.zeros((3, 0)), 0.5, "x: must hold batches"),
        ([[np.nan]], 0.5, "x: must be finite"),
        ([[np.inf]], 0.5, "x: must be finite"),
        ([[1.0]], 0.0, "constant: must lie in"),
        ([[1.0]], 1.5, "constant: must lie in"),
        ([[1.0]], np.nan, "constant: must lie in"),
        ([[-3e38], [3e38]], 0.5, "largest float32"),
    ],
)
def test_bad_batches_are_one_clear_error(x, constant, word):
    with pytest.raises(ValueError, match=word):
        moving_average_enclosure(np.asarray(x), constant)


# Percentiles --------------------------------------------------------------------------------------------------------

METHODS = {
    "linear": "linear", "lower": "lower", "higher": "higher", "nearest": "nearest", "nearest_rank": "inverted_cdf",
}  # fmt: skip


@pytest.mark.parametrize("rule", METHODS)
@pytest.mark.parametrize("seed", range(10))
def test_numpy_percentiles_are_admitted(seed, rule):
    rng = np.random.default_rng(160 + seed)
    for size in (1, 2, 3, 10, 1000, 1001, 20000):
        x = rng.choice([rng.standard_normal(size), rng.integers(-4, 5, size) / 4.0]).astype(F)
        percentile = float(F(rng.choice([100, 99.999, 99.9, 99, 90, 75, 50, 1e-3, rng.uniform(0, 100)])))
        cut = (100 - percentile) / 200
        for intermediate, dtype in (("float32", F), ("float64", np.float64)):
            seen = x.astype(dtype)
            found = percentile_enclosure(x, percentile, quantile_rule=rule, intermediate=intermediate)
            for name, q in (("low", cut), ("high", 1 - cut)):
                assert found[name].admits(F(np.quantile(seen, q, method=METHODS[rule])).astype(np.float64)), (size, q)
            found = percentile_enclosure(
                x, percentile, histogram="magnitudes", quantile_rule=rule, intermediate=intermediate
            )
            expected = F(np.quantile(np.abs(seen), percentile / 100, method=METHODS[rule]))
            assert found["high"].admits(expected.astype(np.float64))
            assert found["low"].exact == -found["high"].exact


@pytest.mark.parametrize("seed", range(5))
def test_torch_quantiles_are_admitted(seed):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(180 + seed)
    x = rng.standard_normal(3001).astype(F)
    for percentile in (99.9, 99.0, 50.0, 100.0):
        found = percentile_enclosure(x, F(percentile), histogram="magnitudes")["high"]
        assert found.admits(torch.quantile(torch.from_numpy(x).abs(), float(F(percentile)) / 100).double().numpy())


def test_nearest_rank_is_the_least_sample_that_enough_are_not_above():
    """By its definition, in rationals, where positions are exact."""
    rng = np.random.default_rng(190)
    for size in range(1, 40):
        x = rng.integers(0, 9, size) / 8
        for percentile in (100, 75, 50, 25, 12.5):
            enough = [v for v in np.sort(x) if Fraction(int(np.sum(x <= v)), size) * 100 >= Fraction(percentile)]
            assert (
                point(percentile_enclosure(x, percentile, histogram="magnitudes", quantile_rule="nearest_rank"))
                == enough[0]
            )


def test_all_of_the_samples_are_inside_the_hundredth_percentile():
    x = np.random.default_rng(191).standard_normal(777).astype(F)
    for rule in METHODS:
        found = percentile_enclosure(x, 100, quantile_rule=rule)
        assert point(found, "low") == x.min()
        assert point(found) == x.max()


def by_counting(counts, percentile):
    """Return the first bin up to which at least the part is counted, in rationals."""
    total, so_far = int(counts.sum()), 0
    for i, count in enumerate(counts):
        so_far += int(count)
        if Fraction(so_far, total) * 100 >= Fraction(percentile):
            return i
    raise AssertionError


@pytest.mark.parametrize("seed", range(20))
def test_percentiles_of_histograms_by_counting(seed):
    rng = np.random.default_rng(200 + seed)
    bins = int(rng.integers(1, 60))
    counts = rng.integers(0, 5, bins) * rng.integers(0, 2, bins)
    counts[rng.integers(bins)] += 1
    for percentile in (100.0, 99.9, 75.0, 50.0, 30.0, 1.0):
        at = by_counting(counts, percentile)
        for name, offset in (("left", 0), ("centre", 0.5), ("right", 1)):
            found = percentile_of_histogram_enclosure(counts, 0, 3, percentile, histogram="magnitudes", bin_point=name)
            assert found["high"].exact == F((at + offset) * 3 / bins)
        cut = Fraction(percentile)
        low, high = by_counting(counts, (100 - cut) / 2), by_counting(counts, 100 - (100 - cut) / 2)
        found = percentile_of_histogram_enclosure(counts, -1, 1, percentile, intermediate="float64")
        assert found["low"].admits(np.float64(F(-1 + low * 2 / bins)))
        assert found["high"].admits(np.float64(F(-1 + high * 2 / bins)))


def test_percentiles_are_monotone_and_determined_where_sums_are_exact():
    rng = np.random.default_rng(210)
    counts = rng.multinomial(1 << 14, np.full(64, 1 / 64))
    ends = [
        point(percentile_of_histogram_enclosure(counts, 0, 1, p / 1024 * 100, histogram="magnitudes"))
        for p in (1, 100, 500, 512, 900, 1000, 1023, 1024)
        if (p / 1024 * 100) / 100 % 2.0**-10 == 0
    ]
    assert ends == sorted(ends)
    assert len(set(ends)) > 4


def silent(collector, samples, histogram=None):
    with contextlib.redirect_stdout(io.StringIO()):
        if histogram is None:
            collector.collect({"t": samples})
        else:
            collector.histogram_dict = {"t": histogram}
        return collector.compute_collection_result()["t"][:2]


def onnxruntime_collector(method, bins, **options):
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    known = {"symmetric": True, "num_quantized_bins": 128, "percentile": 99.999, "scenario": "same"}
    return calibrate.HistogramCollector(method=method, num_bins=bins, **known | options)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("percentile", [100.0, 99.999, 99.9, 99.0, 75.0])
def test_onnxruntime_percentiles(percentile, symmetric):
    rng = np.random.default_rng(211)
    x = np.r_[rng.standard_normal(20000).astype(F), F(0)]
    collector = onnxruntime_collector("percentile", 2048, percentile=percentile, symmetric=symmetric)
    low, high = silent(collector, x)
    counts, edges = collector.get_histogram_dict()["t"][:2]
    histogram = "magnitudes" if symmetric else "values"
    found = percentile_of_histogram_enclosure(
        counts, edges[0], edges[-1], percentile, histogram=histogram, intermediate="float64"
    )
    # It computes the edges in float32, and clamps the range to what it has seen.
    near = {"rtol": 3e-7, "atol": 1e-7}
    np.testing.assert_allclose(max(found["low"].exact, x.min()), low, **near)
    clamped = [min(float(end), float(x.max())) for end in (found["high"].lo, found["high"].hi)]
    assert clamped[0] - 1e-6 <= high <= clamped[1] + 1e-6


@pytest.mark.parametrize(("kind", "bins", "bits", "entropy", "mse", "most", "more", "half"), PINNED)
def test_model_optimizer(kind, bins, bits, entropy, mse, most, more, half):
    counts = made(kind, bins)
    known = {"intermediate": "float64"}
    for percentile, end in ((99.99, most), (99.0, more), (50.0, half)):
        found = percentile_of_histogram_enclosure(counts, 0, bins, percentile, histogram="magnitudes", **known)
        assert found["high"].lo <= end <= found["high"].hi
        assert found["high"].hi - found["high"].lo <= 1
    levels = 2 ** (bits - 1)
    found = entropy_enclosure(
        counts, 0, bins, levels=levels, entropy_rule="neighbour", equal_candidates="last", **known
    )
    assert found["high"].lo <= entropy <= found["high"].hi
    assert found["high"].hi - found["high"].lo <= 1
    found = mse_enclosure(counts, bins, bits=bits, start=levels, bin_point="centre", **known)
    assert found["high"].exact == mse


# Squared error ------------------------------------------------------------------------------------------------------


def by_every_candidate(counts, bits, start, offset):
    """Return the end that has the least squared error, bins of width 1, one bin and one candidate at a time."""
    best = None
    for i in range(start, len(counts)):
        end = Fraction(2 * i + int(2 * offset), 2)
        scale = end / (2 ** (bits - 1) - 1)
        error = Fraction(0)
        for j, count in enumerate(counts):
            middle = Fraction(2 * j + 1, 2)
            code = min(round(middle / scale), 2 ** (bits - 1) - 1)
            error += int(count) * (code * scale - middle) ** 2
        if best is None or error < best[0]:
            best = (error, end)
    return float(best[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bins", "bits", "start"), [(16, 3, 1), (20, 2, 5), (25, 4, 8)])
def test_least_squared_error_of_every_candidate(kind, bins, bits, start):
    counts = made(kind, bins)
    for name, offset in (("left", 0), ("centre", 0.5), ("right", 1)):
        expected = by_every_candidate(counts, bits, start, offset)
        for intermediate in ("float32", "float64"):
            found = mse_enclosure(counts, bins, bits=bits, start=start, bin_point=name, intermediate=intermediate)[
                "high"
            ]
            assert found.lo <= expected <= found.hi
        assert found.exact == expected


def test_a_power_of_two_scales_the_range():
    for kind in KINDS:
        counts = made(kind, 64)
        one, other = (mse_enclosure(counts, high, bits=4, start=8) for high in (1.0, 2.0**-20))
        assert other["high"].exact == one["high"].exact * 2.0**-20
        one, other = (entropy_enclosure(counts, 0, high, levels=8) for high in (1.0, 2.0**30))
        assert other["high"].exact == one["high"].exact * 2.0**30
        one, other = (greedy_enclosure(counts, -high, high, bits=4) for high in (1.0, 2.0**10))
        assert other["low"].exact == one["low"].exact * 2.0**10


def by_pieces(counts, width, first, last, levels):
    """Return the squared error of evenly spread bins: integrals over the pieces between all edges, in rationals."""
    share = Fraction(width) * (last - first + 1) / levels
    origin = Fraction(width) * first
    edges = {Fraction(width) * i for i in range(len(counts) + 1)} | {origin + share * k for k in range(1, levels)}
    edges = sorted(edges)
    total = Fraction(0)
    for begin, end in pairwise(edges):
        middle = (begin + end) / 2
        level = min(max((middle - origin) // share, 0), levels - 1)
        centre = origin + (level + Fraction(1, 2)) * share
        density = Fraction(int(counts[int(middle / Fraction(width))])) / Fraction(width)
        total += density * ((end - centre) ** 3 - (begin - centre) ** 3) / 3
    return float(total)


@pytest.mark.parametrize("seed", range(10))
def test_error_of_evenly_spread_bins_is_the_integral(seed):
    rng = np.random.default_rng(220 + seed)
    bins = int(rng.integers(2, 20))
    counts = rng.integers(0, 20, bins)
    first = int(rng.integers(0, bins))
    last = int(rng.integers(first, bins))
    for levels in (4, 8, 16):
        found = spread_error(counts.astype(float), 0.125, np.array([first]), np.array([last]), levels=levels)[0]
        np.testing.assert_allclose(found[0], by_pieces(counts, 0.125, first, last, levels), rtol=1e-12, atol=1e-12)


def bin_by_bin(counts, step=1e-5):
    """Return the path of the greedy search, a bin at a time."""
    sums, total = np.cumsum(counts), counts.sum()
    lower, upper, first, last = 0.0, 1.0, 0, len(counts) - 1
    path = [(first, last)]
    while lower < upper:
        left, right = first, last
        while left < last and sums[left] < F((lower + step) * float(total)):
            left += 1
        while right > first and sums[right] > F((upper - step) * float(total)):
            right -= 1
        if left - first > last - right:
            lower, kept = lower + step, (left, last)
        else:
            upper, kept = upper - step, (first, right)
        if kept != (first, last):
            first, last = kept
            path.append(kept)
    return path


@pytest.mark.parametrize("seed", range(4))
def test_greedy_path_bin_by_bin(seed):
    rng = np.random.default_rng(230 + seed)
    counts = rng.integers(0, 1000, 40) * rng.integers(0, 2, 40)
    path = greedy_path(counts.astype(float))
    assert len(path.first) > 5
    assert list(zip(path.first, path.last, strict=True)) == bin_by_bin(counts)


def histograms(seed):
    rng = np.random.default_rng(seed)
    yield np.histogram(np.r_[rng.standard_normal(5000), 9.0], 256)[0]
    yield np.histogram(rng.standard_normal(3000) ** 3, 100)[0]
    yield np.histogram(np.maximum(rng.standard_normal(3000), 0), 300)[0]
    yield rng.integers(0, 9, 64) * rng.integers(0, 2, 64) + np.eye(64, dtype=int)[0]
    yield np.eye(40, dtype=int)[7] * 12
    yield np.full(33, 5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [8, 4])
def test_torch_greedy_search(seed, bits):
    torch = pytest.importorskip("torch")
    from torch.ao.quantization import HistogramObserver

    moved = 0
    for counts in histograms(240 + seed):
        low, high = F(-1.25), F(3.5)
        observer = HistogramObserver(bins=counts.size)
        observer.dst_nbins = 2**bits
        observer.histogram.copy_(torch.from_numpy(counts.astype(F)))
        observer.min_val, observer.max_val = torch.tensor(low), torch.tensor(high)
        got = [float(end) for end in observer._non_linear_param_search()]
        found = greedy_enclosure(counts, low, high, bits=bits)
        assert found["low"].admits(np.float64(got[0]))
        assert found["high"].admits(np.float64(got[1]))
        exact = [float(found[name].exact) for name in ("low", "high")]
        np.testing.assert_allclose(got, exact, atol=1e-6)
        moved += got != [low, high]
    assert moved >= 3


# Entropy ------------------------------------------------------------------------------------------------------------


def plainly(counts, levels, rule, histogram):
    """Return P and Q of every candidate, a bin at a time."""
    bins = len(counts)
    counts = [int(c) for c in counts]
    if histogram == "values":
        middle = bins // 2
        spans = [(middle - n, min(middle + n + 1, bins)) for n in range(levels // 2, middle + 1)]
    else:
        spans = [(0, n) for n in range(levels, bins + 1)]
    for first, end in spans:
        window = counts[first:end]
        size = len(window)
        p = window.copy()
        p[0] += sum(counts[:first])
        p[-1] += sum(counts[end:])
        q = [0.0] * size
        for level in range(levels):
            if rule == "smoothed":
                each = size // levels
                members = list(range(level * each, (level + 1) * each))
                summed = members + (list(range(levels * each, size)) if level == levels - 1 else [])
                filled = sum(p[j] > 0 for j in members)
                for j in members:
                    q[j] = sum(window[i] for i in summed) // filled if filled else 0
            else:
                members = [j for j in range(size) if j * levels // size == level and window[j] > 0]
                for j in members:
                    q[j] = sum(window[i] for i in members) / len(members)
        yield (smooth(p), smooth(q)) if rule == "smoothed" else (p, q)


def smooth(values):
    zeros = sum(v == 0 for v in values)
    others = len(values) - zeros
    if not others:
        return values
    return [v - 1e-4 * zeros / others if v else 1e-4 for v in values]


def kullback_leibler(p, q):
    total_p, total_q = sum(p), sum(q)
    if any(b == 0 < a for a, b in zip(p, q, strict=True)) or not total_q:
        return np.inf
    return sum(a / total_p * log((a / total_p) / (b / total_q)) for a, b in zip(p, q, strict=True) if a)


RULES_ON = [("migacz", "magnitudes"), ("neighbour", "magnitudes"), ("smoothed", "magnitudes"), ("migacz", "values"),
            ("smoothed", "values")]  # fmt: skip


@pytest.mark.parametrize(("rule", "histogram"), RULES_ON)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bins", "levels"), [(40, 8), (33, 4), (17, 16), (24, 6)])
def test_least_divergence_of_every_candidate(kind, bins, levels, rule, histogram):
    counts = made(kind, bins)
    if histogram == "values":
        counts = np.r_[counts[::-2], counts[::2]][:bins]
    seen = counts.copy()
    if rule == "neighbour":
        seen[0] = seen[1]
    divergences = [kullback_leibler(p, q) for p, q in plainly(seen, levels, rule, histogram)]
    pairs = list(distributions(seen.astype(float), levels, rule=EntropyRule(rule), histogram=histogram))
    ours = [divergence(p, q) for p, q in pairs]
    np.testing.assert_allclose(ours, divergences, rtol=1e-9, atol=1e-12)
    assert min(ours) >= -1e-15
    first = int(np.argmin(divergences))
    last = len(divergences) - 1 - int(np.argmin(divergences[::-1]))
    for equal, at in (("first", first), ("last", last)):
        for intermediate in ("float32", "float64"):
            found = entropy_enclosure(
                counts, -bins * (histogram == "values"), bins, levels=levels, histogram=histogram, entropy_rule=rule,
                equal_candidates=equal, intermediate=intermediate,
            )  # fmt: skip
            if histogram == "magnitudes":
                low, high = -(levels + at), levels + at
            else:
                middle, reach = bins // 2, levels // 2 + at
                low, high = (-bins + 2 * edge for edge in (middle - reach, min(middle + reach + 1, bins)))
            assert found["low"].lo <= low <= found["low"].hi
            assert found["high"].lo <= high <= found["high"].hi


def test_no_divergence_where_each_level_is_one_bin():
    counts = made("normal", 64)
    assert point(entropy_enclosure(counts[:16], 0, 16, levels=16)) == 16
    assert divergence(counts.astype(float), counts * 3.0) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("bins", [128, 301, 2048])
@pytest.mark.parametrize("levels", [128, 16])
def test_onnxruntime_entropy(bins, levels):
    """One outlier in normal numbers; with as many bins as levels there is one candidate, the whole range."""
    rng = np.random.default_rng(250)
    x = np.r_[rng.standard_normal(20000).astype(F), F(30)]
    collector = onnxruntime_collector("entropy", bins, num_quantized_bins=levels)
    low, high = silent(collector, x)
    counts, edges = collector.get_histogram_dict()["t"][:2]
    found = entropy_enclosure(counts, edges[0], edges[-1], levels=levels, histogram="values", entropy_rule="smoothed")
    # It clamps the range to what it has seen.
    assert max(found["low"].lo, x.min()) <= low <= max(found["low"].hi, x.min())
    assert min(found["high"].lo, x.max()) <= high <= min(found["high"].hi, x.max())
    if bins == levels:
        assert (low, high) == (x.min(), x.max())


@pytest.mark.parametrize("seed", range(12))
def test_onnxruntime_entropy_is_admitted(seed):
    rng = np.random.default_rng(260 + seed)
    bins, levels = int(rng.integers(16, 200)), int(rng.choice([4, 8, 16]))
    counts = rng.integers(0, 30, bins) * rng.integers(0, 2, bins)
    counts[bins // 2] = 100
    edges = np.linspace(-2, 2, bins + 1).astype(F)
    collector = onnxruntime_collector("entropy", bins, num_quantized_bins=levels)
    low, high = silent(collector, None, (counts, edges, edges[0], edges[-1], edges[-1]))
    found = entropy_enclosure(counts, -2, 2, levels=levels, histogram="values", entropy_rule="smoothed")
    assert found["low"].admits(np.float64(low))
    assert found["high"].admits(np.float64(high))


# Bad input ----------------------------------------------------------------------------------------------------------

GOOD = {
    percentile_enclosure: {"x": [1.0, 2.0], "percentile": 50},
    percentile_of_histogram_enclosure: {"counts": [1, 2], "low": 0.0, "high": 1.0, "percentile": 50},
    mse_enclosure: {"counts": [1, 2, 3], "high": 1.0, "bits": 4, "start": 1},
    greedy_enclosure: {"counts": [1, 2, 3], "low": 0.0, "high": 1.0, "bits": 4},
    entropy_enclosure: {"counts": [1, 2, 3], "low": 0.0, "high": 1.0, "levels": 2},
}
BAD = [
    (percentile_enclosure, {"x": []}, "x: must hold at least one sample"),
    (percentile_enclosure, {"x": [np.nan]}, "x: must be finite"),
    (percentile_enclosure, {"x": [-3e38, 3e38]}, "largest float32"),
    (percentile_enclosure, {"percentile": 0}, r"percentile: must lie in \(0, 100\]"),
    (percentile_enclosure, {"percentile": 100.5}, "percentile: must lie in"),
    (percentile_enclosure, {"percentile": np.nan}, "percentile: must lie in"),
    (percentile_enclosure, {"histogram": "x"}, "histogram: 'x' is unknown; admissible: values, magnitudes"),
    (percentile_enclosure, {"quantile_rule": "x"}, "quantile_rule: "),
    (percentile_of_histogram_enclosure, {"percentile": -1}, "percentile: must lie in"),
    (percentile_of_histogram_enclosure, {"counts": [0, 0]}, "counts: must be a vector"),
    (percentile_of_histogram_enclosure, {"counts": [np.nan, 0]}, "counts: must be a vector"),
    (percentile_of_histogram_enclosure, {"high": 0.0}, "low, high: must be finite"),
    (mse_enclosure, {"bits": 1}, "bits: must be 2 to 8; got 1"),
    (mse_enclosure, {"bits": 9}, "bits: must be 2 to 8; got 9"),
    (mse_enclosure, {"start": 3}, "start: must be at least 1 and less than the number of bins, 3"),
    (mse_enclosure, {"start": 0}, "start: must be at least 1"),
    (mse_enclosure, {"high": -1.0}, "low, high: "),
    (greedy_enclosure, {"bits": 16}, "bits: must be 2 to 8"),
    (greedy_enclosure, {"counts": [2**24, 1]}, r"counts: must be at most 2\*\*24"),
    (entropy_enclosure, {"levels": 4}, "counts: must have at least as many bins as there are levels, 4; got 3"),
    (entropy_enclosure, {"levels": 1}, "levels: must be at least 2"),
    (entropy_enclosure, {"low": -1.0}, "low: must be 0"),
    (
        entropy_enclosure,
        {"counts": [4, 0, 0], "entropy_rule": "neighbour"},
        "counts: must not be all zero but for the first",
    ),
    (
        entropy_enclosure,
        {"histogram": "values", "entropy_rule": "neighbour"},
        "entropy_rule: neighbour is of histograms of magnitudes",
    ),
]


@pytest.mark.parametrize(("function", "change", "word"), BAD)
def test_bad_input_is_one_clear_error(function, change, word):
    function(**GOOD[function])
    with pytest.raises(ValueError, match=word):
        function(**GOOD[function] | change)
