"""AWQ's searches: every candidate is found where it is the best, none is worse than doing nothing, groups are apart."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Trial
from lowbit_cts.conformance.strategies.awq import (
    activations,
    group_of,
    largest_code,
    planted_ratio,
    planted_share,
    weights,
)
from lowbit_cts.kernels import Case
from lowbit_cts.reference.algorithms.awq import RATIOS, SHARES, output_error, round_to_nearest
from lowbit_cts.reference.formats import integer_format

_SCALES, _CLIPPING = pytest.mark.operation("awq_scales"), pytest.mark.operation("awq_clipping")
_BOTH = pytest.mark.operation("awq_scales", "awq_clipping")


def _with(case: Case, **arrays: np.ndarray) -> Case:
    return replace(case, arrays={**case.arrays, **{name: array.astype(np.float32) for name, array in arrays.items()}})


def _run(trial: Trial, case: Case | None = None) -> dict[str, np.ndarray]:
    """Return what the kernel made of a case, held against its enclosures."""
    results = trial.call(case or trial.case).results[0]
    trial.enclosed(results, case)
    return results


def _planted(examination: Examination, chosen: dict[str, Any], x: np.ndarray, w: np.ndarray, at: int) -> None:
    """Check that a candidate without an error is found; of few bits it is the only admissible one."""
    arrays = {"x": x.astype(np.float32), "w": w.astype(np.float32)}
    case = Case(examination.implementation.operation, chosen, arrays, {"fill": f"planted {at}"})
    examination.once(lambda trial: trial.enclosed(trial.call().results[0]), case)


def _width(chosen: dict[str, Any]) -> int:
    return 2 * group_of(chosen, 24)


@_SCALES
def test_every_ratio(examination: Examination) -> None:
    """Weights that are codes once they are multiplied by one ratio's scales: that ratio, be it the last."""
    rng = np.random.default_rng(11)
    for chosen in examination.combinations("granularity", "candidates"):
        k = _width(chosen)
        for ratio in range(1, RATIOS.size):
            layer = 8, 6, k, group_of(chosen, k), largest_code(chosen)
            x, w = planted_ratio(rng, *layer, ratio, chosen["candidates"])
            _planted(examination, chosen, x, w, ratio)


@_CLIPPING
def test_every_share(examination: Examination) -> None:
    """Weights that are codes once a group is clipped to one share of its range: that share, be it the last."""
    rng = np.random.default_rng(12)
    for chosen in examination.combinations("granularity", "format"):
        k = _width(chosen)
        for share in range(SHARES.size):
            x, w = planted_share(rng, 8, 6, k, group_of(chosen, k), largest_code(chosen), share)
            _planted(examination, chosen, x, w, share)


@_CLIPPING
def test_shares_of_neighbouring_groups(examination: Examination) -> None:
    """Each group of each row has the bound of its own: other weights or activations elsewhere change nothing."""

    def check(trial: Trial) -> None:
        case = trial.case
        rng = np.random.default_rng(case.origin["seed"])
        x, w = case.array("x"), case.array("w")
        group = group_of(case.parameters, x.shape[1])
        one = _run(trial)
        other_x, other_w = activations(rng, len(x), x.shape[1], True), weights(rng, len(w), x.shape[1], group)
        other_x[:, :group], other_w[1, :group] = x[:, :group], w[1, :group]
        other = _run(trial, _with(case, x=other_x, w=other_w))
        for name in ("bound", "share_index"):
            mixed = one[name].copy()
            mixed[1, 0] = other[name][1, 0]
            other = {**other, name: mixed}
        trial.enclosed(other, case, "beside other rows and groups: ")

    for granularity in examination.implementation.supports["granularity"]:
        width = {} if granularity == "group" else {"K": 40}
        fixed = {"granularity": granularity} | ({"group_size": None} if granularity == "channel" else {})
        examination.for_all(check, fixed=fixed, variants=(), sizes={"M": 9, "N": 3, **width}, share=0.3)


def _grid(case: Case) -> dict[str, Any]:
    return {"bits": integer_format(case.parameters["format"]).bits, "group_size": case.parameters["group_size"]}


@_SCALES
def test_scales_are_no_worse_than_none(examination: Examination) -> None:
    """The output error under the scales is at most that of rounding to nearest, and far below it beside outliers."""

    def check(trial: Trial) -> None:
        case = trial.case
        rng = np.random.default_rng(case.origin["seed"])
        x, w = rng.standard_normal((64, 128)), rng.standard_normal((16, 128))
        x[:, [3, 77]] *= 30
        case = _with(case, x=x, w=w)
        x, w = case.array("x"), case.array("w")
        scale = _run(trial, case)["scale"].astype(np.float64)
        plain = output_error(x, w, round_to_nearest(w, **_grid(case)))
        found = output_error(x, w, round_to_nearest(w * scale, **_grid(case)) / scale)
        if not found < 0.7 * plain:
            raise Violation(f"the error is {found:.4g}, that of rounding to nearest {plain:.4g}", case)

    if "activations" in examination.implementation.supports["candidates"]:
        fixed = {"candidates": "activations"}  # the others need not hold that of no scales
        examination.for_all(
            check, fixed=fixed, variants=("granularity",), sizes={"M": 64, "N": 16, "K": 128}, share=0.3
        )


