"""Pruning of single weights: scores, how many of the lowest go, and which of those that are equal.

A fraction of n weights is no whole number of them, and libraries disagree on the rule and on ties: both are declared
here. Scores rank; masks are True where a weight is kept.

References
----------
.. [1] S. Han et al., "Learning both Weights and Connections for Efficient Neural Networks", arXiv:1506.02626.
.. [2] PyTorch, torch/nn/utils/prune.py, `_compute_nparams_toprune`: Python's `round(amount * n)`;
   `global_unstructured`; `PruningContainer`: of a pruned tensor the amount is a share of what is left.
.. [3] P. Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", arXiv:1611.06440,
   eq. (8): |1/M sum a dL/da|, averaged over examples, and section 2.2: divided by the layer's L2 norm.
.. [4] P. Molchanov et al., "Importance Estimation for Neural Network Pruning", arXiv:1906.10771: (sum g w)^2 of a gate.
.. [5] N. Lee et al., "SNIP: Single-shot Network Pruning based on Connection Sensitivity", arXiv:1810.02340, eq. (5).
.. [6] M. Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", arXiv:2306.11695, eq. (1);
   locuslab/wanda, `lib/prune.py`: `prune_wanda`, and `prune_magnitude`, which cuts at a threshold.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from numbers import Integral

import numpy as np

from lowbit_cts.reference.choices import takes_choices


class CountRule(StrEnum):
    """How many of n weights a fraction is."""

    HALF_EVEN = "half_even"  # Python's round(fraction * n): 0.5 of 5 is 2, of 7 is 4   (torch.nn.utils.prune)
    FLOOR = "floor"  # int(n * fraction): 0.5 of 7 is 3; 0.29 of 100 is 28, since 100 * 0.29 < 29   (Wanda, SparseGPT)


class Ties(StrEnum):
    """Which of equal scores go."""

    FIRST = "first"  # those that come first: the order of a stable sort
    LAST = "last"  # those that come last
    THRESHOLD = "threshold"  # all up to the score at place `count`, from 0: one more than the count goes, and all its
    # equals   (SparseGPT, magnitude in Wanda's code)


class Examples(StrEnum):
    """Whether magnitudes are taken before the examples of a batch are averaged."""

    APART = "apart"  # the mean of magnitudes   (the paper)
    TOGETHER = "together"  # the magnitude of the mean, where examples cancel


def finite(name: str, values: np.ndarray) -> np.ndarray:
    """Return values in float64; ValueError where there are none, or one is NaN or infinite."""
    found = np.asarray(values, np.float64)
    if not found.size:
        raise ValueError(f"{name}: must hold a value or more; got shape {found.shape}")
    if not np.all(np.isfinite(found)):
        raise ValueError(f"{name}: must be finite")
    return found


@takes_choices
def pruned_count(amount: float, total: int, *, count_rule: CountRule = CountRule.HALF_EVEN) -> int:
    """Return how many of so many weights go.

    Parameters
    ----------
    amount : float or int
        A fraction in [0, 1], or, of an integer type, the number itself: 1 is one weight, 1.0 is all of them.
    total : int
    count_rule :
        Of fractions. Their product with the total is one of float64.

    Raises
    ------
    ValueError
        A fraction outside [0, 1], a number outside 0 to `total`.
    """
    if isinstance(amount, Integral):
        if not 0 <= amount <= total:
            raise ValueError(f"amount: an integer is a number of weights, 0 to {total}; got {amount}")
        return int(amount)
    if not 0 <= amount <= 1:
        raise ValueError(f"amount: a fraction must lie in [0, 1]; got {amount}")
    product = float(amount) * total
    return round(product) if count_rule is CountRule.HALF_EVEN else int(product)


@takes_choices
def lowest(
    scores: np.ndarray,
    amount: float,
    *,
    count_rule: CountRule = CountRule.HALF_EVEN,
    ties: Ties = Ties.FIRST,
    kept: np.ndarray | None = None,
) -> np.ndarray:
    """Return the mask that is left when the lowest scores go.

    Parameters
    ----------
    scores : ndarray of float, any shape
        The order of elements is that of memory in C order.
    amount : float or int
        As `pruned_count`, of the elements that are still there.
    count_rule, ties :
        With ``THRESHOLD`` more than the count go, at 0 too; where the count is the total all do.
    kept : ndarray of bool, the same shape, or None
        What earlier pruning left: the rest stays gone, and counts for nothing.

    Returns
    -------
    ndarray of bool, the same shape
        True is kept.

    Raises
    ------
    ValueError
        As `pruned_count`; no scores, scores that are not finite, a mask of another shape or type.
    """
    scores = finite("scores", scores)
    if kept is None:
        kept = np.ones(scores.shape, bool)
    if np.shape(kept) != scores.shape or np.asarray(kept).dtype != bool:
        raise ValueError(f"kept: must be a mask of bool of shape {scores.shape}")
    flat, found = scores.ravel(), np.array(kept).ravel()
    there = np.flatnonzero(found)
    if ties is Ties.LAST:
        there = there[::-1]
    ranked = there[np.argsort(flat[there], kind="stable")]
    count = pruned_count(amount, len(ranked), count_rule=count_rule)
    if ties is Ties.THRESHOLD and count < len(ranked):
        ranked = ranked[flat[ranked] <= flat[ranked[count]]]
        count = len(ranked)
    found[ranked[:count]] = False
    return found.reshape(scores.shape)


@takes_choices
def lowest_of_all(
    scores: Sequence[np.ndarray],
    amount: float,
    *,
    count_rule: CountRule = CountRule.HALF_EVEN,
    ties: Ties = Ties.FIRST,
    kept: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Return the masks of several layers whose scores are ranked together, the first layer's being the first.

    Parameters, results and errors as `lowest`, a layer each.
    """
    if not len(scores):
        raise ValueError("scores: must hold a layer or more")
    layers = [finite(f"scores[{i}]", layer) for i, layer in enumerate(scores)]
    if kept is not None and [np.shape(mask) for mask in kept] != [layer.shape for layer in layers]:
        raise ValueError("kept: must be masks of bool of the shapes of scores")
    together = None if kept is None else np.concatenate([np.ravel(mask) for mask in kept])
    flat = np.concatenate([layer.ravel() for layer in layers])
    found = lowest(flat, amount, count_rule=count_rule, ties=ties, kept=together)
    ends = np.cumsum([layer.size for layer in layers])[:-1]
    return [part.reshape(layer.shape) for part, layer in zip(np.split(found, ends), layers, strict=True)]


