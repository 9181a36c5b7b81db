"""Requantization against rationals written from the definitions, published values, and the kernels of others."""

import math
from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.choices import Requantization
from lowbit_cts.reference.requantization import (
    MULTIPLIER_BITS,
    SCALES,
    quantize_multiplier,
    requantize,
    requantize_enclosure,
    rescale,
)

DOUBLE, SINGLE, FLOAT32, RNDNU, RNDNU16, DOUBLE_UP = Requantization
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
WIDE = range(INT_MIN, INT_MAX + 1)
HALF = Fraction(1, 2)
RANGES = {"int8": (-128, 127), "uint8": (0, 255)}


# The definitions, one number at a time, in rationals.


def half_up(x: Fraction) -> int:
    return math.floor(x + HALF)


def half_away(x: Fraction) -> int:
    return half_up(x) if x >= 0 else -half_up(-x)


def as_float32(x: Fraction) -> Fraction:
    """Round to 24 significant bits, ties to even; no overflow, no subnormals here."""
    if x == 0:
        return x
    unit = Fraction(2) ** (math.floor(math.log2(abs(x))) - 23)
    while abs(x) / unit >= 2**24:
        unit *= 2
    while abs(x) / unit < 2**23:
        unit /= 2
    return round(x / unit) * unit


def decomposed(scale: Fraction, bits: int) -> tuple[int, int]:
    """Return (q, n): the scale is q * 2**(n - bits) with q of so many bits, half away."""
    n = 0
    while scale >= Fraction(2) ** n:
        n += 1
    while scale < Fraction(2) ** (n - 1):
        n -= 1
    q = half_away(scale * Fraction(2) ** (bits - n))
    return (q // 2, n + 1) if q == 2**bits else (q, n)


def clamped(x: int, values: range) -> int:
    return min(max(x, values.start), values.stop - 1)


def scaled(acc: int, scale: float, variant: Requantization) -> int:
    real = Fraction(scale)
    if variant is FLOAT32:
        return round(as_float32(as_float32(Fraction(acc)) * as_float32(real)))
    if variant is RNDNU:  # 24 bits are the float32 itself: one rounding of the real product
        return half_up(acc * as_float32(real))
    if variant is RNDNU16:
        q, n = decomposed(as_float32(real), 15)
        narrow = clamped(half_up(acc * Fraction(2) ** n), range(-(2**15), 2**15))
        return half_up(Fraction(narrow * q, 2**15))
    q, n = decomposed(real, 31) if scale else (0, 0)
    if n < -31:
        q, n = 0, 0
    if variant is SINGLE:
        q, n = (2**31 - 1, 30) if n > 30 else (q, n)
        return half_up(acc * q * Fraction(2) ** (n - 31))
    high = half_up(Fraction(clamped(acc * 2 ** max(n, 0), WIDE) * q, 2**31))
    return (half_away if variant is DOUBLE else half_up)(Fraction(high, 2 ** max(-n, 0)))


def scales(variant: Requantization) -> list[float]:
    rng = np.random.default_rng(3)
    low, high = max(SCALES[variant][0], 2.0**-36), min(SCALES[variant][1], 2.0**33)
    some = [2.0 ** rng.uniform(math.log2(low), math.log2(high)) for _ in range(40)]
    powers = [2.0**n for n in range(-36, 33) if low <= 2.0**n < high]
    below = [float(np.nextafter(np.float32(p), np.float32(0))) for p in powers[1:]]  # their multipliers round up
    return [low, *some, *powers[::3], *below[::5], 3.217e-4, 0.1, 0.5 - 2**-30]


def sums(scale: float) -> np.ndarray:
    rng = np.random.default_rng(4)
    near = np.clip(rng.integers(-700, 700, 60) / (2 * scale), INT_MIN, INT_MAX)  # ties of powers of two
    edges = [0, 1, -1, 2**24 + 1, -(2**24) - 3, 2**30, -(2**30), INT_MIN, INT_MIN + 1, INT_MAX, INT_MAX - 1]
    return np.concatenate([near.astype(np.int64), rng.integers(INT_MIN, INT_MAX, 20), edges])


@pytest.mark.parametrize("format", RANGES)
@pytest.mark.parametrize("variant", Requantization)
def test_codes_are_those_of_the_definition_in_rationals(variant, format):
    qmin, qmax = RANGES[format]
    rng = np.random.default_rng(5)
    for scale in scales(variant):
        acc = sums(scale)
        zero_point = int(rng.integers(qmin, qmax + 1))
        expected = [clamped(scaled(int(a), scale, variant) + zero_point, range(qmin, qmax + 1)) for a in acc]
        found = requantize(acc, scale, zero_point, format=format, variant=variant)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, expected, err_msg=f"scale {scale!r}, zero point {zero_point}")


