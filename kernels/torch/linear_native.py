"""Linear layers by ATen's own kernels: packed weights of 4 and 8 bits, and scaled products of float8.

On the CPU, measured on x86 with AVX-512 (torch 2.13), `_weight_int4pack_mm_for_cpu` and `_weight_int8pack_mm`
dequantize to float32 and add in float32, whatever the format of the activations, and keep subnormal numbers;
`_scaled_mm` multiplies both operands by their scales in float32, and the results by a float32 matmul (with AMX it is
oneDNN's, not measured).

Left out: `_dyn_quant_matmul_4bit`, which quantizes the activations, and on CUDA `_weight_int4pack_mm`, whose layout of
weights depends on the device.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lowbit_cts.kernels import Backend, DequantizeForm, Semantics, WeightPrecision
from lowbit_cts.reference.accumulators import ACCUMULATORS

_FLOATS = ("float32", "float16", "bfloat16")
#: They take activations with contiguous rows alone, and raise for others.
_ROWS = {"layout": ("contiguous", "offset")}
#: Bytes. Of bfloat16, _weight_int8pack_mm ends the process where a begins at no multiple of 32, or the weights of 16.
_ALIGNMENT = 64
#: Columns in a tile of _weight_int4pack_mm_for_cpu; elements in a step of _weight_int8pack_mm and of cuBLASLt.
_STEP = 16
#: The code that _weight_int4pack_mm_for_cpu takes for 0, and what makes codes of both formats start at 0.
_MIDDLE = 8
_FIRST = {"int4": 8, "uint4": 0}


def _missing(length: int, step: int) -> int:
    """Return what is missing to a multiple."""
    return -length % step


def _columns_filled(a: Tensor, missing: int) -> Tensor:
    return pad(a, (0, missing)) if missing else a


def _aligned(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor


def register_native(backend: Backend) -> None:
    """Register what ATen has for the backend's device."""
    if backend.device == "cpu":
        _register_int4pack(backend)
        _register_int8pack(backend)
        _register_scaled_mm(backend)
    else:
        _register_scaled_mm_cuda(backend)


def _register_int4pack(backend: Backend) -> None:
    """Register w = (q - 8) s + z, z = (8 - zero_point) s, in which s and z are in the activations' format.

    With a zero point z is rounded to that format. A K that is no multiple of the group is filled with zeros, as are
    the columns to a multiple of 16. That scales of all groups are there is left to the kernel.
    """

    def prepare(
        codes: Tensor, scale: Tensor, zero_point: Tensor | None, group_index: None, *, format: str, group_size: int
    ) -> tuple[Tensor, Tensor, int, int]:
        k, n = codes.shape
        rows, columns = _missing(k, group_size), _missing(n, _STEP)
        shift = _FIRST[format]
        weights = pad(codes.t().to(torch.int32) + shift, (0, rows, 0, columns), value=_MIDDLE)
        zeros = torch.zeros_like(scale)
        if zero_point is not None:
            zeros = ((_MIDDLE - shift - zero_point).float() * scale.float()).to(scale.dtype)
        both = pad(torch.stack([scale, zeros], dim=-1), (0, 0, 0, columns))
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weights.contiguous(), 1)
        return packed, both.contiguous(), rows, n

    def int4pack_mm(a: Tensor, bias: None, *, prepared: Any, group_size: int) -> Tensor:
        packed, scales_and_zeros, rows, n = prepared
        a = _columns_filled(a, rows)
        return torch.ops.aten._weight_int4pack_mm_for_cpu(a, packed, group_size, scales_and_zeros)[:, :n]

    rounded_zeros = Semantics(
        weight_precision=WeightPrecision.ACTIVATIONS, dequantize_form=DequantizeForm.SCALE_FIRST
    )  # fmt: skip
    for name, mapping, semantics in (
        ("int4pack_mm", "symmetric", Semantics()),
        ("int4pack_mm_zeros", "asymmetric", rounded_zeros),
    ):
        backend.implements(
            "matmul_w4a16", name=name, semantics=semantics, prepare=prepare,
            supports={
                "format": ("uint4", "int4"), "group_size": (32, 64, 128, 256), "mapping": mapping,
                "input_format": _FLOATS, **_ROWS,
            },
        )(int4pack_mm)  # fmt: skip


