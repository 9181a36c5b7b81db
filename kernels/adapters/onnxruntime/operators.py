"""MatMulInteger with zero points, QLinearMatMul and QLinearConv."""

from typing import Any

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.adapters.onnxruntime.products import suffix
from lowbit_cts.kernels.adapters.onnxruntime.sessions import (
    MATRIX,
    ONNX,
    Tensor,
    given,
    kept_session,
    narrowed,
    run,
    session,
)

_OUTPUT = ("M", "N")
_MAPPINGS = {"weight_granularity": ("tensor", "channel"), "weight_mapping": ("symmetric", "asymmetric")}
#: Types of the first operand, to which the result is quantized, and of the weights.
_OPERANDS = (("int8", "int8"), ("uint8", "int8"), ("uint8", "uint8"))


def _per_column(weight_granularity: str) -> tuple[str, ...]:
    return ("N",) if weight_granularity == "channel" else ()


# MatMulInteger ------------------------------------------------------------------------------------------------------


def _integer(a_format: str, b_format: str, weight_granularity: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    inputs = (
        ("A", a_format, MATRIX),
        ("B", b_format, ("K", "N")),
        ("a_zero_point", a_format, ()),
        ("b_zero_point", b_format, _per_column(weight_granularity)),
    )
    return inputs, (("Y", "int32", _OUTPUT),)


def multiply(a, a_zero_point, b, b_zero_point, *, a_format, b_format, weight_granularity, out):
    """Write the product, every argument an input."""
    inputs, outputs = _integer(a_format, b_format, weight_granularity)
    arrays = given(inputs, a, b, narrowed(a_zero_point, a_format), narrowed(b_zero_point, b_format))
    run(kept_session("MatMulInteger", inputs, outputs), arrays, {outputs[0]: out})


def hold_factor(b, b_zero_point, *, a_format, b_format, weight_granularity):
    """Return a session that holds b, packed, and its zero points."""
    held = {"B": b, "b_zero_point": narrowed(b_zero_point, b_format)}
    return session("MatMulInteger", *_integer(a_format, b_format, weight_granularity), constants=held)


def multiply_by_held(a, a_zero_point, *, a_format, b_format, weight_granularity, out, prepared):
    """Write the product with the factor that the model holds."""
    inputs, outputs = _integer(a_format, b_format, weight_granularity)
    run(prepared, given(inputs, a, None, narrowed(a_zero_point, a_format), None), {outputs[0]: out})


# QLinearMatMul ------------------------------------------------------------------------------------------------------


def _quantized(a_format: str, b_format: str, weight_granularity: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    column = _per_column(weight_granularity)
    inputs = (
        ("a", a_format, MATRIX),
        ("a_scale", "float32", ()),
        ("a_zero_point", a_format, ()),
        ("b", b_format, ("K", "N")),
        ("b_scale", "float32", column),
        ("b_zero_point", b_format, column),
        ("y_scale", "float32", ()),
        ("y_zero_point", a_format, ()),
    )
    return inputs, (("y", a_format, _OUTPUT),)


def quantized_product(
    a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point, *, a_format, b_format,
    weight_granularity, out,
):  # fmt: skip
    """Write the codes, every argument an input."""
    inputs, outputs = _quantized(a_format, b_format, weight_granularity)
    arrays = given(
        inputs, a, a_scale, narrowed(a_zero_point, a_format), b, b_scale, narrowed(b_zero_point, b_format), y_scale,
        narrowed(y_zero_point, a_format),
    )  # fmt: skip
    run(kept_session("QLinearMatMul", inputs, outputs), arrays, {outputs[0]: out})


def hold_quantized(b, b_scale, b_zero_point, *, a_format, b_format, weight_granularity):
    """Return a session that holds the weights, packed, with their scales and zero points."""
    held = {"b": b, "b_scale": b_scale, "b_zero_point": narrowed(b_zero_point, b_format)}
    return session("QLinearMatMul", *_quantized(a_format, b_format, weight_granularity), constants=held)


def quantized_product_with_held(
    a, a_scale, a_zero_point, y_scale, y_zero_point, *, a_format, b_format, weight_granularity, out, prepared
):
    """Write the codes by the weights that the model holds."""
    inputs, outputs = _quantized(a_format, b_format, weight_granularity)
    arrays = given(
        inputs, a, a_scale, narrowed(a_zero_point, a_format), None, None, None, y_scale,
        narrowed(y_zero_point, a_format),
    )  # fmt: skip
    run(prepared, arrays, {outputs[0]: out})


# QLinearConv --------------------------------------------------------------------------------------------------------


def _convolution(
    x_format: str, w_format: str, weight_granularity: str, has_bias: bool
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    channel = _per_column(weight_granularity)
    inputs = (
        ("x", x_format, ("M", "C", "H", "W")),
        ("x_scale", "float32", ()),
        ("x_zero_point", x_format, ()),
        ("w", w_format, ("N", "D", "R", "S")),
        ("w_scale", "float32", channel),
        ("w_zero_point", w_format, channel),
        ("y_scale", "float32", ()),
        ("y_zero_point", x_format, ()),
        ("B", "int32", ("N",)) if has_bias else ("", "", ()),
    )
    return inputs, (("y", x_format, ("M", "N", "P", "Q")),)


def convolution(
    x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, bias, *, x_format, w_format,
    weight_granularity, has_bias, strides, pads, dilations, groups, out,
):  # fmt: skip
    """Write the codes, every argument an input."""
    inputs, outputs = _convolution(x_format, w_format, weight_granularity, has_bias)
    count = x.shape[1] if groups == "depthwise" else groups
    attributes = (("strides", strides), ("pads", pads), ("dilations", dilations), ("group", count))
    arrays = given(
        inputs, x, x_scale, narrowed(x_zero_point, x_format), w, w_scale, narrowed(w_zero_point, w_format), y_scale,
        narrowed(y_zero_point, x_format), bias,
    )  # fmt: skip
    run(kept_session("QLinearConv", inputs, outputs, attributes), arrays, {outputs[0]: out})


def hold_kernels(
    w, w_scale, w_zero_point, *, x_format, w_format, weight_granularity, has_bias, strides, pads, dilations, groups
):
    """Return a session that holds the weights, packed, with their scales and zero points."""
    attributes = (("strides", strides), ("pads", pads), ("dilations", dilations), ("group", groups))
    held = {"w": w, "w_scale": w_scale, "w_zero_point": narrowed(w_zero_point, w_format)}
    tensors = _convolution(x_format, w_format, weight_granularity, has_bias)
    return session("QLinearConv", *tensors, attributes, constants=held)


def convolution_with_held(
    x, x_scale, x_zero_point, y_scale, y_zero_point, bias, *, x_format, w_format, weight_granularity, has_bias, out,
    prepared,
):  # fmt: skip
    """Write the codes by the weights that the model holds."""
    inputs, outputs = _convolution(x_format, w_format, weight_granularity, has_bias)
    arrays = given(
        inputs, x, x_scale, narrowed(x_zero_point, x_format), None, None, None, y_scale,
        narrowed(y_zero_point, x_format), bias,
    )  # fmt: skip
    run(prepared, arrays, {outputs[0]: out})


def register(backend: Backend) -> None:
    """Register the operators by the types of their operands: each pair has kernels of its own."""
    for a_format in ("int8", "uint8"):
        for b_format in ("int8", "uint8"):
            supports: dict[str, Any] = {"a_format": a_format, "b_format": b_format, **_MAPPINGS}
            kind = suffix(a_format, b_format)
            backend.implements("matmul_integer", name=f"MatMulInteger_{kind}", supports=supports)(multiply)
            backend.implements(
                "matmul_integer", name=f"MatMulInteger_constant_B_{kind}", supports=supports, prepare=hold_factor
            )(multiply_by_held)
    for first, second in _OPERANDS:
        kind = suffix(first, second)
        supports = {"a_format": first, "b_format": second, "y_format": first, **_MAPPINGS}
        backend.implements("qlinear_matmul", name=f"QLinearMatMul_{kind}", semantics=ONNX, supports=supports)(
            quantized_product
        )
        backend.implements(
            "qlinear_matmul", name=f"QLinearMatMul_constant_B_{kind}", semantics=ONNX, supports=supports,
            prepare=hold_quantized,
        )(quantized_product_with_held)  # fmt: skip
        supports = {"x_format": first, "w_format": second, "y_format": first, **_MAPPINGS}
        backend.implements("conv2d_int8", name=f"QLinearConv_{kind}", semantics=ONNX, supports=supports)(convolution)
        backend.implements(
            "conv2d_int8", name=f"QLinearConv_constant_w_{kind}", semantics=ONNX,
            supports={**supports, "groups": (1, 2, 3)}, prepare=hold_kernels,
        )(convolution_with_held)  # fmt: skip
