"""Attention over a paged cache: against explicit loops, PyTorch, simulated kernels, and what must fall outside."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from lowbit_cts.reference import attention as subject
from lowbit_cts.reference.accumulators import Accumulator
from lowbit_cts.reference.attention import attention_enclosure, probabilities_room, visible
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.encoding import encode, round_to_format
from lowbit_cts.reference.formats import FORMATS, IntegerFormat, decode, float_format
from lowbit_cts.reference.kv_cache import GRANULARITIES, QUANTIZED, scale_shape, slots

F = np.float32
#: Choices may be given by value.
ENCLOSURE: Callable[..., Enclosure] = attention_enclosure
ROOM: Callable[..., float] = probabilities_room
FORMATS_OF_CACHES = ("float32", "float16", "bfloat16", *QUANTIZED)


@dataclass(frozen=True)
class Problem:
    """Arguments and parameters of `attention_enclosure`."""

    arrays: tuple[Any, ...]
    parameters: dict[str, Any]

    def enclosure(self, **choices: Any) -> Enclosure:
        return ENCLOSURE(*self.arrays, **self.parameters, **choices)

    def with_(self, position: int, array) -> "Problem":
        return replace(self, arrays=(*self.arrays[:position], array, *self.arrays[position + 1 :]))


def codes_of(x: np.ndarray, format: str) -> np.ndarray:
    fmt = FORMATS[format]
    return np.rint(np.clip(40 * x, -127, 127)).astype(np.int8) if isinstance(fmt, IntegerFormat) else encode(x, fmt)


def problem(
    seed: int = 0,
    *,
    cache_format: str = "float32",
    input_format: str = "float32",
    contexts: tuple[int, ...] = (7, 0, 21, 1),
    tokens: int = 1,
    heads: tuple[int, int] = (4, 2),
    sizes: tuple[int, int] = (16, 8),
    block: int = 4,
    mask: str = "causal",
    window: int | None = None,
    soft_cap: float | None = None,
    sharpness: float = 1.0,
    granularity: str = "tensor",
) -> Problem:
    rng = np.random.default_rng(seed)
    columns = -(-max(contexts) // block) + 2
    blocks = columns * len(contexts) + 3
    (h, g), (d, e) = heads, sizes
    table = np.full((len(contexts), columns), -1, np.int32)
    free = rng.permutation(blocks)
    for s, context in enumerate(contexts):
        used = -(-context // block)
        table[s, :used] = free[s * columns : s * columns + used]
    query = round_to_format(sharpness * rng.standard_normal((len(contexts), tokens, h, d)), float_format(input_format))
    caches = [codes_of(rng.standard_normal((blocks, block, g, size)), cache_format) for size in (d, e)]
    quantized = cache_format in QUANTIZED
    scales: tuple[Any, Any] = (F(0.023), F(0.031)) if quantized else (None, None)
    if granularity != "tensor":
        shapes = (scale_shape(of, x.shape, granularity) for of, x in zip(("key", "value"), caches, strict=True))
        scales = tuple((0.03 * np.exp(rng.standard_normal(shape))).astype(F) for shape in shapes)
    cap = None if soft_cap is None else F(soft_cap)
    arrays = (query, *caches, table, np.array(contexts, np.int32), *scales, F(1 / math.sqrt(d)), cap)
    parameters = {"cache_format": cache_format, "input_format": input_format, "mask": mask, "window": window}
    return Problem(arrays, {**parameters, "granularity": granularity})


def numbers(codes: np.ndarray, format: str) -> np.ndarray:
    fmt = FORMATS[format]
    return codes.astype(np.float64) if isinstance(fmt, IntegerFormat) else decode(codes, fmt)


def scaled(p: Problem, dtype=np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Return the keys and values that codes stand for, each multiplied by its own scale."""
    found = []
    for of, codes, scale in (("key", p.arrays[1], p.arrays[5]), ("value", p.arrays[2], p.arrays[6])):
        s = np.asarray(1 if scale is None else scale, dtype)
        each = {"tensor": s, "head": s[..., None], "kivi": s if of == "key" else s[..., None]}
        x = numbers(codes, p.parameters["cache_format"]).astype(dtype)
        found.append((x * each[p.parameters["granularity"]]).astype(dtype))
    return found[0], found[1]


