"""Number formats as data: one table of integers and floats, one decode and one encode for all of them.

An array of codes travels in the format's *carrier*, the NumPy type that holds one code an element: ``int8`` or
``uint8`` for integers of up to 8 bits, ``uint8`` for float8, ``uint16`` for bfloat16, and the native type where
NumPy has it (float16, float32, float64, int32).

References
----------
.. [1] IEEE 754-2019, §3.4 (binary interchange formats).
.. [2] OCP 8-bit Floating Point Specification (OFP8) v1.0: E4M3 and E5M2.
.. [3] ONNX, "Float stored in 8 bits": E4M3FN, E5M2.
"""

from dataclasses import dataclass

import numpy as np

from lowbit_cts.reference.choices import Overflow, Rounding, takes_choices
from lowbit_cts.reference.rounding import round_to_integer


@dataclass(frozen=True)
class IntegerFormat:
    """A two's complement or unsigned integer of `bits` bits, one code an element of `carrier`."""

    name: str
    bits: int
    signed: bool
    carrier: np.dtype

    @property
    def minimum(self) -> int:
        """The smallest code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def maximum(self) -> int:
        """The largest code."""
        return (1 << (self.bits - self.signed)) - 1

    def codes(self, narrow_range: bool = False) -> tuple[int, int]:
        """Return (qmin, qmax); a narrow range leaves out the smallest code (TensorFlow's `narrow_range`)."""
        return self.minimum + int(narrow_range), self.maximum


@dataclass(frozen=True)
class FloatFormat:
    """A binary float: sign, `exponent_bits`, `mantissa_bits`; `infinity` says whether it has Inf.

    With `infinity` the NaN codes are IEEE's (exponent all ones, mantissa not zero). Without it the format is "FN": the
    top exponent holds numbers, and only exponent and mantissa all ones is NaN.
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    infinity: bool
    carrier: np.dtype

    @property
    def bits(self) -> int:
        """Bits in a code."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def minimum_exponent(self) -> int:
        """The exponent of the smallest normal number, and of the subnormals."""
        return 1 - self.bias

    @property
    def infinity_magnitude(self) -> int:
        """The magnitude code of Inf; of NaN in a format without Inf."""
        top = (1 << (self.exponent_bits + self.mantissa_bits)) - 1
        return top - ((1 << self.mantissa_bits) - 1) if self.infinity else top

    @property
    def nan_magnitude(self) -> int:
        """The magnitude code of the quiet NaN that `encode` writes."""
        return self.infinity_magnitude + (1 << (self.mantissa_bits - 1)) if self.infinity else self.infinity_magnitude

    @property
    def unit_roundoff(self) -> float:
        """Half the distance from 1 to the next number: 2**-(mantissa_bits + 1)."""
        return 2.0 ** -(self.mantissa_bits + 1)

    @property
    def maximum(self) -> float:
        """The largest finite value."""
        return float(decode(np.array(self.infinity_magnitude - 1, np.int64), self))

    @property
    def smallest_subnormal(self) -> float:
        """The smallest positive value."""
        return 2.0 ** (self.minimum_exponent - self.mantissa_bits)


Format = IntegerFormat | FloatFormat


def _integers() -> list[Format]:
    small = [
        IntegerFormat(f"{'int' if signed else 'uint'}{bits}", bits, signed, np.dtype(np.int8 if signed else np.uint8))
        for signed in (True, False)
        for bits in range(2, 9)
    ]
    return [*small, IntegerFormat("int32", 32, True, np.dtype(np.int32))]


def _float(name: str, exponent_bits: int, mantissa_bits: int, infinity: bool, carrier: type) -> FloatFormat:
    bias = (1 << (exponent_bits - 1)) - 1
    return FloatFormat(name, exponent_bits, mantissa_bits, bias, infinity, np.dtype(carrier))


FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in [
        *_integers(),
        _float("float64", 11, 52, True, np.float64),
        _float("float32", 8, 23, True, np.float32),
        _float("float16", 5, 10, True, np.float16),
        _float("bfloat16", 8, 7, True, np.uint16),
        _float("float8_e4m3fn", 4, 3, False, np.uint8),
        _float("float8_e5m2", 5, 2, True, np.uint8),
    ]
}

INTEGER_FORMATS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in range(2, 9))
FLOAT8_FORMATS = ("float8_e4m3fn", "float8_e5m2")


def integer_format(name: str) -> IntegerFormat:
    """Return the small integer format of that name; ValueError with the admissible names otherwise."""
    fmt = FORMATS.get(name)
    if name not in INTEGER_FORMATS or not isinstance(fmt, IntegerFormat):
        raise ValueError(f"format: {name!r} is not an integer format; admissible: {', '.join(INTEGER_FORMATS)}")
    return fmt


