"""ONNX's quantized operators in torch: wide products, and _int_mm with the zero points as corrections."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend, Semantics
from lowbit_cts.kernels.torch.affine import carrier
from lowbit_cts.kernels.torch.build import Build
from lowbit_cts.reference.choices import ZeroScale
from lowbit_cts.reference.formats import integer_format

INTEGERS = ("int8", "uint8")
_EVERYWHERE = {
    "a_format": INTEGERS,
    "b_format": INTEGERS,
    "activation_granularity": ("tensor", "token"),
    "weight_granularity": ("tensor", "channel"),
    "weight_mapping": ("symmetric", "asymmetric"),
}


def output_codes(
    acc: Tensor, scale: Tensor, y_scale: Tensor, y_zero_point: Tensor, qmin: int, qmax: int, dtype: torch.dtype
) -> Tensor:
    """Return sums times scale / y_scale, rounded half to even, plus the zero point, saturated."""
    scaled = torch.round(acc.float() * (scale / y_scale))
    return torch.clamp(scaled + y_zero_point, qmin, qmax).to(dtype)


def _wide_product(a: Tensor, a_zero_point: Tensor, b: Tensor, b_zero_point: Tensor) -> Tensor:
    """Return the sums in int32, modulo 2**32; CUDA has no integer matmul, and float64 adds these products exactly."""
    wide = torch.int32 if a.device.type == "cpu" else torch.float64
    shifted = (a.to(wide) - a_zero_point.reshape(-1, 1)) @ (b.to(wide) - b_zero_point)
    return shifted.to(torch.int64).to(torch.int32)


def _held(b: Tensor, b_zero_point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return b in int8, its zero points, and the sums of its columns; uint8 codes are moved by 128."""
    shift = 128 if b.dtype == torch.uint8 else 0
    codes = (b ^ 0x80).view(torch.int8) if shift else b
    codes = codes.clone(memory_format=torch.contiguous_format)
    return codes, b_zero_point - shift, codes.sum(0, dtype=torch.int32)


def _corrected_product(a: Tensor, a_zero_point: Tensor, prepared: Any) -> Tensor:
    """Return a b - z_a colsum(b) - rowsum(a) z_b + K z_a z_b, each modulo 2**32."""
    b, b_zero_point, columns = prepared
    rows = a.sum(1, dtype=torch.int32).reshape(-1, 1)
    z_a = a_zero_point.reshape(-1, 1)
    return torch._int_mm(a, b) - z_a * columns - rows * b_zero_point + a.shape[1] * (z_a * b_zero_point)


def _checked(b: Tensor, b_zero_point: Tensor) -> None:
    if b_zero_point.ndim and b_zero_point.shape[0] != b.shape[1]:
        raise ValueError(f"b_zero_point: has {b_zero_point.shape[0]} elements, b has {b.shape[1]} columns")


def _dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = x.min().clamp(max=0.0), x.max().clamp(min=0.0)
    span = high - low
    scale = torch.where(span == 0, torch.ones_like(span), span / torch.full_like(span, 255.0))
    zero_point = torch.clamp(torch.round(-low / scale), 0, 255)
    codes = torch.clamp(torch.round(x / scale) + zero_point, 0, 255)
    return codes.to(torch.uint8), scale, zero_point.to(torch.int32)


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register the operators: on a wide product, on _int_mm where it is the CPU's, and the dynamic quantizer.

    Parameters
    ----------
    backend : Backend
    build : callable
        Eager or compiled (`lowbit_cts.kernels.torch.build`).
    arithmetic : Semantics
        What holds for all of the backend's kernels.
    """
    wide, codes = build(_wide_product), build(output_codes)

    @backend.implements("matmul_integer", name="composed", supports=_EVERYWHERE)
    def matmul_integer(a: Tensor, a_zero_point: Tensor, b: Tensor, b_zero_point: Tensor) -> Tensor:
        return wide(a, a_zero_point, b, b_zero_point)

    @backend.implements(
        "qlinear_matmul", name="composed", semantics=arithmetic, supports={**_EVERYWHERE, "y_format": INTEGERS}
    )
    def qlinear_matmul(
        a: Tensor, a_scale: Tensor, a_zero_point: Tensor, b: Tensor, b_scale: Tensor, b_zero_point: Tensor,
        y_scale: Tensor, y_zero_point: Tensor, *, y_format: str,
    ) -> Tensor:  # fmt: skip
        acc = wide(a, a_zero_point, b, b_zero_point)
        limits = integer_format(y_format).codes()
        return codes(acc, a_scale.reshape(-1, 1) * b_scale, y_scale, y_zero_point, *limits, carrier(y_format))

    dynamic = build(_dynamic_quantize)
    semantics = replace(arithmetic, zero_scale=ZeroScale.ONE)

    @backend.implements("dynamic_quantize_linear", name="composed", semantics=semantics)
    def dynamic_quantize_linear(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return dynamic(x)

    if backend.device == "cpu":
        _register_int_mm(backend, build, arithmetic)


def _register_int_mm(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    product, codes = build(_corrected_product), build(output_codes)

    def hold(b: Tensor, b_zero_point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _checked(b, b_zero_point)
        return _held(b, b_zero_point)

    def hold_scaled(b: Tensor, b_scale: Tensor, b_zero_point: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        return hold(b, b_zero_point), b_scale

    @backend.implements("matmul_integer", name="int_mm", prepare=hold, supports=_EVERYWHERE)
    def matmul_integer(a: Tensor, a_zero_point: Tensor, *, prepared: Any) -> Tensor:
        return product(a.clone(memory_format=torch.contiguous_format), a_zero_point, prepared)

    @backend.implements(
        "qlinear_matmul", name="int_mm", prepare=hold_scaled, semantics=arithmetic,
        supports={**_EVERYWHERE, "y_format": INTEGERS},
    )  # fmt: skip
    def qlinear_matmul(
        a: Tensor, a_scale: Tensor, a_zero_point: Tensor, y_scale: Tensor, y_zero_point: Tensor, *, prepared: Any,
        y_format: str,
    ) -> Tensor:  # fmt: skip
        held, b_scale = prepared
        acc = product(a.clone(memory_format=torch.contiguous_format), a_zero_point, held)
        limits = integer_format(y_format).codes()
        return codes(acc, a_scale.reshape(-1, 1) * b_scale, y_scale, y_zero_point, *limits, carrier(y_format))
