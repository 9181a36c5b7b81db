"""A vendor's attention over paged caches: right kernels, and the same with one planted fault each."""

import numpy as np

from lowbit_cts.kernels import Accumulator, Backend, Semantics
from lowbit_cts.kernels.numpy import attention as plain
from lowbit_cts.kernels.numpy.numbers import WIDE, float32_of, output_of
from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import float_format

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

F = np.float32
CACHES = ("float16", "int8", "float8_e4m3fn", "float8_e5m2", "float32", "bfloat16")
SUPPORTS = {
    "cache_format": CACHES[:3],
    "grouped": (False, True),
    "mask": ("causal", "window", "none"),
    "window": (5, 64, 1),
    "capped": (False, True),
    "block_size": (16, 5),
}
EVERYWHERE = {**SUPPORTS, "cache_format": CACHES, "input_format": WIDE, "scale_granularity": ("tensor", "head", "kivi")}


# The parts of a kernel, each of which a right or a wrong one may replace ----------------------------------------------


def gather(cache, row, length):
    """Return the codes of a context's slots, (N, heads, size)."""
    blocks, block = cache.shape[:2]
    return cache[plain._context(row, length, blocks, block)].reshape(-1, *cache.shape[2:])[:length]


def own_head(head, heads, shared):
    return head * shared // heads


def score(q, k, tau, cap):
    s = (q @ k.T) * tau
    return s if cap is None else cap * np.tanh(s / cap)


def softmax(scores, seen, values, cast):
    """Return the weighted values of tokens, (Q, E), with masked scores (Q, N)."""
    t = np.where(seen, scores, -np.inf).astype(scores.dtype)
    top = t.max(axis=1, keepdims=True, initial=-np.inf)
    w = np.exp(t - np.where(np.isneginf(top), 0, top).astype(t.dtype))
    total = w.sum(axis=1, keepdims=True)
    return (cast(w) @ values) / np.where(total == 0, 1, total).astype(t.dtype)


def numbers_of(codes, scale, format):
    return plain._float32(codes, scale, format)


def spread(name, scale, cache, granularity):
    return plain.spread(name, scale, cache.shape, granularity)


def kernel(
    *, check=plain._check, gather=gather, seen=plain._seen, head=own_head, score=score, softmax=softmax,
    numbers=numbers_of, scales=lambda k, v, tau, cap, size: (k, v, tau, cap), length=lambda n, most: n,
    rows=lambda table, s: table[s], dtype=F, cast=lambda w, format: w, dequantize=lambda x, format: x, spread=spread,
):  # fmt: skip
    """Return a kernel of these parts."""

    def attention_paged(
        query, key_cache, value_cache, block_table, context_lengths, key_scale, value_scale, softmax_scale, soft_cap,
        *, cache_format, input_format, scale_granularity, mask, window,
    ):  # fmt: skip
        check(query, key_cache, value_cache, block_table, context_lengths)
        sequences, tokens, heads, size = query.shape
        shared = key_cache.shape[2]
        key_scale, value_scale, tau, cap = scales(key_scale, value_scale, softmax_scale, soft_cap, size)
        key_scale = spread("key", key_scale, key_cache, scale_granularity)
        value_scale = spread("value", value_scale, value_cache, scale_granularity)
        q = float32_of(query, input_format).astype(dtype)
        y = np.zeros((*query.shape[:3], value_cache.shape[3]), dtype)
        most = block_table.shape[1] * key_cache.shape[1]
        with np.errstate(all="ignore"):
            for s in range(sequences if y.size else 0):
                n = length(int(context_lengths[s]), most)
                row = rows(block_table, s)
                k, v = (
                    dequantize(
                        numbers(
                            gather(cache, row, n),
                            gather(scale, row, n) if scale is not None and scale.ndim == 4 else scale,
                            cache_format,
                        ),
                        input_format,
                    ).astype(dtype)
                    for cache, scale in ((key_cache, key_scale), (value_cache, value_scale))
                )
                sees = seen(tokens, n, mask, window)
                sees = np.pad(sees, ((0, 0), (0, len(k) - n))) if len(k) > sees.shape[1] else sees
                for h in range(heads):
                    g = head(h, heads, shared)
                    t = score(q[s, :, h], k[:, g], dtype(tau), None if cap is None else dtype(cap))
                    y[s, :, h] = softmax(t, sees, v[:, g], lambda w: cast(w, input_format))
            return output_of(y.astype(F), input_format)

    return attention_paged


