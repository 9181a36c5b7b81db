"""Number formats as data: one table of integers and floats, and one decode for all of them (encoding.py has encode).

An array of codes travels in the format's *carrier*, the NumPy type that holds one code an element: ``int8`` or
``uint8`` for integers of up to 8 bits, ``uint8`` for floats of up to 8 bits (the low bits of the byte), ``uint16`` for
bfloat16, and the native type where NumPy has it (float16, float32, float64, int16, int32, int64, uint16).

References
----------
.. [1] IEEE 754-2019, §3.4 (binary interchange formats).
.. [2] OCP 8-bit Floating Point Specification (OFP8) v1.0: E4M3 and E5M2.
.. [3] ONNX, "Float stored in 8 bits": E4M3FN, E5M2 and their FNUZ relatives (arXiv:2206.02915).
.. [4] OCP Microscaling Formats (MX) v1.0, §5.3: FP6 E3M2 and E2M3, FP4 E2M1; §5.4: E8M0.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache

import numpy as np


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


class NanCodes(StrEnum):
    """Which codes of a float format are NaN."""

    IEEE = "ieee"  # exponent all ones, mantissa not zero
    ALL_ONES = "all_ones"  # exponent and mantissa all ones, either sign ("FN": finite, NaN)
    NEGATIVE_ZERO = "negative_zero"  # the sign bit alone ("FNUZ": finite, NaN, unsigned zero)
    NONE = "none"


@dataclass(frozen=True)
class FloatFormat:
    """A binary float: sign, `exponent_bits`, `mantissa_bits`.

    Attributes
    ----------
    name : str
    exponent_bits, mantissa_bits, bias : int
    nan : NanCodes
    infinity : bool
        Whether exponent all ones, mantissa zero is Inf (with IEEE's NaN codes only).
    signed : bool
        Whether the top bit is a sign.
    zero : bool
        Whether exponent zero holds zero and the subnormals; without it, a normal number (E8M0).
    carrier : dtype
    """

    name: str
    exponent_bits: int
    mantissa_bits: int
    bias: int
    nan: NanCodes
    infinity: bool
    signed: bool
    zero: bool
    carrier: np.dtype

    @property
    def bits(self) -> int:
        """Bits in a code."""
        return int(self.signed) + self.exponent_bits + self.mantissa_bits

    @property
    def minimum_exponent(self) -> int:
        """The exponent of the smallest normal number, and of the subnormals."""
        return int(self.zero) - self.bias

    @property
    def sign_bit(self) -> int:
        """The code's sign bit; 0 without a sign."""
        return 1 << (self.bits - 1) if self.signed else 0

    @property
    def signed_zero(self) -> bool:
        """Whether -0 is another code than +0."""
        return self.signed and self.zero and self.nan is not NanCodes.NEGATIVE_ZERO

    @property
    def _top(self) -> int:
        return (1 << (self.exponent_bits + self.mantissa_bits)) - 1

    @property
    def largest_magnitude(self) -> int:
        """The magnitude code (the code less its sign) of the largest finite value."""
        ieee = self._top - (1 << self.mantissa_bits)
        return {NanCodes.IEEE: ieee, NanCodes.ALL_ONES: self._top - 1}.get(self.nan, self._top)

    @property
    def nan_code(self) -> int | None:
        """The quiet NaN that `encode` writes, sign left out; None in a format without NaN."""
        ieee = self.largest_magnitude + 1 + (1 << max(0, self.mantissa_bits - 1))
        codes = {NanCodes.IEEE: ieee, NanCodes.ALL_ONES: self._top, NanCodes.NEGATIVE_ZERO: self.sign_bit}
        return codes.get(self.nan)

    @property
    def unit_roundoff(self) -> float:
        """Half the distance from 1 to the next number: 2**-(mantissa_bits + 1)."""
        return 2.0 ** -(self.mantissa_bits + 1)

    @cached_property
    def maximum(self) -> float:
        """The largest finite value."""
        return float(_values(np.array(self.largest_magnitude), self))

    @property
    def maximum_exponent(self) -> int:
        """The exponent of the largest finite value: floor(log2(maximum)), "emax" of the MX specification."""
        return (self.largest_magnitude >> self.mantissa_bits) - self.bias

    @property
    def smallest_normal(self) -> float:
        """The smallest positive normal value."""
        return 2.0**self.minimum_exponent

    @property
    def smallest(self) -> float:
        """The smallest positive value, subnormal where the format has subnormals."""
        return 2.0 ** (self.minimum_exponent - (self.mantissa_bits if self.zero else 0))


Format = IntegerFormat | FloatFormat


def _integers() -> list[Format]:
    small = [
        IntegerFormat(f"{'int' if signed else 'uint'}{bits}", bits, signed, np.dtype(np.int8 if signed else np.uint8))
        for signed in (True, False)
        for bits in range(2, 9)
    ]
    wide = [IntegerFormat(t.__name__, np.dtype(t).itemsize * 8, t is not np.uint16, np.dtype(t))
            for t in (np.int16, np.uint16, np.int32, np.int64)]  # fmt: skip
    return [*small, *wide]


def _float(
    name: str,
    exponent_bits: int,
    mantissa_bits: int,
    carrier: type = np.uint8,
    nan: NanCodes = NanCodes.IEEE,
    bias: int | None = None,
    signed: bool = True,
    zero: bool = True,
) -> FloatFormat:
    bias = (1 << (exponent_bits - 1)) - 1 if bias is None else bias
    infinity = nan is NanCodes.IEEE
    return FloatFormat(
        name, exponent_bits, mantissa_bits, bias, nan, infinity, signed, zero, np.dtype(carrier)
    )  # fmt: skip


FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in [
        *_integers(),
        _float("float64", 11, 52, np.float64),
        _float("float32", 8, 23, np.float32),
        _float("float16", 5, 10, np.float16),
        _float("bfloat16", 8, 7, np.uint16),
        _float("float8_e4m3fn", 4, 3, nan=NanCodes.ALL_ONES),
        _float("float8_e5m2", 5, 2),
        _float("float8_e4m3fnuz", 4, 3, nan=NanCodes.NEGATIVE_ZERO, bias=8),
        _float("float8_e5m2fnuz", 5, 2, nan=NanCodes.NEGATIVE_ZERO, bias=16),
        _float("float6_e3m2fn", 3, 2, nan=NanCodes.NONE),
        _float("float6_e2m3fn", 2, 3, nan=NanCodes.NONE),
        _float("float4_e2m1fn", 2, 1, nan=NanCodes.NONE),
        _float("float8_e8m0fnu", 8, 0, nan=NanCodes.ALL_ONES, signed=False, zero=False),
    ]
}

