"""Compiled models of a few operators, and calls that write into arrays they are given.

Scales and zero points are constants of a model, since only then do OpenVINO's low-precision transformations put it on
integer kernels; and shapes are static, since only then does its CPU plugin choose kernels when it compiles. So there is
a model for each of them.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from openvino import Core, InferRequest, Model, Node, Tensor, Type
from openvino import opset15 as opset

from lowbit_cts.kernels import Division, Semantics, ZeroPointOrder
from lowbit_cts.reference.formats import integer_format

#: Without the hint the plugin computes in bfloat16 where the processor can; with groups, it quantizes activations.
CONFIGURATION = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
_CORE = Core()
#: FakeQuantize has limits: a scale and a zero point make them in float32, and they a factor and a summand. The zero
#: point's share of a code is so off by up to 2**-14; of the quotients at ties, 1/2 or more, that is 1024 units.
FAKE_QUANTIZE = Semantics(zero_point_order=ZeroPointOrder.INSIDE, division=Division.APPROXIMATE, division_ulps=1024.0)

#: An array as a key: its type, its shape and its bytes.
Held = tuple[str, tuple[int, ...], bytes]
#: An input of a model: its type and its shape.
Input = tuple[str, tuple[int, ...]]


def held(array: np.ndarray) -> Held:
    """Return an array as a key."""
    array = np.asarray(array)
    return array.dtype.str, array.shape, array.tobytes()


def array_of(key: Held) -> np.ndarray:
    """Return the array of a key."""
    dtype, shape, data = key
    return np.frombuffer(data, dtype).reshape(shape)


def constant(values: Any) -> Node:
    """Return a float32 constant."""
    return opset.constant(np.asarray(values, np.float32))


def shifted(codes: Node, zero_point: np.ndarray, shape: tuple[int, ...] = ()) -> Node:
    """Return float32 codes less their zero points, laid out in `shape` where there is one a channel.

    The zero points have the type of the codes, as the transformations demand.
    """
    zeros = np.asarray(zero_point).astype(codes.get_element_type().to_dtype())
    numbers = opset.convert(codes, "f32")
    if not zeros.any():
        return numbers
    return opset.subtract(numbers, opset.convert(opset.constant(zeros.reshape(shape or zeros.shape)), "f32"))


def quantized(x: Node, scale: np.ndarray, zero_point: np.ndarray, format: str, shape: tuple[int, ...] = ()) -> Node:
    """Return the codes of numbers: FakeQuantize onto whole numbers, and Convert."""
    low, high = integer_format(format).codes()
    s, z = (np.asarray(v, np.float32).reshape(shape or np.shape(v)) for v in (scale, zero_point))
    codes = opset.fake_quantize(
        x, constant(s * (low - z)), constant(s * (high - z)), constant(low), constant(high), 256
    )
    return opset.convert(codes, "i8" if low else "u8")


def symmetric(zero_point: np.ndarray, scale: np.ndarray, name: str) -> None:
    """Demand the zero points of symmetric int8 codes, which no model needs: 0, in the shape of the scales."""
    if np.shape(zero_point) != np.shape(scale) or np.any(zero_point):
        raise ValueError(f"{name}: must be 0, in the shape of the scales, {np.shape(scale)}")


@lru_cache(maxsize=64)
def _request(build: Callable[..., Node], inputs: tuple[Input, ...], parameters: tuple[Any, ...]) -> InferRequest:
    """Return a request to the compiled model of what `build` makes of the nodes of its inputs and of its parameters."""
    nodes = [opset.parameter(shape, Type(np.dtype(dtype))) for dtype, shape in inputs]
    model = _CORE.compile_model(Model([build(*nodes, *parameters)], nodes), "CPU", CONFIGURATION)
    return model.create_infer_request()


def request(build: Callable[..., Node], arguments: Sequence[np.ndarray], parameters: tuple[Any, ...]) -> InferRequest:
    """Return the request for arrays such as these; the parameters can be keys."""
    return _request(build, tuple((array.dtype.str, array.shape) for array in arguments), parameters)


def run(
    build: Callable[..., Node], arguments: Sequence[np.ndarray], parameters: tuple[Any, ...], out: np.ndarray
) -> None:
    """Write what a model makes of some arrays; into `out` itself, where it is contiguous."""
    wanted = request(build, arguments, parameters)
    given = [np.asarray(array, order="C") for array in arguments]  # which a Tensor does not keep alive
    for place, array in enumerate(given):
        wanted.set_input_tensor(place, Tensor(array, shared_memory=True))
    y = out if out.flags.c_contiguous else np.empty(out.shape, out.dtype)
    wanted.set_output_tensor(0, Tensor(y, shared_memory=True))
    wanted.infer()
    if y is not out:
        out[...] = y
