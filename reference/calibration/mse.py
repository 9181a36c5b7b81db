"""Ranges of the least squared error that quantizing a histogram makes.

Of a histogram of magnitudes the candidates are points of its bins, each bin stands for its middle, and the least error
wins. Of a histogram of values the bounds close in from both ends by quantiles, in the way of a greedy search that ends
with the first step that does not lessen the error; there a bin is spread evenly over its width.

References
----------
.. [1] Model Optimizer, calib/histogram.py, _compute_amax_mse: the middles of bins from the 128th on.
.. [2] torch.ao.quantization.HistogramObserver._non_linear_param_search, after caffe2's
   NormMinimization::NonlinearQuantizationParamsSearch.
"""

from dataclasses import dataclass

import numpy as np

from lowbit_cts.reference.calibration.candidates import hull, least
from lowbit_cts.reference.calibration.histogram import aligned, checked_histogram, points_enclosure
from lowbit_cts.reference.calibration.percentile import POINTS
from lowbit_cts.reference.choices import BinPoint, EqualCandidates, Precision, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, gamma
from lowbit_cts.reference.formats import FloatFormat, float_format

#: The part of all samples that a step of the greedy search gives up at one end.
STEP = 1e-5


def _checked_bits(bits: int) -> int:
    if not 2 <= bits <= 8:
        raise ValueError(f"bits: must be 2 to 8; got {bits}")
    return bits


def squared_error(counts: np.ndarray, middles: np.ndarray, ends: np.ndarray, *, bits: int) -> np.ndarray:
    """Return for each end of the range the squared error of magnitudes quantized to the codes up to 2**(bits - 1) - 1.

    Parameters
    ----------
    counts, middles : ndarray of float64, shape (bins,)
        How often each magnitude occurs.
    ends : ndarray of float64, shape (n,)
        The magnitudes that the largest code stands for.
    bits : int
        2 to 8.

    Returns
    -------
    ndarray of float64, shape (n,), the sum over all samples.
    """
    largest = 2 ** (_checked_bits(bits) - 1) - 1
    scale = ends[:, None] / largest
    codes = np.minimum(np.rint(middles / scale), largest)
    return np.sum(counts * (codes * scale - middles) ** 2, axis=1)


@takes_choices
def mse_enclosure(
    counts: np.ndarray,
    high: np.ndarray | float,
    *,
    bits: int = 8,
    start: int = 128,
    bin_point: BinPoint = BinPoint.LEFT,
    equal_candidates: EqualCandidates = EqualCandidates.FIRST,
    intermediate: Precision = Precision.FLOAT32,
) -> dict[str, Enclosure]:
    """Return the admissible range of a histogram of magnitudes by the least squared error of symmetric quantization.

    Parameters
    ----------
    counts : ndarray, shape (bins,)
        Of magnitudes from 0 to `high`.
    high : float
    bits : int
        2 to 8; codes reach 2**(bits - 1) - 1.
    start : int
        The first bin that is a candidate, at least 1; the last one always is.
    bin_point : BinPoint
        Which point of its bin a candidate is.
    equal_candidates : EqualCandidates
    intermediate : Precision
        In which errors are computed and added, in any order.

    Returns
    -------
    dict with "low" and "high", float32: from the least to the greatest end that rounding errors may make the best.

    Raises
    ------
    ValueError
        Counts that are no histogram with samples, bits outside 2 to 8, no bin from `start` on.
    """
    counts, low, high = checked_histogram(counts, 0.0, high, "magnitudes")
    largest = 2 ** (_checked_bits(bits) - 1) - 1
    bins = counts.size
    if not 1 <= start < bins:
        raise ValueError(f"start: must be at least 1 and less than the number of bins, {bins}; got {start}")
    width = high / bins
    middles = (np.arange(bins) + 0.5) * width
    position = np.arange(start, bins) + POINTS[bin_point]
    ends = position * width
    error = np.concatenate([squared_error(counts, middles, part, bits=bits) for part in np.array_split(ends, 16)])
    fmt = float_format(intermediate.value)
    # The middle, the end, the quotient, its rounding to a code and the product: each within some roundings of itself.
    # A code that a rounding error changes at a tie makes the same error but for as much.
    reach = np.minimum(middles, ends[:, None]) + middles
    off = gamma(12, fmt.unit_roundoff) * reach
    scale = ends[:, None] / largest
    size = np.abs(np.minimum(np.rint(middles / scale), largest) * scale - middles)
    per_term = counts * (2 * size * off + off**2)
    bound = per_term.sum(axis=1) * 1.001 + gamma(bins + 4, fmt.unit_roundoff) * error
    bound = np.where(error + bound > fmt.maximum, np.inf, bound + (bins + counts.sum()) * fmt.smallest)
    if bits == 2 and aligned(low, high, bins) and (2 * bins) ** 2 * counts.sum() <= 2.0**24:
        bound = np.zeros_like(bound)  # codes 0 and 1: distances are halves of the width, and nothing rounds
    best, admissible = least(error, bound, equal=equal_candidates)
    found = hull(points_enclosure(low, high, bins, position, intermediate=intermediate), best, admissible)
    return {"low": Enclosure(-found.exact, -found.hi, -found.lo), "high": found}


