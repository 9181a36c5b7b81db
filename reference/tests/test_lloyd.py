"""Optimal quantizers: published and recomputed numbers, quadrature, dynamic programming, brute force, scikit-learn."""

import itertools
import warnings
from fractions import Fraction

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr

from lowbit_cts.reference.choices import Division, EmptyCluster, Initialisation, Precision, TieSide
from lowbit_cts.reference.codebooks import assign
from lowbit_cts.reference.lloyd import (
    distortion,
    fill_empty,
    gaussian_density,
    gaussian_moments,
    initial_codebook,
    lloyd,
    lloyd_max,
    objective,
    optimal_step,
    panter_dite,
    update,
    update_enclosure,
)

INF = np.inf


def raises(argument: str, rule: str):
    return pytest.raises(ValueError, match=f"^{argument}: .*{rule}")


def digits(value: float, text: str) -> bool:
    """Whether a number, rounded to the digits of a printed one, is that."""
    mantissa, _, exponent = text.partition("e")
    places = len(mantissa.partition(".")[2]) - int(exponent or 0)
    return abs(value - float(text)) <= 0.5 * 10.0**-places * (1 + 1e-9)


def decibels(error: float) -> float:
    return -10 * np.log10(error)


# A density

TABLE = [  # bits; Lloyd-Max: error, decibels; uniform: step, error, decibels
    (1, ".36338", "4.40", "1.5958", ".36338", None),
    (2, ".117482", "9.30", ".9957", ".118846", None),
    (3, ".0345478", "14.62", ".5860", ".0374397", None),
    (4, ".0095010", "20.22", ".3352", ".0115429", None),
    (5, ".0025047", "26.01", ".1881", ".0034952", None),
    (6, ".00064424", "31.91", ".1041", ".00104005", None),
    (8, None, None, ".0308", "8.7686e-5", "40.57"),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]} bits")
def test_the_table_of_optimal_quantizers_of_the_normal_density(row):
    bits, error, noise, step, uniform_error, uniform_noise = row
    size = 2**bits
    if error is not None:
        found = distortion(lloyd_max(size))
        assert digits(found, error)
        assert digits(decibels(found), noise)
        assert found > 2.0 ** (-2 * bits), "Shannon's bound"
    half_integers = np.arange(size) - (size - 1) / 2
    found = optimal_step(half_integers)
    assert digits(found, step)
    assert digits(distortion(found * half_integers), uniform_error)
    assert uniform_noise is None or digits(decibels(distortion(found * half_integers)), uniform_noise)


def test_max_1960_prints_other_fourth_digits_at_4_and_5_bits():
    for bits, printed in ((4, 0.009497), (5, 0.002499)):
        found = distortion(lloyd_max(2**bits))
        assert found == pytest.approx(printed, rel=3e-3)
        assert abs(found - printed) > 3e-6


@pytest.mark.parametrize(
    ("codes", "step", "error"), [(range(-8, 8), ".3386", ".011864"), (range(-7, 8), ".3534", ".012889")]
)
def test_the_optimal_int4_grids_full_and_narrow(codes, step, error):
    found = optimal_step(np.array(codes))
    assert digits(found, step)
    assert digits(distortion(found * np.array(codes)), error)


def test_one_bit_is_two_over_pi():
    np.testing.assert_allclose(lloyd_max(2), np.sqrt(2 / np.pi) * np.array([-1, 1]), rtol=1e-14)
    assert distortion(lloyd_max(2)) == pytest.approx(1 - 2 / np.pi, rel=1e-14)
    assert lloyd_max(1).tolist() == [0.0]
    assert distortion(lloyd_max(1)) == 1.0


def test_panter_and_dite_are_approached_from_below():
    assert digits(panter_dite(1), "2.7207")
    ratios = [distortion(lloyd_max(size)) / panter_dite(size) for size in (4, 8, 16, 64, 256, 1024)]
    assert np.all(np.diff(ratios) > 0)
    assert 0.997 < ratios[-1] < 1


