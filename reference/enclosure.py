"""Enclosures: the results a correct kernel may return, and the error bounds that make them.

References
----------
.. [1] N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM 2002: (2.4) the standard model,
   lemma 3.1 gamma_n, §3.1 inner products in any order of summation.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import FORMATS, FloatFormat

UNIT_ROUNDOFF = {name: fmt.unit_roundoff for name, fmt in FORMATS.items() if isinstance(fmt, FloatFormat)}


@dataclass(frozen=True)
class Enclosure:
    """The reference's answer for one result: its value, and how far a correct implementation may stray.

    Attributes
    ----------
    exact : ndarray of int64 or float64
        The result of the declared arithmetic, decoded.
    lo, hi : ndarray, the same shape
        The least and the greatest admissible value. ``lo == hi`` where the declared semantics determine the result.
        NaN in `exact` means that the result must be NaN; from -inf to inf anything goes, NaN too.
    signed_zero : bool
        Whether -0 and +0 are different results (they are for casts).
    rule : str
        What a result must be, for messages, where it is no interval (blocks that are judged as a whole).
    """

    exact: np.ndarray
    lo: np.ndarray
    hi: np.ndarray
    signed_zero: bool = False
    rule: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result."""
        return self.exact.shape

    def admits(self, values: np.ndarray) -> np.ndarray:
        """Return, elementwise, whether decoded values are admissible."""
        with np.errstate(invalid="ignore"):
            inside = (self.lo <= values) & (values <= self.hi)
        if values.dtype.kind == "f":
            inside |= np.isnan(values) & (np.isnan(self.exact) | self._anything)
            if self.signed_zero:
                inside &= (self.exact != 0) | (np.signbit(values) == np.signbit(self.exact))
        return inside

    @property
    def _anything(self) -> np.ndarray:
        return (self.lo == -np.inf) & (self.hi == np.inf)

    def ratio(self, values: np.ndarray) -> np.ndarray:
        """Return, elementwise, error over admissible error: 0 is exact, up to 1 faithful, inf an undeserved error."""
        exact = np.asarray(self.exact, np.float64)
        values = np.asarray(values, np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            room = np.where(values > exact, self.hi - exact, exact - self.lo)
            error = np.abs(values - exact)
            ratio = np.where(error == 0, 0.0, error / room)
        same = (values == exact) | (np.isnan(values) & np.isnan(exact)) | self._anything
        ratio = np.where(same, 0.0, np.where(np.isnan(ratio), np.inf, ratio))
        inside = self.admits(np.asarray(values, self.exact.dtype))
        # Inside but beyond 1 cannot be: rounding of the ratio itself; outside but within 1: signed zero, NaN.
        return np.where(inside, np.minimum(ratio, 1.0), np.where(ratio > 1.0, ratio, np.inf))

    def __getitem__(self, index: Any) -> "Enclosure":
        """Return the enclosure of a part of the result."""
        return Enclosure(self.exact[index], self.lo[index], self.hi[index], self.signed_zero, self.rule)


def determined(exact: np.ndarray, signed_zero: bool = False) -> Enclosure:
    """Return the enclosure of a result that the declared semantics determine."""
    return Enclosure(exact, exact, exact, signed_zero)


def within(exact: np.ndarray, bound: np.ndarray, fmt: FloatFormat) -> Enclosure:
    """Return the enclosure of a real result known to `bound`, then rounded to nearest in `fmt`.

    Parameters
    ----------
    exact : ndarray of float64
        The real result.
    bound : ndarray of float64, broadcastable
        Absolute error before the final rounding, ``>= 0``; 0 where every step is exact.
    fmt : FloatFormat
        The result's format. Rounding to nearest is monotone, so it maps the ends of the interval to the ends.
    """
    exact = np.asarray(exact, np.float64)
    # One float64 ulp outward covers the rounding of this very computation; none where the bound is 0.
    lo = np.where(bound > 0, np.nextafter(exact - bound, -np.inf), exact)
    hi = np.where(bound > 0, np.nextafter(exact + bound, np.inf), exact)
    return Enclosure(round_to_format(exact, fmt), round_to_format(lo, fmt), round_to_format(hi, fmt))


def gamma(n: int | np.ndarray, unit_roundoff: float) -> np.ndarray:
    """Return gamma_n = n u / (1 - n u), the relative error of n roundings (Higham, lemma 3.1); inf from n u = 1 on."""
    nu = np.asarray(n, np.float64) * unit_roundoff
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(nu < 1, nu / (1 - nu), np.inf)


def exact_terms(accumulator_bits: int, max_a: int, max_b: int) -> int:
    """Return how many products of integers up to `max_a`, `max_b` every order of summation adds exactly.

    Parameters
    ----------
    accumulator_bits : int
        Significand bits of the accumulator: 24 for float32, 11 for float16, 8 for bfloat16, 31 for int32.
    max_a, max_b : int
        The largest magnitudes of the factors.

    Notes
    -----
    Every partial sum of n such products is an integer of magnitude at most n * max_a * max_b, and all integers up to
    2**accumulator_bits are representable.
    """
    return (1 << accumulator_bits) // max(1, max_a * max_b)


def representable(values: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    """Return, elementwise, whether float64 values are values of `fmt`."""
    return round_to_format(values, fmt) == values


def power_of_two(values: np.ndarray) -> np.ndarray:
    """Return, elementwise, whether positive values are powers of two: multiplying by them is exact."""
    return np.frexp(values)[0] == 0.5