@pytest.mark.parametrize("variant", MULTIPLIER_BITS)
def test_multipliers_are_those_of_the_definition_in_rationals(variant):
    bits = MULTIPLIER_BITS[variant]
    given = np.array([s for s in scales(variant) if 2.0**-31 <= s < 2.0**29])
    multiplier, shift = quantize_multiplier(given, variant=variant)
    assert np.all((2 ** (bits - 1) <= multiplier) & (multiplier < 2**bits))
    for scale, q, n in zip(given, multiplier, shift, strict=True):
        exact = Fraction(scale) if bits == 31 else as_float32(Fraction(scale))
        assert decomposed(exact, bits) == (q, n)
        assert abs(Fraction(int(q)) * Fraction(2) ** int(n - bits) / exact - 1) <= Fraction(1, 2**bits)


# Published and hand-written values.

TIES = {8: (1, 1, 0), -8: (-1, 0, 0), 24: (2, 2, 2), -24: (-2, -1, -2), -40: (-3, -2, -2)}


def test_where_the_variants_disagree_at_ties():
    """Half away twice, half up, half to even: sums with scaled values 0.5, -0.5, 1.5, -1.5, -2.5."""
    acc = np.array(list(TIES))
    for place, variant in enumerate([DOUBLE, SINGLE, FLOAT32]):
        expected = [row[place] for row in TIES.values()]
        assert requantize(acc, 2.0**-4, 0, format="int8", variant=variant).tolist() == expected
    for variant in (RNDNU, RNDNU16, DOUBLE_UP):  # half up, too
        expected = [row[1] for row in TIES.values()]
        assert requantize(acc, 2.0**-4, 0, format="int8", variant=variant).tolist() == expected


def test_how_often_the_variants_disagree():
    """Of 200,000 random sums at 3.217e-4, double rounding differs from single 46 times, fp32 once, rndnu never.

    The counts were given without a seed, a range or a clamp. NumPy's seed 0 within 2**20 has them, unclamped, as have
    4 of 240 streams tried (30 seeds, 8 ranges): a regression, no evidence. What must hold is the next test.
    """
    acc = np.random.default_rng(0).integers(-(2**20), 2**20, 200_000)
    single = rescale(acc, 3.217e-4, variant=SINGLE)
    differing = [np.count_nonzero(rescale(acc, 3.217e-4, variant=v) != single) for v in (DOUBLE, FLOAT32, RNDNU)]
    assert differing == [46, 1, 0]


def test_double_rounding_differs_from_single_where_the_first_rounding_makes_a_tie():
    """With a shift of n, sums within 2**-(n + 1) of a tie on one side: 1 in 2**(n + 1), here 1 in 4096."""
    acc = np.random.default_rng(1).integers(-(2**30), 2**30, 4_000_000)
    multiplier, shift = quantize_multiplier(3.217e-4, variant=DOUBLE)
    assert shift == -11
    twice, once = (rescale(acc, 3.217e-4, variant=v) for v in (DOUBLE, SINGLE))
    differ = twice != once
    np.testing.assert_array_equal(np.abs(twice - once)[differ], 1)
    high = (acc * multiplier + 2**30) >> 31
    product = acc * multiplier  # in units of 2**-42
    at_tie = (np.abs(high) & 2047) == 1024
    moved = np.where(acc > 0, product < high << 31, product >= high << 31)
    np.testing.assert_array_equal(differ, at_tie & moved)
    assert abs(np.count_nonzero(differ) - 4_000_000 / 4096) < 4 * math.sqrt(4_000_000 / 4096)


def test_rounding_up_twice_differs_from_double_rounding_at_negative_ties_alone():
    """-6272.5 is rounded to -6272 and then, -24.5 of 256, to -24 (ruy on AVX-512), or to -25 (TFLite)."""
    acc = np.array([-12545, 12545, 15615, -15615])
    assert rescale(acc, 2.0**-9, variant=DOUBLE_UP).tolist() == [-24, 25, 31, -30]
    assert rescale(acc, 2.0**-9, variant=DOUBLE).tolist() == [-25, 25, 31, -30]
    assert rescale(acc, 2.0**-9, variant=SINGLE).tolist() == [-25, 25, 30, -30]
    sums_, (multiplier, shift) = np.arange(-(2**18), 2**18), quantize_multiplier(3.217e-4, variant=DOUBLE_UP)
    high = (sums_ * multiplier + 2**30) >> 31
    at_tie = (high < 0) & ((-high & ((1 << -shift) - 1)) == 1 << (-shift - 1))
    up, away = (rescale(sums_, 3.217e-4, variant=v) for v in (DOUBLE_UP, DOUBLE))
    assert at_tie.any()
    np.testing.assert_array_equal(up - away, at_tie)


