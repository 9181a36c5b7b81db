"""Histograms against rational arithmetic, NumPy, torch and onnxruntime's collector; how they grow."""

import contextlib
import io
from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.calibration.histogram import collect, histogram, histogram_enclosure, widen_enclosure

F = np.float32


def by_rationals(x, low, high, bins):
    """Return counts by the definition, an exact comparison at a time."""
    counts = np.zeros(bins, int)
    low, high = Fraction(float(low)), Fraction(float(high))
    for value in map(Fraction, map(float, x)):
        if low <= value <= high:
            counts[min(bins - 1, int((value - low) * bins / (high - low)))] += 1
    return counts


def beside_edges(rng, low, high, bins, count):
    edges = np.linspace(low, high, bins + 1).astype(F)
    x = rng.choice(edges, count)
    for _ in range(2):
        x = np.where(rng.random(count) < 0.4, np.nextafter(x, rng.choice([-1e9, 1e9], count)).astype(F), x)
    return x.astype(F)


@pytest.mark.parametrize("search", ["edges", "position"])
@pytest.mark.parametrize("intermediate", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(8))
def test_counts_of_exact_rational_arithmetic_are_admitted(seed, intermediate, search):
    rng = np.random.default_rng(seed)
    for bins in (1, 2, 7, 64, 129):
        low, high = np.sort(rng.normal(size=2).astype(F) * 3)
        x = np.concatenate([beside_edges(rng, low, high, bins, 200), rng.normal(size=50).astype(F) * 4])
        found = histogram_enclosure(x, low, high, bins=bins, bin_search=search, intermediate=intermediate)
        expected = by_rationals(x, low, high, bins)
        assert found.admits(expected).all()
        assert found.exact.sum() == expected.sum()


@pytest.mark.parametrize(("low", "high", "bins"), [(-4, 4, 64), (0, 1, 2048), (0, 3, 32), (-2, 6, 16), (-1, 1, 1)])
def test_where_edges_are_exact_one_count_is_admissible(low, high, bins):
    rng = np.random.default_rng(7)
    x = np.r_[beside_edges(rng, low, high, bins, 1000), F([1e-30, -1e-30, 2.0**-149, -(2.0**-149), -0.0])]
    found = histogram_enclosure(x, low, high, bins=bins)
    expected = by_rationals(x, low, high, bins)
    for part in (found.exact, found.lo, found.hi):
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize("seed", range(20))
def test_numpy_and_torch_are_admitted(seed):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(40 + seed)
    bins = int(rng.integers(1, 200))
    low, high = np.sort(rng.normal(size=2).astype(F))
    x = np.r_[beside_edges(rng, low, high, bins, 500), rng.normal(size=100).astype(F)]
    by_edges = np.histogram(x, bins, range=(low, high))[0]
    assert histogram_enclosure(x, low, high, bins=bins).admits(by_edges).all()
    by_position = torch.histc(torch.from_numpy(x), bins, float(low), float(high)).numpy()
    assert histogram_enclosure(x, low, high, bins=bins, bin_search="position").admits(by_position).all()


def test_every_sample_in_the_range_is_counted_once():
    x = np.random.default_rng(3).normal(size=1000)
    for bins in (1, 5, 100):
        assert histogram(x, -1.5, 2.25, bins=bins).sum() == np.sum((x >= -1.5) & (x <= 2.25))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"x": [np.nan]}, "x: must be finite"),
        ({"x": [np.inf]}, "x: must be finite"),
        ({"low": 1.0}, "low, high: must be finite"),
        ({"high": np.nan}, "low, high: must be finite"),
        ({"low": -3e38, "high": 3e38}, "largest float32"),
        ({"bins": 0}, "bins: must be at least 1"),
        ({"bin_search": "guess"}, "bin_search: "),
    ],
)
def test_bad_input_is_one_clear_error(change, word):
    arguments = {"x": [0.5], "low": 0.0, "high": 1.0, "bins": 4} | change
    with pytest.raises(ValueError, match=word):
        histogram_enclosure(**arguments)


