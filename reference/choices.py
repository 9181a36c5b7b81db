"""The choices in which correct libraries differ: each an enumeration, none a default of nature.

Every reference function takes the choices that matter to it by keyword. The contract collects them in one
``Semantics`` (``lowbit_cts.kernels.semantics``).
"""

from collections.abc import Callable
from enum import StrEnum
from functools import partial, wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def chosen(kind: Any, value: object) -> Any:
    """Return the member of an enumeration, or what a class parses, of a value; ValueError with the admissible ones."""
    if hasattr(kind, "parse"):
        return kind.parse(value)
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{value!r} is not admissible; admissible: {', '.join(kind)}") from None


def takes_choices(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function's choices be given by value, too; a ValueError names those that are none.

    The choices are the keyword parameters annotated with an enumeration of this module, or with a class that parses
    names (`lowbit_cts.reference.accumulators.Accumulator`).
    """
    choices: dict[str, Callable[[Any], Any]] = {
        name: partial(chosen, parameter.annotation)
        for name, parameter in signature(function).parameters.items()
        if isinstance(parameter.annotation, type)
        and (issubclass(parameter.annotation, StrEnum) or hasattr(parameter.annotation, "parse"))
    }

    @wraps(function)
    def checked(*arguments: P.args, **keywords: P.kwargs) -> R:
        for name in choices.keys() & keywords.keys():
            try:
                keywords[name] = choices[name](keywords[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
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
    STOCHASTIC = "stochastic"  # up or down, each the likelier the nearer; only where an operation says so


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
    UNIT_RANGE = "unit_range"  # affine ranges: as if the range were 1, s = 1 / (qmax - qmin)   (ONNX's evaluator)


class DequantizeForm(StrEnum):
    """The order of subtraction and multiplication in s * (q - z)."""

    SUBTRACT_FIRST = "subtract_first"  # (q - z) * s: one rounding
    SCALE_FIRST = "scale_first"  # q * s - z * s: up to three roundings, or fused


class Overflow(StrEnum):
    """What a cast makes of a magnitude beyond the largest finite value."""

    SATURATE = "saturate"  # the largest finite value, for infinities too
    SATURATE_FINITE = "saturate_finite"  # for finite inputs only; infinities stay Inf, or NaN where there is none
    INFINITY_OR_NAN = "infinity_or_nan"  # Inf where the format has one, else NaN


class OutsideDomain(StrEnum):
    """What a format with neither zero nor sign (E8M0) makes of zero and negative numbers."""

    NAN = "nan"  # NaN (ml_dtypes)
    MAGNITUDE = "magnitude"  # the sign is dropped, zero becomes the smallest number (torch)


class Requantization(StrEnum):
    """How a sum in int32 is scaled to codes, before the zero point is added and the codes are clamped."""

    DOUBLE_ROUNDING = "double_rounding"  # 31-bit multiplier, ties up, then a shift, ties away (gemmlowp, TFLite)
    SINGLE_ROUNDING = "single_rounding"  # 31-bit multiplier and shift at once, ties up (TFLITE_SINGLE_ROUNDING)
    FLOAT32 = "float32"  # float32(sum) * scale in float32, ties to even (XNNPACK fp32, FBGEMM, onnxruntime)
    RNDNU = "rndnu"  # 24-bit multiplier, the float32 scale itself, and shift at once, ties up (XNNPACK on Arm)
    RNDNU16 = "rndnu16"  # a shift to 16 bits, then a 15-bit multiplier, ties up twice (XNNPACK's uint8 on Arm)
    DOUBLE_ROUNDING_UP = "double_rounding_up"  # 31-bit multiplier, then a shift, ties up twice (ruy on AVX-512)


class IndexCompletion(StrEnum):
    """The two indices of a group of 2:4 sparse elements of which fewer than two are not zero."""

    FOLLOWING = "following"  # (0, 2), (1, 2) and (2, 3) of one at 0, 1 and 2; (2, 3) of one at 3, and of none (torch)
    ANY = "any"  # any two ascending ones that hold what there is   (CUTLASS for sm_90: (i, 3), and (0, 3) of one at 3)


class ScaleMode(StrEnum):
    """The exponent of an MX block's scale: from the block's largest magnitude, amax, and the format of its elements."""

    FLOOR = "floor"  # floor(log2 amax) - emax             (OCP MX 1.0 §6.3: microxcaling, ggml, torchao)
    CEIL = "ceil"  # ceil(log2 amax) - emax                (torchao)
    RCEIL = "rceil"  # ceil(log2(amax / max)), the quotient in float32   (cuBLAS, TransformerEngine, torchao)
    EVEN = "even"  # floor, of amax rounded half up to the mantissa of the elements    (torchao, compressed-tensors)
    EVEN_E2M1 = "even_e2m1"  # floor, of amax rounded half up to E2M1's one bit  (compressed-tensors for MXFP8)


class NanInBlock(StrEnum):
    """What a NaN makes of the scale of its block (MX, NVFP4)."""

    NAN_SCALE = "nan_scale"  # NaN, and with it the whole block        (torchao, microxcaling, compressed-tensors)
    IGNORED = "ignored"  # the scale is that of the numbers beside it  (TransformerEngine: IEEE's maximumNumber)


class InfinityInBlock(StrEnum):
    """What an infinity makes of the E8M0 scale of its block."""

    NAN_SCALE = "nan_scale"  # NaN, and with it the whole block    (microxcaling, compressed-tensors)
    LARGEST_SCALE = "largest_scale"  # 2**127       (TransformerEngine, torchao's rceil: cvt.satfinite.ue8m0x2)
    NEXT_POWER = "next_power"  # it counts as 2**128        (torchao's floor, ceil and even)


class GlobalScaleRule(StrEnum):
    """The float32 scale of a whole NVFP4 matrix: which number is stored."""

    AMAX_OVER_2688 = "amax_over_2688"  # g = amax / (6 * 448), x ~ e s g          (torchao, Model-Optimizer)
    RECIPROCAL = "reciprocal"  # G = 6 * 448 / amax, x ~ e s / G; 1 where infinite     (compressed-tensors)
    SATURATED_RECIPROCAL = "saturated_reciprocal"  # the same; the largest float32 where infinite (TransformerEngine)


class BlockScaleSteps(StrEnum):
    """The float32 operations of an NVFP4 block scale before its rounding to E4M3; g = 1 / G is the global scale."""

    DIVIDE = "divide"  # (amax / 6) / g, or (amax / 6) * G      (torchao, compressed-tensors)
    DIVIDE_BY_PRODUCT = "divide_by_product"  # amax / (6 g), or amax / (6 / G)      (Model-Optimizer)
    MULTIPLY = "multiply"  # amax * (G * (1/6))                 (TransformerEngine)
    APPROXIMATE = "approximate"  # any of them, or others, with approximate reciprocals     (vLLM)


class ElementSteps(StrEnum):
    """The float32 operations that scale an NVFP4 element before its rounding; g = 1 / G is the global scale."""

    DIVIDE = "divide"  # x / (s g), or x / (s / G)              (Model-Optimizer, compressed-tensors)
    RECIPROCAL = "reciprocal"  # x * (1 / (s g)), with g = 1 / G        (TransformerEngine)
    GLOBAL_FIRST = "global_first"  # x * ((1 / g) / s), or x * (G / s)  (torchao, MSLK)
    APPROXIMATE = "approximate"  # any of them, or others, with approximate reciprocals     (vLLM)


class SmallBlockScale(StrEnum):
    """The least E4M3 scale of an NVFP4 block."""

    ZERO = "zero"  # 0, and with it the whole block             (TransformerEngine)
    NORMAL = "normal"  # 2**-6, the smallest normal number      (torchao)
    SUBNORMAL = "subnormal"  # 2**-9; 1 of a zero block         (Model-Optimizer)
    EIGHTH = "eighth"  # what rounds to 0 becomes 2**-3         (compressed-tensors)


class WeightPrecision(StrEnum):
    """To what a weight is dequantized before it is multiplied."""

    FLOAT32 = "float32"  # to float32, or not at all: the codes are multiplied, and the sums scaled in float32
    ACTIVATIONS = "activations"  # to the format of the activations     (Marlin, AWQ, tinygemm: fp16 or bf16 weights)
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class PartPrecision(StrEnum):
    """To what the value of a code and its scale are rounded before they are multiplied; the product is not rounded."""

    FLOAT32 = "float32"  # not at all
    BFLOAT16 = "bfloat16"  # each to bfloat16    (bitsandbytes' packed weights, on CPUs with AVX512-BF16)


class ActivationQuantization(StrEnum):
    """Whether a layer quantizes the activations that it is given in floating point."""

    NONE = "none"  # they are multiplied as they are
    GGML = "ggml"  # to the blocks of 8 bits that go with the weights' type: Q8_0, Q8_1, Q8_K   (ggml on the CPU)


class ProbabilityPrecision(StrEnum):
    """To what the probabilities of attention are rounded before the values are multiplied by them."""

    FLOAT32 = "float32"  # to float32, or not at all                             (vLLM's PagedAttention kernels)
    ACTIVATIONS = "activations"  # to the format of the activations              (FlashAttention, on tensor cores)


class SoftmaxParts(StrEnum):
    """Whether the context of a token has one normaliser in attention."""

    ONE = "one"  # one maximum and one sum, perhaps rescaled on the way         (FlashAttention, PagedAttention V1)
    SEVERAL = "several"  # parts have their own, combined by the log of their sums (Flash-Decoding, PagedAttention V2)


class LoraForm(StrEnum):
    """How a LoRA adapter is applied."""

    SEPARATE = "separate"  # x w + s (x a) b
    MERGED = "merged"  # x (w + s a b), the weights rounded to their format   (PEFT's merge)


class ZeroPointCorrection(StrEnum):
    """Where the activations' zero point leaves the product: z_a * colsum(B)."""

    INTEGER = "integer"  # subtracted exactly, in int32, before any scale
    FLOAT = "float"  # subtracted after the conversion to floating point


class TieSide(StrEnum):
    """Which of two neighbouring values of a codebook a number halfway between them goes to."""

    LOWER = "lower"  # the lesser value               (bitsandbytes: NF4, and FP4 on CPU; torch.bucketize)
    UPPER = "upper"  # the greater value              (torch.bucketize with right=True, numpy.digitize)
    TOWARD_ZERO = "toward_zero"  # the lesser magnitude, of equal ones the lesser value   (bitsandbytes FP4 on CUDA)
    LOWEST_CODE = "lowest_code"  # the smaller code   (an argmin over the codebook)
    EVEN_CODE = "even_code"  # the even code, else the lesser value   (bitsandbytes 8-bit on CUDA: a search by halves)


class Boundary(StrEnum):
    """Where the boundary between two neighbouring values a < b of a codebook lies."""

    EXACT = "exact"  # at (a + b) / 2, unrounded: the nearest value
    ROUNDED = "rounded"  # at (a + b) / 2 in float32     (bitsandbytes; any table of thresholds)


class EqualValues(StrEnum):
    """Which of several codes that stand for the same value is written; FP4 has two zeros."""

    LOWEST_CODE = "lowest_code"  # the smallest
    BY_SIDE = "by_side"  # up to the value the smallest, above it the greatest   (bitsandbytes on CPU: a sorted table)
    BY_SIGN = "by_sign"  # of two zeros that of the sign, below 0 the negative   (bitsandbytes on CUDA)


class EmptyCluster(StrEnum):
    """What becomes of a centroid to which no sample was assigned."""

    KEEP = "keep"  # it stays where it was       (scipy.cluster.vq.kmeans2)
    FARTHEST = "farthest"  # it moves to the sample farthest from its own centroid    (scikit-learn)


class Initialisation(StrEnum):
    """Where k-means on a line starts from."""

    QUANTILES = "quantiles"  # the quantiles (i + 1/2) / k of the samples
    UNIFORM = "uniform"  # the middles of k equal parts of [min x, max x]


class SignOfZero(StrEnum):
    """The binary code of a weight that is zero."""

    POSITIVE = "positive"  # +1                            (w >= 0)
    SIGN_BIT = "sign_bit"  # +1 of +0, -1 of -0            (kernels that take the sign bit)
    ZERO = "zero"  # 0, a third code                       (torch.sign, numpy.sign)


class TernaryRule(StrEnum):
    """Which weights become zero, and the scale of the others."""

    TWN = "twn"  # those up to 0.7 mean|w|; the scale is the mean |w| of the others     (Li and Liu 2016)
    BITNET = "bitnet"  # w / mean|w| rounds to zero; the scale is mean|w|               (BitNet b1.58)


class GradientMask(StrEnum):
    """Through which elements a straight-through estimator lets the gradient of a quantizer pass."""

    CODE = "code"  # qmin <= round(x / s) + z <= qmax, before it is clamped     (torch fake_quantize, torchao)
    QUOTIENT = "quotient"  # qmin - z < x / s < qmax - z                        (LSQ, eq. 5)
    QUOTIENT_CLOSED = "quotient_closed"  # the same with its edges      (autograd of a clamp before the rounding)
    RANGE = "range"  # s (qmin - z) <= x <= s (qmax - z), the ends in float32   (TensorFlow FakeQuantWithMinMaxVars)


class MaskedGradient(StrEnum):
    """The gradient of an element through which none passes."""

    ZERO = "zero"  # 0                                                          (a selection; autograd of clamp)
    PRODUCT = "product"  # upstream * 0, NaN of infinities and NaN              (torch fake_quantize)


class GradientForm(StrEnum):
    """Whether a quantizer's gradient is its formula, or the product of the derivatives of its steps."""

    DIRECT = "direct"  # dx = upstream; dscale = g sum(upstream (round(v / s) - v / s))      (LSQ, eq. 3; torch)
    CHAIN = "chain"  # dx = upstream s / s; dscale = g (sum(upstream round(v / s)) - sum(upstream v / s))   (autograd)


class ScaleSearch(StrEnum):
    """How the scales of a GGUF block are found."""

    ONE_SHOT = "one_shot"  # of IQ4_NL, least squares for the codes at max / -127   (ggml, quantize_row_iq4_nl_ref)
    GRID = "grid"  # as ggml's quantizers do; of IQ4_NL the best of 16 of those, then the codes anew (quantize_iq4_nl)
    ANY = "any"  # in a way of one's own, for which only the codes are nearest      (importance matrices, AutoRound)


class ExponentFloor(StrEnum):
    """How floor(log2(x)) of a shared power-of-two scale is computed."""

    EXACT = "exact"  # the exponent                                                 (OCP MX v1.0)
    FLOAT32_LOG2 = "float32_log2"  # of the rounded logarithm: one too much just below powers of two (ggml, gguf-py)


class BinSearch(StrEnum):
    """How the bin of a number is found in a histogram of equal bins."""

    EDGES = "edges"  # the number is compared with the edges of the bins              (numpy.histogram)
    POSITION = "position"  # floor((x - low) * bins / (high - low)), in any association       (torch.histc)


class QuantileRule(StrEnum):
    """Which number the p-quantile of n sorted numbers is, counted from 0."""

    LINEAR = "linear"  # between those around (n - 1) p, in proportion       (numpy.quantile, torch.quantile)
    LOWER = "lower"  # that at floor((n - 1) p)
    HIGHER = "higher"  # that at ceil((n - 1) p)
    NEAREST = "nearest"  # that at (n - 1) p rounded half to even
    NEAREST_RANK = "nearest_rank"  # that at ceil(n p) - 1, the first of which at least the part p is at or below it


class BinPoint(StrEnum):
    """Which point of the bin that a search has found is the end of the range."""

    LEFT = "left"  # its left edge          (onnxruntime; Model Optimizer's percentile and entropy)
    CENTRE = "centre"  # its middle         (Model Optimizer's MSE; TensorRT, Migacz 2017: (m + 0.5) * width)
    RIGHT = "right"  # its right edge, so that the whole bin is inside


class EqualCandidates(StrEnum):
    """Which of several candidates with the same objective is chosen."""

    FIRST = "first"  # the first tried      (onnxruntime; Model Optimizer's MSE; numpy.argmin)
    LAST = "last"  # the last               (Model Optimizer's entropy)


class AverageForm(StrEnum):
    """How a moving average takes in a new number."""

    INCREMENT = "increment"  # m + c (new - m)          (torch's observers)
    WEIGHTED = "weighted"  # (1 - c) m + c new          (TensorFlow)


class EntropyRule(StrEnum):
    """What the entropy search compares: P, the bins that are kept, and Q, the same quantized to few levels.

    `lowbit_cts.reference.calibration.entropy.RULES` says what each does with the first bin, the levels and empty bins.
    """

    MIGACZ = "migacz"  # TensorRT's: the levels share the bins evenly, the bins that are not empty share a level
    NEIGHBOUR = "neighbour"  # the same, the count of the first bin replaced by that of the second  (Model Optimizer)
    SMOOTHED = "smoothed"  # whole bins a level, whole counts a bin, 0 becomes 1e-4  (onnxruntime)
