"""LoRA's adapters merged, and beside 4-bit weights: merge_lora, linear_qlora."""

from collections.abc import Mapping

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.operations.linear import (
    BIAS,
    HAS_BIAS,
    INPUT_FORMAT,
    linear_nf4,
    multiply_adds,
    products_result,
)
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.low_rank import merge_enclosure
from lowbit_cts.reference.qlora import NESTED, double_quantized_weights, qlora_enclosure

_DOWN = Argument("down", lambda p: p["input_format"], lambda p: ("R", "K"), "LoRA's A, (R, K)")
_UP = Argument("up", lambda p: p["input_format"], lambda p: ("N", "R"), "LoRA's B, (N, R)")
_SCALING = Argument("scaling", lambda p: "float32", lambda p: (), "float32, (): alpha / r")
_NUMBERS = Parameter(
    ("bfloat16", "float32", "float16"), "the format of weights, factors and result", assumed=("bfloat16",)
)


def _merge(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    w, down, up = (case.decoded(name, case.array(name)) for name in ("w", "down", "up"))
    merged = merge_enclosure(
        w, down, up, float(case.array("scaling")), format=case.parameters["input_format"],
        **semantics.choices(case.operation.semantics),
    )  # fmt: skip
    return {"merged": merged}


merge_lora = register(
    Operation(
        name="merge_lora",
        summary="weights with a LoRA adapter merged: w + scaling up @ down",
        source="Hu et al., LoRA, arXiv:2106.09685, §4.1, No Additional Inference Latency",
        arguments=(
            Argument("w", lambda p: p["input_format"], lambda p: ("N", "K"), "weights, (N, K)"),
            _DOWN,
            _UP,
            _SCALING,
        ),
        results=(
            Argument("merged", lambda p: p["input_format"], lambda p: ("N", "K"), "merged weights, (N, K)"),
        ),
        parameters={"input_format": _NUMBERS},
        semantics=("float_accumulator", "weight_precision"),
        evaluate=_merge,
        independent=lambda p: ("N", "K"),
        variants=("input_format",),
        work=lambda case: 2.0 * case.array("w").size * (case.sizes["R"] + 1),
        weights=("w",),
        stored=("w", "down", "up"),
    )
)  # fmt: skip


def _qlora(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    chosen, bias = case.parameters, case.arrays["bias"]
    weights = double_quantized_weights(
        case.array("codes"), case.array("absmax_codes"), case.array("nested_absmax"), case.array("offset"),
        codebook=chosen["codebook"], block_size=chosen["block_size"], nested_block_size=chosen["nested_block_size"],
        activations=chosen["input_format"], weight_precision=semantics.weight_precision,
        part_precision=semantics.part_precision,
    )  # fmt: skip
    a, down, up = (case.decoded(name, case.array(name)) for name in ("a", "down", "up"))
    y = qlora_enclosure(
        a, weights, down, up, float(case.array("scaling")), bias, format=chosen["input_format"],
        groups=case.sizes["G"], **semantics.choices(("float_accumulator", "weight_precision")),
    )  # fmt: skip
    return {"y": y}


def _nested_blocks(sizes: Mapping[str, int], parameters: Parameters) -> int | None:
    if "N" not in sizes or "K" not in sizes:
        return None
    return -(-sizes["N"] * (sizes["K"] // parameters["block_size"]) // parameters["nested_block_size"])


def _work(case: Case) -> float:
    sizes = case.sizes
    return multiply_adds(case) + 2.0 * sizes["M"] * sizes["R"] * (sizes["K"] + sizes["N"])


def _of_nf4(name: str) -> Argument:
    return next(argument for argument in linear_nf4.arguments if argument.name == name)


linear_qlora = register(
    Operation(
        name="linear_qlora",
        summary="linear layer of weights (N, K) in NF4 with absmax in 8 bits, and a LoRA adapter beside it",
        source="Dettmers et al., QLoRA, arXiv:2305.14314, eq. (5) and (6)",
        arguments=(
            _of_nf4("a"),
            _of_nf4("codes"),
            Argument(
                "absmax_codes", lambda p: "uint8", lambda p: ("N", "G"), f"codes of {NESTED}, (N, K / block_size)"
            ),
            Argument(
                "nested_absmax", lambda p: "float32", lambda p: ("Q",),
                "float32, a scale for so many absmax_codes as nested_block_size through the flattened matrix, (Q,)",
            ),
            Argument("offset", lambda p: "float32", lambda p: (), "float32, (): what is added to every absmax"),
            _DOWN,
            _UP,
            _SCALING,
            BIAS,
        ),
        results=products_result(lambda p: p["input_format"]),
        parameters={
            "codebook": linear_nf4.parameters["codebook"],
            "block_size": linear_nf4.parameters["block_size"],
            "nested_block_size": Parameter(
                (256, 64), "neighbours, row by row, that share a nested absmax", assumed=(256, 64), open=True
            ),
            "has_bias": HAS_BIAS,
            "input_format": INPUT_FORMAT,
        },
        semantics=("float_accumulator", "weight_precision", "part_precision"),
        evaluate=_qlora,
        independent=lambda p: ("M",),  # nested blocks run through the rows of weights
        variants=("codebook", "input_format"),
        constant=("codes", "absmax_codes", "nested_absmax", "offset"),
        work=_work,
        derived={**linear_nf4.derived, "Q": _nested_blocks},
        multiples=linear_nf4.multiples,
        weights=("codes",),
        stored=("codes", "absmax_codes", "nested_absmax", "offset", "down", "up"),
    )
)  # fmt: skip
