"""What becomes of bad input: the documented outcome of each kind."""

import numpy as np
import pytest

from lowbit_cts.reference.accumulators import ACCUMULATORS, Accumulator
from lowbit_cts.reference.affine import (
    choose_qparams_enclosure,
    dequantize,
    dequantize_enclosure,
    fake_quantize_enclosure,
    quantize,
    quantize_enclosure,
)
from lowbit_cts.reference.casts import cast_float
from lowbit_cts.reference.choices import (
    Contraction,
    DequantizeForm,
    Division,
    Overflow,
    Rounding,
    ScaleRule,
    ZeroPointOrder,
    ZeroScale,
)
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.products import matmul_int8, matmul_w8a8_enclosure
from lowbit_cts.reference.vector import add_int8_enclosure

X = np.linspace(-2, 2, 24, dtype=np.float32).reshape(4, 6)
CODES = np.arange(24).reshape(4, 6)
ONE = np.float32(1)
NAN, INF = np.float32(np.nan), np.float32(np.inf)
BAD_SCALES = [NAN, -ONE, np.float32(0), INF, -INF]


def raises(argument: str, rule: str):
    """Expect a ValueError whose message names the argument and the rule."""
    return pytest.raises(ValueError, match=f"^{argument}: .*{rule}")


def w8a8(**changes):
    arguments = {"a": CODES, "a_scale": np.ones(4, np.float32), "a_zero_point": np.zeros(4, int), "b": CODES.T,
                 "b_scale": np.ones(4, np.float32), "bias": None}  # fmt: skip
    return matmul_w8a8_enclosure(*(arguments | changes).values())


def add(**changes):
    arguments = {"a": CODES[0], "a_scale": ONE, "a_zero_point": 0, "b": CODES[0], "b_scale": ONE, "b_zero_point": 0,
                 "y_scale": ONE, "y_zero_point": 0}  # fmt: skip
    return add_int8_enclosure(*(arguments | changes).values())


USES_OF_A_SCALE = [
    ("scale", lambda s: quantize(X, s, 0, format="int8")),
    ("scale", lambda s: quantize_enclosure(X, s, 0, format="int8")),
    ("scale", lambda s: fake_quantize_enclosure(X, s, 0, format="int8")),
    ("scale", lambda s: dequantize(CODES, s, 0, format="int8")),
    ("a_scale", lambda s: w8a8(a_scale=np.array([1, 1, s, 1]))),
    ("b_scale", lambda s: w8a8(b_scale=s)),
    ("a_scale", lambda s: add(a_scale=s)),
    ("b_scale", lambda s: add(b_scale=s)),
    ("y_scale", lambda s: add(y_scale=s)),
]


@pytest.mark.parametrize("scale", BAD_SCALES, ids=str)
@pytest.mark.parametrize("use", USES_OF_A_SCALE)
def test_a_scale_must_be_positive_and_finite(use, scale):
    name, call = use
    call(ONE)
    with raises(name, "must be positive and finite"):
        call(scale)


def test_one_bad_scale_among_many_is_enough():
    scales = np.ones(4, np.float32)
    scales[2] = NAN
    with raises("scale", "must be positive and finite"):
        quantize(X, scales, np.zeros(4, int), format="int8", granularity="axis", axis=0)


OUTSIDE = [
    ("zero_point", -129, lambda z: quantize(X, ONE, z, format="int8")),
    ("zero_point", 128, lambda z: quantize(X, ONE, z, format="int8")),
    ("zero_point", -1, lambda z: quantize(X, ONE, z, format="uint4")),
    ("zero_point", 8, lambda z: quantize_enclosure(X, ONE, z, format="int4")),
    ("zero_point", -128, lambda z: quantize(X, ONE, z, format="int8", narrow_range=True)),
    ("zero_point", 256, lambda z: dequantize(CODES, ONE, z, format="uint8")),
    ("codes", 24, lambda q: dequantize(CODES + q, ONE, 0, format="int5")),
    ("a_zero_point", 128, lambda z: add(a_zero_point=z)),
    ("b_zero_point", -129, lambda z: add(b_zero_point=z)),
    ("y_zero_point", 500, lambda z: add(y_zero_point=z)),
]


@pytest.mark.parametrize("case", OUTSIDE, ids=lambda case: f"{case[0]}={case[1]}")
def test_zero_points_and_codes_must_lie_in_the_format(case):
    name, value, call = case
    with raises(name, r"must lie in \[-?\d+, -?\d+\]; got"):
        call(value)


def group(size):
    return lambda: quantize(X, np.ones((4, 1), np.float32), np.zeros((4, 1), int), format="int8",
                            granularity="group", group_size=size)  # fmt: skip


