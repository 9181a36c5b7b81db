"""ONNX's quantized operators on matrices: MatMulInteger, QLinearMatMul, DynamicQuantizeLinear.

Where ONNX leaves a choice, or its reference evaluator and onnxruntime differ, the choice is a keyword: whether the zero
point is added after the rounding, and what scale an all-zero input gets.

References
----------
.. [1] ONNX operators, docs/Operators.md: MatMulInteger (opset 10), QLinearMatMul (21), DynamicQuantizeLinear (11).
"""

import numpy as np

from lowbit_cts.reference.affine import quantize_enclosure
from lowbit_cts.reference.choices import (
    Contraction,
    Division,
    Precision,
    Requantization,
    Rounding,
    ZeroPointOrder,
    ZeroPointRule,
    ZeroScale,
    takes_choices,
)
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.output_codes import output_codes_enclosure, scales, zero_points
from lowbit_cts.reference.products import integer_product, wrap_int32
from lowbit_cts.reference.rounding import round_to_integer

_FLOAT32 = float_format("float32")
_QMIN, _QMAX = 0, 255


def _along(values: np.ndarray, count: int, axis: int, name: str) -> np.ndarray:
    """Return values of shape () or (count,) so that they broadcast along an axis of a matrix."""
    if values.shape not in ((), (count,)):
        raise ValueError(f"{name}: has shape {values.shape}, must be () or ({count},)")
    return values.reshape((-1, 1) if axis == 0 else (1, -1)) if values.ndim else values


def _shifted_product(
    a: np.ndarray, a_zero_point: np.ndarray, b: np.ndarray, b_zero_point: np.ndarray, a_format: str, b_format: str
) -> np.ndarray:
    """Return (a - z_a) @ (b - z_b), exactly."""
    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    for name, matrix in (("a", a), ("b", b)):
        if matrix.ndim != 2:
            raise ValueError(f"{name}: has {matrix.ndim} dimensions, must have 2")
    z_a = _along(zero_points(a_zero_point, a_format, "a_zero_point"), a.shape[0], 0, "a_zero_point")
    z_b = _along(zero_points(b_zero_point, b_format, "b_zero_point"), b.shape[1], 1, "b_zero_point")
    return integer_product(a - z_a, b - z_b)


def matmul_integer(
    a: np.ndarray,
    a_zero_point: np.ndarray,
    b: np.ndarray,
    b_zero_point: np.ndarray,
    *,
    a_format: str = "int8",
    b_format: str = "int8",
) -> np.ndarray:
    """Return (a - a_zero_point) @ (b - b_zero_point) in int32, modulo 2**32 beyond it.

    Parameters
    ----------
    a : ndarray of int, shape (M, K)
    a_zero_point : ndarray of int, shape () or (M,)
        Codes of `a_format`: one for all, or one a row.
    b : ndarray of int, shape (K, N)
    b_zero_point : ndarray of int, shape () or (N,)
        Codes of `b_format`: one for all, or one a column.
    a_format, b_format : {"int8", "uint8"}

    Returns
    -------
    ndarray of int64, shape (M, N). "The accumulation may overflow if and only if in 32 bits" [1]_; every library that
    was looked at wraps.

    Raises
    ------
    ValueError
        Shapes that do not chain, a zero point outside its format.
    """
    return wrap_int32(_shifted_product(a, a_zero_point, b, b_zero_point, a_format, b_format))


