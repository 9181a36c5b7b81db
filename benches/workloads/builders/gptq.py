"""Workload cases of GPTQ: the weights of a layer, and the Hessian of so many tokens of correlated activations."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Built, builds
from lowbit_cts.benches.workloads.fills import FILLS, normal
from lowbit_cts.benches.workloads.shapes import Layer

#: How much of its left neighbour an activation is, so that errors can compensate one another.
_CORRELATION = np.float32(0.7)


@builds("quantize_gptq")
def _quantize_gptq(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    """The truth is the layer's output on the calibration tokens."""
    x, w = FILLS[fill](rng, (rows, layer.k)), normal(rng, (layer.n, layer.k))
    for j in range(1, layer.k):
        x[:, j] = _CORRELATION * x[:, j - 1] + np.sqrt(1 - _CORRELATION**2) * x[:, j]
    h = (2 / rows) * (x.T @ x)

    def outputs(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, index: np.ndarray) -> np.ndarray:
        groups = index.astype(np.int64)
        weights = (codes.astype(np.float32) - zero[:, groups]) * scale[:, groups]
        return np.asarray(x @ weights.T)

    return {"w": w, "hessian": np.maximum(h, h.T)}, lambda: x @ w.T, outputs
