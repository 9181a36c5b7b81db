"""Workload cases of SmoothQuant and AWQ: the weights of a layer, and activations of so many tokens."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Built, builds
from lowbit_cts.benches.workloads.fills import FILLS, normal
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference.algorithms.awq import round_to_nearest
from lowbit_cts.reference.formats import integer_format

Generator = np.random.Generator


@builds("smooth_weights")
def _smooth_weights(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    """The truth is the layer's output, which smoothing leaves as it is."""
    x, w = FILLS[fill](rng, (rows, layer.k)), normal(rng, (layer.n, layer.k))
    return (
        {"absmax": np.abs(x).max(axis=0), "w": w},
        lambda: x @ w.T,
        lambda scale, smoothed: np.asarray((x / scale) @ smoothed.T),
    )


def _layer(rng: Generator, layer: Layer, rows: int, fill: str) -> tuple[np.ndarray, np.ndarray]:
    """Return activations whose channels have sizes of their own, and weights."""
    sizes = np.exp2(rng.uniform(-2, 2, layer.k)).astype(np.float32)
    return FILLS[fill](rng, (rows, layer.k)) * sizes, normal(rng, (layer.n, layer.k))


def _rounded(w: np.ndarray, p: dict[str, Any], bound: np.ndarray | None = None) -> np.ndarray:
    bits = integer_format(p["format"]).bits
    return round_to_nearest(w, bits=bits, group_size=p["group_size"], bound=bound).astype(np.float32)


@builds("awq_scales")
def _awq_scales(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    """The truth is the layer's output, approximated by that of its weights in the scales that were found."""
    x, w = _layer(rng, layer, rows, fill)
    return (
        {"x": x, "w": w},
        lambda: x @ w.T,
        lambda ratio_index, scale: np.asarray((x / scale) @ _rounded(w * scale, p).T),
    )


@builds("awq_clipping")
def _awq_clipping(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    """The truth is the layer's output, approximated by that of its weights within the bounds that were found."""
    x, w = _layer(rng, layer, rows, fill)
    return {"x": x, "w": w}, lambda: x @ w.T, lambda bound, share_index: np.asarray(x @ _rounded(w, p, bound).T)
