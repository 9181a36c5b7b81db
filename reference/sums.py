"""Sums of products of matrices, with what bounds the error of every way to add them.

References
----------
.. [1] N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM 2002, (3.5): an inner product in
   any order errs by at most gamma_n times the sum of the magnitudes of its terms.
"""

from dataclasses import dataclass, replace

import numpy as np

from lowbit_cts.reference.accumulators import Accumulator
from lowbit_cts.reference.enclosure import Enclosure, gamma, representable, within
from lowbit_cts.reference.formats import FloatFormat

_U64 = 2.0**-53
#: Nonzeros in a row of which each product is looked at.
_FEW = 4


def quantum(x: np.ndarray) -> np.ndarray:
    """Return, elementwise, the largest power of two that a float64 number is a whole multiple of; inf of 0.

    Of infinities and NaN it is 0.
    """
    fraction, exponent = np.frexp(np.where(np.isfinite(x), x, 0.0))
    whole = (fraction * 2.0**53).astype(np.int64)
    lowest = np.ldexp((whole & -whole).astype(np.float64), exponent - 53)
    return np.where(np.isfinite(x), np.where(whole == 0, np.inf, lowest), 0.0)


@dataclass(frozen=True)
class Operand:
    """One factor of a sum of products: real numbers, and what a kernel may make of them before it multiplies.

    Attributes
    ----------
    values : ndarray of float64
        The exact numbers.
    magnitude : ndarray of float64
        At least their magnitudes: the sum of those of the parts that a kernel may multiply apart (q s and z s).
    error : ndarray of float64
        How far the numbers that the kernel multiplies may be from `values`.
    finest : ndarray of float64 or None
        Powers of two that divide the numbers, and their parts; None is the `quantum` of the numbers.
    """

    values: np.ndarray
    magnitude: np.ndarray
    error: np.ndarray
    finest: np.ndarray | None = None

    @property
    def T(self) -> "Operand":
        """The transposed operand."""
        finest = None if self.finest is None else self.finest.T
        return Operand(self.values.T, self.magnitude.T, self.error.T, finest)

    def quanta(self) -> np.ndarray:
        """Return the powers of two that divide the numbers and their parts."""
        return quantum(self.values) if self.finest is None else self.finest


def exactly(values: np.ndarray, magnitude: np.ndarray | None = None, parts: tuple[np.ndarray, ...] = ()) -> Operand:
    """Return an operand that reaches the products unrounded.

    Parameters
    ----------
    values : ndarray
    magnitude : ndarray or None
        The sum of the magnitudes of the parts that may be multiplied apart; None where there is one.
    parts : tuple of ndarray
        Those parts: where they cancel, their sum is a multiple of more than they are.
    """
    values = np.asarray(values, np.float64)
    whole = np.abs(values) if magnitude is None else magnitude
    finest = np.minimum.reduce([quantum(part) for part in (values, *parts)]) if parts else None
    return Operand(values, whole, np.zeros_like(values), finest)


def rounded(operand: Operand, fmt: FloatFormat, roundings: int, parts: np.ndarray | bool = True) -> Operand:
    """Return the operand after so many roundings to a format; where it and its `parts` are values of it, none errs.

    Parameters
    ----------
    operand : Operand
    fmt : FloatFormat
    roundings : int
        On the way to one number, of parts up to `operand.magnitude`.
    parts : ndarray of bool, or True
        Whether what is rounded on the way is representable, too.
    """
    fits = (representable(operand.values, fmt) & parts) | ~np.isfinite(operand.values)
    step = gamma(roundings, fmt.unit_roundoff) * operand.magnitude + roundings * fmt.smallest
    with np.errstate(invalid="ignore"):
        too_large = operand.magnitude * (1 + roundings * fmt.unit_roundoff) > fmt.maximum
    error = np.where(fits, 0.0, np.where(too_large, np.inf, step))
    return replace(operand, error=operand.error + error)


