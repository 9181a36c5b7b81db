"""Sparsity: masks against every mask, permutations against all of them, thresholds against closed forms."""

from fractions import Fraction
from itertools import combinations, permutations, product

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import linprog
from scipy.special import ndtr, ndtri
from scipy.stats import norm

from lowbit_cts.reference.packing.sparse24 import compress, decompress
from lowbit_cts.reference.sparsity.activations import (
    ThresholdSide,
    achieved_sparsity,
    beyond,
    cats_threshold,
    gate_activations,
    gaussian_threshold,
    relu,
    silu,
    sparse_product,
    sparsify,
    threshold,
)
from lowbit_cts.reference.sparsity.patterns import (
    PATTERNS,
    NanScore,
    Pattern,
    Removal,
    TieRule,
    admissible,
    admissible_transposable,
    admissible_weights,
    conforms,
    kept_energy,
    mask_bounds,
    prune,
    select,
    select_transposable,
    transposable_masks,
    without,
)
from lowbit_cts.reference.sparsity.permutation import (
    MOST_GROUPINGS,
    exhaustive,
    grouping_count,
    groupings,
    kept_sum,
    search,
)

RNG = np.random.default_rng(24)
SHAPES = [Pattern(1, 2), Pattern(2, 4), Pattern(1, 4), Pattern(3, 4), Pattern(4, 4), Pattern(4, 8), Pattern(2, 4, 2)]


def name(pattern: Pattern) -> str:
    return f"{pattern.n}:{pattern.m}" + ("" if pattern.unit == 1 else "_pairs")


patterns = pytest.mark.parametrize("pattern", SHAPES, ids=name)


def masks_of(pattern: Pattern) -> np.ndarray:
    """Return every mask of a group, (C, length)."""
    kept = [np.isin(np.arange(pattern.m), c) for c in combinations(range(pattern.m), pattern.n)]
    return np.repeat(np.array(kept), pattern.unit, axis=1)


def value(unit: np.ndarray) -> tuple[int, Fraction]:
    """Return the score of a unit as what can be added exactly: whether it is infinite, and a fraction."""
    return (1, Fraction(0)) if np.isinf(unit).any() else (0, sum(map(Fraction, unit.tolist()), Fraction(0)))


def optimal(group: np.ndarray, masks: np.ndarray, unit: int = 1) -> list[int]:
    """Return which masks keep the greatest sum, by fractions."""
    scores = [value(part) for part in group.reshape(-1, unit)]
    sums = []
    for mask in masks[:, ::unit]:
        kept = [score for score, stays in zip(scores, mask, strict=True) if stays]
        sums.append((sum(score[0] for score in kept), sum(score[1] for score in kept)))
    return [i for i, total in enumerate(sums) if total == max(sums)]


def kinds(pattern: Pattern, count: int = 12) -> np.ndarray:
    """Return groups of scores: distinct, with ties, mostly zeros, wide in range, with infinities."""
    shape = (count, pattern.length)
    wide = RNG.standard_normal(shape) * 2.0 ** RNG.integers(-60, 60, shape)
    return np.abs(
        np.concatenate(
            [
                RNG.standard_normal(shape),
                RNG.integers(0, 3, shape),
                RNG.standard_normal(shape) * (RNG.random(shape) < 0.4),
                wide,
                np.where(RNG.random(shape) < 0.3, np.inf, RNG.integers(0, 3, shape)),
            ]
        )
    )


# Selection -----------------------------------------------------------------------------------------------------------


@patterns
def test_a_mask_is_admissible_if_and_only_if_no_other_keeps_more(pattern):
    masks = masks_of(pattern)
    every = np.array(list(product([False, True], repeat=pattern.length)))
    for group in kinds(pattern):
        best = {tuple(mask) for mask in masks[optimal(group, masks, pattern.unit)]}
        given = admissible(every, np.broadcast_to(group, every.shape), pattern)[:, 0]
        assert {tuple(mask) for mask in every[given]} == best


@patterns
def test_a_tie_rule_chooses_one_of_the_admissible_masks(pattern):
    masks = masks_of(pattern)
    for group in kinds(pattern):
        best = [tuple(masks[i]) for i in optimal(group, masks, pattern.unit)]
        expected = {
            TieRule.LOWEST_INDEX: max(best),
            TieRule.HIGHEST_INDEX: max(best, key=lambda mask: mask[::-1]),
        }
        for ties, mask in expected.items():
            assert tuple(select(group, pattern, ties=ties)) == mask
            judged = admissible(masks, np.broadcast_to(group, masks.shape), pattern, ties=ties)[:, 0]
            assert [tuple(m) for m in masks[judged]] == [mask]
        assert tuple(select(group, pattern, ties="any")) in best


