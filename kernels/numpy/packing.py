"""Packed codes, and scales in the orders of their kernels, in plain NumPy: streams of bits, and transposed axes."""

from collections.abc import Callable

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.reference.packing.packings import PACKINGS

#: Which code of eight stands in which nibble of a word.
_INTERLEAVED = [0, 2, 4, 6, 1, 3, 5, 7]

Fields = Callable[[np.ndarray, int], np.ndarray]


def _parts(block: int, parts: int, *, high: bool = False) -> tuple[Fields, Fields]:
    """Return the order of fields, and its inverse, in which a byte has one code of each part of a block."""

    def forward(codes: np.ndarray, bits: int) -> np.ndarray:
        split = codes.reshape(len(codes), -1, parts, block // parts)
        return (split[:, :, ::-1] if high else split).swapaxes(2, 3).reshape(codes.shape)

    def back(fields: np.ndarray, bits: int) -> np.ndarray:
        split = fields.reshape(len(fields), -1, block // parts, parts).swapaxes(2, 3)
        return (split[:, :, ::-1] if high else split).reshape(fields.shape)

    return forward, back


def _reversed_in_bytes(fields: np.ndarray, bits: int) -> np.ndarray:
    filled = np.pad(fields, ((0, 0), (0, -fields.shape[1] % (8 // bits))))
    return filled.reshape(len(fields), -1, 8 // bits)[:, :, ::-1].reshape(filled.shape)


def _interleaved(codes: np.ndarray, bits: int) -> np.ndarray:
    return codes.reshape(len(codes), -1, 8)[:, :, _INTERLEAVED].reshape(codes.shape)


def _deinterleaved(fields: np.ndarray, bits: int) -> np.ndarray:
    return fields.reshape(len(fields), -1, 8)[:, :, np.argsort(_INTERLEAVED)].reshape(fields.shape)


#: The axes of Marlin's tiles, from (row tile, row half, row pair, row, run, tile, column half, column): rows of codes
#: to the lanes' words (row tile, run, column, row pair, tile, column half, row half, row).
_TO_LANES = (0, 4, 7, 2, 5, 6, 1, 3)


def _to_marlin(codes: np.ndarray, bits: int) -> np.ndarray:
    rows, columns = codes.shape
    if rows % 16 or columns % 64:
        raise ValueError(f"codes: have shape {codes.shape}, must be multiples of (16, 64)")
    tiles = codes.reshape(rows // 16, 2, 4, 2, columns // 64, 4, 2, 8).transpose(_TO_LANES)
    return _interleaved(tiles.reshape(rows // 16, 16 * columns), bits)


def _from_marlin(fields: np.ndarray, bits: int) -> np.ndarray:
    rows, columns = 16 * len(fields), fields.shape[1] // 16
    tiles = _deinterleaved(fields, bits).reshape(rows // 16, columns // 64, 8, 4, 4, 2, 2, 2)
    return tiles.transpose(np.argsort(_TO_LANES)).reshape(rows, columns)


def _as_they_are(codes: np.ndarray, bits: int) -> np.ndarray:
    return codes


#: Codes in the order of their fields, and back.
_ORDERS: dict[str, tuple[Fields, Fields]] = {
    "high_first": (_reversed_in_bytes, _reversed_in_bytes),
    "ggml_q4_0": _parts(32, 2),
    "ggml_nvfp4": _parts(16, 2),
    "ggml_q4_k": _parts(64, 2),
    "ggml_tq2_0": _parts(128, 4),
    "bitnet_i2_s": _parts(128, 4, high=True),
    "awq": (_interleaved, _deinterleaved),
    "marlin": (_to_marlin, _from_marlin),
}


def _added(packing: str, bits: int, signed: bool) -> int:
    return {"compressed_tensors": signed << (bits - 1), "gptq_zeros_v1": -1}.get(packing, 0)


def pack(codes, *, packing, bits, signed):
    """Return codes packed into words."""
    word = PACKINGS[packing].carrier
    fields = (codes.astype(np.int16) + _added(packing, bits, signed)).astype(np.uint8) & ((1 << bits) - 1)
    fields = fields.T if packing == "gptq" else fields
    fields = _ORDERS.get(packing, (_as_they_are,))[0](fields, bits)
    if not PACKINGS[packing].ragged and fields.shape[1] * bits % (8 * word.itemsize):
        raise ValueError(f"codes: have shape {codes.shape}, which does not fill the words of {packing}")
    bitwise = np.unpackbits(fields[:, :, None], axis=2, count=bits, bitorder="little")
    stream = bitwise.reshape(len(fields), bits * fields.shape[1])
    stream = np.pad(stream, ((0, 0), (0, -stream.shape[1] % (8 * word.itemsize))))
    words = np.packbits(stream, axis=1, bitorder="little").view(word)
    return np.ascontiguousarray(words.T) if packing == "gptq" else words


def unpack(words, *, packing, bits, signed):
    """Return the codes that words hold."""
    words = np.ascontiguousarray(words.T if packing == "gptq" else words)
    count = words.shape[1] * 8 * words.itemsize // bits
    if not PACKINGS[packing].ragged and words.shape[1] * 8 * words.itemsize % bits:
        raise ValueError(f"words: have shape {words.shape}, which codes of {bits} bits do not fill")
    stream = np.unpackbits(words.view(np.uint8), axis=1, count=count * bits, bitorder="little")
    fields = np.packbits(stream.reshape(len(words), count, bits), axis=2, bitorder="little")[:, :, 0]
    codes = _ORDERS.get(packing, (_as_they_are,) * 2)[1](fields, bits)
    codes = codes.T if packing == "gptq" else codes
    codes = (codes.astype(np.int16) - _added(packing, bits, signed)) & ((1 << bits) - 1)
    if not signed:
        return np.ascontiguousarray(codes, np.uint8)
    return np.ascontiguousarray((codes ^ (1 << (bits - 1))) - (1 << (bits - 1)), np.int8)


def swizzle(scales):
    """Return scales in tiles of 128 x 4, as cuBLAS reads them."""
    rows, columns = scales.shape
    padded = np.zeros((-(-rows // 128) * 128, -(-columns // 4) * 4), scales.dtype)
    padded[:rows, :columns] = scales
    return padded.reshape(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4).transpose(0, 3, 2, 1, 4).ravel()


def permute_marlin(scales, *, granularity):
    """Return a Marlin weight's scales in the order in which its kernel loads them."""
    if granularity == "group":
        return scales.reshape(len(scales), -1, 8, 8).swapaxes(2, 3).reshape(scales.shape)
    return scales.reshape(-1, 4, 4, 2).swapaxes(1, 2).reshape(scales.shape)


def register(backend: Backend) -> None:
    """Register the kernels."""
    unsigned = {"packing": tuple(PACKINGS), "bits": tuple(range(1, 9))}
    everything = {**unsigned, "signed": (False, True)}
    backend.implements("pack_codes", supports=everything)(pack)
    backend.implements("unpack_codes", supports=everything)(unpack)
    backend.implements("swizzle_scales", supports={"format": ("float8_e8m0fnu", "float8_e4m3fn")})(swizzle)
    backend.implements("permute_scales_marlin", supports={"format": ("float16", "bfloat16")})(permute_marlin)
