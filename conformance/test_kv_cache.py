"""Writing to a paged cache: which slots are written, with what, and that nothing else is."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Trial
from lowbit_cts.conformance.strategies.attention import block_table
from lowbit_cts.conformance.strategies.kv_cache import arrays_of
from lowbit_cts.kernels import Case, Implementation
from lowbit_cts.reference.attention import attention_enclosure
from lowbit_cts.reference.formats import FORMATS, FloatFormat, IntegerFormat
from lowbit_cts.reference.kv_cache import QUANTIZED, scale_shape, scales_of, slots, stored_enclosure

pytestmark = pytest.mark.operation("write_kv_cache")

_SIZES = {"G": 3, "D": 17, "E": 9, "C": 6}
_CACHES = ("key_cache", "value_cache")
Results = Mapping[str, np.ndarray]


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _case(
    examination: Examination, chosen: Mapping[str, Any], at: Any, seed: int = 0, family: str = "normal", **sizes: int
) -> Case:
    """Return a case of a token for each slot of `at`."""
    mapping = np.asarray(at, np.int64)
    rng = np.random.default_rng(seed)
    arrays = arrays_of(rng, chosen, {**_SIZES, **sizes, "T": mapping.size}, family)
    arrays["slot_mapping"] = mapping
    return Case(examination.implementation.operation, dict(chosen), arrays, {"seed": seed})


def _with(case: Case, **arrays: np.ndarray) -> Case:
    return replace(case, arrays={**case.arrays, **arrays})


def _tokens(case: Case, chosen: Any) -> Case:
    """Return the case of some of its tokens."""
    return case.take("T", np.asarray(chosen))


def _slots(case: Case) -> int:
    return int(np.prod(case.array("key_cache").shape[:2]))


def _some_slots(slots: int, seed: int, count: int) -> np.ndarray:
    """Return so many of the slots of a cache, in no order."""
    return np.random.default_rng(seed).permutation(slots)[:count]


def _bits(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.itemsize}")


def _kept(trial: Trial, results: Results) -> None:
    """Demand that slots of no token hold what they held, bit for bit."""
    mapping = trial.case.array("slot_mapping")
    addressed = np.zeros(_slots(trial.case), bool)
    addressed[mapping[(mapping >= 0) & (mapping < addressed.size)]] = True
    before = {}
    for name in _CACHES:
        old, new = trial.case.array(name), results[f"new_{name}"]
        written = addressed.reshape(*old.shape[:2], 1, 1)
        before[f"new_{name}"] = np.where(written, _bits(new), _bits(old)).view(old.dtype)
    trial.identical(before, dict(results), "a slot that no token addresses, before and after")


# Which slots are written --------------------------------------------------------------------------------------------


def test_skipped_tokens_leave_every_byte(examination: Examination) -> None:
    """Tokens whose slot is below zero, by one or by far, among others and alone, are written nowhere."""

    def check(trial: Trial) -> None:
        results = trial.call().results[0]
        trial.enclosed(results)
        _kept(trial, results)

    for chosen in examination.combinations("cache_format", "block_size"):
        block = chosen["block_size"]
        for at in ([-1], [-1, -2, -block, -(2**31), -(2**63)], [3, -1, 0, -6 * block, 2], [-1, 6 * block - 1, -1]):
            if max(at) < 6 * block:
                examination.once(check, _case(examination, chosen, at, 1))


def test_slots_of_no_token_keep_their_bits(examination: Examination) -> None:
    """A NaN's payload, a negative zero, any byte: what is not addressed stays, also in blocks that are written to."""

    def check(trial: Trial) -> None:
        results = trial.call().results[0]
        trial.enclosed(results)
        _kept(trial, results)

    for chosen in examination.combinations("cache_format", "scale_granularity", "block_size"):
        for count in (1, 3):
            examination.once(check, _case(examination, chosen, _some_slots(6 * chosen["block_size"], count, count), 2))


def test_every_slot(examination: Examination) -> None:
    """As many tokens as slots, in any order: the first and the last of every block hold their own."""
    for chosen in examination.combinations("cache_format", "scale_granularity", "block_size"):
        for blocks in (1, 5):
            slots = blocks * chosen["block_size"]
            examination.once(_enclosed, _case(examination, chosen, _some_slots(slots, 3, slots), 3, C=blocks))


def test_every_head_and_size(examination: Examination) -> None:
    """One head and many, sizes beside vectors and odd ones, keys longer than values and shorter."""
    for chosen in examination.combinations("cache_format", "scale_granularity"):
        slots = 2 * chosen["block_size"]
        for heads, size, width in ((1, 1, 1), (5, 16, 33), (8, 65, 15), (2, 128, 64), (1, 257, 3)):
            at = _some_slots(slots, heads, min(7, slots))
            examination.once(_enclosed, _case(examination, chosen, at, 4, G=heads, D=size, E=width, C=2))


