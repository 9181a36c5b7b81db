"""Binary and ternary weights: binarize, ternarize."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference import binary, ternary
from lowbit_cts.reference.choices import TernaryRule
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.formats import decode
from lowbit_cts.reference.granularity import GRANULARITIES

_GROUPS = (32, 128, 16, 64)
_PLACE = {
    "granularity": Parameter(GRANULARITIES, "which weights share a scale", assumed=("tensor",)),
    "axis": Parameter(
        (0, 1),
        "0: a scale a row, 1: a scale a column",
        assumed=(0, 1),
        needed=lambda p: p.get("granularity", "axis") == "axis",
    ),
    "group_size": Parameter(
        _GROUPS,
        "neighbours in a row that share a scale",
        assumed=_GROUPS,
        open=True,
        needed=lambda p: p.get("granularity", "group") == "group",
    ),
}
_INPUT_FORMAT = Parameter(("float32", "float16", "bfloat16"), "the format of x", assumed=("float32",))


def _scales(parameters: Parameters) -> tuple[str, ...]:
    if parameters["granularity"] == "axis":
        return ("M", "K")[parameters["axis"] :][:1]
    return {"tensor": (), "group": ("M", "G")}[parameters["granularity"]]


def _groups(sizes: Mapping[str, int], parameters: Parameters) -> int | None:
    group = parameters["group_size"]
    return sizes["K"] // group if group and "K" in sizes else None


def _independent(parameters: Parameters) -> tuple[str, ...]:
    return tuple(axis for axis in _scales(parameters) if axis != "G")


def _elements(operations_each: int) -> Any:
    return lambda case: float(operations_each * case.array("x").size)


_X = Argument("x", lambda p: p["input_format"], lambda p: ("M", "K"), "weights, (M, K)")
_CODES = Argument("codes", lambda p: "int2", lambda p: ("M", "K"), "-1, 0 or 1, (M, K), in int8")
_BINARY_CODES = Argument("codes", lambda p: "int2", lambda p: ("M", "K"), "-1 or 1, in int8", bits=lambda case: 1.0)
_SCALE = Argument(
    "scale", lambda p: "float32", _scales, "float32: () a tensor, (M,) or (K,) an axis, (M, K / group_size) a group"
)
_SHARED: dict[str, Any] = {
    "arguments": (_X,),
    "independent": _independent,
    "derived": {"G": _groups},
    "multiples": lambda p: {"K": p["group_size"]} if p["granularity"] == "group" else {},
}
_MEANS = ("intermediate", "division", "division_ulps")


def _numbers(case: Case) -> np.ndarray:
    return decode(case.array("x"), case.format("x"))


def _chosen(case: Case, semantics: Semantics, *more: str) -> dict[str, Any]:
    place = {name: case.parameters[name] for name in (*_PLACE, *more)}
    return {**place, **semantics.choices(case.operation.semantics)}


def _binarize(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    return binary.binarize_enclosure(_numbers(case), **_chosen(case, semantics))


def _ternarize(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    return ternary.ternarize_enclosure(_numbers(case), **_chosen(case, semantics, "rule"))


binarize = register(
    Operation(
        name="binarize",
        summary="signs of weights, and the mean of the magnitudes as their scale",
        source="Rastegari et al., XNOR-Net, arXiv:1603.05279, eq. (5) and (6)",
        results=(_BINARY_CODES, _SCALE),
        parameters={"input_format": _INPUT_FORMAT, **_PLACE},
        semantics=("sign_of_zero", *_MEANS),
        evaluate=_binarize,
        variants=("granularity", "axis"),
        work=_elements(2),
        **_SHARED,
    )
)

ternarize = register(
    Operation(
        name="ternarize",
        summary="weights as -1, 0, 1 times a scale, by a threshold (twn) or by rounding w / mean|w| (bitnet)",
        source="Li and Liu, Ternary Weight Networks, arXiv:1605.04711; Ma et al., BitNet b1.58, arXiv:2402.17764",
        results=(_CODES, _SCALE),
        parameters={
            "rule": Parameter(tuple(map(str, TernaryRule)), "threshold or rounding", assumed=("bitnet",)),
            "input_format": _INPUT_FORMAT,
            **_PLACE,
        },
        semantics=(*_MEANS, "epsilon"),
        evaluate=_ternarize,
        variants=("rule", "granularity", "axis"),
        work=_elements(4),
        **_SHARED,
    )
)