# Right kernels ------------------------------------------------------------------------------------------------------


def _right(name, semantics=None, supports=EVERYWHERE, **parts):
    right.implements("attention_paged", name=name, semantics=semantics, supports=supports)(kernel(**parts))


def _to_format(x, format):
    return round_to_format(np.asarray(x, np.float64), float_format(format)).astype(x.dtype)


def online(order=lambda n, step: range(0, n, step), step=3, rescale_sum=True, rescale_values=True):
    """Return the softmax that goes through the slots in pieces and rescales as larger scores come."""

    def softmax(scores, seen, values, cast):
        t = np.where(seen, scores, -np.inf).astype(scores.dtype)
        rows, slots = t.shape
        zero = t.dtype.type(0)
        top, total = np.full((rows, 1), -np.inf, t.dtype), np.zeros((rows, 1), t.dtype)
        found = np.zeros((rows, values.shape[1]), t.dtype)
        for start in order(slots, step):
            part = t[:, start : start + step]
            larger = np.maximum(top, part.max(axis=1, keepdims=True))
            least = np.where(np.isneginf(larger), zero, larger)
            again, w = np.exp(top - least), np.exp(part - least)
            total = total * (again if rescale_sum else 1) + w.sum(axis=1, keepdims=True)
            found = found * (again if rescale_values else 1) + cast(w) @ values[start : start + step]
            top = larger
        return found / np.where(total == 0, t.dtype.type(1), total)

    return softmax


def in_base_two(scores, seen, values, cast):
    """FlashAttention-2: scores in units of log 2."""
    factor = F(np.log2(np.e))
    t = np.where(seen, scores, F(-np.inf))
    top = t.max(axis=1, keepdims=True, initial=-np.inf)
    w = np.exp2(t * factor - np.where(np.isneginf(top), F(0), top) * factor)
    total = w.sum(axis=1, keepdims=True, dtype=F)
    return (cast(w) @ values) * (F(1) / np.where(total == 0, F(1), total))


def normalised_first(scores, seen, values, cast):
    t = np.where(seen, scores, F(-np.inf))
    top = t.max(axis=1, keepdims=True, initial=-np.inf)
    w = np.exp(t - np.where(np.isneginf(top), F(0), top))
    total = w.sum(axis=1, keepdims=True, dtype=F)
    return cast(w / np.where(total == 0, F(1), total)) @ values


def in_parts(scores, seen, values, cast):
    """Flash-Decoding: four parts of the context, combined by the logarithms of their sums."""
    results, logs = [], []
    for part in np.array_split(np.arange(scores.shape[1]), 4):
        t = np.where(seen[:, part], scores[:, part], F(-np.inf))
        top = t.max(axis=1, keepdims=True, initial=-np.inf)
        w = np.exp(t - np.where(np.isneginf(top), F(0), top))
        total = w.sum(axis=1, keepdims=True, dtype=F)
        results.append((cast(w) @ values[part]) / np.where(total == 0, F(1), total))
        logs.append(np.where(total == 0, F(-np.inf), top + np.log(total)))
    all_of = np.logaddexp.reduce(logs)
    weights = [np.exp(log - np.where(np.isneginf(all_of), F(0), all_of)) for log in logs]
    return np.sum([w * y for w, y in zip(weights, results, strict=True)], axis=0, dtype=F)


def _weights(scores, seen):
    t = np.where(seen, scores, F(-np.inf))
    top = t.max(axis=1, keepdims=True, initial=-np.inf)
    w = np.exp(t - np.where(np.isneginf(top), F(0), top))
    total = w.sum(axis=1, keepdims=True, dtype=F)
    return w, np.where(total == 0, F(1), total)


def with_epsilon(epsilon):
    """Return vLLM's softmax, whose normaliser is never zero."""

    def softmax(scores, seen, values, cast):
        w, total = _weights(scores, seen)
        return (w @ values) * (F(1) / (total + F(epsilon)))

    return softmax


