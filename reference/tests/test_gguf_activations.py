"""Activations in ggml's blocks: codes by fractions, scales by their definition, sums that meet the offsets."""

from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.choices import DequantizeForm
from lowbit_cts.reference.gguf.activations import (
    ACTIVATION_ELEMENTS,
    ACTIVATION_TYPES,
    activation_type,
    quantize_activations,
)
from lowbit_cts.reference.gguf.blocks import dequantize
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS
from lowbit_cts.reference.operands import ggml_factors
from lowbit_cts.reference.sums import inner_products

RNG = np.random.default_rng(3)
BY_KIND = {"Q8_0": "Q4_0", "Q8_1": "Q5_1", "Q8_K": "Q6_K"}


def blocks_of(type, rows, count):
    """Return blocks of random bits, their float16 scales small and finite."""
    fmt = BLOCK_FORMATS[type]
    blocks = RNG.integers(0, 256, (rows * count, fmt.bytes)).astype(np.uint8)
    start = 0
    for field in fmt.fields:
        if not field.bits and not field.trits:
            blocks[:, start : start + 2] = RNG.normal(size=(len(blocks), 1)).astype(np.float16).view(np.uint8)
        if fmt.scale_levels is not None and field.name in fmt.scales and "d" not in [f.name for f in fmt.fields]:
            blocks[:, start : start + field.bytes] = RNG.integers(40, 60, (len(blocks), field.bytes))
        start += field.bytes
    return blocks.reshape(rows, -1)


def test_the_types_of_activations():
    assert activation_type("Q4_1") == "Q8_1"
    assert {type for type, kind in ACTIVATION_TYPES.items() if kind == "Q8_1"} == {"Q4_1", "Q5_1"}
    assert {ACTIVATION_TYPES[type] for type in ("Q2_K", "IQ4_XS", "TQ1_0")} == {"Q8_K"}
    assert {ACTIVATION_TYPES[type] for type in ("Q8_0", "IQ4_NL", "MXFP4", "NVFP4")} == {"Q8_0"}


@pytest.mark.parametrize("kind", BY_KIND)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_codes_are_the_nearest_integers(kind, scale):
    size = ACTIVATION_ELEMENTS[kind]
    a = (scale * RNG.standard_normal((3, 2 * size))).astype(np.float32)
    found = quantize_activations(a, BY_KIND[kind]).elements
    for block, values, errors in zip(*(x.reshape(-1, size) for x in (a, found.values, found.error)), strict=True):
        largest = max(block, key=abs)
        if kind == "Q8_K":
            d = float(np.float32(1) / (np.float32(-127) / largest))
            of = Fraction(-127) / Fraction(float(largest))
        else:
            d = float(np.float16(np.abs(largest) / np.float32(127)))
            of = Fraction(127) / abs(Fraction(float(largest)))
        for x, value, error in zip(block, values, errors, strict=True):
            quotient = Fraction(float(x)) * of
            nearest = round(quotient)
            assert abs(d * nearest - value) <= error
            if abs(abs(quotient - nearest) - Fraction(1, 2)) > Fraction(1, 10**4):
                assert error == 0


@pytest.mark.parametrize("kind", BY_KIND)
def test_a_tie_may_be_either_neighbour(kind):
    a = np.zeros((1, 256), np.float32)
    a[0, ::32], a[0, 1] = 127.0, 2.5
    found = quantize_activations(a, BY_KIND[kind]).elements
    assert (found.values[0, 1], found.error[0, 1]) == (2.5, 0.5)
    assert np.count_nonzero(found.error) == 1
    assert np.array_equal(np.delete(found.values, 1), np.delete(a.astype(np.float64), 1))


def test_sums_are_rounded_to_float16_and_overflow():
    for value, expected in ((1.0, 32.0), (2000.0, 64000.0), (2048.0, np.inf)):
        sums = quantize_activations(np.full((1, 32), value, np.float32), "Q4_1").sums
        assert sums is not None
        assert sums.values[0, 0] == expected
        assert sums.error[0, 0] == 0
    tied = np.full((1, 32), 2.5, np.float32)
    tied[0, 0] = 127
    sums = quantize_activations(tied, "Q4_1").sums
    assert sums is not None
    for code in (2, 3):
        assert abs(127 + 31 * code - sums.values[0, 0]) <= sums.error[0, 0] <= 16


def test_zeros_and_what_is_not_finite():
    a = np.zeros((1, 64), np.float32)
    a[0, 40] = np.nan
    found = quantize_activations(a, "Q4_0").elements
    assert np.array_equal(found.values[0, :32], np.zeros(32))
    assert np.isnan(found.values[0, 32:]).all()


@pytest.mark.parametrize("type", BLOCK_FORMATS)
def test_the_factors_give_the_product_of_dequantized_matrices(type):
    blocks = blocks_of(type, 4, 512 // BLOCK_FORMATS[type].elements)
    a = RNG.standard_normal((5, 512)).astype(np.float32)
    weights = dequantize(blocks, type).astype(np.float64)
    quantized = quantize_activations(a, type)
    for form in DequantizeForm:
        factor, scaled = ggml_factors(a, blocks, type=type, dequantize_form=form)
        sums = inner_products(factor, scaled.T)
        exact = quantized.elements.values @ weights.T
        # Sums in float16 err by 2**-11 of theirs, offsets in float32 by 2**-24.
        assert np.all(np.abs(sums.value - exact) <= sums.error + 2.0**-10 * sums.magnitude)
        if quantized.sums is None:
            assert np.all(np.abs(sums.value - exact) <= sums.error + 2.0**-22 * sums.magnitude)


def test_broken_blocks_are_refused():
    with pytest.raises(ValueError, match="whole blocks of 32"):
        quantize_activations(np.zeros((1, 40), np.float32), "Q4_0")
