"""Workload cases of linear layers whose weights have structure."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Built, builds, decoded, encoded
from lowbit_cts.benches.workloads.fills import FILLS, normal
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference.formats import FORMATS, float_format
from lowbit_cts.reference.packing.sparse24 import compress, reorder_metadata

Generator = np.random.Generator
#: The rank of adapters and factors: LoRA's paper finds 8 enough.
RANK = 8


def _pruned(w: np.ndarray) -> np.ndarray:
    """Return a matrix less the two smallest magnitudes of each four in a row, the first of equal ones."""
    groups = w.reshape(w.shape[0], -1, 4)
    order = np.argsort(np.abs(groups), axis=2, kind="stable")
    kept = np.ones(groups.shape, bool)
    np.put_along_axis(kept, order[:, :, :2], False, axis=2)
    return np.where(kept, groups, 0).reshape(w.shape)


@builds("matmul_sparse24")
def _matmul_sparse24(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    """Weights (N, K) pruned to 2:4 times transposed activations (K, M); the ideal is the product of the codes."""
    w, x = _pruned(normal(rng, (layer.n, layer.k))), FILLS[fill](rng, (rows, layer.k)).T
    if p["format"] == "int8":
        codes = [np.clip(np.rint(m * (127 / np.abs(m).max())), -127, 127).astype(np.int8) for m in (w, x)]
        numbers = [m.astype(np.int64) for m in codes]
    else:
        fmt = float_format(p["format"])
        codes = [encoded(np.ascontiguousarray(m, np.float32), fmt) for m in (w, x)]
        numbers = [decoded(m, fmt).astype(np.float32) for m in codes]
    values, metadata = compress(codes[0], format=p["format"])
    if p["metadata_order"] == "cutlass":
        metadata = reorder_metadata(metadata)
    arrays = {"values": values, "metadata": metadata, "b": np.ascontiguousarray(codes[1])}
    if p["format"] == "int8":
        return arrays, lambda: numbers[0] @ numbers[1], lambda y: y
    return arrays, lambda: numbers[0] @ numbers[1], lambda y: decoded(y, FORMATS[p["format"]])  # type: ignore[arg-type]


def _factors(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return x, down and up, whose product is of the size of x."""
    x = FILLS[fill](rng, (rows, layer.k))
    down = normal(rng, (layer.k, RANK)) / np.float32(np.sqrt(layer.k))
    return {"a": x, "down": down, "up": normal(rng, (RANK, layer.n)) / np.float32(np.sqrt(RANK))}


def _encoded(numbers: dict[str, np.ndarray], p: dict[str, Any]) -> dict[str, np.ndarray | None]:
    fmt = float_format(p["input_format"])
    return {name: encoded(x, fmt) for name, x in numbers.items()}


@builds("linear_low_rank")
def _linear_low_rank(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    f = _factors(rng, layer, rows, fill, p)
    bias = normal(rng, (1, layer.n))[0] if p["has_bias"] else None
    ideal = lambda: (f["a"] @ f["down"]) @ f["up"] + (0 if bias is None else bias)  # noqa: E731
    return {**_encoded(f, p), "bias": bias}, ideal, lambda y: decoded(y, float_format(p["input_format"]))


@builds("linear_lora")
def _linear_lora(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    f = {**_factors(rng, layer, rows, fill, p), "b": normal(rng, (layer.k, layer.n)) / np.float32(np.sqrt(layer.k))}
    bias = normal(rng, (1, layer.n))[0] if p["has_bias"] else None
    scaling = np.asarray(2, np.float32)
    arrays = {**_encoded(f, p), "scaling": scaling, "bias": bias}

    def ideal() -> np.ndarray:
        return f["a"] @ f["b"] + 2 * ((f["a"] @ f["down"]) @ f["up"]) + (0 if bias is None else bias)

    return arrays, ideal, lambda y: decoded(y, float_format(p["input_format"]))


@builds("matmul_llm_int8")
def _matmul_llm_int8(rng: Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, w = FILLS[fill](rng, (rows, layer.k)), normal(rng, (layer.n, layer.k))
    absmax = np.abs(w).max(axis=1)
    codes = np.rint(w * (127 / absmax)[:, None]).astype(np.int8)
    bias = normal(rng, (1, layer.n))[0] if p["has_bias"] else None
    fmt = float_format(p["input_format"])
    arrays = {"a": encoded(x, fmt), "codes": codes, "absmax": absmax.astype(np.float32), "bias": bias}
    return arrays, lambda: x @ w.T + (0 if bias is None else bias), lambda y: decoded(y, fmt)
