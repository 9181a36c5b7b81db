"""Attention over a paged cache in torch: gathered blocks and two matmuls, and ATen's scaled_dot_product_attention."""

from dataclasses import replace

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend, ProbabilityPrecision, Semantics, WeightPrecision
from lowbit_cts.kernels.torch.build import Build
from lowbit_cts.kernels.torch.kv_cache import FLOATS, FORMATS, GRANULARITIES, spread

_SUPPORTS = {
    "cache_format": FORMATS,
    "input_format": FLOATS,
    "scale_granularity": GRANULARITIES,
    "grouped": (False, True),
    "mask": ("causal", "window", "none"),
    "window": (5, 64, 1),
    "block_size": (16, 8, 32, 5),
}


def _checked(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
    """Return the table cut to the columns that contexts need, 0 beyond them; ValueError where anything does not fit."""
    sequences, _, heads, size = query.shape
    blocks, block, shared = keys.shape[:3]
    if values.shape[:3] != keys.shape[:3]:
        raise ValueError(f"value_cache: has shape {tuple(values.shape)}, must begin as {tuple(keys.shape)}")
    if keys.shape[3] != size:
        raise ValueError(f"key_cache: has a head size of {keys.shape[3]}, must be {size}")
    if table.shape[0] != sequences or lengths.shape[0] != sequences:
        raise ValueError(f"block_table, context_lengths: must have {sequences} rows")
    if heads and (not shared or heads % shared):
        raise ValueError(f"query: has {heads} heads, must have a multiple of {shared}")
    longest = int(lengths.max()) if sequences else 0
    if sequences and (int(lengths.min()) < 0 or longest > table.shape[1] * block):
        raise ValueError(f"context_lengths: must lie in [0, {table.shape[1] * block}]")
    columns = -(-longest // block) if block else 0
    needed = torch.arange(columns, device=table.device) * block < lengths.unsqueeze(1)
    numbers = torch.where(needed, table[:, :columns], 0).long()
    if numbers.numel() and (int(numbers.min()) < 0 or int(numbers.max()) >= blocks):
        raise ValueError(f"block_table: must lie in [0, {blocks - 1}] within the context")
    return numbers


def _seen(tokens: int, slots: int, lengths: Tensor, mask: str, window: int | None) -> Tensor:
    """Return which slots each token sees, (S, Q, N)."""
    slot = torch.arange(slots, device=lengths.device)
    length = lengths.view(-1, 1, 1)
    if mask == "none":
        return (slot < length).expand(-1, tokens, -1)
    place = length - tokens + torch.arange(tokens, device=lengths.device).view(1, -1, 1)
    seen = slot <= place
    return seen & (slot > place - window) if mask == "window" and window is not None else seen


def _gathered(cache: Tensor, numbers: Tensor, scale: Tensor | None, lengths: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers of each sequence's slots, (S, G, N, size), zeros beyond its context."""
    raw = cache.view(torch.uint8)[numbers].view(cache.dtype) if cache.element_size() == 1 else cache[numbers]
    found = raw.flatten(1, 2).float()
    if scale is not None and scale.dim() == cache.dim():
        scale = scale[numbers].flatten(1, 2)
    held = torch.arange(found.shape[1], device=found.device) < lengths.unsqueeze(1)
    found = torch.where(held[..., None, None], found if scale is None else found * scale, 0.0)
    return found.to(dtype).transpose(1, 2)


def _attended(
    query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, softmax_scale: Tensor, soft_cap: Tensor | None
) -> Tensor:
    """Return the results of (S, G, R, Q, D) on (S, G, N, D) and (S, G, N, E), in float32."""
    scores = (query.flatten(2, 3) @ keys.transpose(2, 3)).unflatten(2, query.shape[2:4]) * softmax_scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    scores = torch.where(seen[:, None, None], scores, -torch.inf)
    top = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - torch.where(top == -torch.inf, 0.0, top))
    total = weights.sum(-1, keepdim=True)
    found = (weights.flatten(2, 3) @ values).unflatten(2, query.shape[2:4])
    return found / torch.where(total == 0, 1.0, total)


def _by_heads(query: Tensor, shared: int) -> Tensor:
    """Return (S, Q, H, D) as (S, G, H / G, Q, D)."""
    return query.unflatten(2, (shared, query.shape[2] // max(1, shared))).permute(0, 2, 3, 1, 4)


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register attention of gathered blocks in float32.

    Parameters
    ----------
    backend : Backend
    build : callable
        Eager or compiled (`lowbit_cts.kernels.torch.build`).
    arithmetic : Semantics
        What holds for all of the backend's kernels.
    """
    attended = build(_attended)

    @backend.implements(
        "attention_paged", name="composed", semantics=arithmetic, supports={**_SUPPORTS, "capped": (False, True)}
    )
    def attention_paged(
        query: Tensor, key_cache: Tensor, value_cache: Tensor, block_table: Tensor, context_lengths: Tensor,
        key_scale: Tensor | None, value_scale: Tensor | None, softmax_scale: Tensor, soft_cap: Tensor | None,
        *, scale_granularity: str | None, mask: str, window: int | None,
    ) -> Tensor:  # fmt: skip
        numbers = _checked(query, key_cache, value_cache, block_table, context_lengths)
        shape = (*query.shape[:3], value_cache.shape[3])
        if not numbers.numel() or not query.shape[1] * query.shape[2]:
            return query.new_zeros(shape)
        keys, values = (
            _gathered(cache, numbers, spread(of, scale, cache.shape, scale_granularity), context_lengths, torch.float32)
            for of, cache, scale in (("key", key_cache, key_scale), ("value", value_cache, value_scale))
        )
        seen = _seen(query.shape[1], keys.shape[2], context_lengths, mask, window)
        y = attended(_by_heads(query.float(), keys.shape[1]), keys, values, seen, softmax_scale, soft_cap)
        return y.permute(0, 3, 1, 2, 4).reshape(shape).to(query.dtype)


def register_native(backend: Backend) -> None:
    """Register ATen's scaled_dot_product_attention on gathered blocks, which has no soft cap.

    On the CPU it scales in float32 and, of 16 bits, rounds probabilities before it multiplies the values by them.
    """
    semantics = replace(
        Semantics(),
        weight_precision=WeightPrecision.ACTIVATIONS,
        probability_precision=ProbabilityPrecision.ACTIVATIONS,
    )

    @backend.implements("attention_paged", name="scaled_dot_product", semantics=semantics, supports=_SUPPORTS)
    def attention_paged(
        query: Tensor, key_cache: Tensor, value_cache: Tensor, block_table: Tensor, context_lengths: Tensor,
        key_scale: Tensor | None, value_scale: Tensor | None, softmax_scale: Tensor, soft_cap: None,
        *, scale_granularity: str | None, mask: str, window: int | None,
    ) -> Tensor:  # fmt: skip
        numbers = _checked(query, key_cache, value_cache, block_table, context_lengths)
        shape = (*query.shape[:3], value_cache.shape[3])
        if not numbers.numel() or not query.shape[1] * query.shape[2]:
            return query.new_zeros(shape)
        keys, values = (
            _gathered(cache, numbers, spread(of, scale, cache.shape, scale_granularity), context_lengths, query.dtype)
            for of, cache, scale in (("key", key_cache, key_scale), ("value", value_cache, value_scale))
        )
        seen = _seen(query.shape[1], keys.shape[2], context_lengths, mask, window)
        y = torch.nn.functional.scaled_dot_product_attention(
            query.transpose(1, 2), keys, values, attn_mask=seen.unsqueeze(1), scale=float(softmax_scale),
            enable_gqa=query.shape[2] != keys.shape[1],
        )  # fmt: skip
        sighted = seen.any(-1)[..., None, None]
        return torch.where(sighted, y.transpose(1, 2), 0.0)
