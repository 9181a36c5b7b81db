"""Operands: exact values by fractions and by the dequantizers' oracles, and what rounding on the way may do."""

from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.choices import DequantizeForm, WeightPrecision
from lowbit_cts.reference.codebooks import CODEBOOKS
from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import decode, float_format
from lowbit_cts.reference.gguf.blocks import dequantize, quantize
from lowbit_cts.reference.operands import affine_weights, codebook_weights, float8_matrix, gguf_weights, mx_matrix

RNG = np.random.default_rng(7)
HALF = float_format("float16")


def quantized(k=20, n=6, group=8, kind=np.float16):
    groups = -(-k // group)
    scale = np.exp(RNG.standard_normal((groups, n))).astype(kind).astype(np.float64)
    return RNG.integers(0, 16, (k, n)), scale, RNG.integers(0, 16, (groups, n))


@pytest.mark.parametrize("ordered", [False, True])
def test_weights_are_codes_less_zero_times_scale(ordered):
    codes, scale, zero = quantized()
    index = RNG.integers(0, 3, 20) if ordered else None
    found = affine_weights(codes, scale, zero, index, format="uint4", group_size=8, activations="float16")
    for (i, j), value in np.ndenumerate(found.values):
        group = index[i] if ordered else i // 8
        assert Fraction(float(value)) == (int(codes[i, j]) - int(zero[group, j])) * Fraction(float(scale[group, j]))
    assert not found.error.any()  # five bits times eleven are a float32


def test_without_zero_points_the_middle_of_the_codes_is_zero():
    codes, scale, _ = quantized(group=20)
    found = affine_weights(codes, scale[0], None, format="uint4", group_size=None, activations="float16")
    np.testing.assert_array_equal(found.values, (codes - 8) * scale[0])
    found = affine_weights(codes - 8, scale[0], None, format="int4", group_size=None, activations="float16")
    np.testing.assert_array_equal(found.values, (codes - 8) * scale[0])


def test_weights_rounded_to_float16_stay_within_their_error():
    codes, scale, zero = quantized()
    found = affine_weights(
        codes, scale, zero, format="uint4", group_size=8, activations="float16",
        weight_precision=WeightPrecision.ACTIVATIONS,
    )  # fmt: skip
    assert np.all(np.abs(round_to_format(found.values, HALF) - found.values) <= found.error)
    np.testing.assert_array_equal(found.error == 0, round_to_format(found.values, HALF) == found.values)


def test_parts_rounded_apart_stay_within_their_error():
    """q s - z s in float16, three roundings; and the sum of codes less the middle, as tinygemm has it."""
    codes, scale, zero = quantized()
    found = affine_weights(
        codes, scale, zero, format="uint4", group_size=8, activations="float16",
        weight_precision=WeightPrecision.ACTIVATIONS, dequantize_form=DequantizeForm.SCALE_FIRST,
    )  # fmt: skip
    s, z = scale[np.arange(20) // 8], zero[np.arange(20) // 8]
    for middle in (0, 8):
        scaled, shift = (round_to_format((part - middle) * s, HALF) for part in (codes, z))
        assert np.all(np.abs(round_to_format(scaled - shift, HALF) - found.values) <= found.error)
        assert np.all(np.abs((codes - middle) * s) + np.abs((z - middle) * s) <= found.magnitude * (1 + 1e-12))


@pytest.mark.parametrize(
    ("scaling", "axis", "shape"), [("tensor", 0, ()), ("row", 0, (200,)), ("row", 1, (300,)), ("tile", 0, (200, 3)),
                                   ("tile", 1, (2, 300)), ("block", 0, (2, 3))],
)  # fmt: skip
def test_every_float8_element_has_its_own_scale(scaling, axis, shape):
    codes = RNG.integers(0, 120, (200, 300)).astype(np.uint8)
    scale = np.asarray(np.exp(RNG.standard_normal(shape)))
    found = float8_matrix(codes, scale, format="float8_e4m3fn", scaling=scaling, axis=axis)
    numbers = decode(codes, float_format("float8_e4m3fn"))
    places = {"tensor": lambda i, j: (), "row": lambda i, j: ((i, j)[axis],),
              "block": lambda i, j: (i // 128, j // 128),
              "tile": lambda i, j: (i, j // 128) if axis == 0 else (i // 128, j)}  # fmt: skip
    for i, j in zip(RNG.integers(0, 200, 300), RNG.integers(0, 300, 300), strict=True):
        assert found.values[i, j] == numbers[i, j] * scale[places[scaling](i, j)]


def test_mx_and_codebooks_are_their_dequantizers():
    codes, scale = RNG.integers(0, 16, (3, 64)).astype(np.uint8), RNG.integers(100, 140, (3, 2)).astype(np.uint8)
    found = mx_matrix(codes, scale, format="float4_e2m1fn").values
    expected = decode(codes, float_format("float4_e2m1fn")) * 2.0 ** (scale.astype(int).repeat(32, axis=1) - 127)
    np.testing.assert_array_equal(found, expected)
    absmax = np.exp(RNG.standard_normal((3, 2))).astype(np.float32)
    weights = codebook_weights(codes, absmax, codebook="nf4", block_size=32, activations="float16")
    product = CODEBOOKS["nf4"].astype(np.float64)[codes] * absmax.astype(np.float64).repeat(32, axis=1)
    np.testing.assert_array_equal(weights.values, product)
    assert np.all(np.abs(product.astype(np.float32) - product) <= weights.error)


@pytest.mark.parametrize("type", ["Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ4_NL", "MXFP4", "TQ2_0"])
def test_gguf_weights_enclose_the_float32_elements(type):
    x = RNG.standard_normal((4, 512)).astype(np.float32)
    blocks = quantize(x, type)
    found = gguf_weights(blocks, type=type, activations="float32")
    elements = dequantize(blocks, type).astype(np.float64)
    assert np.all(np.abs(found.values - elements) <= found.error)
    assert np.all(np.abs(found.values) <= found.magnitude)
    np.testing.assert_allclose(found.values, elements, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 0}, "group_size: must be a positive integer; got 0"),
        ({"scale": np.ones((2, 6))}, "scale: has shape (2, 6), must be (3, 6)"),
        ({"scale": np.full((3, 6), np.nan)}, "scale: must be positive and finite"),
        ({"zero_point": np.full((3, 6), 16)}, "zero_point: must lie in [0, 15]"),
        ({"codes": np.full((20, 6), -1)}, "codes: must lie in [0, 15]"),
        ({"group_index": np.full(20, 3)}, "group_index: must lie in [0, 2]; got [3, 3]"),
        ({"group_index": np.zeros(19, int)}, "group_index: has shape (19,), must be (20,)"),
    ],
)
def test_bad_weights_are_refused(change, message):
    codes, scale, zero = quantized()
    given = {"codes": codes, "scale": scale, "zero_point": zero, "group_index": None, "group_size": 8, **change}
    with pytest.raises(ValueError) as caught:
        affine_weights(
            given["codes"], given["scale"], given["zero_point"], given["group_index"], format="uint4",
            group_size=given["group_size"], activations="float16",
        )  # fmt: skip
    assert message in str(caught.value)
