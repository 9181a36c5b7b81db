"""Learned step size quantization: the gradient of the scale, and the first scale.

With y = s (clamp(round(v / s) + z) - z), the derivative that is put in the place of dy/ds is

====================  =========================
v                     dy/ds
====================  =========================
inside the range      round(v / s) - v / s
below                 qmin - z
above                 qmax - z
====================  =========================

where `GradientMask` says what is inside. With z = 0, qmin = -Q_N and qmax = Q_P it is eq. (3) of [1]_. The gradient of
a scale is the sum over what shares it, of 0 elements 0; a NaN in v, and an upstream gradient that is not finite, leave
it open. An infinite v is below or above like any other (of `GradientForm.CHAIN`, which multiplies its zero with
``v / s**2``, open, too).

References
----------
.. [1] S. K. Esser et al., "Learned Step Size Quantization", ICLR 2020, arXiv:1902.08153: eq. (3) the gradient of the
   step size, (5) that of the values, §2.1 the first step size 2 mean|v| / sqrt(Q_P), §2.2 the gradient scale g.
"""

from typing import Any

import numpy as np

from lowbit_cts.reference.accumulators import Accumulator
from lowbit_cts.reference.affine import check_scale
from lowbit_cts.reference.choices import GradientForm, MaskedGradient, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, gamma, power_of_two, representable, within
from lowbit_cts.reference.formats import float_format, integer_format
from lowbit_cts.reference.granularity import scale_shape
from lowbit_cts.reference.means import members
from lowbit_cts.reference.qat import CHAIN, Passage, checked, gradient_of_values, passages_of
from lowbit_cts.reference.sums import Operand, Sums, exactly, inner_products, quantum

_FLOAT32 = float_format("float32")
_U32 = _FLOAT32.unit_roundoff
_U64 = 2.0**-53
#: Roundings on the way to round(v / s) - v / s: of 1 / s and v / s, or of a product, a difference and a quotient.
_STEPS = 3


def _sets(x: np.ndarray, granularity: str, axis: int | None, group_size: int | None) -> np.ndarray:
    """Return a matrix so that what shares a scale lies along the last axis, shape (*scale_shape, n); n may be 0."""
    target = scale_shape(x.shape, granularity, axis, group_size)
    if granularity == "axis" and axis == 1:
        x = x.T
    count = {"tensor": x.size, "axis": x.shape[1], "group": group_size}[granularity]
    return np.ascontiguousarray(x).reshape(*target, int(count or 0))


@takes_choices
def lsq_gradient_enclosure(
    v: np.ndarray,
    upstream: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray | None,
    gradient_scale: np.ndarray,
    *,
    format: str,
    granularity: str = "tensor",
    axis: int | None = None,
    group_size: int | None = None,
    narrow_range: bool = False,
    masked_gradient: MaskedGradient = MaskedGradient.ZERO,
    gradient_form: GradientForm = GradientForm.DIRECT,
    float_accumulator: Accumulator = Accumulator.FLOAT32,
    **quantizer: Any,
) -> dict[str, Enclosure]:
    """Return the admissible gradients of fake quantization with respect to the values and to their scales.

    Parameters
    ----------
    v, upstream : ndarray of float, shape (M, K)
        As x and upstream of `fake_quantize_gradient_enclosure`.
    scale : ndarray of float32, shape by `granularity`
    zero_point : ndarray of int, the shape of `scale`, or None
        None is 0: LSQ's own quantizer, of signed and of unsigned codes.
    gradient_scale : float
        g, by which the gradient of the scale is multiplied; 1 / sqrt(N Q_P) in LSQ.
    float_accumulator : Accumulator
        In which the terms of that gradient are added.
    gradient_form : GradientForm
        Whether the difference round(v / s) - v / s is formed for each element, or its two parts are summed.
    others : as `fake_quantize_gradient_enclosure`

    Returns
    -------
    dict with "dv", shape (M, K), and "dscale", the shape of `scale`, float32: ``g sum(upstream dy/ds)`` over what
    shares a scale, in any order, with g multiplied before or after.

    Raises
    ------
    ValueError
        As `fake_quantize_gradient_enclosure`, and a gradient scale that is not positive and finite.
    """
    codes = integer_format(format).codes(narrow_range)
    place = granularity, axis, group_size
    v, upstream, s, z = checked(v, upstream, scale, zero_point, place, codes, "v")
    check_scale(gradient_scale, "gradient_scale")
    if np.shape(gradient_scale) != ():
        raise ValueError(f"gradient_scale: has shape {np.shape(gradient_scale)}, must be () (a scalar)")
    passages = passages_of(v, s, z, *codes, **quantizer)
    chain = gradient_form is GradientForm.CHAIN
    dv = gradient_of_values(v, upstream, s, passages, masked_gradient, gradient_form)
    steps = _steps(v, s, z, passages, chain)
    with np.errstate(invalid="ignore", over="ignore"):
        beyond = np.abs(upstream) * np.maximum(1.0, s) * np.maximum(1.0, np.abs(v) / s / s) > _FLOAT32.maximum
    unknown = np.isnan(v) | ~np.isfinite(upstream) | passages[0].lost | (chain & (beyond | np.isinf(v)))

    def sets(x: np.ndarray) -> np.ndarray:
        return _sets(x, *place)

    terms = exactly(sets(np.where(unknown, 0.0, upstream))[..., None, :])
    factors = Operand(*(sets(part)[..., None] for part in (steps.values, steps.magnitude, steps.error, steps.quanta())))
    sums = inner_products(terms, factors)
    found = _scaled(sums, float(gradient_scale), float_accumulator, 2 + (CHAIN if chain else 0))
    open_ = sets(unknown).any(axis=-1)
    exact, lo, hi = (part[..., 0, 0] for part in (found.exact, found.lo, found.hi))
    return {"dv": dv, "dscale": Enclosure(exact, np.where(open_, -np.inf, lo), np.where(open_, np.inf, hi))}


