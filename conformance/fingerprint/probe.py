"""A probe: a product of matrices seen from outside, its operands and results as float64 numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import FloatFormat, IntegerFormat, decode

Pair = tuple[np.ndarray, np.ndarray]


class Unexpressible(ValueError):
    """An operand's format does not hold the numbers of a probe."""


class ProductFailed(RuntimeError):
    """The product raised, returned nonsense or was lost."""


@dataclass(frozen=True)
class Span:
    """The terms that the operands can make, one at every `stride`-th position and zeros between.

    Attributes
    ----------
    stride : int
        1, or the length of a block whose scale has the range that its elements lack.
    lowest, highest : int
        2**lowest ... 2**highest are products of normal numbers of the formats, all in one sum.
    """

    stride: int
    lowest: int
    highest: int


@dataclass(frozen=True)
class Probe:
    """A product and what its operands can hold.

    Attributes
    ----------
    product : callable
        Takes a list of pairs of float64 matrices, a (M, K) and b (K, N), and returns the list of their products
        (M, N) as float64. Raises `Unexpressible` where a format does not hold a number, `ProductFailed` where there
        is no result.
    a : FloatFormat
        Of the elements of a.
    b : FloatFormat or IntegerFormat
        Of the elements of b; of an integer format are weights in codes, which take powers of two from a scale.
    output : FloatFormat
    spans : tuple of Span
        The narrowest stride first.
    rows, columns, length : int
        M, N and K of every probe, since another shape may be another kernel.
    long : int
        K of the second, longer search for blocks; 0 for none.
    shared : bool
        Whether a and b halve the exponent of a term; otherwise b is 1 and a is the term.
    blocked : bool
        Whether elements have scales in common, so that no number is subnormal but by its neighbours.
    cancels : bool
        Whether a takes numbers of either sign.
    draw : callable of (generator, M, K, N)
        Gives operands that the formats hold, by default normal numbers and random codes.
    """

    product: Callable[[Sequence[Pair]], list[np.ndarray]]
    a: FloatFormat
    b: FloatFormat | IntegerFormat
    output: FloatFormat
    spans: tuple[Span, ...]
    rows: int = 16
    columns: int = 16
    length: int = 64
    long: int = 0
    shared: bool = False
    blocked: bool = False
    cancels: bool = True
    draw: Callable[[np.random.Generator, int, int, int], Pair] = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Draw operands from the formats where nothing else is said."""
        if self.draw is None:
            object.__setattr__(self, "draw", self._drawn)

    def inner(self, a: np.ndarray, b: np.ndarray | float = 1.0) -> np.ndarray:
        """Return the inner products of P pairs of vectors, each found in a product of the probe's shape.

        Probes that have b in common share a product, a row each; others lie on its diagonal.

        Parameters
        ----------
        a : ndarray of float64, shape (P, K)
        b : ndarray of float64 that broadcasts to (P, K)

        Returns
        -------
        ndarray of float64, shape (P,)
        """
        b = np.broadcast_to(np.asarray(b, np.float64), a.shape)
        common = bool(np.all(b == b[:1]))
        at_once = self.rows if common else min(self.rows, self.columns)
        pairs = []
        for start in range(0, len(a), at_once):
            last = min(start + at_once, len(a)) - 1
            rows = np.minimum(np.arange(start, start + self.rows), last)
            columns = np.minimum(np.arange(start, start + self.columns), start if common else last)
            pairs.append((a[rows], b[columns].T))
        found = []
        for start, y in zip(range(0, len(a), at_once), self.product(pairs), strict=True):
            taken = np.arange(min(at_once, len(a) - start))
            found.append(y[taken, 0 if common else taken])
        return np.concatenate(found) if found else np.zeros(0)

    def sums(self, terms: np.ndarray) -> np.ndarray:
        """Return the sums of terms, (P, K) to (P,)."""
        if not self.shared:
            return self.inner(terms)
        halves = np.where(terms == 0, 0.0, np.ldexp(1.0, (np.frexp(terms)[1] - 1) // 2))
        return self.inner(np.divide(terms, halves, out=np.zeros_like(terms), where=halves != 0), halves)

    def placed(self, rows: Sequence[dict[int, float]]) -> np.ndarray:
        """Return the sums of terms at positions, and zeros elsewhere."""
        return self.sums(scattered(rows, self.length))

    def _drawn(self, rng: np.random.Generator, m: int, k: int, n: int) -> Pair:
        return drawn(rng, (m, k), self.a), drawn(rng, (k, n), self.b)


def scattered(rows: Sequence[dict[int, float]], length: int) -> np.ndarray:
    """Return rows of zeros but for the given numbers at the given positions."""
    terms = np.zeros((len(rows), length))
    for row, placed in zip(terms, rows, strict=True):
        row[list(placed)] = list(placed.values())
    return terms


#: Exponents about 1 over which numbers are drawn, where the format has them.
_SPREAD = 8


def drawn(rng: np.random.Generator, shape: tuple[int, int], fmt: FloatFormat | IntegerFormat) -> np.ndarray:
    """Return normal numbers of many sizes rounded to a format, so that sums round; or codes less their middle."""
    if isinstance(fmt, IntegerFormat):
        half = 1 << (fmt.bits - 1)
        return rng.integers(1 - half, half, shape).astype(np.float64)
    low, high = max(-_SPREAD, fmt.minimum_exponent), min(_SPREAD, fmt.maximum_exponent - 2)
    numbers = rng.standard_normal(shape) * 2.0 ** rng.uniform(min(low, high), high, shape)
    return np.asarray(decode(encode(np.clip(numbers, -fmt.maximum, fmt.maximum), fmt), fmt))


def expressed(numbers: np.ndarray, fmt: FloatFormat, name: str) -> np.ndarray:
    """Return the codes of numbers that the format holds exactly; Unexpressible where it does not."""
    codes = encode(numbers, fmt) if fmt.bits < 64 else np.asarray(numbers, np.float64)
    held = decode(codes, fmt)
    same = (held == numbers) | (np.isnan(held) & np.isnan(numbers))
    if not np.all(same & ((held != 0) | (np.signbit(held) == np.signbit(numbers)))):
        wrong = np.asarray(numbers)[~same]
        raise Unexpressible(f"{fmt.name} of {name} does not hold {wrong.flat[0] if wrong.size else -0.0:g}")
    return codes


def span_of(a: FloatFormat, b: FloatFormat | None = None, stride: int = 1) -> Span:
    """Return the terms of a format whose other factor is 1, or of two formats that share the exponent."""
    if b is None:
        return Span(stride, a.minimum_exponent, a.maximum_exponent)
    ends = [(f.minimum_exponent, f.maximum_exponent) for f in (a, b)]
    return Span(stride, 2 * max(low for low, _ in ends), 2 * min(high for _, high in ends))
