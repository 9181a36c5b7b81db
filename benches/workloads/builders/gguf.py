"""Workload cases of GGUF blocks."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Built, builds, decoded
from lowbit_cts.benches.workloads.fills import FILLS
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.gguf.blocks import dequantize, quantize


@builds("quantize_gguf")
def _quantize(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = FILLS[fill](rng, (rows, layer.k))
    return {"x": x}, lambda: x, lambda blocks: dequantize(blocks, p["type"])


@builds("dequantize_gguf")
def _dequantize(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = FILLS[fill](rng, (rows, layer.k))
    output = float_format(p["output_format"])
    return {"blocks": quantize(x, p["type"])}, lambda: x, lambda y: decoded(y, output)
