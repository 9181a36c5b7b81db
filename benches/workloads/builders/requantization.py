"""Workload cases of requantization."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Built, builds, codes_of, qparams, rule_of
from lowbit_cts.benches.workloads.fills import FILLS, normal
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference.products import integer_product


@builds("requantize")
def _requantize(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    """Build the sums of a layer on int8 codes, a scale a tensor of activations, the weights' as asked for."""
    x, w = FILLS[fill](rng, (rows, layer.k)), normal(rng, (layer.n, layer.k))
    rules = rule_of("int8", "tensor", "symmetric"), rule_of("int8", p["granularity"], "symmetric")
    (x_scale, x_zero), (w_scale, w_zero) = (qparams(v, rule) for v, rule in zip((x, w), rules, strict=True))
    a, b = codes_of(x, x_scale, x_zero, rules[0]), codes_of(w, w_scale, w_zero, rules[1])
    acc = integer_product(a, b.T).astype(np.int32)
    y = acc * (np.float64(x_scale) * w_scale)
    y_scale, y_zero = qparams(y.astype(np.float32), rule_of(p["format"], "tensor", "asymmetric"))
    scale = np.asarray(np.float64(x_scale) * w_scale / y_scale, np.float32)
    arrays = {"acc": acc, "scale": scale, "zero_point": np.broadcast_to(y_zero, scale.shape).astype(np.int32)}
    return arrays, lambda: y, lambda codes: (codes.astype(np.float64) - y_zero) * y_scale
