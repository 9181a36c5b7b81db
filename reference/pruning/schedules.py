"""How much is pruned when: all at once, by the cubic of Zhu and Gupta, or round by round with rewinding.

References
----------
.. [1] M. Zhu and S. Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression",
   arXiv:1710.01878, eq. (1): s_f + (s_i - s_f) (1 - (t - t0) / (n Dt))^3 for t = t0, t0 + Dt, ..., t0 + n Dt.
.. [2] J. Frankle and M. Carbin, "The Lottery Ticket Hypothesis", arXiv:1803.03635, section 1: iterative pruning,
   p^(1/n) of the survivors a round, the rest reset to theta_0.
.. [3] J. Frankle et al., "Stabilizing the Lottery Ticket Hypothesis", arXiv:1903.01611, section 3: reset to theta_k.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from lowbit_cts.reference.choices import takes_choices
from lowbit_cts.reference.pruning.unstructured import CountRule, Ties, finite, global_magnitude, magnitude


class Steps(StrEnum):
    """What the number n of a schedule counts: both are called steps, and they end one pruning apart."""

    INTERVALS = "intervals"  # n + 1 prunings, at t0, ..., t0 + n Dt; the last reaches s_f   (the paper)
    PRUNINGS = "prunings"  # n prunings, at t0, ..., t0 + (n - 1) Dt; the last reaches s_f


class Scope(StrEnum):
    """Of what a fraction is pruned."""

    LOCAL = "local"  # of every layer
    GLOBAL = "global"  # of all layers together


def _fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: must lie in [0, 1]; got {value}")


@takes_choices
def zhu_gupta(
    step: int,
    *,
    final: float,
    steps: int,
    initial: float = 0.0,
    begin: int = 0,
    interval: int = 1,
    counted: Steps = Steps.INTERVALS,
) -> float:
    """Return the sparsity that holds after a step of training.

    Parameters
    ----------
    step : int
        t; between two prunings that of the earlier holds, before the first `initial`, after the last `final`.
    final, initial : float
        Sparsities s_f and s_i, s_i <= s_f.
    steps, interval, begin : int
        n, Dt and t0.
    counted :
        What n counts. A single pruning (``PRUNINGS``, 1) goes to `final` at once.

    Raises
    ------
    ValueError
        Sparsities outside [0, 1] or falling, a step, n or Dt below 1 (steps of training and t0: below 0).
    """
    _fraction("initial", initial)
    _fraction("final", final)
    if initial > final:
        raise ValueError(f"initial: must be at most final, {final}; got {initial}")
    for name, value, least in (("step", step, 0), ("begin", begin, 0), ("steps", steps, 1), ("interval", interval, 1)):
        if value < least:
            raise ValueError(f"{name}: must be at least {least}; got {value}")
    if step < begin:
        return initial
    done, last = (step - begin) // interval, steps if counted is Steps.INTERVALS else steps - 1
    if done >= last:
        return final
    return final + (initial - final) * (1 - done / last) ** 3 if done else initial


def one_shot(step: int, *, final: float, begin: int = 0) -> float:
    """Return the sparsity of all pruning at one step, `begin`; ValueError as `zhu_gupta`."""
    return zhu_gupta(step, final=final, steps=1, begin=begin, counted=Steps.PRUNINGS)


def density(rate: float, rounds: int) -> float:
    """Return (1 - rate)^rounds: what is left when in every round this share of the survivors goes.

    Raises
    ------
    ValueError
        A rate outside [0, 1], rounds below 0.
    """
    _fraction("rate", rate)
    if rounds < 0:
        raise ValueError(f"rounds: must be at least 0; got {rounds}")
    return (1 - rate) ** rounds


def rate_of_rounds(final: float, rounds: int) -> float:
    """Return which rate a round leaves the density 1 - final after so many: 1 - (1 - final)^(1 / rounds).

    Raises
    ------
    ValueError
        A sparsity outside [0, 1], rounds below 1.
    """
    _fraction("final", final)
    if rounds < 1:
        raise ValueError(f"rounds: must be at least 1; got {rounds}")
    return 1 - (1 - final) ** (1 / rounds)


@dataclass(frozen=True)
class Round:
    """A round of iterative pruning.

    Attributes
    ----------
    kept : list of ndarray of bool
        Masks, a layer each; of round 0 all True.
    start : list of ndarray of float64
        The weights that training starts from: those of theta_0 or theta_k, zero where the mask is False.
    trained : list of ndarray of float64
        The weights that it ends with, zero there too.
    """

    kept: list[np.ndarray]
    start: list[np.ndarray]
    trained: list[np.ndarray]

    @property
    def density(self) -> float:
        """The share of weights that is left."""
        return sum(int(mask.sum()) for mask in self.kept) / sum(mask.size for mask in self.kept)


Weights = list[np.ndarray]
#: Trains weights under masks from a step on; returns the weights at that step, at the next, ..., and at the end.
Training = Callable[[Weights, Weights, int], Sequence[Weights]]


def _under(masks: Weights, weights: Weights) -> Weights:
    return [np.where(mask, np.asarray(w, np.float64), 0.0) for mask, w in zip(masks, weights, strict=True)]


@takes_choices
def lottery_ticket(
    initial: Sequence[np.ndarray],
    train: Training,
    *,
    rate: float,
    rounds: int,
    rewind: int = 0,
    scope: Scope = Scope.LOCAL,
    count_rule: CountRule = CountRule.HALF_EVEN,
    ties: Ties = Ties.FIRST,
) -> list[Round]:
    """Return the rounds of iterative magnitude pruning, each rewound to the weights of one early step.

    Parameters
    ----------
    initial : sequence of ndarray of float
        theta_0, a layer each.
    train :
        Called with weights, masks and the step they are of: 0 in round 0, `rewind` in the others. What it gives at
        pruned places is taken for zero. The first of what it returns must be the weights it was given.
    rate : float
        The share of the surviving weights that goes after a round, those of the smallest trained magnitude.
    rounds : int
        Prunings; a round 0 without a mask comes before.
    rewind : int
        k: the step of round 0 whose weights survivors are reset to; 0 are the initial ones.
    scope, count_rule, ties :

    Returns
    -------
    list of Round, rounds + 1 of them

    Raises
    ------
    ValueError
        A rate outside [0, 1], rounds below 0, a k that round 0 does not reach, no layers, no weights, weights that are
        not finite, training that begins elsewhere than it was told to.
    """
    density(rate, rounds)
    if not len(initial):
        raise ValueError("initial: must hold a layer or more")
    theta = [finite(f"initial[{i}]", w) for i, w in enumerate(initial)]
    masks = [np.ones(w.shape, bool) for w in theta]
    trace: list[Round] = []
    anchor, step = theta, 0
    for number in range(rounds + 1):
        start = _under(masks, anchor)
        path = train([w.copy() for w in start], [mask.copy() for mask in masks], step)
        if not len(path) or any(not np.array_equal(a, b) for a, b in zip(path[0], start, strict=True)):
            raise ValueError("train: must return the weights it was given first")
        if number == 0:
            if not 0 <= rewind < len(path):
                raise ValueError(f"rewind: must be a step of training, 0 to {len(path) - 1}; got {rewind}")
            anchor, step = [np.array(w, np.float64) for w in path[rewind]], rewind
        trained = _under(masks, path[-1])
        trace.append(Round(masks, start, trained))
        if scope is Scope.GLOBAL:
            masks = global_magnitude(trained, rate, count_rule=count_rule, ties=ties, kept=masks)
        else:
            masks = [
                magnitude(w, rate, count_rule=count_rule, ties=ties, kept=mask)
                for w, mask in zip(trained, masks, strict=True)
            ]
    return trace