def test_rndnu_is_single_rounding_of_a_float32_scale():
    """Both round the real product once, half up; 31 bits hold the 24 of a float32."""
    rng = np.random.default_rng(2)
    for _ in range(50):
        scale = float(np.float32(2.0 ** rng.uniform(-31, 0)))
        acc = rng.integers(INT_MIN, INT_MAX + 1, 2000)
        np.testing.assert_array_equal(rescale(acc, scale, variant=RNDNU), rescale(acc, scale, variant=SINGLE))


def test_multipliers_at_the_edges_of_tflite():
    for variant in (DOUBLE, DOUBLE_UP, SINGLE):
        found = [tuple(int(v) for v in quantize_multiplier(s, variant=variant)) for s in
                 [0.0, 1.0, 0.5, 1 - 2**-32, 2.0**-32, np.nextafter(2.0**-32, 0), 2.0**-33, 2.0**29]]  # fmt: skip
        assert found == [
            (0, 0),
            (2**30, 1),
            (2**30, 0),
            (2**30, 1),  # 2**31 is halved
            (2**30, -31),
            (2**30, -31),  # rounds up before the shift is looked at
            (0, 0),  # a shift of -32
            (2**30, 30),
        ]
    assert [int(v) for v in quantize_multiplier(2.0**31, variant=SINGLE)] == [2**31 - 1, 30]


def test_a_multiplier_of_rndnu16_that_rounds_to_16_bits_is_halved():
    below_one = float(np.nextafter(np.float32(1), np.float32(0)))
    assert [int(v) for v in quantize_multiplier(below_one, variant=RNDNU16)] == [2**14, 1]
    assert rescale(np.array([100, -100]), below_one, variant=RNDNU16).tolist() == [100, -100]


def test_fp32_rounds_the_sum_itself():
    acc = np.array([2**24 + 1, 2**24 + 3])  # ties of float32: to 2**24 and 2**24 + 4
    assert rescale(acc, 0.5, variant=FLOAT32).tolist() == [2**23, 2**23 + 2]
    assert rescale(acc, 0.5, variant=SINGLE).tolist() == [2**23 + 1, 2**23 + 2]


def test_tiny_scales_of_tflite_give_the_zero_point():
    acc = np.array([INT_MIN, INT_MAX, 0])
    for variant in (DOUBLE, DOUBLE_UP, SINGLE):
        for scale in (0.0, 2.0**-33, 5e-324):
            assert requantize(acc, scale, 3, format="int8", variant=variant).tolist() == [3, 3, 3]


# Saturation.


@pytest.mark.parametrize("format", RANGES)
@pytest.mark.parametrize("variant", Requantization)
def test_the_ends_of_int32_saturate_on_their_own_sides(variant, format):
    qmin, qmax = RANGES[format]
    acc = np.array([INT_MIN, INT_MIN + 1, INT_MAX - 1, INT_MAX])
    for scale in (2.0**-20, 0.1, 1 - 2**-24, 1.0, 1.5, 255.0):
        for zero_point in (qmin, qmax):
            found = requantize(acc, scale, zero_point, format=format, variant=variant)
            assert found.tolist() == [qmin, qmin, qmax, qmax]


@pytest.mark.parametrize("variant", [DOUBLE, DOUBLE_UP, SINGLE, RNDNU])
def test_any_code_is_admissible_only_past_the_end_of_int32(variant):
    acc = np.array([INT_MIN, -(2**20), 0, 2**20, INT_MAX])
    within = requantize_enclosure(acc, 0.99, 0, format="int8", variant=variant)
    np.testing.assert_array_equal(within.lo, within.hi)
    past = requantize_enclosure(acc, 250.0, 0, format="int8", variant=variant)
    assert (past.lo != past.hi).tolist() == [True, False, False, False, True]
    assert past.exact.tolist() == [-128, -128, 0, 127, 127]
    assert [past.lo[0], past.hi[0]] == [-128, 127]


def test_a_zero_point_added_past_the_end_of_int32_is_undefined_in_tflite_alone():
    for variant in Requantization:
        for zero_point, undefined in [(5, variant in (DOUBLE, DOUBLE_UP, SINGLE)), (-5, False)]:
            found = requantize_enclosure(INT_MAX, 1 - 2**-31, zero_point, format="int8", variant=variant)
            assert found.exact == 127
            assert (found.lo != found.hi) == undefined


@pytest.mark.parametrize("variant", [FLOAT32, RNDNU16])
def test_variants_that_saturate_are_determined_everywhere(variant):
    acc = sums(1.0)
    for scale in (2.0**-32, 1.0, 255.99):
        found = requantize_enclosure(acc, scale, -128, format="int8", variant=variant)
        np.testing.assert_array_equal(found.lo, found.hi)


