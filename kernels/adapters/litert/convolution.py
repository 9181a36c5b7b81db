"""PAD, and CONV_2D or DEPTHWISE_CONV_2D, of int8.

LiteRT has channels last: images (M, H, W, C), weights (N, R, S, C / groups), of depthwise convolutions (1, R, S, N).
They are moved there and back.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from lowbit_cts.kernels import Backend, Requantization, Semantics
from lowbit_cts.kernels.adapters.litert.interpreters import (
    Kernels,
    Operator,
    Tensor,
    codes,
    plain,
    quantized,
    run,
)
from lowbit_cts.kernels.adapters.litert.products import RUY

#: In the schema: no padding by the operator itself.
_VALID = 1


def hold(w, w_scale, w_zero_point, *, groups):
    """Return the weights as a model holds them, and their scales; depthwise where every channel is a group."""
    depthwise = groups == "depthwise"
    moved = np.ascontiguousarray(w.transpose(1, 2, 3, 0) if depthwise else w.transpose(0, 2, 3, 1))
    return quantized(moved, w_scale, w_zero_point, 3 if depthwise else 0, held=True), np.asarray(w_scale)


def _bias(bias: np.ndarray | None, outputs: int, scale: np.ndarray) -> Tensor:
    """Return the bias, of zeros where there is none, which CONV_2D demands; its scale is that of the sums."""
    given = np.zeros(outputs, np.int32) if bias is None else bias
    return quantized(given, scale, np.zeros(scale.shape, np.int64), held=True)


def convolve(
    x, x_scale, x_zero_point, y_scale, y_zero_point, bias, *, strides, pads, dilations, groups, out, prepared, kernels
):
    """Write the codes."""
    weights, w_scale = prepared
    depthwise = groups == "depthwise"
    if not depthwise and weights.shape[3] * groups != x.shape[1]:  # CONV_2D finds out for itself how many groups go in
        raise ValueError(f"x: has {x.shape[1]} channels, must have {groups} groups of {weights.shape[3]}")
    outputs = weights.shape[3 if depthwise else 0]
    images = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    y = np.empty((out.shape[0], *out.shape[2:], out.shape[1]), out.dtype)
    options: tuple[tuple[str, Any], ...] = (
        ("padding", _VALID), ("strideH", strides[0]), ("strideW", strides[1]),
        ("dilationHFactor", dilations[0]), ("dilationWFactor", dilations[1]),
    )  # fmt: skip
    if depthwise:
        options += (("depthMultiplier", outputs // x.shape[1] if x.shape[1] else 0),)
    name, version = ("DEPTHWISE_CONV_2D", 3) if depthwise else ("CONV_2D", 3)
    tensors: tuple[Tensor, ...] = (
        quantized(images, x_scale, x_zero_point), weights, _bias(bias, outputs, x_scale * w_scale),
        codes("int8", y.shape, y_scale, y_zero_point),
    )  # fmt: skip
    operators: tuple[Operator, ...] = (Operator(name, version, (0, 1, 2), 3, options),)
    if any(pads):
        top, left, bottom, right = pads
        around = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
        m, h, w, c = images.shape
        padded = replace(tensors[0], shape=(m, h + top + bottom, w + left + right, c))
        tensors += (plain(around, held=True), padded)
        operators = (Operator("PAD", 2, (0, 4), 5), Operator(name, version, (5, 1, 2), 3, options))
    run(tensors, operators, {0: images}, y, kernels)
    out[...] = y.transpose(0, 3, 1, 2)


def register(backend: Backend) -> None:
    """Register the convolutions by their kernels."""
    double = Semantics(requantization=Requantization.DOUBLE_ROUNDING)
    groups = (1, 2, 3)
    for name, kernels, semantics, declared in (
        ("CONV_2D", Kernels.XNNPACK, Semantics(), groups),
        ("DEPTHWISE_CONV_2D", Kernels.XNNPACK, Semantics(), "depthwise"),
        ("CONV_2D", Kernels.OPTIMIZED, RUY, 1),  # groups go to the reference
        ("CONV_2D", Kernels.REFERENCE, double, groups),
        ("DEPTHWISE_CONV_2D", Kernels.REFERENCE, double, "depthwise"),
    ):
        backend.implements(
            "conv2d_int8", name=f"{name}_{kernels.name.lower()}", semantics=semantics,
            supports={"weight_granularity": ("tensor", "channel"), "groups": declared}, prepare=hold,
        )(partial(convolve, kernels=kernels))  # fmt: skip
