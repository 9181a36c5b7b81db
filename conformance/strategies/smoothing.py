"""Cases of SmoothQuant: channels of every size, channels of zeros, and maxima that are powers of two."""

from typing import Any

import numpy as np

from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation

Generator = np.random.Generator


def channels(rng: Generator, n: int, k: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Return largest magnitudes (K,) and weights (N, K) of channels up to 2**spread apart."""
    absmax = np.abs(rng.standard_normal(k)) * np.exp2(rng.uniform(-spread, spread, k))
    w = rng.standard_normal((n, k)) * np.exp2(rng.uniform(-spread, spread, k) / 4)
    return absmax.astype(np.float32), w.astype(np.float32)


def with_nothing(rng: Generator, absmax: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return channels some of which have no activations, no weights, neither, or hardly any."""
    kind = rng.integers(0, 6, absmax.size)
    absmax, w = absmax.copy(), w.copy()
    absmax[(kind == 0) | (kind == 2)] = 0
    w[:, (kind == 1) | (kind == 2)] = 0
    w[:, kind == 3] *= np.float32(1e-7)
    absmax[kind == 4] *= np.float32(1e-12)
    return absmax, w


def powers_of_four(rng: Generator, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return channels whose largest magnitudes are powers of four: whose square roots are powers of two."""
    absmax = np.exp2(2.0 * rng.integers(-6, 7, k))
    top = np.exp2(2.0 * rng.integers(-4, 5, k))
    w = rng.integers(-8, 9, (n, k)) / 8 * top
    if n:
        w[rng.integers(0, n, k), np.arange(k)] = top * rng.choice([-1, 1], k)
    return absmax.astype(np.float32), w.astype(np.float32)


@draws("smooth_weights")
def _smooth_weights(draw: Draw, operation: Operation, chosen: dict[str, Any], regime: str, sizes: dict) -> Case:
    k = size(draw, sizes, "K", 129)
    n = size(draw, sizes, "N", 33)
    family, seed = one_of(draw, ("powers",) if regime == "exact" else ("normal", "far", "nothing")), draw(SEEDS)
    rng = np.random.default_rng(seed)
    if family == "powers":
        absmax, w = powers_of_four(rng, n, k)
    else:
        absmax, w = channels(rng, n, k, 40.0 if family == "far" else 4.0)
    if family == "nothing":
        absmax, w = with_nothing(rng, absmax, w)
    return Case(operation, chosen, {"absmax": absmax, "w": w}, {"fill": family, "seed": seed})
