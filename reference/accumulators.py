"""Accumulators: the arithmetic in which the terms of a sum are added.

References
----------
.. [1] N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM 2002, §3.1 and §4.2: any order.
.. [2] M. Fasi, N. J. Higham, M. Mikaitis, S. Pranesh, "Numerical behavior of NVIDIA tensor cores", PeerJ Comput. Sci.
   7:e330, 2021: the products of a block and the running sum are aligned to the largest and cut.
.. [3] DeepSeek-AI, "DeepSeek-V3 Technical Report", arXiv:2412.19437, §3.3.2: FP8 on Hopper keeps about 14 bits.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lowbit_cts.reference.choices import Rounding
from lowbit_cts.reference.enclosure import gamma
from lowbit_cts.reference.formats import FloatFormat, float_format

_ROUNDINGS = (Rounding.HALF_EVEN, Rounding.TOWARD_ZERO)


@dataclass(frozen=True)
class Accumulator:
    """How a running sum is kept.

    Attributes
    ----------
    bits : int
        Significand bits of the running sum, at least 2; of an integer those of its magnitude.
    chunk : int
        How many products are added at once. With 1 each addition rounds. With more, the products of a chunk and the
        running sum are aligned to the largest of them, cut to `bits` bits below its leading one, and added
        exactly [2]_.
    rounding : {Rounding.HALF_EVEN, Rounding.TOWARD_ZERO}
        How what is cut off is rounded.
    format : str
        The float format whose range of exponents the sum has.
    integer : bool
        Whether the sum is an integer, which wraps beyond `bits` bits.

    Raises
    ------
    ValueError
        A field out of its range.
    """

    bits: int
    chunk: int = 1
    rounding: Rounding = Rounding.HALF_EVEN
    format: str = "float32"
    integer: bool = False

    INT32: ClassVar["Accumulator"]
    FLOAT16: ClassVar["Accumulator"]
    BFLOAT16: ClassVar["Accumulator"]
    FLOAT32: ClassVar["Accumulator"]
    FLOAT64: ClassVar["Accumulator"]

    def __post_init__(self) -> None:
        """Refuse what is no accumulator."""
        for name, least in (("bits", 2), ("chunk", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"Accumulator.{name}: must be an integer of at least {least}; got {value!r}")
        if self.rounding not in _ROUNDINGS:
            raise ValueError(f"Accumulator.rounding: {self.rounding!r} must be one of {', '.join(_ROUNDINGS)}")
        object.__setattr__(self, "rounding", Rounding(self.rounding))
        if self.format not in _RANGES:
            raise ValueError(f"Accumulator.format: {self.format!r} must be one of {', '.join(_RANGES)}")

    @classmethod
    def parse(cls, value: object) -> "Accumulator":
        """Return an accumulator given as itself or by name; ValueError where there is none of that name."""
        if isinstance(value, cls):
            return value
        found = ACCUMULATORS.get(value) if isinstance(value, str) else None
        if found is None:
            raise ValueError(f"{value!r} is not admissible; admissible: {', '.join(ACCUMULATORS)}, or an Accumulator")
        return found

    def __str__(self) -> str:
        """Return the name, or what makes it."""
        named = next((name for name, known in ACCUMULATORS.items() if known == self), None)
        return named or f"{self.bits} bits of {self.format}, chunks of {self.chunk}, {self.rounding}"

    @property
    def unit_roundoff(self) -> float:
        """The largest relative error of one rounding; 0 of an integer."""
        if self.integer:
            return 0.0
        return 2.0**-self.bits if self.rounding is Rounding.HALF_EVEN else 2.0 ** (1 - self.bits)

    @property
    def range(self) -> FloatFormat:
        """The format whose exponents the sum has."""
        return float_format(self.format)

    def roundings(self, terms: np.ndarray, length: int) -> np.ndarray:
        """Return how many roundings there are at most between a product and the sum.

        One of each product and one of each addition; with chunks, one of each product and two of the running sum a
        chunk, when it is aligned and when it is stored. Zeros among the products cost none.
        """
        if self.chunk == 1:
            return terms + (terms > 0)
        return terms + 2 * np.minimum(terms, -(-length // self.chunk))

    def error(self, terms: np.ndarray, length: int, magnitude: np.ndarray, extra: int = 0) -> np.ndarray:
        """Return how far a sum may be from the real one, whatever the order.

        Parameters
        ----------
        terms : ndarray of int, broadcastable
            The number of products that are not zero.
        length : int
            The number of all products.
        magnitude : ndarray of float64
            The sum of their magnitudes, and of all that is added to them.
        extra : int
            Further roundings in the same precision, such as of scales.

        Returns
        -------
        ndarray of float64
            ``gamma_n magnitude`` ([1]_, (3.5)), and the least normal number a rounding, so that results below it may be
            flushed; inf where the sum of magnitudes itself may overflow. Of an integer 0.
        """
        if self.integer:
            return np.zeros_like(magnitude)
        n = self.roundings(terms, length) + extra
        relative = gamma(n, self.unit_roundoff)
        with np.errstate(over="ignore", invalid="ignore"):
            bound = relative * magnitude + n * self.range.smallest_normal
            return np.where(magnitude * (1 + relative) < self.range.maximum, bound, np.inf)

    def exact(self, magnitude: np.ndarray, quantum: np.ndarray) -> np.ndarray:
        """Return where no order of summation rounds: all terms are multiples of `quantum`, `magnitude` in sum.

        Every partial sum is then a multiple of the quantum of at most 2**bits quanta, and so is every product of a
        partial sum with a scale that all terms share.
        """
        if self.integer:
            return magnitude < 2.0**self.bits
        fits = magnitude <= 2.0**self.bits * quantum
        return (magnitude == 0) | (fits & (quantum >= self.range.smallest_normal) & (magnitude <= self.range.maximum))


_RANGES = ("float16", "bfloat16", "float32", "float64")
Accumulator.INT32 = Accumulator(31, integer=True)
Accumulator.FLOAT16 = Accumulator(11, format="float16")
Accumulator.BFLOAT16 = Accumulator(8, format="bfloat16")
Accumulator.FLOAT32 = Accumulator(24)
Accumulator.FLOAT64 = Accumulator(53, format="float64")

#: The accumulators that have names.
ACCUMULATORS: dict[str, Accumulator] = {
    "int32": Accumulator.INT32,
    "float16": Accumulator.FLOAT16,
    "bfloat16": Accumulator.BFLOAT16,
    "float32": Accumulator.FLOAT32,
    "float64": Accumulator.FLOAT64,
    # FP8 on NVIDIA's Hopper: 13 bits below the leading one, the products of an instruction at once [3]_.
    "tensor_core_float8": Accumulator(14, chunk=32, rounding=Rounding.TOWARD_ZERO),
}
