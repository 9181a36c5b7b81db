"""Formats: decoding and encoding against ml_dtypes, NumPy, gfloat, and a search among all values."""

import ml_dtypes
import numpy as np
import pytest

from lowbit_cts.reference.choices import OutsideDomain, Overflow, Rounding
from lowbit_cts.reference.encoding import _carried, _entries, _exact, encode, round_to_format
from lowbit_cts.reference.formats import FORMATS, INTEGER_FORMATS, decode, float_format, integer_format

NATIVE = {  # the same formats, as types written by others
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float6_e3m2fn": ml_dtypes.float6_e3m2fn,
    "float6_e2m3fn": ml_dtypes.float6_e2m3fn,
    "float4_e2m1fn": ml_dtypes.float4_e2m1fn,
}
GFLOAT = {
    "float16": "binary16",
    "bfloat16": "bfloat16",
    "float8_e4m3fn": "ocp_e4m3",
    "float8_e5m2": "ocp_e5m2",
    "float6_e3m2fn": "ocp_e3m2",
    "float6_e2m3fn": "ocp_e2m3",
    "float4_e2m1fn": "ocp_e2m1",
}
DETERMINISTIC = [rounding for rounding in Rounding if rounding is not Rounding.STOCHASTIC]


def bits_of(codes: np.ndarray) -> np.ndarray:
    return codes.view(f"u{codes.itemsize}").astype(np.int64)


def all_codes(name: str) -> np.ndarray:
    width = FORMATS[name].bits
    return np.arange(1 << width).astype(f"u{FORMATS[name].carrier.itemsize}")


