"""OCP MX: blocks of 32 elements of 8, 6 or 4 bits, each block with a power of two as its scale (E8M0).

A matrix of shape (M, K) has its blocks along the rows: 32 columns share the scale X = 2**(code - 127), and an element
stands for X * P. The element formats are those of the specification: ``float8_e4m3fn`` and ``float8_e5m2`` (MXFP8),
``float6_e3m2fn`` and ``float6_e2m3fn`` (MXFP6), ``float4_e2m1fn`` (MXFP4), and ``int8`` (MXINT8), whose codes stand for
P = code * 2**-6. Codes come one an element.

All arithmetic is exact but for one quotient, amax / max of `ScaleMode.RCEIL`: V / X is the product of V and a power of
two, rounded once to the element. Libraries form it in float32, and where they do so correctly the result is the same: a
product that falls below float32's normal numbers rounds to zero anyway. Nor are logarithms needed; one of float32 loses
the largest number below most powers of two, and with it the exponent.

A scale that the rules put below 2**-127, as of a zero block, is 2**-127 (code 0), one above 2**127 is 2**127. Where the
specification is silent, a choice says what a NaN (`NanInBlock`) or an infinity (`InfinityInBlock`) makes of its block's
scale. Under a NaN scale every element is NaN whatever its code: the code is 0 here, and any in the enclosure.

References
----------
.. [1] OCP Microscaling Formats (MX) Specification v1.0, 2023: §5 formats, §6.3 conversion from a vector of floats.
.. [2] B. Rouhani et al., "Microscaling Data Formats for Deep Learning", 2023, arXiv:2310.10537, algorithm 1.
.. [3] A. Mishra et al., "Recipes for Pre-training LLMs with MXFP8", 2025, arXiv:2506.08027: rounding the scale up.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lowbit_cts.reference.choices import (
    Division,
    InfinityInBlock,
    NanInBlock,
    Overflow,
    Rounding,
    ScaleMode,
    takes_choices,
)
from lowbit_cts.reference.enclosure import Enclosure, determined
from lowbit_cts.reference.encoding import encode, round_to_format
from lowbit_cts.reference.formats import FLOAT8_FORMATS, FORMATS, decode, float_format
from lowbit_cts.reference.rounding import round_stochastically, round_to_integer

#: Elements that share a scale.
MX_BLOCK = 32

_E8M0 = float_format("float8_e8m0fnu")
_FLOAT32 = float_format("float32")
_BIAS = _E8M0.bias
_LARGEST, _NAN = 2 * _BIAS, 2 * _BIAS + 1


@dataclass(frozen=True)
class _Element:
    """What the choice of a scale needs to know of an element format."""

    maximum: float
    maximum_exponent: int
    mantissa_bits: int


_FLOATS = [
    float_format(name) for name in ("float8_e4m3fn", "float8_e5m2", "float6_e3m2fn", "float6_e2m3fn", "float4_e2m1fn")
]
#: Codes of int8 in 1: two's complement with six fraction bits.
INT8_STEPS = 64
_ELEMENTS = {fmt.name: _Element(fmt.maximum, fmt.maximum_exponent, fmt.mantissa_bits) for fmt in _FLOATS}
_ELEMENTS["int8"] = _Element(127 / INT8_STEPS, 0, 6)
#: Element formats of the specification.
MX_FORMATS = tuple(_ELEMENTS)


def _checked(format: str) -> _Element:
    if format not in _ELEMENTS:
        raise ValueError(f"format: {format!r} is no element format of MX; admissible: {', '.join(MX_FORMATS)}")
    return _ELEMENTS[format]


def in_blocks(x: np.ndarray, size: int, name: str = "x") -> np.ndarray:
    """Return a matrix (M, K) as its blocks (M, K / size, size); ValueError where `size` does not divide K."""
    if x.ndim != 2 or x.shape[1] % size:
        raise ValueError(f"{name}: must be a matrix with a multiple of {size} columns; got shape {x.shape}")
    return x.reshape(x.shape[0], x.shape[1] // size, size)


def block_maxima(x: np.ndarray, size: int, nan_in_block: NanInBlock) -> np.ndarray:
    """Return max |x| of every block, (M, K / size), in the type of x; of a NaN by the choice."""
    blocks = in_blocks(x, size)
    if nan_in_block is NanInBlock.NAN_SCALE:
        return np.maximum(blocks.max(-1), -blocks.min(-1)) + 0.0  # no -0
    # Not fmax, which makes a NaN of a signaling one.
    return np.where(np.isnan(blocks), 0, np.abs(blocks)).max(-1, initial=0).astype(x.dtype)


def check_scales(scales: np.ndarray, shape: tuple[int, ...], size: int) -> None:
    """Raise a ValueError unless the scales are codes of 8 bits, one a block of a matrix of that shape."""
    expected = (shape[0], shape[1] // size)
    if scales.shape != expected or np.any((scales < 0) | (scales > 255)):
        raise ValueError(f"scales: must be codes from 0 to 255 of shape {expected}; got shape {scales.shape}")


#: Where a positive number's power of two is the one above it, by its significand in [1, 2) and the element's mantissa.
_RAISED: dict[ScaleMode, Callable[[np.ndarray, int], np.ndarray]] = {
    ScaleMode.FLOOR: lambda significand, bits: np.zeros(significand.shape, bool),
    ScaleMode.CEIL: lambda significand, bits: significand > 1,
    ScaleMode.RCEIL: lambda significand, bits: significand > 1,
    ScaleMode.EVEN: lambda significand, bits: significand >= 2 - 2.0 ** -(bits + 1),
    ScaleMode.EVEN_E2M1: lambda significand, bits: significand >= 1.75,
}


def _power_codes(values: np.ndarray, mode: ScaleMode, mantissa_bits: int, shift: int) -> np.ndarray:
    """Return the code of the power of two that the mode makes of values >= 0, divided by 2**shift."""
    half, exponent = np.frexp(values)  # exact, which a logarithm is not
    codes = exponent - 1 + _RAISED[mode](2 * half, mantissa_bits) - shift + _BIAS
    return np.where(values > 0, np.clip(codes, 0, _LARGEST), 0)


def _scales(
    maxima: np.ndarray, element: _Element, mode: ScaleMode, division: Division, infinity_in_block: InfinityInBlock
) -> np.ndarray:
    """Return the E8M0 codes of blocks with these maxima (float64, NaN where the scale is to be NaN)."""
    infinite = np.isinf(maxima)
    values = np.where(infinite, 2.0**128, maxima)
    values = np.where(np.isnan(maxima), 0.0, values)
    if mode is ScaleMode.RCEIL:
        reciprocal = float(np.float32(1 / element.maximum))
        values = values * reciprocal if division is Division.RECIPROCAL else values / element.maximum
        codes = _power_codes(round_to_format(values, _FLOAT32), mode, 0, 0)
    else:
        codes = _power_codes(values, mode, element.mantissa_bits, element.maximum_exponent)
    if infinity_in_block is not InfinityInBlock.NEXT_POWER:
        codes = np.where(infinite, _NAN if infinity_in_block is InfinityInBlock.NAN_SCALE else _LARGEST, codes)
    return np.where(np.isnan(maxima), _NAN, codes).astype(np.uint8)


@takes_choices
def choose_scale_mx(
    x: np.ndarray,
    *,
    format: str,
    scale_mode: ScaleMode = ScaleMode.FLOOR,
    division: Division = Division.DIVIDE,
    nan_in_block: NanInBlock = NanInBlock.NAN_SCALE,
    infinity_in_block: InfinityInBlock = InfinityInBlock.NAN_SCALE,
) -> np.ndarray:
    """Return the E8M0 codes of the blocks' scales.

    Parameters
    ----------
    x : ndarray of float, shape (M, K)
        Values of float32 (or of a format inside it, or of float64: these as they are); 32 divides K.
    format : str
        The element format, one of `MX_FORMATS`.
    scale_mode : ScaleMode
    division : Division
        With `ScaleMode.RCEIL`: amax / max, or amax times the rounded 1 / max, which is the same for every float format.
        An approximate division is taken as exact here; `quantize_mx_enclosure` has its interval.
    nan_in_block, infinity_in_block :
        The scale of a block with a NaN or an infinity; of one with both that of the NaN, unless it is ignored.

    Returns
    -------
    ndarray of uint8, shape (M, K / 32): 0 is 2**-127, 254 is 2**127, 255 is NaN.

    Raises
    ------
    ValueError
        An unknown format, a shape that has no blocks.
    """
    element = _checked(format)
    maxima = block_maxima(np.asarray(x), MX_BLOCK, nan_in_block).astype(np.float64)
    return _scales(maxima, element, scale_mode, division, infinity_in_block)


@takes_choices
def encode_mx(
    x: np.ndarray,
    scales: np.ndarray,
    *,
    format: str,
    rounding: Rounding = Rounding.HALF_EVEN,
    overflow: Overflow = Overflow.SATURATE,
    narrow_range: bool = False,
    random: np.ndarray | None = None,
) -> np.ndarray:
    """Return the codes of the elements, x divided by its block's scale and rounded once.

    Parameters
    ----------
    x : ndarray of float, shape (M, K)
    scales : ndarray of uint8, shape (M, K / 32)
        E8M0 codes.
    format : str
    rounding : Rounding
    overflow : Overflow
        The specification saturates finite values; with `SATURATE` an infinity, too, under a scale that is not NaN.
        6-bit, 4-bit and integer elements always saturate.
    narrow_range : bool
        Of int8: leave out the code -128, that is -2 (microxcaling).
    random : ndarray of float64 in [0, 1), the shape of x
        With stochastic rounding, see `encode`.

    Returns
    -------
    ndarray of uint8 (of int8 for int8), shape (M, K); 0 under a NaN scale. NaN becomes NaN, in a format without NaN the
    largest value, in int8 zero; any code is admissible there.

    Raises
    ------
    ValueError
        An unknown format, a shape that has no blocks, scales of another shape, stochastic rounding without `random`.
    """
    _checked(format)
    x = np.asarray(x)
    blocks = in_blocks(x, MX_BLOCK)
    scales = np.asarray(scales)
    check_scales(scales, x.shape, MX_BLOCK)
    lost = scales == _NAN
    factors = np.ldexp(1.0, _BIAS - scales.astype(np.int64))
    values = blocks * factors[..., None]
    if lost.any():
        values[lost] = 0.0
    values = values.reshape(x.shape)
    if format != "int8":
        return encode(values, float_format(format), rounding, overflow, random=random)
    values *= INT8_STEPS
    if rounding is not Rounding.STOCHASTIC:
        steps = round_to_integer(values, rounding)
    elif random is None or random.shape != x.shape:
        raise ValueError(f"random: stochastic rounding needs numbers in [0, 1) of the shape {x.shape}")
    else:
        with np.errstate(invalid="ignore"):  # infinities have no fraction
            steps = np.copysign(round_stochastically(np.abs(values), random), values)
    steps = np.clip(steps, -127 if narrow_range else -128, 127)
    return np.where(np.isnan(steps), 0, steps).astype(np.int8)


@takes_choices
def quantize_mx(
    x: np.ndarray,
    *,
    format: str,
    scale_mode: ScaleMode = ScaleMode.FLOOR,
    rounding: Rounding = Rounding.HALF_EVEN,
    overflow: Overflow = Overflow.SATURATE,
    narrow_range: bool = False,
    division: Division = Division.DIVIDE,
    nan_in_block: NanInBlock = NanInBlock.NAN_SCALE,
    infinity_in_block: InfinityInBlock = InfinityInBlock.NAN_SCALE,
    random: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes of the elements and of the scales of x.

    Parameters
    ----------
    x, format, scale_mode, division, nan_in_block, infinity_in_block : as `choose_scale_mx`
    rounding, overflow, narrow_range, random : as `encode_mx`

    Returns
    -------
    codes : ndarray of uint8 (of int8 for int8), shape (M, K)
    scales : ndarray of uint8, shape (M, K / 32)

    Raises
    ------
    ValueError
        As `choose_scale_mx` and `encode_mx`.
    """
    scales = choose_scale_mx(
        x, format=format, scale_mode=scale_mode, division=division, nan_in_block=nan_in_block,
        infinity_in_block=infinity_in_block,
    )  # fmt: skip
    codes = encode_mx(
        x, scales, format=format, rounding=rounding, overflow=overflow, narrow_range=narrow_range, random=random
    )
    return codes, scales


