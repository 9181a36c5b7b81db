"""Cases of GPTQ: Hessians of correlated samples, of few samples, with dead columns, and diagonal ones."""

from typing import Any

import numpy as np

from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation

Generator = np.random.Generator
_ROWS, _COLUMNS = 24, 96


def _symmetric(h: np.ndarray) -> np.ndarray:
    """Return float32 that is symmetric bit for bit, with a diagonal of which no two are alike."""
    h = np.asarray(h + h.T, np.float32) / 2
    diagonal = np.diag(h).copy()
    for _ in range(8):
        order = np.argsort(diagonal, kind="stable")
        alike = np.flatnonzero((np.diff(diagonal[order]) <= 0) & (diagonal[order][1:] > 0))
        if not alike.size:
            break
        diagonal[order[alike + 1]] *= np.float32(1 + 2.0**-12)
    np.fill_diagonal(h, diagonal)
    return h


def hessian(rng: Generator, k: int, samples: int, spread: float) -> np.ndarray:
    """Return 2 / samples X X^T of channels that are correlated, and of sizes up to `spread` apart; float32 (K, K)."""
    mixed = (
        rng.standard_normal((k, max(1, k // 2))) @ rng.standard_normal((max(1, k // 2), samples)) / np.sqrt(max(1, k))
    )
    x = (mixed + rng.standard_normal((k, samples))) * np.exp(rng.uniform(0, np.log(spread), (k, 1)))
    return _symmetric(2 / samples * x @ x.T)


def _diagonal(rng: Generator, k: int) -> np.ndarray:
    return _symmetric(np.diag(rng.uniform(0.5, 8.0, k)))


def weights(rng: Generator, n: int, k: int) -> np.ndarray:
    """Return normal weights, some rows one-signed, some constant, some of zeros, some with one large weight."""
    w = rng.standard_normal((n, k)) * np.exp2(rng.integers(-6, 7, (n, 1)))
    kind = rng.integers(0, 10, n)
    w[kind == 0] = np.abs(w[kind == 0])
    w[kind == 1] = -np.abs(w[kind == 1])
    w[kind == 2] = w[kind == 2][:, :1]
    w[kind == 3] = 0
    if k:
        w[kind == 4, rng.integers(0, k)] *= 50
    return w.astype(np.float32)


def on_a_grid(rng: Generator, n: int, k: int, bits: int) -> np.ndarray:
    """Return rows whose scale is a power of two by either mapping, many weights halfway between two codes."""
    largest = (1 << bits) - 1
    halves = rng.integers(-largest, largest, (n, k), endpoint=True)
    for column, end in zip(rng.permutation(k)[:2], (largest, -largest), strict=False):
        halves[:, column] = end
    halves = np.abs(halves) if k == 1 else halves
    return (halves * np.exp2(rng.integers(-8, 8, (n, 1)) - 1.0)).astype(np.float32)


@draws("quantize_gptq")
def _quantize_gptq(draw: Draw, operation: Operation, chosen: dict[str, Any], regime: str, sizes: dict) -> Case:
    k = size(draw, sizes, "K", _COLUMNS)
    n = size(draw, sizes, "N", _ROWS)
    family, seed = one_of(draw, {"exact": ("diagonal",)}.get(regime, ("samples", "few_samples", "dead"))), draw(SEEDS)
    rng = np.random.default_rng(seed)
    w = weights(rng, n, k)
    if family == "diagonal":
        h = _diagonal(rng, k)
        in_turn = chosen["act_order"] and not chosen["static_groups"]
        order = np.argsort(-np.diag(h), kind="stable") if in_turn else np.arange(k)
        bits, group = int(chosen["format"].removeprefix("uint")), chosen["group_size"] or max(k, 1)
        for start in range(0, k, group):
            members = order[start : start + group]
            w[:, members] = on_a_grid(rng, n, len(members), bits)
    else:
        h = hessian(rng, k, max(1, k // 3) if family == "few_samples" else 4 * k + 8, 8.0)
        if family == "dead" and k:
            dead = rng.random(k) < 0.2
            h[dead] = h[:, dead] = 0
    return Case(operation, chosen, {"w": w, "hessian": h}, {"fill": family, "seed": seed})
