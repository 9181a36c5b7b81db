"""A vendor's adapters, merged and beside 4-bit weights: right kernels, and the same with one planted fault each."""

import numpy as np

from lowbit_cts.kernels import Backend, PartPrecision, Semantics, WeightPrecision
from lowbit_cts.kernels.numpy.numbers import float32_of, output_of
from lowbit_cts.reference.codebooks import CODEBOOKS

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

F = np.float32
IN_FORMAT = Semantics(weight_precision=WeightPrecision.ACTIVATIONS)
MERGES = {"input_format": ("bfloat16", "float32", "float16")}
LAYERS = {"codebook": ("nf4", "fp4_bitsandbytes"), "input_format": ("float16", "float32"), "has_bias": (False, True)}

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


# Merging ------------------------------------------------------------------------------------------------------------


class Merge:
    """Merging in small steps, each of which a fault may replace."""

    def delta(self, down, up, scaling, format):
        return up @ down * scaling

    def added(self, w, delta, format):
        return w + delta

    def __call__(self, w, down, up, scaling, format):
        w, down, up = (float32_of(x, format) for x in (w, down, up))
        with np.errstate(over="ignore", invalid="ignore"):
            return output_of(F(self.added(w, self.delta(down, up, scaling, format), format)), format)


def _merges(backend, merge, **options):
    def kernel(w, down, up, scaling, *, input_format):
        return merge()(w, down, up, scaling, input_format)

    supports = {**MERGES, **options.pop("supports", {})}
    backend.implements("merge_lora", name=merge.__name__, supports=supports, **options)(kernel)


def _right_merge(**options):
    def register(merge):
        _merges(right, merge, **options)
        return merge

    return register


def _wrong_merge(word="must be", **options):
    def register(merge):
        EXPECTED[merge.__name__] = word
        _merges(wrong, merge, **options)
        return merge

    return register


@_right_merge()
class merged_at_once(Merge):
    pass


@_right_merge()
class merged_in_float64(Merge):
    def delta(self, down, up, scaling, format):
        return up.astype(float) @ down.astype(float) * float(scaling)


@_right_merge()
class rank_by_rank(Merge):
    def added(self, w, delta, format):
        return w + delta

    def delta(self, down, up, scaling, format):
        total = np.zeros((len(up), down.shape[1]), F)
        for rank in range(len(down)):
            total += np.outer(up[:, rank], scaling * down[rank])
        return total


@_right_merge(semantics=IN_FORMAT)
class delta_in_the_format(Merge):
    def delta(self, down, up, scaling, format):
        return float32_of(output_of(F(up @ down * scaling), format), format)


@_wrong_merge()
class scaling_forgotten(Merge):
    def delta(self, down, up, scaling, format):
        return up @ down


@_wrong_merge()
class scaling_of_the_weights_too(Merge):
    def added(self, w, delta, format):
        return w * self.scaling + delta

    def delta(self, down, up, scaling, format):
        self.scaling = scaling
        return up @ down * scaling


@_wrong_merge()
class divided_by_the_rank_again(Merge):
    def delta(self, down, up, scaling, format):
        return up @ down * (scaling / F(max(1, len(down))))


@_wrong_merge()
class subtracted(Merge):
    def added(self, w, delta, format):
        return w - delta


@_wrong_merge()
class the_adapter_alone(Merge):
    def added(self, w, delta, format):
        return delta


@_wrong_merge()
class last_rank_left_out(Merge):
    def delta(self, down, up, scaling, format):
        return up[:, : max(1, len(down) - 1)] @ down[: max(1, len(down) - 1)] * scaling


@_wrong_merge()
class ranks_beyond_32_left_out(Merge):
    def delta(self, down, up, scaling, format):
        return up[:, :32] @ down[:32] * scaling


@_wrong_merge()
class squares_are_transposed(Merge):
    def delta(self, down, up, scaling, format):
        found = up @ down * scaling
        return found.T if found.shape[0] == found.shape[1] else found


