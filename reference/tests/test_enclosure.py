"""Error bounds and enclosures, against rationals, all orders of summation, and a table of verdicts."""

import itertools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from lowbit_cts.reference.enclosure import (
    UNIT_ROUNDOFF,
    Enclosure,
    determined,
    exact_terms,
    gamma,
    power_of_two,
    representable,
    within,
)
from lowbit_cts.reference.formats import FORMATS

NAN, INF = np.nan, np.inf
NATIVE = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}


@pytest.mark.parametrize("name", NATIVE)
def test_the_unit_roundoff_is_half_of_eps(name):
    assert UNIT_ROUNDOFF[name] == float(ml_dtypes.finfo(NATIVE[name]).eps) / 2


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16"])
def test_gamma_is_the_rational_nu_over_one_minus_nu(name):
    u = Fraction(UNIT_ROUNDOFF[name])
    for n in (0, 1, 2, 3, 10, 100, 255, 256, 1000, 2047, 2048, 10**6):
        got = float(gamma(n, float(u)))
        if n * u >= 1:
            assert got == INF
        else:
            assert got == pytest.approx(float(n * u / (1 - n * u)), rel=1e-15)


def test_gamma_bounds_every_product_of_roundings():
    """Higham, lemma 3.1: the product of n factors (1 + delta)^(+-1), |delta| <= u, lies within gamma_n of 1."""
    u = Fraction(1, 2**8)
    for n in (1, 2, 5, 20):
        bound = Fraction(n) * u / (1 - n * u)
        for signs in itertools.product((-1, 1), repeat=2):
            factors = [(1 + signs[0] * u) ** signs[1]] * n
            assert abs(math.prod(factors) - 1) <= bound


@pytest.mark.parametrize(
    ("dtype", "bits", "max_a", "max_b"),
    [(ml_dtypes.bfloat16, 8, 7, 7), (ml_dtypes.bfloat16, 8, 15, 3), (np.float16, 11, 20, 16), (np.float16, 11, 31, 11)],
)
def test_up_to_exact_terms_every_order_of_summation_is_exact(dtype, bits, max_a, max_b):
    n = min(exact_terms(bits, max_a, max_b), 6)
    rng = np.random.default_rng(20)
    for trial in range(20):
        a, b = rng.integers(-max_a, max_a + 1, n), rng.integers(-max_b, max_b + 1, n)
        if trial == 0:
            a[:], b[:] = max_a, max_b
        terms = [dtype(v) for v in a * b]
        for order in itertools.permutations(terms):
            total = dtype(0)
            for term in order:
                total = dtype(total + term)
            assert int(total) == int(np.dot(a, b))


@pytest.mark.parametrize(
    ("dtype", "bits", "max_a", "max_b"),
    [(ml_dtypes.bfloat16, 8, 7, 7), (np.float16, 11, 31, 11), (np.float32, 24, 255, 127)],
)
def test_beyond_exact_terms_a_sum_may_round(dtype, bits, max_a, max_b):
    """max_a max_b is odd: one term more than allowed, and some sum of products is not representable."""
    n = exact_terms(bits, max_a, max_b)
    reachable = [(n + 1) * max_a * max_b - smaller for smaller in range(max_b)]
    assert n * max_a * max_b <= 2**bits < reachable[0]
    assert any(int(dtype(total)) != total for total in reachable)


@pytest.mark.parametrize(("bits", "a", "b", "terms"), [(24, 128, 128, 1024), (31, 128, 128, 131072), (24, 0, 5, 2**24)])
def test_exact_terms_of_known_sizes(bits, a, b, terms):
    assert exact_terms(bits, a, b) == terms


def spread_values(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    exact = rng.standard_normal(2000) * 2.0 ** rng.integers(-30, 30, 2000)
    bound = np.abs(exact) * 2.0 ** rng.integers(-60, 2, 2000)
    bound[::7] = 0
    return exact, bound


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_within_holds_the_rounding_of_every_value_of_the_interval(name):
    exact, bound = spread_values(21)
    found = within(exact, bound, FORMATS[name])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found.exact, exact.astype(name))
        for position in (-1, -0.5, 0.7, 1):
            assert found.admits((exact + position * bound).astype(name).astype(np.float64)).all()
        beyond = np.nextafter((exact + bound).astype(name), np.array(np.inf, name)).astype(np.float64)
        below = np.nextafter((exact - bound).astype(name), np.array(-np.inf, name)).astype(np.float64)
    held = np.isfinite(found.exact) & (beyond > exact + bound)
    assert np.mean(found.admits(beyond)[held]) < 0.01, "one step beyond is outside but for float64's last bit"
    assert np.mean(found.admits(below)[held]) < 0.01


