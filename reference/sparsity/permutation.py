"""Permutations of columns under which an N:M pattern keeps more of the scores.

Columns of a weight matrix may change places if the rows of what it is multiplied by do, so that which of them are
neighbours is free. What counts is only which m columns share a group: 8 columns have 8! / (4! 4! 2!) = 35 groupings
into fours. `exhaustive` tries all of a small matrix. `search` improves pairs of groups, the pair that gains the most
first, until none gains or its budget is spent; it finds a local optimum, and nothing worse than the columns as given.

References
----------
.. [1] J. Pool and C. Yu, "Channel Permutations for N:M Sparsity", NeurIPS 2021: stripe groups, by decreasing gain.
.. [2] NVIDIA/apex, `apex/contrib/sparsity/permutation_search_kernels/exhaustive_search.py`, which beside this perturbs
   permutations that it cannot improve, at random.
"""

from dataclasses import dataclass
from functools import cache
from itertools import combinations
from math import factorial, fsum

import numpy as np

from lowbit_cts.reference.sparsity.patterns import TWO_OF_FOUR, Pattern, checked

#: The most groupings that are tried: 5,775 of 12 columns in fours, 6,435 of 16 in eights.
MOST_GROUPINGS = 10_000


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes
    ----------
    permutation : ndarray of int64, shape (K,)
        Column `permutation[j]` comes to place j. Ascending within a group, groups by their first columns; so the same
        grouping has one permutation, and the columns as given are the identity.
    kept : float
        The sum of the scores that the pattern keeps, rounded once.
    before : float
        The same of the columns as given; `kept` is never less.
    tried : int
        Groupings of all columns, or pairs of groups.
    settled : bool
        Whether all groupings were tried, or no pair of groups gains any more; False where the budget ended the search.
    """

    permutation: np.ndarray
    kept: float
    before: float
    tried: int
    settled: bool


def grouping_count(columns: int, m: int) -> int:
    """Return in how many ways columns fall into groups of m: columns! / (m!^g g!), g = columns / m.

    Raises
    ------
    ValueError
        No columns, or a number that m does not divide.
    """
    if m < 1 or columns < 1 or columns % m:
        raise ValueError(f"columns: m = {m} must divide them; got {columns}")
    return factorial(columns) // (factorial(m) ** (columns // m) * factorial(columns // m))


@cache
def groupings(columns: int, m: int) -> np.ndarray:
    """Return all groupings of columns into groups of m.

    Returns
    -------
    ndarray of int64, shape (C, columns), read-only
        Ascending within groups, groups by their first columns, groupings in lexicographic order: the identity first.

    Raises
    ------
    ValueError
        As `grouping_count`; more than `MOST_GROUPINGS`.
    """
    count = grouping_count(columns, m)
    if count > MOST_GROUPINGS:
        raise ValueError(f"columns: {columns} have {count} groupings into {m}; at most {MOST_GROUPINGS} are tried")

    def extended(left: tuple[int, ...]) -> list[tuple[int, ...]]:
        if not left:
            return [()]
        return [
            (left[0], *others, *rest)
            for others in combinations(left[1:], m - 1)
            for rest in extended(tuple(c for c in left[1:] if c not in others))
        ]

    found = np.array(extended(tuple(range(columns))), np.int64)
    found.flags.writeable = False
    return found


def _matrix(scores: np.ndarray, pattern: Pattern) -> np.ndarray:
    scores = checked(scores, "scores")
    if pattern.unit != 1:
        raise ValueError(f"pattern: {pattern} is not admissible; admissible: units of 1")
    if scores.ndim != 2 or scores.shape[1] % pattern.m:
        raise ValueError(
            f"scores: must be a matrix, m = {pattern.m} a divisor of its columns; got shape {scores.shape}"
        )
    if not np.all(np.isfinite(scores)) or np.any(scores < 0):
        raise ValueError("scores: must be finite and not negative, to be added and compared")
    return scores


def _stay(groups: np.ndarray, pattern: Pattern) -> np.ndarray:
    """Return the n highest of the last axis, in no order."""
    if pattern.n == pattern.m:
        return groups
    return np.partition(groups, pattern.m - pattern.n, axis=-1)[..., pattern.m - pattern.n :]


def kept_sum(scores: np.ndarray, pattern: Pattern = TWO_OF_FOUR, permutation: np.ndarray | None = None) -> float:
    """Return the sum of the scores that the pattern keeps of permuted columns, rounded once.

    Parameters
    ----------
    scores : ndarray of float, shape (R, K)
        Finite and not negative: magnitudes, or their squares where the energy counts.
    pattern : Pattern
        Of elements.
    permutation : ndarray of int, shape (K,), or None
        None: the columns as given.

    Raises
    ------
    ValueError
        No element, NaN, infinities, negative scores, columns that m does not divide, what is no permutation.
    """
    scores = _matrix(scores, pattern)
    if permutation is not None:
        permutation = np.asarray(permutation)
        if not np.array_equal(np.sort(permutation), np.arange(scores.shape[1])):
            raise ValueError(f"permutation: must hold each of 0 to {scores.shape[1] - 1} once; got {permutation}")
        scores = scores[:, permutation]
    return fsum(_stay(scores.reshape(len(scores), -1, pattern.m), pattern).ravel())


@cache
def _subsets(columns: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the subsets of m columns, (S, m), and which of them each grouping is made of, (C, columns / m)."""
    subsets = list(combinations(range(columns), m))
    place = {subset: i for i, subset in enumerate(subsets)}
    groups = groupings(columns, m).reshape(-1, columns // m, m)
    return np.array(subsets), np.array([[place[tuple(map(int, g))] for g in grouping] for grouping in groups])


def _gains(scores: np.ndarray, pattern: Pattern) -> np.ndarray:
    """Return by how much each grouping of all columns keeps more than the first, (C,); 0 within rounding errors."""
    subsets, parts = _subsets(scores.shape[1], pattern.m)
    each = np.array([_stay(scores[:, list(subset)], pattern).sum() for subset in subsets])
    totals = each[parts].sum(axis=-1)
    gains = totals - totals[0]
    rounding = 4 * scores.size * 2.0**-53 * totals.max()
    return np.where(np.abs(gains) <= rounding, 0.0, gains)


def _ordered(permutation: np.ndarray, m: int) -> np.ndarray:
    groups = np.sort(permutation.reshape(-1, m), axis=1)
    return groups[np.argsort(groups[:, 0])].ravel()


def _found(scores: np.ndarray, pattern: Pattern, permutation: np.ndarray, tried: int, settled: bool) -> Found:
    kept = kept_sum(scores, pattern, permutation)
    return Found(_ordered(permutation, pattern.m), kept, kept_sum(scores, pattern), tried, settled)


def exhaustive(scores: np.ndarray, pattern: Pattern = TWO_OF_FOUR) -> Found:
    """Return the grouping of columns that keeps the most, of all; of several equal to rounding errors the first.

    Parameters
    ----------
    scores, pattern : as `kept_sum`

    Raises
    ------
    ValueError
        As `kept_sum`; columns that have more than `MOST_GROUPINGS` groupings.
    """
    scores = _matrix(scores, pattern)
    every = groupings(scores.shape[1], pattern.m)
    best = int(np.argmax(_gains(scores, pattern)))
    return _found(scores, pattern, every[best], len(every), True)


def search(scores: np.ndarray, pattern: Pattern = TWO_OF_FOUR, *, budget: int = 100_000) -> Found:
    """Return a grouping of columns that no regrouping of two of its groups improves, or the one the budget ends at.

    In every round each pair of groups that changed is looked at, all groupings of its 2 m columns tried; then pairs are
    regrouped by decreasing gain, of equal ones the first, each group once a round at most.

    Parameters
    ----------
    scores, pattern : as `kept_sum`
    budget : int
        How many pairs of groups are looked at, at most; what they gain is still had.

    Raises
    ------
    ValueError
        As `kept_sum`; a negative budget, an m of which 2 m columns have more than `MOST_GROUPINGS` groupings.
    """
    scores = _matrix(scores, pattern)
    if budget < 0:
        raise ValueError(f"budget: must not be negative; got {budget}")
    m = pattern.m
    groups = np.arange(scores.shape[1]).reshape(-1, m)
    every = groupings(2 * m, m)
    pairs = list(combinations(range(len(groups)), 2))
    gains, choices = np.zeros(len(pairs)), np.zeros(len(pairs), np.int64)
    changed, tried = set(range(len(groups))), 0
    while changed and tried < budget:
        stale = [p for p, pair in enumerate(pairs) if changed.intersection(pair)]
        missed = stale[budget - tried :]
        stale = stale[: budget - tried]
        for p in stale:
            found = _gains(scores[:, groups[list(pairs[p])].ravel()], pattern)
            choices[p] = np.argmax(found)
            gains[p] = found[choices[p]]
        # Of a pair that has changed and was not looked at nothing is known.
        gains[missed] = 0.0
        tried += len(stale)
        changed = set()
        for p in np.argsort(-gains, kind="stable"):
            first, second = pairs[p]
            if gains[p] <= 0 or first in changed or second in changed:
                continue
            columns = groups[[first, second]].ravel()[every[choices[p]]]
            groups[[first, second]] = columns.reshape(2, m)
            changed |= {first, second}
        if missed:
            return _found(scores, pattern, groups.ravel(), tried, False)
    return _found(scores, pattern, groups.ravel(), tried, not changed)
