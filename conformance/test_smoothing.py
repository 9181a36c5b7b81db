"""SmoothQuant: the layer stays the same, ranges are balanced, channels are apart, and nothing is divided by zero."""

from dataclasses import replace

import numpy as np
import pytest

from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Trial
from lowbit_cts.conformance.strategies.smoothing import powers_of_four
from lowbit_cts.kernels import Case

pytestmark = pytest.mark.operation("smooth_weights")
_MOST = float(np.finfo(np.float32).max)


def _with(case: Case, absmax: object, w: object) -> Case:
    arrays = {"absmax": np.asarray(absmax, np.float32), "w": np.asarray(w, np.float32)}
    return replace(case, arrays=arrays)


def _run(trial: Trial, case: Case) -> dict[str, np.ndarray]:
    results = trial.call(case).results[0]
    trial.enclosed(results, case)
    return results


def test_a_smoothed_layer_is_the_same_layer(examination: Examination) -> None:
    """x / s times the transposed smoothed weights is x times that of the weights: bit for bit by powers of two."""

    def check(trial: Trial) -> None:
        rng = np.random.default_rng(trial.case.origin["seed"])
        absmax, w = powers_of_four(rng, *trial.case.array("w").shape)
        found = _run(trial, _with(trial.case, absmax, w))
        x = rng.integers(-9, 10, (4, absmax.size)) * absmax.astype(np.float64)
        smoothed = (x / found["scale"]) @ found["smoothed"].astype(np.float64).T
        exact = trial.case.parameters["alpha"] in (0.0, 0.5, 1.0)
        room = 0.0 if exact else 2.0**-22 * (np.abs(x) @ np.abs(w).T.astype(np.float64))
        if np.any(np.abs(smoothed - x @ w.T.astype(np.float64)) > room):
            raise Violation("the smoothed layer must have the outputs of the layer", trial.case)

    examination.for_all(check, regime="exact")


def test_at_one_half_the_ranges_are_alike(examination: Examination) -> None:
    """With alpha = 1/2 a channel's largest activation and largest weight are the same, but for roundings."""
    if 0.5 not in examination.implementation.supports["alpha"]:
        return

    def check(trial: Trial) -> None:
        absmax, w = trial.case.array("absmax"), trial.case.array("w")
        found = _run(trial, trial.case)
        largest = np.abs(w).max(axis=0)
        plain = (largest > 1e-4) & (found["scale"] > 1e-4)
        left, right = absmax / found["scale"].astype(np.float64), np.abs(found["smoothed"]).max(axis=0)
        if not np.allclose(left[plain], right[plain], rtol=1e-5, atol=0):
            raise Violation("the largest activation and the largest weight of a channel must be alike", trial.case)

    examination.for_all(check, fixed={"alpha": 0.5}, variants=(), sizes={"N": 5, "K": 33})


def test_channels_are_apart(examination: Examination) -> None:
    """Channels in another order have the scales of their own, wherever they stand; so have rows in another order."""

    def check(trial: Trial) -> None:
        case = trial.case
        rng = np.random.default_rng(case.origin["seed"])
        absmax, w = case.array("absmax"), case.array("w")
        order, rows = rng.permutation(absmax.size), rng.permutation(len(w))
        found = _run(trial, _with(case, absmax[order], w[rows][:, order]))
        back = {"scale": np.empty_like(absmax), "smoothed": np.empty_like(w)}
        back["scale"][order] = found["scale"]
        back["smoothed"][np.ix_(rows, order)] = found["smoothed"]
        trial.enclosed(back, case, "channels in another order: ")

    examination.for_all(check, sizes={"N": 5, "K": 37}, share=0.5)


#: Largest activations and weights: zeros, the floor and what lies beside it, subnormal and huge ones.
_EDGES = np.array(
    [0.0, 1e-45, 1e-39, 2.0**-126, 1e-30, 1e-10, 9.99e-6, 1e-5, 1.001e-5, 1e-4, 0.5, 1.0, 3.0, 1e5, 1e20, 1e30, _MOST]
)


def test_every_edge(examination: Examination) -> None:
    """Channels without activations, without weights and without either, tiny and huge ones: scales of at least 1e-5."""

    def check(trial: Trial) -> None:
        found = _run(trial, trial.case)
        if not np.all(np.isfinite(found["scale"])) or np.any(found["scale"] < np.float32(1e-5)):
            raise Violation("scales must be finite, and at least 1e-5", trial.case)

    absmax, largest = (grid.ravel().astype(np.float32) for grid in np.meshgrid(_EDGES, _EDGES))
    w = largest * np.array([[0.25], [-1.0], [0.5]], np.float32)
    for chosen in examination.combinations("alpha"):
        case = Case(examination.implementation.operation, chosen, {"absmax": absmax, "w": w}, {"fill": "edges"})
        examination.once(check, case)


def test_the_largest_weight_may_stand_anywhere(examination: Examination) -> None:
    """Of either sign, in the first row or the last: the largest magnitude counts."""

    def check(trial: Trial) -> None:
        _run(trial, trial.case)

    for chosen in examination.combinations("alpha"):
        for n in (1, 2, 7, 33):
            w = np.full((n, 2 * n), 0.25, np.float32)
            w[np.arange(n), np.arange(n)], w[np.arange(n), n + np.arange(n)] = 3.0, -3.0
            arrays = {"absmax": np.linspace(1, 5, 2 * n).astype(np.float32), "w": w}
            examination.once(check, Case(examination.implementation.operation, chosen, arrays, {"fill": "one large"}))


@pytest.mark.parametrize("spoilt", ["nan", "infinite", "negative"])
def test_maxima_that_are_none(examination: Examination, spoilt: str) -> None:
    """NaN, infinite and negative maxima are an error or any numbers; the kernel does not crash or write elsewhere."""

    def check(trial: Trial) -> None:
        absmax = trial.case.array("absmax").copy()
        absmax[2] = {"nan": np.nan, "infinite": np.inf, "negative": -1.0}[spoilt]
        trial.call(trial.replaced("absmax", absmax), lenient=True)
        trial.examination.tally.count(trial.case, 0, 0.0, True)

    examination.for_all(check, sizes={"N": 3, "K": 12}, share=0.2)