@patterns
def test_the_bounds_of_masks_are_those_of_all_admissible_ones(pattern):
    masks = masks_of(pattern)
    for group in kinds(pattern):
        best = masks[optimal(group, masks, pattern.unit)]
        always, sometimes = mask_bounds(group, pattern)
        np.testing.assert_array_equal(always, best.all(axis=0))
        np.testing.assert_array_equal(sometimes, best.any(axis=0))
        for ties in (TieRule.LOWEST_INDEX, TieRule.HIGHEST_INDEX):
            for bound in mask_bounds(group, pattern, ties=ties):
                np.testing.assert_array_equal(bound, select(group, pattern, ties=ties))


@pytest.mark.parametrize("ties", TieRule)
def test_a_bound_admits_the_masks_of_all_scores_within_it(ties):
    """Scores on a grid, so that all perturbations, by whole steps, can be tried."""
    pattern, masks = Pattern(2, 4), masks_of(Pattern(2, 4))
    moves = np.array(list(product([-1, 0, 1], repeat=4)))
    for group in RNG.integers(0, 6, (25, 4)) * 1.0:
        bound = RNG.integers(0, 2, 4) * 1.0
        reached = np.zeros(len(masks), bool)
        for moved in np.unique(group + moves * bound, axis=0):
            reached |= admissible(masks, np.broadcast_to(moved, masks.shape), pattern, ties=ties)[:, 0]
        given = admissible(masks, np.broadcast_to(group, masks.shape), pattern, ties=ties, bound=bound)[:, 0]
        assert not np.any(reached & ~given)
        # Beyond the grid only perturbations between its points: of ties with a rule, less than a step.
        if ties is TieRule.ANY:
            np.testing.assert_array_equal(given, reached)
            always, sometimes = mask_bounds(group, pattern, bound=bound)
            np.testing.assert_array_equal(always, masks[reached].all(axis=0))
            np.testing.assert_array_equal(sometimes, masks[reached].any(axis=0))


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(4, 8), Pattern(1, 2)], ids=name)
def test_any_number_of_nonzeros_in_any_position(pattern):
    """Of a group with up to n numbers all stay, of one with more n of them do."""
    held = np.array(list(product([0, 1], repeat=pattern.m)))
    w = held * RNG.permutation(np.arange(1.0, pattern.m + 1)) * RNG.choice([-1, 1], held.shape)
    mask, pruned = prune(w, pattern)
    np.testing.assert_array_equal(mask.sum(axis=1), pattern.n)
    np.testing.assert_array_equal((pruned != 0).sum(axis=1), np.minimum(held.sum(axis=1), pattern.n))
    few = held.sum(axis=1) <= pattern.n
    np.testing.assert_array_equal(pruned[few], w[few])
    assert conforms(pruned, pattern).all()
    np.testing.assert_array_equal(conforms(w, pattern)[:, 0], few)
    assert admissible_weights(pruned, w, pattern).all()


def test_what_is_selected_can_be_compressed():
    w = RNG.standard_normal((8, 64)).astype(np.float16)
    w[:, ::3] = 0
    pruned = prune(w)[1].view(np.uint16)
    np.testing.assert_array_equal(decompress(*compress(pruned, format="float16"), format="float16"), pruned)


@patterns
def test_both_axes(pattern):
    w = np.abs(RNG.standard_normal((2 * pattern.length, 3 * pattern.length)))
    columns = select(w, pattern, axis=-2)
    np.testing.assert_array_equal(columns, select(w.T, pattern).T)
    assert admissible(columns, w, pattern, axis=-2).shape == (3 * pattern.length, 2)
    assert admissible(columns, w, pattern, axis=-2).all()
    assert conforms(np.where(columns, w, 0), pattern, axis=0).all()


def test_pairs_stay_together_and_are_compared_by_unrounded_sums():
    tiny = 2.0**-70
    w = np.array([1.0, 0.0, 1.0, tiny, 0.5, 0.5 + 2.0**-53, 3.0, -3.0])
    assert select(np.abs(w), Pattern(2, 4, 2)).tolist() == [False, False, False, False, True, True, True, True]
    w[4:6] = 0.5
    assert select(np.abs(w), Pattern(2, 4, 2)).tolist() == [False, False, True, True, False, False, True, True]
    assert PATTERNS[4] == Pattern(2, 4, 2)
    # One of each pair is not 4:8 in pairs, though it is 4:8.
    half = np.array([1, 0] * 4) == 1
    assert not admissible(half, half * 1.0, Pattern(2, 4, 2)).any()
    assert admissible(half, half * 1.0, Pattern(4, 8)).all()


