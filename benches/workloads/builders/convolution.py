"""Workload cases of convolutions."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Built, builds, codes_of, numbers_of, qparams, rule_of
from lowbit_cts.benches.workloads.fills import FILLS, normal
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference.convolution import patches


def _spans(layer: Layer, p: Mapping[str, Any]) -> tuple[int, int]:
    """Return the least height and width of an image with as many output positions as the layer has, in a square."""
    side, pads, spans = max(1, isqrt(layer.m)), p["pads"], []
    for axis in (0, 1):
        span = (side - 1) * p["strides"][axis] + p["dilations"][axis] * (layer.kernel - 1) + 1
        spans.append(max(1, span - pads[axis] - pads[axis + 2]))
    return spans[0], spans[1]


def _channels(layer: Layer, groups: int | str) -> tuple[int, int, int, int]:
    """Return the channels of inputs and outputs, the number of groups and the inputs of a group."""
    inputs, outputs = layer.k // layer.kernel**2, layer.n
    if groups == "depthwise":
        inputs = min(inputs, outputs)
        return inputs, outputs // inputs * inputs, inputs, 1
    count = int(groups)
    inputs, outputs = max(1, inputs // count) * count, max(1, outputs // count) * count
    return inputs, outputs, count, inputs // count


@builds("conv2d_int8")
def _conv2d(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    """Build a layer on `rows` / layer.m images: x of the fill (a channel a column), weights and biases normal."""
    height, width = _spans(layer, p)
    inputs, outputs, count, depth = _channels(layer, p["groups"])
    images, side = rows // layer.m, layer.kernel
    flat = FILLS[fill](rng, (images * height * width, inputs))
    w, bias = normal(rng, (outputs, depth * side * side)), normal(rng, (1, outputs))[0]

    rules = (
        rule_of(p["x_format"], "tensor", "asymmetric"),
        rule_of(p["w_format"], p["weight_granularity"], p["weight_mapping"]),
    )
    (x_scale, x_zero), (w_scale, w_zero) = (qparams(v, rule) for v, rule in zip((flat, w), rules, strict=True))
    x = flat.reshape(images, height, width, inputs).transpose(0, 3, 1, 2)
    below = patches(x, (side, side), p["strides"], p["pads"], p["dilations"])
    places = below.shape[-2:]
    below = below.reshape(images, count, depth * side * side, -1)
    y = np.matmul(w.reshape(count, outputs // count, -1), below).reshape(images, outputs, *places)
    if p["has_bias"]:
        y = y + bias[:, None, None]
    rule = rule_of(p["y_format"], "tensor", "asymmetric")
    y_scale, y_zero = qparams(y.reshape(images, -1), rule)
    codes = codes_of(flat, x_scale, x_zero, rules[0]).reshape(images, height, width, inputs)
    arrays = {
        "x": np.ascontiguousarray(codes.transpose(0, 3, 1, 2)),
        "x_scale": x_scale,
        "x_zero_point": x_zero,
        "w": codes_of(w, w_scale, w_zero, rules[1]).reshape(outputs, depth, side, side),
        "w_scale": w_scale,
        "w_zero_point": w_zero,
        "y_scale": y_scale,
        "y_zero_point": y_zero,
        "bias": np.rint(bias / (np.float64(x_scale) * w_scale)).astype(np.int32) if p["has_bias"] else None,
    }

    def numbers(found: np.ndarray) -> np.ndarray:
        return numbers_of(found.reshape(images, -1), y_scale, y_zero, rule).reshape(y.shape)

    return arrays, lambda: y, numbers
