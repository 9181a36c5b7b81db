"""Attention over a paged cache: which slots are read, by which token and head, and what becomes of their scores."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.buffers import poison
from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Trial
from lowbit_cts.conformance.fills import float_codes
from lowbit_cts.conformance.strategies.attention import UNIT, arrays_of, cache_codes
from lowbit_cts.kernels import Case, Implementation
from lowbit_cts.reference.attention import probabilities_room
from lowbit_cts.reference.kv_cache import QUANTIZED, slots

pytestmark = pytest.mark.operation("attention_paged")

_SIZES = {"S": 3, "Q": 1, "H": 4, "G": 4, "D": 16, "E": 8, "C": 40, "B": 4}


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _case(
    examination: Examination,
    chosen: Mapping[str, Any],
    contexts: Any,
    seed: int = 0,
    sharpness: float | np.ndarray = 1.0,
    **sizes: int,
) -> Case:
    """Return a case of so many sequences as contexts; where heads are grouped, two share one of the cache."""
    lengths = np.asarray(contexts, np.int64)
    found = {**_SIZES, "S": lengths.size, "B": -(-int(lengths.max(initial=1)) // chosen["block_size"]) + 1, **sizes}
    found["G"] = found["H"] // 2 if chosen["grouped"] else found["H"]
    found["C"] = max(found["C"], found["S"] * found["B"])
    rng = np.random.default_rng(seed)
    arrays = arrays_of(rng, chosen, found, lengths)
    shape = tuple(found[symbol] for symbol in "SQHD")
    arrays["query"] = float_codes(sharpness * rng.standard_normal(shape), chosen["input_format"])
    return Case(examination.implementation.operation, dict(chosen), arrays, {"seed": seed})


def _with(case: Case, **arrays: np.ndarray) -> Case:
    return replace(case, arrays={**case.arrays, **arrays})


def _reached(case: Case) -> np.ndarray:
    """Return which slots of the cache lie in a context, (C, P)."""
    blocks, block = case.array("key_cache").shape[:2]
    reached = np.zeros((blocks, block), bool)
    for row, length in zip(case.array("block_table"), case.array("context_lengths"), strict=True):
        reached.reshape(-1)[slots(row, int(length), block, blocks)] = True
    return reached


def _around(block: int) -> list[int]:
    """Return lengths of contexts from none to two blocks and a slot."""
    return sorted({0, 1, 2, 3, block - 1, block, block + 1, 2 * block - 1, 2 * block, 2 * block + 1})


# Which slots are read -----------------------------------------------------------------------------------------------


def test_every_length_of_a_context(examination: Examination) -> None:
    """Contexts of no slot, one, and around the ends of blocks: not one slot too few, not one too many."""
    for chosen in (
        *examination.combinations("mask", "grouped", "block_size"),
        *examination.combinations("mask", "capped"),
    ):
        for tokens in (1, 3):
            examination.once(_enclosed, _case(examination, chosen, _around(chosen["block_size"]), Q=tokens))


def test_several_tokens(examination: Examination) -> None:
    """The last token sees the whole context, those before it one slot less each; what is before the first sees none."""
    for chosen in examination.combinations("mask", "window", "grouped"):
        for tokens in (2, 4, 9):
            examination.once(_enclosed, _case(examination, chosen, [1, 2, tokens, tokens + 1, 24], 1, 2.0, Q=tokens))


def _windowed(implementation: Implementation) -> bool:
    return "window" in implementation.supports["mask"]


@pytest.mark.applies(to=_windowed)
def test_every_window(examination: Examination) -> None:
    """A window hides what is before it, to the slot; one as long as the context, or longer, hides nothing."""
    for chosen in examination.combinations("mask", "window", "grouped", "block_size"):
        if chosen["mask"] != "window":
            continue
        window = chosen["window"]
        lengths = [1, max(1, window - 1), window, window + 1, window + chosen["block_size"], 2 * window + 3]
        examination.once(_enclosed, _case(examination, chosen, lengths, 2, 2.0, Q=2))


def _in_blocks(case: Case) -> list[str]:
    """Return the arguments that lie in blocks: caches, and scales of their slots."""
    return [a.name for a in case.operation.arguments if "P" in a.shape(case.parameters) and a.present(case.parameters)]


def _blocks_moved(case: Case, order: np.ndarray) -> Case:
    """Return the case with the blocks of the cache in another order, and the table's numbers with them."""
    table = case.array("block_table")
    moved = np.where(table < 0, table, np.argsort(order)[table]).astype(np.int32)
    return _with(
        case, block_table=moved, **{name: np.ascontiguousarray(case.array(name)[order]) for name in _in_blocks(case)}
    )


