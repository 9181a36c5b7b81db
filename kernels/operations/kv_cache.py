"""Writing keys and values of tokens to a paged cache: write_kv_cache."""

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.operations.attention import of_one_kind
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference import kv_cache
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.kv_cache import GRANULARITIES, QUANTIZED

_WIDE = ("float16", "bfloat16", "float32")
_CHOICES = ("rounding", "overflow", "division", "division_ulps", "intermediate")


def _quantized(parameters: Parameters) -> bool:
    return parameters["cache_format"] in QUANTIZED


def _tokens(name: str, size: str) -> Argument:
    return Argument(
        name, lambda p: p["input_format"], lambda p: ("T", "G", size), f"{name}s of tokens, (tokens T, heads G, {size})"
    )


def _cache(name: str, size: str, doc: str) -> Argument:
    return Argument(name, lambda p: p["cache_format"], lambda p: ("C", "P", "G", size), doc)


def _scale(name: str, size: str, of_kivi: str) -> Argument:
    return Argument(
        f"{name}_scale", lambda p: "float32",
        lambda p: kv_cache.scale_shape(name, ("T", "G", size), p["scale_granularity"] or "tensor"),
        f"float32: what {name}s are divided by, (), (G,) or {of_kivi}; None unless quantized", present=_quantized,
    )  # fmt: skip


def _write_kv_cache(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    return kv_cache.write_kv_cache_enclosure(
        case.decoded("key", case.array("key")),
        case.decoded("value", case.array("value")),
        case.array("key_cache"),
        case.array("value_cache"),
        case.array("slot_mapping"),
        case.arrays["key_scale"],
        case.arrays["value_scale"],
        cache_format=case.parameters["cache_format"],
        granularity=case.parameters["scale_granularity"] or "tensor",
        **semantics.choices(_CHOICES),
    )


def _divisions(case: Case) -> float:
    """Return a multiplication and a rounding of every number that is written."""
    return 2.0 * (case.array("key").size + case.array("value").size)


write_kv_cache = register(
    Operation(
        name="write_kv_cache",
        summary="keys and values of tokens stored in the slots of a paged cache, as they are or quantized",
        source="Kwon et al., PagedAttention, arXiv:2309.06180, §4.3; vLLM, reshape_and_cache_flash; "
        "Liu et al., KIVI, arXiv:2402.02750, §3.2",
        arguments=(
            _tokens("key", "D"),
            _tokens("value", "E"),
            _cache("key_cache", "D", "codes of the keys before, (blocks C, slots P, heads G, D); to be left alone"),
            _cache("value_cache", "E", "codes of the values before, (blocks C, slots P, heads G, E); to be left alone"),
            Argument(
                "slot_mapping", lambda p: "int64", lambda p: ("T",),
                "int64, (T,): the slot of each token, block * P + place, none twice; one below zero is skipped",
            ),
            _scale("key", "D", "(G, D)"),
            _scale("value", "E", "(T, G), which the caller keeps beside the cache"),
        ),
        results=(
            _cache("new_key_cache", "D", "the keys after: a copy, with the tokens in their slots"),
            _cache("new_value_cache", "E", "the values after"),
        ),
        parameters={
            "cache_format": Parameter(
                (*_WIDE, *QUANTIZED), "the format of both caches: that of the tokens, or a quantized one",
                assumed=("float16",),
            ),
            "input_format": Parameter(_WIDE, "the format of key and value", assumed=("float16",)),
            "scale_granularity": Parameter(
                GRANULARITIES, "what shares a scale: all, a head, or a channel of the keys and a token of the values",
                assumed=("tensor",), needed=lambda p: p.get("cache_format", "int8") in QUANTIZED,
            ),
            "block_size": Parameter((16, 8, 32, 5, 1), "slots P in a block", assumed=(16, 8, 32), open=True),
        },
        semantics=_CHOICES,
        evaluate=_write_kv_cache,
        independent=lambda p: ("G", "D", "E"),
        variants=("cache_format", "scale_granularity"),
        admits=of_one_kind,
        work=_divisions,
        derived={"P": lambda sizes, p: p["block_size"]},
        weights=("new_key_cache", "new_value_cache"),
        stored=("new_key_cache", "new_value_cache", "key_scale", "value_scale"),
    )
)  # fmt: skip