def float_format(name: str) -> FloatFormat:
    """Return the float format of that name; ValueError with the admissible names otherwise."""
    fmt = FORMATS.get(name)
    if not isinstance(fmt, FloatFormat):
        names = ", ".join(n for n, f in FORMATS.items() if isinstance(f, FloatFormat))
        raise ValueError(f"format: {name!r} is not a float format; admissible: {names}")
    return fmt


def decode(codes: np.ndarray, fmt: Format) -> np.ndarray:
    """Return the numbers that codes stand for.

    Parameters
    ----------
    codes : ndarray, any shape
        Codes in the carrier of `fmt` (for floats any integer type that holds them).
    fmt : IntegerFormat or FloatFormat

    Returns
    -------
    ndarray of int64 (integers) or float64 (floats), the same shape; NaN codes give NaN, -0 keeps its sign.
    """
    codes = np.asarray(codes)
    if isinstance(fmt, IntegerFormat):
        return codes.astype(np.int64)
    if codes.dtype.kind == "f":
        return codes.astype(np.float64)
    codes = codes.astype(np.int64)
    magnitude = codes & ((1 << (fmt.bits - 1)) - 1)
    exponent = np.maximum(magnitude >> fmt.mantissa_bits, 1)
    significand = magnitude - ((exponent - 1) << fmt.mantissa_bits)
    values = np.ldexp(significand.astype(np.float64), exponent - fmt.bias - fmt.mantissa_bits)
    values = np.where(magnitude > fmt.infinity_magnitude - (not fmt.infinity), np.nan, values)
    if fmt.infinity:
        values = np.where(magnitude == fmt.infinity_magnitude, np.inf, values)
    return np.where(codes >> (fmt.bits - 1) & 1, -values, values)


@takes_choices
def encode(
    values: np.ndarray,
    fmt: FloatFormat,
    rounding: Rounding = Rounding.HALF_EVEN,
    overflow: Overflow = Overflow.INFINITY_OR_NAN,
) -> np.ndarray:
    """Return the codes of the float format nearest to the values, each value rounded once.

    Parameters
    ----------
    values : ndarray of float64, any shape
        float32, float16 and bfloat16 values are float64 values too, so none is rounded twice.
    fmt : FloatFormat
        Any but float64.
    rounding : Rounding
    overflow : Overflow
        Applies to magnitudes that round beyond the largest finite value. With a rounding that is directed toward
        zero for that sign, a finite value never overflows (IEEE 754-2019 §7.4).

    Returns
    -------
    ndarray in the carrier of `fmt`, the same shape. NaN becomes the canonical quiet NaN with the input's sign.
    """
    values = np.asarray(values, np.float64)
    negative = np.signbit(values)
    finite = np.isfinite(values)
    size = np.abs(np.where(finite, values, 0.0))
    exponent = np.frexp(size)[1].astype(np.int64) - 1
    exponent = np.where(size > 0, np.maximum(exponent, fmt.minimum_exponent), fmt.minimum_exponent)
    steps = np.ldexp(size, fmt.mantissa_bits - exponent)  # in units of the last place, exactly
    signed_steps = np.where(negative, -steps, steps)
    significand = np.abs(round_to_integer(signed_steps, rounding)).astype(np.int64)
    # Codes of one sign are ordered like their values, so a carry out of the significand is a carry in the code.
    magnitude = ((exponent - fmt.minimum_exponent) << fmt.mantissa_bits) + significand
    largest = fmt.infinity_magnitude - 1
    over = magnitude > largest
    toward_zero = (rounding is Rounding.TOWARD_ZERO) | np.where(
        negative, rounding is Rounding.UP, rounding is Rounding.DOWN
    )
    saturated = toward_zero | (overflow is not Overflow.INFINITY_OR_NAN)
    magnitude = np.where(over, np.where(saturated, largest, fmt.infinity_magnitude), magnitude)
    at_infinity = largest if overflow is Overflow.SATURATE else fmt.infinity_magnitude
    magnitude = np.where(np.isinf(values), at_infinity, magnitude)
    magnitude = np.where(np.isnan(values), fmt.nan_magnitude, magnitude)
    codes = magnitude | (negative.astype(np.int64) << (fmt.bits - 1))
    return _carry(codes, fmt)


def _carry(codes: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    if fmt.carrier.kind == "f":
        return codes.astype(f"u{fmt.carrier.itemsize}").view(fmt.carrier)
    return codes.astype(fmt.carrier)


def round_to_format(values: np.ndarray, fmt: FloatFormat, rounding: Rounding = Rounding.HALF_EVEN) -> np.ndarray:
    """Return float64 values rounded to the nearest values of `fmt` (float64 and float32 by NumPy's own IEEE casts)."""
    values = np.asarray(values, np.float64)
    if fmt.name == "float64":
        return values
    if fmt.name in ("float32", "float16") and rounding is Rounding.HALF_EVEN:
        with np.errstate(over="ignore"):
            return values.astype(fmt.carrier).astype(np.float64)
    return decode(encode(values, fmt, rounding), fmt)
