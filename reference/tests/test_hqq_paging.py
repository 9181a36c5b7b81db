"""Half-quadratic quantization never ends worse than it began, and its paths; the pager against one that remembers."""

import numpy as np
import pytest

from lowbit_cts.reference.algorithms.hqq import STEPS, Fitted, hqq, shrunk
from lowbit_cts.reference.algorithms.hqq_path import hqq_enclosures
from lowbit_cts.reference.algorithms.paged_memory import Traffic, optimizer_trace, paged, touched_pages
from lowbit_cts.reference.choices import Rounding

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


@pytest.mark.parametrize(
    ("w", "given", "message"),
    [
        (np.ones((2, 2)), {"bits": 1}, "bits: 1 is not admissible; admissible: 2 to 8"),
        (np.ones((2, 2)), {"bits": 9}, "bits: 9 is not admissible; admissible: 2 to 8"),
        (np.ones((2, 2)), {"bits": 4, "growth": 0.9}, "growth: must be at least 1 and finite; got 0.9"),
        (np.ones(3), {"bits": 4}, "w: must be a matrix of finite weights, a group a row"),
        (np.full((1, 2), np.nan), {"bits": 4}, "w: must be a matrix of finite weights, a group a row"),
        (np.ones((2, 0)), {"bits": 4}, "w: a group must hold a weight"),
    ],
)
def test_what_cannot_be_fitted(w, given, message):
    for function in (hqq, lambda w, **given: hqq_enclosures(w, None, **given)):
        with pytest.raises(ValueError) as caught:
            function(w, **given)
        assert message in str(caught.value)


# Paths of half-quadratic quantization --------------------------------------------------------------------------------


def searched(w, bits, *, kind=np.float32, growth=1.01, steps=STEPS, first=10.0, norm=0.7, add=np.mean):
    """Return what a kernel finds that computes in a type, and adds in its own way."""
    w, largest = w.astype(kind), (1 << bits) - 1
    low, high = w.min(axis=1, keepdims=True), w.max(axis=1, keepdims=True)
    scale = np.where(high > low, (high - low) / kind(largest), kind(1)).astype(kind)
    zero, weight, least, best = -low / scale, first, np.inf, None
    for _ in range(steps + 1):
        codes = np.clip(np.rint(w / scale + zero), 0, largest)
        missed = w - (codes - zero) * scale
        error = add(np.abs(missed).reshape(1, -1))
        if error >= least:
            break
        least, best = error, (codes, scale, zero)
        size = np.abs(missed)
        with np.errstate(divide="ignore"):
            cut = np.where(size > 0, size ** kind(norm - 1) / kind(weight), kind(0))
        kept = np.sign(missed) * np.maximum(size - cut, kind(0))
        terms = codes - (w - kept) / scale
        zero = np.array([[add(row[None])] for row in terms], kind).reshape(-1, 1)
        weight *= growth
    return Fitted(*(np.asarray(part, np.float32).astype(np.float64) for part in best))


def in_order(x):
    """Return the mean added one by one in float32."""
    return np.cumsum(x, axis=1, dtype=np.float32)[0, -1] * (np.float32(1) / np.float32(x.shape[1]))


def groups_of(size, length=32, rows=24):
    w = (np.random.default_rng(length).standard_normal((rows, length)) * size).astype(np.float32)
    w[0], w[1], w[2] = 0, 0.3 * size, np.abs(w[2])
    w[3, 5] *= 30
    return w


def outside(found, fitted):
    """Return how many groups have a scale or zero point that is not admissible, or such codes."""
    codes = found["codes"].admits(fitted.codes.astype(np.int64)).all(axis=1)
    others = found["scale"].admits(fitted.scale) & found["zero_point"].admits(fitted.zero)
    return int(np.count_nonzero(~(codes & others[:, 0])))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [0.02, 1.0, 20.0])
@pytest.mark.parametrize("length", [32, 48, 200])
def test_searches_in_any_arithmetic_are_inside(bits, size, length):
    w = groups_of(size, length)
    for options in ({}, {"kind": np.float64}, {"add": in_order}, {"growth": 1.0}):
        fitted = searched(w, bits, **options)
        assert outside(hqq_enclosures(w, fitted, bits=bits, growth=options.get("growth", 1.01)), fitted) == 0


def test_the_search_in_real_numbers_is_the_exact_path():
    for bits in (2, 4):
        w = groups_of(0.5, 64)
        fitted, _ = hqq(w, bits=bits)
        found = hqq_enclosures(w, bits=bits)
        np.testing.assert_allclose(found["zero_point"].exact, fitted.zero, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["scale"].exact, fitted.scale, rtol=1e-7)


def test_nearly_every_zero_point_is_known():
    for bits, size in ((2, 1.0), (3, 0.02), (4, 1.0)):
        zero = hqq_enclosures(groups_of(size, 64), bits=bits)["zero_point"]
        assert np.mean(zero.hi - zero.lo < 1e-3) > 0.9


@pytest.mark.parametrize(
    "fault", [{"steps": 0}, {"first": 9.0}, {"norm": 0.6}, {"growth": 1.02}, {"steps": 10}], ids=str
)
def test_another_search_is_outside(fault):
    w = groups_of(1.0, 64)
    assert outside(hqq_enclosures(w, searched(w, 2, **fault), bits=2), searched(w, 2, **fault)) > 12


def test_a_step_is_monotone_in_the_zero_point():
    """Brute force: of thousands of zero points in order the next ones are in order, wherever codes change."""
    rng = np.random.default_rng(4)
    for size in (0.05, 1.0, 30.0):
        w = rng.standard_normal(24) * size
        scale = np.ptp(w) / 7
        zero = np.linspace(-2, 12, 20001)[:, None]
        codes = np.clip(np.rint(w / scale + zero), 0, 7)
        following = np.mean(codes - (w - shrunk(w - (codes - zero) * scale, 10.0)) / scale, axis=1)
        assert np.all(np.diff(following) > -1e-12)


def test_whole_paths_are_determined():
    """Halves of a code under powers of two, in 16 columns: every number is exact, and one result is admissible."""
    rng = np.random.default_rng(2)
    halves = rng.integers(0, 30, (12, 16), endpoint=True)
    halves[:, 0], halves[:, 1] = 0, 30
    w = ((halves - rng.integers(0, 30, (12, 1))) * 2.0**-9).astype(np.float32)
    for rounding in (Rounding.HALF_EVEN, Rounding.HALF_AWAY):
        found = hqq_enclosures(w, bits=4, rounding=rounding)
        for e in found.values():
            np.testing.assert_array_equal(e.lo, e.hi)
    fitted = searched(w, 4)
    assert outside(hqq_enclosures(w, fitted, bits=4), fitted) == 0
    np.testing.assert_array_equal(hqq_enclosures(w, bits=4)["zero_point"].exact, fitted.zero)


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
