"""SmoothQuant and AWQ: equivalences that hold whatever the scales, balance, and searches against loops."""

from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.algorithms import awq
from lowbit_cts.reference.algorithms.awq_admissible import (
    clipping_enclosures,
    clipping_objectives,
    scale_objectives,
    scales_enclosures,
)
from lowbit_cts.reference.algorithms.smoothquant import FLOOR, channel_maxima, smoothing_enclosures, smoothing_scales
from lowbit_cts.reference.calibration.candidates import least

RNG = np.random.default_rng(3)


# SmoothQuant ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.85, 1.0])
def test_a_smoothed_layer_is_the_same_layer(alpha):
    """Bit for bit where the scales are powers of two and every product is exact."""
    x, w = RNG.integers(-99, 99, (5, 16)) * 2.0 ** RNG.integers(-3, 4, 16), RNG.integers(-99, 99, (7, 16)) * 1.0
    s = smoothing_scales(channel_maxima(x), channel_maxima(w), alpha=alpha)
    np.testing.assert_allclose((x / s) @ (w * s).T, x @ w.T, rtol=1e-12, atol=1e-9)
    power = 2.0 ** np.round(np.log2(s))
    np.testing.assert_array_equal((x / power) @ (w * power).T, x @ w.T)


def test_at_one_half_both_ranges_are_the_geometric_mean():
    x, w = RNG.standard_normal((40, 9)) * 10.0 ** RNG.integers(-2, 3, 9), RNG.standard_normal((6, 9))
    s = smoothing_scales(channel_maxima(x), channel_maxima(w), alpha=0.5)
    mean = np.sqrt(channel_maxima(x) * channel_maxima(w))
    np.testing.assert_allclose(channel_maxima(x / s), mean, rtol=1e-14)
    np.testing.assert_allclose(channel_maxima(w * s), mean, rtol=1e-14)


def test_the_ends_hand_all_to_one_side():
    x, w = np.array([4.0, 0.5, 100.0]), np.array([0.25, 2.0, 8.0])
    np.testing.assert_array_equal(smoothing_scales(x, w, alpha=1.0), x)  # activations become 1
    np.testing.assert_array_equal(smoothing_scales(x, w, alpha=0.0), 1 / w)  # weights become 1


def test_layers_that_share_an_input_are_smoothed_by_the_largest_of_their_weights():
    x, layers = np.array([4.0, 9.0]), [np.array([1.0, 0.25]), np.array([0.25, 4.0])]
    np.testing.assert_array_equal(smoothing_scales(x, np.array(layers)), [2.0, 1.5])


def test_channels_of_zeros_have_the_floor():
    s = smoothing_scales(np.array([0.0, 4.0, 0.0]), np.array([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(s, [FLOOR, 2 / np.sqrt(FLOOR), FLOOR])
    np.testing.assert_array_equal(smoothing_scales(np.zeros(2), np.ones(2), alpha=0.0), [1, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.5}, "alpha: must lie in"),
        ({"alpha": -0.1}, "alpha: must lie in"),
        ({"alpha": float("nan")}, "alpha: must lie in"),
        ({"activations": np.array([1.0, np.nan])}, "activations: must be largest magnitudes"),
        ({"weights": np.array([1.0, -1.0])}, "weights: must be largest magnitudes"),
        ({"weights": np.ones(3)}, "weights: has shape"),
    ],
)
def test_what_cannot_be_smoothed(change, message):
    given = {"activations": np.ones(2), "weights": np.ones(2), **change}
    with pytest.raises(ValueError, match=message):
        smoothing_scales(given.pop("activations"), given.pop("weights"), **given)


def test_a_nan_has_no_range():
    with pytest.raises(ValueError, match="x: must be finite"):
        channel_maxima(np.array([[1.0, np.nan]]))


# AWQ -----------------------------------------------------------------------------------------------------------------


def nearest(values, bits):
    """Round a group by the definition, in rationals."""
    values = [Fraction(float(v)) for v in values]
    low, high, largest = min(values), max(values), 2**bits - 1
    scale = max(high - low, Fraction(1, 100000)) / largest
    zero = min(max(-round(low / scale), 0), largest)
    return [float((min(max(round(v / scale) + zero, 0), largest) - zero) * scale) for v in values]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "positive", "negative", "constant", "zeros", "outlier"])