def test_a_token_alone(examination: Examination) -> None:
    """Each token by itself gives its slot the bits that it gives among the others."""

    def check(trial: Trial) -> None:
        whole = trial.call().results[0]
        trial.enclosed(whole)
        for token, slot in enumerate(trial.case.array("slot_mapping")):
            alone = trial.call(_tokens(trial.case, [token])).results[0]
            block, place = divmod(int(slot), trial.case.parameters["block_size"])
            one, other = ({name: x[block, place] for name, x in found.items()} for found in (whole, alone))
            trial.identical(one, other, f"token {token} among the others and alone, in slot {slot}")

    for chosen in examination.combinations("cache_format", "scale_granularity"):
        examination.once(check, _case(examination, chosen, _some_slots(6 * chosen["block_size"], 5, 4), 5))


def test_order_of_tokens(examination: Examination) -> None:
    """Tokens of distinct slots may come in any order: the same bits."""

    def check(trial: Trial) -> None:
        count = trial.case.array("slot_mapping").size
        one = trial.call().results[0]
        trial.enclosed(one)
        for order in (np.arange(count)[::-1], np.random.default_rng(0).permutation(count)):
            trial.identical(one, trial.call(_tokens(trial.case, order)).results[0], "the same tokens in another order")

    for chosen in examination.combinations("cache_format", "scale_granularity"):
        at = [*_some_slots(6 * chosen["block_size"], 6, 5), -1]
        examination.once(check, _case(examination, chosen, at, 6))


def test_a_prompt_and_the_tokens_after_it(examination: Examination) -> None:
    """Consecutive slots, all at once, or a prompt and then token after token, into what the call before returned."""

    def check(trial: Trial) -> None:
        count = trial.case.array("slot_mapping").size
        whole = trial.call().results[0]
        trial.enclosed(whole)
        step, part = trial.case, whole
        for tokens in (range(count - 2), [count - 2], [count - 1]):
            part = trial.call(_tokens(step, tokens)).results[0]
            step = _with(step, **{name: part[f"new_{name}"] for name in _CACHES})
        trial.identical(whole, part, "a sequence written at once and step by step")

    for chosen in examination.combinations("cache_format", "block_size"):
        block = chosen["block_size"]
        examination.once(check, _case(examination, chosen, block - 1 + np.arange(min(2 * block, 12) + 2), 7))


# What is written ----------------------------------------------------------------------------------------------------


def _quantizes(implementation: Implementation) -> bool:
    return bool(set(implementation.supports["cache_format"]) & set(QUANTIZED))


def _edges(format: str) -> np.ndarray:
    """Return every number at which a code of a quantized cache changes, and numbers beyond the largest."""
    fmt = FORMATS[format]
    if isinstance(fmt, FloatFormat):
        return fills.boundaries(fmt)
    assert isinstance(fmt, IntegerFormat)
    ties = np.arange(fmt.minimum - 2, fmt.maximum + 2) + 0.5
    return np.concatenate([ties, np.arange(fmt.minimum - 2, fmt.maximum + 3), [1e3, -1e3, 1e30, -1e30]])


@pytest.mark.applies(to=_quantizes)
def test_every_tie_and_boundary(examination: Examination) -> None:
    """Numbers at which the code changes, and their neighbours, under scales that divide them exactly and others."""
    for chosen in examination.combinations("cache_format", "scale_granularity", "input_format"):
        if chosen["cache_format"] not in QUANTIZED:
            continue
        edges = _edges(chosen["cache_format"])
        for number, scale in enumerate((1.0, 0.125, 0.3, 11.7)):
            case = _case(examination, chosen, [2, 0, 1], 8, G=1, D=edges.size, E=edges.size, C=3)
            exact = np.float32(scale) * edges
            fmt = FORMATS[chosen["input_format"]]
            assert isinstance(fmt, FloatFormat)
            limited = np.clip(exact, -fmt.maximum, fmt.maximum)
            x = np.stack([fills.neighbours(limited, fmt, np.full(edges.size, step)) for step in (-1, 0, 1)])[:, None]
            scales = {f"{of}_scale": np.full_like(case.array(f"{of}_scale"), scale) for of in ("key", "value")}
            examination.once(_enclosed, _with(case, key=x, value=np.roll(x, number, axis=2), **scales))


def test_special_values(examination: Examination) -> None:
    """Infinities saturate on their own side, NaN harms no neighbour; subnormals, every magnitude, every code."""
    examination.for_all(_enclosed, regime="special", share=2.0)


