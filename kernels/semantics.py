"""Semantics: the choices an implementation declares, and presets of well-known libraries."""

from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

from lowbit_cts.reference.accumulators import Accumulator
from lowbit_cts.reference.choices import (
    ActivationQuantization,
    AverageForm,
    BinPoint,
    BinSearch,
    BlockScaleSteps,
    Boundary,
    Contraction,
    DequantizeForm,
    Division,
    ElementSteps,
    EmptyCluster,
    EntropyRule,
    EqualCandidates,
    EqualValues,
    ExponentFloor,
    GlobalScaleRule,
    GradientForm,
    GradientMask,
    IndexCompletion,
    InfinityInBlock,
    LoraForm,
    MaskedGradient,
    NanInBlock,
    OutsideDomain,
    Overflow,
    PartPrecision,
    Precision,
    ProbabilityPrecision,
    QuantileRule,
    RangeRule,
    Requantization,
    Rounding,
    ScaleMode,
    ScaleRule,
    ScaleSearch,
    SignOfZero,
    SmallBlockScale,
    SoftmaxParts,
    TieSide,
    WeightPrecision,
    ZeroPointCorrection,
    ZeroPointOrder,
    ZeroPointRule,
    ZeroScale,
    chosen,
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
    accumulator, float_accumulator : Accumulator
        In which sums of products are added: of integer codes, and of floating-point numbers.
    division_ulps : float
        With an approximate `division`, `block_scale_steps` or `element_steps`: the largest error of a quotient in units
        of its last place, > 0.
    epsilon : float
        With ``zero_scale="epsilon"``: the smallest scale, > 0.
    slack : float
        Absolute error by design of a number whose code is looked up in a table over a grid: half a step of the grid.
    function_ulps : float
        The largest error of exp, tanh and powers in units of the last place of float32, > 0.
    normaliser_epsilon : float
        What is added to the sum that probabilities are divided by, so that it is not zero: 1e-6 in vLLM's
        PagedAttention kernels.
    distance_roundings : int
        Of codes chosen by the least distance, how many float32 roundings a distance carries: 1 of abs(x - c), 2 of
        (x - c)**2; 0 where numbers are compared with boundaries.
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
    float_accumulator: Accumulator = Accumulator.FLOAT32
    weight_precision: WeightPrecision = WeightPrecision.FLOAT32
    part_precision: PartPrecision = PartPrecision.FLOAT32
    activation_quantization: ActivationQuantization = ActivationQuantization.NONE
    lora_form: LoraForm = LoraForm.SEPARATE
    probability_precision: ProbabilityPrecision = ProbabilityPrecision.FLOAT32
    softmax_parts: SoftmaxParts = SoftmaxParts.ONE
    function_ulps: float = 4.0
    normaliser_epsilon: float = 0.0
    zero_point_correction: ZeroPointCorrection = ZeroPointCorrection.INTEGER
    requantization: Requantization = Requantization.FLOAT32
    index_completion: IndexCompletion = IndexCompletion.FOLLOWING
    scale_mode: ScaleMode = ScaleMode.FLOOR
    nan_in_block: NanInBlock = NanInBlock.NAN_SCALE
    infinity_in_block: InfinityInBlock = InfinityInBlock.NAN_SCALE
    global_scale_rule: GlobalScaleRule = GlobalScaleRule.AMAX_OVER_2688
    block_scale_steps: BlockScaleSteps = BlockScaleSteps.DIVIDE
    element_steps: ElementSteps = ElementSteps.DIVIDE
    small_block_scale: SmallBlockScale = SmallBlockScale.ZERO
    scale_search: ScaleSearch = ScaleSearch.GRID
    exponent_floor: ExponentFloor = ExponentFloor.FLOAT32_LOG2
    tie: TieSide = TieSide.LOWER
    boundary: Boundary = Boundary.ROUNDED
    equal_values: EqualValues = EqualValues.LOWEST_CODE
    slack: float = 0.0
    distance_roundings: int = 0
    empty_cluster: EmptyCluster = EmptyCluster.KEEP
    sign_of_zero: SignOfZero = SignOfZero.POSITIVE
    gradient_mask: GradientMask = GradientMask.CODE
    masked_gradient: MaskedGradient = MaskedGradient.ZERO
    gradient_form: GradientForm = GradientForm.DIRECT
    bin_search: BinSearch = BinSearch.EDGES
    quantile_rule: QuantileRule = QuantileRule.LINEAR
    bin_point: BinPoint = BinPoint.LEFT
    equal_candidates: EqualCandidates = EqualCandidates.FIRST
    average_form: AverageForm = AverageForm.INCREMENT
    entropy_rule: EntropyRule = EntropyRule.MIGACZ

    def __post_init__(self) -> None:
        """Turn values into members, and refuse what is none."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, StrEnum | Accumulator):
                try:
                    object.__setattr__(self, field.name, chosen(type(field.default), value))
                except ValueError as error:
                    raise SemanticsError(f"Semantics.{field.name}: {error}") from None
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if field.default == 0:
                if not number or not 0 <= value < float("inf"):
                    raise SemanticsError(f"Semantics.{field.name}: {value!r} must be zero or a positive number")
            elif not number or not 0 < value < float("inf"):
                raise SemanticsError(f"Semantics.{field.name}: {value!r} must be a positive number")

    def choices(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Return the named fields as keyword arguments of a reference function."""
        return {name: getattr(self, name) for name in names}

    def described(self, names: tuple[str, ...]) -> dict[str, str]:
        """Return the named fields as text, for evidence; numbers only where the choice beside them uses them."""
        idle = {
            "division_ulps": not any(getattr(self, name) == "approximate" for name in _DIVISIONS if name in names),
            "epsilon": self.zero_scale != "epsilon",
            "slack": self.slack == 0,
            "distance_roundings": self.distance_roundings == 0,
            "normaliser_epsilon": self.normaliser_epsilon == 0,
        }
        return {name: str(getattr(self, name)) for name in names if not idle.get(name)}


#: The choices that may leave a quotient open by `division_ulps`.
_DIVISIONS = ("division", "block_scale_steps", "element_steps")

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
    "tflite": Semantics(
        rounding=Rounding.HALF_AWAY,
        zero_scale=ZeroScale.ONE,
        requantization=Requantization.DOUBLE_ROUNDING,
    ),
    # Q8_0: roundf(x * (127 / amax)), a zero block gets a zero scale.
    "ggml": Semantics(rounding=Rounding.HALF_AWAY, division=Division.RECIPROCAL, zero_scale=ZeroScale.ZERO),
    "ocp_mx": Semantics(overflow=Overflow.SATURATE, scale_mode=ScaleMode.FLOOR, exponent_floor=ExponentFloor.EXACT),
    # 4 bits on the CPU. Its 8 bits: zero_scale=ZERO, slack=1 / 65535 + 2**-22 for a table over a grid.
    "bitsandbytes": Semantics(division=Division.RECIPROCAL, equal_values=EqualValues.BY_SIDE, epsilon=1e-38),
    # NF4; FP4: tie=TOWARD_ZERO, slack=4e-7 for thresholds of few digits; 8 bits: tie=EVEN_CODE.
    "bitsandbytes_cuda": Semantics(
        division=Division.APPROXIMATE, equal_values=EqualValues.BY_SIGN, zero_scale=ZeroScale.ZERO
    ),
    # gpu/convert_checkpoint.py: round(w * (1 / max(mean|w|, 1e-5))).
    "bitnet": Semantics(division=Division.RECIPROCAL, epsilon=1e-5),
    # MX (floor, ceil, even; with rceil infinities get the largest scale) and NVFP4, as their kernels have it.
    "torchao": Semantics(
        infinity_in_block=InfinityInBlock.NEXT_POWER,
        element_steps=ElementSteps.GLOBAL_FIRST,
        small_block_scale=SmallBlockScale.NORMAL,
        zero_scale=ZeroScale.ZERO,
    ),
    # MXFP4 and MXFP6 (MXFP8: even_e2m1) and NVFP4.
    "compressed_tensors": Semantics(
        scale_mode=ScaleMode.EVEN,
        global_scale_rule=GlobalScaleRule.RECIPROCAL,
        small_block_scale=SmallBlockScale.EIGHTH,
    ),
    "transformer_engine": Semantics(
        scale_mode=ScaleMode.RCEIL,
        nan_in_block=NanInBlock.IGNORED,
        infinity_in_block=InfinityInBlock.LARGEST_SCALE,
        global_scale_rule=GlobalScaleRule.SATURATED_RECIPROCAL,
        block_scale_steps=BlockScaleSteps.MULTIPLY,
        element_steps=ElementSteps.RECIPROCAL,
    ),
    # NVIDIA Model-Optimizer's NVFP4.
    "model_optimizer": Semantics(
        block_scale_steps=BlockScaleSteps.DIVIDE_BY_PRODUCT,
        small_block_scale=SmallBlockScale.SUBNORMAL,
    ),
}
