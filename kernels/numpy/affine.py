"""Affine quantization in plain float32 NumPy."""

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.numpy.numbers import WIDE, float32_of, output_of
from lowbit_cts.reference.formats import INTEGER_FORMATS, integer_format

_EVERYWHERE = {
    "format": INTEGER_FORMATS,
    "granularity": ("tensor", "axis", "group"),
    "mapping": ("symmetric", "asymmetric"),
}
_NARROW = {"narrow_range": (False, True)}


def _spread(values: np.ndarray, granularity: str, axis: int | None, group_size: int | None) -> np.ndarray:
    if granularity == "axis" and axis == 0:
        return values[:, None]
    return np.repeat(values, group_size, axis=1) if granularity == "group" and group_size else values


def choose_qparams(x, *, format, input_format, granularity, axis, group_size, mapping, narrow_range):
    """Return min-max scales and zero points."""
    qmin, qmax = integer_format(format).codes(narrow_range)
    x = float32_of(x, input_format)
    if granularity == "group":
        x = x.reshape(x.shape[0], x.shape[1] // group_size, group_size)
    reduced = {"tensor": None, "axis": 1 - (axis or 0), "group": 2}[granularity]
    low, high = x.min(axis=reduced), x.max(axis=reduced)
    epsilon = np.float32(2.0**-23)
    if mapping == "symmetric":
        zero = 0 if qmin < 0 else (qmax + 1) // 2
        scale = np.maximum(np.maximum(-low, high) / np.float32(qmax - zero), epsilon)
        return scale.astype(np.float32), np.full(low.shape, zero, np.int32)
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    scale = np.maximum((high - low) / np.float32(qmax - qmin), epsilon)
    zero_point = np.clip(qmin - np.rint(low / scale), qmin, qmax)
    return scale.astype(np.float32), zero_point.astype(np.int32)


def quantize(x, scale, zero_point, *, format, input_format, granularity, axis, group_size, narrow_range):
    """Return saturate(round(x / scale) + zero_point)."""
    fmt = integer_format(format)
    qmin, qmax = fmt.codes(narrow_range)
    place = granularity, axis, group_size
    with np.errstate(over="ignore", invalid="ignore"):
        codes = np.rint(float32_of(x, input_format) / _spread(scale, *place)) + _spread(zero_point, *place)
        return np.nan_to_num(np.clip(codes, qmin, qmax), nan=qmin).astype(fmt.carrier)


def dequantize(codes, scale, zero_point, *, output_format, granularity, axis, group_size):
    """Return scale * (codes - zero_point)."""
    place = granularity, axis, group_size
    shifted = (codes.astype(np.int32) - _spread(zero_point, *place)).astype(np.float32)
    return output_of(shifted * _spread(scale, *place), output_format)


def fake_quantize(x, scale, zero_point, *, format, granularity, axis, group_size, narrow_range):
    """Return dequantize(quantize(x))."""
    place = {"granularity": granularity, "axis": axis, "group_size": group_size}
    codes = quantize(x, scale, zero_point, format=format, input_format="float32", narrow_range=narrow_range, **place)
    return dequantize(codes, scale, zero_point, output_format="float32", **place)


def register(backend: Backend) -> None:
    """Register the kernels."""
    backend.implements("choose_qparams_affine", supports={**_EVERYWHERE, **_NARROW, "input_format": WIDE})(
        choose_qparams
    )
    backend.implements("quantize_affine", supports={**_EVERYWHERE, **_NARROW, "input_format": WIDE})(quantize)
    backend.implements("dequantize_affine", supports={**_EVERYWHERE, "output_format": WIDE})(dequantize)
    backend.implements("fake_quantize_affine", supports={**_EVERYWHERE, **_NARROW})(fake_quantize)
