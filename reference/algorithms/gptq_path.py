"""The admissible decisions of GPTQ along the path of a result.

A kernel's codes are held one by one against the weight that each was rounded from, which follows from the codes before
it (see `gptq`). In floating point a kernel errs in the factor U and in each update. What is proven of the worst case
would admit any code from some dozens of columns on; this module takes rounding errors for independent instead [1]_, so
that of n of them no more than `_LAMBDA` sqrt(n) u counts, and carries those of Cholesky factorizations and inverses to
the factors at first order.

References
----------
.. [1] N. J. Higham and T. Mary, "A New Approach to Probabilistic Rounding Error Analysis", SIAM J. Sci. Comput. 41(5),
   2019, theorem 2.4: with lambda = 8 a bound fails with a probability of 2 exp(-32) an operation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lowbit_cts.reference.algorithms.gptq import Grid, Problem, Quantized, group_index, problem, weight_range
from lowbit_cts.reference.choices import Precision, Rounding, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, determined, gamma, within
from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.rounding import round_to_integer

_UNIT = {Precision.FLOAT32: 2.0**-24, Precision.FLOAT64: 2.0**-53}
#: First-order bounds are trusted up to this relative change of the factor.
_FIRST_ORDER = 0.05
_LAMBDA = 8.0
_FLOAT32 = float_format("float32")


def _independent(n: int, unit: float) -> float:
    """Return what n relative errors of a unit roundoff, taken for independent, come to together."""
    return _LAMBDA * float(np.sqrt(n)) * unit


def _spread(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return what independent errors a come to in a @ b."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.sqrt(np.nan_to_num(a**2 @ b**2, nan=np.inf, posinf=np.inf)))


def _factor_room(layer: Problem, unit: float) -> np.ndarray:
    """Return how far each element of v may be off: that of H by Cholesky, inverse, and Cholesky again, or by less.

    An error dH of H changes the factor by v up(u dH u^T), one dX of the inverse by v up(v^T dX v) to first order, up
    being the upper triangle with half the diagonal. An element of either is as uncertain as sums of K products are
    whose factors have the norms sqrt(h_aa) and sqrt(h_bb), or those of the inverse.
    """
    k = len(layer.h)
    if np.count_nonzero(layer.h - np.diag(np.diag(layer.h))) == 0:
        return _independent(4, unit) * np.abs(layer.v)  # square roots and quotients of the diagonal alone
    weight = layer.u**2 @ np.diag(layer.h) + (layer.v**2).T @ np.sum(layer.u**2, axis=0)
    change = np.triu(np.sqrt(2 * np.outer(weight, weight))) * _independent(k + 4, unit)
    if not np.sqrt((change**2).sum(axis=1).max()) <= _FIRST_ORDER:
        return np.full(layer.v.shape, np.inf)
    return _spread(layer.v, change)


@dataclass(frozen=True)
class _Path:
    """The weights that a result's decisions were made on, in the order of processing.

    Attributes
    ----------
    w : ndarray, shape (N, K)
        The column that was rounded, when it was.
    room : ndarray, shape (N, K)
        How far a kernel's may have been off.
    left : callable of a column j
        The weights (N, K - j) that columns j and later had when j - 1 was done, and how far those may have been off.
    """

    w: np.ndarray
    room: np.ndarray
    left: Callable[[int], tuple[np.ndarray, np.ndarray]]


def _path(layer: Problem, dequantized: np.ndarray, unit: float) -> _Path:
    """Return the path of codes that stand for these weights."""
    k = len(layer.h)
    factor, diagonal = _factor_room(layer, unit), np.diag(layer.v)
    before = np.triu(layer.v, 1)
    missed = layer.w - dequantized
    error = missed @ layer.v
    one, sums = _independent(4, unit), _independent(k + 4, unit)

    def updated(j: int, columns: slice) -> np.ndarray:
        """Return by how much the errors before j round in columns; not at all where they change nothing."""
        updates = np.abs(error[:, :j]) @ np.abs(layer.u[:j, columns])
        return np.where(updates > 0, sums * (np.abs(layer.w[:, columns]) + updates), 0.0)

    rounded = np.concatenate([updated(j, slice(j, j + 1)) for j in range(k)] or [layer.w], axis=1)
    local = rounded + one * (np.abs(dequantized) + np.abs(error) / diagonal)
    own = np.where(before == 0, 0.0, np.diag(factor) / diagonal)
    slopes = np.hypot(np.triu(factor, 1), before * own) / diagonal
    carried = np.hypot(_spread(local, before / diagonal), _spread(missed, slopes))
    errors_off = np.hypot(_spread(local, layer.v), _spread(missed, factor))
    u_off = _spread(layer.u, np.triu(_spread(factor, layer.u)))

    def left(j: int) -> tuple[np.ndarray, np.ndarray]:
        rest = slice(j, k)
        weights = layer.w[:, rest] - error[:, :j] @ layer.u[:j, rest]
        off = np.hypot(_spread(errors_off[:, :j], layer.u[:j, rest]), _spread(error[:, :j], u_off[:j, rest]))
        rounding = updated(j, rest)
        return weights, np.where(rounding > 0, rounding + off, 0.0)

    column = layer.w + (missed @ before) / diagonal
    return _Path(column, np.where(rounded > 0, rounded + carried, 0.0), left)


def _rounded(exact: np.ndarray, room: np.ndarray, rounding: Rounding, zero: np.ndarray, grid: Grid) -> Enclosure:
    """Return the codes of quotients that are known but for their room."""
    ends = [round_to_integer(exact + shift, rounding) + zero for shift in (np.zeros_like(room), -room, room)]
    codes = [np.clip(np.nan_to_num(end, nan=0.0, posinf=1e9, neginf=-1e9), 0, grid.largest) for end in ends]
    return Enclosure(*(code.astype(np.int64) for code in codes))


def _quotient_room(quotient: np.ndarray, scale: np.ndarray, unit: float) -> np.ndarray:
    """Return how far a quotient may be off: nothing where the scale is a power of two."""
    return np.where(np.frexp(scale)[0] == 0.5, 0.0, gamma(2, unit) * np.abs(quotient))


def _ranges(
    w: np.ndarray, room: np.ndarray, scale: np.ndarray, grid: Grid, rounding: Rounding, unit: float
) -> tuple[Enclosure, Enclosure]:
    """Return the scales of a group, and by the returned ones the zero points."""
    # The extremes are monotone in each weight.
    ends = [weight_range(w + shift, grid.symmetric) for shift in (np.zeros_like(room), -room, room)]
    low, high = (np.stack([end[side] for end in ends]) for side in (0, 1))
    width = high[0] - low[0]
    unknown = (np.abs(w).max(axis=1, initial=0) == 0) & (room > 0).any(axis=-1)  # of zeros the range is another
    off = np.where(unknown, np.inf, np.ptp(low, axis=0) + np.ptp(high, axis=0))
    exact = width / grid.largest
    settled = np.all([round_to_format(x, _FLOAT32) == x for x in (width, exact)], axis=0) & (
        exact * grid.largest == width
    )
    roundings = np.where(settled, 0.0, gamma(2, unit) * width)
    found = within(exact, (off + roundings) / grid.largest, _FLOAT32)
    if grid.symmetric:
        return found, determined(np.full(len(w), (grid.largest + 1) // 2))
    quotient = -low[0] / scale
    slack = np.ptp(low, axis=0) / scale + _quotient_room(quotient, scale, unit)
    return found, _rounded(quotient, slack, rounding, np.zeros(len(w)), grid)


@takes_choices
def path_enclosures(
    w: np.ndarray,
    hessian: np.ndarray,
    grid: Grid,
    returned: Quantized,
    *,
    damping: float = 0.01,
    rounding: Rounding = Rounding.HALF_EVEN,
    intermediate: Precision = Precision.FLOAT32,
) -> dict[str, Enclosure]:
    """Return what was admissible at each decision, given the decisions that were returned.

    Parameters
    ----------
    w, hessian, grid, damping :
        As `gptq`.
    returned : Quantized
        What a kernel returned.
    rounding :
        Of codes and zero points.
    intermediate : {Precision.FLOAT32, Precision.FLOAT64}
        The precision of the kernel's factor and updates.

    Returns
    -------
    dict of Enclosure: "codes", "scale", "zero_point", "group_index"
        A code may be any that the weight it was rounded from could have, by the returned scales; a scale that of any
        range that the group could have had. Where nothing stands beside the Hessian's diagonal no update rounds, and
        with scales that are powers of two every code is determined.

    Raises
    ------
    ValueError
        As `gptq`.
    """
    unit = _UNIT[intermediate]
    layer = problem(w, hessian, damping=damping, act_order=grid.act_order, among_equals=returned.group_index)
    index = group_index(layer.order, grid)
    scale = np.where(np.isfinite(returned.scale) & (returned.scale > 0), returned.scale, 1.0)
    placed = index[layer.order]
    scales, zeros = scale[:, placed], returned.zero_point[:, placed]
    path = _path(layer, (returned.codes[:, layer.order] - zeros) * scales, unit)
    quotient = path.w / scales
    room = path.room / scales + _quotient_room(quotient, scales, unit)
    back = np.argsort(layer.order)
    ranges = []
    for group, members in enumerate(grid.groups(len(layer.h))):
        if grid.static_groups:
            weights, off = layer.w[:, back][:, members], np.zeros(1)
        else:
            size = members.stop - members.start
            weights, off = (part[:, :size] for part in path.left(members.start))
        ranges.append(_ranges(weights, off, scale[:, group], grid, rounding, unit))
    return {
        "codes": _rounded(quotient, room, rounding, zeros, grid)[:, back],
        "scale": _stacked([scale for scale, _ in ranges], scale.shape),
        "zero_point": _stacked([zero for _, zero in ranges], scale.shape),
        "group_index": determined(index),
    }


def _stacked(groups: list[Enclosure], shape: tuple[int, ...]) -> Enclosure:
    """Return the enclosures of groups, a column each."""

    def joined(name: str) -> np.ndarray:
        parts = [getattr(group, name) for group in groups]
        return np.stack(parts, axis=1) if parts else np.zeros(shape)

    return Enclosure(joined("exact"), joined("lo"), joined("hi"))
