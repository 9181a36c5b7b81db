"""Blockwise codebook quantization and double quantization: published numbers, rationals, bitsandbytes."""

import itertools
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from lowbit_cts.reference.blockwise import (
    dequantize_blockwise,
    dequantize_blockwise_enclosure,
    double_dequantize,
    double_dequantize_enclosure,
    double_quantize,
    double_quantize_enclosure,
    quantize_blockwise,
    quantize_blockwise_enclosure,
)
from lowbit_cts.reference.choices import Contraction, Division, Precision, TieSide, ZeroScale
from lowbit_cts.reference.codebooks import CODEBOOKS, assign, decode_codes

SOURCE = np.random.default_rng(1).standard_normal((4096, 256)).astype(np.float32)
NF4, FP4, DYNAMIC = CODEBOOKS["nf4"], CODEBOOKS["fp4_bitsandbytes"], CODEBOOKS["dynamic8"]
# What bitsandbytes 0.50 computes on a CPU with 4 bits, and with 8.
CPU_4BIT = {"division": "reciprocal", "tie": "lower", "boundary": "rounded", "equal_values": "by_side"}
CPU_8BIT = {"division": "reciprocal", "zero_scale": "zero", "tie": "lower", "boundary": "rounded"}
ONE = np.float32(1)


def raises(argument: str, rule: str):
    return pytest.raises(ValueError, match=f"^{argument}: .*{rule}")


def sqnr(x: np.ndarray, y: np.ndarray) -> float:
    x = x.astype(np.float64)
    return float(10 * np.log10(np.sum(x**2) / np.sum((x - y) ** 2)))


def restored(x: np.ndarray, codebook: str, block_size: int) -> np.ndarray:
    codes, absmax = quantize_blockwise(x, codebook=codebook, block_size=block_size)
    return dequantize_blockwise(codes, absmax, codebook=codebook, block_size=block_size)


@pytest.mark.parametrize(
    ("codebook", "block_size", "decibels"),
    [("nf4", 32, 21.17), ("nf4", 64, 20.72), ("nf4", 128, 20.38),
     ("fp4_bitsandbytes", 32, 18.84), ("fp4_bitsandbytes", 64, 18.27), ("fp4_bitsandbytes", 128, 17.80)],
)  # fmt: skip
def test_the_signal_to_noise_ratio_of_the_normal_source(codebook, block_size, decibels):
    assert round(sqnr(SOURCE, restored(SOURCE, codebook, block_size)), 2) == decibels


def test_double_quantization_costs_no_hundredth_of_a_decibel_and_saves_0_373047_bits():
    codes, absmax = quantize_blockwise(SOURCE, codebook="nf4", block_size=64)
    stored = double_quantize(absmax)
    again = double_dequantize(*stored).reshape(absmax.shape)
    y = dequantize_blockwise(codes, again, codebook="nf4", block_size=64)
    assert round(sqnr(SOURCE, y), 2) == 20.72
    bits = (8 * stored[0].size + 32 * stored[1].size) / SOURCE.size
    assert bits == 8 / 64 + 32 / (64 * 256)
    assert round(bits, 6) == 0.126953
    assert round(32 * absmax.size / SOURCE.size - bits, 6) == 0.373047


def test_a_zero_block_gets_the_code_of_zero_and_absmax_zero():
    codes, absmax = quantize_blockwise(np.zeros((1, 64)), codebook="nf4", block_size=64, **CPU_4BIT)
    packed = (codes[:, ::2] << 4) | codes[:, 1::2]
    assert np.all(packed == 0x77)
    assert absmax.tolist() == [[0.0]]
    assert not np.any(dequantize_blockwise(codes, absmax, codebook="nf4", block_size=64))


