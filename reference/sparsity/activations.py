"""Activation sparsity: activations of little magnitude become zero, and what they would be multiplied by is skipped.

TEAL keeps |x| > t of the input of every linear layer, t a quantile of magnitudes that calibration samples show. CATS
keeps |SiLU(x W_gate)| from t on, so that of the other two matrices of a gated feed-forward layer a part is left out.
ReLU needs no threshold.

References
----------
.. [1] J. Liu et al., "Training-Free Activation Sparsity in Large Language Models" (TEAL), arXiv:2408.14690;
   FasterDecoding/TEAL, `utils/utils.py` (`SparsifyFn`, `Distribution`) and `kernels/sparse_gemv.py`.
.. [2] D. Lee et al., "CATS: Contextually-Aware Thresholding for Sparsity in Large Language Models", arXiv:2404.08763,
   cutoff threshold and CATS operation; ScalingIntelligence/CATS, `cats_package/cats.py`.
.. [3] K. Mirzadeh et al., "ReLU Strikes Back: Exploiting Activation Sparsity in Large Language Models",
   arXiv:2310.04564.

Notes
-----
What implementations do beside this: TEAL takes the quantile (1 + s) / 2 of values, which is that of magnitudes where
the distribution is symmetric, from a histogram of 10,000 bins with interpolation, 0 for s = 0; of a prompt it leaves
the first half of the tokens as they are. CATS takes an edge of a histogram. Of its two programs one keeps |v| >= t, one
|v| > t.
"""

from enum import StrEnum
from math import fsum

import numpy as np
from scipy.special import erfinv, expit

from lowbit_cts.reference.choices import takes_choices
from lowbit_cts.reference.sparsity.patterns import NanScore, Removal, checked, without


class ThresholdSide(StrEnum):
    """Whether a magnitude that equals the threshold stays."""

    ABOVE = "above"  # |x| > t stays         (TEAL; CATS's SparseSiLU, by torch.nn.Threshold)
    FROM = "from"  # |x| >= t stays          (CATS)


def _fraction(sparsity: float) -> float:
    sparsity = float(sparsity)
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity: must lie in [0, 1]; got {sparsity}")
    return sparsity


def _finite(x: np.ndarray, name: str) -> np.ndarray:
    x = checked(x, name)
    if not np.all(np.isfinite(x)):
        raise ValueError(f"{name}: must be finite; an infinity has no place among quantiles and sums")
    return x


def relu(x: np.ndarray) -> np.ndarray:
    """Return max(x, 0) in the type of x: what is above 0, NaN, and zeros, -0 among them, as they are; +0 of the rest.

    So does PyTorch; another maximum of -0 and 0 may be +0, and a product that skips zeros cannot tell.
    """
    x = np.asarray(x)
    return np.where(x < 0, np.zeros((), x.dtype), x)


def silu(x: np.ndarray) -> np.ndarray:
    """Return x / (1 + exp(-x)) in float64."""
    x = np.asarray(x, np.float64)
    return np.asarray(x * expit(x))


def threshold(samples: np.ndarray, sparsity: float) -> float:
    """Return the least magnitude t among samples up to which at least the part `sparsity` of them lies; 0 for 0.

    F(t) >= sparsity, F(t) = (number of |x| <= t) / (number of samples), a quotient rounded to float64 as a `sparsity`
    written in decimals is. With ``ThresholdSide.ABOVE`` the samples are at least that sparse, and no lower t makes them
    so; any t' up to the next magnitude zeroes the same. With ``FROM`` they are less sparse than that, by the samples
    that equal t.

    Parameters
    ----------
    samples : ndarray of float, any shape
        Finite activations.
    sparsity : float
        In [0, 1].

    Raises
    ------
    ValueError
        No sample, NaN or infinities, a sparsity outside [0, 1].
    """
    sizes, sparsity = np.sort(np.abs(_finite(samples, "samples")), axis=None), _fraction(sparsity)
    if sparsity == 0:
        return 0.0
    return float(sizes[np.argmax(np.arange(1, sizes.size + 1) / sizes.size >= sparsity)])


def gaussian_threshold(sparsity: float, deviation: float = 1.0) -> float:
    """Return icdf((1 + sparsity) / 2) of a normal x with mean 0: t that |x| does not exceed with that probability.

    Raises
    ------
    ValueError
        A sparsity outside [0, 1], a deviation that is not positive and finite.
    """
    if not 0 < deviation < np.inf:
        raise ValueError(f"deviation: must be positive and finite; got {deviation}")
    return float(deviation * np.sqrt(2) * erfinv(_fraction(sparsity)))


