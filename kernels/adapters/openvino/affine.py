"""FakeQuantize onto whole numbers with Convert, and Convert, Subtract, Multiply."""

from openvino import Node
from openvino import opset15 as opset

from lowbit_cts.kernels import Backend, DequantizeForm, Semantics
from lowbit_cts.kernels.adapters.openvino.models import (
    FAKE_QUANTIZE,
    Held,
    array_of,
    constant,
    held,
    quantized,
    run,
    shifted,
)

_SUPPORTS = {
    "format": ("int8", "uint8"),
    "mapping": ("symmetric", "asymmetric"),
    "granularity": ("tensor", "axis"),
}
_PLACES: dict[int | None, tuple[int, ...]] = {None: (), 0: (-1, 1), 1: (1, -1)}


def _quantize(x: Node, scale: Held, zero_point: Held, format: str, axis: int | None) -> Node:
    return quantized(x, array_of(scale), array_of(zero_point), format, _PLACES[axis])


def quantize(x, scale, zero_point, *, format, axis, out):
    """Write the codes."""
    run(_quantize, (x,), (held(scale), held(zero_point), format, axis), out)


def _dequantize(codes: Node, scale: Held, zero_point: Held, axis: int | None) -> Node:
    s = array_of(scale)
    numbers = shifted(codes, array_of(zero_point), _PLACES[axis])
    return opset.multiply(numbers, constant(s.reshape(_PLACES[axis] or s.shape)))


def dequantize(codes, scale, zero_point, *, axis, out):
    """Write the numbers."""
    run(_dequantize, (codes,), (held(scale), held(zero_point), axis), out)


def register(backend: Backend) -> None:
    """Register the operators."""
    backend.implements("quantize_affine", name="FakeQuantize_Convert", semantics=FAKE_QUANTIZE, supports=_SUPPORTS)(
        quantize
    )
    backend.implements(
        "dequantize_affine",
        name="Convert_Subtract_Multiply",
        semantics=Semantics(dequantize_form=DequantizeForm.SCALE_FIRST),
        supports=_SUPPORTS,
    )(dequantize)