def by_loops(p: Problem) -> np.ndarray:
    """Return the results slot by slot, in Python's floats and exact sums of them."""
    query, _, _, table, contexts, _, _, tau, cap = p.arrays
    keys, values = scaled(p)
    sequences, tokens, heads, d = query.shape
    block, shared, e = values.shape[1:]
    y = np.zeros((sequences, tokens, heads, e))
    for s in range(sequences):
        for i in range(tokens):
            last = int(contexts[s]) - tokens + i
            for h in range(heads):
                scores, seen = [], []
                for j in range(int(contexts[s])):
                    if p.parameters["mask"] != "none" and j > last:
                        continue
                    if p.parameters["mask"] == "window" and last - j >= p.parameters["window"]:
                        continue
                    at = table[s, j // block], j % block, h * shared // heads
                    score = math.fsum(float(query[s, i, h, x]) * float(keys[at][x]) for x in range(d))
                    score *= float(tau)
                    scores.append(score if cap is None else float(cap) * math.tanh(score / float(cap)))
                    seen.append(values[at])
                if not scores:
                    continue
                weights = [math.exp(score - max(scores)) for score in scores]
                for x in range(e):
                    y[s, i, h, x] = math.fsum(w * v[x] for w, v in zip(weights, seen, strict=True)) / math.fsum(weights)
    return y


MASKS = [("causal", None), ("none", None), ("window", 1), ("window", 5), ("window", 1000)]


@pytest.mark.parametrize("cache_format", FORMATS_OF_CACHES)
@pytest.mark.parametrize(("mask", "window"), MASKS)
@pytest.mark.parametrize("soft_cap", [None, 3.0])
def test_the_value_is_that_of_explicit_loops(cache_format, mask, window, soft_cap):
    for tokens, heads in ((1, (4, 2)), (3, (3, 3)), (2, (6, 1))):
        p = problem(tokens, cache_format=cache_format, tokens=tokens, heads=heads, mask=mask, window=window,
                    soft_cap=soft_cap, sharpness=2.0)  # fmt: skip
        expected = by_loops(p)
        found = p.enclosure()
        np.testing.assert_allclose(found.exact, expected, rtol=1e-6, atol=1e-7)  # the output is float32
        assert found.admits(round_to_format(expected, float_format("float32"))).all()
        np.testing.assert_array_equal(subject.attention(*p.arrays, **p.parameters), found.exact)
        assert np.all(expected[1] == 0)
        assert np.all(found.exact[1] == 0)
        assert np.all((found.lo[1] == 0) & (found.hi[1] == 0))


@pytest.mark.parametrize("cache_format", QUANTIZED)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_scales_are_those_of_the_granularity(cache_format, granularity):
    for tokens, heads in ((1, (4, 2)), (2, (3, 3))):
        p = problem(20, cache_format=cache_format, tokens=tokens, heads=heads, granularity=granularity)
        found, expected = p.enclosure(), by_loops(p)
        np.testing.assert_allclose(found.exact, expected, rtol=1e-6, atol=1e-7)
        assert found.admits(round_to_format(expected, float_format("float32"))).all()
        for name in ("plain", "blocks of 4", "base two", "square roots"):
            assert found.admits(computed(p, KERNELS[name])).all(), name
        for position in (5, 6):
            turned = np.roll(p.arrays[position], 1) if granularity != "tensor" else p.arrays[position] * F(1.01)
            assert not found.admits(by_loops(p.with_(position, turned))).all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_powers_of_two_as_scales_are_as_good_as_the_numbers_themselves(granularity):
    p = problem(21, cache_format="int8", tokens=2, granularity=granularity)
    for position in (5, 6):
        p = p.with_(position, 2.0 ** np.round(np.log2(p.arrays[position])).astype(F))
    keys, values = (x.astype(F) for x in scaled(p))
    plain = Problem((p.arrays[0], keys, values, *p.arrays[3:5], None, None, *p.arrays[7:]),
                    {**p.parameters, "cache_format": "float32", "granularity": "tensor"})  # fmt: skip
    np.testing.assert_array_equal(p.enclosure().exact, plain.enclosure().exact)


def test_scales_of_slots_beyond_the_contexts_are_not_looked_at():
    p = problem(22, cache_format="int8", granularity="kivi")
    spoilt = np.full_like(p.arrays[6], np.nan)
    for s, context in enumerate(p.arrays[4]):
        at = slots(p.arrays[3][s], int(context), 4, len(spoilt))
        spoilt[at // 4, at % 4] = p.arrays[6][at // 4, at % 4]
    np.testing.assert_array_equal(p.with_(6, spoilt).enclosure().lo, p.enclosure().lo)
    with pytest.raises(ValueError, match="value_scale: must be positive and finite"):
        p.with_(6, np.full_like(p.arrays[6], np.nan)).enclosure()


# Simulated kernels --------------------------------------------------------------------------------------------------


def gathered(p: Problem, dtype=F):
    """Yield (index of the result, query, keys, values, cap, accumulators of the right type) of every row."""
    query, _, _, table, contexts, _, _, tau, cap = p.arrays
    keys, values = scaled(p, dtype)
    sequences, tokens, heads, _ = query.shape
    block, shared = values.shape[1:3]
    for s in range(sequences):
        at = slots(table[s], int(contexts[s]), block, len(keys))
        seen = visible(tokens, len(at), p.parameters["mask"], p.parameters["window"])
        for i in range(tokens):
            for h in range(heads):
                mine = at[seen[i]]
                k, v = (x[mine // block, mine % block, h * shared // heads] for x in (keys, values))
                yield (s, i, h), query[s, i, h].astype(dtype), k, v, dtype(tau), cap if cap is None else dtype(cap)


def scores(q, k, tau, cap):
    s = (k @ q) * tau
    return s if cap is None else cap * np.tanh(s / cap)


def plainly(q, k, v, tau, cap, order, cast):
    s = scores(q, k, tau, cap)
    w = np.exp(s - s.max())
    return cast(w / w.sum()) @ v


def online(block: int) -> Callable:
    """Return a softmax that goes through the slots in blocks, rescaling as larger scores come."""

    def run(q, k, v, tau, cap, order, cast):
        one = type(tau)
        top, total, sums = one(-np.inf), one(0), np.zeros(v.shape[1], v.dtype)
        for start in range(0, len(k), block):
            part = order[start : start + block]
            s = scores(q, k[part], tau, cap)
            larger = max(top, s.max())
            again, w = np.exp(top - larger), np.exp(s - larger)
            total, sums, top = total * again + w.sum(), sums * again + cast(w) @ v[part], larger
        return sums * (one(1) / total)

    return run


def in_base_two(q, k, v, tau, cap, order, cast):
    s = scores(q, k, tau, cap)
    factor = np.log2(np.e).astype(v.dtype)
    w = np.exp2(s * factor - s.max() * factor)
    return (cast(w) @ v) / w.sum()


def slot_by_slot(q, k, v, tau, cap, order, cast):
    return online(1)(q, k, v, tau, cap, np.argsort(scores(q, k, tau, cap)), cast)


def split(q, k, v, tau, cap, order, cast):
    """Three parts normalised apart, and combined by the logarithms of their sums."""
    logs, results = [], []
    for part in np.array_split(order, min(3, len(order))):
        s = scores(q, k[part], tau, cap)
        w = np.exp(s - s.max())
        logs.append(s.max() + np.log(w.sum()))
        results.append((cast(w) @ v[part]) / w.sum())
    weights = np.exp(np.array(logs) - np.logaddexp.reduce(logs).astype(v.dtype))
    return weights @ np.array(results)


def square_roots(q, k, v, tau, cap, order, cast):
    root = np.sqrt(tau)
    return plainly(q * root, k * root, v, type(tau)(1), cap, order, cast)


KERNELS = {
    "plain": plainly,
    "blocks of 4": online(4),
    "blocks of 1": online(1),
    "ascending, slot by slot": slot_by_slot,
    "base two": in_base_two,
    "square roots": square_roots,
    "split": split,
}


def computed(p: Problem, kernel: Callable, dtype=F, probabilities: str | None = None, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    output = float_format(p.parameters["input_format"])
    y = np.zeros((*p.arrays[0].shape[:3], p.arrays[2].shape[3]))

    def cast(w):
        return w if probabilities is None else round_to_format(w, float_format(probabilities)).astype(dtype)

    for at, q, k, v, tau, cap in gathered(p, dtype):
        if len(k):
            y[at] = kernel(q, k, v, tau, cap, rng.permutation(len(k)), cast)
    return round_to_format(y, output)


def choices(name: str, probabilities: str | None) -> dict:
    return {
        "softmax_parts": "several" if name == "split" else "one",
        "probability_precision": "float32" if probabilities is None else "activations",
    }


CONTEXTS = [(1, 2, 3), (5, 8, 33), (150, 64, 0)]


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("input_format", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("rounds", [False, True])
def test_simulated_kernels_lie_inside(name, input_format, rounds):
    probabilities = input_format if rounds and input_format != "float32" else None
    worst = 0.0
    for seed, (contexts, cache_format) in enumerate(
        (contexts, format) for contexts in CONTEXTS for format in ("int8", "float8_e5m2", input_format)
    ):
        for sharpness, soft_cap, (mask, window) in (
            (0.05, None, MASKS[1]),
            (1.0, 2.0, MASKS[0]),
            (9.0, None, MASKS[3]),
        ):
            p = problem(seed, cache_format=cache_format, input_format=input_format, contexts=contexts, tokens=2,
                        mask=mask, window=window, soft_cap=soft_cap, sharpness=sharpness)  # fmt: skip
            found = p.enclosure(**choices(name, probabilities))
            ratio = found.ratio(computed(p, KERNELS[name], probabilities=probabilities, seed=seed))
            worst = max(worst, float(ratio.max()))
    assert worst <= 1
    assert worst > 0.01 or input_format != "float32"  # a bound that is never come near to tells nothing


def test_kernels_in_float64_lie_inside_too():
    p = problem(3, contexts=(150, 3), tokens=2)
    for kernel in (plainly, online(1), in_base_two):
        assert p.enclosure(float_accumulator=Accumulator.FLOAT64).admits(computed(p, kernel, np.float64)).all()


def test_weights_rounded_to_float16_lie_inside_as_declared():
    p = problem(4, cache_format="int8", input_format="float16", contexts=(40, 9), sharpness=2.0)
    query, keys, values, *rest = p.arrays
    rounded = [encode(round_to_format(np.asarray(x, F) * F(s), float_format("float16")), float_format("float16"))
               for x, s in ((keys, rest[2]), (values, rest[3]))]  # fmt: skip
    dequantized = Problem((query, *rounded, *rest[:2], None, None, *rest[4:]),
                          {**p.parameters, "cache_format": "float16"})  # fmt: skip
    y = computed(dequantized, plainly)
    assert p.enclosure(weight_precision="activations").admits(y).all()
    assert not p.enclosure(weight_precision="float32").admits(y).all()


# What the bound comes to --------------------------------------------------------------------------------------------


def relative_room(p: Problem, **chosen) -> float:
    found = p.enclosure(**chosen)
    return float(((found.hi - found.lo) / 2).max() / np.abs(found.exact).max())


def test_one_slot_leaves_a_few_roundings():
    p = problem(5, contexts=(1,), sharpness=20.0)
    assert 0 < relative_room(p) < 16 * 2.0**-24
    assert relative_room(p, softmax_parts="several") > relative_room(p)  # the logarithms of large scores


def test_equal_values_leave_the_roundings_of_their_sum_whatever_the_scores():
    p = problem(6, contexts=(64,), sharpness=20.0)
    same = p.with_(2, np.full_like(p.arrays[2], 0.7))
    assert relative_room(same) < (4 * 64 + 32) * 2.0**-24
    assert np.abs(same.enclosure().exact - F(0.7)).max() < 1e-6


def test_probabilities_sum_to_one_to_within_their_room():
    for context in (1, 7, 64):
        p = problem(context, contexts=(context,), sizes=(16, 64), sharpness=3.0)
        table, block = p.arrays[3], p.arrays[2].shape[1]
        at = slots(table[0], context, block, len(p.arrays[2]))
        values = np.zeros_like(p.arrays[2])
        values[at // block, at % block, :, np.arange(context)] = 1
        room = ROOM(context, "float32")
        assert room < (6 * context + 20) * 2.0**-24
        for kernel in (plainly, online(1), slot_by_slot):
            sums = computed(p.with_(2, values), kernel).sum(axis=-1)
            assert np.abs(sums - 1).max() <= room
    assert np.abs(computed(p.with_(2, values * F(1.0001)), plainly).sum(axis=-1) - 1).max() > room
    assert ROOM(9, "float16") < ROOM(9, "float16", probability_precision="activations")
    assert ROOM(9, "float32", softmax_parts="several") == np.inf


def test_scores_of_zero_leave_nothing_where_the_mean_is_exact():
    p = problem(7, contexts=(1, 2, 4, 64, 32))
    p = p.with_(0, np.zeros_like(p.arrays[0]))
    p = p.with_(2, np.rint(4 * p.arrays[2]).astype(F))
    found = p.enclosure()
    np.testing.assert_array_equal(found.lo, found.hi)
    for name in ("plain", "blocks of 4", "ascending, slot by slot", "base two"):
        np.testing.assert_array_equal(computed(p, KERNELS[name]), found.exact)
    apart = p.enclosure(softmax_parts="several")
    assert np.any(apart.lo != apart.hi)
    odd = p.with_(4, np.array([1, 2, 3, 63, 31], np.int32)).enclosure()
    np.testing.assert_array_equal(np.any(odd.lo != odd.hi, axis=(1, 2, 3)), [False, False, True, True, True])


def test_an_epsilon_in_the_normaliser_lies_inside_where_it_is_declared():
    def vllm(q, k, v, tau, cap, order, cast):
        s = scores(q, k, tau, cap)
        w = np.exp(s - s.max())
        return (w / (w.sum() + F(1e-6))) @ v

    p = problem(18, contexts=(1, 1, 2))
    y = computed(p, vllm)
    assert p.enclosure(normaliser_epsilon=1e-6).admits(y).all()
    assert not p.enclosure().admits(y).all()


def test_the_bound_grows_as_what_is_declared_gets_coarser():
    p = problem(8, input_format="float16", cache_format="float16", contexts=(40, 12), sharpness=2.0)
    rooms = [
        relative_room(p, **chosen)
        for chosen in ({}, {"probability_precision": "activations"}, {"float_accumulator": Accumulator.FLOAT16})
    ]
    assert rooms == sorted(rooms)
    assert rooms[0] < rooms[2]
    p = problem(8, contexts=(40, 12))
    assert relative_room(p) < relative_room(p, function_ulps=64.0)


@pytest.mark.parametrize("context", [16, 256, 4096])
def test_the_bound_of_a_long_context_is_that_of_its_roundings(context):
    """Additions of two sums and a rescaling a slot: no more than 16 roundings a slot of what the values spread."""
    p = problem(9, contexts=(context,), block=16, heads=(1, 1))
    found = p.enclosure()
    assert float((found.hi - found.lo).max()) / 2 < (16 * context + 60) * 2.0**-24 * 3


# PyTorch ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mask", "window"), MASKS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_torch_agrees(mask, window, dtype):
    torch = pytest.importorskip("torch")
    for tokens, cache_format in ((1, "float16"), (3, "int8"), (2, "float8_e4m3fn")):
        p = problem(tokens, cache_format=cache_format, tokens=tokens, contexts=(7, 40, 3), mask=mask, window=window,
                    sharpness=2.0)  # fmt: skip
        query, keys, values, table, contexts, key_scale, value_scale, tau, _ = p.arrays
        found, (block, shared) = p.enclosure(), values.shape[1:3]
        for s, context in enumerate(contexts):
            at = slots(table[s], int(context), block, len(keys))
            k, v = (
                torch.from_numpy(
                    numbers(x, cache_format)[at // block, at % block] * float(1 if scale is None else scale)
                )
                for x, scale in ((keys, key_scale), (values, value_scale))
            )
            q, k, v = (x.to(getattr(torch, dtype)).transpose(0, 1) for x in (torch.from_numpy(query[s]), k, v))
            seen = torch.from_numpy(visible(tokens, int(context), mask, window).copy())
            y = torch.nn.functional.scaled_dot_product_attention(
                q[None], k[None], v[None], attn_mask=seen, scale=float(tau), enable_gqa=q.shape[0] != shared
            )
            y = y[0].transpose(0, 1).to(torch.float32).numpy().astype(np.float64)
            assert found[s].admits(y).all()


# What must fall outside ---------------------------------------------------------------------------------------------


def with_contexts(p: Problem, change: int) -> Problem:
    return p.with_(4, p.arrays[4] + np.int32(change))


def with_table(p: Problem, change: Callable) -> Problem:
    return p.with_(3, change(p.arrays[3].copy()))


def swapped(table):
    for row in table:
        last = np.flatnonzero(row >= 0)[-1]
        row[[0, last]] = row[[last, 0]]
    return table


def another(table):
    table[:, 1] = np.where(table[:, 1] == 0, 1, 0)
    return table


def without_slot(p: Problem, at: int) -> np.ndarray:
    """Return the results with one slot of each context left out."""
    y = np.zeros((*p.arrays[0].shape[:3], p.arrays[2].shape[3]))
    for index, q, k, v, tau, cap in gathered(p, np.float64):
        rest = np.delete(np.arange(len(k)), at)
        y[index] = plainly(q, k[rest], v[rest], tau, cap, None, lambda w: w)
    return y


def shown(p: Problem) -> np.ndarray:
    return p.enclosure().exact


FAULTS = {
    "the last slot dropped": lambda p: shown(with_contexts(p, -1)),
    "one slot too many": lambda p: shown(with_contexts(p, 1)),
    "the first slot dropped": lambda p: without_slot(p, 0),
    "a slot in the middle dropped": lambda p: without_slot(p, 10),
    "a whole block for the last, which is not whole": lambda p: shown(with_table(p, swapped)),
    "a wrong block": lambda p: shown(with_table(p, another)),
    "a wrong head": lambda p: shown(p.with_(1, p.arrays[1][:, :, ::-1]).with_(2, p.arrays[2][:, :, ::-1])),
    "heads interleaved": lambda p: shown(p.with_(0, p.arrays[0][:, :, [0, 2, 1, 3]])),
    "scaled twice": lambda p: shown(p.with_(7, p.arrays[7] ** 2)),
    "unscaled": lambda p: shown(p.with_(7, F(1))),
    "no soft cap": lambda p: shown(p.with_(8, None)),
    "the cap not multiplied back": lambda p: shown(p.with_(7, p.arrays[7] / 3).with_(8, F(1))),
    "the other cache's scale": lambda p: shown(p.with_(5, p.arrays[6])),
    "without the scale of the values": lambda p: shown(p.with_(6, F(1))),
    "keys for values": lambda p: shown(p.with_(2, p.arrays[1][..., :8])),
    "a window one too wide": lambda p: shown(replace(p, parameters={**p.parameters, "mask": "window", "window": 17})),
    "tokens at the beginning of the context": lambda p: shown(p.with_(0, p.arrays[0][:, ::-1])),
    "scores in float16": lambda p: shown(p.with_(0, round_to_format(p.arrays[0] * 1.0003, float_format("float16")))),
    "results a thousandth large": lambda p: shown(p) * 1.001,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_fall_outside(fault):
    window: dict[str, Any] = {"mask": "window", "window": 16} if "window" in fault else {}
    for input_format in ("float32", "float16"):
        if input_format == "float16" and "thousandth" in fault:
            continue
        p = problem(11, cache_format="int8", input_format=input_format, contexts=(21, 30), tokens=2, soft_cap=3.0,
                    sharpness=4.0, **window)  # fmt: skip
        y = round_to_format(FAULTS[fault](p), float_format(input_format))
        assert not p.enclosure().admits(y).all(), fault
        assert p.enclosure().admits(computed(p, plainly)).all()


def test_softmax_over_padded_slots_falls_outside():
    p = problem(12, contexts=(5, 9))
    y = by_loops(p)
    query = p.arrays[0]
    for s, context in enumerate(p.arrays[4]):
        padding = -context % 4
        for h in range(query.shape[2]):
            k = p.arrays[1][p.arrays[3][s, np.arange(context) // 4], np.arange(context) % 4, h // 2]
            t = (k.astype(float) @ query[s, 0, h]) * float(p.arrays[7])
            y[s, 0, h] *= np.exp(t).sum() / (np.exp(t).sum() + padding)  # scores of 0 where there is nothing
    assert not p.enclosure().admits(y).any(axis=(1, 2, 3)).all()


# Theorems -----------------------------------------------------------------------------------------------------------


def ends(p: Problem) -> np.ndarray:
    found = p.enclosure()
    return np.stack([found.exact, found.lo, found.hi])


def test_permuting_blocks_and_table_together_changes_nothing():
    p = problem(13, tokens=2, cache_format="float8_e4m3fn")
    order = np.random.default_rng(0).permutation(len(p.arrays[1]))
    table = p.arrays[3]
    moved = p.with_(3, np.where(table < 0, -1, np.argsort(order)[table]))
    moved = moved.with_(1, p.arrays[1][order]).with_(2, p.arrays[2][order])
    np.testing.assert_array_equal(ends(p), ends(moved))


def test_what_no_context_reaches_has_no_effect():
    p = problem(14, cache_format="float16", contexts=(5, 0, 9))
    spoilt = [np.full_like(p.arrays[i], np.nan) for i in (1, 2)]
    for s, context in enumerate(p.arrays[4]):
        at = slots(p.arrays[3][s], int(context), 4, len(p.arrays[1]))
        for i in (0, 1):
            spoilt[i][at // 4, at % 4] = p.arrays[1 + i][at // 4, at % 4]
    table = np.where(p.arrays[3] < 0, 2**31 - 1, p.arrays[3])
    np.testing.assert_array_equal(ends(p), ends(p.with_(1, spoilt[0]).with_(2, spoilt[1]).with_(3, table)))


def test_a_window_of_the_context_is_no_window():
    p = problem(15, tokens=3)
    wide = replace(p, parameters={**p.parameters, "mask": "window", "window": 21})
    np.testing.assert_array_equal(ends(p), ends(wide))


def test_what_is_not_finite_frees_its_own_heads_and_columns():
    p = problem(16, contexts=(9, 6))
    query, keys, values = (x.copy() for x in p.arrays[:3])
    query[0, 0, 3, 2] = np.inf
    keys[p.arrays[3][1, 0], 1, 0, 0] = np.nan
    values[p.arrays[3][0, 2], 0, 0, 5] = -np.inf
    found = p.with_(0, query).with_(1, keys).with_(2, values).enclosure()
    free = (found.lo == -np.inf) & (found.hi == np.inf)
    expected = np.zeros(free.shape, bool)
    expected[0, 0, 3], expected[1, 0, :2], expected[0, 0, :2, 5] = True, True, True
    np.testing.assert_array_equal(free, expected)
    np.testing.assert_array_equal(found.exact[~free], p.enclosure().exact[~free])


def test_scores_beyond_the_accumulator_are_not_judged():
    p = problem(17, contexts=(3,))
    large = p.with_(0, p.arrays[0] * 1e38)
    assert np.isnan(large.enclosure().exact).all()
    wide = large.enclosure(float_accumulator=Accumulator.FLOAT64)
    farthest = np.abs(p.arrays[2]).max()
    assert np.all((wide.lo >= -3 * farthest) & (wide.hi <= 3 * farthest))  # whatever the weights, a mean of the values


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, np.zeros((4, 1, 3, 16)), "query: has 3 heads, must have a multiple of the 2"),
        (0, np.zeros((4, 1, 4, 15)), "query: has a head size of 15"),
        (0, np.zeros((4, 4, 16)), "query: has 3 axes, must have 4"),
        (0, np.zeros((3, 1, 4, 16)), "block_table, context_lengths: must have 3 rows"),
        (2, np.zeros((5, 4, 2, 8), np.float32), "value_cache: has shape"),
        (3, np.full((4, 8), 999, np.int32), r"block_table: must lie in \[0, 34\]"),
        (3, np.full((4, 8), -1, np.int32), r"block_table: must lie in \[0, 34\]"),
        (5, np.ones(2, F), r"key_scale: has shape \(2,\), must be \(\) for granularity 'tensor'"),
        (4, np.array([7, 0, 33, 1], np.int32), r"context_lengths: must lie in \[0, 32\], what .*; got 33"),
        (4, np.array([7, -1, 21, 1], np.int32), "context_lengths: must lie in"),
        *((i, F(bad), f"{name}: must be positive and finite")
          for i, name in ((5, "key_scale"), (6, "value_scale"), (7, "softmax_scale"), (8, "soft_cap"))
          for bad in (np.nan, -1, 0, np.inf)),
    ],
)  # fmt: skip
def test_bad_input_is_refused(position, value, message):
    with pytest.raises(ValueError, match=message):
        problem().with_(position, value).enclosure()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mask": "alibi"}, "mask: 'alibi' must be one of causal, window, none"),
        ({"mask": "window"}, "window: must be a positive integer; got None"),
        ({"mask": "window", "window": 0}, "window: must be a positive integer; got 0"),
        ({"cache_format": "float7"}, "float7"),
        ({"granularity": "row"}, "granularity: 'row' must be one of tensor, head, kivi"),
    ],
)
def test_bad_parameters_are_refused(parameters, message):
    p = problem()
    with pytest.raises((ValueError, KeyError), match=message):
        replace(p, parameters={**p.parameters, **parameters}).enclosure()


def test_empty_axes_give_empty_results_or_zeros():
    assert problem(contexts=(0, 0)).enclosure().exact.any() == 0
    p = problem()
    assert p.with_(0, np.zeros((4, 0, 4, 16))).enclosure().shape == (4, 0, 4, 8)
    assert p.with_(2, p.arrays[2][..., :0]).enclosure().shape == (4, 1, 4, 0)
    nothing = p.with_(0, p.arrays[0][..., :0]).with_(1, p.arrays[1][..., :0])
    assert np.isfinite(nothing.enclosure().exact).all()  # every score is an empty sum
