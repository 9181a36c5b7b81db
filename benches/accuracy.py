"""Accuracy: how far an approximation is from the truth, as one number.

Every metric takes arrays of one shape, of any numeric type, works in float64 block by block (so no copy of a
large array is made in float64), and is defined on zeros and on empty arrays. A NaN in either array makes the
result NaN, an infinity in the approximation alone makes the error infinite; only `mismatches`, which compares
codes, takes both as codes like any other.
"""

from collections.abc import Iterator
from math import inf, log10, sqrt

import numpy as np

_BLOCK = 1 << 20


def _blocks(truth: np.ndarray, approximation: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield both arrays in blocks, flattened.

    Raises
    ------
    ValueError
        When the shapes differ: broadcasting would compare what does not belong together.
    """
    truth, approximation = np.asarray(truth), np.asarray(approximation)
    if truth.shape != approximation.shape:
        raise ValueError(f"shapes differ: truth {truth.shape}, approximation {approximation.shape}")
    truth, approximation = truth.reshape(-1), approximation.reshape(-1)
    for start in range(0, truth.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        yield truth[block], approximation[block]


def _floats(truth: np.ndarray, approximation: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for t, a in _blocks(truth, approximation):
        yield np.asarray(t, np.float64), np.asarray(a, np.float64)


def _powers(truth: np.ndarray, approximation: np.ndarray) -> tuple[float, float]:
    """Return the sums of squares of the truth and of the error."""
    signal = noise = 0.0
    with np.errstate(invalid="ignore"):
        for t, a in _floats(truth, approximation):
            error = a - t
            signal, noise = signal + float(t @ t), noise + float(error @ error)
    return signal, noise


def sqnr_db(truth: np.ndarray, approximation: np.ndarray) -> float:
    """Return the signal-to-quantization-noise ratio, 10 log10(sum t**2 / sum (a - t)**2), in dB.

    Parameters
    ----------
    truth, approximation : ndarray, one shape

    Returns
    -------
    float
        inf where nothing was lost (whatever the signal), -inf where there is noise and no signal, or infinite
        noise.

    Notes
    -----
    Each bit is worth 20 log10(2) = 6.02 dB. A uniform signal quantized to n steps over its range has 20
    log10(n) dB.
    """
    signal, noise = _powers(truth, approximation)
    ratio = signal / noise if noise else inf
    return 10 * log10(ratio) if ratio else -inf


def relative_frobenius(truth: np.ndarray, approximation: np.ndarray) -> float:
    """Return the relative error in the Frobenius norm, ||a - t|| / ||t|| (dimensionless).

    0 where nothing was lost, inf where there is an error and no signal.
    """
    signal, noise = _powers(truth, approximation)
    return sqrt(noise / signal) if signal else inf if noise else 0.0


def mse(truth: np.ndarray, approximation: np.ndarray) -> float:
    """Return the mean squared error, in the arrays' units squared; 0 for empty arrays."""
    _, noise = _powers(truth, approximation)
    return noise / max(1, np.size(truth))


def max_abs(truth: np.ndarray, approximation: np.ndarray) -> float:
    """Return the largest absolute error, in the arrays' units; 0 for empty arrays."""
    with np.errstate(invalid="ignore"):
        errors = [np.max(np.abs(a - t)) for t, a in _floats(truth, approximation)]
    return float(np.max(errors)) if errors else 0.0


def mismatches(reference: np.ndarray, codes: np.ndarray) -> int:
    """Return how many codes differ from the reference's; a NaN matches a NaN.

    Parameters
    ----------
    reference, codes : ndarray, one shape
        Integers, or decoded floats; compared by value, so the types may differ.
    """
    return sum(int(np.sum((r != c) & ~((r != r) & (c != c)))) for r, c in _blocks(reference, codes))  # noqa: PLR0124


def cosine(truth: np.ndarray, approximation: np.ndarray) -> float:
    """Return the cosine similarity, <t, a> / (||t|| ||a||), in [-1, 1].

    Two zero arrays are alike (1); a zero array is like no other (0).
    """
    products = [(float(t @ a), float(t @ t), float(a @ a)) for t, a in _floats(truth, approximation)]
    inner, first, second = np.sum(products, axis=0) if products else (0.0, 0.0, 0.0)
    if first == 0 or second == 0:
        return float(first == second)
    return float(np.clip(inner / (sqrt(first) * sqrt(second)), -1.0, 1.0))
