r"""GPTQ: columns rounded one after the other, each error spread over the columns that are still free.

With H the damped Hessian and U the upper factor of its inverse, H^-1 = U^T U, column j is rounded, e_j = (w_j - q_j) /
U_jj, and e_j U_ji is taken from every later column i [1]_. So Q = W - E U, and with V = U^-1, which is H's own upper
factor, H = V V^T:

- E = (W - Q) V, hence tr((W - Q) H (W - Q)^T) = sum e^2, whatever Q is;
- the column that is rounded is w_j + sum_{l<j} (w_l - q_l) V_lj / V_jj: it depends on the codes before it and on
  nothing else. It is how this module knows it for the codes that a kernel returned.

What may be said of a kernel's codes in floating point: `gptq_path`.

References
----------
.. [1] E. Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
   arXiv:2210.17323, algorithm 1; IST-DASLab/gptq, `gptq.py`, `quant.py`.
"""

from dataclasses import dataclass

import numpy as np

from lowbit_cts.reference.choices import Rounding, takes_choices
from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.rounding import round_to_integer

_FLOAT32 = float_format("float32")


@dataclass(frozen=True)
class Grid:
    """What weights are rounded to.

    Attributes
    ----------
    bits : int
        2 to 8.
    symmetric : bool
        The zero point is the middle of the codes, the scale 2 max|w| / (2**bits - 1); otherwise they span the least
        and the greatest weight, zero among them.
    group_size : int or None
        Columns, in the order of processing, that share a scale; None for all.
    static_groups : bool
        Whether scales are those of the weights as they came, in groups of the original order; otherwise of the weights
        as they are when their group begins.
    act_order : bool
        Whether columns are processed by falling diagonal of the Hessian; `gptq` takes the first of equal ones first.
    """

    bits: int
    symmetric: bool = False
    group_size: int | None = None
    static_groups: bool = False
    act_order: bool = False

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits: {self.bits} is not admissible; admissible: 2 to 8")
        if self.group_size is not None and self.group_size < 1:
            raise ValueError(f"group_size: must be at least 1 or None, got {self.group_size}")

    @property
    def largest(self) -> int:
        """The greatest code."""
        return (1 << self.bits) - 1

    def groups(self, columns: int) -> list[slice]:
        """Return the columns of each group."""
        size = self.group_size or max(columns, 1)
        return [slice(start, min(start + size, columns)) for start in range(0, columns, size)]


@dataclass(frozen=True)
class Problem:
    """A layer in the order of processing.

    Attributes
    ----------
    w : ndarray of float64, shape (N, K)
        Weights; those of dead columns are zero.
    h : ndarray of float64, shape (K, K)
        The damped Hessian.
    u, v : ndarray of float64, shape (K, K)
        Upper factors: h^-1 = u^T u, and v = u^-1, h = v v^T.
    order : ndarray of int, shape (K,)
        The original column of each.
    """

    w: np.ndarray
    h: np.ndarray
    u: np.ndarray
    v: np.ndarray
    order: np.ndarray


def problem(
    w: np.ndarray,
    hessian: np.ndarray,
    *,
    damping: float,
    act_order: bool = False,
    among_equals: np.ndarray | None = None,
) -> Problem:
    """Return a layer as GPTQ processes it.

    Parameters
    ----------
    w : ndarray of float, shape (N, K)
        Finite weights.
    hessian : ndarray of float, shape (K, K)
        Symmetric and positive semidefinite, such as 2 / n X X^T of n calibration samples. A column whose diagonal is
        zero is dead: its weights become 0 and its diagonal 1.
    damping : float
        At least 0: this share of the mean of the diagonal is added to it.
    act_order : bool
        Whether columns go by falling diagonal.
    among_equals : ndarray of int, shape (K,), or None
        Of columns whose diagonals are equal the one with the least goes first, and None is the first column: a sort
        need not be stable, and dead columns are all equal.

    Raises
    ------
    ValueError
        A Hessian that is not square, symmetric, finite, of another size than the rows of w, or that is singular even
        with the damping; NaN or infinite weights; a negative damping.
    """
    w, h = np.array(w, np.float64), np.array(hessian, np.float64)
    if w.ndim != 2:
        raise ValueError(f"w: must be a matrix; got shape {w.shape}")
    if h.shape != (w.shape[1], w.shape[1]):
        raise ValueError(f"hessian: has shape {h.shape}, must be square, of the {w.shape[1]} columns of w")
    if not np.all(np.isfinite(w)):
        raise ValueError("w: must be finite")
    if not np.all(np.isfinite(h)):
        raise ValueError("hessian: must be finite; a NaN or an infinity in the calibration activations makes it not")
    if not np.array_equal(h, h.T):
        raise ValueError("hessian: must be symmetric")
    if not damping >= 0:
        raise ValueError(f"damping: must be at least 0, got {damping}")
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    order = np.arange(len(h))
    if act_order:
        order = np.lexsort((order if among_equals is None else among_equals, -np.diag(h)))
    h = h[order][:, order]
    h += np.diag(np.full(len(h), damping * np.mean(np.diag(h)) if len(h) else 0.0))
    v = upper_factor(h)
    return Problem(w[:, order], h, np.linalg.inv(v) if v.size else v, v, order)