@_wrong_merge(supports={"input_format": "bfloat16"})
class rounded_twice_undeclared(delta_in_the_format):
    pass


@_wrong_merge(supports={"input_format": "bfloat16"})
class factors_scaled_in_the_format(Merge):
    def delta(self, down, up, scaling, format):
        return float32_of(output_of(F(up * scaling), format), format) @ down


@_wrong_merge(supports={"input_format": "bfloat16"})
class result_is_cut(Merge):
    def added(self, w, delta, format):
        return ((w + delta).view(np.uint32) & 0xFFFF0000).view(F)


@_wrong_merge(supports={"input_format": "float32"})
class product_in_float16(Merge):
    def delta(self, down, up, scaling, format):
        return (up @ down).astype(np.float16) * scaling


@_wrong_merge()
class small_deltas_are_dropped(Merge):
    def delta(self, down, up, scaling, format):
        found = up @ down * scaling
        return np.where(np.abs(found) < 0.01, F(0), found)


@_wrong_merge(supports={"input_format": "float16"})
class subnormal_weights_flushed(Merge):
    def added(self, w, delta, format):
        return np.where(np.abs(w) < F(2.0**-14), F(0), w) + delta


@_wrong_merge()
class nan_counts_as_zero(Merge):
    def added(self, w, delta, format):
        return np.nan_to_num(w, nan=0.0, posinf=np.inf, neginf=-np.inf) + delta


@_wrong_merge()
class rows_beyond_64_kept(Merge):
    def added(self, w, delta, format):
        return np.concatenate([w[:64] + delta[:64], w[64:]])


# Adapters beside 4-bit weights --------------------------------------------------------------------------------------


