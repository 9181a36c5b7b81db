"""Distillation: a student's loss against a teacher's softened probabilities, labels and features, and its gradients.

References
----------
.. [1] G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2 and
   eq. (2) to (4): at high temperatures the gradient of a sample is (z_s - z_t) / C of logits with a mean of zero.
.. [2] A. Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv:1412.6550, eq. (3): features through a regressor.
.. [3] PyTorch, torch.nn.functional.kl_div: "mean" divides by every element, which is the divergence over C as well.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from lowbit_cts.reference.choices import takes_choices


class Reduction(StrEnum):
    """What a sum over samples and classes is divided by."""

    BATCHMEAN = "batchmean"  # samples: the divergence
    MEAN = "mean"  # samples and classes: C times less than the divergence, a trap   (the default of KLDivLoss)


@dataclass(frozen=True)
class Loss:
    """A loss, and its gradient by the student's logits or features, (B, C) of float64."""

    value: float
    gradient: np.ndarray


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the logarithms of the softmax along the last axis; finite of finite logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _matrix(name: str, values: np.ndarray) -> np.ndarray:
    found = np.asarray(values, np.float64)
    if found.ndim != 2 or not found.size:
        raise ValueError(
            f"{name}: must be samples by classes or features, one or more of each; got shape {found.shape}"
        )
    if not np.all(np.isfinite(found)):
        raise ValueError(f"{name}: must be finite")
    return found


def _both(student: np.ndarray, teacher: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    s, t = _matrix("student", student), _matrix("teacher", teacher)
    if s.shape != t.shape:
        raise ValueError(f"teacher: has shape {t.shape}, must have that of student, {s.shape}")
    return s, t


def _temperature(temperature: float) -> None:
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature: must be above 0 and finite; got {temperature}")


@takes_choices
def soft_loss(
    student: np.ndarray,
    teacher: np.ndarray,
    *,
    temperature: float = 1.0,
    reduction: Reduction = Reduction.BATCHMEAN,
) -> Loss:
    """Return T^2 KL(p_t || p_s) of probabilities softmax(z / T), and its gradient T (p_s - p_t) over the samples.

    Parameters
    ----------
    student, teacher : ndarray of float, shape (B, C)
        Logits.
    temperature : float
        T.
    reduction :

    Returns
    -------
    Loss
        At least 0, and 0 where the logits of each sample differ by a constant. In float32 the value is noise at high T:
        it is of the order of |z_s - z_t|^2 / 2 C, the difference of terms T^2 log C.

    Raises
    ------
    ValueError
        Shapes that differ or are no matrices, none, logits that are not finite, a temperature that is not above 0.
    """
    s, t = _both(student, teacher)
    _temperature(temperature)
    with np.errstate(over="ignore"):
        s, t = s / temperature, t / temperature
    if not (np.all(np.isfinite(s)) and np.all(np.isfinite(t))):
        raise ValueError(f"temperature: must be above 0, and logits over it finite; got {temperature}")
    log_s, log_t = log_softmax(s), log_softmax(t)
    p_s, p_t = np.exp(log_s), np.exp(log_t)
    over = len(s) if reduction is Reduction.BATCHMEAN else s.size
    value = temperature**2 * float(np.sum(p_t * (log_t - log_s))) / over
    return Loss(value, temperature * (p_s - p_t) / over)


def high_temperature_gradient(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Return what the gradient of `soft_loss` tends to as T grows: (z_s - z_t) / (B C), logits centred, (B, C).

    Raises
    ------
    ValueError
        As `soft_loss`.
    """
    s, t = _both(student, teacher)
    difference = s - t
    return np.asarray((difference - difference.mean(axis=1, keepdims=True)) / s.size)


def hard_loss(student: np.ndarray, labels: np.ndarray) -> Loss:
    """Return the mean cross-entropy of labels at temperature 1, and its gradient (p_s - 1 at the label) / B.

    Parameters
    ----------
    student : ndarray of float, shape (B, C)
        Logits.
    labels : ndarray of int, shape (B,)
        0 to C - 1.

    Raises
    ------
    ValueError
        As `soft_loss`; labels of another shape or type, or outside 0 to C - 1.
    """
    s, y = _matrix("student", student), np.asarray(labels)
    if y.shape != s.shape[:1] or y.dtype.kind not in "iu":
        raise ValueError(f"labels: must be {s.shape[0]} integers, one a sample; got {y.dtype} of shape {y.shape}")
    if np.any(y < 0) or np.any(y >= s.shape[1]):
        raise ValueError(f"labels: must be 0 to {s.shape[1] - 1}; got {y.min()} to {y.max()}")
    logs, rows = log_softmax(s), np.arange(len(s))
    gradient = np.exp(logs)
    gradient[rows, y] -= 1
    return Loss(float(-logs[rows, y].mean()), gradient / len(s))


@takes_choices
def distillation_loss(
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
    *,
    alpha: float,
    temperature: float = 1.0,
    reduction: Reduction = Reduction.BATCHMEAN,
) -> Loss:
    """Return alpha `soft_loss` + (1 - alpha) `hard_loss`.

    The reduction is that of the soft loss: with ``MEAN`` it weighs C times less than alpha says.

    Raises
    ------
    ValueError
        As both; an alpha outside [0, 1].
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: must lie in [0, 1]; got {alpha}")
    soft = soft_loss(student, teacher, temperature=temperature, reduction=reduction)
    hard = hard_loss(student, labels)
    return Loss(alpha * soft.value + (1 - alpha) * hard.value, alpha * soft.gradient + (1 - alpha) * hard.gradient)


@dataclass(frozen=True)
class FeatureLoss(Loss):
    """A loss of features, and its gradient by the regressor too, (D, E) of float64; None without one."""

    regressor_gradient: np.ndarray | None


def feature_loss(student: np.ndarray, teacher: np.ndarray, *, regressor: np.ndarray | None = None) -> FeatureLoss:
    """Return the mean squared difference of features, over samples and features.

    Parameters
    ----------
    student : ndarray of float, shape (B, D)
    teacher : ndarray of float, shape (B, E)
    regressor : ndarray of float, shape (D, E), or None
        What the student's features are multiplied by; None where D = E.

    Raises
    ------
    ValueError
        Shapes that do not chain or are no matrices, none, values that are not finite.
    """
    if regressor is None:
        s, t = _both(student, teacher)
        difference = s - t
        return FeatureLoss(float(np.mean(difference**2)), 2 * difference / t.size, None)
    s, t, r = _matrix("student", student), _matrix("teacher", teacher), _matrix("regressor", regressor)
    if len(s) != len(t) or r.shape != (s.shape[1], t.shape[1]):
        raise ValueError(f"regressor: has shape {r.shape}, must be {(s.shape[1], t.shape[1])} of {len(t)} samples each")
    difference = s @ r - t
    slope = 2 * difference / t.size
    return FeatureLoss(float(np.mean(difference**2)), slope @ r.T, s.T @ slope)
