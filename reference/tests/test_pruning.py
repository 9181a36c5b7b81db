"""Pruning against torch.nn.utils.prune, brute force over masks, least squares, elimination, and smaller networks."""

import math
from itertools import combinations, pairwise

import numpy as np
import pytest

from lowbit_cts.reference.algorithms.gptq import problem, proxy_loss
from lowbit_cts.reference.pruning import schedules, structured
from lowbit_cts.reference.pruning.schedules import Scope, Steps, lottery_ticket, one_shot, zhu_gupta
from lowbit_cts.reference.pruning.sparsegpt import sparsegpt, sparsegpt_groups, sparsegpt_mask
from lowbit_cts.reference.pruning.structured import Bias, Layer, Norm, Size, masked, network, shrunk
from lowbit_cts.reference.pruning.unstructured import (
    CountRule,
    Examples,
    Ties,
    global_magnitude,
    lowest,
    lowest_of_all,
    lowest_of_groups,
    lowest_of_rows,
    magnitude,
    pruned_count,
    random_mask,
    scaler_row,
    snip,
    taylor_activations,
    taylor_filters,
    wanda,
    wanda_scores,
)

RNG = np.random.default_rng(17)
FRACTIONS = [0.0, 0.1, 0.25, 0.29, 0.5, 0.75, 0.9, 1.0]


def raises(argument: str, rule: str):
    return pytest.raises(ValueError, match=f"^{argument}: .*{rule}")


# Counts and ties -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "total", "half_even", "floor"),
    [
        (0.5, 5, 2, 2), (0.5, 7, 4, 3), (0.5, 1, 0, 0), (0.5, 3, 2, 1), (0.29, 100, 29, 28), (0.1, 15, 2, 1),
        (0.57, 100, 57, 56), (0.0, 9, 0, 0), (1.0, 9, 9, 9), (0.999, 9, 9, 8),
    ],
)  # fmt: skip
def test_what_a_fraction_is(fraction, total, half_even, floor):
    assert pruned_count(fraction, total) == half_even == round(fraction * total)
    assert pruned_count(fraction, total, count_rule="floor") == floor == int(total * fraction)


def test_an_integer_is_a_number_of_weights():
    assert [pruned_count(n, 5) for n in (0, 1, np.int64(3), 5)] == [0, 1, 3, 5]
    assert pruned_count(1.0, 5) == 5


@pytest.mark.parametrize("ties", [Ties.FIRST, Ties.LAST])
@pytest.mark.parametrize("count_rule", CountRule)
@pytest.mark.parametrize("fraction", FRACTIONS)
def test_exactly_the_count_goes_and_none_that_stays_is_smaller(fraction, count_rule, ties):
    for n in (1, 2, 7, 10, 64):
        w = RNG.integers(-3, 4, n) / 2.0
        kept = magnitude(w, fraction, count_rule=count_rule, ties=ties)
        assert n - kept.sum() == pruned_count(fraction, n, count_rule=count_rule)
        assert np.abs(w[~kept]).max(initial=0) <= np.abs(w[kept]).min(initial=np.inf)


def test_ties_fall_as_declared():
    w = np.array([[1.0, -1.0, 0.5], [2.0, 1.0, 1.0]])
    np.testing.assert_array_equal(magnitude(w, 3), [[False, False, False], [True, True, True]])
    np.testing.assert_array_equal(magnitude(w, 3, ties="last"), [[True, True, False], [True, False, False]])
    np.testing.assert_array_equal(magnitude(w, 1, ties="threshold"), [[False, False, False], [True, False, False]])
    np.testing.assert_array_equal(magnitude(w, 0, ties="threshold"), [[True, True, False], [True, True, True]])
    assert not magnitude(w, 6, ties="threshold").any()


@pytest.mark.parametrize("fraction", [f for f in FRACTIONS if f < 1])
def test_a_threshold_takes_one_more_than_the_count(fraction):
    """As written in Wanda's code for magnitudes: all up to the sorted magnitude at int(n s)."""
    w = RNG.standard_normal((6, 9))
    threshold = np.sort(np.abs(w), axis=None)[int(w.size * fraction)]
    found = magnitude(w, fraction, count_rule="floor", ties="threshold")
    np.testing.assert_array_equal(found, np.abs(w) > threshold)
    assert w.size - found.sum() == int(w.size * fraction) + 1


# Against PyTorch -----------------------------------------------------------------------------------------------------


@pytest.fixture
def prune():
    pytest.importorskip("torch")
    from torch.nn.utils import prune

    return prune


def module(w):
    import torch

    layer = torch.nn.Module()
    layer.weight = torch.nn.Parameter(torch.tensor(w))
    return layer


@pytest.mark.parametrize("amount", [*FRACTIONS, 0, 1, 7])
def test_magnitude_is_torch_s_l1_unstructured(prune, amount):
    for shape in ((5, 7), (3, 2, 3, 3), (9,)):
        w = RNG.standard_normal(shape)
        layer = prune.l1_unstructured(module(w), "weight", amount=amount)
        np.testing.assert_array_equal(magnitude(w, amount), layer.weight_mask.numpy() != 0)


