"""Sums of products: quanta against exact fractions, bounds against simulated accumulators of every kind."""

from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.accumulators import ACCUMULATORS, Accumulator
from lowbit_cts.reference.choices import Rounding
from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.sums import Operand, enclosed, exactly, inner_products, quantum, rounded

FLOAT32 = float_format("float32")
RNG = np.random.default_rng(0)


def test_quantum_is_the_largest_power_of_two_that_divides():
    x = np.concatenate([RNG.standard_normal(50) * 2.0 ** RNG.integers(-300, 300, 50), [1.0, 3.0, 0.75, -6.0, 5e-324]])
    for value, found in zip(x, quantum(x), strict=True):
        multiple = Fraction(float(value)) / Fraction(float(found))
        assert multiple.denominator == 1
        assert multiple.numerator % 2 == 1
        assert np.frexp(found)[0] == 0.5
    np.testing.assert_array_equal(quantum(np.array([0.0, np.inf, np.nan])), [np.inf, 0.0, 0.0])


def cut(value: float, bits: int, rounding: Rounding, top: float | None = None) -> float:
    """Return a number with so many bits below the leading one of itself, or of `top`."""
    if value == 0:
        return 0.0
    step = 2.0 ** (np.frexp(value if top is None else top)[1] - bits)
    scaled = value / step
    return float(np.rint(scaled) if rounding is Rounding.HALF_EVEN else np.trunc(scaled)) * step


def simulated(a: np.ndarray, b: np.ndarray, accumulator: Accumulator, order: np.ndarray) -> float:
    """Return a sum as hardware of that accumulator has it, in some order."""
    products = (a * b)[order]
    total = 0.0
    if accumulator.chunk == 1:
        for product in products:
            total = cut(total + cut(product, accumulator.bits, accumulator.rounding), accumulator.bits,
                        accumulator.rounding)  # fmt: skip
        return total
    for start in range(0, len(products), accumulator.chunk):
        terms = [total, *products[start : start + accumulator.chunk]]
        top = max(terms, key=abs)
        aligned = [cut(term, accumulator.bits, accumulator.rounding, top) for term in terms]
        total = cut(sum(aligned), accumulator.bits, accumulator.rounding)
    return total


SIMULATED = [
    Accumulator.FLOAT32, Accumulator.FLOAT16, Accumulator.BFLOAT16, ACCUMULATORS["tensor_core_float8"],
    Accumulator(24, chunk=8, rounding=Rounding.TOWARD_ZERO), Accumulator(14, chunk=16), Accumulator(24, chunk=4),
    Accumulator(24, rounding=Rounding.TOWARD_ZERO),
]  # fmt: skip


@pytest.mark.parametrize("accumulator", SIMULATED, ids=str)
@pytest.mark.parametrize("k", [1, 7, 64, 300])
def test_every_simulated_accumulator_stays_in_its_enclosure(accumulator, k):
    for seed in range(12):
        rng = np.random.default_rng(seed)
        a = rng.standard_normal((3, k)).astype(np.float16).astype(np.float64)
        b = (rng.standard_normal((k, 2)) * np.exp(rng.standard_normal((k, 1)))).astype(np.float16).astype(np.float64)
        found = enclosed(inner_products(exactly(a), exactly(b)), accumulator, float_format("float64"), 0)
        for m in range(3):
            for n in range(2):
                value = simulated(a[m], b[:, n], accumulator, rng.permutation(k))
                assert found.lo[m, n] <= value <= found.hi[m, n]


@pytest.mark.parametrize("accumulator", SIMULATED, ids=str)
def test_what_is_called_exact_is_exact_in_every_simulated_accumulator(accumulator):
    """Integers whose magnitudes sum up to 2**bits and no more; a little more, and some order rounds."""
    limit = 2**accumulator.bits
    for seed in range(20):
        rng = np.random.default_rng(seed)
        k = int(rng.integers(1, 20))
        shares = rng.multinomial(limit, np.full(k, 1 / k))
        a, b = rng.choice([-1.0, 1.0], (1, k)), (shares * 0.25)[:, None]
        sums = inner_products(exactly(a), exactly(b))
        if accumulator.range.maximum < limit * 0.25:
            continue
        assert accumulator.exact(sums.magnitude, np.full((1, 1), 0.25)).all()
        assert simulated(a[0], b[:, 0], accumulator, rng.permutation(k)) == float((a @ b)[0, 0])
    rounds = inner_products(exactly(np.ones((1, 2))), exactly(np.array([[float(limit)], [1.0]])))
    assert not accumulator.exact(rounds.magnitude, rounds.quantum).any()
    assert simulated(np.ones(2), np.array([float(limit), 1.0]), accumulator, np.arange(2)) != limit + 1


