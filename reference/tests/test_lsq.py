"""LSQ: the gradient of the scale by hand, by fractions, by torch and by differences; its bounds; the first scale."""

from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.choices import GradientForm, GradientMask
from lowbit_cts.reference.formats import integer_format
from lowbit_cts.reference.lsq import lsq_gradient_enclosure, lsq_initial_scale_enclosure

INF, NAN = np.inf, np.nan
FORMATS = ("int2", "int4", "int8", "uint2", "uint4", "uint8")
PLACES = [
    {"granularity": "tensor"},
    {"granularity": "axis", "axis": 0},
    {"granularity": "axis", "axis": 1},
    {"granularity": "group", "group_size": 4},
]


def lsq(v, upstream=None, scale=1.0, zero_point=None, gradient_scale=1.0, format="int4", **choices):
    """Return the enclosures, of a row where v is a list."""
    v = np.atleast_2d(np.asarray(v, np.float32))
    upstream = np.ones_like(v) if upstream is None else np.atleast_2d(np.asarray(upstream, np.float32))
    zero_point = None if zero_point is None else np.asarray(zero_point)
    return lsq_gradient_enclosure(
        v, upstream, np.asarray(scale, np.float32), zero_point, np.float32(gradient_scale), format=format, **choices
    )


def dscale(*arguments, **choices):
    """Return the gradient of the scale, rounded once."""
    return lsq(*arguments, **choices)["dscale"].exact


def points(*arguments, **choices):
    found = lsq(*arguments, **choices)["dscale"]
    np.testing.assert_array_equal(found.lo, found.hi)
    return found.exact


@pytest.mark.parametrize(
    ("v", "of_code", "of_paper"),
    [  # s = 1/2, Q_N = 8, Q_P = 7
        (0.3125, 0.375, 0.375),  # 0.625 -> 1
        (0.25, -0.5, -0.5),  # 0.5 -> 0, a tie
        (0.75, 0.5, 0.5),  # 1.5 -> 2
        (3.5, 0.0, 7.0),  # at Q_P
        (3.625, -0.25, 7.0),  # 7.25, beyond it, but its code is 7
        (3.75, 7.0, 7.0),  # 7.5 -> 8
        (-4.0, 0.0, -8.0),
        (-4.25, 0.5, -8.0),  # -8.5 -> -8
        (-4.375, -8.0, -8.0),
        (INF, 7.0, 7.0),
        (-INF, -8.0, -8.0),
    ],
)
def test_one_value_by_hand(v, of_code, of_paper):
    """Eq. (3) of the paper, and with the mask on the rounded code."""
    for sign in (1.0, -2.0):
        assert points([v], [sign], 0.5, gradient_mask="code") == sign * of_code
        assert points([v], [sign], 0.5, gradient_mask="quotient") == sign * of_paper
    closed = of_code if abs(v) in (3.5, 4.0) else of_paper
    assert points([v], None, 0.5, gradient_mask="quotient_closed") == closed
    assert points([v], None, 0.5, gradient_mask="range") == closed


def test_masks_disagree_by_as_much_as_the_range():
    """Values between an edge and half a step beyond it count by their rounding error, or by the whole range."""
    v = [3.6, 3.7, -4.1, 0.3, 1.0, -2.2, 9.0]
    of_code, of_paper = dscale(v, None, 0.5), dscale(v, None, 0.5, gradient_mask="quotient")
    rounding = [7 - 7.2, 7 - 7.4, -8 + 8.2, 1 - 0.6, 0, -4 + 4.4, 7]
    assert of_code == pytest.approx(sum(rounding), rel=1e-6)
    assert of_paper == pytest.approx(sum([7, 7, -8, *rounding[3:]]), rel=1e-6)