@takes_choices
def lowest_of_rows(
    scores: np.ndarray, amount: float, *, count_rule: CountRule = CountRule.FLOOR, ties: Ties = Ties.FIRST
) -> np.ndarray:
    """Return the mask of a matrix whose rows are ranked each by itself, (N, K); errors as `lowest`."""
    scores = _matrix("scores", scores)
    return np.stack([lowest(row, amount, count_rule=count_rule, ties=ties) for row in scores])


@takes_choices
def lowest_of_groups(scores: np.ndarray, pruned: int, group: int, *, ties: Ties = Ties.FIRST) -> np.ndarray:
    """Return the mask of a matrix of which, of every so many neighbours in a row, so many go.

    Parameters
    ----------
    scores : ndarray of float, shape (N, K)
    pruned, group : int
        2 and 4 is what sparse tensor cores take. Of libraries' "n:m" n is at times what stays: with 2:4 both agree.
    ties : {FIRST, LAST}

    Raises
    ------
    ValueError
        Scores that are no matrix or not finite, a group that does not divide K or is smaller than what goes of it, a
        threshold.
    """
    scores = _matrix("scores", scores)
    check_group(pruned, group, scores.shape[1])
    if ties is Ties.THRESHOLD:
        raise ValueError("ties: a threshold is not admissible in groups; admissible: first, last")
    parts = scores.reshape(-1, group)
    order = parts[:, ::-1] if ties is Ties.LAST else parts
    kept = np.ones(parts.shape, bool)
    np.put_along_axis(kept, np.argsort(order, axis=1, kind="stable")[:, :pruned], False, axis=1)
    return (kept[:, ::-1] if ties is Ties.LAST else kept).reshape(scores.shape)


