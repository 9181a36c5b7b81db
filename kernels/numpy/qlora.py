"""Adapters merged, and beside 4-bit weights, in plain NumPy."""

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.numpy.codebooks import dequantize_blockwise, double_dequantize
from lowbit_cts.kernels.numpy.numbers import WIDE, float32_of, output_of


def merge_lora(w, down, up, scaling, *, input_format):
    """Return w + scaling up @ down."""
    w, down, up = (float32_of(x, input_format) for x in (w, down, up))
    with np.errstate(over="ignore", invalid="ignore"):
        return output_of(w + up @ down * scaling, input_format)


def _weights(codes, absmax_codes, nested_absmax, offset, *, codebook, block_size, nested_block_size):
    """Return the weights in float32, (K, N)."""
    flat = double_dequantize(absmax_codes.ravel(), nested_absmax, offset, block_size=nested_block_size)
    absmax = flat.reshape(absmax_codes.shape)
    weights = dequantize_blockwise(codes, absmax, codebook=codebook, block_size=block_size, output_format="float32")
    return np.ascontiguousarray(weights.T)


def linear_qlora(a, down, up, scaling, bias, *, prepared, input_format):
    """Return a @ weights + scaling (a @ down.T) @ up.T + bias."""
    x, down, up = (float32_of(factor, input_format) for factor in (a, down, up))
    with np.errstate(over="ignore", invalid="ignore"):
        y = x @ prepared + (x @ down.T) @ up.T * scaling
        return output_of(y if bias is None else y + bias, input_format)


def register(backend: Backend) -> None:
    """Register the kernels."""
    backend.implements("merge_lora", supports={"input_format": WIDE})(merge_lora)
    backend.implements(
        "linear_qlora",
        prepare=_weights,
        supports={"codebook": ("nf4", "fp4_bitsandbytes"), "input_format": WIDE, "has_bias": (False, True)},
    )(linear_qlora)
