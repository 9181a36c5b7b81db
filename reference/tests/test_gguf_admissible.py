"""What is admitted as blocks where bytes are not determined: ggml's own, with other roundings, and nothing worse."""

from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.gguf.admissible import (
    SEARCHED,
    BlockEnclosure,
    distance_ratio,
    error_ratio,
    quantize_enclosure,
)
from lowbit_cts.reference.gguf.blocks import dequantize, pack, quantize, scale_and_offset, unpack
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS

F = np.float32
ROWS = 48
SHAPE = (ROWS, 256)


def gaussian(rng):
    return rng.standard_normal(SHAPE)


FILLS = {
    "gaussian": gaussian,
    "heavy tails": lambda rng: np.clip(gaussian(rng) / gaussian(rng), -2e4, 2e4),
    "rows of all magnitudes": lambda rng: np.ldexp(gaussian(rng), rng.integers(-60, 11, (SHAPE[0], 1))),
    "columns of all magnitudes": lambda rng: np.ldexp(gaussian(rng), rng.integers(-20, 5, (1, SHAPE[1]))),
    "one outlier": lambda rng: gaussian(rng) * 1e-3 + 1e4 * (np.arange(256) == 77),
    "sparse": lambda rng: np.where(rng.random(SHAPE) < 0.05, gaussian(rng), 0),
    "some groups zero": lambda rng: gaussian(rng) * np.repeat(rng.integers(0, 2, (SHAPE[0], 16)), 16, axis=1),
    "constant groups": lambda rng: np.repeat(rng.standard_normal((SHAPE[0], 16)), 16, axis=1),
    "half integers": lambda rng: rng.integers(-16, 17, SHAPE) / 2,
    "powers of two": lambda rng: np.ldexp(rng.choice([-1.0, 1.0], SHAPE), rng.integers(-9, 9, SHAPE)),
    "positive": lambda rng: np.abs(gaussian(rng)) + 0.1,
    "far from zero": lambda rng: 5 + gaussian(rng) * 1e-6,
    "subnormal": lambda rng: gaussian(rng) * 1e-40,
}


def filled(fill: str) -> np.ndarray:
    return FILLS[fill](np.random.default_rng(list(FILLS).index(fill))).astype(F)


def admitted(enclosure: Enclosure, blocks: np.ndarray, name: str) -> np.ndarray:
    """Return for each block whether it is admitted; all of its bytes are, or none."""
    found = enclosure.admits(blocks.astype(np.int64)).reshape(-1, BLOCK_FORMATS[name].bytes)
    assert np.all(found == found[:, :1])
    ratio = enclosure.ratio(blocks.astype(np.int64)).reshape(found.shape)
    np.testing.assert_array_equal(np.all(ratio <= 1, axis=1) | found[:, 0], found[:, 0])
    return found[:, 0]


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_the_codes_of_ggml_are_nearest(name, fill):
    x = filled(fill)
    assert distance_ratio(x, quantize(x, name), name).max() <= 1


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", SEARCHED)
def test_the_scales_of_ggml_are_no_worse_than_plain_ones(name, fill):
    x = filled(fill)
    assert error_ratio(x, quantize(x, name), name).max() <= 1


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("name", SEARCHED)
def test_other_roundings_are_admitted(name, fill):
    """x moved by a unit in the last place stands for roundings elsewhere; of these blocks many differ in bytes."""
    x = filled(fill)
    moved = np.where(np.arange(SHAPE[1]) % 2, np.nextafter(x, F(0)), x)
    enclosure = quantize_enclosure(x, name, contraction="either")
    assert isinstance(enclosure, BlockEnclosure)
    assert admitted(enclosure, quantize(moved, name), name).all()