@dataclass(frozen=True)
class Sums:
    """Sums over k of a[m, k] b[k, n], each (M, N) in float64.

    Attributes
    ----------
    value : ndarray
        The real sums, but for `error`.
    error : ndarray
        How far the operands' own errors and this computation may have moved them.
    magnitude : ndarray
        The sums of the magnitudes of all terms.
    quantum : ndarray
        A power of two of which every term is a whole multiple.
    terms : ndarray of int, (M, 1)
        How many of them may differ from zero.
    length : int
        How many are added.
    """

    value: np.ndarray
    error: np.ndarray
    magnitude: np.ndarray
    quantum: np.ndarray
    terms: np.ndarray
    length: int

    def plus(self, addend: np.ndarray | None) -> "Sums":
        """Return the sums with one more term, exact and broadcast (a bias); the same of None."""
        if addend is None:
            return self
        addend = np.broadcast_to(np.asarray(addend, np.float64), self.value.shape)
        with np.errstate(invalid="ignore", over="ignore"):
            value = self.value + addend
            error = self.error + np.where(representable_sum(self.value, addend, value), 0.0, _U64 * np.abs(value))
        return Sums(
            value,
            error,
            self.magnitude + np.abs(addend),
            np.minimum(self.quantum, quantum(addend)),
            self.terms + 1,
            self.length + 1,
        )


def representable_sum(a: np.ndarray, b: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return where a float64 sum is exact (Knuth's two-sum leaves nothing)."""
    with np.errstate(invalid="ignore", over="ignore"):
        part = total - a
        return ((a - (total - part)) + (b - part)) == 0


def inner_products(a: Operand, b: Operand) -> Sums:
    """Return the sums of the products of two operands, (..., M, K) and (..., K, N); leading axes are a batch.

    Infinities and NaN propagate as IEEE 754 has it: an infinity times zero and the difference of infinities are NaN.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        value = a.values @ b.values
        magnitude = a.magnitude @ b.magnitude
        k = a.values.shape[-1]
        finest = _finest(a, b)
        whole = magnitude <= 2.0**53 * finest
        error = np.where(whole, 0.0, gamma(k, _U64) * magnitude)
        if a.error.any():
            error = error + _with_infinities(a.error, b.magnitude + b.error)
        if b.error.any():
            error = error + _with_infinities(a.magnitude, b.error)
    terms = np.count_nonzero(a.magnitude + a.error, axis=-1)[..., None]
    return Sums(value, error, magnitude, finest, terms, k)


def _finest(a: Operand, b: Operand) -> np.ndarray:
    """Return a power of two, (..., M, N), that divides every product; of rows of a with few nonzeros the largest."""
    of_a, of_b = a.quanta(), b.quanta()
    finest = of_a.min(axis=-1, initial=np.inf)[..., None] * of_b.min(axis=-2, initial=np.inf)[..., None, :]
    for place in np.argwhere(np.count_nonzero(a.magnitude, axis=-1) <= _FEW):
        row, matrix = tuple(place), tuple(place[:-1])
        at = np.flatnonzero(a.magnitude[row])
        finest[row] = (of_a[row][at, None] * of_b[matrix][at]).min(axis=0, initial=np.inf)
    return np.where(np.isnan(finest), np.inf, finest)


def _with_infinities(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the product of matrices of non-negative numbers, in which infinity times zero is zero."""
    infinite = (np.isinf(a) @ (b > 0)) | ((a > 0) @ np.isinf(b))
    finite = np.where(np.isinf(a), 0.0, a) @ np.where(np.isinf(b), 0.0, b)
    return np.where(infinite, np.inf, finite * (1 + 2.0**-40))


def enclosed(
    sums: Sums, accumulator: Accumulator, output: FloatFormat, roundings: int, propagates: bool = True
) -> Enclosure:
    """Return the admissible results of sums that are added in an accumulator and rounded to a format.

    Parameters
    ----------
    sums : Sums
    accumulator : Accumulator
        In which all terms are added, in any order.
    output : FloatFormat
    roundings : int
        How many further roundings, of scales and partial results in the accumulator, a term may pass.
    propagates : bool
        Whether the terms are those of `sums`, so that infinities and NaN among them determine the result; not so where
        an infinity is multiplied with the parts of a factor, whose difference it takes.

    Notes
    -----
    ``|y' - y| <= error + (gamma_n + ...) magnitude`` before the last rounding, 0 where all partial sums are
    representable. A sum that is NaN must come out as NaN, an infinite one as itself; where the sum of the magnitudes
    may overflow the accumulator, anything may.
    """
    exact = accumulator.exact(sums.magnitude, sums.quantum)
    adding = np.where(exact, 0.0, accumulator.error(sums.terms, sums.length, sums.magnitude + sums.error, roundings))
    with np.errstate(invalid="ignore", over="ignore"):
        special = ~np.isfinite(sums.value)
        bound = np.where(special, 0.0, adding + sums.error)
        found = within(sums.value, bound, output)
    if propagates or not special.any():
        return found
    return Enclosure(found.exact, np.where(special, -np.inf, found.lo), np.where(special, np.inf, found.hi))
