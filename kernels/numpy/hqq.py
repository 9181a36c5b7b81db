"""Half-quadratic quantization in NumPy: all groups at once, in float32."""

import numpy as np

from lowbit_cts.kernels import Backend

_F = np.float32
_NORM, _WEIGHT, _STEPS = 0.7, 10.0, 20


def _kept(missed, weight):
    """Return what the norm keeps of errors."""
    size = np.abs(missed)
    with np.errstate(divide="ignore"):
        cut = np.where(size > 0, size ** _F(_NORM - 1) / _F(weight), _F(0))
    return np.copysign(np.maximum(size - cut, _F(0)), missed)


def quantize_hqq(w, *, format, group_size, growth):
    """Return codes, scales and zero points."""
    n, k = w.shape
    size = group_size or k
    if k % max(size, 1):
        raise ValueError(f"group_size: {size} does not divide {k} columns")
    if not size:
        raise ValueError("w: must have a column")
    largest = _F((1 << int(format.removeprefix("uint"))) - 1)
    groups = w.reshape(n, k // size, size)
    low, high = groups.min(axis=2, keepdims=True), groups.max(axis=2, keepdims=True)
    scale = np.where(high > low, (high - low) / largest, _F(1))
    steps, zero = groups / scale, -low / scale
    weight, least, best = _WEIGHT, np.inf, (np.zeros_like(groups), zero)
    for _ in range(_STEPS + 1):
        codes = np.clip(np.rint(steps + zero), _F(0), largest)
        missed = groups - (codes - zero) * scale
        error = float(np.mean(np.abs(missed))) if w.size else 0.0
        if error >= least:
            break
        least, best = error, (codes, zero)
        zero = np.mean(codes - (groups - _kept(missed, weight)) / scale, axis=2, keepdims=True)
        weight *= growth
    codes, zero = best
    return codes.astype(np.uint8).reshape(n, k), scale[..., 0], zero[..., 0]


def register(backend: Backend) -> None:
    """Register the kernel."""
    backend.implements(
        "quantize_hqq",
        supports={
            "format": tuple(f"uint{bits}" for bits in range(2, 9)), "granularity": ("channel", "group"),
            "group_size": (64, 32, 12, 128), "growth": (1.01, 1.0),
        },
    )(quantize_hqq)  # fmt: skip