def test_bounds_are_not_far_from_what_occurs():
    x = filled("gaussian")
    for name in SEARCHED:
        ratio = error_ratio(x, quantize(x, name), name)
        assert 0.35 < np.median(ratio) < ratio.max() < 1
    x = np.random.default_rng(1).standard_normal((4096, 256)).astype(F)
    assert distance_ratio(x, quantize(x, "Q4_0"), "Q4_0").max() > 0.9


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_a_distance_is_that_of_the_nearest_level(name):
    """Held against all levels, in rationals."""
    rng = np.random.default_rng(3)
    fmt = BLOCK_FORMATS[name]
    x = rng.standard_normal((2, fmt.elements)).astype(F)
    blocks = quantize(x, name)
    parts = unpack(blocks, name)
    parts["codes"][:, 1] = 0  # of Q2_K and the like the least, of the others the outermost level
    blocks = pack(parts, name)
    scale, offset = scale_and_offset(parts, name)
    ratio = distance_ratio(x, blocks, name).reshape(2, -1)
    for block in range(2):
        for element in range(0, fmt.elements, 5 if fmt.elements > 64 else 1):
            group = element // fmt.group
            s, o = Fraction(float(scale[block, group])), Fraction(0 if offset is None else float(offset[block, group]))
            distances = [abs(Fraction(float(x[block, element])) - s * int(level) - o) for level in fmt.levels]
            excess = distances[parts["codes"][block, element]] - min(distances)
            assert (ratio[block, element] > 0) == (excess > 1e-15)
    far = np.abs(dequantize(blocks, name) - x)[:, 1] > 2 * np.abs(dequantize(quantize(x, name), name) - x)[:, 1] + 0.1
    assert np.all(ratio[:, 1][far] > 1)


# What must not be admitted.


def changed(x, name, change):
    parts = unpack(quantize(x, name), name)
    change(parts)
    return pack(parts, name)


def one_code_lower(parts):
    parts["codes"][:, 3] = np.where(parts["codes"][:, 3] > 0, parts["codes"][:, 3] - 1, parts["codes"][:, 3] + 1)


def codes_of_the_next_block(parts):
    parts["codes"] = np.roll(parts["codes"], 1, axis=0)


def codes_of_the_next_element(parts):
    parts["codes"] = np.roll(parts["codes"], 1, axis=1)


def no_scale(parts):
    key = "d" if "d" in parts else "scales"
    parts[key] = np.zeros_like(parts[key])
    if "dmin" in parts:
        parts["dmin"] = np.zeros_like(parts["dmin"])
    if "m" in parts:
        parts["m"] = np.zeros_like(parts["m"])


def infinite_scale(parts):
    if "d" in parts:
        parts["d"] = np.full_like(parts["d"], np.inf)
    else:
        no_scale(parts)


@pytest.mark.parametrize(
    "change", [one_code_lower, codes_of_the_next_block, codes_of_the_next_element, no_scale, infinite_scale]
)
@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_worse_codes_are_refused_whatever_the_scales(name, change):
    x = filled("gaussian")
    enclosure = quantize_enclosure(x, name, scale_search="any")
    refused = ~admitted(enclosure, changed(x, name, change).reshape(enclosure.shape), name)
    # A code lower may be as near, where levels are far apart (TQ1_0) or 0 occurs twice (FP4).
    assert refused.mean() > (0.5 if change is one_code_lower else 0.99)


@pytest.mark.parametrize("factor", [0.5, 0.7, 2, 3])
@pytest.mark.parametrize("name", SEARCHED)
def test_worse_scales_are_refused_though_codes_are_nearest(name, factor):
    x = filled("gaussian")
    fmt = BLOCK_FORMATS[name]
    parts = unpack(quantize(x, name), name)
    parts["d"] = parts["d"] * np.float16(factor)
    scale, offset = scale_and_offset(parts, name)
    levels = np.unique(fmt.levels)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = (x.reshape(-1, fmt.groups, fmt.group) - (0 if offset is None else offset[..., None])) / scale[..., None]
    steps = np.where(np.isfinite(steps), steps, 0)
    level = levels[np.argmin(np.abs(steps[..., None] - levels), axis=-1)]
    codes = np.argmax(level[..., None] == fmt.levels, axis=-1)
    parts["codes"] = codes.reshape(-1, fmt.elements).astype(np.uint8)
    blocks = pack(parts, name)
    assert distance_ratio(x, blocks, name).max() <= 1
    refused = ~admitted(quantize_enclosure(x, name, contraction="fused"), blocks.reshape(ROWS, -1), name)
    assert refused.mean() > (0.4 if name == "Q5_K" and factor == 2 else 0.9)
    assert admitted(quantize_enclosure(x, name, scale_search="any"), blocks.reshape(ROWS, -1), name).all()


