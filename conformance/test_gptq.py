"""GPTQ: every decision along its path, and what must hold whatever the decisions are."""

from dataclasses import replace

import numpy as np
import pytest

from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Trial
from lowbit_cts.conformance.strategies.gptq import hessian
from lowbit_cts.kernels import Case
from lowbit_cts.kernels.operations.gptq import grid_of
from lowbit_cts.reference.algorithms.gptq import Quantized, gptq, problem, proxy_loss

pytestmark = pytest.mark.operation("quantize_gptq")
_RESULTS = "codes", "scale", "zero_point", "group_index"


def _with(case: Case, **arrays: np.ndarray) -> Case:
    return replace(case, arrays={**case.arrays, **{name: array.astype(np.float32) for name, array in arrays.items()}})


def _run(trial: Trial, case: Case) -> Quantized:
    """Return what the kernel made of a case, held against its path."""
    results = trial.call(case).results[0]
    trial.enclosed(results, case)
    return Quantized(*(results[name].astype(np.float64 if name == "scale" else np.int64) for name in _RESULTS))


def test_wide_layers(examination: Examination) -> None:
    """Layers of more columns than kernels take in a block: each error reaches every later column, once."""

    def check(trial: Trial) -> None:
        _run(trial, trial.case)

    for k in (129, 300):
        examination.for_all(check, sizes={"N": 4, "K": k}, share=0.3)


def test_an_identity_gives_round_to_nearest(examination: Examination) -> None:
    """With nothing off the diagonal every code is the nearest, whatever the diagonal and the damping."""

    def check(trial: Trial) -> None:
        rng = np.random.default_rng(trial.case.origin["seed"])
        diagonal = np.diag(rng.permutation(1 + np.arange(trial.case.sizes["K"])))
        _run(trial, _with(trial.case, hessian=diagonal))

    examination.for_all(check, regime="exact", sizes={"N": 8, "K": 70}, share=0.5)


def test_the_scale_of_the_hessian_changes_nothing(examination: Examination) -> None:
    """A power of two times the Hessian gives the same codes, bit for bit; of dead columns the diagonal is 1 anyway."""

    def check(trial: Trial) -> None:
        h = trial.case.array("hessian").copy()
        dead = np.flatnonzero(np.diag(h) == 0)
        h[dead, dead] = 1 + np.arange(dead.size)
        alive = _with(trial.case, hessian=h)
        first = trial.call(alive).results[0]
        for factor in (2.0**-40, 64.0, 2.0**60):
            scaled = _with(alive, hessian=h * np.float32(factor))
            trial.identical(first, trial.call(scaled).results[0], f"with the Hessian times {factor:g}")

    examination.for_all(check, sizes={"N": 4, "K": 40}, share=0.5)


def test_a_dead_column_is_as_if_its_weights_were_zero(examination: Examination) -> None:
    """What stands in a column that no sample reached changes nothing, and it gets codes of zero."""

    def check(trial: Trial) -> None:
        case = trial.case
        h, w = case.array("hessian").copy(), case.array("w").copy()
        dead = np.random.default_rng(0).permutation(len(h))[:3]
        h[dead] = h[:, dead] = 0
        w[:, dead] = 0
        other = w.copy()
        other[:, dead] = 1e6
        found = _run(trial, _with(case, w=w, hessian=h))
        again = _run(trial, _with(case, w=other, hessian=h))
        if found.dequantized()[:, dead].any() or not np.array_equal(found.codes, again.codes):
            raise Violation("weights of dead columns must be zero and disturb none", case)

    examination.for_all(check, sizes={"N": 4, "K": 40}, share=0.5)


def test_the_loss_is_far_below_that_of_round_to_nearest(examination: Examination) -> None:
    """On strongly correlated samples the errors compensate: the loss is what the reference's is, within a tenth."""

    def check(trial: Trial) -> None:
        case, rng = trial.case, np.random.default_rng(trial.case.origin["seed"])
        w, h = rng.standard_normal((16, 64)).astype(np.float32), hessian(rng, 64, 256, 3.0)
        case = _with(case, w=w, hessian=h)
        damping, grid = case.parameters["damping"], grid_of(case.parameters)
        damped = problem(w, h, damping=damping).h
        losses = [proxy_loss(w, found.dequantized(), damped) for found in (
            _run(trial, case), gptq(w, h, grid, damping=damping), gptq(w, np.eye(64), grid, damping=damping),
        )]  # fmt: skip
        if not losses[0] <= 1.1 * losses[1] or not losses[1] < losses[2]:
            raise Violation(f"the loss is {losses[0]:.4g}, that of the reference {losses[1]:.4g}", case)

    examination.for_all(check, sizes={"N": 16, "K": 64}, share=0.3)


def test_fewer_samples_than_channels(examination: Examination) -> None:
    """A singular Hessian is no error where it is damped; with an infinity or a NaN there is no result to speak of."""

    def check(trial: Trial) -> None:
        rng = np.random.default_rng(trial.case.origin["seed"])
        _run(trial, _with(trial.case, hessian=hessian(rng, 48, 5, 2.0)))

    examination.for_all(check, sizes={"N": 4, "K": 48}, share=0.5)


@pytest.mark.parametrize("spoilt", ["indefinite", "nan"])
def test_a_hessian_that_is_none(examination: Examination, spoilt: str) -> None:
    """An indefinite Hessian, or one with NaN, is an error or any codes; it does not crash, hang or write elsewhere."""

    def check(trial: Trial) -> None:
        h = trial.case.array("hessian").copy()
        h[3, 3] = -h[3, 3] - 1 if spoilt == "indefinite" else np.nan
        trial.call(_with(trial.case, hessian=h), lenient=True)
        trial.examination.tally.count(trial.case, 0, 0.0, True)

    examination.for_all(check, sizes={"N": 2, "K": 12}, share=0.2)