def gate_activations(x: np.ndarray, w_gate: np.ndarray) -> np.ndarray:
    """Return SiLU(x w_gate), (M, N), in float64, of samples, (M, K), and weights, (K, N).

    Raises
    ------
    ValueError
        No element, NaN or infinities, shapes that do not chain.
    """
    x, w_gate = _finite(x, "x"), _finite(w_gate, "w_gate")
    if x.ndim != 2 or w_gate.ndim != 2 or x.shape[1] != w_gate.shape[0]:
        raise ValueError(f"w_gate: has shape {w_gate.shape}, must be a matrix with a row a column of x, {x.shape}")
    return silu(x @ w_gate)


def cats_threshold(x: np.ndarray, w_gate: np.ndarray, sparsity: float) -> float:
    """Return the least t with F(t) >= sparsity, F that of |SiLU(x w_gate)| over all samples and neurons.

    Parameters and errors as `gate_activations` and `threshold`.
    """
    return threshold(gate_activations(x, w_gate), sparsity)


def _check_threshold(threshold: float) -> float:
    threshold = float(threshold)
    if not threshold >= 0:
        raise ValueError(f"threshold: must be a magnitude, at least 0; got {threshold}")
    return threshold


@takes_choices
def beyond(x: np.ndarray, threshold: float, *, side: ThresholdSide, nan: NanScore = NanScore.REFUSED) -> np.ndarray:
    """Return the mask of the activations that stay.

    Parameters
    ----------
    x : ndarray of float, any shape
    threshold : float
        At least 0; inf keeps nothing with ``ABOVE``.
    side : ThresholdSide
        Beside a threshold of 0 it decides whether zeros stay, which changes no result.
    nan : NanScore
        With ``LARGEST`` a NaN stays: so do TEAL, where it is multiplied by 0, and CATS, where it is not below t.

    Raises
    ------
    ValueError
        No element, a threshold that is negative or NaN, a NaN among x where it is refused.
    """
    size, threshold = np.abs(checked(x, "x", nan=nan)), _check_threshold(threshold)
    stays = size > threshold if side is ThresholdSide.ABOVE else size >= threshold
    return np.asarray(stays | np.isnan(size))


@takes_choices
def sparsify(
    x: np.ndarray,
    threshold: float,
    *,
    side: ThresholdSide,
    removal: Removal = Removal.ASSIGNED,
    nan: NanScore = NanScore.REFUSED,
) -> np.ndarray:
    """Return activations with zeros for those that do not stay, in their type.

    Parameters
    ----------
    x, threshold, side, nan : as `beyond`
    removal : Removal
        TEAL multiplies by the mask (``PRODUCT``), CATS assigns zeros.

    Raises
    ------
    ValueError
        As `beyond`.
    """
    return without(x, beyond(x, threshold, side=side, nan=nan), removal=removal)


def achieved_sparsity(x: np.ndarray) -> float:
    """Return the share of elements that are zero, of either sign.

    Raises
    ------
    ValueError
        No element.
    """
    return float(np.mean(checked(x, "x", nan=NanScore.LARGEST) == 0))


def sparse_product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return x w, from those rows of w alone whose element of x is not zero.

    Beside finite weights it is the dense product. A row that is skipped may hold anything: an infinity or a NaN there
    makes the dense product NaN, and leaves this one as it is.

    Parameters
    ----------
    x : ndarray of float, shape (K,)
        Masked activations; float32 or narrower, as `w`, for products without rounding.
    w : ndarray of float, shape (K, N)

    Returns
    -------
    ndarray of float64, shape (N,)
        Each sum rounded once; 0 where all is skipped.

    Raises
    ------
    ValueError
        No element, shapes that do not chain.
    """
    x, w = (checked(array, name, nan=NanScore.LARGEST) for array, name in ((x, "x"), (w, "w")))
    if x.ndim != 1 or w.ndim != 2 or len(w) != len(x):
        raise ValueError(f"w: has shape {w.shape}, must be a matrix with a row an element of x, {x.shape}")
    there = np.flatnonzero(x)
    with np.errstate(invalid="ignore"):
        products = x[there, None] * w[there]
        finite = np.isfinite(products).all(axis=0)
        return np.array(
            [fsum(column) if whole else column.sum() for column, whole in zip(products.T, finite, strict=True)]
        )
