"""Ranges by percentile: of samples, and of a histogram.

Percentile p of magnitudes gives [-t, t], t the p/100-quantile of |x|. Of values, half of what is cut off is cut off at
each end: the quantiles q = (100 - p) / 200 and 1 - q.

References
----------
.. [1] R. J. Hyndman and Y. Fan, "Sample Quantiles in Statistical Packages", The American Statistician 50 (1996),
   361-365: types 1 (nearest rank) and 7 (linear).
.. [2] onnxruntime.quantization.calibrate.HistogramCollector.compute_percentile, and Model Optimizer's
   calib/histogram.py: the left edge of the first bin up to which at least the part p/100 is counted.
"""

from collections.abc import Callable

import numpy as np

from lowbit_cts.reference.calibration.histogram import (
    HISTOGRAMS,
    checked_histogram,
    points_enclosure,
    samples,
)
from lowbit_cts.reference.choices import BinPoint, Precision, QuantileRule, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, gamma, power_of_two, within
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.means import greatest_step

_FLOAT32 = float_format("float32")
#: Fractions that are multiples of this are exact on the way, and so are their products with lengths below 2**14.
_GRID = 2.0**-10
#: The position of each bin's point, in bins from its left edge.
POINTS = {BinPoint.LEFT: 0.0, BinPoint.CENTRE: 0.5, BinPoint.RIGHT: 1.0}


def fractions(percentile: np.ndarray | float, histogram: str) -> tuple[tuple[float, float], ...]:
    """Return the quantiles that make the range, each with the number of roundings on its way: (low, high), or (t,).

    Parameters
    ----------
    percentile : float
        In (0, 100].
    histogram : {"values", "magnitudes"}

    Raises
    ------
    ValueError
        A percentile outside (0, 100], an unknown histogram.
    """
    percentile = float(percentile)
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile: must lie in (0, 100]; got {percentile}")
    if histogram not in HISTOGRAMS:
        raise ValueError(f"histogram: {histogram!r} is unknown; admissible: {', '.join(HISTOGRAMS)}")
    if histogram == "magnitudes":
        part = percentile / 100
        return ((part, 2 * part),)
    cut = (100 - percentile) / 200
    return (cut, 3 * cut), (1 - cut, 3.0)


def _slack(part: tuple[float, float], unit: float) -> float:
    """Return the error of a quantile's fraction in a precision: 0 where it is a multiple of the grid."""
    fraction, roundings = part
    return 0.0 if fraction % _GRID == 0 else roundings * unit


def _linear(x: np.ndarray, position: float) -> float:
    below = int(np.clip(np.floor(position), 0, x.size - 1))
    above = min(below + 1, x.size - 1)
    return x[below] + (x[above] - x[below]) * (position - below)


def _at(index: float, x: np.ndarray) -> float:
    return x[int(np.clip(index, 0, x.size - 1))]


#: Of sorted numbers and a position, (n - 1) p or n p, the quantile.
_RULES: dict[QuantileRule, Callable[[np.ndarray, float], float]] = {
    QuantileRule.LINEAR: _linear,
    QuantileRule.LOWER: lambda x, position: _at(np.floor(position), x),
    QuantileRule.HIGHER: lambda x, position: _at(np.ceil(position), x),
    QuantileRule.NEAREST: lambda x, position: _at(np.rint(position), x),
    QuantileRule.NEAREST_RANK: lambda x, position: _at(np.ceil(position) - 1, x),
}


def _quantile(x: np.ndarray, part: tuple[float, float], rule: QuantileRule, unit: float) -> Enclosure:
    """Return the admissible quantiles of sorted numbers; all rules are monotone in the position."""
    length = x.size if rule is QuantileRule.NEAREST_RANK else x.size - 1
    position, error = length * part[0], _slack(part, unit)
    slack = 0.0 if error == 0 and length < 2**14 else length * error + 2 * unit * position
    if part[0] == 1:  # the last one, whatever the arithmetic
        slack = 0.0
    pick = _RULES[rule]
    exact, lo, hi = (pick(x, min(max(position + side * slack, 0), length)) for side in (0, -1, 1))
    if rule is not QuantileRule.LINEAR:
        return Enclosure(np.asarray(exact), np.asarray(lo), np.asarray(hi))
    ends = np.array([_at(np.floor(position - slack), x), _at(np.ceil(position + slack), x)])
    size = float(np.abs(ends).sum())
    whole = slack == 0 and (
        position == np.floor(position) or size <= 2.0**24 * _GRID * float(np.min(greatest_step(ends)))
    )  # fmt: skip
    rounding = 0.0 if whole else float(gamma(3, unit)) * size + _FLOAT32.smallest
    at, below, above = (within(np.asarray(v), np.asarray(rounding), _FLOAT32) for v in (exact, lo, hi))
    return Enclosure(at.exact, below.lo, above.hi)