@pytest.mark.parametrize("name", NATIVE)
def test_within_grows_with_the_bound(name):
    exact, bound = spread_values(22)
    narrow, wide = within(exact, bound, FORMATS[name]), within(exact, 2 * bound, FORMATS[name])
    assert np.all(wide.lo <= narrow.lo)
    assert np.all(narrow.hi <= wide.hi)
    assert np.all((narrow.lo <= narrow.exact) & (narrow.exact <= narrow.hi))
    for end in (narrow.lo, narrow.exact, narrow.hi):
        assert np.all(representable(end, FORMATS[name]))


def test_a_bound_of_zero_admits_one_value():
    exact, _ = spread_values(23)
    found = within(exact, np.zeros(()), FORMATS["float32"])
    np.testing.assert_array_equal(found.lo, found.hi)
    found = within(np.array([65519.0, 65520.0, -65520.0, NAN]), np.zeros(()), FORMATS["float16"])
    np.testing.assert_array_equal(found.exact, [65504, INF, -INF, NAN])


def test_representable_is_surviving_the_cast():
    x = np.array([0.0, 1.0, 1 + 2.0**-23, 1 + 2.0**-24, 2.0**-149, 2.0**-150, 3e38, 1e39, 2.0**24 + 1])
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(representable(x, FORMATS["float32"]), x.astype(np.float32) == x)


def test_powers_of_two_have_a_numerator_or_denominator_of_one():
    x = np.array([1, 2, 0.5, 3, 0.1, 2.0**-149, 1.5 * 2.0**-140, 2.0**127, 1 + 2.0**-23])
    expected = [math.log2(f.numerator * f.denominator).is_integer() and 1 in (f.numerator, f.denominator)
                for f in map(Fraction, x.tolist())]  # fmt: skip
    assert power_of_two(x).tolist() == expected


VERDICTS = [  # exact, lo, hi, signed zero; value, admitted, ratio
    ((1, 0.5, 2, False), 1, True, 0),
    ((1, 0.5, 2, False), 0.75, True, 0.5),
    ((1, 0.5, 2, False), 2, True, 1),
    ((1, 0.5, 2, False), 2.5, False, 1.5),
    ((1, 0.5, 2, False), 0.0, False, 2),
    ((1, 0.5, 2, False), NAN, False, INF),
    ((1, 0.5, 2, False), INF, False, INF),
    ((1, 0.5, 2, False), -INF, False, INF),
    ((1, 1, 1, False), 1, True, 0),
    ((1, 1, 1, False), 1.5, False, INF),
    ((NAN, NAN, NAN, False), NAN, True, 0),
    ((NAN, NAN, NAN, False), 1, False, INF),
    ((NAN, NAN, NAN, False), INF, False, INF),
    ((INF, INF, INF, False), INF, True, 0),
    ((INF, INF, INF, False), -INF, False, INF),
    ((INF, INF, INF, False), 3e38, False, INF),
    ((INF, 60000, INF, False), 65504, True, 1),
    ((65504, 65000, INF, False), INF, True, 1),
    ((0.0, 0.0, 0.0, False), -0.0, True, 0),
    ((0.0, 0.0, 0.0, True), -0.0, False, INF),
    ((-0.0, -0.0, -0.0, True), -0.0, True, 0),
    ((-0.0, -0.0, -0.0, True), 0.0, False, INF),
    ((NAN, NAN, NAN, True), -NAN, True, 0),
    ((3, -INF, INF, False), NAN, True, 0),  # anything goes
    ((3, -INF, INF, False), -7, True, 0),
    ((3, -INF, 5, False), NAN, False, INF),
]


@pytest.mark.parametrize("row", VERDICTS, ids=str)
def test_a_value_is_admitted_and_rated_as_the_table_says(row):
    (exact, lo, hi, signed_zero), value, admitted, ratio = row
    enclosure = Enclosure(*(np.array([v], np.float64) for v in (exact, lo, hi)), signed_zero)
    value = np.array([value], np.float64)
    assert enclosure.admits(value).tolist() == [admitted]
    rated = enclosure.ratio(value).item()
    assert rated == ratio or (ratio == 1 and admitted and 0 < rated <= 1)
    assert (rated <= 1) == admitted


def test_codes_are_admitted_as_integers():
    enclosure = Enclosure(np.array([3, 3, 3]), np.array([2, 2, 2]), np.array([3, 3, 3]))
    values = np.array([2, 3, 4], np.int8)
    assert enclosure.admits(values).tolist() == [True, True, False]
    assert enclosure.ratio(values).tolist() == [1, 0, INF]


def test_a_part_of_an_enclosure_is_the_enclosure_of_the_part():
    exact = np.arange(6.0).reshape(2, 3)
    enclosure = Enclosure(exact, exact - 1, exact + 1, signed_zero=True)
    part = enclosure[1, ::2]
    assert part.shape == (2,)
    assert (part.exact.tolist(), part.lo.tolist(), part.hi.tolist()) == ([3, 5], [2, 4], [4, 6])
    assert part.signed_zero
    assert determined(exact)[0].lo.tolist() == [0, 1, 2]
