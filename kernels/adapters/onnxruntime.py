"""onnxruntime: ONNX's quantization operators and casts on the CPU provider, each alone in a model.

Kernels write into the arrays they are given (I/O binding), codes below 8 bits by way of ONNX's packing: the first code
of a byte in its lowest bits. Graph optimizations are off, so that the operator named is the one that runs.

Not declared, since onnxruntime has no kernel for it or refuses it in the call: bfloat16 in QuantizeLinear and
DequantizeLinear, QuantizeLinear of float16 by a float32 scale, scales and zero points a token in MatMulIntegerToFloat
(it takes a vector of scales for those of columns), casts of 4- and 6-bit floats. Not declared, since the suite has no
name for its rule: casts to E8M0, where what lies below the smallest number is NaN (``saturate=0``), or negative numbers
become the smallest (``saturate=1``).
"""

import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from lowbit_cts.kernels import PRESETS, Backend, Overflow, ZeroPointOrder
from lowbit_cts.reference.formats import FLOAT8_FORMATS, FORMATS, Format, IntegerFormat
from lowbit_cts.reference.packing.streams import pack_stream, unpack_stream

backend = Backend("onnxruntime", version=onnxruntime.__version__, arrays="numpy")

#: A tensor of a model: its name, its format and the symbols of its axes. Without a format it is no end of the model.
Tensor = tuple[str, str, tuple[str, ...]]

_MICROSOFT = "com.microsoft"
_OPSETS = [helper.make_opsetid("", 25), helper.make_opsetid(_MICROSOFT, 1)]  # 25: the first with int2
_IR_VERSION = 13
_INTEGERS = ("int8", "uint8", "int4", "uint4", "int2", "uint2")
_WIDE = ("float32", "float16", "bfloat16")
_TYPES: dict[str, int] = {
    **{name: getattr(TensorProto, name.upper()) for name in (*_INTEGERS, "int32", "float16", "bfloat16")},
    **{name: getattr(TensorProto, name.upper().replace("_", "")) for name in FLOAT8_FORMATS},
    "float8_e8m0fnu": TensorProto.FLOAT8E8M0,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}
_ONNX = PRESETS["onnx"]


