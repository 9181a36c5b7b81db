"""2:4 sparsity: every pattern of a group, known words, and the conversions of PyTorch."""

from itertools import combinations, product

import ml_dtypes
import numpy as np
import pytest

from lowbit_cts.reference.formats import FORMATS, decode
from lowbit_cts.reference.packing.sparse24 import (
    METADATA,
    compress,
    compress_enclosure,
    decompress,
    reorder_metadata,
    restore_metadata,
)

FLOATS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float8_e4m3fn": ml_dtypes.float8_e4m3fn}
FORMATS_TESTED = (*FLOATS, "int8")
COVERED = {"float16": 16, "bfloat16": 16, "float8_e4m3fn": 32, "int8": 32}
PAIRS = list(combinations(range(4), 2))
RNG = np.random.default_rng(15)


def carried(values: np.ndarray, format: str) -> np.ndarray:
    return values.astype(FLOATS.get(format, np.int8)).view(FORMATS[format].carrier)


def sparse(rows: int, k: int, format: str, fewer: bool = True) -> np.ndarray:
    """Return a random 2:4 matrix; with `fewer`, some groups hold one number or none."""
    values = RNG.choice([-3, -2, -1, 1, 2, 3], (rows, k // 4, 4))
    kept = np.array(PAIRS)[RNG.integers(0, 6, (rows, k // 4))]
    mask = np.zeros(values.shape, bool)
    np.put_along_axis(mask, kept, True, axis=-1)
    if fewer:
        mask &= RNG.random(mask.shape) < 0.7
    return carried((values * mask).reshape(rows, k), format)


def raw(metadata: np.ndarray) -> np.ndarray:
    return metadata.view(f"u{metadata.itemsize}")


def test_pairs_of_indices_have_the_documented_codes():
    codes = [
        METADATA[(1 << first) | (1 << second)] for first, second in [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]
    ]
    assert codes == [0x4, 0x8, 0x9, 0xC, 0xD, 0xE]


def test_a_word_of_16_bits_holds_four_groups_the_first_lowest():
    x = np.zeros((1, 16), np.float16)
    for group, pair in enumerate([(0, 1), (0, 2), (1, 2), (0, 3)]):
        x[0, 4 * group + np.array(pair)] = [2 * group + 1, 2 * group + 2]
    values, metadata = compress(x, format="float16")
    assert metadata.dtype == np.int16
    assert hex(raw(metadata)[0, 0]) == "0xc984"
    assert values.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]


def test_a_word_of_32_bits_holds_eight_groups_the_first_lowest():
    x = np.zeros((1, 32), np.int8)
    for group, pair in enumerate([*PAIRS, (0, 1), (2, 3)]):
        x[0, 4 * group + np.array(pair)] = 1
    metadata = compress(x, format="int8")[1]
    assert metadata.dtype == np.int32
    assert hex(raw(metadata)[0, 0]) == "0xe4ed9c84"  # the pairs (0, 1) (0, 2) (0, 3) (1, 2) (1, 3) (2, 3)


@pytest.mark.parametrize(("format", "fraction"), [("float16", 9 / 16), ("bfloat16", 9 / 16), ("int8", 5 / 8)])
def test_storage(format, fraction):
    x = sparse(32, 128, format)
    assert sum(part.nbytes for part in compress(x, format=format)) == fraction * x.nbytes


@pytest.mark.parametrize("format", FORMATS_TESTED)
def test_every_pattern_of_a_group_returns(format):
    patterns = np.array([p for p in product([0, 1], repeat=4) if sum(p) <= 2]) * np.array([1, 2, -1, -2])
    assert len(patterns) == len(METADATA) == 11
    k = COVERED[format]
    x = np.zeros((11, k // 4, 4), int)
    for i in range(k // 4):
        x[:, i] = np.roll(patterns, i, axis=0)
    x = carried(x.reshape(11, k), format)
    values, metadata = compress(x, format=format)
    assert values.dtype == x.dtype
    assert values.shape == (11, k // 2)
    np.testing.assert_array_equal(decompress(values, metadata, format=format), x)


@pytest.mark.parametrize("format", FORMATS_TESTED)
def test_any_ascending_indices_can_be_read_and_are_chosen_again(format):
    word = 16 if COVERED[format] == 16 else 32
    codes = RNG.choice([0x4, 0x8, 0x9, 0xC, 0xD, 0xE], (5, 3, word // 4)).astype(np.uint64)
    metadata = (codes << np.arange(0, word, 4, dtype=np.uint64)).sum(-1).astype(f"u{word // 8}").view(f"i{word // 8}")
    values = carried(RNG.choice([-2, -1, 1, 2], (5, 3 * word)), format)
    values = values[:, : 3 * COVERED[format] // 2]
    dense = decompress(values, metadata, format=format)
    again, same = compress(dense, format=format)
    np.testing.assert_array_equal(again, values)
    np.testing.assert_array_equal(same, metadata)


@pytest.mark.parametrize("code", sorted(set(range(16)) - set(METADATA.values())))
def test_indices_that_do_not_ascend_are_refused(code):
    word = np.uint16(0x4440 | code).view(np.int16).reshape(1, 1)
    with pytest.raises(ValueError, match=r"^metadata: .*ascending"):
        decompress(np.ones((1, 8), np.float16), word, format="float16")


def test_numbers_are_kept_and_signed_zeros_are_not():
    x = np.zeros((1, 16), np.float16)
    x[0, :4] = [np.nan, -0.0, -0.0, np.inf]
    x[0, 4:8] = [-0.0, 0, 5, 0]
    values, metadata = compress(x, format="float16")
    assert values[0, :2].tolist()[1] == np.inf
    assert np.isnan(values[0, 0])
    dense = decompress(values, metadata, format="float16")
    np.testing.assert_array_equal(dense, x)
    assert not np.signbit(dense[0, [1, 2, 4]]).any()
    assert compress(np.full((1, 16), 0x8000, np.uint16), format="bfloat16")[1].view(np.uint16)[0, 0] == 0xEEEE


@pytest.mark.parametrize("overfull", [p for p in product([0, 1], repeat=4) if sum(p) > 2])
def test_a_group_with_more_than_two_is_refused(overfull):
    x = np.zeros((2, 32), np.int8)
    x[1, 8:12] = overfull
    with pytest.raises(ValueError, match=r"^x: at most 2 of 4 .* row 1 has more from column 8 on"):
        compress(x, format="int8")


# Where several pairs of indices are right.

PATTERNS = [p for p in product([0, 1], repeat=4) if sum(p) <= 2]


def completed(x: np.ndarray, format: str, choose) -> tuple[np.ndarray, np.ndarray]:
    """Return the values and metadata of a matrix, of the pairs that hold a group's numbers the one that is chosen."""
    word = 16 if COVERED[format] == 16 else 32
    values, fields = [], []
    for group in x.reshape(-1, 4):
        nonzero = set(np.flatnonzero(group & 0x7F if format == "float8_e4m3fn" else group))
        first, second = choose([pair for pair in PAIRS if nonzero <= set(pair)])
        values += [group[first], group[second]]
        fields.append(first | second << 2)
    groups = np.array(fields, np.uint64).reshape(len(x), -1, word // 4)
    words = (groups << np.arange(0, word, 4, dtype=np.uint64)).sum(-1).astype(f"u{word // 8}").view(f"i{word // 8}")
    return np.array(values, x.dtype).reshape(len(x), -1), words


def cutlass(pairs):
    """Choose as CUTLASS's compressor for sm_90 does, but for empty groups: (i, 3), and (0, 3) for one at 3."""
    with_last = [pair for pair in pairs if pair[1] == 3]
    return min(with_last) if len(pairs) == 3 and with_last else pairs[0]


@pytest.mark.parametrize("format", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("choose", [min, max, cutlass], ids=["first", "last", "cutlass"])
def test_every_completion_is_admitted_and_read(format, choose):
    groups = np.array([np.roll(PATTERNS, shift, axis=0) for shift in range(8)]) * np.array([7, 0x83, 0x31, 0xF1])
    x = groups.swapaxes(0, 1).reshape(11, 32).astype(np.uint8).view(FORMATS[format].carrier)
    values, metadata = completed(x, format, choose)
    np.testing.assert_array_equal(decompress(values, metadata, format=format), x)
    open_, strict = (compress_enclosure(x, format=format, completion=c) for c in ("any", "following"))
    words = metadata.astype(np.int64)
    assert open_["values"].admits(decode(values, FORMATS[format])).all()
    assert open_["metadata"].admits(words).all()
    assert not strict["metadata"].admits(words).all()
    torch_values, torch_metadata = compress(x, format=format)
    for found in (open_, strict):
        assert found["values"].admits(decode(torch_values, FORMATS[format])).all()
        assert found["metadata"].admits(torch_metadata.astype(np.int64)).all()


@pytest.mark.parametrize("format", FORMATS_TESTED)
def test_two_numbers_a_group_leave_no_choice(format):
    x = sparse(16, 64, format, fewer=False)
    for enclosure in compress_enclosure(x, format=format, completion="any").values():
        np.testing.assert_array_equal(enclosure.lo, enclosure.hi)
        np.testing.assert_array_equal(enclosure.exact, enclosure.hi)


def test_a_nan_beside_zeros_may_stand_at_either_place():
    x = np.zeros((1, 16), np.float16)
    x[0, 1], x[0, 4:6] = np.nan, [np.nan, 1]
    values = compress_enclosure(x, format="float16", completion="any")["values"]
    assert values.admits(np.array([[0, np.nan, np.nan, 1, 0, 0, 0, 0]])).all()
    assert values.admits(np.array([[np.nan, 0, np.nan, 1, 0, 0, 0, 0]])).all()
    assert not values.admits(np.array([[np.nan, 0, 1, 1, 0, 0, 0, 0]])).all()


def test_signed_zeros_are_kept_where_pytorch_keeps_them():
    x = np.array([[1, 0, -0.0, 0] * 4], np.float16)
    values, _ = compress(x, format="float16")
    assert np.signbit(values).tolist() == [[False, True] * 4]
    strict, open_ = (compress_enclosure(x, format="float16", completion=c)["values"] for c in ("following", "any"))
    positive = np.abs(values).astype(float)
    assert strict.admits(positive).tolist() == [[True, False] * 4]
    assert open_.admits(positive).all()


# CUTLASS's order.


@pytest.mark.parametrize(("dtype", "rows"), [(np.int16, 32), (np.int16, 96), (np.int32, 16), (np.int32, 48)])
@pytest.mark.parametrize("columns", [2, 8])
def test_reordering_is_a_permutation_and_returns(dtype, rows, columns):
    metadata = np.arange(rows * columns, dtype=dtype).reshape(rows, columns)
    reordered = reorder_metadata(metadata)
    assert sorted(reordered.ravel()) == list(range(rows * columns))
    assert reordered.ravel()[0] == 0
    np.testing.assert_array_equal(restore_metadata(reordered), metadata)
    # Blocks of rows do not mix.
    first = reorder_metadata(metadata[: rows // (rows // {2: 32, 4: 16}[metadata.itemsize])])
    np.testing.assert_array_equal(reordered.reshape(columns // 2, -1)[0, : first.size // (columns // 2)],
                                  first.reshape(columns // 2, -1)[0])  # fmt: skip


def scattered(rows: int, columns: int, itemsize: int) -> np.ndarray:
    """Return the order of reorder_meta into a column-major layout interleaved by 2, word by word."""
    memory = np.full(rows * columns, -1)
    group, step = (32, 4) if itemsize == 2 else (16, 2)
    for m in range(rows):
        for c in range(columns):
            row, column = m // group * group + m % 8 * step + m % group // 8, c
            if (row % 2, column % 2) == (0, 1):
                row, column = row + 1, column - 1
            elif (row % 2, column % 2) == (1, 0):
                row, column = row - 1, column + 1
            memory[column // 2 * 2 * rows + 2 * row + column % 2] = m * columns + c
    return memory


@pytest.mark.parametrize(("dtype", "rows"), [(np.int16, 64), (np.int32, 32)])
def test_reordering_by_single_words(dtype, rows):
    metadata = np.arange(rows * 6, dtype=dtype).reshape(rows, 6)
    np.testing.assert_array_equal(reorder_metadata(metadata).ravel(), scattered(rows, 6, metadata.itemsize))


@pytest.mark.parametrize(("format", "rows", "k"), [("float16", 32, 32), ("float16", 64, 128), ("bfloat16", 96, 64),
                                                   ("int8", 16, 64), ("int8", 64, 256)])  # fmt: skip
def test_compression_is_that_of_pytorch(format, rows, k):
    torch = pytest.importorskip("torch")
    conversions = pytest.importorskip("torch.sparse._semi_structured_conversions")
    x = sparse(rows, k, format)
    dense = torch.from_numpy(x.view(np.int16 if x.itemsize == 2 else np.int8)).view(getattr(torch, format))
    expected_values, expected_metadata = conversions.sparse_semi_structured_from_dense_cutlass(dense)
    values, metadata = compress(x, format=format)
    np.testing.assert_array_equal(values.view(np.int8), expected_values.contiguous().view(torch.int8).numpy())
    reordered = reorder_metadata(metadata)
    np.testing.assert_array_equal(reordered, expected_metadata.numpy())
    back = conversions.sparse_semi_structured_to_dense_cutlass(expected_values, torch.from_numpy(reordered))
    np.testing.assert_array_equal(back.view(torch.int8).numpy(), x.view(np.int8))


def test_empty_axes_stay_empty():
    for shape in [(0, 32), (32, 0)]:
        values, metadata = compress(np.zeros(shape, np.float16), format="float16")
        assert values.size == metadata.size == 0
        assert decompress(values, metadata, format="float16").shape == shape
        assert reorder_metadata(metadata).shape == metadata.shape


def test_bad_input_is_one_message():
    values, metadata = compress(np.zeros((32, 32), np.float16), format="float16")
    for call, message in [
        (
            lambda: compress(np.zeros((2, 16)), format="float32"),
            "^format: 'float32' has no 2:4 layout here; admissible",
        ),
        (lambda: compress(np.zeros((2, 16)), format="acme"), "^format: 'acme' has no 2:4 layout here; admissible"),
        (lambda: compress(np.zeros(16, np.float16), format="float16"), "^x: has 1 dimensions, must have 2"),
        (lambda: compress(np.zeros((2, 8), np.float16), format="float16"), "^x: has 8 columns, .* multiple of 16"),
        (lambda: compress(np.zeros((2, 16), np.int8), format="int8"), "^x: has 16 columns, .* multiple of 32"),
        (lambda: decompress(values, metadata[:-1], format="float16"), r"^metadata: .* must be \(32, 2\)"),
        (lambda: decompress(values, metadata.astype(np.int32), format="float16"), "^metadata: .* must be .* int16"),
        (lambda: decompress(values[0], metadata, format="float16"), "^values: has 1 dimensions, must have 2"),
        (lambda: reorder_metadata(metadata[:16]), "^metadata: .* rows must be a multiple of 32"),
        (lambda: reorder_metadata(metadata[:, :1]), "^metadata: .* columns of 2"),
        (lambda: restore_metadata(metadata.astype(np.int8)), "^metadata: must be a matrix of 16-bit or 32-bit"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