def test_rounding_of_a_group_is_that_of_the_definition(bits, kind):
    w = RNG.standard_normal((3, 24))
    w = {
        "normal": w, "positive": np.abs(w) + 1, "negative": -np.abs(w) - 0.5, "constant": np.full_like(w, 0.3),
        "zeros": np.zeros_like(w), "outlier": np.where(np.arange(24) == 5, 100.0, w),
    }[kind]  # fmt: skip
    found = awq.round_to_nearest(w, bits=bits, group_size=8)
    expected = [[v for start in range(0, 24, 8) for v in nearest(row[start : start + 8], bits)] for row in w]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)


def layer(outliers=True, n=8, k=32):
    x, w = RNG.standard_normal((64, k)), RNG.standard_normal((n, k))
    if outliers:
        x[:, [3, 17]] *= 30
    return x, w


@pytest.mark.parametrize("candidates", list(awq.ScaleCandidates))
@pytest.mark.parametrize("group_size", [None, 8, 16])
def test_the_best_scales_are_those_of_a_search_by_hand(candidates, group_size):
    x, w = layer()
    found = awq.search_scales(x, w, bits=3, group_size=group_size, candidates=candidates)
    size = group_size or w.shape[1]
    least, best = np.inf, None
    for i in range(20):
        r, s = i / 20, np.empty(w.shape[1])
        for j in range(w.shape[1]):
            s[j] = np.mean(np.abs(x[:, j])) ** r
            if candidates == "both":
                start = j // size * size
                tops = np.abs(w[:, start : start + size]).max(axis=1) + 1e-6
                s[j] /= np.mean(np.abs(w[:, j]) / tops) ** (1 - r) + 1e-4
        s = np.maximum(s, 1e-4)
        s /= np.sqrt(s.max() * s.min())
        starts = range(0, w.shape[1], size)
        rounded = np.array([[v for k in starts for v in nearest((row * s)[k : k + size], 3)] for row in w])
        error = np.mean((x @ (rounded / s).T - x @ w.T) ** 2)
        np.testing.assert_allclose(found.errors[i], error, rtol=1e-9)
        if error < least * (1 - 1e-12):
            least, best = error, i
    assert found.best == best


def test_the_search_is_never_worse_than_no_scales_and_better_under_outliers():
    """The ratio 0 is 1 for every channel, hence round to nearest."""
    for outliers in (False, True):
        x, w = layer(outliers)
        found = awq.search_scales(x, w, bits=3, group_size=16)
        plain = awq.output_error(x, w, awq.round_to_nearest(w, bits=3, group_size=16))
        np.testing.assert_array_equal(awq.candidate_scales(x, w)[0], 1.0)
        assert found.errors[0] == plain
        assert found.errors[found.best] <= plain
        assert not outliers or found.errors[found.best] < 0.5 * plain


def test_channels_without_activations_get_the_least_scale():
    x, w = layer()
    x[:, 5] = 0
    scales = awq.candidate_scales(x, w)
    np.testing.assert_array_equal(scales.argmin(axis=1)[1:], 5)
    assert np.all(np.isfinite(scales))
    np.testing.assert_allclose(scales.max(axis=1) * scales.min(axis=1), 1.0)


def test_bounds_are_those_of_a_search_by_hand():
    x, w = layer()
    w[2, 9] = 12.0  # an outlier that is worth clipping
    bound, share = awq.search_clipping(x, w, bits=3, group_size=8)
    for n in range(len(w)):
        for g in range(4):
            members = slice(8 * g, 8 * g + 8)
            errors = []
            for i in range(10):
                top = np.abs(w[n, members]).max() * (1 - i / 20)
                rounded = nearest(np.clip(w[n, members], -top, top), 3)
                errors.append(np.mean((x[:, members] @ (w[n, members] - rounded)) ** 2))
            assert errors[share[n, g]] <= min(errors) * (1 + 1e-9)
            assert bound[n, g] == np.abs(w[n, members]).max() * awq.SHARES[share[n, g]]
    assert share[2, 1] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 9}, "bits: 9 is not admissible"),
        ({"group_size": 5}, "group_size: must divide"),
        ({"group_size": 64}, "group_size: must divide"),
        ({"x": np.ones((2, 3))}, "x: has shape"),
        ({"x": np.ones((0, 32))}, "x: must hold a sample"),
        ({"x": np.full((2, 32), np.nan)}, "x and w: must be finite"),
        ({"candidates": "weights"}, "candidates: 'weights' is not admissible"),
    ],
)
def test_what_cannot_be_searched(change, message):
    x, w = layer()
    given = {"x": x, "bits": 4, **change}
    with pytest.raises(ValueError, match=message):
        awq.search_scales(given.pop("x"), w, **given)


