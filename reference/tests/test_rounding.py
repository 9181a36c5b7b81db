"""Rounding and exact arithmetic, against hand-written values and rationals."""

import math
from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.choices import Rounding
from lowbit_cts.reference.rounding import fma_float32, round_to_integer, two_sum

HALF = Fraction(1, 2)
BELOW_HALF = float(np.nextafter(0.5, 0))
ABOVE_HALF = float(np.nextafter(0.5, 1))
BIG = 2.0**52 + 1

VALUES = [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, BELOW_HALF, -BELOW_HALF, ABOVE_HALF, -ABOVE_HALF, 0.25, -0.75, 2.0**51 + 0.5]
TABLE = {
    "half_even": [-2, -2, 0, 0, 2, 2, 0, 0, 1, -1, 0, -1, 2**51],
    "half_away": [-3, -2, -1, 1, 2, 3, 0, 0, 1, -1, 0, -1, 2**51 + 1],
    "half_toward_zero": [-2, -1, 0, 0, 1, 2, 0, 0, 1, -1, 0, -1, 2**51],
    "half_up": [-2, -1, 0, 1, 2, 3, 0, 0, 1, -1, 0, -1, 2**51 + 1],
    "half_down": [-3, -2, -1, 0, 1, 2, 0, 0, 1, -1, 0, -1, 2**51],
    "toward_zero": [-2, -1, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0, 2**51],
    "down": [-3, -2, -1, 0, 1, 2, 0, -1, 0, -1, 0, -1, 2**51],
    "up": [-2, -1, 0, 1, 2, 3, 1, 0, 1, 0, 1, 0, 2**51 + 1],
}


def rounded_fraction(value: Fraction, rounding: str) -> int:
    floor = math.floor(value)
    if value == floor:
        return floor
    if rounding.startswith("half"):
        takes_floor = {
            "half_even": floor % 2 == 0, "half_away": value < 0, "half_toward_zero": value > 0,
            "half_up": False, "half_down": True,
        }  # fmt: skip
        if value - floor == HALF:
            return floor + (not takes_floor[rounding])
        return floor + (value - floor > HALF)
    return {"down": floor, "up": floor + 1, "toward_zero": floor + (value < 0)}[rounding]


@pytest.mark.parametrize("rounding", [r for r in Rounding if r is not Rounding.STOCHASTIC])
def test_hand_written_values(rounding):
    np.testing.assert_array_equal(round_to_integer(np.array(VALUES), rounding), TABLE[rounding])


@pytest.mark.parametrize("rounding", [r for r in Rounding if r is not Rounding.STOCHASTIC])
def test_integers_infinities_and_nan_stay(rounding):
    x = np.array([0.0, -0.0, 7, -7, BIG, -BIG, 2.0**53, 1e300, -1e300, np.inf, -np.inf, np.nan])
    y = round_to_integer(x, rounding)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(np.signbit(y[:2]), [False, True])


@pytest.mark.parametrize("rounding", [r for r in Rounding if r is not Rounding.STOCHASTIC])
def test_a_zero_keeps_the_sign_of_what_rounded_to_it(rounding):
    x = np.array([0.25, -0.25, BELOW_HALF, -BELOW_HALF, 5e-324, -5e-324])
    y = round_to_integer(x, rounding)
    np.testing.assert_array_equal(np.signbit(y), np.signbit(x))


@pytest.mark.parametrize("rounding", [r for r in Rounding if r is not Rounding.STOCHASTIC])
def test_random_values_round_as_rationals(rounding):
    rng = np.random.default_rng(1)
    near = rng.integers(-300, 300, 500) + rng.choice([0.0, 0.5], 500)
    wide = rng.standard_normal(500) * 2.0 ** rng.integers(-60, 60, 500)
    x = np.concatenate([near, np.nextafter(near, np.inf), np.nextafter(near, -np.inf), wide])
    expected = [rounded_fraction(Fraction(v), rounding) for v in x.tolist()]
    assert [int(v) for v in round_to_integer(x, rounding)] == expected


