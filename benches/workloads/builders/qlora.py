"""Workload cases of adapters: merged, and beside 4-bit weights."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Built, builds, decoded, encoded
from lowbit_cts.benches.workloads.builders.structured import RANK
from lowbit_cts.benches.workloads.fills import FILLS, normal
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference.blockwise import double_quantize, quantize_blockwise
from lowbit_cts.reference.formats import float_format

Generator = np.random.Generator
_SCALING = np.asarray(2, np.float32)


def _factors(rng: Generator, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Return LoRA's A and B, whose product is of the size of the weights."""
    down = normal(rng, (RANK, layer.k)) / np.float32(np.sqrt(layer.k))
    return down, normal(rng, (layer.n, RANK)) / np.float32(np.sqrt(RANK))


@builds("merge_lora")
def _merge_lora(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    """Weights of the size that layers have; the rows of activations do not matter."""
    w = normal(rng, (layer.n, layer.k)) / np.float32(np.sqrt(layer.k))
    down, up = _factors(rng, layer)
    fmt = float_format(p["input_format"])
    arrays = {"w": encoded(w, fmt), "down": encoded(down, fmt), "up": encoded(up, fmt), "scaling": _SCALING}
    return arrays, lambda: w + _SCALING * (up @ down), lambda y: decoded(y, fmt)


@builds("linear_qlora")
def _linear_qlora(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    """The ideal is the layer of weights that were not quantized, with its adapter."""
    x, w = FILLS[fill](rng, (rows, layer.k)), normal(rng, (layer.n, layer.k)) / np.float32(np.sqrt(layer.k))
    codes, absmax = quantize_blockwise(w, codebook=p["codebook"], block_size=p["block_size"])
    nested, scale, offset = double_quantize(absmax.ravel(), block_size=p["nested_block_size"])
    down, up = _factors(rng, layer)
    bias = normal(rng, (1, layer.n))[0] if p["has_bias"] else None
    fmt = float_format(p["input_format"])
    arrays = {
        "a": encoded(x, fmt),
        "codes": codes.astype(np.uint8),
        "absmax_codes": nested.reshape(absmax.shape).astype(np.uint8),
        "nested_absmax": np.asarray(scale, np.float32),
        "offset": np.asarray(offset, np.float32),
        "down": encoded(down, fmt),
        "up": encoded(up, fmt),
        "scaling": _SCALING,
        "bias": bias,
    }

    def ideal() -> np.ndarray:
        return np.asarray(x @ w.T + _SCALING * ((x @ down.T) @ up.T) + (0 if bias is None else bias))

    return arrays, ideal, lambda y: decoded(y, fmt)
