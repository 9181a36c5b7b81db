"""Linear layers on quantized operands in plain NumPy: operands dequantized to float32, and a float32 product."""

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.numpy import gguf
from lowbit_cts.kernels.numpy.block_formats import dequantize_mx, dequantize_nvfp4
from lowbit_cts.kernels.numpy.codebooks import dequantize_blockwise
from lowbit_cts.kernels.numpy.numbers import WIDE, float32_of, output_of
from lowbit_cts.kernels.numpy.small_floats import decode
from lowbit_cts.reference.mx import MX_FORMATS

_FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_BIAS = {"has_bias": (False, True)}
#: Rows and columns that share a scale of block-scaled float8.
_BLOCK = 128


def _product(a, b, bias, format):
    with np.errstate(invalid="ignore", over="ignore"):
        y = a @ b
        return output_of(y if bias is None else y + bias, format)


def _weights(codes, scale, zero_point, group_index, *, format, group_size, input_format):
    """Return (codes - zero_point) * scale in float32, (K, N)."""
    middle = {"uint4": 8, "uint8": 128}.get(format, 0)
    zero = np.full(scale.shape, middle, np.int32) if zero_point is None else zero_point
    scale = float32_of(scale, input_format)
    if group_size is not None:
        groups = -(-codes.shape[0] // group_size)
        if scale.shape[0] != groups:
            raise ValueError(f"scale: must have {groups} rows")
        index = np.arange(codes.shape[0]) // group_size if group_index is None else group_index
        if index.size and not 0 <= index.min() <= index.max() < groups:
            raise ValueError("group_index: outside the groups")
        scale, zero = scale[index], zero[index]
    return (codes.astype(np.int32) - zero).astype(np.float32) * scale


def weight_only(a, bias, *, prepared, input_format):
    """Return a @ weights + bias."""
    return _product(float32_of(a, input_format), prepared, bias, input_format)


def _spread(scale, shape):
    """Return block scales (P, Q) beside each element of a matrix."""
    return scale.repeat(_BLOCK, axis=0)[: shape[0]].repeat(_BLOCK, axis=1)[:, : shape[1]]


def _float8_weights(b, b_scale, *, b_format, scaling):
    if scaling == "block":
        blocks = tuple(-(-length // _BLOCK) for length in b.shape)
        if b_scale.shape != blocks:
            raise ValueError(f"b_scale: must have the shape {blocks}")
        return decode(b, b_format) * _spread(b_scale, b.shape)
    return decode(b, b_format) * b_scale


def matmul_float8(a, a_scale, bias, *, prepared, a_format, scaling, output_format):
    """Return (a * a_scale) @ weights + bias."""
    if scaling == "block":
        if a_scale.shape != (a.shape[0], -(-a.shape[1] // _BLOCK)):
            raise ValueError("a_scale: must have a column a block of a")
        scale = a_scale.repeat(_BLOCK, axis=1)[:, : a.shape[1]]
    else:
        scale = a_scale[:, None] if scaling == "row" else a_scale
    with np.errstate(invalid="ignore"):
        return _product(decode(a, a_format) * scale, prepared, bias, output_format)


def matmul_mx(a, a_scale, bias, *, prepared, a_format, output_format):
    """Return dequantized a @ weights + bias."""
    numbers = dequantize_mx(a, a_scale, format=a_format, output_format="float32")
    return _product(numbers, prepared, bias, output_format)


def _mx_weights(b, b_scale, *, b_format):
    return dequantize_mx(b, b_scale, format=b_format, output_format="float32").T


def matmul_nvfp4(a, a_scale, a_global_scale, bias, *, prepared, output_format):
    """Return dequantized a @ weights + bias."""
    numbers = dequantize_nvfp4(a, a_scale, a_global_scale, output_format="float32")
    return _product(numbers, prepared, bias, output_format)


def _nvfp4_weights(b, b_scale, b_global_scale):
    return dequantize_nvfp4(b, b_scale, b_global_scale, output_format="float32").T


def _codebook_weights(codes, absmax, *, codebook, block_size):
    return dequantize_blockwise(codes, absmax, codebook=codebook, block_size=block_size, output_format="float32").T


def _gguf_weights(blocks, *, type):
    return gguf.dequantize(blocks, type=type, output_format="float32").T


def matvec_gguf(a, *, prepared):
    """Return a @ weights."""
    return _product(a, prepared, None, "float32")


def register(backend: Backend) -> None:
    """Register the kernels."""
    layers = {
        "granularity": ("group", "channel"),
        "group_size": (128, 64, 32, 48),
        "mapping": ("symmetric", "asymmetric"),
        "act_order": (False, True),
        "input_format": WIDE,
        **_BIAS,
    }
    for bits, formats in ((4, ("uint4", "int4")), (8, ("int8", "uint8"))):
        backend.implements(
            f"matmul_w{bits}a16", name="float32", prepare=_weights, supports={"format": formats, **layers}
        )(weight_only)
    outputs = {"output_format": WIDE, **_BIAS}
    backend.implements(
        "matmul_float8",
        prepare=_float8_weights,
        supports={
            "a_format": _FLOAT8, "b_format": _FLOAT8, "scaling": ("tensor", "row", "block"), **outputs,
        },
    )(matmul_float8)  # fmt: skip
    backend.implements(
        "matmul_mx", prepare=_mx_weights, supports={"a_format": MX_FORMATS, "b_format": MX_FORMATS, **outputs}
    )(matmul_mx)
    backend.implements("matmul_nvfp4", prepare=_nvfp4_weights, supports=outputs)(matmul_nvfp4)
    backend.implements(
        "linear_nf4",
        name="float32",
        prepare=_codebook_weights,
        supports={"codebook": ("nf4", "fp4_bitsandbytes"), "input_format": WIDE, **_BIAS},
    )(weight_only)
    backend.implements("matvec_gguf", prepare=_gguf_weights, supports={"type": gguf.TYPES})(matvec_gguf)
