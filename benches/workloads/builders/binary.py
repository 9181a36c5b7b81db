"""Workload cases of binary and ternary weights."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Built, builds, encoded
from lowbit_cts.benches.workloads.fills import FILLS
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.granularity import spread


def _weights(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = FILLS[fill](rng, (rows, layer.k))

    def approximate(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return codes * spread(scale, codes.shape, p["granularity"], p["axis"], p["group_size"])

    return {"x": encoded(x, float_format(p["input_format"]))}, lambda: x, approximate


for _operation in ("binarize", "ternarize"):
    builds(_operation)(_weights)