def _backwards(n, step):
    return range(0, n, step)[::-1]


_right("blocks_backwards", softmax=online(_backwards, 16))
_right("slot_by_slot", softmax=online(step=1))
_right("base_two", softmax=in_base_two)
_right("epsilon", Semantics(normaliser_epsilon=1e-6), softmax=with_epsilon(1e-6))
_right("float64", Semantics(float_accumulator="float64", function_ulps=1.0), dtype=np.float64)
_right("parts", Semantics(softmax_parts="several"), softmax=in_parts)
_right("rounded", Semantics(probability_precision="activations", weight_precision="activations"),
       softmax=normalised_first, cast=_to_format, dequantize=_to_format)  # fmt: skip


def _accumulated_in_float16(q, k, tau, cap):
    return score(q.astype(np.float16), k.astype(np.float16), np.float16(1), None).astype(F) * tau


def _summed_in_float16(scores, seen, values, cast):
    t = np.where(seen, scores, F(-np.inf))
    top = t.max(axis=1, keepdims=True, initial=-np.inf)
    w = np.exp(t - np.where(np.isneginf(top), F(0), top))
    total = w.sum(axis=1, keepdims=True, dtype=F)
    found = (w.astype(np.float16) @ values.astype(np.float16)).astype(F)
    return found / np.where(total == 0, F(1), total)


_right(
    "float16_sums",
    Semantics(float_accumulator=Accumulator.FLOAT16, probability_precision="activations"),
    {**SUPPORTS, "cache_format": "float16", "capped": False},
    score=_accumulated_in_float16,
    softmax=_summed_in_float16,
)


@right.implements("attention_paged", supports=EVERYWHERE)
def scales_on_the_other_factors(
    query, key_cache, value_cache, block_table, context_lengths, key_scale, value_scale, softmax_scale, soft_cap,
    *, cache_format, input_format, scale_granularity, mask, window,
):  # fmt: skip
    """Multiply the query by the scales of keys, and weights by those of values: codes are never dequantized."""
    plain._check(query, key_cache, value_cache, block_table, context_lengths)
    shared = key_cache.shape[2]
    q, y = float32_of(query, input_format), np.zeros((*query.shape[:3], value_cache.shape[3]), F)
    one = None if key_scale is None else F(1)
    of_keys, of_values = (
        np.ones((1, 1), F) if scale is None else spread(name, scale, cache, scale_granularity)
        for name, scale, cache in (("key", key_scale, key_cache), ("value", value_scale, value_cache))
    )
    for s, length in enumerate(context_lengths.tolist() if y.size else ()):
        keys, values = (
            numbers_of(gather(cache, block_table[s], length), one, cache_format) for cache in (key_cache, value_cache)
        )
        of_slots = gather(of_values, block_table[s], length) if of_values.ndim == 4 else of_values
        of_slots = np.broadcast_to(of_slots, (length, shared, 1))
        seen = plain._seen(query.shape[1], length, mask, window)
        for h in range(query.shape[2]):
            g = own_head(h, query.shape[2], shared)
            scaled = q[s, :, h] * np.broadcast_to(of_keys, key_cache.shape[2:])[g]
            with np.errstate(all="ignore"):
                w, total = _weights(score(scaled, keys[:, g], softmax_scale, soft_cap), seen)
                y[s, :, h] = (w * of_slots[:, g, 0]) @ values[:, g] / total
    return output_of(y, input_format)


@right.implements("attention_paged", supports=EVERYWHERE)
def into_out(
    query, key_cache, value_cache, block_table, context_lengths, key_scale, value_scale, softmax_scale, soft_cap,
    *, cache_format, input_format, scale_granularity, mask, window, out,
):  # fmt: skip
    out[...] = kernel()(
        query, key_cache, value_cache, block_table, context_lengths, key_scale, value_scale, softmax_scale, soft_cap,
        cache_format=cache_format, input_format=input_format, scale_granularity=scale_granularity, mask=mask,
        window=window,
    )  # fmt: skip


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def _wrong(name, word="must be", supports=SUPPORTS, semantics=None, **parts):
    EXPECTED[name] = word
    wrong.implements("attention_paged", name=name, semantics=semantics, supports=supports)(kernel(**parts))