# Growth -------------------------------------------------------------------------------------------------------------


def onnxruntime_collector(method, bins, **options):
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    known = {"symmetric": True, "num_quantized_bins": 8, "percentile": 99.9, "scenario": "same"}
    return calibrate.HistogramCollector(method=method, num_bins=bins, **known | options)


def collected(collector, batches):
    with contextlib.redirect_stdout(io.StringIO()):
        for batch in batches:
            collector.collect({"t": batch})
    return collector.get_histogram_dict()["t"]


@pytest.mark.parametrize("seed", range(12))
def test_values_grow_as_in_onnxruntime(seed):
    """Batches on a grid, so that positions are exact, the widest neither first nor last; one of zeros comes first."""
    rng = np.random.default_rng(60 + seed)
    bins = 64
    sizes = [4, 2, 8, 32, 16] if seed % 2 else [1, 1, 2]
    batches = [rng.integers(-1024, 1025, 300).astype(F) / 1024 * size for size in sizes]
    for batch, size in zip(batches, sizes, strict=True):
        batch[0] = size  # a power of two: so is the width
    if seed % 3 == 0:
        batches.insert(0, np.zeros(5, F))
    hist, edges, *_, threshold = collected(onnxruntime_collector("entropy", bins), batches)
    counts, low, high = collect(batches, bins=bins)
    np.testing.assert_array_equal(counts, hist)
    assert (low, high) == (edges[0], edges[-1])
    assert high == threshold


@pytest.mark.parametrize("seed", range(6))
def test_magnitudes_grow_as_in_onnxruntime(seed):
    """Of magnitudes from 0, since its first range begins with the least magnitude of the first batch."""
    rng = np.random.default_rng(80 + seed)
    batches = [rng.integers(-1024, 1025, 300).astype(F) / 1024 * size for size in (2, 8, 4)]
    for batch, size in zip(batches, (2, 8, 4), strict=True):
        batch[:2] = 0, -size
    hist, edges, *_ = collected(onnxruntime_collector("percentile", 32), batches)
    counts, low, high = collect(batches, bins=32, histogram="magnitudes")
    np.testing.assert_array_equal(counts, hist[: counts.size])
    assert not hist[counts.size :].any()  # it may add one bin too many
    assert (low, high) == (0, edges[counts.size])


def test_onnxruntime_loses_magnitudes_below_the_least_of_the_first_batch():
    first, second = F([1, 2, 3]), np.full(1000, 0.5, F)
    hist, edges, *_ = collected(onnxruntime_collector("percentile", 16), [first, second])
    assert edges[0] == 1
    assert hist.sum() == 3
    assert collect([first, second], bins=16, histogram="magnitudes")[0].sum() == 1003


@pytest.mark.parametrize("seed", range(10))
def test_wider_bins_are_those_of_torch(seed):
    torch = pytest.importorskip("torch")
    from torch.ao.quantization import HistogramObserver

    rng = np.random.default_rng(90 + seed)
    observer = HistogramObserver(bins=64)
    batches = []
    for size in (1, 4, 2, 16):
        batch = rng.integers(-1024, 1025, 300).astype(F) / 1024 * size
        batch[:2] = size, -size
        batches.append(batch)
    if seed % 2:
        batches.insert(0, np.full(7, 0.25, F))
    for batch in batches:
        observer(torch.from_numpy(batch))
    counts, low, high = collect(batches, bins=64, growth="same_bins")
    np.testing.assert_array_equal(counts, observer.histogram.numpy())
    assert (low, high) == (observer.min_val, observer.max_val)


@pytest.mark.parametrize("seed", range(10))
def test_torch_is_admitted_at_any_range(seed):
    torch = pytest.importorskip("torch")
    from torch.ao.quantization import HistogramObserver

    rng = np.random.default_rng(110 + seed)
    bins = int(rng.integers(3, 80))
    low, high = np.sort(rng.normal(size=2).astype(F))
    wider = F(low - abs(rng.normal())), F(high + abs(rng.normal()))
    counts = rng.integers(0, 1000, bins).astype(F)
    observer = HistogramObserver(bins=bins)
    ends = [torch.tensor(end) for end in (low, high, *wider)]
    got = observer._combine_histograms(torch.from_numpy(counts), *ends[:2], torch.zeros(bins), *ends[2:])
    found = widen_enclosure(counts, low, high, *wider, growth="same_bins")
    assert found["counts"].admits(got.double().numpy()).all()
    assert found["counts"].exact.sum() == counts.sum()


