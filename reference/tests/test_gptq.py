"""GPTQ held against theorems: the loss is the sum of squared errors, nearest planes, round to nearest, equivariance."""

import numpy as np
import pytest

from lowbit_cts.kernels.numpy.gptq import quantize_gptq
from lowbit_cts.reference.algorithms.gptq import (
    Grid,
    Quantized,
    gptq,
    problem,
    proxy_loss,
    weight_range,
)
from lowbit_cts.reference.algorithms.gptq_path import path_enclosures

GRIDS = [
    Grid(4),
    Grid(2, symmetric=True),
    Grid(3, group_size=16),
    Grid(4, group_size=12, symmetric=True),
    Grid(8, group_size=16, act_order=True),
    Grid(3, group_size=16, static_groups=True, act_order=True),
    Grid(5, group_size=100, static_groups=True),
]
IDS = [f"{i}-{grid.bits}" for i, grid in enumerate(GRIDS)]


def layer(seed=0, n=6, k=40, spread=3.0):
    """Return weights and a Hessian of correlated calibration samples, values of float32."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((k, k)) @ rng.standard_normal((k, 5 * k)) / np.sqrt(k)
    x = (mixed + rng.standard_normal((k, 5 * k))) * np.exp(rng.uniform(0, np.log(spread), (k, 1)))
    h = np.float32(2 / (5 * k) * x @ x.T)
    return np.float32(rng.standard_normal((n, k))), np.maximum(h, h.T)


def textbook(w, h, scale, zero, largest, damping):
    """Return codes and errors of the recursion on the inverse Hessian itself, a row and a column at a time.

    After a column is done it is eliminated from the inverse (a step of Gauss), with no factorization at all.
    """
    h = h.astype(np.float64) + damping * np.mean(np.diag(h)) * np.eye(len(h))
    codes, errors = np.zeros(w.shape, np.int64), np.zeros(w.shape)
    for row in range(len(w)):
        left, inverse = w[row].astype(np.float64), np.linalg.inv(h)
        for j in range(len(left)):
            codes[row, j] = min(max(round(left[j] / scale[row]) + zero[row], 0), largest)
            missed = left[j] - (codes[row, j] - zero[row]) * scale[row]
            errors[row, j] = missed / np.sqrt(inverse[j, j])
            left -= missed / inverse[j, j] * inverse[j]
            inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes, errors


def of_rows(w, bits, symmetric=False):
    low, high = weight_range(w.astype(np.float64), symmetric)
    scale = np.float32((high - low) / (2**bits - 1)).astype(np.float64)
    zero = np.full(len(w), 2 ** (bits - 1)) if symmetric else np.rint(-low / scale).astype(np.int64)
    return scale, zero


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_those_of_the_recursion_on_the_inverse(bits, symmetric):
    w, h = layer(bits)
    scale, zero = of_rows(w, bits, symmetric)
    codes, errors = textbook(w, h, scale, zero, 2**bits - 1, 0.01)
    found = gptq(w, h, Grid(bits, symmetric))
    np.testing.assert_array_equal(found.codes, codes)
    np.testing.assert_array_equal(found.scale[:, 0], scale)
    damped = problem(w, h, damping=0.01).h
    assert proxy_loss(w, found.dequantized(), damped) == pytest.approx(np.sum(errors**2), rel=1e-9)


def test_the_loss_is_the_sum_of_squared_errors_whatever_the_codes():
    """Of random codes, clipped ones among them: errors as the recursion defines them for the codes that were taken."""
    w, h = layer(3)
    rng = np.random.default_rng(0)
    known = problem(w, h, damping=0.01)
    dequantized = w + rng.uniform(-2, 2, w.shape)
    left, total = w.astype(np.float64), 0.0
    for j in range(w.shape[1]):
        error = (left[:, j] - dequantized[:, j]) / known.u[j, j]
        left = left - np.outer(error, known.u[j])
        total += np.sum(error**2)
    assert proxy_loss(w, dequantized, known.h) == pytest.approx(total, rel=1e-10)


@pytest.mark.parametrize("damping", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
def test_an_identity_gives_round_to_nearest(grid, damping):
    w, _ = layer(5)
    h = 4.0 * np.eye(w.shape[1], dtype=np.float32)
    found = gptq(w, h, grid, damping=damping)
    size = grid.group_size or w.shape[1]
    for group, start in enumerate(range(0, w.shape[1], size)):
        members = w[:, start : start + size]
        scale, zero = of_rows(members, grid.bits, grid.symmetric)
        nearest = np.clip(np.rint(members / scale[:, None]) + zero[:, None], 0, grid.largest)
        np.testing.assert_array_equal(found.codes[:, start : start + size], nearest)
        np.testing.assert_array_equal(found.scale[:, group], scale)


@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
@pytest.mark.parametrize("factor", [2.0**-20, 4.0, 2.0**31])
def test_the_scale_of_the_hessian_changes_nothing(grid, factor):
    w, h = layer(7)
    np.testing.assert_array_equal(gptq(w, h, grid).codes, gptq(w, h * np.float32(factor), grid).codes)


def nearest_plane(basis, target, clip):
    """Return the coefficients of Babai's nearest plane, the first basis vector being decided first.

    Written from the definition: vectors orthogonal to all those decided later, by classical projections.
    """
    count = len(basis)
    orthogonal = []
    for j in range(count):
        later = basis[j + 1 :]
        vector = basis[j].copy()
        if len(later):
            q, _ = np.linalg.qr(later.T)
            vector -= q @ (q.T @ vector)
        orthogonal.append(vector)
    left, found = target.copy(), np.zeros(count)
    for j in range(count):
        found[j] = clip(np.rint(left @ orthogonal[j] / (orthogonal[j] @ orthogonal[j])))
        left -= found[j] * basis[j]
    return found


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_codes_are_babai_s_nearest_plane(bits, seed):
    """The basis is that of the layer's outputs: a column of the samples for each weight, times the scale."""
    rng = np.random.default_rng(seed)
    k, samples = 12, 40
    x = rng.standard_normal((k, k)) @ rng.standard_normal((k, samples))
    w = rng.standard_normal((4, k))
    scale, zero = of_rows(w, bits)
    found = gptq(w, x @ x.T, Grid(bits), damping=0.0)
    np.testing.assert_allclose(x @ x.T, (x @ x.T).T)
    for row in range(len(w)):
        expected = nearest_plane(
            scale[row] * x, w[row] @ x, lambda z, row=row: np.clip(z, -zero[row], 2**bits - 1 - zero[row])
        )
        np.testing.assert_array_equal(found.codes[row] - zero[row], expected)


