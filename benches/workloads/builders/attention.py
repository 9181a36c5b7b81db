"""Workload cases of attention over a paged cache: decoding, a token of each of several sequences at a time."""

from math import gcd
from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Arrays, Built, builds, decoded
from lowbit_cts.benches.workloads.builders.kv_cache import coded, stored
from lowbit_cts.benches.workloads.fills import FILLS, normal
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference.formats import float_format

#: The head size of most models; of a narrower layer what divides it.
_HEAD = 128
#: Heads of the query on one of the cache, where they are grouped: those of Llama 3 8B.
_GROUP = 4


def _attended(query: np.ndarray, keys: np.ndarray, values: np.ndarray, p: dict[str, Any]) -> np.ndarray:
    """Return attention of the last token (S, 1, H, D) to (S, N, G, D) and (S, N, G, D), in float32."""
    shown = p["window"] if p["mask"] == "window" else keys.shape[1]
    group = query.shape[2] // keys.shape[2]
    y = np.empty_like(query)
    for s in range(len(query)):
        for h in range(query.shape[2]):
            k, v = (x[s, -shown:, h // group] for x in (keys, values))
            scores = k @ query[s, 0, h] * np.float32(query.shape[3] ** -0.5)
            if p["capped"]:
                scores = 50 * np.tanh(scores / 50)
            weights = np.exp(scores - scores.max())
            y[s, 0, h] = weights @ v / weights.sum()
    return y


@builds("attention_paged")
def _attention_paged(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    """Return a token of each of `rows` sequences on contexts of k slots; n is that of the query's heads together.

    Keys are drawn from the fill, for it is they that have outlier channels; query and values are normal. Blocks lie
    anywhere in the cache. The ideal is attention to unquantized keys and values in float32.
    """
    size = gcd(layer.n, _HEAD)
    heads, context, block = layer.n // size, layer.k, p["block_size"]
    shared = heads // gcd(heads, _GROUP) if p["grouped"] else heads
    columns = -(-context // block)
    slots = rows * columns * block
    keys = FILLS[fill](rng, (slots, shared * size)).reshape(rows, -1, shared, size)
    values = normal(rng, (slots, shared * size)).reshape(rows, -1, shared, size)
    query = normal(rng, (rows, layer.n))
    table = rng.permutation(rows * columns).reshape(rows, columns)
    caches, scales = [], []
    for of, x in (("key", keys), ("value", values)):
        codes, scale = stored(of, x, p["cache_format"], p["scale_granularity"])
        cache = np.empty((rows * columns, block, shared, size), codes.dtype)
        cache[table.reshape(-1)] = codes.reshape(cache.shape)
        caches.append(cache)
        if scale is not None and scale.ndim == 3:  # of tokens: in their slots
            kept = np.empty(cache.shape[:3], np.float32)
            kept[table.reshape(-1)] = scale.reshape(kept.shape)
            scale = kept
        scales.append(scale)
    arrays: Arrays = {
        "query": coded(query, p["input_format"]).reshape(rows, 1, heads, size),
        "key_cache": caches[0],
        "value_cache": caches[1],
        "block_table": table.astype(np.int32),
        "context_lengths": np.full(rows, context, np.int32),
        "key_scale": scales[0],
        "value_scale": scales[1],
        "softmax_scale": np.asarray(size**-0.5, np.float32),
        "soft_cap": np.asarray(50, np.float32) if p["capped"] else None,
    }
    return (
        arrays,
        lambda: _attended(query.reshape(rows, 1, heads, size), keys[:, :context], values[:, :context], p),
        lambda y: decoded(y, float_format(p["input_format"])),
    )
