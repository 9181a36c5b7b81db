"""Elementwise arithmetic of quantized vectors: add_int8."""

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference import vector as reference
from lowbit_cts.reference.enclosure import Enclosure


def _format(parameters: Parameters) -> str:
    return parameters["format"]


def _operand(name: str) -> tuple[Argument, ...]:
    return (
        Argument(name, _format, lambda p: ("N",), "codes, (N,)"),
        Argument(f"{name}_scale", lambda p: "float32", lambda p: (), "float32, ()"),
        Argument(f"{name}_zero_point", lambda p: "int32", lambda p: (), "int32, ()"),
    )


def _add_int8(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    arrays = [case.array(argument.name) for argument in case.operation.arguments]
    choices = semantics.choices(case.operation.semantics)
    return {"y": reference.add_int8_enclosure(*arrays, format=case.parameters["format"], **choices)}


add_int8 = register(
    Operation(
        name="add_int8",
        summary="sum of two quantized vectors, quantized: each with its own scale and zero point",
        source="TensorFlow Lite 8-bit quantization specification, ADD",
        arguments=(*_operand("a"), *_operand("b"), *_operand("y")[1:]),
        results=(Argument("y", _format, lambda p: ("N",), "codes, (N,)"),),
        parameters={
            "format": Parameter(("int8", "uint8"), "the format of both inputs and the output", assumed=("int8",))
        },
        semantics=("rounding", "zero_point_order", "division", "division_ulps", "requantization"),
        evaluate=_add_int8,
        independent=lambda p: ("N",),
        variants=("format",),
        work=lambda case: 8.0 * case.sizes["N"],
    )
)
