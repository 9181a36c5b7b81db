"""NVFP4: against torchao, compressed-tensors, gfloat and ml_dtypes; the steps of other libraries by exact rationals."""

import math
from collections.abc import Callable
from fractions import Fraction

import gfloat
import ml_dtypes
import numpy as np
import pytest
from gfloat.formats import format_info_ocp_e2m1, format_info_ocp_e4m3

from lowbit_cts.reference.choices import (
    BlockScaleSteps,
    Division,
    ElementSteps,
    GlobalScaleRule,
    NanInBlock,
    Rounding,
    SmallBlockScale,
    ZeroScale,
)
from lowbit_cts.reference.formats import FORMATS, decode
from lowbit_cts.reference.nvfp4 import (
    NVFP4_BLOCK,
    choose_global_scale_nvfp4,
    choose_global_scale_nvfp4_enclosure,
    choose_scale_nvfp4,
    dequantize_nvfp4,
    dequantize_nvfp4_enclosure,
    encode_nvfp4,
    quantize_nvfp4,
    quantize_nvfp4_enclosure,
)

E2M1, E4M3 = FORMATS["float4_e2m1fn"], FORMATS["float8_e4m3fn"]
NAN, INF = float("nan"), float("inf")
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)

TORCHAO = {
    "block_scale_steps": BlockScaleSteps.DIVIDE,
    "element_steps": ElementSteps.GLOBAL_FIRST,
    "small_block_scale": SmallBlockScale.NORMAL,
}
COMPRESSED_TENSORS = {
    "global_scale_rule": GlobalScaleRule.RECIPROCAL,
    "block_scale_steps": BlockScaleSteps.DIVIDE,
    "element_steps": ElementSteps.DIVIDE,
    "small_block_scale": SmallBlockScale.EIGHTH,
}
TRANSFORMER_ENGINE = {
    "global_scale_rule": GlobalScaleRule.SATURATED_RECIPROCAL,
    "block_scale_steps": BlockScaleSteps.MULTIPLY,
    "element_steps": ElementSteps.RECIPROCAL,
    "small_block_scale": SmallBlockScale.ZERO,
}
MODEL_OPTIMIZER = {
    "block_scale_steps": BlockScaleSteps.DIVIDE_BY_PRODUCT,
    "element_steps": ElementSteps.DIVIDE,
    "small_block_scale": SmallBlockScale.SUBNORMAL,
}
LIBRARIES = [TORCHAO, COMPRESSED_TENSORS, TRANSFORMER_ENGINE, MODEL_OPTIMIZER]


def matrices() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(70)
    wide = rng.standard_normal((128, 64)) * 2.0 ** rng.uniform(-30, 3, (128, 4)).repeat(NVFP4_BLOCK, axis=1)
    far = rng.choice([-1, 1], (128, 64)) * np.exp2(rng.uniform(-30, 30, (128, 64)))
    quarters = rng.integers(-24, 25, (256, 64)) / 4
    return {
        "gaussian": rng.standard_normal((128, 256)).astype(np.float32),
        "blocks of all magnitudes": wide.astype(np.float32),
        "elements of all magnitudes": far.astype(np.float32),
        "quarters": quarters.astype(np.float32),  # ties in plenty: here the order of the steps shows
        "tiny": (wide * 2.0**-90).astype(np.float32),
        "huge": (wide * 2.0**120).astype(np.float32),
        "zero blocks": np.where(rng.random((64, 4)) < 0.5, 0, 1).repeat(NVFP4_BLOCK, axis=1).astype(np.float32)
        * rng.standard_normal((64, 64)).astype(np.float32),
    }


def global_scale(x: np.ndarray, library: dict) -> np.ndarray:
    rule = library.get("global_scale_rule", GlobalScaleRule.AMAX_OVER_2688)
    # PyTorch divides a number by a tensor by multiplying with the tensor's reciprocal.
    division = Division.RECIPROCAL if library is COMPRESSED_TENSORS else Division.DIVIDE
    return choose_global_scale_nvfp4(np.abs(x).max(), global_scale_rule=rule, division=division)


# Oracles


def unpacked(codes: np.ndarray) -> np.ndarray:
    """Return two codes a byte, the even column in the low half."""
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(codes.shape[0], -1)