@pytest.mark.parametrize("bits", [3, 8])
@pytest.mark.parametrize("seed", range(3))
def test_without_clipping_the_loss_is_at_most_a_quarter_of_the_steps(seed, bits):
    """With wide scales nothing is clipped; d_j = 1 / U_jj^2 are the factors of H = L D L^T, the last column first."""
    w, h = layer(seed, k=24)
    w[:, 0] = 12.0  # the row's scale is that of a weight which is decided first, and far from all others
    found, known = gptq(w, h, Grid(bits, symmetric=True)), problem(w, h, damping=0.01)
    assert not np.any((found.codes == 0) | (found.codes[:, 1:] == 2**bits - 1).any())
    d = np.diag(known.v) ** 2
    for row in range(len(w)):
        loss = proxy_loss(w[row : row + 1], found.dequantized()[row : row + 1], known.h)
        assert loss <= np.sum(found.scale[row, 0] ** 2 * d) / 4 * (1 + 1e-9)
        assert loss > np.sum(found.scale[row, 0] ** 2 * d) / 40


def test_the_order_by_activations_is_equivariant():
    w, h = layer(11)
    grid = Grid(4, act_order=True)
    permutation = np.random.default_rng(1).permutation(w.shape[1])
    one, other = gptq(w, h, grid), gptq(w[:, permutation], h[permutation][:, permutation], grid)
    np.testing.assert_array_equal(one.codes[:, permutation], other.codes)


