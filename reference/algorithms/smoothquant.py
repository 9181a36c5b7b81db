"""SmoothQuant: channels of activations divided, and those of the weights multiplied, by what balances their ranges.

References
----------
.. [1] G. Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
   arXiv:2211.10438, eq. (4); mit-han-lab/smoothquant, `smoothquant/smooth.py`: the floor.
"""

import numpy as np

#: The least that a channel's largest weight, and a smoothing scale, count for.
FLOOR = 1e-5


def channel_maxima(x: np.ndarray) -> np.ndarray:
    """Return the largest magnitude of each column of x, (..., K) to (K,); 0 of no rows.

    Raises
    ------
    ValueError
        NaN or infinities.
    """
    x = np.asarray(x, np.float64)
    if not np.all(np.isfinite(x)):
        raise ValueError("x: must be finite; a NaN or an infinity has no range")
    return np.asarray(np.abs(x.reshape(-1, x.shape[-1])).max(axis=0, initial=0.0))


def smoothing_scales(activations: np.ndarray, weights: np.ndarray, *, alpha: float = 0.5) -> np.ndarray:
    """Return s_j = max|X_j|^alpha / max|W_j|^(1 - alpha), by which activations are divided and weights multiplied.

    Parameters
    ----------
    activations : ndarray of float, shape (K,)
        The largest magnitude of each input channel over the calibration samples.
    weights : ndarray of float, shape (K,), or a list of them
        The largest weight of each input channel; of several layers that share the input (queries, keys and values) the
        largest of all counts. Less than `FLOOR` counts as that.
    alpha : float
        0 leaves the difficulty to the activations, 1 hands it to the weights.

    Returns
    -------
    ndarray of float64, shape (K,)
        At least `FLOOR`: where a channel of activations is zero and alpha is not, that.

    Raises
    ------
    ValueError
        An alpha outside [0, 1], shapes that differ, maxima that are negative or not finite.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha: must lie in [0, 1]; got {alpha}")
    x, layers = np.asarray(activations, np.float64), np.atleast_2d(np.asarray(weights, np.float64))
    if x.ndim != 1 or layers.shape[1:] != x.shape:
        raise ValueError(f"weights: has shape {np.shape(weights)}, must be {x.shape} of activations, or rows of it")
    for name, values in (("activations", x), ("weights", layers)):
        if not np.all(np.isfinite(values)) or np.any(values < 0):
            raise ValueError(f"{name}: must be largest magnitudes, finite and not negative")
    w = np.maximum(layers.max(axis=0), FLOOR)
    return np.asarray(np.maximum(x**alpha / w ** (1 - alpha), FLOOR))