def test_pruning_again_is_of_what_is_left(prune):
    w = RNG.standard_normal((9, 11))
    layer, kept = module(w), np.ones(w.shape, bool)
    for amount in (0.2, 0.5, 7, 0.33):
        prune.l1_unstructured(layer, "weight", amount=amount)
        kept = magnitude(w, amount, kept=kept)
        np.testing.assert_array_equal(kept, layer.weight_mask.numpy() != 0)


@pytest.mark.parametrize("amount", [*FRACTIONS, 20])
def test_global_magnitude_is_torch_s(prune, amount):
    weights = [RNG.standard_normal(shape) * size for shape, size in (((4, 6), 1.0), ((3, 2, 3, 3), 0.3), ((5,), 2.0))]
    layers = [module(w) for w in weights]
    kept = global_magnitude(weights, amount)
    parameters = [(layer, "weight") for layer in layers]
    prune.global_unstructured(parameters, pruning_method=prune.L1Unstructured, amount=amount)
    for mask, layer in zip(kept, layers, strict=True):
        np.testing.assert_array_equal(mask, layer.weight_mask.numpy() != 0)
    kept = global_magnitude(weights, 0.3, kept=kept)
    prune.global_unstructured(parameters, pruning_method=prune.L1Unstructured, amount=0.3)
    for mask, layer in zip(kept, layers, strict=True):
        np.testing.assert_array_equal(mask, layer.weight_mask.numpy() != 0)


@pytest.mark.parametrize(("norm", "n"), [(Norm.L1, 1), (Norm.L2, 2)])
@pytest.mark.parametrize("amount", [*FRACTIONS, 2])
def test_units_are_torch_s_ln_structured(prune, amount, norm, n):
    for shape in ((5, 7), (6, 5, 3, 3), (7, 3, 1, 2)):
        w = RNG.standard_normal(shape)
        for axis, unit in ((0, "filter"), (1, "channel")):
            kept = structured.lowest_units(structured.unit_norms(w, unit=unit, norm=norm), amount)
            layer = prune.ln_structured(module(w), "weight", amount=amount, n=n, dim=axis)
            other = tuple(i for i in range(w.ndim) if i != axis)
            np.testing.assert_array_equal(kept, layer.weight_mask.numpy().any(axis=other))


def test_half_of_five_units_are_two_that_go(prune):
    w = np.diag(np.arange(1.0, 6))
    kept = structured.lowest_units(structured.unit_norms(w, unit="neuron"), 0.5)
    np.testing.assert_array_equal(kept, [False, False, True, True, True])
    mask = prune.ln_structured(module(w), "weight", amount=0.5, n=1, dim=0).weight_mask.numpy()
    np.testing.assert_array_equal(mask.any(axis=1), kept)


def test_masking_the_weight_alone_leaves_the_bias(prune):
    """What a module pruned by PyTorch computes is the network whose biases were left, and so is the smaller one."""
    torch = pytest.importorskip("torch")
    first, second = torch.nn.Linear(4, 6, dtype=torch.float64), torch.nn.Linear(6, 3, dtype=torch.float64)
    layers = [Layer(part.weight.detach().numpy().copy(), part.bias.detach().numpy()) for part in (first, second)]
    kept = structured.lowest_units(structured.unit_norms(layers[0].w, unit="neuron", norm="l2"), 0.5)
    prune.ln_structured(first, "weight", amount=0.5, n=2, dim=0)
    x = RNG.standard_normal((8, 4))
    found = second(torch.sigmoid(first(torch.tensor(x)))).detach().numpy()
    small = shrunk(layers, [kept], sigmoid, bias="left")
    assert small[0].w.shape == (3, 4)
    np.testing.assert_allclose(network(small, x, sigmoid), found, rtol=1e-13)
    assert np.abs(network(shrunk(layers, [kept], sigmoid), x, sigmoid) - found).max() > 1e-3


# The baseline ---------------------------------------------------------------------------------------------------------


def test_random_masks_are_exact_seeded_and_even():
    assert np.array_equal(random_mask((5, 7), 0.5, seed=3), random_mask((5, 7), 0.5, seed=3))
    assert (~random_mask((5, 7), 0.5, seed=3)).sum() == round(17.5)
    seen = {}
    for seed in range(1200):
        mask = tuple(random_mask((2, 2), 0.5, seed=seed).ravel())
        seen[mask] = seen.get(mask, 0) + 1
    assert len(seen) == math.comb(4, 2)
    assert all(abs(count - 200) < 5 * np.sqrt(200 * 5 / 6) for count in seen.values())


# Gradient scores ------------------------------------------------------------------------------------------------------


def test_taylor_s_scores_are_exact_of_a_loss_that_is_linear():
    """Removing a channel, or a filter, then changes the loss by exactly the sum of a dL/da, or of g w."""
    a, g = RNG.integers(-4, 5, (1, 5, 3, 3)) * 1.0, RNG.integers(-4, 5, (1, 5, 3, 3)) * 1.0
    scores = taylor_activations(a, g, normalised=False)
    squares = taylor_filters(a[0], g[0])
    for channel in range(5):
        without = a.copy()
        without[:, channel] = 0
        change = np.sum(g * a) - np.sum(g * without)
        assert scores[channel] * 9 == pytest.approx(abs(change), abs=1e-12)
        assert squares[channel] == change**2


