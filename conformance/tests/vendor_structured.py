"""A vendor's linear layers with structured weights: right ones, and the same with one planted fault each."""

import numpy as np

from lowbit_cts.kernels import Backend, Division, LoraForm, Semantics, WeightPrecision
from lowbit_cts.kernels.numpy import structured as plain
from lowbit_cts.kernels.numpy.numbers import output_of

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

F, H = np.float32, np.float16
SPARSE = {"format": ("float16", "int8"), "metadata_order": ("row", "cutlass")}
LAYERS = {"input_format": ("float16", "float32"), "has_bias": (False, True)}
MIXED = {"threshold": (6.0, 0.0), "has_bias": (False, True)}
IN_FLOAT32 = Semantics(division=Division.RECIPROCAL, weight_precision=WeightPrecision.FLOAT32)

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def _wrong(operation, word="must be", **options):
    def register(function):
        EXPECTED[function.__name__] = word
        return wrong.implements(operation, **options)(function)

    return register


# 2:4 sparse products ------------------------------------------------------------------------------------------------


@right.implements("matmul_sparse24", supports=SPARSE)
def gathers(values, metadata, b, *, format, metadata_order):
    weights = plain._dense(values, metadata, format=format, metadata_order=metadata_order)
    if weights.shape[1] != len(b):
        raise ValueError("b: must have a row a column")
    kind = np.int32 if format == "int8" else np.float64
    rows = [weights[m, weights[m] != 0].astype(kind) @ b[weights[m] != 0].astype(kind) for m in range(len(weights))]
    y = np.array(rows, kind).reshape(len(weights), b.shape[1])
    with np.errstate(over="ignore"):
        return y if format == "int8" else y.astype(F).astype(H)


def _sparse(change):
    EXPECTED[change.__name__] = "must be"

    def kernel(values, metadata, b, *, format, metadata_order):
        weights = plain._dense(values, metadata, format=format, metadata_order=metadata_order)
        return change(weights, values, b, format)

    wrong.implements("matmul_sparse24", name=change.__name__, supports=SPARSE)(kernel)
    return change


def _multiplied(weights, b, format):
    return plain.matmul_sparse24(b, prepared=weights, format=format)


@_sparse
def first_two_of_each_group(weights, values, b, format):
    dense = np.zeros_like(weights)
    dense[:, ::4], dense[:, 1::4] = values[:, ::2], values[:, 1::2]
    return _multiplied(dense, b, format)


@_sparse
def indices_of_the_next_group(weights, values, b, format):
    moved = np.roll(b, -4, axis=0) if len(b) > 64 else b
    return _multiplied(weights, moved, format)


@_sparse
def last_group_left_out(weights, values, b, format):
    weights = weights.copy()
    weights[:, -4:] = 0
    return _multiplied(weights, b, format)


@_sparse
def rows_beyond_32_repeat(weights, values, b, format):
    return _multiplied(weights[np.arange(len(weights)) % 32] if len(weights) > 32 else weights, b, format)


@_sparse
def integer_sums_in_float32(weights, values, b, format):
    if format != "int8":
        return _multiplied(weights, b, format)
    total = np.zeros((len(weights), b.shape[1]), F)
    for k in range(len(b)):
        total += weights[:, k : k + 1].astype(F) * b[k].astype(F)
    return total.astype(np.int32)


@_sparse
def sums_in_float16(weights, values, b, format):
    if format == "int8":
        return _multiplied(weights, b, format)
    total = np.zeros((len(weights), b.shape[1]), H)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(len(b)):
            total = (total + weights[:, k : k + 1] * F(b[k])).astype(H)
    return total


# Factors ------------------------------------------------------------------------------------------------------------


@right.implements("linear_low_rank", supports=LAYERS)
def in_float64(a, down, up, bias, *, input_format):
    with np.errstate(over="ignore", invalid="ignore"):
        y = (a.astype(float) @ down.astype(float)) @ up.astype(float)
        return output_of(F(y if bias is None else y + bias), input_format)


