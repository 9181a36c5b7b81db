"""Affine quantization of matrices to integers of 2 to 8 bits: x ~ s * (q - z).

Inputs of any rule get a documented outcome: scales must be positive and finite, zero points codes of the format
(`ValueError` names the argument and the rule); an infinite element saturates; a NaN element has no code, so every
code is admissible; a matrix with a zero-size axis gives a result with that axis, except to `choose_qparams`, which
has no minimum to look at. Strides and alignment never matter.

References
----------
.. [1] B. Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
   Inference", CVPR 2018, arXiv:1712.05877, eq. (1): r = S(q - Z).
.. [2] ONNX operators QuantizeLinear, DequantizeLinear, opset 25: y = saturate(round(x / y_scale) + y_zero_point),
   rounding half to even.
"""

from typing import Any

import numpy as np

from lowbit_cts.reference.choices import (
    Contraction,
    DequantizeForm,
    Division,
    Precision,
    RangeRule,
    Rounding,
    ScaleRule,
    ZeroPointOrder,
    ZeroPointRule,
    ZeroScale,
    takes_choices,
)
from lowbit_cts.reference.enclosure import Enclosure, determined, gamma, power_of_two, representable, within
from lowbit_cts.reference.formats import float_format, integer_format
from lowbit_cts.reference.granularity import extremes, spread
from lowbit_cts.reference.rounding import fma_float32, round_to_integer

_FLOAT32 = float_format("float32")
_U32 = _FLOAT32.unit_roundoff


def check_scale(scale: np.ndarray, name: str = "scale") -> None:
    """Raise a ValueError naming the argument where a scale is not positive and finite."""
    if not np.all(np.isfinite(scale)) or np.any(scale <= 0):
        raise ValueError(f"{name}: must be positive and finite; got {np.asarray(scale).ravel()[:4]}")


def check_codes(codes: np.ndarray, qmin: int, qmax: int, name: str) -> None:
    """Raise a ValueError naming the argument where a code is outside [qmin, qmax]."""
    if codes.size and (codes.min() < qmin or codes.max() > qmax):
        raise ValueError(f"{name}: must lie in [{qmin}, {qmax}]; got [{codes.min()}, {codes.max()}]")


def middle(qmin: int, qmax: int) -> int:
    """Return the zero point of symmetric quantization: 0 for signed codes, 2**(bits - 1) for unsigned ones."""
    return 0 if qmin < 0 else (qmax + 1) // 2


def _as(precision: Precision, values: np.ndarray) -> np.ndarray:
    """Round float64 values to the intermediate precision, and give them as float64."""
    with np.errstate(over="ignore"):
        return values.astype(np.float32).astype(np.float64) if precision is Precision.FLOAT32 else values


def code_sums(
    x: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    zero_point_order: ZeroPointOrder,
    division: Division,
    intermediate: Precision,
    fused: bool,
) -> np.ndarray:
    """Return the real number that gets rounded (before an outside zero point), by the declared arithmetic.

    All arrays are float64 of one shape; an infinity or NaN stays what IEEE 754 makes of it.
    """
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        if division is Division.RECIPROCAL:
            factor = _as(intermediate, 1.0 / scale)
            if fused and intermediate is Precision.FLOAT32 and zero_point_order is ZeroPointOrder.INSIDE:
                return fma_float32(x, factor, zero_point)
            quotient = _as(intermediate, x * factor)
        else:
            quotient = _as(intermediate, x / scale)
        if zero_point_order is ZeroPointOrder.INSIDE:
            return _as(intermediate, quotient + zero_point)
        return quotient


