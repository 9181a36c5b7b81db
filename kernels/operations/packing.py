"""Places of codes and scales in memory: pack_codes, unpack_codes, swizzle_scales, permute_scales_marlin."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference.enclosure import Enclosure, determined
from lowbit_cts.reference.formats import FORMATS, decode
from lowbit_cts.reference.packing import packings as reference
from lowbit_cts.reference.packing.packings import PACKINGS, SignedCodes
from lowbit_cts.reference.packing.scales import permute_marlin_scales, swizzle_scales
from lowbit_cts.reference.packing.streams import word_count

Sizes = Mapping[str, int]

_WIDTHS = (4, 8, 2, 3, 1, 5, 6, 7)
_PARAMETERS = {
    "packing": Parameter(tuple(PACKINGS), "where each code stands in the words", assumed=("low_first",)),
    "bits": Parameter(_WIDTHS, "bits in a code, one of the packing's widths", assumed=(4,)),
    "signed": Parameter((False, True), "whether the codes are signed", assumed=(False,)),
}


def _is_packing(parameters: Parameters) -> bool:
    if "packing" not in parameters:
        return True
    packing = PACKINGS[parameters["packing"]]
    refused = parameters.get("signed") and packing.signed is SignedCodes.REFUSED
    return parameters.get("bits", packing.bits[0]) in packing.bits and not refused


def _word_axes(parameters: Parameters) -> tuple[str, str]:
    packing = PACKINGS[parameters["packing"]]
    if packing.tile > 1:
        return ("V", "W")
    return ("V", "K") if packing.axis == -2 else ("M", "W")


def _code_axes(parameters: Parameters) -> tuple[str, str]:
    """Return the axes of unpacked codes: those of the words, or R and C where they follow from packed ones."""
    rows, columns = _word_axes(parameters)
    return "R" if rows == "V" else rows, "C" if columns == "W" else columns


_CODES = Argument(
    "codes",
    lambda p: "int8" if p["signed"] else "uint8",
    lambda p: ("M", "K"),
    "codes, one a byte, (M, K): (inputs, outputs) in gptq, awq and marlin, (outputs, inputs) in compressed_tensors",
)
_WORDS = Argument(
    "words",
    lambda p: PACKINGS[p["packing"]].carrier.name,
    _word_axes,
    "uint8 or int32: packed along the rows (M, W), gptq along the columns (V, K), marlin (M / 16, 2 K)",
)


def _word_bits(parameters: Parameters) -> int:
    return 8 * PACKINGS[parameters["packing"]].carrier.itemsize


def _word_columns(sizes: Sizes, parameters: Parameters) -> int | None:
    if "K" not in sizes or "W" not in _word_axes(parameters):
        return None
    return word_count(sizes["K"] * PACKINGS[parameters["packing"]].tile, parameters["bits"], _word_bits(parameters))


def _word_rows(sizes: Sizes, parameters: Parameters) -> int | None:
    if "M" not in sizes or "V" not in _word_axes(parameters):
        return None
    tile = PACKINGS[parameters["packing"]].tile
    return sizes["M"] // tile if tile > 1 else word_count(sizes["M"], parameters["bits"], _word_bits(parameters))


def _code_columns(sizes: Sizes, parameters: Parameters) -> int | None:
    if "W" not in sizes or "W" not in _word_axes(parameters):
        return None
    return sizes["W"] * _word_bits(parameters) // parameters["bits"] // PACKINGS[parameters["packing"]].tile


def _code_rows(sizes: Sizes, parameters: Parameters) -> int | None:
    if "V" not in sizes or "V" not in _word_axes(parameters):
        return None
    tile = PACKINGS[parameters["packing"]].tile
    return sizes["V"] * tile if tile > 1 else sizes["V"] * _word_bits(parameters) // parameters["bits"]


def _whole_codes(parameters: Parameters) -> Mapping[str, int]:
    found = zip(("M", "K"), reference.whole_blocks(parameters["packing"], parameters["bits"]), strict=True)
    return {axis: number for axis, number in found if number > 1}


def _whole_words(parameters: Parameters) -> Mapping[str, int]:
    """Return the axes of words that must be whole blocks: the words of a block of codes."""
    packing = PACKINGS[parameters["packing"]]
    bits = parameters["bits"]
    rows, columns = reference.whole_blocks(parameters["packing"], bits)
    along = rows if packing.axis == -2 else columns * packing.tile
    number = max(1, along * bits // _word_bits(parameters))
    return {"V" if packing.axis == -2 else "W": number} if number > 1 else {}


def _apart(parameters: Parameters) -> tuple[str, ...]:
    """Return the axis that is not packed."""
    return tuple(axis for axis in _word_axes(parameters) if axis in ("M", "K"))


def _pack(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    words = reference.pack(case.array("codes"), **case.parameters)
    return {"words": determined(words.astype(np.int64))}


def _unpack(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    codes = reference.unpack(case.array("words"), **case.parameters)
    return {"codes": determined(codes.astype(np.int64))}


def _shifts_and_masks(case: Case) -> float:
    words = case.arrays.get("words")
    if words is None:
        return 2.0 * case.array("codes").size
    return 2.0 * words.size * _word_bits(case.parameters) / case.parameters["bits"]


pack_codes = register(
    Operation(
        name="pack_codes",
        summary="codes, one a byte, packed into words; what fills up a last word is 0",
        source="ONNX TensorProto, ggml, AutoGPTQ, AutoAWQ, Marlin (arXiv:2408.11743), compressed-tensors, bitsandbytes",
        arguments=(_CODES,),
        results=(_WORDS,),
        parameters=_PARAMETERS,
        semantics=(),
        evaluate=_pack,
        independent=_apart,
        variants=("packing",),
        admits=_is_packing,
        work=_shifts_and_masks,
        derived={"W": _word_columns, "V": _word_rows},
        multiples=_whole_codes,
        weights=("codes",),
        stored=("words",),
    )
)

unpack_codes = register(
    Operation(
        name="unpack_codes",
        summary="all the codes that words hold, one a byte",
        source="ONNX TensorProto, ggml, AutoGPTQ, AutoAWQ, Marlin (arXiv:2408.11743), compressed-tensors, bitsandbytes",
        arguments=(_WORDS,),
        results=(replace(_CODES, shape=_code_axes),),
        parameters=_PARAMETERS,
        semantics=(),
        evaluate=_unpack,
        independent=_apart,
        variants=("packing",),
        admits=_is_packing,
        work=_shifts_and_masks,
        derived={"C": _code_columns, "R": _code_rows},
        multiples=_whole_words,
        weights=("codes",),
        stored=("words",),
    )
)

#: Bytes of a tile of 128 x 4 scales.
_TILE = 512
_SWIZZLED = Parameter(("float8_e8m0fnu", "float8_e4m3fn"), "the format of the scales", assumed=("float8_e8m0fnu",))


def _tile_bytes(sizes: Sizes, parameters: Parameters) -> int | None:
    return -(-sizes["M"] // 128) * -(-sizes["G"] // 4) * _TILE if {"M", "G"} <= set(sizes) else None


def _swizzle(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    codes = swizzle_scales(case.array("scales")).reshape(-1)
    return {"swizzled": determined(decode(codes, FORMATS[case.parameters["format"]]), signed_zero=True)}


swizzle = register(
    Operation(
        name="swizzle_scales",
        summary="block scales in the tiles of 128 x 4 that Blackwell's tensor cores read; beyond the matrix code 0",
        source="cuBLAS documentation, 1D Block Scaling Factors Layout",
        arguments=(
            Argument("scales", lambda p: p["format"], lambda p: ("M", "G"), "scales, one a block of a row, (M, G)"),
        ),
        results=(
            Argument(
                "swizzled", lambda p: p["format"], lambda p: ("S",), "512 a tile, tile after tile, along G first, (S,)"
            ),
        ),
        parameters={"format": _SWIZZLED},
        semantics=(),
        evaluate=_swizzle,
        independent=lambda p: (),
        variants=("format",),
        work=lambda case: float(case.sizes["S"]),
        derived={"S": _tile_bytes},
    )
)

_RUNS = {"group": 64, "channel": 32}


def _marlin_axes(parameters: Parameters) -> tuple[str, ...]:
    return ("G", "N") if parameters["granularity"] == "group" else ("N",)


def _permute(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    scales, groups = case.array("scales"), case.parameters["granularity"] == "group"
    # The reference takes the order of channels where there is a single group; a second makes it that of groups.
    rows = np.concatenate([scales, scales]) if groups else scales[None]
    permuted = permute_marlin_scales(rows)[: len(scales) if groups else 1].reshape(scales.shape)
    return {"permuted": determined(decode(permuted, FORMATS[case.parameters["format"]]), signed_zero=True)}


permute_scales_marlin = register(
    Operation(
        name="permute_scales_marlin",
        summary="the scales of a Marlin weight in the order in which its kernel loads them",
        source="Frantar et al., MARLIN, arXiv:2408.11743; IST-DASLab/marlin, marlin/__init__.py: Layer.pack",
        arguments=(
            Argument("scales", lambda p: p["format"], _marlin_axes, "(G, N), one a group and column; (N,) a channel"),
        ),
        results=(Argument("permuted", lambda p: p["format"], _marlin_axes, "the shape of scales"),),
        parameters={
            "format": Parameter(("float16", "bfloat16"), "the format of the scales", assumed=("float16",)),
            "granularity": Parameter(
                ("group", "channel"), "a scale a group of inputs, or one a channel", assumed=("group", "channel")
            ),
        },
        semantics=(),
        evaluate=_permute,
        independent=lambda p: ("G",) if p["granularity"] == "group" else (),
        variants=("format", "granularity"),
        work=lambda case: float(case.array("scales").size),
        multiples=lambda p: {"N": _RUNS[p["granularity"]]},
    )
)