@takes_choices
def qlinear_matmul_enclosure(
    a: np.ndarray,
    a_scale: np.ndarray,
    a_zero_point: np.ndarray,
    b: np.ndarray,
    b_scale: np.ndarray,
    b_zero_point: np.ndarray,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray,
    *,
    a_format: str = "int8",
    b_format: str = "int8",
    y_format: str = "int8",
    rounding: Rounding = Rounding.HALF_EVEN,
    zero_point_order: ZeroPointOrder = ZeroPointOrder.OUTSIDE,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
    requantization: Requantization = Requantization.FLOAT32,
) -> Enclosure:
    """Return the admissible codes of a_scale b_scale / y_scale (a - a_zero_point) @ (b - b_zero_point), quantized.

    Parameters
    ----------
    a, a_zero_point, b, b_zero_point, a_format, b_format : as `matmul_integer`
    a_scale, b_scale : ndarray of float32, the shapes of `a_zero_point` and `b_zero_point`
    y_scale, y_zero_point : float32 and int scalars, ()
    y_format : {"int8", "uint8"}
    rounding, zero_point_order, division, division_ulps, requantization :
        As `lowbit_cts.reference.output_codes.output_codes_enclosure`.

    Returns
    -------
    Enclosure of int64, shape (M, N)

    Raises
    ------
    ValueError
        As `matmul_integer` and `output_codes_enclosure`; a scale that has not the shape of its zero point.
    """
    acc = _shifted_product(a, a_zero_point, b, b_zero_point, a_format, b_format)
    for name, scale, zero in (("a_scale", a_scale, a_zero_point), ("b_scale", b_scale, b_zero_point)):
        if np.shape(scale) != np.shape(zero):
            raise ValueError(f"{name}: has shape {np.shape(scale)}, must have that of its zero point, {np.shape(zero)}")
    m, n = acc.shape
    return output_codes_enclosure(
        acc, _along(scales(a_scale, "a_scale"), m, 0, "a_scale"), _along(scales(b_scale, "b_scale"), n, 1, "b_scale"),
        y_scale, y_zero_point, format=y_format, rounding=rounding, zero_point_order=zero_point_order,
        division=division, division_ulps=division_ulps, requantization=requantization,
    )  # fmt: skip


def _as(precision: Precision, value: float) -> float:
    return float(np.float32(value)) if precision is Precision.FLOAT32 else value


def _dynamic_scales(
    span: float,
    division: Division,
    division_ulps: float,
    intermediate: Precision,
    zero_scale: ZeroScale,
    epsilon: float,
) -> tuple[float, ...]:
    """Return the scale of a range, or the ends of its interval, in float32."""
    if span == 0 and zero_scale is ZeroScale.UNIT_RANGE:
        span = 1.0
    span = _as(intermediate, span)
    if division is Division.RECIPROCAL:
        found: tuple[float, ...] = (span * _as(intermediate, 1.0 / (_QMAX - _QMIN)),)
    else:
        quotient = span / (_QMAX - _QMIN)
        slack = quotient * division_ulps * 2 * _FLOAT32.unit_roundoff * (division is Division.APPROXIMATE)
        found = (quotient, quotient - slack, quotient + slack) if slack else (quotient,)
    found = tuple(float(np.float32(s)) for s in found)
    if zero_scale is ZeroScale.EPSILON:
        return tuple(max(s, float(np.float32(epsilon))) for s in found)
    return (1.0,) if found[0] == 0 and zero_scale is ZeroScale.ONE else found