INTERVALS = [(-INF, INF), (-INF, -1), (0.5, INF), (-0.3, 0.4), (2, 2.01), (8, 9), (-9, -8), (30, 31), (0, 0)]


@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_partial_moments_are_integrals(low, high):
    moments = gaussian_moments(np.array(low, float), np.array(high, float))
    for power, moment in enumerate(moments):
        expected = quad(lambda t, p=power: t**p * gaussian_density(t), low, high, epsabs=0, epsrel=1e-12)[0]
        assert moment == pytest.approx(expected, rel=1e-10, abs=1e-16 if max(abs(low), abs(high)) < 8 else 1e-300)


def test_both_conditions_of_lloyd_hold_to_the_last_digits():
    for size in (2, 3, 7, 16, 64, 256):
        levels = lloyd_max(size)
        assert np.all(np.diff(levels) > 0)
        np.testing.assert_allclose(levels, -levels[::-1], atol=1e-12)
        middles = np.concatenate([[-INF], (levels[:-1] + levels[1:]) / 2, [INF]])
        mass, first, _ = gaussian_moments(middles[:-1], middles[1:])
        np.testing.assert_allclose(first / mass, levels, atol=1e-12)
        # With the centroid condition the error is the variance less that of the levels.
        assert distortion(levels) == pytest.approx(1 - np.sum(mass * levels**2), rel=1e-8)


def test_no_neighbour_of_the_optimum_and_no_other_start_is_better():
    rng = np.random.default_rng(95)
    for size in (2, 5, 16):
        levels = lloyd_max(size)
        least = distortion(levels)
        for _ in range(50):
            assert distortion(levels + 1e-3 * rng.standard_normal(size)) > least
        again = lloyd_max(size, start=levels + 0.02 * rng.standard_normal(size))
        np.testing.assert_allclose(again, levels, atol=1e-12)


def test_the_plain_iteration_comes_to_the_same_levels():
    levels = np.linspace(-1, 1, 8)
    before = distortion(levels)
    for _ in range(2000):
        middles = np.concatenate([[-INF], (levels[:-1] + levels[1:]) / 2, [INF]])
        mass, first, _ = gaussian_moments(middles[:-1], middles[1:])
        levels = first / mass
        assert distortion(levels) <= before + 2e-15, "but for the rounding of the distortion itself"
        before = distortion(levels)
    np.testing.assert_allclose(levels, lloyd_max(8), atol=1e-12)


def test_the_distortion_is_the_integral_of_the_squared_error():
    rng = np.random.default_rng(96)
    for size in (1, 3, 6):
        levels = rng.standard_normal(size)

        def error(t, levels=levels):
            return np.min((t - levels) ** 2) * gaussian_density(t)

        kinks = np.sort(levels)
        kinks = (kinks[:-1] + kinks[1:]) / 2
        ends = [-12, *kinks, 12]
        expected = sum(quad(error, a, b, epsrel=1e-12)[0] for a, b in itertools.pairwise(ends))
        assert distortion(levels) == pytest.approx(expected, rel=1e-9)


def test_the_step_of_least_distortion_is_the_least_of_a_scan():
    codes = np.arange(-4, 4)
    steps = np.linspace(0.01, 4, 4000)
    errors = [distortion(s * codes) for s in steps]
    best = optimal_step(codes)
    assert abs(steps[np.argmin(errors)] - best) < 1e-3
    assert distortion(best * codes) <= min(errors)


def uniform_moments(low, high):
    low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
    return high - low, (high**2 - low**2) / 2, (high**3 - low**3) / 3


def exponential_moments(low, high):
    low, high = np.maximum(low, 0.0), np.maximum(high, 0.0)

    def ends(power):
        far = np.where(np.isinf(high), 0.0, high)
        return low**power * np.exp(-low), np.where(np.isinf(high), 0.0, far**power * np.exp(-far))

    mass = np.subtract(*ends(0))
    first = np.subtract(*ends(1)) + mass
    return mass, first, np.subtract(*ends(2)) + 2 * first


