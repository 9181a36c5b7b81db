"""The gradients of fake quantization in plain float32 NumPy."""

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.reference.formats import INTEGER_FORMATS, integer_format

_EVERYWHERE = {"format": INTEGER_FORMATS, "granularity": ("tensor", "axis", "group")}
_NARROW = {"narrow_range": (False, True)}
_ZERO = np.float32(0)


def _grouped(x: np.ndarray, granularity: str, group_size: int | None) -> np.ndarray:
    return x.reshape(x.shape[0], x.shape[1] // group_size, group_size) if granularity == "group" and group_size else x


def _beside(values: np.ndarray, granularity: str, axis: int | None) -> np.ndarray:
    return values[..., None] if granularity == "group" or (granularity == "axis" and axis == 0) else values


def _reduced(granularity: str, axis: int | None) -> tuple[int, ...]:
    return {"tensor": (0, 1), "axis": (1 - (axis or 0),), "group": (2,)}[granularity]


def _codes(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.rint(x / scale) + zero_point.astype(np.float32)


def fake_quantize_gradient(x, upstream, scale, zero_point, *, format, granularity, axis, group_size, narrow_range):
    """Return the upstream gradient where the rounded code is one of the format."""
    qmin, qmax = integer_format(format).codes(narrow_range)
    scale, zero_point = (_beside(v, granularity, axis) for v in (scale, zero_point))
    codes = _codes(_grouped(x, granularity, group_size), scale, zero_point).reshape(upstream.shape)
    return np.where((codes >= qmin) & (codes <= qmax), upstream, _ZERO)


def lsq_gradient(
    v, upstream, scale, zero_point, gradient_scale, *, format, granularity, axis, group_size, narrow_range
):
    """Return the gradients of the values and of the scales."""
    qmin, qmax = integer_format(format).codes(narrow_range)
    if zero_point is None:
        zero_point = np.zeros(scale.shape, np.int32)
    wide, zero = (_beside(s, granularity, axis) for s in (scale, zero_point))
    values, upper = (_grouped(part, granularity, group_size) for part in (v, upstream))
    codes = _codes(values, wide, zero)
    inside = (codes >= qmin) & (codes <= qmax)
    with np.errstate(over="ignore", invalid="ignore"):
        steps = np.clip(codes, qmin, qmax) - zero.astype(np.float32)
        steps = np.where(inside, steps - values / wide, steps).astype(np.float32)
        dscale = (upper * steps).sum(axis=_reduced(granularity, axis), dtype=np.float32) * gradient_scale
    return np.where(inside, upper, _ZERO).reshape(v.shape), np.asarray(dscale, np.float32)


def lsq_initial_scale(v, *, format, granularity, axis, group_size):
    """Return 2 mean|v| / sqrt(Q_P)."""
    values = np.abs(_grouped(v, granularity, group_size))
    mean = values.mean(axis=_reduced(granularity, axis), dtype=np.float32)
    return np.asarray(2 * mean / np.sqrt(np.float32(integer_format(format).maximum)), np.float32)


def register(backend: Backend) -> None:
    """Register the kernels."""
    mapping = {"mapping": ("symmetric", "asymmetric")}
    backend.implements("fake_quantize_gradient", supports={**_EVERYWHERE, **_NARROW, **mapping})(fake_quantize_gradient)
    backend.implements("lsq_gradient", supports={**_EVERYWHERE, **_NARROW, "has_zero_point": (False, True)})(
        lsq_gradient
    )
    backend.implements("lsq_initial_scale", supports=_EVERYWHERE)(lsq_initial_scale)
