"""Cases of binary and ternary weights."""

import numpy as np

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation


def _normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    return rng.standard_normal(shape) * np.exp(rng.standard_normal((shape[0], 1)))


def _with_zeros(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    zeros = np.copysign(0.0, rng.standard_normal(shape))
    return np.where(rng.random(shape) < 0.4, zeros, _normal(rng, shape))


def _few_magnitudes(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return 0, 1 and 11 of both signs times a power of two: sums are exact, and no threshold is met exactly."""
    magnitudes = rng.choice([0.0, 1.0, 11.0], size=shape, p=[0.1, 0.45, 0.45])
    return np.copysign(magnitudes, rng.standard_normal(shape)) * 2.0 ** rng.integers(-6, 4)


_FILLS = {
    "normal": _normal,
    "zeros": _with_zeros,
    "constant": lambda rng, shape: np.full(shape, rng.choice([0.3, -3.0, 0.0])),
    "outlier": lambda rng, shape: np.where(rng.random(shape) < 1 / max(1, shape[1]), 300.0, _normal(rng, shape)),
    "few": _few_magnitudes,
}


@draws("binarize", "ternarize")
def _weights(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    block = operation.multiples(chosen).get("K", 1)
    shape = (
        size(draw, sizes, "M", 65 if block == 1 else 33),
        size(draw, sizes, "K", 3 * block if block > 1 else 257, block),
    )
    family, seed = one_of(draw, ("few",) if regime == "exact" else tuple(_FILLS)[:4]), draw(SEEDS)
    x = _FILLS[family](np.random.default_rng(seed), shape)
    return Case(operation, chosen, {"x": fills.float_codes(x, chosen["input_format"])}, {"fill": family, "seed": seed})