def _session(
    operator: str,
    inputs: tuple[Tensor, ...],
    outputs: tuple[Tensor, ...],
    attributes: tuple[tuple[str, Any], ...] = (),
    domain: str = "",
    constants: Mapping[str, np.ndarray] | None = None,
) -> onnxruntime.InferenceSession:
    """Return a session on a model of one operator; `constants` are the inputs that the model holds itself."""
    constants = constants or {}

    def names(tensors: tuple[Tensor, ...]) -> list[str]:
        return [name for name, _, _ in tensors]

    def ends(tensors: tuple[Tensor, ...]) -> list[Any]:
        return [
            helper.make_tensor_value_info(name, _TYPES[format], axes)
            for name, format, axes in tensors
            if format and name not in constants
        ]

    node = helper.make_node(operator, names(inputs), names(outputs), None, None, domain, **dict(attributes))
    initializers = [numpy_helper.from_array(np.asarray(array, order="C"), name) for name, array in constants.items()]
    graph = helper.make_graph([node], operator, ends(inputs), ends(outputs), initializers)
    model = helper.make_model(graph, opset_imports=_OPSETS, ir_version=_IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.force_spinning_stop", "1")  # else threads that wait take the others' time
    options.log_severity_level = 4  # what it refuses it raises, too
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


_kept_session = lru_cache(maxsize=32)(_session)  # each has threads of its own


def _run(
    session: onnxruntime.InferenceSession, arguments: Mapping[Tensor, Any], results: Mapping[Tensor, np.ndarray]
) -> None:
    """Run a session on arrays in the carriers of their formats, and write what comes out into `results`."""
    binding = session.io_binding()
    given = [(name, FORMATS[format], array) for (name, format, _), array in arguments.items()]
    wanted = [(name, FORMATS[format], array) for (name, format, _), array in results.items()]
    inputs = [_laid_out(array, format) for _, format, array in given]
    outputs = [_laid_out(array, format) for _, format, array in wanted]
    for (name, format, array), memory in zip(given, inputs, strict=True):
        binding.bind_input(name, "cpu", 0, _type(array, format), array.shape, memory.ctypes.data)
    for (name, format, array), memory in zip(wanted, outputs, strict=True):
        binding.bind_output(name, "cpu", 0, _TYPES[format.name], array.shape, memory.ctypes.data)
    session.run_with_iobinding(binding)
    for (_, format, array), memory in zip(wanted, outputs, strict=True):
        if memory is not array:
            array[...] = _unpacked(memory, format, array.shape) if _is_packed(format) else memory


def _is_packed(format: Format) -> bool:
    return isinstance(format, IntegerFormat) and format.bits < 8


def _type(array: np.ndarray, format: Format) -> int:
    """Return the ONNX type of an array: its format's, or that of what it is instead, which the session refuses."""
    if array.dtype == format.carrier:
        return _TYPES[format.name]
    return helper.np_dtype_to_tensor_dtype(array.dtype)


def _laid_out(array: np.ndarray, format: Format) -> np.ndarray:
    """Return an array in contiguous memory, several codes a byte where ONNX has it so."""
    array = np.asarray(array, order="C")
    if not _is_packed(format) or array.dtype != format.carrier:
        return array
    fields = array.reshape(-1).view(np.uint8) & ((1 << format.bits) - 1)
    return pack_stream(fields, format.bits, np.dtype(np.uint8))


def _unpacked(memory: np.ndarray, format: Format, shape: tuple[int, ...]) -> np.ndarray:
    codes = unpack_stream(memory, format.bits, int(np.prod(shape))).astype(np.int8).reshape(shape)
    sign = 1 << (format.bits - 1) if isinstance(format, IntegerFormat) and format.signed else 0
    return (codes ^ sign) - sign


def _narrowed(zero_point: np.ndarray, format: str) -> np.ndarray:
    """Return a zero point in the type of the codes, which it has in ONNX."""
    return np.asarray(zero_point).astype(FORMATS[format].carrier)


# Affine quantization ------------------------------------------------------------------------------------------------

_MAPPINGS = {"mapping": ("symmetric", "asymmetric")}
_EVERYWHERE = {**_MAPPINGS, "granularity": ("tensor", "axis", "group")}
_MATRIX: tuple[str, ...] = ("M", "K")


def _place(
    x: np.ndarray, granularity: str, axis: int | None, group_size: int | None
) -> tuple[tuple[str, ...], tuple[tuple[str, int], ...]]:
    """Return the symbols of a scale's axes, and the attributes that say where a scale belongs."""
    if granularity == "group" and group_size:
        if x.shape[1] % group_size:  # to ONNX the last block may be shorter, to the suite it may not
            raise ValueError(f"group_size: {group_size} does not divide {x.shape[1]} columns")
        return ("M", "G"), (("axis", 1), ("block_size", group_size))
    return ((), ()) if axis is None else ((_MATRIX[axis],), (("axis", axis),))


def quantize(x, scale, zero_point, *, format, granularity, axis, group_size, out):
    """Write the codes."""
    axes, attributes = _place(x, granularity, axis, group_size)
    arguments = {
        ("x", "float32", _MATRIX): x,
        ("y_scale", "float32", axes): scale,
        ("y_zero_point", format, axes): _narrowed(zero_point, format),
    }
    results = {("y", format, _MATRIX): out}
    _run(_kept_session("QuantizeLinear", tuple(arguments), tuple(results), attributes), arguments, results)


for _bits in (8, 4, 2):  # each width has kernels of its own
    backend.implements(
        "quantize_affine",
        name=f"QuantizeLinear_{_bits}_bit",
        semantics=_ONNX,
        supports={**_EVERYWHERE, "format": (f"int{_bits}", f"uint{_bits}")},
    )(quantize)


@backend.implements(
    "dequantize_affine",
    name="DequantizeLinear",
    semantics=_ONNX,
    supports={**_EVERYWHERE, "format": _INTEGERS, "output_format": ("float32", "float16")},
)
def dequantize(codes, scale, zero_point, *, format, output_format, granularity, axis, group_size, out):
    """Write the numbers; the scale stays float32, whatever they are."""
    axes, attributes = _place(codes, granularity, axis, group_size)
    arguments = {
        ("x", format, _MATRIX): codes,
        ("x_scale", "float32", axes): scale,
        ("x_zero_point", format, axes): _narrowed(zero_point, format),
    }
    results = {("y", output_format, _MATRIX): out}
    attributes = (*attributes, ("output_dtype", _TYPES[output_format]))
    _run(_kept_session("DequantizeLinear", tuple(arguments), tuple(results), attributes), arguments, results)


@backend.implements(
    "fake_quantize_affine",
    name="QuantizeLinear_DequantizeLinear",
    semantics=_ONNX,
    supports={**_EVERYWHERE, "format": ("int8", "uint8")},
)
def fake_quantize(x, scale, zero_point, *, format, granularity, axis, group_size, out):
    """Write what the one operator makes of the other's codes."""
    place = {"format": format, "granularity": granularity, "axis": axis, "group_size": group_size}
    codes = np.empty(x.shape, FORMATS[format].carrier)
    quantize(x, scale, zero_point, **place, out=codes)
    dequantize(codes, scale, zero_point, **place, output_format="float32", out=out)


@backend.implements(
    "choose_qparams_affine", name="DynamicQuantizeLinear", semantics=_ONNX, supports={"format": "uint8"}
)
def choose_qparams(x, *, out):
    """Write the scale and the zero point; the codes are computed and dropped."""
    scale, zero_point = out
    arguments = {("x", "float32", _MATRIX): x}
    narrow = np.empty((), np.uint8)
    results: dict[Tensor, np.ndarray] = {("y_scale", "float32", ()): scale, ("y_zero_point", "uint8", ()): narrow}
    outputs = (("y", "", ()), *results)
    _run(_kept_session("DynamicQuantizeLinear", tuple(arguments), outputs), arguments, results)
    zero_point[...] = narrow


# Products -----------------------------------------------------------------------------------------------------------


def _adds_pairs_in_16_bits() -> bool:
    """Whether this is an x86 processor without VNNI, for which MLAS adds pairs of u8 * s8 products in 16 bits."""
    processors = Path("/proc/cpuinfo")
    return platform.machine() in ("x86_64", "AMD64") and processors.exists() and "_vnni" not in processors.read_text()


_B = ("B", "int8", ("K", "N"))
_LINEAR = {
    **_MAPPINGS,
    "activation_granularity": "tensor",
    "weight_granularity": ("tensor", "channel"),
    "has_bias": (False, True),
}


def _product(a_format: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    return (("A", a_format, _MATRIX), _B), (("Y", "int32", ("M", "N")),)


def _layer(a_format: str, weight_granularity: str, has_bias: bool) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    inputs = (
        ("A", a_format, _MATRIX),
        _B,
        ("a_scale", "float32", ()),
        ("b_scale", "float32", ("N",) if weight_granularity == "channel" else ()),
        ("a_zero_point", a_format, ()),
        ("", "", ()),  # B is symmetric
        ("bias", "float32", ("N",)) if has_bias else ("", "", ()),
    )
    return inputs, (("Y", "float32", ("M", "N")),)


def _given(inputs: tuple[Tensor, ...], *arrays: np.ndarray | None) -> dict[Tensor, np.ndarray]:
    return {tensor: array for tensor, array in zip(inputs, arrays, strict=True) if array is not None}


def multiply(a, b, *, a_format, out):
    """Write the product of two inputs."""
    inputs, outputs = _product(a_format)
    _run(_kept_session("MatMulInteger", inputs, outputs), _given(inputs, a, b), {outputs[0]: out})


def hold_factor(b, *, a_format):
    """Return a session that holds b, packed."""
    return _session("MatMulInteger", *_product(a_format), constants={"B": b})


def multiply_by_held(a, *, a_format, out, prepared):
    """Write the product with the factor that the model holds."""
    inputs, outputs = _product(a_format)
    _run(prepared, _given(inputs, a, None), {outputs[0]: out})


def linear(a, a_scale, a_zero_point, b, b_scale, bias, *, a_format, weight_granularity, has_bias, out):
    """Write the layer's outputs, every argument an input."""
    inputs, outputs = _layer(a_format, weight_granularity, has_bias)
    arguments = _given(inputs, a, b, a_scale, b_scale, _narrowed(a_zero_point, a_format), None, bias)
    session = _kept_session("MatMulIntegerToFloat", inputs, outputs, domain=_MICROSOFT)
    _run(session, arguments, {outputs[0]: out})


def hold_weights(b, b_scale, *, a_format, weight_granularity, has_bias):
    """Return a session that holds the weights, packed, and their scales."""
    tensors = _layer(a_format, weight_granularity, has_bias)
    held = {"B": b, "b_scale": b_scale}
    return _session("MatMulIntegerToFloat", *tensors, domain=_MICROSOFT, constants=held)


def linear_with_held(a, a_scale, a_zero_point, bias, *, a_format, weight_granularity, has_bias, out, prepared):
    """Write the layer's outputs by the weights that the model holds."""
    inputs, outputs = _layer(a_format, weight_granularity, has_bias)
    arguments = _given(inputs, a, None, a_scale, None, _narrowed(a_zero_point, a_format), None, bias)
    _run(prepared, arguments, {outputs[0]: out})


def _register_products() -> None:
    """Register the products by the type of A: each has kernels of its own."""
    suffixes = {"int8": "s8s8", "uint8": "u8s8_without_vnni" if _adds_pairs_in_16_bits() else "u8s8"}
    kernels: list[tuple[str, str, dict[str, Any], Callable[..., Any], Callable[..., Any] | None]] = [
        ("matmul_int8", "MatMulInteger", {}, multiply, None),
        ("matmul_int8", "MatMulInteger_constant_B", {}, multiply_by_held, hold_factor),
        ("matmul_w8a8", "MatMulIntegerToFloat", _LINEAR, linear, None),
        ("matmul_w8a8", "MatMulIntegerToFloat_constant_B", _LINEAR, linear_with_held, hold_weights),
    ]
    for operation, name, supports, kernel, prepare in kernels:
        for a_format, suffix in suffixes.items():
            backend.implements(
                operation, name=f"{name}_{suffix}", supports={**supports, "a_format": a_format}, prepare=prepare
            )(kernel)


_register_products()


# Addition -----------------------------------------------------------------------------------------------------------


@backend.implements(
    "add_int8",
    name="QLinearAdd",
    semantics=replace(_ONNX, zero_point_order=ZeroPointOrder.INSIDE),
    supports={"format": ("int8", "uint8")},
)
def add(*arguments, format, out):
    """Write the sum: C = round((A_scale (A - A_zero_point) + B_scale (B - B_zero_point)) / C_scale + C_zero_point)."""
    codes, scale, zero_point = (("", format, ("N",)), ("_scale", "float32", ()), ("_zero_point", format, ()))
    parts = {"A": (codes, scale, zero_point), "B": (codes, scale, zero_point), "C": (scale, zero_point)}
    inputs = tuple((name + part, kind, axes) for name in parts for part, kind, axes in parts[name])
    arrays = (
        _narrowed(array, format) if tensor[0].endswith("zero_point") else array
        for tensor, array in zip(inputs, arguments, strict=True)
    )
    outputs: tuple[Tensor, ...] = (("C", format, ("N",)),)
    session = _kept_session("QLinearAdd", inputs, outputs, domain=_MICROSOFT)
    _run(session, _given(inputs, *arrays), {outputs[0]: out})


# Casts --------------------------------------------------------------------------------------------------------------


def _cast(saturate: int) -> Callable[..., None]:
    def cast(x, *, source, target, out):
        inputs, outputs = (("input", source, ("N",)),), (("output", target, ("N",)),)
        session = _kept_session("Cast", inputs, outputs, (("saturate", saturate), ("to", _TYPES[target])))
        _run(session, {inputs[0]: x}, {outputs[0]: out})

    return cast


def _register_casts() -> None:
    narrow = ("float16", "bfloat16", *FLOAT8_FORMATS)
    directions = {
        "Cast_saturate": (1, _WIDE, FLOAT8_FORMATS),
        "Cast_no_saturate": (0, _WIDE, ("float8_e4m3fn", "float8_e5m2")),
        "Cast_no_saturate_fnuz": (0, _WIDE, ("float8_e4m3fnuz", "float8_e5m2fnuz")),
        "Cast_from_small": (1, (*FLOAT8_FORMATS, "float8_e8m0fnu"), _WIDE),
        "Cast_between_wide": (1, _WIDE, _WIDE),
        "Cast_float64_to_float32": (1, "float64", "float32"),
        "Cast_from_float64": (1, "float64", narrow),
    }
    for name, (saturate, source, target) in directions.items():
        overflow = Overflow.SATURATE if saturate else Overflow.INFINITY_OR_NAN
        backend.implements(
            "cast_float",
            name=name,
            semantics=replace(_ONNX, overflow=overflow),
            supports={"source": source, "target": target},
        )(_cast(saturate))


_register_casts()
