"""The gradients of fake quantization, y = s (clamp(round(x / s) + z) - z): straight-through, and with respect to s.

A quantizer is constant between its steps, so its own derivative is zero. What is computed in its place is the
derivative of a function that the estimator puts there:

- dy/dx is that of the clamp: 1 inside the range and 0 outside. `GradientMask` says what the range is. Of `RANGE` and
  `QUOTIENT` it is [s (qmin - z), s (qmax - z)], and y becomes ``clamp(x)``; of `CODE` half a step more on both sides.
- dy/ds is that of ``y(s) = x + r s`` inside, where ``r = round(x / s) - x / s`` does not move with s, and of
  ``y(s) = s (qmin - z)`` below, ``s (qmax - z)`` above (`lowbit_cts.reference.lsq`).

Special values: an infinite x is outside the range, and so is a NaN, which is inside no range; what their gradient is
when the upstream gradient is not finite says `MaskedGradient`. Inside, an infinity or NaN passes like a number.

References
----------
.. [1] S. K. Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv:1902.08153, eq. (5).
.. [2] Y. Bengio, N. Léonard, A. Courville, "Estimating or Propagating Gradients Through Stochastic Neurons",
   arXiv:1308.3432: the straight-through estimator.
.. [3] R. Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", arXiv:1806.08342, eq. (13).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit_cts.reference.affine import check_codes, check_scale, code_sums
from lowbit_cts.reference.choices import (
    Contraction,
    Division,
    GradientForm,
    GradientMask,
    MaskedGradient,
    Precision,
    Rounding,
    ZeroPointOrder,
    takes_choices,
)
from lowbit_cts.reference.enclosure import Enclosure, gamma, power_of_two, within
from lowbit_cts.reference.formats import float_format, integer_format
from lowbit_cts.reference.granularity import spread
from lowbit_cts.reference.rounding import round_to_integer
from lowbit_cts.reference.sums import quantum

_FLOAT32 = float_format("float32")
_U32 = _FLOAT32.unit_roundoff
#: Roundings of the derivatives in a chain: of upstream * s, of 1 / s and its square, and of the products with them.
CHAIN = 5


@dataclass(frozen=True)
class Passage:
    """What the estimator makes of each element: whether its gradient passes, and dy/ds.

    Attributes
    ----------
    inside : ndarray of bool
    steps : ndarray of float64
        dy/ds; 0 where the declared arithmetic has no quotient.
    whole : ndarray of float64
        The magnitudes of the two numbers that `steps` is the difference of; where there is one, its magnitude.
    finest : ndarray of float64
        Powers of two that divide both.
    lost : ndarray of bool
        Where there is no quotient: NaN, and a zero times the infinite reciprocal of a subnormal scale.
    """

    inside: np.ndarray
    steps: np.ndarray
    whole: np.ndarray
    finest: np.ndarray
    lost: np.ndarray


@takes_choices
def passages_of(
    x: np.ndarray,
    s: np.ndarray,
    z: np.ndarray,
    qmin: int,
    qmax: int,
    *,
    rounding: Rounding = Rounding.HALF_EVEN,
    zero_point_order: ZeroPointOrder = ZeroPointOrder.OUTSIDE,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
    intermediate: Precision = Precision.FLOAT32,
    contraction: Contraction = Contraction.SEPARATE,
    gradient_mask: GradientMask = GradientMask.CODE,
) -> list[Passage]:
    """Return what the declared arithmetic makes of each element; of approximate arithmetic its two ends, too."""
    order = zero_point_order
    inside_sum = order is ZeroPointOrder.INSIDE
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        if division is Division.APPROXIMATE:
            sums = [code_sums(x, s, z, order, Division.DIVIDE, intermediate, False)]
            slack = np.abs(x / s) * division_ulps * 2 * _U32 + (np.abs(x / s + z) * _U32 if inside_sum else 0.0)
            sums += [np.where(np.isinf(x), x, x / s + (z if inside_sum else 0) + side * slack) for side in (-1, 1)]
        else:
            kinds = [Contraction.SEPARATE, Contraction.FUSED] if contraction is Contraction.EITHER else [contraction]
            sums = [code_sums(x, s, z, order, division, intermediate, kind is Contraction.FUSED) for kind in kinds]
        shift = np.zeros_like(z) if inside_sum else z
        return [_passage(x, s, z, t, t + shift, (qmin, qmax), rounding, inside_sum, gradient_mask) for t in sums]


def _passage(
    x: np.ndarray,
    s: np.ndarray,
    z: np.ndarray,
    t: np.ndarray,
    shifted: np.ndarray,
    codes: tuple[int, int],
    rounding: Rounding,
    inside_sum: bool,
    mask: GradientMask,
) -> Passage:
    """Return the passage of elements whose numbers before the rounding are t, and with the zero point `shifted`."""
    qmin, qmax = codes
    code = round_to_integer(t, rounding) + (0 if inside_sum else z)
    low, high = (q - (0 if inside_sum else z) for q in codes)
    if mask is GradientMask.CODE:
        inside = (qmin <= code) & (code <= qmax)
    elif mask is GradientMask.QUOTIENT:
        inside = (low < t) & (t < high)
    elif mask is GradientMask.QUOTIENT_CLOSED:
        inside = (low <= t) & (t <= high)
    else:
        ends = ((s * (q - z)).astype(np.float32) for q in codes)
        inside = (next(ends) <= x) & (x <= next(ends))
    lost = np.isnan(t)
    edge = np.where(shifted < (qmin + qmax) / 2, qmin, qmax) - z
    offset = np.clip(np.where(lost, z, code), qmin, qmax) - z
    quotient = np.where(inside, x / s, 0.0)
    steps = np.where(inside, offset - quotient, np.where(lost, 0.0, edge))
    parts = (np.where(inside, offset, edge), quotient, steps)
    whole = np.where(inside, np.abs(offset) + np.abs(quotient), np.abs(steps))
    return Passage(inside, steps, whole, np.minimum.reduce([quantum(part) for part in parts]), lost)


def checked(
    x: np.ndarray,
    upstream: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray | None,
    place: tuple[str, int | None, int | None],
    codes: tuple[int, int],
    name: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return x and upstream, and the scale and the zero point beside each element, in float64.

    Raises
    ------
    ValueError
        Scale not positive and finite, zero point outside `codes`, shapes that do not fit.
    """
    x, upstream = np.asarray(x, np.float64), np.asarray(upstream, np.float64)
    if upstream.shape != x.shape:
        raise ValueError(f"upstream: has shape {upstream.shape}, must have that of {name}, {x.shape}")
    check_scale(scale)
    s = spread(np.asarray(scale, np.float64), x.shape, *place)
    if zero_point is None:
        return x, upstream, s, np.zeros(x.shape)
    zero_point = np.asarray(zero_point, np.int64)
    check_codes(zero_point, *codes, "zero_point")
    return x, upstream, s, spread(zero_point, x.shape, *place, "zero_point").astype(np.float64)