# Choices.


def test_bytes_are_determined_where_nothing_is_searched():
    x = filled("gaussian")
    for name in BLOCK_FORMATS:
        enclosure = quantize_enclosure(x, name)
        assert type(enclosure) is Enclosure
        np.testing.assert_array_equal(enclosure.exact, quantize(x, name))
        assert np.array_equal(enclosure.lo, enclosure.hi)
    for name in set(BLOCK_FORMATS) - set(SEARCHED):
        assert np.array_equal(
            quantize_enclosure(x, name, contraction="fused").lo, quantize(x, name, contraction="fused")
        )


def test_either_contraction_admits_every_mixture_of_codes():
    rng = np.random.default_rng(12)
    d = rng.uniform(1, 2, (4096, 1)).astype(F)
    x = np.nextafter(((rng.integers(-8, 7, (4096, 32)) + 0.5) * d).astype(F), F(0))
    x[:, :1] = -8 * d
    codes = [unpack(quantize(x, "Q4_0", contraction=choice), "Q4_0") for choice in ("separate", "fused")]
    assert np.any(codes[0]["codes"] != codes[1]["codes"])
    enclosure = quantize_enclosure(x, "Q4_0", contraction="either")
    for _ in range(5):
        mixed = np.where(rng.random(codes[0]["codes"].shape) < 0.5, codes[0]["codes"], codes[1]["codes"])
        assert enclosure.admits(pack(codes[0] | {"codes": mixed}, "Q4_0").astype(np.int64)).all()
    neither = np.where(codes[0]["codes"] > 8, 3, 12).astype(np.uint8)
    assert not enclosure.admits(pack(codes[0] | {"codes": neither}, "Q4_0").astype(np.int64))[:, 2:].any(axis=1).all()


def test_one_shot_codes_are_those_of_the_scale_before():
    x = filled("gaussian")
    blocks = quantize(x, "IQ4_NL", scale_search="one_shot")
    assert distance_ratio(x, blocks, "IQ4_NL").max() > 10
    enclosure = quantize_enclosure(x, "IQ4_NL", scale_search="one_shot", contraction="fused")
    assert admitted(enclosure, blocks, "IQ4_NL").all()
    assert not admitted(quantize_enclosure(x, "IQ4_NL", contraction="fused"), blocks, "IQ4_NL").all()


def test_a_cut_judges_its_rows():
    x = filled("gaussian")
    enclosure = quantize_enclosure(x, "Q4_K", scale_search="any")
    blocks = quantize(x, "Q4_K").astype(np.int64)
    assert enclosure[3:7].admits(blocks[3:7]).all()
    assert not enclosure[3:7].admits(blocks[4:8]).any()


def test_numbers_beyond_float16_are_not_judged():
    x = filled("gaussian") * F(1e6)
    assert quantize_enclosure(x, "Q6_K", contraction="fused").admits(np.zeros((ROWS, 210), np.int64)).all()


def test_bad_arguments_are_named():
    x = filled("gaussian")
    with pytest.raises(ValueError, match=r"^format: 'Q4_0' has no search; admissible: Q2_K"):
        error_ratio(x, quantize(x, "Q4_0"), "Q4_0")
    with pytest.raises(ValueError, match=r"^scale_search: any does not determine"):
        quantize(x, "Q4_0", scale_search="any")
    with pytest.raises(ValueError, match=r"^x: must be finite"):
        quantize_enclosure(np.full((1, 32), np.nan, F), "Q4_0", scale_search="any")
    with pytest.raises(ValueError, match=r"^blocks: must be uint8"):
        distance_ratio(x, np.zeros((ROWS, 17), np.uint8), "Q4_0")
