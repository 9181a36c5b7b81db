"""What a tree of a sum is called."""

import hashlib
import itertools
from dataclasses import dataclass

from lowbit_cts.conformance.fingerprint.tree import Tree


@dataclass(frozen=True)
class Shape:
    """A part of a tree, wherever it stands.

    Attributes
    ----------
    count : int
        Equal parts that are added; 0 of a leaf.
    step : int
        Distance of their first leaves.
    part : Shape or None
    kind : {"leaf", "chain", "at once", "fused chain"}
        One after the other; all at one node; each with the running sum, `width` parts at one node.
    width : int
        Parts that a node of a fused chain adds to the running sum.
    order : tuple of int
        Of a chain of terms in no regular order, the terms from the first position on.
    """

    kind: str = "leaf"
    count: int = 0
    step: int = 0
    part: "Shape | None" = None
    width: int = 1
    order: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """Leaves."""
        return 1 if self.part is None else self.count * self.part.size

    @property
    def extent(self) -> int:
        """Distance from the first leaf to the end of the last."""
        if self.part is None:
            return 1
        if self.order:
            return max(self.order) + 1
        if self.kind == "fused chain":
            return abs(self.step) * (self.count // self.width)
        return abs(self.step) * (self.count - 1) + self.part.extent


LEAF = Shape()


def describe(tree: Tree, unit: int = 1) -> str:
    """Return the name of an order of summation.

    Parameters
    ----------
    tree : Tree
    unit : int
        Terms that a leaf stands for: one that is probed, and zeros.

    Returns
    -------
    str
        Such as ``sequential``, ``pairwise``, ``4 blocks of 16: sequential inside, sequential over``, ``8 strided
        lanes of 8: sequential inside, pairwise over``, ``chunks of 4 added with the running sum at once``; of another
        tree its depth and a digest.
    """
    shape = _shape(tree, tree.root)
    if shape is not None:
        return _text(shape, unit)
    top = tree.below(tree.root)
    if len(top) == 2:  # all but the last block are alike
        main, rest = sorted(top, key=lambda node: -tree.members[node].size)
        parts = _shape(tree, main), _shape(tree, rest)
        if parts[0] is not None and parts[1] is not None and parts[0].part and parts[0].part.size >= parts[1].size > 1:
            left = parts[1].size * unit
            return f"{_text(parts[0], unit)}; then the {left} left over: {_text(parts[1], unit)}"
    digest = hashlib.sha256(tree.text().encode()).hexdigest()[:8]
    return f"a tree of depth {_depth(tree)}, digest {digest}"


def _depth(tree: Tree) -> int:
    depths = dict.fromkeys(range(tree.n), 0)
    for node in tree.inner:
        depths[node] = 1 + max(depths[child] for child in tree.below(node))
    return depths[tree.root]


def _first(tree: Tree, node: int) -> int:
    return int(tree.members[node][0])


def _shape(tree: Tree, node: int) -> Shape | None:
    """Return the shape of the part of a tree below a node; None where it is irregular."""
    if node < tree.n:
        return LEAF
    return _at_once(tree, node) or _chain(tree, node)


def _at_once(tree: Tree, node: int) -> Shape | None:
    """Return the shape of a node that adds more than two equal parts."""
    children = sorted(tree.below(node), key=lambda child: _first(tree, child))
    if len(children) < 3 or len({tree.members[child].size for child in children}) > 1:
        return None
    shapes = {_shape(tree, child) for child in children}
    step = _progression([_first(tree, child) for child in children])
    if len(shapes) > 1 or None in shapes or step is None:
        return None
    return Shape("at once", len(children), step, shapes.pop())


def _chain(tree: Tree, node: int) -> Shape | None:
    """Return the shape of a running sum to which equal parts are added, one or some at a time."""
    part: Shape | None = None
    width, size, firsts = 0, 0, []
    while True:
        children = sorted(tree.below(node), key=lambda child: (-tree.members[child].size, _first(tree, child)))
        rest, added = children[0], sorted(children[1:], key=lambda child: _first(tree, child))
        shapes = {_shape(tree, child) for child in added}
        if len(shapes) > 1 or None in shapes:
            return None
        if part is None:
            part, width = shapes.pop(), len(added)
            assert part is not None
            size = part.size * width
        elif shapes != {part} or len(added) != width:
            return None
        if width > 1 and _progression([_first(tree, child) for child in added]) is None:
            return None
        firsts.append(_first(tree, added[0]))
        node = rest
        if tree.members[rest].size <= size:
            break
    whole = _shape(tree, node)
    if width == 1:
        if whole != part:
            return None
    elif whole is None or (whole.kind, whole.count, whole.part) != ("at once", width, part):
        return None
    firsts.append(_first(tree, node))
    firsts.reverse()
    step = _progression(firsts)
    if step is None and len(firsts) > 2:  # the first two terms commute
        step = _progression([firsts[1], firsts[0], *firsts[2:]])
    if step is None and part == LEAF and width == 1:
        least = min(firsts)
        return Shape(
            "chain", len(firsts), 0, part, order=tuple(first - least for first in (*sorted(firsts[:2]), *firsts[2:]))
        )
    if step is None:
        return None
    return Shape("chain" if width == 1 else "fused chain", len(firsts) * width, step, part, width)


def _progression(numbers: list[int]) -> int | None:
    """Return the step of an arithmetic progression; None where it is none."""
    steps = {second - first for first, second in itertools.pairwise(numbers)}
    return steps.pop() if len(steps) == 1 else None


def _pairs(shape: Shape) -> tuple[list[int], Shape]:
    """Return the steps of the levels at which equal halves are added, from the root down, and what is below."""
    steps = []
    while shape.kind == "chain" and shape.count == 2 and shape.part is not None:
        steps.append(abs(shape.step))
        shape = shape.part
    return steps, shape


def _text(shape: Shape, unit: int) -> str:
    if shape.part is None:
        return "one term"
    if shape.kind == "fused chain":
        inside = "" if shape.part == LEAF else f" of {_parts(shape.part, unit)}"
        return f"chunks of {shape.width * unit}{inside}, each added at once with the running sum"
    steps, below = _pairs(shape)
    if len(steps) > 1:
        how = "pairwise" if steps[0] > steps[-1] else "pairwise, folded"
        part, count = below, 1 << len(steps)
    else:
        how = {"chain": "sequential", "at once": "at once"}[shape.kind]
        part, count = shape.part, shape.count
    if shape.order:
        return _permuted(shape.order)
    backwards = ", last first" if shape.step < 0 else ""
    if part == LEAF:
        return how + backwards
    kind = "blocks" if part.extent == part.size else "strided lanes"
    return f"{count} {kind} of {part.size * unit}: {_text(part, unit)} inside, {how}{backwards} over"


def _permuted(order: tuple[int, ...]) -> str:
    if all(term == at ^ 1 for at, term in enumerate(order) if at > 1):
        return "sequential, of two neighbours the second first"
    shown = " ".join(map(str, order[:12]))
    return f"sequential, in the order {shown}{' ...' if len(order) > 12 else ''}"


def _parts(shape: Shape, unit: int) -> str:
    return f"sums of {shape.size * unit} ({_text(shape, unit)})"