# What may be said of kernels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_smoothing_in_float32_is_enclosed_and_hardly_more(alpha):
    w = (RNG.standard_normal((6, 500)) * 10.0 ** RNG.integers(-7, 8, 500)).astype(np.float32)
    x = (np.abs(RNG.standard_normal(500)) * 10.0 ** RNG.integers(-20, 20, 500)).astype(np.float32)
    x[:20] = 0
    w[:, 10:30] = 0
    one, floor = np.float32(1), np.float32(FLOOR)
    largest = np.maximum(np.abs(w).max(axis=0), floor)
    forms = [
        x ** np.float32(alpha) / largest ** np.float32(1 - alpha),
        x ** np.float32(alpha) * (one / largest ** np.float32(1 - alpha)),
        np.exp2(alpha * np.log2(np.maximum(x.astype(float), 1e-300)) - (1 - alpha) * np.log2(largest, dtype=float)),
    ]
    for form in forms[: 2 if alpha in (0.0, 0.5, 1.0) else 3]:
        scale = np.maximum(form.astype(np.float32), floor)
        found = smoothing_enclosures(x, w, alpha=alpha, returned=scale)
        assert found["scale"].admits(scale.astype(np.float64)).all()
        assert found["smoothed"].admits((w * scale).astype(np.float64)).all()
    exact = found["scale"].exact
    assert np.all(found["scale"].hi - found["scale"].lo <= 2.0**-18 * exact)
    assert not found["smoothed"].admits((w * scale * (1 + 2.0**-22)).astype(np.float64))[:, 40:].any()


def test_smoothing_by_powers_of_two_is_determined():
    x, w = 4.0 ** RNG.integers(-4, 5, 40), 4.0 ** RNG.integers(-4, 5, (1, 40))
    for alpha in (0.0, 0.5, 1.0):
        found = smoothing_enclosures(x, w, alpha=alpha)
        np.testing.assert_array_equal(found["scale"].lo, found["scale"].hi)
        np.testing.assert_array_equal(found["scale"].exact, x**alpha / w[0] ** (1 - alpha))


def test_a_wider_kernel_may_multiply_by_the_unrounded_scales():
    x, w = np.abs(RNG.standard_normal(60)).astype(np.float32), RNG.standard_normal((4, 60)).astype(np.float32)
    scale = smoothing_scales(x, channel_maxima(w), alpha=0.25)
    given = {"alpha": 0.25, "returned": scale.astype(np.float32)}
    wide = smoothing_enclosures(x, w, intermediate="float64", **given)["smoothed"]
    narrow = smoothing_enclosures(x, w, **given)["smoothed"]
    smoothed = (w * scale).astype(np.float32).astype(np.float64)
    assert wide.admits(smoothed).all()
    assert not narrow.admits(smoothed).all()


def test_several_searches_at_once_are_several_searches():
    objective, bound = RNG.integers(0, 5, (7, 3, 4)) * 1.0, RNG.integers(0, 2, (7, 3, 4)) * 0.5
    for equal in ("first", "last"):
        best, admissible = least(objective, bound, equal=equal)
        for at in np.ndindex(3, 4):
            alone = least(objective[(slice(None), *at)], bound[(slice(None), *at)], equal=equal)
            assert best[at] == alone[0]
            np.testing.assert_array_equal(admissible[(slice(None), *at)], alone[1])


def single(values, precision=np.float32):
    return np.asarray(values, precision)


def rounded_in_float32(groups, bits, reciprocal):
    """Round groups (..., S) in float32, dividing or multiplying by the reciprocal."""
    low, high, largest = groups.min(-1, keepdims=True), groups.max(-1, keepdims=True), single(2**bits - 1)
    scale = np.maximum(high - low, single(1e-5)) / largest
    divided = (lambda v: v * (single(1) / scale)) if reciprocal else (lambda v: v / scale)
    zero = np.clip(-np.rint(divided(low)), 0, largest)
    return (np.clip(np.rint(divided(groups)) + zero, 0, largest) - zero) * scale


