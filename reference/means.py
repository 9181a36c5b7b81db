"""The mean of float32 values, whatever the order in which they are added.

References
----------
.. [1] N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM 2002, §4.2: the error of a sum of
   n numbers in any order is at most gamma_{n-1} times the sum of their magnitudes.
"""

import numpy as np

from lowbit_cts.reference.choices import Division, Precision, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, gamma, power_of_two, within
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.granularity import scale_shape

_FLOAT32 = float_format("float32")


def members(x: np.ndarray, granularity: str, axis: int | None = None, group_size: int | None = None) -> np.ndarray:
    """Return a matrix so that what shares a scale lies along the last axis: shape (*scale_shape, n).

    Raises
    ------
    ValueError
        A zero-size axis, and as `scale_shape`.
    """
    target = scale_shape(x.shape, granularity, axis, group_size)
    if x.size == 0:
        raise ValueError(f"x: has a zero-size axis (shape {x.shape}); an empty set has no mean")
    if granularity == "axis" and axis == 1:
        return x.T
    count = {"tensor": x.size, "axis": x.shape[1], "group": group_size}[granularity]
    return x.reshape(*target, count)


def greatest_step(x: np.ndarray) -> np.ndarray:
    """Return, elementwise, the greatest power of two that divides a float64 value; inf for zero."""
    fraction, exponent = np.frexp(np.asarray(x, np.float64))
    significand = np.abs(np.ldexp(fraction, 53)).astype(np.int64)
    step = np.ldexp((significand & -significand).astype(np.float64), exponent - 53)
    return np.where(significand == 0, np.inf, step)


@takes_choices
def enclose_mean(
    total: np.ndarray,
    magnitude: np.ndarray,
    count: np.ndarray,
    step: np.ndarray,
    *,
    intermediate: Precision = Precision.FLOAT32,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
) -> Enclosure:
    """Return the admissible float32 means of sets of which the sums are known.

    Parameters
    ----------
    total, magnitude : ndarray of float64, any shape
        The sum of a set, and of its magnitudes.
    count : ndarray of int, broadcastable
        How many members it has; NaN is the mean of none.
    step : ndarray of float64, broadcastable
        The greatest power of two that divides every member: where ``magnitude / step`` fits the significand, every
        order of summation is exact.
    intermediate : Precision
        The type in which is added and divided.
    division, division_ulps :
        Whether the sum is divided by the count, or multiplied by its reciprocal; the error of an approximate quotient
        in units of its last place.
    """
    fmt = float_format(intermediate.value)
    count = np.asarray(count, np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        # n - 1 additions, and those of this very sum, in float64. Some order may overflow.
        adding = (gamma(np.maximum(count - 1, 0), fmt.unit_roundoff) + gamma(count, 2.0**-53)) * magnitude
        adding = np.where(magnitude <= step * 2.0 ** (fmt.mantissa_bits + 1), 0.0, adding)
        adding = np.where(magnitude > np.finfo(intermediate.value).max, np.inf, adding)
        # One division rounds as the result does; a reciprocal and a product round on their way there.
        relative = gamma(2, fmt.unit_roundoff) + 2 * fmt.unit_roundoff * division_ulps * (
            division is Division.APPROXIMATE
        )
        dividing = relative * (np.abs(total) + adding) + count * fmt.smallest
        if division is Division.DIVIDE:
            dividing = np.zeros(())
        dividing = np.where(power_of_two(np.maximum(count, 1.0)), 0.0, dividing)
        found = within(total / count, (adding + dividing) / count, _FLOAT32)
    # A sum of numbers of one sign has that sign in any order.
    lo = np.where(total == magnitude, np.maximum(found.lo, 0.0), found.lo)
    hi = np.where(total == -magnitude, np.minimum(found.hi, 0.0), found.hi)
    return Enclosure(found.exact, lo, hi)


@takes_choices
def mean_enclosure(
    x: np.ndarray,
    *,
    where: np.ndarray | None = None,
    intermediate: Precision = Precision.FLOAT32,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
) -> Enclosure:
    """Return the admissible float32 means over the last axis.

    Parameters
    ----------
    x : ndarray of float, shape (..., n)
        Finite values of float32 (or of a format inside it).
    where : ndarray of bool, the shape of x
        Which elements count; all if None.
    intermediate, division, division_ulps : as `enclose_mean`

    Returns
    -------
    Enclosure, shape (...); NaN where no element counts.
    """
    x = np.asarray(x, np.float64)
    kept = x if where is None else np.where(where, x, 0.0)  # a zero has no part in sum or step
    count = np.full(x.shape[:-1], x.shape[-1]) if where is None else where.sum(axis=-1)
    step = np.min(greatest_step(kept), axis=-1, initial=np.inf)
    return enclose_mean(
        kept.sum(axis=-1), np.abs(kept).sum(axis=-1), count, step,
        intermediate=intermediate, division=division, division_ulps=division_ulps,
    )  # fmt: skip
