"""The straight-through gradient: closed forms at the edges, torch, finite differences of the surrogate, bad input."""

from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.affine import quantize
from lowbit_cts.reference.choices import GradientForm, GradientMask, MaskedGradient
from lowbit_cts.reference.formats import INTEGER_FORMATS, integer_format
from lowbit_cts.reference.qat import fake_quantize_gradient_enclosure

INF, NAN = np.inf, np.nan
MASKS = tuple(GradientMask)


def gradient(x, upstream=None, scale=1.0, zero_point=0, format="int4", **choices):
    """Return the enclosure for a row of values."""
    x = np.asarray(x, np.float32).reshape(1, -1)
    upstream = np.ones_like(x) if upstream is None else np.asarray(upstream, np.float32).reshape(1, -1)
    return fake_quantize_gradient_enclosure(
        x, upstream, np.float32(scale), np.asarray(zero_point), format=format, **choices
    )


def point(*arguments, **choices):
    """Return the one admissible result for a row of values."""
    found = gradient(*arguments, **choices)
    np.testing.assert_array_equal(found.lo, found.hi)
    np.testing.assert_array_equal(found.lo, found.exact)
    return found.exact[0]


def beside(value, ulps):
    """Return the float32 so many units in the last place above a value."""
    value = np.float32(value)
    for _ in range(abs(ulps)):
        value = np.nextafter(value, np.float32(np.sign(ulps) * np.inf))
    return value


#: Edge of int4 with scale 1/2 and no zero point, and which masks pass just below, at and just above it.
EDGES = [  # edge, mask, below, at, above
    (3.5, GradientMask.CODE, 1, 1, 1),
    (3.75, GradientMask.CODE, 1, 0, 0),  # 7.5 rounds to 8
    (-4.25, GradientMask.CODE, 0, 1, 1),  # -8.5 rounds to -8
    (-4.0, GradientMask.CODE, 1, 1, 1),
    (3.5, GradientMask.QUOTIENT, 1, 0, 0),
    (-4.0, GradientMask.QUOTIENT, 0, 0, 1),
    (3.75, GradientMask.QUOTIENT, 0, 0, 0),
    (3.5, GradientMask.QUOTIENT_CLOSED, 1, 1, 0),
    (-4.0, GradientMask.QUOTIENT_CLOSED, 0, 1, 1),
    (3.5, GradientMask.RANGE, 1, 1, 0),
    (-4.0, GradientMask.RANGE, 0, 1, 1),
]


@pytest.mark.parametrize(("edge", "mask", "below", "at", "above"), EDGES)
def test_at_and_beside_the_edges(edge, mask, below, at, above):
    x = [beside(edge, ulps) for ulps in (-2, -1, 0, 1, 2)]
    np.testing.assert_array_equal(point(x, scale=0.5, gradient_mask=mask), [below, below, at, above, above])


@pytest.mark.parametrize("rounding", ["half_even", "half_away", "half_toward_zero", "half_up", "half_down"])
def test_ties_beyond_the_range_follow_the_rounding(rounding):
    passing = point([7.5, -8.5], rounding=rounding)
    codes = quantize(np.array([[7.5, -8.5]]), np.float32(1), np.array(0), format="int8", rounding=rounding)[0]
    np.testing.assert_array_equal(passing, (codes >= -8) & (codes <= 7))


@pytest.mark.parametrize("format", INTEGER_FORMATS)
@pytest.mark.parametrize("mask", MASKS)
def test_against_fractions(format, mask):
    """By rational arithmetic, with a power of two as the scale, zero points at the ends, quarters of a code."""
    fmt = integer_format(format)
    for zero in (fmt.minimum, fmt.maximum, 1):
        codes = [Fraction(k, 4) for k in range(4 * fmt.minimum - 12, 4 * fmt.maximum + 13)]
        expected = []
        for code in codes:
            if mask is GradientMask.CODE:
                expected.append(fmt.minimum <= round(code - zero) + zero <= fmt.maximum)
            elif mask is GradientMask.QUOTIENT:
                expected.append(fmt.minimum < code < fmt.maximum)
            else:
                expected.append(fmt.minimum <= code <= fmt.maximum)
        x = np.array([float(code - zero) for code in codes]) * 0.25
        np.testing.assert_array_equal(point(x, None, 0.25, zero, format, gradient_mask=mask), expected)


