"""AWQ: input channels of weights multiplied, before they are rounded, by a power of how large their activations are.

The power is found by trying some, each judged by the error of the layer's output on calibration samples; so is how much
of the range of a group is clipped.

References
----------
.. [1] J. Lin et al., "AWQ: Activation-aware Weight Quantization for On-Device LLM Compression and Acceleration",
   arXiv:2306.00978, eq. (4) and (5); mit-han-lab/llm-awq, `awq/quantize/auto_scale.py`, `auto_clip.py`, `quantizer.py`.
.. [2] casper-hansen/AutoAWQ, `awq/quantize/quantizer.py`: scales that weigh activations against weights.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from lowbit_cts.reference.choices import Rounding, takes_choices
from lowbit_cts.reference.rounding import round_to_integer

#: Powers that are tried: i / 20, i = 0 ... 19; shares of the range that are: 1 - i / 20, i = 0 ... 9.
RATIOS = np.arange(20) / 20
SHARES = 1 - np.arange(10) / 20
#: The least that a scale is before scales are divided by what they have in common, and that the range of a group is.
LEAST_SCALE, LEAST_RANGE = 1e-4, 1e-5


class ScaleCandidates(StrEnum):
    """What a channel's scale is made of."""

    ACTIVATIONS = "activations"  # x^r                          (the paper, llm-awq)
    BOTH = "both"  # x^r / (w^(1 - r) + 1e-4), w the mean of |w| over its group's largest   (AutoAWQ)


def group_length(columns: int, group_size: int | None) -> int:
    """Return how many columns share a scale; ValueError where they do not divide the columns."""
    size = group_size or columns
    if size < 1 or columns % size:
        raise ValueError(f"group_size: must divide the {columns} columns; got {group_size}")
    return size


