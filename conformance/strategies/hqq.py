"""Cases of half-quadratic quantization: weights of every size, since its norm has one, and groups of every kind."""

from typing import Any

import numpy as np

from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation

Generator = np.random.Generator
_ROWS, _COLUMNS = 24, 192
#: What weights on a grid are times: the norm keeps no error below 0.14, so that it keeps none of theirs.
SMALL = 2.0**-5


def weights(rng: Generator, n: int, k: int, size: int) -> np.ndarray:
    """Return normal weights in groups, (n, k), some groups one-signed, constant, zero, or with one large weight."""
    kind = rng.integers(0, 10, (n, -(-k // max(size, 1)))).repeat(max(size, 1), axis=1)[:, :k]
    w = rng.standard_normal((n, k)) * np.exp2(rng.integers(-3, 4, (n, 1)))
    level = rng.standard_normal((n, 1)) * np.ones(k)
    large = np.where(rng.random((n, k)) < 1 / max(1, size), 40.0, 1.0)
    return np.select(
        [kind == 0, kind == 1, kind == 2, kind == 3, kind == 4],
        [np.abs(w) + 0.25, -np.abs(w) - 0.25, level, np.zeros_like(w), large * w], w,
    )  # fmt: skip


def on_a_grid(rng: Generator, n: int, k: int, bits: int, size: int) -> np.ndarray:
    """Return small weights at halves of a code, under scales that are powers of two, (n, k)."""
    largest = (1 << bits) - 1
    halves = rng.integers(0, 2 * largest, (n, k), endpoint=True)
    for start in range(0, k, max(1, size)):
        members = np.arange(start, min(start + size, k))
        ends = rng.permutation(members)[:2]
        halves[:, ends] = np.array([0, 2 * largest])[: len(ends)]
    shift = rng.integers(-2 * largest, 0, (n, 1), endpoint=True)
    return (halves + shift) * np.exp2(rng.integers(-4, 0, (n, 1)) - 1.0 - bits) * SMALL


@draws("quantize_hqq")
def _quantize_hqq(draw: Draw, operation: Operation, chosen: dict[str, Any], regime: str, sizes: dict) -> Case:
    group = chosen["group_size"]
    k = size(draw, sizes, "K", _COLUMNS, group or 1)
    n = size(draw, sizes, "N", _ROWS)
    family = one_of(draw, {"exact": ("grid",)}.get(regime, ("unit", "layer", "heavy")))
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    if family == "grid":
        w = on_a_grid(rng, n, k, int(chosen["format"].removeprefix("uint")), group or k)
    else:
        w = weights(rng, n, k, group or k) * (0.03 if family == "layer" else 1.0)
        w = np.sign(w) * np.abs(w) ** 3 / 2 if family == "heavy" else w
    return Case(operation, chosen, {"w": w.astype(np.float32)}, {"fill": family, "seed": seed})