def test_other_densities_by_their_moments():
    """Uniform: equal steps, error 1 / (12 n**2). Exponential: two levels with closed forms of both means."""
    start = np.array([0.1, 0.35, 0.6, 0.97])
    levels = lloyd_max(4, density=lambda x: ((x >= 0) & (x <= 1)).astype(float), moments=uniform_moments, start=start)
    np.testing.assert_allclose(levels, [0.125, 0.375, 0.625, 0.875], atol=1e-12)
    assert distortion(levels, moments=uniform_moments) == pytest.approx(1 / (12 * 16))
    a, b = lloyd_max(
        2,
        density=lambda x: np.where(x >= 0, np.exp(-np.abs(x)), 0),
        moments=exponential_moments,
        start=np.array([0.5, 2]),
    )
    boundary = (a + b) / 2
    assert b == pytest.approx(boundary + 1, rel=1e-12), "the exponential distribution has no memory"
    assert a == pytest.approx(1 - boundary / np.expm1(boundary), rel=1e-12)


def test_what_is_no_quantizer_is_refused():
    with raises("size", "must be at least 1; got 0"):
        lloyd_max(0)
    with raises("start", r"has shape \(3,\), must be \(4,\)"):
        lloyd_max(4, start=np.arange(3))
    with raises("iterations", "1 Newton steps did not converge"):
        lloyd_max(16, iterations=1)
    with raises("iterations", "did not converge"):
        lloyd_max(4, start=np.array([100.0, 200.0, 300.0, 400.0]))


# Samples


