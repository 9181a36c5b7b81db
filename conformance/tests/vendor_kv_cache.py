"""A vendor's writers of paged caches: right ones, and the same with one planted fault each."""

import numpy as np

from lowbit_cts.kernels import Backend, Semantics
from lowbit_cts.kernels.numpy import kv_cache as plain
from lowbit_cts.kernels.numpy.numbers import WIDE, float32_of
from lowbit_cts.kernels.numpy.small_floats import encode

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

F = np.float32
SUPPORTS = {
    "cache_format": ("float16", "int8", "float8_e4m3fn"),
    "scale_granularity": ("tensor", "head", "kivi"),
    "block_size": (16, 5, 1),
}
EVERYWHERE = {**SUPPORTS, "cache_format": plain.CACHES, "input_format": WIDE}


# The parts of a kernel, each of which a right or a wrong one may replace ----------------------------------------------


def divided(x, scale):
    return x / scale


def rounded(quotient):
    return np.clip(np.rint(np.where(np.isnan(quotient), F(0), quotient)), -128, 127).astype(np.int8)


def small(quotient, format):
    return encode(quotient, format, saturate=True)


def store(new, slots, codes):
    """Put codes (T, G, size) into their slots of a cache (C, P, G, size)."""
    block = new.shape[1]
    for slot, code in zip(slots.tolist(), codes, strict=True):
        if slot >= 0:
            new[slot // block, slot % block] = code


def kernel(
    *, check=plain._check, spread=plain.spread, divided=divided, rounded=rounded, small=small, store=store,
    scales=lambda k, v: (k, v), tokens=lambda x: x, begin=lambda cache: np.array(cache, order="C"),
    dtype=F,
):  # fmt: skip
    """Return a kernel of these parts."""

    def write_kv_cache(
        key, value, key_cache, value_cache, slot_mapping, key_scale, value_scale,
        *, cache_format, input_format, scale_granularity,
    ):  # fmt: skip
        check(key, value, key_cache, value_cache, slot_mapping)
        written = []
        scaled = scales(key_scale, value_scale)
        for name, x, cache, scale in zip(
            ("key", "value"), (key, value), (key_cache, value_cache), scaled, strict=True
        ):  # fmt: skip
            codes = tokens(x)
            if scale is not None:
                with np.errstate(all="ignore"):
                    quotient = divided(float32_of(codes, input_format), spread(name, scale, x.shape, scale_granularity))
                    quotient = quotient.astype(dtype)
                    codes = rounded(quotient) if cache_format == "int8" else small(quotient, cache_format)
            new = begin(cache)
            store(new, slot_mapping, codes)
            written.append(new)
        return tuple(written)

    return write_kv_cache


# Right kernels ------------------------------------------------------------------------------------------------------


def _right(name, semantics=None, supports=EVERYWHERE, **parts):
    right.implements("write_kv_cache", name=name, semantics=semantics, supports=supports)(kernel(**parts))


def _backwards(new, slots, codes):
    store(new, slots[::-1], codes[::-1])


def _away(quotient):
    whole = np.trunc(quotient)
    with np.errstate(invalid="ignore"):
        found = whole + np.copysign(np.abs(quotient - whole) >= F(0.5), quotient)  # infinities less themselves are NaN
    found = np.where(np.isinf(quotient), quotient, found)
    return np.clip(np.where(np.isnan(found), F(0), found), -128, 127).astype(np.int8)


def _overflowing(quotient, format):
    return encode(quotient, format, saturate=False)


_right("token_by_token")
_right("tokens_backwards", store=_backwards)
_right("reciprocal", Semantics(division="reciprocal"), divided=lambda x, scale: x * (F(1) / scale))
_right("approximate", Semantics(division="approximate"),
       divided=lambda x, scale: np.nextafter(x / scale, F(0)))  # fmt: skip
_right("float64", Semantics(intermediate="float64"), {**EVERYWHERE, "cache_format": "int8"},
       divided=lambda x, scale: x.astype(np.float64) / scale.astype(np.float64), dtype=np.float64)  # fmt: skip
_right("half_away", Semantics(rounding="half_away"), {**EVERYWHERE, "cache_format": "int8"}, rounded=_away)
_right("infinities_and_nan", Semantics(overflow="infinity_or_nan"),
       {**EVERYWHERE, "cache_format": ("float8_e4m3fn", "float8_e5m2")}, small=_overflowing)  # fmt: skip


@right.implements("write_kv_cache", supports=EVERYWHERE)
def into_out(
    key, value, key_cache, value_cache, slot_mapping, key_scale, value_scale,
    *, cache_format, input_format, scale_granularity, out,
):  # fmt: skip
    """Copy the caches, then write in place, as vLLM's kernels do."""
    plain._check(key, value, key_cache, value_cache, slot_mapping)
    for name, new, cache, x, scale in zip(
        ("key", "value"), out, (key_cache, value_cache), (key, value), (key_scale, value_scale), strict=True
    ):
        new[...] = cache
        spread = plain.spread(name, scale, x.shape, scale_granularity)
        store(new, slot_mapping, plain.codes_of(x, spread, cache_format, input_format))


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def _wrong(name, word="must be", supports=SUPPORTS, semantics=None, **parts):
    EXPECTED[name] = word
    wrong.implements("write_kv_cache", name=name, semantics=semantics, supports=supports)(kernel(**parts))


# Slots.


def _flat(new):
    return new.reshape(new.shape[0] * new.shape[1], *new.shape[2:])


def _skipped_at_the_end(new, slots, codes):
    """Let a slot below zero count from the end, as NumPy and torch do."""
    flat = _flat(new)
    if len(flat):
        flat[slots % len(flat)] = codes


def _skipped_at_zero(new, slots, codes):
    flat, held = _flat(new), slots >= 0
    if len(flat):
        flat[0] = codes[~held][-1] if (~held).any() and not (slots == 0).any() else flat[0]
    store(new, slots, codes)


def _only_minus_one(new, slots, codes):
    """Take only -1 for padding."""
    flat = _flat(new)
    if len(flat):
        flat[slots[slots != -1] % len(flat)] = codes[slots != -1]


def _swapped(new, slots, codes):
    """Take the place for the block, where both exist."""
    blocks = len(new)
    for slot, code in zip(slots.tolist(), codes, strict=True):
        if slot >= 0:
            new[slot % blocks, slot // blocks] = code


def _stride_of_sixteen(new, slots, codes):
    blocks, block = new.shape[:2]
    for slot, code in zip(slots.tolist(), codes, strict=True):
        if slot >= 0:
            new[min(slot // 16, blocks - 1), slot % 16 % block] = code


def _clears_the_block(new, slots, codes):
    for slot in {slot // new.shape[1] for slot in slots.tolist() if slot >= 0}:
        new[slot] = 0
    store(new, slots, codes)


def _clears_what_follows(new, slots, codes):
    """Zero the rest of the block after a token, before the next is written."""
    store(new, slots, codes)
    block, given = new.shape[1], set(slots.tolist())
    for slot in slots.tolist():
        after = slot + 1
        if slot >= 0 and after % block and after not in given:
            new[after // block, after % block] = 0


def _but_the_last_place(new, slots, codes):
    block = new.shape[1]
    store(new, np.where(slots % block == block - 1, -1, slots) if block > 1 else slots, codes)


def _but_the_last_token(new, slots, codes):
    store(new, slots[: max(1, len(slots) - 1)], codes[: max(1, len(slots) - 1)])


def _at_most_sixteen_tokens(new, slots, codes):
    store(new, slots[:16], codes[:16])


def _consecutive(new, slots, codes):
    """Take the first slot, and count on from there."""
    held = slots >= 0
    if held.any():
        first = slots[held][0] + np.arange(held.sum())
        store(new, np.where(first < new.shape[0] * new.shape[1], first, -1), codes[held])


_wrong("skipped_tokens_at_the_end", store=_skipped_at_the_end)
_wrong("skipped_tokens_at_slot_zero", store=_skipped_at_zero)
_wrong("only_minus_one_is_skipped", store=_only_minus_one)
_wrong("block_and_place_swapped", store=_swapped, supports={**SUPPORTS, "block_size": 8})
_wrong("blocks_of_sixteen_always", store=_stride_of_sixteen)
_wrong("clears_the_block", store=_clears_the_block)
_wrong("clears_the_slot_after", store=_clears_what_follows)
_wrong("leaves_out_the_last_place_of_a_block", store=_but_the_last_place)
_wrong("leaves_out_the_last_token", store=_but_the_last_token)
_wrong("at_most_sixteen_tokens", store=_at_most_sixteen_tokens)
_wrong("slots_from_the_first_on", store=_consecutive)


def _canonical(cache):
    """Copy by value: a NaN comes out as the one that arithmetic makes."""
    new = np.array(cache, order="C")
    if new.dtype == np.float16:
        new[np.isnan(new)] = np.nan
    return new


_wrong("nan_of_other_slots_made_quiet", "before and after", begin=_canonical)
_wrong("zeros_where_there_is_no_token", begin=np.zeros_like)


# Lanes and heads.


def _lanes(new, slots, codes):
    """Store whole vectors of eight, and what is left over not at all."""
    whole = codes.shape[2] // 8 * 8 if codes.shape[2] > 8 else codes.shape[2]
    for slot, code in zip(slots.tolist(), codes, strict=True):
        if slot >= 0:
            new[slot // new.shape[1], slot % new.shape[1], :, :whole] = code[:, :whole]


def _first_sixteen(new, slots, codes):
    for slot, code in zip(slots.tolist(), codes, strict=True):
        if slot >= 0:
            new[slot // new.shape[1], slot % new.shape[1], :, :16] = code[:, :16]


_wrong("whole_vectors_only", store=_lanes)
_wrong("first_sixteen_channels", store=_first_sixteen)
_wrong("heads_reversed", tokens=lambda x: x[:, ::-1])
_wrong("first_head_for_all", tokens=lambda x: np.broadcast_to(x[:, :1], x.shape))
_wrong("heads_and_channels_swapped", tokens=lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).reshape(x.shape))


# Scales and codes.


def _spread_with(head=None, channel=None, token=None):
    def other(name, scale, shape, granularity):
        change = {"tensor": None, "head": head, "kivi": channel if name == "key" else token}[granularity or "tensor"]
        return plain.spread(name, scale if change is None or not scale.size else change(scale), shape, granularity)

    return other


def _wrapped(quotient):
    return np.rint(np.nan_to_num(quotient, nan=0, posinf=127, neginf=-128)).astype(np.int64).astype(np.int8)


_wrong("multiplied_by_the_scale", divided=lambda x, scale: x * scale)
_wrong("unscaled", divided=lambda x, scale: x)
_wrong("reciprocal_undeclared", divided=lambda x, scale: x * (F(1) / scale))
_wrong("quotient_in_float16", divided=lambda x, scale: (x / scale).astype(np.float16).astype(F))
_wrong("key_scale_for_values", supports={**SUPPORTS, "scale_granularity": ("tensor", "head")},
       scales=lambda k, v: (k, k))  # fmt: skip
_wrong("scales_swapped", supports={**SUPPORTS, "scale_granularity": "tensor"}, scales=lambda k, v: (v, k))
_wrong("heads_of_scales_reversed", spread=_spread_with(head=lambda scale: scale[::-1]))
_wrong("one_scale_for_all_channels", spread=_spread_with(channel=lambda scale: np.full_like(scale, scale.flat[0])))
_wrong("scale_of_the_first_token", spread=_spread_with(token=lambda scale: np.broadcast_to(scale[:1], scale.shape)))
_wrong("scale_of_the_token_before", spread=_spread_with(token=lambda scale: np.roll(scale, 1, axis=0)))
_wrong("half_away", rounded=_away)
_wrong("truncates", rounded=lambda quotient: rounded(np.trunc(quotient)))
_wrong("wraps_instead_of_saturating", rounded=_wrapped)
_wrong("saturates_at_minus_127", rounded=lambda quotient: np.maximum(rounded(quotient), -127))
_wrong("overflows_to_nan", small=_overflowing)
_wrong("float8_truncates", small=lambda quotient, format: small(
    (quotient.view(np.uint32) & np.uint32(0xFFF00000)).view(F), format))  # fmt: skip
_wrong("float8_subnormals_lost", small=lambda quotient, format: small(
    np.where(np.abs(quotient) < F(2.0**-6), F(0) * quotient, quotient), format))  # fmt: skip
_wrong("sign_of_zero_lost", small=lambda quotient, format: small(quotient + F(0), format))


# Memory.


def _no_check(key, value, key_cache, value_cache, slot_mapping):
    if key.shape[0] != len(slot_mapping) or value.shape[0] != len(slot_mapping):
        raise ValueError("slot_mapping: another number of tokens")
    if key.shape[1:] != key_cache.shape[2:] or value.shape[1:] != value_cache.shape[2:]:
        raise ValueError("key, value: another head size")
    if key_cache.shape[:3] != value_cache.shape[:3]:
        raise ValueError("value_cache: another shape")


def _around(new, slots, codes):
    """Let slots beyond the cache begin again at its start."""
    flat, held = _flat(new), slots >= 0
    if len(flat):
        flat[slots[held] % len(flat)] = codes[held]


def _at_the_last(new, slots, codes):
    last = new.shape[0] * new.shape[1] - 1
    store(new, np.where(slots > last, last, slots), codes)


_wrong("slots_beyond_begin_again", "before and after", check=_no_check, store=_around)
_wrong("slots_beyond_at_the_last", "before and after", check=_no_check, store=_at_the_last)
_wrong("one_token_short_accepted", "must raise",
       check=lambda key, value, key_cache, value_cache, slots: None,
       store=lambda new, slots, codes: store(new, slots[: len(codes)], codes[: len(slots)]))  # fmt: skip


@wrong.implements("write_kv_cache", supports=SUPPORTS)
def writes_to_its_input(
    key, value, key_cache, value_cache, slot_mapping, key_scale, value_scale,
    *, cache_format, input_format, scale_granularity,
):  # fmt: skip
    """Write in place, and return what was written to."""
    return kernel(begin=lambda cache: cache)(
        key, value, key_cache, value_cache, slot_mapping, key_scale, value_scale, cache_format=cache_format,
        input_format=input_format, scale_granularity=scale_granularity,
    )  # fmt: skip


@wrong.implements("write_kv_cache", supports=SUPPORTS)
def writes_past_the_cache(
    key, value, key_cache, value_cache, slot_mapping, key_scale, value_scale,
    *, cache_format, input_format, scale_granularity, out,
):  # fmt: skip
    """Write wherever a slot says, up to a block beyond the end."""
    _no_check(key, value, key_cache, value_cache, slot_mapping)
    for name, new, cache, x, scale in zip(
        ("key", "value"), out, (key_cache, value_cache), (key, value), (key_scale, value_scale), strict=True
    ):
        new[...] = cache
        codes = plain.codes_of(x, plain.spread(name, scale, x.shape, scale_granularity), cache_format, input_format)
        blocks, block, *rest = new.shape
        if slot_mapping.size and slot_mapping.max() >= (blocks + 1) * block:
            raise ValueError("slot_mapping: far beyond the cache")
        store(np.lib.stride_tricks.as_strided(new, (blocks + 1, block, *rest), new.strides), slot_mapping, codes)


EXPECTED["writes_to_its_input"] = "wrote to its input"
EXPECTED["writes_past_the_cache"] = "guard band"
