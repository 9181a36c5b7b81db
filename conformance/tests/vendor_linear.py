"""A vendor's linear layers on quantized operands: right ones, and the same with one planted fault each."""

import numpy as np

from lowbit_cts.kernels import (
    Accumulator,
    ActivationQuantization,
    Backend,
    DequantizeForm,
    PartPrecision,
    Rounding,
    Semantics,
    WeightPrecision,
)
from lowbit_cts.kernels.numpy import gguf, linear
from lowbit_cts.kernels.numpy.block_formats import dequantize_mx, dequantize_nvfp4
from lowbit_cts.kernels.numpy.numbers import WIDE, float32_of, output_of
from lowbit_cts.kernels.numpy.small_floats import decode

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

F, H = np.float32, np.float16
LAYERS = {
    "format": ("uint4", "int4"),
    "granularity": ("group", "channel"),
    "group_size": (64, 32, 48),
    "mapping": ("symmetric", "asymmetric"),
    "act_order": (False, True),
    "input_format": "float16",
    "has_bias": (False, True),
}
FLOAT8 = {
    "a_format": ("float8_e4m3fn", "float8_e5m2"),
    "b_format": ("float8_e4m3fn", "float8_e5m2"),
    "scaling": ("tensor", "row", "block"),
    "output_format": ("bfloat16", "float16"),
}
MX = {"a_format": ("float8_e4m3fn", "float6_e2m3fn", "float4_e2m1fn", "int8"), "b_format": ("float4_e2m1fn", "int8")}
BLOCK = linear._BLOCK


def _given(codes, scale, zero_point, group_index, *, format, group_size, input_format):
    """Return codes less their zero points, and the scale of each, float32."""
    float32 = linear._weights(codes, scale, zero_point, group_index, format=format, group_size=group_size,
                              input_format=input_format)  # fmt: skip
    ones = output_of(np.ones(scale.shape, F), input_format)
    shifted = linear._weights(codes, ones, zero_point, group_index, format=format, group_size=group_size,
                              input_format=input_format)  # fmt: skip
    unit = linear._weights(
        np.ones_like(codes), scale, np.zeros(scale.shape, np.int32), group_index, format=format,
        group_size=group_size, input_format=input_format,
    )  # fmt: skip
    return float32, shifted, unit


def _finish(y, bias, output):
    with np.errstate(over="ignore", invalid="ignore"):
        y = y if y.dtype == np.float64 and output != "bfloat16" else F(y)
        return output_of(y if bias is None else y + bias, output)


def _in_order(a, w, dtype, chunk=1, cut=None):
    """Return a product whose running sum is of a type, or cut to so many bits toward zero after each chunk."""
    if a.shape[1] != len(w):
        raise ValueError("a: must have a column a row of weights")
    total = np.zeros((a.shape[0], w.shape[1]), dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, a.shape[1], chunk):
            part = np.einsum("mk,kn->mkn", a[:, start : start + chunk].astype(np.float64),
                             w[start : start + chunk].astype(np.float64))  # fmt: skip
            if cut is None:
                total = (total + part.sum(axis=1).astype(dtype)).astype(dtype)
                continue
            terms = np.concatenate([total[:, None], part], axis=1)
            top = np.abs(terms).max(axis=1, keepdims=True)
            step = np.exp2(np.frexp(top)[1] - cut)
            aligned = (np.trunc(terms / step) * step).sum(axis=1)
            step = np.exp2(np.frexp(aligned)[1] - cut)
            total = np.trunc(aligned / step) * step
    return total


# Right kernels ------------------------------------------------------------------------------------------------------


def _register_right(name, semantics, product, **supports):
    def prepare(codes, scale, zero_point, group_index, *, format, group_size, input_format):
        return _given(codes, scale, zero_point, group_index, format=format, group_size=group_size,
                      input_format=input_format)  # fmt: skip

    def kernel(a, bias, *, prepared, input_format):
        return _finish(product(float32_of(a, input_format), *prepared), bias, input_format)

    right.implements("matmul_w4a16", name=name, semantics=semantics, prepare=prepare, supports={**LAYERS, **supports})(
        kernel
    )


