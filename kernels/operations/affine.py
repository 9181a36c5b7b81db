"""Affine quantization: choose_qparams_affine, quantize_affine, dequantize_affine, fake_quantize_affine."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference import affine as reference
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.formats import FORMATS, INTEGER_FORMATS, decode
from lowbit_cts.reference.granularity import GRANULARITIES

_FORMAT = Parameter(INTEGER_FORMATS, "the integer format of the codes", assumed=("int8",))
_INPUT_FORMAT = Parameter(("float32", "float16", "bfloat16"), "the format of x", assumed=("float32",))
_PLACE = {
    "granularity": Parameter(GRANULARITIES, "which elements share a scale", assumed=("tensor",)),
    "axis": Parameter(
        (0, 1),
        "0: a scale a row, 1: a scale a column",
        assumed=(0, 1),
        needed=lambda p: p.get("granularity", "axis") == "axis",
    ),
    "group_size": Parameter(
        (32, 128, 16, 64, 8, 4),
        "neighbours in a row that share a scale",
        assumed=(32, 128, 16, 64, 8, 4),
        open=True,
        needed=lambda p: p.get("granularity", "group") == "group",
    ),
}
_MAPPING = Parameter(
    ("symmetric", "asymmetric"), "symmetric: the zero point is the middle of the codes", assumed=("asymmetric",)
)
_NARROW = Parameter((False, True), "leave out the smallest code", assumed=(False,))


def _matrix(parameters: Parameters) -> tuple[str, ...]:
    return ("M", "K")


def _scales(parameters: Parameters) -> tuple[str, ...]:
    if parameters["granularity"] == "axis":
        return ("M", "K")[parameters["axis"] :][:1]
    return {"tensor": (), "group": ("M", "G")}[parameters["granularity"]]


def _independent(parameters: Parameters) -> tuple[str, ...]:
    return ("M",) if parameters["granularity"] == "group" else ("M", "K")


def _independent_sets(parameters: Parameters) -> tuple[str, ...]:
    if parameters["granularity"] == "axis":
        return ("M", "K")[parameters["axis"] :][:1]
    return {"tensor": (), "group": ("M",)}[parameters["granularity"]]


_X = Argument("x", lambda p: p["input_format"], _matrix, "matrix to quantize, (M, K)")
_CODES = Argument(
    "codes", lambda p: p["format"], _matrix, "codes, one an element, (M, K): int8 or uint8 whatever their bits"
)
_SCALE = Argument(
    "scale", lambda p: "float32", _scales, "float32: () a tensor, (M,) or (K,) an axis, (M, K / group_size) a group"
)
_ZERO_POINT = Argument("zero_point", lambda p: "int32", _scales, "int32, the shape of scale")


def _groups(sizes: Mapping[str, int], parameters: Parameters) -> int | None:
    group = parameters["group_size"]
    return sizes["K"] // group if group and "K" in sizes else None


def _whole_groups(parameters: Parameters) -> Mapping[str, int]:
    return {"K": parameters["group_size"]} if parameters["granularity"] == "group" else {}


_GROUPED: dict[str, Any] = {"derived": {"G": _groups}, "multiples": _whole_groups}


def _place(case: Case) -> dict[str, Any]:
    return {name: case.parameters[name] for name in _PLACE}


def _elements(operations_each: int) -> Any:
    return lambda case: float(operations_each * case.sizes["M"] * case.sizes["K"])


def _numbers(case: Case) -> np.ndarray:
    return decode(case.array("x"), FORMATS[case.parameters["input_format"]])


_QUANTIZE_CHOICES = (
    "rounding", "zero_point_order", "division", "division_ulps", "intermediate", "contraction",
)  # fmt: skip


def _choose_qparams(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    chosen = case.operation.semantics
    parameters = {name: case.parameters[name] for name in ("format", "mapping", "narrow_range")}
    return reference.choose_qparams_enclosure(_numbers(case), **parameters, **_place(case), **semantics.choices(chosen))


def _quantize(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    codes = reference.quantize_enclosure(
        _numbers(case), case.array("scale"), case.array("zero_point"),
        format=case.parameters["format"], narrow_range=case.parameters["narrow_range"],
        **_place(case), **semantics.choices(_QUANTIZE_CHOICES),
    )  # fmt: skip
    return {"codes": codes}


def _dequantize(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    values = reference.dequantize_enclosure(
        case.array("codes"), case.array("scale"), case.array("zero_point"),
        format=case.parameters["format"], output_format=case.parameters["output_format"],
        **_place(case), **semantics.choices(case.operation.semantics),
    )  # fmt: skip
    return {"y": values}


def _fake_quantize(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    values = reference.fake_quantize_enclosure(
        _numbers(case), case.array("scale"), case.array("zero_point"),
        format=case.parameters["format"], narrow_range=case.parameters["narrow_range"],
        **_place(case), **semantics.choices(_QUANTIZE_CHOICES),
    )  # fmt: skip
    return {"y": values}


choose_qparams_affine = register(
    Operation(
        name="choose_qparams_affine",
        summary="scale and zero point of a matrix by the min-max rule",
        source="Jacob et al., arXiv:1712.05877, §3.1; TensorFlow Lite quantization specification",
        arguments=(_X,),
        results=(_SCALE, _ZERO_POINT),
        parameters={
            "format": _FORMAT,
            "input_format": _INPUT_FORMAT,
            **_PLACE,
            "mapping": _MAPPING,
            "narrow_range": _NARROW,
        },
        semantics=(
            "rounding",
            "scale_rule",
            "range_rule",
            "zero_point_rule",
            "division",
            "zero_scale",
            "epsilon",
        ),
        evaluate=_choose_qparams,
        independent=_independent_sets,
        variants=("format", "granularity", "mapping"),
        work=_elements(2),
        **_GROUPED,
    )
)

quantize_affine = register(
    Operation(
        name="quantize_affine",
        summary="codes of a matrix: saturate(round(x / scale) + zero_point)",
        source="ONNX QuantizeLinear, opset 25; Jacob et al., arXiv:1712.05877, eq. (1)",
        arguments=(_X, _SCALE, _ZERO_POINT),
        results=(_CODES,),
        parameters={
            "format": _FORMAT,
            "input_format": _INPUT_FORMAT,
            **_PLACE,
            "mapping": _MAPPING,
            "narrow_range": _NARROW,
        },
        semantics=_QUANTIZE_CHOICES,
        evaluate=_quantize,
        independent=_independent,
        variants=("format", "granularity", "axis"),
        work=_elements(4),
        **_GROUPED,
    )
)

dequantize_affine = register(
    Operation(
        name="dequantize_affine",
        summary="numbers of codes: scale * (codes - zero_point)",
        source="ONNX DequantizeLinear, opset 25; Jacob et al., arXiv:1712.05877, eq. (1)",
        arguments=(_CODES, _SCALE, _ZERO_POINT),
        results=(Argument("y", lambda p: p["output_format"], _matrix, "numbers, (M, K)"),),
        parameters={
            "format": _FORMAT,
            "output_format": Parameter(("float32", "float16", "bfloat16"), "the format of y", assumed=("float32",)),
            **_PLACE,
            "mapping": _MAPPING,
        },
        semantics=("dequantize_form", "intermediate"),
        evaluate=_dequantize,
        independent=_independent,
        variants=("format", "granularity", "axis"),
        work=_elements(2),
        **_GROUPED,
    )
)

fake_quantize_affine = register(
    Operation(
        name="fake_quantize_affine",
        summary="quantize and dequantize: scale * (saturate(round(x / scale) + zero_point) - zero_point)",
        source="Jacob et al., arXiv:1712.05877, §3 and eq. (12)",
        arguments=(_X, _SCALE, _ZERO_POINT),
        results=(Argument("y", lambda p: "float32", _matrix, "numbers on the grid of the codes"),),
        parameters={
            "format": _FORMAT,
            "input_format": Parameter(("float32",), "the format of x", assumed=("float32",)),
            **_PLACE,
            "mapping": _MAPPING,
            "narrow_range": _NARROW,
        },
        semantics=_QUANTIZE_CHOICES,
        evaluate=_fake_quantize,
        independent=_independent,
        variants=("format", "granularity", "axis"),
        work=_elements(6),
        **_GROUPED,
    )
)
