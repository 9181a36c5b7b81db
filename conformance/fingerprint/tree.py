"""Trees of sums: leaves are positions of terms, a node adds its children, more than two of them at once."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: Given leaves i and j, the number of leaves under their lowest common node.
Sizes = Callable[[int, Iterable[int]], dict[int, int]]


class NotATree(Exception):
    """The counts are not those of any tree; the message says what contradicts it."""


@dataclass(frozen=True)
class Tree:
    """A tree over the leaves 0 ... n - 1; node n + k has the children `children[k]`, which come before it.

    Attributes
    ----------
    n : int
    children : tuple of tuple of int
        The last node is the root.
    """

    n: int
    children: tuple[tuple[int, ...], ...]

    @property
    def root(self) -> int:
        """The node that is the whole sum."""
        return self.n + len(self.children) - 1

    @property
    def inner(self) -> range:
        """The nodes that are no leaves."""
        return range(self.n, self.root + 1)

    def below(self, node: int) -> tuple[int, ...]:
        """Return the children of a node; none of a leaf."""
        return () if node < self.n else self.children[node - self.n]

    @cached_property
    def members(self) -> dict[int, np.ndarray]:
        """The leaves under each node, in ascending order."""
        found: dict[int, np.ndarray] = {leaf: np.array([leaf]) for leaf in range(self.n)}
        for node in self.inner:
            found[node] = np.sort(np.concatenate([found[child] for child in self.below(node)]))
        return found

    @cached_property
    def parents(self) -> dict[int, int]:
        """The node above each node but the root."""
        return {child: node for node in self.inner for child in self.below(node)}

    @cached_property
    def common(self) -> np.ndarray:
        """The number of leaves under the lowest common node of each pair of leaves, (n, n)."""
        found = np.ones((self.n, self.n), np.int64)
        for node in reversed(self.inner):  # from the root down: lower nodes overwrite
            leaves = self.members[node]
            found[np.ix_(leaves, leaves)] = leaves.size
        np.fill_diagonal(found, 1)
        return found

    def text(self) -> str:
        """Return nested parentheses, a child with smaller leaves first."""
        texts = {leaf: str(leaf) for leaf in range(self.n)}
        for node in self.inner:
            ordered = sorted(self.below(node), key=lambda child: self.members[child][0])
            texts[node] = f"({' '.join(texts.pop(child) for child in ordered)})"
        return texts[self.root]


def grow(n: int, sizes: Sizes) -> Tree:
    """Return the tree that the sizes of lowest common nodes describe.

    From a leaf upwards, the leaves that first join it at one node are those whose common node with it has one size;
    among these, two belong to the same child of that node where their own common node is smaller.

    Parameters
    ----------
    n : int
        Leaves, at least 2.
    sizes : callable of (leaf, other leaves)
        Measures, for each of the others, the leaves under the lowest common node.

    Raises
    ------
    NotATree
        When the sizes contradict each other.

    References
    ----------
    .. [1] P. Xie et al., "FPRev: Revealing the Order of Floating-Point Summation", arXiv:2411.00442, §4 and §5.
    """
    children: list[tuple[int, ...]] = []
    known: dict[tuple[int, int], int] = {}

    def measured(pivot: int, others: list[int]) -> dict[int, int]:
        missing = [leaf for leaf in others if (min(pivot, leaf), max(pivot, leaf)) not in known]
        if missing:
            for leaf, size in sizes(pivot, missing).items():
                known[min(pivot, leaf), max(pivot, leaf)] = size
        return {leaf: known[min(pivot, leaf), max(pivot, leaf)] for leaf in others}

    def subtree(leaves: list[int]) -> int:
        if len(leaves) == 1:
            return leaves[0]
        pivot, found = _pivoted(leaves, measured)
        node, count = pivot, 1
        for size in sorted(set(found.values())):
            group = [leaf for leaf in leaves if found.get(leaf) == size]
            if size != count + len(group):
                raise NotATree(f"{count + len(group)} terms are added where the counts say {size}")
            children.append((node, *(subtree(part) for part in _parts(group, size, measured))))
            node, count = n + len(children) - 1, size
        return node

    subtree(list(range(n)))
    return Tree(n, tuple(children))


def _pivoted(leaves: list[int], measured: Callable[[int, list[int]], dict[int, int]]) -> tuple[int, dict[int, int]]:
    """Return a leaf to begin at and the sizes with the others: the first, or the last where that says more."""
    found = measured(leaves[0], leaves[1:])
    if len(leaves) > 8 and len(set(found.values())) == 1:
        other = measured(leaves[-1], leaves[:-1])
        if len(set(other.values())) > 1:
            return leaves[-1], other
    return leaves[0], found


def _parts(group: list[int], size: int, measured: Callable[[int, list[int]], dict[int, int]]) -> list[list[int]]:
    """Return the leaves that join at a node, those of one child together."""
    parts = []
    while group:
        found = measured(group[0], group[1:])
        parts.append([group[0], *(leaf for leaf in group[1:] if found[leaf] < size)])
        group = [leaf for leaf in group[1:] if found[leaf] >= size]
    return parts