def test_negative_zeros_score_as_zeros_and_stay_negative():
    w = np.array([0.0, -0.0, 0.0, -0.0, -0.0, 5.0, 0.0, 0.0])
    mask, pruned = prune(w)
    assert mask.tolist() == [True, True, False, False, True, True, False, False]
    assert np.signbit(pruned).tolist() == [False, True, False, False, True, False, False, False]
    assert np.signbit(prune(w, ties="highest_index")[1]).tolist() == [False, False, False, True] + 4 * [False]
    assert admissible_weights(np.zeros(8), w).tolist() == [True, False]


def test_what_does_not_stay_is_zero_or_its_product_with_zero():
    w = np.array([-3.0, np.inf, -np.inf, 2.0, -1.0, 0.5, 4.0, -4.0])
    mask = np.array([True, False, False, True, False, False, True, True])
    assigned = without(w, mask)
    assert assigned.tolist() == [-3, 0, 0, 2, 0, 0, 4, -4]
    assert not np.signbit(assigned[~mask]).any()
    multiplied = without(w, mask, removal=Removal.PRODUCT)
    assert np.isnan(multiplied[1:3]).all()
    assert np.signbit(multiplied[4])
    np.testing.assert_array_equal(multiplied[mask], w[mask])
    assert without(w.astype(np.float16), mask).dtype == np.float16
    assert prune(np.array([1, -2, 3, -128], np.int8))[1].tolist() == [0, 0, 3, -128]


def test_infinities_and_nan():
    inf, nan = np.inf, np.nan
    w = np.array([1.0, -inf, 2.0, 3.0, nan, inf, inf, 9.0, nan, nan, nan, inf])
    mask = select(np.abs(w), nan=NanScore.LARGEST)
    assert mask.tolist() == [False, True, False, True, True, True, False, False, True, True, False, False]
    assert admissible(mask, np.abs(w), nan="largest").all()
    other = mask[[0, 1, 2, 3, 4, 6, 5, 7, 8, 10, 9, 11]]
    assert admissible(other, np.abs(w), nan="largest").all()
    dropped = np.array([True, False, False, True, False, True, True, False, True, True, False, False])
    assert admissible(dropped, np.abs(w), nan="largest").tolist() == [False, False, True]
    assert admissible_weights(np.where(mask, w, 0), w, nan="largest").all()


def test_scores_may_be_others_than_magnitudes():
    """Wanda's, of which a small weight of a large channel stays."""
    w, norms = np.array([[1.0, -2.0, 3.0, -4.0]]), np.array([100.0, 1.0, 10.0, 0.0])
    mask, pruned = prune(w, scores=np.abs(w) * norms)
    assert mask.tolist() == [[True, False, True, False]]
    assert pruned.tolist() == [[1, 0, 3, 0]]
    assert not admissible_weights(prune(w)[1], w, scores=np.abs(w) * norms).any()
    assert select(np.array([-1.0, -5.0, -2.0, -3.0])).tolist() == [True, False, True, False]


@patterns
def test_pruned_weights_are_admissible_if_and_only_if_some_optimal_mask_leaves_them(pattern):
    masks = masks_of(pattern)
    for group in RNG.integers(-2, 3, (20, pattern.length)) * 1.0:
        right = {tuple(np.where(masks[i], group, 0.0)) for i in optimal(np.abs(group), masks, pattern.unit)}
        candidates = np.array(list({tuple(np.where(mask, group, 0.0)) for mask in masks} | {tuple(group)}))
        given = admissible_weights(candidates, np.broadcast_to(group, candidates.shape), pattern)[:, 0]
        assert {tuple(row) for row in candidates[given]} == right
    w = np.array([4.0, 3.0, 2.0, 1.0])
    assert not admissible_weights(np.array([4.0, 3.5, 0.0, 0.0]), w).any()  # a weight that was changed
    # A zero may have stayed instead of a weight that scores as little, not instead of one that scores more.
    w, pruned = np.array([5.0, 1.0, 0.0, 0.0]), np.array([5.0, 0.0, 0.0, 0.0])
    assert admissible_weights(pruned, w, scores=pruned).all()
    assert not admissible_weights(pruned, w).any()


def test_what_torch_selects_is_admissible():
    torch = pytest.importorskip("torch")
    for w in (RNG.standard_normal((6, 64)), RNG.integers(-2, 3, (6, 64)) * 1.0):
        groups = torch.from_numpy(np.abs(w)).reshape(-1, 4)
        mask = torch.zeros(groups.shape, dtype=torch.bool).scatter_(1, groups.topk(2, dim=1)[1], True)
        # Wanda's: those that do not stay are the smallest.
        pruned = torch.ones(groups.shape, dtype=torch.bool).scatter_(1, groups.topk(2, dim=1, largest=False)[1], False)
        for found in (mask, pruned):
            assert admissible(found.numpy().reshape(w.shape), np.abs(w)).all()
    bad = torch.tensor([[1.0, float("nan"), float("inf"), 3.0]])
    kept = torch.ones(bad.shape, dtype=torch.bool).scatter_(1, bad.topk(2, dim=1, largest=False)[1], False).numpy()
    assert admissible(kept, bad.numpy(), nan="largest").all()


