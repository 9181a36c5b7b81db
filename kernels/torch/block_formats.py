"""MX and NVFP4 in plain tensor operations: exponents by bits, float8 by torch's own casts, 6 and 4 bits by steps.

Inductor knows no float8_e8m0fnu, so what is built takes and returns scales as uint8.
"""

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from lowbit_cts.kernels import (
    Backend,
    BlockScaleSteps,
    Division,
    ElementSteps,
    InfinityInBlock,
    ScaleMode,
    Semantics,
    ZeroScale,
)
from lowbit_cts.kernels.torch.build import Build
from lowbit_cts.reference.mx import MX_FORMATS

_FLOATS = ("float32", "float16", "bfloat16")
#: Element format to (bits, mantissa bits, least exponent, largest value).
_LAYOUT = {
    "float8_e4m3fn": (8, 3, -6, 448.0),
    "float8_e5m2": (8, 2, -14, 57344.0),
    "float6_e3m2fn": (6, 2, -2, 28.0),
    "float6_e2m3fn": (6, 3, 0, 7.5),
    "float4_e2m1fn": (4, 1, 0, 6.0),
    "int8": (8, 6, 0, 127 / 64),
}
#: Element format to the exponent of its largest value.
_LARGEST_EXPONENT = dict(zip(MX_FORMATS, (8, 15, 4, 2, 2, 0), strict=True))


def _divided(x: Tensor, number: float) -> Tensor:
    """Return x / number; by a Python number CUDA would multiply with its reciprocal."""
    return x / x.new_full((), number)


def _small_codes(values: Tensor, bits: int, mantissa_bits: int, least_exponent: int) -> Tensor:
    """Return saturated values as codes of a small float: the exponent's, and the steps above it, which may carry."""
    size = values.abs()
    exponent = (size.view(torch.int32) >> 23).clamp(min=127 + least_exponent)
    steps = torch.round(size * ((254 + mantissa_bits - exponent) << 23).view(torch.float32)).to(torch.int32)
    magnitude = ((exponent - (127 + least_exponent)) << mantissa_bits) + steps
    return (magnitude | (torch.signbit(values).to(torch.int32) << (bits - 1))).to(torch.uint8)


def _encode(values: Tensor, format: str, narrow_range: bool) -> Tensor:
    """Return values that are divided by their block's scale as elements, rounded to nearest even and saturated."""
    bits, mantissa_bits, least_exponent, largest = _LAYOUT[format]
    if format == "int8":
        steps = torch.clamp(torch.round(values * 64), -127 if narrow_range else -128, 127)
        return torch.nan_to_num(steps, nan=0.0).to(torch.int8)
    values = torch.clamp(values, -largest, largest)
    if bits == 8:
        return values.to(getattr(torch, format))
    return _small_codes(torch.nan_to_num(values, nan=largest), bits, mantissa_bits, least_exponent)


def _scaled(blocks: Tensor, scale: Tensor) -> Tensor:
    """Return blocks (M, G, size) divided by powers of two, E8M0 codes (M, G) as int32."""
    inverse = torch.where(scale < 254, (254 - scale) << 23, 0x400000)  # 2**-127 is subnormal
    inverse = torch.where(scale < 255, inverse, 0x7FC00000).view(torch.float32)
    return blocks * inverse[..., None]