def test_float64_sums_carry_their_own_error():
    a, b = RNG.standard_normal((4, 500)), RNG.standard_normal((500, 3))
    sums = inner_products(exactly(a), exactly(b))
    for m in range(4):
        for n in range(3):
            real = sum(Fraction(x) * Fraction(y) for x, y in zip(a[m], b[:, n], strict=True))
            assert abs(Fraction(float(sums.value[m, n])) - real) <= Fraction(float(sums.error[m, n]))
            assert sums.error[m, n] < 1e-10


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
def test_a_rounded_operand_covers_one_rounding_and_nothing_where_none_is_needed(name):
    fmt = float_format(name)
    values = RNG.standard_normal((20, 20)) * 2.0 ** RNG.integers(-20, 10, (20, 20))
    values[0] = round_to_format(values[0], fmt)
    found = rounded(exactly(values), fmt, 1)
    assert np.all(np.abs(round_to_format(values, fmt) - values) <= found.error)
    assert not found.error[0].any()
    assert found.error[1:].all()


def test_errors_of_operands_reach_the_sums():
    a, b = RNG.standard_normal((3, 40)), RNG.standard_normal((40, 5))
    error = np.abs(RNG.standard_normal(b.shape)) * 1e-3
    sums = inner_products(exactly(a), Operand(b, np.abs(b), error))
    for signs in (1, -1, RNG.choice([-1, 1], b.shape)):
        assert np.all(np.abs(a @ (b + signs * error) - a @ b) <= sums.error)
    worst = np.abs(a) @ error
    np.testing.assert_allclose(sums.error, worst, rtol=1e-6)


def test_infinities_and_nan_propagate_as_ieee_has_it():
    a = np.array([[np.inf, 1.0], [np.nan, 1.0], [np.inf, np.inf], [2.0, 1.0]])
    b = np.array([[1.0, 0.0, -1.0], [1.0, 1.0, 1.0]])
    found = enclosed(inner_products(exactly(a), exactly(b)), Accumulator.FLOAT32, FLOAT32, 0)
    expected = np.array([[np.inf, np.nan, -np.inf], [np.nan] * 3, [np.inf, np.nan, np.nan], [3.0, 1.0, -1.0]])
    np.testing.assert_array_equal(found.exact, expected)
    np.testing.assert_array_equal(found.lo, expected)
    np.testing.assert_array_equal(found.hi, expected)
    assert not found.admits(np.zeros((4, 3)))[:3].any()


def test_where_an_accumulator_may_overflow_anything_goes():
    big = exactly(np.full((1, 4), 40000.0))
    signs = exactly(np.array([[1.0], [-1.0], [1.0], [-1.0]]))
    found = enclosed(inner_products(big, signs), Accumulator.FLOAT16, float_format("float16"), 0)
    assert found.lo[0, 0] == -np.inf
    assert found.hi[0, 0] == np.inf
    assert enclosed(inner_products(big, signs), Accumulator.FLOAT32, FLOAT32, 0).hi[0, 0] == 0


def test_one_product_of_a_row_is_exact_whatever_stands_beside_it():
    a = np.zeros((2, 3))
    a[0, 1] = 2.0
    a[1] = 1.0
    b = np.array([[1e-30], [np.float32(0.1)], [3.0]]).astype(np.float64)
    sums = inner_products(exactly(a), exactly(b))
    found = enclosed(sums, Accumulator.FLOAT32, FLOAT32, 4)
    assert found.lo[0, 0] == found.hi[0, 0] == np.float32(0.1) * 2
    assert found.lo[1, 0] < found.hi[1, 0]


