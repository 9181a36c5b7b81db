"""What libraries' observers do that a range of theirs does not tell: an upgrade that changes it fails here, visibly."""

import contextlib
import io

import numpy as np
import pytest

from lowbit_cts.reference.calibration.entropy import entropy_enclosure
from lowbit_cts.reference.calibration.histogram import collect
from lowbit_cts.reference.calibration.mse import greedy_enclosure


def torch_range(x, levels=None, **options):
    """Return the histogram of torch's observer with its ends, and the range that it finds."""
    torch = pytest.importorskip("torch")
    from torch.ao.quantization import HistogramObserver

    observer = HistogramObserver(**options)
    observer(torch.from_numpy(x.astype(np.float32)))
    observer.dst_nbins = levels or observer.dst_nbins
    collected = observer.histogram.numpy(), float(observer.min_val), float(observer.max_val)
    return collected, [float(end) for end in observer._non_linear_param_search()]


def normal(count=20000):
    return np.random.default_rng(0).standard_normal(count)


def test_huge_samples_leave_torch_a_single_bin():
    """Its float32 errors are infinite; the reference admits it there, and demands the range at an ordinary scale."""
    collected, (low, high) = torch_range(normal())
    demanded = greedy_enclosure(*collected)
    assert demanded["high"].hi - demanded["low"].lo > 5
    assert demanded["low"].admits(np.float64(low))
    assert demanded["high"].admits(np.float64(high))
    collected, (low, high) = torch_range(normal() * 1e14)
    assert high - low < 1e-3 * (collected[2] - collected[1])
    assert greedy_enclosure(*collected)["low"].admits(np.float64(low))


def test_torch_searches_for_256_levels_whatever_the_codes():
    torch = pytest.importorskip("torch")
    of_type = torch_range(normal(), dtype=torch.qint8)[1]
    assert torch_range(normal(), dtype=torch.qint8, quant_min=-8, quant_max=7)[1] == of_type
    assert torch_range(normal(), levels=16)[1] != of_type


def onnxruntime_range(method, batches, bins, levels=128, percentile=50.0):
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    collector = calibrate.HistogramCollector(
        method=method, symmetric=True, num_bins=bins, num_quantized_bins=levels, percentile=percentile, scenario="same"
    )
    with contextlib.redirect_stdout(io.StringIO()):
        for batch in batches:
            collector.collect({"x": np.asarray(batch, np.float32)})
        return [float(end) for end in collector.compute_collection_result()["x"][:2]]


def test_onnxruntime_forgets_small_magnitudes_of_later_batches():
    small, large = [0.5] * 1000, [1, 2, 3]
    assert onnxruntime_range("percentile", [small, large], 16) == [0.5, 0.5]
    assert onnxruntime_range("percentile", [large, small], 16) == [0.5, 2.0]
    assert collect([np.array(large), np.array(small)], bins=16, histogram="magnitudes")[0].sum() == 1003


def test_onnxruntime_compares_nothing_by_default():
    x = np.r_[normal(), 30]
    assert onnxruntime_range("entropy", [x], 128) == [np.float32(x.min()), 30]
    assert onnxruntime_range("entropy", [x], 2048)[1] < 8
    counts, low, high = collect([x], bins=128)
    only = entropy_enclosure(counts, low, high, histogram="values", entropy_rule="smoothed")
    assert (only["low"].exact, only["high"].exact) == (-30, 30)


@pytest.mark.parametrize(("count", "end"), [(8, 0.8203125), (10, 0.9)])
def test_the_hundredth_percentile_of_onnxruntime_depends_on_a_rounding(count, end):
    assert onnxruntime_range("percentile", [np.arange(count) / count], 16, percentile=100.0)[1] == np.float32(end)
