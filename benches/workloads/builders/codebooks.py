"""Workload cases of codebooks."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Built, blocks_of, builds, decoded, encoded
from lowbit_cts.benches.workloads.fills import FILLS
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.kernels.operations.codebooks import NESTED
from lowbit_cts.reference import blockwise
from lowbit_cts.reference.codebooks import CODEBOOKS, assign
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.lloyd import lloyd_max, update

Generator = np.random.Generator

#: The codebook and the blocks whose absmax is quantized once more: QLoRA's.
_OUTER: dict[str, Any] = {"codebook": "nf4", "block_size": 64}
#: Values of a codebook of four bits.
_VALUES = 16


def _quantized(x: np.ndarray, p: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the reference's codes in uint8 and the absmax, block of rows by block of rows."""
    codes = np.empty(x.shape, np.uint8)
    absmax = np.empty((x.shape[0], x.shape[1] // p["block_size"]), np.float32)
    for rows in blocks_of(*x.shape):
        codes[rows], absmax[rows] = blockwise.quantize_blockwise(
            x[rows], codebook=p["codebook"], block_size=p["block_size"]
        )
    return codes, absmax


def _numbers(codes: np.ndarray, absmax: np.ndarray, p: dict[str, Any]) -> np.ndarray:
    blocks = codes.reshape(*absmax.shape, p["block_size"])
    return (CODEBOOKS[p["codebook"]][blocks] * absmax[..., None]).reshape(codes.shape)


def _absmax(rng: Generator, layer: Layer, rows: int, fill: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the absmax of a matrix's blocks as a vector, and their mean."""
    x = FILLS[fill](rng, (rows, layer.k))
    if layer.k % _OUTER["block_size"]:
        raise ValueError(f"layer: has {layer.k} columns, which {_OUTER['block_size']} does not divide")
    absmax = np.abs(x.reshape(-1, _OUTER["block_size"])).max(axis=1)
    return absmax, np.asarray(absmax.mean(dtype=np.float64), np.float32)


def _restored(codes: np.ndarray, nested: np.ndarray, offset: np.ndarray, block_size: int) -> np.ndarray:
    return CODEBOOKS[NESTED][codes] * np.repeat(nested, block_size)[: codes.size] + offset


@builds("quantize_blockwise")
def _quantize(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = FILLS[fill](rng, (rows, layer.k))
    seen = encoded(x, float_format(p["input_format"]))
    return {"x": seen}, lambda: x, lambda codes, absmax: _numbers(codes, absmax, p)


@builds("dequantize_blockwise")
def _dequantize(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = FILLS[fill](rng, (rows, layer.k))
    codes, absmax = _quantized(x, p)
    return {"codes": codes, "absmax": absmax}, lambda: x, lambda y: decoded(y, float_format(p["output_format"]))


@builds("double_quantize")
def _double_quantize(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    absmax, offset = _absmax(rng, layer, rows, fill)
    arrays = {"absmax": absmax, "offset": offset}
    return arrays, lambda: absmax, lambda codes, nested: _restored(codes, nested, offset, p["block_size"])


@builds("double_dequantize")
def _double_dequantize(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    absmax, offset = _absmax(rng, layer, rows, fill)
    codes, nested, _ = blockwise.double_quantize(absmax, offset=offset, block_size=p["block_size"])
    arrays = {"codes": codes.astype(np.uint8), "nested_absmax": nested, "offset": offset}
    return arrays, lambda: absmax, lambda y: y


def _samples(rng: Generator, layer: Layer, rows: int, fill: str) -> tuple[np.ndarray, np.ndarray]:
    """Return samples, and the levels that are the best for a normal distribution of their deviation."""
    x = FILLS[fill](rng, (rows, layer.k)).reshape(-1)
    return x, (lloyd_max(_VALUES) * x.std(dtype=np.float64)).astype(np.float32)


@builds("assign_codebook")
def _assign(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, codebook = _samples(rng, layer, rows, fill)
    return {"x": x, "codebook": codebook}, lambda: x, lambda codes: codebook[codes]


@builds("update_codebook")
def _update(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, codebook = _samples(rng, layer, rows, fill)
    codes = assign(x, codebook).astype(np.uint8)
    return {"x": x, "codes": codes, "codebook": codebook}, lambda: update(x, codes, codebook), lambda y: y
