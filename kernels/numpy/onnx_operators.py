"""ONNX's quantized operators in plain NumPy: int32 sums, float32 multipliers."""

import numpy as np

from lowbit_cts.kernels import PRESETS, Backend
from lowbit_cts.reference.formats import integer_format

INTEGERS = ("int8", "uint8")
EVERYWHERE = {
    "a_format": INTEGERS,
    "b_format": INTEGERS,
    "activation_granularity": ("tensor", "token"),
    "weight_granularity": ("tensor", "channel"),
    "weight_mapping": ("symmetric", "asymmetric"),
}


def matmul_integer(a, a_zero_point, b, b_zero_point):
    """Return the int32 product of codes less their zero points."""
    return (a.astype(np.int32) - np.reshape(a_zero_point, (-1, 1))) @ (b.astype(np.int32) - b_zero_point)


def codes_of(acc, scale, y_scale, y_zero_point, format):
    """Return sums times scale / y_scale, rounded half to even, plus the zero point, saturated."""
    fmt = integer_format(format)
    scaled = np.rint(acc.astype(np.float32) * (scale / y_scale))
    return np.clip(scaled + y_zero_point, fmt.minimum, fmt.maximum).astype(fmt.carrier)


def qlinear_matmul(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point, *, y_format):
    """Return the quantized product of two quantized matrices."""
    acc = matmul_integer(a, a_zero_point, b, b_zero_point)
    return codes_of(acc, np.reshape(a_scale, (-1, 1)) * b_scale, y_scale, y_zero_point, y_format)


def dynamic_quantize_linear(x):
    """Return codes, scale and zero point of a matrix by its own range."""
    low, high = np.minimum(x.min(), np.float32(0)), np.maximum(x.max(), np.float32(0))
    scale = (high - low) / np.float32(255) if high > low else np.float32(1)
    zero_point = np.clip(np.rint(-low / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero_point, 0, 255).astype(np.uint8)
    return codes, np.array(scale, np.float32), np.array(zero_point, np.int32)


def register(backend: Backend) -> None:
    """Register the kernels."""
    backend.implements("matmul_integer", supports=EVERYWHERE)(matmul_integer)
    backend.implements("qlinear_matmul", supports={**EVERYWHERE, "y_format": INTEGERS})(qlinear_matmul)
    backend.implements("dynamic_quantize_linear", semantics=PRESETS["onnx"])(dynamic_quantize_linear)
