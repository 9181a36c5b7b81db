"""The NumPy backend: plain float32 NumPy, as a user would write it. It is under test; it is not the reference."""

import numpy as np

from lowbit_cts.kernels import Backend, Overflow, Semantics
from lowbit_cts.kernels.numpy import float8
from lowbit_cts.reference.formats import FLOAT8_FORMATS, INTEGER_FORMATS, integer_format

backend = Backend("numpy", version=np.__version__, arrays="numpy")

_EVERYWHERE = {
    "format": INTEGER_FORMATS,
    "granularity": ("tensor", "axis", "group"),
    "mapping": ("symmetric", "asymmetric"),
}
_NARROW = {"narrow_range": (False, True)}
_FLOATS = ("float32", "float16", "bfloat16")


def _float32(x: np.ndarray, format: str) -> np.ndarray:
    """Return x as float32; bfloat16 comes as its 16 bits."""
    if format == "bfloat16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


def _bfloat16(x: np.ndarray) -> np.ndarray:
    """Return float32 rounded to the 16 bits of bfloat16, to nearest even."""
    bits = x.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def _output(x: np.ndarray, format: str) -> np.ndarray:
    if format == "bfloat16":
        return _bfloat16(x)
    with np.errstate(over="ignore"):
        return x.astype(format)


def _spread(values: np.ndarray, granularity: str, axis: int | None, group_size: int | None) -> np.ndarray:
    if granularity == "axis" and axis == 0:
        return values[:, None]
    return np.repeat(values, group_size, axis=1) if granularity == "group" and group_size else values


@backend.implements("choose_qparams_affine", supports={**_EVERYWHERE, **_NARROW, "input_format": _FLOATS})
def choose_qparams(x, *, format, input_format, granularity, axis, group_size, mapping, narrow_range):
    """Return min-max scales and zero points."""
    qmin, qmax = integer_format(format).codes(narrow_range)
    x = _float32(x, input_format)
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


@backend.implements("quantize_affine", supports={**_EVERYWHERE, **_NARROW, "input_format": _FLOATS})
def quantize(x, scale, zero_point, *, format, input_format, granularity, axis, group_size, narrow_range):
    """Return saturate(round(x / scale) + zero_point)."""
    fmt = integer_format(format)
    qmin, qmax = fmt.codes(narrow_range)
    place = granularity, axis, group_size
    with np.errstate(over="ignore", invalid="ignore"):
        codes = np.rint(_float32(x, input_format) / _spread(scale, *place)) + _spread(zero_point, *place)
        return np.nan_to_num(np.clip(codes, qmin, qmax), nan=qmin).astype(fmt.carrier)


@backend.implements("dequantize_affine", supports={**_EVERYWHERE, "output_format": _FLOATS})
def dequantize(codes, scale, zero_point, *, output_format, granularity, axis, group_size):
    """Return scale * (codes - zero_point)."""
    place = granularity, axis, group_size
    shifted = (codes.astype(np.int32) - _spread(zero_point, *place)).astype(np.float32)
    return _output(shifted * _spread(scale, *place), output_format)


@backend.implements("fake_quantize_affine", supports={**_EVERYWHERE, **_NARROW})
def fake_quantize(x, scale, zero_point, *, format, granularity, axis, group_size, narrow_range):
    """Return dequantize(quantize(x))."""
    place = {"granularity": granularity, "axis": axis, "group_size": group_size}
    codes = quantize(x, scale, zero_point, format=format, input_format="float32", narrow_range=narrow_range, **place)
    return dequantize(codes, scale, zero_point, output_format="float32", **place)


@backend.implements("matmul_int8", supports={"a_format": ("int8", "uint8")})
def matmul_int8(a, b):
    """Return the int32 product."""
    return a.astype(np.int32) @ b.astype(np.int32)


def _linear(a, a_scale, a_zero_point, bias, *, prepared, output_format):
    weights, b_scale = prepared
    shifted = a.astype(np.int32) - np.reshape(a_zero_point, (-1, 1))
    y = (shifted @ weights).astype(np.float32) * np.reshape(a_scale, (-1, 1)) * b_scale
    return _output(y if bias is None else y + bias, output_format)


def _prepare_linear(b, b_scale):
    return b.astype(np.int32), b_scale


backend.implements(
    "matmul_w8a8",
    name="integer",
    prepare=_prepare_linear,
    supports={
        "a_format": ("int8", "uint8"),
        "activation_granularity": ("tensor", "token"),
        "weight_granularity": ("tensor", "channel"),
        "mapping": ("symmetric", "asymmetric"),
        "has_bias": (False, True),
        "output_format": _FLOATS,
    },
)(_linear)


@backend.implements("add_int8", supports={"format": ("int8", "uint8")})
def add_int8(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point, *, format):
    """Return the quantized sum of two quantized vectors."""
    fmt = integer_format(format)
    total = a_scale * (a - a_zero_point).astype(np.float32) + b_scale * (b - b_zero_point).astype(np.float32)
    return np.clip(np.rint(total / y_scale) + y_zero_point, fmt.minimum, fmt.maximum).astype(fmt.carrier)


def _register_casts() -> None:
    for overflow in (Overflow.SATURATE, Overflow.INFINITY_OR_NAN):

        def encode(x, *, source, target, overflow=overflow):
            return float8.encode(_float32(x, source), target, saturate=overflow is Overflow.SATURATE)

        backend.implements(
            "cast_float8",
            name=f"encode_{overflow}",
            semantics=Semantics(overflow=overflow),
            supports={"source": _FLOATS, "target": FLOAT8_FORMATS},
        )(encode)

    def decode(x, *, source, target):
        return _output(float8.decode(x, source), target)

    backend.implements("cast_float8", name="decode", supports={"source": FLOAT8_FORMATS, "target": _FLOATS})(decode)


_register_casts()