def test_an_argmax_over_products_with_patterns_drops_an_infinity():
    """Why such results are not admitted, see the notes of the module."""
    group, masks = np.array([1.0, np.inf, 2.0, 3.0]), masks_of(Pattern(2, 4))
    with np.errstate(invalid="ignore"):
        sums = (group * masks).sum(axis=1)
    chosen = masks[np.argmax(sums)]  # the first NaN, as torch.argmax
    assert not chosen[1]
    assert not admissible(chosen, group).any()


def energy_of_normal(n: int, m: int) -> float:
    """Return the share of a normal's energy in the n largest magnitudes of m: fewer than n of the others are larger."""

    def density(x: float) -> float:
        below = 2 * ndtr(x) - 1
        stays = sum(
            len(list(combinations(range(m - 1), k))) * (1 - below) ** k * below ** (m - 1 - k) for k in range(n)
        )
        return 2 * x**2 * norm.pdf(x) * stays

    return quad(density, 0, 12, epsabs=1e-12)[0]


def test_the_energy_of_normal_weights_that_stays():
    assert energy_of_normal(2, 4) == pytest.approx(0.8677, abs=2e-4)  # published, of samples
    assert energy_of_normal(2, 4) == pytest.approx(0.867553, abs=5e-7)
    t = gaussian_threshold(0.5)
    unstructured = 2 * (t * norm.pdf(t) + ndtr(-t))
    assert unstructured == pytest.approx(0.928674, abs=5e-7)
    w = np.random.default_rng(1).standard_normal((256, 1024))
    assert kept_energy(w, beyond(w, t, side="above")) == pytest.approx(unstructured, abs=2e-3)
    for n, m in [(2, 4), (1, 2), (4, 8)]:
        pattern = Pattern(n, m)
        assert kept_energy(w, select(np.abs(w), pattern)) == pytest.approx(energy_of_normal(n, m), abs=2e-3)
    # The more freedom, the more stays: both ways, in pairs of eight, 2:4, 4:8, anywhere.
    shares = [
        kept_energy(w, mask)
        for mask in (
            select(np.abs(w), Pattern(2, 4, 2)),
            select_transposable(np.abs(w)),
            select(np.abs(w)),
            select(np.abs(w), Pattern(4, 8)),
        )
    ]
    assert shares == sorted(shares)
    assert shares[-1] < unstructured
    assert kept_energy(np.zeros(4), np.zeros(4, bool)) == 1


# Both ways -----------------------------------------------------------------------------------------------------------


def blocks_of(pattern: Pattern) -> np.ndarray:
    """Return all masks of a block with the sums of a transposable one, from all 2^(m * m), (C, m, m)."""
    size = pattern.m**2
    bits = (np.arange(2**size)[:, None] >> np.arange(size) & 1).astype(bool).reshape(-1, pattern.m, pattern.m)
    right = (bits.sum(axis=1) == pattern.n).all(axis=1) & (bits.sum(axis=2) == pattern.n).all(axis=1)
    return bits[right]


@pytest.mark.parametrize(("pattern", "count"), [(Pattern(2, 4), 90), (Pattern(1, 4), 24), (Pattern(1, 2), 2)])
def test_transposable_masks_are_counted(pattern, count):
    masks = transposable_masks(pattern)
    assert len(masks) == count
    assert {m.tobytes() for m in masks} == {m.tobytes() for m in blocks_of(pattern)}
    assert [tuple(m.ravel()) for m in masks] == sorted((tuple(m.ravel()) for m in masks), reverse=True)


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 4), Pattern(1, 2), Pattern(2, 3)], ids=name)
def test_a_transposable_mask_is_admissible_if_and_only_if_no_other_keeps_more(pattern):
    m, masks = pattern.m, blocks_of(pattern)
    shape = (4, m, m)
    wide = np.abs(RNG.standard_normal(shape)) * 2.0 ** RNG.integers(-60, 60, shape)
    near = 1 + RNG.integers(0, 2, shape) * 2.0**-52  # whose sums round
    for scores in np.concatenate([np.abs(RNG.standard_normal(shape)), RNG.integers(0, 3, shape), wide, near]):
        best = optimal(scores.ravel(), masks.reshape(len(masks), -1))
        given = admissible_transposable(masks, np.broadcast_to(scores, masks.shape), pattern)[:, 0, 0]
        np.testing.assert_array_equal(np.flatnonzero(given), best)
        flat = [tuple(masks[i].ravel()) for i in best]
        lowest = select_transposable(scores, pattern)
        assert tuple(lowest.ravel()) == max(flat)
        highest = select_transposable(scores, pattern, ties="highest_index")
        assert tuple(highest.ravel()) == max(flat, key=lambda mask: mask[::-1])
        for ties, chosen in ((TieRule.LOWEST_INDEX, lowest), (TieRule.HIGHEST_INDEX, highest)):
            judged = admissible_transposable(masks, np.broadcast_to(scores, masks.shape), pattern, ties=ties)
            np.testing.assert_array_equal(judged[:, 0, 0], (masks == chosen).all(axis=(1, 2)))