@pytest.mark.parametrize("division", Division)
def test_what_a_zero_block_is_divided_by(division):
    """On CUDA, 0 * (1 / 0) is NaN, with which every comparison of the tree fails: code 0, which is -1 times 0."""
    x = np.zeros((1, 4))
    expected = {ZeroScale.EPSILON: 7, ZeroScale.ONE: 7, ZeroScale.ZERO: 0}
    for zero_scale, code in expected.items():
        choices = {"codebook": "nf4", "block_size": 4, "division": division, "zero_scale": zero_scale}
        codes, absmax = quantize_blockwise(x, **choices)
        assert (set(codes.ravel().tolist()), absmax.item()) == ({code}, 0.0)
        found = quantize_blockwise_enclosure(x, **choices)
        open_to_all = zero_scale is ZeroScale.ZERO
        assert np.all(found["codes"].lo == (-np.inf if open_to_all else 0))
        assert np.all(found["codes"].hi == (np.inf if open_to_all else 0))


def test_next_to_nothing_is_divided_by_epsilon_one_or_itself():
    x = np.array([[1e-39, -1e-39, 5e-40, 0.0]], np.float32)  # subnormal; its reciprocal is infinite
    codes = {
        zero_scale: quantize_blockwise(x, codebook="nf4", block_size=4, division="reciprocal", zero_scale=zero_scale)
        for zero_scale in ZeroScale
    }
    assert codes["epsilon"][0].tolist() == [[8, 6, 8, 7]]  # by 1e-38: 0.1, -0.1, 0.05
    assert codes["one"][0].tolist() == [[7, 7, 7, 7]]
    assert codes["zero"][0].tolist() == [[15, 0, 15, 0]]  # infinity, -infinity, infinity, NaN
    for _, absmax in codes.values():
        assert absmax.item() == x[0, 0]
    divided = quantize_blockwise(x, codebook="nf4", block_size=4, zero_scale="zero")[0]
    assert divided.tolist() == [[15, 0, 12, 7]], "a division needs no reciprocal"


