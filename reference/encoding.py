"""Encoding: numbers to the codes of a float format, each rounded once.

`encode` decides every value exactly, in float64. That takes some 25 passes over the array, so large arrays of float32
and narrower take one look-up a value instead: a code changes only at a decision boundary, and each boundary of a format
with `m` mantissa bits has at most `m + 1` of its own (a value, or the middle of two). So the code depends on the first
`m + 1` mantissa bits of the float32 value and on whether any of the others is set, and a table over these, itself
made by the exact path, holds all answers. float64 values are first rounded to float32 *to odd*, which keeps both
facts (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008: double rounding is innocuous from
m + 2 bits on).
"""

from functools import lru_cache

import numpy as np

from lowbit_cts.reference.choices import OutsideDomain, Overflow, Rounding, takes_choices
from lowbit_cts.reference.formats import FloatFormat, NanCodes, decode
from lowbit_cts.reference.rounding import round_stochastically, round_to_integer

#: Values looked up at a time: the temporaries stay in the second-level cache.
_BLOCK = 1 << 15


@takes_choices
def encode(
    values: np.ndarray,
    fmt: FloatFormat,
    rounding: Rounding = Rounding.HALF_EVEN,
    overflow: Overflow = Overflow.INFINITY_OR_NAN,
    outside_domain: OutsideDomain = OutsideDomain.NAN,
    random: np.ndarray | None = None,
) -> np.ndarray:
    """Return the codes of the float format nearest to the values, each value rounded once.

    Parameters
    ----------
    values : ndarray of float64, float32 or float16, any shape
        bfloat16 values are float32 values too, so none is rounded twice.
    fmt : FloatFormat
        Any but float64.
    rounding : Rounding
    overflow : Overflow
        Applies to magnitudes that round beyond the largest finite value. With a rounding that is directed toward
        zero for that sign, a finite value never overflows (IEEE 754-2019 §7.4). A format with neither Inf nor NaN
        always saturates.
    outside_domain : OutsideDomain
        What zero and negative values become in a format that has none (E8M0).
    random : ndarray of float64 in [0, 1), the shape of `values`
        With stochastic rounding: a magnitude is rounded up where its fraction of a unit in the last place exceeds it.

    Returns
    -------
    ndarray in the carrier of `fmt`, the same shape. NaN becomes the canonical quiet NaN with the input's sign, the
    only NaN there is, or (in a format without NaN) the largest value.

    Raises
    ------
    ValueError
        Stochastic rounding without `random`, or `random` of another shape.
    """
    values = np.asarray(values)
    if rounding is Rounding.STOCHASTIC and (random is None or np.shape(random) != values.shape):
        raise ValueError(f"random: stochastic rounding needs numbers in [0, 1) of the shape {values.shape}")
    choices = rounding, overflow, outside_domain
    if rounding is Rounding.STOCHASTIC or values.dtype.kind != "f" or values.size < _entries(fmt):
        return _carried(_exact(values, fmt, *choices, random), fmt)
    return _looked_up(values, fmt, *choices)