def test_transposable_masks_against_linear_programming():
    """The polytope of such masks has whole corners, so that a linear program finds one."""
    sums = np.array([np.repeat(np.eye(4), 4, axis=1), np.tile(np.eye(4), 4)]).reshape(8, 16)
    scores = np.abs(RNG.standard_normal((12, 8)))
    mask = select_transposable(scores)
    for i, j in product(range(0, 12, 4), range(0, 8, 4)):
        block = scores[i : i + 4, j : j + 4]
        found = linprog(-block.ravel(), A_eq=sums, b_eq=np.full(8, 2), bounds=(0, 1))
        assert (block * mask[i : i + 4, j : j + 4]).sum() == pytest.approx(-found.fun, abs=1e-9)


def test_a_transposable_mask_serves_both_products():
    w = RNG.standard_normal((3, 16, 24))
    mask = select_transposable(np.abs(w))
    assert mask.shape == w.shape
    np.testing.assert_array_equal(mask[1], select_transposable(np.abs(w[1])))
    for axis in (-1, -2):
        assert conforms(np.where(mask, w, 0), axis=axis).all()
    assert not conforms(prune(w)[1], axis=-2).all()
    transposed = np.swapaxes(mask, -1, -2)
    assert admissible_transposable(transposed, np.swapaxes(np.abs(w), -1, -2)).all()


def test_a_bound_admits_transposable_masks_of_scores_within_it():
    scores = np.array([[8.0, 8, 0, 0], [8, 8, 0, 0], [0, 0, 8, 8], [0, 0, 8, 7]])
    best = select_transposable(scores)
    other = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 1]], bool)
    assert (best * scores).sum() - (other * scores).sum() == 16
    # Four of each mask are not of the other.
    assert not admissible_transposable(other, scores).any()
    differing = (best ^ other).sum()
    assert admissible_transposable(other, scores, bound=16 / differing).all()
    assert not admissible_transposable(other, scores, bound=15.9 / differing).any()


# Permutations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("columns", "m", "count"), [(8, 4, 35), (12, 4, 5775), (6, 2, 15), (4, 4, 1), (16, 8, 6435)])
def test_groupings_are_counted(columns, m, count):
    found = groupings(columns, m)
    assert grouping_count(columns, m) == len(found) == count
    np.testing.assert_array_equal(found[0], np.arange(columns))
    np.testing.assert_array_equal(np.sort(found, axis=1), np.broadcast_to(np.arange(columns), found.shape))
    assert len({frozenset(frozenset(g) for g in row.reshape(-1, m).tolist()) for row in found}) == count


@pytest.mark.parametrize(("columns", "pattern"), [(8, Pattern(2, 4)), (6, Pattern(1, 2)), (6, Pattern(2, 3))])
def test_the_best_grouping_is_the_best_of_all_permutations(columns, pattern):
    every = np.array(list(permutations(range(columns))))
    for kind in (RNG.standard_normal((5, columns)), RNG.integers(-3, 4, (3, columns))):
        scores = np.abs(kind).astype(np.float64)
        groups = scores[:, every].reshape(len(scores), len(every), -1, pattern.m)
        kept = np.sort(groups, axis=-1)[..., pattern.m - pattern.n :].sum(axis=(0, 2, 3))
        found = exhaustive(scores, pattern)
        assert found.kept == pytest.approx(kept.max(), rel=1e-14)
        assert found.kept == kept_sum(scores, pattern, found.permutation)
        assert found.before == pytest.approx(kept[0], rel=1e-14)
        assert found.tried == grouping_count(columns, pattern.m)
        if columns == 2 * pattern.m:
            assert search(scores, pattern).kept == pytest.approx(found.kept, rel=1e-14)


def test_large_columns_are_spread_over_the_groups():
    scores = np.ones((3, 1)) * np.array([9, 8, 7, 6, 1, 1, 1, 1.0])
    found = exhaustive(scores)
    assert (found.before, found.kept) == (3 * (17 + 2), 3 * 30)
    assert found.permutation.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    np.testing.assert_array_equal(search(scores).permutation, found.permutation)