_register_right(
    "in_float64", Semantics(float_accumulator="float64"),
    lambda a, w, q, s: a.astype(float) @ F(q * s).astype(float), input_format=("float16", "float32"),
)  # fmt: skip
_register_right(
    "weights_in_float16", Semantics(weight_precision=WeightPrecision.ACTIVATIONS), lambda a, w, q, s: a @ F(H(q * s))
)
_register_right(
    "sum_in_float16", Semantics(float_accumulator=Accumulator.FLOAT16), lambda a, w, q, s: _in_order(a, w, H)
)
_register_right(
    "chunks_cut_to_14_bits",
    Semantics(float_accumulator=Accumulator(14, chunk=16, rounding=Rounding.TOWARD_ZERO)),
    lambda a, w, q, s: _in_order(a, w, np.float64, 16, 14),
)
_register_right("in_reverse", Semantics(), lambda a, w, q, s: _in_order(a[:, ::-1], w[::-1], F), input_format=WIDE)


@right.implements("matmul_w4a16", semantics=Semantics(dequantize_form=DequantizeForm.SCALE_FIRST), supports={
    **LAYERS, "granularity": "channel", "act_order": False})  # fmt: skip
def corrects_the_sum(a, codes, scale, zero_point, group_index, bias, *, format):
    x = F(a)
    zero = F(8 if format == "uint4" else 0) if zero_point is None else F(zero_point)
    with np.errstate(over="ignore", invalid="ignore"):
        return _finish((x @ F(codes) - x.sum(axis=1, keepdims=True) * zero) * F(scale), bias, "float16")


@right.implements("matmul_float8", supports={**FLOAT8, "scaling": ("tensor", "row"), "has_bias": (False, True)})
def scales_the_sum(a, a_scale, b, b_scale, bias, *, a_format, b_format, scaling, output_format):
    a_scale = a_scale[:, None] if scaling == "row" else a_scale
    with np.errstate(invalid="ignore"):
        return _finish(decode(a, a_format) @ decode(b, b_format) * (a_scale * b_scale), bias, output_format)


