"""Attention over a paged cache in plain NumPy: a sequence's blocks gathered, dequantized to float32, and a softmax."""

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.numpy.kv_cache import CACHES, GRANULARITIES, spread
from lowbit_cts.kernels.numpy.numbers import WIDE, float32_of, output_of
from lowbit_cts.kernels.numpy.small_floats import decode


def _check(query, key_cache, value_cache, block_table, context_lengths):
    sequences, _, heads, size = query.shape
    if key_cache.shape[:3] != value_cache.shape[:3]:
        raise ValueError(f"value_cache: has shape {value_cache.shape}, must begin as key_cache, {key_cache.shape}")
    if key_cache.shape[3] != size:
        raise ValueError(f"key_cache: has a head size of {key_cache.shape[3]}, must be {size}")
    if len(block_table) != sequences or len(context_lengths) != sequences:
        raise ValueError(f"block_table, context_lengths: must have {sequences} rows")
    if heads and (not key_cache.shape[2] or heads % key_cache.shape[2]):
        raise ValueError(f"query: has {heads} heads, must have a multiple of {key_cache.shape[2]}")


def _context(row, length, blocks, block):
    """Return the numbers of the blocks that hold a context."""
    if not 0 <= length <= row.size * block:
        raise ValueError(f"context_lengths: {length} is beyond the {row.size * block} slots of the table")
    needed = row[: -(-int(length) // block)]
    if needed.size and not 0 <= needed.min() <= needed.max() < blocks:
        raise ValueError(f"block_table: must lie in [0, {blocks - 1}] within the context")
    return needed


def _float32(codes, scale, format):
    if scale is None:
        return float32_of(codes, format)
    return (codes.astype(np.float32) if format == "int8" else decode(codes, format)) * scale


def _seen(tokens, length, mask, window):
    """Return which slots each token sees, (tokens, length)."""
    place, slot = np.arange(length - tokens, length)[:, None], np.arange(length)
    if mask == "none":
        return np.ones((tokens, length), bool)
    seen = slot <= place
    return seen & (slot > place - window) if mask == "window" else seen


def attention_paged(
    query, key_cache, value_cache, block_table, context_lengths, key_scale, value_scale, softmax_scale, soft_cap,
    *, cache_format, input_format, scale_granularity, mask, window,
):  # fmt: skip
    """Return softmax(query @ keys * softmax_scale) @ values of each sequence."""
    _check(query, key_cache, value_cache, block_table, context_lengths)
    sequences, tokens, heads, size = query.shape
    blocks, block, shared, width = value_cache.shape
    group = heads // shared if shared else 0
    q = float32_of(query, input_format).reshape(sequences, tokens, shared, group, size).swapaxes(1, 2)
    q = q.reshape(sequences, shared, tokens * group, size)
    scales = [
        spread(name, scale, cache.shape, scale_granularity)
        for name, scale, cache in (("key", key_scale, key_cache), ("value", value_scale, value_cache))
    ]
    y = np.zeros((sequences, tokens, heads, width), np.float32)
    for s, length in enumerate(context_lengths.tolist()):
        at = _context(block_table[s], length, blocks, block)
        keys, values = (
            _gathered(cache, at, length, scale, cache_format)
            for cache, scale in zip((key_cache, value_cache), scales, strict=True)
        )
        if length and y.size:
            seen = np.repeat(_seen(tokens, length, mask, window), group, axis=0)
            with np.errstate(over="ignore", invalid="ignore"):
                found = _attended(q[s], keys, values, softmax_scale, soft_cap, seen)
            y[s] = found.reshape(shared, tokens, group, width).swapaxes(0, 1).reshape(tokens, heads, width)
    return output_of(y, input_format)


def _gathered(cache, at, length, scale, format):
    """Return the numbers in the blocks of a context, (heads, slots, size)."""
    codes = cache[at].reshape(-1, *cache.shape[2:])[:length]
    if scale is not None and scale.ndim == cache.ndim:
        scale = scale[at].reshape(-1, *scale.shape[2:])[:length]
    return _float32(codes, scale, format).swapaxes(0, 1)


def _attended(query, keys, values, softmax_scale, soft_cap, seen):
    """Return the results of rows (G, R, D) on keys (G, N, D) and values (G, N, E), as (G, R, E)."""
    scores = query @ keys.swapaxes(1, 2) * softmax_scale
    if soft_cap is not None:
        scores = soft_cap * np.tanh(scores / soft_cap)
    scores = np.where(seen, scores, np.float32(-np.inf))
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - np.where(np.isneginf(top), np.float32(0), top))
    total = weights.sum(axis=-1, keepdims=True)
    return (weights @ values) / np.where(total == 0, np.float32(1), total)


def register(backend: Backend) -> None:
    """Register the kernel."""
    backend.implements(
        "attention_paged",
        name="float32",
        supports={
            "cache_format": CACHES, "input_format": WIDE, "scale_granularity": GRANULARITIES, "grouped": (False, True),
            "mask": ("causal", "window", "none"), "window": (5, 64, 1), "capped": (False, True),
            "block_size": (16, 8, 32, 5),
        },
    )(attention_paged)  # fmt: skip