def test_blocks_in_another_order(examination: Examination) -> None:
    """Where in the cache a block lies does not matter, as long as the table says so: the same bits."""

    def check(trial: Trial) -> None:
        blocks = len(trial.case.array("key_cache"))
        one = trial.call().results[0]
        trial.enclosed(one)
        for order in (np.arange(blocks)[::-1], np.random.default_rng(0).permutation(blocks)):
            other = trial.call(_blocks_moved(trial.case, order)).results[0]
            trial.identical(one, other, "the same blocks elsewhere in the cache")

    for chosen in examination.combinations("cache_format", "scale_granularity", "grouped"):
        examination.once(check, _case(examination, chosen, [5, 33, 20], 3, Q=2))


def test_slots_beyond_the_context(examination: Examination) -> None:
    """NaN, or the largest codes, in every slot that no context reaches give the same bits.

    They are in the first and the last block of the cache, too, and in the unfilled slots of a context's last block.
    """

    def check(trial: Trial) -> None:
        case, reached = trial.case, _reached(trial.case)
        clean = trial.call().results[0]
        trial.enclosed(clean)
        for byte in (0x7F, 0x80):
            spoilt = {}
            for name in _in_blocks(case):
                array = case.array(name)
                bad = poison(1, case.format(name).name, byte).astype(array.dtype)
                spoilt[name] = np.where(reached.reshape(*reached.shape, *[1] * (array.ndim - 2)), array, bad)
            other = trial.call(_with(case, **spoilt)).results[0]
            trial.identical(clean, other, "other contents of slots that no context reaches")

    for chosen in (*examination.combinations("cache_format", "scale_granularity"), *examination.combinations("mask")):
        case = _case(examination, chosen, [5, 33, 0, 20], 4, Q=2)
        used = np.unique(case.array("block_table"))
        free = np.setdiff1d(np.arange(len(case.array("key_cache"))), used)
        order = np.concatenate([free[:1], np.setdiff1d(np.arange(len(case.array("key_cache"))), free[:2]), free[1:2]])
        examination.once(check, _blocks_moved(case, order))