@right.implements("matmul_float8", supports={**FLOAT8, "scaling": "block", "has_bias": (False, True)})
def promotes_every_128(a, a_scale, b, b_scale, bias, *, a_format, b_format, output_format):
    if a_scale.shape[1] != b_scale.shape[0] or b_scale.shape[1] != -(-b.shape[1] // BLOCK):
        raise ValueError("b_scale: a scale a block")
    if a_scale.shape[1] != -(-a.shape[1] // BLOCK):
        raise ValueError("a_scale: a scale a block")
    y = np.zeros((a.shape[0], b.shape[1]), F)
    columns = np.arange(b.shape[1]) // BLOCK
    with np.errstate(invalid="ignore"):
        for p in range(a_scale.shape[1]):
            k = slice(BLOCK * p, BLOCK * (p + 1))
            y += decode(a[:, k], a_format) @ decode(b[k], b_format) * (a_scale[:, p, None] * b_scale[p, columns])
    return _finish(y, bias, output_format)


_BFLOAT16_PARTS = Semantics(part_precision=PartPrecision.BFLOAT16)
_GGML = Semantics(activation_quantization=ActivationQuantization.GGML)
_IN_BLOCKS_OF_32 = {"type": ("Q4_0", "Q8_0")}


def _bfloat16(x):
    return float32_of(output_of(F(x), "bfloat16"), "bfloat16")


def _nf4_of_bfloat16_parts(codes, absmax, *, codebook, block_size):
    levels = linear._codebook_weights(codes, np.ones_like(absmax), codebook=codebook, block_size=block_size)
    return _bfloat16(levels) * np.repeat(_bfloat16(absmax), block_size, axis=1).T


@right.implements("linear_nf4", semantics=_BFLOAT16_PARTS, prepare=_nf4_of_bfloat16_parts,
                  supports={"codebook": ("nf4", "fp4_bitsandbytes"), "input_format": "bfloat16"})  # fmt: skip
def parts_in_bfloat16(a, bias, *, prepared, input_format):
    return linear.weight_only(a, bias, prepared=prepared, input_format=input_format)


@right.implements("matvec_gguf", semantics=_GGML, prepare=linear._gguf_weights, supports=_IN_BLOCKS_OF_32)
def activations_of_8_bits(a, *, prepared):
    with np.errstate(invalid="ignore"):
        codes = gguf.quantize_q8_0(a)
    return linear.matvec_gguf(gguf.dequantize(codes, type="Q8_0", output_format="float32"), prepared=prepared)


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def _wrong(operation, word="must be", **options):
    def register(function):
        EXPECTED[function.__name__] = word
        return wrong.implements(operation, **options)(function)

    return register


def _spoiled(change, name, word="must be", operation="matmul_w4a16", **supports):
    """Register a layer whose arguments, weights or sums `change` spoils."""
    EXPECTED[name] = word

    def kernel(a, codes, scale, zero_point, group_index, bias, *, format, group_size, input_format):
        given = {
            "a": float32_of(a, input_format), "codes": codes, "scale": scale, "zero_point": zero_point,
            "group_index": group_index, "bias": bias, "format": format, "group_size": group_size,
        }  # fmt: skip
        return change(**given)

    wrong.implements(operation, name=name, supports={**LAYERS, **supports})(kernel)


def _right_weights(codes, scale, zero_point, group_index, format, group_size, **rest):
    return linear._weights(codes, scale, zero_point, group_index, format=format, group_size=group_size,
                           input_format="float16")  # fmt: skip


def _layer(word="must be", **supports):
    """Register a function of the arguments that returns (activations, weights, bias) to be multiplied."""

    def register(function):
        def change(**given):
            a, w, bias = function(given)
            with np.errstate(invalid="ignore", over="ignore"):
                return _finish(a @ w, bias, "float16")

        _spoiled(change, function.__name__, word, **supports)
        return function

    return register


@_layer()
def neighbours_swapped(g):
    k = len(g["codes"])
    swapped = np.minimum(np.arange(k) ^ 1, k - 1)
    return g["a"], _right_weights(**{**g, "codes": g["codes"][swapped]}), g["bias"]


@_layer(act_order=False)
def groups_begin_one_row_early(g):
    if g["group_size"]:
        k, groups = len(g["codes"]), len(g["scale"])
        g["group_index"] = np.minimum((np.arange(k) + 1) // g["group_size"], groups - 1)
    return g["a"], _right_weights(**g), g["bias"]


@_layer()
def scale_of_the_next_column(g):
    return g["a"], _right_weights(**{**g, "scale": np.roll(g["scale"], -1, axis=-1)}), g["bias"]


@_layer()
def stored_zeros_less_one(g):
    if g["zero_point"] is not None:
        g["zero_point"] = g["zero_point"] + 1
    return g["a"], _right_weights(**g), g["bias"]


@_layer()
def symmetric_middle_of_signed_codes(g):
    if g["zero_point"] is None:
        g["zero_point"] = np.full(g["scale"].shape, 7 if g["format"] == "uint4" else 0, np.int32)
    return g["a"], _right_weights(**g), g["bias"]


@_layer(act_order=True, granularity="group")
def group_index_ignored(g):
    return g["a"], _right_weights(**{**g, "group_index": None}), g["bias"]


@_layer(act_order=True, granularity="group")
def group_index_sorted(g):
    return g["a"], _right_weights(**{**g, "group_index": np.sort(g["group_index"])}), g["bias"]


@_layer(word="must raise", act_order=True, granularity="group")
def group_index_clipped(g):
    return g["a"], _right_weights(**{**g, "group_index": np.clip(g["group_index"], 0, len(g["scale"]) - 1)}), g["bias"]


@_layer(word="must raise", granularity="group", act_order=False)
def takes_too_few_scales(g):
    index = np.minimum(np.arange(len(g["codes"])) // g["group_size"], len(g["scale"]) - 1)
    return g["a"], linear._weights(
        g["codes"], g["scale"][index], None if g["zero_point"] is None else g["zero_point"][index], None,
        format=g["format"], group_size=1, input_format="float16",
    ), g["bias"]  # fmt: skip


@_layer(granularity="group", act_order=False)
def short_last_group_has_the_scale_before(g):
    groups = max(1, len(g["codes"]) // g["group_size"])
    index = np.minimum(np.arange(len(g["codes"])) // g["group_size"], groups - 1)
    return g["a"], _right_weights(**{**g, "group_index": index}), g["bias"]


@_layer()
def bias_left_out(g):
    return g["a"], _right_weights(**g), None


@_layer()
def bias_in_float16(g):
    return g["a"], _right_weights(**g), None if g["bias"] is None else F(H(g["bias"]))


@_layer()
def last_odd_row_left_out(g):
    w = _right_weights(**g)
    if len(w) > 1 and len(w) % 2:
        w[-1] = 0
    return g["a"], w, g["bias"]


@_layer()
def rows_beyond_a_tile_left_out(g):
    w = _right_weights(**g)
    w[len(w) // 32 * 32 if len(w) > 32 else len(w) :] = 0
    return g["a"], w, g["bias"]


@_layer()
def one_product_of_thousands_left_out(g):
    w = _right_weights(**g)
    if len(w) > 1000:
        w[997] = 0
    return g["a"], w, g["bias"]


@_layer()
def columns_beyond_64_take_the_first(g):
    w = _right_weights(**g)
    if w.shape[1] > 64:
        w[:, 64:] = w[:, :1]
    return g["a"], w, g["bias"]


@_layer()
def one_row_of_activations_is_transposed(g):
    w = _right_weights(**g)
    return g["a"], w.T.copy() if len(g["a"]) == 1 and w.shape[0] == w.shape[1] else w, g["bias"]


@_layer()
def weights_in_bfloat16(g):
    return g["a"], float32_of(output_of(_right_weights(**g), "bfloat16"), "bfloat16"), g["bias"]


@_layer()
def scales_in_bfloat16(g):
    scale = float32_of(output_of(F(g["scale"]), "bfloat16"), "bfloat16")
    return g["a"], _right_weights(**{**g, "scale": scale}), g["bias"]


@_layer()
def activations_in_int8(g):
    top = np.maximum(np.abs(np.nan_to_num(g["a"])).max(axis=1, keepdims=True, initial=0), F(1e-20)) / F(127)
    with np.errstate(invalid="ignore"):
        return np.rint(g["a"] / top) * top, _right_weights(**g), g["bias"]


@_layer()
def subnormal_activations_flushed(g):
    return np.where(np.abs(g["a"]) < F(2.0**-14), F(0) * g["a"], g["a"]), _right_weights(**g), g["bias"]


@_layer()
def nan_is_zero(g):
    return np.nan_to_num(g["a"], nan=0.0, posinf=np.inf, neginf=-np.inf), _right_weights(**g), g["bias"]


@_layer()
def infinity_is_the_largest(g):
    return np.clip(g["a"], -65504, 65504), _right_weights(**g), g["bias"]


def _summed(word="must be", **supports):
    """Register a function of activations and weights that returns the sum."""

    def register(function):
        def change(**given):
            with np.errstate(invalid="ignore", over="ignore"):
                return _finish(function(given["a"], _right_weights(**given)), given["bias"], "float16")

        _spoiled(change, function.__name__, word, **supports)
        return function

    return register


@_summed()
def sums_in_float16(a, w):
    return _in_order(a, w, H)


@_summed()
def groups_summed_in_float16(a, w):
    return sum((H(a[:, k : k + 64] @ w[k : k + 64]) for k in range(0, len(w), 64)), np.zeros((), H))


@_summed()
def sums_cut_to_14_bits(a, w):
    return _in_order(a, w, np.float64, 32, 14)


@_summed()
def results_saturate(a, w):
    return np.clip(a @ w, -65504, 65504)


@_summed()
def result_by_way_of_bfloat16(a, w):
    return float32_of(output_of(F(a @ w), "bfloat16"), "bfloat16")


@_summed()
def relu_left_in(a, w):
    return np.maximum(a @ w, 0)


def _float8(word="must be", **supports):
    def register(function):
        EXPECTED[function.__name__] = word

        def kernel(a, a_scale, b, b_scale, bias, *, a_format, b_format, scaling, output_format):
            return function(a, a_scale, b, b_scale, bias, a_format, b_format, scaling, output_format)

        wrong.implements(
            "matmul_float8", name=function.__name__, supports={**FLOAT8, "has_bias": (False, True), **supports}
        )(kernel)
        return function

    return register


def _product8(a, a_scale, b, b_scale, bias, a_format, b_format, scaling, output_format):
    weights = linear._float8_weights(b, b_scale, b_format=b_format, scaling=scaling)
    return linear.matmul_float8(
        a, a_scale, bias, prepared=weights, a_format=a_format, scaling=scaling, output_format=output_format
    )


@_float8()
def fnuz_for_fn(a, a_scale, b, b_scale, bias, a_format, *rest):
    with np.errstate(invalid="ignore"):
        return _product8(a, a_scale / 2, b, b_scale, bias, a_format, *rest)


@_float8()
def subnormals_flushed(a, a_scale, b, b_scale, bias, a_format, *rest):
    least = 8 if a_format == "float8_e4m3fn" else 4
    return _product8(np.where((a & 0x7F) < least, a & 0x80, a), a_scale, b, b_scale, bias, a_format, *rest)


@_float8()
def nan_code_is_480(a, a_scale, b, b_scale, bias, a_format, *rest):
    return _product8(np.where((a & 0x7F) == 0x7F, a & 0xFE, a), a_scale, b, b_scale, bias, a_format, *rest)


@_float8(scaling="row")
def one_scale_for_all_rows(a, a_scale, *rest):
    return _product8(a, np.full_like(a_scale, a_scale[0] if a_scale.size else 1), *rest)


@_float8(scaling="block")
def block_scales_transposed(a, a_scale, b, b_scale, *rest):
    if b_scale.shape[0] == b_scale.shape[1]:
        b_scale = b_scale.T
    return _product8(a, a_scale, b, b_scale, *rest)


@_float8(scaling="block")
def blocks_of_64(a, a_scale, b, b_scale, bias, a_format, b_format, scaling, output_format):
    index = np.minimum(np.arange(a.shape[1]) // 64, a_scale.shape[1] - 1)
    weights = linear._float8_weights(b, b_scale, b_format=b_format, scaling="block")
    with np.errstate(invalid="ignore"):
        return _finish((decode(a, a_format) * a_scale[:, index]) @ weights, bias, output_format)


@_float8()
def bias_under_the_scale(a, a_scale, b, b_scale, bias, a_format, b_format, scaling, output_format):
    if bias is not None and scaling == "tensor":
        bias = bias * (a_scale * b_scale)
    return _product8(a, a_scale, b, b_scale, bias, a_format, b_format, scaling, output_format)


@_wrong("matmul_mx", supports=MX)
def scale_of_the_next_block(a, a_scale, b, b_scale, bias, *, a_format, b_format, output_format):
    return linear.matmul_mx(
        a, np.roll(a_scale, 1, axis=1), bias, prepared=linear._mx_weights(b, b_scale, b_format=b_format),
        a_format=a_format, output_format=output_format,
    )  # fmt: skip


@_wrong("matmul_mx", supports=MX)
def nan_scale_is_a_power(a, a_scale, b, b_scale, bias, *, a_format, b_format, output_format):
    numbers = dequantize_mx(a, np.minimum(a_scale, 254), format=a_format, output_format="float32")
    return linear._product(numbers, linear._mx_weights(b, b_scale, b_format=b_format), bias, output_format)


@_wrong("matmul_mx", supports=MX)
def int8_without_its_64ths(a, a_scale, b, b_scale, bias, *, a_format, b_format, output_format):
    numbers = dequantize_mx(a, a_scale, format=a_format, output_format="float32")
    weights = linear._mx_weights(b, b_scale, b_format=b_format) * F(64 if b_format == "int8" else 1)
    return linear._product(numbers, weights, bias, output_format)


@_wrong("matmul_mx", supports=MX)
def b_taken_for_its_transpose(a, a_scale, b, b_scale, bias, *, a_format, b_format, output_format):
    numbers = dequantize_mx(a, a_scale, format=a_format, output_format="float32")
    weights = linear._mx_weights(b, b_scale, b_format=b_format)
    return linear._product(numbers, weights.T if weights.shape[0] == weights.shape[1] else weights, bias,
                           output_format)  # fmt: skip


@_wrong("matmul_nvfp4")
def global_scale_of_b_ignored(a, a_scale, a_global_scale, b, b_scale, b_global_scale, bias, *, output_format):
    weights = dequantize_nvfp4(b, b_scale, None, output_format="float32").T
    return linear.matmul_nvfp4(a, a_scale, a_global_scale, bias, prepared=weights, output_format=output_format)


@_wrong("matmul_nvfp4")
def three_is_four(a, a_scale, a_global_scale, b, b_scale, b_global_scale, bias, *, output_format):
    return linear.matmul_nvfp4(
        np.where((a & 7) == 5, a + 1, a), a_scale, a_global_scale, bias,
        prepared=linear._nvfp4_weights(b, b_scale, b_global_scale), output_format=output_format,
    )  # fmt: skip


@_wrong("linear_nf4", prepare=_nf4_of_bfloat16_parts, supports={"input_format": "bfloat16"})
def parts_of_bfloat16_not_declared(a, bias, *, prepared, input_format):
    return linear.weight_only(a, bias, prepared=prepared, input_format=input_format)


@_wrong("linear_nf4", semantics=_BFLOAT16_PARTS, prepare=linear._codebook_weights,
        supports={"input_format": "bfloat16"})  # fmt: skip
def parts_of_float32_declared_bfloat16(a, bias, *, prepared, input_format):
    return linear.weight_only(a, bias, prepared=prepared, input_format=input_format)


@_wrong("linear_nf4", supports={"codebook": ("nf4", "fp4_bitsandbytes")})
def absmax_of_the_previous_row(a, codes, absmax, bias, *, codebook, block_size, input_format):
    weights = linear._codebook_weights(codes, np.roll(absmax, 1, axis=0), codebook=codebook, block_size=block_size)
    return linear.weight_only(a, bias, prepared=weights, input_format=input_format)


@_wrong("linear_nf4")
def table_of_three_digits(a, codes, absmax, bias, *, codebook, block_size, input_format):
    ones = np.ones_like(absmax)
    table = np.round(linear._codebook_weights(codes, ones, codebook=codebook, block_size=block_size), 3)
    weights = table * np.repeat(absmax, block_size, axis=1).T
    return linear.weight_only(a, bias, prepared=weights, input_format=input_format)


@_wrong("matvec_gguf", supports={"type": gguf.TYPES})
def activations_in_q8_0(a, blocks, *, type):
    with np.errstate(invalid="ignore"):
        codes = gguf.quantize_q8_0(a)
        a = gguf.dequantize(codes, type="Q8_0", output_format="float32")
    return linear.matvec_gguf(a, prepared=linear._gguf_weights(blocks, type=type))


@_wrong("matvec_gguf", supports={"type": "Q4_0"})
def nibbles_in_sequence(a, blocks, *, type):
    weights = linear._gguf_weights(blocks, type=type)
    k = np.arange(weights.shape[0])
    order = k // 32 * 32 + k % 2 * 16 + k % 32 // 2
    return linear.matvec_gguf(a, prepared=weights[order])


@_wrong("matvec_gguf", semantics=_GGML, prepare=linear._gguf_weights, supports=_IN_BLOCKS_OF_32)
def activations_of_float32_declared_ggml(a, *, prepared):
    return linear.matvec_gguf(a, prepared=prepared)


@_wrong("matvec_gguf", semantics=_GGML, prepare=linear._gguf_weights, supports=_IN_BLOCKS_OF_32)
def activations_of_7_bits(a, *, prepared):
    with np.errstate(invalid="ignore"):
        codes = gguf.quantize_q8_0(a)
    even = codes.copy().reshape(len(a), -1, 34)
    even[..., 2:] &= 0xFE
    rounded = gguf.dequantize(even.reshape(codes.shape), type="Q8_0", output_format="float32")
    return linear.matvec_gguf(rounded, prepared=prepared)