def _exact(
    values: np.ndarray,
    fmt: FloatFormat,
    rounding: Rounding,
    overflow: Overflow,
    outside_domain: OutsideDomain,
    random: np.ndarray | None = None,
) -> np.ndarray:
    """Return the codes as int64, by the definition."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        values = np.asarray(values, np.float64)
    negative = np.signbit(values)
    size = np.abs(np.where(np.isfinite(values), values, 0.0))
    exponent = np.frexp(size)[1].astype(np.int64) - 1
    exponent = np.where(size > 0, np.maximum(exponent, fmt.minimum_exponent), fmt.minimum_exponent)
    steps = np.ldexp(size, fmt.mantissa_bits - exponent)  # in units of the last place, exactly
    if rounding is Rounding.STOCHASTIC and random is not None:
        significand = round_stochastically(steps, random).astype(np.int64)
    else:
        significand = np.abs(round_to_integer(np.where(negative, -steps, steps), rounding)).astype(np.int64)
    # Codes of one sign are ordered like their values, so a carry out of the significand is a carry in the code.
    magnitude = ((exponent - fmt.minimum_exponent) << fmt.mantissa_bits) + significand
    if not fmt.zero:  # the smallest number has magnitude code 0, and what rounds below it stays there
        magnitude = np.maximum(magnitude - (1 << fmt.mantissa_bits), 0)
    largest = fmt.largest_magnitude
    # In the place of infinity stands the NaN, where there is one.
    infinity = largest + 1 if fmt.infinity else largest if fmt.nan_code is None else fmt.nan_code
    toward_zero = (rounding is Rounding.TOWARD_ZERO) | np.where(
        negative, rounding is Rounding.UP, rounding is Rounding.DOWN
    )
    saturated = toward_zero | (overflow is not Overflow.INFINITY_OR_NAN)
    magnitude = np.where(magnitude > largest, np.where(saturated, largest, infinity), magnitude)
    magnitude = np.where(np.isinf(values), largest if overflow is Overflow.SATURATE else infinity, magnitude)
    nan = np.isnan(values)
    if not fmt.zero and outside_domain is OutsideDomain.NAN:
        nan = nan | (values <= 0)
    magnitude = np.where(nan, largest if fmt.nan_code is None else fmt.nan_code, magnitude)
    codes = magnitude | np.where(negative, fmt.sign_bit, 0)
    if fmt.nan is NanCodes.NEGATIVE_ZERO:  # the sign bit alone is NaN: zero has no sign
        codes = np.where(magnitude == 0, 0, codes)
    return codes


def _carried(codes: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    if fmt.carrier.kind == "f":
        return codes.astype(f"u{fmt.carrier.itemsize}").view(fmt.carrier)
    return codes.astype(fmt.carrier)


def _dropped_bits(fmt: FloatFormat) -> int:
    """Return how many of float32's 23 mantissa bits matter only by whether one of them is set."""
    explicit = fmt.minimum_exponent < -126  # among subnormals of float32 the leading bit takes a place of its own
    return 22 - fmt.mantissa_bits - explicit


def _entries(fmt: FloatFormat) -> int:
    """Return the length of the format's table; from so many values on it pays."""
    return 1 << (33 - _dropped_bits(fmt)) if fmt.mantissa_bits <= 10 else 1 << 62


@lru_cache(maxsize=64)
def _code_table(fmt: FloatFormat, rounding: Rounding, overflow: Overflow, outside_domain: OutsideDomain) -> np.ndarray:
    """Return the codes by index: twice the leading bits of float32, plus one if any other bit is set."""
    index = np.arange(_entries(fmt), dtype=np.uint32)
    bits = (index >> 1) << _dropped_bits(fmt) | (index & 1)
    return _carried(_exact(bits.view(np.float32), fmt, rounding, overflow, outside_domain), fmt)


def _looked_up(
    values: np.ndarray, fmt: FloatFormat, rounding: Rounding, overflow: Overflow, outside_domain: OutsideDomain
) -> np.ndarray:
    table = _code_table(fmt, rounding, overflow, outside_domain)
    dropped = np.uint32(_dropped_bits(fmt))
    others = np.uint32((1 << int(dropped)) - 1)
    flat = np.ascontiguousarray(values).reshape(-1)
    codes = np.empty(flat.size, fmt.carrier)
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        bits = _rounded_to_odd(block) if block.dtype == np.float64 else block.astype(np.float32).view(np.uint32)
        np.minimum(bits, ~others, out=bits)  # NaN of the largest payload: its sum below would wrap around
        index = bits + others  # carries into the leading bits where any other bit is set
        index >>= dropped
        bits >>= dropped
        index += bits
        np.take(table, index, out=codes[start : start + _BLOCK], mode="wrap")
    return codes.reshape(values.shape)


def _rounded_to_odd(values: np.ndarray) -> np.ndarray:
    """Return float64 values rounded to odd in float32, as its bits: toward zero, with the last bit set if inexact."""
    with np.errstate(over="ignore", invalid="ignore"):
        nearest = values.astype(np.float32)
        back = nearest.astype(np.float64)
        bits = nearest.view(np.uint32)
        bits -= np.abs(back) > np.abs(values)
        bits |= (back != values) & (values == values)  # noqa: PLR0124  (not NaN)
    return bits


def round_to_format(values: np.ndarray, fmt: FloatFormat, rounding: Rounding = Rounding.HALF_EVEN) -> np.ndarray:
    """Return float64 values rounded to the nearest values of `fmt` (float64 and float32 by NumPy's own IEEE casts)."""
    values = np.asarray(values, np.float64)
    if fmt.name == "float64":
        return values
    if fmt.name in ("float32", "float16") and rounding is Rounding.HALF_EVEN:
        with np.errstate(over="ignore"):
            return values.astype(fmt.carrier).astype(np.float64)
    return decode(encode(values, fmt, rounding), fmt)
