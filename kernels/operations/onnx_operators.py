"""ONNX's quantized operators: dynamic_quantize_linear, matmul_integer, qlinear_matmul."""

from typing import Any

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference import onnx_operators as reference
from lowbit_cts.reference.enclosure import Enclosure, determined

_MATRIX = ("M", "K")
_INTEGERS = ("int8", "uint8")
#: What decides the code of a scaled sum.
OUTPUT_CHOICES = ("rounding", "zero_point_order", "division", "division_ulps", "requantization")


def format_of(what: str) -> Parameter:
    """Return the parameter of the format of an operand or a result."""
    return Parameter(_INTEGERS, f"the format of {what}", assumed=("int8",))


def _dynamic_quantize(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    return reference.dynamic_quantize_enclosure(case.array("x"), **semantics.choices(case.operation.semantics))


dynamic_quantize_linear = register(
    Operation(
        name="dynamic_quantize_linear",
        summary="uint8 codes of a matrix by its own range, zero included: scale (max - min) / 255, asymmetric",
        source="ONNX DynamicQuantizeLinear, opset 11",
        arguments=(Argument("x", lambda p: "float32", lambda p: _MATRIX, "finite numbers, (M, K)"),),
        results=(
            Argument("codes", lambda p: "uint8", lambda p: _MATRIX, "codes, (M, K)"),
            Argument("scale", lambda p: "float32", lambda p: (), "float32, ()"),
            Argument("zero_point", lambda p: "int32", lambda p: (), "int32, ()"),
        ),
        parameters={},
        semantics=(
            "rounding", "zero_point_order", "division", "division_ulps", "intermediate", "contraction",
            "zero_point_rule", "zero_scale", "epsilon",
        ),
        evaluate=_dynamic_quantize,
        independent=lambda p: (),
        variants=(),
        work=lambda case: 5.0 * case.sizes["M"] * case.sizes["K"],
    )
)  # fmt: skip


def _per_token(parameters: Parameters) -> tuple[str, ...]:
    return ("M",) if parameters["activation_granularity"] == "token" else ()


def _per_channel(parameters: Parameters) -> tuple[str, ...]:
    return ("N",) if parameters["weight_granularity"] == "channel" else ()


_GRANULARITIES = {
    "activation_granularity": Parameter(
        ("tensor", "token"), "one zero point (and scale) of a, or one a row", assumed=("tensor",)
    ),
    "weight_granularity": Parameter(
        ("tensor", "channel"), "one zero point (and scale) of b, or one a column", assumed=("tensor",)
    ),
    "weight_mapping": Parameter(
        ("symmetric", "asymmetric"), "symmetric: b_zero_point is 0 (uint8: 128)", assumed=("asymmetric",)
    ),
}
_A = Argument("a", lambda p: p["a_format"], lambda p: ("M", "K"), "codes, (M, K)")
_A_ZERO_POINT = Argument("a_zero_point", lambda p: "int32", _per_token, "int32: () a tensor, (M,) a row")
_B = Argument("b", lambda p: p["b_format"], lambda p: ("K", "N"), "codes, (K, N)")
_B_ZERO_POINT = Argument("b_zero_point", lambda p: "int32", _per_channel, "int32: () a tensor, (N,) a column")


def _multiply_adds(case: Case) -> float:
    sizes = case.sizes
    return 2.0 * sizes["M"] * sizes["N"] * sizes["K"]


def _matmul_integer(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    arrays = [case.array(argument.name) for argument in case.operation.arguments]
    formats = {name: case.parameters[name] for name in ("a_format", "b_format")}
    return {"y": determined(reference.matmul_integer(*arrays, **formats))}


matmul_integer = register(
    Operation(
        name="matmul_integer",
        summary="int32 product of 8-bit matrices less their zero points: (a - a_zero_point) @ (b - b_zero_point)",
        source="ONNX MatMulInteger, opset 10",
        arguments=(_A, _A_ZERO_POINT, _B, _B_ZERO_POINT),
        results=(
            Argument("y", lambda p: "int32", lambda p: ("M", "N"), "int32 sums, modulo 2**32 beyond int32, (M, N)"),
        ),
        parameters={"a_format": format_of("a"), "b_format": format_of("b"), **_GRANULARITIES},
        semantics=(),
        evaluate=_matmul_integer,
        independent=lambda p: ("M", "N"),
        variants=("a_format", "b_format", "activation_granularity", "weight_granularity"),
        constant=("b", "b_zero_point"),
        work=_multiply_adds,
        stored=("b", "b_zero_point"),
    )
)


def _qlinear_matmul(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    given: dict[str, Any] = {argument.name: case.array(argument.name) for argument in case.operation.arguments}
    given |= {name: case.parameters[name] for name in ("a_format", "b_format", "y_format")}
    choices = semantics.choices(case.operation.semantics)
    return {"y": reference.qlinear_matmul_enclosure(**given, **choices)}


qlinear_matmul = register(
    Operation(
        name="qlinear_matmul",
        summary="product of quantized matrices, quantized: a_scale b_scale / y_scale (a - a_zero_point) @ "
        "(b - b_zero_point), rounded, plus y_zero_point",
        source="ONNX QLinearMatMul, opset 21",
        arguments=(
            _A,
            Argument("a_scale", lambda p: "float32", _per_token, "float32, the shape of a_zero_point"),
            _A_ZERO_POINT,
            _B,
            Argument("b_scale", lambda p: "float32", _per_channel, "float32, the shape of b_zero_point"),
            _B_ZERO_POINT,
            Argument("y_scale", lambda p: "float32", lambda p: (), "float32, ()"),
            Argument("y_zero_point", lambda p: "int32", lambda p: (), "int32, ()"),
        ),
        results=(Argument("y", lambda p: p["y_format"], lambda p: ("M", "N"), "codes, (M, N)"),),
        parameters={
            "a_format": format_of("a"), "b_format": format_of("b"), "y_format": format_of("y"),
            **_GRANULARITIES,
        },
        semantics=OUTPUT_CHOICES,
        evaluate=_qlinear_matmul,
        independent=lambda p: ("M", "N"),
        variants=("a_format", "b_format", "y_format"),
        constant=("b", "b_scale", "b_zero_point"),
        work=_multiply_adds,
        stored=("b", "b_scale", "b_zero_point"),
    )
)  # fmt: skip
