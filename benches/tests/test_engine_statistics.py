import numpy as np
import pytest

from lowbit_cts.benches.engine.statistics import (
    log_ratio_interval,
    median_interval,
    order_rank,
    relative_half_width,
    throttled,
)


# Le Boudec, Performance Evaluation, table A.1 (95 %): n, lower rank, upper rank.
@pytest.mark.parametrize(("count", "lower", "upper"), [(6, 1, 6), (10, 2, 9), (20, 6, 15), (50, 18, 33), (70, 27, 44)])
def test_ranks_match_the_published_table(count, lower, upper):
    samples = np.random.default_rng(count).permutation(np.arange(1.0, count + 1))
    assert median_interval(samples) == (lower, (count + 1) / 2, upper)


def test_five_samples_bound_nothing():
    assert order_rank(5) == 0
    assert median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == (-np.inf, 3.0, np.inf)
    assert relative_half_width(*median_interval([1.0])) == np.inf


def test_no_samples_are_an_error():
    with pytest.raises(ValueError, match="no samples"):
        median_interval([])


@pytest.mark.parametrize("count", [6, 20, 101])
@pytest.mark.parametrize(
    ("draw", "median"),
    [
        (lambda rng, shape: rng.lognormal(0.0, 1.5, shape), 1.0),
        (lambda rng, shape: rng.exponential(1.0, shape), np.log(2)),
        # run times: a floor, a skewed bulk, and a few interruptions
        (lambda rng, shape: 1 + rng.pareto(1.5, shape), 2 ** (1 / 1.5)),
    ],
    ids=["lognormal", "exponential", "pareto"],
)
def test_coverage_is_exactly_binomial_on_skewed_distributions(draw, median, count):
    trials = 4000
    intervals = [median_interval(row) for row in draw(np.random.default_rng(1), (trials, count))]
    covered = np.mean([low <= median <= high for low, _, high in intervals])
    below = np.random.default_rng(2).binomial(count, 0.5, 400_000)
    rank = order_rank(count)
    expected = np.mean((below >= rank) & (below <= count - rank))
    assert expected >= 0.949
    # four standard errors of a simulated proportion
    assert abs(covered - expected) < 4 * np.sqrt(expected * (1 - expected) / trials)


def test_interval_is_as_narrow_as_the_confidence_allows():
    # one rank further in covers too rarely
    for count in range(6, 200):
        rank = order_rank(count)
        below = np.array([1.0])
        for _ in range(count):
            below = np.convolve(below, [0.5, 0.5])
        assert below[rank : count - rank + 1].sum() >= 0.95 - 1e-12
        assert below[rank + 1 : count - rank].sum() < 0.95


def test_log_ratio_of_paired_rounds_ignores_what_both_share():
    rng = np.random.default_rng(0)
    drift = np.exp(np.cumsum(rng.normal(0, 0.05, 40)))
    slow, base = 1.03 * drift * rng.lognormal(0, 0.005, 40), drift * rng.lognormal(0, 0.005, 40)
    low, median, high = log_ratio_interval(slow, base)
    assert low <= np.log(1.03) <= high
    assert high - low < 0.01
    assert low <= median <= high
    # unpaired, the drift buries the ratio
    shuffled = log_ratio_interval(slow, rng.permutation(base))
    assert shuffled[2] - shuffled[0] > 5 * (high - low)


def test_log_ratio_is_antisymmetric_and_reproducible():
    a, b = np.random.default_rng(3).lognormal(0, 0.1, (2, 15))
    low, median, high = log_ratio_interval(a, b)
    assert log_ratio_interval(a, b) == (low, median, high)
    assert log_ratio_interval(b, a)[1] == pytest.approx(-median)
    assert log_ratio_interval(a, b, seed=1) != (low, median, high)


def test_log_ratio_coverage_over_ten_rounds():
    rng = np.random.default_rng(4)
    noise = rng.lognormal(0, 0.02, (300, 10))
    covered = [low <= 0 <= high for low, _, high in (log_ratio_interval(row, np.ones(10)) for row in noise)]
    assert np.mean(covered) > 0.9


def test_log_ratio_needs_pairs():
    with pytest.raises(ValueError, match="not paired"):
        log_ratio_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="no round"):
        log_ratio_interval([np.nan, 2.0], [1.0, np.nan])
    assert log_ratio_interval([np.nan, 2.0], [5.0, 1.0])[1] == pytest.approx(np.log(2))


def test_throttled_samples_are_those_below_the_typical_clock():
    assert throttled([1400, 1400, 1390, 1200, None, 1400]).tolist() == [
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    # slow throughout is a steady state, not a throttled sample
    assert not throttled([700] * 9).any()
    assert not throttled([None, None]).any()
    assert throttled([]).tolist() == []
