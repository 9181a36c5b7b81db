"""Means in any order of summation: every order of small sets, rationals, torch; what shares a scale."""

import itertools
from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.choices import Division, Precision
from lowbit_cts.reference.means import enclose_mean, greatest_step, mean_enclosure, members

ONE = np.float32(1)


@pytest.mark.parametrize("seed", range(4))
def test_every_order_of_six_numbers_is_admitted(seed):
    rng = np.random.default_rng(120 + seed)
    x = (rng.standard_normal(6) * 2.0 ** rng.integers(-8, 8, 6)).astype(np.float32)
    found = mean_enclosure(x)
    seen = set()
    for order in itertools.permutations(x):
        total = order[0]
        for value in order[1:]:
            total = total + value
        pairs = (order[0] + order[1]) + (order[2] + order[3]) + (order[4] + order[5])
        for result in (total, pairs):
            for mean in (result / np.float32(6), result * (ONE / np.float32(6))):
                assert found.admits(np.asarray(mean, np.float64))
                seen.add(float(mean))
    assert len(seen) > 1
    exact = sum(Fraction(float(v)) for v in x) / 6
    assert found.exact == np.float32(float(exact))


@pytest.mark.parametrize("grid", [2.0**-10, 2.0**-140, 2.0**100])
def test_where_all_partial_sums_are_representable_the_mean_is_determined(grid):
    rng = np.random.default_rng(124)
    x = (rng.integers(-(2**13), 2**13, (40, 1000)) * grid).astype(np.float32)
    found = mean_enclosure(x)
    np.testing.assert_array_equal(found.lo, found.hi)
    exact = [Fraction(sum(round(v / grid) for v in row), 1000) for row in x.tolist()]
    np.testing.assert_array_equal(found.exact, np.array([float(v) for v in exact], np.float32) * np.float32(grid))
    for end in (x.sum(axis=1), np.cumsum(np.sort(x, axis=1), axis=1, dtype=np.float32)[:, -1]):
        np.testing.assert_array_equal(found.exact, (end / np.float32(1000)).astype(np.float64))


def test_one_bit_more_and_it_is_not():
    exactly = np.array([2.0**24 - 1, 1.0])  # magnitudes sum to 2**24
    found = mean_enclosure(exactly)
    assert found.lo == found.hi == 2.0**23
    beyond = np.array([2.0**24 - 1, 1.0, 1.0])
    found = mean_enclosure(beyond)
    assert found.lo < found.hi


def test_a_reciprocal_is_exact_for_powers_of_two_only():
    for count in (1, 2, 3, 7, 64, 100):
        x = np.ones((1, count))
        found = mean_enclosure(x, division=Division.RECIPROCAL)
        assert (found.lo == found.hi).all() == (count & (count - 1) == 0)
        assert found.admits(np.asarray([np.float32(count) * (ONE / np.float32(count))], np.float64)).all()


def test_the_declared_error_of_a_division_widens():
    x = np.random.default_rng(125).standard_normal((5, 60))
    narrow = mean_enclosure(x)
    wide = mean_enclosure(x, division=Division.APPROXIMATE, division_ulps=1000.0)
    assert np.all((wide.lo < narrow.lo) & (narrow.hi < wide.hi))


def test_float64_sums_leave_at_most_two_neighbours():
    x = np.random.default_rng(126).standard_normal((200, 999)).astype(np.float32)
    found = mean_enclosure(x, intermediate=Precision.FLOAT64)
    assert found.admits(x.mean(axis=1, dtype=np.float64).astype(np.float32).astype(np.float64)).all()
    assert np.mean(found.lo == found.hi) > 0.99


def test_only_the_chosen_count():
    x = np.arange(12.0).reshape(3, 4)
    where = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]], bool)
    found = mean_enclosure(x, where=where)
    assert found.exact.tolist()[::2] == [1.0, 9.5]
    assert np.isnan(found.exact[1])
    left_out = mean_enclosure(np.array([[1.0, 2.0**-40, 3.0]]), where=np.array([[True, False, True]]))
    assert left_out.lo == left_out.hi == 2


@pytest.mark.parametrize("shape", [(4096,), (16, 4096), (3, 12345)])
def test_torch_means_are_admitted(shape):
    torch = pytest.importorskip("torch")
    x = np.abs(np.random.default_rng(127).standard_normal(shape)).astype(np.float32)
    found = mean_enclosure(x)
    assert found.admits(torch.from_numpy(x).mean(dim=-1).double().numpy()).all()


def test_the_greatest_step_divides_and_its_double_does_not():
    x = np.array([1.0, 3.0, 0.75, -6.0, 2.0**-149, 1e-3, 1e30, 5e-324])
    steps = greatest_step(x)
    for value, step in zip(x.tolist(), steps.tolist(), strict=True):
        quotient = Fraction(value) / Fraction(step)
        assert quotient.denominator == 1
        assert quotient.numerator % 2 == 1
    assert greatest_step(np.array([0.0, -0.0])).tolist() == [np.inf, np.inf]


def test_sums_that_may_overflow_admit_anything():
    assert mean_enclosure(np.array([3e38, 3e38])).hi == np.inf
    found = enclose_mean(np.array(1.0), np.array(4e38), np.array(2), np.array(2.0**-149))
    assert (found.lo, found.hi) == (-np.inf, np.inf)


def test_beyond_2_to_the_24_summands_nothing_but_the_sign_is_known():
    for total, ends in ((0.5, (-np.inf, np.inf)), (1e7, (0, np.inf)), (-1e7, (-np.inf, 0))):
        found = enclose_mean(np.array(total), np.array(1e7), np.array(2**24 + 1), np.array(2.0**-30))
        assert (found.lo, found.hi) == ends


def test_members_lie_along_the_last_axis():
    x = np.arange(24).reshape(4, 6)
    assert members(x, "tensor").tolist() == list(range(24))
    np.testing.assert_array_equal(members(x, "axis", 0), x)
    np.testing.assert_array_equal(members(x, "axis", 1), x.T)
    assert members(x, "group", group_size=3)[1].tolist() == [[6, 7, 8], [9, 10, 11]]
    with pytest.raises(ValueError, match=r"^x: has a zero-size axis .* an empty set has no mean"):
        members(np.zeros((0, 6)), "axis", 0)
    with pytest.raises(ValueError, match=r"^group_size: 4 does not divide"):
        members(x, "group", group_size=4)
