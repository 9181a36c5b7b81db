"""Packings of low-bit codes into bytes and words: a table of data, one `pack` and one `unpack` for all of it.

Every packing here is the same three steps: the codes of a block are put in the packing's *order*, become unsigned
*fields*, and the fields follow one another in the bits of the words, lowest first. What differs is the block and its
order, the word, the axis that shrinks, and how a signed code or a zero point becomes a field.

==================  ======  ============  =============================================================
packing             word    bits          used by
==================  ======  ============  =============================================================
low_first           byte    1 to 8        ONNX, torchao, TransformerEngine; 6 bits: four codes in 3 bytes
high_first          byte    1, 2, 4       bitsandbytes
ggml_q4_0           byte    4             ggml Q4_0, Q4_1, IQ4_NL, MXFP4: code j low, code j + 16 high
ggml_nvfp4          byte    4             ggml NVFP4: code j low, code j + 8 high
ggml_q4_k           byte    4             ggml Q4_K: code j low, code j + 32 high
ggml_tq2_0          byte    2             ggml TQ2_0, Q2_K: codes j, j + 32, j + 64, j + 96 from low to high
bitnet_i2_s         byte    2             BitNet I2_S on x86, rows alone: the same four from high to low
gptq                int32   2, 3, 4, 8    GPTQ weights (K, N), along K
gptq_zeros_v1       int32   2, 3, 4, 8    GPTQ zero points (G, N), along N, less one
gptq_zeros_v2       int32   2, 3, 4, 8    GPTQ zero points (G, N), along N
awq                 int32   4             AWQ "GEMM" weights (K, N) and zero points (G, N), along N
marlin              int32   4             Marlin weights (K, N), in tiles of 16 x 16
compressed_tensors  int32   1 to 8        compressed-tensors "pack-quantized" weights (N, K), along K
==================  ======  ============  =============================================================

Float4 and float6 codes are packed like integers of that many bits; unpacked they come one a byte, in its low bits.

References
----------
.. [1] ONNX, onnx.proto3 (TensorProto.raw_data) and numpy_helper: 2-, 4- and 6-bit types, first element lowest.
.. [2] ggml, src/ggml-quants.c; BitNet, src/ggml-bitnet-mad.cpp: quantize_i2_s.
.. [3] AutoGPTQ, nn_modules/qlinear/qlinear_cuda.py: QuantLinear.pack (3 bits: 10 codes, 1 straddling, 10, 1, 10).
.. [4] AutoAWQ, awq/utils/packing_utils.py: AWQ_ORDER.
.. [5] E. Frantar et al., "MARLIN", arXiv:2408.11743; IST-DASLab/marlin, marlin/__init__.py: _get_perms.
.. [6] compressed-tensors, compressors/pack_quantized/helpers.py: pack_to_int32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import lcm

import numpy as np

from lowbit_cts.reference.packing.streams import pack_stream, unpack_stream, word_count

#: Which code of eight stands in which nibble of a word: a register's pairs of 16-bit lanes, unpacked by masks
#: 0x000f000f shifted by 0, 4, 8 and 12, then hold neighbours.
_INTERLEAVED = np.array([0, 2, 4, 6, 1, 3, 5, 7])


class SignedCodes(StrEnum):
    """How a signed code becomes a field."""

    REFUSED = "refused"  # the packing holds unsigned codes
    TWOS_COMPLEMENT = "twos_complement"
    OFFSET = "offset"  # plus 2**(bits - 1)


@dataclass(frozen=True)
class Packing:
    """How codes stand in words.

    Attributes
    ----------
    carrier : dtype
        The word.
    bits : tuple of int
        The admissible widths of a code.
    order : callable
        Of the bits: ``order[i]`` is the code of a block that stands at place i of its words. Its length is the block's.
    axis : int
        The axis that shrinks: -1, or -2 (rows).
    ragged : bool
        Whether the codes may end inside a word or block; the rest is 0.
    signed : SignedCodes
    addend : int
        Added to an unsigned code, modulo ``2**bits``.
    tile : int
        Side of the square tiles that are laid out one after another, along the columns, before the blocks are taken.
    """

    carrier: np.dtype
    bits: tuple[int, ...]
    order: Callable[[int], np.ndarray]
    axis: int = -1
    ragged: bool = False
    signed: SignedCodes = SignedCodes.REFUSED
    addend: int = 0
    tile: int = 1


def _in_sequence(bits: int) -> np.ndarray:
    return np.arange(1)


def _split(block: int, parts: int) -> np.ndarray:
    """Return the order in which a byte holds one code of each of `parts` parts of a block, the first part lowest."""
    return np.arange(block).reshape(parts, -1).T.ravel()


def _marlin(bits: int) -> np.ndarray:
    """Return the order of the 1024 codes of four tiles that lie side by side, rows of a tile first.

    A warp's lane multiplies, by ``mma.m16n8k16``, rows 2t, 2t + 1, 2t + 8 and 2t + 9 of column g of each half of a
    tile, where g, t = divmod(lane, 4) (PTX ISA, "Matrix fragments for mma.m16n8k16", B). These eight codes are a word,
    and the words of four tiles one load of 128 bits.
    """
    lane, tile, half, row = np.meshgrid(*(np.arange(n) for n in (32, 4, 2, 4)), indexing="ij")
    k = 2 * (lane % 4) + row % 2 + 8 * (row // 2)
    n = lane // 4 + 8 * half
    words = (256 * tile + 16 * k + n).reshape(-1, 8)
    return words[:, _INTERLEAVED].ravel()


_BYTE, _WORD = np.dtype(np.uint8), np.dtype(np.int32)
_ANY = tuple(range(1, 9))
_GPTQ = (2, 3, 4, 8)

PACKINGS: dict[str, Packing] = {
    "low_first": Packing(_BYTE, _ANY, _in_sequence, ragged=True, signed=SignedCodes.TWOS_COMPLEMENT),
    "high_first": Packing(
        _BYTE, (1, 2, 4), lambda bits: np.arange(8 // bits)[::-1], ragged=True, signed=SignedCodes.TWOS_COMPLEMENT
    ),
    "ggml_q4_0": Packing(_BYTE, (4,), lambda _: _split(32, 2)),
    "ggml_nvfp4": Packing(_BYTE, (4,), lambda _: _split(16, 2)),
    "ggml_q4_k": Packing(_BYTE, (4,), lambda _: _split(64, 2)),
    "ggml_tq2_0": Packing(_BYTE, (2,), lambda _: _split(128, 4)),
    "bitnet_i2_s": Packing(_BYTE, (2,), lambda _: _split(128, 4).reshape(-1, 4)[:, ::-1].ravel()),
    "gptq": Packing(_WORD, _GPTQ, _in_sequence, axis=-2),
    "gptq_zeros_v1": Packing(_WORD, _GPTQ, _in_sequence, addend=-1),
    "gptq_zeros_v2": Packing(_WORD, _GPTQ, _in_sequence),
    "awq": Packing(_WORD, (4,), lambda _: _INTERLEAVED),
    "marlin": Packing(_WORD, (4,), _marlin, tile=16),
    "compressed_tensors": Packing(_WORD, _ANY, _in_sequence, ragged=True, signed=SignedCodes.OFFSET),
}


def _packing(name: str, bits: int, signed: bool) -> Packing:
    if name not in PACKINGS:
        raise ValueError(f"packing: {name!r} is unknown; admissible: {', '.join(PACKINGS)}")
    packing = PACKINGS[name]
    if bits not in packing.bits:
        raise ValueError(f"bits: {bits!r} is not a width of {name}; admissible: {', '.join(map(str, packing.bits))}")
    if signed and packing.signed is SignedCodes.REFUSED:
        holders = ", ".join(n for n, p in PACKINGS.items() if p.signed is not SignedCodes.REFUSED)
        raise ValueError(f"signed: {name} holds unsigned codes; signed ones: {holders}")
    return packing


def _check_axes(array: np.ndarray, name: str, axes: int) -> None:
    if array.ndim < axes:
        raise ValueError(f"{name}: has {array.ndim} dimensions, must have at least {axes}")
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name}: has dtype {array.dtype}, must be an integer type")


def _unit(packing: Packing, bits: int) -> int:
    """Return how many codes, tiles laid out one after another, fill blocks and words without a rest."""
    return lcm(len(packing.order(bits)) * bits, 8 * packing.carrier.itemsize) // bits


def whole_blocks(packing: str, bits: int) -> tuple[int, int]:
    """Return the numbers that the rows and the columns of a matrix of codes must be multiples of.

    Parameters
    ----------
    packing : str
        A name of `PACKINGS`.
    bits : int
        One of the packing's.

    Raises
    ------
    ValueError
        An unknown packing, bits that it does not hold.
    """
    layout = _packing(packing, bits, signed=False)
    unit = 1 if layout.ragged else _unit(layout, bits) // layout.tile
    return (unit, 1) if layout.axis == -2 else (layout.tile, unit)


def _addend(packing: Packing, bits: int, signed: bool) -> int:
    return 1 << (bits - 1) if signed and packing.signed is SignedCodes.OFFSET else packing.addend


def _axes(packing: Packing) -> int:
    return 2 if packing.axis == -2 or packing.tile > 1 else 1


def _permuted(fields: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the fields with those of each block along the last axis in that order."""
    if len(order) == 1:
        return fields
    blocks = fields.reshape(*fields.shape[:-1], fields.shape[-1] // len(order), len(order))
    return blocks[..., order].reshape(fields.shape)


def _to_tiles(codes: np.ndarray, side: int) -> np.ndarray:
    """Return (..., K, N) as (..., K / side, N * side), the codes of a tile one after another."""
    *lead, k, n = codes.shape
    tiles = codes.reshape(*lead, k // side, side, n // side, side).swapaxes(-3, -2)
    return tiles.reshape(*lead, k // side, n * side)


def _from_tiles(codes: np.ndarray, side: int) -> np.ndarray:
    *lead, rows, columns = codes.shape
    tiles = codes.reshape(*lead, rows, columns // side**2, side, side).swapaxes(-3, -2)
    return tiles.reshape(*lead, rows * side, columns // side)


def pack(codes: np.ndarray, *, packing: str, bits: int, signed: bool = False) -> np.ndarray:
    """Return codes packed into words.

    Parameters
    ----------
    codes : ndarray of int, shape (..., K, N), or (..., n) for packings along the last axis
        Values in [0, 2**bits), or in [-2**(bits - 1), 2**(bits - 1)) with `signed`.
    packing : str
        A name of `PACKINGS`.
    bits : int
        Bits in a code, one of the packing's.
    signed : bool
        Whether the codes are signed: stored in two's complement, by compressed-tensors plus 2**(bits - 1).

    Returns
    -------
    ndarray of uint8 or int32
        The shape of `codes` with the packing's axis of length n become ``ceil(n * bits / width)``, `width` being 8 or
        32; Marlin's is (..., K / 16, 2 N).

    Raises
    ------
    ValueError
        An unknown packing, bits or signed codes that it does not hold, codes out of range, an axis that does not fill
        whole words and blocks where the packing demands it.

    Notes
    -----
    What fills up a last word is 0 here, as in ONNX and compressed-tensors; bitsandbytes takes the code of 0.0, in NF4
    7. `unpack` with `count` does not look at it.

    A GPTQ zero point of 0 is stored as ``2**bits - 1`` in version 1, which leaves the others of its word alone.
    AutoGPTQ's writer sets all bits above it in the word, and converters that subtract one from every field of a word
    at once borrow from the next; from 1 on all agree.

    The kernel of Marlin demands more than its layout: K a multiple of 128, N of 256.
    """
    layout = _packing(packing, bits, signed)
    codes = np.asarray(codes)
    _check_axes(codes, "codes", _axes(layout))
    low, high = (-(1 << (bits - 1)), 1 << (bits - 1)) if signed else (0, 1 << bits)
    if codes.size and (codes.min() < low or codes.max() >= high):
        raise ValueError(f"codes: must lie in [{low}, {high}); got [{codes.min()}, {codes.max()}]")
    side = layout.tile
    if side > 1 and codes.shape[-2] % side:
        raise ValueError(f"codes: have {codes.shape[-2]} rows, must be a multiple of {side} for {packing}")
    order, unit = layout.order(bits), _unit(layout, bits)
    if not layout.ragged and codes.shape[layout.axis] * side % unit:
        raise ValueError(
            f"codes: axis {layout.axis} has length {codes.shape[layout.axis]}, must be a multiple of {unit // side} "
            f"for {packing} with {bits} bits"
        )
    # Modulo 2**bits; a signed code is its own two's complement there.
    fields = ((codes.astype(np.int16) + _addend(layout, bits, signed)) & ((1 << bits) - 1)).astype(np.uint8)
    if side > 1:
        fields = _to_tiles(fields, side)
    fields = np.moveaxis(fields, layout.axis, -1)
    filling = -fields.shape[-1] % len(order)
    if filling:
        fields = np.pad(fields, [(0, 0)] * (fields.ndim - 1) + [(0, filling)])
    fields = _permuted(fields, order)
    words = pack_stream(fields, bits, layout.carrier)
    return np.ascontiguousarray(np.moveaxis(words, -1, layout.axis))


def unpack(words: np.ndarray, *, packing: str, bits: int, count: int | None = None, signed: bool = False) -> np.ndarray:
    """Return the codes that words hold, the inverse of `pack`.

    Parameters
    ----------
    words : ndarray of uint8 or int32 (uint32 will do), as `pack` returns it
    packing, bits, signed : as `pack`
    count : int, optional
        How many codes the packed axis had, for packings that fill up a last word; otherwise all that the words hold.

    Returns
    -------
    ndarray of uint8, or of int8 with `signed`, the shape of the codes.

    Raises
    ------
    ValueError
        An unknown packing, bits or signed codes that it does not hold, words of another type, a number of words that
        `count` codes, or whole blocks, do not fill.
    """
    layout = _packing(packing, bits, signed)
    words = np.asarray(words)
    _check_axes(words, "words", _axes(layout))
    width = 8 * layout.carrier.itemsize
    if words.dtype.itemsize != layout.carrier.itemsize:
        raise ValueError(f"words: have dtype {words.dtype}, must be {layout.carrier} for {packing}")
    words = np.moveaxis(words, layout.axis, -1)
    order = layout.order(bits)
    held = words.shape[-1] * width // bits
    wanted = held if count is None else count * layout.tile
    if word_count(wanted, bits, width) != words.shape[-1] or (not layout.ragged and wanted % _unit(layout, bits)):
        raise ValueError(
            f"words: axis {layout.axis} has length {words.shape[-1]}, which whole blocks"
            f"{'' if count is None else f' of {count} codes'} do not fill in {packing} with {bits} bits"
        )
    fields = unpack_stream(words, bits, -(-wanted // len(order)) * len(order))
    fields = _permuted(fields, np.argsort(order))
    fields = np.moveaxis(fields[..., :wanted], -1, layout.axis)
    if layout.tile > 1:
        fields = _from_tiles(fields, layout.tile)
    codes = (fields.astype(np.int16) - _addend(layout, bits, signed)) & ((1 << bits) - 1)
    if not signed:
        return np.ascontiguousarray(codes, np.uint8)
    return np.ascontiguousarray(np.where(codes >> (bits - 1), codes - (1 << bits), codes), np.int8)
