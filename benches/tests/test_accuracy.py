from math import inf, isnan, log10, sqrt

import numpy as np
import pytest

from lowbit_cts.benches import accuracy
from lowbit_cts.benches.workloads.builders.building import codes_of, numbers_of, qparams

METRICS = (accuracy.sqnr_db, accuracy.relative_frobenius, accuracy.mse, accuracy.max_abs, accuracy.cosine)
T, A = np.array([3.0, -4.0]), np.array([3.0, -3.5])


@pytest.mark.parametrize(
    ("metric", "same", "small", "noise_only", "empty"),
    [
        (accuracy.sqnr_db, inf, 10 * log10(25 / 0.25), -inf, inf),
        (accuracy.relative_frobenius, 0, 0.1, inf, 0),
        (accuracy.mse, 0, 0.125, 10.625, 0),
        (accuracy.max_abs, 0, 0.5, 3.5, 0),
        (accuracy.cosine, 1, 23 / (5 * sqrt(21.25)), 0, 1),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_metric(metric, same, small, noise_only, empty):
    zero = np.zeros(2)
    assert metric(T, T) == pytest.approx(same)
    assert metric(zero, zero) == same
    assert metric(T, A) == pytest.approx(small)
    assert metric(zero, A) == pytest.approx(noise_only)
    assert metric(np.zeros((0, 3)), np.zeros((0, 3))) == empty
    assert isnan(metric(T, np.array([np.nan, 1.0])))


def test_an_overflow_is_an_infinite_error():
    overflowed = np.array([np.inf, 1.0])
    assert accuracy.sqnr_db(T, overflowed) == -inf
    assert accuracy.relative_frobenius(T, overflowed) == inf
    assert accuracy.mse(T, overflowed) == inf
    assert accuracy.max_abs(T, overflowed) == inf


def test_mismatches():
    assert accuracy.mismatches(np.array([1, 2, 3]), np.array([1, 2, 4], np.int8)) == 1
    assert accuracy.mismatches(np.array([1.0, np.nan, np.inf]), np.array([np.nan, np.nan, np.inf])) == 1
    assert accuracy.mismatches(np.zeros(0, np.int8), np.zeros(0, np.int8)) == 0


@pytest.mark.parametrize("metric", [*METRICS, accuracy.mismatches], ids=lambda metric: metric.__name__)
def test_shapes_must_agree(metric):
    with pytest.raises(ValueError, match="shapes differ"):
        metric(np.zeros((3, 1)), np.zeros(3))


@pytest.mark.parametrize("metric", [*METRICS, accuracy.mismatches], ids=lambda metric: metric.__name__)
def test_blocks_and_strides_do_not_matter(metric, monkeypatch):
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((50, 30), np.float32)
    approximation = np.round(truth, 1)
    whole = metric(truth, approximation)
    monkeypatch.setattr(accuracy, "_BLOCK", 7)
    assert metric(truth, approximation) == pytest.approx(whole, rel=1e-12)
    assert metric(truth.T, np.asfortranarray(approximation).T) == pytest.approx(whole, rel=1e-12)


def test_integers_do_not_wrap():
    assert accuracy.mse(np.array([-128], np.int8), np.array([127], np.int8)) == 255**2


@pytest.mark.parametrize(("format", "steps"), [("int8", 255), ("uint8", 255), ("int6", 63), ("int4", 15)])
def test_sqnr_of_a_uniform_signal(format, steps):
    """Noise of a step's width, uniform: step**2 / 12 (Bennett 1948), against range**2 / 12 of the signal."""
    x = np.random.default_rng(0).uniform(-1, 1, (1000, 1000)).astype(np.float32)
    rule = {"format": format, "granularity": "tensor", "mapping": "asymmetric"}
    chosen = qparams(x, rule)
    approximation = numbers_of(codes_of(x, *chosen, rule), *chosen, rule)
    assert accuracy.sqnr_db(x, approximation) == pytest.approx(20 * log10(steps), abs=0.05)
