"""Codebooks: quantize_ and dequantize_blockwise, double_quantize and _dequantize, assign_ and update_codebook."""

from collections.abc import Mapping
from math import ceil, log2
from typing import Any

import numpy as np

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference import blockwise, lloyd
from lowbit_cts.reference.codebooks import CODEBOOKS, assign, assign_enclosure, codes_by_value, rank_enclosure
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.formats import decode

_WIDE = ("float32", "float16", "bfloat16")
_CODE_FORMAT = {name: f"uint{(table.size - 1).bit_length()}" for name, table in CODEBOOKS.items()}
_BLOCKS = (64, 128, 256, 32, 4096)
_NESTED_BLOCKS = (256, 64)
#: The codebook of double quantization.
NESTED = "dynamic8"

_CODEBOOK = Parameter(tuple(CODEBOOKS), "the values by code", assumed=("nf4",))
_BLOCK_SIZE = Parameter(_BLOCKS, "neighbours in a row that share an absmax", assumed=_BLOCKS, open=True)
_NESTED_BLOCK_SIZE = Parameter(
    _NESTED_BLOCKS, "neighbours that share a nested absmax", assumed=_NESTED_BLOCKS, open=True
)

_BLOCKWISE_SOURCE = "Dettmers et al., QLoRA, arXiv:2305.14314, §3; bitsandbytes, quantize_4bit and quantize_blockwise"


def _code_format(parameters: Parameters) -> str:
    return _CODE_FORMAT[parameters["codebook"]]


_X = Argument("x", lambda p: p["input_format"], lambda p: ("M", "K"), "matrix to quantize, (M, K)")
_CODES = Argument("codes", _code_format, lambda p: ("M", "K"), "codes, one an element, (M, K), in uint8")
_ABSMAX = Argument(
    "absmax", lambda p: "float32", lambda p: ("M", "G"), "the largest magnitude of each block, (M, K / block_size)"
)
_FLAT_ABSMAX = Argument(
    "absmax", lambda p: "float32", lambda p: ("N",), "the absmax of N blocks, (N,), or any finite numbers"
)
_OFFSET = Argument("offset", lambda p: "float32", lambda p: (), "what is subtracted of each absmax, their mean, ()")
_NESTED_CODES = Argument("codes", lambda p: "uint8", lambda p: ("N",), f"codes of {NESTED}, (N,)")
_NESTED_ABSMAX = Argument(
    "nested_absmax", lambda p: "float32", lambda p: ("B",), "the absmax of each nested block, (ceil(N / block_size),)"
)

_ARITHMETIC = (
    "division", "division_ulps", "intermediate", "tie", "boundary", "zero_scale", "epsilon", "slack",
)  # fmt: skip


def _blocks_of_rows() -> dict[str, Any]:
    def count(sizes: Mapping[str, int], parameters: Parameters) -> int | None:
        return sizes["K"] // parameters["block_size"] if "K" in sizes else None

    return {
        "derived": {"G": count},
        "multiples": lambda p: {"K": p["block_size"]},
        "independent": lambda p: ("M",),
        "stored": ("codes", "absmax"),
    }


