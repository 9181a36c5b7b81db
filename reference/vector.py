"""Addition of quantized vectors, each with its own scale and zero point.

References
----------
.. [1] TensorFlow Lite 8-bit quantization specification, ADD: int8 inputs and output, asymmetric, per tensor.
.. [2] B. Jacob et al., arXiv:1712.05877, appendix A.2 (addition).
.. [3] TensorFlow Lite, kernels/add.cc and kernels/internal/reference/integer_ops/add.h: the fixed-point arithmetic.
"""

import numpy as np

from lowbit_cts.reference.choices import Division, Requantization, Rounding, ZeroPointOrder, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, gamma, power_of_two, representable
from lowbit_cts.reference.formats import float_format, integer_format
from lowbit_cts.reference.requantization import rescale
from lowbit_cts.reference.rounding import round_to_integer

_FLOAT32 = float_format("float32")
_U32 = _FLOAT32.unit_roundoff
#: Fractional bits of operands in fixed point.
_LEFT_SHIFT = 20
#: In what sums are taken: floating point, or TFLite's fixed point with the one or the other rescaling.
ARITHMETIC = (Requantization.FLOAT32, Requantization.DOUBLE_ROUNDING, Requantization.SINGLE_ROUNDING)


def _scalar(value: np.ndarray, name: str) -> np.ndarray:
    value = np.asarray(value)
    if value.shape != ():
        raise ValueError(f"{name}: has shape {value.shape}, must be a scalar ()")
    return value


def _fixed_point(
    a: np.ndarray, b: np.ndarray, s_a: float, s_b: float, s_y: float, variant: Requantization
) -> np.ndarray:
    """Return (s_a a + s_b b) / s_y as TFLite's ADD rounds it [3]_: both on the scale of twice the larger, then the sum.

    The multipliers are made in float64 of scales in float32, each below 1.
    """
    twice = 2 * max(s_a, s_b)
    output = twice / (2.0**_LEFT_SHIFT * s_y)
    if not output < 1:
        raise ValueError(f"y_scale: must exceed 2**-19 of a_scale and b_scale in fixed point; got {s_y}")
    total = rescale(a << _LEFT_SHIFT, np.asarray(s_a / twice), variant=variant)
    total = total + rescale(b << _LEFT_SHIFT, np.asarray(s_b / twice), variant=variant)
    return rescale(total, np.asarray(output), variant=variant)


@takes_choices
def add_int8_enclosure(
    a: np.ndarray,
    a_scale: np.ndarray,
    a_zero_point: np.ndarray,
    b: np.ndarray,
    b_scale: np.ndarray,
    b_zero_point: np.ndarray,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray,
    *,
    format: str = "int8",
    rounding: Rounding = Rounding.HALF_EVEN,
    zero_point_order: ZeroPointOrder = ZeroPointOrder.OUTSIDE,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
    requantization: Requantization = Requantization.FLOAT32,
) -> Enclosure:
    """Return the admissible codes of (s_a (a - z_a) + s_b (b - z_b)) / s_y, rounded, plus z_y, saturated.

    Parameters
    ----------
    a, b : ndarray of int, both of shape (N,)
        Codes of `format`.
    a_scale, b_scale, y_scale : float32 scalars
        Positive and finite.
    a_zero_point, b_zero_point, y_zero_point : int scalars
        Codes of `format`.
    format : {"int8", "uint8"}
    rounding, zero_point_order, division, division_ulps :
        Of floating-point arithmetic.
    requantization : {"float32", "double_rounding", "single_rounding"}
        TFLite's fixed-point arithmetic where it is not float32.

    Returns
    -------
    Enclosure of int64, shape (N,)
        One code in fixed point. In floating point the codes that the ends of the sum's interval round to: gamma_6 of
        the terms' magnitudes covers float32 arithmetic in any association, fused or not. The interval is a point, and
        one code admissible, where every scale is a power of two and the sum is representable.

    Raises
    ------
    ValueError
        Shapes that differ, a scale that is not positive and finite, a zero point outside the format; in fixed point an
        output scale of at most 2**-19 of another; another requantization.
    """
    if requantization not in ARITHMETIC:
        raise ValueError(f"requantization: {requantization!s} is no way to add; admissible: {', '.join(ARITHMETIC)}")
    qmin, qmax = integer_format(format).codes()
    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    if a.shape != b.shape:
        raise ValueError(f"b: has shape {b.shape}, must have that of a, {a.shape}")
    scales = []
    for name, given in (("a_scale", a_scale), ("b_scale", b_scale), ("y_scale", y_scale)):
        scale = _scalar(np.asarray(given, np.float64), name)
        if not np.isfinite(scale) or scale <= 0:
            raise ValueError(f"{name}: must be positive and finite; got {scale}")
        scales.append(scale)
    zeros = []
    for name, given in (("a_zero_point", a_zero_point), ("b_zero_point", b_zero_point), ("y_zero_point", y_zero_point)):
        zero = _scalar(np.asarray(given, np.int64), name)
        if not qmin <= zero <= qmax:
            raise ValueError(f"{name}: must lie in [{qmin}, {qmax}]; got {zero}")
        zeros.append(zero)
    s_a, s_b, s_y = scales
    z_a, z_b, z_y = zeros
    if requantization is not Requantization.FLOAT32:
        total = _fixed_point(a - z_a, b - z_b, float(s_a), float(s_b), float(s_y), requantization)
        codes = np.clip(total + z_y, qmin, qmax)
        return Enclosure(codes, codes, codes)
    first, second = s_a * (a - z_a), s_b * (b - z_b)
    quotient = (first + second) / s_y
    exactly = np.all([power_of_two(s) for s in scales]) & representable(quotient, _FLOAT32)
    slack = (
        (gamma(6, _U32) + 2 * _U32 * division_ulps * (division is Division.APPROXIMATE))
        * (np.abs(first) + np.abs(second))
        / s_y
    )
    if zero_point_order is ZeroPointOrder.INSIDE:
        quotient = quotient + z_y
        exactly &= representable(quotient, _FLOAT32)
        slack = slack + _U32 * np.abs(quotient)
    slack = np.where(exactly, 0.0, slack)

    def code(t: np.ndarray) -> np.ndarray:
        rounded = round_to_integer(t, rounding) + (z_y if zero_point_order is ZeroPointOrder.OUTSIDE else 0)
        return np.clip(rounded, qmin, qmax).astype(np.int64)

    return Enclosure(code(quotient), code(quotient - slack), code(quotient + slack))
