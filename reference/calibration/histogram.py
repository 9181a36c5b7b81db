"""Histograms of equal bins: counts of samples, and how they grow when a later batch exceeds the range.

Bin i of n holds the numbers from low + i (high - low) / n up to, but without, low + (i + 1) (high - low) / n; the last
one holds `high`, too. What lies outside is not counted.

References
----------
.. [1] onnxruntime.quantization.calibrate.HistogramCollector: bins of the same width are added at both ends.
.. [2] torch.ao.quantization.HistogramObserver: the same number of wider bins; each old bin is cut into 16 parts, and
   each part goes to the new bin that its middle lies in.
"""

import numpy as np

from lowbit_cts.reference.choices import BinSearch, Precision, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, determined, gamma, power_of_two, representable, within
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.means import greatest_step

_FLOAT32 = float_format("float32")
#: What a histogram counts: numbers over any range, or magnitudes from 0.
HISTOGRAMS = ("values", "magnitudes")
#: How a histogram grows: more bins of the same width, or wider bins.
GROWTHS = ("same_width", "same_bins")
#: Into how many parts an old bin is cut when bins get wider.
PARTS = 16


def samples(x: np.ndarray) -> np.ndarray:
    """Return samples in float64; ValueError where one is not finite."""
    x = np.asarray(x, np.float64)
    if not np.all(np.isfinite(x)):
        raise ValueError("x: must be finite; a NaN or an infinity has no place in a range")
    return x


def checked_range(low: np.ndarray | float, high: np.ndarray | float) -> tuple[float, float]:
    """Return the ends of a range as numbers; ValueError unless finite and low < high."""
    ends = float(low), float(high)
    if not np.all(np.isfinite(ends)) or not ends[0] < ends[1] or ends[1] - ends[0] > _FLOAT32.maximum:
        raise ValueError(
            f"low, high: must be finite, low < high, and high - low at most the largest float32; got {ends[0]}, "
            f"{ends[1]}"
        )
    return ends


def checked_histogram(
    counts: np.ndarray, low: np.ndarray | float, high: np.ndarray | float, histogram: str
) -> tuple[np.ndarray, float, float]:
    """Return counts in float64 and the ends of their range; ValueError where they are no histogram with samples.

    Parameters
    ----------
    counts : ndarray, shape (bins,)
    low, high : float
    histogram : {"values", "magnitudes"}
        Of magnitudes, `low` must be 0.
    """
    counts = np.asarray(counts, np.float64)
    low, high = checked_range(low, high)
    if histogram not in HISTOGRAMS:
        raise ValueError(f"histogram: {histogram!r} is unknown; admissible: {', '.join(HISTOGRAMS)}")
    if counts.ndim != 1 or not np.all(np.isfinite(counts)) or np.any(counts < 0) or not counts.sum() > 0:
        raise ValueError("counts: must be a vector of finite counts, none of them negative, and not all zero")
    if histogram == "magnitudes" and low != 0:
        raise ValueError(f"low: must be 0 in a histogram of magnitudes; got {low}")
    return counts, low, high


def aligned(low: float, high: float, bins: int) -> bool:
    """Return whether float32 arithmetic gives the edges and middles of the bins exactly, in any association."""
    step = float(np.min(greatest_step(np.array([low, high]))))
    return bool(power_of_two(np.asarray(float(bins)))) and (abs(low) + abs(high)) * 4 * bins <= step * 2.0**24


@takes_choices
def points_enclosure(
    low: float, high: float, bins: int, position: np.ndarray, *, intermediate: Precision = Precision.FLOAT32
) -> Enclosure:
    """Return the admissible float32 numbers at positions of a histogram, low + position (high - low) / bins.

    Parameters
    ----------
    low, high : float
    bins : int
    position : ndarray of float64
        In bins from `low`, whole for edges; multiples of 1/2.
    intermediate : Precision
        The type in which the edges are computed.

    Notes
    -----
    Five roundings (difference, division, product, sum, middle of two) relative to the largest number; none where bins
    and ends are such that every step is exact.
    """
    exact = low + np.asarray(position, np.float64) * ((high - low) / bins)
    if aligned(low, high, bins):
        return within(exact, np.zeros(exact.shape), _FLOAT32)
    unit = float_format(intermediate.value).unit_roundoff
    slack = gamma(5, unit) * np.maximum(abs(low) + abs(high), np.abs(exact)) + _FLOAT32.smallest
    return within(exact, slack, _FLOAT32)


