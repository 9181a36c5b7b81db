"""Attention over a paged cache of keys and values: attention_paged."""

import numpy as np

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference import attention, kv_cache
from lowbit_cts.reference.attention import MASKS
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.kv_cache import GRANULARITIES, QUANTIZED

_WIDE = ("float16", "bfloat16", "float32")
_CHOICES = (
    "float_accumulator", "weight_precision", "probability_precision", "softmax_parts", "function_ulps",
    "normaliser_epsilon",
)  # fmt: skip


def _quantized(parameters: Parameters) -> bool:
    return parameters["cache_format"] in QUANTIZED


def _shared(parameters: Parameters) -> str:
    """Return the axis of the cache's heads: an own one where several heads of the query share one of them."""
    return "G" if parameters["grouped"] else "H"


def _cache(name: str, size: str) -> Argument:
    return Argument(
        f"{name}_cache", lambda p: p["cache_format"], lambda p: ("C", "P", _shared(p), size),
        f"codes of the {name}s in blocks of slots, (blocks C, slots P, heads, {size})",
    )  # fmt: skip


def _scale(name: str, size: str, of_kivi: str) -> Argument:
    return Argument(
        f"{name}_scale", lambda p: "float32",
        lambda p: kv_cache.scale_shape(name, ("C", "P", _shared(p), size), p["scale_granularity"] or "tensor"),
        f"float32: what codes of {name}s are multiplied by, (), (heads,) or {of_kivi}; None unless quantized",
        present=_quantized,
    )  # fmt: skip


def _attention_paged(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    chosen = case.parameters
    found = attention.attention_enclosure(
        case.decoded("query", case.array("query")),
        case.array("key_cache"),
        case.array("value_cache"),
        case.array("block_table"),
        case.array("context_lengths"),
        case.arrays["key_scale"],
        case.arrays["value_scale"],
        case.array("softmax_scale"),
        case.arrays["soft_cap"],
        **{name: chosen[name] for name in ("cache_format", "input_format", "mask", "window")},
        granularity=chosen["scale_granularity"] or "tensor",
        **semantics.choices(_CHOICES),
    )
    return {"y": found}


def _multiply_adds(case: Case) -> float:
    """Return the arithmetic of the two products over the slots that each token sees."""
    _, tokens, heads, size = case.array("query").shape
    mask, window = case.parameters["mask"], case.parameters["window"]
    seen = sum(
        int(np.count_nonzero(attention.visible(tokens, int(context), mask, window)))
        for context in case.array("context_lengths")
    )
    return 2.0 * seen * heads * (size + case.array("value_cache").shape[-1])


def of_one_kind(parameters: Parameters) -> bool:
    """Return whether a cache that is not quantized has the format of the query, or of the tokens."""
    cache, query = parameters.get("cache_format"), parameters.get("input_format")
    return cache is None or query is None or cache in QUANTIZED or cache == query


attention_paged = register(
    Operation(
        name="attention_paged",
        summary="scaled dot-product attention of the last tokens of sequences over a paged, perhaps quantized cache",
        source="Kwon et al., PagedAttention, arXiv:2309.06180; Dao, FlashAttention-2, arXiv:2307.08691",
        arguments=(
            Argument(
                "query", lambda p: p["input_format"], lambda p: ("S", "Q", "H", "D"),
                "(sequences S, their last tokens Q, heads H, head size D)",
            ),
            _cache("key", "D"),
            _cache("value", "E"),
            Argument(
                "block_table", lambda p: "int32", lambda p: ("S", "B"),
                "int32, (S, B): a context's blocks, in order; beyond it -1, or any number of a block, not to be read",
            ),
            Argument(
                "context_lengths", lambda p: "int32", lambda p: ("S",),
                "int32, (S,): filled slots, the tokens' own among them; a token that sees none gives zeros",
            ),
            _scale("key", "D", "(heads, D)"),
            _scale("value", "E", "(blocks C, slots P, heads), those beyond the contexts not to be read"),
            Argument("softmax_scale", lambda p: "float32", lambda p: (), "float32, (): what q . k is multiplied by"),
            Argument(
                "soft_cap", lambda p: "float32", lambda p: (), "float32, (): scores become c tanh(s / c); or None",
                present=lambda p: p["capped"],
            ),
        ),
        results=(Argument("y", lambda p: p["input_format"], lambda p: ("S", "Q", "H", "E"), "outputs, (S, Q, H, E)"),),
        parameters={
            "cache_format": Parameter(
                (*_WIDE, *QUANTIZED), "the format of both caches: that of the query, or a quantized one",
                assumed=("float16",),
            ),
            "input_format": Parameter(_WIDE, "the format of query and y", assumed=("float16",)),
            "scale_granularity": Parameter(
                GRANULARITIES, "what shares a scale: all, a head, or a channel of the keys and a token of the values",
                assumed=("tensor",), needed=lambda p: p.get("cache_format", "int8") in QUANTIZED,
            ),
            "grouped": Parameter(
                (False, True), "whether the cache has heads of its own number G, each for H / G consecutive ones",
                assumed=(False,),
            ),
            "mask": Parameter(
                MASKS, "what a token sees: itself and those before, of these the last `window` ones, or all",
                assumed=("causal",),
            ),
            "window": Parameter(
                (5, 64, 1), "slots that a token sees, its own among them", assumed=(5, 64, 1), open=True,
                needed=lambda p: p["mask"] == "window",
            ),
            "capped": Parameter((False, True), "whether scores have a soft cap", assumed=(False,)),
            "block_size": Parameter((16, 8, 32, 5), "slots P in a block", assumed=(16, 8, 32), open=True),
        },
        semantics=_CHOICES,
        evaluate=_attention_paged,
        independent=lambda p: ("S", "E") if p["grouped"] else ("S", "H", "E"),
        variants=("cache_format", "scale_granularity"),
        admits=of_one_kind,
        work=_multiply_adds,
        derived={"P": lambda sizes, p: p["block_size"]},
        weights=("key_cache", "value_cache"),
        stored=("key_cache", "value_cache", "key_scale", "value_scale"),
    )
)  # fmt: skip
