"""torchao: packed nibbles, block scales in the order of cuBLAS, MX and NVFP4, linear layers on its tensors, training.

Codes of four bits, packed by torchao, are unpacked by its own functions.
"""

from dataclasses import replace
from typing import Any

import torch
import torchao
from torch import Tensor
from torch.nn.functional import linear, pad
from torchao.kernel.intmm import int_scaled_matmul
from torchao.prototype.mx_formats.kernels import pack_uint4, unpack_uint4
from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode, to_dtype, to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, nvfp4_quantize, per_tensor_amax_to_scale
from torchao.prototype.mx_formats.utils import to_blocked
from torchao.quantization import Int8Tensor, IntxUnpackedToInt8Tensor, PerGroup
from torchao.quantization.qat import IntxFakeQuantizeConfig
from torchao.quantization.qat.fake_quantizer import IntxFakeQuantizer

from lowbit_cts.kernels import (
    PRESETS,
    Backend,
    Division,
    GradientForm,
    InfinityInBlock,
    ScaleMode,
    Semantics,
    WeightPrecision,
)

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


# Linear layers ------------------------------------------------------------------------------------------------------

_FLOATS = ("float32", "float16", "bfloat16")
#: The unsigned codes of a format less this are those of its signed one, in which torchao has them.
_MIDDLE = {"int4": 0, "uint4": 8, "int8": 0, "uint8": 128}


def _weights(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, group_index: None, *, format: str, group_size: int | None
) -> tuple[IntxUnpackedToInt8Tensor, int]:
    """Return weights as a tensor of torchao, and the rows of zeros that fill their last group."""
    size = group_size or codes.shape[0]
    missing = -codes.shape[0] % size if size else 0
    middle, wide = _MIDDLE[format], scale if group_size else scale[None]
    filled = pad((codes.to(torch.int16) - middle).to(torch.int8), (0, 0, 0, missing))
    zeros = torch.zeros_like(wide, dtype=torch.int8) if zero_point is None else (zero_point - middle).to(torch.int8)
    weights = IntxUnpackedToInt8Tensor(
        filled.t().contiguous(), wide.t().contiguous(), zeros.reshape(wide.shape).t().contiguous(),
        torch.int4 if format in ("int4", "uint4") else torch.int8, (1, size), scale.dtype, None,
    )  # fmt: skip
    return weights, missing


def _linear(a: Tensor, bias: None, *, prepared: tuple[IntxUnpackedToInt8Tensor, int]) -> Tensor:
    weights, missing = prepared
    return linear(pad(a, (0, missing)) if missing else a, weights)


for _operation, _formats in (("matmul_w4a16", ("uint4", "int4")), ("matmul_w8a16", ("int8", "uint8"))):
    backend.implements(
        _operation,
        name="IntxUnpackedToInt8Tensor",
        prepare=_weights,
        semantics=Semantics(weight_precision=WeightPrecision.ACTIVATIONS),
        supports={
            "format": _formats, "granularity": ("group", "channel"), "group_size": (32, 64, 128, 48),
            "mapping": ("symmetric", "asymmetric"), "input_format": _FLOATS,
        },
    )(_linear)  # fmt: skip


# In 16 bits the sums are rounded before they are scaled.
@backend.implements(
    "matmul_w8a16",
    name="Int8Tensor",
    prepare=lambda codes, scale, zero_point, group_index: Int8Tensor(
        codes.t().contiguous(), scale[:, None].contiguous(), [1, codes.shape[0]], scale.dtype
    ),
    supports={"format": "int8", "granularity": "channel", "input_format": "float32"},
)
def int8_tensor(a: Tensor, bias: None, *, prepared: Int8Tensor) -> Tensor:
    """Return the layer's outputs."""
    return linear(a, prepared)


def _columns(b: Tensor, b_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights as torchao lays them out; of one row not, which _int_mm would take for a column."""
    return b.t().contiguous().t() if len(b) > 1 else b.clone(memory_format=torch.contiguous_format), b_scale


@backend.implements(
    "matmul_w8a8",
    prepare=_columns,
    supports={
        "activation_granularity": "token", "weight_granularity": "channel", "mapping": "symmetric",
        "a_format": "int8", "output_format": "float32", "has_bias": (False, True),
    },
)  # fmt: skip
def int_scaled_product(
    a: Tensor, a_scale: Tensor, a_zero_point: Tensor, bias: Tensor | None, *, prepared: Any
) -> Tensor:
    """Return the outputs of `Int8Tensor` with quantized activations: the rows are scaled first, then the columns."""
    b, b_scale = prepared
    if a_zero_point.shape != a_scale.shape:
        raise ValueError("a_zero_point: must have the shape of a_scale")  # torchao has none here: it is zero
    rows = a.clone(memory_format=torch.contiguous_format)  # torchao has quantized them just before
    y = int_scaled_matmul(rows, b, a_scale[:, None].contiguous()) * b_scale
    return y if bias is None else y + bias


# Quantization-aware training ----------------------------------------------------------------------------------------

_CODES = [f"{sign}int{bits}" for sign in ("", "u") for bits in range(2, 9)]
#: What autograd makes of clamp(round(x * (1 / s)) + z), the rounding with a gradient of 1, and of s (q - z).
_TRAINING = Semantics(division=Division.RECIPROCAL, gradient_form=GradientForm.CHAIN)
_GROUPS = {"format": _CODES, "granularity": "group", "layout": ("contiguous", "offset")}


def _trained(
    x: Tensor, upstream: Tensor, scale: Tensor, zero_point: Tensor, format: str, group_size: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the values and of the scales, through a fake quantizer that learns its range."""
    config = IntxFakeQuantizeConfig(
        getattr(torch, format), PerGroup(group_size), is_symmetric=False, is_dynamic=False, range_learning=True
    )
    quantizer = IntxFakeQuantizer(config)
    leaf = x.detach().requires_grad_()
    quantizer.scale, quantizer.zero_point = torch.nn.Parameter(scale.detach()), zero_point
    quantizer(leaf).backward(upstream)
    return leaf.grad, quantizer.scale.grad


@backend.implements(
    "fake_quantize_gradient",
    name="IntxFakeQuantizer",
    semantics=_TRAINING,
    supports={**_GROUPS, "mapping": ("symmetric", "asymmetric")},
)
def fake_quantize_gradient(
    x: Tensor, upstream: Tensor, scale: Tensor, zero_point: Tensor, *, format: str, group_size: int
) -> Tensor:
    """Return the gradient of x."""
    return _trained(x, upstream, scale, zero_point, format, group_size)[0]


@backend.implements(
    "lsq_gradient",
    name="IntxFakeQuantizer",
    semantics=_TRAINING,
    supports={**_GROUPS, "has_zero_point": (False, True)},
)
def lsq_gradient(
    v: Tensor, upstream: Tensor, scale: Tensor, zero_point: Tensor | None, gradient_scale: Tensor, *, format: str,
    group_size: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return both gradients; that of the scales times the factor, which torchao leaves to the learning rate."""
    zero = torch.zeros_like(scale, dtype=torch.int32) if zero_point is None else zero_point
    dv, dscale = _trained(v, upstream, scale, zero, format, group_size)
    return dv, dscale * gradient_scale