def _brute_force(v, upstream, scale, zero, g, codes, mask):
    """Return the gradient of one scale in rational arithmetic, of a quotient that float32 represents."""
    total = Fraction(0)
    for value, above in zip(v, upstream, strict=True):
        quotient = Fraction(float(value)) / Fraction(float(scale))
        code = round(quotient) + zero
        low, high = codes[0] - zero, codes[1] - zero
        if mask is GradientMask.CODE:
            inside = codes[0] <= code <= codes[1]
        elif mask is GradientMask.QUOTIENT:
            inside = low < quotient < high
        else:
            inside = low <= quotient <= high
        step = code - zero - quotient if inside else low if quotient <= low else high
        total += Fraction(float(above)) * step
    return float(total * Fraction(float(g)))


@pytest.mark.parametrize("mask", [GradientMask.CODE, GradientMask.QUOTIENT, GradientMask.QUOTIENT_CLOSED])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("form", list(GradientForm))
def test_the_exact_regime_against_fractions(format, mask, form):
    """Quarters of a code times powers of two, whole upstream gradients: a point, which is the rational sum."""
    rng = np.random.default_rng(7)
    fmt = integer_format(format)
    for zero in (None, int(rng.integers(fmt.minimum, fmt.maximum))):
        v = (rng.integers(4 * fmt.minimum - 8, 4 * fmt.maximum + 8, (3, 50)) / 4 - (zero or 0)) * 0.125
        upstream = rng.integers(-8, 9, v.shape) / 16
        found = points(
            v, upstream, np.full(3, 0.125), None if zero is None else np.full(3, zero), 2.0**-5, format,
            granularity="axis", axis=0, gradient_mask=mask, gradient_form=form,
        )  # fmt: skip
        expected = [
            _brute_force(row, above, 0.125, zero or 0, 2.0**-5, fmt.codes(False), mask)
            for row, above in zip(v, upstream, strict=True)
        ]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mask", list(GradientMask))
def test_the_value_without_the_exact_regime(mask):
    """The sum of eq. (3) in float64, on the codes of the declared arithmetic, is the value before its last rounding."""
    rng = np.random.default_rng(8)
    v, upstream = rng.standard_normal((2, 6, 40)).astype(np.float32)
    scale = rng.uniform(0.05, 0.4, 6).astype(np.float32)
    zero = rng.integers(-5, 5, 6)
    found = lsq(v, upstream, scale, zero, 0.3, granularity="axis", axis=0, gradient_mask=mask)["dscale"]
    t = (v / scale[:, None]).astype(np.float32).astype(np.float64)
    low, high = (-8 - zero)[:, None], (7 - zero)[:, None]
    code = np.rint(t)
    inside = {
        GradientMask.CODE: (code >= low) & (code <= high),
        GradientMask.QUOTIENT: (t > low) & (t < high),
        GradientMask.QUOTIENT_CLOSED: (t >= low) & (t <= high),
        GradientMask.RANGE: (v >= np.float32(scale[:, None] * low)) & (v <= np.float32(scale[:, None] * high)),
    }[mask]
    real = v / scale[:, None].astype(np.float64)
    steps = np.where(inside, code - real, np.where(real < 0.5 * (low + high), low, high))
    value = float(np.float32(0.3)) * (upstream * steps).sum(axis=1)
    np.testing.assert_array_equal(found.exact, value.astype(np.float32))
    assert np.all(found.hi - found.lo < 1e-4 * np.abs(upstream * steps).sum(axis=1))


def test_it_is_the_derivative_of_the_surrogate():
    """Central differences in s of v + r s with r = round(v / s) - v / s held fixed, and of s times the edges."""
    rng = np.random.default_rng(9)
    v = rng.uniform(-8, 8, 2000).astype(np.float32)
    s, h = np.float64(np.float32(0.7)), 1e-4
    for low, high, format in ((-8, 7, "int4"), (0, 15, "uint4")):
        quotient = v / s
        frozen = np.rint(quotient) - quotient
        inside = (quotient > low) & (quotient < high)

        def surrogate(scale, inside=inside, frozen=frozen, quotient=quotient, low=low, high=high):
            return np.where(inside, v + frozen * scale, scale * np.where(quotient >= high, high, low))

        upstream = rng.standard_normal(v.size).astype(np.float32)
        slope = np.sum(upstream * (surrogate(s + h) - surrogate(s - h)) / (2 * h))
        assert dscale(v, upstream, s, format=format, gradient_mask="quotient") == pytest.approx(slope, rel=1e-5)


