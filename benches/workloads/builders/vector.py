"""Workload cases of vector operations."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import (
    Built,
    builds,
    codes_of,
    numbers_of,
    qparams,
    rule_of,
)
from lowbit_cts.benches.workloads.fills import FILLS
from lowbit_cts.benches.workloads.shapes import Layer


@builds("add_int8")
def _add_int8(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    rule = rule_of(p["format"], "tensor", "asymmetric")
    a, b = (FILLS[fill](rng, (rows, layer.n)) for _ in range(2))
    arrays: dict[str, np.ndarray] = {}
    for name, numbers in (("a", a), ("b", b), ("y", a + b)):
        scale, zero_point = qparams(numbers, rule)
        arrays |= {f"{name}_scale": scale, f"{name}_zero_point": zero_point}
        if name != "y":
            arrays[name] = codes_of(numbers, scale, zero_point, rule).reshape(-1)
    scale, zero_point = arrays["y_scale"], arrays["y_zero_point"]
    return (
        arrays,
        lambda: np.add(a, b, dtype=np.float64).reshape(-1),
        lambda y: numbers_of(y[None], scale, zero_point, rule)[0],
    )
