"""Requantization: ties at powers of two, where the variants disagree, the ends of int32, saturation, edge scales."""

from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.examination import Examination, Trial
from lowbit_cts.conformance.strategies.requantization import INT32
from lowbit_cts.kernels import Case
from lowbit_cts.reference.formats import integer_format

pytestmark = pytest.mark.operation("requantize")


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _examine(examination: Examination, acc: Any, scales: Any, what: str, zero_points: Any = None) -> None:
    """Hold sums against their codes at every scale, for every format and granularity, at several zero points."""
    implementation = examination.implementation
    operation = implementation.operation
    for parameters in operation.combinations(implementation.supports, tuple(implementation.supports)):
        fmt = integer_format(parameters["format"])
        zeros = [fmt.minimum, (fmt.minimum + fmt.maximum + 1) // 2, fmt.maximum] if zero_points is None else zero_points
        pairs = [(scale, zero) for scale in scales for zero in zeros]
        sums = [np.asarray(acc(scale, zero) if callable(acc) else acc, np.int64) for scale, zero in pairs]
        if parameters["granularity"] == "channel":  # a column a pair, those that are shorter filled up with their ends
            most = max(len(column) for column in sums)
            columns = np.stack([np.pad(column, (0, most - len(column)), mode="edge") for column in sums], axis=1)
            calls: list[tuple[np.ndarray, Any, Any]] = [(columns, [s for s, _ in pairs], [z for _, z in pairs])]
        else:
            calls = [(column[:, None], *pair) for column, pair in zip(sums, pairs, strict=True)]
        for matrix, scale, zero_point in calls:
            arrays = {
                "acc": np.clip(matrix, INT32.min, INT32.max).astype(np.int32),
                "scale": np.asarray(scale, np.float32),
                "zero_point": np.asarray(zero_point, np.int32),
            }
            examination.once(_enclosed, Case(operation, parameters, arrays, {"sums": what}))


def test_every_tie_at_powers_of_two(examination: Examination) -> None:
    """Sums halfway between two codes, and those one to both sides, fall as declared; scales of 1/2 to 2**-22."""

    def ties(scale: float, zero: int) -> np.ndarray:
        halves = (2 * np.arange(-260, 260) + 1) * int(0.5 / scale)
        return (halves[:, None] + np.array([-1, 0, 1])).ravel()

    _examine(examination, ties, [2.0**-n for n in (1, 2, 3, 4, 8, 12, 17, 22)], "ties and their neighbours")


def test_where_the_variants_disagree(examination: Examination) -> None:
    """At 2**-4 the sums 8, -8, 24, -24, -40 are 1 -1 2 -2 -3 (double), 1 0 2 -1 -2 (single), 0 0 2 -2 -2 (fp32)."""
    _examine(examination, [8, -8, 24, -24, -40], [2.0**-4], "of the table", [0])


def test_rounded_twice_or_once(examination: Examination) -> None:
    """The sums nearest to ties, at scales of no power of two: one rounding, two, or float32 give different codes."""

    def beside(scale: float, zero: int) -> np.ndarray:
        return (np.rint((np.arange(-300, 300) + 0.5) / scale)[:, None] + np.array([-1, 0, 1])).ravel()

    scales = [float(np.float32(scale)) for scale in (3.217e-4, 1.7e-3, 0.011, 0.3, 1.1e-6, 3.3e-8)]
    _examine(examination, beside, scales, "nearest to ties", [0, 5])


def test_every_code(examination: Examination) -> None:
    """Sums that are codes already, at a scale of 1, come back moved by the zero point, and saturate beyond it."""
    _examine(examination, np.arange(-400, 401), [1.0], "near the codes")


def test_ends_of_int32(examination: Examination) -> None:
    """The ends of int32, and sums that float32 does not hold, saturate on their own sides or scale to their codes."""
    ends = np.array([2**24 + 1, 2**24 + 3, 2**30 + 1, INT32.max - 1, INT32.max, INT32.max + 1])
    _examine(
        examination,
        np.concatenate([ends, -ends]),
        [2.0**-25, 2.0**-24, 5e-8, 2.0**-17, 1e-3, 0.1, 0.5 - 2.0**-25],
        "the ends of int32",
    )


def test_sums_that_float32_rounds(examination: Examination) -> None:
    """Sums beyond 2**24 beside a tie: float32 makes ties of them, integers do not."""

    def beside(scale: float, zero: int) -> np.ndarray:
        halves = (2 * np.arange(-130, 130) + 1) * int(0.5 / scale)
        return (halves[:, None] + np.array([-3, -2, -1, 0, 1, 2, 3])).ravel()

    _examine(examination, beside, [2.0**-20, 2.0**-21, 2.0**-22, 2.0**-23], "beyond 2**24")


def test_saturation(examination: Examination) -> None:
    """Sums of every magnitude beyond the codes saturate on their own side."""
    beyond = 2 ** np.arange(9, 31)
    _examine(examination, np.concatenate([beyond, -beyond]), [0.9, 0.51, 2.0**-2], "powers of two")


def test_scales_of_one_and_more(examination: Examination) -> None:
    """Scales up to 256 shift to the left; where int32 holds the result the code is determined."""
    acc = np.concatenate([np.arange(-40, 41), [-(2**20), 2**20]])
    _examine(examination, acc, [1.0, 1.5, 1.99999988, 2.0, 3.3, 127.0, 255.99998], "few and large")


def test_smallest_scales(examination: Examination) -> None:
    """From 2**-32 on: the largest sums come to a half or less, and TFLite's multiplier has its smallest shift."""
    acc = [INT32.min, INT32.min + 1, -1, 0, 1, 2**30, INT32.max - 1, INT32.max]
    _examine(examination, acc, [2.0**-32, 1.5 * 2.0**-32, 2.0**-31, 2.0**-30, 3e-9], "the ends of int32")


def test_scales_below_powers_of_two(examination: Examination) -> None:
    """Scales whose multiplier of 15 bits rounds up to the next power of two, and the float32 beside powers of two."""
    below = [float(np.nextafter(np.float32(2.0**n), np.float32(0))) for n in (0, -1, -7, -12)]
    above = [float(np.nextafter(np.float32(2.0**n), np.float32(9))) for n in (-1, -7, -12)]

    def beside(scale: float, zero: int) -> np.ndarray:
        return (np.rint(np.arange(-270, 271) / scale / 2)[:, None] + np.array([-1, 0, 1])).ravel()

    _examine(examination, beside, below + above, "halves of a code and their neighbours")
