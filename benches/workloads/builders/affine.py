"""Workload cases of the affine operations."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import (
    Built,
    builds,
    codes_of,
    decoded,
    encoded,
    numbers_of,
    qparams,
)
from lowbit_cts.benches.workloads.fills import FILLS
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference.formats import float_format


def _affine(
    rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return x and the arguments that the affine operations have, quantizing what the kernel will see."""
    x = FILLS[fill](rng, (rows, layer.k))
    source = float_format(p.get("input_format", "float32"))
    seen = encoded(x, source)
    scale, zero_point = qparams(decoded(seen, source), p)
    return x, {"x": seen, "scale": scale, "zero_point": zero_point}


@builds("choose_qparams_affine")
def _choose_qparams(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, arrays = _affine(rng, layer, rows, fill, p)
    return arrays, lambda: x, lambda s, z: numbers_of(codes_of(x, s, z, p), s, z, p)


@builds("quantize_affine")
def _quantize(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, arrays = _affine(rng, layer, rows, fill, p)
    scale, zero_point = arrays["scale"], arrays["zero_point"]
    return arrays, lambda: x, lambda codes: numbers_of(codes, scale, zero_point, p)


@builds("fake_quantize_affine")
def _fake_quantize(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, arrays = _affine(rng, layer, rows, fill, p)
    return arrays, lambda: x, lambda y: y


@builds("dequantize_affine")
def _dequantize(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, arrays = _affine(rng, layer, rows, fill, p)
    arrays["codes"] = codes_of(x, arrays["scale"], arrays["zero_point"], p)
    return arrays, lambda: x, lambda y: decoded(y, float_format(p["output_format"]))