INTEGER_FORMATS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in range(2, 9))
FLOAT8_FORMATS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
#: Floats that NumPy has no type for, narrower than 16 bits.
SMALL_FLOATS = (*FLOAT8_FORMATS, "float6_e3m2fn", "float6_e2m3fn", "float4_e2m1fn", "float8_e8m0fnu")


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

    Raises
    ------
    ValueError
        A code that the format has not: a set bit beyond those of a 4- or 6-bit float.
    """
    codes = np.asarray(codes)
    if isinstance(fmt, IntegerFormat):
        return codes.astype(np.int64)
    if codes.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # signalling NaN
            return codes.astype(np.float64)
    if fmt.bits > 16:
        return _values(codes, fmt)
    if codes.size and (int(codes.max()) >> fmt.bits or int(codes.min()) < 0):
        raise ValueError(f"codes: {int(codes.max())} is no code of {fmt.name}, which has {fmt.bits} bits")
    return _table(fmt)[codes]


@lru_cache
def _table(fmt: FloatFormat) -> np.ndarray:
    """Return the values of all codes of a format of at most 16 bits."""
    values = _values(np.arange(1 << fmt.bits), fmt)
    values.setflags(write=False)
    return values


def _values(codes: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    """Return the values of integer codes by the definition: (-1)**sign * significand * 2**exponent."""
    codes = codes.astype(np.int64)
    magnitude = codes & fmt._top
    exponent = np.maximum(magnitude >> fmt.mantissa_bits, int(fmt.zero))
    implicit = (magnitude >> fmt.mantissa_bits > 0) | (not fmt.zero)
    mantissa = magnitude & ((1 << fmt.mantissa_bits) - 1)
    significand = mantissa + (implicit.astype(np.int64) << fmt.mantissa_bits)
    with np.errstate(over="ignore"):  # of float64's codes of Inf and NaN
        values = np.ldexp(significand.astype(np.float64), exponent - fmt.bias - fmt.mantissa_bits)
    values = np.where(magnitude > fmt.largest_magnitude, np.nan, values)
    if fmt.infinity:
        values = np.where(magnitude == fmt.largest_magnitude + 1, np.inf, values)
    values = np.where((codes >> (fmt.bits - 1)) & fmt.signed, -values, values)  # a mask of bit 63 fits no int64
    if fmt.nan is NanCodes.NEGATIVE_ZERO:
        values = np.where(codes == fmt.sign_bit, np.nan, values)
    return values
