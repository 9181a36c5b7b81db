"""Workload cases of writing to a paged cache: the tokens of a prompt, into blocks of a cache twice as large."""

from math import gcd
from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Arrays, Built, builds, decoded, encoded
from lowbit_cts.benches.workloads.fills import FILLS, normal
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference.formats import FORMATS, FloatFormat, float_format
from lowbit_cts.reference.kv_cache import QUANTIZED, scales_of

#: The head size of most models; of a narrower layer what divides it.
_HEAD = 128


def coded(x: np.ndarray, format: str) -> np.ndarray:
    """Return float32 numbers of any shape as codes of a float format, saturating."""
    return encoded(x.reshape(-1, x.shape[-1]), float_format(format)).reshape(x.shape)


def scale_of(of: str, x: np.ndarray, format: str, granularity: str) -> np.ndarray:
    """Return scales that map the largest magnitude to the largest code, float32.

    Parameters
    ----------
    of : {"key", "value"}
    x : ndarray of float32, shape (..., heads, size)
    format, granularity : str
        Of a quantized cache.

    Returns
    -------
    ndarray of float32, of the shape that `lowbit_cts.reference.kv_cache.scale_shape` says.
    """
    fmt = FORMATS[format]
    tokens = tuple(range(x.ndim - 2))
    of_kivi = tokens if of == "key" else (x.ndim - 1,)
    axes = {"tensor": None, "head": (*tokens, x.ndim - 1), "kivi": of_kivi}[granularity]
    largest = fmt.maximum
    return np.asarray(np.maximum(np.abs(x).max(axis=axes), np.float32(1e-30)) / largest, np.float32)


def stored(of: str, x: np.ndarray, format: str, granularity: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the codes of keys or values (..., heads, size), and their scales; None of a cache that has none."""
    if format not in QUANTIZED or granularity is None:
        return coded(x, format), None
    scale = scale_of(of, x, format, granularity)
    quotient = x / scales_of(of, scale, x.shape, granularity).astype(np.float32)
    return np.rint(quotient).astype(np.int8) if format == "int8" else coded(quotient, format), scale


@builds("write_kv_cache")
def _write_kv_cache(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    """Return the writing of a prompt of `rows` tokens; n is the width of the heads together.

    Keys are drawn from the fill, for it is they that have outlier channels; values are normal. The ideal is the tokens
    themselves.
    """
    size = gcd(layer.n, _HEAD)
    heads, block, format = layer.n // size, p["block_size"], p["cache_format"]
    used = -(-rows // block)
    at = (rng.permutation(2 * used)[:used, None] * block + np.arange(block)).reshape(-1)[:rows]
    shape = (rows, heads, size)
    drawn = FILLS[fill](rng, (rows, layer.n)), normal(rng, (rows, layer.n))
    tokens = {of: x.reshape(shape) for of, x in zip(("key", "value"), drawn, strict=True)}
    arrays: Arrays = {"slot_mapping": at.astype(np.int64)}
    scales = {}
    for of, x in tokens.items():
        carrier = FORMATS[format].carrier
        scales[of] = scale_of(of, x, format, p["scale_granularity"]) if format in QUANTIZED else None
        arrays = {
            **arrays, of: coded(x, p["input_format"]), f"{of}_scale": scales[of],
            f"{of}_cache": np.zeros((2 * used, block, heads, size), carrier),
        }  # fmt: skip

    def approximate(*caches: np.ndarray) -> np.ndarray:
        found = []
        for (of, scale), cache in zip(scales.items(), caches, strict=True):
            codes, fmt = cache.reshape(-1, heads, size)[at], FORMATS[format]
            numbers = decoded(codes, fmt) if isinstance(fmt, FloatFormat) else codes.astype(np.float32)
            found.append(numbers * scales_of(of, scale, shape, p["scale_granularity"] or "tensor").astype(np.float32))
        return np.stack(found)

    return arrays, lambda: np.stack(list(tokens.values())), approximate