def test_what_cannot_be_improved_is_left_as_it_is():
    for scores in (np.ones((2, 16)), np.zeros((2, 16)), np.ones((5, 1)) * np.array([9.0, 9, 1, 1] * 4)):
        found = search(scores)
        np.testing.assert_array_equal(found.permutation, np.arange(16))
        assert found.kept == found.before
        assert found.settled
    assert search(np.ones((2, 4))).settled
    np.testing.assert_array_equal(exhaustive(np.ones((2, 8))).permutation, np.arange(8))


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(1, 4), Pattern(1, 2)], ids=name)
def test_a_settled_search_cannot_be_improved_by_any_pair_of_groups(pattern):
    scores = np.abs(RNG.standard_normal((6, 32)))
    found = search(scores, pattern)
    assert found.settled
    assert found.kept > found.before
    assert found.kept == kept_sum(scores, pattern, found.permutation)
    np.testing.assert_array_equal(found.permutation, search(scores.copy(), pattern).permutation)
    groups = found.permutation.reshape(-1, pattern.m)
    assert (np.diff(groups, axis=1) > 0).all()
    assert (np.diff(groups[:, 0]) > 0).all()
    for first, second in combinations(groups, 2):
        pair = exhaustive(scores[:, np.concatenate([first, second])], pattern)
        assert pair.kept == pytest.approx(pair.before, rel=1e-12)


def test_a_search_is_near_the_best_and_never_below_the_identity():
    gained, rng = [], np.random.default_rng(3)
    for _ in range(4):
        scores = np.abs(rng.standard_normal((4, 12)))
        best, found = exhaustive(scores), search(scores)
        assert best.before <= found.kept <= best.kept * (1 + 1e-14)
        gained.append((found.kept - found.before) / (best.kept - best.before))
    assert np.mean(gained) > 0.7


def test_a_budget_bounds_the_search():
    scores = np.abs(RNG.standard_normal((4, 40)))
    kept = []
    for budget in (0, 1, 5, 45, 60, 10**6):
        found = search(scores, budget=budget)
        assert found.tried <= budget
        assert found.kept >= found.before
        assert found.kept == kept_sum(scores, permutation=found.permutation)
        kept.append(found.kept)
    assert kept[0] == found.before
    assert kept[1] <= kept[-1]
    assert not search(scores, budget=45).settled
    assert found.settled


def test_a_round_regroups_the_pairs_that_gain_the_most_each_group_once():
    for _ in range(5):
        scores = np.abs(RNG.standard_normal((4, 40)))
        stripes = scores.reshape(4, 10, 4)
        pairs = {
            pair: exhaustive(np.concatenate([stripes[:, p] for p in pair], axis=1))
            for pair in combinations(range(10), 2)
        }
        gain, free = 0.0, set(range(10))
        for pair, found in sorted(pairs.items(), key=lambda item: item[1].before - item[1].kept):
            if free.issuperset(pair) and found.kept > found.before:
                gain += found.kept - found.before
                free -= set(pair)
        first = search(scores, budget=45)
        assert first.kept == pytest.approx(first.before + gain, rel=1e-13)
        # Whatever of the next rounds the budget allows takes nothing of that away.
        for budget in range(46, 120, 7):
            assert search(scores, budget=budget).kept >= first.kept * (1 - 1e-14)


def test_a_permuted_layer_is_the_same_layer():
    x, w = RNG.integers(-9, 10, (5, 24)) * 1.0, RNG.integers(-9, 10, (7, 24)) * 1.0
    p = search(np.abs(w)).permutation
    np.testing.assert_array_equal(x[:, p] @ w[:, p].T, x @ w.T)
    mask = select(np.abs(w[:, p]))
    restored = np.empty_like(mask)
    restored[:, p] = mask
    np.testing.assert_array_equal(x[:, p] @ np.where(mask, w[:, p], 0).T, x @ np.where(restored, w, 0).T)


# Activations ---------------------------------------------------------------------------------------------------------


def test_relu():
    x = np.array([-1.0, -0.0, 0.0, 2.0, np.nan, -np.inf, np.inf], np.float32)
    y = relu(x)
    np.testing.assert_array_equal(y, np.array([0, 0, 0, 2, np.nan, 0, np.inf], np.float32))
    assert y.dtype == np.float32
    assert np.signbit(y).tolist() == [False, True, False, False, False, False, False]
    assert achieved_sparsity(y) == pytest.approx(4 / 7)
    torch = pytest.importorskip("torch")
    expected = torch.relu(torch.from_numpy(x)).numpy()
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(np.signbit(y)[:4], np.signbit(expected)[:4])


def test_thresholds_of_a_normal_in_closed_form():
    assert gaussian_threshold(0.5) == pytest.approx(0.674490, abs=5e-7)
    for s in (0.0, 0.1, 0.25, 0.7, 0.999):
        assert gaussian_threshold(s, 3.0) == pytest.approx(3 * ndtri(0.5 + s / 2), rel=1e-12, abs=1e-15)
    assert gaussian_threshold(1.0) == np.inf
    samples = np.random.default_rng(2).standard_normal(100_000)
    for s in (0.25, 0.5, 0.9):
        assert threshold(samples, s) == pytest.approx(gaussian_threshold(s), abs=0.02)
        assert achieved_sparsity(sparsify(samples, gaussian_threshold(s), side="above")) == pytest.approx(s, abs=0.01)


