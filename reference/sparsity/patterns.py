"""N:M sparsity: of every m neighbours the n with the highest scores stay.

A score is the magnitude of a weight, or what the caller gives: Wanda's |W_ij| * ||x_j||, a Taylor term. Exactly n stay,
zeros among them where a group has fewer other numbers. Where scores are equal several masks are right, and libraries
differ, often from call to call: `select` chooses by a declared rule, `admissible` tells which masks are right.

Scores are compared exactly: those of single elements as they are, those of pairs by their unrounded sums, those of the
masks of a block in whole numbers wherever a rounded sum would leave the choice open. -0 scores as 0 does.

References
----------
.. [1] A. Mishra et al., "Accelerating Sparse Deep Neural Networks", arXiv:2104.08378: 2:4, by magnitude.
.. [2] A. Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch", arXiv:2102.04010.
.. [3] I. Hubara et al., "Accelerated Sparse Neural Training: A Provable and Efficient Method to Find N:M Transposable
   Masks", arXiv:2102.08124.
.. [4] PTX ISA, "Sparse matrix storage" of mma.sp: 1:2 of 32-bit types, 2:4 of 16 and 8 bits, 4:8 in pairs of 4 bits.
.. [5] M. Sun et al., "A Simple and Effective Pruning Approach for Large Language Models" (Wanda), arXiv:2306.11695.
.. [6] T. J. Dekker, "A floating-point technique for extending the available precision", Numer. Math. 18 (1971), and
   D. E. Knuth, TAOCP 2, 4.2.2: the error of a rounded sum is a float, whatever the order of the operands.

Notes
-----
What libraries do with a NaN, and with infinities: torch.topk orders NaN above infinity, so that Wanda and SparseGPT,
which remove the topk smallest, keep it: `NanScore.LARGEST`. apex's ASP takes the argmax over the products of |w| with
0/1 patterns, which of a NaN is any pattern, and of an infinity, whose product with 0 is NaN, one that drops it. Such
results this module does not admit.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from itertools import combinations, product

import numpy as np

from lowbit_cts.reference.choices import takes_choices
from lowbit_cts.reference.enclosure import gamma
from lowbit_cts.reference.sums import quantum


class TieRule(StrEnum):
    """Which of several equal scores stay; of blocks, which of several equal masks, read row by row."""

    LOWEST_INDEX = "lowest_index"  # where two masks first differ, the one that keeps it   (a stable descending sort)
    HIGHEST_INDEX = "highest_index"  # where two masks last differ, the one that keeps it   (a stable ascending sort)
    ANY = "any"  # any, not the same from run to run      (torch.topk; apex's patterns, in the order of a Python set)


class NanScore(StrEnum):
    """What a NaN counts for."""

    REFUSED = "refused"  # it has no magnitude: ValueError
    LARGEST = "largest"  # more than infinity, so that it stays as long as there is room      (torch.topk, Wanda)


class Removal(StrEnum):
    """What becomes of an element that does not stay."""

    ASSIGNED = "assigned"  # +0                                                (Wanda, SparseGPT: w[mask] = 0)
    PRODUCT = "product"  # its product with 0: -0 of negative numbers, NaN of infinities and NaN (apex, torch prune)


@dataclass(frozen=True)
class Pattern:
    """Of every m neighbouring units n stay; a unit is one element, or a pair of neighbours that stay together.

    Raises
    ------
    ValueError
        Unless 1 <= n <= m and unit is 1 or 2.
    """

    n: int
    m: int
    unit: int = 1

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not 1 <= self.n <= self.m:
            raise ValueError(f"n: of m = {self.m} neighbours 1 to {self.m} can stay; got {self.n}")
        if self.unit not in (1, 2):
            raise ValueError(f"unit: {self.unit} is not admissible; admissible: 1 (elements), 2 (pairs of neighbours)")

    @property
    def length(self) -> int:
        """Elements of a group."""
        return self.m * self.unit

    @property
    def sparsity(self) -> float:
        """The share of elements that do not stay."""
        return 1 - self.n / self.m


#: What mma.sp multiplies, by the bits of an element.
PATTERNS = {32: Pattern(1, 2), 16: Pattern(2, 4), 8: Pattern(2, 4), 4: Pattern(2, 4, unit=2)}

TWO_OF_FOUR = Pattern(2, 4)

#: The largest side of a block whose masks are enumerated.
LARGEST_BLOCK = 4

#: Numbers in order, as two floats each: by the first, of equal ones by the second.
_Keys = tuple[np.ndarray, np.ndarray]


@takes_choices
def checked(x: np.ndarray, name: str, *, nan: NanScore = NanScore.REFUSED) -> np.ndarray:
    """Return an array in float64.

    Raises
    ------
    ValueError
        No element, or, unless it counts as largest, a NaN.
    """
    x = np.asarray(x, np.float64)
    if x.size == 0:
        raise ValueError(f"{name}: must hold an element; an empty layer has nothing to keep (shape {x.shape})")
    if nan is NanScore.REFUSED and np.any(np.isnan(x)):
        raise ValueError(f"{name}: must not hold NaN, whose magnitude is none; nan='largest' would let them stay")
    return x


def _grouped(x: np.ndarray, pattern: Pattern, axis: int, name: str) -> np.ndarray:
    """Return (..., G, m, unit), the axis last; ValueError unless whole groups fill it."""
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"axis: {axis} is none of {name}, which has {x.ndim} dimensions")
    x = np.moveaxis(x, axis, -1)
    if x.shape[-1] % pattern.length:
        raise ValueError(
            f"{name}: the axis must be a multiple of {pattern.length} (m = {pattern.m} units of {pattern.unit}); "
            f"got a length of {x.shape[-1]}"
        )
    return x.reshape(*x.shape[:-1], x.shape[-1] // pattern.length, pattern.m, pattern.unit)


def _restored(groups: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Return groups, (..., G, m, unit), as an array of the given shape."""
    moved = np.moveaxis(np.empty(shape, bool), axis, -1).shape
    return np.ascontiguousarray(np.moveaxis(groups.reshape(moved), -1, axis))


