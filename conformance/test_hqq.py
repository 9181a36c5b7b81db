"""Half-quadratic quantization: every decision along its path, and what must hold whatever the decisions are."""

from dataclasses import replace

import numpy as np
import pytest

from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Refused, Trial
from lowbit_cts.conformance.strategies.hqq import SMALL
from lowbit_cts.kernels import Case
from lowbit_cts.kernels.operations.hqq import fitted, in_groups
from lowbit_cts.reference.algorithms.hqq import Fitted
from lowbit_cts.reference.formats import integer_format

pytestmark = pytest.mark.operation("quantize_hqq")
#: Of a zero point that is known less closely than this, in codes, little is said.
_CLOSE = 0.01
#: What float32 may add to a mean error that does not rise, and to one that is nothing.
_RELATIVE = 2.0**-12


def _with(case: Case, w: np.ndarray) -> Case:
    return replace(case, arrays={"w": np.ascontiguousarray(w, np.float32)})


def _results(trial: Trial, case: Case) -> dict[str, np.ndarray]:
    """Return what the kernel made of a case, held against its path."""
    results = trial.call(case).results[0]
    trial.enclosed(results, case)
    return results


def _error(w: np.ndarray, found: Fitted) -> float:
    return float(np.mean(np.abs(w - found.dequantized()))) if w.size else 0.0


def test_never_worse_than_round_to_nearest(examination: Examination) -> None:
    """The mean error is not above that of the zero points of the ranges, which the search began with."""

    def check(trial: Trial) -> None:
        case = trial.case
        found, w = fitted(case, _results(trial, case)), in_groups(case.array("w").astype(np.float64), case.parameters)
        zero = -w.min(axis=1, keepdims=True) / found.scale
        largest = integer_format(case.parameters["format"]).maximum
        nearest = Fitted(np.clip(np.rint(w / found.scale + zero), 0, largest), found.scale, zero)
        most = _error(w, nearest) + _RELATIVE * float(np.mean(np.abs(found.scale)))
        if not _error(w, found) <= most:
            raise Violation(f"the mean error is {_error(w, found):.6g}, must be at most {most:.6g}", case)

    examination.for_all(check, sizes={"N": 12, "K": 128})


def test_most_zero_points_are_known(examination: Examination) -> None:
    """In groups of ordinary length nearly every zero point is known to a hundredth of a code, and is that one.

    Cases where rounding may have decided otherwise, so that less is known, are not counted as evidence.
    """

    def check(trial: Trial) -> None:
        case = trial.case
        results = trial.call(case).results[0]
        zero = case.enclosures(trial.implementation.semantics, results)["zero_point"]
        if np.mean(zero.hi - zero.lo <= _CLOSE) < 0.9:
            trial.examination.tally.count(case, 0, 0.0, False)
            return
        trial.enclosed(results, case)

    for format in examination.implementation.supports["format"]:
        examination.for_all(check, fixed={"format": format}, sizes={"N": 24, "K": 64}, variants=("growth",), share=0.3)


def test_rows_are_the_same_in_any_order(examination: Examination) -> None:
    """Rows in another order have their results in that order: bit for bit where every number is exact."""

    def check(trial: Trial) -> None:
        case = trial.case
        order = np.random.default_rng(case.origin["seed"]).permutation(case.sizes["N"])
        moved = _with(case, case.array("w")[order])
        first, second = _results(trial, case), _results(trial, moved)
        if trial.determined():
            trial.identical({name: array[order] for name, array in first.items()}, second, "with permuted rows")

    for regime in ("exact", "full"):
        examination.for_all(check, regime=regime, sizes={"N": 16, "K": 64}, share=0.5)


def test_a_power_of_two_times_small_weights(examination: Examination) -> None:
    """Weights whose errors the norm lets go whole give the same codes and zero points at any smaller size.

    The norm is of no scale: what it keeps of an error depends on the size of the weights. Of errors below 0.14 it keeps
    nothing, and half of such weights are quantized as they are.
    """

    def check(trial: Trial) -> None:
        case = trial.case
        w = case.array("w")
        small = w * np.float32(np.exp2(np.floor(np.log2(SMALL / max(float(np.abs(w).max(initial=0)), SMALL)))))
        # Constant groups have the scale 1 at any size.
        ramp = np.arange(case.sizes["K"], dtype=np.float32) * np.float32(2.0**-16)
        first = _results(trial, _with(case, small + ramp))
        for factor in (0.5, 2.0**-10):
            again = _results(trial, _with(case, (small + ramp) * np.float32(factor)))
            expected = {**first, "scale": first["scale"] * np.float32(factor)}
            trial.identical(expected, again, f"with the weights times {factor:g}")

    examination.for_all(check, sizes={"N": 8, "K": 64}, share=0.5)