@dataclass(frozen=True)
class Path:
    """What the greedy search tries, one after the other: bins [first, last] that are kept.

    Attributes
    ----------
    first, last : ndarray of int, shape (n,)
        The bins at the two ends; the first entry is that of the whole histogram, which has no error to be compared.
    """

    first: np.ndarray
    last: np.ndarray


@takes_choices
def greedy_path(counts: np.ndarray, *, intermediate: Precision = Precision.FLOAT32) -> Path:
    """Return the pairs of bounds that the greedy search would try if no step were refused.

    Two quantiles, at first 0 and 1, close in by `STEP`. In each round the bin l where the running sum reaches the next
    lower quantile, and the bin r up to which it does not exceed the next upper one, are sought between the present
    bounds. If l is farther from its bound than r from its own, the lower bound moves, and the lower quantile with it;
    otherwise the upper ones do.

    Parameters
    ----------
    counts : ndarray of float64, shape (bins,)
        Their running sums must be exact in float32.
    intermediate : Precision
        In which a running sum is compared with a quantile of the total.
    """
    sums = np.cumsum(counts)
    total = sums[-1]
    dtype = np.float32 if intermediate is Precision.FLOAT32 else np.float64
    # All quantiles that either bound may come to, by repeated additions and subtractions, and the bins they fall on.
    rounds = int(1 / STEP) + 3
    lower, upper = (np.cumsum(np.r_[start, np.full(rounds, side * STEP)]) for start, side in ((0.0, 1), (1.0, -1)))
    reached = np.searchsorted(sums, (lower * total).astype(dtype), side="left")
    beyond = np.subtract(np.searchsorted(sums, (upper * total).astype(dtype), side="right"), 1)
    i = j = first = 0
    last = counts.size - 1
    seen = [(first, last)]
    while first < last and lower[i] < upper[j]:
        left, right = max(first, min(int(reached[i + 1]), last)), min(last, max(int(beyond[j + 1]), first))
        if left - first > last - right:
            i, first = i + 1, left
        elif right < last:
            j, last = j + 1, right
        else:  # neither moves, until the upper quantile falls below the last bin
            j = min(int(np.searchsorted(-beyond, -last, side="right")) - 1, rounds - 1)
            continue
        seen.append((first, last))
    return Path(*(np.array(ends, np.int64) for ends in zip(*seen, strict=True)))


