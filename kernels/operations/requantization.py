"""Fixed-point requantization: requantize."""

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference import requantization as reference
from lowbit_cts.reference.enclosure import Enclosure


def _sums(parameters: Parameters) -> tuple[str, ...]:
    return ("M", "N")


def _scales(parameters: Parameters) -> tuple[str, ...]:
    return ("N",) if parameters["granularity"] == "channel" else ()


def _requantize(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    codes = reference.requantize_enclosure(
        case.array("acc"), case.array("scale"), case.array("zero_point"),
        format=case.parameters["format"], variant=semantics.requantization,
    )  # fmt: skip
    return {"codes": codes}


requantize = register(
    Operation(
        name="requantize",
        summary="int32 sums to codes: saturate(round(acc * scale) + zero_point)",
        source="Jacob et al., arXiv:1712.05877, §2.2; TensorFlow Lite, common.cc; XNNPACK, requantization.h",
        arguments=(
            Argument("acc", lambda p: "int32", _sums, "int32 sums, (M, N)"),
            Argument(
                "scale", lambda p: "float32", _scales, "float32 in [2**-32, 256), input scales over the output's: () a "
                "tensor, (N,) a channel",
            ),
            Argument("zero_point", lambda p: "int32", _scales, "int32, the shape of scale"),
        ),
        results=(Argument("codes", lambda p: p["format"], _sums, "codes, (M, N)"),),
        parameters={
            "format": Parameter(("int8", "uint8"), "the format of the codes", assumed=("int8",)),
            "granularity": Parameter(
                ("tensor", "channel"), "one scale and zero point, or one a column", assumed=("tensor",)
            ),
        },
        semantics=("requantization",),
        evaluate=_requantize,
        independent=lambda p: ("M", "N"),
        variants=("format", "granularity"),
        constant=("scale", "zero_point"),
        work=lambda case: 4.0 * case.array("acc").size,
    )
)  # fmt: skip
