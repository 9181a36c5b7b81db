"""onnxruntime.quantization.calibrate.HistogramCollector: how its histograms grow, and the ranges it finds in them.

What it collects from samples is not declared: it takes no range. Counts reach it as a collected histogram whose least
and greatest sample are the ends, so that the range is not clamped to what was seen.
"""

import contextlib
import io

import numpy as np
from onnxruntime.quantization.calibrate import HistogramCollector

from lowbit_cts.kernels import Backend, EntropyRule, Precision, Semantics

_NAME = "HistogramCollector"


def _collector(method, bins, *, symmetric=False, percentile=99.999, levels=128):
    return HistogramCollector(
        method=method, symmetric=symmetric, num_bins=bins, num_quantized_bins=levels, percentile=percentile,
        scenario="same",
    )  # fmt: skip


def _edges(low, high, bins):
    low = np.float32(0) if low is None else low
    if not low < high:
        raise ValueError(f"low, high: must be a range with a width; got {low}, {high}")
    return np.linspace(np.float64(low), np.float64(high), bins + 1).astype(np.float32)


def widen_histogram(counts, low, high, new_low, new_high, *, capacity):
    """Return the histogram after a batch without samples that asks for a wider range."""
    threshold, asked = np.float32(high), np.float32(max(-new_low, new_high))
    seen = counts.astype(np.int64), _edges(low, high, counts.size), np.float32(low), threshold, threshold
    merged = _collector("entropy", counts.size).merge_histogram(
        seen, np.zeros(0, np.float32), np.float32(new_low), np.float32(new_high), asked
    )
    hist, reached = merged[0], np.float32(merged[-1])
    if hist.size > capacity:
        raise ValueError(f"capacity: must be at least {hist.size}; got {capacity}")
    return np.pad(hist, (0, capacity - hist.size)).astype(np.float32), -reached, reached


def _range_of(collector, counts, edges, least):
    """Return the range that a collector finds in a histogram."""
    collector.histogram_dict = {"x": (counts.astype(np.int64), edges, least, edges[-1])}
    with contextlib.redirect_stdout(io.StringIO()):  # it tells what it does
        low, high, *_ = collector.compute_collection_result()["x"]
    return np.float32(low), np.float32(high)


def histogram_percentile_range(counts, low, high, percentile, *, histogram):
    """Return what compute_percentile finds."""
    edges, symmetric = _edges(low, high, counts.size), histogram == "magnitudes"
    collector = _collector("percentile", counts.size, symmetric=symmetric, percentile=float(percentile))
    return _range_of(collector, counts, edges, -edges[-1] if symmetric else edges[0])


def entropy_range(counts, low, high, *, levels):
    """Return what get_entropy_threshold finds."""
    edges = _edges(low, high, counts.size)
    return _range_of(_collector("entropy", counts.size, levels=levels), counts, edges, edges[0])


def register(backend: Backend) -> None:
    """Register the collector's parts."""
    values = {"histogram": "values"}
    backend.implements("widen_histogram", name=_NAME, supports={**values, "growth": "same_width"})(widen_histogram)
    backend.implements(
        "histogram_percentile_range", name=_NAME, semantics=Semantics(intermediate=Precision.FLOAT64)
    )(histogram_percentile_range)  # fmt: skip
    backend.implements(
        "entropy_range", name=_NAME, semantics=Semantics(entropy_rule=EntropyRule.SMOOTHED), supports=values
    )(entropy_range)