def samples(seed: int, size: int = 500) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.standard_normal(size // 2), 3 + 0.5 * rng.standard_normal(size - size // 2)])


def exact_objective(x: np.ndarray, codes: np.ndarray, codebook: np.ndarray) -> Fraction:
    values = [Fraction(v) for v in codebook.tolist()]
    return sum(((Fraction(s) - values[c]) ** 2 for s, c in zip(x.tolist(), codes.tolist(), strict=True)), Fraction(0))


@pytest.mark.parametrize("empty", EmptyCluster)
@pytest.mark.parametrize("initialisation", Initialisation)
def test_no_step_increases_the_objective(initialisation, empty):
    """In rationals; a mean rounded to float64 costs at most n times the square of half a unit in its last place."""
    for seed, size in ((97, 3), (98, 8), (99, 17)):
        x = samples(seed, 200)
        rounding = x.size * Fraction(float(np.spacing(np.max(np.abs(x))))) ** 2
        values = initial_codebook(x, size, initialisation=initialisation)
        codes = assign(x, values)
        before = exact_objective(x, codes, values)
        for _ in range(30):
            values = update(x, codes, values, empty=empty)
            moved = fill_empty(x, codes, values) if empty is EmptyCluster.FARTHEST else codes
            after_update = exact_objective(x, moved, values)
            codes = assign(x, values)
            after_assign = exact_objective(x, codes, values)
            assert after_assign <= after_update <= before + rounding
            before = after_assign
        assert objective(x, codes, values) == pytest.approx(float(before), rel=1e-13)


@pytest.mark.parametrize("tie", TieSide)
def test_a_fixed_point_has_nearest_neighbours_and_means(tie):
    x = samples(100)
    for initialisation in Initialisation:
        codes, values = lloyd(x, initial_codebook(x, 9, initialisation=initialisation), tie=tie)
        distances = np.abs(x[:, None] - values)
        np.testing.assert_array_equal(distances[np.arange(x.size), codes], distances.min(axis=1))
        for code in range(9):
            assert np.any(codes == code)
            assert values[code] == pytest.approx(x[codes == code].mean(), rel=1e-13)
        np.testing.assert_array_equal(lloyd(x, values, tie=tie)[0], codes)


def contiguous_partitions(size: int, parts: int):
    for cuts in itertools.combinations(range(1, size), parts - 1):
        yield [0, *cuts, size]


@pytest.mark.parametrize("seed", range(5))
def test_small_cases_against_every_contiguous_partition(seed):
    """Each is a bound from above; the best of them is the optimum, a fixed point, and no result lies below it."""
    kmeans1d = pytest.importorskip("kmeans1d")
    x = np.sort(np.random.default_rng(seed).standard_normal(9).round(2))
    for size in (2, 3, 4):
        errors = {}
        for cuts in contiguous_partitions(x.size, size):
            parts = [x[a:b] for a, b in itertools.pairwise(cuts)]
            errors[tuple(cuts)] = sum(np.sum((part - part.mean()) ** 2) for part in parts)
        best, least = min(errors.items(), key=lambda item: item[1])
        codes, values = kmeans1d.cluster(x, size)
        assert objective(x, np.array(codes), np.array(values)) == pytest.approx(least, abs=1e-12)
        means = np.array([x[a:b].mean() for a, b in itertools.pairwise(best)])
        found = lloyd(x, means)
        assert objective(x, *found) == pytest.approx(least, abs=1e-12)
        for initialisation, empty in itertools.product(Initialisation, EmptyCluster):
            found = lloyd(x, initial_codebook(x, size, initialisation=initialisation), empty=empty)
            assert objective(x, *found) >= least - 1e-12


@pytest.mark.parametrize("size", [2, 5, 16, 64])
def test_dynamic_programming_is_a_lower_bound_and_its_solution_a_fixed_point(size):
    kmeans1d = pytest.importorskip("kmeans1d")
    x = samples(101, 2000)
    _, best = kmeans1d.cluster(x, size)
    best = np.array(best)
    least = objective(x, assign(x, best), best)
    for initialisation, empty in itertools.product(Initialisation, EmptyCluster):
        codes, values = lloyd(x, initial_codebook(x, size, initialisation=initialisation), empty=empty)
        assert objective(x, codes, values) >= least * (1 - 1e-12)
    codes, values = lloyd(x, best)
    assert objective(x, codes, values) == pytest.approx(least, rel=1e-12)
    np.testing.assert_allclose(values, best, atol=1e-12)


def test_many_normal_samples_come_near_to_lloyd_max():
    x = np.random.default_rng(102).standard_normal(100_000)
    codes, values = lloyd(x, initial_codebook(x, 8, initialisation="quantiles"))
    np.testing.assert_allclose(values, lloyd_max(8), atol=0.02)
    assert objective(x, codes, values) / x.size == pytest.approx(distortion(lloyd_max(8)), rel=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_the_steps_are_those_of_scikit_learn(seed):
    """Including the relocation of empty clusters, in some starts."""
    cluster = pytest.importorskip("sklearn.cluster")
    x = samples(103 + seed, 300)
    rng = np.random.default_rng(seed)
    relocated = 0
    for start in (
        np.sort(rng.choice(x, 6, replace=False)),
        np.array([-1.0, 0, 0.5, 20, 30, 40]),
        np.linspace(-9, 9, 7),
    ):
        codes = assign(x, start)
        relocated += np.unique(codes).size < start.size
        model = cluster.KMeans(start.size, init=start[:, None], n_init=1, max_iter=1, tol=0, algorithm="lloyd")
        with warnings.catch_warnings(action="ignore"):  # one iteration does not converge
            model.fit(x[:, None])
        values = update(x, codes, start, empty=EmptyCluster.FARTHEST)
        np.testing.assert_allclose(np.sort(model.cluster_centers_[:, 0]), np.sort(values), atol=1e-12)
    assert relocated >= 2


def test_empty_codes_stay_or_take_the_farthest_samples():
    x = np.array([0.0, 1.0, 2.0, 10.0, -7.0])
    codebook = np.array([1.0, 50.0, -60.0])
    codes = assign(x, codebook)
    assert codes.tolist() == [0, 0, 0, 0, 0]
    assert update(x, codes, codebook, empty="keep").tolist() == [6 / 5, 50, -60]
    assert fill_empty(x, codes, codebook).tolist() == [0, 0, 0, 1, 2]
    assert update(x, codes, codebook, empty="farthest").tolist() == [1.0, 10.0, -7.0]
    assert codes.tolist() == [0, 0, 0, 0, 0]


def test_a_cluster_that_loses_its_last_sample_keeps_its_value_and_equally_far_ones_go_in_order():
    x = np.array([5.0, 5.0, -5.0])
    codebook = np.array([0.0, -4.0, 100.0, 200.0])
    codes = np.array([0, 0, 1])
    assert fill_empty(x, codes, codebook).tolist() == [2, 3, 1]
    assert update(x, codes, codebook, empty="farthest").tolist() == [0.0, -5.0, 5.0, 5.0]
    assert update(x[:1], codes[:1], codebook, empty="farthest").tolist() == [0.0, 5.0, 100.0, 200.0]


def test_where_to_start_from():
    x = np.arange(1, 101, dtype=float) ** 2
    np.testing.assert_array_equal(
        initial_codebook(x, 4, initialisation="quantiles"), np.quantile(x, [1 / 8, 3 / 8, 5 / 8, 7 / 8])
    )
    expected = 1 + 9999 * np.array([1 / 8, 3 / 8, 5 / 8, 7 / 8])
    np.testing.assert_allclose(initial_codebook(x, 4, initialisation="uniform"), expected)


# Enclosure of the means


def mean32(values: np.ndarray, order: str, reciprocal: bool) -> np.float32:
    ordered = {
        "forward": values,
        "backward": values[::-1],
        "ascending": np.sort(values),
        "descending": np.sort(values)[::-1],
    }
    total = values.sum() if order == "numpy" else np.cumsum(ordered[order], dtype=np.float32)[-1]
    count = np.float32(values.size)
    return total * (np.float32(1) / count) if reciprocal else total / count


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_means_added_in_any_order_are_admitted(scale):
    x = (samples(110, 20_000) * scale).astype(np.float32)
    codebook = np.array([-1.0, 0.5, 3.0, 99.0]) * scale
    codes = assign(x, codebook)
    determined, either = (
        update_enclosure(x, codes, codebook),
        update_enclosure(x, codes, codebook, division="reciprocal"),
    )
    assert determined.exact.dtype == np.float64
    np.testing.assert_array_equal(determined.exact[:3], update(x, codes, codebook)[:3].astype(np.float32))
    assert determined.lo[3] == determined.exact[3] == determined.hi[3] == np.float32(99 * scale)
    seen = set()
    for order, reciprocal in itertools.product(
        ("numpy", "forward", "backward", "ascending", "descending"), (False, True)
    ):
        means = np.array([mean32(x[codes == c], order, reciprocal) for c in range(3)], np.float64)
        assert either[:3].admits(means).all()
        assert determined[:3].admits(means).all()
        seen.add(tuple(means))
    assert len(seen) > 4
    width = (determined.hi - determined.lo)[:3] / np.array([np.abs(x[codes == c]).mean() for c in range(3)])
    assert np.all(width <= 3 * np.bincount(codes)[:3] * 2.0**-24)


@pytest.mark.parametrize("counts", [(64, 256, 1024), (60, 100, 999)])
def test_means_of_exact_sums_are_determined(counts):
    rng = np.random.default_rng(111)
    codes = rng.permutation(np.repeat(np.arange(3), counts))
    x = (rng.integers(-1000, 1000, codes.size) / 32).astype(np.float32)
    codebook = np.zeros(3)
    found = update_enclosure(x, codes, codebook)
    for code in range(3):
        exact = Fraction(int((x[codes == code] * 32).sum()), 32 * counts[code])
        assert found.exact[code] == np.float32(float(exact))
    np.testing.assert_array_equal(found.lo, found.hi)
    either = update_enclosure(x, codes, codebook, division=Division.RECIPROCAL)
    assert np.all(either.lo == either.hi) == (counts == (64, 256, 1024)), "a reciprocal of other counts rounds"


def test_sums_in_float64_leave_one_rounding_or_two_neighbours():
    x = samples(112, 5000).astype(np.float32)
    codes = assign(x, np.array([0.0, 3.0]))
    found = update_enclosure(x, codes, np.array([0.0, 3.0]), intermediate=Precision.FLOAT64)
    assert np.all(found.hi - found.lo <= np.spacing(np.abs(found.exact).astype(np.float32)))
    narrow = update_enclosure(x, codes, np.array([0.0, 3.0]))
    assert np.all((narrow.lo < found.lo) & (found.hi < narrow.hi))


def test_where_some_order_overflows_anything_goes():
    x = np.array([3e38, 3e38, -3e38, 1.0], np.float32)
    found = update_enclosure(x, np.array([0, 0, 0, 1]), np.zeros(2))
    assert (found.lo[0], found.hi[0]) == (-INF, INF)
    assert found.lo[1] == found.hi[1] == 1


def test_a_relocated_sample_is_the_mean_of_its_new_cluster():
    x = np.array([0.1, 0.2, 0.3, 9.0], np.float32)
    codebook = np.array([0.0, 50.0], np.float32)
    found = update_enclosure(x, assign(x, codebook), codebook, empty=EmptyCluster.FARTHEST)
    assert found.lo[1] == found.hi[1] == 9
    assert found.lo[0] < np.mean(x[:3].astype(np.float64)) < found.hi[0]


# Bad input

X = np.arange(6.0)
WRONG = [
    ("x", "must be finite", lambda: update(np.array([1, np.nan]), np.zeros(2, int), X)),
    ("x", "must be finite", lambda: lloyd(np.array([1, INF]), X)),
    ("x", "must be finite", lambda: initial_codebook(np.array([1, -INF]), 2, initialisation="uniform")),
    ("x", "must not be empty", lambda: initial_codebook(np.zeros(0), 2, initialisation="uniform")),
    ("size", "must be at least 1; got 0", lambda: initial_codebook(X, 0, initialisation="uniform")),
    ("initialisation", "'random' is not admissible; admissible: quantiles, uniform",
     lambda: initial_codebook(X, 2, initialisation="random")),
    ("empty", "'drop' is not admissible; admissible: keep, farthest",
     lambda: update(X, np.zeros(6, int), X, empty="drop")),
    ("codes", r"has shape \(5,\), must have that of x, \(6,\)", lambda: update(X, np.zeros(5, int), X)),
    ("codes", r"must lie in \[0, 1\]; got \[0, 2\]", lambda: update_enclosure(X[:2], np.array([0, 2]), X[:2])),
    ("codes", r"must lie in \[0, 5\]; got \[-1, -1\]", lambda: objective(X, np.full(6, -1), X)),
    ("codebook", "must be finite", lambda: lloyd(X, np.array([0, np.nan]))),
]  # fmt: skip


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0]}: {case[1]}")
def test_bad_input_is_refused_by_name(case):
    name, rule, call = case
    with raises(name, rule):
        call()


def test_shapes_are_kept_and_inputs_left_untouched():
    x = samples(113, 12).reshape(3, 4)
    codebook = np.array([2.0, -1.0, 80.0])
    kept = x.copy(), codebook.copy()
    codes, values = lloyd(x, codebook, empty="farthest")
    assert (codes.shape, values.shape) == ((3, 4), (3,))
    assert fill_empty(x, codes, values).shape == (3, 4)
    update_enclosure(x, codes, codebook, empty="farthest")
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(codebook, kept[1])


def test_no_samples_leave_every_value_as_it_was():
    none, codes = np.zeros(0), np.zeros(0, int)
    for empty in EmptyCluster:
        assert update(none, codes, X, empty=empty).tolist() == X.tolist()
        found = update_enclosure(none, codes, X, empty=empty)
        assert found.lo.tolist() == found.hi.tolist() == X.tolist()


def test_the_mass_of_an_interval_far_out_keeps_its_digits():
    mass, first, _ = gaussian_moments(np.array([9.0]), np.array([INF]))
    assert mass[0] == pytest.approx(float(ndtr(-9.0)), rel=1e-14)
    assert first[0] / mass[0] == pytest.approx(9 + 1 / 9 - 2 / 9**3 + 10 / 9**5, rel=1e-4)