@pytest.mark.parametrize("samples", [RNG.standard_normal(37), RNG.integers(-4, 5, 50), np.zeros(3), np.array([-5.0])])
def test_a_threshold_is_the_least_that_is_sparse_enough(samples):
    samples = samples * 1.0
    sizes = np.unique(np.abs(samples))
    for s in (0.01, 0.1, 0.29, 0.5, 0.7, 0.99, 1.0):
        t = threshold(samples, s)
        enough = [u for u in sizes if np.mean(np.abs(samples) <= u) >= s]
        assert t == min(enough)
        assert achieved_sparsity(sparsify(samples, t, side="above")) >= s
        # From the threshold on those stay that equal it: of what is not zero less than the part becomes zero.
        assert np.mean(~beyond(samples, t, side="from")) < s
    assert threshold(samples, 0) == 0
    np.testing.assert_array_equal(sparsify(samples, 0, side="above"), samples)
    np.testing.assert_array_equal(sparsify(samples, 0, side="from"), samples)


@pytest.mark.parametrize("count", [10, 100, 1000])
def test_a_sparsity_in_decimals_counts_as_written(count):
    """0.07 * 100 is more than 7 in float64, and 0.29 * 100 less than 29."""
    samples = np.arange(1.0, count + 1)
    for k in range(1, count + 1):
        assert threshold(samples, k / count) == k
        assert threshold(samples, float(f"{k / count:.3f}")) == k


def test_the_sides_differ_at_the_threshold_alone():
    x = np.array([-2.0, -1.0, -0.0, 0.0, 1.0, np.nextafter(1.0, 2), 3.0])
    assert beyond(x, 1.0, side="above").tolist() == [True, False, False, False, False, True, True]
    assert beyond(x, 1.0, side="from").tolist() == [True, True, False, False, True, True, True]
    assert sparsify(x, 1.0, side=ThresholdSide.ABOVE).tolist() == [-2, 0, 0, 0, 0, x[5], 3]
    product_ = sparsify(x, 1.0, side="above", removal="product")
    assert np.signbit(product_).tolist() == [True, True, True, False, False, False, False]
    nan = sparsify(np.array([np.nan, 1.0]), 2.0, side="above", nan="largest")
    np.testing.assert_array_equal(nan, [np.nan, 0])


def test_cats():
    np.testing.assert_allclose(silu([-2.0, 0.0, 3.0, -800.0]), [-2 / (1 + np.exp(2)), 0, 3 / (1 + np.exp(-3)), 0])
    x, w = RNG.standard_normal((20, 8)), RNG.standard_normal((8, 15))
    v = gate_activations(x, w)
    z = x @ w
    np.testing.assert_allclose(v, z / (1 + np.exp(-z)), rtol=1e-12)
    for k in (0.3, 0.5, 0.9):
        t = cats_threshold(x, w, k)
        distribution = [np.mean(np.abs(v) <= u) for u in np.sort(np.abs(v), axis=None)]
        assert t == np.sort(np.abs(v), axis=None)[np.searchsorted(distribution, k)]
        stays = beyond(v, t, side="from")
        # Distinct magnitudes: all but the one at the threshold of the part that F counts.
        assert (~stays).sum() == np.ceil(k * v.size) - 1


def test_a_product_that_skips_zeros_is_the_dense_product_of_the_masked_vector():
    x = sparsify(RNG.standard_normal(64).astype(np.float32), 0.7, side="above")
    w = RNG.standard_normal((64, 9)).astype(np.float32)
    exact = [sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x, c, strict=True)) for c in w.T]
    np.testing.assert_array_equal(sparse_product(x, w), [float(e) for e in exact])
    w[x == 0] = np.nan
    np.testing.assert_array_equal(sparse_product(x, w), [float(e) for e in exact])
    whole, integers = RNG.integers(-9, 10, 64) * (RNG.random(64) < 0.5) * 1.0, RNG.integers(-9, 10, (64, 9)) * 1.0
    np.testing.assert_array_equal(sparse_product(whole, integers), whole @ integers)
    np.testing.assert_array_equal(sparse_product(np.array([0.0, -0.0]), np.full((2, 3), np.inf)), np.zeros(3))
    got = sparse_product(np.array([1.0, 0.0, -1.0]), np.array([[np.inf, 1, np.inf], [0, 0, 0], [2, 2, np.inf]]))
    np.testing.assert_array_equal(got, [np.inf, -1, np.nan])


# Bad input -----------------------------------------------------------------------------------------------------------