@_CLIPPING
def test_activations_times_a_power_of_two(examination: Examination) -> None:
    """Activations all larger or smaller by a power of two give the same bounds, bit for bit."""

    def check(trial: Trial) -> None:
        first = trial.call(trial.case).results[0]
        for factor in (2.0**-12, 4.0, 2.0**12):
            scaled = _with(trial.case, x=trial.case.array("x") * np.float32(factor))
            trial.identical(first, trial.call(scaled).results[0], f"with activations times {factor:g}")

    examination.for_all(check, share=0.5)


@_SCALES
def test_normalised_scales(examination: Examination) -> None:
    """Activations all larger or smaller give the scales that they gave, those being normalised."""

    def check(trial: Trial) -> None:
        first = _run(trial)
        x = trial.case.array("x")
        for factor in (0.125, 16.0):
            other = _run(trial, _with(trial.case, x=x * np.float32(factor)))
            if other["ratio_index"] != first["ratio_index"] or np.abs(x).sum(axis=0).min(initial=1.0) < 1e-2:
                continue  # two candidates that are alike, or a scale at its least
            if not np.allclose(first["scale"], other["scale"], rtol=1e-4, atol=0):
                raise Violation(f"scales must not change with activations times {factor:g}", trial.case)

    if "activations" in examination.implementation.supports["candidates"]:
        fixed = {"candidates": "activations"}
        examination.for_all(check, fixed=fixed, variants=("granularity",), share=0.3)


@_SCALES
def test_channels_of_nothing(examination: Examination) -> None:
    """Channels without activations or weights, all or some: scales are positive and finite, and the least possible."""

    def check(trial: Trial) -> None:
        case = trial.case
        x, w = case.array("x").copy(), case.array("w").copy()
        for nothing in ((x[:, ::3],), (w[:, ::4],), (x[:, 1::3], w[:, 1::3]), (x,), (w,)):
            for part in nothing:
                part[...] = 0
            scale = _run(trial, _with(case, x=x, w=w))["scale"]
            if not np.all(np.isfinite(scale)) or np.any(scale <= 0):
                raise Violation("scales must be positive and finite", case)

    examination.for_all(check, sizes={"M": 8, "N": 4, "K": 64}, share=0.3)


@_BOTH
def test_groups_of_one_kind(examination: Examination) -> None:
    """Groups of one sign, of one number, of zeros, with one large weight; the range of a group need not hold zero."""

    def check(trial: Trial) -> None:
        case = trial.case
        rng = np.random.default_rng(case.origin["seed"])
        w = case.array("w").copy()
        kinds = (
            np.abs(w) + 0.25, -np.abs(w) - 0.25, np.abs(w) + 5, np.full_like(w, 0.3), np.full_like(w, -2.0), 0 * w,
            np.where(rng.random(w.shape) < 0.02, 20, w), np.abs(w), np.sign(w), w * np.float32(1e-6),
        )  # fmt: skip
        for kind in kinds:
            _run(trial, _with(case, w=kind))

    examination.for_all(check, sizes={"M": 16, "N": 6}, share=0.2)


@_BOTH
def test_one_sample(examination: Examination) -> None:
    """A single sample is enough; so are two that are alike."""

    def check(trial: Trial) -> None:
        _run(trial)
        _run(trial, _with(trial.case, x=np.repeat(trial.case.array("x"), 2, axis=0)))

    examination.for_all(check, sizes={"M": 1, "N": 5}, share=0.5)


@_BOTH
def test_samples_in_another_order(examination: Examination) -> None:
    """The order of the samples decides nothing."""

    def check(trial: Trial) -> None:
        backwards = _with(trial.case, x=trial.case.array("x")[::-1])
        trial.enclosed(trial.call(backwards).results[0], what="samples in another order: ")

    examination.for_all(check, share=0.5)


@_BOTH
def test_groups_wider_than_the_layer(examination: Examination) -> None:
    """Fewer columns than a group is wide are an error; as many as it is wide are one group."""

    def check(trial: Trial) -> None:
        case, group = trial.case, trial.case.parameters["group_size"]
        whole = _with(case, x=case.array("x")[:, :group], w=case.array("w")[:, :group])
        _run(trial, whole)
        less = _with(case, x=case.array("x")[:, : group // 2], w=case.array("w")[:, : group // 2])
        reply = trial.call(less, lenient=True, expect_results=False)
        if not reply.raised:
            raise Violation(f"accepted {group // 2} columns in groups of {group}: must raise", less)

    if "group" in examination.implementation.supports["granularity"]:
        fixed = {"granularity": "group"}
        examination.for_all(check, fixed=fixed, variants=(), sizes={"M": 8, "N": 4}, share=0.3)


@_BOTH
@pytest.mark.parametrize("spoilt", ["nan", "infinite", "huge"])
def test_activations_that_are_none(examination: Examination, spoilt: str) -> None:
    """NaN, infinite and huge activations are an error or any result; the kernel does not crash or write elsewhere."""

    def check(trial: Trial) -> None:
        x = trial.case.array("x").copy()
        x[:, 3] = {"nan": np.nan, "infinite": np.inf, "huge": 3e38}[spoilt]
        trial.call(trial.replaced("x", x), lenient=True)
        trial.examination.tally.count(trial.case, 0, 0.0, True)

    examination.for_all(check, sizes={"M": 4, "N": 3, "K": 32}, share=0.2)
