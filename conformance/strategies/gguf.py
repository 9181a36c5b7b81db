"""Cases of GGUF blocks, and blocks that a quantizer must give back.

*Representable* numbers are those that a block decodes to in which every group has the scale and min that a quantizer
begins with, and no other that they are multiples of: the elements that these are taken from are there, on their levels,
and one on the level 1. They have no error at that scale, so that a quantizer that minimizes an error, whatever its
weights, has none either. The float16 numbers have four bits, so that every sum is exact in float32.
"""

from collections.abc import Callable

import numpy as np

from lowbit_cts.conformance.fills import Generator
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.gguf.blocks import pack, quantize, scale_and_offset
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS, BlockFormat
from lowbit_cts.reference.gguf.packing import Parts, parts_of

#: Elements of the largest rows and matrices that are drawn.
_LARGEST_ROW, _LARGEST = 1024, 1 << 14

#: Exponents of scales from which the largest elements of all formats stay finite in float16, and differ from 0.
_EXPONENTS = (-8, 1)

#: For each format whose groups have scales, their least and greatest code in what is drawn, and that of the largest
#: group, from which the block's scale is taken. MXFP4 and NVFP4 have no scale of the block.
_SCALE_CODES: dict[str, tuple[int, int, int | None]] = {
    "Q2_K": (1, 15, 15), "Q3_K": (1, 63, 0), "Q4_K": (1, 63, 63), "Q5_K": (1, 63, 63), "Q6_K": (1, 127, 128),
    "IQ4_XS": (1, 63, 0), "MXFP4": (118, 136, None), "NVFP4": (8, 0x77, None),
}  # fmt: skip

#: The levels that each group must hold, of those in a tuple one.
_ENDS: dict[str, tuple[tuple[int, ...], ...]] = {
    "Q4_0": ((-8,), (1,)), "Q5_0": ((-16,), (1,)), "Q4_1": ((0,), (1,), (15,)), "Q5_1": ((0,), (1,), (31,)),
    "Q8_0": ((-127, 127), (1,)), "Q2_K": ((0,), (1,), (3,)), "Q3_K": ((-4,), (1,)), "Q4_K": ((0,), (1,), (15,)),
    "Q5_K": ((0,), (1,), (31,)), "Q6_K": ((-32,), (1,)), "IQ4_NL": ((-127,), (1,)), "IQ4_XS": ((-127,), (1,)),
    "MXFP4": ((-12, 12), (1,)), "NVFP4": ((-12, 12), (1,)), "TQ1_0": ((-1, 1),), "TQ2_0": ((-1, 1),),
}  # fmt: skip

#: Codes that decode, but that no quantizer gives: -128 of Q8_0, 2 of TQ2_0, -0 of FP4.
_UNUSED = {"Q8_0": (128,), "TQ2_0": (3,), "MXFP4": (8,), "NVFP4": (8,)}


def halves(rng: Generator, count: int, bits: int = 11, exponents: tuple[int, int] = _EXPONENTS) -> np.ndarray:
    """Return float16 numbers of both signs with so many significant bits."""
    significand = rng.integers(1 << (bits - 1), 1 << bits, size=count) / 2.0 ** (bits - 1)
    sign = rng.choice([-1.0, 1.0], size=count)
    return (sign * np.ldexp(significand, rng.integers(*exponents, size=count, endpoint=True))).astype(np.float16)


def code_of(level: int, fmt: BlockFormat) -> np.uint8:
    """Return the code of a level."""
    return np.uint8(np.flatnonzero(fmt.levels == level)[0])


def representable(rng: Generator, count: int, fmt: BlockFormat, bits: int = 4) -> Parts:
    """Return the parts of blocks of representable numbers; with `bits` 1 all scales are powers of two."""
    codes = np.setdiff1d(np.arange(len(fmt.levels)), _UNUSED.get(fmt.name, ())).astype(np.uint8)
    parts = {"codes": rng.choice(codes, (count, fmt.groups, fmt.group))}
    places = np.argsort(rng.random(parts["codes"].shape), axis=-1)
    for place, ends in enumerate(_ENDS[fmt.name]):
        chosen = rng.choice([code_of(level, fmt) for level in ends], (count, fmt.groups, 1))
        np.put_along_axis(parts["codes"], places[..., place : place + 1], chosen, axis=-1)
    parts["codes"] = parts["codes"].reshape(count, fmt.elements)
    for name in parts_of(fmt):
        if name in ("scales", "mins"):
            low, high, first = _SCALE_CODES[fmt.name]
            parts[name] = rng.integers(low, high, (count, fmt.groups), np.uint8, endpoint=True)
            if first is not None:
                parts[name][np.arange(count), rng.integers(fmt.groups, size=count)] = first
        elif name in ("d", "m"):
            parts[name] = halves(rng, count, bits)
    if "dmin" in parts_of(fmt):
        # Mins of the size of scales, since those far below are lost in float32; none is a multiple of one of Q2_K, so
        # that no element is 0, which has no weight there.
        ratio = rng.choice([2, 4, 8], count) * (1 if bits == 1 else 17 / 16)
        parts["dmin"] = np.abs(parts["d"] * ratio).astype(np.float16)
    if fmt.levels.min() == 0 or fmt.name in ("Q8_0", "TQ1_0", "TQ2_0"):
        parts["d"] = np.abs(parts["d"])  # a range, or a magnitude
    return parts


