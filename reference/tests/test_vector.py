"""Addition of quantized vectors: against rationals, float32 arithmetic, and torch's quantized addition."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.choices import Division, Requantization, Rounding, ZeroPointOrder
from lowbit_cts.reference.rounding import fma_float32
from lowbit_cts.reference.vector import add_int8_enclosure

ALL = np.array(list(itertools.product(range(-128, 128, 3), range(-128, 128, 5)))).T
LOW, HIGH = -128, 127


def operands(seed: int) -> tuple:
    """Return (a, s_a, z_a, b, s_b, z_b, s_y, z_y): all pairs on a lattice, random scales and zero points."""
    rng = np.random.default_rng(seed)
    s_a, s_b, s_y = (2.0 ** rng.uniform(-6, 2, 3)).astype(np.float32)
    z_a, z_b, z_y = rng.integers(LOW, HIGH + 1, 3)
    return ALL[0], s_a, z_a, ALL[1], s_b, z_b, np.float32(s_y * 2), z_y


def rational_sums(a, s_a, z_a, b, s_b, z_b, s_y, z_y) -> list[Fraction]:
    first, second, step = (Fraction(float(s)) for s in (s_a, s_b, s_y))
    return [(first * int(p - z_a) + second * int(q - z_b)) / step for p, q in zip(a, b, strict=True)]


def clamp(code: int) -> int:
    return min(max(code, LOW), HIGH)


@pytest.mark.parametrize("order", ZeroPointOrder)
@pytest.mark.parametrize("seed", range(6))
def test_the_rational_code_is_admitted_and_alone_away_from_ties(seed, order):
    case = operands(seed)
    z = int(case[-1])
    found = add_int8_enclosure(*case, zero_point_order=order)
    truth = rational_sums(*case)
    inside = order == "inside"
    codes = np.array([clamp(round(t + z) if inside else round(t) + z) for t in truth])
    assert found.admits(codes).all()
    distance = np.array([float(abs(t - round(t))) for t in truth])
    size = np.array([float(abs(t)) for t in truth]) + 2**10
    clear = np.abs(distance - 0.5) > 16 * 2.0**-24 * size
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found.lo[clear], codes[clear])
    np.testing.assert_array_equal(found.hi[clear], codes[clear])
    assert np.max(found.hi - found.lo) <= 1


@pytest.mark.parametrize("order", ZeroPointOrder)
def test_float32_arithmetic_in_any_association_is_admitted(order):
    ambiguous = 0
    for seed in range(30):
        case = operands(seed)
        if seed % 2:  # half of all sums are ties, and no product of a scale is exact
            case = (*case[:4], case[1], case[5], 2 * case[1], 3)
        a, s_a, z_a, b, s_b, z_b, s_y, z_y = case
        one = np.float32(1)
        first, second = (a - z_a).astype(np.float32), (b - z_b).astype(np.float32)
        added = first * s_a + second * s_b
        fused = fma_float32(first, s_a, second * s_b).astype(np.float32)
        quotients = {
            "divided": added / s_y,
            "reciprocal": added * (one / s_y),
            "fused": fused / s_y,
            "fused, reciprocal": fused * (one / s_y),
            "ratios": first * (s_a / s_y) + second * (s_b / s_y),
            "ratios, fused": fma_float32(first, s_a / s_y, second * (s_b / s_y)),
        }
        found = add_int8_enclosure(*case, zero_point_order=order)
        for name, quotient in quotients.items():
            t = quotient.astype(np.float32)
            codes = np.rint(t + np.float32(z_y)) if order == "inside" else np.rint(t) + z_y
            assert found.admits(np.clip(codes, LOW, HIGH)).all(), name
            ambiguous += np.sum(np.clip(codes, LOW, HIGH) != found.exact)
    assert ambiguous > 100, "the arithmetic shows on these inputs"


def test_a_zero_point_inside_may_round_the_sum_onto_a_tie():
    """1/2 + 2**-24 is above the tie; in float32, 100 + 1/2 + 2**-24 is the tie, and goes to even."""
    one, scale = np.array([1]), np.float32(2.0**-24)
    operands = (one, scale, 0, one, np.float32(0.5), 0, np.float32(1), 100)
    outside = add_int8_enclosure(*operands, zero_point_order=ZeroPointOrder.OUTSIDE)
    inside = add_int8_enclosure(*operands, zero_point_order=ZeroPointOrder.INSIDE)
    assert (outside.lo.item(), outside.hi.item()) == (101, 101)
    assert (inside.lo.item(), inside.hi.item()) == (100, 101)


TIES = {  # (a + b) / 2 with a + b = -3, -1, 1, 3
    "half_even": [-2, 0, 0, 2],
    "half_away": [-2, -1, 1, 2],
    "half_toward_zero": [-1, 0, 0, 1],
    "half_up": [-1, 0, 1, 2],
    "half_down": [-2, -1, 0, 1],
    "toward_zero": [-1, 0, 0, 1],
    "down": [-2, -1, 0, 1],
    "up": [-1, 0, 1, 2],
}


@pytest.mark.parametrize("rounding", [r for r in Rounding if r is not Rounding.STOCHASTIC])
def test_ties_fall_as_declared_where_scales_are_powers_of_two(rounding):
    a, b = np.array([-2, 0, 0, 2]), np.array([-1, -1, 1, 1])
    quarter, half = np.float32(0.25), np.float32(0.5)
    found = add_int8_enclosure(a, quarter, 0, b, quarter, 0, half, 0, rounding=rounding)
    assert found.lo.tolist() == found.exact.tolist() == found.hi.tolist() == TIES[rounding]


def test_the_zero_point_inside_moves_the_ties():
    a, b, one, two = np.array([1, 3]), np.zeros(2, int), np.float32(1), np.float32(2)
    codes = [
        add_int8_enclosure(a, one, 0, b, one, 0, two, 1, zero_point_order=order).exact.tolist()
        for order in (ZeroPointOrder.OUTSIDE, ZeroPointOrder.INSIDE)
    ]
    assert codes == [[0 + 1, 2 + 1], [2, 2]]


@pytest.mark.parametrize("order", ZeroPointOrder)
@pytest.mark.parametrize("division", Division)
def test_with_powers_of_two_one_code_is_admissible_and_it_is_the_rational_one(division, order):
    case = (ALL[0], np.float32(0.25), 3, ALL[1], np.float32(2), -5, np.float32(4), 7)
    found = add_int8_enclosure(*case, division=division, zero_point_order=order, division_ulps=2.0)
    inside = order == "inside"
    codes = [clamp(round(t + 7) if inside else round(t) + 7) for t in rational_sums(*case)]
    assert found.lo.tolist() == found.hi.tolist() == codes


def test_an_approximate_division_widens_the_enclosure():
    case = operands(3)
    narrow = add_int8_enclosure(*case)
    wide = add_int8_enclosure(*case, division=Division.APPROXIMATE, division_ulps=1000.0)
    assert np.all((wide.lo <= narrow.lo) & (narrow.hi <= wide.hi))
    assert np.sum(wide.hi - wide.lo) > np.sum(narrow.hi - narrow.lo)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("seed", range(20))
def test_torch_quantized_add_is_enclosed(seed):
    """torch dequantizes both, adds in float32, multiplies by the reciprocal, rounds to even, and adds z_y outside."""
    torch = pytest.importorskip("torch")
    case = [v + 128 if i in (0, 2, 3, 5, 7) else v for i, v in enumerate(operands(seed))]
    a, s_a, z_a, b, s_b, z_b, s_y, z_y = case
    left, right = (
        torch._make_per_tensor_quantized_tensor(torch.tensor(codes, dtype=torch.uint8), float(scale), int(zero))
        for codes, scale, zero in ((a, s_a, z_a), (b, s_b, z_b))
    )
    codes = torch.ops.quantized.add(left, right, float(s_y), int(z_y)).int_repr().numpy().astype(np.int64)
    found = add_int8_enclosure(*case, format="uint8", zero_point_order=ZeroPointOrder.OUTSIDE)
    assert found.admits(codes).all()


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_torch_quantized_add_agrees_on_every_pair_where_scales_are_powers_of_two():
    torch = pytest.importorskip("torch")
    a, b = np.array(list(itertools.product(range(256), repeat=2))).T
    left, right = (
        torch._make_per_tensor_quantized_tensor(torch.tensor(codes, dtype=torch.uint8), 0.25, zero)
        for codes, zero in ((a, 3), (b, 5))
    )
    codes = torch.ops.quantized.add(left, right, 0.5, 7).int_repr().numpy()
    quarter = np.float32(0.25)
    found = add_int8_enclosure(a, quarter, 3, b, quarter, 5, np.float32(0.5), 7, format="uint8")
    np.testing.assert_array_equal(found.exact, codes)
    np.testing.assert_array_equal(found.lo, found.hi)


# TFLite's fixed point, one number at a time, in rationals.


def half_up(x: Fraction) -> int:
    return math.floor(x + Fraction(1, 2))


def half_away(x: Fraction) -> int:
    return half_up(x) if x >= 0 else -half_up(-x)


def rescaled(x: int, scale: Fraction, once: bool) -> int:
    """Return x scale by a multiplier of 31 bits: rounded once, or to 32 bits and again."""
    places = 0
    while scale * 2 ** (places + 1) < 1:
        places += 1
    multiplier = half_away(scale * 2 ** (places + 31))
    if multiplier == 2**31:
        multiplier, places = 2**30, places - 1
    if once:
        return half_up(Fraction(x * multiplier, 2 ** (31 + places)))
    return half_away(Fraction(half_up(Fraction(x * multiplier, 2**31)), 2**places))


@pytest.mark.parametrize("variant", [Requantization.DOUBLE_ROUNDING, Requantization.SINGLE_ROUNDING])
@pytest.mark.parametrize("seed", range(8))
def test_fixed_point_is_that_of_the_definition_in_rationals(seed, variant):
    a, s_a, z_a, b, s_b, z_b, s_y, z_y = operands(seed)
    if seed % 2:
        s_a, s_b, s_y = (np.float32(2.0 ** np.round(np.log2(s))) for s in (s_a, s_b, s_y))
    found = add_int8_enclosure(a, s_a, z_a, b, s_b, z_b, s_y, z_y, requantization=variant)
    once = variant is Requantization.SINGLE_ROUNDING
    twice = 2 * max(Fraction(float(s_a)), Fraction(float(s_b)))
    parts, output = [Fraction(float(s)) / twice for s in (s_a, s_b)], twice / (2**20 * Fraction(float(s_y)))
    expected = []
    for p, q in zip(a.tolist(), b.tolist(), strict=True):
        total = sum(
            rescaled(int(code - zero) << 20, part, once)
            for code, zero, part in zip((p, q), (z_a, z_b), parts, strict=True)
        )
        expected.append(clamp(rescaled(total, output, once) + int(z_y)))
    assert found.exact.tolist() == found.lo.tolist() == found.hi.tolist() == expected


def test_fixed_point_rounds_ties_away():
    a, b = np.array([-3, -1, 1, 3]), np.zeros(4, int)
    half, one = np.float32(0.5), np.float32(1)
    assert add_int8_enclosure(a, half, 0, b, half, 0, one, 0, requantization="double_rounding").exact.tolist() == [
        -2, -1, 1, 2,
    ]  # fmt: skip


def test_an_output_scale_too_small_for_fixed_point_is_refused():
    a, one = np.array([1]), np.float32(1)
    with pytest.raises(ValueError, match=r"y_scale: must exceed 2\*\*-19 of a_scale and b_scale in fixed point"):
        add_int8_enclosure(a, one, 0, a, one, 0, np.float32(2.0**-19), 0, requantization="double_rounding")
    add_int8_enclosure(a, one, 0, a, one, 0, np.float32(1.5 * 2.0**-19), 0, requantization="double_rounding")
    with pytest.raises(ValueError, match="requantization: rndnu is no way to add; admissible: float32, "):
        add_int8_enclosure(a, one, 0, a, one, 0, one, 0, requantization="rndnu")
