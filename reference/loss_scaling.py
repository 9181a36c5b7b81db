"""Dynamic loss scaling: a scale that grows after so many clean steps and backs off where a gradient overflowed.

The loss is multiplied by the scale, so that gradients too small for float16 are not; where one is infinite or NaN, the
optimizer's step is left out. Scales that are powers of two, and stay in range, change no bit of what is unscaled.

References
----------
.. [1] P. Micikevicius et al., "Mixed Precision Training", arXiv:1710.03740, section 3.2.
.. [2] PyTorch, torch/amp/grad_scaler.py; aten/src/ATen/native/AmpKernels.cpp, `_amp_update_scale_` and
   `_amp_foreach_non_finite_check_and_unscale_`: scales are float32, factors float64, their product is rounded once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import FloatFormat, float_format

_FLOAT32 = float_format("float32")


def _rounded(value: float, fmt: FloatFormat = _FLOAT32) -> float:
    return float(round_to_format(np.asarray(value), fmt))


@dataclass(frozen=True)
class Scaler:
    """The parameters of a scaler; the defaults are `torch.amp.GradScaler`'s.

    Attributes
    ----------
    initial : float
        Rounded to float32.
    growth, backoff : float
        By which the scale is multiplied; above 1, and between 0 and 1.
    interval : int
        Clean updates in a row before it grows.
    """

    initial: float = 2.0**16
    growth: float = 2.0
    backoff: float = 0.5
    interval: int = 2000

    def __post_init__(self) -> None:
        """Check the parameters."""
        if not (self.initial > 0 and 0 < _rounded(self.initial) < np.inf):
            raise ValueError(f"initial: must be above 0 and finite in float32; got {self.initial}")
        if not 1 < self.growth < np.inf:
            raise ValueError(f"growth: must be above 1 and finite; got {self.growth}")
        if not 0 < self.backoff < 1:
            raise ValueError(f"backoff: must lie between 0 and 1; got {self.backoff}")
        if self.interval < 1:
            raise ValueError(f"interval: must be at least 1; got {self.interval}")

    def start(self) -> "State":
        """Return the state before the first step."""
        return State(_rounded(self.initial), 0)

    def after(self, state: "State", overflowed: bool) -> "State":
        """Return the state after an update.

        An overflow multiplies the scale by `backoff` and begins the count again; nothing stops it at 0, from where it
        never returns. The clean update that completes `interval` multiplies it by `growth`, unless that is infinite in
        float32, and begins the count again either way.
        """
        if overflowed:
            return State(_rounded(state.scale * self.backoff), 0)
        if state.clean + 1 < self.interval:
            return State(state.scale, state.clean + 1)
        grown = _rounded(state.scale * self.growth)
        return State(grown if np.isfinite(grown) else state.scale, 0)


@dataclass(frozen=True)
class State:
    """The scale, a float32, and the clean updates since it changed last."""

    scale: float
    clean: int


@dataclass(frozen=True)
class Step:
    """A step of training: the scale it was made with, whether each optimizer's step was left out, the state after."""

    scale: float
    skipped: tuple[bool, ...]
    after: State


def trace(overflowed: Sequence[bool | Sequence[bool]], scaler: Scaler | None = None) -> list[Step]:
    """Return what a scaler does at every step.

    Parameters
    ----------
    overflowed : sequence of bool, or of sequences of bool
        Whether the gradients of a step held an infinity or a NaN; of several optimizers one each. Each leaves out its
        own step, and any one makes the scale back off.
    scaler :

    Raises
    ------
    ValueError
        A step of no optimizer.
    """
    scaler = scaler or Scaler()
    state, found = scaler.start(), []
    for number, flags in enumerate(overflowed):
        skipped = tuple(bool(flag) for flag in np.atleast_1d(np.asarray(flags, bool)))
        if not skipped:
            raise ValueError(f"overflowed[{number}]: must hold an optimizer or more")
        after = scaler.after(state, any(skipped))
        found.append(Step(state.scale, skipped, after))
        state = after
    return found


def scaled(gradients: np.ndarray, scale: float, *, format: str = "float16") -> np.ndarray:
    """Return gradients as a backward pass in a format leaves them: times the scale, rounded, in float64."""
    with np.errstate(invalid="ignore"):
        return np.asarray(round_to_format(np.asarray(gradients, np.float64) * scale, float_format(format)))


def unscaled(gradients: np.ndarray, scale: float) -> tuple[np.ndarray, bool]:
    """Return scaled gradients times the reciprocal of the scale, in float32, and whether one was infinite or NaN.

    Parameters
    ----------
    gradients : ndarray of float
        Values of float32 or less, kept in float32: PyTorch refuses to unscale float16. What overflows only by a
        reciprocal above 1 is not noticed.
    scale : float
        A float32; its reciprocal is taken in float64 and rounded to float32.
    """
    values = np.asarray(gradients, np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        reciprocal = _rounded(float(np.float64(1) / np.float64(scale)))
        found = round_to_format(values * reciprocal, _FLOAT32)
    return np.asarray(found), bool(np.any(~np.isfinite(values)))


@dataclass(frozen=True)
class TrainingStep:
    """A step with its gradients: as the optimizer sees them, in float64, or None where the step was left out."""

    scale: float
    gradients: np.ndarray | None
    after: State


def scaled_training(
    gradients: Sequence[np.ndarray], scaler: Scaler | None = None, *, format: str = "float16"
) -> list[TrainingStep]:
    """Return what becomes of the gradients of successive steps, of one optimizer.

    Parameters
    ----------
    gradients : sequence of ndarray of float
        The loss's derivatives as they really are.
    scaler :
    format : str
        In which the backward pass leaves them, times the scale.

    Raises
    ------
    ValueError
        Another format.
    """
    scaler = scaler or Scaler()
    state, found = scaler.start(), []
    for step in gradients:
        taken, overflowed = unscaled(scaled(step, state.scale, format=format), state.scale)
        after = scaler.after(state, overflowed)
        found.append(TrainingStep(state.scale, None if overflowed else taken, after))
        state = after
    return found