def test_constant_groups(examination: Examination) -> None:
    """A group of one number, zero or not, is quantized without an error, beside groups that are not."""

    def check(trial: Trial) -> None:
        case = trial.case
        w = case.array("w").copy()
        w[0], w[1], w[2] = 0.0, -0.75, 3.0
        found = fitted(case, _results(trial, _with(case, w)))
        groups = len(found.scale) // len(w)
        numbers = np.repeat([0.0, -0.75, 3.0], groups)[:, None]
        missed = np.abs(found.dequantized()[: 3 * groups] - numbers)
        if not np.all(missed <= 1e-5 * np.abs(numbers)):
            raise Violation(f"a constant group is off by {missed.max():.3g}, must be itself", case)

    examination.for_all(check, sizes={"N": 5, "K": 64}, share=0.5)


def test_a_zero_point_that_drifts_is_clipped(examination: Examination) -> None:
    """Weights whose fractions of a code draw the zero point on by more than half a code: the ends stay codes.

    No error is kept, so that the zero point moves by the mean error: first what lies at 0.45 draws it, then what lay
    at 0.52 and has passed its tie, then what lay at 0.75; in the end the least weight is 0.53 below the code 0.
    """
    fractions = np.repeat([0.45, 0.52, 0.75, 0.0], [31, 19, 12, 2])

    def check(trial: Trial) -> None:
        case = trial.case
        largest = integer_format(case.parameters["format"]).maximum
        rows, k = case.sizes["N"], case.sizes["K"]
        rng = np.random.default_rng(case.origin["seed"])
        steps = rng.integers(0, largest, (rows, k // 64, 64)) + fractions
        steps[..., -2:] = 0, largest
        steps = np.where(np.arange(rows)[:, None, None] % 2, steps, largest - steps)
        _results(trial, _with(case, steps.reshape(rows, k) * 2.0**-13))

    supports = examination.implementation.supports
    grouped = "group" in supports["granularity"] and 64 in supports["group_size"]
    if not grouped and "channel" not in supports["granularity"]:
        raise Refused("neither groups of 64 nor rows are declared as supported")
    fixed = {"granularity": "group", "group_size": 64} if grouped else {"granularity": "channel"}
    sizes = {"N": 6, "K": 128 if grouped else 64}
    examination.for_all(check, sizes=sizes, fixed=fixed, variants=("growth",), share=0.5)


def test_large_weights(examination: Examination) -> None:
    """Groups of large weights, of which the norm keeps nearly every error, move their zero points by little."""

    def check(trial: Trial) -> None:
        _results(trial, _with(trial.case, trial.case.array("w") * np.float32(64)))

    examination.for_all(check, sizes={"N": 12, "K": 64}, share=0.5)


def test_the_last_group_counts(examination: Examination) -> None:
    """Many groups in a row, each with its own scale and zero point, all of them in the error that ends the search."""

    def check(trial: Trial) -> None:
        case = trial.case
        w = case.array("w") * np.exp2(np.arange(case.sizes["K"]) % 7 - 3.0)
        _results(trial, _with(case, w))
        w[:, : -case.sizes["K"] // 4] *= 2.0**-6
        _results(trial, _with(case, w))

    for n, k in ((1, 1024), (3, 512)):
        examination.for_all(check, sizes={"N": n, "K": k}, share=0.3)


@pytest.mark.parametrize("spoilt", [np.nan, np.inf])
def test_weights_that_are_no_numbers(examination: Examination, spoilt: float) -> None:
    """NaN or an infinity among the weights is an error or any codes; it does not crash, hang or write elsewhere."""

    def check(trial: Trial) -> None:
        w = trial.case.array("w").copy()
        w[1, 5] = spoilt
        trial.call(_with(trial.case, w), lenient=True)
        trial.examination.tally.count(trial.case, 0, 0.0, True)

    examination.for_all(check, sizes={"N": 3, "K": 64}, share=0.2)