@pytest.mark.parametrize("levels", [1, 2])
def test_codes_and_scales_are_those_of_torchao(levels):
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    for name, x in matrices().items():
        tensor = torch.from_numpy(x)
        scale = None
        if levels == 2:
            scale = module.per_tensor_amax_to_scale(tensor.abs().max())
            assert global_scale(x, TORCHAO) == scale.numpy()
        expected_scales, packed = module.nvfp4_quantize(tensor, NVFP4_BLOCK, scale)
        codes, scales = quantize_nvfp4(x, None if scale is None else scale.numpy(), **TORCHAO)
        np.testing.assert_array_equal(scales, expected_scales.view(torch.uint8).numpy(), err_msg=name)
        np.testing.assert_array_equal(codes, unpacked(packed.numpy()), err_msg=name)


@pytest.mark.parametrize("output", ["float32", "bfloat16"])
@pytest.mark.parametrize("levels", [1, 2])
def test_values_are_admissible_of_torchao(levels, output):
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    for name, x in matrices().items():
        scale = None if levels == 1 else torch.from_numpy(np.asarray(global_scale(x, TORCHAO)))
        tensor = module.NVFP4Tensor.to_nvfp4(torch.from_numpy(x), NVFP4_BLOCK, scale)
        found = tensor.dequantize(getattr(torch, output)).double().numpy()
        scales = tensor.scale.view(torch.uint8).numpy()
        enclosure = dequantize_nvfp4_enclosure(
            unpacked(tensor.qdata.numpy()), scales, None if scale is None else scale.numpy(), output_format=output
        )
        assert enclosure.admits(found).all(), name


def test_torchao_makes_nan_of_a_zero_matrix_in_two_levels():
    """Its global scale is 0 then, and 0 / 0 its block scales; see `ZeroScale.ZERO`."""
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    scale = module.per_tensor_amax_to_scale(torch.zeros(()))
    assert choose_global_scale_nvfp4(np.zeros(()), zero_scale=ZeroScale.ZERO) == scale.numpy() == 0
    scales, _ = module.nvfp4_quantize(torch.zeros(1, 16), NVFP4_BLOCK, scale)
    assert torch.isnan(scales.float()).all()


def test_blocks_with_nan_and_infinities_are_those_of_torchao():
    torch = pytest.importorskip("torch")
    module = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    x = np.random.default_rng(71).standard_normal((5, 16)).astype(np.float32)
    x[0, 3], x[1, 5], x[2, 7], x[3, 0], x[3, 1] = INF, -INF, NAN, NAN, -INF
    for scale in (None, np.float32(1e-3)):
        expected_scales, packed = module.nvfp4_quantize(
            torch.from_numpy(x), NVFP4_BLOCK, None if scale is None else torch.tensor(scale)
        )
        codes, scales = quantize_nvfp4(x, scale, **TORCHAO)
        np.testing.assert_array_equal(scales, expected_scales.view(torch.uint8).numpy())
        assert scales[:4].ravel().tolist() == [0x7E, 0x7E, 0x7F, 0x7F]
        np.testing.assert_array_equal(codes[[0, 1, 4]], unpacked(packed.numpy())[[0, 1, 4]])
        found = quantize_nvfp4_enclosure(x, scale, **TORCHAO)
        assert found["codes"].admits(decode(unpacked(packed.numpy()), E2M1)).all()


