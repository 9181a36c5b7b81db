r"""SparseGPT: columns pruned one after the other, each error spread over the columns that are still free.

The factors are GPTQ's (`lowbit_cts.reference.algorithms.gptq`): H^-1 = U^T U, and weight j, as those before left it,
costs w_j^2 / U_jj^2 when it becomes zero and all later weights make the best of it [1]_. Which go is decided where a
block, or a group of n of m, begins, by weights that everything before has moved; kept weights have no error. As with
GPTQ tr((W - Q) H (W - Q)^T) = sum e^2, whatever the mask.

Notes
-----
A later weight that has moved may yet be pruned, and columns before it do not move: with a given mask the loss is at
least that of least squares on the kept weights, and the same where every pruned column of a row comes before the kept
ones. It may exceed that of the mask with no updates at all.

References
----------
.. [1] E. Frantar and D. Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot",
   arXiv:2301.00774, algorithm 1; IST-DASLab/sparsegpt, `sparsegpt.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lowbit_cts.reference.algorithms.gptq import Problem, problem
from lowbit_cts.reference.choices import takes_choices
from lowbit_cts.reference.pruning.unstructured import (
    CountRule,
    Ties,
    check_group,
    finite,
    lowest,
    lowest_of_groups,
    pruned_count,
)

#: Columns that are decided together.
BLOCK = 128


@dataclass(frozen=True)
class Pruned:
    """A pruned layer.

    Attributes
    ----------
    w : ndarray of float64, shape (N, K)
        Weights; zero where they went, and in dead columns.
    kept : ndarray of bool, shape (N, K)
    errors : ndarray of float64, shape (N, K)
        e = w_j / U_jj of what went, as it was when it did.
    """

    w: np.ndarray
    kept: np.ndarray
    errors: np.ndarray


def _checked(w: np.ndarray, hessian: np.ndarray, damping: float) -> Problem:
    finite("w", w)
    return problem(w, hessian, damping=damping)


def _eliminated(layer: Problem, width: int, decide: Callable[[np.ndarray, slice], np.ndarray]) -> Pruned:
    """Return a layer pruned by masks that `decide` gives, from scores and their columns, for so many at a time."""
    left, kept, errors = layer.w.copy(), np.ones(layer.w.shape, bool), np.zeros(layer.w.shape)
    diagonal = np.diag(layer.u)
    for j in range(left.shape[1]):
        if j % width == 0:
            columns = slice(j, min(j + width, left.shape[1]))
            kept[:, columns] = decide(left[:, columns] ** 2 / diagonal[columns] ** 2, columns)
        errors[:, j] = np.where(kept[:, j], 0.0, left[:, j]) / diagonal[j]
        left[:, j] = np.where(kept[:, j], left[:, j], 0.0)
        left[:, j + 1 :] -= np.outer(errors[:, j], layer.u[j, j + 1 :])
    return Pruned(left, kept, errors)


@takes_choices
def sparsegpt(
    w: np.ndarray,
    hessian: np.ndarray,
    amount: float,
    *,
    damping: float = 0.01,
    block: int = BLOCK,
    ties: Ties = Ties.THRESHOLD,
) -> Pruned:
    """Return a layer of whose every block of columns a fraction went, all rows being ranked together.

    Parameters
    ----------
    w : ndarray of float, shape (N, K)
    hessian : ndarray of float, shape (K, K)
        As GPTQ's: symmetric, positive semidefinite; a column whose diagonal is zero is dead, and its weights, zero
        then, are the first that go.
    amount : float
        A fraction, of which int(N * columns * amount) are counted in each block.
    damping : float
        At least 0: this share of the mean of the diagonal is added to it.
    block : int
        Columns that are decided together, at least 1.
    ties :
        With ``THRESHOLD``, as the authors' code has it, the weight after the count goes too, so that at 0 one goes of
        every block; all go at 1, where that code fails.

    Raises
    ------
    ValueError
        A fraction outside [0, 1], a block below 1, no weights, and as `gptq.problem`.
    """
    if block < 1:
        raise ValueError(f"block: must be at least 1; got {block}")
    pruned_count(float(amount), 1)
    return _eliminated(
        _checked(w, hessian, damping),
        block,
        lambda scores, _: lowest(scores, float(amount), count_rule=CountRule.FLOOR, ties=ties),
    )


@takes_choices
def sparsegpt_groups(
    w: np.ndarray,
    hessian: np.ndarray,
    pruned: int,
    group: int,
    *,
    damping: float = 0.01,
    ties: Ties = Ties.FIRST,
) -> Pruned:
    """Return a layer of which, of every so many neighbours in a row, so many went: 2 of 4.

    Those of a group are decided when its first column is reached, by the weights as they are then. Other parameters as
    `sparsegpt`; errors, too, and as `lowest_of_groups`.
    """
    layer = _checked(w, hessian, damping)
    check_group(pruned, group, layer.w.shape[1])
    return _eliminated(layer, group, lambda scores, _: lowest_of_groups(scores, pruned, group, ties=ties))


def sparsegpt_mask(w: np.ndarray, hessian: np.ndarray, kept: np.ndarray, *, damping: float = 0.01) -> Pruned:
    """Return a layer pruned by a given mask, (N, K), of bool, the errors spread all the same.

    Raises
    ------
    ValueError
        A mask of another shape or type, no weights, and as `gptq.problem`.
    """
    layer, mask = _checked(w, hessian, damping), np.asarray(kept)
    if mask.shape != layer.w.shape or mask.dtype != bool:
        raise ValueError(f"kept: must be a mask of bool of shape {layer.w.shape}")
    return _eliminated(layer, layer.w.shape[1], lambda _, columns: mask[:, columns])
