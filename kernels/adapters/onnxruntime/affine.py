"""QuantizeLinear, DequantizeLinear, DynamicQuantizeLinear and com.microsoft.QLinearAdd."""

from dataclasses import replace

import numpy as np

from lowbit_cts.kernels import Backend, ZeroPointOrder
from lowbit_cts.kernels.adapters.onnxruntime.sessions import (
    INTEGERS,
    MATRIX,
    MICROSOFT,
    ONNX,
    TYPES,
    Tensor,
    given,
    kept_session,
    narrowed,
    run,
)
from lowbit_cts.reference.formats import FORMATS

_MAPPINGS = {"mapping": ("symmetric", "asymmetric")}
_EVERYWHERE = {**_MAPPINGS, "granularity": ("tensor", "axis", "group")}


def _place(
    x: np.ndarray, granularity: str, axis: int | None, group_size: int | None
) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    """Return the symbols of a scale's axes, and the attributes that say where a scale belongs."""
    if granularity == "group" and group_size:
        if x.shape[1] % group_size:  # to ONNX the last block may be shorter, to the suite it may not
            raise ValueError(f"group_size: {group_size} does not divide {x.shape[1]} columns")
        return ("M", "G"), (("axis", 1), ("block_size", group_size))
    return ((), ()) if axis is None else ((MATRIX[axis],), (("axis", axis),))


def quantize(x, scale, zero_point, *, format, granularity, axis, group_size, out):
    """Write the codes."""
    axes, attributes = _place(x, granularity, axis, group_size)
    arguments = {
        ("x", "float32", MATRIX): x,
        ("y_scale", "float32", axes): scale,
        ("y_zero_point", format, axes): narrowed(zero_point, format),
    }
    results = {("y", format, MATRIX): out}
    run(kept_session("QuantizeLinear", tuple(arguments), tuple(results), attributes), arguments, results)


def dequantize(codes, scale, zero_point, *, format, output_format, granularity, axis, group_size, out):
    """Write the numbers; the scale stays float32, whatever they are."""
    axes, attributes = _place(codes, granularity, axis, group_size)
    arguments = {
        ("x", format, MATRIX): codes,
        ("x_scale", "float32", axes): scale,
        ("x_zero_point", format, axes): narrowed(zero_point, format),
    }
    results = {("y", output_format, MATRIX): out}
    attributes = (*attributes, ("output_dtype", TYPES[output_format]))
    run(kept_session("DequantizeLinear", tuple(arguments), tuple(results), attributes), arguments, results)


def fake_quantize(x, scale, zero_point, *, format, granularity, axis, group_size, out):
    """Write what the one operator makes of the other's codes."""
    place = {"format": format, "granularity": granularity, "axis": axis, "group_size": group_size}
    codes = np.empty(x.shape, FORMATS[format].carrier)
    quantize(x, scale, zero_point, **place, out=codes)
    dequantize(codes, scale, zero_point, **place, output_format="float32", out=out)


def choose_qparams(x, *, out):
    """Write the scale and the zero point; the codes are computed and dropped."""
    scale, zero_point = out
    arguments = {("x", "float32", MATRIX): x}
    narrow = np.empty((), np.uint8)
    results: dict[Tensor, np.ndarray] = {("y_scale", "float32", ()): scale, ("y_zero_point", "uint8", ()): narrow}
    outputs = (("y", "", ()), *results)
    run(kept_session("DynamicQuantizeLinear", tuple(arguments), outputs), arguments, results)
    zero_point[...] = narrow


def dynamic_quantize(x, *, out):
    """Write the codes, the scale and the zero point."""
    codes, scale, zero_point = out
    arguments = {("x", "float32", MATRIX): x}
    narrow = np.empty((), np.uint8)
    results: dict[Tensor, np.ndarray] = {
        ("y", "uint8", MATRIX): codes,
        ("y_scale", "float32", ()): scale,
        ("y_zero_point", "uint8", ()): narrow,
    }
    run(kept_session("DynamicQuantizeLinear", tuple(arguments), tuple(results)), arguments, results)
    zero_point[...] = narrow


def add(*arguments, format, out):
    """Write the sum: C = round((A_scale (A - A_zero_point) + B_scale (B - B_zero_point)) / C_scale + C_zero_point)."""
    codes, scale, zero_point = (("", format, ("N",)), ("_scale", "float32", ()), ("_zero_point", format, ()))
    parts = {"A": (codes, scale, zero_point), "B": (codes, scale, zero_point), "C": (scale, zero_point)}
    inputs = tuple((name + part, kind, axes) for name in parts for part, kind, axes in parts[name])
    arrays = (
        narrowed(array, format) if tensor[0].endswith("zero_point") else array
        for tensor, array in zip(inputs, arguments, strict=True)
    )
    outputs: tuple[Tensor, ...] = (("C", format, ("N",)),)
    session = kept_session("QLinearAdd", inputs, outputs, domain=MICROSOFT)
    run(session, given(inputs, *arrays), {outputs[0]: out})


def register(backend: Backend) -> None:
    """Register the operators."""
    for bits in (8, 4, 2):  # each width has kernels of its own
        backend.implements(
            "quantize_affine",
            name=f"QuantizeLinear_{bits}_bit",
            semantics=ONNX,
            supports={**_EVERYWHERE, "format": (f"int{bits}", f"uint{bits}")},
        )(quantize)
    backend.implements(
        "dequantize_affine",
        name="DequantizeLinear",
        semantics=ONNX,
        supports={**_EVERYWHERE, "format": INTEGERS, "output_format": ("float32", "float16")},
    )(dequantize)
    backend.implements(
        "fake_quantize_affine",
        name="QuantizeLinear_DequantizeLinear",
        semantics=ONNX,
        supports={**_EVERYWHERE, "format": ("int8", "uint8")},
    )(fake_quantize)
    backend.implements(
        "choose_qparams_affine", name="DynamicQuantizeLinear", semantics=ONNX, supports={"format": "uint8"}
    )(choose_qparams)
    backend.implements("dynamic_quantize_linear", name="DynamicQuantizeLinear", semantics=ONNX)(dynamic_quantize)
    backend.implements(
        "add_int8",
        name="QLinearAdd",
        semantics=replace(ONNX, zero_point_order=ZeroPointOrder.INSIDE),
        supports={"format": ("int8", "uint8")},
    )(add)
