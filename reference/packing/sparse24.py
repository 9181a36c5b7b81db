"""2:4 sparsity: of every four neighbours in a row at most two are not zero, and only two are stored.

Metadata say where: two ascending indices of two bits a group, the first in the low bits. The four bits of a group
follow one another in words, 16-bit words beside elements of 16 bits and 32-bit words beside elements of 8, so that a
word covers 32 bytes of a dense row either way.

Where a group holds fewer than two numbers several pairs of indices are right, and libraries differ; `compress` writes
those of PyTorch, `compress_enclosure` admits others, `decompress` reads any. Float32 (1:2) and 4-bit elements (pairs of
4:8) are other formats.

References
----------
.. [1] PTX ISA, "Sparse matrix storage" of mma.sp: indices in ascending order; 0b0000, 0b0101, 0b1010 and 0b1111 are
   undefined.
.. [2] A. Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378, fig. 2.
.. [3] CUTLASS, tools/util/include/cutlass/util/host_reorder.h: reorder_meta; layout::ColumnMajorInterleaved<2>.
.. [4] PyTorch, torch/sparse/_semi_structured_conversions.py.
"""

import numpy as np

from lowbit_cts.reference.choices import IndexCompletion, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, determined
from lowbit_cts.reference.formats import FORMATS, decode
from lowbit_cts.reference.packing.streams import pack_stream, unpack_stream

#: Metadata of a group, ``first | second << 2``, by which of its elements are not zero, element i being bit i.
METADATA = {
    0b0011: 0b0100, 0b0101: 0b1000, 0b0110: 0b1001, 0b1001: 0b1100, 0b1010: 0b1101, 0b1100: 0b1110,
    # Fewer than two: completed as PyTorch does, with an index that follows where there is one.
    0b0001: 0b1000, 0b0010: 0b1001, 0b0100: 0b1110, 0b1000: 0b1110, 0b0000: 0b1110,
}  # fmt: skip
_LEGAL = sorted(set(METADATA.values()))
_WORDS: dict[int, np.dtype] = {8: np.dtype(np.int32), 16: np.dtype(np.int16)}
#: Formats of elements that have this layout.
SPARSE24_FORMATS = tuple(name for name, fmt in FORMATS.items() if fmt.bits in _WORDS)
#: Rows that `reorder_metadata` permutes among themselves, by the bytes of a word.
REORDERED_ROWS = {2: 32, 4: 16}


def metadata_word(format: str) -> np.dtype:
    """Return the type of the words of metadata beside elements of that format; ValueError for formats without."""
    if format not in SPARSE24_FORMATS:
        raise ValueError(f"format: {format!r} has no 2:4 layout here; admissible: {', '.join(SPARSE24_FORMATS)}")
    return _WORDS[FORMATS[format].bits]