@takes_choices
def quantize(
    x: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    *,
    format: str,
    granularity: str = "tensor",
    axis: int | None = None,
    group_size: int | None = None,
    narrow_range: bool = False,
    rounding: Rounding = Rounding.HALF_EVEN,
    zero_point_order: ZeroPointOrder = ZeroPointOrder.OUTSIDE,
    division: Division = Division.DIVIDE,
    intermediate: Precision = Precision.FLOAT32,
    contraction: Contraction = Contraction.SEPARATE,
) -> np.ndarray:
    """Return the codes of x, ``saturate(round(x / s) + z)``, by exactly the declared arithmetic.

    Parameters
    ----------
    x : ndarray of float, shape (M, K)
        Values of float32 (or of a format inside it).
    scale : ndarray of float32, shape by `granularity` (see `lowbit_cts.reference.granularity`)
    zero_point : ndarray of int, the shape of `scale`
    format : str
        int2 .. int8, uint2 .. uint8.
    narrow_range : bool
        Leave out the smallest code.

    Returns
    -------
    ndarray of int64, shape (M, K); a NaN in x gives qmin here, and any code in `quantize_enclosure`.

    Raises
    ------
    ValueError
        Scale not positive and finite, zero point outside the format, shapes that do not fit the granularity.
    """
    qmin, qmax = integer_format(format).codes(narrow_range)
    x = np.asarray(x, np.float64)
    zero_point = np.asarray(zero_point, np.int64)
    check_scale(scale)
    check_codes(zero_point, qmin, qmax, "zero_point")
    s = spread(np.asarray(scale, np.float64), x.shape, granularity, axis, group_size)
    z = spread(zero_point, x.shape, granularity, axis, group_size, "zero_point")
    fused = contraction is Contraction.FUSED
    t = code_sums(x, s, z, zero_point_order, division, intermediate, fused)
    return _round_to_codes(t, z, qmin, qmax, rounding, zero_point_order)


def _round_to_codes(
    t: np.ndarray, z: np.ndarray, qmin: int, qmax: int, rounding: Rounding, order: ZeroPointOrder
) -> np.ndarray:
    rounded = round_to_integer(t, rounding)
    if order is ZeroPointOrder.OUTSIDE:
        rounded = rounded + z
    return np.clip(np.where(np.isnan(rounded), qmin, rounded), qmin, qmax).astype(np.int64)


@takes_choices
def quantize_enclosure(
    x: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    *,
    format: str,
    granularity: str = "tensor",
    axis: int | None = None,
    group_size: int | None = None,
    narrow_range: bool = False,
    rounding: Rounding = Rounding.HALF_EVEN,
    zero_point_order: ZeroPointOrder = ZeroPointOrder.OUTSIDE,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
    intermediate: Precision = Precision.FLOAT32,
    contraction: Contraction = Contraction.SEPARATE,
) -> Enclosure:
    """Return the admissible codes of x.

    One code is admissible where the declared arithmetic is determined. Where the fusion is left to the compiler, the
    codes of both; where the division is approximate, the codes that the ends of the quotient's interval round to.
    A NaN in x admits every code. Parameters and errors are those of `quantize`; `division_ulps` is the declared error
    of an approximate quotient in units of its last place in float32.
    """
    qmin, qmax = integer_format(format).codes(narrow_range)
    place: dict[str, Any] = {"granularity": granularity, "axis": axis, "group_size": group_size}
    x = np.asarray(x, np.float64)

    def codes(values: np.ndarray, division: Division, contraction: Contraction) -> np.ndarray:
        return quantize(
            values, scale, zero_point, format=format, narrow_range=narrow_range, **place, rounding=rounding,
            zero_point_order=zero_point_order, intermediate=intermediate, division=division, contraction=contraction,
        )  # fmt: skip

    if division is Division.APPROXIMATE:
        exact = codes(x, Division.DIVIDE, Contraction.SEPARATE)
        z = spread(np.asarray(zero_point, np.int64), x.shape, granularity, axis, group_size, "zero_point")
        s = spread(np.asarray(scale, np.float64), x.shape, granularity, axis, group_size)
        with np.errstate(over="ignore", invalid="ignore"):
            quotient = x / s
            slack = np.abs(quotient) * division_ulps * 2 * _U32
            if zero_point_order is ZeroPointOrder.INSIDE:
                quotient = quotient + z
                slack = slack + np.abs(quotient) * _U32
            lo, hi = (
                _round_to_codes(np.where(np.isinf(x), x, quotient + side * slack), z, qmin, qmax, rounding,
                                zero_point_order)
                for side in (-1, 1)
            )  # fmt: skip
        lo, hi = np.minimum(lo, exact), np.maximum(hi, exact)
    else:
        kinds = [Contraction.SEPARATE, Contraction.FUSED] if contraction is Contraction.EITHER else [contraction]
        candidates = [codes(x, division, kind) for kind in kinds]
        exact, lo, hi = candidates[0], np.minimum.reduce(candidates), np.maximum.reduce(candidates)
    # A NaN has no code; nor has a zero times the infinite reciprocal of a subnormal scale.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        s = spread(np.asarray(scale, np.float64), x.shape, granularity, axis, group_size)
        lost = np.isnan(x)
        if division is not Division.DIVIDE:
            lost |= ~np.isfinite(_as(intermediate, 1.0 / s)) & (x == 0)
    fmt = integer_format(format)
    return Enclosure(np.where(lost, qmin, exact), np.where(lost, fmt.minimum, lo), np.where(lost, fmt.maximum, hi))


