"""MX and NVFP4 in plain float32 NumPy: scales by the bits of the exponent, elements by `small_floats`."""

import numpy as np

from lowbit_cts.kernels import Backend, InfinityInBlock, ScaleMode, Semantics, ZeroScale
from lowbit_cts.kernels.numpy import small_floats
from lowbit_cts.kernels.numpy.numbers import WIDE, float32_of, output_of
from lowbit_cts.reference.mx import MX_FORMATS

_F = np.float32
#: Element format to the exponent of its largest value, and that value.
_LARGEST = {
    "float8_e4m3fn": (8, 448.0),
    "float8_e5m2": (15, 57344.0),
    "float6_e3m2fn": (4, 28.0),
    "float6_e2m3fn": (2, 7.5),
    "float4_e2m1fn": (2, 6.0),
    "int8": (0, 127 / 64),
}


def _blocks(x, size):
    """Return x as (M, G, size), and the largest magnitude of each block; NaN of a block that holds one."""
    blocks = x.reshape(x.shape[0], x.shape[1] // size, size)
    return blocks, np.abs(blocks).max(axis=2, initial=0)


def _elements(values, format, narrow_range):
    """Return values that are divided by their block's scale as codes, rounded to nearest even and saturated."""
    if format != "int8":
        return small_floats.encode(values, format, saturate=True)
    steps = np.clip(np.rint(values * _F(64)), -127 if narrow_range else -128, 127)
    return np.nan_to_num(steps, nan=0).astype(np.int8)


def _codes_mx(blocks, scale, format, narrow_range):
    """Return the elements under E8M0 scales: multiplied by the power of two of the exponent 127 - scale."""
    inverse = np.where(scale < 254, (254 - scale.astype(np.int32)) << 23, 0x400000).view(_F)  # 2**-127 is subnormal
    inverse[scale == 255] = np.nan
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        values = blocks * inverse[..., None]
    return _elements(values, format, narrow_range).reshape(blocks.shape[0], -1)


def quantize_mx(x, *, format, input_format, narrow_range):
    """Return the largest exponent of each block less the elements' largest as the scale, and the elements."""
    blocks, largest = _blocks(float32_of(x, input_format), 32)
    exponent = (largest.view(np.int32) >> 23) & 0xFF  # 255 of NaN and Inf, 0 of subnormal numbers
    scale = np.where(exponent == 255, 255, np.maximum(exponent - _LARGEST[format][0], 0)).astype(np.uint8)
    return _codes_mx(blocks, scale, format, narrow_range), scale


def quantize_mx_rceil(x, *, format, input_format, narrow_range):
    """Return the least powers of two under which no element saturates as the scales, and the elements."""
    blocks, largest = _blocks(float32_of(x, input_format), 32)
    bits = (largest / _F(_LARGEST[format][1])).view(np.int32)
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    # Of subnormal numbers those up to 2**-127 get that, the others 2**-126; int8 reaches beyond 2**127.
    scale = np.minimum(exponent + np.where(exponent == 0, mantissa > 0x400000, mantissa > 0), 254)
    scale = np.where(np.isnan(largest), 255, np.where(np.isinf(largest), 254, scale)).astype(np.uint8)
    return _codes_mx(blocks, scale, format, narrow_range), scale


def dequantize_mx(codes, scale, *, format, output_format):
    """Return element * scale."""
    elements = codes / _F(64) if format == "int8" else small_floats.decode(codes, format)
    blocks = elements.reshape(codes.shape[0], codes.shape[1] // 32, 32)
    with np.errstate(over="ignore", invalid="ignore"):
        y = blocks * small_floats.decode(scale, "float8_e8m0fnu")[..., None]
        return output_of(y.reshape(codes.shape), output_format)


def choose_global_scale(x, *, input_format):
    """Return max|x| / (6 * 448), 1 of zeros."""
    scale = np.abs(float32_of(x, input_format)).max() / _F(2688)
    return np.asarray(scale if scale > 0 else 1, _F)


def quantize_nvfp4(x, global_scale, *, input_format):
    """Return (max|x| / 6) / g in E4M3 for each block, and x / (scale * g) in E2M1."""
    blocks, largest = _blocks(float32_of(x, input_format), 16)
    g = _F(1 if global_scale is None else global_scale)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        scale = small_floats.encode(largest / _F(6) / g, "float8_e4m3fn", saturate=True) & 0x7F
        steps = small_floats.decode(scale, "float8_e4m3fn") * g
        values = np.where(steps[..., None] > 0, blocks / steps[..., None], _F(0))
    return _elements(values, "float4_e2m1fn", False).reshape(x.shape), scale


def dequantize_nvfp4(codes, scale, global_scale, *, output_format):
    """Return element * (scale * g)."""
    steps = small_floats.decode(scale, "float8_e4m3fn")
    if global_scale is not None:
        steps = steps * _F(global_scale)
    blocks = small_floats.decode(codes, "float4_e2m1fn").reshape(codes.shape[0], codes.shape[1] // 16, 16)
    with np.errstate(invalid="ignore", over="ignore"):
        return output_of((blocks * steps[..., None]).reshape(codes.shape), output_format)


def register(backend: Backend) -> None:
    """Register the kernels."""
    formats = {"format": MX_FORMATS}
    quantized = {**formats, "input_format": WIDE, "narrow_range": (False, True)}
    rceil = Semantics(scale_mode=ScaleMode.RCEIL, infinity_in_block=InfinityInBlock.LARGEST_SCALE)
    backend.implements("quantize_mx", supports=quantized)(quantize_mx)
    backend.implements("quantize_mx", semantics=rceil, supports=quantized)(quantize_mx_rceil)
    backend.implements("dequantize_mx", supports={**formats, "output_format": WIDE})(dequantize_mx)
    levels = {"levels": ("two", "one")}
    backend.implements("choose_global_scale_nvfp4", semantics=Semantics(zero_scale=ZeroScale.ONE),
                       supports={"input_format": WIDE})(choose_global_scale)  # fmt: skip
    backend.implements("quantize_nvfp4", supports={**levels, "input_format": WIDE})(quantize_nvfp4)
    backend.implements("dequantize_nvfp4", supports={**levels, "output_format": WIDE})(dequantize_nvfp4)
