"""Workload cases of ONNX's quantized operators."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Built, builds, codes_of, numbers_of, qparams, rule_of
from lowbit_cts.benches.workloads.fills import FILLS, normal
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference.onnx_operators import matmul_integer

_TENSOR = {"granularity": "tensor", "format": "uint8"}


def _operands(
    rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return activations, weights (N, K), and both quantized, with their scales and zero points."""
    x, w = FILLS[fill](rng, (rows, layer.k)), normal(rng, (layer.n, layer.k))
    activation = rule_of(p["a_format"], p["activation_granularity"], "asymmetric")
    weight = rule_of(p["b_format"], p["weight_granularity"], p["weight_mapping"])
    arrays: dict[str, np.ndarray] = {}
    for name, numbers, rule in (("a", x, activation), ("b", w, weight)):
        scale, zero_point = qparams(numbers, rule)
        arrays |= {name: codes_of(numbers, scale, zero_point, rule), f"{name}_scale": scale}
        arrays[f"{name}_zero_point"] = zero_point
    arrays["b"] = np.ascontiguousarray(arrays["b"].T)
    return x, w, arrays


@builds("matmul_integer")
def _matmul_integer(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    _, _, found = _operands(rng, layer, rows, fill, p)
    arrays = {name: found[name] for name in ("a", "a_zero_point", "b", "b_zero_point")}
    formats = {name: p[name] for name in ("a_format", "b_format")}
    return arrays, lambda: matmul_integer(*arrays.values(), **formats), lambda y: y


@builds("qlinear_matmul")
def _qlinear_matmul(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, w, arrays = _operands(rng, layer, rows, fill, p)
    rule = rule_of(p["y_format"], "tensor", "asymmetric")
    y = x @ w.T
    scale, zero_point = qparams(y, rule)
    arrays |= {"y_scale": scale, "y_zero_point": zero_point}
    order = ("a", "a_scale", "a_zero_point", "b", "b_scale", "b_zero_point", "y_scale", "y_zero_point")
    return {name: arrays[name] for name in order}, lambda: y, lambda codes: numbers_of(codes, scale, zero_point, rule)


@builds("dynamic_quantize_linear")
def _dynamic_quantize(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = FILLS[fill](rng, (rows, layer.k))
    return {"x": x}, lambda: x, lambda codes, scale, zero_point: numbers_of(codes, scale, zero_point, _TENSOR)