def test_the_scale_gradient_of_a_straight_line():
    """Of y = clamp(v / s) s without the rounding, dy/ds is 0 inside; LSQ's is what the rounding adds: at most 1/2."""
    rng = np.random.default_rng(10)
    for value in rng.uniform(-3.4, 3.4, 100):
        assert abs(dscale([value], None, 0.5)) <= 0.5


@pytest.mark.parametrize("format", FORMATS)
def test_torch_learnable_per_channel(format):
    """The backward of the operator behind torch.ao's _LearnableFakeQuantize; that per tensor errs for z < 0."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(11)
    fmt = integer_format(format)
    scale = rng.uniform(0.02, 0.5, 8).astype(np.float32)
    zero = rng.integers(fmt.minimum, fmt.maximum, 8, endpoint=True)
    v = scale[:, None] * rng.uniform(fmt.minimum - 9, fmt.maximum + 9, (8, 300)) - scale[:, None] * zero[:, None]
    v, upstream = v.astype(np.float32), rng.standard_normal(v.shape).astype(np.float32)
    leaf, scales = torch.tensor(v, requires_grad=True), torch.tensor(scale, requires_grad=True)
    torch._fake_quantize_learnable_per_channel_affine(
        leaf, scales, torch.tensor(zero, dtype=torch.float32), 0, *fmt.codes(False), 0.125
    ).backward(torch.tensor(upstream))
    found = lsq(
        v, upstream, scale, zero, 0.125, format, granularity="axis", axis=0,
        division="reciprocal", zero_point_order="inside", contraction="fused",
    )  # fmt: skip
    np.testing.assert_array_equal(leaf.grad.numpy(), found["dv"].exact)
    assert found["dscale"].admits(scales.grad.numpy().astype(np.float64)).all()
    np.testing.assert_allclose(scales.grad.numpy(), found["dscale"].exact, rtol=1e-4, atol=1e-4)


def test_autograd_in_float64():
    """What torch makes of round(clamp(v / s)) s, the rounding with a gradient of 1, is QUOTIENT_CLOSED."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(12)
    scale = np.array([0.25, 0.5, 2.0], np.float32)
    v = np.array([beside for s in scale for beside in s * np.arange(-10, 10, 0.25)]).reshape(3, -1).astype(np.float32)
    upstream = rng.standard_normal(v.shape).astype(np.float32)
    leaf = torch.tensor(v, dtype=torch.float64, requires_grad=True)
    s = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    quotient = torch.clamp(leaf / s[:, None], -8, 7)
    rounded = quotient + (torch.round(quotient) - quotient).detach()
    (rounded * s[:, None]).backward(torch.tensor(upstream, dtype=torch.float64))
    for form in GradientForm:
        found = lsq(v, upstream, scale, granularity="axis", axis=0, gradient_mask="quotient_closed", gradient_form=form)
        np.testing.assert_array_equal(found["dv"].exact, leaf.grad.numpy().astype(np.float32))
        np.testing.assert_allclose(found["dscale"].exact, s.grad.numpy(), rtol=1e-6)


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_sums_over_what_shares_a_scale(place):
    """Each scale's gradient is that of its own elements alone; their gradients are one value's each."""
    rng = np.random.default_rng(13)
    v, upstream = rng.standard_normal((2, 6, 8)).astype(np.float32)
    index = {
        "tensor": np.zeros((6, 8), int),
        "axis0": np.repeat(np.arange(6)[:, None], 8, 1),
        "axis1": np.repeat(np.arange(8)[None], 6, 0),
        "group": np.arange(6)[:, None] * 2 + np.arange(8)[None] // 4,
    }[place["granularity"] + str(place.get("axis", ""))]
    count = index.max() + 1
    shape = {"tensor": (), "axis": (count,), "group": (6, 2)}[place["granularity"]]
    scale = rng.uniform(0.1, 0.4, shape).astype(np.float32)
    found = lsq(v, upstream, scale, **place)
    for at in range(count):
        alone = lsq([v[index == at]], [upstream[index == at]], scale.reshape(-1)[at])
        for part in ("exact", "lo", "hi"):
            np.testing.assert_allclose(
                getattr(found["dscale"], part).reshape(-1)[at], getattr(alone["dscale"], part), rtol=1e-6
            )
        np.testing.assert_array_equal(found["dv"].exact[index == at], alone["dv"].exact[0])


