"""SmoothQuant and AWQ: equivalences that hold whatever the scales, balance, and searches against loops."""

from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.algorithms import awq
from lowbit_cts.reference.algorithms.smoothquant import FLOOR, channel_maxima, smoothing_scales

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