def _keys(groups: np.ndarray, pattern: Pattern) -> _Keys:
    """Return the scores of units, (..., G, m), exactly: a rounded sum and its error; NaN above infinity."""
    if np.any(groups == -np.inf):
        raise ValueError("scores: must not be -inf; admissible: numbers from the least finite one to +inf")
    high = groups.sum(axis=-1)
    low = np.zeros_like(high)
    if pattern.unit == 2:
        first, second = groups[..., 0], groups[..., 1]
        with np.errstate(invalid="ignore", over="ignore"):
            part = high - first
            low = (first - (high - part)) + (second - part)
        low = np.where(np.isfinite(high), low, 0.0)
    none = np.isnan(high)
    return np.where(none, np.inf, high), np.where(none, 1.0, low)


def _ahead(first: _Keys, second: _Keys, equal: np.ndarray | bool) -> np.ndarray:
    """Return where the first is ahead of the second, as it is where both are the same and `equal`."""
    (a, b), (c, d) = first, second
    return np.asarray((a > c) | ((a == c) & ((b > d) | ((b == d) & equal))))


def _before(m: int, i: int, ties: TieRule) -> np.ndarray:
    """Return which of m units a tie rule prefers to unit i; none where it leaves it open."""
    places = np.arange(m)
    return {
        TieRule.LOWEST_INDEX: places < i,
        TieRule.HIGHEST_INDEX: places > i,
        TieRule.ANY: np.zeros(m, bool),
    }[ties]


def _order(keys: _Keys, ties: TieRule, first: np.ndarray | None = None) -> np.ndarray:
    """Return the units of each group, (..., G, m), from the one to stay first; `first` outranks the scores."""
    high, low = keys
    places = np.arange(high.shape[-1])
    sides = np.broadcast_to(-places if ties is TieRule.HIGHEST_INDEX else places, high.shape)
    rank = np.zeros(high.shape) if first is None else -first
    return np.lexsort((sides, -low, -high, rank), axis=-1)


def _first(order: np.ndarray, n: int) -> np.ndarray:
    mask = np.zeros(order.shape, bool)
    np.put_along_axis(mask, order[..., :n], True, axis=-1)
    return mask


def _spread(units: np.ndarray, pattern: Pattern) -> np.ndarray:
    """Return what holds of units, (..., G, m), of each of their elements."""
    return np.repeat(units[..., None], pattern.unit, axis=-1)


