"""Half-quadratic quantization never ends worse than it began; the pager against one that remembers everything."""

import numpy as np
import pytest

from lowbit_cts.reference.algorithms.hqq import STEPS, hqq, shrunk
from lowbit_cts.reference.algorithms.paged_memory import Traffic, optimizer_trace, paged, touched_pages

RNG = np.random.default_rng(8)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "heavy", "constant", "zeros", "outlier"])
def test_the_error_never_increases(bits, kind):
    w = RNG.standard_normal((6, 64))
    w = {
        "normal": w, "heavy": w**5, "constant": np.full_like(w, -0.7), "zeros": np.zeros_like(w),
        "outlier": np.where(np.arange(64) == 9, 40.0, w),
    }[kind]  # fmt: skip
    fitted, errors = hqq(w, bits=bits)
    assert np.all(np.diff(errors[:-1]) < 0)  # but for the last, which ends the search
    assert np.mean(np.abs(w - fitted.dequantized())) == pytest.approx(errors.min(), abs=1e-15)
    assert np.all((fitted.codes >= 0) & (fitted.codes < 2**bits))
    assert len(errors) <= STEPS + 1
    if kind in ("constant", "zeros"):
        assert errors.min() < 1e-15


def test_step_zero_is_round_to_nearest():
    w = RNG.standard_normal((3, 16))
    _, errors = hqq(w, bits=3)
    low, high = w.min(axis=1, keepdims=True), w.max(axis=1, keepdims=True)
    steps = (high - low) / 7
    nearest = low + np.rint((w - low) / steps) * steps
    assert errors[0] == pytest.approx(np.mean(np.abs(w - nearest)))


def test_heavy_tails_gain():
    """Where a few weights stretch the range, most errors become smaller."""
    w = RNG.standard_t(2, (64, 64))
    _, errors = hqq(w, bits=2)
    assert errors.min() < 0.95 * errors[0]


def test_shrinking_is_the_minimum_of_its_objective():
    """Of the first-order form that is used: the kept part e of an error x is nearest to a stationary point."""
    x = np.array([-3.0, -0.5, 0.0, 0.2, 1.0, 8.0])
    kept = shrunk(x, 10.0)
    assert np.all(np.abs(kept) <= np.abs(x))
    assert np.all((kept == 0) | (np.sign(kept) == np.sign(x)))
    np.testing.assert_allclose(kept[[0, 4, 5]], [-3 + 3**-0.3 / 10, 0.9, 8 - 8**-0.3 / 10])
    assert kept[2] == 0
    np.testing.assert_array_equal(shrunk(x, np.inf), x)


@pytest.mark.parametrize(("w", "bits"), [(np.ones((2, 2)), 1), (np.ones((2, 2)), 9), (np.ones(3), 4), (np.full((1, 2), np.nan), 4)])  # fmt: skip  # noqa: E501
def test_what_cannot_be_fitted(w, bits):
    with pytest.raises(ValueError, match=r"bits: |w: must be a matrix"):
        hqq(w, bits=bits)


# Pages ---------------------------------------------------------------------------------------------------------------


def remembered(touches, page, budget):
    """Say the same, looking back over the whole trace for the page that was touched longest ago."""
    faults = written_back = most = 0
    touches = list(touches)
    here: dict[int, bool] = {}
    for now, (number, written) in enumerate(touches):
        if number not in here:
            faults += 1
            if len(here) == budget:
                last = {p: max(t for t in range(now) if touches[t][0] == p) for p in here}
                oldest = min(here, key=last.get)
                written_back += here.pop(oldest)
            here[number] = False
        here[number] = here[number] or written
        most = max(most, len(here))
    return Traffic(faults * page, written_back * page, faults, most * page)


@pytest.mark.parametrize("budget", [1, 2, 3, 5, 8, 100])
@pytest.mark.parametrize("seed", range(5))
def test_traffic_is_that_of_a_pager_that_remembers(budget, seed):
    rng = np.random.default_rng(seed)
    touches = [(int(p), bool(w)) for p, w in zip(rng.integers(0, 9, 200), rng.integers(0, 2, 200), strict=True)]
    assert paged(touches, page=4096, budget=budget) == remembered(touches, 4096, budget)


def test_what_fits_is_moved_once_and_a_page_less_moves_all_every_step():
    trace = optimizer_trace([1000, 24, 3000], bytes_per_parameter=8, page=512, steps=10)
    pages = -(-4024 * 8 // 512)
    assert {number for number, _ in trace} == set(range(pages))
    fits = paged(trace, page=512, budget=pages)
    assert fits == Traffic(pages * 512, 0, pages, pages * 512)
    small = paged(trace, page=512, budget=pages - 1)
    assert small.faults == 10 * pages
    assert small.to_host == (10 * pages - (pages - 1)) * 512
    assert small.resident == (pages - 1) * 512


def test_8_bit_states_move_a_quarter():
    sizes = [1 << 16, 1 << 18]
    wide, narrow = (
        paged(optimizer_trace(sizes, bytes_per_parameter=b, page=4096, steps=3), page=4096, budget=16) for b in (8, 2)
    )
    assert wide.to_device == 4 * narrow.to_device


def test_pages_of_a_part():
    assert list(touched_pages(0, 1, 10)) == [0]
    assert list(touched_pages(9, 2, 10)) == [0, 1]
    assert list(touched_pages(10, 10, 10)) == [1]
    assert list(touched_pages(7, 0, 10)) == []


@pytest.mark.parametrize("bad", [{"page": 0, "budget": 1}, {"page": 1, "budget": 0}])
def test_no_page_and_no_budget(bad):
    with pytest.raises(ValueError, match="must be at least 1"):
        paged([], **bad)
    with pytest.raises(ValueError, match="must not be negative"):
        optimizer_trace([-1], bytes_per_parameter=8, page=1, steps=1)
