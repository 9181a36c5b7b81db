"""GGUF block formats: quantize_gguf, dequantize_gguf."""

from collections.abc import Mapping

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.gguf.admissible import quantize_enclosure
from lowbit_cts.reference.gguf.blocks import dequantize_enclosure
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS, block_format

Sizes = Mapping[str, int]

_TYPE = Parameter(tuple(BLOCK_FORMATS), "the block format, by ggml's name", assumed=("Q4_0",))
_BLOCKS = Argument(
    "blocks",
    lambda p: "uint8",
    lambda p: ("M", "B"),
    "bytes of blocks, row by row: (M, K / elements of a block * its bytes)",
)


def _bytes_in_row(sizes: Sizes, parameters: Parameters) -> int | None:
    fmt = block_format(parameters["type"])
    return sizes["K"] // fmt.elements * fmt.bytes if "K" in sizes else None


def _elements_in_row(sizes: Sizes, parameters: Parameters) -> int | None:
    fmt = block_format(parameters["type"])
    return sizes["B"] // fmt.bytes * fmt.elements if "B" in sizes else None


def _quantize(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    choices = semantics.choices(case.operation.semantics)
    return {"blocks": quantize_enclosure(case.array("x"), case.parameters["type"], **choices)}


def _dequantize(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    values = dequantize_enclosure(case.array("blocks"), case.parameters["type"], case.parameters["output_format"])
    return {"y": values}


quantize_gguf = register(
    Operation(
        name="quantize_gguf",
        summary="blocks of a matrix as ggml's reference quantizer of the type makes them, without an importance matrix",
        source="ggml-org/ggml, src/ggml-quants.c, version 0.25.3: quantize_row_*_ref, quantize_iq4_nl",
        arguments=(Argument("x", lambda p: "float32", lambda p: ("M", "K"), "finite matrix to quantize, (M, K)"),),
        results=(_BLOCKS,),
        parameters={"type": _TYPE},
        semantics=("contraction", "scale_search", "exponent_floor"),
        evaluate=_quantize,
        independent=lambda p: ("M",),
        variants=("type",),
        work=lambda case: 4.0 * case.sizes["M"] * case.sizes["K"],
        derived={"B": _bytes_in_row},
        multiples=lambda p: {"K": block_format(p["type"]).elements},
        weights=("x",),
        stored=("blocks",),
    )
)

dequantize_gguf = register(
    Operation(
        name="dequantize_gguf",
        summary="elements of blocks: scale * level, plus the group's offset",
        source="ggml-org/ggml, src/ggml-quants.c, version 0.25.3: dequantize_row_*",
        arguments=(_BLOCKS,),
        results=(Argument("y", lambda p: p["output_format"], lambda p: ("M", "K"), "numbers, (M, K)"),),
        parameters={
            "type": _TYPE,
            "output_format": Parameter(("float32", "float16", "bfloat16"), "the format of y", assumed=("float32",)),
        },
        semantics=(),
        evaluate=_dequantize,
        independent=lambda p: ("M",),
        variants=("type",),
        work=lambda case: 2.0 * case.sizes["M"] * case.sizes["K"],
        derived={"K": _elements_in_row},
        multiples=lambda p: {"B": block_format(p["type"]).bytes},
        weights=("y",),
        stored=("blocks",),
    )
)
