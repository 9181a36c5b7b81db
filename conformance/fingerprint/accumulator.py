"""The accumulator: precision, range and rounding of the nodes of a sum, rounding of products and of the output.

Two terms meet at a node of the tree, and a third cancels the larger of them afterwards, exactly: what is left is what
the node kept of the smaller one.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from lowbit_cts.conformance.fingerprint.findings import NotDetermined
from lowbit_cts.conformance.fingerprint.order import Mask
from lowbit_cts.conformance.fingerprint.probe import Probe, Unexpressible, scattered
from lowbit_cts.conformance.fingerprint.rounding import EXACT, MODELS, matching
from lowbit_cts.conformance.fingerprint.tree import Tree

#: Exponents between the largest and the smallest term that are tried.
_DEEPEST = 70
#: Small terms, in quarters of half a unit in the last place: below, at and above ties with even and odd neighbours.
_OFFSETS = (1, 2, 3, 4, 5, 6, 7, 12, -1, -2, -3, -4, -5, -6, -7, -12)
#: Nodes that are looked at.
_NODES = 6

#: Significand bits and exponent of the first power of two that overflows.
FORMATS = {(24, 128): "float32", (11, 16): "float16", (8, 128): "bfloat16", (53, 1024): "float64"}


@dataclass(frozen=True)
class Place:
    """Positions of terms about a node.

    Attributes
    ----------
    first, second : int
        Positions of terms that meet at the node, the first in its largest part, the second a term by itself where the
        node has such.
    last : int or None
        A position that meets them afterwards; None at the root.
    third : int or None
        Another that meets them at the node.
    size, ways : int
        Terms below the node, and parts that it adds at once.
    """

    first: int
    second: int
    last: int | None
    third: int | None
    size: int
    ways: int


def places(tree: Tree, mask: Mask) -> list[Place]:
    """Return a place at every node of a tree."""
    at, members, found = mask.positions, tree.members, []

    def position(node: int) -> int:
        return int(at[members[node][0]])

    for node in tree.inner:
        children = sorted(tree.below(node), key=lambda child: (-members[child].size, members[child][0]))
        rest = sorted(children[1:], key=lambda child: (members[child].size, members[child][0]))
        third = position(rest[1]) if len(rest) > 1 else None
        last = None
        if node != tree.root:
            last = next(position(child) for child in tree.below(tree.parents[node]) if child != node)
        elif len(rest) > 2 and len(tree.children) == 1:
            last = position(rest[2])  # of the one node that adds all
        found.append(Place(position(children[0]), position(rest[0]), last, third, members[node].size, len(children)))
    return found


def representative(found: Iterable[Place]) -> list[Place]:
    """Return places at nodes of every number of parts, and of small and large sums."""
    cancelled = [place for place in found if place.last is not None]
    chosen = []
    for ways in sorted({place.ways for place in cancelled}):
        alike = sorted((p for p in cancelled if p.ways == ways), key=lambda p: p.size)
        spread = np.unique(np.linspace(0, len(alike) - 1, _NODES).round().astype(int))
        chosen += [alike[i] for i in spread]
    return chosen


@dataclass(frozen=True)
class Level:
    """What was found at a node: significand bits, None where nothing the formats have was lost."""

    place: Place
    bits: int | None


@dataclass
class Accumulator:
    """Probes of the nodes of a tree.

    Parameters
    ----------
    probe : Probe
    mask : Mask
    tree : Tree
    """

    probe: Probe
    mask: Mask
    tree: Tree

    def __post_init__(self) -> None:
        """Measure the precision of every representative node."""
        self.places = places(self.tree, self.mask)
        self.top = min(self.mask.big, self.probe.output.maximum_exponent) - 1
        self.deepest = min(_DEEPEST, self.top - self.mask.unit)
        self.levels = [Level(place, self._bits(place)) for place in representative(self.places)]

    def _cancelled(self, place: Place, added: list[dict[str, float]]) -> np.ndarray:
        """Return what nodes keep of small terms beside 1.5 * 2**top times a sign, in units of 2**top."""
        assert place.last is not None
        rows = []
        for terms in added:
            big = np.ldexp(1.5 * terms.get("sign", 1.0), self.top)
            row = {place.first: big, place.last: -big}
            if terms.get("swapped"):
                row = {place.second: big, place.last: -big}
            for name in ("first", "second", "third"):
                if name in terms:
                    position = getattr(place, name)
                    row[position] = row.get(position, 0.0) + np.ldexp(terms[name], self.top)
            rows.append(row)
        return np.ldexp(self.probe.placed(rows), -self.top)

    def _bits(self, place: Place) -> int | None:
        small = [2.0**-k for k in range(1, self.deepest + 1)]
        one = self._cancelled(place, [{"second": s} for s in small])
        other = self._cancelled(place, [{"swapped": 1.0, "first": s} for s in small])
        lost = np.flatnonzero((one != small) | (other != small))
        return int(lost[0]) + 1 if lost.size else None

    @property
    def bits(self) -> int | None:
        """The least significand bits of any node; None where nothing was lost."""
        return min((level.bits for level in self.levels if level.bits), default=None)

    def precision(self) -> str:
        """Return the significand bits of the nodes."""
        return self._by_node({level.place: self._said(level.bits) for level in self._known_levels()})

    def _known_levels(self) -> list[Level]:
        if not self.levels:
            raise NotDetermined("every node is the whole sum: nothing can be cancelled after it")
        return self.levels

    def _said(self, bits: int | None) -> str:
        return f"more than {self.deepest}" if bits is None else str(bits)

    @staticmethod
    def _by_node(values: dict[Place, str]) -> str:
        """Return the one value, or each with the nodes that have it."""
        if len(set(values.values())) == 1:
            return next(iter(values.values()))
        groups: dict[str, set[tuple[int, int]]] = {}
        for place, value in values.items():
            groups.setdefault(value, set()).add((place.ways, place.size))
        return "; ".join(
            f"{value} where {'/'.join(f'{ways} parts make {size}' for ways, size in sorted(nodes))}"
            for value, nodes in groups.items()
        )

    def overflow(self) -> int | None:
        """Return the exponent of the first power of two that a partial sum cannot hold; None if none was reached."""
        place = min(self._cancelling(), key=lambda p: p.size)
        last = place.last
        assert last is not None

        def fits(exponent: int) -> bool:
            m = 2.0**exponent
            return bool(self.probe.placed([{place.first: m, place.second: m, last: -m}])[0] == m)

        low, high = self.mask.unit, self._highest()
        if fits(high):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low + 2

    def _highest(self) -> int:
        stride = int(self.mask.positions[1] - self.mask.positions[0])
        span = next(span for span in self.probe.spans if span.stride == stride)
        return min(span.highest, self.probe.output.maximum_exponent)

    def _cancelling(self) -> list[Place]:
        found = [place for place in self.places if place.last is not None]
        if not found:
            raise NotDetermined("every node is the whole sum: nothing can be cancelled after it")
        return found

    def range(self) -> str:
        """Return where partial sums overflow, and what they become."""
        limit = self.overflow()
        if limit is None:
            return f"sums of 2^{self._highest() + 1} stay finite"
        place = min(self._cancelling(), key=lambda p: p.size)
        assert place.last is not None
        m = 2.0 ** (limit - 1)
        y = float(self.probe.placed([{place.first: m, place.second: m, place.last: -m}])[0])
        if not np.isfinite(y) or y == self.probe.output.maximum:  # infinite, whatever the output makes of it
            return f"overflows at 2^{limit}"
        if m / 2 < y < m:
            return f"saturates at 2^{limit}"
        raise NotDetermined(f"2^{limit - 1} twice, less it, gives {y:g}")

    def format(self) -> str:
        """Return the format that has the precision and the range."""
        bits = {level.bits for level in self._known_levels()}
        if len(bits) > 1:
            raise NotDetermined("nodes differ in precision")
        precision, limit = bits.pop(), self.overflow()
        if precision is None:
            raise NotDetermined(f"nothing is lost of terms {self.deepest} bits apart")
        if limit is None:
            names = [name for (b, e), name in FORMATS.items() if b == precision and e > self._highest() + 1]
            if len(names) == 1:
                return f"{names[0]} (range seen up to 2^{self._highest() + 1})"
            raise NotDetermined(f"no format has {precision} bits; the range was not reached")
        name = FORMATS.get((precision, limit))
        return name or f"{precision} bits, below 2^{limit}"

    def rounding(self) -> str:
        """Return how sums are rounded at the nodes."""
        return self._by_node({level.place: self._rounding(level.place, level.bits) for level in self._known_levels()})

    def _rounding(self, place: Place, bits: int | None) -> str:
        if bits is None:
            raise NotDetermined(f"nothing is lost of terms {self.deepest} bits apart")
        unit = 2.0 ** -(bits + 2)
        whole = 3 << (bits + 1)
        least = 2.0**-self.deepest

        def observe(offsets: tuple[int, ...]) -> list[tuple[tuple[int, ...], int]]:
            kept = [c for c in offsets if _lowest_bit(c) * unit >= least]
            added = [{"sign": sign, "second": c * unit} for sign in (1.0, -1.0) for c in kept]
            left = self._cancelled(place, added) / unit
            if not np.all(np.isfinite(left) & (left == np.rint(left))):
                raise NotDetermined("what is left of a small term is no multiple of it")
            bigs = [int(sign) * whole for sign in (1.0, -1.0) for _ in kept]
            return [((big, c), big + int(y)) for big, c, y in zip(bigs, kept * 2, left.tolist(), strict=True)]

        return _named(observe, bits)

    def alignment(self) -> str:
        """Return how many bits of each term a node with several parts looks at."""
        several = [level for level in self._known_levels() if level.place.third is not None]
        if not several:
            return "nothing to align: two parts at a time"
        return self._by_node({level.place: self._alignment(level.place, level.bits) for level in several})

    def _alignment(self, place: Place, bits: int | None) -> str:
        if bits is None:
            raise NotDetermined(f"nothing is lost of terms {self.deepest} bits apart")
        # Below the tie of a rounding to nearest, and below the last bit of a truncation, a tiny third term decides.
        last, half = 2.0 ** (1 - bits), 2.0**-bits
        tiny = [2.0**-k for k in range(bits - 1, self.deepest + 1)]
        above = self._cancelled(place, [{"second": half, "third": t} for t in tiny if t <= half / 2])
        plain = self._cancelled(place, [{"second": half}, {"second": last}])
        below = self._cancelled(place, [{"second": last, "third": -t} for t in tiny if t <= last / 2])
        for start, seen in ((bits + 1, above != plain[0]), (bits, below != plain[1])):
            if seen.size and seen[0]:
                blind = np.flatnonzero(~seen)
                if blind.size == 0:
                    return f"exact, as far as {start + seen.size} bits"
                return f"terms are cut to {start + int(blind[0])} bits below the largest"
        return f"terms are cut to {bits} bits below the largest"

    def compensation(self) -> str:
        """Return whether what single additions lose is carried along."""
        tree, at = self.tree, self.mask.positions
        path, node = [], tree.root
        while node >= tree.n:
            children = sorted(tree.below(node), key=lambda child: -tree.members[child].size)
            if len(children) == 2 and children[1] < tree.n:
                path.append(children[1])
            elif path:
                break
            node = children[0]
        if len(path) < 6 or self.bits is None:
            raise NotDetermined("no six terms are added one after the other")
        last, *small = path
        first = int(tree.members[node][0])
        unit = 2.0 ** (self.top - self.bits - 2)
        if self.bits + 2 > self.deepest:
            raise NotDetermined("the formats do not hold terms so small beside a large one")
        big = np.ldexp(1.5, self.top)
        small = [leaf for leaf in small if leaf != first]
        row = {**dict.fromkeys((int(at[leaf]) for leaf in small), unit), int(at[first]): big, int(at[last]): -big}
        left, whole = float(self.probe.placed([row])[0]), unit * len(small)
        if left == 0 or left == 8 * whole:  # lost one by one, or each rounded up
            return "none"
        if abs(left - whole) <= 8 * unit:
            return "compensated: the small terms are not lost"
        raise NotDetermined(f"of {len(small)} terms too small to be added singly {left / unit:g} are left")

    def output_rounding(self) -> str:
        """Return how the sum is rounded to the output."""
        bits, own = self.probe.output.mantissa_bits + 1, self.bits
        if own is not None and all(level.bits is not None and level.bits <= bits for level in self.levels):
            return "nothing to round: sums have no more bits than the output"
        if own is not None and own < bits + 2:
            raise NotDetermined(f"the accumulator ({own} bits) is hardly wider than the output ({bits} bits)")
        unit_exponent = max(self.mask.unit, self.probe.output.minimum_exponent - 1 + 4)
        unit, whole = 2.0**unit_exponent, 3 << (bits + 1)
        if whole * unit > 2.0 ** (self.top + 1):
            raise NotDetermined("the formats do not hold terms so far apart")
        least = 1 if own is None else max(1, 1 << max(0, bits + 3 - own))
        place = min(self.places, key=lambda p: p.size)

        def observe(offsets: tuple[int, ...]) -> list[tuple[tuple[int, ...], int]]:
            kept = [c for c in offsets if _lowest_bit(c) >= least]
            cases = [(sign * whole, c) for sign in (1, -1) for c in kept]
            y = self.probe.placed([{place.first: big * unit, place.second: c * unit} for big, c in cases]) / unit
            if not np.all(np.isfinite(y) & (y == np.rint(y))):
                raise NotDetermined("the output is no multiple of the terms")
            return [(case, int(value)) for case, value in zip(cases, y.tolist(), strict=True)]

        return _named(observe, bits, EXACT)

    def products(self) -> str:
        """Return whether products are rounded before they are added, and to how many bits.

        The product of 1 + 2**-x and 1 + 2**-y needs a bit of 2**-(x + y) that its neighbour 1 + 2**-x + 2**-y, added
        beforehand with the other sign, has not.
        """
        chosen = [self.places[0], self.places[len(self.places) // 2], self.places[-1]]
        most = self.probe.a.mantissa_bits
        seen: dict[int, bool] = {}
        for total in range(2, 2 * most + 1):
            visible = self._remainder(chosen, total, most)
            if visible is not None:
                seen[total] = visible
        if not seen:
            raise NotDetermined("the formats hold no 1 + 2^-x beside its square rounded")
        lost = [total for total, visible in seen.items() if not visible]
        if lost:
            low = max((total for total, visible in seen.items() if visible and total < lost[0]), default=0) + 1
            if low < lost[0] or any(seen[t] for t in seen if t > lost[0]):
                raise NotDetermined(f"a bit of 2^-{lost[0]} is lost, others are not")
            return f"rounded to {lost[0]} bits before they are added"
        widest = max(seen) + 1
        if self.bits is not None and widest > self.bits:
            return f"fused: exact, rounded with the sum (to {widest} bits)"
        return f"exact (to {widest} bits, the most the operands make)"

    def _remainder(self, chosen: list[Place], total: int, most: int) -> bool | None:
        """Return whether the last bit of a product shows; None where the operands do not hold the factors."""
        up = max(0, min(self.probe.output.minimum_exponent + total + 2, self.probe.a.maximum_exponent - 2))
        for x in range(max(1, total - most), min(most, total - 1) + 1):
            y = total - x
            a_factor, b_factor = np.ldexp(1 + 2.0**-y, up), 1 + 2.0**-x
            nearby = np.ldexp(1 + 2.0**-x + 2.0**-y, up)
            rows_a: list[dict[int, float]] = []
            rows_b: list[dict[int, float]] = []
            for place in chosen:
                for held, multiplied in ((place.first, place.second), (place.second, place.first)):
                    rows_a.append({held: -nearby, multiplied: a_factor})
                    rows_b.append({multiplied: b_factor - 1})
            try:
                y_found = self.probe.inner(
                    scattered(rows_a, self.probe.length), 1 + scattered(rows_b, self.probe.length)
                )
            except Unexpressible:
                continue
            return bool(np.any(y_found == np.ldexp(1.0, up - total)))
        return None


def _between(names: list[str]) -> str:
    """Return what several roundings that fit have in common."""
    exact = [name for name in names if name in EXACT]
    cut = [name for name in names if name not in EXACT]
    if len(exact) == 1 and all(name.endswith(exact[0]) for name in cut):
        return exact[0] + (f" (or terms are cut {cut[0].split()[2]} bits below the last first)" if cut else "")
    return " or ".join(names)


def _lowest_bit(number: int) -> int:
    return number & -number


def _named(
    observe: Callable[[tuple[int, ...]], list[tuple[tuple[int, ...], int]]],
    bits: int,
    among: Iterable[str] = tuple(MODELS),
) -> str:
    """Return the rounding that fits the observations, made with as many small terms as the formats hold."""
    for offsets in (_OFFSETS, tuple(c for c in _OFFSETS if c & (c - 1) == 0 or abs(c) in (3, 6, 12))):
        try:
            seen = observe(offsets)
        except Unexpressible:
            continue
        if len({abs(terms[1]) for terms, _ in seen}) < 3:
            raise NotDetermined("the formats do not hold terms so small beside a large one")
        names = matching(seen, bits, among)
        if not names:
            raise NotDetermined("the sums are those of no rounding known here")
        return _between(names)
    raise NotDetermined("the formats hold no small terms of two bits")
