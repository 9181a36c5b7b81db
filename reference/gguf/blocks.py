"""GGUF blocks: quantized as ggml's reference quantizers do to the byte, and dequantized exactly.

Dequantization leaves nothing open: a float16 scale, the level of its group and that of the element have at most 24 bits
together, so that every product is exact in float32, in any order; only adding a min rounds, once, fused or not.

Quantization is what ggml's C says, an operation at a time in float32. That matters to the searches of the K-quants and
IQ4: where a compiler fuses multiplications and additions, as those for Arm do unasked, other scales come out that are
as good. With gcc 12 -O3 and FMA that was, of Gaussian blocks, 24 % of Q2_K, 30 % of Q5_K, 6 % of Q4_K, 0.7 % of Q6_K,
0.3 % of IQ4_XS, 0.2 % of IQ4_NL and none of Q3_K.

References
----------
.. [1] ggml-org/ggml, `src/ggml-quants.c`, version 0.25.3.
.. [2] https://github.com/ggml-org/llama.cpp/issues/2982
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from lowbit_cts.reference.choices import Contraction, ExponentFloor, ScaleSearch, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, determined, within
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.gguf import codebooks, k_quants, packing, plain, ternary
from lowbit_cts.reference.gguf.layout import block_format
from lowbit_cts.reference.gguf.packing import Parts

# Elements quantized at a time, so that the searches stay in the processor's caches.
_CHUNK = 1 << 16


def unpack(blocks: np.ndarray, format: str) -> Parts:
    """Return the parts of blocks: codes, scales, mins as they are stored (see `lowbit_cts.reference.gguf.packing`).

    Parameters
    ----------
    blocks : ndarray of uint8, shape (..., n * bytes of a block)
    format : str
        A key of `BLOCK_FORMATS`.

    Returns
    -------
    dict of ndarray, the first axis being all blocks in their order.

    Raises
    ------
    ValueError
        An unknown format, other types, a last axis that does not hold whole blocks.
    """
    fmt = block_format(format)
    blocks = np.asarray(blocks)
    if blocks.dtype != np.uint8 or blocks.ndim == 0 or blocks.shape[-1] % fmt.bytes:
        raise ValueError(
            f"blocks: must be uint8 with a last axis of whole blocks of {fmt.bytes} bytes; "
            f"got {blocks.dtype} of shape {blocks.shape}"
        )
    return packing.unpack(blocks.reshape(-1, fmt.bytes), fmt)


def pack(parts: Parts, format: str) -> np.ndarray:
    """Return the blocks, uint8 (n, bytes of a block), that `unpack` takes apart.

    Raises
    ------
    ValueError
        An unknown format, a missing part or one too many, another type or shape, a code that the format does not have.
    """
    fmt = block_format(format)
    expected = packing.parts_of(fmt)
    if parts.keys() != expected.keys():
        raise ValueError(f"parts: must be {', '.join(expected)}; got {', '.join(parts)}")
    n = len(parts["codes"])
    for name, (shape, largest) in expected.items():
        part = parts[name]
        if part.dtype != (np.float16 if largest is None else np.uint8) or part.shape != (n, *shape):
            raise ValueError(f"{name}: must be {'float16' if largest is None else 'uint8'} of shape {(n, *shape)}")
        if largest is not None and np.any(part > largest):
            raise ValueError(f"{name}: must be codes up to {largest}; got {part.max()}")
    return packing.pack(parts, fmt)


def scale_and_offset(parts: Parts, format: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Return scale and offset of each group, float32 (n, groups); None where the format has no offset.

    An element is scale * level + offset. Both are exact, so Inf and NaN only as float16 has them, and Inf * 0.
    """
    fmt = block_format(format)
    with np.errstate(invalid="ignore"):
        wide = {name: parts[name].astype(np.float32)[:, None] for name in ("d", "m", "dmin") if name in parts}
        scale = wide.get("d", np.ones((1, 1), np.float32))
        if fmt.scale_levels is not None:
            scale = scale * fmt.scale_levels[parts["scales"]].astype(np.float32)
        offset = -wide["dmin"] * parts["mins"].astype(np.float32) if "mins" in parts else wide.get("m")
    return scale, offset


