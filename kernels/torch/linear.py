"""Linear layers on quantized operands in torch: dequantized operands and a plain matmul, and ATen's own kernels."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend, Semantics, WeightPrecision
from lowbit_cts.kernels.torch.block_formats import dequantize_mx, dequantize_nvfp4, element_table
from lowbit_cts.kernels.torch.build import Build
from lowbit_cts.kernels.torch.codebooks import codebook_table
from lowbit_cts.kernels.torch.gguf import TYPES, checked, dequantize_blocks
from lowbit_cts.reference.mx import MX_FORMATS

_FLOATS = ("float32", "float16", "bfloat16")
_BIAS = {"has_bias": (False, True)}
_OUTPUTS = {"output_format": _FLOATS, **_BIAS}
#: Rows and columns that share a scale of block-scaled float8.
_BLOCK = 128
_MIDDLE = {"uint4": 8, "uint8": 128}


def _linear(a: Tensor, weights: Tensor, bias: Tensor | None, output: torch.dtype) -> Tensor:
    """Return a @ weights + bias; in 16 bits the product is rounded once, after the bias."""
    if bias is None:
        return (a @ weights).to(output)
    return (a.float() @ weights.float() + bias).to(output)


def _affine_weights(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, index: Tensor | None, middle: int, dtype: torch.dtype
) -> Tensor:
    """Return (codes - zero_point) * scale, rounded once to a type, (K, N)."""
    if index is not None:
        scale = scale[index]
        zero_point = None if zero_point is None else zero_point[index]
    shifted = codes.int() - (middle if zero_point is None else zero_point)
    return (shifted.float() * scale.float()).to(dtype)


def _group_index(codes: Tensor, group_index: Tensor | None, scale: Tensor, group_size: int | None) -> Tensor | None:
    """Return the group of each row; None where each column has one scale."""
    if group_size is None:
        return None
    k = codes.shape[0]
    groups = -(-k // group_size)
    if scale.shape[0] != groups:
        raise ValueError(f"scale: must have {groups} rows")
    if group_index is None:
        return torch.arange(k, device=codes.device) // group_size
    if k and not 0 <= int(group_index.min()) <= int(group_index.max()) < groups:
        raise ValueError(f"group_index: must lie in [0, {groups - 1}]")
    return group_index.long()


def _float8(codes: Tensor, scale: Tensor) -> Tensor:
    return codes.float() * scale


def _float8_scales(scale: Tensor, codes: Tensor, scaling: str, rows: int, columns: int, axis: int) -> Tensor:
    """Return scales that broadcast to a matrix of codes."""
    if scaling == "tensor":
        return scale
    if scaling == "row":
        return scale.unsqueeze(1 - axis)
    expected = (-(-codes.shape[0] // rows), -(-codes.shape[1] // columns))
    if tuple(scale.shape) != expected:
        raise ValueError(f"scale: has shape {tuple(scale.shape)}, must be {expected}")
    wide = scale if rows == 1 else scale.repeat_interleave(rows, 0)[: codes.shape[0]]
    return wide.repeat_interleave(columns, 1)[:, : codes.shape[1]]


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register layers that dequantize their operands, and multiply them by torch's matmul.

    Parameters
    ----------
    backend : Backend
    build : callable
        Eager or compiled (`lowbit_cts.kernels.torch.build`).
    arithmetic : Semantics
        What holds for all of the backend's kernels.
    """
    linear, weights_ = build(_linear), build(_affine_weights)
    _register_weight_only(backend, linear, weights_, arithmetic)
    _register_small_floats(backend, build, linear)
    in_float32 = Semantics()

    def codebook_weights(codes: Tensor, absmax: Tensor, *, codebook: str, block_size: int) -> Tensor:
        blocks = codes.unflatten(1, (codes.shape[1] // block_size, block_size)).int()
        return (codebook_table(codebook, codes.device)[blocks] * absmax.unsqueeze(-1)).flatten(1).t()

    @backend.implements(
        "linear_nf4", name="composed", semantics=in_float32, prepare=codebook_weights,
        supports={"codebook": ("nf4", "fp4_bitsandbytes"), "input_format": _FLOATS, **_BIAS},
    )  # fmt: skip
    def linear_nf4(a: Tensor, bias: Tensor | None, *, prepared: Tensor, input_format: str) -> Tensor:
        return linear(a.float(), prepared, bias, getattr(torch, input_format))

    def gguf_weights(blocks: Tensor, *, type: str) -> Tensor:
        return dequantize_blocks(*checked(blocks, type), type, torch.float32).t()

    @backend.implements("matvec_gguf", name="composed", prepare=gguf_weights, supports={"type": TYPES})
    def matvec_gguf(a: Tensor, *, prepared: Tensor) -> Tensor:
        return linear(a, prepared, None, torch.float32)


def _register_weight_only(backend: Backend, linear: Callable, weights: Callable, arithmetic: Semantics) -> None:
    supports = {
        "granularity": ("group", "channel"),
        "group_size": (128, 64, 32, 48),
        "mapping": ("symmetric", "asymmetric"),
        "act_order": (False, True),
        "input_format": _FLOATS,
        **_BIAS,
    }
    for name, precision in (("float32", WeightPrecision.FLOAT32), ("dequantized", WeightPrecision.ACTIVATIONS)):
        in_float32 = precision is WeightPrecision.FLOAT32

        def prepare(
            codes: Tensor, scale: Tensor, zero_point: Tensor | None, group_index: Tensor | None, *, format: str,
            group_size: int | None, input_format: str, in_float32: bool = in_float32,
        ) -> Tensor:  # fmt: skip
            index = _group_index(codes, group_index, scale, group_size)
            dtype = torch.float32 if in_float32 else getattr(torch, input_format)
            return weights(codes, scale, zero_point, index, _MIDDLE.get(format, 0), dtype)

        def weight_only(
            a: Tensor, bias: Tensor | None, *, prepared: Tensor, input_format: str, in_float32: bool = in_float32
        ) -> Tensor:
            return linear(a.float() if in_float32 else a, prepared, bias, getattr(torch, input_format))

        for bits, formats in ((4, ("uint4", "int4")), (8, ("int8", "uint8"))):
            backend.implements(
                f"matmul_w{bits}a16", name=name, prepare=prepare,
                semantics=replace(arithmetic, weight_precision=precision),
                supports={"format": formats, **supports},
            )(weight_only)  # fmt: skip


def _register_small_floats(backend: Backend, build: Build, linear: Callable) -> None:
    float8, mx_, nvfp4_ = build(_float8), build(dequantize_mx), build(dequantize_nvfp4)
    formats = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")

    def float8_weights(b: Tensor, b_scale: Tensor, *, scaling: str) -> Tensor:
        return float8(b, _float8_scales(b_scale, b, scaling, _BLOCK, _BLOCK, 1))

    @backend.implements(
        "matmul_float8", name="composed", prepare=float8_weights,
        supports={"a_format": formats, "b_format": formats, "scaling": ("tensor", "row", "block"), **_OUTPUTS},
    )  # fmt: skip
    def matmul_float8(
        a: Tensor, a_scale: Tensor, bias: Tensor | None, *, prepared: Tensor, scaling: str, output_format: str
    ) -> Tensor:
        numbers = float8(a, _float8_scales(a_scale, a, scaling, 1, _BLOCK, 0))
        return linear(numbers, prepared, bias, getattr(torch, output_format))

    def mx(codes: Tensor, scale: Tensor, format: str) -> Tensor:
        return mx_(codes, scale.view(torch.uint8), *element_table(format, codes.device), torch.float32)

    def mx_weights(b: Tensor, b_scale: Tensor, *, b_format: str) -> Tensor:
        return mx(b, b_scale, b_format).t()

    @backend.implements(
        "matmul_mx", name="composed", prepare=mx_weights,
        supports={"a_format": MX_FORMATS, "b_format": MX_FORMATS, **_OUTPUTS},
    )  # fmt: skip
    def matmul_mx(
        a: Tensor, a_scale: Tensor, bias: Tensor | None, *, prepared: Tensor, a_format: str, output_format: str
    ) -> Tensor:
        return linear(mx(a, a_scale, a_format), prepared, bias, getattr(torch, output_format))

    def nvfp4(codes: Tensor, scale: Tensor, global_scale: Tensor) -> Tensor:
        table, _ = element_table("float4_e2m1fn", codes.device)
        return nvfp4_(codes, scale, global_scale, table, torch.float32)

    def nvfp4_weights(b: Tensor, b_scale: Tensor, b_global_scale: Tensor) -> Tensor:
        return nvfp4(b, b_scale, b_global_scale).t()

    @backend.implements("matmul_nvfp4", name="composed", prepare=nvfp4_weights, supports=_OUTPUTS)
    def matmul_nvfp4(
        a: Tensor, a_scale: Tensor, a_global_scale: Tensor, bias: Tensor | None, *, prepared: Any, output_format: str
    ) -> Tensor:
        return linear(nvfp4(a, a_scale, a_global_scale), prepared, bias, getattr(torch, output_format))