def test_a_bias_is_one_more_term():
    sums = inner_products(exactly(np.ones((1, 2))), exactly(np.ones((2, 3))))
    biased = sums.plus(np.array([0.5, 2.0**-30, 0.0]))
    np.testing.assert_array_equal(biased.value, [[2.5, 2 + 2.0**-30, 2.0]])
    exact = Accumulator.FLOAT32.exact(biased.magnitude, biased.quantum)
    np.testing.assert_array_equal(exact, [[True, False, True]])
    assert sums.plus(None) is sums


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Accumulator(1), "Accumulator.bits: must be an integer of at least 2; got 1"),
        (lambda: Accumulator(24, chunk=0), "Accumulator.chunk: must be an integer of at least 1; got 0"),
        (lambda: Accumulator(24, rounding="up"), "Accumulator.rounding: 'up' must be one of half_even, toward_zero"),
        (lambda: Accumulator(24, format="int8"), "Accumulator.format: 'int8' must be one of float16"),
        (lambda: Accumulator.parse("fp32"), "'fp32' is not admissible; admissible: int32, float16"),
    ],
)
def test_bad_accumulators_are_refused(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert message in str(caught.value)


def test_accumulators_have_names():
    assert str(Accumulator.FLOAT32) == "float32"
    assert str(Accumulator(14, chunk=16)) == "14 bits of float32, chunks of 16, half_even"
    assert Accumulator.parse("int32") is Accumulator.INT32


def test_parts_that_cancel_keep_the_sum_from_being_exact():
    """2**30 + 1 - 2**30 is 1, but not where a kernel adds the parts in float32 apart."""
    big = np.full((1, 1), 2.0**30)
    parts = (big + 1, big)
    together, apart = exactly(np.ones((1, 1))), exactly(np.ones((1, 1)), big + 1 + big, parts)
    one = exactly(np.ones((1, 1)))
    assert enclosed(inner_products(one, together), Accumulator.FLOAT32, FLOAT32, 0).hi[0, 0] == 1
    found = enclosed(inner_products(one, apart), Accumulator.FLOAT32, FLOAT32, 0)
    assert found.admits(np.zeros((1, 1))).all()
    fine = exactly(np.full((1, 1), 1.0), np.full((1, 1), 2.5), (np.full((1, 1), 1.75), np.full((1, 1), 0.75)))
    assert fine.quanta()[0, 0] == 0.25
    assert fine.T.quanta()[0, 0] == 0.25


@pytest.mark.parametrize("k", [1, 3, 8, 40])
def test_the_quantum_of_a_sum_divides_every_product_and_no_larger_one_does_where_all_are_alike(k):
    a = RNG.integers(1, 50, (3, k)) * 2.0 ** RNG.integers(-9, 9, (3, k))
    b = RNG.integers(1, 50, (k, 4)) * 2.0 ** RNG.integers(-9, 9, (k, 4))
    found = inner_products(exactly(a), exactly(b)).quantum
    for (m, n), finest in np.ndenumerate(found):
        for x, y in zip(a[m], b[:, n], strict=True):
            assert (Fraction(float(x)) * Fraction(float(y)) / Fraction(float(finest))).denominator == 1
    odd = inner_products(exactly(2.0 * RNG.integers(0, 9, (2, k)) + 1), exactly(2.0 * RNG.integers(0, 9, (k, 2)) + 1))
    np.testing.assert_array_equal(odd.quantum, 1.0)


def test_a_long_sum_one_beyond_the_accumulator_is_not_called_exact():
    """Eight terms of 2**21 are a float32 whatever the order; with one unit more an order rounds."""
    whole, more = np.full((8, 1), 2.0**21), np.full((8, 1), 2.0**21)
    more[3] += 1
    for b, exact in ((whole, True), (more, False)):
        found = enclosed(inner_products(exactly(np.ones((1, 8))), exactly(b)), Accumulator.FLOAT32, FLOAT32, 0)
        assert bool(found.lo[0, 0] == found.hi[0, 0]) is exact


def test_a_batch_of_products_is_each_of_them():
    rng = np.random.default_rng(30)
    a, b = rng.standard_normal((3, 2, 4, 9)), rng.standard_normal((3, 2, 9, 5))
    a[1, 1, 2, 1:] = 0  # a row of few nonzeros
    found = inner_products(exactly(a), exactly(b))
    for place in np.ndindex(3, 2):
        alone = inner_products(exactly(a[place]), exactly(b[place]))
        for name in ("value", "error", "magnitude", "quantum", "terms"):
            np.testing.assert_array_equal(getattr(found, name)[place], getattr(alone, name))
    assert found.length == 9
