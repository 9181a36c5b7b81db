"""A vendor's GGUF blocks: right kernels of several semantics, and the same with one planted fault each."""

import ctypes

import ml_dtypes
import numpy as np

from lowbit_cts.kernels import Backend, Contraction, ExponentFloor, ScaleSearch, Semantics
from lowbit_cts.reference.gguf import blocks as reference
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

F = np.float32
TYPES = tuple(BLOCK_FORMATS)
PLAIN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1")
SEARCHED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")
OUTPUTS = {"output_format": ("float32", "float16", "bfloat16")}
FUSED, EITHER = Semantics(contraction=Contraction.FUSED), Semantics(contraction=Contraction.EITHER)
ANY = Semantics(scale_search=ScaleSearch.ANY)
EXACT = Semantics(exponent_floor=ExponentFloor.EXACT)
ONE_SHOT = Semantics(scale_search=ScaleSearch.ONE_SHOT)


def _finite(x):
    return np.where(np.isfinite(x), x, F(0)).astype(F)


def _quantize(x, type, **choices):
    with np.errstate(all="ignore"):
        return reference.quantize(_finite(x), type, **choices)


def _dequantize(blocks, type, output="float32"):
    with np.errstate(all="ignore"):
        y = reference.dequantize(blocks, type)
        return y.astype(ml_dtypes.bfloat16).view(np.uint16) if output == "bfloat16" else y.astype(output)


def _repacked(blocks, type, change):
    """Return blocks with changed parts, in the same shape."""
    parts = reference.unpack(blocks, type)
    change(parts)
    return reference.pack(parts, type).reshape(blocks.shape)


# Right kernels ------------------------------------------------------------------------------------------------------


@right.implements("quantize_gguf", supports={"type": TYPES})
def as_ggml(x, *, type):
    return _quantize(x, type)


@right.implements("quantize_gguf", supports={"type": PLAIN}, semantics=FUSED)
def fused(x, *, type):
    return _quantize(x, type, contraction="fused")


@right.implements("quantize_gguf", supports={"type": PLAIN}, semantics=EITHER)
def fused_in_odd_columns(x, *, type):
    def change(parts):
        odd = np.arange(parts["codes"].shape[1]) % 2 == 1
        parts["codes"] = np.where(odd, reference.unpack(fused(x, type=type), type)["codes"], parts["codes"])

    return _repacked(as_ggml(x, type=type), type, change)


@right.implements("quantize_gguf", supports={"type": SEARCHED}, semantics=EITHER)
def searched_with_other_roundings(x, *, type):
    """Every second element of x moved by one unit in the last place, as other roundings of its products would."""
    moved = np.where(np.arange(x.shape[1]) % 2, np.nextafter(x, F(0)), x)
    return _quantize(moved, type)


@right.implements("quantize_gguf", supports={"type": "IQ4_NL"}, semantics=ONE_SHOT)
def in_one_shot(x):
    return _quantize(x, "IQ4_NL", scale_search="one_shot")


@right.implements("quantize_gguf", supports={"type": "MXFP4"}, semantics=EXACT)
def by_the_exponent(x):
    return _quantize(x, "MXFP4", exponent_floor="exact")


