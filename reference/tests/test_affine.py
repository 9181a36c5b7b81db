"""Affine quantization against onnxruntime, torch and rationals."""

import math
import platform
from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.affine import (
    dequantize,
    dequantize_enclosure,
    fake_quantize_enclosure,
    quantize,
    quantize_enclosure,
)
from lowbit_cts.reference.choices import (
    Contraction,
    DequantizeForm,
    Division,
    Precision,
    Rounding,
    ZeroPointOrder,
)
from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import FORMATS, INTEGER_FORMATS, integer_format
from lowbit_cts.reference.granularity import spread
from lowbit_cts.reference.rounding import fma_float32

ONNX_FORMATS = ("int8", "uint8", "int4", "uint4", "int2", "uint2")
PLACES = {
    "tensor": ({"granularity": "tensor"}, {}, lambda m, k: ()),
    "rows": ({"granularity": "axis", "axis": 0}, {"axis": 0}, lambda m, k: (m,)),
    "columns": ({"granularity": "axis", "axis": 1}, {"axis": 1}, lambda m, k: (k,)),
    "groups": ({"granularity": "group", "group_size": 16}, {"axis": 1, "block_size": 16}, lambda m, k: (m, k // 16)),
}
SCALES = [np.float32(s) for s in (0.1, 1 / 3, 0.007, 1.7, 2.0**-5, 3e-30, 1.1e20)]


def neighbours(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.nextafter(x, np.float32(np.inf)), np.nextafter(x, np.float32(-np.inf))], axis=-1)


def near_ties(scale: np.ndarray, qmin: int = -130, qmax: int = 130) -> np.ndarray:
    """Return float32 values around scale * (k + 1/2), one row."""
    ties = np.arange(qmin, qmax, dtype=np.float32) + np.float32(0.5)
    return np.unique(neighbours(neighbours(np.float32(scale) * ties)))[None, :]


def matrix_near_ties(rng: np.random.Generator, scale: np.ndarray, low: int, high: int) -> np.ndarray:
    """Return float32 values near half steps, with overshoot, beside scales spread over the matrix."""
    ties = rng.integers(low - 3, high + 3, scale.shape).astype(np.float32) + np.float32(0.5)
    x = scale * ties
    side = np.where(rng.random(scale.shape) < 0.5, np.float32(np.inf), np.float32(-np.inf))
    return np.where(rng.random(scale.shape) < 0.5, x, np.nextafter(x, side)).astype(np.float32)


def onnx_run(operator: str, x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, format: str, **attributes):
    """Run QuantizeLinear or DequantizeLinear in onnxruntime, sub-byte codes cast from and to bytes in the graph."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    narrow, wide = getattr(types, format.upper()), types.UINT8 if format.startswith("u") else types.INT8
    constants = [
        helper.make_tensor("s", types.FLOAT, scale.shape, scale.ravel()),
        helper.make_tensor("z", narrow, zero_point.shape, zero_point.ravel()),
    ]
    if operator == "QuantizeLinear":
        types_in_out = types.FLOAT, wide
        nodes = [
            helper.make_node(operator, ["x", "s", "z"], ["q"], **attributes),
            helper.make_node("Cast", ["q"], ["y"], to=wide),
        ]
    else:
        types_in_out = wide, types.FLOAT
        nodes = [
            helper.make_node("Cast", ["x"], ["q"], to=narrow),
            helper.make_node(operator, ["q", "s", "z"], ["y"], **attributes),
        ]
    x_info = helper.make_tensor_value_info("x", types_in_out[0], x.shape)
    y_info = helper.make_tensor_value_info("y", types_in_out[1], None)
    graph = helper.make_graph(nodes, "graph", [x_info], [y_info], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=13)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def rational_code(x, scale, zero_point, low, high, rounding, order) -> int:
    """Return saturate(round(x / s) + z) without any rounding but the declared one."""
    t = Fraction(float(x)) / Fraction(float(scale)) + (zero_point if order == "inside" else 0)
    floor, half = math.floor(t), Fraction(1, 2)
    rounded = {
        "half_even": lambda: round(t),
        "half_away": lambda: math.floor(t + half) if t >= 0 else math.ceil(t - half),
        "half_toward_zero": lambda: math.ceil(t - half) if t >= 0 else math.floor(t + half),
        "half_up": lambda: math.floor(t + half),
        "half_down": lambda: math.ceil(t - half),
        "toward_zero": lambda: math.trunc(t),
        "down": lambda: floor,
        "up": lambda: math.ceil(t),
    }[rounding]()
    return min(max(rounded + (zero_point if order == "outside" else 0), low), high)


# Quantization -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("format", ONNX_FORMATS)
def test_quantize_is_onnxruntime_bit_for_bit(format, place):
    ours, attributes, shape = PLACES[place]
    rng = np.random.default_rng([ord(c) for c in format + place])
    m, k = 24, 64
    low, high = integer_format(format).codes()
    scale = (2.0 ** rng.uniform(-6, 3, shape(m, k))).astype(np.float32)
    zero_point = rng.integers(low, high + 1, shape(m, k))
    x = matrix_near_ties(rng, spread(scale, (m, k), **ours), low - high, high - low)
    expected = onnx_run("QuantizeLinear", x, scale, zero_point, format, **attributes)
    np.testing.assert_array_equal(quantize(x, scale, zero_point, format=format, **ours), expected)
    assert {low, high} <= set(expected.ravel().tolist()), "both ends saturate"


@pytest.mark.parametrize("scale", SCALES)
def test_ties_of_one_scale_fall_as_in_onnxruntime(scale):
    x = near_ties(scale)
    for zero_point in (0, 3, -128):
        expected = onnx_run("QuantizeLinear", x, np.array(scale), np.array(zero_point), "int8")
        np.testing.assert_array_equal(quantize(x, scale, zero_point, format="int8"), expected)


torch_quantized = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
TORCH_SCALES = SCALES[:5]


@torch_quantized
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="elsewhere torch does not fuse")
@pytest.mark.parametrize("format", ["int8", "uint8"])
@pytest.mark.parametrize("scale", TORCH_SCALES)
def test_torch_quantize_per_tensor_is_reciprocal_inside_fused(scale, format):
    torch = pytest.importorskip("torch")
    x = near_ties(scale, -300, 300)
    for zero_point in (0, 3, 77):
        dtype = {"int8": torch.qint8, "uint8": torch.quint8}[format]
        expected = torch.quantize_per_tensor(torch.from_numpy(x), float(scale), zero_point, dtype).int_repr().numpy()
        choices = {"division": Division.RECIPROCAL, "zero_point_order": ZeroPointOrder.INSIDE}
        codes = quantize(x, scale, zero_point, format=format, **choices, contraction=Contraction.FUSED)
        np.testing.assert_array_equal(codes, expected)


@torch_quantized
@pytest.mark.parametrize("axis", [0, 1])
def test_torch_quantize_per_channel_is_reciprocal_inside_separate(axis):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(8)
    scale = (2.0 ** rng.uniform(-6, 3, 32)).astype(np.float32)
    zero_point = rng.integers(-128, 128, 32)
    x = matrix_near_ties(rng, spread(scale, (32, 32), "axis", axis), -200, 200)
    expected = torch.quantize_per_channel(
        torch.from_numpy(x), torch.from_numpy(scale), torch.from_numpy(zero_point), axis, torch.qint8
    )
    codes = quantize(
        x, scale, zero_point, format="int8", granularity="axis", axis=axis,
        division=Division.RECIPROCAL, zero_point_order=ZeroPointOrder.INSIDE,
    )  # fmt: skip
    np.testing.assert_array_equal(codes, expected.int_repr().numpy())


@pytest.mark.parametrize("scale", TORCH_SCALES)
def test_torch_fake_quantize_is_reciprocal_outside(scale):
    torch = pytest.importorskip("torch")
    x = near_ties(scale)
    for zero_point in (0, 3, -77):
        expected = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), float(scale), zero_point, -128, 127)
        found = fake_quantize_enclosure(x, scale, zero_point, format="int8", division=Division.RECIPROCAL)
        np.testing.assert_array_equal(found.exact, expected.numpy())
        np.testing.assert_array_equal(found.lo, found.hi)


def test_the_zero_point_outside_and_inside_the_rounding_differ_at_ties():
    x = np.array([[0.5, 1.5, 2.5]])
    one = np.float32(1)
    outside = quantize(x, one, 1, format="int8", zero_point_order=ZeroPointOrder.OUTSIDE)
    inside = quantize(x, one, 1, format="int8", zero_point_order=ZeroPointOrder.INSIDE)
    assert outside.tolist() == [[1, 3, 3]]
    assert inside.tolist() == [[2, 2, 4]]


def test_division_and_reciprocal_differ_in_18_of_254_codes_of_the_half_point_grid():
    scale = np.float32(0.1)
    x = ((np.arange(-127, 127) + 0.5) * 0.1).astype(np.float32)[None, :]  # of the decimal 0.1, not of its float32
    divided = quantize(x, scale, 0, format="int8", division=Division.DIVIDE)
    multiplied = quantize(x, scale, 0, format="int8", division=Division.RECIPROCAL)
    assert x.size == 254
    assert np.sum(divided != multiplied) == 18


@pytest.mark.parametrize("rounding", [r for r in Rounding if r is not Rounding.STOCHASTIC])
@pytest.mark.parametrize("order", ZeroPointOrder)
def test_float64_decides_as_rationals(rounding, order):
    rng = np.random.default_rng(9)
    directed = rounding in ("up", "down", "toward_zero")
    for scale in SCALES:
        x = near_ties(scale, -20, 20)
        if not directed:  # a directed rounding with z inside sees the rounding of the sum itself
            x = np.concatenate([x, (scale * rng.uniform(-40, 40, (1, 50))).astype(np.float32)], axis=1)
        for zero_point in (0, 5):
            codes = quantize(
                x, scale, zero_point, format="int5", rounding=rounding, zero_point_order=order,
                intermediate=Precision.FLOAT64,
            )  # fmt: skip
            expected = [rational_code(v, scale, zero_point, -16, 15, rounding, order) for v in x[0]]
            assert codes[0].tolist() == expected


def test_narrow_range_leaves_out_the_smallest_code():
    x = np.array([[-1e9, -128.0, -127.0, 127.0, 1e9]])
    assert quantize(x, np.float32(1), 0, format="int8", narrow_range=True).tolist() == [[-127, -127, -127, 127, 127]]


# Enclosures of codes ------------------------------------------------------------------------------------------------


def codes_by(x, scale, zero_point, order, quotient) -> np.ndarray:
    """Quantize a float32 quotient, as a kernel would."""
    t = quotient(np.float32(x), np.float32(scale))
    if order == "inside":
        return np.clip(np.rint(t + np.float32(zero_point)), -128, 127)
    return np.clip(np.rint(t) + zero_point, -128, 127)


QUOTIENTS = {
    "divide": lambda x, s: x / s,
    "reciprocal": lambda x, s: x * (np.float32(1) / s),
    "one ulp up": lambda x, s: np.nextafter(x / s, np.float32(np.inf)),
    "one ulp down": lambda x, s: np.nextafter(x / s, np.float32(-np.inf)),
    "float64": lambda x, s: np.float64(x) / np.float64(s),
}


@pytest.mark.parametrize("order", ZeroPointOrder)
@pytest.mark.parametrize("scale", SCALES[:6])
def test_an_approximate_division_admits_every_quotient_within_its_ulps(scale, order):
    x = near_ties(scale)
    for zero_point in (0, 3, -40):
        found = quantize_enclosure(
            x, scale, zero_point, format="int8", division=Division.APPROXIMATE, division_ulps=2.0,
            zero_point_order=order,
        )  # fmt: skip
        for name, quotient in QUOTIENTS.items():
            assert found.admits(codes_by(x, scale, zero_point, order, quotient)).all(), name
        assert np.any(found.lo < found.hi), "the inputs stand at ties"
        assert np.max(found.hi - found.lo) == 1


@pytest.mark.parametrize("ulps", [0.0, 0.25, 0.5, 2.0])
def test_the_exact_code_is_admissible_however_precise_the_division(ulps):
    x = near_ties(np.float32(0.1))
    found = quantize_enclosure(x, np.float32(0.1), 0, format="int8", division=Division.APPROXIMATE, division_ulps=ulps)
    assert found.admits(found.exact).all()


@pytest.mark.parametrize("order", ZeroPointOrder)
def test_enclosures_of_codes_are_points_away_from_ties(order):
    rng = np.random.default_rng(10)
    scale = np.float32(0.1)
    t = rng.integers(-100, 100, 5000) + rng.uniform(-0.499, 0.499, 5000)
    x = (scale * t).astype(np.float32)[None, :]
    variants = [
        {"division": Division.APPROXIMATE, "division_ulps": 4.0},
        {"division": Division.RECIPROCAL, "contraction": Contraction.EITHER},
    ]
    for variant in variants:
        found = quantize_enclosure(x, scale, 7, format="int8", zero_point_order=order, **variant)
        np.testing.assert_array_equal(found.lo, found.hi)
        np.testing.assert_array_equal(found.exact[0], np.clip(np.rint(t) + 7, -128, 127))


def test_a_fusion_left_open_admits_both_results_and_no_other():
    differing = 0
    for scale in SCALES:
        for zero_point in (0, 3, -100):
            x = near_ties(scale)
            choices = {"division": Division.RECIPROCAL, "zero_point_order": ZeroPointOrder.INSIDE}
            one, other, both = (
                quantize_enclosure(x, scale, zero_point, format="int8", contraction=kind, **choices)
                for kind in Contraction
            )
            np.testing.assert_array_equal(both.lo, np.minimum(one.exact, other.exact))
            np.testing.assert_array_equal(both.hi, np.maximum(one.exact, other.exact))
            for single in (one, other):
                np.testing.assert_array_equal(single.lo, single.hi)
            differing += np.sum(one.exact != other.exact)
    assert differing > 20, "fusing shows on these inputs"


@pytest.mark.parametrize("scale", [np.float32(2.0**e) for e in (-20, -3, 0, 9)])
def test_with_powers_of_two_every_arithmetic_gives_the_same_codes(scale):
    x = (np.arange(-300, 300, dtype=np.float32) / 2 * scale)[None, :]
    for order in ZeroPointOrder:
        expected = [rational_code(v, scale, 3, -128, 127, "half_even", order) for v in x[0]]
        for division in (Division.DIVIDE, Division.RECIPROCAL):
            found = quantize_enclosure(
                x, scale, 3, format="int8", zero_point_order=order, division=division, contraction=Contraction.EITHER
            )
            assert found.lo[0].tolist() == found.hi[0].tolist() == expected


# Dequantization -----------------------------------------------------------------------------------------------------


def codes_scales_zeros(format: str, place: str, seed: int):
    ours, attributes, shape = PLACES[place]
    rng = np.random.default_rng(seed)
    fmt = integer_format(format)
    m, k = 16, 64
    codes = rng.integers(fmt.minimum, fmt.maximum + 1, (m, k)).astype(fmt.carrier)
    scale = (2.0 ** rng.uniform(-20, 10, shape(m, k))).astype(np.float32)
    zero_point = rng.integers(fmt.minimum, fmt.maximum + 1, shape(m, k))
    return codes, scale, zero_point, ours, attributes


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("format", ONNX_FORMATS)
def test_dequantize_is_onnxruntime_bit_for_bit(format, place):
    codes, scale, zero_point, ours, attributes = codes_scales_zeros(format, place, 11)
    expected = onnx_run("DequantizeLinear", codes, scale, zero_point, format, **attributes)
    found = dequantize_enclosure(codes, scale, zero_point, format=format, **ours)
    for value in (found.exact, found.lo, found.hi):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("format", ["int8", "uint8", "int3"])
def test_dequantize_is_the_rational_product(format):
    codes, scale, zero_point, ours, _ = codes_scales_zeros(format, "groups", 12)
    s, z = (spread(v, codes.shape, **ours) for v in (scale, zero_point))
    exact = dequantize(codes, scale, zero_point, format=format, **ours)
    for q, factor, zero, value in zip(codes.flat, s.flat, z.flat, exact.flat, strict=True):
        assert Fraction(float(value)) == Fraction(float(factor)) * (int(q) - int(zero))


@pytest.mark.parametrize("output", ["float16", "bfloat16"])
def test_a_sixteen_bit_output_may_be_rounded_from_the_product_or_from_its_float32(output):
    codes, scale, zero_point, ours, _ = codes_scales_zeros("int8", "groups", 13)
    exact = dequantize(codes, scale, zero_point, format="int8", **ours)
    once = round_to_format(exact, FORMATS[output])
    twice = round_to_format(exact.astype(np.float32), FORMATS[output])
    for intermediate, expected in ((Precision.FLOAT64, once), (Precision.FLOAT32, twice)):
        found = dequantize_enclosure(
            codes, scale, zero_point, format="int8", output_format=output, intermediate=intermediate, **ours
        )
        np.testing.assert_array_equal(found.exact, expected)
        assert (found.admits(once) & found.admits(twice)).all()
        np.testing.assert_array_equal(found.lo < found.hi, once != twice)


def test_scaling_first_admits_float32_arithmetic_fused_or_not():
    codes, scale, zero_point, ours, _ = codes_scales_zeros("uint8", "groups", 14)
    found = dequantize_enclosure(
        codes, scale, zero_point, format="uint8", dequantize_form=DequantizeForm.SCALE_FIRST, **ours
    )
    s, z = (spread(v, codes.shape, **ours).astype(np.float32) for v in (scale, zero_point))
    q = codes.astype(np.float32)
    for value in (q * s - z * s, fma_float32(q, s, -(z * s)), fma_float32(-z, s, q * s), (q - z) * s):
        assert found.admits(value.astype(np.float64)).all()
    room = (found.hi - found.lo) / (s * (q + z) + np.spacing(np.abs(found.exact)))
    assert room.max() < 6 * 2.0**-24, "a few roundings of the terms, no more"


def test_scaling_first_by_powers_of_two_is_exact():
    codes, _, zero_point, ours, _ = codes_scales_zeros("int8", "rows", 15)
    scale = np.float32(2.0) ** np.arange(-8, 8, dtype=np.float32)
    found = dequantize_enclosure(
        codes, scale, zero_point, format="int8", dequantize_form=DequantizeForm.SCALE_FIRST, **ours
    )
    exact = dequantize(codes, scale, zero_point, format="int8", **ours)
    for value in (found.exact, found.lo, found.hi):
        np.testing.assert_array_equal(value, exact)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("format", INTEGER_FORMATS)
def test_every_code_survives_dequantizing_and_quantizing(format, place):
    ours, _, shape = PLACES[place]
    rng = np.random.default_rng(16)
    low, high = integer_format(format).codes()
    m, k = 16, 64 * math.ceil((high - low + 1) / 64)
    codes = np.resize(np.arange(low, high + 1), (m, k))
    scale = (2.0 ** rng.uniform(-30, 30, shape(m, k))).astype(np.float32)
    zero_point = rng.integers(low, high + 1, shape(m, k))
    x = dequantize(codes, scale, zero_point, format=format, **ours).astype(np.float32)
    for division in (Division.DIVIDE, Division.RECIPROCAL):
        for order in ZeroPointOrder:
            again = quantize(x, scale, zero_point, format=format, division=division, zero_point_order=order, **ours)
            np.testing.assert_array_equal(again, codes)
    np.testing.assert_array_equal(fake_quantize_enclosure(x, scale, zero_point, format=format, **ours).exact, x)