def _quantize_mx_floor(x: Tensor, format: str, narrow_range: bool) -> tuple[Tensor, Tensor]:
    blocks = x.float().unflatten(1, (x.shape[1] // 32, 32))
    # 255 of NaN, whose sign a reduction may set, and of Inf, 0 of subnormal numbers
    exponent = (blocks.abs().amax(-1).view(torch.int32) >> 23) & 0xFF
    scale = torch.where(exponent < 255, (exponent - _LARGEST_EXPONENT[format]).clamp(min=0), 255)
    codes = _encode(_scaled(blocks, scale), format, narrow_range)
    return codes.flatten(1), scale.to(torch.uint8)


def _quantize_mx_rceil(x: Tensor, format: str, narrow_range: bool) -> tuple[Tensor, Tensor]:
    blocks = x.float().unflatten(1, (x.shape[1] // 32, 32))
    largest = blocks.abs().amax(-1)
    bits = _divided(largest, _LAYOUT[format][3]).view(torch.int32)
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    # Of subnormal numbers those up to 2**-127 get that, the others 2**-126; int8 reaches beyond 2**127, as does Inf.
    scale = exponent + (mantissa > torch.where(exponent == 0, 0x400000, 0)).to(torch.int32)
    scale = torch.where(largest.isnan(), 255, scale.clamp(max=254))
    codes = _encode(_scaled(blocks, scale), format, narrow_range)
    return codes.flatten(1), scale.to(torch.uint8)


@lru_cache
def _decoded(format: str, device: torch.device) -> Tensor:
    """Return the values of all codes of a float of 6 or 4 bits."""
    bits, mantissa_bits, least_exponent, _ = _LAYOUT[format]
    codes = torch.arange(1 << (bits - 1))
    exponent, mantissa = codes >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    significand = mantissa + ((exponent > 0).long() << mantissa_bits)
    values = significand * 2.0 ** (exponent.clamp(min=1) - 1 + least_exponent - mantissa_bits)
    return torch.cat([values, -values]).float().to(device)


def element_table(format: str, device: torch.device) -> tuple[Tensor | None, bool]:
    """Return the values of the codes of a small float, None where torch knows the type; and whether it is int8."""
    return (_decoded(format, device) if _LAYOUT[format][0] < 8 else None), format == "int8"


def dequantize_mx(codes: Tensor, scale: Tensor, table: Tensor | None, integer: bool, output: torch.dtype) -> Tensor:
    """Return elements times scales, which come as uint8; small floats come with the table of their values."""
    elements = codes.float() if table is None else table[codes.int()]
    exponent = scale.int()
    bits = torch.where(exponent > 0, exponent << 23, 0x400000)  # 2**-127 is subnormal
    steps = torch.where(exponent < 255, bits, 0x7FC00000).view(torch.float32)
    steps = steps / 64 if integer else steps  # exact, if subnormal
    return (elements.unflatten(1, (codes.shape[1] // 32, 32)) * steps[..., None]).flatten(1).to(output)


def _choose_global_scale(x: Tensor) -> Tensor:
    scale = _divided(x.float().abs().amax(), 2688.0)
    return torch.where(scale > 0, scale, 1.0)


def _quantize_nvfp4(x: Tensor, global_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    blocks = x.float().unflatten(1, (x.shape[1] // 16, 16))
    quotient = _divided(blocks.abs().amax(-1), 6.0)
    if global_scale is not None:
        quotient = quotient / global_scale
    scale = quotient.clamp(max=448.0).to(torch.float8_e4m3fn)
    steps = scale.float()
    if global_scale is not None:
        steps = steps * global_scale
    steps = steps[..., None]
    values = torch.where(steps > 0, blocks / steps, 0.0)
    return _encode(values, "float4_e2m1fn", False).flatten(1), scale


def dequantize_nvfp4(
    codes: Tensor, scale: Tensor, global_scale: Tensor | None, table: Tensor, output: torch.dtype
) -> Tensor:
    """Return elements, by the table of their values, times the scales."""
    steps = scale.float()
    if global_scale is not None:
        steps = steps * global_scale
    return (table[codes.int()].unflatten(1, (codes.shape[1] // 16, 16)) * steps[..., None]).flatten(1).to(output)


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register the formulas in plain tensor operations.

    Parameters
    ----------
    backend : Backend
    build : callable
        Eager or compiled (`lowbit_cts.kernels.torch.build`).
    arithmetic : Semantics
        How a division comes out.
    """
    floor, rceil, dequantize_mx_ = build(_quantize_mx_floor), build(_quantize_mx_rceil), build(dequantize_mx)
    choose, quantize_, dequantize_ = build(_choose_global_scale), build(_quantize_nvfp4), build(dequantize_nvfp4)
    formats = {"format": MX_FORMATS}
    modes = {
        "floor": (floor, arithmetic),
        "rceil": (
            rceil,
            replace(arithmetic, scale_mode=ScaleMode.RCEIL, infinity_in_block=InfinityInBlock.LARGEST_SCALE),
        ),
    }
    for mode, (kernel, semantics) in modes.items():

        def quantize_mx(x, *, format, narrow_range, kernel=kernel):
            codes, scale = kernel(x, format, bool(narrow_range))
            return codes, scale.view(torch.float8_e8m0fnu)

        backend.implements(
            "quantize_mx",
            name=f"composed_{mode}",
            semantics=semantics,
            supports={**formats, "input_format": _FLOATS, "narrow_range": (False, True)},
        )(quantize_mx)

    @backend.implements("dequantize_mx", name="composed", supports={**formats, "output_format": _FLOATS})
    def dequantize(codes, scale, *, format, output_format):
        table, integer = element_table(format, codes.device)
        return dequantize_mx_(codes, scale.view(torch.uint8), table, integer, getattr(torch, output_format))

    @backend.implements(
        "choose_global_scale_nvfp4",
        name="composed",
        semantics=replace(arithmetic, zero_scale=ZeroScale.ONE),
        supports={"input_format": _FLOATS},
    )
    def choose_global_scale(x):
        return choose(x)

    levels = {"levels": ("two", "one")}
    approximate = arithmetic.division is Division.APPROXIMATE
    scaling = replace(
        arithmetic,
        block_scale_steps=BlockScaleSteps.APPROXIMATE if approximate else BlockScaleSteps.DIVIDE,
        element_steps=ElementSteps.APPROXIMATE if approximate else ElementSteps.DIVIDE,
    )

    @backend.implements(
        "quantize_nvfp4",
        name="composed",
        semantics=scaling,
        supports={**levels, "input_format": _FLOATS},
    )
    def quantize_nvfp4(x, global_scale):
        return quantize_(x, global_scale)

    @backend.implements("dequantize_nvfp4", name="composed", supports={**levels, "output_format": _FLOATS})
    def dequantize_fp4(codes, scale, global_scale, *, output_format):
        table, _ = element_table("float4_e2m1fn", codes.device)
        return dequantize_(codes, scale, global_scale, table, getattr(torch, output_format))
