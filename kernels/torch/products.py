"""Products of quantized matrices in torch: _int_mm, oneDNN's linear, and plain matmul."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lowbit_cts.kernels import Accumulator, Backend, Semantics
from lowbit_cts.kernels.torch.build import Build

_A_FORMATS = {"a_format": ("int8", "uint8")}
_LINEAR = {
    **_A_FORMATS,
    "mapping": ("symmetric", "asymmetric"),
    "weight_granularity": ("tensor", "channel"),
    "has_bias": (False, True),
    "output_format": ("float32", "float16", "bfloat16"),
}
_PER_TENSOR_OR_TOKEN = {"activation_granularity": ("tensor", "token")}


def _multiple_of_8(n: int) -> int:
    return max(8, -(-n // 8) * 8)


def _laid_out(b: Tensor) -> Tensor:
    """Return weights as `_product` takes them: for cuBLASLt column-major, padded to multiples of 8."""
    if b.device.type == "cpu":
        return b
    k, n = b.shape
    return pad(b, (0, _multiple_of_8(n) - n, 0, _multiple_of_8(k) - k)).t().contiguous().t()


def _product(a: Tensor, b: Tensor, columns: Tensor) -> Tensor:
    """Return a @ b in int32 by _int_mm, with laid-out b and the sums of its columns.

    On CUDA _int_mm takes int8 alone, more than 16 rows, and multiples of 8: uint8 codes are shifted by 128
    and corrected by the column sums, and what is missing is padded with zeros.
    """
    if a.device.type == "cpu":
        return torch._int_mm(a, b)
    m, k = a.shape
    shift = 128 if a.dtype == torch.uint8 else 0
    codes = (a ^ 0x80).view(torch.int8) if shift else a
    codes = pad(codes, (0, b.shape[0] - k, 0, max(0, 17 - m)))
    return torch._int_mm(codes, b)[:m, : columns.shape[0]] + shift * columns


def _prepare_product(b: Tensor) -> tuple[Tensor, Tensor]:
    return _laid_out(b), b.sum(0, dtype=torch.int32)


def _prepare_linear(b: Tensor, b_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return *_prepare_product(b), b_scale


def _prepare_float(b: Tensor, b_scale: Tensor) -> tuple[Tensor, Tensor]:
    return b.float(), b_scale


def _column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1)


def _epilogue(total: Tensor, a_scale: Tensor, b_scale: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    y = total.float() * _column(a_scale) * b_scale
    return (y if bias is None else y + bias).to(dtype)


def _linear_int(
    a: Tensor, a_scale: Tensor, a_zero_point: Tensor, bias: Tensor | None, prepared: Any, dtype: torch.dtype
) -> Tensor:
    b, columns, b_scale = prepared
    total = _product(a, b, columns) - _column(a_zero_point) * columns
    return _epilogue(total, a_scale, b_scale, bias, dtype)


def _linear_float(
    a: Tensor, a_scale: Tensor, a_zero_point: Tensor, bias: Tensor | None, prepared: Any, dtype: torch.dtype
) -> Tensor:
    b, b_scale = prepared
    return _epilogue((a.float() - _column(a_zero_point)) @ b, a_scale, b_scale, bias, dtype)


def register_native(backend: Backend) -> None:
    """Register _int_mm, a wide matmul beside it, and oneDNN's linear layer where the CPU has it."""

    @backend.implements("matmul_int8", name="int_mm", supports=_A_FORMATS, prepare=_prepare_product)
    def int_mm(a: Tensor, *, prepared: Any) -> Tensor:
        return _product(a, *prepared)

    # CUDA has no integer matmul beside _int_mm; float64 adds every product of these exactly.
    wide = torch.int32 if backend.device == "cpu" else torch.float64

    @backend.implements("matmul_int8", name="composed", supports=_A_FORMATS)
    def composed(a: Tensor, b: Tensor) -> Tensor:
        return (a.to(wide) @ b.to(wide)).to(torch.int64).to(torch.int32)

    if backend.device == "cpu" and torch.backends.mkldnn.is_available():
        _register_onednn(backend)


def _register_onednn(backend: Backend) -> None:
    def prepare(b: Tensor, b_scale: Tensor) -> tuple[Tensor, ...]:
        weights = torch.ops.onednn.qlinear_prepack(b.t().contiguous(), None)
        b_scale = b_scale.reshape(-1).contiguous()
        return weights, b_scale, torch.zeros_like(b_scale, dtype=torch.int32)

    @backend.implements(
        "matmul_w8a8",
        name="onednn_qlinear",
        prepare=prepare,
        supports={**_LINEAR, "activation_granularity": "tensor"},
    )
    def qlinear(
        a: Tensor,
        a_scale: Tensor,
        a_zero_point: Tensor,
        bias: Tensor | None,
        *,
        prepared: Any,
        output_format: str,
    ) -> Tensor:
        output = 1.0, 0, getattr(torch, output_format)
        return torch.ops.onednn.qlinear_pointwise.tensor(
            a, a_scale, a_zero_point, *prepared, bias, *output, "none", [], ""
        )


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register two linear layers: on _int_mm, and in float32, where only the sum rounds."""
    for name, kernel, prepare, accumulator in (
        ("int_mm", _linear_int, _prepare_linear, Accumulator.INT32),
        ("float32", _linear_float, _prepare_float, Accumulator.FLOAT32),
    ):

        def linear(a, a_scale, a_zero_point, bias, *, prepared, output_format, kernel=build(kernel)):  # noqa: B008
            return kernel(a, a_scale, a_zero_point, bias, prepared, getattr(torch, output_format))

        backend.implements(
            "matmul_w8a8",
            name=name,
            prepare=prepare,
            semantics=Semantics(accumulator=accumulator),
            supports={**_LINEAR, **_PER_TENSOR_OR_TOKEN},
        )(linear)