def decode_element_mx(codes: np.ndarray, format: str) -> np.ndarray:
    """Return the numbers P that codes of the element format stand for, without their scales, as float64."""
    _checked(format)
    codes = np.asarray(codes)
    if format != "int8":
        return decode(codes, FORMATS[format])
    if codes.dtype != np.int8 and np.any((codes < -128) | (codes > 127)):
        raise ValueError(f"codes: must lie in [-128, 127]; got [{codes.min()}, {codes.max()}]")
    return codes / INT8_STEPS


def _admissible_scales(
    maxima: np.ndarray, exact: np.ndarray, largest: float, slack: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest codes of scales rounded up from amax / max, known to a relative `slack`."""
    finite = np.isfinite(maxima)
    quotients = np.where(finite, maxima, 0.0) / largest
    lo, hi = (_power_codes(quotients * (1 + side * slack), ScaleMode.RCEIL, 0, 0) for side in (-1, 1))
    lo, hi = np.minimum(exact, np.where(finite, lo, exact)), np.maximum(exact, np.where(finite, hi, exact))
    return lo.astype(np.uint8), hi.astype(np.uint8)


@takes_choices
def quantize_mx_enclosure(
    x: np.ndarray,
    *,
    format: str,
    scale_mode: ScaleMode = ScaleMode.FLOOR,
    rounding: Rounding = Rounding.HALF_EVEN,
    overflow: Overflow = Overflow.SATURATE,
    narrow_range: bool = False,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
    nan_in_block: NanInBlock = NanInBlock.NAN_SCALE,
    infinity_in_block: InfinityInBlock = InfinityInBlock.NAN_SCALE,
    scales: np.ndarray | None = None,
) -> dict[str, Enclosure]:
    """Return the admissible codes and scales of x, decoded.

    Everything is determined but for these. A NaN element of a format without NaN, and every element under a NaN scale,
    may have any code. With an approximate division (of `ScaleMode.RCEIL` alone) the scale may be the next power of two
    where the quotient lies within `division_ulps` units in the last place of a power. With stochastic rounding either
    neighbour is admissible. The sign of a zero is not looked at: adding zeros, no product of matrices shows it.

    Parameters
    ----------
    division_ulps : float
        The error of an approximate division.
    scales : ndarray of uint8, shape (M, K / 32), optional
        Scales that a kernel has returned, by which its elements are to be judged. Without them an element may have the
        code of any admissible scale.
    others : as `quantize_mx`

    Returns
    -------
    dict with "codes", shape (M, K), the elements P without their scales, and "scale", shape (M, K / 32).

    Raises
    ------
    ValueError
        As `quantize_mx`.
    """
    element = _checked(format)
    x = np.asarray(x)
    maxima = block_maxima(x, MX_BLOCK, nan_in_block).astype(np.float64)
    exact_scales = lo_scales = hi_scales = _scales(maxima, element, scale_mode, division, infinity_in_block)
    if division is Division.APPROXIMATE and scale_mode is ScaleMode.RCEIL:
        slack = division_ulps * 2 * _FLOAT32.unit_roundoff
        lo_scales, hi_scales = _admissible_scales(maxima, exact_scales, element.maximum, slack)
    judged = [exact_scales] if scales is None else [np.asarray(scales)]
    if scales is None and np.any(lo_scales != hi_scales):
        judged += [lo_scales, hi_scales]
    roundings = [Rounding.DOWN, Rounding.UP] if rounding is Rounding.STOCHASTIC else [rounding]
    results = [
        decode_element_mx(
            encode_mx(x, chosen, format=format, rounding=way, overflow=overflow, narrow_range=narrow_range), format
        )
        for chosen in judged
        for way in roundings
    ]
    free = np.repeat(judged[0] == _NAN, MX_BLOCK, axis=1)
    if format not in FLOAT8_FORMATS:
        free |= np.isnan(x)
    lo, hi = np.minimum.reduce(results), np.maximum.reduce(results)
    return {
        "codes": Enclosure(results[0], np.where(free, -np.inf, lo), np.where(free, np.inf, hi)),
        "scale": Enclosure(decode(exact_scales, _E8M0), decode(lo_scales, _E8M0), decode(hi_scales, _E8M0)),
    }


def dequantize_mx(codes: np.ndarray, scales: np.ndarray, *, format: str, output_format: str = "float32") -> np.ndarray:
    """Return X * P of every element, exact and then rounded once to the output's format.

    Parameters
    ----------
    codes : ndarray of uint8 (of int8 for int8), shape (M, K)
    scales : ndarray of uint8, shape (M, K / 32)
        E8M0 codes.
    format : str
        The element format, one of `MX_FORMATS`.
    output_format : str
        float32, float16, bfloat16 or float64.

    Returns
    -------
    ndarray of float64, shape (M, K), values of the output's format. Under a NaN scale all are NaN. Subnormal results of
    float32 are exact; in the others what is too small or too large becomes subnormal, zero or infinite.

    Raises
    ------
    ValueError
        Unknown formats, a shape that has no blocks, scales of another shape, a code that the format has not.
    """
    codes, scales = np.asarray(codes), np.asarray(scales)
    blocks = in_blocks(decode_element_mx(codes, format), MX_BLOCK, "codes")
    check_scales(scales, codes.shape, MX_BLOCK)
    return round_to_format(
        (blocks * decode(scales, _E8M0)[..., None]).reshape(codes.shape), float_format(output_format)
    )


def dequantize_mx_enclosure(
    codes: np.ndarray, scales: np.ndarray, *, format: str, output_format: str = "float32"
) -> Enclosure:
    """Return the one admissible value of every element; parameters as `dequantize_mx`.

    Any value will do where X * P lies beyond the largest float32: the specification leaves it to the implementation.
    """
    rounded = dequantize_mx(codes, scales, format=format, output_format=output_format)
    beyond = np.abs(dequantize_mx(codes, scales, format=format, output_format="float64")) > _FLOAT32.maximum
    beyond &= ~np.isinf(decode_element_mx(codes, format))
    found = determined(rounded)
    return Enclosure(rounded, np.where(beyond, -np.inf, found.lo), np.where(beyond, np.inf, found.hi))