def dequantize(
    codes: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    *,
    format: str,
    granularity: str = "tensor",
    axis: int | None = None,
    group_size: int | None = None,
) -> np.ndarray:
    """Return s * (q - z), exactly.

    Parameters
    ----------
    codes : ndarray of int, shape (M, K)
    scale, zero_point, granularity, axis, group_size : as `quantize`

    Returns
    -------
    ndarray of float64, shape (M, K): the product of a 24-bit and a 9-bit significand is exact.

    Raises
    ------
    ValueError
        As `quantize`, and for codes outside the format.
    """
    fmt = integer_format(format)
    codes = np.asarray(codes, np.int64)
    zero_point = np.asarray(zero_point, np.int64)
    check_scale(scale)
    check_codes(codes, fmt.minimum, fmt.maximum, "codes")
    check_codes(zero_point, fmt.minimum, fmt.maximum, "zero_point")
    s = spread(np.asarray(scale, np.float64), codes.shape, granularity, axis, group_size)
    z = spread(zero_point, codes.shape, granularity, axis, group_size, "zero_point")
    return s * (codes - z)


@takes_choices
def dequantize_enclosure(
    codes: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    *,
    format: str,
    output_format: str = "float32",
    granularity: str = "tensor",
    axis: int | None = None,
    group_size: int | None = None,
    dequantize_form: DequantizeForm = DequantizeForm.SUBTRACT_FIRST,
    intermediate: Precision = Precision.FLOAT32,
) -> Enclosure:
    """Return the admissible values of s * (q - z) in `output_format`.

    Subtracting first, the product is rounded once: one value is admissible, or two neighbours where a 16-bit output
    may be rounded from the exact product or from its float32. Scaling first, q s and z s round before they cancel.
    """
    output = float_format(output_format)
    exact = dequantize(
        codes, scale, zero_point, format=format, granularity=granularity, axis=axis, group_size=group_size
    )
    if dequantize_form is DequantizeForm.SUBTRACT_FIRST:
        once, twice = within(exact, np.zeros(()), output), within(_as(Precision.FLOAT32, exact), np.zeros(()), output)
        first = twice.exact if intermediate is Precision.FLOAT32 else once.exact
        return Enclosure(first, np.minimum(once.lo, twice.lo), np.maximum(once.hi, twice.hi))
    s = spread(np.asarray(scale, np.float64), exact.shape, granularity, axis, group_size)
    z = spread(np.asarray(zero_point, np.int64), exact.shape, granularity, axis, group_size, "zero_point")
    q = np.asarray(codes, np.int64)
    terms = np.abs(s) * (np.abs(q) + np.abs(z))
    bound = np.where(power_of_two(s), 0.0, gamma(2, _U32) * terms)
    return within(exact, bound, output)


