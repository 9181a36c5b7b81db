"""Sessions on models of one operator, and calls that write into arrays they are given."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from lowbit_cts.kernels import PRESETS
from lowbit_cts.reference.formats import FLOAT8_FORMATS, FORMATS, Format, IntegerFormat
from lowbit_cts.reference.packing.streams import pack_stream, unpack_stream

#: A tensor of a model: its name, its format and the symbols of its axes. Without a format it is no end of the model.
Tensor = tuple[str, str, tuple[str, ...]]

MICROSOFT = "com.microsoft"
_OPSETS = [helper.make_opsetid("", 25), helper.make_opsetid(MICROSOFT, 1)]  # 25: the first with int2
_IR_VERSION = 13
INTEGERS = ("int8", "uint8", "int4", "uint4", "int2", "uint2")
WIDE = ("float32", "float16", "bfloat16")
TYPES: dict[str, int] = {
    **{name: getattr(TensorProto, name.upper()) for name in (*INTEGERS, "int32", "float16", "bfloat16")},
    **{name: getattr(TensorProto, name.upper().replace("_", "")) for name in FLOAT8_FORMATS},
    "float8_e8m0fnu": TensorProto.FLOAT8E8M0,
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
}
#: What ONNX's operators compute.
ONNX = PRESETS["onnx"]
MATRIX: tuple[str, ...] = ("M", "K")


def session(
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
            helper.make_tensor_value_info(name, TYPES[format], axes)
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


kept_session = lru_cache(maxsize=32)(session)  # each has threads of its own


def run(
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
        binding.bind_output(name, "cpu", 0, TYPES[format.name], array.shape, memory.ctypes.data)
    session.run_with_iobinding(binding)
    for (_, format, array), memory in zip(wanted, outputs, strict=True):
        if memory is not array:
            array[...] = _unpacked(memory, format, array.shape) if _is_packed(format) else memory


def _is_packed(format: Format) -> bool:
    return isinstance(format, IntegerFormat) and format.bits < 8


def _type(array: np.ndarray, format: Format) -> int:
    """Return the ONNX type of an array: its format's, or that of what it is instead, which the session refuses."""
    if array.dtype == format.carrier:
        return TYPES[format.name]
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


def narrowed(zero_point: np.ndarray, format: str) -> np.ndarray:
    """Return a zero point in the type of the codes, which it has in ONNX."""
    return np.asarray(zero_point).astype(FORMATS[format].carrier)


def given(inputs: tuple[Tensor, ...], *arrays: np.ndarray | None) -> dict[Tensor, np.ndarray]:
    """Return the arrays by their tensors, but those that are not given."""
    return {tensor: array for tensor, array in zip(inputs, arrays, strict=True) if array is not None}
