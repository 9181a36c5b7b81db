"""Cases of codebooks: blocks whose quotients lie on and beside decision boundaries, each with another absmax."""

from typing import Any

import numpy as np
from hypothesis import strategies as st

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.kernels.operations.codebooks import NESTED
from lowbit_cts.reference.codebooks import CODEBOOKS
from lowbit_cts.reference.formats import IntegerFormat, decode, float_format, integer_format

Generator = np.random.Generator

#: Most elements that a row of blocks gets, and most of a matrix of large blocks.
_ROW, _MATRIX = 3 * 256, 1 << 15


def points(values: np.ndarray) -> np.ndarray:
    """Return where codes change, float64: the values, and the middles of neighbours, exact and rounded to float32."""
    values = np.unique(values)
    narrow = values.astype(np.float32)
    middles = (values[:-1].astype(np.float64) + values[1:]) / 2
    return np.concatenate([values, middles, (narrow[:-1] + narrow[1:]) * np.float32(0.5)])


def blocks_at(
    rng: Generator, absmax: np.ndarray, block: int, codebook: np.ndarray, format: str, steps: int = 2
) -> np.ndarray:
    """Return codes of `format`, shape (*absmax.shape, block): absmax times points, moved by a few last places.

    One element of each block has the magnitude absmax, and none a greater one.
    """
    quotients = rng.choice(points(codebook), size=(*absmax.shape, block))
    fmt = float_format(format)
    largest = decode(fills.float_codes(absmax, format), fmt)[..., None]
    moved = fills.neighbours(largest * quotients, fmt, rng.integers(-steps, steps, quotients.shape, endpoint=True))
    x = np.clip(decode(moved, fmt), -largest, largest)
    at = rng.integers(0, block, size=largest.shape)
    np.put_along_axis(x, at, largest * rng.choice([1.0, -1.0], size=largest.shape), axis=-1)
    return fills.float_codes(x, format)


def _normal(rng: Generator, absmax: np.ndarray, block: int) -> np.ndarray:
    return absmax[..., None] * rng.standard_normal((*absmax.shape, block)) / 3


def _sparse(rng: Generator, absmax: np.ndarray, block: int) -> np.ndarray:
    """Return blocks with a number here and there, blocks of zeros of both signs, and constant blocks."""
    x = _normal(rng, absmax, block)
    kind = rng.integers(0, 4, size=(*absmax.shape, 1))
    kept = rng.random(x.shape) < np.where(kind == 0, 0.0, np.where(kind == 1, 2 / block, 0.5))
    x = np.where(kept, x, np.copysign(0.0, rng.standard_normal(x.shape)))
    return np.where(kind == 3, absmax[..., None], x)


def _every_magnitude(rng: Generator, absmax: np.ndarray, block: int) -> np.ndarray:
    """Return blocks around every power of two of float32, subnormal ones among them."""
    exponent = rng.uniform(-149, 120, size=(*absmax.shape, 1))
    return 2.0**exponent * rng.standard_normal((*absmax.shape, block))


_FILLS = {"normal": _normal, "sparse": _sparse, "every_magnitude": _every_magnitude}


