"""Convolution of quantized images: conv2d_int8."""

from collections.abc import Callable, Mapping
from typing import Any

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.operations.onnx_operators import OUTPUT_CHOICES, format_of
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference import convolution as reference
from lowbit_cts.reference.enclosure import Enclosure

Sizes = Mapping[str, int]

_GEOMETRY = ("strides", "pads", "dilations", "groups")
_WEIGHTS = ("N", "D", "R", "S")
_OUTPUTS = ("M", "N", "P", "Q")


def _per_channel(parameters: Parameters) -> tuple[str, ...]:
    return ("N",) if parameters["weight_granularity"] == "channel" else ()


def _conv2d(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    *arrays, bias = (argument.name for argument in case.operation.arguments)
    given: dict[str, Any] = {name: case.array(name) for name in arrays}
    given |= {name: case.parameters[name] for name in ("x_format", "w_format", "y_format", *_GEOMETRY)}
    choices = semantics.choices(case.operation.semantics)
    return {"y": reference.conv2d_int8_enclosure(**given, bias=case.arrays[bias], **choices)}


def _length(axis: int, image: str, kernel: str) -> Callable[[Sizes, Parameters], int | None]:
    """Return the length of an output axis by those of the image and the kernel."""

    def length(sizes: Sizes, parameters: Parameters) -> int | None:
        if image not in sizes or kernel not in sizes:
            return None
        pads = parameters["pads"]
        return reference.output_length(
            sizes[image], sizes[kernel], parameters["strides"][axis], parameters["dilations"][axis], pads[axis],
            pads[axis + 2],
        )  # fmt: skip

    return length


def _channels_in_group(sizes: Sizes, parameters: Parameters) -> int | None:
    if "C" not in sizes:
        return None
    count = reference.group_count(parameters["groups"], sizes["C"])
    return sizes["C"] // count if count else 1


def _whole_groups(parameters: Parameters) -> dict[str, int]:
    groups = parameters["groups"]
    return {"C": groups, "N": groups} if isinstance(groups, int) and groups > 1 else {}


def _multiply_adds(case: Case) -> float:
    sizes = case.sizes
    work = 2.0
    for symbol in (*_OUTPUTS, *_WEIGHTS[1:]):
        work *= sizes[symbol]
    return work


conv2d_int8 = register(
    Operation(
        name="conv2d_int8",
        summary="convolution of quantized images, quantized: x_scale w_scale / y_scale (conv(x - x_zero_point, "
        "w - w_zero_point) + bias), rounded, plus y_zero_point; x is its zero point beyond the image",
        source="ONNX QLinearConv, opset 10",
        arguments=(
            Argument("x", lambda p: p["x_format"], lambda p: ("M", "C", "H", "W"), "codes of images, (M, C, H, W)"),
            Argument("x_scale", lambda p: "float32", lambda p: (), "float32, ()"),
            Argument("x_zero_point", lambda p: "int32", lambda p: (), "int32, ()"),
            Argument("w", lambda p: p["w_format"], lambda p: _WEIGHTS, "codes of weights, (N, C / groups, R, S)"),
            Argument("w_scale", lambda p: "float32", _per_channel, "float32: () a tensor, (N,) an output channel"),
            Argument("w_zero_point", lambda p: "int32", _per_channel, "int32, the shape of w_scale"),
            Argument("y_scale", lambda p: "float32", lambda p: (), "float32, ()"),
            Argument("y_zero_point", lambda p: "int32", lambda p: (), "int32, ()"),
            Argument(
                "bias", lambda p: "int32", lambda p: ("N",), "int32 in units of x_scale w_scale, (N,), or None",
                present=lambda p: p["has_bias"],
            ),
        ),
        results=(Argument("y", lambda p: p["y_format"], lambda p: _OUTPUTS, "codes of images, (M, N, P, Q)"),),
        parameters={
            "x_format": format_of("x"),
            "w_format": format_of("w"),
            "y_format": format_of("y"),
            "weight_granularity": Parameter(
                ("tensor", "channel"), "one scale and zero point of w, or one an output channel", assumed=("channel",)
            ),
            "weight_mapping": Parameter(
                ("symmetric", "asymmetric"), "symmetric: w_zero_point is 0 (uint8: 128)", assumed=("symmetric",)
            ),
            "has_bias": Parameter((False, True), "whether a bias is added", assumed=(False, True)),
            "strides": Parameter(
                ((1, 1), (2, 2), (2, 1), (1, 3)), "(vertical, horizontal)", assumed=((1, 1), (2, 2), (2, 1), (1, 3))
            ),
            "pads": Parameter(
                ((0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 2, 1), (0, 3, 0, 2)), "(top, left, bottom, right)",
                assumed=((0, 0, 0, 0), (1, 1, 1, 1), (1, 0, 2, 1), (0, 3, 0, 2)),
            ),
            "dilations": Parameter(
                ((1, 1), (2, 2), (1, 2), (3, 1)), "(vertical, horizontal)", assumed=((1, 1), (2, 2), (1, 2), (3, 1))
            ),
            "groups": Parameter(
                (1, 2, 3, "depthwise"), "the groups of channels; depthwise: every channel of x is one",
                assumed=(1, 2, 3, "depthwise"),
            ),
        },
        semantics=OUTPUT_CHOICES,
        evaluate=_conv2d,
        independent=lambda p: ("M", "N") if p["groups"] == 1 else ("M",),
        variants=("x_format", "w_format", "y_format", "weight_granularity"),
        constant=("w", "w_scale", "w_zero_point"),
        work=_multiply_adds,
        derived={"D": _channels_in_group, "P": _length(0, "H", "R"), "Q": _length(1, "W", "S")},
        multiples=_whole_groups,
        weights=("w",),
        stored=("w", "w_scale", "w_zero_point"),
    )
)  # fmt: skip
