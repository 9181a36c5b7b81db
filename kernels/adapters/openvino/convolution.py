"""Convolution of codes and int8 weights, to codes."""

from typing import Any

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

_CHANNEL = (1, -1, 1, 1)


def _convolution(
    x: Node, x_scale: Held, x_zero_point: Held, w: Held, w_scale: Held, y_scale: Held, y_zero_point: Held,
    bias: Held | None, y_format: str, geometry: tuple[Any, ...], groups: int,
) -> Node:  # fmt: skip
    numbers = opset.multiply(shifted(x, array_of(x_zero_point)), constant(array_of(x_scale)))
    scale = array_of(w_scale)
    codes = array_of(w)
    outputs, place = codes.shape[0], (-1, 1, 1, 1) if scale.ndim else ()
    scales = scale.reshape(place)
    if groups > 1:
        codes = codes.reshape(groups, outputs // groups, *codes.shape[1:])
        scales = scale.reshape(groups, outputs // groups, 1, 1, 1) if scale.ndim else scale
    weights = opset.multiply(opset.convert(opset.constant(codes), "f32"), constant(scales))
    strides, pads, dilations = geometry
    convolve = opset.group_convolution if groups > 1 else opset.convolution
    y = convolve(numbers, weights, list(strides), list(pads[:2]), list(pads[2:]), list(dilations))
    if bias is not None:
        units = array_of(x_scale) * scale
        y = opset.add(y, constant((array_of(bias) * units).reshape(_CHANNEL)))
    return quantized(y, array_of(y_scale), array_of(y_zero_point), y_format)


def hold(w, w_scale, w_zero_point):
    """Return the weights and their scales; the zero points of symmetric weights are 0."""
    symmetric(w_zero_point, w_scale, "w_zero_point")
    return held(w), held(w_scale)


def convolution(
    x, x_scale, x_zero_point, y_scale, y_zero_point, bias, *, y_format, strides, pads, dilations, groups, out, prepared
):
    """Write the codes."""
    count = x.shape[1] if groups == "depthwise" else groups
    keys = (*map(held, (x_scale, x_zero_point)), *prepared, held(y_scale), held(y_zero_point))
    geometry = (strides, pads, dilations)
    run(_convolution, (x,), (*keys, None if bias is None else held(bias), y_format, geometry, count), out)


def register(backend: Backend) -> None:
    """Register the convolution of uint8 images, apart by what the plugin makes of padding beside other geometry.

    Strides of 1x1 kernels go wrong there, and the zero point where a dilated kernel has padding alone beneath it.
    """
    unit, others = (1, 1), ((2, 2), (2, 1), (1, 3))
    none, some = (0, 0, 0, 0), ((1, 1, 1, 1), (1, 0, 2, 1), (0, 3, 0, 2))
    dilated = ((2, 2), (1, 2), (3, 1))
    for name, strides, pads, dilations in (
        ("Convolution", (unit,), some, (unit,)),
        ("Convolution_strided", (unit, *others), (none,), (unit, *dilated)),
        ("Convolution_dilated_and_padded", (unit,), some, dilated),
        ("Convolution_strided_and_padded", others, some, (unit, *dilated)),
    ):
        backend.implements(
            "conv2d_int8",
            name=name,
            semantics=FAKE_QUANTIZE,
            supports={
                "x_format": "uint8",
                "y_format": ("int8", "uint8"),
                "weight_granularity": ("tensor", "channel"),
                "strides": strides,
                "pads": pads,
                "dilations": dilations,
            },
            prepare=hold,
        )(convolution)