class Layer:
    """A layer in small steps, each of which a fault may replace."""

    def __init__(self, codebook, block_size, nested_block_size, format):
        self.table, self.size, self.nested, self.format = CODEBOOKS[codebook], block_size, nested_block_size, format

    def check(self, codes, absmax_codes, nested_absmax):
        if codes.shape[1] % self.size or absmax_codes.shape != (len(codes), codes.shape[1] // self.size):
            raise ValueError("absmax_codes: must have one a block")
        if len(nested_absmax) != -(-absmax_codes.size // self.nested):
            raise ValueError("nested_absmax: must have one a nested block")

    def nested_of(self, absmax_codes, nested_absmax):
        return np.repeat(nested_absmax, self.nested)[: absmax_codes.size].reshape(absmax_codes.shape)

    def absmax(self, absmax_codes, nested_absmax, offset):
        return CODEBOOKS["dynamic8"][absmax_codes] * self.nested_of(absmax_codes, nested_absmax) + offset

    def weights(self, codes, absmax):
        return self.table[codes] * np.repeat(absmax, self.size, axis=1)

    def dense(self, x, w, bias):
        y = x @ w.T
        return y if bias is None else y + bias

    def low(self, x, down, up, scaling):
        return (x @ down.T) @ up.T * scaling

    def added(self, dense, low):
        return dense + low

    def __call__(self, a, codes, absmax_codes, nested_absmax, offset, down, up, scaling, bias):
        self.check(codes, absmax_codes, nested_absmax)
        x, down, up = (float32_of(factor, self.format) for factor in (a, down, up))
        w = self.weights(codes, self.absmax(absmax_codes, nested_absmax, offset).astype(F))
        with np.errstate(over="ignore", invalid="ignore"):
            y = self.added(self.dense(x, w, bias), self.low(x, down, up, scaling))
            return output_of(F(y), self.format)


def _layers(backend, layer, **options):
    def kernel(
        a, codes, absmax_codes, nested_absmax, offset, down, up, scaling, bias, *, codebook, block_size,
        nested_block_size, input_format,
    ):  # fmt: skip
        call = layer(codebook, block_size, nested_block_size, input_format)
        return call(a, codes, absmax_codes, nested_absmax, offset, down, up, scaling, bias)

    supports = {**LAYERS, **options.pop("supports", {})}
    backend.implements("linear_qlora", name=layer.__name__, supports=supports, **options)(kernel)


def _right_layer(**options):
    def register(layer):
        _layers(right, layer, **options)
        return layer

    return register


def _wrong_layer(word="must be", **options):
    def register(layer):
        EXPECTED[layer.__name__] = word
        _layers(wrong, layer, **options)
        return layer

    return register


@_right_layer()
class both_paths_in_float32(Layer):
    pass


@_right_layer()
class absmax_fused(Layer):
    def absmax(self, absmax_codes, nested_absmax, offset):
        exact = CODEBOOKS["dynamic8"][absmax_codes].astype(float)
        return exact * self.nested_of(absmax_codes, nested_absmax).astype(float) + float(offset)


@_right_layer()
class blocks_scaled_after_their_sums(Layer):
    def weights(self, codes, absmax):
        self.scale = absmax
        return self.table[codes]

    def dense(self, x, w, bias):
        blocks = x.reshape(len(x), -1, self.size), w.reshape(len(w), -1, self.size)
        y = np.einsum("mgk,ngk,ng->mn", *blocks, self.scale, optimize=["einsum_path", (0, 1), (0, 1)]).astype(F)
        return y if bias is None else y + bias


@_right_layer(semantics=IN_FORMAT)
class each_step_in_the_format(Layer):
    def kept(self, x):
        return float32_of(output_of(F(x), self.format), self.format)

    def weights(self, codes, absmax):
        return self.kept(super().weights(codes, absmax))

    def dense(self, x, w, bias):
        return self.kept(super().dense(x, w, bias))

    def low(self, x, down, up, scaling):
        return self.kept(self.kept(self.kept(x @ down.T) @ up.T) * scaling)


@_right_layer(semantics=Semantics(part_precision=PartPrecision.BFLOAT16))
class parts_in_bfloat16(Layer):
    def weights(self, codes, absmax):
        table, scale = (float32_of(output_of(F(x), "bfloat16"), "bfloat16") for x in (self.table, absmax))
        return table[codes] * np.repeat(scale, self.size, axis=1)


@_right_layer()
class one_product_of_both(Layer):
    """Activations beside what down makes of them, times weights beside the scaled up."""

    def dense(self, x, w, bias):
        self.w, self.bias = w, bias
        return F(0)

    def low(self, x, down, up, scaling):
        y = np.concatenate([x, x @ down.T], axis=1) @ np.concatenate([self.w, up * scaling], axis=1).T
        return y if self.bias is None else y + self.bias


@_wrong_layer()
class offset_forgotten(Layer):
    def absmax(self, absmax_codes, nested_absmax, offset):
        return super().absmax(absmax_codes, nested_absmax, F(0))


@_wrong_layer()
class offset_before_the_scale(Layer):
    def absmax(self, absmax_codes, nested_absmax, offset):
        return (CODEBOOKS["dynamic8"][absmax_codes] + offset) * self.nested_of(absmax_codes, nested_absmax)


@_wrong_layer()
class first_nested_absmax_for_all(Layer):
    def nested_of(self, absmax_codes, nested_absmax):
        return np.full(absmax_codes.shape, nested_absmax[0] if nested_absmax.size else F(1))


@_wrong_layer()
class nested_blocks_begin_with_rows(Layer):
    def nested_of(self, absmax_codes, nested_absmax):
        rows, groups = absmax_codes.shape
        start = np.arange(rows) * groups // self.nested
        return np.repeat(nested_absmax[start][:, None] if nested_absmax.size else np.ones((rows, 1), F), groups, axis=1)


@_wrong_layer()
class nested_blocks_run_down_the_columns(Layer):
    def nested_of(self, absmax_codes, nested_absmax):
        flat = np.repeat(nested_absmax, self.nested)[: absmax_codes.size]
        return flat.reshape(absmax_codes.shape[::-1]).T


@_wrong_layer()
class absmax_codes_are_signed(Layer):
    def absmax(self, absmax_codes, nested_absmax, offset):
        return super().absmax(absmax_codes ^ 0x80, nested_absmax, offset)


@_wrong_layer()
class absmax_linear_in_the_code(Layer):
    def absmax(self, absmax_codes, nested_absmax, offset):
        linear = (absmax_codes.astype(F) - F(127)) / F(128)
        return linear * self.nested_of(absmax_codes, nested_absmax) + offset


@_wrong_layer(supports={"codebook": "nf4"})
class codes_of_fp4(Layer):
    def weights(self, codes, absmax):
        self.table = CODEBOOKS["fp4_bitsandbytes"]
        return super().weights(codes, absmax)


@_wrong_layer()
class absmax_of_the_next_block(Layer):
    def weights(self, codes, absmax):
        return super().weights(codes, np.roll(absmax, -1, axis=1))


@_wrong_layer(supports={"input_format": "float32"})
class weights_in_bfloat16_undeclared(Layer):
    def weights(self, codes, absmax):
        return float32_of(output_of(F(super().weights(codes, absmax)), "bfloat16"), "bfloat16")


@_wrong_layer()
class adapter_forgotten(Layer):
    def added(self, dense, low):
        return dense


@_wrong_layer()
class adapter_not_scaled(Layer):
    def low(self, x, down, up, scaling):
        return super().low(x, down, up, F(1))


@_wrong_layer()
class adapter_scaled_twice(Layer):
    def low(self, x, down, up, scaling):
        return super().low(x, down, up, scaling * scaling)


@_wrong_layer()
class both_paths_scaled(Layer):
    def low(self, x, down, up, scaling):
        self.scaling = scaling
        return super().low(x, down, up, scaling)

    def added(self, dense, low):
        return dense * self.scaling + low


@_wrong_layer(supports={"has_bias": True})
class bias_scaled_with_the_adapter(Layer):
    def dense(self, x, w, bias):
        self.bias = bias
        return x @ w.T

    def low(self, x, down, up, scaling):
        return super().low(x, down, up, scaling) + (F(0) if self.bias is None else self.bias * scaling)


@_wrong_layer()
class adapter_beyond_32_ranks_left_out(Layer):
    def low(self, x, down, up, scaling):
        return super().low(x, down[:32], up[:, :32], scaling)


@_wrong_layer()
class adapter_reads_rounded_activations(Layer):
    def low(self, x, down, up, scaling):
        return super().low(x.astype(np.float16).astype(F) if self.format == "float32" else np.rint(x * 64) / 64, down,
                           up, scaling)  # fmt: skip


@_wrong_layer(supports={"input_format": "float16"})
class hidden_in_the_format_undeclared(Layer):
    def low(self, x, down, up, scaling):
        return (x @ down.T).astype(np.float16).astype(F) @ up.T * scaling


@_wrong_layer()
class last_block_left_out(Layer):
    def weights(self, codes, absmax):
        w = super().weights(codes, absmax).copy()
        w[:, w.shape[1] - self.size + self.size // 2 :] = 0
        return w


@_wrong_layer("must raise")
class nested_absmax_not_checked(Layer):
    def check(self, codes, absmax_codes, nested_absmax):
        if codes.shape[1] % self.size or absmax_codes.shape != (len(codes), codes.shape[1] // self.size):
            raise ValueError("absmax_codes: must have one a block")

    def nested_of(self, absmax_codes, nested_absmax):
        padded = np.resize(nested_absmax, -(-absmax_codes.size // self.nested)) if nested_absmax.size else nested_absmax
        return super().nested_of(absmax_codes, padded)