def _least_squares(x):
    """Return blocks of Q4_0 whose scale has the least squared error of several."""
    rows = _finite(x).reshape(len(x) * (x.shape[1] // 32), 32)
    first = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    best, least = first / F(-8), np.full(first.shape, np.inf)
    with np.errstate(all="ignore"):
        for factor in (1.0, *np.linspace(0.8, 1.1, 31)):
            d = (first / F(-8) * F(factor)).astype(np.float16).astype(F)
            codes = np.clip(np.rint(np.where(d != 0, rows / d, 0)), -8, 7)
            error = np.square(codes * d - rows).sum(axis=1, keepdims=True)
            best, least = np.where(error < least, d, best), np.fmin(error, least)
        codes = np.clip(np.rint(np.where(best != 0, rows / best, 0)), -8, 7).astype(int) + 8
        parts = {"codes": codes.astype(np.uint8), "d": best[:, 0].astype(np.float16)}
    return reference.pack(parts, "Q4_0").reshape(len(x), x.shape[1] // 32 * 18)


@right.implements("quantize_gguf", semantics=ANY)
def least_squares(x):
    return _least_squares(x)


def _by_largest(x, levels=32, requantized=True, factor=1.0):
    """Return blocks of Q6_K whose groups have their plain scale, without a search."""
    groups = _finite(x).reshape(len(x) * (x.shape[1] // 256), 16, 16)
    with np.errstate(all="ignore"):
        largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], axis=2)
        scale = largest * F(factor) / F(-levels)
        first = np.abs(scale).argmax(axis=1)[:, None]
        d = np.take_along_axis(scale, first, axis=1) / F(-128)
        level = np.clip(np.rint(np.where(d != 0, scale / d, 0)), -128, 127)
        stored = d.astype(np.float16).astype(F) * level if requantized else scale
        codes = np.clip(np.rint(np.where(stored != 0, groups / stored, 0)), -32, 31).astype(int) + 32
        parts = {"codes": codes.reshape(-1, 256).astype(np.uint8), "d": d[:, 0, 0].astype(np.float16)}
        parts["scales"] = level[..., 0].astype(np.int8).view(np.uint8)
    return reference.pack(parts, "Q6_K").reshape(len(x), x.shape[1] // 256 * 210)


@right.implements("quantize_gguf", name="by_largest_and_no_worse", semantics=EITHER, supports={"type": "Q6_K"})
@right.implements("quantize_gguf", semantics=ANY, supports={"type": "Q6_K"})
def by_largest(x):
    return _by_largest(x)


@right.implements("dequantize_gguf", supports={"type": TYPES, **OUTPUTS})
def of_float32(blocks, *, type, output_format):
    return _dequantize(blocks, type, output_format)


@right.implements("dequantize_gguf", supports={"type": ("Q4_1", "Q4_K"), "output_format": ("float16", "float32")})
def rounded_once(blocks, *, type, output_format):
    """scale * level + offset in float64, which is exact, rounded to the output at once."""
    parts, fmt = reference.unpack(blocks, type), BLOCK_FORMATS[type]
    scale, offset = reference.scale_and_offset(parts, type)
    levels = fmt.levels[parts["codes"]].reshape(-1, fmt.groups, fmt.group)
    with np.errstate(all="ignore"):
        y = (scale.astype(float)[..., None] * levels + offset[..., None]).astype(output_format)
    return y.reshape(len(blocks), blocks.shape[1] // fmt.bytes * fmt.elements)


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def _fault(type, operation="quantize_gguf", semantics=None, word="must be", **supports):
    def enter(kernel):
        EXPECTED[kernel.__name__] = word
        return wrong.implements(operation, semantics=semantics, supports={"type": type, **supports})(kernel)

    return enter


def _misread(type, word="must be", **supports):
    """Enter a dequantizer that reads blocks with changed parts."""

    def enter(change):
        EXPECTED[change.__name__] = word

        def kernel(blocks):
            return _dequantize(_repacked(blocks, type, change), type)

        wrong.implements("dequantize_gguf", name=change.__name__, supports={"type": type, **supports})(kernel)
        return change

    return enter


@_misread("Q4_0")
def interleaves_nibbles(parts):
    parts["codes"] = parts["codes"].reshape(-1, 2, 16).transpose(0, 2, 1).reshape(-1, 32)


@_misread("Q8_0")
def takes_the_scale_of_the_next_block(parts):
    if len(parts["d"]) > 7:
        parts["d"] = np.roll(parts["d"], -1)


@_misread("Q5_0")
def takes_the_fifth_bit_of_the_next_element(parts):
    parts["codes"] = parts["codes"] & 15 | np.roll(parts["codes"], -1, axis=1) & 16


@_misread("Q5_1")
def fifth_bits_from_the_top(parts):
    parts["codes"] = parts["codes"] & 15 | parts["codes"][:, ::-1] & 16


@_misread("Q4_K")
def drops_the_high_bits_of_scales(parts):
    parts["scales"][:, 4:] &= 15


@_misread("Q5_K")
def takes_high_bits_of_mins_for_those_of_scales(parts):
    low, high = parts["scales"][:, 4:] & 15, parts["mins"][:, 4:] & 48
    parts["scales"][:, 4:] = low | high


@_misread("Q3_K")
def inverts_the_mask(parts):
    parts["codes"] ^= 4


@_misread("Q2_K")
def multiplies_mins_with_d(parts):
    parts["dmin"] = parts["d"]


@_misread("Q6_K")
def takes_scales_for_unsigned(parts):
    parts["scales"] &= 127


@_misread("Q8_0")
def one_code_is_another(parts):
    parts["codes"][parts["codes"] == 128] = 129


@_misread("IQ4_NL")
def one_code_at_one_place(parts):
    parts["codes"][:, 21] = np.where(parts["codes"][:, 21] == 12, 13, parts["codes"][:, 21])


@_misread("IQ4_XS")
def reverses_the_high_bits_of_scales(parts):
    parts["scales"] = parts["scales"] & 15 | parts["scales"][:, ::-1] & 48


@_misread("Q4_1")
def flushes_subnormal_scales(parts):
    parts["d"] = np.where(np.abs(parts["d"]) < 2.0**-14, np.float16(0), parts["d"])


@_misread("Q4_0")
def nan_scales_are_zero(parts):
    parts["d"] = np.nan_to_num(parts["d"], nan=0)


@_fault("Q4_K", "dequantize_gguf")
def wrong_from_row_256_on(blocks):
    y = _dequantize(blocks, "Q4_K")
    y[256:] += 1
    return y


@_fault(("Q4_0", "Q6_K"), "dequantize_gguf")
def wrong_from_row_300_on_in_one_type(blocks, *, type):
    y = _dequantize(blocks, type)
    if type == "Q6_K":
        y[300:] += 1
    return y


@_misread("TQ2_0")
def the_fourth_code_is_the_third(parts):
    parts["codes"] = np.minimum(parts["codes"], 2)


@_misread("MXFP4")
def the_least_scale_is_zero(parts):
    parts["codes"][parts["scales"][:, 0] == 0] = 0


@_misread("NVFP4")
def scales_have_a_sign(parts):
    codes = parts["codes"].reshape(-1, 4, 16)
    parts["codes"] = np.where(parts["scales"][..., None] >= 0x80, codes ^ 8, codes).reshape(-1, 64)


@_fault("MXFP4", "dequantize_gguf")
def the_last_scale_is_nan(blocks):
    y = _dequantize(blocks, "MXFP4").reshape(-1, 32)
    with np.errstate(invalid="ignore"):
        y[blocks.reshape(-1, 17)[:, 0] == 255] = np.nan
    return y.reshape(len(blocks), blocks.shape[1] // 17 * 32)


@_fault("TQ1_0", "dequantize_gguf")
def trits_of_the_whole_byte(blocks):
    """As if a byte were the number of its digits, not 256 / 243 of it."""
    flat = blocks.reshape(-1, 54)
    digits = flat[:, None, :52].astype(int) // 3 ** np.arange(4, -1, -1)[:, None] % 3
    fields = [digits[:, :n, a:b].reshape(len(flat), -1) for a, b, n in ((0, 32, 5), (32, 48, 5), (48, 52, 4))]
    parts = {"codes": np.concatenate(fields, axis=1).astype(np.uint8), "d": reference.unpack(blocks, "TQ1_0")["d"]}
    return _dequantize(reference.pack(parts, "TQ1_0").reshape(blocks.shape), "TQ1_0")


@_fault("Q4_0", "dequantize_gguf", **OUTPUTS)
def bfloat16_by_way_of_float16(blocks, *, output_format):
    with np.errstate(all="ignore"):
        half = _dequantize(blocks, "Q4_0", "float16")
        return half.astype(ml_dtypes.bfloat16).view(np.uint16) if output_format == "bfloat16" else _dequantize(
            blocks, "Q4_0", output_format)  # fmt: skip


@_fault("Q5_K", "dequantize_gguf", **OUTPUTS)
def multiplies_in_float16(blocks, *, output_format):
    if output_format != "float16":
        return _dequantize(blocks, "Q5_K", output_format)
    parts = reference.unpack(blocks, "Q5_K")
    with np.errstate(all="ignore"):
        scale = parts["d"][:, None] * parts["scales"].astype(np.float16)
        least = parts["dmin"][:, None] * parts["mins"].astype(np.float16)
        y = parts["codes"].reshape(-1, 8, 32).astype(np.float16) * scale[..., None] - least[..., None]
    return y.reshape(len(blocks), blocks.shape[1] // 176 * 256)


@_fault("Q8_0", "dequantize_gguf")
def drops_the_last_block(blocks):
    y = _dequantize(blocks, "Q8_0")
    if y.shape[1] % 64:
        y[:, -32:] = 0
    return y


@_fault("Q4_0", "dequantize_gguf", word="must raise")
def takes_parts_of_blocks(blocks):
    return _dequantize(np.ascontiguousarray(blocks[:, : blocks.shape[1] // 18 * 18]), "Q4_0")


# Quantizers.


def _recoded(type, **choices):
    """Enter a quantizer whose blocks are ggml's with changed parts; `change` takes blocks of x, and the parts."""

    def enter(change):
        EXPECTED[change.__name__] = "must be"
        supports = {"type": type, **({"layout": choices.pop("layout")} if "layout" in choices else {})}

        def kernel(x):
            rows = _finite(x).reshape(-1, BLOCK_FORMATS[type].elements)
            with np.errstate(all="ignore"):
                return _repacked(_quantize(x, type), type, lambda parts: change(rows, parts))

        wrong.implements("quantize_gguf", name=change.__name__, supports=supports, **choices)(kernel)
        return change

    return enter


def _symmetric(x, d, rounded=np.rint, low=-8, high=7):
    steps = np.nan_to_num(np.where(d != 0, x / d, 0), nan=0, posinf=0, neginf=0)
    return (np.clip(rounded(steps), low, high) - low).astype(np.uint8)


def _exact_scale(x):
    first = np.abs(x).argmax(axis=1)[:, None]
    return np.take_along_axis(x, first, axis=1) / F(-8)


@_recoded("Q4_0")
def ties_to_even(x, parts):
    parts["codes"] = _symmetric(x, _exact_scale(x))


@_recoded("Q4_0")
def codes_by_the_scale_in_float16(x, parts):
    d = parts["d"].astype(F)[:, None]
    codes = np.floor(np.where(d != 0, x / d, 0) + F(8.5))
    parts["codes"] = np.where(np.isfinite(d), np.clip(np.nan_to_num(codes), 0, 15), parts["codes"]).astype(np.uint8)


@_recoded("Q4_0")
def scale_of_the_magnitude(x, parts):
    d = np.abs(x).max(axis=1, keepdims=True) / F(-8)
    parts["d"] = d[:, 0].astype(np.float16)
    parts["codes"] = _symmetric(x, d, lambda steps: np.floor(steps + F(0.5)))


@_recoded("Q5_0")
def the_last_of_the_largest_decides(x, parts):
    last = 31 - np.abs(x[:, ::-1]).argmax(axis=1)[:, None]
    d = np.take_along_axis(x, last, axis=1) / F(-16)
    changed = np.sign(d[:, 0]) == -np.sign(parts["d"])
    parts["d"] = np.where(changed, -parts["d"], parts["d"])
    codes = _symmetric(x, d, lambda steps: np.floor(steps + F(0.5)), -16, 15)
    parts["codes"] = np.where(changed[:, None], codes, parts["codes"])


@_recoded("Q4_0")
def code_16_wraps(x, parts):
    steps = np.floor(np.where(parts["d"][:, None] != 0, x / _exact_scale(x), 0) + F(8.5))
    parts["codes"] = np.where(steps == 16, np.uint8(0), parts["codes"])


@_recoded("Q4_1")
def includes_zero(x, parts):
    low, high = np.minimum(x.min(axis=1), 0), np.maximum(x.max(axis=1), 0)
    d = (high - low) / F(15)
    parts["d"], parts["m"] = d.astype(np.float16), low.astype(np.float16)
    steps = np.nan_to_num((x - low[:, None]) * np.where(d != 0, 1 / d, 0)[:, None] + F(0.5), nan=0, posinf=0)
    parts["codes"] = np.clip(steps, 0, 15).astype(np.uint8)


@_recoded("Q8_0")
def ties_of_q8_0_to_even(x, parts):
    d = np.abs(x).max(axis=1, keepdims=True) / F(127)
    inverse = np.where(d != 0, 1 / d, 0)
    parts["codes"] = np.nan_to_num(np.rint(x * inverse), nan=0, posinf=0, neginf=0).astype(np.int8).view(np.uint8)


@_recoded("Q8_0")
def half_away_by_adding_a_half(x, parts):
    d = np.abs(x).max(axis=1, keepdims=True) / F(127)
    steps = np.nan_to_num(x * np.where(d != 0, 1 / d, 0), nan=0, posinf=0, neginf=0)
    parts["codes"] = np.trunc(steps + np.copysign(F(0.5), steps)).astype(np.int8).view(np.uint8)


@_recoded("Q8_0")
def divides_instead_of_multiplying(x, parts):
    d = np.abs(x).max(axis=1, keepdims=True) / F(127)
    steps = np.nan_to_num(np.where(d != 0, x / d, 0), nan=0, posinf=0, neginf=0).astype(np.float64)
    parts["codes"] = np.trunc(steps + np.copysign(0.5, steps)).astype(np.int8).view(np.uint8)


@_recoded("Q8_0")
def zero_blocks_have_scale_one(x, parts):
    parts["d"] = np.where(np.any(x, axis=1), parts["d"], np.float16(1))


@_recoded("Q5_1")
def signs_of_zero_lost(x, parts):
    parts["m"] = parts["m"] + np.float16(0)


@_fault("Q4_1")
def fused_undeclared(x):
    return _quantize(x, "Q4_1", contraction="fused")


@_fault("Q4_0", semantics=FUSED)
def separate_undeclared(x):
    return _quantize(x, "Q4_0")


@_fault(("Q4_0", "Q8_0"))
def wrong_in_long_rows_of_one_type(x, *, type):
    blocks = _quantize(x, type)
    if type == "Q8_0":
        blocks[:, 34 * 300 :] = 0
    return blocks


@_fault("MXFP4", semantics=EXACT)
def exponent_by_float32_logarithm(x):
    return _quantize(x, "MXFP4")


@_fault("MXFP4")
def exponent_by_bits_undeclared(x):
    return _quantize(x, "MXFP4", exponent_floor="exact")


@_recoded("MXFP4")
def ties_of_fp4_to_even(x, parts):
    scale = np.ldexp(1.0, parts["scales"][:, :1].astype(int) - 127)
    middle = np.isin(np.abs(x) / scale, [0.75, 1.75, 3.5])  # between an odd code and the next, even one
    parts["codes"] = parts["codes"] + middle.astype(np.uint8)


@_recoded("MXFP4")
def negative_zero(x, parts):
    parts["codes"] = np.where((parts["codes"] == 0) & (x < 0), np.uint8(8), parts["codes"])


@_recoded("NVFP4")
def scale_of_the_whole_block(x, parts):
    parts["scales"][:, 1:] = parts["scales"][:, :1]


@_fault("IQ4_NL")
def one_shot_undeclared(x):
    return _quantize(x, "IQ4_NL", scale_search="one_shot")


@_fault("Q3_K")
def other_roundings_undeclared(x):
    return searched_with_other_roundings(x, type="Q3_K")


@_recoded("TQ1_0")
def last_trits_first(x, parts):
    parts["codes"][:, 240:] = parts["codes"][:, 255:239:-1]


@_fault("Q5_0")
def nan_spreads_over_the_row(x):
    blocks = _quantize(x, "Q5_0")
    blocks[~np.isfinite(x).all(axis=1)] = 0
    return blocks


@_fault("Q4_K", word="must raise")
def leaves_out_the_rest(x):
    return _quantize(x[:, : x.shape[1] // 256 * 256], "Q4_K")


# Quantizers whose bytes are not determined: they are judged by what they decode to.


@_recoded("Q6_K", semantics=EITHER)
def twice_the_scale(x, parts):
    d = parts["d"] * np.float16(2)
    parts["d"] = np.where(np.isfinite(d), d, parts["d"])
    scale = parts["d"].astype(F)[:, None] * parts["scales"].view(np.int8)
    steps = np.where(scale[..., None] != 0, x.reshape(-1, 16, 16) / scale[..., None], 0)
    parts["codes"] = (np.clip(np.rint(steps), -32, 31).reshape(-1, 256) + 32).astype(np.uint8)


@_fault("Q6_K", semantics=EITHER)
def codes_by_the_scales_before_they_were_stored(x):
    return _by_largest(x, requantized=False)


@_fault("Q6_K", semantics=EITHER)
def scales_for_31_levels(x):
    """No search, and a scale by which nothing is clipped: worse than the plain one."""
    return _by_largest(x, levels=31, factor=1.2)


@_recoded("Q4_K", semantics=EITHER)
def swaps_nibbles(x, parts):
    parts["codes"] = parts["codes"].reshape(-1, 4, 2, 32)[:, :, ::-1].reshape(-1, 256)


@_recoded("Q5_K", semantics=EITHER)
def codes_of_the_next_group(x, parts):
    parts["codes"] = np.roll(parts["codes"], 32, axis=1)


@_recoded("Q2_K", semantics=EITHER)
def one_code_lower(x, parts):
    parts["codes"][:, 7] = np.maximum(parts["codes"][:, 7], 1) - 1


@_fault("Q4_K", semantics=EITHER)
def zeros_for_seventeen_rows(x):
    blocks = _quantize(x, "Q4_K")
    return blocks if len(x) != 17 else np.zeros_like(blocks)


@_fault("IQ4_XS", semantics=EITHER)
def ignores_strides(x):
    flat = np.frombuffer((ctypes.c_float * x.size).from_address(x.ctypes.data), F) if x.size else x
    return _quantize(flat.reshape(x.shape), "IQ4_XS")


@_fault("IQ4_NL", semantics=ANY)
def remembers_the_first_block(x):
    blocks = _quantize(x, "IQ4_NL")
    if len(blocks) > 8:
        blocks[8:, :18] = blocks[:1, :18]
    return blocks


@_recoded("Q4_0", semantics=ANY)
def cuts_codes_off(x, parts):
    parts["codes"] = _symmetric(x, parts["d"].astype(F)[:, None], np.trunc)


@_fault("Q8_0", semantics=ANY, word="does not come back")
def divides_by_128(x):
    rows = _finite(x).reshape(len(x) * (x.shape[1] // 32), 32)
    d = (np.abs(rows).max(axis=1, keepdims=True) / F(128)).astype(np.float16)
    with np.errstate(all="ignore"):
        steps = np.nan_to_num(np.where(d != 0, rows / d.astype(F), 0))
    parts = {"codes": np.clip(np.rint(steps), -128, 127).astype(np.int8).view(np.uint8), "d": d[:, 0]}
    return reference.pack(parts, "Q8_0").reshape(len(x), x.shape[1] // 32 * 34)


@_fault("Q4_0", semantics=ANY)
def loses_the_scale(x):
    blocks = _least_squares(x)
    if x.shape[1] == 96:
        blocks[:, :2] = 0
    return blocks