def layers(count, ties=False):
    """Yield layers in float32; with `ties` their weights lie beside ties of the codes, clipped ones on both sides."""
    for _ in range(count):
        x, w = (single(part) for part in layer(RNG.random() < 0.5, 6, 32))
        if ties:
            w = single((RNG.integers(-15, 16, w.shape) / 2) * (1 + RNG.integers(-2, 3, w.shape) * 2.0**-23))
        yield x, w


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("candidates", list(awq.ScaleCandidates))
def test_errors_of_scales_in_float32_are_within_their_bounds(bits, ties, candidates):
    """Outputs and their difference, or products of samples; sums forwards or backwards, division or reciprocal."""
    for number, (x, w) in enumerate(layers(5, ties)):
        scales, off, found = scale_objectives(x, w, bits=bits, group_size=16, candidates=candidates)
        true = awq.search_scales(x, w, bits=bits, group_size=16, candidates=candidates).errors
        for s, s_off, bounds, exact in zip(scales, off, found, true, strict=True):
            assert bounds.low <= exact * (1 + 1e-12)
            assert exact * (1 - 1e-12) <= bounds.high
            moved = single(s + np.clip(RNG.choice([-1, 0, 1], s.shape) * s_off * 0.5, -s / 2, s))
            taken = rounded_in_float32((w * moved).reshape(6, 2, 16), bits, number % 2).reshape(w.shape) / moved
            backwards = x[::-1, ::-1] @ (w - taken)[:, ::-1].T
            products = ((w - taken) @ (x.T @ x)) * (w - taken)
            forms = np.mean((x @ w.T - x @ taken.T) ** 2), np.mean(backwards**2), products.sum() / backwards.size
            for form in forms:
                assert bounds.low <= form <= bounds.high


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("ties", [False, True])
def test_errors_of_clipping_in_float32_are_within_their_bounds(bits, ties):
    for number, (x, w) in enumerate(layers(5, ties)):
        groups, samples = w.reshape(6, 2, 16), x.reshape(64, 2, 16)
        bounds, found = clipping_objectives(x, w, bits=bits, group_size=16)
        for share, bound, within in zip(awq.SHARES, bounds, found, strict=True):
            top = np.abs(groups).max(axis=-1, keepdims=True) * single(share)
            assert bound.admits(top[..., 0].astype(float)).all()
            taken = rounded_in_float32(np.clip(groups, -top, top), bits, number % 2)
            parts = [np.einsum("mgs,ngs->mng", samples, part) for part in (groups, taken, groups - taken)]
            for form in np.mean((parts[0] - parts[1]) ** 2, axis=0), np.mean(parts[2][::-1] ** 2, axis=0):
                assert np.all((within.low <= form) & (form <= within.high))


def test_bounds_on_errors_are_tight_in_float64():
    x, w = layer()
    true = awq.search_scales(x, w, bits=4, group_size=16).errors
    _, _, found = scale_objectives(x, w, bits=4, group_size=16, intermediate="float64")
    assert max((one.high - one.low) / exact for one, exact in zip(found, true, strict=True)) < 1e-9


def test_a_tie_may_go_either_way():
    """A weight halfway between two codes under scales that are not exact: both of its errors are within the bounds."""
    x, w = single(np.full((2, 4), 3)), single([[0, 15, 6.5, 3.25]])
    _, _, found = scale_objectives(x, w, bits=4)
    errors = [np.mean((x @ single([0, 0, half, 0.25])) ** 2) for half in (0.5, -0.5)]
    for one in found[1:]:
        assert one.low <= min(errors)
        assert one.high >= max(errors)
    # Under scales of one it is even.
    assert found[0].low == found[0].high == errors[0]


def test_few_decisions_of_a_search_are_open():
    """In float32, of 4 bits; in float64 none."""
    open_ratios, open_shares = 0, []
    for x, w in layers(40):
        given = {"bits": 4, "group_size": 16}
        best, (bound, share) = awq.search_scales(x, w, **given).best, awq.search_clipping(x, w, **given)
        for precision in ("float32", "float64"):
            ratio = scales_enclosures(x, w, intermediate=precision, **given)["ratio_index"]
            shares = clipping_enclosures(x, w, intermediate=precision, **given)
            assert ratio.lo <= best <= ratio.hi
            assert shares["share_index"].admits(share).all()
            assert shares["bound"].admits(single(bound).astype(float)).all()
            if precision == "float32":
                open_ratios += int(ratio.hi > ratio.lo)
                open_shares.append(np.mean(shares["share_index"].hi > shares["share_index"].lo))
        assert ratio.hi == ratio.lo
    assert open_ratios <= 8
    assert np.mean(open_shares) < 0.4


