"""MX: scales, elements and products by definition, and against torchao, gfloat, ml_dtypes, compressed-tensors, gguf."""

import math
from fractions import Fraction

import gfloat
import ml_dtypes
import numpy as np
import pytest
from gfloat.formats import (
    format_info_mxfp4_e2m1,
    format_info_mxfp6_e2m3,
    format_info_mxfp6_e3m2,
    format_info_mxfp8_e4m3,
    format_info_mxfp8_e5m2,
    format_info_mxint8,
)

from lowbit_cts.reference.choices import Division, InfinityInBlock, NanInBlock, Overflow, Rounding, ScaleMode
from lowbit_cts.reference.formats import FORMATS, decode
from lowbit_cts.reference.mx import (
    MX_BLOCK,
    MX_FORMATS,
    block_maxima,
    choose_scale_mx,
    decode_element_mx,
    dequantize_mx,
    dequantize_mx_enclosure,
    encode_mx,
    quantize_mx,
    quantize_mx_enclosure,
)

FLOATS = MX_FORMATS[:-1]
NATIVE = {name: getattr(ml_dtypes, name) for name in FLOATS}
GFLOAT = dict(
    zip(
        MX_FORMATS,
        (
            format_info_mxfp8_e4m3,
            format_info_mxfp8_e5m2,
            format_info_mxfp6_e3m2,
            format_info_mxfp6_e2m3,
            format_info_mxfp4_e2m1,
            format_info_mxint8,
        ),
        strict=True,
    )
)
EMAX = dict(zip(MX_FORMATS, (8, 15, 4, 2, 2, 0), strict=True))
MANTISSA = dict(zip(MX_FORMATS, (3, 2, 2, 3, 1, 6), strict=True))
LARGEST = dict(zip(MX_FORMATS, (448.0, 57344.0, 28.0, 7.5, 6.0, 127 / 64), strict=True))
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
NAN, INF = float("nan"), float("inf")


def neighbourhoods_of_powers() -> np.ndarray:
    """Return every positive power of two of float32, and the numbers below and above it."""
    powers = np.ldexp(np.float32(1), np.arange(-149, 128)).astype(np.float32)
    zero, infinity = np.float32(0), np.float32(np.inf)
    near = np.unique(np.concatenate([powers, np.nextafter(powers, zero), np.nextafter(powers, infinity)]))
    return np.append(near[near > 0], np.float32(LARGEST_FLOAT32))


def boundaries(format: str) -> np.ndarray:
    """Return magnitudes around which elements, or the scales of blocks with such a maximum, change."""
    codes = np.arange(128 if format == "int8" else 1 << FORMATS[format].bits)
    values = decode_element_mx(codes, format)
    values = np.unique(np.abs(values[np.isfinite(values)]))
    points = np.concatenate([values, (values[1:] + values[:-1]) / 2, [2 * values[-1] - values[-2]]]).astype(np.float32)
    return np.concatenate([points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(0))])


def as_blocks(values: np.ndarray) -> np.ndarray:
    """Return float32 values as rows of blocks, filled up with the last."""
    filled = np.append(values, np.repeat(values[-1], -len(values) % (2 * MX_BLOCK)))
    return filled.astype(np.float32).reshape(-1, 2 * MX_BLOCK)


def maxima_of_blocks(maxima: np.ndarray) -> np.ndarray:
    """Return a block for each of these maxima, with smaller elements of either sign beside it."""
    x = np.linspace(-1, 1, MX_BLOCK, dtype=np.float32) * maxima[:, None] * np.float32(0.9)
    x[np.arange(len(x)), np.arange(len(x)) % MX_BLOCK] = maxima * np.where(np.arange(len(x)) % 3, 1, -1)
    return x.astype(np.float32)


