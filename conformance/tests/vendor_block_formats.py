"""A vendor's block formats: right kernels of several semantics, and the same with one planted fault each."""

from dataclasses import replace

import numpy as np

from lowbit_cts.kernels import (
    PRESETS,
    Backend,
    BlockScaleSteps,
    Division,
    ElementSteps,
    GlobalScaleRule,
    InfinityInBlock,
    NanInBlock,
    Overflow,
    Rounding,
    ScaleMode,
    Semantics,
    SmallBlockScale,
)
from lowbit_cts.kernels.numpy import block_formats, small_floats
from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import decode, float_format

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

F = np.float32
E2M1, E4M3 = "float4_e2m1fn", "float8_e4m3fn"
FOUR, EIGHT, INT8 = {"format": E2M1}, {"format": E4M3}, {"format": "int8"}
BOTH = {"levels": ("two", "one")}
#: Element format to its largest exponent, mantissa bits and largest value.
LARGEST = {
    E4M3: (8, 3, 448.0),
    "float8_e5m2": (15, 2, 57344.0),
    "float6_e3m2fn": (4, 2, 28.0),
    "float6_e2m3fn": (2, 3, 7.5),
    E2M1: (2, 1, 6.0),
    "int8": (0, 6, 127 / 64),
}


def blocks_of(x, size=32):
    return x.reshape(x.shape[0], x.shape[1] // size, size)


def power_of(maximum, mode, format):
    """Return the E8M0 code, not yet clipped, of finite maxima in float32, by exact exponents."""
    largest, bits, value = LARGEST[format]
    maximum = maximum.astype(np.float64)
    if mode == "rceil":
        maximum = (maximum.astype(F) / F(value)).astype(np.float64)
    half, exponent = np.frexp(maximum)
    raised = {"floor": 0, "ceil": half > 0.5, "rceil": half > 0.5, "even": half >= 1 - 2.0 ** -(bits + 2),
              "even_e2m1": half >= 0.875}[mode]  # fmt: skip
    code = exponent - 1 + raised + 127 - (0 if mode == "rceil" else largest)
    return np.where(maximum > 0, code, 0)


def elements_of(blocks, scale, format, rounding=Rounding.HALF_EVEN, low=-128, random=None):
    """Return the codes of blocks under E8M0 scales."""
    with np.errstate(all="ignore"):
        values = blocks * (2.0 ** (127.0 - scale))[..., None]
    values = np.where((scale == 255)[..., None], 0.0, values)
    if format == "int8":
        steps = (
            np.copysign(np.floor(np.abs(values * 64) + 0.5), values)
            if rounding == "half_away"
            else np.rint(values * 64)
        )
        return np.nan_to_num(np.clip(steps, low, 127), nan=0).astype(np.int8).reshape(len(blocks), -1)
    codes = encode(values, float_format(format), rounding, Overflow.SATURATE, random=random)
    return codes.reshape(len(blocks), -1)


def mx(x, format, mode="floor", rounding=Rounding.HALF_EVEN, low=-128, random=None):
    """Return codes and scales with NaN for every block that holds NaN or Inf."""
    blocks = blocks_of(x.astype(F))
    maximum = np.abs(blocks).max(axis=2, initial=0)
    finite = np.isfinite(maximum)
    scale = np.clip(power_of(np.where(finite, maximum, 1), mode, format), 0, 254)
    scale = np.where(finite, scale, 255).astype(np.uint8)
    return elements_of(blocks, scale, format, rounding, low, random), scale


def nvfp4(
    x, stored, *, quotient, factor, small=lambda scale: scale, maximum=None, ties=Rounding.HALF_EVEN, random=None
):
    """Return codes and scales: `quotient` of (amax, stored) before E4M3, and x as `factor` scales it before E2M1."""
    blocks = blocks_of(x.astype(F), 16)
    largest = np.abs(blocks).max(axis=2, initial=0) if maximum is None else maximum(blocks)
    with np.errstate(all="ignore"):
        scale = small(encode(quotient(largest, stored), float_format(E4M3), overflow=Overflow.SATURATE) & 0x7F)
        values = factor(blocks, decode(scale, float_format(E4M3)).astype(F)[..., None], stored)
    values = np.where((scale & 0x7F == 0)[..., None] | np.isnan(values), F(0), values)
    return encode(values, float_format(E2M1), ties, Overflow.SATURATE, random=random).reshape(x.shape), scale


def plain(x, global_scale, **changes):
    """Return NVFP4 as the definition has it: (amax / 6) / g, x / (s g)."""
    g = F(1) if global_scale is None else F(global_scale)
    steps = {"quotient": lambda amax, g: amax / F(6) / g, "factor": lambda x, s, g: x / (s * g)}
    return nvfp4(x, g, **steps | changes)


def decoded(codes, scale, global_scale):
    g = F(1) if global_scale is None else F(global_scale)
    with np.errstate(all="ignore"):
        steps = decode(scale, float_format(E4M3)).astype(F) * g
        values = blocks_of(decode(codes, float_format(E2M1)).astype(F), 16) * steps[..., None]
    return values.reshape(codes.shape)


# Right kernels ------------------------------------------------------------------------------------------------------


@right.implements("quantize_mx", semantics=Semantics(scale_mode="ceil"), supports={"format": (E4M3, "float6_e2m3fn")})
def rounds_scales_up(x, *, format):
    return mx(x, format, "ceil")


@right.implements("quantize_mx", semantics=Semantics(scale_mode="even"), supports={"format": (E2M1, "float6_e3m2fn")})
def rounds_maxima(x, *, format):
    return mx(x, format, "even")


@right.implements("quantize_mx", semantics=Semantics(scale_mode="even_e2m1"))
def rounds_maxima_to_one_bit(x):
    return mx(x, E4M3, "even_e2m1")


@right.implements("quantize_mx", semantics=PRESETS["transformer_engine"], supports={"format": ("float8_e5m2", E4M3)})
def of_transformer_engine(x, *, format):
    """Take no notice of NaN beside numbers, and saturate the scale of an infinity."""
    blocks = blocks_of(x)
    maximum = np.where(np.isnan(blocks), F(0), np.abs(blocks)).max(axis=2, initial=F(0))
    scale = np.where(np.isinf(maximum), 254, power_of(np.where(np.isinf(maximum), 1, maximum), "rceil", format))
    scale = np.clip(scale, 0, 254).astype(np.uint8)
    return elements_of(blocks, scale, format), scale


@right.implements(
    "quantize_mx",
    semantics=Semantics(infinity_in_block=InfinityInBlock.NEXT_POWER),
    supports={"format": (E4M3, E2M1), "input_format": "float16"},
)
def next_power_of_infinity(x, *, format):
    blocks = blocks_of(x.astype(F))
    maximum = np.abs(blocks).max(axis=2, initial=0)
    power = power_of(np.where(np.isfinite(maximum), maximum, 1), "floor", format)
    scale = np.where(np.isinf(maximum), 255 - LARGEST[format][0], np.clip(power, 0, 254))
    scale = np.where(np.isnan(maximum), 255, scale).astype(np.uint8)
    return elements_of(blocks, scale, format), scale


@right.implements(
    "quantize_mx",
    semantics=Semantics(rounding=Rounding.HALF_AWAY),
    supports={"format": ("int8", "float6_e2m3fn"), "narrow_range": True},
)
def of_microxcaling(x, *, format):
    return mx(x, format, rounding=Rounding.HALF_AWAY, low=-127)


@right.implements("quantize_mx", semantics=Semantics(rounding=Rounding.HALF_TOWARD_ZERO), supports=FOUR)
def of_ggml(x):
    return mx(x, E2M1, rounding=Rounding.HALF_TOWARD_ZERO)


@right.implements(
    "quantize_mx",
    semantics=Semantics(scale_mode="rceil", division=Division.APPROXIMATE, division_ulps=2),
    supports=FOUR,
)
def approximate_scales(x):
    blocks = blocks_of(x)
    maximum = np.abs(blocks).max(axis=2, initial=0)
    finite = np.isfinite(maximum)
    quotient = np.nextafter(np.where(finite, maximum, 1) / F(6), F(np.inf))
    half, exponent = np.frexp(np.where(finite & (maximum > 0), quotient, 2.0**-130).astype(np.float64))
    scale = np.where(finite, np.clip(exponent + 126 + (half > 0.5), 0, 254), 255).astype(np.uint8)
    return elements_of(blocks, scale, E2M1), scale


_rng = np.random.default_rng()


@right.implements(
    "quantize_mx", semantics=Semantics(rounding=Rounding.STOCHASTIC), supports={"format": (E4M3, "float6_e3m2fn")}
)
def stochastic(x, *, format):
    return mx(x, format, rounding=Rounding.STOCHASTIC, random=_rng.random(blocks_of(x).shape))


@right.implements("dequantize_mx", supports={"format": (E2M1, "int8"), "output_format": "float16"})
def scales_of_eight_bits(codes, scale, *, format):
    elements = codes / 64 if format == "int8" else decode(codes, float_format(format))
    factors = np.ldexp(1.0, scale.astype(int) - 127)
    with np.errstate(all="ignore"):
        values = blocks_of(elements) * np.where(scale == 255, np.nan, factors)[..., None]
        return values.reshape(codes.shape).astype(np.float16)


@right.implements("quantize_nvfp4", semantics=PRESETS["transformer_engine"], supports=BOTH)
def nvfp4_of_transformer_engine(x, global_scale):
    def maximum(blocks):
        return np.where(np.isnan(blocks), F(0), np.abs(blocks)).max(axis=2, initial=F(0))

    return nvfp4(
        x,
        F(1) if global_scale is None else global_scale,
        quotient=lambda amax, G: amax * (G * F(1 / 6)),
        factor=lambda x, s, G: x * np.minimum(F(1) / (s * (F(1) / G)), np.finfo(F).max),
        maximum=maximum,
    )


@right.implements("quantize_nvfp4", semantics=PRESETS["model_optimizer"], supports=BOTH)
def nvfp4_of_model_optimizer(x, global_scale):
    def quotient(amax, g):
        found = amax / (F(6) * g)
        return np.maximum(np.where(found == 0, F(1), found), F(2.0**-9))

    return plain(x, global_scale, quotient=quotient)


@right.implements("quantize_nvfp4", semantics=PRESETS["compressed_tensors"], supports=BOTH)
def nvfp4_of_compressed_tensors(x, global_scale):
    eighth = encode(np.array(0.125), float_format(E4M3))
    return plain(
        x,
        global_scale,
        quotient=lambda amax, G: amax / F(6) * G,
        factor=lambda x, s, G: x / (s / G),
        small=lambda scale: np.where(scale == 0, eighth, scale).astype(np.uint8),
    )


@right.implements(
    "quantize_nvfp4", semantics=PRESETS["torchao"], supports={**BOTH, "input_format": ("float32", "float16")}
)
def nvfp4_of_torchao(x, global_scale):
    return plain(
        x,
        global_scale,
        quotient=lambda amax, g: np.maximum(amax / F(6) / g, F(2.0**-6)),
        factor=lambda x, s, g: x * (F(1) / g / s),
    )


@right.implements(
    "quantize_nvfp4",
    semantics=Semantics(
        block_scale_steps=BlockScaleSteps.APPROXIMATE, element_steps=ElementSteps.APPROXIMATE, division_ulps=2
    ),
)
def approximate_steps(x, global_scale):
    def about(reciprocal):
        return np.nextafter(F(1) / reciprocal, F(np.inf))

    return plain(
        x,
        global_scale,
        quotient=lambda amax, g: amax * F(1 / 6) * about(g),
        factor=lambda x, s, g: x * (about(g) * about(s)),
    )


@right.implements("quantize_nvfp4", semantics=Semantics(rounding=Rounding.STOCHASTIC), supports=BOTH)
def nvfp4_stochastic(x, global_scale):
    return plain(x, global_scale, ties=Rounding.STOCHASTIC, random=_rng.random(blocks_of(x, 16).shape))


@right.implements("dequantize_nvfp4", supports={**BOTH, "output_format": ("float32", "float16")})
def global_scale_first(codes, scale, global_scale, *, output_format):
    g = F(1) if global_scale is None else global_scale
    with np.errstate(all="ignore"):
        elements = blocks_of(decode(codes, float_format(E2M1)).astype(F) * g, 16)
        values = elements * decode(scale, float_format(E4M3)).astype(F)[..., None]
        return values.reshape(codes.shape).astype(output_format)


@right.implements("dequantize_nvfp4", semantics=PRESETS["compressed_tensors"])
def divides_by_the_reciprocal(codes, scale, global_scale):
    steps = decode(scale, float_format(E4M3)).astype(F) / global_scale
    return (blocks_of(decode(codes, float_format(E2M1)).astype(F), 16) * steps[..., None]).reshape(codes.shape)


_STORES_G = Semantics(global_scale_rule=GlobalScaleRule.RECIPROCAL, division=Division.RECIPROCAL)
_SATURATES_G = Semantics(global_scale_rule=GlobalScaleRule.SATURATED_RECIPROCAL)


@right.implements("choose_global_scale_nvfp4", semantics=_STORES_G)
def reciprocal_of_the_maximum(x):
    with np.errstate(all="ignore"):
        G = F(2688) * (F(1) / np.abs(x).max())
    return np.asarray(G if np.isfinite(G) else 1, F)


@right.implements("choose_global_scale_nvfp4", semantics=_SATURATES_G)
def saturated_reciprocal(x):
    amax = np.abs(x).max()
    with np.errstate(all="ignore"):
        return np.asarray(min(F(2688) / amax, np.finfo(F).max) if amax > 0 else 1, F)


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def plant(operation, expected="must be", **declared):
    """Register a wrong kernel, and what its failure must say."""

    def enter(function):
        EXPECTED[function.__name__] = expected
        return wrong.implements(operation, **declared)(function)

    return enter


RCEIL = Semantics(scale_mode=ScaleMode.RCEIL)


def rescaled(x, format, change, **choices):
    """Return MX blocks whose scales are changed after the fact, elements with them."""
    _, scale = mx(x, format, **choices)
    scale = np.asarray(change(scale.astype(int), blocks_of(x))).astype(np.uint8)
    return elements_of(blocks_of(x), scale, format), scale


@plant("quantize_mx")
def floor_of_float32_logarithm(x):
    """Trap: microxcaling, gguf-py, ggml."""

    def change(scale, blocks):
        with np.errstate(all="ignore"):
            logarithm = np.floor(np.log2(np.abs(blocks).max(axis=2, initial=0))) - 8 + 127
        return np.where((scale > 0) & (scale < 255), np.nan_to_num(logarithm), scale)

    return rescaled(x, E4M3, change)


@plant("quantize_mx", semantics=RCEIL)
def ceil_of_float32_logarithm(x):
    """Trap: torchao, eager."""

    def change(scale, blocks):
        with np.errstate(all="ignore"):
            logarithm = np.ceil(np.log2(np.abs(blocks).max(axis=2, initial=0) / F(448))) + 127
        return np.where((scale > 0) & (scale < 255), np.nan_to_num(logarithm), scale)

    return rescaled(x, E4M3, change, mode="rceil")


@plant("quantize_mx", supports=FOUR)
def rceil_called_floor(x):
    return mx(x, E2M1, "rceil")


@plant("quantize_mx", semantics=Semantics(scale_mode=ScaleMode.EVEN))
def rounds_to_one_bit_called_even(x):
    return mx(x, E4M3, "even_e2m1")


@plant("quantize_mx")
def largest_not_magnitude(x):
    def change(scale, blocks):
        return np.clip(power_of(np.maximum(np.nan_to_num(blocks.max(axis=2), posinf=1), 0), "floor", E4M3), 0, 254)

    return rescaled(x, E4M3, lambda scale, blocks: np.where(scale == 255, scale, change(scale, blocks)))


@plant("quantize_mx", supports=FOUR)
def last_element_of_a_block_left_out(x):
    _, scale = mx(np.where(np.arange(x.shape[1]) % 32 == 31, 0, x), E2M1)
    return elements_of(blocks_of(x), scale, E2M1), scale


@plant("quantize_mx")
def elements_under_the_scale_of_the_next_block(x):
    _, scale = mx(x, E4M3)
    return elements_of(blocks_of(x), np.roll(scale, -1, axis=1), E4M3), scale


@plant("quantize_mx", supports=FOUR)
def scales_of_the_first_four_blocks(x):
    _, scale = mx(x, E2M1)
    scale = scale[:, np.arange(scale.shape[1]) % 4]
    return elements_of(blocks_of(x), scale, E2M1), scale


@plant("quantize_mx")
def rows_beyond_300_of_the_first(x):
    codes, scale = mx(x, E4M3)
    codes[300:], scale[300:] = codes[:1], scale[:1]
    return codes, scale


@plant("quantize_mx", supports={"format": "float6_e3m2fn"})
def ties_away_from_zero(x):
    return mx(x, "float6_e3m2fn", rounding=Rounding.HALF_AWAY)


@plant("quantize_mx", supports={"format": "float6_e2m3fn"})
def ties_up(x):
    return mx(x, "float6_e2m3fn", rounding=Rounding.HALF_UP)


@plant("quantize_mx")
def rounds_twice(x):
    with np.errstate(over="ignore", invalid="ignore"):
        _, scale = mx(x, E4M3)
        half = (blocks_of(x) * (2.0 ** (127.0 - scale))[..., None]).astype(np.float16)
    codes = encode(np.where((scale == 255)[..., None], 0, half), float_format(E4M3), overflow=Overflow.SATURATE)
    return codes.reshape(x.shape), scale


@plant("quantize_mx", supports=INT8)
def never_minus_128(x):
    return mx(x, "int8", low=-127)


@plant("quantize_mx", supports={**INT8, "narrow_range": (False, True)})
def ignores_narrow_range(x, *, narrow_range):
    return mx(x, "int8")


@plant("quantize_mx", supports=INT8)
def steps_of_a_127th(x):
    return mx(x * F(127 / 128), "int8")[0], mx(x, "int8")[1]


@plant("quantize_mx", supports={"format": "float8_e5m2"})
def overflows_to_infinity(x):
    codes, scale = mx(x, "float8_e5m2")
    with np.errstate(all="ignore"):
        values = (blocks_of(x) * (2.0 ** (127.0 - scale))[..., None]).reshape(x.shape)
    return np.where((np.abs(values) >= 61440) & np.repeat(scale != 255, 32, 1), codes & 0x80 | 0x7C, codes).astype(
        np.uint8
    ), scale


@plant("quantize_mx", expected="which has 6 bits", supports={"format": "float6_e2m3fn"})
def sign_in_bit_7(x):
    codes, scale = mx(x, "float6_e2m3fn")
    return (codes & 0x1F | (codes & 0x20) << 2).astype(np.uint8), scale


@plant("quantize_mx", supports={"format": ("float6_e2m3fn", "float6_e3m2fn")})
def the_other_six_bits(x, *, format):
    other = {"float6_e2m3fn": "float6_e3m2fn", "float6_e3m2fn": "float6_e2m3fn"}[format]
    return mx(x, other)


@plant("quantize_mx", supports={"format": "float6_e3m2fn"})
def one_code_wrong_in_one_column(x):
    codes, scale = mx(x, "float6_e3m2fn")
    column = np.arange(x.shape[1]) == 17
    return np.where((codes == 0x1D) & column, 0x1C, codes).astype(np.uint8), scale


@plant("quantize_mx")
def zero_blocks_have_the_scale_one(x):
    codes, scale = mx(x, E4M3)
    return codes, np.where(np.abs(blocks_of(x)).max(axis=2, initial=0) == 0, 127, scale).astype(np.uint8)


@plant("quantize_mx", supports={"format": "float8_e5m2"})
def divides_by_the_smallest_normal_number(x):
    """Known of torchao (pytorch/ao#1104): code 0 is written, and elements divided by 2**-126."""
    _, scale = mx(x, "float8_e5m2")
    return elements_of(blocks_of(x), np.maximum(scale, 1), "float8_e5m2"), scale


@plant("quantize_mx")
def flushes_subnormal_inputs(x):
    return mx(np.where(np.abs(x) < 2.0**-126, 0, x).astype(F), E4M3)


@plant("quantize_mx", supports={"format": E4M3, "input_format": ("float32", "float16")})
def maxima_in_float16(x):
    with np.errstate(over="ignore"):
        _, scale = mx(np.where(np.isfinite(x), np.clip(x, -65504, 65504), x).astype(np.float16), E4M3)
    return elements_of(blocks_of(x.astype(F)), scale, E4M3), scale


@plant("quantize_mx", semantics=Semantics(scale_mode="even"), supports=FOUR)
def maxima_round_to_infinity(x):
    """Known of compressed-tensors: what rounds up to 2**128 makes a NaN of the scale."""
    codes, scale = mx(x, E2M1, "even")
    return codes, np.where(np.abs(blocks_of(x)).max(axis=2, initial=0) >= 1.75 * 2.0**127, 255, scale).astype(np.uint8)


@plant("quantize_mx")
def infinities_saturate_the_scale(x):
    return rescaled(
        x, E4M3, lambda scale, blocks: np.where(np.isinf(np.abs(blocks).max(axis=2, initial=0)), 254, scale)
    )


@plant("quantize_mx")
def maxima_past_nan(x):
    def change(scale, blocks):
        numbers = np.fmax.reduce(np.abs(blocks), axis=2, initial=F(0))
        power = np.clip(power_of(np.where(np.isfinite(numbers), numbers, 1), "floor", E4M3), 0, 254)
        return np.where(np.isfinite(numbers), power, 255)

    return rescaled(x, E4M3, change)


@plant("quantize_mx", semantics=Semantics(nan_in_block=NanInBlock.IGNORED))
def declares_what_it_does_not(x):
    return mx(x, E4M3)


@plant("quantize_mx")
def nan_spoils_the_row(x):
    codes, scale = mx(x, E4M3)
    return codes, np.where(np.isnan(x).any(axis=1, keepdims=True), 255, scale).astype(np.uint8)


@plant("quantize_mx", semantics=Semantics(rounding=Rounding.STOCHASTIC), expected="of the time")
def one_random_number_a_block(x):
    shape = blocks_of(x).shape
    return mx(x, E4M3, rounding=Rounding.STOCHASTIC, random=np.repeat(_rng.random(shape[:2])[..., None], 32, 2))


@plant("quantize_mx", semantics=Semantics(rounding=Rounding.STOCHASTIC), supports=FOUR, expected="of the time")
def random_numbers_of_two_bits(x):
    random = np.floor(_rng.random(blocks_of(x).shape) * 4) / 4
    return mx(x, E2M1, rounding=Rounding.STOCHASTIC, random=random)


def values_of(codes, scale, format, **tables):
    """Return numbers of MX blocks, by tables of elements and scales."""
    elements = tables.get("elements", codes / F(64) if format == "int8" else small_floats.decode(codes, format))
    factors = tables.get("factors", small_floats.decode(scale, "float8_e8m0fnu"))
    with np.errstate(all="ignore"):
        return (blocks_of(elements.astype(F)) * factors.astype(F)[..., None]).reshape(codes.shape)


@plant("dequantize_mx", supports=FOUR)
def nan_scale_is_infinite(codes, scale):
    """Known of compressed-tensors: 2**(255 - 127)."""
    return values_of(codes, scale, E2M1, factors=np.where(scale == 255, np.inf, 2.0 ** (scale - 127.0)))


@plant("dequantize_mx")
def nan_scale_is_a_number(codes, scale):
    return values_of(codes, scale, E4M3, factors=2.0 ** (np.minimum(scale, 254) - 127.0))


@plant("dequantize_mx", supports={"format": (E4M3, "float8_e5m2")})
def smallest_scale_is_zero(codes, scale, *, format):
    return values_of(codes, scale, format, factors=(scale.astype(np.uint32) << 23).view(F))


@plant("dequantize_mx", supports={"format": "float6_e3m2fn"})
def bias_of_128(codes, scale):
    return values_of(codes, np.where(scale == 255, 255, np.maximum(scale, 1) - 1), "float6_e3m2fn")


@plant("dequantize_mx")
def nan_element_is_480(codes, scale):
    elements = small_floats.decode(codes, E4M3)
    return values_of(codes, scale, E4M3, elements=np.where(codes == 0x7F, 480, np.where(codes == 0xFF, -480, elements)))


@plant("dequantize_mx", supports={"format": "float6_e2m3fn"})
def subnormal_elements_are_normal(codes, scale):
    elements = small_floats.decode(codes, "float6_e2m3fn")
    return values_of(codes, scale, "float6_e2m3fn", elements=np.where(codes & 0x18, elements, elements + 0.5))


@plant("dequantize_mx", supports=INT8)
def codes_of_int8_by_127(codes, scale):
    return values_of(codes, scale, "int8", elements=codes / F(127))


@plant("dequantize_mx", supports=FOUR)
def odd_columns_first(codes, scale):
    swapped = codes.reshape(codes.shape[0], -1, 2)[..., ::-1].reshape(codes.shape)
    return values_of(swapped, scale, E2M1)


@plant("dequantize_mx", supports={"format": E4M3, "output_format": "bfloat16"})
def truncates_the_output(codes, scale):
    """Right for every element under every scale but subnormal ones: the significand has four bits."""
    return (values_of(codes, scale, E4M3).view(np.uint32) >> 16).astype(np.uint16)


@plant("dequantize_mx")
def flushes_subnormal_results(codes, scale):
    y = values_of(codes, scale, E4M3)
    return np.where(np.abs(y) < 2.0**-126, F(0), y)


@plant("dequantize_mx", supports={"format": E4M3, "output_format": "float16"})
def elements_to_the_output_first(codes, scale):
    """Known of torchao: a scale beyond float16 is rounded before the product."""
    with np.errstate(all="ignore"):
        factors = small_floats.decode(scale, "float8_e8m0fnu").astype(np.float16)
        elements = blocks_of(small_floats.decode(codes, E4M3).astype(np.float16))
        return (elements * factors[..., None]).reshape(codes.shape)


@plant("dequantize_mx", expected="must raise")
def takes_too_few_scales(codes, scale):
    groups = np.minimum(np.arange(codes.shape[1] // 32), scale.shape[1] - 1)
    return values_of(codes, scale[:, groups], E4M3)


@plant("quantize_nvfp4")
def multiplies_with_the_global_scale(x, global_scale):
    return plain(x, F(1) / global_scale)


@plant("quantize_nvfp4")
def a_sixth_for_six(x, global_scale):
    return plain(x, global_scale, quotient=lambda amax, g: amax * F(1 / 6) / g)


@plant("quantize_nvfp4", supports={"levels": "one"})
def elements_by_the_reciprocal(x, global_scale):
    return plain(x, None, factor=lambda x, s, g: x * (F(1) / s))


@plant("quantize_nvfp4")
def elements_under_the_unrounded_scale(x, global_scale):
    def factor(x, s, g):
        return x / np.abs(x).max(axis=2, keepdims=True, initial=0) * F(6)

    return plain(x, global_scale, factor=factor)


@plant("quantize_nvfp4")
def scales_round_half_up(x, global_scale):
    def quotient(amax, g):
        exact = (amax / F(6) / g).astype(np.float64)
        return decode(encode(exact, float_format(E4M3), Rounding.HALF_AWAY, Overflow.SATURATE), float_format(E4M3))

    return plain(x, global_scale, quotient=quotient)


@plant("quantize_nvfp4")
def scales_overflow_to_nan(x, global_scale):
    codes, scale = plain(x, global_scale)
    amax = np.abs(blocks_of(x, 16)).max(axis=2, initial=0)
    with np.errstate(all="ignore"):
        return codes, np.where(amax / F(6) / global_scale > 464, 0x7F, scale).astype(np.uint8)


@plant("quantize_nvfp4", supports=BOTH)
def zero_blocks_as_torchao_has_them(x, global_scale):
    codes, scale = plain(x, global_scale)
    zero = np.abs(blocks_of(x, 16)).max(axis=2, initial=0) == 0
    return codes, np.where(zero, 0x08, scale).astype(np.uint8)


@plant("quantize_nvfp4", semantics=Semantics(small_block_scale=SmallBlockScale.NORMAL))
def subnormal_scales_despite_all(x, global_scale):
    return plain(x, global_scale)


@plant("quantize_nvfp4", supports=BOTH)
def ties_of_elements_away(x, global_scale):
    return plain(x, global_scale, ties=Rounding.HALF_AWAY)


@plant("quantize_nvfp4", supports={"levels": "one"})
def blocks_of_thirty_two(x, global_scale):
    def maximum(blocks):
        found = np.abs(blocks).max(axis=2, initial=0)
        found[:, 0:-1:2] = np.maximum(found[:, 0:-1:2], found[:, 1::2])
        return found

    return plain(x, None, maximum=maximum)


@plant("quantize_nvfp4", supports=BOTH)
def maximum_of_a_block_without_its_sign(x, global_scale):
    return plain(x, global_scale, maximum=lambda blocks: np.maximum(blocks.max(axis=2, initial=0), 0))


@plant("quantize_nvfp4")
def nan_makes_a_zero_scale(x, global_scale):
    codes, scale = plain(x, global_scale)
    return codes, np.where(scale == 0x7F, 0, scale).astype(np.uint8)


@plant("quantize_nvfp4", semantics=replace(PRESETS["torchao"], element_steps=ElementSteps.DIVIDE))
def steps_of_torchao_called_division(x, global_scale):
    return nvfp4_of_torchao(x, global_scale)


@plant("quantize_nvfp4", semantics=PRESETS["compressed_tensors"])
def takes_g_for_its_reciprocal(x, global_scale):
    return nvfp4_of_compressed_tensors(x, F(1) / global_scale)


@plant("dequantize_nvfp4")
def multiplies_where_it_is_to_divide(codes, scale, global_scale):
    return decoded(codes, scale, F(1) / global_scale)


@plant("dequantize_nvfp4", supports=BOTH)
def nan_scale_is_zero(codes, scale, global_scale):
    """As ggml's, whose scales have no NaN."""
    return decoded(codes, np.where(scale == 0x7F, 0, scale).astype(np.uint8), global_scale)


@plant("dequantize_nvfp4")
def scales_in_float16(codes, scale, global_scale):
    with np.errstate(all="ignore"):
        steps = (decode(scale, float_format(E4M3)) * global_scale).astype(np.float16).astype(F)
    return (blocks_of(decode(codes, float_format(E2M1)).astype(F), 16) * steps[..., None]).reshape(codes.shape)


@plant("dequantize_nvfp4", supports={"levels": "one"})
def misprint_in_the_table(codes, scale, global_scale):
    return decoded(np.where(codes == 13, 12, codes).astype(np.uint8), scale, None)


@plant("dequantize_nvfp4", supports={"levels": "one"})
def scale_of_the_previous_block(codes, scale, global_scale):
    return decoded(codes, np.roll(scale, 1, axis=1), None)


@plant("dequantize_nvfp4", supports=BOTH)
def subnormal_scales_are_zero(codes, scale, global_scale):
    return decoded(codes, np.where(scale < 8, 0, scale).astype(np.uint8), global_scale)


@plant("choose_global_scale_nvfp4")
def largest_value_for_magnitude(x):
    return np.asarray(np.maximum(x.max() / F(2688), F(2.0**-23)), F)


@plant("choose_global_scale_nvfp4", semantics=Semantics(zero_scale="one"))
def of_448_alone(x):
    scale = np.abs(x).max() / F(448)
    return np.asarray(scale if scale > 0 else 1, F)


@plant("choose_global_scale_nvfp4", semantics=Semantics(zero_scale="one"))
def zero_of_a_zero_matrix(x):
    """Known of torchao, whose block scales are then NaN."""
    return np.asarray(np.abs(x).max() / F(2688), F)


@plant("choose_global_scale_nvfp4", semantics=Semantics(zero_scale="one"))
def last_row_left_out(x):
    return block_formats.choose_global_scale(x[: max(1, len(x) - 1)], input_format="float32")


@plant("choose_global_scale_nvfp4", semantics=_STORES_G)
def saturates_the_reciprocal(x):
    amax = np.abs(x).max()
    with np.errstate(all="ignore"):
        G = F(2688) * (F(1) / amax)
    return np.asarray(min(G, np.finfo(F).max) if amax > 0 else 1, F)


@plant("choose_global_scale_nvfp4", semantics=_SATURATES_G)
def by_the_reciprocal_of_the_maximum(x):
    amax = np.abs(x).max()
    with np.errstate(all="ignore"):
        return np.asarray(min(F(2688) * (F(1) / amax), np.finfo(F).max) if amax > 0 else 1, F)