@pytest.mark.parametrize("candidates", list(awq.ScaleCandidates))
def test_a_planted_ratio_is_the_only_one(candidates):
    for bits in (2, 3, 4):
        for ratio in range(1, 20):
            scale = np.exp2(RNG.uniform(-1, 1, 24) * min(1, ratio / 4))
            scale /= np.sqrt(scale.max() * scale.min())
            codes = RNG.integers(0, 2**bits, (6, 24))
            codes[:, :2] = 0, 2**bits - 1
            w, top = single((codes - RNG.integers(0, 2**bits, (6, 1))) / scale), scale
            if candidates == "both":
                share = np.mean(np.abs(w) / (np.abs(w).max(axis=1, keepdims=True) + 1e-6), axis=0)
                top = scale * (share ** (1 - ratio / 20) + 1e-4)
            x = RNG.choice([-1, 1], (8, 24)) * single(top ** (20 / ratio))
            found = scales_enclosures(x, w, bits=bits, candidates=candidates)
            assert found["ratio_index"].lo == found["ratio_index"].hi == ratio, (bits, ratio)
            np.testing.assert_allclose(found["scale"].exact, scale, rtol=1e-5)
            other = scales_enclosures(x, w, bits=bits, candidates=candidates, returned=np.array(ratio - 1))
            assert not other["ratio_index"].admits(np.array(ratio - 1)).any()


def test_a_planted_share_is_the_only_one():
    """One column without samples holds a weight so large that the others are codes when it is clipped to one share."""
    for bits, largest in ((3, 7), (4, 15)):
        for share in range(10):
            # No code by this share's step is a tie by another's.
            free = [c for c in range(largest) if all(c * (20 - share) / (20 - i) % 1 != 0.5 for i in range(10))]
            w = RNG.choice(free, (4, 12)).astype(float)
            w[:, 1:3] = 0, largest / awq.SHARES[share]
            x = single(RNG.standard_normal((8, 12)))
            x[:, 2] = 0
            found = clipping_enclosures(x, single(w), bits=bits)["share_index"]
            assert np.all((found.lo == share) & (found.hi == share)), (bits, share)


def test_equal_sizes_leave_the_first_ratio():
    """Scales of one, exact sums: all errors are the same, and known."""
    x, w = RNG.choice([-1, 1], (4, 16)), RNG.integers(0, 31, (2, 16)) / 2
    w[:, :2] = 0, 15
    found = scales_enclosures(x, w, bits=4)
    assert found["ratio_index"].lo == found["ratio_index"].hi == 0
    np.testing.assert_array_equal(found["scale"].lo, 1.0)
    np.testing.assert_array_equal(found["scale"].hi, 1.0)


def test_an_inadmissible_index_is_not_admitted_whatever_lies_around_it():
    """Groups whose open shares are no neighbours: what lies between them is none of them."""
    x, w = layer()
    given = {"bits": 4, "group_size": 8}
    _, found = clipping_objectives(single(x), single(w), **given)
    low, high = (np.array([getattr(one, end) for one in found]) for end in ("low", "high"))
    for share in range(10):
        never = low[share] > np.delete(high, share, axis=0).min(axis=0)
        index = clipping_enclosures(single(x), single(w), returned=np.full(never.shape, share), **given)["share_index"]
        assert not index.admits(np.full(never.shape, share))[never].any()
    for beyond in (-1, 10, 1 << 30):
        index = clipping_enclosures(single(x), single(w), returned=np.full((8, 4), beyond), **given)["share_index"]
        assert not index.admits(np.full((8, 4), beyond)).any()


@pytest.mark.parametrize("search", [scales_enclosures, clipping_enclosures])
def test_what_has_no_enclosure(search):
    for x, w, message in (
        (np.ones((0, 8)), np.ones((2, 8)), "x: must hold a sample"),
        (np.full((2, 8), np.inf), np.ones((2, 8)), "x and w: must be finite"),
        (np.ones((2, 8)), np.ones((2, 9)), "x: has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            search(x, w, bits=4)
    with pytest.raises(ValueError, match="group_size: must divide"):
        search(np.ones((2, 8)), np.ones((2, 8)), bits=4, group_size=16)