def test_blocks_that_are_not(examination: Examination) -> None:
    """A table with -1, or with any block's number, beyond the context gives the same bits."""

    def check(trial: Trial) -> None:
        table = trial.case.array("block_table")
        held = -(-trial.case.array("context_lengths") // trial.case.parameters["block_size"])
        beyond = np.arange(table.shape[1]) >= held[:, None]
        replies = [
            trial.call(_with(trial.case, block_table=np.where(beyond, number, table).astype(np.int32))).results[0]
            for number in (-1, 0, len(trial.case.array("key_cache")) - 1)
        ]
        for other in replies[1:]:
            trial.identical(replies[0], other, "other numbers in the table beyond the context")

    for chosen in examination.combinations("cache_format"):
        examination.once(check, _case(examination, chosen, [1, 17, 0, 40], 5, B=6))


def test_shared_blocks(examination: Examination) -> None:
    """Two sequences that begin with the same blocks, as after a common prompt, each get what they get alone."""
    for chosen in examination.combinations("cache_format", "grouped"):
        block = chosen["block_size"]
        case = _case(examination, chosen, [2 * block + 1, 3 * block - 1, 2 * block], 6)
        table = case.array("block_table").copy()
        table[:, :2] = table[0, :2]
        examination.once(_enclosed, _with(case, block_table=table))


def test_empty_contexts(examination: Examination) -> None:
    """An empty context gives zeros, and not a word of NaN, beside others and alone."""
    for chosen in examination.combinations("mask", "capped"):
        for contexts in ([0], [0, 9, 0], [9, 0]):
            examination.once(_enclosed, _case(examination, chosen, contexts, 7))


def test_a_slot_that_has_it_all(examination: Examination) -> None:
    """One slot's key fits the query and no other does: wherever in a long context it lies, its value comes out."""
    for chosen in examination.combinations("cache_format", "grouped"):
        length = 2 * chosen["block_size"] + 3
        if chosen["mask"] == "window":
            length = min(length, chosen["window"])
        case = _case(examination, chosen, [length] * length, 8, 0.0, D=8, E=4, H=2, C=8)
        keys = case.array("key_cache")
        blocks, block, shared, size = keys.shape
        # All sequences share their blocks; the s-th asks for the s-th slot, by its number in binary digits of +-1.
        table = np.broadcast_to(case.array("block_table")[:1], case.array("block_table").shape).copy()
        at = slots(table[0], length, block, blocks)
        digits = np.where(np.arange(length)[:, None] >> np.arange(size) & 1, 1.0, -1.0)
        x = np.zeros((blocks * block, shared, size))
        x[at] = digits[:, None]
        query = np.broadcast_to(60.0 * digits[:, None, None], case.array("query").shape)
        arrays = {"key_cache": cache_codes(x.reshape(keys.shape), chosen["cache_format"]), "block_table": table}
        if case.arrays["key_scale"] is not None:
            arrays["key_scale"] = np.full_like(case.array("key_scale"), 1 / 40)
        arrays["query"] = float_codes(query, chosen["input_format"])
        arrays["softmax_scale"] = np.asarray(0.5, np.float32)
        examination.once(_enclosed, _with(case, **arrays))


# Heads --------------------------------------------------------------------------------------------------------------


def test_each_head_has_its_own(examination: Examination) -> None:
    """Values that are one number a head: each head of the query gives that of its own head of the cache."""
    for chosen in examination.combinations("grouped", "cache_format"):
        for heads in (2, 4, 6):
            case = _case(examination, chosen, [7, 18], 9, H=heads)
            values = case.array("value_cache")
            own = np.broadcast_to(0.25 * (1 + np.arange(values.shape[2]))[:, None], values.shape)
            codes = cache_codes(own, chosen["cache_format"])
            examination.once(_enclosed, _with(case, value_cache=codes))


def test_many_heads_of_one(examination: Examination) -> None:
    """Many heads of the query on few of the cache: eight, six and three on one, and on two."""
    for chosen in examination.combinations("grouped", "cache_format"):
        if not chosen["grouped"]:
            examination.once(_enclosed, _case(examination, chosen, [7, 18], 10, H=8))
            continue
        for heads, shared in ((8, 1), (6, 1), (3, 1), (6, 2), (16, 2), (12, 4), (4, 4)):
            case = _case(examination, chosen, [7, 18], 10, 2.0, H=2 * shared)
            query = np.random.default_rng(heads).standard_normal((2, 1, heads, case.sizes["D"]))
            examination.once(_enclosed, _with(case, query=float_codes(query, chosen["input_format"])))


# Probabilities ------------------------------------------------------------------------------------------------------


def test_probabilities_sum_to_one(examination: Examination) -> None:
    """Values of which each slot has one 1, in a column of its own, give the probabilities: their sum is 1."""

    def check(trial: Trial) -> None:
        found = trial.call().results[0]
        trial.enclosed(found)
        case = trial.case
        sums = case.decoded("y", found["y"]).sum(axis=-1)
        names = ("float_accumulator", "probability_precision", "softmax_parts", "function_ulps", "normaliser_epsilon")
        chosen = trial.implementation.semantics.choices(names)
        room = probabilities_room(int(case.array("context_lengths").max()), case.parameters["input_format"], **chosen)
        wrong = np.abs(sums - 1) > room
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise Violation(f"y[{at[0]}, {at[1]}, {at[2]}] sums to {sums[at]!r}, must be 1 to within {room}", case)

    of_formats = examination.combinations("cache_format", "input_format")
    for chosen in (*of_formats, *examination.combinations("mask", "capped")):
        case = _case(examination, chosen, [8, 17, 1], 11, 2.0, E=17)
        values = case.array("value_cache")
        ones = np.zeros((*values.shape[:3], 17))
        for row, length in zip(case.array("block_table"), case.array("context_lengths"), strict=True):
            at = slots(row, int(length), values.shape[1], len(values))
            ones.reshape(-1, *ones.shape[2:])[at, :, np.arange(at.size)] = 1.0
        arrays = {"value_cache": cache_codes(ones, chosen["cache_format"])}
        if case.arrays["value_scale"] is not None:  # 1 is stored as a unit of the cache
            one = case.decoded("value_cache", arrays["value_cache"]).max()
            arrays["value_scale"] = np.full_like(case.array("value_scale"), 1 / one)
            if one * float(np.float32(1 / one)) != 1:
                continue
        examination.once(check, _with(case, **arrays))


def test_equal_values(examination: Examination) -> None:
    """Where all values of a column agree, they come out, whatever the scores are."""
    for chosen in examination.combinations("cache_format", "mask"):
        case = _case(examination, chosen, [1, 9, 40], 12, 6.0, Q=2)
        column = np.random.default_rng(0).standard_normal(case.array("value_cache").shape[-1])
        same = np.broadcast_to(column, case.array("value_cache").shape)
        examination.once(_enclosed, _with(case, value_cache=cache_codes(same, chosen["cache_format"])))


def test_large_scores(examination: Examination) -> None:
    """Scores of hundreds and thousands, of either sign: the largest is subtracted before exp, so none overflows."""
    sharpness = np.repeat([30.0, 300.0, 3000.0], 3).reshape(-1, 1, 1, 1)
    for chosen in examination.combinations("cache_format", "capped", "mask"):
        examination.once(_enclosed, _case(examination, chosen, [1, 12, 33] * 3, 13, sharpness, Q=2))


def test_scores_far_below_zero(examination: Examination) -> None:
    """All scores so low that no exp of them is left: only their differences count."""
    for chosen in examination.combinations("cache_format", "capped"):
        case = _case(examination, chosen, [3, 16, 21], 14, 0.0)
        keys = case.array("key_cache")
        slope = np.broadcast_to(np.linspace(1.0, 1.2, keys.shape[1])[:, None, None], keys.shape)
        query = np.full(case.array("query").shape, -60.0)
        arrays = {
            "key_cache": cache_codes(slope, chosen["cache_format"]),
            "query": float_codes(query, chosen["input_format"]),
            "softmax_scale": np.asarray(1.0, np.float32),
        }
        examination.once(_enclosed, _with(case, **arrays))


def test_ascending_and_descending_scores(examination: Examination) -> None:
    """A new largest score at every slot, and at none after the first: what was added before is rescaled as often."""
    for chosen in examination.combinations("cache_format", "grouped"):
        length = 4 * chosen["block_size"] + 1
        for turn in (1, -1):
            case = _case(examination, chosen, [length], 15, 0.0, H=2)
            keys = case.array("key_cache")
            blocks, block = keys.shape[:2]
            at = slots(case.array("block_table")[0], length, block, blocks)
            x = np.zeros((blocks * block, *keys.shape[2:]))
            x[at] = np.linspace(-2, 2, length)[::turn, None, None]
            query = np.full(case.array("query").shape, 0.5)
            arrays = {
                "key_cache": cache_codes(x.reshape(keys.shape), chosen["cache_format"]),
                "query": float_codes(query, chosen["input_format"]),
            }
            examination.once(_enclosed, _with(case, **arrays))


def _caps(implementation: Implementation) -> bool:
    return True in implementation.supports["capped"]


@pytest.mark.applies(to=_caps)
def test_caps_of_every_size(examination: Examination) -> None:
    """Caps far below the scores, at them, and far above, where they do next to nothing."""
    for chosen in examination.combinations("cache_format", "capped"):
        if chosen["capped"]:
            for cap in (0.25, 1.0, 5.0, 50.0, 1e4):
                case = _case(examination, chosen, [2, 19], 16, 4.0)
                examination.once(_enclosed, _with(case, soft_cap=np.asarray(cap, np.float32)))


def test_scales_of_every_size(examination: Examination) -> None:
    """The scale of the scores is the one that is given, whatever the head size; so are those of keys and values."""
    for chosen in examination.combinations("cache_format"):
        for scale in (1.0, 0.125, 0.01, 2.0):
            case = _case(examination, chosen, [2, 19], 17, 0.5)
            arrays = {"softmax_scale": np.asarray(scale, np.float32)}
            for name, factor in (("key_scale", 3.0), ("value_scale", 1 / 3)):
                given = case.arrays[name]
                if given is not None:
                    arrays[name] = (given * np.float32(factor * scale)).astype(np.float32)
            examination.once(_enclosed, _with(case, **arrays))


def _has_granularity(implementation: Implementation) -> bool:
    return set(implementation.supports["scale_granularity"]) > {"tensor"} and bool(
        set(implementation.supports["cache_format"]) & set(QUANTIZED)
    )


@pytest.mark.applies(to=_has_granularity)
def test_each_has_its_own_scale(examination: Examination) -> None:
    """Scales a head, a channel or a token that are far from those beside them: none is taken for another, or lost."""
    for chosen in examination.combinations("cache_format", "scale_granularity", "grouped"):
        if chosen["scale_granularity"] is None:
            continue
        case = _case(examination, chosen, [3, 18, 40], 22, 0.5, H=8)
        scales = {}
        for seed, name in enumerate(("key_scale", "value_scale")):
            rng, shape = np.random.default_rng(seed), case.array(name).shape
            scales[name] = (2.0 ** rng.integers(-3, 3, shape, endpoint=True) / UNIT[chosen["cache_format"]]).astype(
                np.float32
            )
        examination.once(_enclosed, _with(case, **scales))


def test_what_is_not_finite_stays_in_its_head(examination: Examination) -> None:
    """NaN and infinities may spoil what sees them: a head whose keys or query have one, a column of the values."""
    examination.for_all(_enclosed, regime="special")


def test_a_long_context(examination: Examination) -> None:
    """A context of many blocks, around two thousand slots."""
    for chosen in examination.combinations("cache_format"):
        columns = 2048 // chosen["block_size"]
        lengths = [columns * chosen["block_size"] - 3, 1025]
        examination.once(_enclosed, _case(examination, chosen, lengths, 18, H=2, D=32, E=4))


# Input that breaks a rule -------------------------------------------------------------------------------------------


def test_heads_that_do_not_divide(examination: Examination) -> None:
    """Heads of the query that are no multiple of the cache's are an error."""

    def check(trial: Trial) -> None:
        reply = trial.call(lenient=True, expect_results=False)
        trial.examination.tally.count(trial.case, 1, 0.0, True)
        if not reply.raised:
            heads, shared = trial.case.array("query").shape[2], trial.case.array("key_cache").shape[2]
            raise Violation(f"accepted {heads} heads on {shared} of the cache: must raise", trial.case)

    for chosen in examination.combinations("grouped"):
        if not chosen["grouped"]:
            trial_case = _case(examination, chosen, [7, 18], 19, H=4)
            short = {name: trial_case.array(name)[:, :, :3] for name in ("key_cache", "value_cache")}
            examination.once(check, _with(trial_case, **short))
            continue
        for heads, shared in ((3, 2), (5, 4), (2, 4)):
            case = _case(examination, chosen, [7, 18], 19, H=2 * shared)
            query = np.zeros((2, 1, heads, case.sizes["D"]))
            examination.once(check, _with(case, query=float_codes(query, chosen["input_format"])))


def test_a_block_that_the_cache_has_not(examination: Examination) -> None:
    """A number beyond the cache, or below zero, within the context is an error, or gives numbers: memory's end holds.

    NaN lies beyond the end of the caches: where a result of finite inputs is not finite, the kernel read it.
    """

    def check(trial: Trial) -> None:
        reply = trial.call(lenient=True)
        trial.examination.tally.count(trial.case, 1, 0.0, True)
        if reply.results and not reply.raised:
            wild = ~np.isfinite(trial.case.decoded("y", reply.results[0]["y"]))
            if wild.any():
                at = tuple(int(i) for i in np.argwhere(wild)[0])
                place = ", ".join(map(str, at))
                raise Violation(
                    f"y[{place}] is not finite: must raise, or read no block that the cache has not", trial.case
                )

    for chosen in examination.combinations("cache_format"):
        for beyond in (0, 3, 2**31 - 1 - 40, -41, -42):
            case = _case(examination, chosen, [7, 20], 20, H=2, D=4, E=4, C=40)
            table = case.array("block_table").copy()
            table[0, 0] = len(case.array("key_cache")) + beyond
            examination.once(check, _with(case, block_table=table))


def test_a_context_beyond_the_table(examination: Examination) -> None:
    """A context longer than its row of the table covers, or below zero, is an error, or gives numbers; no crash."""

    def check(trial: Trial) -> None:
        trial.call(lenient=True)
        trial.examination.tally.count(trial.case, 1, 0.0, True)

    for chosen in examination.combinations("cache_format"):
        for length in (3 * chosen["block_size"] + 1, 2**20, -1, -(2**31)):
            case = _case(examination, chosen, [7, 20], 21, B=3)
            lengths = np.array([7, length], np.int32)
            examination.once(check, _with(case, context_lengths=lengths))