def values_of(name: str, codes: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # signalling NaN
        return codes.view(NATIVE[name]).astype(np.float64)


def same_numbers(got: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(got, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got)[numbers], np.signbit(expected)[numbers])


def boundaries(name: str) -> np.ndarray:
    """Return every value of a format and every midpoint, and their float64 neighbours, of both signs."""
    values = values_of(name, all_codes(name))
    values = np.unique(values[np.isfinite(values)])
    beyond = values[-1] + (values[-1] - values[-2])
    values = np.concatenate([[-beyond], values, [beyond]])
    points = np.concatenate([values, (values[:-1] + values[1:]) / 2])
    return np.concatenate([points, np.nextafter(points, np.inf), np.nextafter(points, -np.inf)])


def searched_magnitudes(name: str, x: np.ndarray, rounding: Rounding) -> np.ndarray:
    """Return the magnitude codes of x by a search among all values; overflow is one beyond the largest, or it."""
    values = decode(all_codes(name), FORMATS[name])[: 1 << (FORMATS[name].bits - 1)]
    values = values[np.isfinite(values)]  # the positive codes, in order
    assert np.all(np.diff(values) > 0)
    top = len(values) - 1
    values = np.append(values, 2 * values[-1] - values[-2])
    middles = (values[:-1] + values[1:]) / 2  # exact: one more significand bit
    size, negative = np.abs(x), np.signbit(x)
    below = np.minimum(np.searchsorted(values, size, "right") - 1, top)
    exact, tie, above = size == values[below], size == middles[below], size > middles[below]
    outward = {
        "half_even": above | (tie & (below % 2 == 1)),
        "half_away": above | tie,
        "half_toward_zero": above,
        "half_up": above | (tie & ~negative),
        "half_down": above | (tie & negative),
        "toward_zero": np.zeros(x.shape, bool),
        "down": negative,
        "up": ~negative,
    }
    return np.where(exact, below, below + outward[rounding])


@pytest.mark.parametrize("name", NATIVE)
def test_every_code_decodes_as_others_decode_it(name):
    same_numbers(decode(all_codes(name), FORMATS[name]), values_of(name, all_codes(name)))


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_wide_codes_given_as_integers_decode_to_what_numpy_sees_in_them(name):
    values = np.random.default_rng(3).standard_normal(1000).astype(name) * np.array([[1], [0], [2.0**-140]], name)
    values = np.append(values, np.array([np.inf, -np.inf, np.nan], name))
    for kind in "ui":
        same_numbers(decode(values.view(f"{kind}{values.itemsize}"), FORMATS[name]), values.astype(np.float64))


@pytest.mark.parametrize("name", NATIVE)
def test_every_value_encodes_to_its_own_code(name):
    codes = all_codes(name)
    values = values_of(name, codes)
    numbers = ~np.isnan(values)
    for rounding in DETERMINISTIC:
        got = encode(values[numbers], FORMATS[name], rounding)
        np.testing.assert_array_equal(bits_of(got), codes[numbers])


@pytest.mark.parametrize("name", [*NATIVE, "float32", "float64"])
def test_limits_are_those_of_finfo(name):
    fmt, limits = FORMATS[name], ml_dtypes.finfo(NATIVE.get(name, name))
    assert fmt.maximum == float(limits.max)
    assert fmt.smallest == float(limits.smallest_subnormal)
    assert fmt.maximum_exponent == np.frexp(fmt.maximum)[1] - 1
    assert 2 * fmt.unit_roundoff == float(limits.eps)
    assert 2.0**fmt.minimum_exponent == float(limits.smallest_normal)
    assert (fmt.bits, fmt.exponent_bits, fmt.mantissa_bits) == (limits.bits, limits.nexp, limits.nmant)


@pytest.mark.parametrize("rounding", DETERMINISTIC)
@pytest.mark.parametrize("name", NATIVE)
def test_every_decision_boundary_falls_as_a_search_among_all_values_says(name, rounding):
    fmt, x = FORMATS[name], boundaries(name)
    largest = fmt.largest_magnitude
    expected = searched_magnitudes(name, x, rounding)
    assert expected.max() == largest + (rounding != "toward_zero"), "the boundary of overflow is among them"
    sign = np.where(np.signbit(x), 1 << (fmt.bits - 1), 0)
    saturated = np.minimum(expected, largest)
    if name.endswith("uz"):  # zero has no sign, which alone is NaN
        lost = np.where(expected > largest, 1 << (fmt.bits - 1), expected | np.where(expected == 0, 0, sign))
        saturated |= np.where(saturated == 0, 0, sign)
    else:
        lost = (expected if fmt.nan_code else saturated) | sign
        saturated |= sign
    np.testing.assert_array_equal(bits_of(encode(x, fmt, rounding)), lost)
    np.testing.assert_array_equal(bits_of(encode(x, fmt, rounding, Overflow.SATURATE)), saturated)


def wide_inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    patterns = rng.integers(0, 1 << 32, 500_000, np.uint64).astype(np.uint32).view(np.float32)
    with np.errstate(over="ignore"):
        near = (rng.standard_normal(500_000) * 2.0 ** rng.integers(-20, 20, 500_000)).astype(np.float32)
    return {
        "all float16": all_codes("float16").view(np.float16).astype(np.float32),
        "all bfloat16": all_codes("bfloat16").view(ml_dtypes.bfloat16).astype(np.float32),
        "random float32": np.concatenate([patterns, near]),
    }


@pytest.mark.parametrize("inputs", ["all float16", "all bfloat16", "random float32"])
@pytest.mark.parametrize("name", NATIVE)
def test_nearest_even_encodes_as_ml_dtypes_and_numpy(name, inputs):
    x = wide_inputs()[inputs]
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(NATIVE[name])
        got = encode(x, FORMATS[name])
    nan = np.isnan(x) if FORMATS[name].nan_code is None else np.isnan(expected.astype(np.float32))
    np.testing.assert_array_equal(bits_of(got)[~nan], bits_of(expected)[~nan])
    if FORMATS[name].nan_code is not None:
        assert np.all(np.isnan(decode(got[nan], FORMATS[name])))


def test_float64_encodes_to_float32_as_numpy():
    rng = np.random.default_rng(5)
    x = rng.standard_normal(200_000) * 2.0 ** rng.integers(-160, 135, 200_000)
    with np.errstate(over="ignore"):
        ties = (x.astype(np.float32).astype(np.float64) + np.nextafter(x.astype(np.float32), np.float32(0))) / 2
        x = np.concatenate([x, ties, np.nextafter(ties, np.inf), [0.0, -0.0, np.inf, -np.inf]])
        expected = x.astype(np.float32)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(bits_of(encode(x, FORMATS["float32"]))[numbers], bits_of(expected)[numbers])


@pytest.mark.parametrize(
    ("rounding", "mode"),
    [("half_even", "TiesToEven"), ("half_away", "TiesToAway"), ("toward_zero", "TowardZero"),
     ("down", "TowardNegative"), ("up", "TowardPositive")],
)  # fmt: skip
@pytest.mark.parametrize("name", GFLOAT)
def test_boundaries_round_as_in_gfloat(name, rounding, mode):
    gfloat = pytest.importorskip("gfloat")
    from gfloat import formats

    fmt, x = FORMATS[name], boundaries(name)
    x = x[np.abs(x) <= fmt.maximum]
    if fmt.bits == 16:
        x = np.random.default_rng(6).choice(x, 50_000, replace=False)
    info = getattr(formats, f"format_info_{GFLOAT[name]}")
    expected = gfloat.round_ndarray(info, x, gfloat.RoundMode[mode])
    same_numbers(round_to_format(x, fmt, Rounding(rounding)), np.asarray(expected))


def every_kind_of_float32(count: int) -> np.ndarray:
    """Return random bits, bits beside those of short significands, and the NaN of the largest payload."""
    rng = np.random.default_rng(8)
    bits = rng.integers(0, 1 << 32, count, np.uint64)
    short = (bits & 0xFFFFC000) + rng.integers(0, 3, count, np.uint64) - 1
    return np.concatenate([bits, short, [0xFFFFFFFF, 0x7FFFFFFF]]).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize("rounding", DETERMINISTIC)
@pytest.mark.parametrize("name", [*NATIVE, "float8_e8m0fnu"])
def test_the_table_holds_what_the_definition_gives(name, rounding):
    fmt = FORMATS[name]
    x = every_kind_of_float32(max(1 << 15, _entries(fmt) // 2))
    assert x.size >= _entries(fmt), "the table is used"
    domain = OutsideDomain.MAGNITUDE
    with np.errstate(invalid="ignore"):
        wide = x.astype(np.float64)
    for overflow in (Overflow.SATURATE, Overflow.INFINITY_OR_NAN):
        np.testing.assert_array_equal(
            bits_of(encode(x, fmt, rounding, overflow, domain)),
            bits_of(_carried(_exact(x, fmt, rounding, overflow, domain), fmt)),
        )
    with np.errstate(over="ignore", invalid="ignore"):
        between = np.nextafter(wide, np.where(np.arange(x.size) % 2, np.inf, 0.0))
    np.testing.assert_array_equal(
        bits_of(encode(between, fmt, rounding)),
        bits_of(_carried(_exact(between, fmt, rounding, Overflow.INFINITY_OR_NAN, OutsideDomain.NAN), fmt)),
    )


def test_large_arrays_of_any_shape_and_stride_are_encoded_elementwise():
    x = np.random.default_rng(9).standard_normal((300, 2, 400)).astype(np.float32)
    fmt = FORMATS["float8_e4m3fn"]
    whole = encode(x, fmt)
    np.testing.assert_array_equal(encode(x[::-1, :, ::3], fmt), whole[::-1, :, ::3])
    np.testing.assert_array_equal(encode(x.astype(np.float16), fmt), encode(x.astype(np.float16).astype(float), fmt))


#: Between these, ml_dtypes 0.6 and torch 2.13 go up to 2**-126, though 2**-127 is nearer: both look at the leading
#: mantissa bit, which is a rounding bit for normal float32 numbers, and the number itself for these subnormal ones.
UPWARD_ALONE = (2.0**-127, 1.5 * 2.0**-127)


def agrees_but_for_subnormals(x: np.ndarray, got: np.ndarray, expected: np.ndarray) -> None:
    with np.errstate(invalid="ignore"):
        alone = (np.abs(x) > UPWARD_ALONE[0]) & (np.abs(x) < UPWARD_ALONE[1])
    assert alone.any()
    np.testing.assert_array_equal(got[~alone], expected[~alone])
    kept = alone & (expected != 255)
    assert set(got[kept]) == {0}
    assert set(expected[kept]) == {1}


def test_e8m0_is_the_nearest_power_of_two_as_in_ml_dtypes():
    """Ties go up: 1.5 -> 128, 3 -> 129, 6 -> 130; zero and negative numbers are NaN (definitions, trap 13)."""
    fmt = FORMATS["float8_e8m0fnu"]
    codes = np.arange(256, dtype=np.uint8)
    same_numbers(decode(codes, fmt), codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float64))
    bits = np.arange(1 << 18, dtype=np.uint32) << 14
    x = np.concatenate([bits, bits + 1, bits - 1]).view(np.float32)
    with np.errstate(invalid="ignore"):
        expected = x.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    agrees_but_for_subnormals(x, encode(x, fmt), expected)
    assert encode(np.array([1.5, 3.0, 6.0, 0.0, -1.0]), fmt).tolist() == [128, 129, 130, 255, 255]


def test_e8m0_of_torch_drops_the_sign():
    torch = pytest.importorskip("torch")
    fmt = FORMATS["float8_e8m0fnu"]
    x = every_kind_of_float32(1 << 16)
    x[:100] = np.linspace(-(2.0**-126), 2.0**-126, 100)
    expected = torch.from_numpy(x).to(torch.float8_e8m0fnu).view(torch.uint8).numpy()
    agrees_but_for_subnormals(x, encode(x, fmt, outside_domain="magnitude"), expected)
    assert encode(np.array([0.0, -1.0]), fmt, outside_domain="magnitude").tolist() == [0, 127]


@pytest.mark.parametrize("name", ["float8_e4m3fnuz", "float8_e5m2fnuz"])
def test_the_sign_alone_is_nan_in_fnuz(name):
    fmt = FORMATS[name]
    got = encode(np.array([0.0, -0.0, -1e-30, np.nan, -np.nan, np.inf, 1e9]), fmt)
    assert got.tolist() == [0, 0, 0, 0x80, 0x80, 0x80, 0x80]
    assert encode(np.array([np.inf, -1e9]), fmt, overflow="saturate").tolist() == [0x7F, 0xFF]


def test_float4_of_ml_dtypes_makes_minus_zero_of_nan_which_no_specification_asks():
    x = np.array([np.nan, np.inf, -np.inf], np.float32)
    assert x.astype(ml_dtypes.float4_e2m1fn).view(np.uint8).tolist() == [8, 7, 15]
    assert encode(x, FORMATS["float4_e2m1fn"]).tolist() == [7, 7, 15]


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float6_e3m2fn", "float4_e2m1fn", "bfloat16"])
def test_stochastic_rounding_is_that_of_gfloat(name):
    """Gfloat compares the fraction with the bits plus one half; so does the reference, given these as numbers."""
    gfloat = pytest.importorskip("gfloat")
    from gfloat import formats

    fmt, rng = FORMATS[name], np.random.default_rng(10)
    x = rng.standard_normal(20_000) * 2.0 ** rng.integers(-9, 3, 20_000)
    x = np.clip(x, -fmt.maximum, fmt.maximum)
    bits = rng.integers(0, 1 << 16, x.size)
    info = getattr(formats, f"format_info_{GFLOAT[name]}")
    expected = gfloat.round_ndarray(info, x, gfloat.RoundMode.Stochastic, srbits=bits, srnumbits=16)
    got = decode(encode(x, fmt, Rounding.STOCHASTIC, random=1 - (bits + 1) / 2.0**16), fmt)
    changed = np.mean(got != expected)
    assert changed < 1e-3, changed


def test_stochastic_rounding_asks_for_its_random_numbers():
    for random in (None, np.zeros(3)):
        with pytest.raises(ValueError, match=r"random: stochastic rounding needs numbers in \[0, 1\) of the shape"):
            encode(np.ones(2), FORMATS["float8_e5m2"], Rounding.STOCHASTIC, random=random)


def test_a_code_with_more_bits_than_the_format_is_refused():
    with pytest.raises(ValueError, match="16 is no code of float4_e2m1fn, which has 4 bits"):
        decode(np.array([3, 16], np.uint8), FORMATS["float4_e2m1fn"])


NAN, INF = np.nan, np.inf
SATURATION = [  # value, e4m3fn: saturate, saturate_finite, infinity_or_nan; e5m2: the same
    (448.0, 448, 448, 448, 448, 448, 448),
    (464.0, 448, 448, 448, 448, 448, 448),
    (np.nextafter(464.0, INF), 448, 448, NAN, 448, 448, 448),
    (465.0, 448, 448, NAN, 448, 448, 448),
    (57344.0, 448, 448, NAN, 57344, 57344, 57344),
    (np.nextafter(61440.0, 0), 448, 448, NAN, 57344, 57344, 57344),
    (61440.0, 448, 448, NAN, 57344, 57344, INF),
    (1e9, 448, 448, NAN, 57344, 57344, INF),
    (INF, 448, NAN, NAN, 57344, INF, INF),
    (NAN, NAN, NAN, NAN, NAN, NAN, NAN),
    (0.0, 0, 0, 0, 0, 0, 0),
    (2.0**-11, 0, 0, 0, 2.0**-11, 2.0**-11, 2.0**-11),
]


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("row", SATURATION, ids=lambda row: str(row[0]))
def test_float8_overflow_follows_the_table(row, sign):
    columns = [(name, overflow) for name in ("float8_e4m3fn", "float8_e5m2") for overflow in Overflow]
    for (name, overflow), expected in zip(columns, row[1:], strict=True):
        fmt = FORMATS[name]
        code = encode(np.copysign([row[0]], sign), fmt, overflow=overflow)
        same_numbers(decode(code, fmt), np.array([sign * expected], np.float64))
        assert bool(bits_of(code)[0] >> 7) == (sign < 0)


@pytest.mark.parametrize("name", [name for name in NATIVE if FORMATS[name].nan_code is not None])
@pytest.mark.parametrize("rounding", DETERMINISTIC)
def test_only_roundings_that_lead_outward_overflow(name, rounding):
    """IEEE 754-2019 §7.4: to nearest, to infinity; directed, to the largest number on the inner side."""
    fmt = FORMATS[name]
    lost = np.inf if fmt.infinity else np.nan
    positive = fmt.maximum if rounding in ("toward_zero", "down") else lost
    negative = -fmt.maximum if rounding in ("toward_zero", "up") else -lost
    for size in (1.99 * fmt.maximum, 1e200):
        same_numbers(decode(encode(np.array([size, -size]), fmt, rounding), fmt), np.array([positive, negative]))


@pytest.mark.parametrize("name", INTEGER_FORMATS)
def test_integer_ranges_are_those_of_iinfo_or_of_their_bits(name):
    fmt = integer_format(name)
    bits, signed = int(name.lstrip("uint")), not name.startswith("u")
    assert (fmt.minimum, fmt.maximum) == ((-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1))
    assert fmt.codes(narrow_range=True) == (fmt.minimum + 1, fmt.maximum)
    if bits in (2, 4, 8):
        limits = ml_dtypes.iinfo(getattr(ml_dtypes, name, None) or getattr(np, name))
        assert fmt.codes() == (limits.min, limits.max)
    assert fmt.carrier == (np.int8 if signed else np.uint8)
    np.testing.assert_array_equal(decode(np.array(fmt.codes(), fmt.carrier), fmt), fmt.codes())


@pytest.mark.parametrize("name", ["float32", "float64", "float16", "bfloat16"])
def test_round_to_format_is_the_cast_of_others(name):
    x = np.random.default_rng(7).standard_normal(100_000).astype(np.float32)
    expected = x.astype(NATIVE.get(name, name)).astype(np.float64)
    np.testing.assert_array_equal(round_to_format(x, FORMATS[name]), expected)


def test_bfloat16_of_a_float64_is_rounded_once():
    """Rounding to float32 first lands on the tie, and then goes the wrong way."""
    x = 1 + 2.0**-8 + 2.0**-40
    assert round_to_format(np.array(x), FORMATS["bfloat16"]) == 1 + 2.0**-7
    assert round_to_format(np.array(np.float64(np.float32(x))), FORMATS["bfloat16"]) == 1.0


@pytest.mark.parametrize("name", ["int9", "int1", "int32", "float32", "fp8", ""])
def test_an_unknown_integer_format_is_refused_with_the_admissible_names(name):
    with pytest.raises(ValueError, match=r"format: .* is not an integer format; admissible: int2, .*uint8"):
        integer_format(name)


@pytest.mark.parametrize("name", ["int8", "float8", "half", ""])
def test_an_unknown_float_format_is_refused_with_the_admissible_names(name):
    with pytest.raises(ValueError, match=r"format: .* is not a float format; admissible: float64, .*float8_e5m2"):
        float_format(name)