def _bins_of(
    x: np.ndarray, low: float, high: float, bins: int, search: BinSearch, intermediate: Precision
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each sample inside the range its bin, and the least and the greatest bin that it may be put into."""
    unit = float_format(intermediate.value).unit_roundoff
    if aligned(low, high, bins) and search is BinSearch.EDGES:
        edges = low + np.arange(bins + 1) * ((high - low) / bins)
        at = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, bins - 1)
        return at, at, at
    position = (x - low) * bins / (high - low)
    if search is BinSearch.POSITION:
        scaled = bool(np.all(power_of_two(np.array([float(bins), high - low]))))
        slack = np.where(
            scaled & representable(x - low, float_format(intermediate.value)), 0.0, gamma(6, unit) * np.abs(position)
        )
    else:
        slack = np.full(x.shape, gamma(4, unit) * (abs(low) + abs(high)) * bins / (high - low))
    slack = np.where(slack > 0, slack + 2.0**-48 * np.abs(position), 0.0)
    exact, least, most = (
        np.clip(np.floor(position + side * slack), 0, bins - 1).astype(np.int64) for side in (0, -1, 1)
    )
    return exact, least, most


def _spread(
    weights: np.ndarray, bins: int, exact: np.ndarray, least: np.ndarray, most: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the sums of weights by bin: those of their bins, those that are sure, and those that may be."""
    may = np.zeros(bins + 1)
    np.add.at(may, least, weights)
    np.add.at(may, most + 1, -weights)
    sure = least == most
    return (
        np.bincount(exact, weights, minlength=bins),
        np.bincount(least[sure], weights[sure], minlength=bins),
        np.maximum(np.cumsum(may)[:-1], 0.0),
    )


@takes_choices
def histogram_enclosure(
    x: np.ndarray,
    low: np.ndarray | float,
    high: np.ndarray | float,
    *,
    bins: int,
    bin_search: BinSearch = BinSearch.EDGES,
    intermediate: Precision = Precision.FLOAT32,
) -> Enclosure:
    """Return the admissible counts of samples by bin.

    Parameters
    ----------
    x : ndarray of float, any shape
        Finite samples of float32; those outside the range are not counted.
    low, high : float
        The range, low < high.
    bins : int
        At least 1.
    bin_search : BinSearch
    intermediate : Precision
        In which edges or positions are computed.

    Returns
    -------
    Enclosure of int64, shape (bins,)
        A sample within the rounding errors of an edge may be on either side of it.

    Raises
    ------
    ValueError
        A sample that is not finite, a range without width, fewer than 1 bins.
    """
    x, (low, high) = samples(x).ravel(), checked_range(low, high)
    if bins < 1:
        raise ValueError(f"bins: must be at least 1; got {bins}")
    x = x[(x >= low) & (x <= high)]
    found = _spread(np.ones(x.size), bins, *_bins_of(x, low, high, bins, bin_search, intermediate))
    return Enclosure(*(np.rint(part).astype(np.int64) for part in found))


def histogram(x: np.ndarray, low: float, high: float, *, bins: int) -> np.ndarray:
    """Return the counts of samples by bin, int64, edges in float64. Parameters are those of `histogram_enclosure`."""
    return histogram_enclosure(x, low, high, bins=bins, intermediate=Precision.FLOAT64).exact


def _added(counts: int, low: float, high: float, reach: float, intermediate: Precision) -> tuple[int, int, int]:
    """Return how many bins are added at an end so that it reaches so far, and the least and most admissible number."""
    width = (high - low) / counts
    over = (reach - high) / width
    scaled = aligned(low, high, counts) and bool(representable(np.asarray(reach - high), _FLOAT32))
    slack = 0.0 if scaled else 2 * float(gamma(5, float_format(intermediate.value).unit_roundoff)) * (1 + counts + over)
    if low < 0:  # the end lies beyond, never at, what is to be reached
        exact, least, most = (int(np.floor(over + side * slack)) + 1 for side in (0, -1, 1))
    else:
        exact, least, most = (int(np.ceil(over + side * slack)) for side in (0, -1, 1))
    return tuple(max(0, n) for n in (exact, least, most)) if reach > high else (0, 0, 0)  # type: ignore[return-value]


@takes_choices
def widen_enclosure(
    counts: np.ndarray,
    low: np.ndarray | float,
    high: np.ndarray | float,
    new_low: np.ndarray | float,
    new_high: np.ndarray | float,
    *,
    growth: str,
    histogram: str = "values",
    capacity: int | None = None,
    intermediate: Precision = Precision.FLOAT32,
) -> dict[str, Enclosure]:
    """Return the admissible histogram that covers a wider range, and its range.

    Parameters
    ----------
    counts : ndarray, shape (bins,)
    low, high : float
        Its range: with bins of the same width, symmetric about 0 (values) or from 0 (magnitudes).
    new_low, new_high : float
        What it is to cover, new_low <= low and high <= new_high.
    growth : {"same_width", "same_bins"}
        ``same_width``: with T = high, R = max(-new_low, new_high) > T and the width w, values get
        floor((R - T) / w) + 1 bins at each end, magnitudes ceil((R - T) / w) at the upper one. ``same_bins``: as many
        bins over new_low .. new_high; a sixteenth of each old count goes to the new bin in which each sixteenth of the
        old bin has its middle.
    histogram : {"values", "magnitudes"}
    capacity : int or None
        With bins of the same width: the length of the result, zeros after the bins.
    intermediate : Precision

    Returns
    -------
    dict with "counts" (float32), shape (capacity,) or (bins,), "low" and "high" (float32), the new range. Where
    rounding errors leave open how many bins are added, anything is admissible.

    Raises
    ------
    ValueError
        Counts that are none, ranges without width or that do not contain each other, a capacity that is too small.
    """
    counts, low, high = checked_histogram(counts, low, high, histogram)
    new_low, new_high = checked_range(new_low, new_high)
    if new_low > low or new_high < high:
        raise ValueError(f"new_low, new_high: must contain [{low}, {high}]; got {new_low}, {new_high}")
    if growth == "same_bins":
        return _rebinned(counts, low, high, new_low, new_high, intermediate)
    if growth != "same_width":
        raise ValueError(f"growth: {growth!r} is unknown; admissible: {', '.join(GROWTHS)}")
    if histogram == "values" and low != -high:
        raise ValueError(f"low: must be -high where bins are added at both ends; got {low}, {high}")
    reach = max(-new_low, new_high) if histogram == "values" else new_high
    added, least, most = _added(counts.size, low, high, reach, intermediate)
    sides = 2 if histogram == "values" else 1
    size = counts.size + sides * most
    if capacity is None or size > capacity:
        raise ValueError(f"capacity: must hold {size} bins; got {capacity}")
    grown = np.zeros(capacity)
    start = added if histogram == "values" else 0
    grown[start : start + counts.size] = counts
    end = points_enclosure(
        low, high, counts.size, np.array([-start, counts.size + added], np.float64), intermediate=intermediate
    )
    found = {"counts": determined(grown), "low": end[0], "high": end[1]}
    if least != most:
        return {name: _anything(part.exact) for name, part in found.items()}
    return found


def _anything(exact: np.ndarray) -> Enclosure:
    exact = np.asarray(exact)
    return Enclosure(exact, np.full(exact.shape, -np.inf), np.full(exact.shape, np.inf))


def _rebinned(
    counts: np.ndarray, low: float, high: float, new_low: float, new_high: float, intermediate: Precision
) -> dict[str, Enclosure]:
    if (low, high) == (new_low, new_high):
        found = (counts, counts, counts)
    else:
        unit, bins = float_format(intermediate.value).unit_roundoff, counts.size
        middle = low + (np.arange(bins * PARTS) + 0.5) * ((high - low) / (bins * PARTS))
        position = (middle - new_low) * bins / (new_high - new_low)
        exactly = aligned(low, high, bins * PARTS) and aligned(new_low, new_high, bins)
        room = 0.0 if exactly else float(gamma(8, unit)) * (abs(new_low) + abs(new_high)) * bins / (new_high - new_low)
        places = [np.clip(np.floor(position + side * room), 0, bins - 1).astype(np.int64) for side in (0, -1, 1)]
        found = _spread(np.repeat(counts / PARTS, PARTS), bins, *places)
    total = counts.sum()
    whole = np.all(counts == np.floor(counts * PARTS) / PARTS) and total * PARTS <= 2.0**24
    slack = 0.0 if whole else float(gamma(PARTS * counts.size, _FLOAT32.unit_roundoff))
    lo, hi = found[1] * (1 - slack), found[2] * (1 + slack)
    exact = np.clip(found[0].astype(np.float32).astype(np.float64), lo, hi)
    ends = {name: determined(np.asarray(end)) for name, end in (("low", new_low), ("high", new_high))}
    return {"counts": Enclosure(exact, lo, hi), **ends}


def collect(
    batches: list[np.ndarray], *, bins: int, histogram: str = "values", growth: str = "same_width"
) -> tuple[np.ndarray, float, float]:
    """Return the histogram of several batches, its range that of the first and widened as later ones exceed it.

    Parameters
    ----------
    batches : list of ndarray
        Finite samples, at least one in all.
    bins : int
        Of the first batch.
    histogram, growth :
        As `widen_enclosure`. With bins of the same width the range is [-T, T] or [0, T], T the largest magnitude;
        wider bins cover [min, max].

    Returns
    -------
    counts : ndarray of float64
    low, high : float
        Where all samples are one number c (0, where bins have the same width), the range is [c, c], and all counts are
        in the bin that c has in [c - 1/2, c + 1/2].
    """
    parts = [samples(batch).ravel() for batch in batches if np.size(batch)]
    if not parts:
        raise ValueError("batches: must hold at least one sample")
    counts, low, high = np.zeros(bins), np.inf, -np.inf
    for part in parts:
        seen = np.abs(part) if histogram == "magnitudes" else part
        least, most = float(seen.min()), float(seen.max())
        if growth == "same_width":
            most = max(abs(least), abs(most))
            least = 0.0 if histogram == "magnitudes" else -most
        new_low, new_high = min(low, least), max(high, most)
        counts, low, high = _covering(counts, low, high, new_low, new_high, histogram, growth)
        ends = (low, high) if low < high else (low - 0.5, high + 0.5)
        counts = counts + histogram_enclosure(seen, *ends, bins=counts.size, intermediate=Precision.FLOAT64).exact
    return counts, low, high


def _covering(
    counts: np.ndarray, low: float, high: float, new_low: float, new_high: float, histogram: str, growth: str
) -> tuple[np.ndarray, float, float]:
    """Return a histogram that covers a new range, of one without samples or width, too."""
    if not counts.any() or (low, high) == (new_low, new_high):
        return counts, new_low, new_high
    if low == high:
        at = histogram_enclosure(np.array([low]), new_low, new_high, bins=counts.size, intermediate=Precision.FLOAT64)
        return at.exact * counts.sum(), new_low, new_high
    if growth == "same_width" and new_high > high:
        sides = 2 if histogram == "values" else 1
        added = _added(counts.size, low, high, new_high, Precision.FLOAT64)[0]
        grown = np.pad(counts, (added if sides == 2 else 0, added))
        reach = high + added * (high - low) / counts.size
        return grown, -reach if sides == 2 else 0.0, reach
    wider = widen_enclosure(
        counts, low, high, new_low, new_high, growth="same_bins", intermediate=Precision.FLOAT64
    )  # fmt: skip
    return wider["counts"].exact, new_low, new_high
