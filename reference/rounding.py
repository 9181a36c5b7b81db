"""Rounding to integers, and single operations of IEEE arithmetic that NumPy lacks."""

from collections.abc import Callable

import numpy as np

from lowbit_cts.reference.choices import Rounding


def _half(x: np.ndarray, at_tie: np.ndarray) -> np.ndarray:
    whole = np.trunc(x)
    with np.errstate(invalid="ignore"):
        rest = np.abs(x - whole)  # exact, which x - floor(x) is not for x = -(1/2 - 2**-54); NaN at infinities
    return np.where(rest == 0.5, at_tie, np.where(rest > 0.5, whole + np.copysign(1.0, x), whole))


_ROUND: dict[Rounding, Callable[[np.ndarray], np.ndarray]] = {
    Rounding.HALF_EVEN: np.rint,
    Rounding.HALF_AWAY: lambda x: _half(x, np.where(x < 0, np.floor(x), np.ceil(x))),
    Rounding.HALF_TOWARD_ZERO: lambda x: _half(x, np.trunc(x)),
    Rounding.HALF_UP: lambda x: _half(x, np.ceil(x)),
    Rounding.HALF_DOWN: lambda x: _half(x, np.floor(x)),
    Rounding.TOWARD_ZERO: np.trunc,
    Rounding.DOWN: np.floor,
    Rounding.UP: np.ceil,
}


def round_to_integer(x: np.ndarray, rounding: Rounding) -> np.ndarray:
    """Return x rounded to integers, as float64; infinities and NaN stay.

    Parameters
    ----------
    x : ndarray of float64, any shape
    rounding : Rounding
        Any but stochastic.

    Raises
    ------
    ValueError
        Stochastic rounding.

    Notes
    -----
    ``floor(x + 0.5)`` is wrong for the float just below one half; here the tie is decided on the exact remainder.
    """
    if rounding not in _ROUND:
        raise ValueError(f"rounding: {rounding!r} needs random numbers; admissible: {', '.join(_ROUND)}")
    return _ROUND[Rounding(rounding)](np.asarray(x, np.float64))


def round_stochastically(x: np.ndarray, random: np.ndarray) -> np.ndarray:
    """Return x >= 0 rounded to integers: up where its fraction exceeds `random`, uniform in [0, 1); down elsewhere."""
    whole = np.floor(x)
    return whole + (random < x - whole)


def two_sum(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (s, e) with s = fl(a + b) and s + e = a + b exactly (Knuth's TwoSum, TAOCP 4.2.2, theorem B)."""
    s = a + b
    other = s - a
    return s, (a - (s - other)) + (b - other)


def fma_float32(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return a * b + c of float32 values, rounded once to float32 (given as float64).

    The product of two float32 values is exact in float64. The sum is rounded to odd there, from which the rounding to
    float32 is the rounding of the exact sum, since 53 >= 24 + 2 bits (Boldo and Melquiond, 2008, theorem 3).
    """
    with np.errstate(over="ignore", invalid="ignore"):
        product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
        total, error = two_sum(product, np.asarray(c, np.float64))
        inexact = np.isfinite(total) & np.isfinite(error) & (error != 0)
        even = (np.asarray(total).view(np.int64) & 1) == 0
        odd = np.where(inexact & even, np.nextafter(total, np.copysign(np.inf, error)), total)
        return odd.astype(np.float32).astype(np.float64)