def by_parts(counts, low, high, new_low, new_high):
    """Return wider bins, part by part, in rationals."""
    wide = np.zeros(counts.size)
    ends = [Fraction(float(end)) for end in (low, high, new_low, new_high)]
    part = (ends[1] - ends[0]) / (16 * counts.size)
    for i in range(16 * counts.size):
        middle = ends[0] + part * i + part / 2
        wide[int((middle - ends[2]) * counts.size / (ends[3] - ends[2]))] += counts[i // 16] / 16
    return wide


@pytest.mark.parametrize("seed", range(6))
def test_wider_bins_part_by_part(seed):
    rng = np.random.default_rng(130 + seed)
    counts = rng.integers(0, 50, 12)
    low, high = np.sort(rng.normal(size=2))
    new_low, new_high = low - abs(rng.normal()), high + abs(rng.normal())
    found = widen_enclosure(counts, low, high, new_low, new_high, growth="same_bins")["counts"]
    expected = by_parts(counts, low, high, new_low, new_high)
    assert found.admits(expected).all()
    np.testing.assert_array_equal(found.exact, expected)


def test_bins_of_the_same_width_one_by_one():
    counts = np.array([1, 2, 3, 4])
    for reach, added in ((1.01, 1), (1.5, 2), (1.49, 1), (2.0, 3), (4.0, 7)):  # of width 1/2: the end lies beyond
        found = widen_enclosure(counts, -1, 1, -reach, 0 + 1, growth="same_width", capacity=20)
        np.testing.assert_array_equal(found["counts"].exact[added : added + 4], counts)
        assert found["counts"].exact.sum() == 10
        assert (found["low"].exact, found["high"].exact) == (-1 - added / 2, 1 + added / 2)
        magnitudes = widen_enclosure(
            counts, 0, 2, 0, 1 + reach, growth="same_width", histogram="magnitudes", capacity=20
        )
        bins = int(np.ceil((reach - 1) * 2))
        assert magnitudes["high"].exact == 2 + bins / 2
        np.testing.assert_array_equal(magnitudes["counts"].exact, np.r_[counts, np.zeros(16)])


def test_one_batch_is_the_sum_of_its_parts():
    """Where the range is fixed by the first, batches add up in any order."""
    rng = np.random.default_rng(150)
    parts = [np.r_[F(2), rng.uniform(-2, 2, n).astype(F)] for n in (10, 100, 1)]
    whole = collect([np.concatenate(parts)], bins=32)
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        found = collect([parts[i] for i in order], bins=32)
        np.testing.assert_array_equal(found[0], whole[0])
        assert found[1:] == whole[1:]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"counts": [0, 0]}, "counts: "),
        ({"counts": [1, -1]}, "counts: "),
        ({"new_low": 0.5}, "new_low, new_high: must contain"),
        ({"growth": "any"}, "growth: 'any' is unknown"),
        ({"capacity": 3}, "capacity: must hold 4 bins"),
        ({"capacity": None}, "capacity: must hold"),
        ({"low": -0.5}, "low: must be -high"),
        ({"histogram": "magnitudes"}, "low: must be 0"),
        ({"histogram": "both"}, "histogram: 'both' is unknown"),
    ],
)
def test_bad_growth_is_one_clear_error(change, word):
    arguments = {
        "counts": [1, 1], "low": -1.0, "high": 1.0, "new_low": -1.5, "new_high": 1.0, "growth": "same_width",
        "capacity": 8,
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=word):
        widen_enclosure(**arguments)


def test_no_samples_are_an_error():
    with pytest.raises(ValueError, match="batches: must hold at least one sample"):
        collect([np.zeros(0)], bins=4)