@pytest.mark.parametrize("form", list(GradientForm))
@pytest.mark.parametrize("gradient_scale", [1.0, 0.0123, 17.0])
def test_every_order_and_form_in_float32_is_enclosed(form, gradient_scale):
    """Sums forward, backward, pairwise and permuted, with g before or after, quotients by division or reciprocal."""
    rng = np.random.default_rng(14)
    f = np.float32
    g = f(gradient_scale)
    for _ in range(20):
        n, s = int(rng.integers(1, 200)), f(rng.uniform(0.01, 0.3))
        v, upstream = (rng.standard_normal((2, n)) * [[1.0], [3.0]]).astype(f)
        found = lsq(v, upstream, s, None, g, gradient_form=form)["dscale"]
        quotient = (v / s).astype(f)
        code = np.rint(quotient)
        inside = (code >= -8) & (code <= 7)
        q = np.clip(code, -8, 7).astype(f)
        direct = np.where(inside, q - quotient, q).astype(f)
        through = np.where(inside, ((q * s).astype(f) - v) * (f(1) / s), q).astype(f)
        for steps in (direct, through):
            for order in (np.arange(n), np.arange(n)[::-1], rng.permutation(n)):
                terms = (upstream * steps)[order]
                for summed in (np.cumsum(terms, dtype=f)[-1] * g, np.cumsum(terms * g, dtype=f)[-1], terms.sum() * g):
                    assert found.admits(np.asarray(f(summed), np.float64))
        if form is GradientForm.CHAIN:
            apart = (
                np.cumsum(upstream * q, dtype=f)[-1]
                - np.cumsum(np.where(inside, upstream * s * ((v / s) / s), f(0)), dtype=f)[-1]
            )
            assert found.admits(np.asarray(f(apart * g), np.float64))


def test_a_float16_accumulator_admits_more():
    rng = np.random.default_rng(15)
    v, upstream = rng.standard_normal((2, 4, 64)).astype(np.float32)
    wide = lsq(v, upstream, 0.1)["dscale"]
    narrow = lsq(v, upstream, 0.1, float_accumulator="float16")["dscale"]
    assert narrow.hi - narrow.lo > 100 * (wide.hi - wide.lo)


def test_special_values():
    """A NaN, or an upstream gradient that is not finite, leaves the gradient of its own scale open, and no other."""
    v = np.array([[1.3, NAN, 2.0], [0.3, INF, -INF], [0.3, 1.0, 2.0]])
    upstream = np.array([[1.0, 1.0, 1.0], [1.0, 2.0, 1.0], [1.0, INF, 1.0]])
    place = {"granularity": "axis", "axis": 0}
    found = lsq(v, upstream, np.ones(3), **place)
    np.testing.assert_array_equal(found["dscale"].lo[[0, 2]], [-INF, -INF])
    np.testing.assert_array_equal(found["dscale"].hi[[0, 2]], [INF, INF])
    assert found["dscale"].exact[1] == np.float32(-np.float32(0.3) + 14 - 8)
    np.testing.assert_array_equal(found["dv"].exact, [[1, 0, 1], [1, 0, 0], [1, INF, 1]])
    chain = lsq(v, upstream, np.ones(3), gradient_form=GradientForm.CHAIN, **place)
    np.testing.assert_array_equal(chain["dscale"].hi, [INF, INF, INF])