def test_taylor_s_examples_are_averaged_after_their_magnitudes():
    a, g = np.array([[1.0, 2.0], [1.0, 2.0]]), np.array([[3.0, 1.0], [-3.0, 1.0]])
    np.testing.assert_array_equal(taylor_activations(a, g, normalised=False), [3.0, 2.0])
    np.testing.assert_array_equal(taylor_activations(a, g, examples=Examples.TOGETHER, normalised=False), [0.0, 2.0])
    np.testing.assert_allclose(taylor_activations(a, g), np.array([3, 2]) / np.sqrt(13), rtol=1e-15)
    assert not taylor_activations(a, np.zeros((2, 2))).any()


def test_a_filter_s_score_is_not_the_sum_of_its_weights_scores():
    assert taylor_filters(np.array([[1.0, 1.0]]), np.array([[2.0, -2.0]]))[0] == 0


def test_snip_is_the_gradient_by_gates():
    """|dL / dc| at c = 1 of weights c w, by autograd; its shares of all layers sum to 1."""
    torch = pytest.importorskip("torch")
    weights = [torch.tensor(RNG.standard_normal(shape), requires_grad=True) for shape in ((6, 4), (3, 6))]
    gates = [torch.ones_like(w, requires_grad=True) for w in weights]
    x, y = torch.tensor(RNG.standard_normal((10, 4))), torch.tensor(RNG.integers(0, 3, 10))

    def loss():
        hidden = torch.relu(x @ (gates[0] * weights[0]).T)
        return torch.nn.functional.cross_entropy(hidden @ (gates[1] * weights[1]).T, y)

    by_gates = torch.autograd.grad(loss(), gates)
    by_weights = torch.autograd.grad(loss(), weights)
    scores = snip([w.detach().numpy() for w in weights], [g.numpy() for g in by_weights])
    total = sum(float(g.abs().sum()) for g in by_gates)
    for score, gate in zip(scores, by_gates, strict=True):
        np.testing.assert_allclose(score, np.abs(gate.numpy()) / total, rtol=1e-12)
    assert sum(score.sum() for score in scores) == pytest.approx(1)
    kept = lowest_of_all(scores, 0.5)
    assert sum(mask.sum() for mask in kept) == 21
    cut = np.sort(np.concatenate([score.ravel() for score in scores]))[21]
    assert all(np.array_equal(mask, score >= cut) for mask, score in zip(kept, scores, strict=True))


# Wanda ----------------------------------------------------------------------------------------------------------------


def test_wanda_s_score_is_what_one_weight_changes_the_outputs_by():
    x, w = RNG.standard_normal((20, 6)) * [1, 5, 0.1, 2, 1, 0], RNG.standard_normal((3, 6))
    scores = wanda_scores(w, scaler_row(x))
    for row, column in np.ndindex(w.shape):
        without = w.copy()
        without[row, column] = 0
        assert scores[row, column] == pytest.approx(np.linalg.norm(x @ w.T - x @ without.T), rel=1e-12, abs=1e-12)


def test_wanda_is_optimal_where_channels_are_orthogonal():
    """Every mask of the count is tried: H is diagonal, so that errors add."""
    w = RNG.standard_normal((4, 7))
    x = np.linalg.qr(RNG.standard_normal((12, 7)))[0] * [3, 1, 0.2, 2, 5, 1, 0.5]
    kept = wanda(w, scaler_row(x), 0.5)
    assert (kept.sum(axis=1) == 4).all()  # int(3.5) go
    for row in range(4):
        errors = {gone: float(np.sum((x[:, gone] @ w[row, list(gone)]) ** 2)) for gone in combinations(range(7), 3)}
        assert tuple(np.flatnonzero(~kept[row])) == min(errors, key=errors.get)


def test_wanda_does_not_depend_on_the_number_of_sequences_and_is_stable():
    x, w = RNG.standard_normal((20, 16)), RNG.standard_normal((5, 16))
    np.testing.assert_array_equal(wanda(w, scaler_row(x), 0.6), wanda(w, scaler_row(x, sequences=4), 0.6))
    np.testing.assert_array_equal(wanda(np.ones((1, 4)), np.ones(4), 0.5), [[False, False, True, True]])
    np.testing.assert_array_equal(wanda(np.ones((1, 4)), np.ones(4), 0.5, ties="last"), [[True, True, False, False]])
    np.testing.assert_array_equal(lowest_of_rows(np.abs(w), 0.6), wanda(w, np.ones(16), 0.6))


@pytest.mark.parametrize(("pruned", "group"), [(2, 4), (1, 4), (4, 8), (0, 4), (4, 4)])
def test_of_every_group_the_lowest_go(pruned, group):
    scores = RNG.permutation(6 * 16).reshape(6, 16)
    kept = lowest_of_groups(scores, pruned, group)
    for part, mask in zip(scores.reshape(-1, group), kept.reshape(-1, group), strict=True):
        assert mask.sum() == group - pruned
        assert part[mask].sum() == max(sum(c) for c in combinations(part.tolist(), group - pruned))
    np.testing.assert_array_equal(lowest_of_groups(np.ones((1, 4)), 1, 4), [[False, True, True, True]])
    np.testing.assert_array_equal(lowest_of_groups(np.ones((1, 4)), 1, 4, ties="last"), [[True, True, True, False]])