@pytest.mark.applies(to=_quantizes)
def test_each_has_its_own_scale(examination: Examination) -> None:
    """Scales of keys, values, heads, channels and tokens far from those beside them: none is taken for another."""
    for chosen in examination.combinations("cache_format", "scale_granularity", "block_size"):
        if chosen["scale_granularity"] is None:
            continue
        at = _some_slots(6 * chosen["block_size"], 9, 6)
        case = _case(examination, chosen, at, 9)
        scales = {}
        for seed, name in enumerate(("key_scale", "value_scale")):
            shape, rng = case.array(name).shape, np.random.default_rng(seed)
            steps = rng.integers(-3, 3, shape, endpoint=True) + 4 * seed
            scales[name] = (0.011 * 2.0**steps).astype(np.float32)
        examination.once(_enclosed, _with(case, **scales))


def _in_order(case: Case, choices: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return what the tokens' keys and values are stored as, in float32: caches of a token a block."""
    granularity = case.parameters["scale_granularity"] or "tensor"
    found = []
    for of in ("key", "value"):
        x = case.decoded(of, case.array(of))
        scale = scales_of(of, case.arrays[f"{of}_scale"], x.shape, granularity)
        stored = stored_enclosure(x, scale, cache_format=case.parameters["cache_format"], **choices)
        found.append((stored.exact * scale).astype(np.float32)[:, None])
    return found[0], found[1]


def _kept_scales(case: Case) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the scales that attention to the cache takes: those of tokens in the tokens' slots."""
    key_scale, value_scale = case.arrays["key_scale"], case.arrays["value_scale"]
    if value_scale is None or case.parameters["scale_granularity"] != "kivi":
        return key_scale, value_scale
    kept = np.zeros(scale_shape("value", case.array("value_cache").shape, "kivi"), np.float32)
    kept.reshape(_slots(case), -1)[case.array("slot_mapping")] = value_scale
    return key_scale, kept


def test_attention_reads_what_was_written(examination: Examination) -> None:
    """Attention to the written cache, through a block table, is attention to the stored numbers in their order.

    Attention is the reference's. With scales of `kivi` those of the values are kept in the slots of their tokens.
    """

    def check(trial: Trial, table: np.ndarray, lengths: np.ndarray) -> None:
        case = trial.case
        found = trial.call().results[0]
        trial.enclosed(found)
        if not trial.determined():
            return
        query = np.random.default_rng(0).standard_normal((lengths.size, 1, case.sizes["G"], case.sizes["D"])) / 8
        through_the_table = attention_enclosure(
            query, found["new_key_cache"], found["new_value_cache"], table, lengths, *_kept_scales(case),
            cache_format=case.parameters["cache_format"], input_format="float32",
            granularity=case.parameters["scale_granularity"] or "tensor",
        ).exact  # fmt: skip
        ends = np.cumsum(lengths)
        rows = np.arange(lengths.max()) + (ends - lengths)[:, None]
        choices = trial.implementation.semantics.choices(case.operation.semantics)
        in_order = attention_enclosure(
            query, *_in_order(case, choices), rows, lengths, cache_format="float32", input_format="float32"
        )  # fmt: skip
        wrong = ~in_order.admits(through_the_table)
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            pair = f"{through_the_table[at]!r}, must be {in_order.exact[at]!r}"
            raise Violation(f"attention to the written cache, y{list(at)}, is {pair}", case)

    for chosen in examination.combinations("cache_format", "scale_granularity"):
        block = chosen["block_size"]
        lengths = np.array([2 * block + 1, 1, block])
        rng = np.random.default_rng(10)
        table = block_table(rng, lengths, 3, block, 9)
        at = np.concatenate([slots(row, int(n), block, 9) for row, n in zip(table, lengths, strict=True)])
        arrays = arrays_of(rng, chosen, {**_SIZES, "C": 9, "T": at.size}, "normal", exact=True)
        case = Case(
            examination.implementation.operation, dict(chosen), {**arrays, "slot_mapping": at}, {"seed": 10}
        )  # fmt: skip
        examination.once(partial(check, table=table, lengths=lengths), case)


# Input that breaks a rule -------------------------------------------------------------------------------------------


def test_a_slot_that_the_cache_has_not(examination: Examination) -> None:
    """A slot beyond the cache is an error, or harms nothing: no other slot changes, no memory beside the cache."""

    def check(trial: Trial) -> None:
        reply = trial.call(lenient=True)
        trial.examination.tally.count(trial.case, 1, 0.0, True)
        if reply.results and not reply.raised:
            _kept(trial, reply.results[0])

    for chosen in examination.combinations("cache_format"):
        block = chosen["block_size"]
        for beyond in (0, 1, block, 7 * block, 2**31, 2**40):
            examination.once(check, _case(examination, chosen, [1, 6 * block + beyond], 11))
