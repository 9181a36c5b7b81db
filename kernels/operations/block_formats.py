"""Block formats: quantize_mx, dequantize_mx, choose_global_scale_nvfp4, quantize_nvfp4, dequantize_nvfp4."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference import mx, nvfp4
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.formats import decode

_WIDE = ("float32", "float16", "bfloat16")
_INPUT_FORMAT = Parameter(_WIDE, "the format of x", assumed=("float32",))
_OUTPUT_FORMAT = Parameter(_WIDE, "the format of y", assumed=("float32",))
_MX_FORMAT = Parameter(mx.MX_FORMATS, "the format of the elements", assumed=("float8_e4m3fn",))
_NARROW = Parameter(
    (False, True),
    "leave out the code -128 of int8",
    assumed=(False,),
    needed=lambda p: p.get("format", "int8") == "int8",
)
_LEVELS = Parameter(
    ("two", "one"), "two: a float32 scale of the whole matrix besides those of the blocks", assumed=("two",)
)

_MX_SOURCE = "OCP Microscaling Formats (MX) v1.0, §5 and §6.3"
_NVFP4_SOURCE = "NVIDIA, arXiv:2509.25149; cuBLAS, 1D Block Scaling for FP8 and FP4 Data Types"


def _matrix(parameters: Parameters) -> tuple[str, ...]:
    return ("M", "K")


def _blocks(size: int) -> dict[str, Any]:
    """Return what an operation says of its blocks: their number follows from K, which they must divide."""

    def count(sizes: Mapping[str, int], parameters: Parameters) -> int | None:
        return sizes["K"] // size if "K" in sizes else None

    return {"derived": {"G": count}, "multiples": lambda p: {"K": size}}


def _elements(operations_each: int) -> Any:
    return lambda case: float(operations_each * case.sizes["M"] * case.sizes["K"])


_X = Argument("x", lambda p: p["input_format"], _matrix, "matrix to quantize, (M, K)")
_Y = Argument("y", lambda p: p["output_format"], _matrix, "numbers, (M, K)")
_MX_CODES = Argument(
    "codes", lambda p: p["format"], _matrix, "elements, (M, K), one code each: of 6 and 4 bits in the low bits of uint8"
)
_MX_SCALE = Argument("scale", lambda p: "float8_e8m0fnu", lambda p: ("M", "G"), "scales of the blocks, (M, K / 32)")
_NVFP4_CODES = Argument(
    "codes", lambda p: "float4_e2m1fn", _matrix, "elements, (M, K), one code each: in the low bits of uint8"
)
_NVFP4_SCALE = Argument("scale", lambda p: "float8_e4m3fn", lambda p: ("M", "G"), "scales of the blocks, (M, K / 16)")
_GLOBAL_SCALE = Argument(
    "global_scale",
    lambda p: "float32",
    lambda p: (),
    "float32, (): g, or G = 1 / g, by the semantics; None with one level",
    present=lambda p: p.get("levels", "two") == "two",
)


def _numbers(case: Case) -> np.ndarray:
    """Return x as float32, which holds all of its formats."""
    x = case.array("x")
    return x if x.dtype.kind == "f" else decode(x, case.format("x")).astype(np.float32)


def _quantize_mx(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    format = case.parameters["format"]
    found = mx.quantize_mx_enclosure(
        _numbers(case), format=format, narrow_range=bool(case.parameters["narrow_range"]),
        **semantics.choices(case.operation.semantics),
    )  # fmt: skip
    if format == "int8":  # to the contract a code of int8 is that integer, to the reference so many 64ths
        codes, steps = found["codes"], mx.INT8_STEPS
        found["codes"] = Enclosure(steps * codes.exact, steps * codes.lo, steps * codes.hi)
    return found


def _dequantize_mx(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    formats = {name: case.parameters[name] for name in ("format", "output_format")}
    return {"y": mx.dequantize_mx_enclosure(case.array("codes"), case.array("scale"), **formats)}


def _choose_global_scale(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    amax = np.abs(_numbers(case)).max()  # of nothing there is none: a ValueError
    return {
        "global_scale": nvfp4.choose_global_scale_nvfp4_enclosure(
            amax, **semantics.choices(case.operation.semantics)
        )
    }  # fmt: skip


def _quantize_nvfp4(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    choices = semantics.choices(case.operation.semantics)
    return nvfp4.quantize_nvfp4_enclosure(_numbers(case), case.arrays["global_scale"], **choices)


def _dequantize_nvfp4(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    values = nvfp4.dequantize_nvfp4_enclosure(
        case.array("codes"), case.array("scale"), case.arrays["global_scale"],
        output_format=case.parameters["output_format"], **semantics.choices(case.operation.semantics),
    )  # fmt: skip
    return {"y": values}


quantize_mx = register(
    Operation(
        name="quantize_mx",
        summary="blocks of 32 elements of 8, 6 or 4 bits with a power of two as their scale",
        source=_MX_SOURCE,
        arguments=(_X,),
        results=(_MX_CODES, _MX_SCALE),
        parameters={"format": _MX_FORMAT, "input_format": _INPUT_FORMAT, "narrow_range": _NARROW},
        semantics=(
            "scale_mode",
            "rounding",
            "overflow",
            "division",
            "division_ulps",
            "nan_in_block",
            "infinity_in_block",
        ),
        evaluate=_quantize_mx,
        independent=lambda p: ("M",),
        variants=("format",),
        work=_elements(4),
        random=True,
        **_blocks(mx.MX_BLOCK),
    )
)

dequantize_mx = register(
    Operation(
        name="dequantize_mx",
        summary="numbers of MX blocks: scale * element",
        source=_MX_SOURCE,
        arguments=(_MX_CODES, _MX_SCALE),
        results=(_Y,),
        parameters={"format": _MX_FORMAT, "output_format": _OUTPUT_FORMAT},
        semantics=(),
        evaluate=_dequantize_mx,
        independent=lambda p: ("M",),
        variants=("format",),
        work=_elements(1),
        **_blocks(mx.MX_BLOCK),
    )
)

choose_global_scale_nvfp4 = register(
    Operation(
        name="choose_global_scale_nvfp4",
        summary="the float32 scale of a matrix that makes the largest block scale 448: max|x| / 2688, or 2688 / max|x|",
        source=_NVFP4_SOURCE,
        arguments=(_X,),
        results=(_GLOBAL_SCALE,),
        parameters={"input_format": _INPUT_FORMAT},
        semantics=("global_scale_rule", "division", "division_ulps", "zero_scale", "epsilon"),
        evaluate=_choose_global_scale,
        independent=lambda p: (),
        variants=("input_format",),
        work=_elements(2),
        weights=("x",),
        stored=("global_scale",),
    )
)

quantize_nvfp4 = register(
    Operation(
        name="quantize_nvfp4",
        summary="blocks of 16 elements E2M1 with a scale E4M3, under a scale of the matrix or without",
        source=_NVFP4_SOURCE,
        arguments=(_X, _GLOBAL_SCALE),
        results=(_NVFP4_CODES, _NVFP4_SCALE),
        parameters={"levels": _LEVELS, "input_format": _INPUT_FORMAT},
        semantics=(
            "rounding",
            "global_scale_rule",
            "block_scale_steps",
            "element_steps",
            "division_ulps",
            "small_block_scale",
            "nan_in_block",
        ),
        evaluate=_quantize_nvfp4,
        independent=lambda p: ("M",),
        variants=("levels",),
        work=_elements(4),
        random=True,
        stored=("codes", "scale", "global_scale"),
        **_blocks(nvfp4.NVFP4_BLOCK),
    )
)

dequantize_nvfp4 = register(
    Operation(
        name="dequantize_nvfp4",
        summary="numbers of NVFP4 blocks: element * scale * global scale",
        source=_NVFP4_SOURCE,
        arguments=(_NVFP4_CODES, _NVFP4_SCALE, _GLOBAL_SCALE),
        results=(_Y,),
        parameters={"levels": _LEVELS, "output_format": _OUTPUT_FORMAT},
        semantics=("global_scale_rule",),
        evaluate=_dequantize_nvfp4,
        independent=lambda p: ("M",),
        variants=("levels", "output_format"),
        work=_elements(2),
        stored=("codes", "scale", "global_scale"),
        **_blocks(nvfp4.NVFP4_BLOCK),
    )
)