@takes_choices
def select(
    scores: np.ndarray,
    pattern: Pattern = TWO_OF_FOUR,
    *,
    ties: TieRule = TieRule.LOWEST_INDEX,
    nan: NanScore = NanScore.REFUSED,
    axis: int = -1,
) -> np.ndarray:
    """Return the mask of what stays: in every group the n units of the highest scores.

    Parameters
    ----------
    scores : ndarray of float, any shape
        Magnitudes of weights, or other scores, from the least finite number to +inf. A pair scores the sum of its two.
    pattern : Pattern
    ties : TieRule
        With ``ANY`` the mask is one of the admissible ones, that of ``LOWEST_INDEX``.
    nan : NanScore
    axis : int
        Along which neighbours are grouped: -1 along the rows of (N, K) weights, -2 for their transposed product.

    Returns
    -------
    ndarray of bool, the shape of `scores`; n / m of it true.

    Raises
    ------
    ValueError
        No element, an axis that groups do not fill, NaN where it is refused, -inf.
    """
    scores = checked(scores, "scores", nan=nan)
    keys = _keys(_grouped(scores, pattern, axis, "scores"), pattern)
    return _restored(_spread(_first(_order(keys, ties), pattern.n), pattern), scores.shape, axis)


def _ends(scores: np.ndarray, bound: np.ndarray | float, pattern: Pattern, axis: int) -> tuple[_Keys, _Keys]:
    """Return the least and the greatest scores that units may have; outward by a place where a bound rounds."""
    bounds = np.broadcast_to(np.asarray(bound, np.float64), scores.shape)
    if not np.all(bounds >= 0):
        raise ValueError("bound: must not be negative, nor NaN")
    high, low = _keys(_grouped(scores, pattern, axis, "scores"), pattern)
    off = _grouped(bounds, pattern, axis, "bound").sum(axis=-1)
    moved = (off > 0) & np.isfinite(high)
    off = np.where(moved, off, 0.0)
    return (
        (np.where(moved, np.nextafter(high - off, -np.inf), high), low),
        (np.where(moved, np.nextafter(high + off, np.inf), high), low),
    )


@takes_choices
def admissible(
    mask: np.ndarray,
    scores: np.ndarray,
    pattern: Pattern = TWO_OF_FOUR,
    *,
    ties: TieRule = TieRule.ANY,
    nan: NanScore = NanScore.REFUSED,
    bound: np.ndarray | float = 0.0,
    axis: int = -1,
) -> np.ndarray:
    """Return, of every group, whether its mask is right: n units stay, and none that does not is ahead of one of them.

    Parameters
    ----------
    mask : ndarray of bool, the shape of `scores`
        What stays.
    scores, pattern, nan, axis : as `select`
    ties : TieRule
        With ``ANY`` every mask that keeps the highest scores is right, otherwise one.
    bound : float or ndarray of float, at least 0
        How far the scores that a kernel computes may be from these; a mask is right if it is for some such scores.

    Returns
    -------
    ndarray of bool, shape (..., G)
        Of the groups, with `axis` last.

    Raises
    ------
    ValueError
        As `select`; a mask that is not boolean or has another shape, negative bounds.
    """
    scores = checked(scores, "scores", nan=nan)
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != scores.shape:
        raise ValueError(f"mask: has shape {mask.shape} and dtype {mask.dtype}, must be {scores.shape} and bool")
    least, greatest = _ends(scores, bound, pattern, axis)
    elements = _grouped(mask, pattern, axis, "mask")
    kept = elements[..., 0]
    right = (elements == kept[..., None]).all(axis=(-1, -2)) & (kept.sum(axis=-1) == pattern.n)
    for i in range(pattern.m):
        best = greatest[0][..., i, None], greatest[1][..., i, None]
        beaten = (_ahead(least, best, _before(pattern.m, i, ties)) & ~kept).any(axis=-1)
        right &= ~(kept[..., i] & beaten)
    return right