# Slots.


def _clamped(cache, row, length):
    """Gather whole blocks, wherever the table points; a -1 is the last block."""
    block = cache.shape[1]
    return cache[row[: -(-length // block)]].reshape(-1, *cache.shape[2:])


def _weighted_padding(scores, seen, values, cast):
    """Mask the scores of padding, and multiply what lies there by zero."""
    return softmax(scores, seen, values, cast)


def _first_blocks(cache, row, length):
    return cache.reshape(-1, *cache.shape[2:])[:length]


def _reversed_blocks(cache, row, length):
    """Read the table from its end."""
    used = -(-length // cache.shape[1])
    return gather(cache, np.concatenate([row[:used][::-1], row[used:]]), length)


def _transposed_block(cache, row, length):
    """Take the place in a block for the block, where there are enough."""
    blocks, block = cache.shape[:2]
    at = plain._context(row, length, blocks, block)
    slots = (at[:, None] + blocks * np.arange(block)).reshape(-1)[:length]
    return cache.reshape(-1, *cache.shape[2:])[slots]


def _unmasked(scores, seen, values, cast):
    """Count padded slots as scores of zero."""
    padded = np.where(seen, scores, F(0) if scores.shape[1] % 2 else F(-np.inf))
    return softmax(padded, np.ones_like(seen) & (seen | bool(scores.shape[1] % 2)), values * seen.any(0)[:, None], cast)


_wrong("drops_the_last_slot", length=lambda n, most: max(0, n - 1))
_wrong("drops_the_first_slot", seen=lambda q, n, m, w: plain._seen(q, n, m, w) & (np.arange(n) > 0 if n > 1 else True))
_wrong("one_slot_too_many", length=lambda n, most: min(n + (n > 0), most) if n % 16 else n,
       seen=plain._seen)  # fmt: skip
_wrong("whole_blocks_only", length=lambda n, most: n // 16 * 16 if n > 16 else n)
_wrong("rounded_up_to_eight", length=lambda n, most: min(-(-n // 8) * 8, most), gather=lambda cache, row, n: (
    cache[np.clip(row[: -(-n // cache.shape[1])], 0, len(cache) - 1)].reshape(-1, *cache.shape[2:])[:n]))  # fmt: skip
_wrong("multiplies_what_lies_beyond_by_zero", "other contents", gather=_clamped, softmax=_weighted_padding)
_wrong("ignores_the_table", gather=_first_blocks)
_wrong("table_from_its_end", gather=_reversed_blocks)
_wrong("block_and_place_swapped", gather=_transposed_block)
_wrong("table_of_the_first_sequence", rows=lambda table, s: np.where(table[0] < 0, table[s], table[0]))
_wrong("zeros_in_masked_slots", softmax=_unmasked)


def _at_most(n, most):
    return min(n, 1024)


_wrong("forgets_slots_from_the_1025th", length=_at_most)


# Masks.


def _seen_with(causal=0, window=0, top_left=False, ignore=()):
    def seen(tokens, length, mask, of):
        place, slot = np.arange(length - tokens, length)[:, None], np.arange(length)
        if top_left:
            place = np.arange(tokens)[:, None]
        if mask == "none" or mask in ignore:
            return np.ones((tokens, length), bool)
        found = slot <= place + causal
        return found & (slot > place - of - window) if mask == "window" and "size" not in ignore else found

    return seen


_wrong("sees_the_next_token", seen=_seen_with(causal=1))
_wrong("does_not_see_itself", seen=_seen_with(causal=-1))
_wrong("tokens_at_the_beginning", seen=_seen_with(top_left=True))
_wrong("no_causal_mask", seen=_seen_with(ignore=("causal",)))
_wrong("window_one_too_wide", seen=_seen_with(window=1))
_wrong("window_one_too_narrow", seen=lambda q, n, m, w: _seen_with(window=-1)(q, n, m, max(2, w or 0)))
_wrong("window_ignored", seen=_seen_with(ignore=("size",)))


# Heads.
_wrong("heads_interleaved", head=lambda h, heads, shared: h % shared)
_wrong("first_head_for_all", head=lambda h, heads, shared: 0)
_wrong("heads_reversed", head=lambda h, heads, shared: (heads - 1 - h) * shared // heads)


def _no_check(query, key_cache, value_cache, block_table, context_lengths):
    if key_cache.shape[:3] != value_cache.shape[:3] or len(block_table) != len(query) != len(context_lengths):
        raise ValueError("shapes")


_wrong("accepts_any_heads", "must raise", check=_no_check)


# Scores.
_wrong("scale_of_the_head_size", scales=lambda k, v, tau, cap, size: (k, v, F(max(1, size) ** -0.5), cap))
_wrong("scaled_twice", scales=lambda k, v, tau, cap, size: (k, v, tau * tau, cap))
_wrong("unscaled", scales=lambda k, v, tau, cap, size: (k, v, F(1), cap))
_wrong("no_cap", scales=lambda k, v, tau, cap, size: (k, v, tau, None))
_wrong("cap_before_the_scale", score=lambda q, k, tau, cap: score(q, k, F(1), cap) * tau)
_wrong("cap_not_multiplied_back", score=lambda q, k, tau, cap: score(q, k, tau, cap) / F(1 if cap is None else cap))
_wrong("key_scale_for_values", scales=lambda k, v, tau, cap, size: (k, k, tau, cap))
_wrong("values_unscaled", scales=lambda k, v, tau, cap, size: (k, None if v is None else F(1), tau, cap))
_wrong("scores_in_float16", score=lambda q, k, tau, cap: score(q, k, tau, cap).astype(np.float16).astype(F))
_wrong(
    "scaled_query_in_float16", score=lambda q, k, tau, cap: score((q * tau).astype(np.float16).astype(F), k, F(1), cap)
)
_wrong("tanh_approximated", score=lambda q, k, tau, cap: (
    score(q, k, tau, None) if cap is None else cap * np.clip(score(q, k, tau, None) / cap, -1, 1)))  # fmt: skip
_wrong("unsigned_codes", numbers=lambda codes, scale, format: numbers_of(
    codes.view(np.uint8).astype(np.int16) if format == "int8" else codes, scale, format))  # fmt: skip
_wrong("one_float8_for_the_other", supports=EVERYWHERE, numbers=lambda codes, scale, format: numbers_of(
    codes, scale, {"float8_e5m2": "float8_e4m3fn"}.get(format, format)))  # fmt: skip


# Scales a head, a channel, a token.
KIVI = {**SUPPORTS, "cache_format": ("int8", "float8_e5m2"), "scale_granularity": ("tensor", "head", "kivi")}


def _spread_with(head=None, channel=None, token=None):
    """Return a `spread` that does another thing to scales a head, a channel of the keys or a token of the values."""

    def other(name, scale, cache, granularity):
        change = {"tensor": None, "head": head, "kivi": channel if name == "key" else token}[granularity or "tensor"]
        return spread(name, scale if change is None or not scale.size else change(scale), cache, granularity)

    return other


def _first(scale):
    return np.full_like(scale, scale.flat[0])


_wrong("heads_of_scales_reversed", supports=KIVI, spread=_spread_with(head=lambda scale: scale[::-1]))
_wrong("first_heads_scale_for_all", supports=KIVI, spread=_spread_with(head=_first))
_wrong("one_scale_for_all_channels", supports=KIVI, spread=_spread_with(channel=_first))
_wrong("channels_of_the_first_head", supports=KIVI, spread=_spread_with(
    channel=lambda scale: np.broadcast_to(scale[:1], scale.shape)))  # fmt: skip
_wrong("channels_rolled_by_one", supports=KIVI, spread=_spread_with(channel=lambda scale: np.roll(scale, 1, axis=1)))
_wrong("scales_of_the_first_block", supports=KIVI, spread=_spread_with(
    token=lambda scale: np.broadcast_to(scale[:1], scale.shape)))  # fmt: skip
_wrong("scale_of_the_slot_before", supports=KIVI, spread=_spread_with(token=lambda scale: np.roll(scale, 1, axis=1)))
_wrong("tokens_scale_of_the_first_head", supports=KIVI, spread=_spread_with(
    token=lambda scale: np.broadcast_to(scale[..., :1], scale.shape)))  # fmt: skip


# Probabilities.


def _no_maximum(scores, seen, values, cast):
    w = np.exp(np.where(seen, scores, F(-np.inf)))
    total = w.sum(axis=1, keepdims=True, dtype=F)
    return (w @ values) / np.where(total == 0, F(1), total)


def _maximum_of_masked_scores(scores, seen, values, cast):
    """Subtract the largest of all scores, those that are not seen among them, though it may be far larger."""
    w = np.where(seen, np.exp(scores - scores.max(axis=1, keepdims=True, initial=-np.inf)), F(0))
    total = w.sum(axis=1, keepdims=True, dtype=F)
    return (w @ values) / np.where(total == 0, F(1), total)


def _empty_is_nan(scores, seen, values, cast):
    t = np.where(seen, scores, F(-np.inf))
    w = np.exp(t - t.max(axis=1, keepdims=True, initial=-np.inf))
    return (w @ values) / w.sum(axis=1, keepdims=True, dtype=F)


def _empty_is_the_mean(scores, seen, values, cast):
    """Mask by a large negative number, under which nothing seen is everything seen."""
    t = np.where(seen, scores, F(-1e30))
    w = np.exp(t - t.max(axis=1, keepdims=True, initial=-1e30))
    return (w @ values) / np.maximum(w.sum(axis=1, keepdims=True, dtype=F), F(1e-30))


def _total_in_float16(scores, seen, values, cast):
    w, total = _weights(scores, seen)
    return (w @ values) / total.astype(np.float16).astype(F)


def _values_in_float16_sums(scores, seen, values, cast):
    w, total = _weights(scores, seen)
    return (w.astype(np.float16) @ values.astype(np.float16)).astype(F) / total


def _best_only(scores, seen, values, cast):
    """Leave out probabilities below a thousandth of the largest."""
    w, _ = _weights(scores, seen)
    w = np.where(w < F(1e-3), F(0), w)
    total = w.sum(axis=1, keepdims=True, dtype=F)
    return (w @ values) / np.where(total == 0, F(1), total)


_wrong("no_maximum_subtracted", softmax=_no_maximum)
_wrong("maximum_of_what_is_not_seen", softmax=_maximum_of_masked_scores)
_wrong("nothing_seen_gives_nan", softmax=_empty_is_nan)
_wrong("nothing_seen_gives_the_mean", softmax=_empty_is_the_mean)
_wrong("normaliser_not_rescaled", softmax=online(rescale_sum=False))
_wrong("values_not_rescaled", softmax=online(rescale_values=False))
_wrong("normaliser_in_float16", softmax=_total_in_float16, supports=EVERYWHERE)
_wrong("normaliser_with_epsilon", softmax=with_epsilon(1e-5), supports=EVERYWHERE)
_wrong("float16_sums_undeclared", softmax=_values_in_float16_sums, supports=EVERYWHERE)
_wrong("rounded_probabilities_undeclared", softmax=online(step=8), cast=_to_format,
       supports={**SUPPORTS, "cache_format": ("bfloat16", "int8"), "input_format": "bfloat16"})  # fmt: skip
_wrong("leaves_small_probabilities_out", softmax=_best_only, supports=EVERYWHERE)
_wrong("parts_undeclared", softmax=in_parts, supports=EVERYWHERE)


# Memory.


def _past_the_end(cache, row, length):
    """Read the blocks that the table names, from memory, whatever the cache's size is."""
    if length > row.size * cache.shape[1] or length < 0:
        raise ValueError("context_lengths: beyond the table")
    needed = row[: -(-length // cache.shape[1])]
    if needed.size and not 0 <= needed.min() <= needed.max() <= len(cache):
        raise ValueError("block_table: far beyond the cache")
    longer = np.lib.stride_tricks.as_strided(cache, (len(cache) + 1, *cache.shape[1:]), cache.strides)
    return longer[needed].reshape(-1, *cache.shape[2:])[:length]


_wrong("reads_past_the_cache", "is not finite", gather=_past_the_end)
