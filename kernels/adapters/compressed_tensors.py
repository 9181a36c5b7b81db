"""compressed-tensors: the words of its "pack-quantized" format, and MX and NVFP4 as its compressors store them.

Block formats go through the scales of its dynamic quantization and the compressors' `compress`, and back through
`decompress`, whose weights are bfloat16. What is packed is taken apart here.

Not declared: ``packed_dim=0``, which is GPTQ's order of codes that are offset first, and the conversions of
`compressed_tensors.utils.semi_structured_conversions`, whose metadata are in the order of Marlin-24.
"""

from dataclasses import replace
from importlib.metadata import version

import torch
from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
from compressed_tensors.compressors.mxfp6.base import MXFP6PackedCompressor
from compressed_tensors.compressors.mxfp8.base import MXFP8QuantizationCompressor
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils.helpers import compute_dynamic_scales_and_zp, generate_gparam
from torch import Tensor

from lowbit_cts.kernels import PRESETS, Backend, Division, ScaleMode

backend = Backend("compressed_tensors", version=version("compressed-tensors"), arrays="torch")

_SIGNED = {"packing": "compressed_tensors", "bits": tuple(range(1, 9)), "signed": True}


@backend.implements("pack_codes", name="pack_to_int32", supports=_SIGNED)
def pack(codes: Tensor, *, bits: int) -> Tensor:
    """Return ``pack_to_int32(codes, bits)``."""
    return pack_to_int32(codes, bits)


@backend.implements("unpack_codes", name="unpack_from_int32", supports=_SIGNED)
def unpack(words: Tensor, *, bits: int) -> Tensor:
    """Return ``unpack_from_int32``, asked for all the codes that the words hold."""
    rows, columns = words.shape
    return unpack_from_int32(words, bits, torch.Size((rows, columns * 32 // bits)))


# MX and NVFP4 -------------------------------------------------------------------------------------------------------

_COMPRESSED_TENSORS = PRESETS["compressed_tensors"]
_COMPRESSORS = {
    "float4_e2m1fn": MXFP4PackedCompressor,
    "float6_e2m3fn": MXFP6PackedCompressor,
    "float8_e4m3fn": MXFP8QuantizationCompressor,
}


def _scheme(bits: int, strategy: str, group_size: int, scale_dtype: torch.dtype) -> QuantizationScheme:
    arguments = QuantizationArgs(
        num_bits=bits, type="float", strategy=strategy, symmetric=True, group_size=group_size, scale_dtype=scale_dtype
    )
    return QuantizationScheme(targets=["Linear"], weights=arguments)


_MX_SCHEMES = {
    format: _scheme(bits, "group", 32, torch.uint8) for format, bits in zip(_COMPRESSORS, (4, 6, 8), strict=True)
}
_NVFP4_SCHEME = _scheme(4, "tensor_group", 16, torch.float8_e4m3fn)


def _taken_apart(packed: Tensor, format: str) -> Tensor:
    """Return codes of 4 or 6 bits, a byte each, out of bytes that hold 2, or of three that hold 4."""
    if format == "float4_e2m1fn":
        return torch.stack([packed & 15, packed >> 4], -1).flatten(1)
    low, middle, high = packed.unflatten(1, (-1, 3)).unbind(-1)
    codes = [low, low >> 6 | middle << 2, middle >> 4 | high << 4, high >> 2]
    return torch.stack(codes, -1).flatten(1) & 63


def _put_together(codes: Tensor, format: str) -> Tensor:
    """Return what `_taken_apart` takes apart."""
    if format == "float4_e2m1fn":
        return codes[:, ::2] | codes[:, 1::2] << 4
    first, second, third, fourth = codes.unflatten(1, (-1, 4)).unbind(-1)
    return torch.stack([first | second << 6, second >> 2 | third << 4, third >> 4 | fourth << 2], -1).flatten(1)


def _compress_mx(x: Tensor, *, format: str) -> tuple[Tensor, Tensor]:
    scheme = _MX_SCHEMES[format]
    scale, _ = compute_dynamic_scales_and_zp(x, scheme.weights, None)
    state = _COMPRESSORS[format].compress({"weight": x, "weight_scale": scale}, scheme)
    packed = state.get("weight_packed")
    codes = state["weight"] if packed is None else _taken_apart(packed, format)
    return codes, state["weight_scale"].view(torch.float8_e8m0fnu)


# To the mantissa of MXFP8's elements maxima are rounded, too, as if they were E2M1's.
for _name, _mode, _formats in (
    ("compress", ScaleMode.EVEN, ("float4_e2m1fn", "float6_e2m3fn")),
    ("compress_mxfp8", ScaleMode.EVEN_E2M1, ("float8_e4m3fn",)),
):
    backend.implements(
        "quantize_mx",
        name=_name,
        semantics=replace(_COMPRESSED_TENSORS, scale_mode=_mode),
        supports={"format": _formats, "input_format": ("float32", "bfloat16")},
    )(_compress_mx)


@backend.implements(
    "dequantize_mx", name="decompress", supports={"format": tuple(_COMPRESSORS), "output_format": "bfloat16"}
)
def decompress_mx(codes: Tensor, scale: Tensor, *, format: str) -> Tensor:
    """Return the weight that the format's compressor restores."""
    stored = {"weight": codes} if format == "float8_e4m3fn" else {"weight_packed": _put_together(codes, format)}
    state = {**stored, "weight_scale": scale.view(torch.uint8)}
    return _COMPRESSORS[format].decompress(state, _MX_SCHEMES[format])["weight"]


@backend.implements(
    "choose_global_scale_nvfp4",
    name="generate_gparam",
    semantics=replace(_COMPRESSED_TENSORS, division=Division.RECIPROCAL),
)
def choose_global_scale(x: Tensor) -> Tensor:
    """Return ``generate_gparam`` of the range; PyTorch multiplies 2688 with the reciprocal of the maximum."""
    return generate_gparam(x.min(), x.max()).reshape(())


# Of a weight in 16 bits the scales would be computed in those.
@backend.implements(
    "quantize_nvfp4", name="compress", semantics=_COMPRESSED_TENSORS, supports={"levels": ("two", "one")}
)
def compress_nvfp4(x: Tensor, global_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the codes and the scales that `NVFP4PackedCompressor` stores."""
    stored = None if global_scale is None else global_scale.reshape(1)
    scale, _ = compute_dynamic_scales_and_zp(x, _NVFP4_SCHEME.weights, None, stored)
    state = {"weight": x, "weight_scale": scale} | ({} if stored is None else {"weight_global_scale": stored})
    found = NVFP4PackedCompressor.compress(state, _NVFP4_SCHEME)
    return _taken_apart(found["weight_packed"], "float4_e2m1fn"), found["weight_scale"]


@backend.implements(
    "dequantize_nvfp4",
    name="decompress",
    semantics=_COMPRESSED_TENSORS,
    supports={"levels": ("two", "one"), "output_format": "bfloat16"},
)
def decompress_nvfp4(codes: Tensor, scale: Tensor, global_scale: Tensor | None) -> Tensor:
    """Return the weight that `NVFP4PackedCompressor` restores."""
    state = {"weight_packed": _put_together(codes, "float4_e2m1fn"), "weight_scale": scale}
    state |= {} if global_scale is None else {"weight_global_scale": global_scale.reshape(1)}
    return NVFP4PackedCompressor.decompress(state, _NVFP4_SCHEME)["weight"]
