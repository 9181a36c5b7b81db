"""Binary and ternary weights: closed forms on the normal density, the formulas in torch, every order of summation."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.special import ndtr

from lowbit_cts.reference.affine import quantize
from lowbit_cts.reference.binary import binarize, binarize_enclosure
from lowbit_cts.reference.choices import Division, Precision, SignOfZero, TernaryRule
from lowbit_cts.reference.lloyd import distortion, gaussian_density, gaussian_moments
from lowbit_cts.reference.ternary import (
    TWN_THRESHOLD,
    bitnet_activations,
    bitnet_activations_enclosure,
    ternarize,
    ternarize_enclosure,
)

MEAN = np.sqrt(2 / np.pi)  # of |w|, w normal
ONE = np.float32(1)
PLACES: list[dict[str, Any]] = [
    {"granularity": "tensor"},
    {"granularity": "axis", "axis": 0},
    {"granularity": "axis", "axis": 1},
    {"granularity": "group", "group_size": 32},
]


def raises(argument: str, rule: str):
    return pytest.raises(ValueError, match=f"^{argument}: .*{rule}")


def weights(seed: int, shape: tuple[int, int] = (48, 256)) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def normal(seed: int = 130) -> np.ndarray:
    return weights(seed, (1, 1_000_000))


# The normal density: definitions.md §9 by closed forms, quadrature, and a million samples.


def test_binary_has_the_error_of_one_bit():
    assert round(1 - 2 / np.pi, 5) == 0.36338
    assert distortion(np.array([-MEAN, MEAN])) == pytest.approx(1 - 2 / np.pi, rel=1e-14)
    w = normal()
    codes, scale = binarize(w)
    assert scale == pytest.approx(MEAN, rel=2e-3)
    assert np.mean((w - scale * codes.astype(np.float64)) ** 2) == pytest.approx(1 - 2 / np.pi, abs=2e-3)


def ternary_error(threshold: float, scale: float) -> float:
    """Return the mean squared error of 0 up to a threshold and +-scale above it, for a normal weight."""
    mass, first, _ = (float(m) for m in gaussian_moments(np.array(threshold), np.array(np.inf)))
    return 1 - 2 * (2 * scale * first - scale**2 * mass)


def scale_above(threshold: float) -> float:
    mass, first, _ = gaussian_moments(np.array(threshold), np.array(np.inf))
    return float(first / mass)


def test_twn_threshold_scale_and_error():
    threshold = TWN_THRESHOLD * MEAN
    assert round(threshold, 6) == 0.558519
    assert round(scale_above(threshold), 5) == 1.18416
    error = ternary_error(threshold, scale_above(threshold))
    assert round(error, 6) == 0.191625
    by_quadrature = 2 * (
        quad(lambda t: t**2 * gaussian_density(t), 0, threshold)[0]
        + quad(lambda t: (t - scale_above(threshold)) ** 2 * gaussian_density(t), threshold, 40)[0]
    )
    assert by_quadrature == pytest.approx(error, rel=1e-9)
    w = normal()
    codes, scale = ternarize(w, rule=TernaryRule.TWN)
    assert scale == pytest.approx(1.18416, abs=3e-3)
    assert np.mean((w - scale * codes.astype(np.float64)) ** 2) == pytest.approx(0.191625, abs=1e-3)


def test_the_optimal_ternary_threshold():
    found = minimize_scalar(
        lambda t: ternary_error(t, scale_above(t)), bounds=(0.1, 2), method="bounded", options={"xatol": 1e-10}
    )
    assert round(found.x, 6) == 0.612003
    assert round(found.fun, 6) == 0.190174
    assert scale_above(found.x) == pytest.approx(2 * found.x, rel=1e-6), "the threshold is the middle of 0 and scale"


def test_bitnet_error_and_share_of_nonzero_codes():
    nonzero = 2 * ndtr(-MEAN / 2)
    assert round(100 * nonzero, 2) == 68.99
    error = ternary_error(MEAN / 2, MEAN)
    assert round(error, 6) == 0.263382
    assert distortion(np.array([-MEAN, 0, MEAN])) == pytest.approx(error, rel=1e-13)
    w = normal()
    codes, scale = ternarize(w, rule=TernaryRule.BITNET)
    assert np.mean(codes != 0) == pytest.approx(0.6899, abs=2e-3)
    assert np.mean((w - scale * codes.astype(np.float64)) ** 2) == pytest.approx(0.263382, abs=2e-3)


# The rules


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_binary_is_the_sign_and_the_mean_of_what_shares_it(place):
    w = weights(131)
    codes, scale = binarize(w, **place)
    np.testing.assert_array_equal(codes, np.where(w >= 0, 1, -1))
    size = np.abs(w.astype(np.float64))
    expected = {
        "tensor": size.mean,
        "axis": lambda: size.mean(axis=1 - place["axis"]),
        "group": lambda: size.reshape(48, 8, 32).mean(axis=2),
    }[place["granularity"]]()
    assert scale.dtype == np.float32
    np.testing.assert_array_equal(scale, expected.astype(np.float32))


def test_no_other_scale_and_no_other_signs_are_better():
    w = weights(133, (1, 12)).astype(np.float64)
    codes, scale = binarize(w)
    scale = float(np.abs(w).mean())
    least = np.sum((w - scale * codes) ** 2)
    for factor in (0.9, 0.999, 1.001, 1.1):
        assert np.sum((w - factor * scale * codes) ** 2) > least
    for bits in range(4096):
        signs = 1 - 2 * (bits >> np.arange(12) & 1)
        best = max(float(np.sum(w * signs)) / 12, 0.0)
        assert np.sum((w - best * signs) ** 2) >= least - 1e-12


def test_the_sign_of_zero():
    w = np.array([[0.0, -0.0, 2.0**-149, -(2.0**-149), 3.0, -3.0]], np.float32)
    expected = {
        SignOfZero.POSITIVE: [[1, 1, 1, -1, 1, -1]],
        SignOfZero.SIGN_BIT: [[1, -1, 1, -1, 1, -1]],
        SignOfZero.ZERO: [[0, 0, 1, -1, 1, -1]],
    }
    for rule, codes in expected.items():
        assert binarize(w, sign_of_zero=rule)[0].tolist() == codes
    torch = pytest.importorskip("torch")
    assert torch.sign(torch.from_numpy(w)).int().tolist() == expected[SignOfZero.ZERO]


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_twn_is_the_formula_in_torch(place):
    torch = pytest.importorskip("torch")
    w = weights(134)
    grouped = {"tensor": w.reshape(1, -1), "group": w.reshape(-1, 32)}.get(place["granularity"])
    if grouped is None:
        grouped = w if place["axis"] == 0 else w.T
    size = torch.from_numpy(np.ascontiguousarray(grouped)).abs()
    chosen = size > 0.7 * size.mean(dim=1, keepdim=True)
    alpha = (size * chosen).sum(dim=1) / chosen.sum(dim=1)
    signs = torch.from_numpy(np.ascontiguousarray(grouped)).sign() * chosen
    found = ternarize_enclosure(w, rule="twn", **place)
    codes, scale = ternarize(w, rule="twn", **place)
    expected = signs.numpy().astype(int)
    expected = expected.T if place.get("axis") == 1 else expected.reshape(w.shape)
    np.testing.assert_array_equal(codes, expected)
    assert found["codes"].admits(expected).all()
    assert found["scale"].admits(alpha.double().numpy().reshape(scale.shape)).all()
    np.testing.assert_allclose(scale.ravel(), alpha.numpy(), rtol=1e-6)


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_bitnet_weights_are_the_formula_in_torch(place):
    """microsoft/BitNet: s = 1 / max(mean|w|, 1e-5), round(w s), clamp to [-1, 1]."""
    torch = pytest.importorskip("torch")
    w = weights(135) * np.float32(0.02)
    grouped = {"tensor": w.reshape(1, -1), "group": w.reshape(-1, 32)}.get(place["granularity"])
    if grouped is None:
        grouped = w if place["axis"] == 0 else w.T
    tensor = torch.from_numpy(np.ascontiguousarray(grouped))
    s = 1.0 / tensor.abs().mean(dim=1, keepdim=True).clamp(min=1e-5)
    expected = (tensor * s).round().clamp(-1, 1).numpy().astype(int)
    expected = expected.T if place.get("axis") == 1 else expected.reshape(w.shape)
    found = ternarize_enclosure(w, rule="bitnet", division="reciprocal", **place)
    assert found["codes"].admits(expected).all()
    assert np.mean(found["codes"].lo != found["codes"].hi) < 0.003
    np.testing.assert_array_equal(ternarize(w, rule="bitnet", division="reciprocal", **place)[0], expected)
    scale = tensor.abs().mean(dim=1).double().numpy()
    assert found["scale"].admits(scale.reshape(found["scale"].shape)).all()


def test_bitnet_ties_go_to_even_and_the_scale_has_a_least_value():
    w = np.array([[0.5, -0.5, 1.5, -1.5, 1.0, 1.0, 1.0, 1.0]])  # mean|w| is 1
    codes, scale = ternarize(w, rule=TernaryRule.BITNET)
    assert (codes.tolist(), float(scale)) == ([[0, 0, 1, -1, 1, 1, 1, 1]], 1.0)
    for tiny in (0.0, 1e-6):
        codes, scale = ternarize(np.full((1, 4), tiny, np.float32), rule="bitnet")
        assert (codes.tolist(), scale) == ([[0] * 4], np.float32(1e-5))
    codes, scale = ternarize(np.full((1, 4), 1e-6, np.float32), rule="bitnet", epsilon=1e-7)
    assert (codes.tolist(), scale) == ([[1] * 4], np.float32(1e-6))


def test_twn_leaves_out_what_is_not_strictly_above_and_zeros_have_scale_zero():
    w = np.array([[1.0, -1.0, 0.7, -0.7]]) * 10  # mean 8.5, threshold 5.95: all above
    assert ternarize(w, rule="twn")[0].tolist() == [[1, -1, 1, -1]]
    codes, scale = ternarize(np.array([[1.0, -0.1, 0.0, 5.0]]), rule="twn")  # threshold 1.0675
    assert (codes.tolist(), float(scale)) == ([[0, 0, 0, 1]], 5.0)
    found = ternarize_enclosure(np.array([[0.0, 0.0], [1.0, 1.0]]), rule="twn", granularity="axis", axis=0)
    assert found["codes"].lo.tolist() == found["codes"].hi.tolist() == [[0, 0], [1, 1]]
    assert found["scale"].lo.tolist() == found["scale"].hi.tolist() == [0, 1]


# Enclosures


def means_in_many_orders(w: np.ndarray) -> list[np.float32]:
    size = np.abs(w).ravel()
    totals = [
        size.sum(),
        *(np.cumsum(v, dtype=np.float32)[-1] for v in (size, size[::-1], np.sort(size), -np.sort(-size))),
    ]
    count = np.float32(size.size)
    return [t / count for t in totals] + [t * (ONE / count) for t in totals]


@pytest.mark.parametrize("seed", range(5))
def test_all_that_follows_from_a_mean_in_any_order_is_admitted(seed):
    """Magnitudes are planted at the thresholds, so that the order of summation shows in codes and scales."""
    w = weights(140 + seed, (1, 20_000))
    for planted in (0.7, 0.5):
        rest = np.abs(w[0, 800:]).sum(dtype=np.float64)
        mean = rest / (w.size - 800 * planted)  # of all, with 800 at the threshold
        near = planted * mean * (1 + np.arange(-400, 400) * 2.0**-24)
        w[0, : near.size] = near.astype(np.float32) * np.where(np.arange(near.size) % 2, ONE, -ONE)
        rule = TernaryRule.TWN if planted == 0.7 else TernaryRule.BITNET
        found = ternarize_enclosure(w, rule=rule, division="reciprocal")
        seen = set()
        for mean in means_in_many_orders(w):
            if rule is TernaryRule.BITNET:
                codes, scale = np.clip(np.rint(w * (ONE / mean)), -1, 1), mean
                assert found["scale"].admits(np.asarray(scale, np.float64))
                assert found["codes"].admits(codes).all()
                seen.add(codes.tobytes())
                continue
            for threshold in (np.float32(0.7) * mean, np.float32(0.7 * np.float64(mean))):
                chosen = np.abs(w) > threshold
                codes = np.sign(w) * chosen
                assert found["codes"].admits(codes).all()
                seen.add(codes.tobytes())
                for scale in means_in_many_orders(w[chosen]):
                    assert found["scale"].admits(np.asarray(scale, np.float64))
        assert len(seen) > 1, "the order shows"
        open_codes = found["codes"].lo < found["codes"].hi
        assert np.mean(open_codes) < 0.05
        assert not open_codes[0, 2000:].all()


@pytest.mark.parametrize("rule", TernaryRule)
def test_where_the_mean_is_exact_codes_are_determined(rule):
    w = (np.random.default_rng(146).integers(-512, 512, (16, 256)) / 128).astype(np.float32)
    for division in (Division.DIVIDE, Division.RECIPROCAL):
        found = ternarize_enclosure(w, rule=rule, granularity="axis", axis=0, division=division)
        np.testing.assert_array_equal(found["codes"].lo, found["codes"].hi)
        if rule is TernaryRule.BITNET:
            np.testing.assert_array_equal(found["scale"].lo, found["scale"].hi)
            exact = [Fraction(int(np.abs(row * 128).sum()), 128 * 256) for row in w]
            assert found["scale"].exact.tolist() == [float(v) for v in exact]
    binary = binarize_enclosure(w)
    assert binary["scale"].lo == binary["scale"].hi
    assert np.all(binary["codes"].lo == binary["codes"].hi)


def test_a_float64_sum_narrows_and_an_approximate_division_widens():
    w = weights(147, (1, 5000))
    for rule in TernaryRule:
        narrow = ternarize_enclosure(w, rule=rule, intermediate=Precision.FLOAT64)
        middle = ternarize_enclosure(w, rule=rule)
        wide = ternarize_enclosure(w, rule=rule, division="approximate", division_ulps=1e4)
        for name in ("codes", "scale"):
            for inner, outer in ((narrow, middle), (middle, wide)):
                assert np.all(outer[name].lo <= inner[name].lo)
                assert np.all(inner[name].hi <= outer[name].hi)
        assert np.sum(wide["codes"].hi - wide["codes"].lo) > np.sum(middle["codes"].hi - middle["codes"].lo)


def test_where_the_mean_is_lost_any_scale_goes():
    """Whether anything lies above the threshold is open, and with it the scale: here by a division gone astray."""
    found = ternarize_enclosure(np.ones((1, 3)), rule="twn", division="approximate", division_ulps=1e7)
    assert (found["scale"].lo, found["scale"].exact) == (0, 1)
    assert found["scale"].hi > 1e38
    assert found["codes"].lo.tolist() == [[0, 0, 0]]
    assert found["codes"].hi.tolist() == [[1, 1, 1]]


# BitNet's activations


def test_activations_are_the_formula_in_torch():
    """microsoft/BitNet: s = 127 / max(max|x|, 1e-5) a token, round(x s), clamp to [-128, 127].

    torch computes a number over a tensor as the number times the tensor's reciprocal.
    """
    torch = pytest.importorskip("torch")
    x = weights(149, (2000, 512)) * (10.0 ** np.random.default_rng(150).uniform(-7, 3, (2000, 1))).astype(np.float32)
    x[0] = 0
    tensor = torch.from_numpy(x)
    s = 127 / tensor.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)
    codes = (tensor * s).round().clamp(-128, 127).to(torch.int8)
    found, scale = bitnet_activations(x, division="reciprocal")
    np.testing.assert_array_equal(found, codes.numpy())
    np.testing.assert_array_equal(scale, s[:, 0].numpy())
    assert (np.abs(found).max(axis=1) == 127)[np.abs(x).max(axis=1) > 1e-5].all()


def test_activations_are_not_those_of_the_reciprocal_of_a_float32_scale():
    rng = np.random.default_rng(151)
    largest = rng.uniform(1, 2, (4000, 1)).astype(np.float32)
    x = np.concatenate([largest, (largest * ((np.arange(100) + 0.5) / 127)).astype(np.float32)], axis=1)
    codes, _ = bitnet_activations(x)
    scale = (largest[:, 0] / np.float32(127)).astype(np.float32)
    affine = quantize(
        x, scale, np.zeros(4000, int), format="int8", granularity="axis", axis=0, division=Division.RECIPROCAL
    )
    difference = np.abs(codes - affine)
    assert 0 < np.mean(difference > 0) < 0.3
    assert difference.max() == 1


@pytest.mark.parametrize("division", [Division.DIVIDE, Division.RECIPROCAL])
def test_the_factor_of_a_token_is_determined_unless_approximate(division):
    x = weights(152, (500, 64))
    found = bitnet_activations_enclosure(x, division=division)
    for part in found.values():
        np.testing.assert_array_equal(part.lo, part.hi)
    largest = np.abs(x).max(axis=1)
    s = np.float32(127) / largest if division is Division.DIVIDE else np.float32(127) * (ONE / largest)
    np.testing.assert_array_equal(found["scale"].exact, s.astype(np.float64))
    np.testing.assert_array_equal(found["codes"].exact, np.rint(x * s[:, None]))
    wide = bitnet_activations_enclosure(x, division="approximate", division_ulps=2.0)
    assert wide["scale"].admits(s.astype(np.float64)).all()
    assert wide["codes"].admits(found["codes"].exact).all()
    assert np.any(wide["scale"].lo < wide["scale"].hi)


def test_the_quantized_product_of_bitnet_is_exact_in_integers():
    """What the two halves are for: (codes_x @ codes_w.T) * scale_w / s is the product of the dequantized."""
    x, w = weights(153, (4, 64)), weights(154, (8, 64))
    q, s = bitnet_activations(x)
    t, scale = ternarize(w, rule="bitnet")
    y = (q @ t.T) * np.float64(scale) / s[:, None].astype(np.float64)
    np.testing.assert_allclose(y, (q / s[:, None].astype(np.float64)) @ (t * np.float64(scale)).T, rtol=1e-12)
    assert np.corrcoef(y.ravel(), (x @ w.T).ravel())[0, 1] > 0.8


# Bad input

X = weights(155, (4, 6))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_a_nan_or_an_infinity_leaves_no_scale(bad):
    x = X.copy()
    x[1, 2] = bad
    for call in (
        lambda: binarize(x),
        lambda: ternarize(x, rule="twn"),
        lambda: ternarize(x, rule="bitnet"),
        lambda: bitnet_activations(x),
    ):
        with raises("x", "must be finite"):
            call()


WRONG = [
    ("rule", "'absmax' is not admissible; admissible: twn, bitnet", lambda: ternarize(X, rule="absmax")),
    ("sign_of_zero", "'negative' is not admissible; admissible: positive, sign_bit, zero",
     lambda: binarize(X, sign_of_zero="negative")),
    ("granularity", "'token' is unknown", lambda: binarize(X, granularity="token")),
    ("group_size", "4 does not divide the axis of length 6",
     lambda: ternarize(X, rule="twn", granularity="group", group_size=4)),
    ("axis", "None is not an axis", lambda: ternarize(X, rule="bitnet", granularity="axis")),
    ("x", "has 1 dimensions, must have 2", lambda: binarize(X[0])),
    ("x", "has 1 dimensions, must have 2", lambda: bitnet_activations(X[0])),
    ("x", "has a zero-size axis", lambda: binarize(X[:0])),
    ("x", "has a zero-size axis", lambda: ternarize(X[:, :0], rule="twn")),
    ("x", "has a zero-size axis", lambda: bitnet_activations(X[:, :0])),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0]}: {case[1]}")
def test_wrong_shapes_and_choices_are_refused_by_name(case):
    name, rule, call = case
    with raises(name, rule):
        call()


def test_inputs_are_left_untouched():
    kept = X.copy()
    for place in PLACES[:3]:
        binarize(X, **place)
        for rule in TernaryRule:
            ternarize_enclosure(X, rule=rule, **place)
    bitnet_activations_enclosure(X, division="approximate", division_ulps=2.0)
    np.testing.assert_array_equal(X, kept)