def _shape(draw: Draw, operation: Operation, chosen: dict, sizes: dict) -> tuple[int, int]:
    block = operation.multiples(chosen)["K"]
    k = size(draw, sizes, "K", max(_ROW, block), block)
    return size(draw, sizes, "M", min(33, max(1, _MATRIX // max(1, k)))), k


@draws("quantize_blockwise")
def _quantize(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    shape, block = _shape(draw, operation, chosen, sizes), chosen["block_size"]
    families = {"exact": ("boundaries",), "special": ("every_magnitude",)}
    family = one_of(draw, families.get(regime, ("boundaries", "normal", "sparse")))
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    place = shape[0], shape[1] // block
    absmax = fills.powers_of_two(rng, place) if regime == "exact" else fills.scales(rng, place)
    if family == "boundaries":
        x = blocks_at(rng, absmax, block, CODEBOOKS[chosen["codebook"]], chosen["input_format"])
    else:
        x = fills.float_codes(_FILLS[family](rng, absmax, block), chosen["input_format"])
    return Case(operation, chosen, {"x": x.reshape(shape)}, {"fill": family, "seed": seed})


def _codes(rng: Generator, shape: tuple[int, ...], count: int, family: str) -> np.ndarray:
    """Return codes below `count`."""
    fmt = IntegerFormat("codes", max(1, (count - 1).bit_length()), False, np.dtype(np.uint8))
    return np.minimum(fills.codes(rng, shape, fmt, family), count - 1)


@draws("dequantize_blockwise")
def _dequantize(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    shape, block = _shape(draw, operation, chosen, sizes), chosen["block_size"]
    family, seed = one_of(draw, fills.CODES), draw(SEEDS)
    rng = np.random.default_rng(seed)
    place = shape[0], shape[1] // block
    absmax = {"exact": fills.powers_of_two, "special": _any_absmax}.get(regime, fills.scales)(rng, place)
    arrays = {
        "codes": _codes(rng, shape, CODEBOOKS[chosen["codebook"]].size, family),
        "absmax": absmax.astype(np.float32),
    }
    return Case(operation, chosen, arrays, {"fill": family, "seed": seed})


def _any_absmax(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.where(rng.random(shape) < 0.2, 0.0, 2.0 ** rng.uniform(-149, 127, shape))


def _length(draw: Draw, block: int, sizes: dict) -> int:
    """Return the number of absmax: several nested blocks, the last of any length."""
    return sizes["N"] if "N" in sizes else size(draw, sizes, "N", 257) + block * draw(st.integers(0, 2))


@draws("double_quantize")
def _double_quantize(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    block = chosen["block_size"]
    n = _length(draw, block, sizes)
    families = {"exact": ("boundaries", "grid"), "special": ("tiny",)}.get(regime, ("boundaries", "normal", "constant"))
    family, seed = one_of(draw, families), draw(SEEDS)
    rng = np.random.default_rng(seed)
    offset = np.float32(0)
    if family == "boundaries":  # without an offset, so that the quotients are where they should be
        place = (-(-n // block),)
        nested = fills.powers_of_two(rng, place) if regime == "exact" else fills.scales(rng, place)
        absmax = blocks_at(rng, nested, block, CODEBOOKS[NESTED], "float32").reshape(-1)[:n]
    elif family == "grid":  # every difference is exact
        offset, absmax = np.float32(2), 2 + rng.integers(-4096, 4096, n, endpoint=True) / 4096
    else:
        absmax = {"normal": 2.6, "constant": 2.6, "tiny": 2.0**-140}[family] * np.exp(0.2 * rng.standard_normal(n))
        absmax = np.full(n, absmax[0] if n else 0.0) if family == "constant" else absmax
        offset = np.float32(absmax.astype(np.float32).mean() if n else 0.0)
    arrays = {"absmax": absmax.astype(np.float32), "offset": np.asarray(offset)}
    return Case(operation, chosen, arrays, {"fill": family, "seed": seed})


@draws("double_dequantize")
def _double_dequantize(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    n = _length(draw, chosen["block_size"], sizes)
    family, seed = one_of(draw, fills.CODES), draw(SEEDS)
    rng = np.random.default_rng(seed)
    place = (-(-n // chosen["block_size"]),)
    nested = fills.powers_of_two(rng, place) if regime == "exact" else fills.scales(rng, place) * 20
    arrays = {
        "codes": fills.codes(rng, (n,), integer_format("uint8"), family),
        "nested_absmax": nested.astype(np.float32),
        "offset": np.asarray(np.float32(rng.uniform(0, 4))),
    }
    return Case(operation, chosen, arrays, {"fill": family, "seed": seed})


#: Values that a codebook can have, and what makes them.
_KINDS = ("integers", "normal", "equal", "named")


def codebook(rng: Generator, count: int, kind: str) -> np.ndarray:
    """Return a codebook in random order, float32: integers, normal numbers, few distinct values, or a known one."""
    if kind == "named":
        known = CODEBOOKS[rng.choice(list(CODEBOOKS))]
        values = np.resize(known, count)  # repeated where it is too short
    elif kind == "normal":
        values = rng.standard_normal(count)
    else:
        values = rng.integers(-2, 3, count) if kind == "equal" else rng.permutation(np.arange(count) - count // 2)
        values = np.where((values == 0) & (rng.random(count) < 0.5), -0.0, values) / 8
    return rng.permutation(values).astype(np.float32)


@draws("assign_codebook")
def _assign(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    n, count = size(draw, sizes, "N", 257), min(256, size(draw, sizes, "C", 256))
    kind = one_of(draw, ("integers", "equal") if regime == "exact" else _KINDS)
    family = one_of(draw, {"exact": ("points",), "special": ("specials",)}.get(regime, ("points", "normal")))
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    values = codebook(rng, count, kind)
    if family == "points" and count:
        step = rng.integers(-1, 1, n, endpoint=True) * (regime != "exact")
        x = fills.neighbours(rng.choice(points(values), n), float_format("float32"), step)
    else:
        x = rng.standard_normal(n) * (np.abs(values).max(initial=0.0) + 0.1)
        if family == "specials":
            x = np.where(rng.random(n) < 0.5, rng.choice(fills.SPECIALS, n), x)
    arrays = {"x": x.astype(np.float32), "codebook": values}
    return Case(operation, chosen, arrays, {"fill": family, "codebook": kind, "seed": seed})


def grid_samples(rng: Generator, count: int, largest: int, step: float) -> np.ndarray:
    """Return normal multiples of a step, of at most so many steps: differences of two are exact in float32."""
    return np.clip(np.rint(rng.standard_normal(count) * largest / 4), -largest, largest).astype(np.float32) * step


@draws("update_codebook")
def _update(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    count = min(256, size(draw, sizes, "C", 65))
    n = size(draw, sizes, "N", 257) if count else 0  # without a codebook there is no code
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    largest, step = (64, 2.0**-3) if regime == "exact" else (1 << 22, 2.0**-12)
    taken = rng.permutation(count)[: max(1, rng.integers(1, count, endpoint=True))] if count else np.zeros(0, int)
    arrays: dict[str, Any] = {
        "x": grid_samples(rng, n, largest, step),
        "codes": (rng.choice(taken, n) if n else np.zeros(0)).astype(np.uint8),
        "codebook": grid_samples(rng, count, largest, step),
    }
    return Case(operation, chosen, arrays, {"clusters": int(taken.size), "seed": seed})
