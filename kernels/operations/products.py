"""Products of quantized matrices: matmul_int8, matmul_w8a8."""

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference import products as reference
from lowbit_cts.reference.enclosure import Enclosure, determined


def _multiply_adds(case: Case) -> float:
    sizes = case.sizes
    return 2.0 * sizes["M"] * sizes["N"] * sizes["K"]


def _matmul_int8(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    return {"y": determined(reference.matmul_int8(case.array("a"), case.array("b")))}


def _matmul_w8a8(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    y = reference.matmul_w8a8_enclosure(
        case.array("a"), case.array("a_scale"), case.array("a_zero_point"),
        case.array("b"), case.array("b_scale"), case.arrays["bias"],
        output_format=case.parameters["output_format"],
        **semantics.choices(case.operation.semantics),
    )  # fmt: skip
    return {"y": y}


_A_FORMAT = Parameter(("int8", "uint8"), "the format of a", assumed=("int8",))
_B = Argument("b", lambda p: "int8", lambda p: ("K", "N"), "int8 weight codes, (K, N)")

matmul_int8 = register(
    Operation(
        name="matmul_int8",
        summary="the exact int32 product of int8 (or uint8) and int8 matrices",
        source="ONNX MatMulInteger, opset 10",
        arguments=(
            Argument("a", lambda p: p["a_format"], lambda p: ("M", "K"), "codes, (M, K)"),
            Argument("b", lambda p: "int8", lambda p: ("K", "N"), "codes, (K, N)"),
        ),
        results=(Argument("y", lambda p: "int32", lambda p: ("M", "N"), "int32 sums, (M, N)"),),
        parameters={"a_format": _A_FORMAT},
        semantics=(),
        evaluate=_matmul_int8,
        independent=lambda p: ("M", "N"),
        variants=("a_format",),
        constant=("b",),
        work=_multiply_adds,
    )
)


def _per_token(parameters: Parameters) -> tuple[str, ...]:
    return ("M",) if parameters["activation_granularity"] == "token" else ()


matmul_w8a8 = register(
    Operation(
        name="matmul_w8a8",
        summary="linear layer on 8-bit codes: a_scale b_scale (a - a_zero_point) @ b + bias",
        source="Jacob et al., arXiv:1712.05877, eq. (7); vLLM scaled_mm epilogues",
        arguments=(
            Argument("a", lambda p: p["a_format"], lambda p: ("M", "K"), "activation codes, (M, K)"),
            Argument("a_scale", lambda p: "float32", _per_token, "float32: () a tensor, (M,) a token"),
            Argument("a_zero_point", lambda p: "int32", _per_token, "int32, the shape of a_scale"),
            _B,
            Argument(
                "b_scale",
                lambda p: "float32",
                lambda p: ("N",) if p["weight_granularity"] == "channel" else (),
                "float32: () a tensor, (N,) a channel",
            ),
            Argument(
                "bias", lambda p: "float32", lambda p: ("N",), "float32, (N,), or None", present=lambda p: p["has_bias"]
            ),
        ),
        results=(Argument("y", lambda p: p["output_format"], lambda p: ("M", "N"), "outputs, (M, N)"),),
        parameters={
            "a_format": _A_FORMAT,
            "activation_granularity": Parameter(
                ("tensor", "token"), "one activation scale, or one a row", assumed=("token",)
            ),
            "weight_granularity": Parameter(
                ("tensor", "channel"), "one weight scale, or one a column", assumed=("channel",)
            ),
            "mapping": Parameter(
                ("symmetric", "asymmetric"), "symmetric: a_zero_point is 0 (uint8: 128)", assumed=("asymmetric",)
            ),
            "has_bias": Parameter((False, True), "whether a bias is added", assumed=(True,)),
            "output_format": Parameter(("float32", "float16", "bfloat16"), "the format of y", assumed=("float32",)),
        },
        semantics=("accumulator", "zero_point_correction"),
        evaluate=_matmul_w8a8,
        independent=lambda p: ("M", "N"),
        variants=("activation_granularity", "weight_granularity", "mapping", "output_format"),
        constant=("b", "b_scale"),
        work=_multiply_adds,
    )
)
