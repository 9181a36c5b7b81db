"""Cases of the gradients of fake quantization."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.affine import middle
from lowbit_cts.reference.formats import IntegerFormat, integer_format
from lowbit_cts.reference.granularity import scale_shape, spread


def _edges(rng: np.random.Generator, scale: np.ndarray, zero: np.ndarray, fmt: IntegerFormat) -> np.ndarray:
    """Return floats at the ends of the range, and half a code beyond them, and their neighbours."""
    codes = rng.choice([fmt.minimum - 0.5, fmt.minimum, fmt.maximum, fmt.maximum + 0.5], size=scale.shape)
    x = (scale * (codes - zero)).astype(np.float32)
    side = rng.integers(-1, 1, size=x.shape, endpoint=True)
    return np.where(side == 0, x, np.nextafter(x, np.where(side > 0, np.inf, -np.inf).astype(np.float32)))


_FILLS = {**fills.QUANTIZE, "edges": _edges}
_PLAIN = (*fills.PLAIN, "edges")


def _shape(draw: Draw, operation: Operation, chosen: Mapping[str, Any], sizes: dict[str, int]) -> tuple[int, int]:
    block = operation.multiples(chosen).get("K", 1)
    rows = size(draw, sizes, "M", 65 if block == 1 else 33)
    return rows, size(draw, sizes, "K", 3 * block if block > 1 else 257, block)


def _upstream(rng: np.random.Generator, shape: tuple[int, ...], regime: str) -> np.ndarray:
    """Return gradients; in the exact regime whole multiples of a power of two, in the special one a few not finite."""
    if regime == "exact":
        return (rng.integers(-8, 8, size=shape, endpoint=True) * 2.0 ** rng.integers(-8, 4)).astype(np.float32)
    normal = rng.standard_normal(shape) * np.exp(rng.standard_normal())
    if regime == "special":
        normal = np.where(rng.random(shape) < 0.1, rng.choice([np.inf, -np.inf, np.nan, 3e38], size=shape), normal)
    return normal.astype(np.float32)


def _zeros(rng: np.random.Generator, chosen: Mapping[str, Any], place: tuple[int, ...], low: int, high: int) -> Any:
    if chosen.get("mapping") == "symmetric":
        return np.full(place, middle(low, high))
    absent = chosen.get("has_zero_point") is False
    return np.zeros(place) if absent else rng.integers(low, high, size=place, endpoint=True)


@draws("fake_quantize_gradient", "lsq_gradient")
def _gradient(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    shape = _shape(draw, operation, chosen, sizes)
    family = one_of(draw, {"exact": ("grid",), "special": fills.SPECIAL}.get(regime, _PLAIN))
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    fmt = integer_format(chosen["format"])
    granularity = {name: chosen[name] for name in ("granularity", "axis", "group_size")}
    place = scale_shape(shape, **granularity)
    scale = np.asarray(fills.powers_of_two(rng, place) if regime == "exact" else fills.scales(rng, place), np.float32)
    zero = np.asarray(_zeros(rng, chosen, place, *fmt.codes(bool(chosen["narrow_range"]))), np.int32)
    s, z = (spread(np.asarray(part, np.float64), shape, **granularity) for part in (scale, zero))
    x = fills.float_codes(_FILLS[family](rng, s, z, fmt), "float32")
    arrays: dict[str, np.ndarray | None] = {
        "upstream": _upstream(rng, shape, regime),
        "scale": scale,
        "zero_point": zero,
    }
    if operation.name == "fake_quantize_gradient":
        return Case(operation, chosen, {"x": x, **arrays}, {"fill": family, "seed": seed})
    if not chosen["has_zero_point"]:
        arrays["zero_point"] = None
    factor = 2.0 ** rng.integers(-12, 1) if regime == "exact" else 1 / np.sqrt(max(1, x.size) * fmt.maximum)
    arrays["gradient_scale"] = np.asarray(factor, np.float32)
    return Case(operation, chosen, {"v": x, **arrays}, {"fill": family, "seed": seed})


@draws("lsq_initial_scale")
def _initial_scale(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    shape = _shape(draw, operation, chosen, sizes)
    family, seed = one_of(draw, ("whole",) if regime == "exact" else tuple(fills.OBSERVED)), draw(SEEDS)
    rng = np.random.default_rng(seed)
    if family == "whole":
        v = rng.integers(-9, 9, size=shape, endpoint=True) * 2.0 ** rng.integers(-8, 4)
    else:
        v = fills.observed(rng, shape, family)
    return Case(operation, chosen, {"v": fills.float_codes(v, "float32")}, {"fill": family, "seed": seed})