WRONG_SHAPES = [
    ("x", "has 1 dimensions, must have 2", lambda: quantize(X[0], ONE, 0, format="int8")),
    ("x", "has 3 dimensions, must have 2", lambda: quantize(X[None], ONE, 0, format="int8")),
    ("scale", r"has shape \(4,\), must be \(\)", lambda: quantize(X, np.ones(4, "f4"), 0, format="int8")),
    ("zero_point", r"has shape \(1,\), must be \(\)", lambda: quantize(X, ONE, np.zeros(1, int), format="int8")),
    ("scale", r"has shape \(4,\), must be \(6,\)",
     lambda: quantize(X, np.ones(4, "f4"), np.zeros(4, int), format="int8", granularity="axis", axis=1)),
    ("group_size", "4 does not divide the axis of length 6", group(4)),
    ("group_size", "None must be a positive integer", group(None)),
    ("group_size", "0 must be a positive integer", group(0)),
    ("group_size", "-2 must be a positive integer", group(-2)),
    ("axis", "None is not an axis of a matrix; admissible: 0, 1",
     lambda: quantize(X, ONE, 0, format="int8", granularity="axis")),
    ("axis", "-1 is not an axis of a matrix",
     lambda: choose_qparams_enclosure(X, format="int8", granularity="axis", axis=-1)),
    ("granularity", "'token' is unknown; admissible: tensor, axis, group",
     lambda: quantize(X, ONE, 0, format="int8", granularity="token")),
    ("format", "'int9' is not an integer format", lambda: quantize(X, ONE, 0, format="int9")),
    ("mapping", "'affine' is unknown; admissible: symmetric, asymmetric",
     lambda: choose_qparams_enclosure(X, format="int8", mapping="affine")),
    ("a", "has 1 dimensions, must have 2", lambda: matmul_int8(CODES[0], CODES.T)),
    ("b", "has 1 dimensions, must have 2", lambda: matmul_int8(CODES, CODES[0])),
    ("b", r"has 4 rows, must have as many as a has columns \(6\)", lambda: matmul_int8(CODES, CODES)),
    ("b", r"has 4 rows, must have as many as a has columns \(6\)", lambda: w8a8(b=CODES)),
    ("a_scale", r"has shape \(6,\), must be \(\) or \(4,\)", lambda: w8a8(a_scale=np.ones(6))),
    ("a_zero_point", r"has shape \(4, 1\), must be", lambda: w8a8(a_zero_point=np.zeros((4, 1), int))),
    ("b_scale", r"has shape \(1,\), must be", lambda: w8a8(b_scale=np.ones(1))),
    ("bias", r"has shape \(6,\), must be", lambda: w8a8(bias=np.ones(6))),
    ("b", r"has shape \(5,\), must have that of a, \(6,\)", lambda: add(b=CODES[0, :5])),
    ("a_scale", r"has shape \(1,\), must be a scalar", lambda: add(a_scale=np.ones(1))),
    ("source, target", "float32 to float64 is no cast; admissible: two formats of which one",
     lambda: cast_float(X, source="float32", target="float64")),
    ("source, target", "float8_e5m2 to float8_e4m3fn is no cast; admissible: two formats of which one",
     lambda: cast_float(np.zeros(1, "u1"), source="float8_e5m2", target="float8_e4m3fn")),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG_SHAPES, ids=lambda case: f"{case[0]}: {case[1]}")
def test_wrong_shapes_and_choices_are_refused_by_name(case):
    name, rule, call = case
    with raises(name, rule):
        call()