@takes_choices
def mask_bounds(
    scores: np.ndarray,
    pattern: Pattern = TWO_OF_FOUR,
    *,
    ties: TieRule = TieRule.ANY,
    nan: NanScore = NanScore.REFUSED,
    bound: np.ndarray | float = 0.0,
    axis: int = -1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return which elements stay in every admissible mask, and which do in one at least.

    Parameters and errors as `admissible`.

    Returns
    -------
    always, sometimes : ndarray of bool, the shape of `scores`
        Equal where the mask is determined.
    """
    scores = checked(scores, "scores", nan=nan)
    least, greatest = _ends(scores, bound, pattern, axis)
    always, sometimes = np.empty(least[0].shape, bool), np.empty(least[0].shape, bool)
    for i in range(pattern.m):
        low, high = ((end[0][..., i, None], end[1][..., i, None]) for end in (least, greatest))
        before = _before(pattern.m, i, ties)
        surely = _ahead(least, high, before)
        maybe = _ahead(greatest, low, before if ties is not TieRule.ANY else True) & (np.arange(pattern.m) != i)
        always[..., i] = maybe.sum(axis=-1) < pattern.n
        sometimes[..., i] = (surely & (np.arange(pattern.m) != i)).sum(axis=-1) < pattern.n
    spread = (_restored(_spread(found, pattern), scores.shape, axis) for found in (always, sometimes))
    return next(spread), next(spread)


@takes_choices
def without(w: np.ndarray, mask: np.ndarray, *, removal: Removal = Removal.ASSIGNED) -> np.ndarray:
    """Return what a mask leaves of an array: elements that stay bit for bit, and zeros, in its type.

    Parameters
    ----------
    w : ndarray of numbers
    mask : ndarray of bool, the same shape
    removal : Removal

    Raises
    ------
    ValueError
        A mask of another shape or type.
    """
    w, mask = np.asarray(w), np.asarray(mask)
    if mask.dtype != bool or mask.shape != w.shape:
        raise ValueError(f"mask: has shape {mask.shape} and dtype {mask.dtype}, must be {w.shape} and bool")
    if removal is Removal.ASSIGNED:
        return np.where(mask, w, np.zeros((), w.dtype))
    with np.errstate(invalid="ignore"):
        return np.where(mask, w, w * np.zeros((), w.dtype))


@takes_choices
def prune(
    w: np.ndarray,
    pattern: Pattern = TWO_OF_FOUR,
    *,
    scores: np.ndarray | None = None,
    ties: TieRule = TieRule.LOWEST_INDEX,
    nan: NanScore = NanScore.REFUSED,
    removal: Removal = Removal.ASSIGNED,
    axis: int = -1,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask of what stays of weights, and the pruned weights in their type.

    Parameters
    ----------
    w : ndarray of float
    scores : ndarray of float, the same shape, or None
        None: magnitudes.
    pattern, ties, nan, axis : as `select`
    removal : Removal

    Raises
    ------
    ValueError
        As `select`, of the weights, too; scores of another shape.
    """
    found = _scores(w, scores, nan)
    mask = select(found, pattern, ties=ties, nan=nan, axis=axis)
    return mask, without(w, mask, removal=removal)


def _scores(w: np.ndarray, scores: np.ndarray | None, nan: NanScore) -> np.ndarray:
    weights = checked(w, "w", nan=nan)
    if scores is None:
        return np.abs(weights)
    if np.shape(scores) != weights.shape:
        raise ValueError(f"scores: has shape {np.shape(scores)}, must be that of w, {weights.shape}")
    return checked(scores, "scores", nan=nan)


@takes_choices
def admissible_weights(
    pruned: np.ndarray,
    w: np.ndarray,
    pattern: Pattern = TWO_OF_FOUR,
    *,
    scores: np.ndarray | None = None,
    ties: TieRule = TieRule.ANY,
    nan: NanScore = NanScore.REFUSED,
    bound: np.ndarray | float = 0.0,
    axis: int = -1,
) -> np.ndarray:
    """Return, of every group, whether pruned weights are what an admissible mask leaves of the weights.

    A weight that is zero is the same whether it stayed or not; it is taken for what makes the mask admissible.

    Parameters
    ----------
    pruned, w : ndarray of float, the same shape
        Whatever was removed must be a zero, of either sign.
    scores, pattern, ties, nan, axis : as `prune`
    bound : as `admissible`
        Of weights that are zero 0 is taken.

    Returns
    -------
    ndarray of bool, shape (..., G)

    Raises
    ------
    ValueError
        As `prune` and `admissible`; pruned weights of another shape.
    """
    found = _scores(w, scores, nan)
    weights, left = np.asarray(w, np.float64), np.asarray(pruned, np.float64)
    if left.shape != weights.shape:
        raise ValueError(f"pruned: has shape {left.shape}, must be that of w, {weights.shape}")
    same = (left == weights) | (np.isnan(left) & np.isnan(weights))
    shown, gone = (_grouped(x, pattern, axis, "w") for x in (left != 0, (left == 0) & (weights != 0)))
    kept, dropped = shown.any(axis=-1), gone.any(axis=-1)
    keys = _keys(_grouped(found, pattern, axis, "scores"), pattern)
    chosen = _first(_order(keys, ties, np.subtract(kept, dropped, dtype=np.int8)), pattern.n)
    mask = _restored(_spread(chosen, pattern), weights.shape, axis)
    off = np.where(weights == 0, 0.0, bound)
    right = admissible(mask, found, pattern, ties=ties, nan=nan, bound=off, axis=axis)
    whole = _grouped(same | (left == 0), pattern, axis, "w").all(axis=(-1, -2))
    return np.asarray(right & whole & ~((kept & ~chosen) | (dropped & chosen)).any(axis=-1))


def conforms(x: np.ndarray, pattern: Pattern = TWO_OF_FOUR, *, axis: int = -1) -> np.ndarray:
    """Return, of every group, whether at most n of its m units hold a number that is not zero; NaN is none.

    Parameters and errors as `select`.
    """
    x = checked(x, "x", nan=NanScore.LARGEST)
    return np.asarray((_grouped(x, pattern, axis, "x") != 0).any(axis=-1).sum(axis=-1) <= pattern.n)


def kept_energy(w: np.ndarray, mask: np.ndarray) -> float:
    """Return the share of the sum of squares of finite weights that a mask keeps; 1 where all are zero.

    Raises
    ------
    ValueError
        No element, NaN or infinities, a mask of another shape or type.
    """
    w = checked(w, "w")
    if not np.all(np.isfinite(w)):
        raise ValueError("w: must be finite; an infinity has no share of the energy")
    squares = w**2
    total = squares.sum()
    return float(without(squares, mask).sum() / total) if total else 1.0


# Blocks: both along rows and columns ---------------------------------------------------------------------------------


def _check_block(pattern: Pattern) -> None:
    if pattern.unit != 1 or pattern.m > LARGEST_BLOCK:
        raise ValueError(
            f"pattern: {pattern} has no transposable masks here; admissible: units of 1, m at most {LARGEST_BLOCK}"
        )


@cache
def transposable_masks(pattern: Pattern = TWO_OF_FOUR) -> np.ndarray:
    """Return all masks of an m x m block that keep n in each row and in each column; 90 of 2:4.

    Returns
    -------
    ndarray of bool, shape (C, m, m), read-only
        In the order of `TieRule.LOWEST_INDEX`: the mask that is preferred to all others first.

    Raises
    ------
    ValueError
        Pairs, m above 4.
    """
    _check_block(pattern)
    rows = [np.isin(np.arange(pattern.m), kept) for kept in combinations(range(pattern.m), pattern.n)]
    blocks = np.array(list(product(rows, repeat=pattern.m)))
    masks = blocks[(blocks.sum(axis=1) == pattern.n).all(axis=-1)]
    masks.flags.writeable = False
    return masks


def _blocks(x: np.ndarray, pattern: Pattern, name: str) -> np.ndarray:
    """Return (..., R, C, m * m): the blocks of the last two axes; ValueError unless they fill these."""
    _check_block(pattern)
    m = pattern.m
    if x.ndim < 2 or x.shape[-1] % m or x.shape[-2] % m:
        raise ValueError(f"{name}: m = {m} must divide the last two axes; got shape {x.shape}")
    split = x.reshape(*x.shape[:-2], x.shape[-2] // m, m, x.shape[-1] // m, m)
    return np.swapaxes(split, -2, -3).reshape(*x.shape[:-2], x.shape[-2] // m, x.shape[-1] // m, m * m)


def _best(blocks: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return which masks, (C, m * m), keep the most of each block, (B, m * m): (B, C), by exact sums."""
    with np.errstate(over="ignore", invalid="ignore"):
        totals = blocks @ masks.T.astype(np.float64)
        size = np.abs(blocks).sum(axis=-1)
        exactly = (size <= 2.0**53 * quantum(blocks).min(axis=-1)) & np.isfinite(size)
        off = np.where(exactly, 0.0, 4 * float(gamma(masks.shape[1], 2.0**-53)) * size)
        best = ~(totals < totals.max(axis=-1, keepdims=True) - off[:, None])  # all of them beyond float64
    for block in np.flatnonzero(~exactly & (best.sum(axis=-1) > 1)):
        parts = [s.as_integer_ratio() for s in blocks[block].tolist()]
        common = max(below for _, below in parts)  # all are powers of two
        scores = [above * (common // below) for above, below in parts]
        near = np.flatnonzero(best[block])
        sums = [sum(s for s, kept in zip(scores, masks[c], strict=True) if kept) for c in near]
        best[block, near] = [s == max(sums) for s in sums]
    return np.asarray(best)


def _finite(scores: np.ndarray) -> np.ndarray:
    scores = checked(scores, "scores")
    if not np.all(np.isfinite(scores)):
        raise ValueError("scores: must be finite; sums with infinities do not tell masks apart")
    return scores


@takes_choices
def select_transposable(
    scores: np.ndarray, pattern: Pattern = TWO_OF_FOUR, *, ties: TieRule = TieRule.LOWEST_INDEX
) -> np.ndarray:
    """Return the mask that keeps n of m along rows and along columns, and of each m x m block the greatest sum.

    Parameters
    ----------
    scores : ndarray of float, shape (..., N, K)
        Finite; N and K multiples of m.
    pattern : Pattern
        Of elements, m at most 4: all masks of a block are tried.
    ties : TieRule

    Returns
    -------
    ndarray of bool, the shape of `scores`

    Raises
    ------
    ValueError
        No element, NaN or infinities, axes that m does not divide, a pattern of pairs or with m above 4.
    """
    scores = _finite(scores)
    blocks, masks = _blocks(scores, pattern, "scores"), transposable_masks(pattern)
    flat = masks.reshape(len(masks), -1)
    # `lexsort` reads the last key first: from the last element on, or, reversed, from the first.
    order = np.lexsort(flat.T if ties is TieRule.HIGHEST_INDEX else flat.T[::-1])
    rank = np.argsort(order)
    best = _best(blocks.reshape(-1, blocks.shape[-1]), flat)
    chosen = flat[np.argmax(np.where(best, rank, -1), axis=-1)]
    m = pattern.m
    split = chosen.reshape(*blocks.shape[:-1], m, m)
    return np.ascontiguousarray(np.swapaxes(split, -2, -3).reshape(scores.shape))


@takes_choices
def admissible_transposable(
    mask: np.ndarray,
    scores: np.ndarray,
    pattern: Pattern = TWO_OF_FOUR,
    *,
    ties: TieRule = TieRule.ANY,
    bound: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Return, of every block, whether its mask keeps n of m both ways, and no other such mask more.

    Parameters
    ----------
    mask : ndarray of bool, the shape of `scores`
    scores, pattern : as `select_transposable`
    ties : TieRule
        With a bound other than 0 masks count as tied, and any of these is admitted.
    bound : as `admissible`
        With what the sums of a kernel may be off shared among its terms.

    Returns
    -------
    ndarray of bool, shape (..., N / m, K / m)

    Raises
    ------
    ValueError
        As `select_transposable`; a mask of another shape or type, negative bounds.
    """
    scores = _finite(scores)
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.shape != scores.shape:
        raise ValueError(f"mask: has shape {mask.shape} and dtype {mask.dtype}, must be {scores.shape} and bool")
    bounds = np.broadcast_to(np.asarray(bound, np.float64), scores.shape)
    if not np.all(bounds >= 0):
        raise ValueError("bound: must not be negative, nor NaN")
    if ties is not TieRule.ANY and not np.any(bounds):
        chosen = select_transposable(scores, pattern, ties=ties)
        return np.asarray((_blocks(chosen, pattern, "mask") == _blocks(mask, pattern, "mask")).all(axis=-1))
    side = np.where(mask, np.inf, -np.inf)
    moved = np.where(bounds > 0, np.nextafter(scores + np.sign(side) * bounds, side), scores)
    blocks, flat = _blocks(moved, pattern, "scores"), transposable_masks(pattern).reshape(-1, pattern.m**2)
    given = _blocks(mask, pattern, "mask").reshape(-1, flat.shape[1])
    is_given = (given[:, None, :] == flat).all(axis=-1)
    found = (_best(blocks.reshape(given.shape), flat) & is_given).any(axis=-1)
    return np.asarray(found.reshape(blocks.shape[:-1]))