@pytest.mark.parametrize("levels", [1, 2])
def test_codes_scales_and_values_are_those_of_compressed_tensors(levels):
    torch = pytest.importorskip("torch")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    arguments = quantization.QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", symmetric=True, group_size=NVFP4_BLOCK,
        scale_dtype=torch.float8_e4m3fn,
    )  # fmt: skip
    for name, x in matrices().items():
        tensor = torch.from_numpy(x)
        G = None
        if levels == 2:
            G = helpers.generate_gparam(tensor.min(), tensor.max())
            assert global_scale(x, COMPRESSED_TENSORS) == G.numpy()
        blocks = tensor.reshape(x.shape[0], -1, NVFP4_BLOCK)
        expected_scales, zeros = helpers.calculate_qparams(blocks.amin(-1), blocks.amax(-1), arguments, G)
        expected = forward.quantize(tensor.clone(), expected_scales, zeros, arguments, global_scale=G)
        stored = None if G is None else G.numpy()[0]
        codes, scales = quantize_nvfp4(x, stored, **COMPRESSED_TENSORS)
        np.testing.assert_array_equal(decode(scales, E4M3), expected_scales.double().numpy(), err_msg=name)
        np.testing.assert_array_equal(decode(codes, E2M1), expected.double().numpy(), err_msg=name)
        values = forward.dequantize(expected, expected_scales, zeros, arguments, global_scale=G)
        rule = {"global_scale_rule": COMPRESSED_TENSORS["global_scale_rule"]}
        enclosure = dequantize_nvfp4_enclosure(codes, scales, stored, **rule)
        assert enclosure.admits(values.double().numpy()).all(), name


def test_one_level_with_scales_of_powers_of_two_is_a_block_format_of_gfloat():
    """A maximum of 6 * 2**k gives the scale 2**k exactly; gfloat does the rest."""
    info = gfloat.BlockFormatInfo("nvfp4", format_info_ocp_e2m1, NVFP4_BLOCK, format_info_ocp_e4m3)
    assert info.block_size_bytes * 8 / NVFP4_BLOCK == 4.5
    rng = np.random.default_rng(72)
    for exponent in range(-6, 9):
        x = np.clip(rng.standard_normal((2, NVFP4_BLOCK)) * 2, -6, 6) * 2.0**exponent
        x = x.astype(np.float32).astype(np.float64)
        x[:, 5] = -6 * 2.0**exponent
        for library in LIBRARIES:
            codes, scales = quantize_nvfp4(x, **library)
            np.testing.assert_array_equal(decode(scales, E4M3), 2.0**exponent)
            found = dequantize_nvfp4(codes, scales)
            expected = [gfloat.quantize_block(info, block, lambda emax, values: 2.0**exponent) for block in x]  # noqa: B023
            np.testing.assert_array_equal(found, expected)


def test_every_code_under_every_scale_decodes_as_in_ml_dtypes():
    codes = np.tile(np.arange(16, dtype=np.uint8), (256, 1))
    scales = np.arange(256, dtype=np.uint8)[:, None]
    elements = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64)
    factors = scales.view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    np.testing.assert_array_equal(dequantize_nvfp4(codes, scales), elements * factors)
    g = np.float32(0.1)
    expected = (elements * factors * np.float64(g)).astype(np.float32)
    np.testing.assert_array_equal(dequantize_nvfp4(codes, scales, g), expected)


def float32_of(value: Fraction) -> Fraction:
    """Return the float32 nearest to a rational, ties to even, by integers; saturated."""
    if value == 0:
        return value
    exponent = value.numerator.bit_length() - value.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > value
    unit = Fraction(2) ** max(exponent - 23, -149)
    return min(round(value / unit) * unit, Fraction(LARGEST_FLOAT32))


def nearest_code(value: Fraction, values: list[float]) -> int:
    """Return the index of the nearest of increasing values, of two the even one; saturated."""
    exact = [Fraction(v) for v in values]
    return min(range(len(exact)), key=lambda i: (abs(exact[i] - value), i % 2))


ROUND: Callable[[Fraction], Fraction] = float32_of
# Scale of a block and element over it, by the sources named in choices.py: of amax, s, x, g, G = 1 / g.
BY_RATIONALS = {
    "transformer_engine": (
        TRANSFORMER_ENGINE,
        lambda amax, G: ROUND(amax * ROUND(G * ROUND(Fraction(1, 6)))),
        lambda x, s, G: ROUND(x * ROUND(1 / ROUND(s * ROUND(1 / G)))),
    ),
    "model_optimizer": (
        MODEL_OPTIMIZER,
        lambda amax, g: ROUND(amax / ROUND(6 * g)),
        lambda x, s, g: ROUND(x / ROUND(s * g)),
    ),
    "torchao": (
        TORCHAO,
        lambda amax, g: ROUND(ROUND(amax / 6) / g),
        lambda x, s, g: ROUND(x * ROUND(ROUND(1 / g) / s)),
    ),
    "compressed_tensors": (
        COMPRESSED_TENSORS,
        lambda amax, G: ROUND(ROUND(amax / 6) * G),
        lambda x, s, G: ROUND(x / ROUND(s / G)),
    ),
}


