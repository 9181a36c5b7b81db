"""Interpreters of models of one or two operators, and calls that write into arrays they are given.

Scales and zero points are part of a LiteRT model, as the shapes are, so there is a model for each of them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from lowbit_cts.reference.formats import FORMATS


class Kernels(Enum):
    """Whose kernels an interpreter takes; where XNNPACK has none for an operator, the optimized ones."""

    XNNPACK = OpResolverType.BUILTIN
    OPTIMIZED = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    REFERENCE = OpResolverType.BUILTIN_REF


@dataclass(frozen=True)
class Quantization:
    """Scales as float32 and zero points as int64, in bytes, and the axis that they lie along."""

    scales: bytes
    zero_points: bytes
    axis: int = 0


@dataclass(frozen=True)
class Tensor:
    """A tensor of a model; one with `data` is held by the model, others are its inputs, results or between them."""

    dtype: str
    shape: tuple[int, ...]
    quantization: Quantization | None = None
    data: bytes | None = None


@dataclass(frozen=True)
class Operator:
    """A builtin operator: its name, its version, its options, and the places of its tensors in the model's list.

    A tensor that is left out has the place -1.
    """

    name: str
    version: int
    inputs: tuple[int, ...]
    output: int
    options: tuple[tuple[str, Any], ...] = ()


def quantized(
    array: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int = 0, *, held: bool = False
) -> Tensor:
    """Return the tensor of codes with these scales and zero points, () or one an index of `axis`."""
    scales, zeros = np.asarray(scale, np.float32), np.asarray(zero_point, np.int64)
    return replace(plain(array, held=held), quantization=Quantization(scales.tobytes(), zeros.tobytes(), axis))


def plain(array: np.ndarray, *, held: bool = False) -> Tensor:
    """Return the tensor of an array that is no codes."""
    array = np.asarray(array)
    return Tensor(array.dtype.name, array.shape, None, array.tobytes() if held else None)


def codes(format: str, shape: tuple[int, ...], scale: np.ndarray, zero_point: np.ndarray, axis: int = 0) -> Tensor:
    """Return the tensor of a result in a format."""
    return quantized(np.empty(shape, FORMATS[format].carrier), scale, zero_point, axis)


def _quantization(given: Quantization) -> Any:
    parameters = schema.QuantizationParametersT()
    parameters.scale = np.frombuffer(given.scales, np.float32)
    parameters.zeroPoint = np.frombuffer(given.zero_points, np.int64)
    parameters.quantizedDimension = given.axis
    return parameters


def _flatbuffer(tensors: tuple[Tensor, ...], operators: tuple[Operator, ...], results: tuple[int, ...]) -> bytes:
    """Return the model, whose inputs are the tensors that no operator makes and the model does not hold."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.buffers, model.operatorCodes, model.subgraphs = 3, [schema.BufferT()], [], [graph]
    graph.tensors, graph.operators, graph.outputs = [], [], list(results)
    made = {operator.output for operator in operators}
    graph.inputs = [i for i, tensor in enumerate(tensors) if tensor.data is None and i not in made]
    for number, given in enumerate(tensors):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type = str(number), list(given.shape), _type(given.dtype)
        if given.quantization is not None:
            tensor.quantization = _quantization(given.quantization)
        if given.data is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(given.data, np.uint8)
            tensor.buffer = len(model.buffers)
            model.buffers.append(buffer)
        graph.tensors.append(tensor)
    for given_operator in operators:
        code, operator = schema.OperatorCodeT(), schema.OperatorT()
        code.builtinCode = getattr(schema.BuiltinOperator, given_operator.name)
        code.deprecatedBuiltinCode, code.version = code.builtinCode, given_operator.version
        operator.opcodeIndex = len(model.operatorCodes)
        operator.inputs, operator.outputs = list(given_operator.inputs), [given_operator.output]
        kind = _OPTIONS[given_operator.name]
        operator.builtinOptionsType = getattr(schema.BuiltinOptions, kind)
        operator.builtinOptions = getattr(schema, f"{kind}T")()
        for name, value in given_operator.options:
            setattr(operator.builtinOptions, name, value)
        model.operatorCodes.append(code)
        graph.operators.append(operator)
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


_OPTIONS = {
    "ADD": "AddOptions",
    "BATCH_MATMUL": "BatchMatMulOptions",
    "CONV_2D": "Conv2DOptions",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2DOptions",
    "DEQUANTIZE": "DequantizeOptions",
    "FULLY_CONNECTED": "FullyConnectedOptions",
    "PAD": "PadOptions",
    "QUANTIZE": "QuantizeOptions",
}


def _type(dtype: str) -> int:
    """Return LiteRT's type of a NumPy type, whatever the operator is to make of it."""
    found = getattr(schema.TensorType, dtype.upper(), None)
    if found is None:
        raise ValueError(f"dtype: LiteRT has no {dtype}; it has int8, uint8, int16, int32, int64, float32, float64")
    return found


@lru_cache(maxsize=64)
def interpreter(
    tensors: tuple[Tensor, ...], operators: tuple[Operator, ...], results: tuple[int, ...], kernels: Kernels
) -> Interpreter:
    """Return an interpreter whose tensors have memory; the same for the same model."""
    found = Interpreter(
        model_content=_flatbuffer(tensors, operators, results),
        experimental_op_resolver_type=kernels.value,
        num_threads=os.cpu_count(),
    )
    found.allocate_tensors()
    return found


def run(
    tensors: tuple[Tensor, ...],
    operators: tuple[Operator, ...],
    arguments: Mapping[int, np.ndarray],
    out: np.ndarray,
    kernels: Kernels,
) -> None:
    """Write what the last operator makes of the arrays given, by the places of their tensors."""
    result = operators[-1].output
    found = interpreter(tensors, operators, (result,), kernels)
    for (_, array), details in zip(sorted(arguments.items()), found.get_input_details(), strict=True):
        found.set_tensor(details["index"], array)
    found.invoke()
    y = found.get_tensor(found.get_output_details()[0]["index"])
    if y.shape != out.shape or y.dtype != out.dtype:
        raise ValueError(f"out: has {out.dtype} {out.shape}, the operator's result is {y.dtype} {y.shape}")
    out[...] = y