def test_a_range_in_float32_is_not_the_quotient():
    """Where s * qmax rounds up or down, x at that end is inside a RANGE whatever x / s rounds to."""
    differ = 0
    for scale in np.random.default_rng(1).uniform(0.01, 1, 400).astype(np.float32):
        end = np.float32(scale * np.float32(127))
        assert point([end], None, scale, 0, "int8", gradient_mask="range") == 1
        assert point([beside(end, 1)], None, scale, 0, "int8", gradient_mask="range") == 0
        closed = point([end], None, scale, 0, "int8", gradient_mask="quotient_closed")
        assert closed == (np.float32(end / scale) <= 127)
        differ += int(closed[0] == 0)
    assert differ > 20


def test_special_values():
    """Infinities and NaN in x are masked; those in the upstream gradient pass, and are masked as declared."""
    x = [INF, -INF, NAN, 3e38, -3e38, 0.0, -0.0, 1e-45]
    for mask in MASKS:
        np.testing.assert_array_equal(point(x, gradient_mask=mask), [0, 0, 0, 0, 0, 1, 1, 1])
        upstream = [INF, NAN, INF, -INF, NAN, INF, NAN, -INF]
        np.testing.assert_array_equal(point(x, upstream, gradient_mask=mask), [0, 0, 0, 0, 0, INF, NAN, -INF])
        product = point(x, upstream, gradient_mask=mask, masked_gradient=MaskedGradient.PRODUCT)
        np.testing.assert_array_equal(product, [NAN] * 5 + [INF, NAN, -INF])


def test_a_zero_divided_by_a_subnormal_scale():
    found = gradient([0.0, 1e-40], [2.0, -3.0], scale=1e-45, division="reciprocal")
    assert (found.lo[0, 0], found.hi[0, 0]) == (0, 2)
    assert (found.lo[0, 1], found.hi[0, 1]) == (0, 0)


def test_a_chain_rounds_and_a_power_of_two_does_not():
    upstream = np.random.default_rng(2).standard_normal(500).astype(np.float32)
    direct = gradient(np.zeros(500), upstream, scale=0.1)
    np.testing.assert_array_equal(direct.lo, direct.hi)
    chain = gradient(np.zeros(500), upstream, scale=0.1, gradient_form=GradientForm.CHAIN)
    s = np.float32(0.1)
    for multiplied in ((upstream * s) / s, (upstream * s) * (np.float32(1) / s), upstream):
        assert chain.admits(multiplied[None].astype(np.float64)).all()
    assert not chain.admits((upstream * np.float32(1 + 2.0**-20))[None].astype(np.float64)).any()
    power = gradient(np.zeros(500), upstream, scale=0.125, gradient_form=GradientForm.CHAIN)
    np.testing.assert_array_equal(power.lo, power.hi)


def test_approximate_division_leaves_the_edges_open():
    x = [beside(7, k) for k in (-40, -1, 0, 1, 40)]
    found = gradient(
        x, [2.0] * 5, gradient_mask=GradientMask.QUOTIENT_CLOSED, division="approximate", division_ulps=2.0
    )
    np.testing.assert_array_equal(found.lo[0], [2, 0, 0, 0, 0])
    np.testing.assert_array_equal(found.hi[0], [2, 2, 2, 2, 0])


@pytest.mark.parametrize("mask", [GradientMask.QUOTIENT, GradientMask.CODE])
def test_it_is_the_derivative_of_a_clamp(mask):
    """Central differences of the clamp that the estimator puts in the place of the quantizer, away from its corners."""
    rng = np.random.default_rng(3)
    scale, zero, beyond = 0.37, 3, 0.5 if mask is GradientMask.CODE else 0.0
    low, high = (np.float32(scale) * (q - zero + side * beyond) for q, side in ((-8, -1), (7, 1)))
    x = rng.uniform(2 * low, 2 * high, 4000).astype(np.float32)
    x = x[np.minimum(np.abs(x - low), np.abs(x - high)) > 1e-3].astype(np.float64)
    step = 1e-4
    slope = (np.clip(x + step, low, high) - np.clip(x - step, low, high)) / (2 * step)
    np.testing.assert_allclose(point(x, None, scale, zero, gradient_mask=mask), slope, atol=1e-9)


