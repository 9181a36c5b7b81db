"""Linear layers whose weights have structure: matmul_sparse24, linear_lora, linear_low_rank, matmul_llm_int8."""

import numpy as np

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, register
from lowbit_cts.kernels.operations.linear import (
    BIAS,
    HAS_BIAS,
    INPUT_FORMAT,
    multiply_adds,
    products_result,
    sum_of_products,
)
from lowbit_cts.kernels.operations.sparse24 import (
    FORMAT_OF_SUMS,
    METADATA,
    METADATA_ORDER,
    VALUES,
    covered,
    stored,
    whole,
)
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference.enclosure import Enclosure, determined
from lowbit_cts.reference.formats import FORMATS, decode
from lowbit_cts.reference.llm_int8 import matmul_llm_int8_enclosure
from lowbit_cts.reference.low_rank import low_rank_enclosure
from lowbit_cts.reference.products import integer_product, wrap_int32
from lowbit_cts.reference.sums import exactly


def _matmul_sparse24(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    fmt = FORMATS[case.parameters["format"]]
    sparse, dense = decode(stored(case), fmt), decode(case.array("b"), fmt)
    if case.parameters["format"] == "int8":
        return {"y": determined(wrap_int32(integer_product(sparse, dense)))}
    found = sum_of_products(case, semantics, exactly(sparse), exactly(dense))
    # What is not stored is not multiplied, or is as zero: beside infinities and NaN either may show.
    special = ~np.isfinite(dense).all(axis=0)[None, :] & np.ones((len(sparse), 1), bool)
    y = found["y"]
    return {"y": Enclosure(y.exact, np.where(special, -np.inf, y.lo), np.where(special, np.inf, y.hi))}


matmul_sparse24 = register(
    Operation(
        name="matmul_sparse24",
        summary="product of a 2:4 sparse matrix, values and metadata, and a dense one",
        source="Mishra et al., arXiv:2104.08378; PTX ISA, mma.sp; cuSPARSELt, cusparseLtMatmul",
        arguments=(
            VALUES,
            METADATA,
            Argument("b", lambda p: p["format"], lambda p: ("K", "N"), "dense matrix, (K, N)"),
        ),
        results=products_result(lambda p: "int32" if p["format"] == "int8" else p["format"]),
        parameters={"format": FORMAT_OF_SUMS, "metadata_order": METADATA_ORDER},
        semantics=("float_accumulator",),
        evaluate=_matmul_sparse24,
        independent=lambda p: ("M", "N") if p["metadata_order"] == "row" else ("N",),
        variants=("format", "metadata_order"),
        work=lambda case: 2.0 * case.array("values").size * case.sizes["N"],
        constant=("values", "metadata"),
        derived={
            "H": lambda sizes, p: sizes["K"] // 2 if "K" in sizes else None,
            "W": lambda sizes, p: 2 * sizes["H"] // covered(p) if "H" in sizes else None,
            "K": lambda sizes, p: 2 * sizes["H"] if "H" in sizes else None,
        },
        multiples=lambda p: {**whole("H", 2)(p), **whole("K", 1)(p)},
        weights=(),
        stored=("values", "metadata"),
    )
)  # fmt: skip


def _low_rank(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    numbers = {
        name: None if case.arrays.get(name) is None else case.decoded(name, case.array(name))
        for name in ("a", "b", "down", "up", "bias")
    }
    scaling = float(case.array("scaling")) if "scaling" in case.arrays else 1.0
    assert numbers["a"] is not None
    assert numbers["down"] is not None
    assert numbers["up"] is not None
    y = low_rank_enclosure(
        numbers["a"], numbers["b"], numbers["down"], numbers["up"], scaling, numbers["bias"],
        format=case.parameters["input_format"], **semantics.choices(case.operation.semantics),
    )  # fmt: skip
    return {"y": y}


_A = Argument("a", lambda p: p["input_format"], lambda p: ("M", "K"), "activations, (M, K)")
_DOWN = Argument("down", lambda p: p["input_format"], lambda p: ("K", "R"), "(K, R)")
_UP = Argument("up", lambda p: p["input_format"], lambda p: ("R", "N"), "(R, N)")


def _low_rank_work(case: Case) -> float:
    sizes = case.sizes
    return 2.0 * sizes["M"] * sizes["R"] * (sizes["K"] + sizes["N"])


linear_low_rank = register(
    Operation(
        name="linear_low_rank",
        summary="linear layer in two factors: (a @ down) @ up + bias",
        source="Eckart and Young 1936; Denton et al., arXiv:1404.0736",
        arguments=(_A, _DOWN, _UP, BIAS),
        results=products_result(lambda p: p["input_format"]),
        parameters={"has_bias": HAS_BIAS, "input_format": INPUT_FORMAT},
        semantics=("float_accumulator", "weight_precision"),
        evaluate=_low_rank,
        independent=lambda p: ("M", "N"),
        variants=("input_format",),
        constant=("down", "up"),
        work=_low_rank_work,
        weights=("down", "up"),
        stored=("down", "up"),
    )
)

linear_lora = register(
    Operation(
        name="linear_lora",
        summary="linear layer with a LoRA adapter: a @ b + scaling (a @ down) @ up + bias",
        source="Hu et al., LoRA, arXiv:2106.09685, eq. (3)",
        arguments=(
            _A,
            Argument("b", lambda p: p["input_format"], lambda p: ("K", "N"), "weights, (K, N)"),
            _DOWN,
            _UP,
            Argument("scaling", lambda p: "float32", lambda p: (), "float32, (): alpha / r"),
            BIAS,
        ),
        results=products_result(lambda p: p["input_format"]),
        parameters={"has_bias": HAS_BIAS, "input_format": INPUT_FORMAT},
        semantics=("float_accumulator", "weight_precision", "lora_form"),
        evaluate=_low_rank,
        independent=lambda p: ("M", "N"),
        variants=("input_format",),
        constant=("b", "down", "up", "scaling"),
        work=lambda case: multiply_adds(case) + _low_rank_work(case),
        weights=("b",),
        stored=("b", "down", "up"),
    )
)


def _matmul_llm_int8(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    y = matmul_llm_int8_enclosure(
        case.decoded("a", case.array("a")), case.array("codes"), case.array("absmax").astype(np.float64),
        case.arrays["bias"], threshold=case.parameters["threshold"], format=case.parameters["input_format"],
        **semantics.choices(case.operation.semantics),
    )  # fmt: skip
    return {"y": y}


matmul_llm_int8 = register(
    Operation(
        name="matmul_llm_int8",
        summary="linear layer of int8 weights (N, K) and rows quantized on the way, outlier columns in 16 bits",
        source="Dettmers et al., LLM.int8(), arXiv:2208.07339, §3",
        arguments=(
            Argument("a", lambda p: p["input_format"], lambda p: ("M", "K"), "finite activations, (M, K)"),
            Argument("codes", lambda p: "int8", lambda p: ("N", "K"), "weight codes, (N, K)"),
            Argument("absmax", lambda p: "float32", lambda p: ("N",), "float32, (N,): a weight is codes absmax / 127"),
            BIAS,
        ),
        results=products_result(lambda p: p["input_format"]),
        parameters={
            "threshold": Parameter((6.0, 0.0), "magnitude from which on a column is an outlier; 0: none",
                                   assumed=(6.0,)),
            "has_bias": HAS_BIAS,
            "input_format": Parameter(("float16", "bfloat16"), "the format of a and y", assumed=("float16",)),
        },
        semantics=("division", "division_ulps", "float_accumulator", "weight_precision"),
        evaluate=_matmul_llm_int8,
        independent=lambda p: ("N",),  # one row's outlier is every row's
        variants=("threshold", "input_format"),
        constant=("codes", "absmax"),
        work=multiply_adds,
        weights=("codes",),
        stored=("codes", "absmax"),
    )
)  # fmt: skip