@takes_choices
def dynamic_quantize_enclosure(
    x: np.ndarray,
    *,
    rounding: Rounding = Rounding.HALF_EVEN,
    zero_point_order: ZeroPointOrder = ZeroPointOrder.OUTSIDE,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
    intermediate: Precision = Precision.FLOAT32,
    contraction: Contraction = Contraction.SEPARATE,
    zero_point_rule: ZeroPointRule = ZeroPointRule.ROUND_SUM,
    zero_scale: ZeroScale = ZeroScale.ONE,
    epsilon: float = 2.0**-23,
) -> dict[str, Enclosure]:
    """Return the admissible codes, scale and zero point of a matrix quantized to uint8 by its own range.

    scale = (max(x, 0) - min(x, 0)) / 255, zero_point = round(saturate(-min(x, 0) / scale)), codes as `quantize_affine`.

    Parameters
    ----------
    x : ndarray of float, shape (M, K)
        Finite values of float32.
    rounding, zero_point_order, division, division_ulps, intermediate, contraction :
        As `lowbit_cts.reference.affine.quantize_enclosure`; `division` and `intermediate` of the scale, too.
    zero_point_rule, zero_scale, epsilon :
        As `lowbit_cts.reference.affine.choose_qparams_enclosure`.

    Returns
    -------
    dict with "codes" (int64, (M, K)), "scale" (float32, ()) and "zero_point" (int64, ())
        Points where the division is one; with an approximate division intervals, and with a reciprocal one the zero
        point of either. Anything goes for codes and zero point, and up to 1 for the scale, where the scale is
        subnormal: it may be flushed, and then counts as zero.

    Raises
    ------
    ValueError
        A NaN or infinity in x, a range beyond float32, a zero-size axis, another number of axes than 2.
    """
    x = np.asarray(x, np.float64)
    if x.ndim != 2:
        raise ValueError(f"x: has {x.ndim} dimensions, must have 2 (M, K)")
    if x.size == 0:
        raise ValueError(f"x: has a zero-size axis (shape {x.shape}); an empty set has no minimum and maximum")
    if not np.all(np.isfinite(x)):
        raise ValueError("x: must be finite; the range of a NaN or an infinity is no range")
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    if high - low > _FLOAT32.maximum:
        raise ValueError("x: its range, max - min, must be at most the largest float32")
    found = _dynamic_scales(high - low, division, division_ulps, intermediate, zero_scale, epsilon)
    if found[0] < _FLOAT32.smallest_normal:
        return _free(x.shape, found[0], high == low)
    zeros = [_zero_point(low, s, rounding, division, intermediate, zero_point_rule) for s in found]
    candidates = {(s, z) for s, around in zip(found, zeros, strict=True) for z in around}
    exact, *others = (
        quantize_enclosure(
            x, np.array(s), np.array(z), format="uint8", rounding=rounding, zero_point_order=zero_point_order,
            division=division, division_ulps=division_ulps, intermediate=intermediate, contraction=contraction,
        )
        for s, z in sorted(candidates, key=lambda pair: pair != (found[0], zeros[0][0]))
    )  # fmt: skip
    every = [exact, *others]
    z_all = [z for around in zeros for z in around]
    return {
        "codes": Enclosure(
            exact.exact, np.minimum.reduce([e.lo for e in every]), np.maximum.reduce([e.hi for e in every])
        ),
        "scale": Enclosure(np.array(found[0]), np.array(min(found)), np.array(max(found))),
        "zero_point": Enclosure(np.array(zeros[0][0]), np.array(min(z_all)), np.array(max(z_all))),
    }


def _zero_point(
    low: float, scale: float, rounding: Rounding, division: Division, intermediate: Precision, rule: ZeroPointRule
) -> list[int]:
    """Return the zero point of a scale, first by a division, then, where that is not declared, by the reciprocal."""
    quotients = [_as(intermediate, low / scale)]
    if division is not Division.DIVIDE:
        quotients.append(_as(intermediate, low * _as(intermediate, 1.0 / scale)))
    if division is Division.APPROXIMATE:
        quotients += [quotients[0] * (1 + side * 2.0**-21) for side in (-1, 1)]
    found = []
    for t in quotients:
        z = round_to_integer(np.array(-t), rounding)
        if rule is ZeroPointRule.ROUND_QUOTIENT:
            z = -round_to_integer(np.array(t), rounding)
        found.append(int(np.clip(z, _QMIN, _QMAX)))
    return found


def _free(shape: tuple[int, ...], scale: float, zeros_alone: bool) -> dict[str, Enclosure]:
    """Return the results of a scale that is zero, or subnormal."""
    low, high = np.full(shape, _QMIN), np.full(shape, _QMAX)
    kept = np.array(scale)
    return {
        "codes": Enclosure(low, low, high),
        "scale": Enclosure(kept, np.array(0.0), kept if zeros_alone else np.array(1.0)),
        "zero_point": Enclosure(np.array(_QMIN), np.array(_QMIN), np.array(_QMAX)),
    }
