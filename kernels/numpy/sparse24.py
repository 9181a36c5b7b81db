"""2:4 sparse matrices in plain NumPy."""

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.numpy import small_floats
from lowbit_cts.kernels.numpy.numbers import float32_of

_FORMATS = ("float16", "bfloat16", "int8", "float8_e4m3fn", "float8_e5m2")
#: The two indices of a group by which of its elements are numbers, element i being bit i; 0 where they are more.
_PAIRS = {
    0b0011: (0, 1), 0b0101: (0, 2), 0b1001: (0, 3), 0b0110: (1, 2), 0b1010: (1, 3), 0b1100: (2, 3),
    0b0001: (0, 2), 0b0010: (1, 2), 0b0100: (2, 3), 0b1000: (2, 3), 0b0000: (2, 3),
}  # fmt: skip
_TABLE = np.zeros((16, 2), np.intp)
_TABLE[list(_PAIRS)] = list(_PAIRS.values())


def _numbers(x: np.ndarray, format: str) -> np.ndarray:
    """Return which elements are not zero."""
    if format.startswith("float8"):
        return small_floats.decode(x, format) != 0
    return (float32_of(x, format) if format == "bfloat16" else x) != 0


def _blocks(rows: int, itemsize: int) -> tuple[int, int, int]:
    """Return how CUTLASS divides rows: blocks, of so many, of eight."""
    block = 32 if itemsize == 2 else 16
    if rows % block:
        raise ValueError(f"metadata: have {rows} rows, must be a multiple of {block}")
    return rows // block, block // 8, 8


def _to_cutlass(words: np.ndarray) -> np.ndarray:
    """Return metadata in CUTLASS's order: rows 8 apart side by side, 2 x 2 transposed, pairs of columns together."""
    rows, columns = words.shape
    moved = words.reshape(*_blocks(rows, words.itemsize), columns).swapaxes(1, 2).reshape(rows // 2, 2, columns // 2, 2)
    return np.ascontiguousarray(moved.transpose(2, 0, 3, 1)).reshape(rows, columns)


def _from_cutlass(words: np.ndarray) -> np.ndarray:
    rows, columns = words.shape
    blocks, parts, eight = _blocks(rows, words.itemsize)
    moved = np.ascontiguousarray(words).reshape(columns // 2, rows // 2, 2, 2).transpose(1, 3, 0, 2)
    return moved.reshape(blocks, eight, parts, columns).swapaxes(1, 2).reshape(rows, columns)


def compress(x, *, format, metadata_order):
    """Return the values and the metadata of a 2:4 matrix."""
    groups = x.reshape(len(x), x.shape[1] // 4, 4)
    patterns = np.packbits(_numbers(groups, format), axis=2, bitorder="little")[:, :, 0]
    pairs = _TABLE[patterns]
    if not np.all(pairs[:, :, 1]):
        raise ValueError("x: more than two numbers in four neighbours")
    values = np.take_along_axis(groups, pairs, axis=2).reshape(len(x), x.shape[1] // 2)
    fields = (pairs[:, :, 0] | pairs[:, :, 1] << 2).astype(np.uint8)
    metadata = (fields[:, ::2] | fields[:, 1::2] << 4).view(np.int16 if x.itemsize == 2 else np.int32)
    return values, _to_cutlass(metadata) if metadata_order == "cutlass" else metadata


def decompress(values, metadata, *, metadata_order):
    """Return the dense matrix."""
    rows, half = values.shape
    if metadata.shape != (rows, half // (4 * metadata.itemsize)):
        raise ValueError(f"metadata: have shape {metadata.shape}, which does not belong to values of {values.shape}")
    metadata = _from_cutlass(metadata) if metadata_order == "cutlass" else np.ascontiguousarray(metadata)
    fields = np.repeat(metadata.view(np.uint8), 2, axis=1)
    fields[:, 1::2] >>= 4
    pairs = np.stack([fields & 3, fields >> 2 & 3], axis=2).astype(np.intp)
    dense = np.zeros((rows, half // 2, 4), values.dtype)
    np.put_along_axis(dense, pairs, values.reshape(rows, half // 2, 2), axis=2)
    return dense.reshape(rows, 2 * half)


def register(backend: Backend) -> None:
    """Register the kernels."""
    everything = {"format": _FORMATS, "metadata_order": ("row", "cutlass")}
    backend.implements("compress_sparse24", supports=everything)(compress)
    backend.implements("decompress_sparse24", supports=everything)(decompress)