def test_sums_that_may_overflow_are_open():
    found = lsq([1.25, 1.25, 1.25], [3e38, 3e38, -3e38], gradient_scale=8.0)["dscale"]
    assert (found.lo, found.hi) == (-INF, INF)


@pytest.mark.parametrize(("place", "shape"), [(PLACES[0], ()), (PLACES[1], (3,)), (PLACES[3], (3, 0))])
def test_an_empty_sum_is_zero(place, shape):
    v = np.zeros((3, 0), np.float32)
    found = lsq_gradient_enclosure(v, v, np.ones(shape, np.float32), None, np.float32(1), format="int4", **place)
    np.testing.assert_array_equal(found["dscale"].exact, np.zeros(shape))
    np.testing.assert_array_equal(found["dscale"].hi, np.zeros(shape))
    assert found["dv"].shape == (3, 0)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("place", PLACES, ids=str)
def test_the_first_scale(format, place):
    """2 mean|v| / sqrt(Q_P) in float64, and float32 in several orders inside the bounds."""
    rng = np.random.default_rng(16)
    v = rng.standard_normal((6, 8)).astype(np.float32)
    found = lsq_initial_scale_enclosure(v, format=format, **place)
    size = np.abs(v)
    axes = {"tensor": (0, 1), "axis0": 1, "axis1": 0, "group": 2}[place["granularity"] + str(place.get("axis", ""))]
    grouped = size.reshape(6, 2, 4) if place["granularity"] == "group" else size
    root = np.sqrt(integer_format(format).maximum)
    np.testing.assert_array_equal(found.exact, np.float32(2 * grouped.mean(axis=axes, dtype=np.float64) / root))
    for order in (grouped, np.flip(grouped, axes)):
        mean = order.mean(axis=axes, dtype=np.float32)
        for value in (2 * mean / np.float32(root), mean * np.float32(2 / root)):
            assert found.admits(np.asarray(value, np.float64)).all()
    assert np.all(found.hi - found.lo < 1e-5 * found.exact)


def test_the_first_scale_where_nothing_rounds():
    found = lsq_initial_scale_enclosure(np.array([[1.0, -2.0], [3.0, 2.0]]), format="int2")
    assert (found.lo, found.exact, found.hi) == (4.0, 4.0, 4.0)
    found = lsq_initial_scale_enclosure(np.zeros((2, 3)), format="int8")
    assert (found.lo, found.hi) == (0.0, 0.0)


BAD = [
    ({"scale": -1.0}, "scale: must be positive and finite"),
    ({"gradient_scale": 0.0}, "gradient_scale: must be positive and finite"),
    ({"gradient_scale": [1.0, 2.0]}, r"gradient_scale: has shape \(2,\), must be \(\)"),
    ({"upstream": [1.0]}, r"upstream: has shape \(1, 1\), must have that of v, \(1, 2\)"),
    ({"zero_point": 9}, r"zero_point: must lie in \[-8, 7\]"),
    ({"format": "int1"}, "format: 'int1' is not an integer format"),
    ({"scale": [1.0, 2.0, 3.0]}, r"scale: has shape \(3,\)"),
    ({"float_accumulator": "float8"}, "float_accumulator: 'float8' is not admissible"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        lsq([1.0, 2.0], **changes)


@pytest.mark.parametrize(
    ("v", "format", "message"),
    [
        ([[1.0, NAN]], "int4", "v: must be finite"),
        (np.zeros((0, 3)), "int4", "x: has a zero-size axis"),
        ([[1.0]], "int16", "format: 'int16' is not an integer format"),
    ],
)
def test_bad_input_of_the_first_scale(v, format, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        lsq_initial_scale_enclosure(np.asarray(v), format=format)
