"""The choice of the best of several candidates whose objectives carry rounding errors."""

import numpy as np

from lowbit_cts.reference.choices import EqualCandidates, takes_choices
from lowbit_cts.reference.enclosure import Enclosure


@takes_choices
def least(
    objective: np.ndarray, bound: np.ndarray, *, equal: EqualCandidates = EqualCandidates.FIRST
) -> tuple[np.ndarray, np.ndarray]:
    """Return the candidate with the least objective, and which candidates a kernel may take for it.

    Parameters
    ----------
    objective : ndarray of float64, shape (n, ...)
        The exact objectives; inf of a candidate that is out of the question. Of several searches, on further axes, each
        by itself.
    bound : ndarray of float64, the same shape
        How far a kernel's objectives may be from them; where it is 0, they are exact.
    equal : EqualCandidates
        Which of several with the same objective is chosen.

    Returns
    -------
    best : ndarray of int64, shape (...)
    admissible : ndarray of bool, shape (n, ...)
        Those for which some objectives within the bounds make them the choice. Where the bounds are 0, one.
    """
    low, high = objective - bound, objective + bound
    if equal is EqualCandidates.LAST:
        best, admissible = least(objective[::-1], bound[::-1])
        return len(objective) - 1 - best, admissible[::-1]
    # Whatever comes earlier wins when it is as good, what comes later when it is better.
    none = np.full((1, *objective.shape[1:]), np.inf)
    earlier = np.concatenate([none, np.minimum.accumulate(high, axis=0)[:-1]])
    later = np.concatenate([np.minimum.accumulate(high[::-1], axis=0)[::-1][1:], none])
    admissible = (low < earlier) & (low <= later)
    admissible[0] |= low[0] <= later[0]
    best = np.asarray(np.argmin(objective, axis=0))
    np.put_along_axis(admissible, best[None], True, axis=0)
    return best, admissible


def hull(values: Enclosure, best: int | np.ndarray, admissible: np.ndarray) -> Enclosure:
    """Return the enclosure of the value of the best candidate: from the least to the greatest admissible one.

    Parameters
    ----------
    values : Enclosure, shape (n,)
        The value of each candidate.
    best : int
    admissible : ndarray of bool, shape (n,)
    """
    return Enclosure(values.exact[best], values.lo[admissible].min(), values.hi[admissible].max())