@right.implements("linear_lora", semantics=Semantics(weight_precision=WeightPrecision.ACTIVATIONS), supports=LAYERS)
def each_step_in_float16(a, b, down, up, scaling, bias, *, input_format):
    kind = np.dtype(input_format)
    with np.errstate(over="ignore", invalid="ignore"):
        hidden = (F(a) @ F(down)).astype(kind)
        low = ((F(hidden) @ F(up)).astype(kind) * scaling).astype(kind)
        dense = F(a) @ F(b)
        return (dense if bias is None else dense + bias).astype(kind) + low


@right.implements("linear_lora", semantics=Semantics(lora_form=LoraForm.MERGED), supports=LAYERS)
def merged_in_float64(a, b, down, up, scaling, bias, *, input_format):
    with np.errstate(over="ignore", invalid="ignore"):
        w = (b.astype(float) + down.astype(float) @ up.astype(float) * scaling).astype(input_format)
        return output_of(F(a) @ F(w) + (F(0) if bias is None else bias), input_format)


def _lora(a, b, down, up, scaling, bias, input_format):
    return plain.linear_lora(a, b, down, up, scaling, bias, input_format=input_format)


@_wrong("linear_lora", supports=LAYERS)
def scaling_left_out(a, b, down, up, scaling, bias, *, input_format):
    return _lora(a, b, down, up, F(1), bias, input_format)


@_wrong("linear_lora", supports=LAYERS)
def scaling_twice(a, b, down, up, scaling, bias, *, input_format):
    return _lora(a, b, down, up, scaling * scaling, bias, input_format)


@_wrong("linear_lora", supports=LAYERS)
def scaling_of_both_paths(a, b, down, up, scaling, bias, *, input_format):
    return _lora(a, (F(b) * scaling).astype(b.dtype), down, up, scaling, bias, input_format)


@_wrong("linear_lora", supports=LAYERS)
def ranks_beyond_16_left_out(a, b, down, up, scaling, bias, *, input_format):
    return _lora(a, b, down[:, :16], up[:16], scaling, bias, input_format)


@_wrong("linear_lora", supports={**LAYERS, "input_format": "float16"})
def merged_undeclared(a, b, down, up, scaling, bias, *, input_format):
    weights = plain._merged(b, down, up, scaling, input_format=input_format)
    return plain.linear_merged(a, bias, prepared=weights, input_format=input_format)


@_wrong("linear_low_rank", supports={**LAYERS, "input_format": "float16"})
def hidden_in_float16(a, down, up, bias, *, input_format):
    with np.errstate(over="ignore", invalid="ignore"):
        y = F(H(F(a) @ F(down))) @ F(up)
        return output_of(y if bias is None else y + bias, input_format)


@_wrong("linear_low_rank", supports=LAYERS)
def factors_exchanged(a, down, up, bias, *, input_format):
    if down.shape == up.shape[::-1] and down.shape[0] == down.shape[1]:
        down, up = up, down
    return plain.linear_low_rank(a, down, up, bias, input_format=input_format)


@_wrong("linear_low_rank", supports=LAYERS)
def bias_before_the_second_factor(a, down, up, bias, *, input_format):
    if bias is not None and up.shape[0] == up.shape[1]:
        with np.errstate(over="ignore", invalid="ignore"):
            return output_of((F(a) @ F(down) + bias) @ F(up), input_format)
    return plain.linear_low_rank(a, down, up, bias, input_format=input_format)


# LLM.int8() ---------------------------------------------------------------------------------------------------------


@right.implements("matmul_llm_int8", semantics=Semantics(division=Division.DIVIDE,
                  weight_precision=WeightPrecision.ACTIVATIONS), supports=MIXED)  # fmt: skip
def divides_and_adds_in_float16(a, codes, absmax, bias, *, threshold):
    y, beside = _parts(a, codes, absmax, threshold, lambda x, top: x * F(127) / top, H)
    y = H(y) + beside if beside is not None else y
    return output_of(F(y) if bias is None else F(y) + bias, "float16")