@pytest.mark.parametrize("variant", Requantization)
def test_codes_do_not_fall_as_sums_rise(variant):
    acc = np.arange(-(2**16), 2**16)
    for scale in (3.217e-4, 2.0**-9, 1.7e-3):
        assert np.all(np.diff(requantize(acc, scale, 0, format="int8", variant=variant)) >= 0)


# Shapes, other libraries, bad input.


@pytest.mark.parametrize("variant", Requantization)
def test_each_channel_has_its_own_scale_and_zero_point(variant):
    acc = np.random.default_rng(6).integers(-(2**16), 2**16, (2, 7, 5))
    scale = np.array([1e-3, 2e-3, 2.0**-8, 5e-4, 1.0])
    zero_point = np.array([0, 5, -7, 100, -128])
    found = requantize(acc, scale, zero_point, format="int8", variant=variant)
    for channel in range(5):
        one = requantize(acc[..., channel], scale[channel], zero_point[channel], format="int8", variant=variant)
        np.testing.assert_array_equal(found[..., channel], one)
    assert requantize(acc[:, :0], scale, zero_point, format="int8", variant=variant).shape == (2, 0, 5)
    assert requantize(8, 2.0**-3, 1, format="int8", variant=variant.value) == 2


@pytest.mark.parametrize("zero_point", [-128, 3])
@pytest.mark.parametrize("scale", [2.0**-6, 3.217e-4, 1.1e-2])
def test_fp32_is_the_requantization_of_onnxruntime(scale, zero_point):
    """Products of int8 matrices, whose sums float32 holds; the output scale is 1, so the scale is one float32."""
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(7)
    a = rng.integers(-128, 128, (96, 40)).astype(np.int8)
    b = rng.integers(-127, 128, (40, 64)).astype(np.int8)
    constants = {
        "a_scale": np.float32(scale), "a_zero": np.int8(0), "b": b, "b_scale": np.float32(1), "b_zero": np.int8(0),
        "y_scale": np.float32(1), "y_zero": np.int8(zero_point),
    }  # fmt: skip
    node = onnx.helper.make_node("QLinearMatMul", ["a", *constants], ["y"])
    ends = [[onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT8, shape)]
            for name, shape in (("a", a.shape), ("y", (96, 64)))]  # fmt: skip
    weights = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = onnx.helper.make_graph([node], "graph", *ends, weights)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"a": a})[0]
    acc = a.astype(np.int64) @ b.astype(np.int64)
    assert len(np.unique(expected)) > 20
    np.testing.assert_array_equal(requantize(acc, scale, zero_point, format="int8", variant=FLOAT32), expected)


@pytest.mark.parametrize("variant", Requantization)
def test_scales_outside_the_interval_of_the_variant_are_refused(variant):
    low, high = SCALES[variant]
    bad = [np.nan, np.inf, -1.0, -(2.0**-40)]
    bad += [high, float(np.nextafter(np.float32(low), np.float32(0)))] if variant in (FLOAT32, RNDNU, RNDNU16) else []
    for scale in [*bad, *([2.0**30, 2.0**30 - 2**-3] if variant in (DOUBLE, DOUBLE_UP) else [])]:
        with pytest.raises(ValueError, match=r"^scale: must "):
            requantize(np.array([1]), scale, 0, format="int8", variant=variant)
    requantize(np.array([1]), low, 0, format="int8", variant=variant)


def test_bad_input_is_one_message():
    acc = np.zeros((2, 3), np.int32)

    def call(acc=acc, scale=0.5, zero_point=0, format="int8", variant="single_rounding"):
        return requantize(acc, scale, zero_point, format=format, variant=variant)

    call()
    for changes, message in [
        ({"acc": acc + 0.0}, "^acc: must be integers in .*; has dtype float64"),
        ({"acc": acc + np.int64(2**31)}, "^acc: must be integers in .*2147483648, 2147483648"),
        ({"scale": np.ones(2)}, r"^scale: has shape \(2,\), must be \(\) or that of the last axis, \(3,\)"),
        ({"zero_point": np.zeros((2, 3), int)}, r"^zero_point: has shape \(2, 3\), must be"),
        ({"zero_point": 128}, r"^zero_point: must lie in \[-128, 127\]; got \[128, 128\]"),
        ({"format": "float32"}, "^format: 'float32' is not an integer format"),
        ({"variant": "acme"}, "^variant: 'acme' is not admissible; admissible: double_rounding, "),
        ({"scale": 300.0, "variant": "rndnu"}, r"^scale: must lie in \[2.32831e-10, 256\) for variant rndnu"),
    ]:
        with pytest.raises(ValueError, match=message):
            call(**changes)
    with pytest.raises(ValueError, match=r"^variant: float32 has no multiplier; admissible: double_rounding"):
        quantize_multiplier(0.5, variant="float32")
