"""Distribution-free statistics of run times, which are skewed, and have outliers on one side only."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr


@lru_cache(maxsize=4096)
def order_rank(count: int, confidence: float = 0.95) -> int:
    """Rank of the order statistic that bounds the median from below.

    The number of samples below the true median is binomial(count, 1/2) whatever the distribution, so the
    k-th smallest and k-th largest samples enclose the median with probability 1 - 2 P(B < k).

    Parameters
    ----------
    count : int
        Number of independent samples.
    confidence : float
        Least probability that the interval covers the median.

    Returns
    -------
    int
        The largest such k, counted from 1; 0 where even the extremes cover too rarely
        (fewer than 6 samples at 95 %).

    References
    ----------
    H. A. David and H. N. Nagaraja, Order Statistics, 3rd ed., section 7.1.
    J.-Y. Le Boudec, Performance Evaluation of Computer and Communication Systems, table A.1.
    """
    below = bdtr(np.arange(count // 2 + 1), count, 0.5)
    return int(np.searchsorted(below, (1 - confidence) / 2, side="right"))


def median_interval(samples: ArrayLike, confidence: float = 0.95) -> tuple[float, float, float]:
    """Median of the samples and the confidence interval of the median, by binomial order statistics.

    Parameters
    ----------
    samples : array_like, shape (n,)
        Independent samples in any unit.
    confidence : float
        Least coverage of the interval.

    Returns
    -------
    low, median, high : float
        In the unit of the samples. The ends are infinite where n is too small for the confidence.

    Raises
    ------
    ValueError
        If there is no sample.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    if ordered.size == 0:
        raise ValueError("the median of no samples is undefined")
    rank = order_rank(ordered.size, confidence)
    median = float(np.median(ordered))
    if rank == 0:
        return -np.inf, median, np.inf
    return float(ordered[rank - 1]), median, float(ordered[-rank])


def relative_half_width(low: float, median: float, high: float) -> float:
    """Half the width of an interval over its median; infinite where the median is zero."""
    return (high - low) / (2 * median) if median else np.inf


def log_ratio_interval(
    numerator: Sequence[float],
    denominator: Sequence[float],
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """Bootstrap interval of the median log ratio of paired values.

    Parameters
    ----------
    numerator, denominator : sequence of float, shape (rounds,)
        Values measured side by side in the same rounds, e.g. the median time of each. A round where
        either is NaN (every sample dropped) is left out.
    confidence : float
        Nominal coverage (percentile bootstrap over rounds).
    resamples : int
        Number of bootstrap resamples.
    seed : int
        Seed of the generator, so that a verdict can be reproduced.

    Returns
    -------
    low, median, high : float
        Natural logarithms of numerator / denominator: 0.01 reads "1 % slower".

    Raises
    ------
    ValueError
        If the values are not paired, or no round has both.
    """
    a, b = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"the rounds are not paired: {a.size} against {b.size}")
    ratios = np.log(a / b)
    ratios = ratios[np.isfinite(ratios)]
    if ratios.size == 0:
        raise ValueError("no round has a value on both sides")
    draws = np.random.default_rng(seed).integers(ratios.size, size=(resamples, ratios.size))
    medians = np.median(ratios[draws], axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(np.median(ratios)), float(high)


def throttled(clocks_mhz: Sequence[float | None], fraction: float = 0.9) -> NDArray[np.bool_]:
    """Mask of the samples that ran well below the typical clock of their own measurement.

    The yardstick is the median clock, not the data sheet's: a power-limited matrix multiplication settles
    far below the nominal clock, and a rule on the nominal clock would drop every sample of it. A device
    that is slow throughout therefore keeps its samples, and its recorded clock says so.

    Parameters
    ----------
    clocks_mhz : sequence of float or None
        Clock of each sample, MHz; None where it could not be read.
    fraction : float
        A sample is throttled below this share of the median clock.

    Returns
    -------
    ndarray of bool, shape (n,)
        Always False where the clock is unknown.
    """
    clocks = np.array([np.nan if c is None else c for c in clocks_mhz], dtype=np.float64)
    known = np.isfinite(clocks)
    return known & (clocks < fraction * np.median(clocks[known])) if known.any() else known
