"""GGUF blocks by definition: layout, exact dequantization, rounding of the quantizers, published sizes, measured SQNR.

That the quantizers give ggml's bytes is in test_gguf_block_bytes.py.
"""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from lowbit_cts.reference.formats import decode, float_format
from lowbit_cts.reference.gguf.arithmetic import (
    first_largest,
    first_least,
    in_order,
    nearest_int,
    reciprocal,
    round_half_away,
    truncated,
)
from lowbit_cts.reference.gguf.blocks import (
    dequantize,
    dequantize_enclosure,
    pack,
    quantize,
    scale_and_offset,
    unpack,
)
from lowbit_cts.reference.gguf.codebooks import nearest_fp4, nearest_iq4, ue4m3
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS, FP4_LEVELS, HALF_E8M0, HALF_UE4M3, IQ4_LEVELS
from lowbit_cts.reference.gguf.packing import pack_scales_and_mins, pack_trits, unpack_scales_and_mins, unpack_trits
from lowbit_cts.reference.gguf.types import GGML_TYPES

F = np.float32

# Bytes, elements, bits per weight: what ggml's headers assert and state.
SIZES = {
    "Q4_0": (18, 32, 4.5), "Q4_1": (20, 32, 5.0), "Q5_0": (22, 32, 5.5), "Q5_1": (24, 32, 6.0), "Q8_0": (34, 32, 8.5),
    "Q2_K": (84, 256, 2.625), "Q3_K": (110, 256, 3.4375), "Q4_K": (144, 256, 4.5), "Q5_K": (176, 256, 5.5),
    "Q6_K": (210, 256, 6.5625), "IQ4_NL": (18, 32, 4.5), "IQ4_XS": (136, 256, 4.25), "MXFP4": (17, 32, 4.25),
    "NVFP4": (36, 64, 4.5), "TQ1_0": (54, 256, 1.6875), "TQ2_0": (66, 256, 2.0625),
}  # fmt: skip

# dB, on default_rng(1).standard_normal((4096, 256)) in float32.
SQNR = {
    "Q4_0": 21.31, "Q4_1": 22.13, "Q5_0": 27.39, "Q5_1": 28.44, "Q8_0": 45.43, "Q2_K": 10.55, "Q3_K": 16.42,
    "Q4_K": 22.93, "Q5_K": 28.84, "Q6_K": 35.02, "IQ4_NL": 22.36, "IQ4_XS": 22.30, "TQ1_0": 1.85, "TQ2_0": 1.85,
}  # fmt: skip


def random_blocks(name: str, count: int = 4000) -> np.ndarray:
    """Return blocks of random bytes, a quarter of which have special float16 numbers."""
    rng = np.random.default_rng(5)
    blocks = rng.integers(0, 256, (count, BLOCK_FORMATS[name].bytes), np.uint8)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, 2.0**-24, 65504, 2.0**-14], np.float16)
    at = 0
    for field in BLOCK_FORMATS[name].fields:
        if not (field.bits or field.trits):
            blocks[::4, at : at + 2] = rng.choice(special, (len(blocks[::4]), 1)).view(np.uint8)
        at += field.bytes
    return blocks


def same_numbers(got: np.ndarray, expected: np.ndarray) -> None:
    """Compare bit for bit; of two NaN only that they are."""
    assert got.dtype == expected.dtype == np.float32
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(np.int32)[~nan], expected.view(np.int32)[~nan])


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((4096, 256)).astype(F)


# Layout


def test_the_table_has_the_sizes_of_ggml():
    for name, fmt in BLOCK_FORMATS.items():
        assert (fmt.bytes, fmt.elements, fmt.bits_per_weight) == SIZES[name]
        assert (GGML_TYPES[name].block_bytes, GGML_TYPES[name].block_elements) == SIZES[name][:2]
    assert BLOCK_FORMATS.keys() == SIZES.keys()


def test_the_table_has_the_sizes_of_gguf_py():
    gguf = pytest.importorskip("gguf")
    for name, fmt in BLOCK_FORMATS.items():
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]] == (fmt.elements, fmt.bytes)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_every_bit_of_a_block_is_stored_in_one_part(name):
    blocks = random_blocks(name)
    again = pack(unpack(blocks, name), name)
    if name == "TQ1_0":  # of the 256 bytes 243 are what five trits become; the others have trits, too
        codes = unpack(blocks, name)["codes"]
        np.testing.assert_array_equal(unpack(again, name)["codes"], codes)
    else:
        np.testing.assert_array_equal(again, blocks)


