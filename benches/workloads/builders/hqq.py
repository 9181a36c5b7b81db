"""Workload cases of half-quadratic quantization: the weights of a layer, whose outputs are the truth."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Built, builds
from lowbit_cts.benches.workloads.fills import FILLS, normal
from lowbit_cts.benches.workloads.shapes import Layer


@builds("quantize_hqq")
def _quantize_hqq(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    """Weights of the size that layers have; the truth is the output on so many tokens."""
    x, w = FILLS[fill](rng, (rows, layer.k)), normal(rng, (layer.n, layer.k)) / np.float32(np.sqrt(layer.k))

    def outputs(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
        groups = codes.astype(np.float32).reshape(*scale.shape, -1)
        return np.asarray(x @ ((groups - zero[..., None]) * scale[..., None]).reshape(w.shape).T)

    return {"w": w}, lambda: x @ w.T, outputs