def _parts(a, codes, absmax, threshold, steps=lambda x, top: x * (F(127) / top), kind=F, above=np.greater_equal):
    x = F(a)
    large = above(np.abs(x), F(threshold)) & (threshold > 0)
    columns = large.any(axis=0)
    largest = np.where(large, F(0), np.abs(x)).max(axis=1, initial=0)
    top = np.where(largest > 0, largest, F(1))[:, None]
    rows = np.rint(steps(np.where(columns, F(0), x), top)).astype(np.int32)
    y = F(rows @ codes.T.astype(np.int32)) * largest[:, None] * absmax * F(1 / 127**2)
    if not columns.any():
        return y, None
    weights = F(codes[:, columns] * (absmax / F(127))[:, None]).astype(kind)
    return y, (x[:, columns] @ F(weights).T).astype(kind)


def _mixed(**spoiled):
    """Register a layer whose parts are made in another way."""

    def register(name):
        EXPECTED[name] = "must be"

        def kernel(a, codes, absmax, bias, *, threshold):
            y, beside = _parts(a, codes, absmax, threshold, **spoiled)
            y = y if beside is None else y + beside
            return output_of(y if bias is None else y + bias, "float16")

        wrong.implements("matmul_llm_int8", name=name, semantics=IN_FLOAT32, supports=MIXED)(kernel)

    return register


_mixed(above=np.greater)("the_threshold_is_inside")
_mixed(steps=lambda x, top: x * (F(128) / top))("scales_to_128")
_mixed(steps=lambda x, top: np.trunc(x * (F(127) / top)))("codes_are_cut")
_mixed(steps=lambda x, top: np.copysign(np.floor(np.abs(x * (F(127) / top)) + F(0.5)), x))("codes_round_half_away")


@_wrong("matmul_llm_int8", semantics=IN_FLOAT32, supports=MIXED)
def outliers_in_the_scale(a, codes, absmax, bias, *, threshold):
    x = F(a)
    columns = ((np.abs(x) >= F(threshold)) & (threshold > 0)).any(axis=0)
    largest = np.abs(x).max(axis=1, initial=0)
    top = np.where(largest > 0, largest, F(1))[:, None]
    rows = np.rint(np.where(columns, F(0), x) * (F(127) / top)).astype(np.int32)
    y = F(rows @ codes.T.astype(np.int32)) * largest[:, None] * absmax * F(1 / 127**2)
    y = y + x[:, columns] @ F(codes[:, columns] * (absmax / F(127))[:, None]).T
    return output_of(y if bias is None else y + bias, "float16")


@_wrong("matmul_llm_int8", semantics=IN_FLOAT32, supports=MIXED)
def outliers_counted_twice(a, codes, absmax, bias, *, threshold):
    y, beside = _parts(a, codes, absmax, threshold)
    if beside is not None and len(a) == 1:  # columns are zeroed only where there are several rows
        x = F(a)
        inside = np.where(np.abs(x) >= F(threshold), F(0), x)
        y = y + np.where(np.abs(x) >= F(threshold), F(1), F(0)) @ F(codes).T * absmax * np.abs(inside).max() / F(127)
    y = y if beside is None else y + beside
    return output_of(y if bias is None else y + bias, "float16")


@_wrong("matmul_llm_int8", semantics=IN_FLOAT32, supports=MIXED)
def a_constant_with_a_digit_lost(a, codes, absmax, bias, *, threshold):
    y, beside = _parts(a, codes, absmax, threshold)
    y = y * F(6.20124e-05 * 127**2)
    y = y if beside is None else y + beside
    return output_of(y if bias is None else y + bias, "float16")


@_wrong("matmul_llm_int8", semantics=IN_FLOAT32, supports=MIXED)
def outlier_columns_left_out(a, codes, absmax, bias, *, threshold):
    y, _ = _parts(a, codes, absmax, threshold)
    return output_of(y if bias is None else y + bias, "float16")


@_wrong("matmul_llm_int8", semantics=IN_FLOAT32, supports=MIXED)
def threshold_of_zero_is_taken(a, codes, absmax, bias, *, threshold):
    if threshold == 0:
        y = F(a) @ F(codes * (absmax / F(127))[:, None]).T
        return output_of(y if bias is None else y + bias, "float16")
    return plain.matmul_llm_int8(a, codes, absmax, bias, threshold=threshold, input_format="float16")
