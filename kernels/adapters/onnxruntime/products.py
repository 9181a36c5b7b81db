"""MatMulInteger without zero points, and com.microsoft.MatMulIntegerToFloat."""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.adapters.onnxruntime.sessions import (
    MATRIX,
    MICROSOFT,
    Tensor,
    given,
    kept_session,
    narrowed,
    run,
    session,
)

_MAPPINGS = {"mapping": ("symmetric", "asymmetric")}


def adds_pairs_in_16_bits() -> bool:
    """Whether this is an x86 processor without VNNI, for which MLAS adds pairs of u8 * s8 products in 16 bits."""
    processors = Path("/proc/cpuinfo")
    return platform.machine() in ("x86_64", "AMD64") and processors.exists() and "_vnni" not in processors.read_text()


def suffix(a_format: str, b_format: str) -> str:
    """Return what tells the kernels of two types of operands apart: s8s8, u8s8, u8u8."""
    kind = f"{a_format[0].replace('i', 's')}8{b_format[0].replace('i', 's')}8"
    return f"{kind}_without_vnni" if kind == "u8s8" and adds_pairs_in_16_bits() else kind


_B = ("B", "int8", ("K", "N"))
_LINEAR = {
    **_MAPPINGS,
    "activation_granularity": "tensor",
    "weight_granularity": ("tensor", "channel"),
    "has_bias": (False, True),
}


def _product(a_format: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return (("A", a_format, MATRIX), _B), (("Y", "int32", ("M", "N")),)


def _layer(a_format: str, weight_granularity: str, has_bias: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    inputs = (
        ("A", a_format, MATRIX),
        _B,
        ("a_scale", "float32", ()),
        ("b_scale", "float32", ("N",) if weight_granularity == "channel" else ()),
        ("a_zero_point", a_format, ()),
        ("", "", ()),  # B is symmetric
        ("bias", "float32", ("N",)) if has_bias else ("", "", ()),
    )
    return inputs, (("Y", "float32", ("M", "N")),)


def multiply(a, b, *, a_format, out):
    """Write the product of two inputs."""
    inputs, outputs = _product(a_format)
    run(kept_session("MatMulInteger", inputs, outputs), given(inputs, a, b), {outputs[0]: out})


def hold_factor(b, *, a_format):
    """Return a session that holds b, packed."""
    return session("MatMulInteger", *_product(a_format), constants={"B": b})


def multiply_by_held(a, *, a_format, out, prepared):
    """Write the product with the factor that the model holds."""
    inputs, outputs = _product(a_format)
    run(prepared, given(inputs, a, None), {outputs[0]: out})


def linear(a, a_scale, a_zero_point, b, b_scale, bias, *, a_format, weight_granularity, has_bias, out):
    """Write the layer's outputs, every argument an input."""
    inputs, outputs = _layer(a_format, weight_granularity, has_bias)
    arguments = given(inputs, a, b, a_scale, b_scale, narrowed(a_zero_point, a_format), None, bias)
    session = kept_session("MatMulIntegerToFloat", inputs, outputs, domain=MICROSOFT)
    run(session, arguments, {outputs[0]: out})


def hold_weights(b, b_scale, *, a_format, weight_granularity, has_bias):
    """Return a session that holds the weights, packed, and their scales."""
    tensors = _layer(a_format, weight_granularity, has_bias)
    held = {"B": b, "b_scale": b_scale}
    return session("MatMulIntegerToFloat", *tensors, domain=MICROSOFT, constants=held)


def linear_with_held(a, a_scale, a_zero_point, bias, *, a_format, weight_granularity, has_bias, out, prepared):
    """Write the layer's outputs by the weights that the model holds."""
    inputs, outputs = _layer(a_format, weight_granularity, has_bias)
    arguments = given(inputs, a, None, a_scale, None, narrowed(a_zero_point, a_format), None, bias)
    run(prepared, arguments, {outputs[0]: out})


def register(backend: Backend) -> None:
    """Register the products by the type of A: each has kernels of its own."""
    suffixes = {a_format: suffix(a_format, "int8") for a_format in ("int8", "uint8")}
    kernels: list[tuple[str, str, dict[str, Any], Callable[..., Any], Callable[..., Any] | None]] = [
        ("matmul_int8", "MatMulInteger", {}, multiply, None),
        ("matmul_int8", "MatMulInteger_constant_B", {}, multiply_by_held, hold_factor),
        ("matmul_w8a8", "MatMulIntegerToFloat", _LINEAR, linear, None),
        ("matmul_w8a8", "MatMulIntegerToFloat_constant_B", _LINEAR, linear_with_held, hold_weights),
    ]
    for operation, name, supports, kernel, prepare in kernels:
        for a_format, kind in suffixes.items():
            backend.implements(
                operation, name=f"{name}_{kind}", supports={**supports, "a_format": a_format}, prepare=prepare
            )(kernel)
