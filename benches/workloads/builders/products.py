"""Workload cases of products."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import (
    Arrays,
    Built,
    builds,
    codes_of,
    decoded,
    qparams,
    rule_of,
)
from lowbit_cts.benches.workloads.fills import FILLS, normal
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.products import integer_product


@builds("matmul_int8")
def _matmul_int8(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    codes = []
    for numbers, format in (
        (FILLS[fill](rng, (rows, layer.k)), p["a_format"]),
        (normal(rng, (layer.n, layer.k)), "int8"),
    ):
        rule = {"format": format, "granularity": "tensor", "mapping": "symmetric"}
        codes.append(codes_of(numbers, *qparams(numbers, rule), rule))
    a, b = codes[0], np.ascontiguousarray(codes[1].T)
    return {"a": a, "b": b}, lambda: integer_product(a, b), lambda y: y


@builds("matmul_w8a8")
def _matmul_w8a8(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, w, bias = (
        FILLS[fill](rng, (rows, layer.k)),
        normal(rng, (layer.n, layer.k)),
        normal(rng, (1, layer.n))[0],
    )
    activation = rule_of(p["a_format"], p["activation_granularity"], p["mapping"])
    weight = rule_of("int8", p["weight_granularity"], "symmetric")
    a_scale, a_zero_point = qparams(x, activation)
    b_scale, b_zero_point = qparams(w, weight)
    arrays: Arrays = {
        "a": codes_of(x, a_scale, a_zero_point, activation),
        "a_scale": a_scale,
        "a_zero_point": a_zero_point,
        "b": np.ascontiguousarray(codes_of(w, b_scale, b_zero_point, weight).T),
        "b_scale": b_scale,
        "bias": bias if p["has_bias"] else None,
    }
    output = float_format(p["output_format"])
    return arrays, lambda: x @ w.T + (bias if p["has_bias"] else 0), lambda y: decoded(y, output)