# SparseGPT ------------------------------------------------------------------------------------------------------------


def layer(seed=0, n=6, k=24):
    """Return weights and a Hessian of correlated samples."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((k, k)) @ rng.standard_normal((k, 5 * k)) + rng.standard_normal((k, 5 * k))
    h = 2 / (5 * k) * x @ x.T
    return rng.standard_normal((n, k)), (h + h.T) / 2


def eliminated(w, h, width, choose, damping=0.01):
    """Return weights and mask with no factor at all: column j is removed from the inverse of what is left of H."""
    h = h + damping * np.mean(np.diag(h)) * np.eye(len(h))
    left, kept = w.astype(float), np.ones(w.shape, bool)
    inverses = [np.linalg.inv(h[j:, j:]) for j in range(len(h))]
    for j in range(len(h)):
        if j % width == 0:
            columns = slice(j, j + width)
            kept[:, columns] = choose(left[:, columns] ** 2 / [inverse[0, 0] for inverse in inverses[columns]])
        for row in np.flatnonzero(~kept[:, j]):
            left[row, j:] -= left[row, j] / inverses[j][0, 0] * inverses[j][0]
            left[row, j] = 0
    return left, kept


def by_threshold(fraction):
    return lambda scores: scores > np.sort(scores, axis=None)[int(scores.size * fraction)]


def two_of_four(scores):
    return scores > np.sort(scores, axis=1)[:, 1:2]


@pytest.mark.parametrize("block", [1, 5, 8, 128])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 0.8])
def test_sparsegpt_is_elimination_column_by_column(fraction, block):
    for seed in range(2):
        w, h = layer(seed)
        found = sparsegpt(w, h, fraction, block=block)
        left, kept = eliminated(w, h, block, by_threshold(fraction))
        np.testing.assert_array_equal(found.kept, kept)
        np.testing.assert_allclose(found.w, left, rtol=1e-9, atol=1e-11)
        assert not found.w[~kept].any()


def test_groups_are_decided_by_weights_that_have_moved():
    w, h = layer(3, n=40)
    found = sparsegpt_groups(w, h, 2, 4)
    left, kept = eliminated(w, h, 4, two_of_four)
    np.testing.assert_array_equal(found.kept, kept)
    np.testing.assert_allclose(found.w, left, rtol=1e-9, atol=1e-11)
    assert (kept.reshape(40, -1, 4).sum(axis=2) == 2).all()
    still = lowest_of_groups(w**2 / np.diag(problem(w, h, damping=0.01).u) ** 2, 2, 4)
    assert not np.array_equal(kept, still)


def test_rows_are_by_themselves_in_groups_and_together_in_blocks():
    w, h = layer(4)
    w[0] *= 100
    for row in range(len(w)):
        one = sparsegpt_groups(w[row : row + 1], h, 2, 4)
        np.testing.assert_allclose(one.w, sparsegpt_groups(w, h, 2, 4).w[row : row + 1], rtol=1e-12)
    assert sparsegpt(w, h, 0.5).kept[0].sum() > 20


@pytest.mark.parametrize(("ties", "more"), [("threshold", 1), ("first", 0), ("last", 0)])
@pytest.mark.parametrize("fraction", [0.0, 0.37, 0.5, 0.9])
def test_the_count_of_every_block(fraction, ties, more):
    w, h = layer(5, n=5, k=20)
    found = sparsegpt(w, h, fraction, block=8, ties=ties)
    for columns in (slice(0, 8), slice(8, 16), slice(16, 20)):
        part = found.kept[:, columns]
        assert part.size - part.sum() == int(part.size * fraction) + more
    assert not sparsegpt(w, h, 1.0).w.any()


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_the_sum_of_squares_whatever_the_mask(seed):
    w, h = layer(seed)
    masks = [np.random.default_rng(seed).random(w.shape) < share for share in (0.0, 0.3, 0.9, 1.0)]
    results = [sparsegpt_mask(w, h, mask) for mask in masks]
    results += [sparsegpt(w, h, 0.5), sparsegpt(w, h, 0.7, block=5), sparsegpt_groups(w, h, 2, 4)]
    damped = problem(w, h, damping=0.01).h
    for found in results:
        assert proxy_loss(w, found.w, damped) == pytest.approx(np.sum(found.errors**2), rel=1e-10)
    np.testing.assert_array_equal(results[0].w, 0)
    assert np.sum(results[0].errors ** 2) == pytest.approx(np.einsum("nk,kl,nl", w, damped, w))


def best(w, h, kept):
    """Return the least loss of any row weights that are zero outside a mask: least squares on the kept ones."""
    factor = np.linalg.cholesky(h)  # |L^T (w - q)|^2
    left, _, _, _ = np.linalg.lstsq(factor.T[:, kept], factor.T @ w, rcond=None)
    missed = factor.T @ w - factor.T[:, kept] @ left
    return float(missed @ missed)


@pytest.mark.parametrize("seed", range(3))
def test_least_squares_on_the_kept_weights_bounds_the_loss(seed):
    w, h = layer(seed, n=1, k=8)
    damped = problem(w, h, damping=0.01).h
    losses = {}
    for kept in np.array(np.meshgrid(*[[False, True]] * 8)).reshape(8, -1).T:
        loss = float(np.sum(sparsegpt_mask(w, h, kept[None]).errors ** 2))
        least = best(w[0], damped, kept)
        assert loss >= least * (1 - 1e-9) - 1e-12
        if not kept[: np.argmax(kept)].any() and kept[np.argmax(kept) :].all():
            assert loss == pytest.approx(least, rel=1e-9, abs=1e-12)  # pruned first, kept last
        losses[tuple(kept)] = least
    found = sparsegpt(w, h, 0.5, ties="first")
    optimum = min(loss for kept, loss in losses.items() if sum(kept) == 4)
    assert optimum * (1 - 1e-9) <= np.sum(found.errors**2)


def test_updates_are_worth_it_on_masks_it_chose():
    for seed in range(10):
        w, h = layer(seed, n=8, k=16)
        damped = problem(w, h, damping=0.01).h
        for found in (sparsegpt(w, h, 0.5), sparsegpt_groups(w, h, 2, 4)):
            assert proxy_loss(w, found.w, damped) < 0.9 * proxy_loss(w, w * found.kept, damped)


def test_updates_may_be_worse_than_none_with_a_mask_of_someone_else():
    """A weight moved for one that is gone, and wrongly for one that goes later: no theorem says otherwise."""
    v = np.array([[1.0, 1.0, -1.0], [0.0, 1.0, 3.0], [0.0, 0.0, 1.0]])
    w, kept = np.ones((1, 3)), np.array([[False, True, False]])
    found = sparsegpt_mask(w, v @ v.T, kept, damping=0.0)
    np.testing.assert_allclose(found.w, [[0, 2, 0]])
    assert proxy_loss(w, found.w, v @ v.T) == pytest.approx(10)
    assert proxy_loss(w, w * kept, v @ v.T) == pytest.approx(2)


@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("block", [4, 10, 128])
def test_with_nothing_correlated_it_is_magnitude_pruning_and_nothing_else(block, damping):
    w, _ = layer(6, n=7, k=20)
    found = sparsegpt(w, np.eye(20), 0.6, damping=damping, block=block, ties="first")
    for start in range(0, 20, block):
        part = slice(start, start + block)
        np.testing.assert_array_equal(found.kept[:, part], magnitude(w[:, part], 0.6, count_rule="floor"))
    np.testing.assert_array_equal(found.w, w * found.kept)
    np.testing.assert_array_equal(
        sparsegpt_groups(w, np.eye(20), 2, 4, damping=damping).kept, lowest_of_groups(np.abs(w), 2, 4)
    )


def test_with_a_diagonal_hessian_its_scores_are_wanda_s():
    w, size = RNG.standard_normal((6, 16)), RNG.uniform(0.1, 9, 16)
    found = sparsegpt(w, np.diag(size), 0.5, damping=0.0, ties="first")
    np.testing.assert_array_equal(found.kept, lowest(wanda_scores(w, size), 0.5, count_rule="floor"))
    np.testing.assert_array_equal(found.w, w * found.kept)


def test_the_scale_of_the_hessian_changes_nothing_and_dead_columns_go_first():
    w, h = layer(7)
    np.testing.assert_array_equal(sparsegpt(w, h, 0.5).w, sparsegpt(w, h * 2.0**20, 0.5).w)
    h[5], h[:, 5] = 0, 0
    found = sparsegpt(w, h, 0.25, ties="first")
    assert not found.kept[:, 5].any()
    assert not found.w[:, 5].any()
    assert (~found.kept).sum() == 36


# Structured -----------------------------------------------------------------------------------------------------------


def test_norms_against_loops():
    w = RNG.standard_normal((4, 3, 2, 2))
    for norm, power in ((Norm.L1, 1), (Norm.L2, 2)):
        filters = [sum(abs(v) ** power for v in w[i].ravel()) ** (1 / power) for i in range(4)]
        channels = [sum(abs(v) ** power for v in w[:, i].ravel()) ** (1 / power) for i in range(3)]
        np.testing.assert_allclose(structured.unit_norms(w, unit="filter", norm=norm), filters, rtol=1e-14)
        np.testing.assert_allclose(structured.unit_norms(w, unit="channel", norm=norm), channels, rtol=1e-14)
    assert structured.layer_norms([np.full(9, 2.0), np.full((2, 2), 3.0)], norm="l2").tolist() == [2.0, 3.0]
    assert structured.layer_norms([np.full(9, 2.0), np.full(2, 3.0)], size=Size.TOTAL).tolist() == [18.0, 6.0]


def sigmoid(x):
    """Return what is not zero at zero; of PyTorch tensors, too."""
    return 1 / (1 + np.exp(-x))


def steep(x):
    """Return integers of integers, and 3 of zero."""
    return np.maximum(2 * x, -x) + 3.0


def integers(*shape):
    return RNG.integers(-4, 5, shape) * 1.0


LINEAR = [Layer(integers(*shape), integers(shape[0])) for shape in ((8, 5), (7, 8), (6, 7), (3, 6))]
CONVOLUTIONS = [
    Layer(integers(5, 2, 3, 3), integers(5), padding=1),
    Layer(integers(4, 5, 3, 3), integers(4), stride=2),
    Layer(integers(6, 4, 1, 1), integers(6)),
    Layer(integers(3, 6 * 2 * 2), integers(3)),
]
NETWORKS = [(LINEAR, (9, 5)), (CONVOLUTIONS, (2, 2, 6, 6))]


@pytest.mark.parametrize("activation", [structured.relu, steep])
@pytest.mark.parametrize("bias", Bias)
@pytest.mark.parametrize(("layers", "shape"), NETWORKS, ids=["linear", "convolutions"])
def test_the_smaller_network_is_the_masked_one_bit_for_bit(layers, shape, bias, activation):
    """Integers throughout, so that no sum is rounded whatever its order."""
    x = integers(*shape)
    for amount in (0.0, 0.3, 0.5, 0.8):
        kept = [structured.lowest_units(structured.unit_norms(part.w, unit="filter"), amount) for part in layers[:-1]]
        small = shrunk(layers, kept, activation, bias=bias)
        expected = network(masked(layers, kept, bias=bias), x, activation)
        np.testing.assert_array_equal(network(small, x, activation), expected)
        assert [len(part.w) for part in small[:-1]] == [mask.sum() for mask in kept]
        weights = sum(part.w.size for part in layers)
        assert sum(part.w.size for part in small) == weights if amount == 0 else sum(p.w.size for p in small) < weights
        if amount:
            assert not np.array_equal(expected, network(layers, x, activation))


@pytest.mark.parametrize(("layers", "shape"), NETWORKS, ids=["linear", "convolutions"])
def test_networks_are_pytorch_s(layers, shape):
    torch = pytest.importorskip("torch")
    x = integers(*shape)
    y = torch.tensor(x)
    for number, part in enumerate(layers):
        y = torch.relu(y) if number else y
        w, b = torch.tensor(part.w), torch.tensor(part.bias)
        if part.convolution:
            y = torch.nn.functional.conv2d(y, w, b, stride=part.stride, padding=part.padding)
        else:
            y = torch.nn.functional.linear(y.flatten(1), w, b)
    np.testing.assert_array_equal(network(layers, x), y.numpy())


def test_padding_forbids_a_unit_that_puts_something_out():
    layers = [Layer(integers(3, 2, 3, 3), integers(3)), Layer(integers(2, 3, 3, 3), integers(2), padding=1)]
    kept = [np.array([True, False, True])]
    x = integers(1, 2, 6, 6)
    np.testing.assert_array_equal(network(shrunk(layers, kept), x), network(masked(layers, kept), x))
    with pytest.raises(ValueError, match=r"layers\[1\]: its padding must be 0"):
        shrunk(layers, kept, steep)


def attention(x, q, k, v, o, heads):
    """Return attention by its definition, a head and a query at a time."""
    size, found = len(q) // heads, np.zeros((len(x), len(o)))
    for head in range(heads):
        rows = slice(head * size, (head + 1) * size)
        logits = (x @ q[rows].T) @ (x @ k[rows].T).T / np.sqrt(size)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        found += weights / weights.sum(axis=1, keepdims=True) @ (x @ v[rows].T) @ o[:, rows].T
    return found


def test_heads():
    q, k, v = RNG.standard_normal((3, 12, 7)) * np.repeat([1, 0.1, 3, 0.5], 3)[:, None]
    o, x = RNG.standard_normal((7, 12)), RNG.standard_normal((5, 7))
    norms = structured.head_norms(q, k, v, o, 4, norm="l2")
    rows = [slice(3 * h, 3 * h + 3) for h in range(4)]
    expected = [np.sqrt(sum(np.sum(p[r] ** 2) for p in (q, k, v)) + np.sum(o[:, r] ** 2)) for r in rows]
    np.testing.assert_allclose(norms, expected, rtol=1e-14)
    kept = structured.lowest_units(norms, 0.5)
    np.testing.assert_array_equal(kept, [True, False, True, False])
    small = structured.shrunk_heads(q, k, v, o, kept)
    assert small[0].shape == (6, 7)
    without = o * np.repeat(kept, 3)
    np.testing.assert_allclose(attention(x, *small, 2), attention(x, q, k, v, without, 4), rtol=1e-12)


# Schedules ------------------------------------------------------------------------------------------------------------


def test_zhu_and_gupta_s_values():
    found = [zhu_gupta(step, final=0.9, steps=100, interval=1) for step in (0, 25, 50, 75, 100)]
    np.testing.assert_allclose(found, [0, 0.520313, 0.7875, 0.885938, 0.9], atol=5e-7)


def test_it_holds_between_prunings_and_ends_where_declared():
    def trace(counted):
        return [zhu_gupta(t, final=0.8, initial=0.2, begin=10, interval=5, steps=4, counted=counted) for t in range(40)]

    intervals, prunings = trace(Steps.INTERVALS), trace("prunings")
    assert intervals[:15] == prunings[:15] == [0.2] * 15
    assert np.flatnonzero(np.diff(intervals)).tolist() == [14, 19, 24, 29]  # at 15, 20, 25, 30
    assert np.flatnonzero(np.diff(prunings)).tolist() == [14, 19, 24]
    assert intervals[30:] == [0.8] * 10
    assert prunings[25:] == [0.8] * 15
    assert intervals[20] == pytest.approx(0.8 - 0.6 / 8)
    assert np.all(np.diff(intervals) >= 0)


def test_one_shot():
    assert [one_shot(step, final=0.7, begin=3) for step in range(6)] == [0, 0, 0, 0.7, 0.7, 0.7]
    assert schedules.density(0.2, 10) == pytest.approx(0.107374, abs=5e-7)
    assert schedules.density(schedules.rate_of_rounds(0.9, 7), 7) == pytest.approx(0.1)


def training(weights, kept, step):
    """Return steps 0 to 6 of a descent to a target, each by a half of what is missing; masks are ignored."""
    path = [weights]
    for number in range(step, 6):
        targets = [np.cos(np.arange(w.size) * (i + 1.0)).reshape(w.shape) * 3 for i, w in enumerate(weights)]
        path.append([w + (target - w) / (number + 2) for w, target in zip(path[-1], targets, strict=True)])
    return path


THETA = [np.random.default_rng(5).standard_normal(shape) for shape in ((40, 25), (10, 40), (50,))]


@pytest.mark.parametrize("scope", Scope)
@pytest.mark.parametrize("rewind", [0, 2])
def test_lottery_tickets_are_rewound_to_the_same_weights(rewind, scope):
    seen = []

    def watched(weights, kept, step):
        seen.append(step)
        return training(weights, kept, step)

    trace = lottery_ticket(THETA, watched, rate=0.2, rounds=10, rewind=rewind, scope=scope)
    anchor = training(THETA, None, 0)[rewind]
    assert seen == [0] + [rewind] * 10
    assert trace[0].density == 1
    for number, (before, after) in enumerate(pairwise(trace), start=1):
        for theta, old, new, start, trained in zip(
            anchor, before.kept, after.kept, after.start, before.trained, strict=True
        ):
            assert not (new & ~old).any()
            np.testing.assert_array_equal(start, np.where(new, theta, 0))
            assert not trained[~old].any()
            if scope is Scope.LOCAL:
                assert new.sum() == old.sum() - round(0.2 * old.sum())
                assert np.abs(trained[old & ~new]).max() <= np.abs(trained[new]).min()
        assert after.density == pytest.approx(0.8**number, abs=number * 2 / 1450)
    assert trace[-1].density == pytest.approx(0.107374, abs=2e-3)
    if scope is Scope.GLOBAL:
        kept = [np.concatenate([mask.ravel() for mask in part.kept]) for part in trace]
        for old, new, part in zip(kept, kept[1:], trace, strict=False):
            trained = np.abs(np.concatenate([w.ravel() for w in part.trained]))
            assert new.sum() == old.sum() - round(0.2 * old.sum())
            assert trained[old & ~new].max() <= trained[new].min()


# Bad input ------------------------------------------------------------------------------------------------------------

W = np.ones((2, 4))
NAN = np.array([[1.0, np.nan, 1.0, 1.0]] * 2)
NET = [Layer(W, np.zeros(2)), Layer(np.ones((3, 2)), np.zeros(3))]
BOTH = np.array([True, True])


@pytest.mark.parametrize(
    ("call", "argument", "rule"),
    [
        (lambda: magnitude(W, 1.1), "amount", r"must lie in \[0, 1\]"),
        (lambda: magnitude(W, -0.1), "amount", r"must lie in \[0, 1\]"),
        (lambda: magnitude(W, math.nan), "amount", r"must lie in \[0, 1\]"),
        (lambda: magnitude(W, 9), "amount", "0 to 8"),
        (lambda: magnitude(W, -1), "amount", "0 to 8"),
        (lambda: magnitude(np.ones((0, 4)), 0.5), "w", "must hold a value or more"),
        (lambda: magnitude(NAN, 0.5), "w", "must be finite"),
        (lambda: magnitude(W, 0.5, ties="second"), "ties", "'second' is not admissible"),
        (lambda: magnitude(W, 0.5, count_rule="ceil"), "count_rule", "'ceil' is not admissible"),
        (lambda: magnitude(W, 0.5, kept=np.ones((2, 4))), "kept", "mask of bool"),
        (lambda: magnitude(W, 0.5, kept=np.ones((2, 3), bool)), "kept", "mask of bool"),
        (lambda: global_magnitude([], 0.5), "scores", "a layer or more"),
        (lambda: global_magnitude([W], 0.5, kept=[]), "kept", "shapes of scores"),
        (lambda: random_mask((3, 0), 0.5, seed=0), "scores", "a value or more"),
        (lambda: lowest_of_groups(W, 2, 3), "group", "must divide the 4 columns"),
        (lambda: lowest_of_groups(W, 5, 4), "pruned", "0 to 4"),
        (lambda: lowest_of_groups(W, 2, 4, ties="threshold"), "ties", "first, last"),
        (lambda: lowest_of_rows(np.ones(3), 0.5), "scores", "must be a matrix"),
        (lambda: taylor_activations(W, np.ones((2, 3))), "gradients", "must have that of activations"),
        (lambda: taylor_activations(np.ones(3), np.ones(3)), "activations", "examples by channels"),
        (lambda: taylor_filters(W, NAN), "gradients", "must be finite"),
        (lambda: snip([W], []), "gradients", "as many layers"),
        (lambda: snip([W], [0 * W]), "gradients", "nothing ranks"),
        (lambda: wanda(W, np.ones(3), 0.5), "scaler_row", "sums of squares"),
        (lambda: wanda(W, -np.ones(4), 0.5), "scaler_row", "not negative"),
        (lambda: scaler_row(W, sequences=0), "sequences", "at least 1"),
        (lambda: sparsegpt(W, np.eye(4), 1.5), "amount", r"\[0, 1\]"),
        (lambda: sparsegpt(W, np.eye(4), 0.5, block=0), "block", "at least 1"),
        (lambda: sparsegpt(W, np.eye(3), 0.5), "hessian", "must be square"),
        (lambda: sparsegpt(np.ones((0, 4)), np.eye(4), 0.5), "w", "a value or more"),
        (lambda: sparsegpt(W, np.eye(4), 0.5, damping=-1), "damping", "at least 0"),
        (lambda: sparsegpt_groups(W, np.eye(4), 2, 3), "group", "must divide"),
        (lambda: sparsegpt_groups(W, np.eye(4), 2, 4, ties="threshold"), "ties", "first, last"),
        (lambda: sparsegpt_mask(W, np.eye(4), W), "kept", "mask of bool"),
        (lambda: structured.unit_norms(W, unit="block"), "unit", "admissible: filter, neuron, channel, input"),
        (lambda: structured.unit_norms(np.ones(3), unit="filter"), "w", "axes of outputs and inputs"),
        (lambda: structured.unit_norms(W, unit="filter", norm="l3"), "norm", "admissible: l1, l2"),
        (lambda: structured.head_norms(W, W, W, W.T, 3), "heads", "must divide the 2 rows"),
        (lambda: structured.head_norms(W, W, W, W, 2), "k, v, o", "rows of q|has rows"),
        (lambda: structured.layer_norms([]), "weights", "a layer or more"),
        (lambda: structured.lowest_units(W, 0.5), "norms", "must be a vector"),
        (lambda: structured.lowest_units(np.ones(3), 0.5, ties="threshold"), "ties", "first, last"),
        (lambda: structured.lowest_units(np.ones(3), 1.5), "amount", r"\[0, 1\]"),
        (lambda: Layer(np.ones(3), np.ones(3)), "w", r"must be \(N, K\)"),
        (lambda: Layer(W, np.ones(3)), "bias", r"shape \(2,\)"),
        (lambda: Layer(W, np.ones(2), stride=0), "stride, padding", "at least 1 and 0"),
        (lambda: masked(NET, []), "kept", "every layer but the last"),
        (lambda: masked(NET, [np.ones(3, bool)]), r"kept\[0\]", "the 2 outputs"),
        (lambda: shrunk(NET, [~BOTH]), r"kept\[0\]", "must keep a unit or more"),
        (lambda: shrunk(NET[::-1], [np.ones(3, bool)]), r"layers\[1\]", "must have those of the 3 outputs"),
        (lambda: shrunk([NET[0], CONVOLUTIONS[0]], [BOTH]), r"layers\[1\]", "cannot follow a linear layer"),
        (lambda: structured.shrunk_heads(W, W, W, W.T, np.ones(2)), "kept", "mask of bool"),
        (lambda: zhu_gupta(0, final=1.1, steps=3), "final", r"\[0, 1\]"),
        (lambda: zhu_gupta(0, final=0.5, initial=0.6, steps=3), "initial", "at most final"),
        (lambda: zhu_gupta(0, final=0.5, steps=0), "steps", "at least 1"),
        (lambda: zhu_gupta(0, final=0.5, steps=1, interval=0), "interval", "at least 1"),
        (lambda: zhu_gupta(-1, final=0.5, steps=1), "step", "at least 0"),
        (lambda: zhu_gupta(0, final=0.5, steps=1, counted="both"), "counted", "intervals, prunings"),
        (lambda: schedules.density(1.5, 1), "rate", r"\[0, 1\]"),
        (lambda: schedules.density(0.5, -1), "rounds", "at least 0"),
        (lambda: schedules.rate_of_rounds(0.5, 0), "rounds", "at least 1"),
        (lambda: lottery_ticket([], training, rate=0.2, rounds=1), "initial", "a layer or more"),
        (lambda: lottery_ticket([W], training, rate=2, rounds=1), "rate", r"\[0, 1\]"),
        (lambda: lottery_ticket([W], training, rate=0.2, rounds=1, rewind=7), "rewind", "0 to 6"),
        (lambda: lottery_ticket([W], lambda w, *_: [[w[0] + 1]], rate=0.2, rounds=1), "train", "given first"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(call, argument, rule):
    with raises(argument, rule):
        call()