def fake_quantize_enclosure(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, **choices: Any) -> Enclosure:
    """Return the admissible values of dequantize(quantize(x)), float32; parameters as `quantize_enclosure`.

    A NaN may stay NaN, or become any number: float arithmetic keeps it, a conversion to integers does not.
    """
    codes = quantize_enclosure(x, scale, zero_point, **choices)
    place = {key: choices[key] for key in ("format", "granularity", "axis", "group_size") if key in choices}
    exact, lo, hi = (
        dequantize_enclosure(q, scale, zero_point, **place).exact for q in (codes.exact, codes.lo, codes.hi)
    )
    lost = np.isnan(np.asarray(x, np.float64))
    return Enclosure(exact, np.where(lost, -np.inf, lo), np.where(lost, np.inf, hi))


@takes_choices
def choose_qparams_enclosure(
    x: np.ndarray,
    *,
    format: str,
    mapping: str = "asymmetric",
    granularity: str = "tensor",
    axis: int | None = None,
    group_size: int | None = None,
    narrow_range: bool = False,
    rounding: Rounding = Rounding.HALF_EVEN,
    scale_rule: ScaleRule = ScaleRule.QMAX,
    range_rule: RangeRule = RangeRule.INCLUDE_ZERO,
    zero_point_rule: ZeroPointRule = ZeroPointRule.ROUND_QUOTIENT,
    division: Division = Division.DIVIDE,
    zero_scale: ZeroScale = ZeroScale.EPSILON,
    epsilon: float = 2.0**-23,
) -> dict[str, Enclosure]:
    """Return the admissible scale and zero point of x by the min-max rule.

    Parameters
    ----------
    x : ndarray of float, shape (M, K)
        Finite values of float32 (or of a format inside it).
    format, granularity, axis, group_size, narrow_range : as `quantize`
    mapping : {"symmetric", "asymmetric"}
        Symmetric: z is the middle of the codes, the scale by `scale_rule`. Asymmetric: s = (max - min)/(qmax - qmin)
        over the interval of `range_rule`, z by `zero_point_rule`, clamped to the codes.
    zero_scale, epsilon :
        What becomes of a zero scale.

    Returns
    -------
    dict with "scale" (float32) and "zero_point" (int), shapes by `granularity`. The scale may stray by the roundings
    of float32 arithmetic in any order (gamma_3), not at all where the division is exact; the zero point is what the
    quotients of the admissible scales round to.

    Raises
    ------
    ValueError
        A NaN or infinity in x, a range beyond float32, a zero-size axis, an unknown mapping, shapes that do not fit
        the granularity.
    """
    qmin, qmax = integer_format(format).codes(narrow_range)
    x = np.asarray(x, np.float64)
    if not np.all(np.isfinite(x)):
        raise ValueError("x: must be finite; the range of a NaN or an infinity is no range")
    low, high = extremes(x, granularity, axis, group_size)
    if np.any(high - low > _FLOAT32.maximum):
        raise ValueError("x: its range, max - min, must be at most the largest float32")
    if mapping == "asymmetric" and range_rule is RangeRule.INCLUDE_ZERO:
        low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    if zero_scale is ZeroScale.UNIT_RANGE:
        nothing = (high == low) & ((low == 0) | (mapping == "asymmetric"))
        high = np.where(nothing, low + 1.0, high)
    if mapping == "symmetric":
        z = middle(qmin, qmax)
        exact, lo, hi = _symmetric_scale(low, high, qmin, qmax, z, scale_rule, division)
        scales = _guard(exact, lo, hi, zero_scale, epsilon)
        return {"scale": scales, "zero_point": determined(np.full(low.shape, z, np.int64))}
    if mapping != "asymmetric":
        raise ValueError(f"mapping: {mapping!r} is unknown; admissible: symmetric, asymmetric")
    exact, lo, hi = _rounded_quotient(high - low, float(qmax - qmin), representable(high - low, _FLOAT32), division)
    scales = _guard(exact, lo, hi, zero_scale, epsilon)
    zero = _zero_point(low, scales, qmin, qmax, rounding, zero_point_rule, division)
    if zero_scale is ZeroScale.ONE:  # an all-zero range is exact with any zero point; libraries take qmin or 0
        any_between = (hi == 0) & (low == 0)
        code = min(max(0, qmin), qmax)
        zero = Enclosure(
            zero.exact,
            np.where(any_between, np.minimum(zero.lo, code), zero.lo),
            np.where(any_between, np.maximum(zero.hi, code), zero.hi),
        )
    return {"scale": scales, "zero_point": zero}


