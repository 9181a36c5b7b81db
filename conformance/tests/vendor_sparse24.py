"""A vendor's 2:4 sparse matrices: right kernels, and the same with one planted fault each."""

from itertools import combinations

import numpy as np

from lowbit_cts.kernels import Backend, IndexCompletion, Semantics
from lowbit_cts.kernels.numpy import sparse24 as plain
from lowbit_cts.kernels.numpy.numbers import float32_of

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

_ALL = {"format": ("float16", "bfloat16", "int8"), "metadata_order": ("row", "cutlass")}
_ROW = {"format": ("float16", "bfloat16", "int8")}
_ANY = Semantics(index_completion=IndexCompletion.ANY)
_PAIRS = list(combinations(range(4), 2))


def _numbers(x, format):
    return (float32_of(x, format) if format == "bfloat16" else x) != 0


def _chosen(x, format, choose, numbers=_numbers):
    """Return values and metadata, group by group, of the pairs that hold a group's numbers the one that is chosen."""
    rows, columns = x.shape
    word = np.dtype(np.int16 if x.itemsize == 2 else np.int32)
    if columns % (8 * word.itemsize):
        raise ValueError("columns do not fill words of metadata")
    present = numbers(x, format).reshape(rows, columns // 4, 4) @ [1, 2, 4, 8]
    if set(map(int, np.unique(present))) & {7, 11, 13, 14, 15}:
        raise ValueError("more than two numbers in a group")
    table = np.zeros((16, 2), np.intp)
    for pattern in (0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 12):
        where = {i for i in range(4) if pattern >> i & 1}
        table[pattern] = choose([pair for pair in _PAIRS if where <= set(pair)])
    pairs = table[present]
    values = np.take_along_axis(x.reshape(rows, -1, 4), pairs, axis=2).reshape(rows, columns // 2)
    return values, _metadata(pairs, word)


def _metadata(pairs, word, step=4):
    fields = (pairs[:, :, 0] | pairs[:, :, 1] << 2).astype(np.uint64)
    shifts = np.arange(0, 8 * word.itemsize, 4, dtype=np.uint64)[:: 1 if step > 0 else -1]
    words = (fields.reshape(len(pairs), -1, len(shifts)) << shifts).sum(axis=2)
    return words.astype(f"u{word.itemsize}").view(word)


def _pairs(metadata):
    metadata = np.ascontiguousarray(metadata)
    fields = np.stack([metadata.view(np.uint8) & 15, metadata.view(np.uint8) >> 4], axis=2).reshape(len(metadata), -1)
    return np.stack([fields & 3, fields >> 2], axis=2).astype(np.intp)


# Right kernels ------------------------------------------------------------------------------------------------------


@right.implements("compress_sparse24", semantics=_ANY, supports=_ROW)
def first_pair_that_will_do(x, *, format):
    return _chosen(x, format, min)


@right.implements("compress_sparse24", semantics=_ANY, supports=_ROW)
def last_pair_that_will_do(x, *, format):
    return _chosen(x, format, max)


@right.implements("compress_sparse24", semantics=_ANY, supports=_ROW)
def pairs_of_torch_declared_as_any(x, *, format):
    return plain.compress(x, format=format, metadata_order="row")


@right.implements("compress_sparse24", supports=_ALL)
def takes_the_first_two_of_more(x, *, format, metadata_order):
    groups = x.reshape(len(x), x.shape[1] // 4, 4)
    numbers = _numbers(groups, format)
    fits = np.cumsum(numbers, axis=2) <= 2
    return plain.compress(np.where(fits, groups, 0).reshape(x.shape) if not fits.all() else x, format=format,
                          metadata_order=metadata_order)  # fmt: skip


@right.implements("decompress_sparse24", supports=_ROW)
def writes_value_by_value(values, metadata, *, out):
    out[...] = 0
    dense = out.reshape(len(values), -1, 4)
    pairs = _pairs(metadata)
    if pairs.shape[1] * 2 != values.shape[1] or len(pairs) != len(values):
        raise ValueError("metadata do not belong to the values")
    for row, group, place in np.ndindex(*pairs.shape):
        dense[row, group, pairs[row, group, place]] = values[row, 2 * group + place]
    if not np.shares_memory(dense, out):
        out[...] = dense.reshape(out.shape)


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {
    "high_index_first": "must be",
    "first_group_highest": "must be",
    "negative_zero_is_a_number": "must be",
    "drops_nan": "must be",
    "by_magnitude": "must be",
    "equal_indices_of_empty_groups": "ascend",
    "indices_of_cutlass": "must be",
    "loses_the_sign_of_zero": "must be",
    "value_of_the_group_before": "must be",
    "words_not_swapped": "must be",
    "blocks_of_sixteen_rows": "must be",
    "wrong_in_the_last_group": "must be",
    "harms_what_is_beside_an_overfull_group": "overfull",
    "short_words": "dtype",
    "a_number_lost_by_any": "give",
    "does_not_clear": "must be",
    "second_index_from_the_first": "must be",
    "flushes_subnormals": "must be",
    "reads_short_metadata": "must raise",
    "takes_cutlass_for_rows": "must be",
    "adds": "must be",
}


def _compresses(**options):
    return wrong.implements("compress_sparse24", **{"supports": _ROW, **options})


def _expands(supports=_ROW):
    return wrong.implements("decompress_sparse24", supports=supports)


def _compressed(x, format):
    return plain.compress(x, format=format, metadata_order="row")


@_compresses()
def high_index_first(x, *, format):
    values, metadata = _compressed(x, format)
    fields = metadata.view(np.uint8)
    return values, (fields >> 2 & 0x33 | fields << 2 & 0xCC).view(metadata.dtype)


@_compresses()
def first_group_highest(x, *, format):
    values, metadata = _compressed(x, format)
    return values, _metadata(_pairs(metadata), metadata.dtype, -4)


@_compresses()
def negative_zero_is_a_number(x, *, format):
    bits = x.view(f"u{x.itemsize}").reshape(len(x), x.shape[1] // 4, 4)
    fits = np.cumsum(bits != 0, axis=2) <= 2
    kept = np.where(fits, bits, 0).reshape(x.shape).view(x.dtype)
    return _chosen(kept, format, min, lambda x, format: x.view(bits.dtype) != 0)


@_compresses(supports={"format": ("float16", "bfloat16")})
def drops_nan(x, *, format):
    numbers = np.abs(float32_of(x, format)) > 0
    return _compressed(np.where(numbers, x, np.zeros((), x.dtype)), format)


@_compresses()
def by_magnitude(x, *, format):
    values, metadata = _compressed(x, format)
    size = np.abs(float32_of(values, format)).reshape(len(values), -1, 2)
    swap = size[:, :, 1] > size[:, :, 0]
    pairs, couples = _pairs(metadata), values.reshape(len(values), -1, 2)
    pairs, couples = (np.where(swap[:, :, None], both[:, :, ::-1], both) for both in (pairs, couples))
    return couples.reshape(values.shape), _metadata(pairs, metadata.dtype)


def _of_cutlass(x, format):
    """Return what CUTLASS's compressor for sm_90 writes: (i, 3), (0, 3) for one at 3, (0, 0) for none."""
    values, metadata = _chosen(x, format, lambda pairs: pairs[0] if len(pairs) == 1 else min(pairs, key=_far))
    empty = ~_numbers(x, format).reshape(len(x), -1, 4).any(axis=2)
    pairs = np.where(empty[:, :, None], 0, _pairs(metadata))
    return values, _metadata(pairs, metadata.dtype)


def _far(pair):
    return pair[1] != 3, pair


@_compresses(semantics=_ANY)
def equal_indices_of_empty_groups(x, *, format):
    return _of_cutlass(x, format)


@_compresses()
def indices_of_cutlass(x, *, format):
    return _chosen(x, format, lambda pairs: min(pairs, key=_far))


@_compresses(supports={"format": "float16"})
def loses_the_sign_of_zero(x, *, format):
    values, metadata = _compressed(x, format)
    return values + np.float16(0), metadata


@_compresses()
def value_of_the_group_before(x, *, format):
    values, metadata = _compressed(x, format)
    if values.shape[1] > 16:
        values[:, 16] = values[:, 14]
    return values, metadata


@_compresses(supports={**_ROW, "metadata_order": "cutlass"})
def words_not_swapped(x, *, format):
    values, metadata = _compressed(x, format)
    rows, columns = metadata.shape
    moved = metadata.reshape(*plain._blocks(rows, metadata.itemsize), columns).swapaxes(1, 2)
    return values, np.ascontiguousarray(moved.reshape(rows, columns // 2, 2).swapaxes(0, 1)).reshape(rows, columns)


@_compresses(supports={**_ROW, "metadata_order": "cutlass"})
def blocks_of_sixteen_rows(x, *, format):
    values, metadata = _compressed(x, format)
    as_words = plain._to_cutlass(metadata.astype(np.int32))
    if len(x) % (32 if x.itemsize == 2 else 16):
        raise ValueError("rows do not fill blocks")
    return values, as_words.astype(metadata.dtype)


@_compresses()
def wrong_in_the_last_group(x, *, format):
    values, metadata = _compressed(x, format)
    if values.shape[1] > 64:
        metadata[:, -1] ^= np.where(metadata[:, -1] < 0, 0x1000, 0).astype(metadata.dtype)
    return values, metadata


@_compresses()
def harms_what_is_beside_an_overfull_group(x, *, format):
    numbers = _numbers(x, format).reshape(len(x), -1, 4)
    full = (numbers.sum(axis=2) > 2).any(axis=1)
    return _compressed(np.where(full[:, None], np.zeros((), x.dtype), x), format)


@_compresses()
def short_words(x, *, format):
    values, metadata = _compressed(x, format)
    return values, metadata.view(np.int16).view(metadata.dtype) if x.itemsize == 2 else metadata.view(np.int16)


@_compresses(semantics=_ANY)
def a_number_lost_by_any(x, *, format):
    values, metadata = _chosen(x, format, max)
    single = _numbers(x, format).reshape(len(x), -1, 4).sum(axis=2) == 1
    couples = values.reshape(len(x), -1, 2)
    couples = np.where(single[:, :, None], np.zeros((), x.dtype), couples)
    return couples.reshape(values.shape), metadata


@_expands()
def does_not_clear(values, metadata, *, out):
    whole = plain.decompress(values, metadata, metadata_order="row")
    np.put_along_axis(
        dense := out.reshape(len(values), -1, 4), _pairs(metadata), values.reshape(len(values), -1, 2), axis=2
    )
    out[...] = dense.reshape(whole.shape)


@_expands()
def second_index_from_the_first(values, metadata):
    pairs = _pairs(metadata)
    pairs[:, :, 1] = np.minimum(pairs[:, :, 0] + 1, 3)
    return plain.decompress(values, _metadata(pairs, metadata.dtype), metadata_order="row")


@_expands({"format": "float16"})
def flushes_subnormals(values, metadata):
    small = np.abs(values) < np.float16(2.0**-14)
    return plain.decompress(np.where(small, values * np.float16(0), values), metadata, metadata_order="row")


@_expands()
def reads_short_metadata(values, metadata):
    words = values.shape[1] // (4 * metadata.itemsize)
    filled = np.pad(metadata, ((0, 0), (0, max(0, words - metadata.shape[1]))), constant_values=0x4444)
    return plain.decompress(values, filled, metadata_order="row")


@_expands({**_ROW, "metadata_order": ("row", "cutlass")})
def takes_cutlass_for_rows(values, metadata):
    return plain.decompress(values, metadata, metadata_order="row")


@_expands({"format": "float16"})
def adds(values, metadata):
    dense = plain.decompress(values, metadata, metadata_order="row")
    return dense + np.zeros_like(dense)  # -0 becomes +0