def with_ties(rng: Generator, parts: Parts, fmt: BlockFormat) -> np.ndarray:
    """Return the numbers that blocks stand for, every second of them moved to the middle of two levels.

    The first of each group on a level that its scale is taken from stays.
    """
    scale, offset = scale_and_offset(parts, fmt.name)
    levels = np.unique(fmt.levels).astype(np.float32)
    codes = parts["codes"].reshape(-1, fmt.groups, fmt.group)
    level = fmt.levels[codes].astype(np.float32)
    above = levels[np.minimum(np.searchsorted(levels, level) + 1, len(levels) - 1)]
    kept = rng.random(codes.shape) < 0.5
    for end in np.concatenate(_ENDS[fmt.name]):
        np.put_along_axis(kept, np.argmax(level == end, axis=-1)[..., None], True, axis=-1)
    x = np.where(kept, level, (level + above) / 2) * scale[..., None]
    return (x if offset is None else x + offset[..., None]).reshape(-1, fmt.elements)


def _exact(rng: Generator, count: int, fmt: BlockFormat) -> np.ndarray:
    return with_ties(rng, representable(rng, count, fmt, bits=1), fmt)


def _normal(rng: Generator, count: int, fmt: BlockFormat) -> np.ndarray:
    return rng.standard_normal((count, fmt.elements)) * np.exp(rng.standard_normal((count, 1)))


def _of_bits(rng: Generator, count: int, fmt: BlockFormat) -> np.ndarray:
    x = rng.integers(0, 1 << 32, (count, fmt.elements), np.uint64).astype(np.uint32).view(np.float32)
    return np.where(np.isfinite(x), x, np.float32(0))


Fill = Callable[[Generator, int, BlockFormat], np.ndarray]

#: What quantizers are fed: blocks of float32 numbers, shape (count, elements).
FILLS: dict[str, Fill] = {
    "normal": _normal,
    "outliers": lambda rng, n, fmt: _normal(rng, n, fmt) * np.where(rng.random((n, fmt.elements)) < 0.02, 30, 1),
    "groups": lambda rng, n, fmt: _normal(rng, n, fmt) * np.exp(1.5 * rng.standard_normal((n, fmt.elements // 16)))
    .repeat(16, axis=1),
    "one-signed": lambda rng, n, fmt: (np.abs(_normal(rng, n, fmt)) + 0.1) * rng.choice([-1, 1], (n, 1)),
    "integers": lambda rng, n, fmt: rng.integers(-9, 9, (n, fmt.elements), endpoint=True) * 0.25,
    "sparse": lambda rng, n, fmt: np.where(rng.random((n, fmt.elements)) < 0.9, 0.0, _normal(rng, n, fmt)),
    "exact": _exact,
    "bits": _of_bits,
    "subnormal": lambda rng, n, fmt: _normal(rng, n, fmt) * 1e-39,
}  # fmt: skip
_PLAIN = ("normal", "outliers", "groups", "one-signed", "integers", "sparse")
_SPECIAL = ("bits", "subnormal")


def _rows(x: np.ndarray, m: int) -> np.ndarray:
    return np.ascontiguousarray(x).reshape(m, -1) if x.size else np.zeros((m, 0), x.dtype)


def _rows_of(draw: Draw, sizes: dict, k: int) -> int:
    return size(draw, sizes, "M", min(33, _LARGEST // max(1, k)))


@draws("quantize_gguf")
def _quantize(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    fmt = BLOCK_FORMATS[chosen["type"]]
    k = size(draw, sizes, "K", _LARGEST_ROW, fmt.elements)
    m = _rows_of(draw, sizes, k)
    family, seed = one_of(draw, {"exact": ("exact",), "special": _SPECIAL}.get(regime, _PLAIN)), draw(SEEDS)
    rng = np.random.default_rng(seed)
    x = FILLS[family](rng, m * k // fmt.elements, fmt).astype(np.float32)
    return Case(operation, chosen, {"x": _rows(x, m)}, {"fill": family, "seed": seed})


def of_bytes(rng: Generator, count: int, fmt: BlockFormat, bits: int = 11) -> np.ndarray:
    """Return blocks of random bytes, with finite float16 numbers of ordinary size and such scales."""
    data = rng.integers(0, 256, (count, fmt.bytes), np.uint8)
    at = 0
    for field in fmt.fields:
        place = data[:, at : at + field.bytes]
        if not (field.bits or field.trits):
            place[...] = halves(rng, count, bits).astype("<f2").view(np.uint8).reshape(-1, 2)
        elif fmt.name in ("MXFP4", "NVFP4") and field.name in fmt.scales:
            low, high, _ = _SCALE_CODES[fmt.name]
            place[...] = rng.integers(low, high, place.shape, np.uint8, endpoint=True)
        at += field.bytes
    return data


def _of_numbers(rng: Generator, count: int, fmt: BlockFormat) -> np.ndarray:
    return quantize(_normal(rng, count, fmt).astype(np.float32), fmt.name)


@draws("dequantize_gguf")
def _dequantize(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    fmt = BLOCK_FORMATS[chosen["type"]]
    b = size(draw, sizes, "B", _LARGEST_ROW // fmt.elements * fmt.bytes, fmt.bytes)
    m = _rows_of(draw, sizes, b // fmt.bytes * fmt.elements)
    families: dict[str, Fill] = {"bytes": of_bytes, "numbers": _of_numbers}
    if regime == "exact":  # one significant bit a scale: sums are exact in float32, and rounded once to 16 bits
        families = {"powers of two": lambda rng, n, fmt: of_bytes(rng, n, fmt, bits=1)}
    family, seed = one_of(draw, tuple(families)), draw(SEEDS)
    blocks = families[family](np.random.default_rng(seed), m * b // fmt.bytes, fmt)
    return Case(operation, chosen, {"blocks": _rows(blocks, m)}, {"fill": family, "seed": seed})


def packed(parts: Parts, fmt: BlockFormat) -> np.ndarray:
    """Return blocks of parts, uint8 (n, bytes of a block)."""
    return pack(parts, fmt.name)
