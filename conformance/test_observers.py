"""Calibration observers: every edge, every rank, every cut; shapes of histograms; nothing lost, nothing invented."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Trial
from lowbit_cts.conformance.fills import neighbours
from lowbit_cts.conformance.strategies.observers import COUNTS, counts_of, powers_in_all
from lowbit_cts.kernels import Case
from lowbit_cts.reference.formats import float_format

_FLOAT32 = float_format("float32")
_OF_COUNTS = ("histogram_percentile_range", "mse_range", "entropy_range")


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _once(examination: Examination, chosen: dict[str, Any], arrays: dict[str, Any], check: Any = _enclosed) -> None:
    scalars = {name: None if v is None else np.asarray(v, np.float32) for name, v in arrays.items()}
    if "counts" in arrays:
        fmt = examination.implementation.operation.arguments[0].format(chosen)
        scalars["counts"] = np.asarray(arrays["counts"], fmt)
    examination.once(check, Case(examination.implementation.operation, chosen, scalars, {}))


# histogram ----------------------------------------------------------------------------------------------------------

#: Ranges with exact edges for powers of two of bins, and without.
_RANGES = ((-1.0, 1.0), (0.0, 8.0), (-4.0, 0.0), (0.0, 3.0), (-0.7, 1.9), (1000.0, 1001.0), (0.0, 2.0**-120))


@pytest.mark.operation("histogram")
def test_every_edge_of_a_bin(examination: Examination) -> None:
    """What lies on an edge is in the bin above it, at the end of the range in the last one; neighbours beside them."""
    for chosen in examination.combinations("bins"):
        for low, high in _RANGES:
            edges = low + np.arange(chosen["bins"] + 1) * ((high - low) / chosen["bins"])
            x = np.concatenate([neighbours(edges, _FLOAT32, np.full(edges.shape, s)) for s in (-2, -1, 0, 1, 2)])
            _once(examination, chosen, {"x": x, "low": low, "high": high})


@pytest.mark.operation("histogram")
def test_outside_the_range(examination: Examination) -> None:
    """What lies below or above the range is in no bin, however far; zeros of both signs are alike."""
    most = float(np.finfo(np.float32).max)
    x = [-most, -9.0, -1.0001, -1.0, -0.0, 0.0, 1e-45, -1e-45, 0.5, 1.0, 1.0001, 2.0**31, 2.0**40, most, 0.25, -0.25]
    for chosen in examination.combinations("bins"):
        _once(examination, chosen, {"x": np.array(x * 3), "low": -1.0, "high": 1.0})
        _once(examination, chosen, {"x": np.full(5, 3.0), "low": -1.0, "high": 1.0})


@pytest.mark.operation("histogram")
def test_every_sample_counts_once(examination: Examination) -> None:
    """The counts of the samples inside the range add up to their number, in any order of the samples."""

    def check(trial: Trial) -> None:
        x, low, high = (trial.case.array(name) for name in ("x", "low", "high"))
        backwards = trial.replaced("x", x[::-1])
        one, other = trial.call(trial.case, backwards).results
        trial.enclosed(one)
        trial.identical(one, other, "samples in another order")
        inside, counted = int(np.sum((x >= low) & (x <= high))), int(one["counts"].sum())
        if counted != inside:
            raise Violation(f"the counts must be {inside} in all, they are {counted}", trial.case)

    examination.for_all(check)


@pytest.mark.operation("histogram")
def test_many_in_one_bin(examination: Examination) -> None:
    """A bin counts beyond what 8 and 16 bits hold, and beyond what float16 does."""
    for chosen in examination.combinations():
        x = np.concatenate([np.full(70001, 0.5), np.full(300, -0.5), np.full(2049, 1.0)])
        _once(examination, chosen, {"x": x, "low": -1.0, "high": 1.0})


# widen_histogram ----------------------------------------------------------------------------------------------------


@pytest.mark.operation("widen_histogram")
def test_every_width(examination: Examination) -> None:
    """Whole, half and nearly whole numbers of bins more, at one end or both; none; twice and many times the range."""
    counts = np.arange(1, 17)
    for chosen in examination.combinations("histogram", "growth"):
        values, whole = chosen["histogram"] == "values", chosen["growth"] == "same_width"
        for more in (0.0, 0.5, 1.0, 1.5, 2.0, 2.0 - 2.0**-10, 2.0 + 2.0**-10, 7.0, 8.0, 16.0, 48.0, 500.0 * whole):
            for below in (0.0, more) if values else (0.0,):
                high = 1.0 if values else 2.0
                ends = {"low": -1.0 if values else None, "high": high}
                ends |= {"new_low": -1.0 - below / 8 if values else None, "new_high": high + more / 8}
                if more * (2 if values else 1) + counts.size + 4 < (chosen["capacity"] or 1 << 30):
                    _once(examination, chosen, {"counts": counts, **ends})


@pytest.mark.operation("widen_histogram")
def test_nothing_is_lost(examination: Examination) -> None:
    """The counts of the wider histogram add up to those of the narrower one."""

    def check(trial: Trial) -> None:
        found = trial.call().results[0]
        trial.enclosed(found)
        before, after = float(trial.case.array("counts").sum()), float(found["counts"].sum(dtype=np.float64))
        if abs(after - before) > 1e-5 * before:
            raise Violation(f"the counts must be {before} in all, they are {after}", trial.case)

    examination.for_all(check)


# moving_average_range -----------------------------------------------------------------------------------------------


@pytest.mark.operation("moving_average_range")
def test_first_batch_sets_the_averages(examination: Examination) -> None:
    """A single batch is its own average whatever the constant; nothing of zeros is averaged in before it."""
    for constant in (0.01, 0.5, 1.0):
        for x in ([[5.0, 7.0, 6.0]], [[-3.0]], [[-2.0, -8.0]], [[0.0, -0.0]]):
            _once(examination, {}, {"x": x, "constant": constant})


@pytest.mark.operation("moving_average_range")
def test_steps_of_a_moving_average(examination: Examination) -> None:
    """Two and more batches that grow, shrink, change sign, stay; batches of one number; constants up to 1."""
    rng = np.random.default_rng(1)
    series = [[[-1.0, 1.0], [-2.0, 4.0]], [[4.0], [1.0], [-6.0]], [[1.0, 2.0]] * 9, [[-1.0, 3.0], [-1.0, 3.5], [0, 0]]]
    series += [rng.standard_normal((t, n)) * 2.0 ** rng.integers(-30, 30) for t, n in ((40, 3), (3, 500), (17, 17))]
    series += [np.cumsum(np.ones((50, 2)), axis=0) * 0.1, 2.0 ** np.arange(-20, 20).reshape(-1, 1)]
    for constant in (0.01, 0.1, 1 / 3, 0.5, 0.99, 1.0):
        for x in series:
            _once(examination, {}, {"x": x, "constant": constant})


@pytest.mark.operation("moving_average_range")
def test_order_in_a_batch(examination: Examination) -> None:
    """The order of the samples in a batch does not matter, that of the batches does."""

    def check(trial: Trial) -> None:
        x = trial.case.array("x")
        cases = [trial.case, trial.replaced("x", x[:, ::-1]), trial.replaced("x", x[::-1])]
        one, other, swapped = trial.call(*cases).results
        trial.enclosed(one)
        trial.enclosed(swapped, cases[2], "batches in another order: ")
        for name, end in one.items():  # by value: which of two zeros is the least depends on the order
            if end != other[name]:
                raise Violation(
                    f"{name} must not depend on the order in a batch: it is {end}, then {other[name]}", trial.case
                )

    examination.for_all(check)


# percentile_range ---------------------------------------------------------------------------------------------------


@pytest.mark.operation("percentile_range")
def test_every_rank(examination: Examination) -> None:
    """Every sample of up to 33 is reached by some percentile, and so is what lies between two of them."""
    rng = np.random.default_rng(2)
    for chosen in examination.combinations("histogram"):
        for n in (1, 2, 3, 4, 5, 8, 9, 16, 17, 33):
            x = rng.permutation(np.arange(n) * 3 - 16.0)
            for part in (0.125, 1.0, 12.5, 25, 37.5, 50, 62.5, 75, 87.5, 93.75, 99.0, 99.999, 100):
                _once(examination, chosen, {"x": x, "percentile": part})


@pytest.mark.operation("percentile_range")
def test_outliers_and_equal_samples(examination: Examination) -> None:
    """One sample far out, a constant, two values, zeros of both signs, tiny and huge samples."""
    rng = np.random.default_rng(3)
    bulk = rng.standard_normal(2000)
    kinds = [np.r_[bulk, 1e6], np.r_[-1e6, bulk], np.full(100, 0.3), np.full(7, -2.5), np.repeat([1.0, 2.0], 50)]
    kinds += [np.r_[0.0, -0.0, 0.0], bulk * 1e-38, bulk * 1e37, np.abs(bulk), -np.abs(bulk)]
    for chosen in examination.combinations("histogram"):
        for x in kinds:
            for percentile in (99.99, 99.9, 99.0, 50.0, 100.0):
                _once(examination, chosen, {"x": x, "percentile": percentile})


@pytest.mark.operation("percentile_range", "histogram_percentile_range")
def test_higher_percentiles_give_wider_ranges(examination: Examination) -> None:
    """Neither end moves inwards when the percentile grows."""

    def check(trial: Trial) -> None:
        cases = [
            trial.replaced("percentile", np.asarray(np.float32(p))) for p in (1, 30, 50, 75, 90, 99, 99.9, 99.999, 100)
        ]
        found = trial.call(*cases).results
        for before, after, case in zip(found[:-1], found[1:], cases[1:], strict=True):
            trial.enclosed(after, case)
            if after["high"] < before["high"] or after["low"] > before["low"]:
                raise Violation(
                    f"the range must not shrink as the percentile grows: [{before['low']}, {before['high']}], then "
                    f"[{after['low']}, {after['high']}]",
                    case,
                )

    examination.for_all(check, share=0.5)


# Ranges of histograms -----------------------------------------------------------------------------------------------


def _ends(chosen: dict[str, Any], high: float = 1.0) -> dict[str, Any]:
    return {"low": -high if chosen["histogram"] == "values" else None, "high": high}


@pytest.mark.operation("histogram_percentile_range")
def test_every_cut_of_a_histogram(examination: Examination) -> None:
    """Parts that a running sum meets exactly, just misses and just exceeds; empty bins at both ends and between."""
    shapes: list[Any] = [
        [1, 1, 1, 1],
        [4, 0, 0, 4],
        [0, 0, 8, 0],
        [1, 0, 0, 0, 0, 0, 0, 7],
        [0, 3, 0, 0, 4, 1, 0, 0],
        [16],
        [2, 2],
    ]
    shapes += [np.resize([1, 0], 32), np.r_[np.zeros(15), 1], np.r_[64, np.zeros(31)], np.full(64, 2)]
    for chosen in examination.combinations("histogram"):
        for counts in shapes:
            for part in (100, 99.999, 93.75, 87.5, 75, 62.5, 50, 49.9, 50.1, 25, 12.5, 6.25, 0.001):
                _once(examination, chosen, {"counts": counts, **_ends(chosen), "percentile": part})


def _shapes(least: int) -> Iterator[np.ndarray]:
    """Yield histograms of every kind, of so many bins, one more, twice as many and so on."""
    rng = np.random.default_rng(4)
    for bins in (least, least + 1, 2 * least - 1, 2 * least, 2 * least + 1, 5 * least + 3, 8 * least):
        for family in COUNTS:
            counts = counts_of(rng, max(2, bins), family)
            counts[1] += not counts[1:].any()
            yield counts


def _least(chosen: dict[str, Any]) -> int:
    """Return how many bins there must be."""
    return max(2, chosen.get("levels") or 0, 1 + (chosen.get("start") or 0))


@pytest.mark.operation("mse_range", "entropy_range")
def test_histograms_of_every_kind(examination: Examination) -> None:
    """Peaks, gaps, tails, one bin, equal bins, an outlier; as many bins as levels, and lengths that are no multiple."""
    for chosen in examination.combinations("histogram", "levels", "start"):
        for counts in _shapes(_least(chosen)):
            _once(examination, chosen, {"counts": counts, **_ends(chosen)})


@pytest.mark.operation("mse_range")
def test_every_number_of_bits(examination: Examination) -> None:
    """Fewer codes choose a narrower range."""
    rng = np.random.default_rng(5)
    for chosen in examination.combinations("histogram", "bits"):
        for family in ("decay", "bell", "outlier", "mirrored"):
            for bins in (24, 96, 200):
                counts = counts_of(rng, max(bins, _least(chosen)), family)
                _once(examination, chosen, {"counts": counts, **_ends(chosen)})


@pytest.mark.operation("mse_range", "entropy_range")
def test_equal_candidates(examination: Examination) -> None:
    """Where several candidates are equally good, exactly, the declared one is chosen: the first or the last."""
    for chosen in examination.combinations("histogram", "levels", "bits"):
        bins = max(16, 1 << (2 * _least(chosen) - 1).bit_length())
        for at in (0, 1, bins // 2 - 1, bins // 2, bins // 2 + 1):
            counts = np.zeros(bins, int)
            counts[at] = 5
            counts[1] += at == 0 and "levels" in chosen
            _once(examination, chosen, {"counts": counts, **_ends(chosen)})


@pytest.mark.operation(*_OF_COUNTS)
def test_histograms_of_2048_bins(examination: Examination) -> None:
    """What libraries collect by default: 2048 bins of normal samples with a few outliers; 128 levels, bins from 128."""
    rng = np.random.default_rng(6)
    x = np.r_[rng.standard_normal(20000), 6.0, -7.0, 9.5]
    for chosen in examination.combinations("histogram"):
        usual = {"levels": 128, "start": 128}
        chosen = {n: usual.get(n, v) if v is not None else None for n, v in chosen.items()}  # noqa: PLW2901
        seen = x if chosen["histogram"] == "values" else np.abs(x)
        counts = np.histogram(seen, 2048, range=(-9.5 if chosen["histogram"] == "values" else 0, 9.5))[0]
        arrays = {"counts": counts, **_ends(chosen, 9.5)}
        if "percentile" in {a.name for a in examination.implementation.operation.arguments}:
            arrays["percentile"] = 99.999
        _once(examination, chosen, arrays)


@pytest.mark.operation(*_OF_COUNTS)
def test_scaled_by_powers_of_two(examination: Examination) -> None:
    """The same counts over a range a power of two as wide give ends as much farther out."""

    def check(trial: Trial) -> None:
        case = trial.case
        ends = {name: array for name in ("low", "high") if (array := case.arrays[name]) is not None}
        factors = [2.0**-10, 2.0**10]
        scaled = [
            replace(case, arrays={**case.arrays, **{n: np.asarray(a * np.float32(f)) for n, a in ends.items()}})
            for f in factors
        ]
        one, *others = trial.call(case, *scaled).results
        trial.enclosed(one)
        for factor, other, there in zip(factors, others, scaled, strict=True):
            trial.enclosed(other, there)
            expected = {name: np.asarray(end * np.float32(factor)) for name, end in one.items()}
            if trial.determined():
                trial.identical(expected, other, f"the range times {factor}")

    examination.for_all(check, share=0.5)


@pytest.mark.operation("histogram_percentile_range")
def test_totals_that_are_powers_of_two(examination: Examination) -> None:
    """Running sums that are exact in any precision: one bin is admissible at any part."""
    rng = np.random.default_rng(7)
    for chosen in examination.combinations("histogram"):
        for bins in (8, 64, 256):
            for family in COUNTS:
                counts = powers_in_all(counts_of(rng, bins, family))
                for percentile in (12.5, 50, 75, 87.5, 100):
                    _once(examination, chosen, {"counts": counts, **_ends(chosen), "percentile": percentile})
