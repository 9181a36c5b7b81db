"""Casts between float formats: cast_float."""

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference import casts as reference
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.formats import SMALL_FLOATS

_FLOATS = (*reference.WIDE_FLOATS, *SMALL_FLOATS)


def _is_cast(parameters: Parameters) -> bool:
    if not {"source", "target"} <= set(parameters):
        return True
    return reference.is_cast(parameters["source"], parameters["target"])


def _cast_float(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    ends = {name: case.parameters[name] for name in ("source", "target")}
    choices = semantics.choices(case.operation.semantics)
    return {"y": reference.cast_float_enclosure(case.array("x"), **ends, **choices)}


cast_float = register(
    Operation(
        name="cast_float",
        summary="cast from one float format to another, at least one of them a wide one",
        source="OCP 8-bit Floating Point Specification v1.0; OCP Microscaling Formats v1.0, §5; ONNX Cast",
        arguments=(Argument("x", lambda p: p["source"], lambda p: ("N",), "numbers or codes, (N,)"),),
        results=(Argument("y", lambda p: p["target"], lambda p: ("N",), "codes or numbers, (N,)"),),
        parameters={
            "source": Parameter(_FLOATS, "the format of x", assumed=("float32",)),
            "target": Parameter(
                _FLOATS[1:],
                "the format of y; at least one of the two is a wide float",
                assumed=("float8_e4m3fn",),
            ),
        },
        semantics=("rounding", "overflow", "outside_domain"),
        evaluate=_cast_float,
        independent=lambda p: ("N",),
        variants=("source", "target"),
        admits=_is_cast,
        work=lambda case: float(case.sizes["N"]),
        random=True,
    )
)
