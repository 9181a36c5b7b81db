"""Workload cases of calibration observers: the activations of a layer, and their histograms of 2048 bins."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Approximate, Built, builds
from lowbit_cts.benches.workloads.fills import FILLS
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference.calibration.histogram import histogram as count

Generator = np.random.Generator

#: The bins that libraries collect by default.
_BINS = 2048


def _samples(rng: Generator, layer: Layer, rows: int, fill: str) -> np.ndarray:
    return FILLS[fill](rng, (rows, layer.k)).reshape(-1)


def _extreme(x: np.ndarray) -> float:
    return float(np.abs(x).max())


def _single(end: float) -> np.ndarray:
    return np.asarray(end, np.float32)


def _collected(x: np.ndarray, p: dict[str, Any]) -> dict[str, Any]:
    """Return a histogram of samples, of values or of magnitudes, and its ends."""
    high = _extreme(x)
    values = p["histogram"] == "values"
    counts = count(x if values else np.abs(x), -high if values else 0, high, bins=_BINS)
    return {"counts": counts.astype(np.int32), "low": _single(-high) if values else None, "high": _single(high)}


def _in_256_levels(x: np.ndarray) -> Approximate:
    """Return what makes of a range the samples rounded to 256 levels that share it evenly."""

    def rounded(low: np.ndarray, high: np.ndarray) -> np.ndarray:
        step = (float(high) - float(low)) / 255 or 1.0
        return (np.rint((np.clip(x, low, high) - low) / step) * step + low).astype(np.float32)

    return rounded


@builds("histogram")
def _histogram(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = _samples(rng, layer, rows, fill)
    high = _extreme(x)
    arrays = {"x": x, "low": _single(-high), "high": _single(high)}
    return arrays, lambda: count(x, -high, high, bins=p["bins"]), lambda counts: counts


@builds("widen_histogram")
def _widen(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    arrays = _collected(_samples(rng, layer, rows, fill), p)
    arrays["counts"] = arrays["counts"].astype(np.float32)
    low = arrays["low"]
    wider = np.float32(1.1)
    arrays |= {
        "new_low": None if low is None else np.asarray(low * wider),
        "new_high": np.asarray(arrays["high"] * wider),
    }
    total = arrays["counts"].sum(dtype=np.float64)
    return arrays, lambda: np.asarray(total), lambda counts, low, high: np.asarray(counts.sum(dtype=np.float64))


@builds("moving_average_range")
def _moving(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = FILLS[fill](rng, (rows, layer.k))
    arrays = {"x": x, "constant": np.asarray(np.float32(0.01))}
    return arrays, lambda: x, _in_256_levels(x)


@builds("percentile_range")
def _percentile(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = _samples(rng, layer, rows, fill)
    arrays = {"x": x, "percentile": np.asarray(np.float32(99.99))}
    return arrays, lambda: x, _in_256_levels(x)


@builds("histogram_percentile_range")
def _of_histogram(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = _samples(rng, layer, rows, fill)
    arrays = {**_collected(x, p), "percentile": np.asarray(np.float32(99.99))}
    return arrays, lambda: x, _in_256_levels(x)


def _searched(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = _samples(rng, layer, rows, fill)
    return _collected(x, p), lambda: x, _in_256_levels(x)


for _operation in ("mse_range", "entropy_range"):
    builds(_operation)(_searched)
