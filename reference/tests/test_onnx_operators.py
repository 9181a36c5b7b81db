"""ONNX's operators held against ONNX's reference evaluator, onnxruntime, and Python's integers and fractions."""

import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from lowbit_cts.reference.choices import ZeroScale
from lowbit_cts.reference.formats import integer_format
from lowbit_cts.reference.onnx_operators import (
    dynamic_quantize_enclosure,
    matmul_integer,
    qlinear_matmul_enclosure,
)
from lowbit_cts.reference.output_codes import output_codes_enclosure
from lowbit_cts.reference.requantization import requantize

sys.path.insert(0, str(Path(__file__).parent))  # beside this module; not a package
try:
    from onnx_models import by_fractions, codes, evaluator, runtime
finally:
    sys.path.pop(0)

INTEGERS = ("int8", "uint8")

BOTH = pytest.mark.parametrize("run", [evaluator, runtime])


# MatMulInteger ------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("a_format", INTEGERS)
@pytest.mark.parametrize("b_format", INTEGERS)
@pytest.mark.parametrize("per_column", [False, True])
def test_matmul_integer_is_onnx(run, a_format, b_format, per_column):
    rng = np.random.default_rng(1)
    for m, k, n in ((1, 1, 1), (3, 17, 5), (4, 64, 4)):
        a, b = codes(rng, (m, k), a_format), codes(rng, (k, n), b_format)
        z_a, z_b = codes(rng, (), a_format), codes(rng, (n,) if per_column else (), b_format)
        (found,) = run("MatMulInteger", {"a": a, "b": b, "z_a": z_a, "z_b": z_b}, [np.int32])
        assert np.array_equal(matmul_integer(a, z_a, b, z_b, a_format=a_format, b_format=b_format), found)


@pytest.mark.parametrize("a_format", INTEGERS)
@pytest.mark.parametrize("b_format", INTEGERS)
def test_matmul_integer_by_hand_with_a_zero_point_a_row_and_a_column(a_format, b_format):
    rng = np.random.default_rng(2)
    m, k, n = 3, 5, 4
    a, b = codes(rng, (m, k), a_format), codes(rng, (k, n), b_format)
    z_a, z_b = codes(rng, (m,), a_format), codes(rng, (n,), b_format)
    found = matmul_integer(a, z_a, b, z_b, a_format=a_format, b_format=b_format)
    for i in range(m):
        for j in range(n):
            assert found[i, j] == sum((int(a[i, t]) - int(z_a[i])) * (int(b[t, j]) - int(z_b[j])) for t in range(k))


@BOTH
@pytest.mark.parametrize("k", [33_025, 33_026, 70_000, 200_000])
def test_sums_beyond_int32_wrap(run, k):
    a, b = np.full((1, k), 255, np.uint8), np.full((k, 1), 255, np.uint8)
    zero = np.uint8(0)
    expected = (k * 255 * 255 + 2**31) % 2**32 - 2**31
    assert matmul_integer(a, zero, b, zero, a_format="uint8", b_format="uint8").item() == expected
    inputs = {"a": a, "b": b, "z_a": np.array(zero), "z_b": np.array(zero)}
    assert run("MatMulInteger", inputs, [np.int32])[0].item() == expected


# QLinearMatMul ------------------------------------------------------------------------------------------------------


def qlinear_inputs(rng, shape, format, b_format, per_column, power_of_two):
    m, k, n = shape
    a, b = codes(rng, (m, k), format), codes(rng, (k, n), b_format)
    place = (n,) if per_column else ()
    scale = (lambda s: 2.0 ** rng.integers(-4, 2, s)) if power_of_two else (lambda s: rng.uniform(0.01, 0.2, s))
    return {
        "a": a, "a_scale": np.asarray(scale(()), np.float32), "a_zero_point": codes(rng, (), format),
        "b": b, "b_scale": np.asarray(scale(place), np.float32), "b_zero_point": codes(rng, place, b_format),
        "y_scale": np.asarray(scale(()) * 2.0 ** rng.integers(2, 6) * np.sqrt(k), np.float32)
        if not power_of_two else np.asarray(2.0 ** rng.integers(2, 6), np.float32),
        "y_zero_point": codes(rng, (), format),
    }  # fmt: skip


