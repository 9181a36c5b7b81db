"""Adapters merged and beside 4-bit weights: exact fractions, simulated kernels, and the operations they join."""

from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.blockwise import double_quantize, quantize_blockwise
from lowbit_cts.reference.choices import LoraForm, WeightPrecision
from lowbit_cts.reference.codebooks import CODEBOOKS
from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.low_rank import low_rank_enclosure, merge_enclosure
from lowbit_cts.reference.operands import codebook_weights
from lowbit_cts.reference.qlora import NESTED, absmax_of, double_quantized_weights, qlora_enclosure
from lowbit_cts.reference.sums import exactly, inner_products

RNG = np.random.default_rng(12)
FORMATS = ("float32", "float16", "bfloat16")
PRECISIONS = (WeightPrecision.FLOAT32, WeightPrecision.ACTIVATIONS)


def rounded(x, format):
    return round_to_format(np.asarray(x, np.float64), float_format(format))


def factors(format, n=6, k=24, r=5):
    return [rounded(RNG.standard_normal(shape), format) for shape in ((n, k), (r, k), (n, r))]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_merged_weights_hold_the_real_ones_and_every_simulation(format, precision):
    for _ in range(10):
        w, down, up = factors(format)
        scaling = float(np.float32(0.7))
        found = merge_enclosure(w, down, up, scaling, format=format, weight_precision=precision)
        for i, j in np.ndindex(w.shape):
            delta = sum(Fraction(up[i, s]) * Fraction(down[s, j]) for s in range(len(down)))
            real = float(Fraction(w[i, j]) + Fraction(scaling) * delta)
            assert found.lo[i, j] <= rounded(real, format) <= found.hi[i, j]
        product = (up.astype(np.float32) @ down.astype(np.float32)) * np.float32(scaling)
        if precision is WeightPrecision.ACTIVATIONS:
            product = rounded(product, format)
        assert found.admits(rounded(w.astype(np.float32) + product.astype(np.float32), format)).all()


@pytest.mark.parametrize("format", FORMATS)
def test_an_adapter_of_nothing_leaves_the_weights(format):
    w, down, up = factors(format)
    for given in ((down, 0 * up), (0 * down, up), (down[:0], up[:, :0])):
        for precision in PRECISIONS:
            found = merge_enclosure(w, *given, 1.5, format=format, weight_precision=precision)
            for end in (found.exact, found.lo, found.hi):
                np.testing.assert_array_equal(end, w)


def test_sums_of_quarters_have_one_result():
    w, down, up = (RNG.integers(-4, 4, shape) / 4 for shape in ((5, 8), (3, 8), (5, 3)))
    for precision in PRECISIONS:
        found = merge_enclosure(w, down, up, 0.5, format="float32", weight_precision=precision)
        np.testing.assert_array_equal(found.lo, w + 0.5 * up @ down)
        np.testing.assert_array_equal(found.hi, found.lo)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_merged_layer_and_an_unmerged_one_agree_within_both_enclosures(format, precision):
    """What either may give overlaps, and any admissible merged weights give what the merged layer may."""
    for _ in range(10):
        w, down, up = factors(format)
        x = rounded(RNG.standard_normal((4, w.shape[1])), format)
        given = (x, w.T, down.T, up.T, 0.75, None)
        options = {"format": format, "weight_precision": precision}
        apart = low_rank_enclosure(*given, **options)
        merged = low_rank_enclosure(*given, **options, lora_form=LoraForm.MERGED)
        assert np.all((apart.lo <= merged.hi) & (merged.lo <= apart.hi))
        weights = merge_enclosure(w, down, up, 0.75, **options)
        for chosen in (weights.lo, weights.hi, np.where(RNG.random(w.shape) < 0.5, weights.lo, weights.hi)):
            assert merged.admits(rounded(x @ chosen.T, format)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"down": np.ones((5, 23))}, "down: has 23 rows, must have as many as x has columns (24)"),
        ({"up": np.ones((6, 4))}, "up: has shape (4, 6), must be (5, N) with the columns of w"),
        ({"up": np.ones((7, 5))}, "up: has shape (5, 7), must be (5, N) with the columns of w"),
        ({"scaling": np.inf}, "scaling: must be finite"),
    ],
)
def test_what_cannot_be_merged(change, message):
    w, down, up = factors("float32")
    with pytest.raises(ValueError) as caught:
        merge_enclosure(**{"w": w, "down": down, "up": up, "scaling": 1.0, **change}, format="float32")
    assert message in str(caught.value)


# 4-bit weights -------------------------------------------------------------------------------------------------------

SIZES = {"codebook": "nf4", "block_size": 64, "nested_block_size": 64}