W = np.ones((4, 8))
BAD = np.where(np.arange(8) == 3, np.nan, W)
EMPTY = np.zeros((0, 8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Pattern(5, 4), r"^n: of m = 4 neighbours 1 to 4 can stay; got 5"),
        (lambda: Pattern(0, 4), "^n: of m = 4"),
        (lambda: Pattern(2, 4, 3), "^unit: 3 is not admissible"),
        (lambda: select(np.ones((8, 6))), r"^scores: the axis must be a multiple of 4 .* got a length of 6"),
        (lambda: select(np.ones((6, 8)), axis=0), "^scores: the axis must be a multiple of 4"),
        (lambda: select(np.ones((2, 12)), PATTERNS[4]), "^scores: the axis must be a multiple of 8"),
        (lambda: select(W, axis=2), "^axis: 2 is none"),
        (lambda: select(BAD), "^scores: must not hold NaN"),
        (lambda: select(-W * np.inf), "^scores: must not be -inf"),
        (lambda: prune(BAD), "^w: must not hold NaN"),
        (lambda: prune(W, scores=np.ones(8)), r"^scores: has shape \(8,\), must be that of w"),
        (lambda: prune(EMPTY), "^w: must hold an element; an empty layer"),
        (lambda: select(EMPTY), "^scores: must hold an element"),
        (lambda: select(W, ties="first"), "^ties: 'first' is not admissible"),
        (lambda: admissible(W, W), "^mask: has shape .* bool"),
        (lambda: admissible(np.ones((4, 4), bool), W), "^mask: has shape"),
        (lambda: admissible(W > 0, W, bound=-1.0), "^bound: must not be negative"),
        (lambda: mask_bounds(W, bound=np.nan), "^bound: must not be negative, nor NaN"),
        (lambda: without(W, W), "^mask: has shape"),
        (lambda: admissible_weights(W[:2], W), "^pruned: has shape"),
        (lambda: kept_energy(W * np.inf, W > 0), "^w: must be finite"),
        (lambda: select_transposable(np.ones((6, 8))), "^scores: m = 4 must divide the last two axes"),
        (lambda: select_transposable(np.ones(8)), "^scores: m = 4 must divide the last two axes"),
        (lambda: select_transposable(W * np.inf), "^scores: must be finite"),
        (lambda: select_transposable(np.ones((8, 8)), Pattern(4, 8)), "^pattern: .* m at most 4"),
        (lambda: transposable_masks(PATTERNS[4]), "^pattern: .* units of 1"),
        (lambda: admissible_transposable(W, W), "^mask: has shape"),
        (lambda: grouping_count(6, 4), "^columns: m = 4 must divide them; got 6"),
        (lambda: groupings(16, 4), f"^columns: 16 have 2627625 groupings into 4; at most {MOST_GROUPINGS}"),
        (lambda: exhaustive(np.ones((2, 16))), "^columns: 16 have 2627625"),
        (lambda: search(np.ones((2, 6))), "^scores: must be a matrix, m = 4 a divisor"),
        (lambda: search(W, PATTERNS[4]), "^pattern: .* admissible: units of 1"),
        (lambda: search(-W), "^scores: must be finite and not negative"),
        (lambda: search(BAD), "^scores: must not hold NaN"),
        (lambda: search(EMPTY), "^scores: must hold an element"),
        (lambda: search(W, budget=-1), "^budget: must not be negative"),
        (lambda: kept_sum(W, permutation=np.zeros(8, int)), "^permutation: must hold each of 0 to 7 once"),
        (lambda: threshold(W, 1.1), r"^sparsity: must lie in \[0, 1\]; got 1.1"),
        (lambda: threshold(W, -0.1), "^sparsity: must lie in"),
        (lambda: threshold(W, np.nan), "^sparsity: must lie in"),
        (lambda: threshold(EMPTY, 0.5), "^samples: must hold an element"),
        (lambda: threshold(BAD, 0.5), "^samples: must not hold NaN"),
        (lambda: threshold(W * np.inf, 0.5), "^samples: must be finite"),
        (lambda: gaussian_threshold(2.0), "^sparsity: must lie in"),
        (lambda: gaussian_threshold(0.5, 0.0), "^deviation: must be positive"),
        (lambda: gate_activations(W, W), "^w_gate: has shape"),
        (lambda: beyond(W, -1.0, side="above"), "^threshold: must be a magnitude"),
        (lambda: beyond(W, np.nan, side="above"), "^threshold: must be a magnitude"),
        (lambda: beyond(BAD, 1.0, side="from"), "^x: must not hold NaN"),
        (lambda: beyond(W, 1.0, side="below"), "^side: 'below' is not admissible; admissible: above, from"),
        (lambda: achieved_sparsity(EMPTY), "^x: must hold an element"),
        (lambda: sparse_product(np.ones(3), W), "^w: has shape"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