@takes_choices
def percentile_enclosure(
    x: np.ndarray,
    percentile: np.ndarray | float,
    *,
    histogram: str = "values",
    quantile_rule: QuantileRule = QuantileRule.LINEAR,
    intermediate: Precision = Precision.FLOAT32,
) -> dict[str, Enclosure]:
    """Return the admissible range of samples by a percentile of them.

    Parameters
    ----------
    x : ndarray of float, any shape
        Finite samples of float32.
    percentile : float
        Percent of the samples that are inside, in (0, 100].
    histogram : {"values", "magnitudes"}
    quantile_rule : QuantileRule
    intermediate : Precision
        In which fractions, positions and interpolation are computed.

    Returns
    -------
    dict with "low" and "high", float32. Where a position is within its rounding errors of a whole number, either of
    two samples is admissible.

    Raises
    ------
    ValueError
        No samples, one that is not finite, a range beyond float32, a percentile outside (0, 100].
    """
    x = np.sort(samples(x), axis=None)
    parts = fractions(percentile, histogram)
    if x.size == 0:
        raise ValueError("x: must hold at least one sample; an empty set has no percentile")
    if x[-1] - x[0] > _FLOAT32.maximum:
        raise ValueError("x: its range, max - min, must be at most the largest float32")
    unit = float_format(intermediate.value).unit_roundoff
    if histogram == "magnitudes":
        return _symmetric(_quantile(np.sort(np.abs(x)), parts[0], quantile_rule, unit))
    low, high = (_quantile(x, part, quantile_rule, unit) for part in parts)
    return {"low": low, "high": high}


def _symmetric(end: Enclosure) -> dict[str, Enclosure]:
    return {"low": Enclosure(-end.exact, -end.hi, -end.lo), "high": end}


def _bin(counts: np.ndarray, part: tuple[float, float], unit: float) -> tuple[int, int, int]:
    """Return the first bin up to which at least the part is counted, and the first and last one admissible.

    The bins are those of the running sum of counts / total, with rounding errors; the number of bins where even the
    last one may fall short.
    """
    total, sums = counts.sum(), np.cumsum(counts)
    error = _slack(part, unit)
    exactly = error == 0 and power_of_two(total) and total <= 2.0**24
    relative = 0.0 if exactly else float(gamma(counts.size + 2, unit))
    fraction = part[0]
    reached = sums >= fraction * total
    maybe = sums * (1 + relative) >= (fraction - error) * total
    surely = sums * (1 - relative) >= (fraction + error) * total

    def first(condition: np.ndarray) -> int:
        return int(np.argmax(condition)) if condition.any() else counts.size

    if fraction == 0:
        return 0, 0, 0
    return min(first(reached), counts.size - 1), first(maybe), first(surely)


@takes_choices
def percentile_of_histogram_enclosure(
    counts: np.ndarray,
    low: np.ndarray | float,
    high: np.ndarray | float,
    percentile: np.ndarray | float,
    *,
    histogram: str = "values",
    bin_point: BinPoint = BinPoint.LEFT,
    intermediate: Precision = Precision.FLOAT32,
) -> dict[str, Enclosure]:
    """Return the admissible range of a histogram by a percentile of its counts.

    Parameters
    ----------
    counts : ndarray, shape (bins,)
    low, high : float
        The range of the histogram; of magnitudes it begins with 0.
    percentile : float
        In (0, 100].
    histogram : {"values", "magnitudes"}
    bin_point : BinPoint
        Which point of the first bin up to which the part is counted is the end.
    intermediate : Precision
        In which counts are divided by their total and added, and edges are computed.

    Returns
    -------
    dict with "low" and "high", float32. Where the running sum is within its rounding errors of the part, either of two
    bins is admissible; of percentile 100 the end of the histogram is, too, unless the sums are exact.

    Raises
    ------
    ValueError
        Counts that are no histogram with samples, a range without width, a percentile outside (0, 100].
    """
    counts, low, high = checked_histogram(counts, low, high, histogram)
    unit = float_format(intermediate.value).unit_roundoff
    found = []
    for part in fractions(percentile, histogram):
        places = np.minimum(np.array(_bin(counts, part, unit)) + POINTS[bin_point], counts.size)
        at = points_enclosure(low, high, counts.size, places, intermediate=intermediate)
        found.append(Enclosure(at.exact[0], min(at.lo), max(at.hi)))
    if histogram == "magnitudes":
        return _symmetric(found[0])
    return {"low": found[0], "high": found[1]}
