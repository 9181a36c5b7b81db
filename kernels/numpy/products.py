"""Products in plain NumPy: int32 sums, float32 epilogues.

Integers are multiplied as floating-point numbers that hold every partial sum, since BLAS has none of integers.
"""

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.numpy.numbers import WIDE, output_of


def matmul_int8(a, b):
    """Return the int32 product."""
    kind = _exact(a.shape[1])
    return (a.astype(kind) @ b.astype(kind)).astype(np.int64).astype(np.int32)  # wraps, as int32 sums do


def _exact(terms):
    """Return the type that holds sums of so many products of 9 and 8 bits: differences from a zero point, weights."""
    return np.float32 if terms << 16 <= 1 << 24 else np.float64


def _linear(a, a_scale, a_zero_point, bias, *, prepared, output_format):
    weights, b_scale = prepared
    shifted = a.astype(weights.dtype) - np.reshape(a_zero_point, (-1, 1)).astype(weights.dtype)
    y = (shifted @ weights).astype(np.float32) * np.reshape(a_scale, (-1, 1)) * b_scale
    return output_of(y if bias is None else y + bias, output_format)


def _prepare_linear(b, b_scale):
    return b.astype(_exact(len(b))), b_scale


def register(backend: Backend) -> None:
    """Register the kernels."""
    backend.implements("matmul_int8", supports={"a_format": ("int8", "uint8")})(matmul_int8)
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
            "output_format": WIDE,
        },
    )(_linear)
