"""Half-quadratic quantization: the zero point of each group moved so that a norm below 1 of the error falls.

Few large errors are let go for many small ones. With the scale held, two steps alternate: the error that the norm would
rather keep is split off by shrinking, and the zero point becomes the mean that fits what is left.

References
----------
.. [1] H. Badri and A. Shaji, "Half-Quadratic Quantization of Large Machine Learning Models", 2023, mobiusml.github.io/
   hqq_blog; mobiusml/hqq, `hqq/core/optimize.py`, `optimize_weights_proximal_v2` with `early_stop`.

Notes
-----
What mobiusml/hqq does beside this: its default (`optimize_weights_proximal_legacy`) keeps the quadratic term's weight
(`growth` 1), and returns the zero point that follows the step that was not better, whose error nothing bounds. It takes
ranges up to 1e-4 for constant groups, and scales below 5e-5 for 5e-5. Its last zero point it does not try.
"""

from dataclasses import dataclass

import numpy as np

#: The norm, the first weight of the quadratic term, what that grows by, and steps at most.
NORM, WEIGHT, GROWTH, STEPS = 0.7, 10.0, 1.01, 20


@dataclass(frozen=True)
class Fitted:
    """Codes (R, L) of groups, scales and zero points (R, 1), which are no whole numbers: (codes - zero) * scale."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray

    def dequantized(self) -> np.ndarray:
        """Return the weights of the groups."""
        return np.asarray((self.codes - self.zero) * self.scale)


def shrunk(x: np.ndarray, weight: float, norm: float = NORM) -> np.ndarray:
    """Return sign(x) max(|x| - |x|^(norm - 1) / weight, 0): what of an error a norm below 1 keeps; 0 of 0."""
    size = np.abs(x)
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = np.where(size > 0, size ** (norm - 1) / weight, 0.0)
    return np.asarray(np.sign(x) * np.maximum(size - cut, 0.0))


def checked(w: np.ndarray, *, bits: int, growth: float) -> np.ndarray:
    """Return the groups in float64; ValueError as `hqq`."""
    if not 2 <= bits <= 8:
        raise ValueError(f"bits: {bits} is not admissible; admissible: 2 to 8")
    if not 1 <= growth < np.inf:
        raise ValueError(f"growth: must be at least 1 and finite; got {growth}")
    w = np.asarray(w, np.float64)
    if w.ndim != 2 or not np.all(np.isfinite(w)):
        raise ValueError("w: must be a matrix of finite weights, a group a row")
    if w.shape[1] == 0:
        raise ValueError("w: a group must hold a weight")
    return w


def hqq(w: np.ndarray, *, bits: int, growth: float = GROWTH) -> tuple[Fitted, np.ndarray]:
    """Return the fit of the least mean error among the steps, and the mean errors of all.

    Parameters
    ----------
    w : ndarray of float, shape (R, L)
        Groups of finite weights, a row each. A row that is constant has scale 1 of its own, and no error.
    bits : int
        2 to 8.
    growth : float
        What the weight of the quadratic term is multiplied by at each step, at least 1.

    Returns
    -------
    Fitted
        Of step 0, round to nearest with the zero point of the range, or of a later step that is better.
    errors : ndarray of float64
        The mean magnitude of the error, over all groups, at each step made: the search ends with the first that is not
        better than the one before.

    Raises
    ------
    ValueError
        Bits outside 2 to 8, a growth below 1, weights that are not finite or no matrix, groups of nothing.
    """
    w = checked(w, bits=bits, growth=growth)
    largest = (1 << bits) - 1
    low, high = w.min(axis=1, keepdims=True), w.max(axis=1, keepdims=True)
    scale = np.where(high > low, (high - low) / largest, 1.0)
    zero, weight = -low / scale, WEIGHT
    best = Fitted(np.zeros(w.shape), scale, zero)
    errors: list[float] = []
    for _ in range(STEPS + 1):
        codes = np.clip(np.rint(w / scale + zero), 0, largest)
        fitted = Fitted(codes, scale, zero)
        missed = w - fitted.dequantized()
        error = float(np.mean(np.abs(missed))) if w.size else 0.0
        if errors and error >= min(errors):
            errors.append(error)
            break
        errors.append(error)
        best = fitted
        zero = np.mean(codes - (w - shrunk(missed, weight)) / scale, axis=1, keepdims=True)
        weight *= growth
    return best, np.array(errors)
