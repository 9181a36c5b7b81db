"""Binary and ternary weights: the code of zero, thresholds, ties, degenerate groups, scales."""

from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.examination import Examination, Refused, Trial
from lowbit_cts.conformance.fills import float_codes
from lowbit_cts.kernels import Case

_BOTH = ("binarize", "ternarize")


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _each(examination: Examination, rows: np.ndarray, rule: str | None = None) -> None:
    """Hold the kernel to a matrix whose rows (or columns, or groups) are given, in every granularity and format."""
    implementation = examination.implementation
    if rule is not None and rule not in implementation.supports["rule"]:
        raise Refused(f"the rule {rule} is not declared as supported")
    supports = {n: v[:1] if n == "group_size" else v for n, v in implementation.supports.items()}
    for chosen in implementation.operation.combinations(supports, tuple(supports)):
        if rule is not None and chosen["rule"] != rule:
            continue
        for x in _matrices(rows, chosen):
            arrays = {"x": float_codes(x, chosen["input_format"])}
            examination.once(_enclosed, Case(implementation.operation, chosen, arrays, {}))


def _matrices(rows: np.ndarray, chosen: dict[str, Any]) -> list[np.ndarray]:
    if chosen["granularity"] == "tensor":  # a matrix each, of two rows
        return [np.stack([row, row[::-1]]) for row in rows]
    if chosen["granularity"] == "group":
        width = -(-rows.shape[1] // chosen["group_size"]) * chosen["group_size"]
        wide = np.stack([np.resize(row, width) for row in rows])
        return [np.concatenate([wide, wide[::-1]], axis=1)]
    return [np.ascontiguousarray(rows.T) if chosen["axis"] == 1 else rows]


@pytest.mark.operation("binarize")
def test_sign_of_zero(examination: Examination) -> None:
    """Zeros of both signs get the declared code, and so do the smallest numbers of both signs theirs."""
    tiny = 2.0**-149
    _each(examination, np.array([[0.0, -0.0, 1.0, -1.0], [-0.0, 0.0, tiny, -tiny], [-0.0, -0.0, -0.0, 0.5]]))


@pytest.mark.operation(*_BOTH)
def test_zeros_alone(examination: Examination) -> None:
    """Weights that are all zero have the declared codes and scale, and spoil no row, column or group beside them."""
    _each(examination, np.array([[1.0, -2.0, 0.5, 0.25], [0.0] * 4, [-0.0] * 4, [0.0, -0.0, 0.0, 0.0], [3.0] * 4]))


@pytest.mark.operation(*_BOTH)
def test_equal_magnitudes(examination: Examination) -> None:
    """Weights of one magnitude are exactly their codes times their scale, where their sum is exact."""
    signs = np.array([1.0, -1, -1, 1, 1, 1, -1, -1])
    _each(examination, np.stack([signs * size for size in (1.0, 0.75, 2.0**-10, 48.0, 0.1)]))


@pytest.mark.operation(*_BOTH)
def test_one_large_weight(examination: Examination) -> None:
    """One weight far above the others, first, last and between them, of both signs."""
    rows = np.full((6, 32), 0.01) * np.where(np.arange(32) % 3, 1, -1)
    rows[np.arange(6), [0, 31, 17, 0, 31, 8]] = [100, 100, 100, -100, -100, -1e-3]
    _each(examination, rows)


@pytest.mark.operation(*_BOTH)
def test_magnitudes(examination: Examination) -> None:
    """Rows of every magnitude from 2**-120 to 2**110, each beside another: the scale of no neighbour."""
    pattern = np.array([1.0, -0.9, 0.2, -0.1, 0.6, -0.5, 0.3, 0.0])
    rows = 2.0 ** np.arange(-14, 15)[:, None] * pattern
    _each(examination, rows)
    if "float32" in examination.implementation.supports["input_format"]:
        _each(examination, 2.0 ** np.arange(-120.0, 111.0, 23)[:, None] * pattern)


@pytest.mark.operation("ternarize")
def test_ties_of_rounding(examination: Examination) -> None:
    """With the rule bitnet, half the scale rounds to zero, ties to even; the floats beside it to their own sides."""
    below, above = np.nextafter(np.float32(0.5), np.array([0, 1], np.float32))
    rows = []
    for half in (0.5, below, above):  # the mean magnitude is 1: eight numbers that sum to 8, but for a last place
        rows.append([half, -half, 1.5, -1.5, half, -1.5, 1.5, 0.5])
    _each(examination, np.array(rows), "bitnet")
    _each(examination, np.array([[1.0, 3.0, -1.0, -3.0], [2.0, 6.0, 6.0, -2.0]]) / 16, "bitnet")


@pytest.mark.operation("ternarize")
def test_saturation_of_rounding(examination: Examination) -> None:
    """With the rule bitnet, weights of 1.5 scales and more are 1 or -1: 2, 100, 200, 300 and 1000 scales, too."""
    for width in (4, 100, 200, 300, 1000):  # of one large number among so many the scale is that part of it
        rows = np.full((4, width), 1e-3)
        rows[:, 0] = [3.0, -3.0, 1000.0, -60000.0]
        rows[:, 1::2] *= -1
        _each(examination, rows, "bitnet")


@pytest.mark.operation("ternarize")
def test_tiny_weights_of_rounding(examination: Examination) -> None:
    """With the rule bitnet, a mean magnitude around epsilon is raised to it: weights far below are all zero."""
    epsilon = examination.implementation.semantics.epsilon
    pattern = np.array([1.0, -1.0, 0.4, -0.4, 0.6, -0.6, 1.5, -1.5])
    _each(examination, np.stack([pattern * epsilon * size for size in (1e-3, 0.3, 0.7, 1.0, 1.1, 2.0, 4.0)]), "bitnet")


@pytest.mark.operation("ternarize")
def test_threshold(examination: Examination) -> None:
    """With the rule twn, weights above 0.7 of the mean magnitude count and no others, and the scale is their mean."""
    rows = []
    for part in (0.69, 0.699, 0.701, 0.71, 0.5, 0.75, 1 / 3, 2 / 3):
        x = np.array([part, -part, part, -part, 2 - part, part - 2, 2 - part, part - 2])  # mean magnitude 1
        rows.append(x)
    _each(examination, np.array(rows), "twn")
    _each(examination, np.array(rows) * 0.0123, "twn")
