"""torchao: packed nibbles, block scales in the order of cuBLAS, and the block formats MX and NVFP4.

Codes of four bits, packed by torchao, are unpacked by its own functions.
"""

from dataclasses import replace

import torch
import torchao
from torch import Tensor
from torchao.prototype.mx_formats.kernels import pack_uint4, unpack_uint4
from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_dtype, to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, nvfp4_quantize, per_tensor_amax_to_scale
from torchao.prototype.mx_formats.utils import to_blocked

from lowbit_cts.kernels import PRESETS, Backend, InfinityInBlock, ScaleMode

backend = Backend("torchao", version=torchao.__version__, arrays="torch")

# Places of codes and scales in memory -------------------------------------------------------------------------------

#: Two codes a byte, the first in the low nibble.
_NIBBLES = {"packing": "low_first", "bits": 4}


@backend.implements("pack_codes", name="pack_uint4", supports=_NIBBLES)
def pack(codes: Tensor) -> Tensor:
    """Return ``pack_uint4(codes)``, a zero beside an odd last code of a row: it asserts that bytes are whole."""
    odd = codes.shape[1] % 2
    return pack_uint4(torch.nn.functional.pad(codes, (0, 1)) if odd else codes)


@backend.implements("unpack_codes", name="unpack_uint4", supports={**_NIBBLES, "layout": ("contiguous", "offset")})
def unpack(words: Tensor) -> Tensor:
    """Return ``unpack_uint4(words)``, which asserts that the words are contiguous."""
    return unpack_uint4(words)


@backend.implements("swizzle_scales", name="to_blocked", supports={"format": ("float8_e8m0fnu", "float8_e4m3fn")})
def swizzle(scales: Tensor) -> Tensor:
    """Return ``to_blocked(scales)``."""
    return to_blocked(scales)


# MX and NVFP4 -------------------------------------------------------------------------------------------------------

_TORCHAO = PRESETS["torchao"]
_INPUTS = {"input_format": ("float32", "bfloat16"), "layout": ("contiguous", "offset")}
#: What torchao calls the formats of elements.
_ELEMENTS = {
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
    "float6_e3m2fn": "fp6_e3m2",
    "float6_e2m3fn": "fp6_e2m3",
    "float4_e2m1fn": torch.float4_e2m1fn_x2,
}
_MX = {"format": tuple(_ELEMENTS)}
_LEVELS = {"levels": ("two", "one")}


def _register_to_mx() -> None:
    for mode in (ScaleMode.FLOOR, ScaleMode.CEIL, ScaleMode.EVEN, ScaleMode.RCEIL):
        rceil = mode is ScaleMode.RCEIL
        infinity = InfinityInBlock.LARGEST_SCALE if rceil else InfinityInBlock.NEXT_POWER

        def quantize(x: Tensor, *, format: str, mode: ScaleMode = mode) -> tuple[Tensor, Tensor]:
            scale, codes = to_mx(x, _ELEMENTS[format], 32, ScaleCalculationMode(mode.value))
            return unpack_uint4(codes) if format == "float4_e2m1fn" else codes, scale

        backend.implements(
            "quantize_mx",
            name=f"to_mx_{mode}",
            semantics=replace(_TORCHAO, scale_mode=mode, infinity_in_block=infinity),
            supports={**_MX, **_INPUTS},
        )(quantize)


_register_to_mx()


# In float16 the product of element and scale is formed, too, which overflows: not declared.
@backend.implements(
    "dequantize_mx",
    name="to_dtype",
    supports={**_MX, "output_format": ("float32", "bfloat16"), "layout": ("contiguous", "offset")},
)
def dequantize_mx(codes: Tensor, scale: Tensor, *, format: str, output_format: str) -> Tensor:
    """Return ``to_dtype`` of the codes, packed where torchao has them so."""
    stored = pack_uint4(codes) if format == "float4_e2m1fn" else codes
    return to_dtype(stored, scale, _ELEMENTS[format], 32, getattr(torch, output_format))


@backend.implements(
    "choose_global_scale_nvfp4",
    name="per_tensor_amax_to_scale",
    semantics=_TORCHAO,
    supports={"input_format": ("float32", "bfloat16", "float16")},
)
def choose_global_scale(x: Tensor) -> Tensor:
    """Return ``per_tensor_amax_to_scale`` of the largest magnitude."""
    return per_tensor_amax_to_scale(torch.max(torch.abs(x)))


@backend.implements("quantize_nvfp4", name="nvfp4_quantize", semantics=_TORCHAO, supports={**_LEVELS, **_INPUTS})
def quantize_nvfp4(x: Tensor, global_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the unpacked codes and the scales of ``nvfp4_quantize``."""
    scale, codes = nvfp4_quantize(x, 16, global_scale)
    return unpack_uint4(codes), scale


@backend.implements(
    "dequantize_nvfp4",
    name="NVFP4Tensor.dequantize",
    supports={**_LEVELS, "output_format": ("float32", "bfloat16", "float16")},
)
def dequantize_nvfp4(codes: Tensor, scale: Tensor, global_scale: Tensor | None, *, output_format: str) -> Tensor:
    """Return what a tensor of these parts dequantizes to."""
    output = getattr(torch, output_format)
    return NVFP4Tensor(pack_uint4(codes), scale, 16, output, global_scale).dequantize(output)
