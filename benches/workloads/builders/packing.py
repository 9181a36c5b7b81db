"""Workload cases of packed codes, of scales in the orders of their kernels, and of 2:4 sparse weights."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Built, builds, codes_of, decoded, encoded, qparams, rule_of
from lowbit_cts.benches.workloads.fills import normal
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.kernels import OPERATIONS
from lowbit_cts.reference.formats import FORMATS, FloatFormat, decode, float_format
from lowbit_cts.reference.packing.packings import PACKINGS, pack, unpack, whole_blocks
from lowbit_cts.reference.packing.scales import permute_marlin_scales, unswizzle_scales
from lowbit_cts.reference.packing.sparse24 import compress, decompress, reorder_metadata, restore_metadata

#: Packings of which the rows are a layer's inputs; of the others they are its outputs.
_INPUTS_FIRST = ("gptq", "awq", "marlin")


def _whole(length: int, multiple: int) -> int:
    """Return the length filled up to whole blocks."""
    return -(-length // multiple) * multiple


def _weights(rng: np.random.Generator, layer: Layer, multiples: tuple[int, int], inputs_first: bool) -> np.ndarray:
    """Return a layer's weights, filled up to whole blocks."""
    shape = (layer.k, layer.n) if inputs_first else (layer.n, layer.k)
    rows, columns = (_whole(*pair) for pair in zip(shape, multiples, strict=True))
    return normal(rng, (rows, columns))


def _codes(rng: np.random.Generator, layer: Layer, p: dict[str, Any]) -> np.ndarray:
    """Return the codes of a layer's weights, a scale a row; of a single bit their signs."""
    w = _weights(rng, layer, whole_blocks(p["packing"], p["bits"]), p["packing"] in _INPUTS_FIRST)
    if p["bits"] == 1:
        return (w > 0).astype(np.uint8) if not p["signed"] else -(w < 0).astype(np.int8)
    rule = rule_of(f"{'int' if p['signed'] else 'uint'}{p['bits']}", "axis", "asymmetric")
    return codes_of(w, *qparams(w, rule), rule)


@builds("pack_codes")
def _pack(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    codes = _codes(rng, layer, p)
    count = None if PACKINGS[p["packing"]].axis == -2 else codes.shape[1]
    return {"codes": codes}, lambda: codes, lambda words: unpack(words, count=count, **p)


@builds("unpack_codes")
def _unpack(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    words = pack(_codes(rng, layer, p), **p)
    return {"words": words}, lambda: unpack(words, **p), lambda codes: codes


@builds("swizzle_scales")
def _swizzle(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    """Build the scales of the weights' blocks: of 32 in E8M0, their exponents; of 16 in E4M3, amax / 6."""
    scale_format = float_format(p["format"])
    block = 32 if p["format"] == "float8_e8m0fnu" else 16
    amax = np.abs(_weights(rng, layer, (1, block), False)).reshape(-1, layer.k // block, block).max(axis=2)
    scales = encoded(2.0 ** np.floor(np.log2(amax)) if block == 32 else amax / 6, scale_format)
    return (
        {"scales": scales},
        lambda: decode(scales, scale_format),
        lambda swizzled: decode(unswizzle_scales(swizzled, scales.shape), scale_format),
    )


@builds("permute_scales_marlin")
def _permute(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    """Build the scales of groups of 128 inputs, at least two, or of channels."""
    scale_format = float_format(p["format"])
    groups = max(2, layer.k // 128) if p["granularity"] == "group" else 1
    columns = _whole(layer.n, OPERATIONS["permute_scales_marlin"].multiples(p)["N"])
    scales = encoded(np.abs(normal(rng, (groups, columns))) / 100, scale_format)

    def restored(permuted: np.ndarray) -> np.ndarray:
        # The permutations are their own inverses.
        return decoded(permute_marlin_scales(permuted.reshape(groups, columns)), scale_format).reshape(permuted.shape)

    given = scales if p["granularity"] == "group" else scales[0]
    return {"scales": given}, lambda: decoded(given, scale_format), restored


def _sparse(rng: np.random.Generator, layer: Layer, p: dict[str, Any]) -> np.ndarray:
    """Return the weights of which the two largest of each four in a row are kept."""
    operation = OPERATIONS["compress_sparse24"]
    whole = operation.multiples(p)
    w = _weights(rng, layer, (whole.get("M", 1), whole["K"]), False)
    groups = np.abs(w).reshape(len(w), -1, 4)
    kept = groups >= np.sort(groups, axis=2)[:, :, 2:3]
    fmt = FORMATS[p["format"]]
    if isinstance(fmt, FloatFormat):
        dense = encoded(w, fmt)
    else:
        rule = rule_of(fmt.name, "tensor", "symmetric")
        dense = codes_of(w, *qparams(w, rule), rule)
    return np.where(kept.reshape(w.shape), dense, np.zeros((), dense.dtype))


@builds("compress_sparse24")
def _compress(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, fmt = _sparse(rng, layer, p), FORMATS[p["format"]]

    def restored(values: np.ndarray, metadata: np.ndarray) -> np.ndarray:
        ordered = restore_metadata(metadata) if p["metadata_order"] == "cutlass" else metadata
        return decode(decompress(values, ordered, format=fmt.name), fmt)

    return {"x": x}, lambda: decode(x, fmt), restored


@builds("decompress_sparse24")
def _decompress(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, fmt = _sparse(rng, layer, p), FORMATS[p["format"]]
    values, metadata = compress(x, format=fmt.name)
    ordered = reorder_metadata(metadata) if p["metadata_order"] == "cutlass" else metadata
    return {"values": values, "metadata": ordered}, lambda: decode(x, fmt), lambda dense: decode(dense, fmt)
