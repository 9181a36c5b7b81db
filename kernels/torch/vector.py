"""Addition of quantized vectors in torch: quantized::add, and plain tensor arithmetic."""

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend, Semantics
from lowbit_cts.kernels.torch.affine import carrier
from lowbit_cts.kernels.torch.build import Build
from lowbit_cts.reference.formats import integer_format

_FORMATS = {"format": ("int8", "uint8")}


def register_native(backend: Backend) -> None:
    """Register quantized::add of the x86 engines; QNNPACK's rounds by format, and limits the scales."""
    if backend.device != "cpu" or torch.backends.quantized.engine not in ("x86", "fbgemm", "onednn"):
        return

    @backend.implements("add_int8", name="quantized_add", supports=_FORMATS)
    def add(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point):
        first = torch._make_per_tensor_quantized_tensor(a, a_scale.item(), a_zero_point.item())
        second = torch._make_per_tensor_quantized_tensor(b, b_scale.item(), b_zero_point.item())
        return torch.ops.quantized.add(first, second, y_scale.item(), y_zero_point.item()).int_repr()


def _add(
    a,
    a_scale,
    a_zero_point,
    b,
    b_scale,
    b_zero_point,
    y_scale,
    y_zero_point,
    qmin: int,
    qmax: int,
    dtype: torch.dtype,
) -> Tensor:
    total = a_scale * (a.float() - a_zero_point) + b_scale * (b.float() - b_zero_point)
    return torch.clamp(torch.round(total / y_scale) + y_zero_point, qmin, qmax).to(dtype)


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register the formula in plain float32 tensor operations."""
    kernel = build(_add)

    @backend.implements("add_int8", name="composed", semantics=arithmetic, supports=_FORMATS)
    def add(*arguments: Tensor, format: str) -> Tensor:
        return kernel(*arguments, *integer_format(format).codes(), carrier(format))
