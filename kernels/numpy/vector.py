"""Vector operations in plain NumPy."""

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.reference.formats import integer_format


def add_int8(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point, *, format):
    """Return the quantized sum of two quantized vectors."""
    fmt = integer_format(format)
    total = a_scale * (a - a_zero_point).astype(np.float32) + b_scale * (b - b_zero_point).astype(np.float32)
    return np.clip(np.rint(total / y_scale) + y_zero_point, fmt.minimum, fmt.maximum).astype(fmt.carrier)


def register(backend: Backend) -> None:
    """Register the kernels."""
    backend.implements("add_int8", supports={"format": ("int8", "uint8")})(add_int8)