@pytest.mark.parametrize("library", BY_RATIONALS)
def test_the_steps_of_each_library_by_exact_rationals(library):
    choices, block_scale, element = BY_RATIONALS[library]
    every_scale = decode(np.arange(127), E4M3).tolist()
    every_element = decode(np.arange(8), E2M1).tolist()
    rng = np.random.default_rng(73)
    x = np.concatenate([rng.standard_normal((8, 16)), rng.integers(-24, 25, (24, 16)) / 4]).astype(np.float32)
    x[:, 3] = np.maximum(x[:, 3], np.float32(0.125))  # no zero block, no small scale
    stored = global_scale(x, choices)
    codes, scales = quantize_nvfp4(x, stored, **choices)
    for row, row_codes, scale in zip(x, codes, scales[:, 0], strict=True):
        amax = Fraction(float(np.abs(row).max()))
        assert nearest_code(block_scale(amax, Fraction(float(stored))), every_scale) == scale
        s = Fraction(every_scale[scale])
        for value, code in zip(row.tolist(), row_codes.tolist(), strict=True):
            magnitude = element(abs(Fraction(value)), s, Fraction(float(stored)))
            assert nearest_code(magnitude, every_element) == code & 7
            assert (code >= 8) == (value < 0)


def test_the_order_of_the_steps_decides_codes_and_scales():
    x = matrices()["quarters"]
    stored = global_scale(x, TRANSFORMER_ENGINE)
    codes, scales = quantize_nvfp4(x, stored, **TRANSFORMER_ENGINE)
    other, same = quantize_nvfp4(x, stored, **TRANSFORMER_ENGINE | {"element_steps": ElementSteps.DIVIDE})
    np.testing.assert_array_equal(scales, same)
    assert np.any(codes != other)
    _, others = quantize_nvfp4(x, stored, **TRANSFORMER_ENGINE | {"block_scale_steps": BlockScaleSteps.DIVIDE})
    assert np.any(scales != others)


# Published numbers

X = np.random.default_rng(1).standard_normal((4096, 256)).astype(np.float32)


@pytest.mark.parametrize(("levels", "expected"), [(1, 20.43), (2, 20.42)])
def test_signal_to_noise_is_that_of_torchao(levels, expected):
    scale = global_scale(X, TORCHAO) if levels == 2 else None
    codes, scales = quantize_nvfp4(X, scale, **TORCHAO)
    error = dequantize_nvfp4(codes, scales, scale) - X
    signal = float(np.sum(X.astype(np.float64) ** 2))
    assert round(10 * math.log10(signal / float(np.sum(error**2))), 2) == expected


def test_bits_an_element():
    assert E2M1.bits + E4M3.bits / NVFP4_BLOCK == 4.5


# Choices and special values


def test_the_global_scale_by_each_rule():
    rules = GlobalScaleRule
    amax = np.array([2688.0, 1.0, 0.0, 2.0**-149, 1e-37, LARGEST_FLOAT32], np.float32)
    g = choose_global_scale_nvfp4(amax, global_scale_rule=rules.AMAX_OVER_2688)
    np.testing.assert_array_equal(g, [1, np.float32(1) / 2688, 1, 1, np.float32(amax[4] / 2688), amax[5] / 2688])
    zeros = choose_global_scale_nvfp4(amax, global_scale_rule=rules.AMAX_OVER_2688, zero_scale=ZeroScale.ZERO)
    assert zeros[[2, 3]].tolist() == [0, 0]
    least = choose_global_scale_nvfp4(amax, zero_scale=ZeroScale.EPSILON, epsilon=2.0**-20)
    assert least[[0, 2, 4]].tolist() == [1, 2.0**-20, 2.0**-20]
    G = choose_global_scale_nvfp4(amax, global_scale_rule=rules.RECIPROCAL)
    np.testing.assert_array_equal(G, [1, 2688, 1, 1, 1, np.float32(2688) / amax[5]])
    saturated = choose_global_scale_nvfp4(amax, global_scale_rule=rules.SATURATED_RECIPROCAL)
    assert saturated[[2, 3, 4]].tolist() == [1, LARGEST_FLOAT32, LARGEST_FLOAT32]
    np.testing.assert_array_equal(saturated[[0, 1, 5]], G[[0, 1, 5]])


