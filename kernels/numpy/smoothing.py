"""SmoothQuant in NumPy."""

import numpy as np

from lowbit_cts.kernels import Backend

_FLOOR = np.float32(1e-5)


def smooth_weights(absmax, w, *, alpha):
    """Return max|X|^alpha / max|W|^(1 - alpha) and the weights times it."""
    if w.shape[1:] != absmax.shape:
        raise ValueError(f"w: has shape {w.shape}, must have the {absmax.size} columns of absmax")
    largest = np.maximum(np.abs(w).max(axis=0, initial=0), _FLOOR)
    scale = np.maximum(absmax**alpha / largest ** (1 - alpha), _FLOOR)
    return scale, w * scale


def register(backend: Backend) -> None:
    """Register the kernel."""
    backend.implements("smooth_weights", supports={"alpha": (0.5, 0.75, 0.25, 0.0, 1.0)})(smooth_weights)
