"""Distillation against fifty decimal digits, torch.nn.functional and autograd, finite differences, and the limits."""

from decimal import Decimal, localcontext

import numpy as np
import pytest

from lowbit_cts.reference.distillation import (
    distillation_loss,
    feature_loss,
    hard_loss,
    high_temperature_gradient,
    soft_loss,
)

RNG = np.random.default_rng(9)
TEMPERATURES = [0.5, 1.0, 4.0, 20.0, 1000.0]


def logits(size=3.0, shape=(6, 5)):
    return RNG.standard_normal(shape) * size, RNG.standard_normal(shape) * size


def in_decimals(student, teacher, temperature):
    """Return T^2 KL(p_t || p_s) summed over samples, and its gradient, by their definitions in 60 digits."""
    with localcontext() as context:
        context.prec = 60
        t, total, gradient = Decimal(temperature), Decimal(0), np.zeros(student.shape)
        for row, (s, z) in enumerate(zip(student, teacher, strict=True)):
            parts = [[(Decimal(float(v)) / t).exp() for v in side] for side in (s, z)]
            p_s, p_t = ([v / sum(side) for v in side] for side in parts)
            total += sum(b * (b.ln() - a.ln()) for a, b in zip(p_s, p_t, strict=True)) * t * t
            gradient[row] = [float(t * (a - b)) for a, b in zip(p_s, p_t, strict=True)]
        return float(total), gradient


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("size", [0.01, 3.0, 40.0])
def test_values_and_gradients_in_sixty_digits(temperature, size):
    s, t = logits(size)
    found, (total, gradient) = soft_loss(s, t, temperature=temperature), in_decimals(s, t, temperature)
    assert found.value == pytest.approx(total / 6, rel=1e-9, abs=1e-15 * temperature**2)
    np.testing.assert_allclose(found.gradient, gradient / 6, rtol=1e-9, atol=1e-15 * temperature)


@pytest.mark.filterwarnings("ignore:reduction. 'mean'")
@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_the_loss_is_torch_s_kl_div(temperature, reduction):
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    s, t = logits()
    student = torch.tensor(s, requires_grad=True)
    loss = temperature**2 * functional.kl_div(
        functional.log_softmax(student / temperature, dim=1),
        functional.softmax(torch.tensor(t) / temperature, dim=1),
        reduction=reduction,
    )
    loss.backward()
    found = soft_loss(s, t, temperature=temperature, reduction=reduction)
    assert found.value == pytest.approx(loss.item(), rel=1e-8)
    np.testing.assert_allclose(found.gradient, student.grad.numpy(), rtol=1e-9, atol=1e-14 * temperature)


def test_the_trap_is_a_factor_of_the_number_of_classes():
    s, t = logits()
    one, other = soft_loss(s, t, temperature=2.0), soft_loss(s, t, temperature=2.0, reduction="mean")
    assert one.value == pytest.approx(5 * other.value)
    np.testing.assert_allclose(one.gradient, 5 * other.gradient, rtol=1e-14)


def test_the_divergence_is_never_negative_and_zero_of_shifted_logits():
    s, t = logits()
    assert soft_loss(s, t).value > 0
    same = soft_loss(t + np.arange(6)[:, None], t, temperature=3.0)
    assert abs(same.value) < 1e-14
    np.testing.assert_allclose(same.gradient, 0, atol=1e-15)
    np.testing.assert_allclose(soft_loss(s, t).gradient.sum(axis=1), 0, atol=1e-15)


def test_extreme_logits_are_finite():
    s, t = np.array([[1e4, 0.0, -1e4]]), np.array([[-1e4, 0.0, 1e4]])
    found = soft_loss(s, t)
    assert found.value == pytest.approx(2e4)
    np.testing.assert_allclose(found.gradient, [[1, 0, -1]])


@pytest.mark.parametrize("temperature", [10.0, 100.0, 1000.0, 1e4])
def test_at_high_temperatures_the_gradient_is_the_difference_of_logits(temperature):
    """With r the range of a sample's logits over T, probabilities lie in e^-r / C to e^r / C on the way from t to s.

    The gradient is the Jacobian of the softmax there times s - t; the loss is half the variance of s - t there.
    """
    s, t = logits(1.0)
    limit = high_temperature_gradient(s, t)
    found = soft_loss(s, t, temperature=temperature)
    r = max(np.ptp(s, axis=1).max(), np.ptp(t, axis=1).max()) / temperature
    bound = (np.expm1(r) + np.expm1(2 * r)) * np.abs(s - t).max() / 30
    assert np.abs(found.gradient - limit).max() <= bound
    if temperature == 1000:
        assert 6 * np.abs(found.gradient - limit).max() < 1e-2
    centred = (s - t) - (s - t).mean(axis=1, keepdims=True)
    np.testing.assert_allclose(limit, centred / 30, rtol=1e-13)
    half = np.sum(centred**2) / (2 * 5 * 6)
    assert abs(found.value / half - 1) <= np.expm1(r)
    hotter = soft_loss(s, t, temperature=10 * temperature)
    assert np.abs(hotter.gradient - limit).max() < np.abs(found.gradient - limit).max() / 5


