"""Workload cases of casts."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import (
    Built,
    builds,
    decoded,
    encoded,
)
from lowbit_cts.benches.workloads.fills import FILLS
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference.formats import float_format


@builds("cast_float")
def _cast_float(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = FILLS[fill](rng, (rows, layer.k))
    codes = encoded(x, float_format(p["source"])).reshape(-1)
    return {"x": codes}, lambda: x.reshape(-1), lambda y: decoded(y, float_format(p["target"]))
