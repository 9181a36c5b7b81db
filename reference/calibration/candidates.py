"""The choice of the best of several candidates whose objectives carry rounding errors."""

import numpy as np

from lowbit_cts.reference.choices import EqualCandidates, takes_choices
from lowbit_cts.reference.enclosure import Enclosure


@takes_choices
def least(
    objective: np.ndarray, bound: np.ndarray, *, equal: EqualCandidates = EqualCandidates.FIRST
) -> tuple[int, np.ndarray]:
    """Return the candidate with the least objective, and which candidates a kernel may take for it.

    Parameters
    ----------
    objective : ndarray of float64, shape (n,)
        The exact objectives; inf of a candidate that is out of the question.
    bound : ndarray of float64, shape (n,)
        How far a kernel's objectives may be from them; where it is 0, they are exact.
    equal : EqualCandidates
        Which of several with the same objective is chosen.

    Returns
    -------
    best : int
    admissible : ndarray of bool, shape (n,)
        Those for which some objectives within the bounds make them the choice. Where the bounds are 0, one.
    """
    low, high = objective - bound, objective + bound
    if equal is EqualCandidates.LAST:
        best, admissible = least(objective[::-1], bound[::-1])
        return objective.size - 1 - best, admissible[::-1]
    # Whatever comes earlier wins when it is as good, what comes later when it is better.
    earlier = np.concatenate([[np.inf], np.minimum.accumulate(high)[:-1]])
    later = np.concatenate([np.minimum.accumulate(high[::-1])[::-1][1:], [np.inf]])
    first = np.arange(objective.size) == 0
    admissible = ((low < earlier) | first) & (low <= later)
    best = int(np.argmin(objective))
    admissible[best] = True
    return best, admissible


def hull(values: Enclosure, best: int, admissible: np.ndarray) -> Enclosure:
    """Return the enclosure of the value of the best candidate: from the least to the greatest admissible one.

    Parameters
    ----------
    values : Enclosure, shape (n,)
        The value of each candidate.
    best : int
    admissible : ndarray of bool, shape (n,)
    """
    return Enclosure(values.exact[best], values.lo[admissible].min(), values.hi[admissible].max())