@pytest.mark.parametrize(("run", "order"), [(evaluator, "inside"), (runtime, "outside")])
@pytest.mark.parametrize(("format", "b_format"), [("int8", "int8"), ("uint8", "int8"), ("uint8", "uint8")])
@pytest.mark.parametrize("per_column", [False, True])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_qlinear_matmul_is_onnx(run, order, format, b_format, per_column, power_of_two):
    rng = np.random.default_rng(3)
    disagree = 0
    for shape in ((1, 3, 2), (4, 16, 8), (33, 5, 17)):
        inputs = qlinear_inputs(rng, shape, format, b_format, per_column, power_of_two)
        (found,) = run("QLinearMatMul", inputs, [integer_format(format).carrier])
        formats = {"a_format": format, "b_format": b_format, "y_format": format}
        enclosure = qlinear_matmul_enclosure(*inputs.values(), **formats, zero_point_order=order)
        assert enclosure.admits(found.astype(np.int64)).all()
        if power_of_two:
            assert np.array_equal(enclosure.lo, enclosure.hi)
            other = {"inside": "outside", "outside": "inside"}[order]
            wrong = qlinear_matmul_enclosure(*inputs.values(), **formats, zero_point_order=other)
            disagree += int(np.sum(wrong.exact != found))
        else:
            assert np.mean(enclosure.lo != enclosure.hi) < 0.01
    if power_of_two and not per_column:
        assert disagree  # the two orders are told apart


def test_the_evaluator_adds_the_zero_point_inside_and_the_runtime_outside():
    """Scale 1/2 and zero point 1 of the sums 1, 3, 5, 7: definitions of the order of the zero point."""
    one, zero = np.array(1, np.float32), np.array(0, np.uint8)
    inputs = {"a": np.array([[1], [3], [5], [7]], np.uint8), "a_scale": one, "a_zero_point": zero,
              "b": np.ones((1, 1), np.uint8), "b_scale": one, "b_zero_point": zero,
              "y_scale": np.array(2, np.float32), "y_zero_point": np.array(1, np.uint8)}  # fmt: skip
    formats = dict.fromkeys(("a_format", "b_format", "y_format"), "uint8")
    for run, order, expected in ((evaluator, "inside", [2, 2, 4, 4]), (runtime, "outside", [1, 3, 3, 5])):
        assert (
            qlinear_matmul_enclosure(*inputs.values(), **formats, zero_point_order=order).exact.ravel().tolist()
            == expected
        )
        assert run("QLinearMatMul", inputs, [np.uint8])[0].ravel().tolist() == expected


def test_output_codes_are_those_of_fractions():
    rng = np.random.default_rng(4)
    wide = total = 0
    for _ in range(200):
        acc = rng.integers(-(2**30), 2**30, 40) >> rng.integers(0, 30, 40)
        s_a, s_b = (np.float32(v) for v in rng.uniform(0.001, 3, 2))
        s_y = np.float32(np.abs(acc).mean() * s_a * s_b / 50)
        z = rng.integers(-128, 127)
        found = output_codes_enclosure(acc, s_a, s_b, s_y, z, format="int8")
        expected = [by_fractions(value, s_a, s_b, s_y, z, "int8") for value in acc]
        assert np.array_equal(found.exact, expected)
        assert found.admits(np.array(expected)).all()
        wide, total = wide + int(np.sum(found.lo != found.hi)), total + acc.size
    assert wide < 0.01 * total


ASSOCIATIONS = {
    "multiplier first": lambda acc, a, b, y: acc * (a * b / y),
    "scales after": lambda acc, a, b, y: acc * a * b / y,
    "dequantized": lambda acc, a, b, y: (acc * (a * b)) / y,
    "a over y first": lambda acc, a, b, y: acc * (a / y * b),
    "b over y last": lambda acc, a, b, y: acc * a * (b / y),
}