def upper_factor(h: np.ndarray) -> np.ndarray:
    """Return the upper triangular v with h = v v^T; ValueError where h is not positive definite."""
    try:
        return np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    except np.linalg.LinAlgError:
        raise ValueError("hessian: must be positive definite; a larger damping makes it so") from None


def weight_range(w: np.ndarray, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return the range of each row, zero included; of a row of zeros -1 to 1."""
    low, high = w.min(axis=1, initial=0.0), w.max(axis=1, initial=0.0)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    nothing = (low == 0) & (high == 0)
    return np.where(nothing, -1.0, low), np.where(nothing, 1.0, high)


def _scale(low: np.ndarray, high: np.ndarray, grid: Grid) -> np.ndarray:
    return np.asarray(round_to_format((high - low) / grid.largest, _FLOAT32))


def _zero_point(low: np.ndarray, scale: np.ndarray, grid: Grid, rounding: Rounding) -> np.ndarray:
    if grid.symmetric:
        return np.full(low.shape, (grid.largest + 1) // 2)
    return round_to_integer(-low / scale, rounding).astype(np.int64)


def _code(w: np.ndarray, scale: np.ndarray, zero: np.ndarray, grid: Grid, rounding: Rounding) -> np.ndarray:
    return np.clip(round_to_integer(w / scale, rounding) + zero, 0, grid.largest).astype(np.int64)


@dataclass(frozen=True)
class Quantized:
    """Codes in the original order of columns.

    Attributes
    ----------
    codes : ndarray of int64, shape (N, K)
    scale : ndarray of float64, shape (N, G)
        Values of float32.
    zero_point : ndarray of int64, shape (N, G)
    group_index : ndarray of int64, shape (K,)
        The group of each column.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    group_index: np.ndarray

    def dequantized(self) -> np.ndarray:
        """Return the weights, (N, K), in float64."""
        taken = (self.codes - self.zero_point[:, self.group_index]) * self.scale[:, self.group_index]
        return np.asarray(taken, np.float64)


def group_index(order: np.ndarray, grid: Grid) -> np.ndarray:
    """Return the group of each original column."""
    size = grid.group_size or max(len(order), 1)
    places = np.arange(len(order)) // size
    if grid.static_groups:
        return places
    found = np.empty(len(order), np.int64)
    found[order] = places
    return found


@takes_choices
def gptq(
    w: np.ndarray,
    hessian: np.ndarray,
    grid: Grid,
    *,
    damping: float = 0.01,
    rounding: Rounding = Rounding.HALF_EVEN,
) -> Quantized:
    """Return the codes of GPTQ, each column by its definition, in float64.

    Parameters
    ----------
    w : ndarray of float, shape (N, K)
    hessian : ndarray of float, shape (K, K)
    grid : Grid
    damping : float
    rounding :
        Of codes and zero points.

    Raises
    ------
    ValueError
        As `problem` and `Grid`.
    """
    layer = problem(w, hessian, damping=damping, act_order=grid.act_order)
    rows, columns = layer.w.shape
    index = group_index(layer.order, grid)
    scale = np.ones((rows, len(grid.groups(columns))))
    zero = np.zeros(scale.shape, np.int64)

    def settle(group: int, weights: np.ndarray) -> None:
        low, high = weight_range(weights, grid.symmetric)
        scale[:, group] = _scale(low, high, grid)
        zero[:, group] = _zero_point(low, scale[:, group], grid, rounding)

    if grid.static_groups:
        original = np.empty_like(layer.w)
        original[:, layer.order] = layer.w
        for group, members in enumerate(grid.groups(columns)):
            settle(group, original[:, members])
    left, codes = layer.w.copy(), np.empty(layer.w.shape, np.int64)
    for j in range(columns):
        group = index[layer.order[j]]
        if not grid.static_groups and j % (grid.group_size or columns) == 0:
            settle(group, left[:, grid.groups(columns)[group]])
        codes[:, j] = _code(left[:, j], scale[:, group], zero[:, group], grid, rounding)
        error = left[:, j] - (codes[:, j] - zero[:, group]) * scale[:, group]
        left[:, j + 1 :] -= np.outer(error / layer.u[j, j], layer.u[j, j + 1 :])
    placed = np.empty_like(codes)
    placed[:, layer.order] = codes
    return Quantized(placed, scale, zero, index)


def proxy_loss(w: np.ndarray, dequantized: np.ndarray, h: np.ndarray) -> float:
    """Return tr(D H D^T) of D = w - dequantized: the squared error of the layer's outputs."""
    difference = np.asarray(w, np.float64) - dequantized
    return float(np.sum((difference @ h) * difference))