def _steps(v: np.ndarray, s: np.ndarray, z: np.ndarray, passages: list[Passage], chain: bool) -> Operand:
    """Return dy/ds as a factor, with the roundings on the way to it."""
    first = passages[0]
    with np.errstate(invalid="ignore", over="ignore"):
        quotient = np.where(first.inside, v / s, 0.0)
        # Of a power of two the quotient, the product and the difference are exact, if they are normal numbers.
        fits = power_of_two(s) & representable(quotient, _FLOAT32) & (s <= 2.0**126)
        fits &= representable(s * (first.steps + quotient), _FLOAT32)
        error = gamma(CHAIN if chain else _STEPS, _U32) * first.whole + _U64 * np.abs(quotient)
        error = np.where(fits | ~first.inside, 0.0, error + 3 * _FLOAT32.smallest_normal)
        for other in passages[1:]:
            error = error + np.abs(other.steps - first.steps)
    return Operand(first.steps, first.whole if chain else np.abs(first.steps), error, first.finest)


def _scaled(sums: Sums, factor: float, accumulator: Accumulator, extra: int) -> Enclosure:
    """Return the admissible sums times a positive factor, which may multiply the terms or their sum, in float32."""
    whole = sums.magnitude + sums.error
    fine = sums.quantum * quantum(np.array(factor))
    with np.errstate(over="ignore", invalid="ignore"):
        fits = accumulator.exact(whole, sums.quantum) & accumulator.exact(factor * whole, fine)
        after = factor * accumulator.error(sums.terms, sums.length, whole, extra)
        before = accumulator.error(sums.terms, sums.length, factor * whole, extra)
        value = factor * sums.value
        adding = np.where(fits, 0.0, np.maximum(before, after) + _U64 * np.abs(value))
        return within(value, adding + factor * sums.error * (1 + 2.0**-40), _FLOAT32)


@takes_choices
def lsq_initial_scale_enclosure(
    v: np.ndarray,
    *,
    format: str,
    granularity: str = "tensor",
    axis: int | None = None,
    group_size: int | None = None,
    float_accumulator: Accumulator = Accumulator.FLOAT32,
) -> Enclosure:
    """Return the admissible first step sizes of LSQ, 2 mean|v| / sqrt(Q_P) with Q_P the largest code.

    Parameters
    ----------
    v : ndarray of float, shape (M, K)
        Finite values of float32.
    format, granularity, axis, group_size : as `lowbit_cts.reference.affine.quantize`
    float_accumulator : Accumulator

    Returns
    -------
    Enclosure of float32, shape by `granularity`: the magnitudes are added in any order; two of 2, the count and the
    root may be divided by, or multiplied by their reciprocals. Zeros alone give 0, which is no scale.

    Raises
    ------
    ValueError
        A NaN or infinity in v, a zero-size axis, shapes that do not fit the granularity, an unknown format.
    """
    v = np.asarray(v, np.float64)
    if not np.all(np.isfinite(v)):
        raise ValueError("v: must be finite; the mean of a NaN or an infinity is no scale")
    largest = integer_format(format).maximum
    sets = np.ascontiguousarray(np.abs(members(v, granularity, axis, group_size)))
    count = sets.shape[-1]
    sums = inner_products(exactly(sets[..., None, :]), exactly(np.ones_like(sets)[..., None]))
    fits = float_accumulator.exact(sums.magnitude, sums.quantum)
    adding = np.where(fits, 0.0, float_accumulator.error(sums.terms, sums.length, sums.magnitude)) + sums.error
    value = 2 * sums.value / (count * np.sqrt(largest))
    relative = gamma(CHAIN, max(_U32, float_accumulator.unit_roundoff))
    bound = 2 * adding / (count * np.sqrt(largest)) * (1 + relative) + relative * value
    plain = largest == 1 and power_of_two(np.array(float(count)))
    found = within(value, np.where(plain & fits, 0.0, bound + CHAIN * _FLOAT32.smallest * (value > 0)), _FLOAT32)
    return Enclosure(found.exact[..., 0, 0], np.maximum(found.lo, 0.0)[..., 0, 0], found.hi[..., 0, 0])
