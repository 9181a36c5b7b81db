"""Codes of scaled sums: saturate(round(s_a s_b / s_y acc) + z_y), the end of every integer layer.

The sums are exact, in int32. What differs between libraries is how the real multiplier is computed, and whether it is
applied in floating point (`Requantization.FLOAT32`: any association, any precision from float32 on) or as an integer
(`lowbit_cts.reference.requantization`). Where a sum leaves int32, every code is admissible.

References
----------
.. [1] ONNX operators QLinearMatMul (opset 21) and QLinearConv (opset 10).
.. [2] B. Jacob et al., arXiv:1712.05877, §2.2: M = s_a s_b / s_y.
.. [3] TensorFlow Lite, kernels/kernel_util.cc, PopulateConvolutionQuantizationParams: M in double precision.
"""

import numpy as np

from lowbit_cts.reference.choices import Division, Requantization, Rounding, ZeroPointOrder, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, gamma, power_of_two, representable
from lowbit_cts.reference.formats import float_format, integer_format
from lowbit_cts.reference.requantization import MULTIPLIER_BITS, requantize_enclosure
from lowbit_cts.reference.rounding import round_to_integer

_FLOAT32 = float_format("float32")
_U32, _U64 = _FLOAT32.unit_roundoff, 2.0**-53
_INT32 = np.iinfo(np.int32)
#: Variants that take the multiplier in double precision.
_DOUBLE = (
    Requantization.DOUBLE_ROUNDING,
    Requantization.SINGLE_ROUNDING,
    Requantization.DOUBLE_ROUNDING_UP,
)


def scales(values: np.ndarray, name: str) -> np.ndarray:
    """Return scales as float64; ValueError where one is not positive and finite."""
    values = np.asarray(values, np.float64)
    if not np.all(np.isfinite(values)) or np.any(values <= 0):
        raise ValueError(f"{name}: must be positive and finite; got {values.ravel()[:4].tolist()}")
    return values


def zero_points(values: np.ndarray, format: str, name: str) -> np.ndarray:
    """Return zero points as int64; ValueError where one is no code of the format."""
    values = np.asarray(values, np.int64)
    fmt = integer_format(format)
    if values.size and (values.min() < fmt.minimum or values.max() > fmt.maximum):
        raise ValueError(f"{name}: must lie in [{fmt.minimum}, {fmt.maximum}]; got {values.ravel()[:4].tolist()}")
    return values


def _slack(acc: np.ndarray, s_a: np.ndarray, s_b: np.ndarray, s_y: np.ndarray, division: Division) -> np.ndarray:
    """Return how far float32 arithmetic, in any association, may be from s_a s_b / s_y acc, relative to it.

    One rounding of a sum of more than 24 bits, one for each scale that is no power of two, one of the reciprocal.
    """
    roundings = 1.0 * ~representable(acc, _FLOAT32)
    for scale in (s_a, s_b, s_y):
        roundings = roundings + ~power_of_two(scale)
    if division is not Division.DIVIDE:
        roundings = roundings + ~power_of_two(s_y)
    return gamma(roundings, _U32)


def _lost(acc: np.ndarray, s_a: np.ndarray, s_b: np.ndarray, s_y: np.ndarray) -> np.ndarray:
    """Return what is lost where a product or quotient of scales is no normal float32: it may be flushed; inf above."""
    total = np.abs(acc)
    parts = ((s_a * s_b, total / s_y), (s_a / s_y, s_b * total), (s_b / s_y, s_a * total), (s_a * s_b / s_y, total))
    lost = np.zeros(())
    for part, others in parts:
        lost = lost + np.where(part < _FLOAT32.smallest_normal, _FLOAT32.smallest_normal * others, 0.0)
    largest = np.maximum.reduce(np.broadcast_arrays(s_a * s_b, s_a / s_y, s_b / s_y, s_a * s_b / s_y, 1 / s_y))
    products = np.maximum.reduce(np.broadcast_arrays(s_a * total, s_b * total, s_a * s_b * total))
    return np.where(np.maximum(largest, products) > _FLOAT32.maximum / 2, np.inf, lost)