def _register_int8pack(backend: Backend) -> None:
    """Register int8 weights, (N, K), with a scale a column.

    K is read in whole steps, those of bfloat16 aligned: it is filled with zeros, and what begins elsewhere is copied.
    """

    def prepare(codes: Tensor, scale: Tensor, zero_point: None, group_index: None) -> tuple[Tensor, Tensor, int]:
        missing = _missing(codes.shape[0], _STEP)
        return _aligned(pad(codes.t(), (0, missing)).contiguous()), scale.contiguous(), missing

    @backend.implements(
        "matmul_w8a16",
        prepare=prepare,
        supports={"format": "int8", "granularity": "channel", "input_format": _FLOATS, **_ROWS},
    )
    def int8pack_mm(a: Tensor, bias: None, *, prepared: Any) -> Tensor:
        weights, scale, missing = prepared
        return torch._weight_int8pack_mm(_aligned(_columns_filled(a, missing)), weights, scale)


_FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


def _row_scales(scale: Tensor, axis: int) -> Tensor:
    """Return scales of rows (axis 1) or columns (axis 0) as matrices; that of a tensor as it is."""
    return scale.contiguous().unsqueeze(axis) if scale.ndim else scale


def _register_scaled_mm(backend: Backend) -> None:
    def prepare(b: Tensor, b_scale: Tensor) -> tuple[Tensor, Tensor]:
        return b, _row_scales(b_scale, 0)

    @backend.implements(
        "matmul_float8",
        prepare=prepare,
        supports={
            "a_format": _FLOAT8, "b_format": _FLOAT8, "scaling": ("tensor", "row"), "has_bias": (False, True),
            "output_format": _FLOATS,
        },
    )  # fmt: skip
    def scaled_mm(a: Tensor, a_scale: Tensor, bias: Tensor | None, *, prepared: Any, output_format: str) -> Tensor:
        b, b_scale = prepared
        output = getattr(torch, output_format)
        return torch._scaled_mm(a, b, _row_scales(a_scale, 1), b_scale, bias=bias, out_dtype=output)


def _register_scaled_mm_cuda(backend: Backend) -> None:
    """Register E4M3 under a scale a tensor: row-major a, column-major b, K and N filled to multiples of 16.

    As the sources have it (aten/src/ATen/native/cuda/ScaledBlas.cpp): cuBLASLt on compute capability 8.9 and above. The
    accumulator is declared as that of Hopper's tensor cores, the narrowest that is documented.
    """

    def prepare(b: Tensor, b_scale: Tensor) -> tuple[Tensor, Tensor, int, int]:
        k, n = b.shape
        missing = _missing(k, _STEP)
        columns = pad(b.view(torch.uint8).t(), (0, missing, 0, _missing(n, _STEP))).contiguous()
        return columns.view(b.dtype).t(), b_scale, missing, n

    @backend.implements(
        "matmul_float8",
        prepare=prepare,
        semantics=Semantics(float_accumulator=ACCUMULATORS["tensor_core_float8"]),
        supports={"output_format": ("bfloat16", "float16", "float32")},
    )
    def scaled_mm(a: Tensor, a_scale: Tensor, bias: None, *, prepared: Any, output_format: str) -> Tensor:
        b, b_scale, missing, n = prepared
        rows = _columns_filled(a.contiguous().view(torch.uint8), missing).view(a.dtype)
        return torch._scaled_mm(rows, b, a_scale, b_scale, out_dtype=getattr(torch, output_format))[:, :n]
