"""Cases of writing to a paged cache."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.attention import UNIT, scale_shapes
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.formats import FORMATS, FloatFormat, IntegerFormat, integer_format
from lowbit_cts.reference.kv_cache import QUANTIZED, scales_of

Generator = np.random.Generator

#: Elements of a cache at most: past that it has fewer blocks, where all axes are long at once.
_ELEMENTS = 1 << 20

_FILLS = {
    "full": ("normal", "ties", "grid", "outliers"),
    "exact": ("grid", "ties"),
    "special": ("specials", "full_range", "bits"),
}


def every_bit(rng: Generator, shape: tuple[int, ...], format: str) -> np.ndarray:
    """Return codes of random bits, in the carrier of the format: all there are, NaN of every payload."""
    fmt = FORMATS[format]
    codes = rng.integers(0, 1 << fmt.bits, shape, dtype=np.uint64)
    return np.asarray(codes.astype(f"u{fmt.carrier.itemsize}")).view(fmt.carrier)


def slot_mapping(rng: Generator, tokens: int, slots: int, skipped: float = 0.2) -> np.ndarray:
    """Return distinct slots in no order, int64; some tokens, and those beyond the slots there are, have one below zero.

    Parameters
    ----------
    skipped : float
        The share of tokens to be skipped.
    """
    found = -rng.choice([1, 2, 7, 2**31, 2**40], tokens).astype(np.int64)
    held = np.flatnonzero(rng.random(tokens) >= skipped)[:slots]
    found[held] = rng.permutation(slots)[: held.size]
    return found


def numbers(rng: Generator, scale: np.ndarray, format: str, family: str) -> np.ndarray:
    """Return numbers to be stored, float64: of a fill, or for float8 boundaries of its codes, times their scales.

    Parameters
    ----------
    scale : ndarray of float64
        That of each number; 1 of a cache that is not quantized.
    format : str
        Of the cache.
    family : str
        A fill of `fills.QUANTIZE`.
    """
    fmt = FORMATS[format]
    if isinstance(fmt, FloatFormat) and format in QUANTIZED and family in ("grid", "ties"):
        edges = rng.choice(fills.boundaries(fmt), scale.shape)
        found = (scale * edges).astype(np.float32)
        towards = rng.integers(-1, 1, scale.shape, endpoint=True) * (family == "ties")
        beside = np.nextafter(found, (1e38 * towards).astype(np.float32))
        return np.where(towards == 0, found, beside).astype(np.float64)
    as_integers = fmt if isinstance(fmt, IntegerFormat) else integer_format("int8")
    return np.asarray(fills.QUANTIZE[family](rng, scale, np.zeros(scale.shape), as_integers), np.float64)


def arrays_of(
    rng: Generator, chosen: Mapping[str, Any], sizes: Mapping[str, int], family: str, exact: bool = False
) -> dict[str, Any]:
    """Return arguments of a write: old contents of random bits, and tokens of a fill.

    Parameters
    ----------
    chosen : mapping
        Parameters.
    sizes : mapping
        The lengths of T, G, D, E and C.
    family : str
        A fill of `fills.QUANTIZE`, or "bits": every code of the tokens' format.
    exact : bool
        Scales are powers of two.
    """
    t, g, c, block = sizes["T"], sizes["G"], sizes["C"], chosen["block_size"]
    format, input_format = chosen["cache_format"], chosen["input_format"]
    shapes = {"key": (t, g, sizes["D"]), "value": (t, g, sizes["E"])}
    arrays: dict[str, Any] = {}
    for (of, shape), (name, of_scale) in zip(shapes.items(), scale_shapes(chosen, shapes).items(), strict=True):
        scale = None
        if of_scale is not None:
            drawn = fills.powers_of_two(rng, of_scale, -3, 3) if exact else np.exp(rng.standard_normal(of_scale))
            scale = np.asarray(drawn / (1 if exact else UNIT[format]), np.float32)
        spread = np.broadcast_to(scales_of(of, scale, shape, chosen["scale_granularity"] or "tensor"), shape)
        if family == "bits":
            arrays[of] = every_bit(rng, shape, input_format)
        else:
            arrays[of] = fills.float_codes(numbers(rng, spread, format, family), input_format)
        arrays[f"{of}_cache"] = every_bit(rng, (c, block, g, shape[2]), format)
        arrays[name] = scale
    arrays["slot_mapping"] = slot_mapping(rng, t, c * block)
    return arrays


@draws("write_kv_cache")
def _write_kv_cache(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    found = {symbol: size(draw, sizes, symbol, most) for symbol, most in zip("TGDEC", (17, 4, 40, 40, 5), strict=True)}
    of_block = chosen["block_size"] * found["G"] * max(found["D"], found["E"])
    found["C"] = min(found["C"], max(1, _ELEMENTS // max(1, of_block)))
    family, seed = one_of(draw, _FILLS[regime]), draw(SEEDS)
    arrays = arrays_of(np.random.default_rng(seed), chosen, found, family, regime == "exact")
    return Case(operation, chosen, arrays, {"fill": family, "seed": seed})
