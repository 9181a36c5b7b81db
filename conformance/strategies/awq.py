"""Cases of AWQ's searches: outlier channels, degenerate groups, and layers with a planted best candidate."""

from typing import Any

import numpy as np

from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.algorithms.awq import RATIOS, SHARES

Generator = np.random.Generator
_SAMPLES, _ROWS, _COLUMNS = 33, 17, 128


def group_of(chosen: dict[str, Any], k: int) -> int:
    """Return how many columns share a scale."""
    return chosen["group_size"] or max(k, 1)


def largest_code(chosen: dict[str, Any]) -> int:
    """Return the greatest code of the chosen format."""
    return (1 << int(chosen["format"].removeprefix("uint"))) - 1


def activations(rng: Generator, m: int, k: int, outliers: bool) -> np.ndarray:
    """Return correlated samples, (M, K), of channels of different sizes, some of them much larger if `outliers`."""
    x = rng.standard_normal((m, k)) + 0.3 * rng.standard_normal((m, 1))
    x *= np.exp2(rng.uniform(-1, 1, k))
    if outliers:
        x[:, rng.random(k) < 0.08] *= 30
    return x.astype(np.float32)


def weights(rng: Generator, n: int, k: int, size: int) -> np.ndarray:
    """Return normal weights (N, K); groups of some are one-signed, constant, zero, or hold one large weight."""
    w = (rng.standard_normal((n, k)) * np.exp2(rng.integers(-3, 4, (n, 1)))).reshape(n, k // size, size)
    kind = rng.integers(0, 12, w.shape[:2])
    w = np.where((kind == 0)[..., None], np.abs(w) + 0.5, np.where((kind == 1)[..., None], -np.abs(w) - 0.5, w))
    if size:
        w = np.where((kind == 2)[..., None], w[..., :1], np.where((kind == 3)[..., None], 0.0, w))
        at = rng.integers(0, size, w.shape[:2])[..., None] == np.arange(size)
        w = np.where((kind == 4)[..., None] & at, 12 * w, w)
    return w.reshape(n, k).astype(np.float32)


def on_codes(rng: Generator, n: int, k: int, size: int, largest: int) -> np.ndarray:
    """Return whole numbers (N, K) of which each group spans all codes (so far as it has two columns)."""
    w = rng.integers(0, largest, (n, k // size, size), endpoint=True)
    ends = np.argsort(rng.random(w.shape), axis=-1)[..., :2]
    np.put_along_axis(w, ends, np.array([0, largest])[: ends.shape[-1]], axis=-1)
    zero = rng.integers(0, largest, (n, k // size, 1), endpoint=True)
    return (w - zero).reshape(n, k).astype(np.float64)


def signs(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return ones of either sign."""
    return rng.choice([-1.0, 1.0], shape)


def planted_ratio(
    rng: Generator, m: int, n: int, k: int, size: int, largest: int, ratio: int, candidates: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return samples and weights that are rounded to themselves by the scales of one ratio, 1 or more, and no other."""
    spread = 1.0 if ratio > 3 else 0.25 * ratio  # a channel's size is the 1 / r-th power of it
    scale = np.exp2(rng.uniform(-spread, spread, k))
    if k > 1:
        scale[rng.permutation(k)[:2]] = 2.0**-spread, 2.0**spread
    w = (on_codes(rng, n, k, size, largest) / scale).astype(np.float32)
    top = scale
    if candidates == "both":
        groups = np.abs(w.astype(np.float64)).reshape(n, -1, size)
        share = (groups / (groups.max(axis=-1, keepdims=True) + 1e-6)).reshape(n, k).mean(axis=0)
        top = scale * (share ** (1 - RATIOS[ratio]) + 1e-4)
    sizes = (top ** (1 / RATIOS[ratio])).astype(np.float32)
    return signs(rng, (m, k)).astype(np.float32) * sizes, w


def _no_ties(largest: int, share: int) -> np.ndarray:
    """Return the codes, by the step of one share, that are not halfway between two codes by that of any other."""
    codes = np.arange(largest + 1)
    halves = np.stack([codes * (SHARES[share] / other) % 1 for other in np.delete(SHARES, share)])
    return codes[np.all(np.abs(halves - 0.5) > 1e-3, axis=0)]


def planted_share(
    rng: Generator, m: int, n: int, k: int, size: int, largest: int, share: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return samples and weights of which no group, of two columns or more, loses by being clipped to one share.

    One column has no activations; its weight in each group is so large that the codes reach it once it is clipped.
    """
    w = rng.choice(_no_ties(largest, share), (n, k // size, size)).astype(np.float64)
    dead = rng.integers(0, size)
    w[..., (dead + 1) % size] = 0
    w[..., dead] = largest / SHARES[share]
    x = activations(rng, m, k, False).reshape(m, -1, size)
    x[..., dead] = 0
    return x.reshape(m, k), (w.reshape(n, k) * np.exp2(rng.integers(-2, 3, (n, 1)))).astype(np.float32)


def even_sizes(rng: Generator, m: int, n: int, k: int, size: int, largest: int) -> tuple[np.ndarray, np.ndarray]:
    """Return samples of ones and half-integer weights: every ratio's scales are 1, and the first one is chosen."""
    w = on_codes(rng, n, k, size, largest)
    halves = 0.5 * signs(rng, w.shape) * (rng.random(w.shape) < 0.3)
    groups = w.reshape(n, -1, size)
    inside = (groups > groups.min(axis=-1, keepdims=True)) & (groups < groups.max(axis=-1, keepdims=True))
    return signs(rng, (m, k)).astype(np.float32), (w + halves * inside.reshape(n, k)).astype(np.float32)


def _sizes(draw: Draw, chosen: dict[str, Any], sizes: dict, together: bool, regime: str) -> tuple[int, int, int]:
    """Return the lengths of M, N and K; in the exact regime a mean is over a power of two, rows `together` or not."""
    k = size(draw, sizes, "K", _COLUMNS, chosen["group_size"] or 1)
    exact = regime == "exact"
    m = size(draw, sizes, "M", 8 if exact else _SAMPLES)
    n = size(draw, sizes, "N", 4 if exact and together else _ROWS)
    if exact and "M" not in sizes:
        m = 1 << (m.bit_length() - 1)
    if exact and together and "N" not in sizes:
        n = 1 << (n.bit_length() - 1)
    return m, n, k


@draws("awq_scales", "awq_clipping")
def _awq(draw: Draw, operation: Operation, chosen: dict[str, Any], regime: str, sizes: dict) -> Case:
    m, n, k = _sizes(draw, chosen, sizes, operation.name == "awq_scales", regime)
    group, largest, seed = group_of(chosen, k), largest_code(chosen), draw(SEEDS)
    rng = np.random.default_rng(seed)
    families: tuple[str, ...] = ("plain", "outliers", "degenerate", "nothing")
    if regime == "exact":
        families = ("codes", "share") if operation.name == "awq_clipping" else ("even", "codes")
    family = one_of(draw, families)
    if family == "even":
        x, w = even_sizes(rng, m, n, k, group, largest)
    elif family == "share" and group >= 2 and k:
        x, w = planted_share(rng, m, n, k, group, largest, 5)
        x = np.rint(x)
    elif family in ("codes", "share"):
        x, w = rng.integers(-3, 4, (m, k)), on_codes(rng, n, k, group, largest)
    else:
        x, w = activations(rng, m, k, family == "outliers"), rng.standard_normal((n, k))
        if family == "degenerate":
            w = weights(rng, n, k, group)
        if family == "nothing":
            x[:, rng.random(k) < 0.2] = 0
            w[:, rng.random(k) < 0.2] = 0
    arrays = {"x": x.astype(np.float32), "w": w.astype(np.float32)}
    return Case(operation, chosen, arrays, {"fill": family, "seed": seed})