def test_trits_are_the_digits_of_the_byte_as_a_fraction():
    data = np.arange(256, dtype=np.uint8)[:, None]
    digits = unpack_trits(data, 5, 1)
    for byte in range(256):
        fraction = Fraction(byte, 256)
        for digit in digits[byte]:
            fraction *= 3
            assert digit == math.floor(fraction)
            fraction -= math.floor(fraction)
    numbers = np.array(np.meshgrid(*[[0, 1, 2]] * 5, indexing="ij"), np.uint8).reshape(5, -1).T
    packed = pack_trits(numbers, 5, 1)
    assert packed.ravel().tolist() == [math.ceil(Fraction(256 * n, 243)) for n in range(243)]
    np.testing.assert_array_equal(unpack_trits(packed, 5, 1), numbers)


def test_six_bit_scales_and_mins_bit_by_bit():
    one = np.zeros((96, 16), np.uint8)
    one.reshape(96, 16)[np.arange(96), np.arange(96) // 6] = 1 << (np.arange(96) % 6)
    packed = pack_scales_and_mins(one)
    assert np.all(np.unpackbits(packed, axis=1).sum(axis=1) == 1)
    assert np.all(np.unpackbits(packed, axis=1).sum(axis=0) == 1)  # each bit somewhere else
    np.testing.assert_array_equal(unpack_scales_and_mins(packed), one)
    # Scale 5 is 0b110101: its low bits in byte 9, its high ones on top of byte 1; min 5 likewise in bytes 9 and 5.
    scales = np.zeros((1, 16), np.uint8)
    scales[0, 5] = 0b110101
    assert pack_scales_and_mins(scales)[0].tolist() == [0, 0b11 << 6, 0, 0, 0, 0, 0, 0, 0, 0b0101, 0, 0]
    scales[0, 5], scales[0, 13] = 0, 0b110101
    assert pack_scales_and_mins(scales)[0].tolist() == [0, 0, 0, 0, 0, 0b11 << 6, 0, 0, 0, 0b0101 << 4, 0, 0]


def set_bits(name: str, part: str, index: int, code: int) -> list[tuple[int, int]]:
    """Return (byte, value) of the bytes that are not zero when all codes are but one."""
    parts = unpack(np.zeros(BLOCK_FORMATS[name].bytes, np.uint8), name)
    parts = {key: value.copy() for key, value in parts.items()}
    parts[part][0, index] = code
    block = pack(parts, name)[0]
    return [(int(byte), int(block[byte])) for byte in np.flatnonzero(block)]


# Element, code, and where its bits must lie, by ggml's dequantize_row_*.
PLACES = [
    ("Q4_0", "codes", 3, 9, [(2 + 3, 9)]),
    ("Q4_0", "codes", 16 + 3, 9, [(2 + 3, 9 << 4)]),
    ("Q5_0", "codes", 17, 0b10001, [(2 + 2, 1 << 1), (6 + 1, 1 << 4)]),  # bit 17 of the little-endian qh
    ("Q5_1", "codes", 9, 0b10001, [(4 + 1, 1 << 1), (8 + 9, 1)]),
    ("Q8_0", "codes", 31, 200, [(2 + 31, 200)]),
    ("Q2_K", "codes", 128 + 64 + 5, 3, [(16 + 32 + 5, 3 << 4)]),
    ("Q2_K", "scales", 7, 13, [(7, 13)]),
    ("Q2_K", "mins", 7, 13, [(7, 13 << 4)]),
    ("Q3_K", "codes", 96 + 5, 0b111, [(5, 1 << 3), (32 + 5, 3 << 6)]),
    ("Q3_K", "scales", 10, 0b111001, [(96 + 2, 0b1001 << 4), (96 + 8 + 2, 0b11 << 4)]),
    ("Q4_K", "codes", 64 + 32 + 5, 9, [(16 + 32 + 5, 9 << 4)]),
    ("Q5_K", "codes", 64 + 32 + 5, 0b11001, [(16 + 5, 1 << 3), (48 + 32 + 5, 9 << 4)]),
    ("Q6_K", "codes", 128 + 64 + 5, 0b111001, [(64 + 5, 9 << 4), (128 + 32 + 5, 3 << 4)]),
    ("Q6_K", "scales", 9, 255, [(192 + 9, 255)]),
    ("IQ4_XS", "codes", 32 + 16 + 5, 9, [(8 + 16 + 5, 9 << 4)]),
    ("IQ4_XS", "scales", 5, 0b111001, [(2 + 1, 3 << 2), (4 + 2, 9 << 4)]),
    ("MXFP4", "scales", 0, 127, [(0, 127)]),
    ("NVFP4", "codes", 16 + 8 + 5, 9, [(4 + 8 + 5, 9 << 4)]),
    ("TQ2_0", "codes", 128 + 64 + 5, 2, [(32 + 5, 2 << 4)]),
]


@pytest.mark.parametrize(("name", "part", "index", "code", "places"), PLACES)
def test_bits_lie_where_ggml_reads_them(name, part, index, code, places):
    assert set_bits(name, part, index, code) == places


def test_the_mask_bit_of_q3_k_says_that_4_is_not_taken_off():
    parts = unpack(np.zeros(110, np.uint8), "Q3_K")
    parts["d"] = np.ones(1, np.float16)
    parts["scales"] = np.full((1, 16), 33, np.uint8)
    block = pack(parts, "Q3_K")
    assert np.all(dequantize(block, "Q3_K") == -4)
    block[:, :32] = 255
    assert np.all(dequantize(block, "Q3_K") == 0)


# Dequantization


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_gguf_py_dequantizes_random_bytes_alike(name):
    gguf = pytest.importorskip("gguf")
    blocks = random_blocks(name)
    same_numbers(dequantize(blocks, name), gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[name]))


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_an_element_is_its_definition_rounded_once(name):
    """Hold the claim that no product rounds: scale * level + offset in rationals, rounded to float32."""
    fmt, blocks = BLOCK_FORMATS[name], random_blocks(name, 24)
    parts, got = unpack(blocks, name), dequantize(blocks, name)
    scale_levels = None if fmt.scale_levels is None else fmt.scale_levels.tolist()
    for block in range(len(blocks)):
        halves = {key: float(part[block]) for key, part in parts.items() if part.dtype == np.float16}
        if not all(map(math.isfinite, halves.values())):
            continue
        for element in range(0, fmt.elements, 7):
            group = element // fmt.group
            scale = Fraction(halves.get("d", 1))
            if scale_levels is not None:
                scale *= Fraction(scale_levels[parts["scales"][block, group]])
            exact = scale * int(fmt.levels[parts["codes"][block, element]]) + Fraction(halves.get("m", 0))
            if "mins" in parts:
                exact -= Fraction(halves["dmin"]) * int(parts["mins"][block, group])
            with np.errstate(over="ignore"):
                assert got[block, element] == F(float(exact))  # float64 holds it exactly
            assert Fraction(float(exact)) == exact


