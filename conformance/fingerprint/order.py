"""The order of summation, by masking: what is added to a huge term before it is cancelled does not show.

With a huge M at position i, -M at j and a unit at every other position, a unit counts in the result unless it was added
to a partial sum that held only one of the two. These are the leaves under the lowest common node of i and j [1]_.

References
----------
.. [1] P. Xie et al., "FPRev: Revealing the Order of Floating-Point Summation", arXiv:2411.00442.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from lowbit_cts.conformance.fingerprint.findings import NotDetermined
from lowbit_cts.conformance.fingerprint.probe import Probe, Span, scattered
from lowbit_cts.conformance.fingerprint.tree import NotATree, Tree, grow

#: So far apart, exponents mask a float64 sum, and every sum of a few thousand units with it.
_FAR = 72
#: So far apart, exponents mask a sum of 24 bits, with a guard and a sticky bit.
_NEAR = 26
#: Pairs that one search may look at, and pairs that a found tree must foretell.
_PAIRS, _CHECKED = 6000, 240
#: Leaves of which all pairs are looked at, where groups of them are added exactly.
_WHOLE = 64


@dataclass(frozen=True)
class Mask:
    """A huge term and a unit, by their exponents.

    Attributes
    ----------
    big, unit : int
        Exponents of the largest power of two that every sum holds, and of a unit that every sum keeps.
    group : int
        How many units at once stay masked when they are added up beforehand.
    positions : ndarray of int
        Where terms may stand.
    """

    big: int
    unit: int
    group: int
    positions: np.ndarray


def masks(probe: Probe, span: Span, bits: int | None = None) -> Mask:
    """Return the mask with the widest range that a product's sums bear.

    Parameters
    ----------
    probe : Probe
    span : Span
    bits : int or None
        Significand bits of the sums, where known: so many units add up exactly.

    Raises
    ------
    NotDetermined
        When not even neighbouring powers of two add up as they should.
    """
    at = np.arange(0, probe.length, span.stride)
    n = at.size
    if n < 3:
        raise NotDetermined(f"a sum of {n} terms has one order")
    pairs = [(0, n - 1), (0, 1), (n - 2, n - 1), (n // 2, 0)]

    def cancels(exponent: int) -> bool:
        m = 2.0**exponent
        return bool(np.all(probe.placed([{int(at[i]): m, int(at[j]): -m} for i, j in pairs]) == 0))

    big = last_of(cancels, span.lowest, span.highest)
    if big is None:
        raise NotDetermined("a term and its negative do not cancel")
    if big < span.highest or span.highest > 100:
        big -= 1
    most = 1 << (min(probe.output.mantissa_bits, (bits or 53) - 1))
    count = min(n, most)

    def kept(exponent: int) -> bool:
        u = 2.0**exponent
        rows = [{int(at[i]): u} for i in {0, 1, n // 2, n - 1}] + [dict.fromkeys(map(int, at[:count]), u)]
        sums = probe.placed(rows)
        return bool(np.all(sums == np.array([u] * (len(rows) - 1) + [u * count])))

    least = max(span.lowest, big - 100, probe.output.minimum_exponent)
    highest = min(big, probe.output.maximum_exponent - 11)
    unit = first_of(kept, least, highest) if least <= highest else None
    if unit is None:
        raise NotDetermined("no power of two comes back from a sum with zeros")
    ratio = big - unit
    group = n if ratio >= _FAR else 1 << max(0, ratio - _NEAR)
    return Mask(big, unit, min(group, most, n), at)


def last_of(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return the largest integer of a range for which a condition holds that fails from some point on."""
    if holds(high):
        return high
    if not holds(low):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def first_of(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """Return the smallest integer of a range for which a condition holds that holds from some point on."""
    found = last_of(lambda x: holds(-x), -high, -low)
    return None if found is None else -found


def order(probe: Probe, mask: Mask) -> Tree:
    """Return the tree of the sum over the mask's positions.

    Raises
    ------
    NotDetermined
        When nothing is masked, the counts are not those of a tree, or the search would take too long.
    """
    n = mask.positions.size
    spent = [0]

    def sizes(pivot: int, others: Iterable[int]) -> dict[int, int]:
        others = list(others)
        spent[0] += len(others)
        if spent[0] > _PAIRS:
            raise NotATree(f"more than {_PAIRS} pairs of terms would have to be looked at")
        found = common_sizes(probe, mask, [(pivot, other) for other in others])
        return dict(zip(others, found.tolist(), strict=True))

    rng = np.random.default_rng(0)
    checked = min(_CHECKED, 4 * probe.rows + 40)
    pairs = [(int(i), int(j)) for i, j in rng.integers(0, n, (checked, 2)) if i != j]
    if np.all(common_sizes(probe, mask, [(0, 1), (0, n - 1), (n // 2, n - 1), *pairs[:3]]) == 2):
        raise NotDetermined(
            f"no term absorbs another that is 2^{mask.big - mask.unit} times smaller, the most the formats can show"
        )
    try:
        tree = grow(n, sizes)
        measured = common_sizes(probe, mask, pairs)
        foretold = np.array([tree.common[i, j] for i, j in pairs])
        if not np.array_equal(foretold, measured):
            raise NotATree("pairs of terms that were not looked at do not fit the tree")
        return tree
    except NotATree as error:
        reason = f"the masked terms are those of no tree: {error}"
    if n > _WHOLE:
        raise NotDetermined(reason)
    try:
        return _exact_groups(probe, mask)
    except NotATree:
        raise NotDetermined(reason) from None


def _exact_groups(probe: Probe, mask: Mask) -> Tree:
    """Return the tree of a sum in which groups of terms are added exactly, perhaps with the running sum.

    In such a group M and -M cancel before anything is masked, so nothing is: the counts say 2 for each pair of it. For
    terms of two groups it is measured apart whether the others of each group are masked; those that are not belong
    under the common node nevertheless.

    Raises
    ------
    NotATree
        When there are no such groups, or the counts contradict each other.
    """
    n = mask.positions.size
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    common = np.zeros((n, n), np.int64)
    common[tuple(np.array(pairs).T)] = common_sizes(probe, mask, pairs)
    common += common.T
    groups: list[list[int]] = []
    for leaf in range(n):
        home = next((group for group in groups if all(common[leaf, other] == 2 for other in group)), None)
        if home is None:
            groups.append([leaf])
        else:
            home.append(leaf)
    if all(len(group) == 1 for group in groups):
        raise NotATree("no terms are added exactly")
    ordered = [(p, q) for p in range(len(groups)) for q in range(len(groups)) if p != q]
    rows = [(groups[p][0], groups[q][0], groups[q][1:]) for p, q in ordered]
    kept = dict(zip(ordered, _survivors(probe, mask, rows), strict=True))
    sizes = common.copy()
    for p, q in ordered:
        sizes[np.ix_(groups[p], groups[q])] += kept[p, q] + kept[q, p]
    for q, group in enumerate(groups):
        with_others = [sizes[group[0], groups[p][0]] for p in range(len(groups)) if p != q and kept[p, q] > 0]
        sizes[np.ix_(group, group)] = min(with_others, default=len(group))
    tree = grow(n, lambda pivot, others: {other: int(sizes[pivot, other]) for other in others})
    np.fill_diagonal(sizes, 1)
    if not np.array_equal(tree.common, sizes):
        raise NotATree("the counts of exact groups contradict each other")
    return tree


def _survivors(probe: Probe, mask: Mask, cases: list[tuple[int, int, list[int]]]) -> list[int]:
    """Return how many units at some leaves are not masked by M and -M at two others."""
    at, big, unit = mask.positions, 2.0**mask.big, 2.0**mask.unit
    rows = [
        {**dict.fromkeys((int(at[leaf]) for leaf in leaves), unit), int(at[i]): big, int(at[j]): -big}
        for i, j, leaves in cases
    ]
    return [int(count) for count in probe.sums(scattered(rows, probe.length)) / unit]


def common_sizes(probe: Probe, mask: Mask, pairs: list[tuple[int, int]]) -> np.ndarray:
    """Return, for pairs of leaves, the number of leaves under their lowest common node.

    Raises
    ------
    NotDetermined
        When a result is no number of units.
    """
    n, at = mask.positions.size, mask.positions
    big, unit = 2.0**mask.big, 2.0**mask.unit
    rows, owners = [], []
    for owner, (i, j) in enumerate(pairs):
        others = [k for k in range(n) if k not in (i, j)]
        for start in range(0, len(others), mask.group):
            units = dict.fromkeys((int(at[k]) for k in others[start : start + mask.group]), unit)
            rows.append({**units, int(at[i]): big, int(at[j]): -big})
            owners.append(owner)
    counts = probe.sums(scattered(rows, probe.length)) / unit
    if not np.all((counts >= 0) & (counts <= n - 2) & (counts == np.rint(counts))):
        odd = counts[~((counts >= 0) & (counts <= n - 2) & (counts == np.rint(counts)))][0]
        raise NotDetermined(f"masked sums of {n - 2} units give {odd:g} units: what is masked comes back in part")
    return n - np.bincount(owners, counts, len(pairs)).astype(np.int64)
