"""Ranges of the least divergence between what is kept of a histogram and the same quantized to few levels.

A candidate keeps a window of bins. P is what the window counts, all that lies outside counted in its end bins; Q is the
window alone, its bins joined to levels and each level's count shared among its bins. The candidate with the least
Kullback-Leibler divergence sum(p log(p / q)), p and q normalised, is chosen.

References
----------
.. [1] S. Migacz, "8-bit Inference with TensorRT", GTC 2017, S7310.
.. [2] Model Optimizer, calib/histogram.py, _compute_amax_entropy.
.. [3] onnxruntime.quantization.calibrate.HistogramCollector.get_entropy_threshold.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lowbit_cts.reference.calibration.candidates import hull, least
from lowbit_cts.reference.calibration.histogram import checked_histogram, points_enclosure
from lowbit_cts.reference.calibration.percentile import POINTS
from lowbit_cts.reference.choices import BinPoint, EntropyRule, EqualCandidates, Precision, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, gamma
from lowbit_cts.reference.formats import float_format


@dataclass(frozen=True)
class Rule:
    """How P and Q are made of a window.

    Attributes
    ----------
    first_bin : bool
        The count of the first bin of a histogram of magnitudes is replaced by that of the second.
    whole_bins : bool
        Each level has floor(bins / levels) bins. The last one counts those that are left over, too, but shares its
        count among its own only. Without: bin j of n belongs to level floor(j levels / n).
    whole_counts : bool
        A level's count is shared by integer division, and all of its bins get a share, empty ones too; a level of which
        P has no bin stays 0. Without: the bins that are not empty share it.
    smoothing : float
        What a zero of P or Q becomes; the other numbers are lessened alike, so that the sum stays. 0 for none.
    """

    first_bin: bool = False
    whole_bins: bool = False
    whole_counts: bool = False
    smoothing: float = 0.0


RULES = {
    EntropyRule.MIGACZ: Rule(),
    EntropyRule.NEIGHBOUR: Rule(first_bin=True),
    EntropyRule.SMOOTHED: Rule(whole_bins=True, whole_counts=True, smoothing=1e-4),
}


def windows(bins: int, levels: int, histogram: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the first bins and the ends (exclusive) of the candidates' windows, in the order in which they are tried.

    Of magnitudes the first n bins, n from `levels` to all. Of values the n bins below the middle one, floor(bins / 2),
    that one, and the n above it as far as there are any, n from floor(levels / 2) to floor(bins / 2).

    Raises
    ------
    ValueError
        Fewer than 2 levels, fewer bins than levels.
    """
    if levels < 2:
        raise ValueError(f"levels: must be at least 2; got {levels}")
    if bins < levels:
        raise ValueError(f"counts: must have at least as many bins as there are levels, {levels}; got {bins}")
    if histogram == "magnitudes":
        ends = np.arange(levels, bins + 1)
        return np.zeros_like(ends), ends
    middle = bins // 2
    reach = np.arange(levels // 2, middle + 1)
    return middle - reach, np.minimum(middle + reach + 1, bins)


def _quantized(window: np.ndarray, occupied: np.ndarray, levels: int, rule: Rule) -> np.ndarray:
    """Return Q: the counts of a window, joined to levels and shared among their bins."""
    if not rule.whole_bins:
        level = np.arange(window.size) * levels // window.size
        filled = np.bincount(level, window > 0, minlength=levels)
        share = np.bincount(level, window, minlength=levels) / np.maximum(filled, 1)
        return np.where(window > 0, share[level], 0.0)
    each = window.size // levels
    inside = levels * each
    joined = window[:inside].reshape(levels, each).sum(axis=1)
    joined[-1] += window[inside:].sum()
    taking = occupied[:inside].reshape(levels, each).sum(axis=1)
    share = np.where(taking > 0, np.floor(joined / np.maximum(taking, 1)), 0.0)
    return np.concatenate([np.repeat(share, each), np.zeros(window.size - inside)])


def _smoothed(distribution: np.ndarray, smoothing: float) -> np.ndarray:
    filled = distribution != 0
    if smoothing == 0 or filled.all() or not filled.any():
        return distribution
    taken = smoothing * np.sum(~filled) / np.sum(filled)
    return np.where(filled, distribution - taken, smoothing)


def distributions(
    counts: np.ndarray, levels: int, *, rule: EntropyRule, histogram: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield P and Q of each candidate, not normalised; they are as `windows` orders them."""
    made = RULES[rule]
    for first, end in zip(*windows(counts.size, levels, histogram), strict=True):
        window = counts[first:end]
        p = window.copy()
        p[0] += counts[:first].sum()
        p[-1] += counts[end:].sum()
        q = _quantized(window, p > 0, levels, made)
        yield _smoothed(p, made.smoothing), _smoothed(q, made.smoothing)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Return the Kullback-Leibler divergence of two distributions in nats, each normalised to a sum of 1.

    Parameters
    ----------
    p, q : ndarray of float64, the same shape
        Not negative.

    Returns
    -------
    float, at least 0 but for rounding errors; inf where q is 0 and p is not, or q is 0 everywhere.
    """
    return _terms(p, q)[0]


def _terms(p: np.ndarray, q: np.ndarray) -> tuple[float, float, bool]:
    """Return the divergence, the sum of the magnitudes of its terms, and whether it is 0 in any arithmetic."""
    kept = p > 0
    if np.any(q[kept] <= 0):
        return np.inf, 0.0, False
    if np.array_equal(p, q) and np.all(p == np.floor(p)) and p.sum() <= 2**24:  # sums that every order makes alike
        return 0.0, 0.0, True
    p, q = p[kept] / p.sum(), q[kept] / q.sum()
    terms = p * np.log(p / q)
    return float(terms.sum()), float(np.abs(terms).sum()), False


@takes_choices
def entropy_enclosure(
    counts: np.ndarray,
    low: np.ndarray | float,
    high: np.ndarray | float,
    *,
    levels: int = 128,
    histogram: str = "magnitudes",
    entropy_rule: EntropyRule = EntropyRule.MIGACZ,
    bin_point: BinPoint = BinPoint.LEFT,
    equal_candidates: EqualCandidates = EqualCandidates.FIRST,
    intermediate: Precision = Precision.FLOAT32,
) -> dict[str, Enclosure]:
    """Return the admissible range of a histogram by the least divergence.

    Parameters
    ----------
    counts : ndarray, shape (bins,)
    low, high : float
        The range of the histogram; of magnitudes it begins with 0.
    levels : int
        At least 2, at most the number of bins.
    histogram : {"values", "magnitudes"}
        Of values the window grows from the middle of the histogram to both sides; of magnitudes from 0.
    entropy_rule : EntropyRule
    bin_point : BinPoint
        Which point of the bin after the window is the end (of that before it, mirrored, the lower end).
    equal_candidates : EqualCandidates
    intermediate : Precision
        In which the divergences are computed and added, in any order.

    Returns
    -------
    dict with "low" and "high", float32: from the least to the greatest end that rounding errors may make the best.

    Raises
    ------
    ValueError
        Counts that are no histogram with samples (nor with those of the first bin replaced), fewer bins than levels,
        the first bin replaced in a histogram of values.
    """
    counts, low, high = checked_histogram(counts, low, high, histogram)
    first, end = windows(counts.size, levels, histogram)
    if RULES[entropy_rule].first_bin:
        if histogram == "values":
            raise ValueError(f"entropy_rule: {entropy_rule} is of histograms of magnitudes; got one of values")
        counts = np.concatenate([counts[1:2], counts[1:]])
        if not counts.any():
            raise ValueError("counts: must not be all zero but for the first bin, which is replaced")
    terms = [_terms(p, q) for p, q in distributions(counts, levels, rule=entropy_rule, histogram=histogram)]
    objective, size, alike = (np.array(part) for part in zip(*terms, strict=True))
    unit = float_format(intermediate.value).unit_roundoff
    # Sums of the two, a quotient each, their quotient, its logarithm, a product, and the sum of the terms.
    bound = np.where(np.isinf(objective) | alike, 0.0, gamma(counts.size + 12, unit) * (size + 2))
    best, admissible = least(objective, bound, equal=equal_candidates)
    above = points_enclosure(low, high, counts.size, end + POINTS[bin_point], intermediate=intermediate)
    found = hull(above, best, admissible)
    if histogram == "magnitudes":
        return {"low": Enclosure(-found.exact, -found.hi, -found.lo), "high": found}
    below = points_enclosure(low, high, counts.size, first - POINTS[bin_point], intermediate=intermediate)
    return {"low": hull(below, best, admissible), "high": found}