def check_layer(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return calibration samples, (M, K), and weights, (N, K), in float64.

    Raises
    ------
    ValueError
        No samples, samples or weights that are not finite, shapes that do not chain.
    """
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    if x.ndim != 2 or w.ndim != 2 or x.shape[1] != w.shape[1]:
        raise ValueError(f"x: has shape {x.shape}, must be samples by the columns of w, {w.shape}")
    if not len(x):
        raise ValueError("x: must hold a sample or more")
    if not (np.all(np.isfinite(x)) and np.all(np.isfinite(w))):
        raise ValueError("x and w: must be finite")
    return x, w


def check_rows(w: np.ndarray) -> None:
    """Raise a ValueError unless weights have a row or more, whose output errors can be compared."""
    if not len(w):
        raise ValueError("w: must hold a row or more")


@takes_choices
def round_to_nearest(
    w: np.ndarray,
    *,
    bits: int,
    group_size: int | None = None,
    bound: np.ndarray | None = None,
    rounding: Rounding = Rounding.HALF_EVEN,
) -> np.ndarray:
    """Return weights rounded to the codes of their groups, (N, K), in float64.

    Parameters
    ----------
    w : ndarray of float, shape (N, K)
    bits : int
        2 to 8.
    group_size : int or None
        Columns that share a scale (max - min) / (2**bits - 1), at least 1e-5 / (2**bits - 1), and a zero point; None:
        all of a row. The range need not hold zero.
    bound : ndarray of float, shape (N, G), or None
        What weights of a group are clipped to, on both sides, first.
    rounding : Rounding
        Of codes and zero points.

    Raises
    ------
    ValueError
        Bits outside 2 to 8, a group size that does not divide K, weights that are not finite.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits: {bits} is not admissible; admissible: 2 to 8")
    w = np.asarray(w, np.float64)
    if not np.all(np.isfinite(w)):
        raise ValueError("w: must be finite")
    size, largest = group_length(w.shape[1], group_size), (1 << bits) - 1
    groups = w.reshape(len(w), w.shape[1] // size, size)
    if bound is not None:
        groups = np.clip(groups, -bound[..., None], bound[..., None])
    low, high = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    scale = np.maximum(high - low, LEAST_RANGE) / largest
    zero = np.clip(-round_to_integer(low / scale, rounding), 0, largest)
    codes = np.clip(round_to_integer(groups / scale, rounding) + zero, 0, largest)
    return np.asarray(((codes - zero) * scale).reshape(w.shape))


def output_error(x: np.ndarray, w: np.ndarray, other: np.ndarray) -> float:
    """Return the mean squared difference of the outputs x w^T and x other^T."""
    difference = np.asarray(x, np.float64) @ (np.asarray(w, np.float64) - other).T
    return float(np.mean(difference**2)) if difference.size else 0.0


@takes_choices
def candidate_scales(
    x: np.ndarray,
    w: np.ndarray,
    *,
    group_size: int | None = None,
    candidates: ScaleCandidates = ScaleCandidates.ACTIVATIONS,
) -> np.ndarray:
    """Return the scales of every ratio, (20, K): those of a ratio have a geometric mean of 1 between the extremes.

    Parameters
    ----------
    x : ndarray of float, shape (T, K)
        Calibration samples; what counts of a channel is the mean of its magnitudes.
    w : ndarray of float, shape (N, K)
    group_size : int or None
    candidates :
        With ``BOTH`` the mean magnitude of a channel's weights counts, too, each over the largest of its group.

    Raises
    ------
    ValueError
        No samples, no rows of weights, samples or weights that are not finite, shapes that do not chain.
    """
    x, w = check_layer(x, w)
    check_rows(w)
    size = np.abs(x).mean(axis=0)
    powers = size[None, :] ** RATIOS[:, None]
    if candidates is ScaleCandidates.BOTH:
        groups = np.abs(w).reshape(len(w), -1, group_length(w.shape[1], group_size))
        share = (groups / (groups.max(axis=-1, keepdims=True) + 1e-6)).reshape(w.shape).mean(axis=0)
        powers = powers / (share[None, :] ** (1 - RATIOS[:, None]) + 1e-4)
    scales = np.maximum(powers, LEAST_SCALE)
    return np.asarray(scales / np.sqrt(scales.max(axis=1) * scales.min(axis=1))[:, None])


@dataclass(frozen=True)
class Search:
    """What a search found: the index of the first candidate of the least error, and the errors of all."""

    best: int
    errors: np.ndarray


@takes_choices
def search_scales(
    x: np.ndarray,
    w: np.ndarray,
    *,
    bits: int,
    group_size: int | None = None,
    candidates: ScaleCandidates = ScaleCandidates.ACTIVATIONS,
) -> Search:
    """Return which ratio's scales s make the output of round(w s) / s the nearest to that of w.

    Parameters and errors as `candidate_scales` and `round_to_nearest`.
    """
    found = [
        output_error(x, w, round_to_nearest(np.asarray(w) * s, bits=bits, group_size=group_size) / s)
        for s in candidate_scales(x, w, group_size=group_size, candidates=candidates)
    ]
    return Search(int(np.argmin(found)), np.array(found))


def search_clipping(
    x: np.ndarray, w: np.ndarray, *, bits: int, group_size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return for every group the bound of its weights whose rounding changes the group's outputs the least.

    Each group's part of each output counts by itself: the sum over its columns of x (w - round(clip(w))).

    Returns
    -------
    bound : ndarray of float64, shape (N, G)
        A share of the group's largest magnitude, the first of the least error.
    share : ndarray of int64, shape (N, G)
        Which of `SHARES`.

    Raises
    ------
    ValueError
        As `check_layer` and `round_to_nearest`.
    """
    x, w = check_layer(x, w)
    size = group_length(w.shape[1], group_size)
    largest = np.abs(w).reshape(len(w), w.shape[1] // size, size).max(axis=-1)
    samples = x.reshape(len(x), -1, size)
    errors = []
    for share in SHARES:
        missed = w - round_to_nearest(w, bits=bits, group_size=group_size, bound=share * largest)
        parts = np.einsum("tgk,ngk->tng", samples, missed.reshape(len(w), *samples.shape[1:]))
        errors.append(np.mean(parts**2, axis=0))
    best = np.argmin(errors, axis=0)
    return SHARES[best] * largest, best