def matrices(format: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(60)
    signs = rng.choice(np.array([-1, 1], np.float32), (64, 256))
    points = boundaries(format)
    shuffled = as_blocks(rng.permutation(np.tile(points, 1 + 2048 // len(points))))
    scales = 2.0 ** rng.integers(-100, 100, (shuffled.shape[0], 1))
    wide = rng.standard_normal((512, 64)) * 2.0 ** rng.uniform(-140, 125, (512, 2)).repeat(32, axis=1)
    loguniform = signs * np.exp2(rng.uniform(-20, 20, signs.shape))
    return {
        "gaussian": rng.standard_normal((64, 256)).astype(np.float32),
        "elements of all magnitudes": loguniform.astype(np.float32),
        "blocks of all magnitudes": wide.astype(np.float32),
        "boundaries": (shuffled * scales).astype(np.float32),
        "maxima at boundaries": maxima_of_blocks(np.unique(points)[1:]),
        "maxima at powers": maxima_of_blocks(neighbourhoods_of_powers()),
        "zeros": np.zeros((2, 64), np.float32) * np.array([[1], [-1]], np.float32),
    }


def exact_exponent(amax: float, format: str, mode: str) -> int:
    """Return the scale's exponent by integers: amax is a multiple of 2**-149."""
    whole = int(Fraction(amax) * 2**149)
    floor = whole.bit_length() - 1
    if mode == "floor":
        exponent = floor - 149 - EMAX[format]
    elif mode == "ceil":
        exponent = (whole - 1).bit_length() - 149 - EMAX[format]
    elif mode in ("even", "even_e2m1"):
        half = Fraction(2) ** (floor - (1 if mode == "even_e2m1" else MANTISSA[format]) - 1)
        exponent = int(whole + half).bit_length() - 1 - 149 - EMAX[format]
    else:
        quotient = Fraction(float(np.float32(amax) / np.float32(LARGEST[format])))
        exponent = next(e for e in range(-127, 129) if Fraction(2) ** e >= quotient)
    return min(max(exponent, -127), 127)


@pytest.mark.parametrize("mode", ScaleMode)
@pytest.mark.parametrize("format", MX_FORMATS)
def test_exponents_are_exact_at_every_power_of_two(format, mode):
    """Trap 2: floor(log2 amax) in float32 is wrong at the largest float below 2**k for most k."""
    maxima = neighbourhoods_of_powers()
    if mode is not ScaleMode.FLOOR:
        maxima = maxima[:: 1 if mode is ScaleMode.RCEIL else 2]
    if mode is ScaleMode.RCEIL:
        maxima = np.unique(
            np.concatenate([maxima[::5], maxima[maxima < 1e38] * np.float32(LARGEST[format] / 2 ** EMAX[format])])
        )
    x = np.zeros((len(maxima), MX_BLOCK), np.float32)
    x[:, 7] = -maxima
    found = choose_scale_mx(x, format=format, scale_mode=mode)
    expected = [exact_exponent(float(amax), format, mode) + 127 for amax in maxima]
    np.testing.assert_array_equal(found[:, 0], expected)


def test_the_largest_number_below_16_has_the_scale_of_8():
    """Trap 2: with the logarithm of float32 MXFP4 gives [16, 0], its exponent being one too large."""
    x = np.zeros((1, MX_BLOCK), np.float32)
    x[0, :2] = np.nextafter(np.float32(16), np.float32(0)), 1
    codes, scales = quantize_mx(x, format="float4_e2m1fn")
    assert scales.tolist() == [[128]]
    assert dequantize_mx(codes, scales, format="float4_e2m1fn")[0, :2].tolist() == [12, 1]


@pytest.mark.parametrize("format", MX_FORMATS)
def test_floor_never_wastes_a_binade_and_ceil_and_rceil_never_saturate(format):
    x = matrices(format)["blocks of all magnitudes"]
    amax = np.abs(x).reshape(512, 2, MX_BLOCK).max(-1).astype(np.float64)
    quotients = {
        mode: amax / decode(choose_scale_mx(x, format=format, scale_mode=mode), FORMATS["float8_e8m0fnu"])
        for mode in ScaleMode
    }
    unclamped = amax > 2.0**-110
    top = 2.0 ** EMAX[format]
    floor, ceil = quotients[ScaleMode.FLOOR][unclamped], quotients[ScaleMode.CEIL][unclamped]
    assert np.all((top <= floor) & (floor < 2 * top))
    assert np.all((top / 2 < ceil) & (ceil <= top))
    rceil = quotients[ScaleMode.RCEIL][unclamped] / LARGEST[format]
    assert np.all((rceil > 0.5) & (rceil <= 1 + 2.0**-24))


@pytest.mark.parametrize("format", MX_FORMATS)
def test_rceil_is_the_same_by_division_and_by_reciprocal_but_for_one_float(format):
    """Both grow with amax, so they agree everywhere if they do around every max * 2**k; not so just above int8's."""
    powers = np.ldexp(np.float32(LARGEST[format]), np.arange(-126, 127 - EMAX[format])).astype(np.float32)
    sides = [np.nextafter(powers, np.float32(0)), powers, np.nextafter(powers, np.float32(INF))]
    sides.append(np.nextafter(sides[-1], np.float32(INF)))
    codes = []
    for maxima in sides:
        x = maxima_of_blocks(maxima)
        by_division, by_reciprocal = (
            choose_scale_mx(x, format=format, scale_mode="rceil", division=way)[:, 0].astype(int)
            for way in (Division.DIVIDE, Division.RECIPROCAL)
        )
        codes.append(by_division)
        apart = format == "int8" and maxima is sides[2]
        np.testing.assert_array_equal(by_division - by_reciprocal, int(apart))
    np.testing.assert_array_equal(codes[0], codes[1])
    np.testing.assert_array_equal(codes[2], codes[1] + 1)


# Oracles


def torchao_mx():
    return pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")


def torchao_format(name: str):
    torch = pytest.importorskip("torch")
    sixes = {"float6_e3m2fn": "fp6_e3m2", "float6_e2m3fn": "fp6_e2m3", "float4_e2m1fn": "float4_e2m1fn_x2"}
    return sixes[name] if name.startswith("float6") else getattr(torch, sixes.get(name, name))


def torchao_codes(x: np.ndarray, format: str, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Return codes and scales of torchao, one code an element."""
    torch, module = pytest.importorskip("torch"), torchao_mx()
    scales, codes = module.to_mx(
        torch.from_numpy(np.ascontiguousarray(x)), torchao_format(format), MX_BLOCK, module.ScaleCalculationMode(mode)
    )
    codes = codes.view(torch.uint8).numpy()
    if format == "float4_e2m1fn":
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(x.shape)
    return codes, scales.view(torch.uint8).numpy().reshape(x.shape[0], -1)


# What torchao 0.18 does with elements under the smallest scale, of code 0, that is 2**-127: floor, ceil and even divide
# by 2**-126 instead (https://github.com/pytorch/ao/issues/1104), rceil by 1 (as TransformerEngine did before
# https://github.com/NVIDIA/TransformerEngine/pull/2647). Both are mended upstream (https://github.com/pytorch/ao/pull/4725).
TORCHAO_AT_SMALLEST = {"floor": 1, "ceil": 1, "even": 1, "rceil": 127}


@pytest.mark.parametrize("mode", TORCHAO_AT_SMALLEST)
@pytest.mark.parametrize("format", FLOATS)
def test_codes_and_scales_are_those_of_torchao(format, mode):
    torchao_mx()
    for name, x in matrices(format).items():
        codes, scales = quantize_mx(x, format=format, scale_mode=mode)
        other_codes, other_scales = torchao_codes(x, format, mode)
        same = scales == other_scales
        if mode == "rceil":  # but for its logarithm: see the next test
            same |= ~just_above_a_power(x, format)
        np.testing.assert_array_equal(scales[same], other_scales[same], err_msg=name)
        as_torchao = encode_mx(x, np.where(scales == 0, TORCHAO_AT_SMALLEST[mode], scales), format=format)
        for expected, blocks in [(as_torchao, same), (codes, same & (scales > 0))]:
            elements = np.repeat(blocks, MX_BLOCK, axis=1)
            np.testing.assert_array_equal(expected[elements], other_codes[elements], err_msg=name)


def just_above_a_power(x: np.ndarray, format: str) -> np.ndarray:
    """Return which blocks have a quotient amax / max above a power of two by less than 2**-16 of it."""
    quotients = np.abs(x).reshape(len(x), -1, MX_BLOCK).max(axis=-1) / np.float32(LARGEST[format])
    significands = 2 * np.frexp(quotients)[0]
    return (significands > 1) & (significands < 1 + 2.0**-16)


def test_torchao_rounds_a_quotient_just_above_a_power_down_to_it():
    """The mirror of trap 2: ceil(log2(amax / max)) in float32, where `cvt.rp.satfinite.ue8m0x2` of the GPU is exact."""
    torchao_mx()
    x = np.zeros((200, MX_BLOCK), np.float32)
    x[:, 0] = np.nextafter(np.ldexp(np.float32(448), np.arange(-120, 80)).astype(np.float32), np.float32(INF))
    assert just_above_a_power(x, "float8_e4m3fn").all()
    exact, other = (
        quantize_mx(x, format="float8_e4m3fn", scale_mode="rceil")[1],
        torchao_codes(x, "float8_e4m3fn", "rceil")[1],
    )
    off = exact.astype(int) - other
    assert set(off.ravel()) == {0, 1}
    assert np.mean(off) > 0.9


@pytest.mark.parametrize("mode", TORCHAO_AT_SMALLEST)
@pytest.mark.parametrize("format", FLOATS)
def test_blocks_with_nan_and_infinities_are_those_of_torchao(format, mode):
    torchao_mx()
    x = np.random.default_rng(61).standard_normal((6, MX_BLOCK)).astype(np.float32)
    x[0, 3], x[1, 5], x[2, 7], x[3, 0], x[3, 1], x[4, :] = INF, -INF, NAN, NAN, -INF, INF
    infinity = InfinityInBlock.LARGEST_SCALE if mode == "rceil" else InfinityInBlock.NEXT_POWER
    codes, scales = quantize_mx(x, format=format, scale_mode=mode, infinity_in_block=infinity)
    other_codes, other_scales = torchao_codes(x, format, mode)
    np.testing.assert_array_equal(scales, other_scales)
    assert scales[2:4].tolist() == [[255], [255]]
    numbers = np.repeat(scales != 255, MX_BLOCK, axis=1)
    np.testing.assert_array_equal(codes[numbers], other_codes[numbers])
    enclosure = quantize_mx_enclosure(x, format=format, scale_mode=mode, infinity_in_block=infinity)
    assert enclosure["codes"].admits(decode_element_mx(other_codes, format)).all()


@pytest.mark.parametrize("format", FLOATS)
def test_every_code_under_every_scale_decodes_as_in_torchao(format):
    torch, module = pytest.importorskip("torch"), torchao_mx()
    width = FORMATS[format].bits
    codes = np.tile(np.arange(1 << width, dtype=np.uint8), (256, 1 if width > 4 else 2))
    scales = np.arange(256, dtype=np.uint8)[:, None].repeat(codes.shape[1] // MX_BLOCK, axis=1)
    packed = codes[:, ::2] | codes[:, 1::2] << 4 if width == 4 else codes
    stored = torch.from_numpy(packed)
    if width == 8:
        stored = stored.view(getattr(torch, format))
    for output in ("float32", "bfloat16"):
        expected = module.to_dtype(
            stored, torch.from_numpy(scales).view(torch.float8_e8m0fnu), torchao_format(format), MX_BLOCK,
            getattr(torch, output),
        )  # fmt: skip
        found = dequantize_mx(codes, scales, format=format, output_format=output)
        np.testing.assert_array_equal(found, expected.double().numpy())


GFLOAT_ROUNDING = {
    Rounding.HALF_EVEN: gfloat.RoundMode.TiesToEven,
    Rounding.HALF_AWAY: gfloat.RoundMode.TiesToAway,
    Rounding.TOWARD_ZERO: gfloat.RoundMode.TowardZero,
    Rounding.DOWN: gfloat.RoundMode.TowardNegative,
    Rounding.UP: gfloat.RoundMode.TowardPositive,
}


@pytest.mark.parametrize("format", MX_FORMATS)
def test_quantized_blocks_are_those_of_gfloat(format):
    for name, x in matrices(format).items():
        rounding = list(GFLOAT_ROUNDING)[len(name) % len(GFLOAT_ROUNDING)] if name != "boundaries" else None
        blocks = x.reshape(-1, MX_BLOCK)[:48].astype(np.float64)
        for way in GFLOAT_ROUNDING if rounding is None else [Rounding.HALF_EVEN, rounding]:
            codes, scales = quantize_mx(blocks, format=format, rounding=way)
            found = dequantize_mx(codes, scales, format=format, output_format="float64")
            expected = [
                gfloat.quantize_block(GFLOAT[format], block, gfloat.compute_scale_amax, GFLOAT_ROUNDING[way])
                for block in blocks
            ]
            np.testing.assert_array_equal(found, expected, err_msg=f"{name}, {way}")


@pytest.mark.parametrize("format", MX_FORMATS)
def test_every_code_under_every_scale_decodes_as_in_gfloat(format):
    info = GFLOAT[format]
    every = np.arange(1 << info.element_bits)
    scales = np.array([0, 1, 2, 126, 127, 128, 253, 254, 255], np.uint8)
    repeated = np.tile(every, -(-MX_BLOCK // len(every)))
    codes = np.tile(repeated.astype(np.uint8), (len(scales), 1))
    if format == "int8":
        codes = codes.view(np.int8)
    found = dequantize_mx(
        codes, scales[:, None].repeat(len(repeated) // MX_BLOCK, axis=1), format=format, output_format="float64"
    )
    expected = [list(gfloat.decode_block(info, [int(scale), *repeated.tolist()])) for scale in scales]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("format", FLOATS)
def test_elements_are_the_casts_of_ml_dtypes(format):
    """Without saturation, which ml_dtypes does not know; the scales of all blocks are 1."""
    x = as_blocks(np.concatenate([boundaries(format), -boundaries(format)]))
    ones = np.full((x.shape[0], 2), 127, np.uint8)
    with np.errstate(over="ignore"):
        expected = x.astype(NATIVE[format])
    found = encode_mx(x, ones, format=format, overflow=Overflow.INFINITY_OR_NAN)
    np.testing.assert_array_equal(found, expected.view(np.uint8))
    saturated = encode_mx(x, ones, format=format)
    clipped = np.clip(x, -LARGEST[format], LARGEST[format]).astype(NATIVE[format])
    np.testing.assert_array_equal(saturated, clipped.view(np.uint8))


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_scales_are_those_of_compressed_tensors(bits):
    torch = pytest.importorskip("torch")
    scales_of = pytest.importorskip("compressed_tensors.quantization.utils.mxfp_utils").generate_mx_scales
    format = {4: "float4_e2m1fn", 6: "float6_e2m3fn", 8: "float8_e4m3fn"}[bits]
    mode = ScaleMode.EVEN_E2M1 if bits == 8 else ScaleMode.EVEN
    maxima = np.concatenate([neighbourhoods_of_powers(), boundaries(format)])
    # What rounds up to 2**128 is infinite there, and the scale of a finite block NaN.
    maxima = maxima[(maxima > 2.0**-110) & (maxima < 1.5 * 2.0**127)]
    x = maxima_of_blocks(np.append(maxima, np.float32(INF)))
    expected = scales_of(torch.from_numpy(np.abs(x).max(axis=1)), num_bits=bits)
    expected = torch.clamp(expected, 0, 255).to(torch.uint8).numpy()
    np.testing.assert_array_equal(choose_scale_mx(x, format=format, scale_mode=mode)[:, 0], expected)
    assert expected[-1] == 255


def test_mxfp4_with_ties_toward_zero_is_that_of_gguf():
    quants = pytest.importorskip("gguf.quants")
    types = pytest.importorskip("gguf.constants").GGMLQuantizationType
    for name in ("gaussian", "elements of all magnitudes", "boundaries"):
        x = matrices("float4_e2m1fn")[name]
        codes, scales = quantize_mx(x, format="float4_e2m1fn", rounding=Rounding.HALF_TOWARD_ZERO)
        packed = quants.quantize(x, types.MXFP4).reshape(x.shape[0], -1, 17)
        same = packed[..., 0] == scales
        maxima = np.abs(x).reshape(*scales.shape, MX_BLOCK).max(axis=-1)
        below_a_power = np.frexp(np.nextafter(maxima, np.float32(INF)))[0] == 0.5
        assert np.all(same | below_a_power), name  # trap 2
        nibbles = np.concatenate([packed[..., 1:] & 15, packed[..., 1:] >> 4], axis=-1)
        codes = np.where(codes == 8, 0, codes).reshape(nibbles.shape)  # ggml has no -0
        np.testing.assert_array_equal(nibbles[same], codes[same], err_msg=name)


# Published numbers

X = np.random.default_rng(1).standard_normal((4096, 256)).astype(np.float32)


def decibels(**choices) -> float:
    codes, scales = quantize_mx(X, **choices)
    error = dequantize_mx(codes, scales, format=choices["format"]) - X
    return round(10 * math.log10(float(np.sum(X.astype(np.float64) ** 2)) / float(np.sum(error**2))), 2)


@pytest.mark.parametrize(
    ("format", "expected"), list(zip(MX_FORMATS, (30.63, 25.35, 25.35, 30.94, 18.77, 41.67), strict=True))
)
def test_signal_to_noise_is_that_of_microxcaling(format, expected):
    assert decibels(format=format, narrow_range=True) == expected


@pytest.mark.parametrize(
    ("format", "expected"),
    [("float8_e4m3fn", (30.63, 31.52, 31.18, 31.52)), ("float4_e2m1fn", (18.77, 16.81, 19.01, 18.73))],
)
def test_signal_to_noise_of_the_scale_modes_is_that_of_torchao(format, expected):
    modes = (ScaleMode.FLOOR, ScaleMode.CEIL, ScaleMode.EVEN, ScaleMode.RCEIL)
    assert tuple(decibels(format=format, scale_mode=mode) for mode in modes) == expected


def test_bits_an_element():
    bits = {format: FORMATS[format].bits + 8 / MX_BLOCK for format in MX_FORMATS}
    assert list(bits.values()) == [8.25, 8.25, 6.25, 6.25, 4.25, 8.25]
    assert all(bits[format] == GFLOAT[format].block_size_bytes * 8 / MX_BLOCK for format in MX_FORMATS)


# Choices and special values


def test_microxcaling_rounds_ties_away_from_zero():
    x = np.zeros((1, MX_BLOCK))
    x[0, :4] = 4, 2.5, 0.25, -0.25
    for rounding, expected in [("half_away", [4, 3, 0.5, -0.5]), ("half_even", [4, 2, 0, 0])]:
        codes, scales = quantize_mx(x, format="float4_e2m1fn", rounding=rounding)
        assert dequantize_mx(codes, scales, format="float4_e2m1fn")[0, :4].tolist() == expected


def test_mxint8_is_twos_complement_and_the_narrow_range_symmetric():
    x = np.zeros((1, MX_BLOCK))
    x[0, :4] = -1.999, 1.999, -1.0, 1 / 128
    for narrow, least in [(False, -128), (True, -127)]:
        codes, scales = quantize_mx(x, format="int8", narrow_range=narrow)
        assert codes.dtype == np.int8
        assert scales.tolist() == [[127]]
        assert codes[0, :4].tolist() == [least, 127, -64, 0]
        assert dequantize_mx(codes, scales, format="int8")[0, :3].tolist() == [least / 64, 127 / 64, -1]


@pytest.mark.parametrize("mode", ScaleMode)
@pytest.mark.parametrize("format", MX_FORMATS)
def test_a_zero_block_has_the_smallest_scale(format, mode):
    x = np.array([[0.0], [-0.0]]).repeat(MX_BLOCK, axis=1)
    codes, scales = quantize_mx(x, format=format, scale_mode=mode)
    assert scales.tolist() == [[0], [0]]
    assert not np.any(dequantize_mx(codes, scales, format=format))


@pytest.mark.parametrize("format", MX_FORMATS)
def test_subnormal_blocks_have_the_smallest_scale_and_exact_elements(format):
    """amax below 2**-126: X is 2**-127, itself subnormal, and V / X is still V / X."""
    multiples = np.array([0, 1, 2, 3, -1, -3] + [0] * 26)
    for exponent in (-149, -140, -128, -127):
        x = (multiples * 2.0**exponent)[None, :]
        codes, scales = quantize_mx(x, format=format)
        if exponent < -128 or format != "int8":
            assert scales.tolist() == [[0]]
        step = {"int8": 2.0**-6}.get(format) or FORMATS[format].smallest
        coarse = step * 2.0 ** (int(scales[0, 0]) - 127)
        found = dequantize_mx(codes, scales, format=format)
        assert np.all(np.abs(found - x) <= max(coarse, 2.0 ** -MANTISSA[format] * np.abs(x).max()) / 2)
        if coarse <= 2.0**exponent and format != "int8":
            np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("mode", ScaleMode)
@pytest.mark.parametrize("format", MX_FORMATS)
def test_the_largest_float32_stays_finite(format, mode):
    x = np.full((1, MX_BLOCK), LARGEST_FLOAT32)
    codes, scales = quantize_mx(x, format=format, scale_mode=mode)
    assert scales[0, 0] <= 254
    found = dequantize_mx(codes, scales, format=format, output_format="float64")
    assert np.all((found >= 0.75 * LARGEST_FLOAT32) & (found <= 2.0**128))
    enclosure = dequantize_mx_enclosure(codes, scales, format=format)
    with np.errstate(over="ignore"):
        assert enclosure.admits(found.astype(np.float32)).all()


@pytest.mark.parametrize("format", MX_FORMATS)
def test_a_nan_makes_the_scale_nan_or_is_ignored(format):
    x = np.linspace(-1, 1, 2 * MX_BLOCK)[None, :].copy()
    clean, scales = quantize_mx(x, format=format)
    x[0, 3] = NAN
    codes, with_nan = quantize_mx(x, format=format)
    assert with_nan.tolist() == [[255, scales[0, 1]]]
    assert not np.any(codes[0, :MX_BLOCK])
    np.testing.assert_array_equal(codes[0, MX_BLOCK:], clean[0, MX_BLOCK:])
    found = dequantize_mx(codes, with_nan, format=format)
    assert np.isnan(found[0, :MX_BLOCK]).all()
    assert np.isfinite(found[0, MX_BLOCK:]).all()
    codes, ignored = quantize_mx(x, format=format, nan_in_block=NanInBlock.IGNORED)
    np.testing.assert_array_equal(ignored, scales)
    others = np.arange(2 * MX_BLOCK) != 3
    np.testing.assert_array_equal(codes[0, others], clean[0, others])
    assert np.isnan(decode_element_mx(codes, format)[0, 3]) == format.startswith("float8")


def test_a_block_of_nothing_but_nan_counts_as_zero_when_they_are_ignored():
    x = np.full((1, MX_BLOCK), NAN)
    assert choose_scale_mx(x, format="float8_e4m3fn", nan_in_block="ignored").tolist() == [[0]]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (InfinityInBlock.NAN_SCALE, 255),
        (InfinityInBlock.LARGEST_SCALE, 254),
        (InfinityInBlock.NEXT_POWER, 128 - 8 + 127),
    ],
)
def test_an_infinity_makes_the_scale_that_is_chosen(choice, expected):
    x = np.ones((1, MX_BLOCK))
    x[0, 5] = -INF
    codes, scales = quantize_mx(x, format="float8_e4m3fn", infinity_in_block=choice)
    assert scales.tolist() == [[expected]]
    if expected != 255:
        assert decode_element_mx(codes, "float8_e4m3fn")[0, [4, 5]].tolist() == [0, -448]
    x[0, 6] = NAN
    assert choose_scale_mx(x, format="float8_e4m3fn", infinity_in_block=choice).tolist() == [[255]]
    ignored = choose_scale_mx(x, format="float8_e4m3fn", infinity_in_block=choice, nan_in_block="ignored")
    assert ignored.tolist() == [[expected]]


def test_an_infinite_element_of_e5m2_may_stay_infinite():
    x = np.ones((1, MX_BLOCK))
    x[0, 5] = -INF
    choices = {"format": "float8_e5m2", "infinity_in_block": "largest_scale"}
    for overflow, expected in [(Overflow.SATURATE, -57344), (Overflow.SATURATE_FINITE, -INF)]:
        codes, _ = quantize_mx(x, overflow=overflow, **choices)
        assert decode_element_mx(codes, "float8_e5m2")[0, 5] == expected


@pytest.mark.parametrize("format", MX_FORMATS)
def test_stochastic_rounding_goes_up_by_its_fraction(format):
    x = np.linspace(-1, 1, 64 * MX_BLOCK).reshape(1, -1)
    choices = {"format": format, "scale_mode": ScaleMode.CEIL}  # nothing saturates
    draws = [np.full(x.shape, u) for u in (np.arange(64) + 0.5) / 64]
    codes = [quantize_mx(x, rounding=Rounding.STOCHASTIC, random=u, **choices) for u in draws]
    mean = np.mean([dequantize_mx(*found, format=format) for found in codes], axis=0)
    nearest = dequantize_mx(*quantize_mx(x, **choices), format=format)
    enclosure = quantize_mx_enclosure(x, rounding=Rounding.STOCHASTIC, **choices)
    for found, _ in codes:
        assert enclosure["codes"].admits(decode_element_mx(found, format)).all()
    step = 2.0 ** -MANTISSA[format]
    assert np.abs(mean - x).max() <= step / 64
    assert np.abs(nearest - x).max() > step / 8


def test_no_dimension_need_have_a_size():
    for shape in [(0, 64), (3, 0)]:
        codes, scales = quantize_mx(np.zeros(shape), format="float4_e2m1fn")
        assert (codes.shape, scales.shape) == (shape, (shape[0], shape[1] // MX_BLOCK))
        assert dequantize_mx(codes, scales, format="float4_e2m1fn").shape == shape


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("format", MX_FORMATS)
def test_the_type_that_holds_the_numbers_does_not_matter(format, dtype):
    x = np.random.default_rng(62).standard_normal((16, 64)).astype(dtype)
    as_float64 = quantize_mx(x.astype(np.float64), format=format)
    as_float32 = quantize_mx(x.astype(np.float32), format=format)
    for one, other in zip(as_float64, as_float32, strict=True):
        np.testing.assert_array_equal(one, other)


# Enclosures


@pytest.mark.parametrize("mode", ScaleMode)
@pytest.mark.parametrize("format", MX_FORMATS)
def test_the_enclosure_admits_the_result_and_no_other(format, mode):
    for x in matrices(format).values():
        codes, scales = quantize_mx(x, format=format, scale_mode=mode)
        enclosure = quantize_mx_enclosure(x, format=format, scale_mode=mode)
        elements = decode_element_mx(codes, format)
        powers = decode(scales, FORMATS["float8_e8m0fnu"])
        assert enclosure["codes"].admits(elements).all()
        assert enclosure["scale"].admits(powers).all()
        assert not enclosure["codes"].admits(np.where(elements == 0, 0.5, elements * 0.5)).any()
        assert not enclosure["scale"].admits(powers * 2).any()


def test_the_enclosure_admits_any_code_of_a_nan_and_under_a_nan_scale():
    x = np.ones((1, 2 * MX_BLOCK))
    x[0, 0] = NAN
    for format in MX_FORMATS:
        enclosure = quantize_mx_enclosure(x, format=format)
        assert np.isnan(enclosure["scale"].exact).tolist() == [[True, False]]
        assert enclosure["codes"].admits(np.full(x.shape, NAN)).tolist()[0] == [True] * 32 + [False] * 32
        ignored = quantize_mx_enclosure(x, format=format, nan_in_block="ignored")["codes"]
        assert ignored.admits(np.full(x.shape, NAN))[0, :2].tolist() == [True, False]
        assert ignored.admits(np.zeros(x.shape))[0, :2].tolist() == [not format.startswith("float8"), False]


def test_an_approximate_division_admits_either_scale_at_a_power_alone():
    x = np.ones((3, MX_BLOCK))
    above = np.nextafter(np.float32(448), np.float32(500))
    x[0, 0], x[1, 0], x[2, 0] = 448, above, 449
    choices = {"format": "float8_e4m3fn", "scale_mode": "rceil", "division": "approximate", "division_ulps": 2}
    enclosure = quantize_mx_enclosure(x, **choices)
    assert enclosure["scale"].lo.ravel().tolist() == [1, 1, 2]
    assert enclosure["scale"].hi.ravel().tolist() == [2, 2, 2]
    assert (enclosure["codes"].lo[:, 1].tolist(), enclosure["codes"].hi[:, 1].tolist()) == (
        [0.5, 0.5, 0.5],
        [1, 1, 0.5],
    )
    judged = quantize_mx_enclosure(x, scales=np.array([[128], [127], [128]], np.uint8), **choices)["codes"]
    np.testing.assert_array_equal(judged.lo[:, 1], [0.5, 1, 0.5])
    np.testing.assert_array_equal(judged.lo, judged.hi)


def test_a_product_beyond_float32_is_left_to_the_implementation():
    codes, scales = np.full((1, MX_BLOCK), 126, np.uint8), np.full((1, 1), 254, np.uint8)
    enclosure = dequantize_mx_enclosure(codes, scales, format="float8_e4m3fn")
    for value in (NAN, INF, LARGEST_FLOAT32):
        assert enclosure.admits(np.full(codes.shape, value)).all()
    half = dequantize_mx_enclosure(codes, scales - 100, format="float8_e4m3fn", output_format="float16")
    assert half.admits(np.full(codes.shape, INF)).all()
    assert not half.admits(np.full(codes.shape, 65504.0)).any()


# Bad input


def raises(argument: str, rule: str):
    return pytest.raises(ValueError, match=f"^{argument}: .*{rule}")


GOOD = np.ones((2, 64))
SCALES = np.full((2, 2), 127, np.uint8)


def test_a_shape_without_whole_blocks_is_an_error():
    for x in (np.ones((2, 33)), np.ones(64), np.ones((1, 2, 32))):
        with raises("x", "multiple of 32 columns"):
            quantize_mx(x, format="int8")
    with raises("codes", "multiple of 32 columns"):
        dequantize_mx(np.zeros((2, 33), np.uint8), SCALES, format="float8_e5m2")


def test_an_unknown_format_is_an_error():
    for format in ("float8_e4m3fnuz", "int4", "mxfp8"):
        with raises("format", "admissible: float8_e4m3fn, .*, int8"):
            quantize_mx(GOOD, format=format)
        with raises("format", "admissible"):
            dequantize_mx(np.zeros((2, 64), np.uint8), SCALES, format=format)


def test_scales_of_another_shape_or_range_are_an_error():
    for scales in (SCALES[:1], SCALES[:, :1], SCALES.astype(int) + 129, SCALES.astype(int) - 128):
        with raises("scales", r"shape \(2, 2\)"):
            encode_mx(GOOD, scales, format="int8")
        with raises("scales", r"shape \(2, 2\)"):
            dequantize_mx(np.zeros((2, 64), np.uint8), scales, format="float8_e5m2")


def test_codes_beyond_the_format_are_an_error():
    for format, code in [("float4_e2m1fn", 16), ("float6_e2m3fn", 64), ("int8", 128), ("int8", -129)]:
        with raises("codes", ""):
            dequantize_mx(np.full((2, 64), code), SCALES, format=format)


def test_choices_that_are_none_are_an_error():
    with raises("scale_mode", "admissible: floor, ceil, rceil, even, even_e2m1"):
        quantize_mx(GOOD, format="int8", scale_mode="round")
    for format in ("int8", "float4_e2m1fn"):
        with raises("random", "stochastic rounding needs numbers"):
            quantize_mx(GOOD, format=format, rounding="stochastic")


def test_a_signaling_nan_is_ignored_like_any_other():
    """IEEE 754-2019, maximumNumber: the number beside a NaN, whichever its payload."""
    x = np.ones((1, 32), np.float32)
    for code in (0x7F800001, 0x7FBFFFFF, 0x7FC00000, 0xFF800001, 0xFFFFFFFF):
        x[0, 5] = np.array([code], np.uint32).view(np.float32)[0]
        assert block_maxima(x, 32, NanInBlock.IGNORED)[0, 0] == 1
        assert np.isnan(block_maxima(x, 32, NanInBlock.NAN_SCALE)[0, 0])