def _nested_blocks() -> dict[str, Any]:
    def count(sizes: Mapping[str, int], parameters: Parameters) -> int | None:
        return -(-sizes["N"] // parameters["block_size"]) if "N" in sizes else None

    return {
        "derived": {"B": count},
        "independent": lambda p: (),
        "stored": ("codes", "nested_absmax", "offset"),
    }


def _each_of(name: str, operations_each: int) -> Any:
    return lambda case: float(operations_each * case.array(name).size)


def _numbers(case: Case) -> np.ndarray:
    """Return x as float32, which holds all of its formats."""
    x = case.array("x")
    return x if x.dtype.kind == "f" else decode(x, case.format("x")).astype(np.float32)


def _exactly(semantics: Semantics) -> dict[str, Any]:
    """Return the choices that determine codes: those that leave nothing open."""
    return semantics.choices(tuple(name for name in _ARITHMETIC if name not in ("division_ulps", "slack")))


def _quantize(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    x, place = _numbers(case), {name: case.parameters[name] for name in ("codebook", "block_size")}
    codes, _ = blockwise.quantize_blockwise(x, **place, **_exactly(semantics), equal_values=semantics.equal_values)
    found = blockwise.quantize_blockwise_enclosure(x, **place, **semantics.choices(_ARITHMETIC))
    return {"codes": rank_enclosure(found["codes"], codes, place["codebook"]), "absmax": found["absmax"]}


def _dequantize(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    parameters = {name: case.parameters[name] for name in ("codebook", "block_size", "output_format")}
    y = blockwise.dequantize_blockwise_enclosure(
        case.array("codes"), case.array("absmax"), **parameters, **semantics.choices(case.operation.semantics)
    )
    return {"y": y}


def _double_quantize(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    absmax, size = case.array("absmax"), case.parameters["block_size"]
    given: dict[str, Any] = {"offset": case.array("offset"), "codebook": NESTED, "block_size": size}
    codes, _, _ = blockwise.double_quantize(absmax, **given, **_exactly(semantics))
    found = blockwise.double_quantize_enclosure(absmax, **given, **semantics.choices(_ARITHMETIC))
    return {"codes": rank_enclosure(found["codes"], codes, NESTED), "nested_absmax": found["nested_absmax"]}


def _double_dequantize(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    absmax = blockwise.double_dequantize_enclosure(
        case.array("codes"), case.array("nested_absmax"), case.array("offset"),
        codebook=NESTED, block_size=case.parameters["block_size"], **semantics.choices(case.operation.semantics),
    )  # fmt: skip
    return {"absmax": absmax}


def _assign(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    x, codebook = case.array("x"), case.array("codebook")
    sides = semantics.choices(("tie", "boundary"))
    codes = assign(x, codebook, **sides, equal_values=semantics.equal_values)
    values = assign_enclosure(x, codebook, **sides, distance_roundings=semantics.distance_roundings)
    return {"codes": rank_enclosure(values, codes, codebook)}


def _update(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    centroids = lloyd.update_enclosure(
        case.array("x"), case.array("codes"), case.array("codebook"),
        empty=semantics.empty_cluster, **semantics.choices(("intermediate", "division", "division_ulps")),
    )  # fmt: skip
    return {"centroids": centroids}


quantize_blockwise = register(
    Operation(
        name="quantize_blockwise",
        summary="the code of the codebook's value nearest to x / absmax, the absmax of blocks along the rows",
        source=_BLOCKWISE_SOURCE,
        arguments=(_X,),
        results=(_CODES, _ABSMAX),
        parameters={
            "codebook": _CODEBOOK,
            "block_size": _BLOCK_SIZE,
            "input_format": Parameter(_WIDE, "the format of x", assumed=("float32",)),
        },
        semantics=(*_ARITHMETIC, "equal_values"),
        evaluate=_quantize,
        variants=("codebook", "input_format"),
        work=_each_of("x", 7),  # absmax, quotient, and a search among 16
        orders={"codes": lambda case: codes_by_value(case.parameters["codebook"])},
        **_blocks_of_rows(),
    )
)

dequantize_blockwise = register(
    Operation(
        name="dequantize_blockwise",
        summary="numbers of codes: codebook[codes] * absmax",
        source=_BLOCKWISE_SOURCE,
        arguments=(_CODES, _ABSMAX),
        results=(Argument("y", lambda p: p["output_format"], lambda p: ("M", "K"), "numbers, (M, K)"),),
        parameters={
            "codebook": _CODEBOOK,
            "block_size": _BLOCK_SIZE,
            "output_format": Parameter(_WIDE, "the format of y", assumed=("float32",)),
        },
        semantics=("intermediate",),
        evaluate=_dequantize,
        variants=("codebook", "output_format"),
        work=_each_of("codes", 1),
        **_blocks_of_rows(),
    )
)

double_quantize = register(
    Operation(
        name="double_quantize",
        summary=f"the absmax of blocks in 8 bits: less an offset, blockwise with {NESTED}; the last block may be short",
        source="Dettmers et al., QLoRA, arXiv:2305.14314, §3, Double Quantization; bitsandbytes, quantize_4bit",
        arguments=(_FLAT_ABSMAX, _OFFSET),
        results=(_NESTED_CODES, _NESTED_ABSMAX),
        parameters={"block_size": _NESTED_BLOCK_SIZE},
        semantics=_ARITHMETIC,
        evaluate=_double_quantize,
        variants=(),
        work=_each_of("absmax", 12),
        orders={"codes": lambda case: codes_by_value(NESTED)},
        **_nested_blocks(),
    )
)

double_dequantize = register(
    Operation(
        name="double_dequantize",
        summary=f"the absmax of blocks from 8 bits: {NESTED}[codes] * nested_absmax + offset",
        source="Dettmers et al., QLoRA, arXiv:2305.14314, §3, Double Quantization; bitsandbytes, dequantize_4bit",
        arguments=(_NESTED_CODES, _NESTED_ABSMAX, _OFFSET),
        results=(_FLAT_ABSMAX,),
        parameters={"block_size": _NESTED_BLOCK_SIZE},
        semantics=("contraction",),
        evaluate=_double_dequantize,
        variants=(),
        work=_each_of("codes", 2),
        **_nested_blocks(),
    )
)


def _code_bits(case: Case) -> float:
    return float(max(1, ceil(log2(max(1, case.array("codebook").size)))))


_SAMPLES = Argument("x", lambda p: "float32", lambda p: ("N",), "samples, (N,)")
_SAMPLE_CODES = Argument("codes", lambda p: "uint8", lambda p: ("N",), "codes of the samples, (N,)", bits=_code_bits)
_VALUES = Argument(
    "codebook", lambda p: "float32", lambda p: ("C",), "values by code, (C,), in any order; at most 256, finite"
)

assign_codebook = register(
    Operation(
        name="assign_codebook",
        summary="the code of the codebook's value nearest to each sample",
        source="S. P. Lloyd, Least squares quantization in PCM, IEEE Trans. Inf. Theory 28 (1982)",
        arguments=(_SAMPLES, _VALUES),
        results=(_SAMPLE_CODES,),
        parameters={},
        semantics=("tie", "boundary", "equal_values", "distance_roundings"),
        evaluate=_assign,
        independent=lambda p: ("N",),
        variants=(),
        constant=("codebook",),
        work=lambda case: float(case.array("x").size * _code_bits(case)),
        orders={"codes": lambda case: codes_by_value(case.array("codebook"))},
        stored=("codes", "codebook"),
    )
)

update_codebook = register(
    Operation(
        name="update_codebook",
        summary="the mean of the samples of each code",
        source="S. P. Lloyd, Least squares quantization in PCM, IEEE Trans. Inf. Theory 28 (1982)",
        arguments=(_SAMPLES, _SAMPLE_CODES, _VALUES),
        results=(Argument("centroids", lambda p: "float32", lambda p: ("C",), "the new codebook, (C,)"),),
        parameters={},
        semantics=("empty_cluster", "intermediate", "division", "division_ulps"),
        evaluate=_update,
        independent=lambda p: (),
        variants=(),
        work=_each_of("x", 1),
        stored=("codes", "codebook"),
    )
)