@pytest.mark.parametrize("name", ASSOCIATIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_association_is_admissible(name, dtype):
    rng = np.random.default_rng(5)
    for _ in range(100):
        acc = rng.integers(-(2**31), 2**31 - 1, 200) >> rng.integers(0, 31, 200)
        a, b = (np.float32(v) for v in np.exp(rng.normal(-3, 2, 2)))
        y = np.float32(np.median(np.abs(acc)) * a * b / 100 + 1e-3)
        t = ASSOCIATIONS[name](acc.astype(dtype), *(dtype(v) for v in (a, b, y)))
        expected = np.clip(np.rint(t) + 3, -128, 127).astype(np.int64)
        assert output_codes_enclosure(acc, a, b, y, 3, format="int8").admits(expected).all()
        inverse = ASSOCIATIONS[name](acc.astype(np.float32), a, b, np.float32(1)) * (np.float32(1) / y)
        expected = np.clip(np.rint(inverse) + 3, -128, 127).astype(np.int64)
        assert output_codes_enclosure(acc, a, b, y, 3, format="int8", division="reciprocal").admits(expected).all()


def test_powers_of_two_leave_no_room_up_to_24_bits():
    acc = np.arange(-(2**24) - 2, -(2**24) + 3)
    found = output_codes_enclosure(acc, np.float32(0.25), np.float32(2), np.float32(2.0**16), 100, format="int8")
    assert np.array_equal(found.lo, found.hi)
    acc = np.array([2**24 + 2**17 - 1, 2**24 + 2**17, 2**24 + 2**17 + 1])  # around a tie, in 25 bits
    found = output_codes_enclosure(acc, np.float32(1), np.float32(1), np.float32(2.0**18), 0, format="int8")
    assert found.lo.tolist() == [64, 64, 64]
    assert found.hi.tolist() == [65, 64, 65]  # of the tie itself the even code; beside it either


def test_scales_that_underflow_or_overflow_on_their_way_leave_room():
    tiny = np.float32(1e-30)
    found = output_codes_enclosure(np.array([100]), tiny, tiny, np.float32(1e-38), 0, format="int8")
    assert found.exact.item() == 0
    huge = np.float32(1e30)
    found = output_codes_enclosure(np.array([100]), huge, huge, np.float32(1e38), 0, format="int8")
    assert (found.lo.item(), found.hi.item()) == (-128, 127)


@pytest.mark.parametrize("variant", ["double_rounding", "single_rounding", "rndnu", "rndnu16"])
def test_integer_multipliers_are_those_of_requantization(variant):
    rng = np.random.default_rng(6)
    acc = rng.integers(-(2**20), 2**20, (20, 30))
    s_a, s_b, s_y = np.float32(0.02), rng.uniform(0.001, 0.01, 30).astype(np.float32), np.float32(3.1)
    multiplier = s_a.astype(np.float64) * s_b / s_y.astype(np.float64)
    found = output_codes_enclosure(acc, s_a, s_b, s_y, 7, format="uint8", requantization=variant)
    expected = requantize(acc, multiplier, np.full(30, 7), format="uint8", variant=variant)
    assert np.array_equal(found.exact, expected)
    assert found.admits(expected).all()
    assert np.mean(found.lo == found.hi) > (0.9 if variant.startswith("rnd") else 0.9999)
    in_float32 = ((s_a * s_b) / s_y).astype(np.float64)
    if variant.startswith("rnd"):
        other = requantize(acc, in_float32, np.full(30, 7), format="uint8", variant=variant)
        assert found.admits(other).all()


def test_sums_beyond_int32_admit_every_code():
    found = output_codes_enclosure(np.array([2**31 - 1, 2**31]), np.float32(1), np.float32(1), np.float32(1), 0,
                                   format="uint8")  # fmt: skip
    assert found.lo.tolist() == [255, 0]
    assert found.hi.tolist() == [255, 255]


# DynamicQuantizeLinear ----------------------------------------------------------------------------------------------

RANGES = {
    "normal": lambda rng: rng.standard_normal((7, 33)) * np.exp(rng.standard_normal()),
    "positive": lambda rng: rng.uniform(1, 2, (4, 5)),
    "negative": lambda rng: -rng.uniform(1, 2, (4, 5)),
    "steps": lambda rng: (rng.integers(-300, 210, (9, 40), endpoint=True) / 2).clip(-127.5, 127.5),
    "zero": lambda rng: np.zeros((2, 3)),
    "outlier": lambda rng: np.where(np.arange(60).reshape(6, 10) == 17, 1e4, rng.standard_normal((6, 10))),
    "one": lambda rng: rng.standard_normal((1, 1)),
    "tiny": lambda rng: rng.standard_normal((3, 3)) * 1e-30,
    "huge": lambda rng: rng.standard_normal((3, 3)) * 1e37,
}


@pytest.mark.parametrize(("run", "zero_scale"), [(evaluator, ZeroScale.UNIT_RANGE), (runtime, ZeroScale.ONE)])
@pytest.mark.parametrize("name", RANGES)
def test_dynamic_quantization_is_onnx(run, zero_scale, name):
    rng = np.random.default_rng(7)
    for _ in range(30):
        x = RANGES[name](rng).astype(np.float32)
        found = run("DynamicQuantizeLinear", {"x": x}, [np.uint8, np.float32, np.uint8], opset=11)
        expected = dynamic_quantize_enclosure(x, zero_scale=zero_scale)
        for result, enclosure in zip(found, expected.values(), strict=True):
            assert np.array_equal(enclosure.lo, enclosure.hi)
            assert np.array_equal(enclosure.exact, result)


def test_dynamic_quantization_by_fractions():
    """Ranges of whole steps: scale, zero point and codes in exact arithmetic."""
    rng = np.random.default_rng(8)
    for _ in range(50):
        low = -Fraction(int(rng.integers(0, 511)), 2)
        x = [low, low + 255, *(low + Fraction(int(n), 2) for n in rng.integers(0, 511, 40))]
        if min(x) > 0 or max(x) < 0:
            continue
        scale = Fraction(1, 8)
        found = dynamic_quantize_enclosure(np.array([[float(v * scale) for v in x]]))
        z = round(-low)
        assert found["scale"].exact == 0.125
        assert found["zero_point"].exact == z
        assert found["codes"].exact[0].tolist() == [min(255, max(0, round(v) + z)) for v in x]


@pytest.mark.parametrize(
    ("zero_scale", "scale"), [("one", 1.0), ("unit_range", np.float32(1) / np.float32(255)), ("epsilon", 2.0**-23)]
)
def test_a_scale_of_nothing(zero_scale, scale):
    found = dynamic_quantize_enclosure(np.zeros((2, 2)), zero_scale=zero_scale)
    assert found["scale"].exact == found["scale"].hi == scale
    assert found["zero_point"].hi == 0
    assert not found["codes"].hi.any()


def test_a_zero_scale_leaves_the_codes_open():
    found = dynamic_quantize_enclosure(np.zeros((1, 2)), zero_scale="zero")
    assert found["scale"].lo == found["scale"].hi == 0
    assert found["codes"].lo.tolist() == [[0, 0]]
    assert found["codes"].hi.tolist() == [[255, 255]]


@pytest.mark.parametrize("division", ["reciprocal", "approximate"])
def test_other_divisions_hold_their_own_results(division):
    rng = np.random.default_rng(9)
    f = np.float32
    for _ in range(200):
        x = (rng.standard_normal((3, 9)) * 3).astype(f)
        low, high = min(x.min(), f(0)), max(x.max(), f(0))
        scale = (high - low) * (f(1) / f(255))
        found = dynamic_quantize_enclosure(x, division=division, division_ulps=2.0)
        assert found["scale"].admits(np.array(scale, np.float64)).all()
        z = np.clip(np.rint(-low / scale), 0, 255)
        assert found["zero_point"].admits(np.array(z, np.int64)).all()
        quotient = x * (f(1) / scale)
        assert found["codes"].admits(np.clip(np.rint(quotient) + z, 0, 255).astype(np.int64)).all()


# Bad input ----------------------------------------------------------------------------------------------------------

ONE, NONE = np.float32(1), np.int64(0)
A, B = np.ones((2, 3), np.int8), np.ones((3, 4), np.int8)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((A, NONE, B[:2], NONE), "b: has 2 rows, must have as many as a has columns"),
        ((A[0], NONE, B, NONE), "a: has 1 dimensions, must have 2"),
        ((A, np.zeros(3, int), B, NONE), r"a_zero_point: has shape \(3,\), must be \(\) or \(2,\)"),
        ((A, NONE, B, np.zeros(3, int)), r"b_zero_point: has shape \(3,\), must be \(\) or \(4,\)"),
        ((A, np.int64(128), B, NONE), r"a_zero_point: must lie in \[-128, 127\]"),
        ((A, NONE, B, np.int64(-129)), r"b_zero_point: must lie in \[-128, 127\]"),
    ],
)
def test_bad_products_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        matmul_integer(*arguments)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({1: np.float32(0)}, "a_scale: must be positive and finite"),
        ({4: np.float32(np.nan)}, "b_scale: must be positive and finite"),
        ({4: np.ones(4, np.float32)}, r"b_scale: has shape \(4,\), must have that of its zero point, \(\)"),
        ({6: np.ones(2, np.float32)}, "y_scale: has shape"),
        ({6: np.float32(np.inf)}, "y_scale: must be positive and finite"),
        ({7: np.int64(200)}, r"y_zero_point: must lie in \[-128, 127\]"),
    ],
)
def test_bad_quantized_products_are_refused(changes, match):
    arguments = [A, ONE, NONE, B, ONE, NONE, ONE, NONE]
    for place, value in changes.items():
        arguments[place] = value
    with pytest.raises(ValueError, match=match):
        qlinear_matmul_enclosure(*arguments)


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (np.zeros(3), "x: has 1 dimensions"),
        (np.zeros((0, 3)), "x: has a zero-size axis"),
        (np.array([[np.nan]]), "x: must be finite"),
        (np.array([[3e38, -3e38]]), "x: its range"),
    ],
)
def test_bad_matrices_are_refused(x, match):
    with pytest.raises(ValueError, match=match):
        dynamic_quantize_enclosure(x)
