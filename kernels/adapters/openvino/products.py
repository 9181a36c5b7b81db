"""FullyConnected of codes and int8 weights, to float32 and to codes."""

from openvino import Node
from openvino import opset15 as opset

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.adapters.openvino.models import (
    FAKE_QUANTIZE,
    Held,
    array_of,
    constant,
    held,
    quantized,
    run,
    shifted,
    symmetric,
)
from lowbit_cts.reference.formats import integer_format

_BYTES = ("int8", "uint8")
_GRANULARITIES = {"activation_granularity": "tensor", "weight_granularity": ("tensor", "channel")}


def _product(numbers: Node, b: Held, b_scale: Held) -> Node:
    """Return the product of numbers and weights, whose scales lie along the columns."""
    weights = opset.multiply(opset.convert(opset.constant(array_of(b)), "f32"), constant(array_of(b_scale)))
    return opset.matmul(numbers, weights, False, False)


def _linear(a: Node, a_scale: Held, b: Held, b_scale: Held, bias: Held | None) -> Node:
    ends = tuple(constant(end) for end in integer_format("int8").codes())
    # Maps codes to themselves: a model without any FakeQuantize is not transformed, and computes in float32.
    codes = opset.fake_quantize(opset.convert(a, "f32"), *ends, *ends, 256)
    y = _product(opset.multiply(codes, constant(array_of(a_scale))), b, b_scale)
    return y if bias is None else opset.add(y, constant(array_of(bias)[None]))


def hold_weights(b, b_scale):
    """Return the weights and their scales as they are in a model."""
    return held(b), held(b_scale)


def linear(a, a_scale, a_zero_point, bias, *, out, prepared):
    """Write the layer's outputs."""
    symmetric(a_zero_point, a_scale, "a_zero_point")
    run(_linear, (a,), (held(a_scale), *prepared, None if bias is None else held(bias)), out)


def _quantized_product(
    a: Node, a_scale: Held, a_zero_point: Held, b: Held, b_scale: Held, y_scale: Held, y_zero_point: Held, y_format: str
) -> Node:
    numbers = opset.multiply(shifted(a, array_of(a_zero_point)), constant(array_of(a_scale)))
    return quantized(_product(numbers, b, b_scale), array_of(y_scale), array_of(y_zero_point), y_format)


def hold_quantized(b, b_scale, b_zero_point):
    """Return the weights and their scales; the zero points of symmetric weights are 0."""
    symmetric(b_zero_point, b_scale, "b_zero_point")
    return held(b), held(b_scale)


def quantized_product(a, a_scale, a_zero_point, y_scale, y_zero_point, *, y_format, out, prepared):
    """Write the codes."""
    keys = (held(a_scale), held(a_zero_point), *prepared, held(y_scale), held(y_zero_point), y_format)
    run(_quantized_product, (a,), keys, out)


def register(backend: Backend) -> None:
    """Register the layers; their weights are constants of the model."""
    # Where the activations have a zero point, its share is scaled, rounded to float32 and added; not declared.
    backend.implements(
        "matmul_w8a8",
        name="FullyConnected",
        supports={**_GRANULARITIES, "mapping": "symmetric", "has_bias": (False, True)},
        prepare=hold_weights,
    )(linear)
    backend.implements(
        "qlinear_matmul",
        name="FullyConnected",
        semantics=FAKE_QUANTIZE,
        supports={**_GRANULARITIES, "a_format": _BYTES, "y_format": _BYTES, "weight_mapping": "symmetric"},
        prepare=hold_quantized,
    )(quantized_product)
