"""Vector operations in plain NumPy."""

import numpy as np

from lowbit_cts.kernels import Backend, Requantization, Semantics
from lowbit_cts.kernels.numpy.requantization import double_rounding, tflite_multiplier
from lowbit_cts.reference.formats import integer_format


def add_int8(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point, *, format):
    """Return the quantized sum of two quantized vectors."""
    fmt = integer_format(format)
    total = a_scale * (a - a_zero_point).astype(np.float32) + b_scale * (b - b_zero_point).astype(np.float32)
    return np.clip(np.rint(total / y_scale) + y_zero_point, fmt.minimum, fmt.maximum).astype(fmt.carrier)


def add_in_fixed_point(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point, *, format):
    """Return the sum by TFLite's integer arithmetic: operands with 20 fractional bits, in units of twice a scale."""
    fmt = integer_format(format)
    twice = 2 * np.maximum(a_scale, b_scale).astype(np.float64)
    total = np.zeros(a.shape, np.int64)
    for codes, scale, zero_point in ((a, a_scale, a_zero_point), (b, b_scale, b_zero_point)):
        total += double_rounding((codes - zero_point).astype(np.int64) << 20, *tflite_multiplier(scale / twice))
    rounded = double_rounding(total, *tflite_multiplier(twice / (y_scale * np.float64(1 << 20))))
    return np.clip(rounded + y_zero_point, fmt.minimum, fmt.maximum).astype(fmt.carrier)


def register(backend: Backend) -> None:
    """Register the kernels."""
    backend.implements("add_int8", supports={"format": ("int8", "uint8")})(add_int8)
    backend.implements(
        "add_int8",
        semantics=Semantics(requantization=Requantization.DOUBLE_ROUNDING),
        supports={"format": ("int8", "uint8")},
    )(add_in_fixed_point)