def test_two_sum_is_the_sum_and_its_error():
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((2, 1000)) * 2.0 ** rng.integers(-80, 80, (2, 1000))
    s, e = two_sum(a, b)
    np.testing.assert_array_equal(s, a + b)
    for left, right, total, error in zip(a.tolist(), b.tolist(), s.tolist(), e.tolist(), strict=True):
        assert Fraction(left) + Fraction(right) == Fraction(total) + Fraction(error)


def nearest_float32(value: Fraction) -> float:
    """Round a rational to float32, half to even, by integer arithmetic."""
    if value == 0:
        return 0.0
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    step = Fraction(2) ** (max(exponent, -126) - 23)
    result = step * round(size / step)  # Python rounds rationals half to even
    number = math.inf if result >= Fraction(2) ** 128 else float(result)
    return math.copysign(number, value)


FMA_HARD = [  # float64 rounds a * b + c onto a tie of float32, from the side the tie rule does not go to
    (2.0**-12 * (1 + 2.0**-20), 2.0**-12 * (1 - 2.0**-20), 1 + 2.0**-23),
    (-(2.0**-12) * (1 + 2.0**-20), 2.0**-12 * (1 - 2.0**-20), -1 - 2.0**-23),
    (2.0**-12 * (1 + 2.0**-22), 2.0**-12 * (1 - 2.0**-22), 1 + 3 * 2.0**-23),
    (2.0**-60, 2.0**-60, 2.0**-149),  # no tie: the product only tips
    (2.0**-75, 2.0**-75, 2.0**-149),  # a subnormal tie
    (2.0**-75, 2.0**-75, 0.0),
    (-(2.0**-75), 2.0**-75, 2.0**-148),
    (2.0**64, 2.0**63 * (2 - 2.0**-23), 0.0),
    (2.0**64, 2.0**63 * (2 - 2.0**-23), 2.0**103),  # halfway to 2**128: overflows
    (2.0**64, 2.0**63 * (2 - 2.0**-23), np.nextafter(np.float32(2.0**103), np.float32(0))),
    (1.0, 1.0, -1.0),
]


@pytest.mark.parametrize("case", FMA_HARD, ids=range(len(FMA_HARD)))
def test_fma_rounds_hard_cases_once(case):
    a, b, c = (np.float32(v) for v in case)
    assert (float(a), float(b), float(c)) == tuple(map(float, case)), "the case is made of float32 values"
    assert float(fma_float32(a, b, c)) == nearest_float32(Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)))


def test_hard_cases_are_hard():
    naive = [np.float32(float(a) * float(b) + float(c)) for a, b, c in FMA_HARD[:3]]
    once = [float(fma_float32(*(np.float32(v) for v in case))) for case in FMA_HARD[:3]]
    assert all(n != o for n, o in zip(naive, once, strict=True))


def test_fma_of_random_values_is_the_rounded_rational():
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((2, 3000)) * 2.0 ** rng.integers(-70, 60, (2, 3000))).astype(np.float32)
    product = a.astype(np.float64) * b
    with np.errstate(over="ignore"):
        c = (product * rng.choice([-1, 1], 3000) * 2.0 ** rng.integers(-26, 27, 3000)).astype(np.float32)
    c = np.where(np.isfinite(c), c, np.float32(0))
    got = fma_float32(a, b, c)
    for x, y, z, result in zip(a.tolist(), b.tolist(), c.tolist(), got.tolist(), strict=True):
        assert result == nearest_float32(Fraction(x) * Fraction(y) + Fraction(z))


def test_fma_of_infinities_and_nan_follows_ieee():
    inf, nan, top = np.inf, np.nan, np.finfo(np.float32).max
    cases = [(inf, 1, 0, inf), (inf, 0, 1, nan), (inf, 1, -inf, nan), (top, 2, 0, inf), (top, 2, -inf, -inf),
             (nan, 1, 1, nan), (-top, top, top, -inf)]  # fmt: skip
    a, b, c, expected = np.array(cases, np.float32).T
    np.testing.assert_array_equal(fma_float32(a, b, c), expected)
