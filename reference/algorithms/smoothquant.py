"""SmoothQuant: channels of activations divided, and those of the weights multiplied, by what balances their ranges.

References
----------
.. [1] G. Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
   arXiv:2211.10438, eq. (4); mit-han-lab/smoothquant, `smoothquant/smooth.py`: the floor.
"""

import numpy as np

from lowbit_cts.reference.choices import Precision, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, gamma, power_of_two, representable, within
from lowbit_cts.reference.formats import float_format

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
    return np.asarray(np.abs(x).max(axis=tuple(range(x.ndim - 1)), initial=0.0))


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


_FLOAT32 = float_format("float32")
#: Exponents of powers that are a copy, a one or a square root: where such a power is representable, it is exact.
_PLAIN = (0.0, 0.5, 1.0)


def _powers(base: np.ndarray, exponent: float, off: np.ndarray, ulps: float, unit: float) -> tuple[np.ndarray, ...]:
    """Return powers and how far a kernel's may be off, relatively: by its base, and by its function."""
    exact = base**exponent
    plain = (exponent in _PLAIN) & representable(exact, _FLOAT32) & (exact**2 == base if exponent == 0.5 else True)
    return exact, exponent * off + np.where(plain, 0.0, 2 * ulps * unit)


@takes_choices
def smoothing_enclosures(
    activations: np.ndarray,
    w: np.ndarray,
    *,
    alpha: float = 0.5,
    returned: np.ndarray | None = None,
    intermediate: Precision = Precision.FLOAT32,
    function_ulps: float = 4.0,
) -> dict[str, Enclosure]:
    """Return the admissible smoothing scales, and the weights times them.

    Parameters
    ----------
    activations : ndarray of float, shape (K,)
        Largest magnitudes, as `smoothing_scales`.
    w : ndarray of float, shape (N, K)
        Finite weights; of layers that share the input all rows.
    alpha : float
    returned : ndarray of float, shape (K,), or None
        The scales by which weights are to be multiplied; None for those of the reference.
    intermediate : Precision
        In which powers and quotients are taken.
    function_ulps : float
        The largest error of a power in units of its last place. One with the exponent 0, 1/2 or 1 is a one, a square
        root or a copy: where the real one is a float32, so must the computed one be.

    Returns
    -------
    dict of Enclosure: "scale", (K,), and "smoothed", (N, K), both float32
        The quotient of two powers, divided or multiplied by the reciprocal; where both powers are exact and the lower
        one is a power of two, it is determined. The weights are determined by the scales, but for what rounding the
        scales to float32 takes off a wider intermediate.

    Raises
    ------
    ValueError
        As `smoothing_scales` and `channel_maxima`.
    """
    w = np.asarray(w, np.float64)
    if w.ndim != 2:
        raise ValueError(f"w: must be a matrix; got shape {w.shape}")
    largest = channel_maxima(w)
    exact = smoothing_scales(activations, largest, alpha=alpha)
    unit = float_format(intermediate.value).unit_roundoff
    over = np.asarray(activations, np.float64)
    # The floor itself is rounded; what lies that close to it may be either.
    near = largest <= FLOOR * (1 + 2 * unit)
    top, top_off = _powers(over, alpha, np.zeros_like(over), function_ulps, unit)
    below, below_off = _powers(np.maximum(largest, FLOOR), 1 - alpha, np.where(near, unit, 0.0), function_ulps, unit)
    whole = (top_off == 0) & (below_off == 0) & power_of_two(below)
    off = np.where(whole, 0.0, (top_off + below_off + gamma(2, unit)) * (1 + 2.0**-10))
    quotient = top / below
    ends = [np.maximum(quotient * (1 + side * off), FLOOR) for side in (-1, 1)]
    found = within(exact, np.maximum(exact - ends[0], ends[1] - exact), _FLOAT32)
    # With an exponent that is not 0 a quotient of zero is the floor, and one above it never less.
    scale = Enclosure(found.exact, np.maximum(found.lo, float(np.float32(FLOOR))), found.hi)
    by = scale.exact if returned is None else np.asarray(returned, np.float64)
    narrowed = 0.0 if intermediate is Precision.FLOAT32 else _FLOAT32.unit_roundoff * (1 + 2.0**-20)
    with np.errstate(invalid="ignore", over="ignore"):
        product = w * by
        return {"scale": scale, "smoothed": within(product, narrowed * np.abs(product), _FLOAT32)}
