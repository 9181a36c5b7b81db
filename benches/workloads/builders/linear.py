"""Workload cases of the linear layers on quantized operands: normal weights, the fill as activations."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Built, builds, codes_of, decoded, encoded, qparams
from lowbit_cts.benches.workloads.fills import FILLS, normal
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference import mx, nvfp4
from lowbit_cts.reference.blockwise import quantize_blockwise
from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import decode, float_format
from lowbit_cts.reference.gguf.blocks import quantize as quantize_gguf
from lowbit_cts.reference.operands import SCALE_BLOCK

Generator = np.random.Generator
Numbers = tuple[np.ndarray, np.ndarray, np.ndarray | None, Callable[[], np.ndarray]]


def _numbers(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Numbers:
    """Return activations (M, K), weights (N, K), a bias or None, and how the ideal result is found."""
    x, w = FILLS[fill](rng, (rows, layer.k)), normal(rng, (layer.n, layer.k))
    bias = normal(rng, (1, layer.n))[0] if p.get("has_bias") else None
    return x, w, bias, lambda: x @ w.T + (0 if bias is None else bias)


def _output(p: dict[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    fmt = float_format(p.get("output_format") or p.get("input_format") or "float32")
    return lambda y: decoded(y, fmt)


@builds("matmul_w4a16")
@builds("matmul_w8a16")
def _weight_only(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, w, bias, ideal = _numbers(rng, layer, rows, fill, p)
    place = {"granularity": "axis", "axis": 0}
    if p["granularity"] == "group":
        place = {"granularity": "group", "group_size": p["group_size"]}
    rule = {"format": p["format"], "mapping": p["mapping"], **place}
    scale, zero_point = qparams(w, rule)
    fmt = float_format(p["input_format"])
    kept = encode(scale, fmt)
    codes = codes_of(w, decode(kept, fmt).astype(np.float32), zero_point, rule)
    groups = np.arange(layer.k) // (p["group_size"] or layer.k)
    arrays = {
        "a": encoded(x, fmt),
        "codes": np.ascontiguousarray(codes.T),
        "scale": np.ascontiguousarray(kept.T),
        "zero_point": np.ascontiguousarray(zero_point.T) if p["mapping"] == "asymmetric" else None,
        "group_index": groups.astype(np.int32) if p["act_order"] else None,
        "bias": bias,
    }
    return arrays, ideal, _output(p)


def _float8_scale(x: np.ndarray, largest: float, blocks: tuple[int, int] | None, axis: int | None) -> np.ndarray:
    """Return what maps the largest magnitude of all, of each index of an axis, or of each block to the largest."""
    size = np.abs(x)
    if blocks is None:
        top = size.max() if axis is None else size.max(axis=1 - axis)
    else:
        rows, columns = blocks
        padded = np.pad(size, [(0, -length % block) for length, block in zip(x.shape, blocks, strict=True)])
        top = padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns).max(axis=(1, 3))
    return np.asarray(np.where(top > 0, top, 1) / largest, np.float32)


@builds("matmul_float8")
def _matmul_float8(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, w, bias, ideal = _numbers(rng, layer, rows, fill, p)
    arrays: dict[str, np.ndarray | None] = {}
    for name, numbers, axis, blocks in (("a", x, 0, (1, SCALE_BLOCK)), ("b", w.T, 1, (SCALE_BLOCK, SCALE_BLOCK))):
        fmt = float_format(p[f"{name}_format"])
        place = {"tensor": (None, None), "row": (None, axis), "block": (blocks, None)}[p["scaling"]]
        scale = _float8_scale(numbers, fmt.maximum, *place)
        wide = scale if p["scaling"] != "row" else np.expand_dims(scale, 1 - axis)
        if p["scaling"] == "block":
            wide = scale.repeat(blocks[0], axis=0)[: len(numbers)].repeat(blocks[1], axis=1)[:, : numbers.shape[1]]
        arrays |= {name: encoded(np.ascontiguousarray(numbers / wide), fmt), f"{name}_scale": scale}
    return {**arrays, "bias": bias}, ideal, _output(p)


@builds("matmul_mx")
def _matmul_mx(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, w, bias, ideal = _numbers(rng, layer, rows, fill, p)
    (a, a_scale), (b, b_scale) = mx.quantize_mx(x, format=p["a_format"]), mx.quantize_mx(w, format=p["b_format"])
    return {"a": a, "a_scale": a_scale, "b": b, "b_scale": b_scale, "bias": bias}, ideal, _output(p)


@builds("matmul_nvfp4")
def _matmul_nvfp4(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, w, bias, ideal = _numbers(rng, layer, rows, fill, p)
    arrays: dict[str, np.ndarray | None] = {"bias": bias}
    for name, numbers in (("a", x), ("b", w)):
        global_scale = nvfp4.choose_global_scale_nvfp4(np.abs(numbers).max())
        codes, scale = nvfp4.quantize_nvfp4(numbers, global_scale)
        arrays |= {
            name: codes, f"{name}_scale": scale, f"{name}_global_scale": np.asarray(global_scale, np.float32),
        }  # fmt: skip
    return arrays, ideal, _output(p)


@builds("linear_nf4")
def _linear_nf4(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, w, bias, ideal = _numbers(rng, layer, rows, fill, p)
    codes, absmax = quantize_blockwise(w, codebook=p["codebook"], block_size=p["block_size"])
    a = encoded(x, float_format(p["input_format"]))
    return {"a": a, "codes": codes.astype(np.uint8), "absmax": absmax, "bias": bias}, ideal, _output(p)


@builds("matvec_gguf")
def _matvec_gguf(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, w, _, ideal = _numbers(rng, layer, rows, fill, p)
    return {"a": x, "blocks": quantize_gguf(w, p["type"])}, ideal, _output(p)