def test_gptq_beats_round_to_nearest_on_its_own_loss():
    for bits in (2, 3, 4):
        w, h = layer(bits, n=32, k=64)
        known = problem(w, h, damping=0.01)
        nearest = gptq(w, np.eye(w.shape[1]), Grid(bits)).dequantized()
        assert proxy_loss(w, gptq(w, h, Grid(bits)).dequantized(), known.h) < 0.9 * proxy_loss(w, nearest, known.h)


# Dead columns, singular matrices ------------------------------------------------------------------------------------


def test_a_dead_column_gets_zeros_and_disturbs_none():
    w, h = layer(13)
    h[7], h[:, 7] = 0, 0
    found = gptq(w, h, Grid(4))
    assert not found.dequantized()[:, 7].any()
    h[7, 7] = np.mean(np.diag(h))
    without = w.copy()
    without[:, 7] = 0
    assert np.all(gptq(without, h, Grid(4)).dequantized()[:, 7] == 0)


def test_a_singular_hessian_needs_damping():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((8, 3))
    h, w = x @ x.T, rng.standard_normal((2, 8))
    with pytest.raises(ValueError, match="larger damping"):
        gptq(w, h - 1e-12 * np.eye(8), Grid(4), damping=0.0)
    found = gptq(w, h, Grid(4))
    assert np.all((found.codes >= 0) & (found.codes <= 15))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hessian": np.ones((3, 4))}, "hessian: has shape"),
        ({"hessian": np.eye(3)}, "hessian: has shape"),
        ({"hessian": np.triu(np.ones((4, 4)))}, "hessian: must be symmetric"),
        ({"hessian": np.diag([1, np.nan, 1, 1])}, "hessian: must be finite"),
        ({"hessian": -np.eye(4)}, "hessian: must be positive definite"),
        ({"w": np.array([[1, 2, np.inf, 3]])}, "w: must be finite"),
        ({"w": np.ones(4)}, "w: must be a matrix"),
        ({"damping": -0.1}, "damping: must be at least 0"),
        ({"damping": float("nan")}, "damping: must be at least 0"),
        ({"rounding": "nearest"}, "rounding: 'nearest' is not admissible"),
    ],
)
def test_bad_input_is_one_clear_error(change, message):
    given = {"w": np.ones((2, 4)), "hessian": np.eye(4), "grid": Grid(4), **change}
    with pytest.raises(ValueError, match=message):
        gptq(given.pop("w"), given.pop("hessian"), given.pop("grid"), **given)


@pytest.mark.parametrize(("name", "value"), [("bits", 1), ("bits", 9), ("group_size", 0)])
def test_a_grid_that_is_none(name, value):
    with pytest.raises(ValueError, match=f"{name}: "):
        Grid(**{"bits": 4, name: value})


# Along the path -----------------------------------------------------------------------------------------------------


def returned(w, h, grid, damping=0.01, kernel=quantize_gptq):
    codes, scale, zero, index = kernel(
        w, h, format=f"uint{grid.bits}", mapping="symmetric" if grid.symmetric else "asymmetric",
        group_size=grid.group_size, static_groups=grid.static_groups, act_order=grid.act_order, damping=damping,
    )  # fmt: skip
    return Quantized(codes.astype(np.int64), scale.astype(np.float64), zero.astype(np.int64), index.astype(np.int64))


def admitted(enclosures, found):
    return {name: bool(enclosure.admits(getattr(found, name)).all()) for name, enclosure in enclosures.items()}