def test_logits_that_are_not_centred_have_another_limit():
    s, t = logits(1.0)
    found = soft_loss(s + 3, t, temperature=1000.0).gradient
    assert np.abs(found - (s + 3 - t) / 30).max() > 0.05
    np.testing.assert_allclose(found, high_temperature_gradient(s + 3, t), atol=1e-3)


def differences(loss, at, step=1e-6):
    """Return the gradient of a function by central differences."""
    found = np.zeros(at.shape)
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        found[index] = (loss(up) - loss(down)) / (2 * step)
    return found


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("reduction", ["batchmean", "mean"])
def test_the_mixture_and_its_gradient(alpha, reduction):
    s, t = logits()
    y = RNG.integers(0, 5, 6)
    given = {"alpha": alpha, "temperature": 3.0, "reduction": reduction}
    found = distillation_loss(s, t, y, **given)
    soft, hard = soft_loss(s, t, temperature=3.0, reduction=reduction), hard_loss(s, y)
    assert found.value == pytest.approx(alpha * soft.value + (1 - alpha) * hard.value)
    numeric = differences(lambda z: distillation_loss(z, t, y, **given).value, s)
    np.testing.assert_allclose(found.gradient, numeric, atol=1e-8)


def test_hard_labels_are_torch_s_cross_entropy():
    torch = pytest.importorskip("torch")
    s, y = logits()[0], RNG.integers(0, 5, 6)
    student = torch.tensor(s, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(student, torch.tensor(y))
    loss.backward()
    found = hard_loss(s, y)
    assert found.value == pytest.approx(loss.item(), rel=1e-13)
    np.testing.assert_allclose(found.gradient, student.grad.numpy(), atol=1e-15)


def test_a_certain_teacher_is_a_label():
    s, y = logits()[0], RNG.integers(0, 5, 6)
    teacher = np.zeros((6, 5))
    teacher[np.arange(6), y] = 1e3
    assert soft_loss(s, teacher).value == pytest.approx(hard_loss(s, y).value, rel=1e-12)
    np.testing.assert_allclose(soft_loss(s, teacher).gradient, hard_loss(s, y).gradient, atol=1e-15)


def test_features_are_torch_s_mse_with_a_regressor_or_none():
    torch = pytest.importorskip("torch")
    s, t, r = (torch.tensor(RNG.standard_normal(shape), requires_grad=True) for shape in ((6, 4), (6, 3), (4, 3)))
    loss = torch.nn.functional.mse_loss(s @ r, t)
    loss.backward()
    found = feature_loss(s.detach().numpy(), t.detach().numpy(), regressor=r.detach().numpy())
    assert found.value == pytest.approx(loss.item(), rel=1e-13)
    np.testing.assert_allclose(found.gradient, s.grad.numpy(), atol=1e-14)
    np.testing.assert_allclose(found.regressor_gradient, r.grad.numpy(), atol=1e-14)
    a, b = logits()
    plain = feature_loss(a, b)
    assert plain.value == pytest.approx(feature_loss(a, b, regressor=np.eye(5)).value)
    np.testing.assert_allclose(plain.gradient, differences(lambda z: feature_loss(z, b).value, a), atol=1e-8)
    assert plain.regressor_gradient is None


Z = np.ones((2, 3))
Y = np.array([0, 2])


@pytest.mark.parametrize(
    ("call", "argument", "rule"),
    [
        (lambda: soft_loss(Z, Z, temperature=0), "temperature", "must be above 0"),
        (lambda: soft_loss(Z, Z, temperature=-1.0), "temperature", "must be above 0"),
        (lambda: soft_loss(Z, Z, temperature=float("nan")), "temperature", "must be above 0"),
        (lambda: soft_loss(Z, Z, temperature=float("inf")), "temperature", "finite"),
        (lambda: soft_loss(Z, Z, temperature=5e-324), "temperature", "logits over it finite"),
        (lambda: soft_loss(Z, np.ones((2, 4))), "teacher", "must have that of student"),
        (lambda: soft_loss(np.ones(3), np.ones(3)), "student", "samples by classes"),
        (lambda: soft_loss(np.ones((0, 3)), np.ones((0, 3))), "student", "one or more"),
        (lambda: soft_loss(Z, Z * np.inf), "teacher", "must be finite"),
        (lambda: soft_loss(Z, Z, reduction="sum"), "reduction", "admissible: batchmean, mean"),
        (lambda: hard_loss(Z, np.array([0, 3])), "labels", "must be 0 to 2"),
        (lambda: hard_loss(Z, np.array([0, -1])), "labels", "must be 0 to 2"),
        (lambda: hard_loss(Z, np.array([0.0, 1.0])), "labels", "integers"),
        (lambda: hard_loss(Z, np.array([0])), "labels", "one a sample"),
        (lambda: distillation_loss(Z, Z, Y, alpha=1.2), "alpha", r"\[0, 1\]"),
        (lambda: distillation_loss(Z, Z, Y, alpha=0.5, temperature=0), "temperature", "above 0"),
        (lambda: feature_loss(Z, np.ones((2, 4))), "teacher", "must have that of student"),
        (lambda: feature_loss(Z, Z, regressor=np.ones((2, 2))), "regressor", r"must be \(3, 3\)"),
    ],
)
def test_bad_input_is_one_clear_error(call, argument, rule):
    with pytest.raises(ValueError, match=f"^{argument}: .*{rule}"):
        call()