def _integer_enclosure(
    acc: np.ndarray, multiplier: np.ndarray, z_y: np.ndarray, format: str, variant: Requantization
) -> Enclosure:
    """Return the codes of the sums under an integer multiplier, made of float64, or of a float32 two roundings away."""
    shape = acc.shape
    ends = []
    for side in (0,) if variant in _DOUBLE else (0, -1, 1):
        scale = np.broadcast_to(multiplier * (1 + side * 2 * _U32), shape).ravel()
        ends.append(requantize_enclosure(acc.ravel(), scale, z_y, format=format, variant=variant))
    exact, lo, hi = ends[0].exact, *(np.stack([getattr(end, name) for end in ends]) for name in ("lo", "hi"))
    return Enclosure(exact.reshape(shape), lo.min(axis=0).reshape(shape), hi.max(axis=0).reshape(shape))


@takes_choices
def output_codes_enclosure(
    acc: np.ndarray,
    a_scale: np.ndarray,
    b_scale: np.ndarray,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray,
    *,
    format: str,
    rounding: Rounding = Rounding.HALF_EVEN,
    zero_point_order: ZeroPointOrder = ZeroPointOrder.OUTSIDE,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
    requantization: Requantization = Requantization.FLOAT32,
) -> Enclosure:
    """Return the admissible codes of s_a s_b / s_y acc, rounded, plus z_y, saturated.

    Parameters
    ----------
    acc : ndarray of int64, any shape
        Exact sums.
    a_scale, b_scale : ndarray of float32, of shapes that broadcast to that of `acc`
        Positive and finite.
    y_scale, y_zero_point : float32 and int scalars, ()
    format : {"int8", "uint8"}
        Of the codes.
    rounding, zero_point_order, division, division_ulps :
        Of floating-point arithmetic; the integer variants have their own.
    requantization : Requantization

    Returns
    -------
    Enclosure of int64, the shape of `acc`
        In floating point the codes that the ends of an interval round to: a relative gamma_n with n the roundings of
        the sum (none up to 24 bits) and of scales that are no powers of two, so a point where there are none. Integer
        multipliers made in double precision determine the code; of a float32 one any association may have made it.

    Raises
    ------
    ValueError
        A scale that is not positive and finite, an output scale or zero point that is no scalar, a zero point outside
        the format; a multiplier beyond those of the integer variant (`lowbit_cts.reference.requantization.SCALES`).
    """
    fmt = integer_format(format)
    s_a, s_b, s_y = scales(a_scale, "a_scale"), scales(b_scale, "b_scale"), scales(y_scale, "y_scale")
    z_y = zero_points(y_zero_point, format, "y_zero_point")
    for name, value in (("y_scale", s_y), ("y_zero_point", z_y)):
        if value.shape != ():
            raise ValueError(f"{name}: has shape {value.shape}, must be a scalar ()")
    beyond = (acc < _INT32.min) | (acc > _INT32.max)
    acc = np.clip(acc, _INT32.min, _INT32.max)
    multiplier = s_a * s_b / s_y
    if requantization in MULTIPLIER_BITS:
        found = _integer_enclosure(acc, multiplier, z_y, format, requantization)
        return _opened(found, beyond, fmt.minimum, fmt.maximum)
    with np.errstate(over="ignore"):
        t = acc * multiplier
        relative = _slack(acc, s_a, s_b, s_y, division)
        ulps = division_ulps * (division is Division.APPROXIMATE) * ~power_of_two(s_y)
        slack = (relative + 2 * _U32 * ulps) * np.abs(t) + _lost(acc, s_a, s_b, s_y)
    slack = np.where(slack > 0, slack + 4 * _U64 * np.abs(t), 0.0)  # of this computation
    if zero_point_order is ZeroPointOrder.INSIDE:
        t = t + z_y
        slack = np.where((slack == 0) & representable(t, _FLOAT32), 0.0, slack + _U32 * np.abs(t))

    def code(values: np.ndarray) -> np.ndarray:
        rounded = round_to_integer(values, rounding)
        if zero_point_order is ZeroPointOrder.OUTSIDE:
            rounded = rounded + z_y
        return np.clip(rounded, fmt.minimum, fmt.maximum).astype(np.int64)

    return _opened(Enclosure(code(t), code(t - slack), code(t + slack)), beyond, fmt.minimum, fmt.maximum)


def _opened(found: Enclosure, where: np.ndarray, low: int, high: int) -> Enclosure:
    """Return the enclosure with every code admitted where libraries are free."""
    return Enclosure(found.exact, np.where(where, low, found.lo), np.where(where, high, found.hi))
