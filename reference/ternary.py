"""Ternary weights: w ~ scale * {-1, 0, 1}, by a threshold (TWN) or by rounding (BitNet b1.58); BitNet's activations.

Both rules rest on mean|w|, which float32 arithmetic does not determine. A greater mean makes no code greater in
magnitude, so the codes for the least and for the greatest admissible mean bound all others.

References
----------
.. [1] F. Li and B. Liu, "Ternary Weight Networks", 2016, arXiv:1605.04711, eq. (3), (5) and (6): threshold
   0.7 mean|w|, scale the mean of the magnitudes above it.
.. [2] S. Ma et al., "The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits", 2024, arXiv:2402.17764,
   eq. (1)-(3).
.. [3] microsoft/BitNet 16da220a, gpu/convert_checkpoint.py (weights: s = 1 / max(mean|w|, 1e-5), round(w s), where the
   paper has w / (mean|w| + epsilon)) and gpu/model.py (activations: s = 127 / max(max|x|, 1e-5), round(x s)). PyTorch
   computes a number over a tensor as the number times the tensor's rounded reciprocal.
"""

from typing import Any

import numpy as np

from lowbit_cts.reference.choices import Division, Precision, TernaryRule, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, determined, gamma, within
from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.granularity import extremes, spread
from lowbit_cts.reference.means import mean_enclosure, members

_FLOAT32 = float_format("float32")
_U32 = _FLOAT32.unit_roundoff
TWN_THRESHOLD = 0.7  # times mean|w|; the optimum of the normal density is 0.612003 sigma = 0.767032 mean|w|