@pytest.mark.parametrize("rule", GlobalScaleRule)
def test_an_approximate_global_scale_may_be_off_by_as_many_ulps(rule):
    amax = np.exp2(np.random.default_rng(75).uniform(-149, 128, 10_000)).astype(np.float32)
    amax = np.append(amax[np.isfinite(amax)], np.float32([0, 2.0**-116, 2.0**-130]))
    exact = choose_global_scale_nvfp4(amax, global_scale_rule=rule)
    enclosure = choose_global_scale_nvfp4_enclosure(
        amax, global_scale_rule=rule, division=Division.APPROXIMATE, division_ulps=2
    )
    product = choose_global_scale_nvfp4(amax, global_scale_rule=rule, division=Division.RECIPROCAL)
    normal = (exact > 1e-37) & (amax > 1e-35)
    above = np.nextafter(exact, np.float32(INF), where=normal, out=exact.copy())
    for scales in (exact, above, np.where(normal, product, exact)):
        assert enclosure.admits(scales.astype(np.float64)).all()
    assert not enclosure.admits(exact.astype(np.float64) * (1 + 2.0**-20))[normal].any()
    one = choose_global_scale_nvfp4_enclosure(amax, global_scale_rule=rule)
    np.testing.assert_array_equal(one.lo, exact)
    np.testing.assert_array_equal(one.hi, exact)


def test_the_reciprocal_of_a_small_matrix_is_that_of_compressed_tensors():
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    for amax in (0.0, 2.0**-149, 2.0**-130, 1e-37, 1e-35, 1.0, 3.3, LARGEST_FLOAT32):
        expected = helpers.generate_gparam(torch.tensor(-amax), torch.tensor(amax / 2)).item()
        found = choose_global_scale_nvfp4(np.float32(amax), global_scale_rule="reciprocal", division="reciprocal")
        assert found == expected