def gradient_of_values(
    x: np.ndarray,
    upstream: np.ndarray,
    s: np.ndarray,
    passages: list[Passage],
    masked: MaskedGradient,
    form: GradientForm,
) -> Enclosure:
    """Return the upstream gradient where it passes, in float32; all arrays are float64 of one shape."""
    with np.errstate(invalid="ignore", over="ignore"):
        closed = upstream * 0.0 if masked is MaskedGradient.PRODUCT else np.zeros_like(upstream)
        found = [np.where(p.inside, upstream, closed) for p in passages]
        lo, hi = np.fmin.reduce(found), np.fmax.reduce(found)
        passing = np.logical_or.reduce([p.inside for p in passages])
        open_ = np.logical_or.reduce([np.isnan(f) != np.isnan(found[0]) for f in found])
        if form is GradientForm.CHAIN:  # upstream * s, then by s
            forth, back = upstream * s, 1 / s
            bound = gamma(CHAIN, _U32) * np.abs(upstream) + 3 * _FLOAT32.smallest_normal * np.maximum(1, back)
            exact = power_of_two(s) & (np.abs(forth) >= _FLOAT32.smallest_normal) & (back <= _FLOAT32.maximum)
            bound = np.where(exact | (upstream == 0) | ~passing | ~np.isfinite(upstream), 0.0, bound)
            open_ |= passing & (np.abs(forth) * (1 + _U32) > _FLOAT32.maximum) & np.isfinite(upstream)
            lo, hi = within(lo, bound, _FLOAT32).lo, within(hi, bound, _FLOAT32).hi
    # A zero times the infinite reciprocal of a subnormal scale passes or not, like any.
    lost = passages[0].lost & ~np.isnan(x)
    lo = np.where(lost & np.isfinite(upstream), np.minimum(upstream, 0.0), lo)
    hi = np.where(lost & np.isfinite(upstream), np.maximum(upstream, 0.0), hi)
    open_ |= lost & ~np.isfinite(upstream)
    return Enclosure(found[0], np.where(open_, -np.inf, lo), np.where(open_, np.inf, hi))


@takes_choices
def fake_quantize_gradient_enclosure(
    x: np.ndarray,
    upstream: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    *,
    format: str,
    granularity: str = "tensor",
    axis: int | None = None,
    group_size: int | None = None,
    narrow_range: bool = False,
    masked_gradient: MaskedGradient = MaskedGradient.ZERO,
    gradient_form: GradientForm = GradientForm.DIRECT,
    **quantizer: Any,
) -> Enclosure:
    """Return the admissible gradients of fake quantization with respect to x: the upstream gradient inside the range.

    Parameters
    ----------
    x : ndarray of float, shape (M, K)
        The values that were quantized, of float32.
    upstream : ndarray of float, shape (M, K)
        The gradient with respect to the result, of float32.
    scale, zero_point, format, granularity, axis, group_size, narrow_range : as `lowbit_cts.reference.affine.quantize`
    masked_gradient : MaskedGradient
    gradient_form : GradientForm
        `DIRECT` passes the upstream gradient on as it is; `CHAIN` multiplies it by s and by 1 / s, in float32.
    quantizer : the choices of `lowbit_cts.reference.affine.quantize_enclosure`, and gradient_mask : GradientMask

    Returns
    -------
    Enclosure, shape (M, K), float32.

    Raises
    ------
    ValueError
        Scale not positive and finite, zero point outside the format, shapes that do not fit, an unknown format.
    """
    codes = integer_format(format).codes(narrow_range)
    place = granularity, axis, group_size
    x, upstream, s, z = checked(x, upstream, scale, zero_point, place, codes, "x")
    passages = passages_of(x, s, z, *codes, **quantizer)
    return gradient_of_values(x, upstream, s, passages, masked_gradient, gradient_form)
