"""Products in plain NumPy: int32 sums, float32 epilogues."""

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.numpy.numbers import WIDE, output_of


def matmul_int8(a, b):
    """Return the int32 product."""
    return a.astype(np.int32) @ b.astype(np.int32)


def _linear(a, a_scale, a_zero_point, bias, *, prepared, output_format):
    weights, b_scale = prepared
    shifted = a.astype(np.int32) - np.reshape(a_zero_point, (-1, 1))
    y = (shifted @ weights).astype(np.float32) * np.reshape(a_scale, (-1, 1)) * b_scale
    return output_of(y if bias is None else y + bias, output_format)


def _prepare_linear(b, b_scale):
    return b.astype(np.int32), b_scale


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
