"""The choices in which correct libraries differ: each an enumeration, none a default of nature.

Every reference function takes the choices that matter to it by keyword. The contract collects them in one
``Semantics`` (``lowbit_cts.kernels.semantics``).
"""

from collections.abc import Callable
from enum import StrEnum
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def takes_choices(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function's choices be given by value, too; a ValueError names those that are none.

    The choices are the keyword parameters annotated with an enumeration of this module.
    """
    choices: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature(function).parameters.items()
        if isinstance(parameter.annotation, type) and issubclass(parameter.annotation, StrEnum)
    }

    @wraps(function)
    def checked(*arguments: P.args, **keywords: P.kwargs) -> R:
        for name in choices.keys() & keywords.keys():
            try:
                keywords[name] = choices[name](keywords[name])
            except ValueError:
                admissible = ", ".join(choices[name])
                raise ValueError(f"{name}: {keywords[name]!r} is not admissible; admissible: {admissible}") from None
        return function(*arguments, **keywords)

    return checked


class Rounding(StrEnum):
    """How a real number becomes an integer or a neighbouring float (IEEE 754-2019 §4.3 and its relatives)."""

    HALF_EVEN = "half_even"  # to nearest, ties to even: 0.5 -> 0, 1.5 -> 2, -0.5 -> 0
    HALF_AWAY = "half_away"  # to nearest, ties away from zero: 0.5 -> 1, -0.5 -> -1
    HALF_TOWARD_ZERO = "half_toward_zero"  # to nearest, ties toward zero: 0.5 -> 0, -1.5 -> -1
    HALF_UP = "half_up"  # to nearest, ties toward +inf: floor(x + 1/2)
    HALF_DOWN = "half_down"  # to nearest, ties toward -inf: ceil(x - 1/2)
    TOWARD_ZERO = "toward_zero"  # truncation
    DOWN = "down"  # floor
    UP = "up"  # ceiling


class ZeroPointOrder(StrEnum):
    """Whether the zero point is added after the rounding or before it."""

    OUTSIDE = "outside"  # round(x / s) + z    (ONNX, onnxruntime, torch fake_quantize)
    INSIDE = "inside"  # round(x / s + z)    (torch quantize_per_tensor, XNNPACK, compressed-tensors)


class Division(StrEnum):
    """How x / s is computed."""

    DIVIDE = "divide"  # one IEEE division
    RECIPROCAL = "reciprocal"  # a multiplication by the rounded 1 / s
    APPROXIMATE = "approximate"  # within `division_ulps` units in the last place (__fdividef, rcp.approx)


class Precision(StrEnum):
    """The floating-point type of the intermediate results."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


class Contraction(StrEnum):
    """Whether a multiplication and the addition that follows it round once or twice."""

    SEPARATE = "separate"  # two roundings
    FUSED = "fused"  # one rounding (FMA)
    EITHER = "either"  # left to the compiler


class ScaleRule(StrEnum):
    """The scale of symmetric quantization, with z the middle of the code range."""

    QMAX = "qmax"  # max|x| / (qmax - z)                            (/127: TFLite weights, bitsandbytes, vLLM)
    HALF_RANGE = "half_range"  # max|x| / ((qmax - qmin) / 2)       (/127.5: torch observers, torchao, onnxruntime)
    NO_CLIPPING = "no_clipping"  # max(min(x, 0) / (qmin - z), max(x, 0) / (qmax - z))


class RangeRule(StrEnum):
    """Which interval asymmetric quantization covers."""

    INCLUDE_ZERO = "include_zero"  # [min(x, 0), max(x, 0)]: zero is exact
    AS_OBSERVED = "as_observed"  # [min x, max x] (AWQ, vLLM azp)


class ZeroPointRule(StrEnum):
    """How the zero point is rounded; the two differ at ties when qmin is odd, or when ties do not go to even."""

    ROUND_QUOTIENT = "round_quotient"  # qmin - round(min / s)   (torch)
    ROUND_SUM = "round_sum"  # round(qmin - min / s)             (onnxruntime, compressed-tensors)


class ZeroScale(StrEnum):
    """What becomes of a scale that comes out as zero (an all-zero or, where zero is not included, a constant input)."""

    EPSILON = "epsilon"  # s = max(s, epsilon), whatever s is
    ONE = "one"  # s = 1 where s is zero (or subnormal)
    ZERO = "zero"  # s = 0


class DequantizeForm(StrEnum):
    """The order of subtraction and multiplication in s * (q - z)."""

    SUBTRACT_FIRST = "subtract_first"  # (q - z) * s: one rounding
    SCALE_FIRST = "scale_first"  # q * s - z * s: up to three roundings, or fused


class Overflow(StrEnum):
    """What a float8 cast makes of a magnitude beyond the largest finite value."""

    SATURATE = "saturate"  # the largest finite value, for infinities too
    SATURATE_FINITE = "saturate_finite"  # for finite inputs only; infinities stay Inf, or NaN where there is none
    INFINITY_OR_NAN = "infinity_or_nan"  # Inf where the format has one, else NaN


class Accumulator(StrEnum):
    """The type in which a product of matrices is summed."""

    INT32 = "int32"  # exact, wraps
    FLOAT32 = "float32"  # any order
    FLOAT64 = "float64"  # any order


class ZeroPointCorrection(StrEnum):
    """Where the activations' zero point leaves the product: z_a * colsum(B)."""

    INTEGER = "integer"  # subtracted exactly, in int32, before any scale
    FLOAT = "float"  # subtracted after the conversion to floating point
