"""Semantics: the choices an implementation declares, and presets of well-known libraries."""

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from lowbit_cts.reference.choices import (
    Accumulator,
    Contraction,
    DequantizeForm,
    Division,
    OutsideDomain,
    Overflow,
    Precision,
    RangeRule,
    Rounding,
    ScaleRule,
    ZeroPointCorrection,
    ZeroPointOrder,
    ZeroPointRule,
    ZeroScale,
)


class SemanticsError(ValueError):
    """A semantics field has a value outside its admissible set."""


@dataclass(frozen=True, kw_only=True)
class Semantics:
    """What an implementation says it computes; each operation uses the fields it lists.

    The enumerations document their members (`lowbit_cts.reference.choices`). Members may be given by value, too:
    ``Semantics(rounding="half_away")``.

    Attributes
    ----------
    division_ulps : float
        With ``division="approximate"``: the largest error of a quotient in units of its last place, > 0.
    epsilon : float
        With ``zero_scale="epsilon"``: the smallest scale, > 0.
    """

    rounding: Rounding = Rounding.HALF_EVEN
    zero_point_order: ZeroPointOrder = ZeroPointOrder.OUTSIDE
    division: Division = Division.DIVIDE
    division_ulps: float = 2.0
    intermediate: Precision = Precision.FLOAT32
    contraction: Contraction = Contraction.SEPARATE
    scale_rule: ScaleRule = ScaleRule.QMAX
    range_rule: RangeRule = RangeRule.INCLUDE_ZERO
    zero_point_rule: ZeroPointRule = ZeroPointRule.ROUND_QUOTIENT
    zero_scale: ZeroScale = ZeroScale.EPSILON
    epsilon: float = 2.0**-23
    dequantize_form: DequantizeForm = DequantizeForm.SUBTRACT_FIRST
    overflow: Overflow = Overflow.SATURATE
    outside_domain: OutsideDomain = OutsideDomain.NAN
    accumulator: Accumulator = Accumulator.INT32
    zero_point_correction: ZeroPointCorrection = ZeroPointCorrection.INTEGER

    def __post_init__(self) -> None:
        """Turn values into members, and refuse what is none."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, StrEnum):
                choices = type(field.default)
                try:
                    object.__setattr__(self, field.name, choices(value))
                except ValueError:
                    admissible = ", ".join(choices)
                    raise SemanticsError(
                        f"Semantics.{field.name}: {value!r} is not admissible; admissible: {admissible}"
                    ) from None
            elif isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise SemanticsError(f"Semantics.{field.name}: {value!r} must be a positive number")

    def choices(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return the named fields as keyword arguments of a reference function."""
        return {name: getattr(self, name) for name in names}

    def described(self, names: tuple[str, ...]) -> dict[str, str]:
        """Return the named fields as text, for evidence; numbers only where the choice beside them uses them."""
        idle = {"division_ulps": self.division is not Division.APPROXIMATE, "epsilon": self.zero_scale != "epsilon"}
        return {name: str(getattr(self, name)) for name in names if not idle.get(name)}


_ONNX = Semantics(
    scale_rule=ScaleRule.HALF_RANGE,
    zero_point_rule=ZeroPointRule.ROUND_SUM,
    zero_scale=ZeroScale.ONE,
)

#: Well-known libraries' choices, as a start: ``dataclasses.replace(PRESETS["onnx"], division="reciprocal")``.
PRESETS: dict[str, Semantics] = {
    "onnx": _ONNX,
    # torch.ao observers and fake_quantize; the native quantize_per_* kernels differ (kernels/torch).
    "torch": replace(
        _ONNX,
        division=Division.RECIPROCAL,
        zero_point_rule=ZeroPointRule.ROUND_QUOTIENT,
        zero_scale=ZeroScale.EPSILON,
    ),
    "tflite": Semantics(rounding=Rounding.HALF_AWAY, zero_scale=ZeroScale.ONE),
    # Q8_0: roundf(x * (127 / amax)), a zero block gets a zero scale.
    "ggml": Semantics(rounding=Rounding.HALF_AWAY, division=Division.RECIPROCAL, zero_scale=ZeroScale.ZERO),
    "ocp_mx": Semantics(overflow=Overflow.SATURATE),
    "bitsandbytes": Semantics(division=Division.RECIPROCAL, zero_scale=ZeroScale.ZERO),
}
