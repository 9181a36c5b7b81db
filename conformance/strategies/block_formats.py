"""Cases of the block formats: matrices whose blocks differ in magnitude, so that a neighbour's scale shows.

The largest magnitudes of blocks stay in the middle of the range and away from what is just beside a power of two: very
small scales, infinities and logarithms that round have properties of their own.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.formats import decode, float_format
from lowbit_cts.reference.mx import MX_BLOCK
from lowbit_cts.reference.nvfp4 import NVFP4_BLOCK

Generator = np.random.Generator

#: Exponents of the largest magnitude of a block, by the format of x.
_EXPONENTS = {"float32": (-60, 60), "bfloat16": (-60, 60), "float16": (-5, 14)}


@lru_cache
def element_points(format: str) -> np.ndarray:
    """Return the magnitudes around which an element changes, in units of its block's scale, increasing: float64.

    All values of the format, the middles between them, and the edges of overflow.
    """
    if format == "int8":
        return np.arange(2 * 130) / 128
    return np.unique(np.abs(fills.boundaries(float_format(format))))


def largest_element(format: str) -> float:
    """Return the largest value of an element without its scale."""
    return 127 / 64 if format == "int8" else float_format(format).maximum


def largest_power(format: str) -> float:
    """Return the largest power of two among the elements: a block with that maximum has the scale 1 in every mode."""
    return 2.0 ** (np.frexp(largest_element(format))[1] - 1)


def _signs(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.choice([-1.0, 1.0], size=shape)


def _placed(rng: Generator, x: np.ndarray, tops: np.ndarray) -> np.ndarray:
    """Put into each block (M, G, size) its number of `tops` (M, G, 1), of either sign, anywhere."""
    at = rng.integers(0, x.shape[-1], size=tops.shape)
    np.put_along_axis(x, at, tops * _signs(rng, tops.shape), -1)
    return x


def _outliers(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) * np.where(rng.random(shape) < 0.1, 50, 1)


def _magnitudes(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return _signs(rng, shape) * np.exp2(rng.uniform(-14, 0, shape))


def _single(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return _placed(rng, 0.01 * rng.standard_normal(shape), 1 + rng.random((*shape[:2], 1)))


def _zeros(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) * (rng.random((*shape[:2], 1)) < 0.5)


def _specials(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    x = rng.standard_normal(shape)
    return np.where(rng.random(shape) < 0.05, rng.choice(fills.SPECIALS, size=shape), x)


def _everything(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return _signs(rng, shape) * np.exp2(rng.uniform(-149, 128, (*shape[:2], 1)) - rng.exponential(3, shape))


#: Blocks (M, G, size) in units of their scales.
_PLAIN: dict[str, Callable[[Generator, tuple[int, ...]], np.ndarray]] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "outliers": _outliers,
    "magnitudes": _magnitudes,
    "single": _single,
}
_SPECIAL: dict[str, Callable[[Generator, tuple[int, ...]], np.ndarray]] = {
    "specials": _specials,
    "everything": _everything,
    "zeros": _zeros,
}


def _points(
    rng: Generator, scales: np.ndarray, chosen: dict[str, Any], block: int, format: str, exact: bool
) -> np.ndarray:
    """Return codes of x (M, G, block) at decision boundaries of elements under `scales` (M, G, 1).

    Not exactly: their neighbours, too, and blocks whose maximum is the largest element.
    """
    shape = (*scales.shape[:2], block)
    top = np.full(scales.shape, largest_power(format))
    if not exact and block == MX_BLOCK:
        top = np.where(rng.random(scales.shape) < 0.5, top, largest_element(format))
    if block == NVFP4_BLOCK:
        top[...] = largest_element(format)
    points = element_points(format)
    below = np.searchsorted(points, top)  # of each block, how many points lie below its maximum
    x = points[rng.integers(0, np.broadcast_to(below, shape))] * _signs(rng, shape) * scales
    source = float_format(chosen["input_format"])
    steps = np.zeros(shape, np.int64) if exact else rng.integers(-1, 1, size=shape, endpoint=True)
    codes = fills.neighbours(x, source, steps)
    tops = fills.float_codes(_placed(rng, np.zeros(shape), top * scales), chosen["input_format"])
    return np.where(decode(tops, source) == 0, codes, tops)


def _filled(
    rng: Generator, draw_from: str, scales: np.ndarray, chosen: dict[str, Any], block: int, format: str
) -> np.ndarray:
    """Return codes of x, (M, K), of a family."""
    if draw_from in ("ties", "boundaries"):
        codes = _points(rng, scales, chosen, block, format, exact=draw_from == "ties")
    else:
        shape = (*scales.shape[:2], block)
        x = _SPECIAL[draw_from](rng, shape) if draw_from in _SPECIAL else _PLAIN[draw_from](rng, shape) * scales
        codes = fills.float_codes(x, chosen["input_format"])
    return np.ascontiguousarray(codes.reshape(scales.shape[0], scales.shape[1] * block))


def _families(regime: str) -> tuple[str, ...]:
    return {"exact": ("ties",), "special": tuple(_SPECIAL)}.get(regime, ("boundaries", *_PLAIN))


def _shape(draw: Draw, sizes: dict[str, int], block: int) -> tuple[int, int]:
    """Return (M, K / block)."""
    rows, columns = size(draw, sizes, "M", 33), size(draw, sizes, "K", 257, multiple=block)
    return rows, columns // block


@draws("quantize_mx")
def _quantize_mx(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    shape = _shape(draw, sizes, MX_BLOCK)
    family, seed = one_of(draw, _families(regime)), draw(SEEDS)
    rng = np.random.default_rng(seed)
    exponents = rng.integers(*_EXPONENTS[chosen["input_format"]], size=(*shape, 1), endpoint=True)
    scales = 2.0**exponents / largest_power(chosen["format"])
    x = _filled(rng, family, scales, chosen, MX_BLOCK, chosen["format"])
    return Case(operation, chosen, {"x": x}, {"fill": family, "seed": seed})


@draws("dequantize_mx")
def _dequantize_mx(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    rows, groups = _shape(draw, sizes, MX_BLOCK)
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    codes = _codes(rng, (rows, groups * MX_BLOCK), chosen["format"], finite=regime != "special")
    low, high = (115, 125) if chosen["output_format"] == "float16" else (60, 200)
    scale = rng.integers(*((0, 255) if regime == "special" else (low, high)), size=(rows, groups), endpoint=True)
    arrays = {"codes": codes, "scale": scale.astype(np.uint8)}
    return Case(operation, chosen, arrays, {"fill": "codes", "seed": seed})


def _codes(rng: Generator, shape: tuple[int, ...], format: str, finite: bool) -> np.ndarray:
    """Return random codes of elements, without those of NaN and Inf where they are to be finite."""
    if format == "int8":
        return rng.integers(-128, 127, size=shape, endpoint=True).astype(np.int8)
    fmt = float_format(format)
    codes = np.arange(1 << fmt.bits, dtype=np.uint8)
    return rng.choice(codes[np.isfinite(decode(codes, fmt))] if finite else codes, size=shape)


def _global_scale(rng: Generator, chosen: dict, exact: bool) -> np.ndarray | None:
    """Return a stored global scale within 2**-2.5 and 2**2.5; a power of two, if it is to be exact, or by chance."""
    if chosen["levels"] == "one":
        return None
    power = rng.uniform(-2.5, 2.5)
    return np.array(2.0 ** (np.rint(power) if exact or rng.random() < 0.5 else power), np.float32)


@draws("quantize_nvfp4")
def _quantize_nvfp4(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    shape = _shape(draw, sizes, NVFP4_BLOCK)
    family, seed = one_of(draw, _families(regime)), draw(SEEDS)
    rng = np.random.default_rng(seed)
    stored = _global_scale(rng, chosen, regime == "exact")
    # Codes of the block scales. Under G = 1 / g they are off by its square, and still in the middle of the range.
    low, high = (0x10, 0x70) if stored is None else (0x38, 0x48)
    codes = rng.integers(low, high, size=(*shape, 1), endpoint=True)
    scales = decode(codes & ~7 if regime == "exact" else codes, float_format("float8_e4m3fn"))
    scales *= 1 if stored is None else stored
    x = _filled(rng, family, scales, chosen, NVFP4_BLOCK, "float4_e2m1fn")
    return Case(operation, chosen, {"x": x, "global_scale": stored}, {"fill": family, "seed": seed})


@draws("dequantize_nvfp4")
def _dequantize_nvfp4(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    rows, groups = _shape(draw, sizes, NVFP4_BLOCK)
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    arrays = {
        "codes": _codes(rng, (rows, groups * NVFP4_BLOCK), "float4_e2m1fn", finite=True),
        "scale": rng.integers(0, 0x7F if regime == "special" else 0x7E, (rows, groups), np.uint8, endpoint=True),
        "global_scale": _global_scale(rng, chosen, regime == "exact"),
    }
    return Case(operation, chosen, arrays, {"fill": "codes", "seed": seed})


@draws("choose_global_scale_nvfp4")
def _choose_global_scale(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    shape = size(draw, sizes, "M", 65), size(draw, sizes, "K", 257)
    observed = [name for name in fills.OBSERVED if not name.startswith("zero")]
    family, seed = one_of(draw, ("whole",) if regime == "exact" else tuple(observed)), draw(SEEDS)
    rng = np.random.default_rng(seed)
    if regime == "exact":  # max|x| is 2688 times a power of two, as far as x has an element
        x = np.trunc(rng.uniform(-2688, 2688, shape))
        x.flat[rng.integers(0, x.size, 1) if x.size else slice(0)] = 2688 * rng.choice([-1, 1])
        x *= 2.0 ** rng.integers(-8, 4, endpoint=True)
    else:
        x = fills.observed(rng, shape, family) * (2.0 ** rng.integers(-20, 20) if regime == "special" else 1)
    return Case(operation, chosen, {"x": fills.float_codes(x, chosen["input_format"])}, {"fill": family, "seed": seed})