@pytest.mark.parametrize("shape", [(0, 6), (4, 0), (0, 0)])
def test_a_zero_size_axis_gives_a_result_with_that_axis(shape):
    x = np.zeros(shape, np.float32)
    places = [
        ({"granularity": "tensor"}, ()),
        ({"granularity": "axis", "axis": 0}, shape[:1]),
        ({"granularity": "axis", "axis": 1}, shape[1:]),
        ({"granularity": "group", "group_size": 2}, (shape[0], shape[1] // 2)),
    ]
    for place, scales in places:
        scale, zero_point = np.ones(scales, np.float32), np.zeros(scales, int)
        for result in (
            quantize(x, scale, zero_point, format="int8", **place),
            quantize_enclosure(x, scale, zero_point, format="int8", division=Division.APPROXIMATE, **place),
            dequantize(x.astype(np.int8), scale, zero_point, format="int8", **place),
            fake_quantize_enclosure(x, scale, zero_point, format="int8", **place),
        ):
            assert result.shape == shape


@pytest.mark.parametrize("shape", [(0, 6), (4, 0)])
@pytest.mark.parametrize(
    "place", [{}, {"granularity": "axis", "axis": 0}, {"granularity": "group", "group_size": 2}], ids=str
)
def test_an_empty_matrix_has_no_range(shape, place):
    with raises("x", "has a zero-size axis .* an empty set has no minimum and maximum"):
        choose_qparams_enclosure(np.zeros(shape, np.float32), format="int8", **place)


def misaligned(x: np.ndarray) -> np.ndarray:
    view = np.frombuffer(b"\0" + x.tobytes(), x.dtype, offset=1).reshape(x.shape)
    assert not view.flags.aligned
    return view


VIEWS = {
    "every second": lambda x: np.repeat(np.repeat(x, 2, 0), 2, 1)[::2, ::2],
    "transposed": np.asfortranarray,
    "reversed": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "misaligned": misaligned,
    "offset": lambda x: np.pad(x, 1, constant_values=np.nan)[1:-1, 1:-1],
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
}


@pytest.mark.parametrize("view", VIEWS)
def test_strides_and_alignment_never_matter(view):
    given = VIEWS[view](X)
    plain = np.ascontiguousarray(given)
    assert view == "broadcast" or np.array_equal(plain, X)
    place = {"format": "int8", "granularity": "axis", "axis": 0}
    scale, zero_point = np.float32([0.1, 0.2, 0.3, 0.4]), np.arange(4)
    np.testing.assert_array_equal(
        quantize(given, scale, zero_point, **place), quantize(plain, scale, zero_point, **place)
    )
    for name, found in choose_qparams_enclosure(given, **place).items():
        expected = choose_qparams_enclosure(plain, **place)[name]
        np.testing.assert_array_equal([found.exact, found.lo, found.hi], [expected.exact, expected.lo, expected.hi])
    cast = {"source": "float32", "target": "float8_e4m3fn"}
    np.testing.assert_array_equal(cast_float(given, **cast), cast_float(plain, **cast))


@pytest.mark.parametrize(
    ("zero_scale", "mapping", "scale", "zero_points"),
    [
        (ZeroScale.EPSILON, "asymmetric", 2.0**-10, (-128, -128)),
        (ZeroScale.EPSILON, "symmetric", 2.0**-10, (0, 0)),
        (ZeroScale.ONE, "asymmetric", 1.0, (-128, 0)),  # any zero point represents zero
        (ZeroScale.ONE, "symmetric", 1.0, (0, 0)),
        (ZeroScale.ZERO, "asymmetric", 0.0, (-128, -128)),
        (ZeroScale.ZERO, "symmetric", 0.0, (0, 0)),
    ],
)
def test_a_zero_tensor_gets_the_scale_of_the_policy(zero_scale, mapping, scale, zero_points):
    for zero in (0.0, -0.0):
        found = choose_qparams_enclosure(
            np.full((2, 4), zero), format="int8", mapping=mapping, zero_scale=zero_scale, epsilon=2.0**-10
        )
        assert found["scale"].lo == found["scale"].exact == found["scale"].hi == scale
        assert (found["zero_point"].lo, found["zero_point"].hi) == zero_points


ARITHMETICS = [
    {"division": division, "zero_point_order": order, "contraction": contraction}
    for division in Division
    for order in ZeroPointOrder
    for contraction in Contraction
]


@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=lambda a: "-".join(a.values()))
def test_infinities_saturate_and_a_nan_has_no_code(arithmetic):
    x = np.array([[INF, -INF, NAN, 1e38, -1e38, 0.0]], np.float32)
    for format, low, high in (("int8", -128, 127), ("uint4", 0, 15)):
        found = quantize_enclosure(x, np.float32(0.01), 3, format=format, **arithmetic)
        assert found.lo.tolist() == [[high, low, low, high, low, 3]]
        assert found.hi.tolist() == [[high, low, high, high, low, 3]]


def test_fake_quantize_of_a_nan_may_be_nan_or_any_number_and_its_neighbours_are_determined():
    x = np.array([[NAN, 1.0, INF]], np.float32)
    found = fake_quantize_enclosure(x, np.float32(0.5), 3, format="int4")
    for value in (NAN, 0.5 * (-8 - 3), 0.5 * (7 - 3), 0.0):
        assert found.admits(np.array([[value, 1.0, 0.5 * (7 - 3)]], np.float32)).all()
    assert found.admits(np.full((1, 3), NAN)).tolist() == [[True, False, False]]


def test_fake_quantize_of_a_nan_in_torch_is_admitted():
    torch = pytest.importorskip("torch")
    x = np.array([[NAN, 1.0, INF, -INF]], np.float32)
    y = torch.fake_quantize_per_tensor_affine(torch.from_numpy(x), 0.5, 3, -8, 7).numpy()
    assert fake_quantize_enclosure(x, np.float32(0.5), 3, format="int4").admits(y).all()


def test_a_zero_times_the_infinite_reciprocal_of_a_subnormal_scale_has_no_code():
    x, scale = np.array([[0.0, 1.0, -1.0]]), np.float32(1e-40)
    multiplied = quantize_enclosure(x, scale, 3, format="int8", division=Division.RECIPROCAL)
    assert multiplied.lo.tolist() == [[-128, 127, -128]]
    assert multiplied.hi.tolist() == [[127, 127, -128]]
    divided = quantize_enclosure(x, scale, 3, format="int8")
    assert divided.lo.tolist() == divided.hi.tolist() == [[3, 127, -128]]


@pytest.mark.parametrize("arithmetic", ARITHMETICS, ids=lambda a: "-".join(a.values()))
def test_a_nan_admits_even_the_code_that_the_narrow_range_leaves_out(arithmetic):
    x = np.array([[NAN, -INF, INF]], np.float32)
    found = quantize_enclosure(x, np.float32(0.01), 3, format="int8", narrow_range=True, **arithmetic)
    assert (found.lo.tolist(), found.hi.tolist()) == ([[-128, -127, 127]], [[127, -127, 127]])
    assert found.exact[0, 0] == -127


CHOICES = [
    ("rounding", Rounding.HALF_AWAY, lambda c: quantize(X, ONE, 0, format="int8", rounding=c)),
    ("division", Division.APPROXIMATE, lambda c: quantize_enclosure(X, ONE, 0, format="int8", division=c)),
    ("contraction", Contraction.EITHER, lambda c: fake_quantize_enclosure(X, ONE, 0, format="int8", contraction=c)),
    (
        "dequantize_form",
        DequantizeForm.SCALE_FIRST,
        lambda c: dequantize_enclosure(CODES, ONE, 0, format="int8", dequantize_form=c),
    ),
    ("scale_rule", ScaleRule.HALF_RANGE, lambda c: choose_qparams_enclosure(X, format="int8", scale_rule=c)),
    (
        "accumulator",
        Accumulator.FLOAT32,
        lambda c: matmul_w8a8_enclosure(CODES, ONE, 0, CODES.T, ONE, None, accumulator=c),
    ),
    (
        "overflow",
        Overflow.INFINITY_OR_NAN,
        lambda c: cast_float(X, source="float32", target="float8_e5m2", overflow=c),
    ),
    (
        "zero_point_order",
        ZeroPointOrder.INSIDE,
        lambda c: add_int8_enclosure(CODES[0], ONE, 0, CODES[0], ONE, 0, ONE, 0, zero_point_order=c),
    ),
]


def parts(result):
    """Return a result's arrays, whichever kind of result it is."""
    if isinstance(result, dict):
        return [part for enclosure in result.values() for part in parts(enclosure)]
    return [result.exact, result.lo, result.hi] if isinstance(result, Enclosure) else [result]


@pytest.mark.parametrize("case", CHOICES, ids=lambda case: case[0])
def test_a_choice_may_be_given_by_value_and_a_wrong_one_names_the_admissible(case):
    name, member, call = case
    for one, other in zip(parts(call(str(member))), parts(call(member)), strict=True):
        np.testing.assert_array_equal(one, other)
    known = ACCUMULATORS if isinstance(member, Accumulator) else type(member)
    for wrong in ("sideways", "", None, 0):
        with raises(name, f"{wrong!r} is not admissible; admissible: {', '.join(known)}"):
            call(wrong)


def test_a_range_beyond_float32_is_refused():
    largest = np.finfo(np.float32).max
    x = np.array([[largest, -largest / 2]], np.float32)
    for mapping in ("symmetric", "asymmetric"):
        with raises("x", "its range, max - min, must be at most the largest float32"):
            choose_qparams_enclosure(x, format="int8", mapping=mapping)
    assert np.isfinite(choose_qparams_enclosure(np.abs(x), format="int8")["scale"].hi)


@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=str)
def test_a_nan_or_an_infinity_has_no_range(bad):
    x = X.copy()
    x[1, 2] = bad
    with raises("x", "must be finite"):
        choose_qparams_enclosure(x, format="int8")


def test_inputs_are_left_untouched():
    x, scale, zero_point = X.copy(), np.float32([0.1, 0.2, 0.3, 0.4]), np.arange(4)
    kept = [v.copy() for v in (x, scale, zero_point)]
    place = {"format": "int8", "granularity": "axis", "axis": 0}
    for function in (quantize, quantize_enclosure, fake_quantize_enclosure):
        function(x, scale, zero_point, **place)
    choose_qparams_enclosure(x, **place)
    for now, before in zip((x, scale, zero_point), kept, strict=True):
        np.testing.assert_array_equal(now, before)