def quantized(n=40, k=128):
    """Return weights, and what QLoRA stores of them: codes, codes of absmax, their absmax and the offset."""
    w = RNG.standard_normal((n, k)).astype(np.float32)
    codes, absmax = quantize_blockwise(w, codebook="nf4", block_size=64)
    nested, scale, offset = double_quantize(absmax.ravel(), block_size=64)
    return w, (codes, nested.reshape(absmax.shape), scale, offset)


def test_double_quantized_weights_are_near_the_weights():
    w, stored = quantized()
    weights = double_quantized_weights(*stored, **SIZES, activations="float32")
    assert np.sqrt(np.mean((weights.values - w) ** 2)) < 0.11  # NF4 alone: 0.096
    codes, nested, scale, offset = stored
    for i, j in ((0, 0), (13, 100), (39, 127)):
        place = i * 2 + j // 64
        absmax = float(CODEBOOKS[NESTED][nested.ravel()[place]]) * float(scale[place // 64]) + float(offset)
        assert weights.values[i, j] == pytest.approx(float(CODEBOOKS["nf4"][codes[i, j]]) * absmax, rel=1e-6)


def test_the_room_of_an_absmax_holds_every_way_to_round_it():
    _, (_, nested, scale, offset) = quantized()
    absmax, room = absmax_of(nested, scale, offset, block_size=64)
    values = CODEBOOKS[NESTED][nested.ravel()]
    wide = np.repeat(scale, 64)[: values.size]
    apart = (values * wide + offset).astype(float)
    fused = (values.astype(float) * wide + float(offset)).astype(np.float32).astype(float)
    for found in (apart, fused):
        assert np.all(np.abs(found - absmax.ravel()) <= room.ravel())
    np.testing.assert_array_equal(absmax.ravel(), apart)
    assert np.all(room < 4e-7 * (np.abs(values * wide).reshape(room.shape) + float(offset)))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("part", ["float32", "bfloat16"])
def test_weights_are_those_of_the_dequantized_absmax(precision, part):
    """They hold what `linear_nf4` multiplies when it is given the absmax."""
    _, (codes, nested, scale, offset) = quantized()
    options = {"activations": "bfloat16", "weight_precision": precision, "part_precision": part}
    found = double_quantized_weights(codes, nested, scale, offset, **SIZES, **options)
    absmax, _ = absmax_of(nested, scale, offset, block_size=64)
    plain = codebook_weights(codes, absmax, codebook="nf4", block_size=64, **options)
    np.testing.assert_array_equal(found.values, plain.values)
    assert np.all(found.error >= plain.error)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_simulated_layers_are_inside(format, precision):
    _, stored = quantized()
    n, k = stored[0].shape
    x, down, up = (rounded(RNG.standard_normal(shape), format) for shape in ((3, k), (4, k), (n, 4)))
    bias = RNG.standard_normal(n).astype(np.float32)
    weights = double_quantized_weights(*stored, **SIZES, activations=format, weight_precision=precision)
    found = qlora_enclosure(
        x, weights, down, up, 0.5, bias.astype(float), format=format, groups=k // 64, weight_precision=precision
    )
    keep = (lambda y: rounded(y, format)) if precision is WeightPrecision.ACTIVATIONS else (lambda y: y)
    for kind in (np.float32, np.float64):
        w = keep(weights.values.astype(np.float32)).astype(kind)
        low = keep(keep(keep(x.astype(kind) @ down.T.astype(kind)).astype(kind) @ up.T.astype(kind)) * 0.5)
        assert found.admits(rounded(keep(x.astype(kind) @ w.T + bias) + low, format)).all()
    without = rounded(x @ weights.values.T + bias, format)
    assert not found.admits(without).all()


def test_a_layer_without_an_adapter_is_the_product():
    _, stored = quantized()
    weights = double_quantized_weights(*stored, **SIZES, activations="float32")
    x, n = RNG.standard_normal((3, 128)).astype(np.float32).astype(float), len(stored[0])
    found = qlora_enclosure(x, weights, np.ones((2, 128)), np.zeros((n, 2)), 2.0, None, format="float32", groups=2)
    product = inner_products(exactly(x), weights.T)
    np.testing.assert_array_equal(found.exact, product.value.astype(np.float32))


def test_no_adapter_is_merged_into_quantized_weights():
    _, stored = quantized()
    weights = double_quantized_weights(*stored, **SIZES, activations="float32")
    with pytest.raises(ValueError, match="lora_form: merged is not admissible with quantized weights"):
        low_rank_enclosure(
            np.ones((1, 128)), weights.T, np.ones((128, 2)), np.ones((2, 40)), 1.0, None, format="float32",
            lora_form=LoraForm.MERGED,
        )  # fmt: skip
    with pytest.raises(ValueError, match="nested_absmax: has shape"):
        double_quantized_weights(stored[0], stored[1], stored[2][:-1], stored[3], **SIZES, activations="float32")
