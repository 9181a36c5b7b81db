"""Workload cases of the block formats."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Built, blocks_of, builds, decoded, encoded
from lowbit_cts.benches.workloads.fills import FILLS
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference import mx, nvfp4
from lowbit_cts.reference.formats import float_format

Generator = np.random.Generator


def _numbers_mx(codes: np.ndarray, scale: np.ndarray, format: str) -> np.ndarray:
    """Return what MX codes stand for in float32, block of rows by block of rows."""
    numbers = np.empty(codes.shape, np.float32)
    for rows in blocks_of(*codes.shape):
        numbers[rows] = mx.dequantize_mx(codes[rows], scale[rows], format=format)
    return numbers


def _numbers_nvfp4(codes: np.ndarray, scale: np.ndarray, global_scale: np.ndarray | None) -> np.ndarray:
    """Return what NVFP4 codes stand for in float32, block of rows by block of rows."""
    numbers = np.empty(codes.shape, np.float32)
    for rows in blocks_of(*codes.shape):
        numbers[rows] = nvfp4.dequantize_nvfp4(codes[rows], scale[rows], global_scale)
    return numbers


def _stretched(x: np.ndarray, p: dict[str, Any]) -> tuple[np.ndarray, np.ndarray | None]:
    """Return x stretched to a maximum of 2688, and its global scale, with two levels.

    That is 1, whether a kernel is given g or 1 / g.
    """
    largest = np.abs(x).max(initial=0)
    x = x * np.float32(2688 / largest if largest > 0 else 1)
    return x, np.array(1, np.float32) if p["levels"] == "two" else None


@builds("quantize_mx")
def _quantize_mx(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = FILLS[fill](rng, (rows, layer.k))
    seen = encoded(x, float_format(p["input_format"]))
    return {"x": seen}, lambda: x, lambda codes, scale: _numbers_mx(codes, scale, p["format"])


@builds("dequantize_mx")
def _dequantize_mx(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = FILLS[fill](rng, (rows, layer.k))
    codes, scale = mx.quantize_mx(x, format=p["format"])
    return {"codes": codes, "scale": scale}, lambda: x, lambda y: decoded(y, float_format(p["output_format"]))


@builds("choose_global_scale_nvfp4")
def _choose_global_scale(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = FILLS[fill](rng, (rows, layer.k))
    seen = encoded(x, float_format(p["input_format"]))

    def approximate(scale: np.ndarray) -> np.ndarray:  # g or 1 / g: of a matrix that is not tiny, the smaller one
        g = np.minimum(scale, np.float32(1) / scale)
        return _numbers_nvfp4(*nvfp4.quantize_nvfp4(x, g), g)

    return {"x": seen}, lambda: x, approximate


@builds("quantize_nvfp4")
def _quantize_nvfp4(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, stored = _stretched(FILLS[fill](rng, (rows, layer.k)), p)
    seen = encoded(x, float_format(p["input_format"]))
    return {"x": seen, "global_scale": stored}, lambda: x, lambda codes, scale: _numbers_nvfp4(codes, scale, stored)


@builds("dequantize_nvfp4")
def _dequantize_nvfp4(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, stored = _stretched(FILLS[fill](rng, (rows, layer.k)), p)
    codes, scale = nvfp4.quantize_nvfp4(x, stored)
    arrays = {"codes": codes, "scale": scale, "global_scale": stored}
    return arrays, lambda: x, lambda y: decoded(y, float_format(p["output_format"]))