def spread_error(
    counts: np.ndarray, width: float, first: np.ndarray, last: np.ndarray, *, levels: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the squared errors of quantizing a histogram to levels that share the bins first .. last evenly.

    A bin is spread evenly over its width. Each level stands for the middle of its share; what lies outside goes to the
    first or the last level.

    Parameters
    ----------
    counts : ndarray of float64, shape (bins,)
    width : float
        Of a bin.
    first, last : ndarray of int, shape (n,)
    levels : int

    Returns
    -------
    error : ndarray of float64, shape (n,)
        The sum over all samples of the squared error.
    size : ndarray of float64, shape (n,)
        A bound on what each of the terms, cubes of distances that partly cancel, may be, summed.
    """
    bins = np.arange(counts.size, dtype=np.float64)
    share = width * (last - first + 1)[:, None] / levels
    begin = (bins - first[:, None]) * width
    end = begin + width
    at = [np.clip(np.floor(place / share), 0, levels - 1) for place in (begin, end)]
    rest_of_first = begin - (at[0] + 0.5) * share
    part_of_last = end - (at[1] + 0.5) * share
    half = share / 2
    terms = (half**3 - rest_of_first**3, (at[1] - at[0] - 1) * 2 * half**3, part_of_last**3 + half**3)
    density = counts / width / 3
    error = np.sum(density * sum(terms), axis=1)
    size = np.sum(
        density * (np.abs(rest_of_first) ** 3 + np.abs(part_of_last) ** 3 + (2 + 2 * np.abs(at[1] - at[0])) * half**3),
        axis=1,
    )
    # Distances are differences: what they lose is relative to the places, not to them.
    extent = np.maximum(np.abs(begin), np.abs(end)) + (at[1] + 1) * share
    size += np.sum(density * 3 * extent * (rest_of_first**2 + part_of_last**2 + half**2), axis=1)
    return error, size


@takes_choices
def greedy_enclosure(
    counts: np.ndarray,
    low: np.ndarray | float,
    high: np.ndarray | float,
    *,
    bits: int = 8,
    intermediate: Precision = Precision.FLOAT32,
) -> dict[str, Enclosure]:
    """Return the admissible range of a histogram of values by the greedy search.

    Parameters
    ----------
    counts : ndarray, shape (bins,)
        At most 2**24 in all, so that running sums are exact in float32.
    low, high : float
    bits : int
        2 to 8; there are 2**bits levels.
    intermediate : Precision
        In which running sums are compared, and errors computed and added in any order.

    Returns
    -------
    dict with "low" and "high", float32: the left edge of the first bin kept and the right edge of the last. Where two
    steps' errors are within their rounding errors, the search may end before either.

    Raises
    ------
    ValueError
        Counts that are no histogram with samples, or too many, bits outside 2 to 8.
    """
    counts, low, high = checked_histogram(counts, low, high, "values")
    if counts.sum() > 2**24:
        raise ValueError(f"counts: must be at most 2**24 in all; got {counts.sum():.0f}")
    levels, bins = 2 ** _checked_bits(bits), counts.size
    path = greedy_path(counts, intermediate=intermediate)
    fmt = float_format(intermediate.value)
    exact, lowest, highest = _ends(path, counts, (high - low) / bins, levels, fmt)
    found = {}
    for name, places in (("low", path.first), ("high", path.last + 1)):
        admissible = np.unique(places[lowest : highest + 1])
        at = points_enclosure(low, high, bins, np.append(admissible, places[exact]), intermediate=intermediate)
        found[name] = Enclosure(at.exact[-1], at.lo.min(), at.hi.max())
    return found


def _ends(path: Path, counts: np.ndarray, width: float, levels: int, fmt: FloatFormat) -> tuple[int, int, int]:
    """Return the last step that is taken, the earliest and the latest one admissible."""
    # A step that leaves one bin of no width or all that there is has an error, too; the whole has none to compare.
    errors, bounds = [np.inf], [0.0]
    exact = earliest = None
    for at in range(1, path.first.size):
        error, size = spread_error(counts, width, path.first[at : at + 1], path.last[at : at + 1], levels=levels)
        errors.append(float(error[0]))
        bounds.append(float(gamma(counts.size + 16, fmt.unit_roundoff)) * float(size[0]))
        if size[0] / width > fmt.maximum or size[0] < counts.sum() / width * fmt.smallest * 2.0**24:
            bounds[at] = np.inf  # cubes of the distances overflow, or vanish
        if exact is None and errors[at] > errors[at - 1]:
            exact = at - 1
        if earliest is None and errors[at] + bounds[at] > errors[at - 1] - bounds[at - 1]:
            earliest = at - 1
        if errors[at] - bounds[at] > errors[at - 1] + bounds[at - 1]:
            return (at - 1 if exact is None else exact), (at - 1 if earliest is None else earliest), at - 1
    end = path.first.size - 1
    return (end if exact is None else exact), (end if earliest is None else earliest), end