def dequantize(blocks: np.ndarray, format: str) -> np.ndarray:
    """Return the elements of blocks.

    Parameters
    ----------
    blocks : ndarray of uint8, shape (..., n * bytes of a block)
    format : str
        A key of `BLOCK_FORMATS`.

    Returns
    -------
    ndarray of float32, shape (..., n * elements of a block). Where the float16 of a block is Inf or NaN, what float32
    makes of it; the sign and payload of a NaN mean nothing.

    Raises
    ------
    ValueError
        As `unpack`.
    """
    parts = unpack(blocks, format)
    fmt = block_format(format)
    scale, offset = scale_and_offset(parts, format)
    elements = fmt.levels[parts["codes"]].astype(np.float32).reshape(-1, fmt.groups, fmt.group)
    with np.errstate(invalid="ignore", over="ignore"):
        elements *= scale[..., None]
        if offset is not None:
            elements += offset[..., None]
    shape = np.shape(blocks)
    return elements.reshape(*shape[:-1], shape[-1] // fmt.bytes * fmt.elements)


def dequantize_enclosure(blocks: np.ndarray, format: str, output_format: str = "float32") -> Enclosure:
    """Return the admissible elements of blocks in `output_format`.

    In float32 there is one; in a narrower format two neighbours where the exact element and its float32 round
    differently. Parameters and errors as `dequantize`.
    """
    output = float_format(output_format)
    elements = dequantize(blocks, format).astype(np.float64)
    if output.unit_roundoff <= 2.0**-24:
        return determined(elements)
    fmt = block_format(format)
    parts = unpack(blocks, format)
    scale, offset = (None if part is None else part[..., None] for part in scale_and_offset(parts, format))
    levels = fmt.levels[parts["codes"]].reshape(-1, fmt.groups, fmt.group)
    with np.errstate(invalid="ignore"):
        # In float64 the sum is exact, too: scale * level and offset are multiples of 2**-24 less than 2**28.
        exact = np.asarray(scale, np.float64) * levels + (0.0 if offset is None else offset)
    once, twice = (within(value, np.zeros(()), output) for value in (exact.reshape(elements.shape), elements))
    return Enclosure(twice.exact, np.minimum(once.lo, twice.lo), np.maximum(once.hi, twice.hi))


# For each format the function from blocks of float32 to parts, and the choices that matter to it.
_QUANTIZERS: dict[str, tuple[Callable[..., Parts], tuple[str, ...]]] = {
    "Q4_0": (partial(plain.quantize_symmetric, bits=4), ("contraction",)),
    "Q4_1": (partial(plain.quantize_from_min, bits=4), ("contraction",)),
    "Q5_0": (partial(plain.quantize_symmetric, bits=5), ("contraction",)),
    "Q5_1": (partial(plain.quantize_from_min, bits=5), ("contraction",)),
    "Q8_0": (plain.quantize_q8_0, ()),
    "Q2_K": (k_quants.quantize_q2_k, ()),
    "Q3_K": (k_quants.quantize_q3_k, ()),
    "Q4_K": (k_quants.quantize_q4_k, ()),
    "Q5_K": (k_quants.quantize_q5_k, ()),
    "Q6_K": (k_quants.quantize_q6_k, ()),
    "IQ4_NL": (codebooks.quantize_iq4_nl, ("scale_search",)),
    "IQ4_XS": (codebooks.quantize_iq4_xs, ()),
    "MXFP4": (codebooks.quantize_mxfp4, ("exponent_floor",)),
    "NVFP4": (codebooks.quantize_nvfp4, ()),
    "TQ1_0": (ternary.quantize_ternary, ()),
    "TQ2_0": (ternary.quantize_ternary, ()),
}

# The formats whose scales are searched, by sums of products of which a compiler may fuse any.
_SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


@takes_choices
def quantize(
    x: np.ndarray,
    format: str,
    *,
    contraction: Contraction = Contraction.SEPARATE,
    scale_search: ScaleSearch = ScaleSearch.GRID,
    exponent_floor: ExponentFloor = ExponentFloor.FLOAT32_LOG2,
) -> np.ndarray:
    """Return the blocks of x, as ggml's reference quantizer of the format without an importance matrix makes them.

    Parameters
    ----------
    x : ndarray of float32, shape (..., K)
        Finite; K a multiple of the block's elements.
    format : str
        A key of `BLOCK_FORMATS`.
    contraction : {separate, fused}
        Matters to Q4_0, Q4_1, Q5_0 and Q5_1; fused, the product x * (1 / d) and the half that is added round once. For
        the K-quants and IQ4 only "separate" is determined.
    scale_search : ScaleSearch
        Matters to IQ4_NL; of ggml's two quantizers "grid" is the one that files are made with. "any" determines nothing
        (see `lowbit_cts.reference.gguf.admissible`).
    exponent_floor : ExponentFloor
        Matters to MXFP4; "exact" is the rule of MX v1.0 where ggml deviates.

    Returns
    -------
    ndarray of uint8, shape (..., K / elements * bytes of a block).

    Raises
    ------
    ValueError
        A NaN or infinity in x (in ggml undefined: an assertion, or any bytes), another type than float32, a last
        axis that is not whole blocks, an unknown format, a choice that does not determine the result.

    Notes
    -----
    Finite x may still leave float32 or float16 on the way. A d beyond float16 is stored as Inf. Where C leaves a cast
    of an infinity or NaN undefined, the integer is 0 here and on x86: if 1 / d is infinite (|d| <= 2**-128, which is 0
    in float16, so that the block decodes to zeros whatever the codes), or max - min is (Q4_1, Q5_1). The searches of
    the K-quants and IQ4 go on with what `nearest_int` makes of it, where a ggml with assertions stops [2]_.
    """
    fmt = block_format(format)
    x = np.asarray(x)
    if x.dtype != np.float32 or x.ndim == 0 or x.shape[-1] % fmt.elements:
        raise ValueError(
            f"x: must be float32 with a last axis of whole blocks of {fmt.elements} elements; "
            f"got {x.dtype} of shape {x.shape}"
        )
    if not np.all(np.isfinite(x)):
        raise ValueError("x: must be finite; what ggml makes of a NaN or an infinity is undefined")
    if contraction is Contraction.EITHER or (contraction is Contraction.FUSED and format in _SEARCHED):
        admissible = "separate" if format in _SEARCHED else "separate, fused"
        raise ValueError(f"contraction: {contraction} does not determine {format} blocks; admissible: {admissible}")
    if scale_search is ScaleSearch.ANY:
        raise ValueError(f"scale_search: any does not determine {format} blocks; admissible: one_shot, grid")
    quantizer, names = _QUANTIZERS[format]
    choices = {"contraction": contraction, "scale_search": scale_search, "exponent_floor": exponent_floor}
    chosen = {name: choices[name] for name in names}
    rows = x.reshape(-1, fmt.elements)
    blocks = np.empty((len(rows), fmt.bytes), np.uint8)
    step = _CHUNK // fmt.elements
    with np.errstate(all="ignore"):
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            blocks[first : first + step] = packing.pack(quantizer(part, **chosen), fmt)
    return blocks.reshape(*x.shape[:-1], x.shape[-1] // fmt.elements * fmt.bytes)
