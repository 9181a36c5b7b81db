"""Cases of calibration observers: samples beside the edges of bins, histograms with peaks, gaps and outliers."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.formats import float_format

Generator = np.random.Generator

_FLOAT32 = float_format("float32")
#: Percentiles that libraries take, and some whose parts are binary fractions.
PERCENTILES = (99.999, 99.99, 99.9, 99.0, 95.0, 100.0, 75.0, 50.0, 25.0, 1.0)
_EXACT_PERCENTILES = (100.0, 75.0, 50.0, 25.0, 87.5, 12.5)
#: The most samples of a histogram.
_MOST = 1 << 20


def _ordinary(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) * 2.0 ** rng.integers(-8, 9)


def _with_outlier(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = _ordinary(rng, shape)
    if x.size:
        x.flat[rng.integers(x.size)] *= 50
    return x


_SAMPLES = {
    "normal": _ordinary,
    "outlier": _with_outlier,
    "one_sided": lambda rng, shape: np.abs(_ordinary(rng, shape)),
    "constant": lambda rng, shape: np.full(shape, rng.choice([0.3, -3.0, 0.0])),
    "few": lambda rng, shape: rng.integers(-3, 4, shape) / 8,
    "grid": lambda rng, shape: rng.integers(-512, 513, shape) / 64,
    "every_magnitude": lambda rng, shape: rng.standard_normal(shape) * 2.0 ** rng.uniform(-149, 100, shape),
}
_OF_REGIME = {"exact": ("grid", "few"), "special": ("every_magnitude",)}


def samples(rng: Generator, shape: tuple[int, ...], family: str) -> np.ndarray:
    """Return finite samples in float32; zeros are of both signs."""
    with np.errstate(under="ignore"):
        x = _SAMPLES[family](rng, shape).astype(np.float32)
    return np.where((x == 0) & (rng.random(shape) < 0.5), np.float32(-0.0), x)


def beside_edges(rng: Generator, low: float, high: float, bins: int, count: int, steps: int = 1) -> np.ndarray:
    """Return samples on the edges of bins, and their neighbours up to some steps away, in and beside the range."""
    edges = low + rng.integers(0, bins, count, endpoint=True) * ((high - low) / bins)
    return fills.neighbours(edges, _FLOAT32, rng.integers(-steps, steps, count, endpoint=True))


@draws("histogram")
def _histogram(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    n = size(draw, sizes, "N", 257)
    family = one_of(draw, ("grid", "edges") if regime == "exact" else ("edges", "normal", "outlier", "few", "constant"))
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    if regime == "exact":
        low, high = draw(st.sampled_from([(-8.0, 8.0), (0.0, 4.0), (-2.0, 0.0), (0.0, 2.0**-10)]))
    else:
        low = float(np.float32(rng.normal()))
        high = float(np.float32(low + abs(rng.normal()) + 0.01))
    x = beside_edges(rng, low, high, chosen["bins"], n) if family == "edges" else samples(rng, (n,), family)
    arrays = {"x": x, "low": np.asarray(np.float32(low)), "high": np.asarray(np.float32(high))}
    return Case(operation, chosen, arrays, {"fill": family, "seed": seed})


def _bell(rng: Generator, bins: int) -> np.ndarray:
    middle, spread = rng.uniform(0.2, 0.8) * bins, rng.uniform(0.05, 0.4) * bins
    return rng.poisson(300 * np.exp(-((np.arange(bins) - middle) ** 2) / (2 * spread**2)))


def _decay(rng: Generator, bins: int) -> np.ndarray:
    return rng.poisson(1000 * np.exp(-np.arange(bins) / (rng.uniform(0.05, 0.5) * bins)))


def _outlying(rng: Generator, bins: int) -> np.ndarray:
    counts = _decay(rng, bins)
    counts[-1] += 1
    return counts


def _gaps(rng: Generator, bins: int) -> np.ndarray:
    return _bell(rng, bins) * (rng.random(bins) < 0.4)


def _one(rng: Generator, bins: int) -> np.ndarray:
    counts = np.zeros(bins, np.int64)
    counts[rng.integers(bins)] = rng.integers(1, 1000)
    return counts


#: Counts of bins, each kind with what a search must not stumble over.
COUNTS = {
    "bell": _bell,
    "decay": _decay,
    "outlier": _outlying,
    "gaps": _gaps,
    "one": _one,
    "flat": lambda rng, bins: np.full(bins, rng.integers(1, 9)),
    "peak": lambda rng, bins: _decay(rng, bins) + 100000 * (np.arange(bins) == 0),
    "mirrored": lambda rng, bins: np.r_[_decay(rng, bins - bins // 2)[::-1], _decay(rng, bins // 2)],
}


def counts_of(rng: Generator, bins: int, family: str) -> np.ndarray:
    """Return counts in int32, at least one of them positive."""
    if bins == 0:
        return np.zeros(0, np.int32)
    counts = COUNTS[family](rng, bins).astype(np.int32)
    if not counts.any():
        counts[rng.integers(bins)] = 1
    return counts


def powers_in_all(counts: np.ndarray) -> np.ndarray:
    """Return the counts with the first one raised so that they are a power of two in all."""
    counts = counts.copy()
    total = int(counts.sum())
    counts[0] += (1 << max(0, total - 1).bit_length()) - total
    return counts


def _range_of(draw: Draw, rng: Generator, chosen: dict, regime: str) -> dict[str, Any]:
    """Return the ends of a histogram; of values symmetric about 0 or not, of magnitudes the upper one."""
    values = chosen["histogram"] == "values"
    if regime == "exact":
        low, high = draw(st.sampled_from([(-1.0, 1.0), (-4.0, 4.0), (-8.0, 8.0)]))
    else:
        high = float(np.float32(2.0 ** rng.uniform(-20, 20)))
        low = -high if draw(st.booleans()) else float(np.float32(high - high * rng.uniform(0.5, 3)))
    return {"low": np.asarray(np.float32(low)) if values else None, "high": np.asarray(np.float32(high))}


def _bins(draw: Draw, sizes: dict, least: int, regime: str) -> int:
    """Return a number of bins, at least so many; a power of two in the exact regime, unless it is fixed."""
    if sizes.get("U") == 0:
        return 0
    if regime == "exact" and "U" not in sizes:
        return max(1 << (least - 1).bit_length(), draw(st.sampled_from([1, 2, 4, 16, 64, 128])))
    return max(least, size(draw, sizes, "U", 257))


def _of_histogram(draw: Draw, chosen: dict, regime: str, sizes: dict, least: int) -> tuple[dict, dict, Generator]:
    bins = _bins(draw, sizes, least, regime)
    family, seed = one_of(draw, tuple(COUNTS)), draw(SEEDS)
    rng = np.random.default_rng(seed)
    counts = counts_of(rng, bins, family)
    counts = powers_in_all(counts) if regime == "exact" and bins else counts
    return {"counts": counts, **_range_of(draw, rng, chosen, regime)}, {"fill": family, "seed": seed}, rng


@draws("widen_histogram")
def _widen(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    arrays, origin, rng = _of_histogram(draw, chosen, regime, sizes, 1)
    bins = arrays["counts"].size
    values, same = chosen["histogram"] == "values", chosen["growth"] == "same_width"
    if same and values:
        arrays["low"] = -arrays["high"]
    low, high = float(0 if arrays["low"] is None else arrays["low"]), float(arrays["high"])
    width = (high - low) / max(1, bins)
    room = ((chosen["capacity"] or 0) - bins) // 2 - 2 if same else 3 * bins
    most = max(0, min(room, 3 * bins))
    over = [float(draw(st.sampled_from([0, most // 4, most // 2, most]))) for _ in range(2)]
    if regime == "exact":  # whole and half bins; the new range of wider bins is a power of two as well
        half = 0.5 * draw(st.integers(0, 1)) if same and most else 0.0
        new_low, new_high = low - over[0] * width, high + (over[1] + half) * width
        if not same:
            new_low, new_high = (2.0 ** draw(st.integers(0, 2)) * end for end in (low, high))
    else:
        new_low, new_high = low - over[0] * width * rng.random(), high + over[1] * width * rng.random()
    new_low, new_high = min(float(np.float32(new_low)), low), max(float(np.float32(new_high)), high)
    arrays |= {
        "counts": arrays["counts"].astype(np.float32),
        "new_low": np.asarray(np.float32(new_low)) if values else None,
        "new_high": np.asarray(np.float32(new_high)),
    }
    return Case(operation, chosen, arrays, origin)


@draws("moving_average_range")
def _moving(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    # Each step adds bits to an average: so many are exact.
    shape = size(draw, sizes, "T", 7 if regime == "exact" else 33), size(draw, sizes, "N", 65)
    constants = [1.0, 0.5, 0.25] if regime == "exact" else [0.01, 0.1, 0.9, 0.3, 1.0]
    family = one_of(draw, _OF_REGIME.get(regime, tuple(_SAMPLES)[:6]))
    constant, seed = draw(st.sampled_from(constants)), draw(SEEDS)
    rng = np.random.default_rng(seed)
    arrays = {"x": samples(rng, shape, family), "constant": np.asarray(np.float32(constant))}
    return Case(operation, chosen, arrays, {"fill": family, "seed": seed})


@draws("percentile_range")
def _percentile(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    n = size(draw, sizes, "N", 257)
    percentile = draw(st.sampled_from(_EXACT_PERCENTILES if regime == "exact" else PERCENTILES))
    family, seed = one_of(draw, _OF_REGIME.get(regime, tuple(_SAMPLES)[:6])), draw(SEEDS)
    x = samples(np.random.default_rng(seed), (n,), family)
    arrays = {"x": x, "percentile": np.asarray(np.float32(percentile))}
    return Case(operation, chosen, arrays, {"fill": family, "seed": seed})


@draws("histogram_percentile_range")
def _histogram_percentile(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    arrays, origin, _ = _of_histogram(draw, chosen, regime, sizes, 1)
    percentile = draw(st.sampled_from(_EXACT_PERCENTILES if regime == "exact" else PERCENTILES))
    return Case(operation, chosen, {**arrays, "percentile": np.asarray(np.float32(percentile))}, origin)


@draws("mse_range")
def _mse(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    arrays, origin, _ = _of_histogram(draw, chosen, regime, sizes, 1 + (chosen["start"] or 0))
    return Case(operation, chosen, arrays, origin)


@draws("entropy_range")
def _entropy(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    arrays, origin, _ = _of_histogram(draw, chosen, regime, sizes, max(2, chosen["levels"]))
    counts = arrays["counts"]
    if counts.size > 1 and not counts[1:].any():  # some rules replace the first count
        counts[1] = 1
    return Case(operation, chosen, arrays, origin)