@pytest.mark.parametrize("block", [1, 8, 48, 128])
@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
def test_float32_and_float64_and_every_block_stay_on_their_paths(grid, block, monkeypatch):
    monkeypatch.setattr("lowbit_cts.kernels.numpy.gptq._BLOCK", block)
    for seed in range(3):
        w, h = layer(seed, n=16, k=56, spread=30.0)
        found, exact = returned(w, h, grid), gptq(w, h, grid)
        enclosures = path_enclosures(w, h, grid, found)
        assert admitted(enclosures, found) == dict.fromkeys(enclosures, True)
        ends = enclosures["codes"]
        assert np.mean(ends.lo != ends.hi) < 0.03  # a code is open where a weight is on the edge between two
        own = path_enclosures(w, h, grid, exact, intermediate="float64")
        assert admitted(own, exact) == dict.fromkeys(own, True)
        assert np.mean(own["codes"].lo != own["codes"].hi) < 0.03


@pytest.mark.parametrize("grid", GRIDS, ids=IDS)
def test_a_code_off_its_path_is_seen(grid):
    w, h = layer(2, n=8)
    good = gptq(w, h, grid)
    codes = good.codes.copy()
    codes[3, 20] += 1 if codes[3, 20] < grid.largest else -1
    bad = Quantized(codes, good.scale, good.zero_point, good.group_index)
    assert not path_enclosures(w, h, grid, bad)["codes"].admits(codes)[3, 20]


def test_codes_without_feedback_are_off_the_path():
    w, h = layer(4)
    nearest = gptq(w, np.eye(w.shape[1]), Grid(4))
    admits = path_enclosures(w, h, Grid(4), nearest)["codes"].admits(nearest.codes)
    assert not admits.all()


def test_a_diagonal_hessian_leaves_nothing_open():
    """And with scales that are powers of two ties fall as declared."""
    w = np.float32([[-7.5, 0.5, 1.5, 7.5], [-1.5, 2.5, 13.5, 0.0]])
    h = np.diag(np.float32([3, 5, 0.1, 7]))
    found = gptq(w, h, Grid(4))
    ends = path_enclosures(w, h, Grid(4), found)["codes"]
    np.testing.assert_array_equal(ends.lo, ends.hi)
    np.testing.assert_array_equal(found.codes[0] - found.zero_point[0], [-8, 0, 2, 7])


def test_where_the_first_order_does_not_suffice_all_is_open():
    rng = np.random.default_rng(0)
    x = np.ones((40, 200)) + 1e-4 * rng.standard_normal((40, 200))
    w, h = (
        np.float32(rng.standard_normal((2, 40))),
        np.float32(x @ x.T) + np.float32(1e-4) * np.eye(40, dtype=np.float32),
    )
    ends = path_enclosures(w, h, Grid(4), gptq(w, h, Grid(4), damping=0.0), damping=0.0)["codes"]
    assert np.all(ends.lo[:, -1] == 0)
    assert np.all(ends.hi[:, -1] == 15)


@pytest.mark.parametrize(("other", "admitted"), [(2, True), (5, True), (0, False)])
def test_columns_with_equal_diagonals_may_come_in_any_order(other, admitted):
    """Dead columns are all equal: which of them the last group gets is the sort's affair; it gets no live one."""
    rng, dead = np.random.default_rng(5), np.array([2, 5, 7])
    w, x = rng.standard_normal((4, 9)), 10 * rng.standard_normal((9, 30))
    x[dead] = 0
    grid = Grid(4, group_size=4, act_order=True)
    own = gptq(w, x @ x.T, grid)
    assert np.flatnonzero(own.group_index == 2) == [7]
    index, codes = own.group_index.copy(), own.codes.copy()
    index[[7, other]] = index[[other, 7]]
    codes[:, dead] = own.zero_point[:, index[dead]]
    found = Quantized(codes, own.scale, own.zero_point, index)
    admits = path_enclosures(w, x @ x.T, grid, found)
    assert all(admits[name].admits(getattr(found, name)).all() for name in admits) == admitted
