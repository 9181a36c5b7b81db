"""Casts between float8 and wider floats, both directions: cast_float8."""

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference import casts as reference
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.formats import FLOAT8_FORMATS

_FLOATS = ("float32", "float16", "bfloat16", *FLOAT8_FORMATS)


def _one_is_float8(parameters: Parameters) -> bool:
    ends = [parameters[name] in FLOAT8_FORMATS for name in ("source", "target") if name in parameters]
    return len(ends) < 2 or ends[0] != ends[1]


def _cast_float8(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    ends = {name: case.parameters[name] for name in ("source", "target")}
    choices = semantics.choices(case.operation.semantics)
    return {"y": reference.cast_float8_enclosure(case.array("x"), **ends, **choices)}


cast_float8 = register(
    Operation(
        name="cast_float8",
        summary="cast from a wider float to float8, or back",
        source="OCP 8-bit Floating Point Specification v1.0; ONNX Cast, table of float8 conversions",
        arguments=(Argument("x", lambda p: p["source"], lambda p: ("N",), "numbers or codes, (N,)"),),
        results=(Argument("y", lambda p: p["target"], lambda p: ("N",), "codes or numbers, (N,)"),),
        parameters={
            "source": Parameter(_FLOATS, "the format of x", assumed=("float32",)),
            "target": Parameter(
                _FLOATS, "the format of y; exactly one of the two is a float8 format", assumed=("float8_e4m3fn",)
            ),
        },
        semantics=("rounding", "overflow"),
        evaluate=_cast_float8,
        independent=lambda p: ("N",),
        variants=("source", "target"),
        admits=_one_is_float8,
        work=lambda case: float(case.sizes["N"]),
    )
)