def _finite(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if not np.all(np.isfinite(x)):
        raise ValueError("x: must be finite; a NaN or an infinity leaves no scale")
    return x


def _float32(values: np.ndarray) -> np.ndarray:
    return round_to_format(values, _FLOAT32)


@takes_choices
def ternarize_enclosure(
    x: np.ndarray,
    *,
    rule: TernaryRule,
    granularity: str = "tensor",
    axis: int | None = None,
    group_size: int | None = None,
    intermediate: Precision = Precision.FLOAT32,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
    epsilon: float = 1e-5,
) -> dict[str, Enclosure]:
    """Return the admissible codes and scales of ternary weights.

    Parameters
    ----------
    x : ndarray of float, shape (M, K)
        The weights: finite values of float32 (or of a format inside it).
    rule : TernaryRule
        TWN: sign(x) where |x| > 0.7 mean|x|, else 0; the scale is the mean of those magnitudes, 0 if there are none.
        BITNET: x / s rounded, ties to even, and clamped to -1 and 1; the scale is s = max(mean|x|, epsilon).
    granularity, axis, group_size : as `lowbit_cts.reference.granularity`
        What shares a scale; BitNet has one for the tensor.
    intermediate : Precision
        The type in which the mean is added up.
    division, division_ulps :
        How the mean, and x / s, is divided; BitNet multiplies by the rounded 1 / s.
    epsilon : float
        Of BITNET: the least scale.

    Returns
    -------
    dict with "codes", of -1, 0 and 1, shape (M, K), and "scale", float32, shape by `granularity`. The mean may be added
    in any order; 0.7 may be the float32 or the float64 number. A code is determined where neither moves it.

    Raises
    ------
    ValueError
        A NaN or infinity in x, a zero-size axis, shapes that do not fit the granularity.
    """
    x = _finite(x)
    mean = mean_enclosure(
        np.abs(members(x, granularity, axis, group_size)),
        intermediate=intermediate, division=division, division_ulps=division_ulps,
    )  # fmt: skip
    place = (granularity, axis, group_size)
    if rule is TernaryRule.TWN:
        return _by_threshold(x, mean, place, intermediate, division, division_ulps)
    least = np.float64(np.float32(epsilon))
    scale = Enclosure(np.maximum(mean.exact, least), np.maximum(mean.lo, least), np.maximum(mean.hi, least))
    relative = 2 * _U32 * division_ulps * (division is Division.APPROXIMATE)

    def codes(s: np.ndarray, factor: float) -> np.ndarray:
        divisor = spread(s, x.shape, *place)
        with np.errstate(over="ignore"):
            if division is Division.RECIPROCAL:
                quotient = _float32(x * _float32(1 / divisor))
            else:  # the declared error is that of the unrounded quotient
                quotient = _float32(x / divisor) if factor == 1 else x / divisor * factor
        return np.clip(np.rint(quotient), -1, 1).astype(np.int64)

    found = codes(scale.exact, 1.0), codes(scale.lo, 1 + relative), codes(scale.hi, 1 - relative)
    return {"codes": _between(*found), "scale": scale}


def _between(exact: np.ndarray, one: np.ndarray, other: np.ndarray) -> Enclosure:
    return Enclosure(exact, np.minimum.reduce([exact, one, other]), np.maximum.reduce([exact, one, other]))


def _by_threshold(
    x: np.ndarray,
    mean: Enclosure,
    place: tuple[str, int | None, int | None],
    intermediate: Precision,
    division: Division,
    division_ulps: float,
) -> dict[str, Enclosure]:
    rounding = gamma(2, _U32)  # of 0.7 to float32, and of the product
    codes, scales, counts = [], [], []
    for end, factor in ((mean.exact, 1.0), (mean.lo, 1 - rounding), (mean.hi, 1 + rounding)):
        chosen = np.abs(x) > spread(TWN_THRESHOLD * end * factor, x.shape, *place)
        codes.append(np.where(chosen, np.sign(x), 0.0).astype(np.int64))
        scale = mean_enclosure(
            np.abs(members(x, *place)), where=members(chosen, *place),
            intermediate=intermediate, division=division, division_ulps=division_ulps,
        )  # fmt: skip
        counts.append(members(chosen, *place).sum(axis=-1))
        scales.append(scale)
    # The mean of the magnitudes above a threshold grows with the threshold; its error bound grows with their number.
    (exact, least, greatest), (_, most, fewest) = scales, counts
    exact_value, lo, hi = (
        np.where(count == 0, 0.0, value)
        for count, value in zip(counts, (exact.exact, least.lo, greatest.hi), strict=True)
    )
    unit = float_format(intermediate.value).unit_roundoff
    with np.errstate(invalid="ignore"):
        beyond = _float32(greatest.exact * (1 + gamma(most + 4 + 2 * division_ulps, unit)))
    hi = np.where((least.lo < least.hi) & (fewest < most), np.maximum(hi, beyond), hi)
    # Above the greatest threshold there may be none, where the mean is uncertain by 40 %: then any scale will do.
    nothing_sure = (fewest == 0) & (most > 0)
    lo, hi = np.where(nothing_sure, 0.0, lo), np.where(nothing_sure, _FLOAT32.maximum, hi)
    return {"codes": _between(codes[0], codes[1], codes[2]), "scale": Enclosure(exact_value, lo, hi)}


def ternarize(x: np.ndarray, *, rule: TernaryRule, **choices: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes, in int64, and the scales in float32, from means rounded once; parameters as the enclosure's."""
    found = ternarize_enclosure(x, rule=rule, **choices)
    return found["codes"].exact, found["scale"].exact.astype(np.float32)


@takes_choices
def bitnet_activations_enclosure(
    x: np.ndarray,
    *,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
    epsilon: float = 1e-5,
) -> dict[str, Enclosure]:
    """Return the admissible int8 codes of activations, and the factor of each token, by the rule of BitNet b1.58.

    The factor s = 127 / max(max|x|, epsilon) multiplies; x ~ codes / s. It is not the reciprocal of the float32 scale
    max|x| / 127, so codes at ties may differ from those of `lowbit_cts.reference.affine.quantize`.

    Parameters
    ----------
    x : ndarray of float, shape (M, K)
        Finite values of float32 (or of a format inside it), a token a row.
    division, division_ulps :
        Whether 127 is divided, or multiplied by the rounded reciprocal; the error of an approximate quotient in units
        of its last place.
    epsilon : float
        The least max|x|.

    Returns
    -------
    dict with "codes", round(x s), ties to even, in [-128, 127], shape (M, K), and "scale", s, shape (M,); both
    determined unless the division is approximate.

    Raises
    ------
    ValueError
        A NaN or infinity in x, rows without elements, x not a matrix.
    """
    x = _finite(x)
    _low, high = extremes(np.abs(x), "axis", 0)
    largest = np.maximum(high, np.float64(np.float32(epsilon)))
    if division is Division.RECIPROCAL:
        scale = determined(_float32(127 * _float32(1 / largest)))
    else:
        slack = 2 * _U32 * division_ulps * (division is Division.APPROXIMATE)
        scale = within(127 / largest, slack * 127 / largest, _FLOAT32)
    ends = [np.clip(np.rint(_float32(x * s[:, None])), -128, 127).astype(np.int64)
            for s in (scale.exact, scale.lo, scale.hi)]  # fmt: skip
    return {"codes": _between(ends[0], ends[1], ends[2]), "scale": scale}


def bitnet_activations(x: np.ndarray, **choices: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes, in int64, and the float32 factors; parameters as `bitnet_activations_enclosure`."""
    found = bitnet_activations_enclosure(x, **choices)
    return found["codes"].exact, found["scale"].exact.astype(np.float32)