@pytest.mark.parametrize("format", INTEGER_FORMATS)
def test_torch_autograd(format):
    """torch.fake_quantize_per_tensor_affine and _per_channel_affine, backward, beside every edge and tie."""
    torch = pytest.importorskip("torch")
    fmt = integer_format(format)
    ties = np.arange(fmt.minimum - 2, fmt.maximum + 2.5, 0.5)
    rng = np.random.default_rng(4)
    scales = np.array([1.0, 0.25, 0.1, 3e-3, 7.7], np.float32)
    zeros = rng.integers(fmt.minimum, fmt.maximum, len(scales), endpoint=True)
    x = (scales[:, None] * (ties - zeros[:, None])).astype(np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(INF)), np.nextafter(x, np.float32(-INF))], axis=1)
    x[:, :3] = [INF, -INF, NAN]
    upstream = rng.standard_normal(x.shape).astype(np.float32)
    codes = fmt.codes(False)
    choices = {"format": format, "division": "reciprocal", "masked_gradient": "product"}
    leaf = torch.tensor(x, requires_grad=True)
    torch.fake_quantize_per_channel_affine(
        leaf, torch.tensor(scales), torch.tensor(zeros, dtype=torch.int32), 0, *codes
    ).backward(torch.tensor(upstream))
    rows = fake_quantize_gradient_enclosure(x, upstream, scales, zeros, granularity="axis", axis=0, **choices)
    np.testing.assert_array_equal(leaf.grad.numpy(), rows.exact)
    for row, (scale, zero) in enumerate(zip(scales, zeros, strict=True)):
        leaf = torch.tensor(x[row], requires_grad=True)
        torch.fake_quantize_per_tensor_affine(leaf, float(scale), int(zero), *codes).backward(
            torch.tensor(upstream[row])
        )
        np.testing.assert_array_equal(leaf.grad.numpy(), rows.exact[row])


def test_the_clamp_of_torch():
    """torch's gradient of a clamp passes at its edges: QUOTIENT_CLOSED of a scale of one."""
    torch = pytest.importorskip("torch")
    x = np.array([beside(edge, k) for edge in (-8, 7) for k in (-2, -1, 0, 1, 2)], np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    leaf.clamp(-8, 7).sum().backward()
    np.testing.assert_array_equal(point(x, gradient_mask="quotient_closed"), leaf.grad.numpy())


def test_places():
    """Rows, columns and groups have their own scales and zero points, in the shape of the matrix."""
    rng = np.random.default_rng(5)
    x, upstream = rng.standard_normal((2, 4, 8)).astype(np.float32)
    for place, shape in (
        ({"granularity": "axis", "axis": 0}, (4,)),
        ({"granularity": "axis", "axis": 1}, (8,)),
        ({"granularity": "group", "group_size": 2}, (4, 4)),
    ):
        scale = rng.uniform(0.05, 0.3, shape).astype(np.float32)
        zero = rng.integers(-8, 8, shape)
        found = fake_quantize_gradient_enclosure(x, upstream, scale, zero, format="int4", **place)
        for i in range(4):
            for j in range(8):
                at = {(4,): (i,), (8,): (j,), (4, 4): (i, j // 2)}[shape]
                alone = gradient([x[i, j]], [upstream[i, j]], scale[at], zero[at])
                assert alone.exact[0, 0] == found.exact[i, j]


BAD = [
    ({"scale": 0.0}, "scale: must be positive and finite"),
    ({"scale": NAN}, "scale: must be positive and finite"),
    ({"zero_point": 8}, r"zero_point: must lie in \[-8, 7\]"),
    ({"zero_point": [0, 1]}, r"zero_point: has shape \(2,\)"),
    ({"format": "int9"}, "format: 'int9' is not an integer format"),
    ({"format": "uint1"}, "format: 'uint1' is not an integer format"),
    ({"gradient_mask": "open"}, "gradient_mask: 'open' is not admissible"),
    ({"gradient_form": "both"}, "gradient_form: 'both' is not admissible"),
    ({"granularity": "group", "group_size": 3}, "group_size: 3 does not divide"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_input(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        gradient([1.0, 2.0], **changes)


def test_an_upstream_gradient_of_another_shape():
    with pytest.raises(ValueError, match=r"^upstream: has shape \(1, 1\), must have that of x, \(1, 2\)"):
        gradient([1.0, 2.0], [1.0])