def check_group(pruned: int, group: int, columns: int) -> None:
    """Raise a ValueError unless groups divide the columns and hold what goes of each."""
    if group < 1 or columns % group:
        raise ValueError(f"group: must divide the {columns} columns; got {group}")
    if not 0 <= pruned <= group:
        raise ValueError(f"pruned: must be 0 to {group}, the size of a group; got {pruned}")


def _matrix(name: str, values: np.ndarray) -> np.ndarray:
    if np.ndim(values) != 2:
        raise ValueError(f"{name}: must be a matrix; got shape {np.shape(values)}")
    return finite(name, values)


# Scores --------------------------------------------------------------------------------------------------------------


@takes_choices
def magnitude(
    w: np.ndarray,
    amount: float,
    *,
    count_rule: CountRule = CountRule.HALF_EVEN,
    ties: Ties = Ties.FIRST,
    kept: np.ndarray | None = None,
) -> np.ndarray:
    """Return the mask of weights of which the smallest magnitudes go; parameters and errors as `lowest`."""
    return lowest(np.abs(finite("w", w)), amount, count_rule=count_rule, ties=ties, kept=kept)


@takes_choices
def global_magnitude(
    weights: Sequence[np.ndarray],
    amount: float,
    *,
    count_rule: CountRule = CountRule.HALF_EVEN,
    ties: Ties = Ties.FIRST,
    kept: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Return the masks of layers of which together the smallest magnitudes go; as `lowest_of_all`."""
    return lowest_of_all([np.abs(w) for w in weights], amount, count_rule=count_rule, ties=ties, kept=kept)


@takes_choices
def random_mask(
    shape: tuple[int, ...], amount: float, *, seed: int, count_rule: CountRule = CountRule.HALF_EVEN
) -> np.ndarray:
    """Return a mask of which exactly the count goes, every set of that size being as likely: the baseline.

    Ranks of `numpy.random.default_rng(seed).permutation`. Errors as `lowest`.
    """
    ranks = np.random.default_rng(seed).permutation(int(np.prod(shape)))
    return lowest(ranks.reshape(shape), amount, count_rule=count_rule)


#: How the products a dL/da of a batch, means of an example each, become a channel's score.
_AVERAGES: dict[Examples, Callable[[np.ndarray], np.ndarray]] = {
    Examples.APART: lambda products: np.abs(products).mean(axis=0),
    Examples.TOGETHER: lambda products: np.abs(products.mean(axis=0)),
}


@takes_choices
def taylor_activations(
    activations: np.ndarray, gradients: np.ndarray, *, examples: Examples = Examples.APART, normalised: bool = True
) -> np.ndarray:
    """Return how much the loss changes, to first order, when a channel of activations becomes zero.

    Parameters
    ----------
    activations, gradients : ndarray of float, shape (B, C, ...)
        The outputs of a layer, examples first and channels next, and the loss's derivatives by them.
    examples :
    normalised : bool
        Whether scores are divided by the L2 norm of the layer's, so that those of layers compare; of a layer whose
        scores are all zero they stay zero.

    Returns
    -------
    ndarray of float64, shape (C,)

    Raises
    ------
    ValueError
        Shapes that differ or have fewer than two axes, values that are not finite, none at all.
    """
    a, g = _pair("activations", activations, "gradients", gradients)
    if a.ndim < 2:
        raise ValueError(f"activations: must be examples by channels; got shape {a.shape}")
    found = _AVERAGES[examples]((a * g).reshape(*a.shape[:2], -1).mean(axis=2))
    norm = np.sqrt(np.sum(found**2))
    return np.asarray(found / norm if normalised and norm else found)


def taylor_filters(w: np.ndarray, gradients: np.ndarray) -> np.ndarray:
    """Return (sum g w)^2 of each filter: the squared change of the loss, to first order, when it becomes zero.

    Parameters
    ----------
    w, gradients : ndarray of float, shape (N, ...)
        Weights, filters first, and the loss's derivatives by them.

    Returns
    -------
    ndarray of float64, shape (N,)
        That of the gate by which a filter is multiplied; the sum of (g w)^2, every weight by itself, is another score.

    Raises
    ------
    ValueError
        Shapes that differ, values that are not finite, none at all.
    """
    w, g = _pair("w", w, "gradients", gradients)
    return np.asarray((w * g).reshape(len(w), -1).sum(axis=1) ** 2)


def snip(weights: Sequence[np.ndarray], gradients: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return |g w| of every weight over the sum of all layers, to be ranked by `lowest_of_all`.

    Raises
    ------
    ValueError
        Layers or shapes that differ, values that are not finite, none at all, products that are all zero.
    """
    if not len(weights) or len(weights) != len(gradients):
        raise ValueError(f"gradients: must be as many layers as weights, one or more; got {len(gradients)}")
    pairs = [
        _pair(f"weights[{i}]", w, f"gradients[{i}]", g) for i, (w, g) in enumerate(zip(weights, gradients, strict=True))
    ]
    found = [np.abs(w * g) for w, g in pairs]
    total = sum(float(layer.sum()) for layer in found)
    if not total:
        raise ValueError("gradients: every product with a weight is zero; nothing ranks the weights")
    return [layer / total for layer in found]


def _pair(name: str, values: np.ndarray, other: str, gradients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if np.shape(values) != np.shape(gradients) or not np.ndim(values):
        raise ValueError(
            f"{other}: has shape {np.shape(gradients)}, must have that of {name}, {np.shape(values)}, an array"
        )
    return finite(name, values), finite(other, gradients)


def scaler_row(x: np.ndarray, sequences: int = 1) -> np.ndarray:
    """Return the sum of squares of each column of calibration samples (M, K) over the number of sequences, (K,).

    Wanda divides by sequences, not by samples; the masks do not depend on it.

    Raises
    ------
    ValueError
        No samples, samples that are not finite or no matrix, a number of sequences below 1.
    """
    if sequences < 1:
        raise ValueError(f"sequences: must be at least 1; got {sequences}")
    return np.asarray(np.sum(_matrix("x", x) ** 2, axis=0) / sequences)


def wanda_scores(w: np.ndarray, scaler_row: np.ndarray) -> np.ndarray:
    """Return |W| sqrt(scaler_row): by how much the outputs change, in the L2 norm, when one weight becomes zero.

    Parameters
    ----------
    w : ndarray of float, shape (N, K)
    scaler_row : ndarray of float, shape (K,)
        Mean squared norms of the input channels, `scaler_row`.

    Raises
    ------
    ValueError
        Weights that are no matrix or not finite, norms of another shape, negative or not finite.
    """
    w, rows = _matrix("w", w), np.asarray(scaler_row, np.float64)
    if rows.shape != w.shape[1:] or not np.all(np.isfinite(rows)) or np.any(rows < 0):
        raise ValueError(f"scaler_row: must be {w.shape[1:]} sums of squares, finite and not negative")
    return np.asarray(np.abs(w) * np.sqrt(rows))


@takes_choices
def wanda(w: np.ndarray, scaler_row: np.ndarray, amount: float, *, ties: Ties = Ties.FIRST) -> np.ndarray:
    """Return the mask of Wanda: of every row the int(K amount) lowest scores go, by a stable sort.

    Parameters and errors as `wanda_scores` and `lowest`; of n of m neighbours: `lowest_of_groups` of the scores.
    """
    return lowest_of_rows(wanda_scores(w, scaler_row), amount, count_rule=CountRule.FLOOR, ties=ties)