def compress(x: np.ndarray, *, format: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the values and the metadata of a 2:4 sparse matrix.

    Parameters
    ----------
    x : ndarray, shape (M, K)
        Codes in the carrier of `format`. An element is zero if its value is: -0 is dropped where it does not come
        to be stored.
    format : str
        Any of 8 or 16 bits.

    Returns
    -------
    values : ndarray of the same type, shape (M, K / 2)
        The elements at a group's two indices.
    metadata : ndarray of int16, shape (M, K / 16), or, for 8 bits, of int32, shape (M, K / 32)
        In row order; `reorder_metadata` gives the order of CUTLASS.

    Raises
    ------
    ValueError
        Another format, anything but a matrix, K that does not fill whole words, a group with three or four nonzeros.
    """
    word = metadata_word(format)
    x = np.asarray(x)
    if x.ndim != 2:
        raise ValueError(f"x: has {x.ndim} dimensions, must have 2 (M, K)")
    rows, k = x.shape
    covered = 8 * word.itemsize
    if k % covered:
        raise ValueError(f"x: has {k} columns, must be a multiple of {covered} for {format}")
    groups = x.reshape(rows, k // 4, 4)
    present = (decode(groups, FORMATS[format]) != 0) @ np.array([1, 2, 4, 8])
    codes = np.full(16, 0xFF, np.uint8)
    codes[list(METADATA)] = list(METADATA.values())
    fields = codes[present]
    if np.any(fields == 0xFF):
        row, group = np.argwhere(fields == 0xFF)[0]
        raise ValueError(f"x: at most 2 of 4 neighbours may be nonzero; row {row} has more from column {4 * group} on")
    indices = np.stack([fields & 3, fields >> 2], axis=-1)
    values = np.take_along_axis(groups, indices.astype(np.intp), axis=-1).reshape(rows, k // 2)
    return values, pack_stream(fields, 4, word)


@takes_choices
def compress_enclosure(x: np.ndarray, *, format: str, completion: IndexCompletion) -> dict[str, Enclosure]:
    """Return the admissible values and metadata of a 2:4 sparse matrix.

    Parameters
    ----------
    x, format : as `compress`
    completion : IndexCompletion

    Returns
    -------
    dict of Enclosure
        ``values``, decoded, and ``metadata``, as int64, in row order. With ``completion="any"`` an enclosure a place
        is wider than the set of right answers, where a group holds fewer than two numbers: of these only those are
        right that `decompress` turns into x.

    Raises
    ------
    ValueError
        As `compress`.
    """
    values, metadata = compress(x, format=format)
    fmt = FORMATS[format]
    exact, words = decode(values, fmt), metadata.astype(np.int64)
    if completion is IndexCompletion.FOLLOWING:
        return {"values": determined(exact, signed_zero=True), "metadata": determined(words)}
    dense = decode(np.asarray(x).reshape(*exact.shape[:1], -1, 4), fmt)
    fields = unpack_stream(metadata, 4, dense.shape[1])
    lo, hi = (exact.reshape(*fields.shape, 2).copy() for _ in range(2))
    least, most = fields.astype(np.int64), fields.astype(np.int64)
    nonzero = dense != 0
    # The top field of a word bears its sign.
    sign = np.where(np.arange(fields.shape[1]) % (2 * metadata.itemsize) == 2 * metadata.itemsize - 1, 16, 0)
    signed = -sign * (fields >> 3)
    least, most = least + signed, most + signed
    for code in _LEGAL:
        pair = [code & 3, code >> 2]
        legal = nonzero.sum(-1) == nonzero[..., pair].sum(-1)
        place = code - sign * (code >> 3)
        least = np.where(legal, np.minimum(least, place), least)
        most = np.where(legal, np.maximum(most, place), most)
        stored = np.where(legal[..., None], dense[..., pair], lo)
        lo, hi = np.minimum(lo, stored), np.maximum(hi, np.where(legal[..., None], dense[..., pair], hi))
    shape = words.shape
    weights = np.int64(16) ** np.arange(2 * metadata.itemsize)
    ends = [(np.reshape(field, (*shape, -1)) * weights).sum(-1) for field in (least, most)]
    if exact.dtype.kind == "f":  # a NaN or a zero: no interval
        open_ = np.isnan(lo) & (nonzero.sum(-1) < 2)[..., None]
        lo, hi = np.where(open_, -np.inf, lo), np.where(open_, np.inf, hi)
    return {
        "values": Enclosure(exact, lo.reshape(exact.shape), hi.reshape(exact.shape)),
        "metadata": Enclosure(words, *ends),
    }


def decompress(values: np.ndarray, metadata: np.ndarray, *, format: str) -> np.ndarray:
    """Return the dense matrix, the inverse of `compress`.

    Parameters
    ----------
    values : ndarray, shape (M, K / 2)
    metadata : ndarray of int16 or int32 (or unsigned), as `compress` returns it
        With any two ascending indices a group.
    format : str

    Returns
    -------
    ndarray of the type of `values`, shape (M, K); zeros are +0 where nothing is stored.

    Raises
    ------
    ValueError
        Another format, shapes that do not fit, metadata whose indices do not ascend.
    """
    word = metadata_word(format)
    values, metadata = np.asarray(values), np.asarray(metadata)
    if values.ndim != 2:
        raise ValueError(f"values: has {values.ndim} dimensions, must have 2 (M, K / 2)")
    rows, half = values.shape
    expected = (rows, 2 * half // (8 * word.itemsize))
    if half % (4 * word.itemsize) or metadata.shape != expected or metadata.dtype.itemsize != word.itemsize:
        raise ValueError(
            f"metadata: has shape {metadata.shape} and dtype {metadata.dtype}, must be {expected} and {word} "
            f"for values of shape {values.shape}"
        )
    fields = unpack_stream(metadata, 4, half // 2)
    if not np.all(np.isin(fields, _LEGAL)):
        raise ValueError(f"metadata: groups must be of {', '.join(f'{code:04b}' for code in _LEGAL)} (ascending)")
    indices = np.stack([fields & 3, fields >> 2], axis=-1).astype(np.intp)
    dense = np.zeros((rows, half // 2, 4), values.dtype)
    np.put_along_axis(dense, indices, values.reshape(rows, half // 2, 2), axis=-1)
    return dense.reshape(rows, 2 * half)


def _reordered_places(metadata: np.ndarray) -> np.ndarray:
    """Return, in the shape of row-ordered metadata, where each of its words stands in CUTLASS's order."""
    rows, columns = metadata.shape
    block = REORDERED_ROWS[metadata.dtype.itemsize]
    m, c = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    # Rows m, m + 8, ... of a block, which one lane's fragments cover, come side by side.
    m = m // block * block + m % 8 * (block // 8) + m % block // 8
    # In each 2 x 2 the two off the diagonal change places.
    m, c = m + (c % 2) - (m % 2), c + (m % 2) - (c % 2)
    # Pairs of columns, each stored row by row.
    return c // 2 * (2 * rows) + 2 * m + c % 2


def _check_metadata(metadata: np.ndarray) -> np.ndarray:
    metadata = np.asarray(metadata)
    block = REORDERED_ROWS.get(metadata.dtype.itemsize)
    if metadata.ndim != 2 or metadata.dtype.kind not in "iu" or block is None:
        raise ValueError(
            f"metadata: must be a matrix of 16-bit or 32-bit integers; has shape {metadata.shape}, dtype "
            f"{metadata.dtype}"
        )
    if metadata.shape[0] % block or metadata.shape[1] % 2:
        raise ValueError(
            f"metadata: has shape {metadata.shape}; rows must be a multiple of {block}, columns of 2 to be reordered"
        )
    return metadata


def reorder_metadata(metadata: np.ndarray) -> np.ndarray:
    """Return row-ordered metadata in the order that CUTLASS's sparse kernels for sm_80 load.

    Parameters
    ----------
    metadata : ndarray of int16 or int32, shape (M, C)
        M a multiple of 32 (int16) or 16 (int32), C of 2.

    Returns
    -------
    ndarray of the same type and shape; only its order in memory means something, as in PyTorch.

    Raises
    ------
    ValueError
        Another type or shape.
    """
    metadata = _check_metadata(metadata)
    reordered = np.empty_like(metadata, order="C")
    reordered.reshape(-1)[_reordered_places(metadata)] = metadata
    return reordered


def restore_metadata(reordered: np.ndarray) -> np.ndarray:
    """Return metadata in row order, the inverse of `reorder_metadata`."""
    reordered = _check_metadata(reordered)
    return reordered.reshape(-1)[_reordered_places(reordered)]