def test_the_largest_block_has_the_scale_448():
    x = matrices()["gaussian"]
    for library in LIBRARIES:
        _, scales = quantize_nvfp4(x, global_scale(x, library), **library)
        assert decode(scales.max(), E4M3) == 448


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (SmallBlockScale.ZERO, [0, 0, 2.0**-9, 2.0**-8]),
        (SmallBlockScale.NORMAL, [2.0**-6] * 4),
        (SmallBlockScale.SUBNORMAL, [1, 2.0**-9, 2.0**-9, 2.0**-8]),
        (SmallBlockScale.EIGHTH, [0.125, 0.125, 2.0**-9, 2.0**-8]),
    ],
)
def test_small_blocks_have_the_scale_that_is_chosen(choice, expected):
    x = np.array([0.0, 6 * 2.0**-10, 6 * 2.0**-9, 6 * 2.0**-8])[:, None].repeat(NVFP4_BLOCK, axis=1)
    codes, scales = quantize_nvfp4(x, small_block_scale=choice)
    assert decode(scales[:, 0], E4M3).tolist() == expected
    found = dequantize_nvfp4(codes, scales)
    assert not np.any(found[0])
    assert np.all(np.abs(found - x) <= np.maximum(np.array(expected)[:, None] / 4, np.where(scales == 0, x, 0)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_nan_makes_the_scale_nan_or_is_ignored(library):
    x = np.linspace(-1, 1, 2 * NVFP4_BLOCK)[None, :].copy()
    g = global_scale(x, library)
    clean, scales = quantize_nvfp4(x, g, **library)
    x[0, 3] = NAN
    codes, with_nan = quantize_nvfp4(x, g, **library)
    assert with_nan.tolist() == [[0x7F, scales[0, 1]]]
    rule = {"global_scale_rule": library.get("global_scale_rule", GlobalScaleRule.AMAX_OVER_2688)}
    assert np.isnan(dequantize_nvfp4(codes, with_nan, g, **rule))[0].tolist() == [True] * 16 + [False] * 16
    codes, ignored = quantize_nvfp4(x, g, **library, nan_in_block=NanInBlock.IGNORED)
    np.testing.assert_array_equal(ignored, scales)
    others = np.arange(2 * NVFP4_BLOCK) != 3
    np.testing.assert_array_equal(codes[0, others], clean[0, others])
    enclosure = quantize_nvfp4_enclosure(x, g, **library, nan_in_block=NanInBlock.IGNORED)["codes"]
    assert enclosure.admits(np.full(x.shape, 6.0))[0, 3]
    assert enclosure.admits(np.full(x.shape, 6.0)).sum() <= 4


@pytest.mark.parametrize("library", LIBRARIES)
def test_an_infinity_saturates_scale_and_element(library):
    x = np.ones((1, NVFP4_BLOCK))
    x[0, 5] = -INF
    codes, scales = quantize_nvfp4(x, np.float32(1), **library)
    assert scales.tolist() == [[0x7E]]
    assert decode(codes, E2M1)[0, [4, 5]].tolist() == [0, -6]


@pytest.mark.parametrize("library", LIBRARIES)
def test_subnormal_and_huge_matrices_are_quantized_as_any_other(library):
    """With two levels all that counts is the ratio, so long as no step leaves float32's normal numbers."""
    x = matrices()["gaussian"]
    codes, scales = quantize_nvfp4(x, global_scale(x, library), **library)
    for exponent in (-100, 100):
        moved = np.ldexp(x, exponent)
        found = quantize_nvfp4(moved, global_scale(moved, library), **library)
        np.testing.assert_array_equal(found[0], codes)
        np.testing.assert_array_equal(found[1], scales)
    x = np.linspace(-1, 1, NVFP4_BLOCK)[None, :] * 2.0**-140
    g = global_scale(x.astype(np.float32), library)
    enclosure = quantize_nvfp4_enclosure(x, g, **library)
    codes, scales = quantize_nvfp4(x, g, **library)
    assert enclosure["codes"].admits(decode(codes, E2M1)).all()


def test_a_global_scale_a_row_is_that_of_every_row():
    x = matrices()["gaussian"] * np.arange(1, 129, dtype=np.float32)[:, None]
    for library in LIBRARIES:
        rule = library.get("global_scale_rule", GlobalScaleRule.AMAX_OVER_2688)
        g = choose_global_scale_nvfp4(np.abs(x).max(axis=1), global_scale_rule=rule)
        codes, scales = quantize_nvfp4(x, g, **library)
        values = dequantize_nvfp4(codes, scales, g, global_scale_rule=rule)
        for row in (0, 77):
            one = quantize_nvfp4(x[[row]], g[row], **library)
            np.testing.assert_array_equal(one[0], codes[[row]])
            np.testing.assert_array_equal(one[1], scales[[row]])
            np.testing.assert_array_equal(dequantize_nvfp4(*one, g[row], global_scale_rule=rule), values[[row]])


def test_stochastic_rounding_goes_up_by_its_fraction():
    x = np.linspace(-1, 1, 16 * NVFP4_BLOCK).reshape(1, -1).astype(np.float32)
    _, scales = quantize_nvfp4(x)
    x[np.abs(x) > (6 * decode(scales, E4M3)).repeat(NVFP4_BLOCK, axis=1)] = 0  # beyond, there is no neighbour
    draws = [np.full(x.shape, u) for u in (np.arange(64) + 0.5) / 64]
    codes = [encode_nvfp4(x, scales, rounding=Rounding.STOCHASTIC, random=u) for u in draws]
    mean = np.mean([dequantize_nvfp4(found, scales) for found in codes], axis=0)
    assert np.abs(mean - x).max() <= 2 * decode(scales, E4M3).max() / 64
    enclosure = quantize_nvfp4_enclosure(x, rounding=Rounding.STOCHASTIC, scales=scales)["codes"]
    assert all(enclosure.admits(decode(found, E2M1)).all() for found in codes)
    assert np.mean(enclosure.lo < enclosure.hi) > 0.5


def test_no_dimension_need_have_a_size():
    for shape in [(0, 64), (3, 0)]:
        codes, scales = quantize_nvfp4(np.zeros(shape), np.float32(1))
        assert (codes.shape, scales.shape) == (shape, (shape[0], shape[1] // NVFP4_BLOCK))
        assert dequantize_nvfp4(codes, scales, np.float32(1)).shape == shape
        assert dequantize_nvfp4_enclosure(codes, scales).shape == shape


# Enclosures


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_enclosure_admits_the_result_and_no_other(library):
    for x in matrices().values():
        for g in (None, global_scale(x, library)):
            codes, scales = quantize_nvfp4(x, g, **library)
            enclosure = quantize_nvfp4_enclosure(x, g, **library)
            elements, factors = decode(codes, E2M1), decode(scales, E4M3)
            assert enclosure["codes"].admits(elements).all()
            assert enclosure["scale"].admits(factors).all()
            live = np.repeat(factors != 0, NVFP4_BLOCK, axis=1)
            assert not enclosure["codes"].admits(np.where(elements == 0, 0.5, elements * 0.5))[live].any()
            assert enclosure["codes"].admits(np.full(x.shape, -6.0))[~live].all()
            assert not enclosure["scale"].admits(np.where(factors == 0, 1, factors * 2)).any()


APPROXIMATE = {"block_scale_steps": BlockScaleSteps.APPROXIMATE, "element_steps": ElementSteps.APPROXIMATE}


@pytest.mark.parametrize("library", LIBRARIES)
def test_approximate_steps_admit_every_order_and_reciprocals_that_are_off(library):
    """As in vLLM: s = G * (amax * rcp(6)), x * rcp(s * rcp(G)), with rcp within one ulp."""
    for name, x in matrices().items():
        stored = global_scale(x, library)
        rule = library.get("global_scale_rule", GlobalScaleRule.AMAX_OVER_2688)
        small = library["small_block_scale"]
        choices = APPROXIMATE | {"global_scale_rule": rule, "small_block_scale": small, "division_ulps": 1}
        codes, scales = quantize_nvfp4(x, stored, **library)
        enclosure = quantize_nvfp4_enclosure(x, stored, **choices)
        assert enclosure["scale"].admits(decode(scales, E4M3)).all(), name
        assert enclosure["codes"].admits(decode(codes, E2M1)).all(), name
        assert np.mean(enclosure["scale"].lo == enclosure["scale"].hi) > 0.7, name
        if small is not SmallBlockScale.ZERO:
            continue
        for ulps in (-1, 0, 1):
            vllm_codes, vllm_scales = by_reciprocals(x, stored, ulps)
            assert enclosure["scale"].admits(decode(vllm_scales, E4M3)).all(), name
            assert enclosure["codes"].admits(decode(vllm_codes, E2M1)).all(), name
            judged = quantize_nvfp4_enclosure(x, stored, **choices, scales=vllm_scales)["codes"]
            assert judged.admits(decode(vllm_codes, E2M1)).all(), name
            live = ~np.isinf(judged.hi)
            assert np.mean((judged.lo == judged.hi)[live]) > (0.5 if name == "quarters" else 0.999), name


def by_reciprocals(x: np.ndarray, G: np.ndarray, ulps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return codes and scales by multiplications with reciprocals that are `ulps` off."""

    def reciprocal(a):
        result = (1 / np.asarray(a, np.float32)).astype(np.float32)
        return np.nextafter(result, np.float32(ulps * np.inf)) if ulps else result

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        amax = np.abs(x).reshape(len(x), -1, NVFP4_BLOCK).max(axis=-1)
        scales = np.minimum(G * (amax * reciprocal(np.float32(6))), np.float32(448))
        scales = scales.astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
        factors = reciprocal(scales.astype(np.float32) * reciprocal(G)).repeat(NVFP4_BLOCK, axis=1)
        values = np.where(np.isfinite(factors), x * factors, 0)
        return np.clip(values, -6, 6).astype(ml_dtypes.float4_e2m1fn).view(np.uint8), scales.view(np.uint8)


@pytest.mark.parametrize("output", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("rule", GlobalScaleRule)
def test_values_are_admissible_in_every_order_and_a_wrong_one_is_not(rule, output):
    rng = np.random.default_rng(74)
    codes = rng.integers(0, 16, (64, 64)).astype(np.uint8)
    scales = rng.integers(0, 127, (64, 4)).astype(np.uint8)
    e, s = (a.astype(np.float32) for a in (decode(codes, E2M1), decode(scales, E4M3).repeat(NVFP4_BLOCK, axis=1)))
    native = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[output]
    for stored in np.float32([0.1, 1.0, 2.0**-10, 3e-5, 2688 / 7.3, 1e-40, 3e36]):
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            if rule is GlobalScaleRule.AMAX_OVER_2688:
                orders = [e * (s * stored), (e * s) * stored, s * (e * stored)]
            else:
                inverse = np.float32(1) / stored
                orders = [e * (s / stored), (e * s) / stored, e * (s * inverse), (e * s) * inverse]
            enclosure = dequantize_nvfp4_enclosure(codes, scales, stored, global_scale_rule=rule, output_format=output)
            exact = dequantize_nvfp4(codes, scales, stored, global_scale_rule=rule, output_format=output)
            np.testing.assert_array_equal(enclosure.exact, exact)
            for values in orders:
                if np.isfinite(values).all() and (stored > 1e-38 or rule is GlobalScaleRule.AMAX_OVER_2688):
                    assert enclosure.admits(values.astype(native).astype(np.float64)).all()
        if 1e-6 < stored < 1e6 and output != "float16":
            assert not enclosure.admits(exact * (1 + 2.0**-6))[exact != 0].any()
    one = dequantize_nvfp4_enclosure(codes, scales, global_scale_rule=rule)
    np.testing.assert_array_equal(one.lo, one.hi)


# Bad input


def raises(argument: str, rule: str):
    return pytest.raises(ValueError, match=f"^{argument}: .*{rule}")


GOOD = np.ones((2, 32))
SCALES = np.full((2, 2), 56, np.uint8)


def test_a_shape_without_whole_blocks_is_an_error():
    for x in (np.ones((2, 17)), np.ones(32), np.ones((1, 2, 16))):
        for function in (quantize_nvfp4, quantize_nvfp4_enclosure, choose_scale_nvfp4):
            with raises("x", "multiple of 16 columns"):
                function(x)
    with raises("x", "multiple of 16 columns"):
        encode_nvfp4(np.ones((2, 17)), SCALES)
    with raises("codes", "multiple of 16 columns"):
        dequantize_nvfp4(np.zeros((2, 17), np.uint8), SCALES)


def test_a_global_scale_must_be_positive_and_finite():
    for scale in (0, -1, NAN, INF, [1, 0]):
        for function in (quantize_nvfp4, quantize_nvfp4_enclosure):
            with raises("global_scale", "positive and finite"):
                function(GOOD, np.float32(scale))
        with raises("global_scale", "positive and finite"):
            dequantize_nvfp4(np.zeros((2, 32), np.uint8), SCALES, np.float32(scale))
    with raises("global_scale", r"shape \(\) or \(2,\)"):
        quantize_nvfp4(GOOD, np.ones(3, np.float32))


def test_the_maximum_must_be_a_number():
    for amax in (-1, NAN, INF):
        with raises("amax", "finite and not negative"):
            choose_global_scale_nvfp4(np.float32(amax))


def test_scales_of_another_shape_and_codes_beyond_the_format_are_an_error():
    for scales in (SCALES[:1], SCALES[:, :1], SCALES.astype(int) + 200):
        with raises("scales", r"shape \(2, 2\)"):
            encode_nvfp4(GOOD, scales)
        with raises("scales", r"shape \(2, 2\)"):
            dequantize_nvfp4(np.zeros((2, 32), np.uint8), scales)
    with raises("codes", "4 bits"):
        dequantize_nvfp4(np.full((2, 32), 16), SCALES)


def test_choices_that_are_none_are_an_error():
    with raises("element_steps", "admissible: divide, reciprocal, global_first, approximate"):
        quantize_nvfp4(GOOD, element_steps="multiply")
    with raises("random", "stochastic rounding needs numbers"):
        quantize_nvfp4(GOOD, rounding="stochastic")