def boundary_blocks(codebook: np.ndarray, scales: list[float]) -> np.ndarray:
    """Return rows that hold, times each scale, the largest magnitude and what divides to boundaries and beside them."""
    values = np.unique(codebook)
    rounded = (values[:-1] + values[1:]) * np.float32(0.5)
    near = [rounded]
    for _ in range(3):
        near.append(np.nextafter(near[-1], np.float32(np.inf)))
    for _ in range(3):
        near.append(np.nextafter(near[-1] if len(near) > 4 else rounded, np.float32(-np.inf)))
    flat = np.concatenate([*near, values, -rounded, np.float32([0.0, -0.0, 1e-9, -1e-9, 2.0**-149])])
    rows = []
    for scale in scales:
        parts = np.resize(flat * np.float32(scale), (-(-flat.size // 31), 31)).astype(np.float32)
        rows.append(np.insert(parts, 0, np.float32(scale), axis=1))
    return np.concatenate(rows)


def code_by_rationals(quotient: float, codebook: np.ndarray) -> float:
    """Return the value nearest to a float32 quotient, of two the lower."""
    return min(codebook.tolist(), key=lambda v: (abs(Fraction(quotient) - Fraction(v)), v))


@pytest.mark.parametrize("division", [Division.DIVIDE, Division.RECIPROCAL])
@pytest.mark.parametrize("name", ["nf4", "fp4_bitsandbytes"])
def test_codes_are_those_of_float32_arithmetic_and_rational_distances(name, division):
    codebook = CODEBOOKS[name]
    x = boundary_blocks(codebook, [1.0, 0.1, 3e7, 1e-20, 7 / 3])
    codes, absmax = quantize_blockwise(x, codebook=name, block_size=32, division=division)
    np.testing.assert_array_equal(absmax[:, 0], np.abs(x).max(axis=1))
    quotients = x / absmax if division is Division.DIVIDE else x * (ONE / absmax)
    assert quotients.dtype == np.float32
    expected = [code_by_rationals(q, codebook) for q in quotients.ravel().tolist()]
    np.testing.assert_array_equal(decode_codes(codes, name).ravel(), expected)


def test_dividing_and_multiplying_by_the_reciprocal_differ_and_an_approximate_division_admits_both():
    x = boundary_blocks(NF4, list(np.random.default_rng(85).uniform(0.1, 10, 40)))
    place = {"codebook": "nf4", "block_size": 32}
    divided, multiplied = (quantize_blockwise(x, **place, division=d)[0] for d in ("divide", "reciprocal"))
    assert np.sum(divided != multiplied) > 50
    found = quantize_blockwise_enclosure(x, **place, division="approximate", division_ulps=2.0)["codes"]
    for codes in (divided, multiplied):
        assert found.admits(decode_codes(codes, "nf4")).all()
    np.testing.assert_array_equal(found.exact, decode_codes(divided, "nf4"))
    open_codes = found.lo < found.hi
    assert open_codes.any()
    far = np.abs(np.abs(x)[..., None] / np.abs(x).max(axis=1)[:, None, None] - np.abs(NF4)).min(axis=-1) < 1e-3
    assert not open_codes[far].any(), "near a value of the codebook the code is determined"
    double = quantize_blockwise(x, **place, intermediate=Precision.FLOAT64)[0]
    assert np.any(double != divided)


@pytest.mark.parametrize("division", [Division.DIVIDE, Division.RECIPROCAL])
def test_the_enclosure_of_determined_arithmetic_is_its_result(division):
    for name in CODEBOOKS:
        x = boundary_blocks(CODEBOOKS[name], [1.0, 0.3])
        codes, absmax = quantize_blockwise(x, codebook=name, block_size=16, division=division)
        found = quantize_blockwise_enclosure(x, codebook=name, block_size=16, division=division)
        for end in (found["codes"].lo, found["codes"].exact, found["codes"].hi):
            np.testing.assert_array_equal(end, decode_codes(codes, name))
        for end in (found["absmax"].lo, found["absmax"].exact, found["absmax"].hi):
            np.testing.assert_array_equal(end, absmax)


def test_blocks_lie_along_the_rows_and_each_has_its_own_scale():
    x = np.array([[1, -2, 8, 4], [0.5, 0.25, 0, -16]], np.float32)
    codes, absmax = quantize_blockwise(x, codebook="nf4", block_size=2)
    assert absmax.tolist() == [[2, 8], [0.5, 16]]
    alone = [quantize_blockwise(x[i : i + 1, j : j + 2], codebook="nf4", block_size=2)[0]
             for i, j in itertools.product(range(2), (0, 2))]  # fmt: skip
    np.testing.assert_array_equal(codes.reshape(4, 2), np.concatenate(alone))


def test_powers_of_two_scale_the_absmax_and_nothing_else():
    codes, absmax = quantize_blockwise(SOURCE[:64], codebook="nf4", block_size=64)
    for exponent in (-60, 3, 70):
        again = quantize_blockwise(SOURCE[:64] * np.float32(2.0**exponent), codebook="nf4", block_size=64)
        np.testing.assert_array_equal(again[0], codes)
        np.testing.assert_array_equal(again[1], absmax * np.float32(2.0**exponent))


def test_every_codebook_value_comes_back_exactly():
    for name, codebook in CODEBOOKS.items():
        values = codebook[np.argsort(np.abs(codebook), kind="stable")][None]
        for scale in (1.0, 2.0**-30, 2.0**100):
            codes, absmax = quantize_blockwise(values * np.float32(scale), codebook=name, block_size=values.size)
            y = dequantize_blockwise(codes, absmax, codebook=name, block_size=values.size)
            np.testing.assert_array_equal(y, values * np.float64(scale))


NATIVE = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


@pytest.mark.parametrize("output_format", NATIVE)
def test_a_value_is_the_rounded_product_of_two_float32(output_format):
    rng = np.random.default_rng(86)
    codes = rng.integers(0, 16, (64, 1024))
    absmax = (2.0 ** rng.uniform(-12, 10, (64, 256))).astype(np.float32)
    place = {"codebook": "nf4", "block_size": 4, "output_format": output_format}
    product = NF4.astype(np.float64)[codes] * np.repeat(absmax.astype(np.float64), 4, axis=1)
    twice = product.astype(np.float32).astype(NATIVE[output_format]).astype(np.float64)
    once = dequantize_blockwise(codes, absmax, **place, intermediate=Precision.FLOAT64)
    np.testing.assert_array_equal(dequantize_blockwise(codes, absmax, **place), twice)
    if output_format == "float16":
        np.testing.assert_array_equal(once, product.astype(np.float16).astype(np.float64))
    found = dequantize_blockwise_enclosure(codes, absmax, **place)
    assert found.admits(once).all()
    np.testing.assert_array_equal(found.exact, twice)
    np.testing.assert_array_equal(found.lo == found.hi, once == twice)
    if output_format == "float32":
        np.testing.assert_array_equal(found.lo, found.hi)


# Double quantization


def absmax_of_blocks(seed: int, size: int) -> np.ndarray:
    return np.abs(np.random.default_rng(seed).standard_normal((size, 64))).max(axis=1).astype(np.float32)


def summed(values: np.ndarray, order: str) -> np.float32:
    """Return a float32 sum in one of several orders."""
    values = values.astype(np.float32)
    if order == "numpy":
        return values.sum()
    ordered = {
        "forward": values,
        "backward": values[::-1],
        "ascending": np.sort(values),
        "descending": -np.sort(-values),
    }
    if order in ordered:
        return np.cumsum(ordered[order], dtype=np.float32)[-1]
    lanes = [np.cumsum(values[i::16], dtype=np.float32)[-1] for i in range(min(16, values.size))]
    return np.cumsum(np.array(lanes), dtype=np.float32)[-1]


ORDERS = ("numpy", "forward", "backward", "ascending", "descending", "lanes")


@pytest.mark.parametrize("size", [1, 5, 256, 300, 4096])
@pytest.mark.parametrize("division", [Division.DIVIDE, Division.RECIPROCAL])
def test_a_mean_in_any_order_is_admitted_with_all_that_follows_from_it(size, division):
    absmax = absmax_of_blocks(87, size)
    found = double_quantize_enclosure(absmax, division=division)
    seen = set()
    for order, reciprocal in itertools.product(ORDERS, (False, True)):
        total = summed(absmax, order)
        offset = total * (ONE / np.float32(size)) if reciprocal else total / np.float32(size)
        seen.add(float(offset))
        codes, nested, _ = double_quantize(absmax, offset=offset, division=division)
        assert found["offset"].admits(np.asarray(offset, np.float64))
        assert found["nested_absmax"].admits(nested.astype(np.float64)).all()
        assert found["codes"].admits(decode_codes(codes, DYNAMIC)).all()
    assert len(seen) > 1 or size < 6


def test_codes_of_every_offset_in_the_interval_are_admitted_and_far_ones_are_not():
    absmax = absmax_of_blocks(88, 700)
    found = double_quantize_enclosure(absmax)
    offset = found["offset"]
    assert offset.lo < offset.exact < offset.hi
    for position in np.linspace(0, 1, 41):
        between = np.float32(offset.lo + position * (offset.hi - offset.lo))
        codes, nested, _ = double_quantize(absmax, offset=between)
        assert found["codes"].admits(decode_codes(codes, DYNAMIC)).all()
        assert found["nested_absmax"].admits(nested.astype(np.float64)).all()
    assert np.mean(found["codes"].lo == found["codes"].hi) > 0.9
    codes, _, _ = double_quantize(absmax, offset=np.float32(offset.hi * 1.01))
    assert not found["codes"].admits(decode_codes(codes, DYNAMIC)).all()


@pytest.mark.parametrize("size", [256, 1024])
def test_where_every_sum_is_exact_all_is_determined(size):
    absmax = np.random.default_rng(89).integers(1, 4096, size).astype(np.float32) / 64
    found = double_quantize_enclosure(absmax)
    codes, nested, offset = double_quantize(absmax)
    assert offset == Fraction(int((absmax * 64).sum()), 64 * size)
    for name, result in (("codes", decode_codes(codes, DYNAMIC)), ("nested_absmax", nested), ("offset", offset)):
        np.testing.assert_array_equal(found[name].lo, found[name].hi)
        np.testing.assert_array_equal(found[name].exact, result)


def test_with_the_offset_given_all_else_is_determined():
    absmax, offset = absmax_of_blocks(90, 513), np.float32(2.5)
    found = double_quantize_enclosure(absmax, offset=offset, tie="even_code")
    codes, nested, given = double_quantize(absmax, offset=offset, tie="even_code")
    assert given == offset
    np.testing.assert_array_equal(nested, [np.abs(absmax[i : i + 256] - offset).max() for i in (0, 256, 512)])
    for name, result in (("codes", decode_codes(codes, DYNAMIC)), ("nested_absmax", nested), ("offset", given)):
        np.testing.assert_array_equal(found[name].lo, found[name].hi)
        np.testing.assert_array_equal(found[name].exact, result)


def test_a_short_last_block_is_a_block():
    absmax = absmax_of_blocks(91, 300)
    codes, nested, offset = double_quantize(absmax, block_size=128)
    assert (codes.shape, nested.shape, offset.shape) == ((300,), (3,), ())
    last = double_quantize(absmax[256:], offset=offset, block_size=128)
    np.testing.assert_array_equal(codes[256:], last[0])
    assert nested[2] == last[1].item()
    assert double_dequantize(codes, nested, offset, block_size=128).shape == (300,)


def test_the_stored_absmax_is_within_half_a_step_of_the_map():
    absmax = absmax_of_blocks(92, 2048)
    codes, nested, offset = double_quantize(absmax)
    again = double_dequantize(codes, nested, offset)
    largest_gap = np.max(np.diff(DYNAMIC))
    bound = largest_gap / 2 * np.repeat(nested, 256) + 2.0**-22 * absmax
    assert np.all(np.abs(again.astype(np.float64) - absmax) <= bound)


def test_a_product_and_a_sum_round_separately_or_once():
    rng = np.random.default_rng(93)
    codes, nested = rng.integers(0, 256, 2000), (2.0 ** rng.uniform(-3, 3, 8)).astype(np.float32)
    offset = np.float32(2.6)
    product = DYNAMIC[codes] * np.repeat(nested, 256)[:2000]
    separate = double_dequantize(codes, nested, offset)
    np.testing.assert_array_equal(separate, product + offset)
    fused = double_dequantize(codes, nested, offset, contraction=Contraction.FUSED)
    exact = [
        Fraction(float(DYNAMIC[c])) * Fraction(float(nested[i // 256])) + Fraction(float(offset))
        for i, c in enumerate(codes)
    ]
    for value, rounded in zip(exact[:500], fused[:500], strict=True):
        neighbours = [rounded, np.nextafter(rounded, np.float32(-np.inf)), np.nextafter(rounded, np.float32(np.inf))]
        assert min(abs(Fraction(float(v)) - value) for v in neighbours) == abs(Fraction(float(rounded)) - value)
    assert np.any(fused != separate)
    for kind in Contraction:
        found = double_dequantize_enclosure(codes, nested, offset, contraction=kind)
        assert found.admits(separate).all() == (kind is not Contraction.FUSED)
        assert found.admits(fused).all() == (kind is not Contraction.SEPARATE)


# bitsandbytes


def million(codebook: np.ndarray) -> np.ndarray:
    """Return a million normal values in rows of 256, half of them with every boundary and its neighbours in a row."""
    x = SOURCE[:3950].copy()
    rows = boundary_blocks(codebook, [*np.random.default_rng(94).uniform(0.01, 100, 100), 1.0, 2.0**-20])
    x.reshape(-1)[: rows.size // 256 * 256] = rows.reshape(-1)[: rows.size // 256 * 256]
    assert x.size >= 1_000_000
    return x


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("block_size", [32, 64, 256])
@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_codes_and_values_are_those_of_bitsandbytes_on_a_million(name, block_size, dtype):
    functional = pytest.importorskip("bitsandbytes").functional
    import torch

    codebook = {"nf4": "nf4", "fp4": "fp4_bitsandbytes"}[name]
    tensor = torch.from_numpy(million(CODEBOOKS[codebook])).to(getattr(torch, dtype))
    packed, state = functional.quantize_4bit(tensor, blocksize=block_size, quant_type=name)
    bytes_ = packed.numpy().ravel()
    expected = np.stack([bytes_ >> 4, bytes_ & 15], axis=1).reshape(tensor.shape)
    codes, absmax = quantize_blockwise(tensor.float().numpy(), codebook=codebook, block_size=block_size, **CPU_4BIT)
    np.testing.assert_array_equal(absmax.ravel(), state.absmax.numpy())
    np.testing.assert_array_equal(codes, expected)
    y = dequantize_blockwise(codes, absmax, codebook=codebook, block_size=block_size, output_format=dtype)
    returned = functional.dequantize_4bit(packed, state).double().numpy()
    # On processors with AVX512-BF16 the conversion to bfloat16 flushes subnormal numbers.
    normal = (np.abs(y) >= 2.0**-126) | (dtype != "bfloat16")
    np.testing.assert_array_equal(returned[normal], y[normal])


@pytest.mark.parametrize(
    "otherwise",
    [
        {"tie": "upper"},
        {"tie": "toward_zero"},
        {"boundary": "exact"},
        {"division": "divide"},
        {"equal_values": "by_sign"},
    ],
    ids=str,
)
def test_every_other_choice_shows_against_bitsandbytes(otherwise):
    functional = pytest.importorskip("bitsandbytes").functional
    import torch

    x = million(FP4)
    packed = functional.quantize_4bit(torch.from_numpy(x), blocksize=32, quant_type="fp4")[0].numpy().ravel()
    codes, _ = quantize_blockwise(x, codebook=FP4, block_size=32, **(CPU_4BIT | otherwise))
    assert np.sum(codes.ravel()[::2] != packed >> 4) > 100


def test_degenerate_blocks_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes").functional
    import torch

    x = np.zeros((6, 64), np.float32)
    x[1], x[2, 3], x[3, 5], x[4, ::2], x[5] = 1e-39, 2.0**-149, -1e-38, 1e-37, np.linspace(-2e-38, 1e-39, 64)
    for name, codebook in (("nf4", "nf4"), ("fp4", "fp4_bitsandbytes")):
        packed, state = functional.quantize_4bit(torch.from_numpy(x), blocksize=64, quant_type=name)
        codes, absmax = quantize_blockwise(x, codebook=codebook, block_size=64, **CPU_4BIT)
        bytes_ = packed.numpy().reshape(6, 32)
        np.testing.assert_array_equal((codes[:, ::2] << 4) | codes[:, 1::2], bytes_)
        np.testing.assert_array_equal(absmax.ravel(), state.absmax.numpy())
    packed, state = functional.quantize_4bit(torch.zeros(1, 64), blocksize=64, quant_type="nf4")
    assert set(packed.ravel().tolist()) == {0x77}
    assert state.absmax.tolist() == [0]


def through_the_grid(quotients: np.ndarray) -> np.ndarray:
    """Return what bitsandbytes 0.50 on a CPU looks up in place of a quotient: the nearest of 2**16 numbers in [-1, 1].

    The number of the grid point is rounded in float32 from a fused multiply-add; zero lies between two of them.
    """
    half = (np.clip(quotients, np.float32(-1), ONE) + ONE) * np.float32(0.5)
    number = (half.astype(np.float64) * 65535 + 0.5).astype(np.float32).astype(np.int64)
    return (np.float32(2) * number.astype(np.float32)) / np.float32(65535) - ONE


@pytest.mark.parametrize("block_size", [64, 256, 4096])
def test_8_bit_codes_of_bitsandbytes_on_a_cpu_are_those_of_a_grid(block_size):
    """Not the nearest values, but within the grid's half step of them. A zero becomes 2.1e-5 of its block's absmax."""
    functional = pytest.importorskip("bitsandbytes", minversion="0.50").functional
    import torch

    table = functional.create_dynamic_map().numpy()
    x = million(table).reshape(-1, 256)[:3840].reshape(-1, max(256, block_size))
    q, state = functional.quantize_blockwise(torch.from_numpy(x), blocksize=block_size)
    place = {"codebook": table, "block_size": block_size}
    codes, absmax = quantize_blockwise(x, **place, **CPU_8BIT)
    np.testing.assert_array_equal(absmax.ravel(), state.absmax.numpy())
    assert 0 < np.mean(codes[-100:] != q.numpy()[-100:]) < 0.05, "of normal values some"
    blocks = x.reshape(-1, block_size)
    quotients = blocks * (ONE / absmax.reshape(-1, 1))
    by_grid = assign(through_the_grid(quotients), table, tie=TieSide.LOWER, boundary="rounded")
    np.testing.assert_array_equal(by_grid.reshape(x.shape), q.numpy())
    found = quantize_blockwise_enclosure(x, **place, **CPU_8BIT, slack=1 / 65535 + 2.0**-22)
    assert found["codes"].admits(table.astype(np.float64)[q.numpy()]).all()
    y = functional.dequantize_blockwise(q, state).numpy()
    np.testing.assert_array_equal(y, dequantize_blockwise(q.numpy(), absmax, **place))


def test_bitsandbytes_on_a_cpu_does_not_keep_zero_in_8_bits():
    functional = pytest.importorskip("bitsandbytes", minversion="0.50").functional
    import torch

    x = np.array([[1.0] + [0.0] * 63], np.float32)
    q, _ = functional.quantize_blockwise(torch.from_numpy(x), blocksize=64)
    codes, _ = quantize_blockwise(x, codebook="dynamic8", block_size=64)
    assert set(codes[0, 1:].tolist()) == {127}
    assert DYNAMIC[127] == 0
    assert set(q[0, 1:].tolist()) == {131}
    assert DYNAMIC[131] == pytest.approx(2.125e-5)


@pytest.mark.parametrize("name", ["nf4", "fp4"])
def test_double_quantization_of_bitsandbytes(name):
    functional = pytest.importorskip("bitsandbytes", minversion="0.50").functional
    import torch

    codebook = {"nf4": "nf4", "fp4": "fp4_bitsandbytes"}[name]
    packed, state = functional.quantize_4bit(
        torch.from_numpy(SOURCE), blocksize=64, quant_type=name, compress_statistics=True
    )
    table = state.state2.code.numpy()
    codes, absmax = quantize_blockwise(SOURCE, codebook=codebook, block_size=64, **CPU_4BIT)
    found = double_quantize_enclosure(absmax, codebook=table, slack=1 / 65535 + 2.0**-22, **CPU_8BIT)
    offset = state.offset.numpy()
    assert found["offset"].admits(offset.astype(np.float64))
    assert found["nested_absmax"].admits(state.state2.absmax.double().numpy()).all()
    assert found["codes"].admits(table.astype(np.float64)[state.absmax.numpy()]).all()
    # With its own offset the nested absmax is the same bit for bit, and the codes are those of the grid.
    _, nested, _ = double_quantize(absmax, offset=offset, codebook=table, **CPU_8BIT)
    np.testing.assert_array_equal(nested, state.state2.absmax.numpy())
    quotients = (absmax.ravel() - offset).reshape(-1, 256) * (ONE / nested[:, None])
    by_grid = assign(through_the_grid(quotients), table, boundary="rounded")
    np.testing.assert_array_equal(by_grid.ravel(), state.absmax.numpy())
    again = double_dequantize(state.absmax.numpy(), nested, offset, codebook=table)
    y = dequantize_blockwise(codes, again.reshape(absmax.shape), codebook=codebook, block_size=64)
    np.testing.assert_array_equal(functional.dequantize_4bit(packed, state).numpy(), y)


# Bad input

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_a_nan_or_an_infinity_has_no_absmax(bad):
    x = X.copy()
    x[1, 2] = bad
    for function in (quantize_blockwise, quantize_blockwise_enclosure):
        with raises("x", "must be finite"):
            function(x, codebook="nf4", block_size=3)
    for function in (double_quantize, double_quantize_enclosure):
        with raises("absmax", "must be finite"):
            function(x)
    codes = np.zeros((4, 6), int)
    with raises("absmax", "must be finite"):
        dequantize_blockwise(codes, np.full((4, 2), bad), codebook="nf4", block_size=3)
    with raises("nested_absmax", "must be finite"):
        double_dequantize(codes[0], np.full(1, bad), ONE)
    with raises("offset", "must be finite"):
        double_dequantize(codes[0], np.ones(1), np.float32(bad))


CODES = np.zeros((4, 6), int)
WRONG = [
    ("block_size", "4 does not divide the axis of length 6",
     lambda: quantize_blockwise(X, codebook="nf4", block_size=4)),
    ("block_size", "0 must be a positive integer", lambda: quantize_blockwise(X, codebook="nf4", block_size=0)),
    ("block_size", "2.0 must be a positive integer", lambda: quantize_blockwise(X, codebook="nf4", block_size=2.0)),
    ("block_size", "0 must be a positive integer", lambda: double_quantize(X, block_size=0)),
    ("x", "has 1 dimensions, must have 2", lambda: quantize_blockwise(X[0], codebook="nf4", block_size=3)),
    ("codebook", "'e2m1' is unknown", lambda: quantize_blockwise(X, codebook="e2m1", block_size=3)),
    ("division", "'times' is not admissible; admissible: divide, reciprocal, approximate",
     lambda: quantize_blockwise(X, codebook="nf4", block_size=3, division="times")),
    ("codes", r"must lie in \[0, 15\]; got \[16, 16\]",
     lambda: dequantize_blockwise(CODES + 16, np.ones((4, 2)), codebook="nf4", block_size=3)),
    ("codes", "has 1 dimensions, must have 2",
     lambda: dequantize_blockwise(CODES[0], np.ones((4, 2)), codebook="nf4", block_size=3)),
    ("absmax", r"has shape \(4, 3\), must be \(4, 2\)",
     lambda: dequantize_blockwise(CODES, np.ones((4, 3)), codebook="nf4", block_size=3)),
    ("format", "'float8' is not a float format",
     lambda: dequantize_blockwise(CODES, np.ones((4, 2)), codebook="nf4", block_size=3, output_format="float8")),
    ("absmax", "must not be empty", lambda: double_quantize(np.zeros(0))),
    ("codes", "has 2 dimensions, must have 1", lambda: double_dequantize(CODES, np.ones(1), ONE)),
    ("nested_absmax", r"has shape \(2,\), must be \(1,\)", lambda: double_dequantize(CODES[0], np.ones(2), ONE)),
    ("offset", r"has shape \(1,\), must be \(\)", lambda: double_dequantize(CODES[0], np.ones(1), np.ones(1))),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0]}: {case[1]}")
def test_wrong_shapes_and_choices_are_refused_by_name(case):
    name, rule, call = case
    with raises(name, rule):
        call()


@pytest.mark.parametrize("shape", [(0, 6), (4, 0), (0, 0)])
def test_a_zero_size_axis_gives_results_with_that_axis(shape):
    codes, absmax = quantize_blockwise(np.zeros(shape), codebook="nf4", block_size=3)
    assert (codes.shape, absmax.shape) == (shape, (shape[0], shape[1] // 3))
    found = quantize_blockwise_enclosure(np.zeros(shape), codebook="nf4", block_size=3, division="approximate")
    assert (found["codes"].shape, found["absmax"].shape) == (codes.shape, absmax.shape)
    assert dequantize_blockwise(codes, absmax, codebook="nf4", block_size=3).shape == shape


def test_inputs_are_left_untouched_and_strides_do_not_matter():
    x = SOURCE[:8, :64].copy()
    kept = x.copy()
    codes, absmax = quantize_blockwise(x, codebook="nf4", block_size=32)
    quantize_blockwise_enclosure(x, codebook="nf4", block_size=32, division="approximate", division_ulps=2)
    double_quantize_enclosure(absmax)
    np.testing.assert_array_equal(x, kept)
    strided = np.zeros((16, 128), np.float32)[::2, ::2]
    strided[:] = x
    np.testing.assert_array_equal(quantize_blockwise(strided, codebook="nf4", block_size=32)[0], codes)
    np.testing.assert_array_equal(quantize_blockwise(np.asfortranarray(x), codebook="nf4", block_size=32)[0], codes)