def _rounded_quotient(
    a: np.ndarray, b: float | np.ndarray, exactly: np.ndarray, division: Division
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a / b in float32 and the interval that float32 arithmetic may reach; a itself exact where `exactly`."""
    with np.errstate(divide="ignore", invalid="ignore", under="ignore", over="ignore"):
        quotient = a / b
        divides = representable(quotient, _FLOAT32) & (quotient * b == a)
        if division is not Division.DIVIDE:
            divides &= power_of_two(np.asarray(b, np.float64))
        slack = np.where(exactly & divides, 0.0, gamma(3, _U32) * np.abs(quotient) + _FLOAT32.smallest)
        found = within(quotient, slack, _FLOAT32)
    return found.exact, np.maximum(found.lo, 0.0), found.hi


def _symmetric_scale(
    low: np.ndarray, high: np.ndarray, qmin: int, qmax: int, z: int, rule: ScaleRule, division: Division
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    largest = np.maximum(np.abs(low), np.abs(high))
    exactly = np.ones(largest.shape, bool)
    if rule is ScaleRule.NO_CLIPPING:
        sides = [
            _rounded_quotient(np.maximum(-low, 0.0), float(z - qmin), exactly, division),
            _rounded_quotient(np.maximum(high, 0.0), float(qmax - z), exactly, division),
        ]
        exact, lo, hi = (np.maximum(*pair) for pair in zip(*sides, strict=True))
        return exact, lo, hi
    divisor = float(qmax - z) if rule is ScaleRule.QMAX else (qmax - qmin) / 2
    return _rounded_quotient(largest, divisor, exactly, division)


def _guard(exact: np.ndarray, lo: np.ndarray, hi: np.ndarray, zero_scale: ZeroScale, epsilon: float) -> Enclosure:
    if zero_scale is ZeroScale.EPSILON:
        exact, lo, hi = (np.maximum(v, np.float64(np.float32(epsilon))) for v in (exact, lo, hi))
    elif zero_scale is ZeroScale.ONE:  # a subnormal scale counts as zero to some
        exact, lo = np.where(exact == 0, 1.0, exact), np.where(hi == 0, 1.0, lo)
        hi = np.where(hi < 2.0**_FLOAT32.minimum_exponent, 1.0, hi)
    return Enclosure(exact, lo, hi)


def _zero_point(
    low: np.ndarray,
    scales: Enclosure,
    qmin: int,
    qmax: int,
    rounding: Rounding,
    rule: ZeroPointRule,
    division: Division,
) -> Enclosure:
    def code(quotient: np.ndarray) -> np.ndarray:
        if rule is ZeroPointRule.ROUND_QUOTIENT:
            z = qmin - round_to_integer(quotient, rounding)
        else:
            z = round_to_integer(qmin - quotient, rounding)
        return np.clip(z, qmin, qmax)

    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ends = []
        for s in (scales.exact, scales.lo, scales.hi):
            t = np.where(low == 0, 0.0, low / s)  # 0 / 0 where a zero scale is kept: as if the range were [0, 0]
            sure = representable(t, _FLOAT32) & (t * s == low) | (low == 0) | np.isinf(t)
            if division is not Division.DIVIDE:
                sure &= power_of_two(s) | (low == 0) | np.isinf(t)
            slack = np.where(sure, 0.0, gamma(2, _U32) * np.abs(t))
            if rule is ZeroPointRule.ROUND_SUM:
                slack = np.where(sure & representable(qmin - t, _FLOAT32), 0.0, slack + _U32 * np.abs(qmin - t))
            ends += [code(t), code(t - slack), code(t + slack)]
    exact = ends[0].astype(np.int64)
    return Enclosure(exact, np.minimum.reduce(ends).astype(np.int64), np.maximum.reduce(ends).astype(np.int64))