@pytest.mark.parametrize("output_format", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_enclosures_admit_a_rounding_of_the_exact_and_of_the_float32_element(name, output_format):
    blocks = random_blocks(name)
    y = dequantize(blocks, name)
    found = dequantize_enclosure(blocks, name, output_format)
    native = {"float32": F, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[output_format]
    with np.errstate(over="ignore"):
        rounded = y.astype(native)
    values = decode(rounded.view(float_format(output_format).carrier), float_format(output_format))
    assert found.admits(values).all()
    np.testing.assert_array_equal(found.exact, values)
    finite = np.isfinite(found.exact) & (found.exact != 0)
    with np.errstate(over="ignore"):
        beyond = np.nextafter(values[finite].astype(np.float64), np.inf)
    one_admissible = (found.lo == found.hi)[finite]
    assert one_admissible.all() if output_format == "float32" else one_admissible.mean() > 0.99
    assert not np.any((found.lo[finite] <= beyond) & (beyond <= found.hi[finite]) & one_admissible)


def test_offsets_are_where_the_format_has_mins():
    for name in BLOCK_FORMATS:
        scale, offset = scale_and_offset(unpack(random_blocks(name, 3), name), name)
        assert scale.shape == (3, BLOCK_FORMATS[name].groups)
        assert (offset is not None) == (name in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K"))


def test_the_scales_of_fp4_are_those_of_ml_dtypes_but_for_nan():
    codes = np.arange(256, dtype=np.uint8)
    e8m0 = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    np.testing.assert_array_equal(2 * HALF_E8M0[:255].astype(np.float64), e8m0[:255])
    assert np.isnan(e8m0[255])
    assert HALF_E8M0[255] == 2.0**127
    e4m3 = codes[:128].view(ml_dtypes.float8_e4m3fn).astype(F)
    np.testing.assert_array_equal(2 * HALF_UE4M3[:127], e4m3[:127])
    assert np.isnan(e4m3[127])
    assert HALF_UE4M3[127] == 0
    np.testing.assert_array_equal(HALF_UE4M3[128:255], HALF_UE4M3[:127])
    assert HALF_UE4M3[255] == 240
    e2m1 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(F)
    np.testing.assert_array_equal(FP4_LEVELS, 2 * e2m1)


# The arithmetic


def test_nearest_int_rounds_ties_to_even_up_to_4194303():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 4194303, -4194303, 0.49999997, -0.0, 2097151.5], F)
    assert nearest_int(x).tolist() == [0, 2, 2, 0, -2, -2, 4194303, -4194303, 0, 0, 2097152]
    wide = (np.random.default_rng(0).standard_normal(100_000) * 2.0**18).astype(F)
    np.testing.assert_array_equal(nearest_int(wide), np.rint(wide))


def test_nearest_int_is_what_the_bits_give_beyond():
    assert nearest_int(np.array([4194304, np.inf, -np.inf, np.nan, -np.nan], F)).tolist() == [
        -4194304, -4194304, -4194304, 0, 0
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_casts_truncate_and_roundf_takes_ties_away_from_zero():
    x = np.array([0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, 126.5, np.inf, np.nan], F)
    assert truncated(x).tolist() == [0, 0, 1, 2, -2, 0, 126, 0, 0]
    assert round_half_away(x).tolist() == [1, -1, 2, 3, -3, 0, 127, 0, 0]


def test_first_largest_and_first_least():
    x = np.array([[1, -2, 2, 0], [0, -0.0, 0, 0], [-0.0, 0, 0, 0], [np.nan, 1, -1, 0], [np.nan] * 4], F)
    assert first_largest(x).tolist() == [-2, 0, 0, 1, 0]
    assert np.signbit(first_largest(x)).tolist() == [True, False, False, False, False]
    assert np.signbit(first_least(x[1:3])).tolist() == [False, True]


def test_sums_run_in_order():
    terms = np.array([[1], [2.0**-24], [2.0**-24], [-1]], F)
    assert in_order(terms) == 0
    assert in_order(terms[::-1]) == F(2.0**-23)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_reciprocal_is_0_for_0_and_infinite_up_to_2_to_the_minus_128():
    d = np.array([0, -0.0, 2.0**-128, np.nextafter(F(2.0**-128), F(1)), -4], F)
    assert reciprocal(d)[[0, 1, 2, 4]].tolist() == [0, 0, np.inf, -0.25]
    assert np.isfinite(reciprocal(d)[3])


# Quantization: rounding and ties


def dequantized(values: list[float], name: str, **choices: str) -> list[float]:
    fmt = BLOCK_FORMATS[name]
    x = np.zeros(fmt.elements, F)
    x[: len(values)] = values
    return dequantize(quantize(x, name, **choices), name)[: len(values)].tolist()


def codes_of(values: list[float], name: str, **choices: str) -> list[int]:
    fmt = BLOCK_FORMATS[name]
    x = np.zeros(fmt.elements, F)
    x[: len(values)] = values
    return unpack(quantize(x, name, **choices), name)["codes"][0, : len(values)].tolist()


def test_the_first_of_tied_largest_decides_the_sign_of_q4_0():
    assert dequantized([1, -1], "Q4_0") == [1, -0.875]
    assert dequantized([-1, 1], "Q4_0") == [-1, 0.875]
    assert dequantized([1, -1], "Q5_0") == [1, -0.9375]


def test_q4_0_rounds_half_up():
    assert codes_of([-8, -2.5, -1.5, -0.5, 0.5, 1.5, 6.5, 7, 7.5], "Q4_0") == [0, 6, 7, 8, 9, 10, 15, 15, 15]
    assert codes_of([8, 2.5, 1.5, -2.5], "Q4_0") == [0, 6, 7, 11]  # d = -1


def test_q4_0_adds_its_half_in_float32():
    """8.5 + pred(1/2) is 9 in float32: round to nearest would be 8."""
    assert codes_of([-8, float(np.nextafter(F(0.5), F(0)))], "Q4_0") == [0, 9]


def test_q4_0_decodes_with_the_scale_in_float16():
    d = F(0.1)
    assert dequantized([-0.8], "Q4_0") == [float(F(np.float16(d)) * F(-8))]


def test_q4_1_spans_min_to_max_without_zero():
    assert dequantized([5, 6, *[5.5] * 30], "Q4_1")[:2] == [5, float(F(5) + F(15) * F(np.float16(F(1) / F(15))))]
    assert codes_of([0, 15, 0.5, 1.5, 2.5], "Q4_1") == [0, 15, 1, 2, 3]
    assert codes_of([0, 31, 0.5, 1.5, 30.5], "Q5_1") == [0, 31, 1, 2, 31]


def test_q8_0_rounds_half_away_from_zero():
    assert codes_of([127, 0.5, -0.5, 1.5, -2.5], "Q8_0") == [127, 1, 255, 2, 253]


def test_a_block_of_zeros_has_scale_0_with_the_signs_of_ggml():
    zeros = {name: unpack(quantize(np.zeros(fmt.elements, F), name), name) for name, fmt in BLOCK_FORMATS.items()}
    assert all(parts["d"][0] == 0 for parts in zeros.values() if "d" in parts)
    negative = {name for name, parts in zeros.items() if "d" in parts and np.signbit(parts["d"][0])}
    assert negative == {"Q4_0", "Q5_0", "IQ4_XS"}
    for name, fmt in BLOCK_FORMATS.items():
        assert np.all(dequantize(quantize(np.zeros(fmt.elements, F), name), name) == 0)


def test_midpoints_of_iq4_go_up():
    middles = (IQ4_LEVELS[1:].astype(F) + IQ4_LEVELS[:-1]) / 2
    assert nearest_iq4(middles).tolist() == list(range(1, 16))
    assert nearest_iq4(np.nextafter(middles, F(-200))).tolist() == list(range(15))
    assert nearest_iq4(IQ4_LEVELS.astype(F)).tolist() == list(range(16))
    assert nearest_iq4(np.array([-np.inf, -128, 114, np.inf, 0, np.nan], F)).tolist() == [0, 0, 15, 15, 8, 15]


def test_nearest_iq4_is_the_nearest_level():
    x = np.random.default_rng(2).uniform(-140, 125, 20_000).astype(F)
    distance = np.abs(x.astype(np.float64) - IQ4_LEVELS[nearest_iq4(x)])
    np.testing.assert_array_equal(distance, np.abs(x.astype(np.float64)[:, None] - IQ4_LEVELS).min(axis=1))


def test_iq4_nl_has_two_quantizers(weights):
    one_shot, grid = (quantize(weights, "IQ4_NL", scale_search=search) for search in ("one_shot", "grid"))
    assert np.any(one_shot != grid)
    assert round(sqnr(weights, dequantize(one_shot, "IQ4_NL")), 2) == 22.08
    assert round(sqnr(weights, dequantize(grid, "IQ4_NL")), 2) == 22.36
    np.testing.assert_array_equal(quantize(weights, "IQ4_NL"), grid)


def test_ties_of_fp4_go_to_the_smaller_level_and_zero_is_positive():
    middles = np.array([0.5, 1.5, 2.5, 3.5, 5, 7, 10], F)
    assert nearest_fp4(middles, F(1)).tolist() == list(range(7))
    assert nearest_fp4(-middles, F(1)).tolist() == [0, *range(9, 15)]
    assert nearest_fp4(np.nextafter(middles, F(20)), F(1)).tolist() == list(range(1, 8))
    assert nearest_fp4(np.array([-0.0, 0, 20, -1e6, -1e30], F), F(1)).tolist() == [0, 0, 7, 15, 0]


def float32_log2_is_the_integer(k: int) -> int:
    """Return how many numbers below 2**k have a logarithm that rounds to k: log2(1 - j 2**-24) is -j 2**-24 / ln 2."""
    if k == 0:
        return 0
    half_ulp = 2.0 ** (math.ceil(math.log2(k)) - 25 if k > 0 else math.floor(math.log2(-k)) - 24)  # on the side below k
    return math.floor(half_ulp * math.log(2) * 2**24)


def test_the_exponent_of_mxfp4_is_one_too_much_just_below_powers_of_two():
    x = np.zeros(32, F)
    x[0] = np.nextafter(F(16), F(0))
    for choice, e in (("float32_log2", 129), ("exact", 128)):
        assert quantize(x, "MXFP4", exponent_floor=choice)[0] == e
    assert dequantized([float(x[0])], "MXFP4") == [16]
    assert dequantized([float(x[0])], "MXFP4", exponent_floor="exact") == [12]

    binades = np.arange(-126 + 1, 128)
    wrong = 0
    for k in [*binades, 128]:
        numbers = (1 - np.arange(1, 60) * 2.0**-24) * 2.0**k
        blocks = np.zeros((59, 32), F)
        blocks[:, 3] = -numbers
        exact, found = (
            quantize(blocks, "MXFP4", exponent_floor=choice)[:, 0].astype(int) for choice in ("exact", "float32_log2")
        )
        expected = np.arange(1, 60) <= float32_log2_is_the_integer(int(k))
        if k > -123:  # below, the code of the scale is negative
            assert np.all(exact == k - 1 + 125)
            np.testing.assert_array_equal(found - exact, expected)
        wrong += bool(expected[0])
    assert wrong == 250
    assert len(binades) + 1 == 254


def test_e4m3_scales_of_nvfp4_are_ml_dtypes_but_for_ties_and_the_ends():
    rng = np.random.default_rng(4)
    x = np.ldexp(rng.uniform(1, 2, 50_000), rng.integers(-6, 7, 50_000)).astype(F)
    ties = (x.view(np.int32) & 0xFFFFF) == 1 << 19
    expected = x.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    np.testing.assert_array_equal(ue4m3(x)[~ties], expected[~ties])
    tie = np.array([1.0625, 1.1875], F)  # half up; to even 1.0625 would be 1
    assert HALF_UE4M3[ue4m3(tie)].tolist() == [0.5625, 0.625]
    # What rounds into the binade of 448 is 448; what rounds up to the least normal number is the largest subnormal.
    ends = np.array([0, 2.0**-11, 2.0**-10, 7.4 * 2.0**-9, 7.6 * 2.0**-9, 2.0**-6, 247.9, 248, 256, 300, 448, 1e9], F)
    assert ue4m3(ends).tolist() == [0, 0, 1, 7, 7, 8, 0x77, 0x7E, 0x7E, 0x7E, 0x7E, 0x7E]
    assert ends.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)[[4, 7, 8, 9]].tolist() == [8, 0x78, 0x78, 0x79]


# Quantization: as a whole


def sqnr(x: np.ndarray, y: np.ndarray) -> float:
    error = y.astype(np.float64) - x
    return 10 * math.log10(np.sum(x.astype(np.float64) ** 2) / np.sum(error**2))


@pytest.mark.parametrize("name", SQNR)
def test_signal_to_noise_on_a_gaussian(weights, name):
    assert round(sqnr(weights, dequantize(quantize(weights, name), name)), 2) == SQNR[name]


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_ternary_weights_keep_their_signs_and_zeros(name):
    rng = np.random.default_rng(3)
    x = rng.integers(-1, 2, (20, 256)).astype(F) * np.float16(0.037).astype(F)
    np.testing.assert_array_equal(dequantize(quantize(x, name), name), x)


@pytest.mark.parametrize("name", [name for name in BLOCK_FORMATS if name != "NVFP4"])
def test_scaling_by_a_power_of_two_scales_the_blocks(name):
    """Nothing rounds differently as long as nothing under- or overflows; only the float16 scales change."""
    x = np.random.default_rng(8).standard_normal((64, 256)).astype(F)
    x[np.abs(x) < 2.0**-8] = 0
    parts, scaled = (unpack(quantize(x * F(factor), name), name) for factor in (1, 4))
    for key, part in parts.items():
        if part.dtype == np.float16:
            np.testing.assert_array_equal(scaled[key], part * 4)
        elif name == "MXFP4" and key == "scales":
            np.testing.assert_array_equal(scaled[key], part + 2)
        else:
            np.testing.assert_array_equal(scaled[key], part)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_blocks_are_quantized_each_by_itself_whatever_the_shape(name):
    x = np.random.default_rng(9).standard_normal((2, 3, 512)).astype(F)
    blocks = quantize(x, name)
    fmt = BLOCK_FORMATS[name]
    assert blocks.shape == (2, 3, 512 // fmt.elements * fmt.bytes)
    assert blocks.dtype == np.uint8
    np.testing.assert_array_equal(quantize(x[1, 2], name), blocks[1, 2])
    np.testing.assert_array_equal(quantize(x[:, ::2], name), blocks[:, ::2])
    np.testing.assert_array_equal(quantize(x[..., 256:], name), blocks[..., blocks.shape[-1] // 2 :])
    assert dequantize(blocks, name).shape == x.shape
    assert quantize(x[:0], name).shape == (0, *blocks.shape[1:])
    assert dequantize(blocks[..., :0], name).shape == (2, 3, 0)


def near_ties(name: str) -> np.ndarray:
    """Return blocks with elements next to the midpoints of two codes; the first (two) determine the scale."""
    rng = np.random.default_rng(10)
    steps = len(BLOCK_FORMATS[name].levels) - 1
    d = rng.uniform(1, 2, (4096, 1)).astype(F)
    symmetric = name.endswith("_0")
    x = (rng.integers(-8 if symmetric else 0, 7, (4096, 32)) + 0.5) * d
    x = np.nextafter(x.astype(F), F(0))
    if symmetric:
        x[:, :1] = F(-(steps + 1) // 2) * d
    else:
        x[:, :1], x[:, 1:2] = 0, F(steps) * d
    return x


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_contraction_matters_next_to_ties(name):
    """The code is trunc(x * (1 / d) + middle), the product rounded before the sum or not."""
    x = near_ties(name)
    separate, once = (
        unpack(quantize(x, name, contraction=choice), name)["codes"] for choice in ("separate", "fused")
    )  # fmt: skip
    differing = np.argwhere(separate != once)
    assert len(differing)
    middle = {"Q4_0": Fraction(17, 2), "Q5_0": Fraction(33, 2)}.get(name, Fraction(1, 2))
    steps = len(BLOCK_FORMATS[name].levels) - 1
    for row, column in differing[:200]:
        d = x[row, 0] / F(-(steps + 1) // 2) if name.endswith("_0") else x[row, 1] / F(steps)
        inverse, element = Fraction(float(F(1) / d)), Fraction(float(x[row, column]))
        twice = Fraction(float(F(float(element * inverse))))  # 48 bits: exact in float64
        codes = [int(F(float(product + middle))) for product in (element * inverse, twice)]
        assert codes == [once[row, column], separate[row, column]]


@pytest.mark.parametrize("name", ["Q8_0", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0"])
def test_contraction_does_not_matter_where_products_are_exact_or_not_added_to(name):
    x = near_ties("Q4_0").reshape(-1, 256)
    np.testing.assert_array_equal(quantize(x, name, contraction="fused"), quantize(x, name, contraction="separate"))


# Bad input


def raises(argument: str, rule: str):
    return pytest.raises(ValueError, match=f"^{argument}: .*{rule}")


X = np.zeros((2, 256), F)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinities_are_no_elements(name, bad):
    x = X.copy()
    x[1, 200] = bad
    with raises("x", "must be finite"):
        quantize(x, name)


def test_bad_arguments_are_named():
    blocks = quantize(X, "Q4_K")
    for function in (lambda: quantize(X, "Q4_2"), lambda: dequantize(blocks, "q4_K"), lambda: unpack(blocks, "F16")):
        with raises("format", "admissible: Q4_0, "):
            function()
    for x in (X.astype(np.float64), X[:, :255], F(0)):
        with raises("x", "whole blocks of 256 elements"):
            quantize(x, "Q6_K")
    for data in (blocks[:, :-1], blocks.astype(np.int8), np.uint8(0)):
        with raises("blocks", "whole blocks of 144 bytes"):
            dequantize(data, "Q4_K")
    with raises("scale_search", "admissible: one_shot, grid"):
        quantize(X, "IQ4_NL", scale_search="none")
    with raises("contraction", "admissible: separate$"):
        quantize(X, "Q4_K", contraction="fused")
    with raises("contraction", "admissible: separate, fused"):
        quantize(X, "Q4_0", contraction="either")


def test_parts_are_checked():
    parts = unpack(quantize(X, "TQ1_0"), "TQ1_0")
    with raises("parts", "must be codes, d; got codes"):
        pack({"codes": parts["codes"]}, "TQ1_0")
    with raises("codes", "codes up to 2; got 3"):
        pack(parts | {"codes": np.full((2, 256), 3, np.uint8)}, "TQ1_0")
    with raises("d", "must be float16 of shape"):
        pack(parts | {"d": np.zeros(2, F)}, "TQ1_0")
    with raises("codes", "must be uint8 of shape"):
        pack(parts | {"codes": np.zeros((2, 255), np.uint8)}, "TQ1_0")
