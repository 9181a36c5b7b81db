"""Which algorithm when: the figures against closed forms, and the orders that theory promises on a made-up model."""

from dataclasses import fields

import numpy as np
import pytest

from lowbit_cts.benches.workloads import comparison
from lowbit_cts.benches.workloads.algorithms import ALGORITHMS, Layer
from lowbit_cts.benches.workloads.subjects import Subject, Worth, worth
from lowbit_cts.kernels.backend import Backend
from lowbit_cts.kernels.numpy import backend as numpy_backend
from lowbit_cts.reports.evidence import AlgorithmAccuracy


def correlated(rng, rows, columns):
    return (rng.standard_normal((rows, columns)) @ rng.standard_normal((columns, columns))).astype(np.float32)


@pytest.fixture(scope="module")
def subject():
    """Two layers, one behind the other, in groups of 32 columns."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((64, 64)).astype(np.float32) / 8 for name in ("first", "second")}
    mixing = rng.standard_normal((64, 64))

    def samples(seed, rows):
        x = (np.random.default_rng(seed).standard_normal((rows, 64)) @ mixing).astype(np.float32)
        return {"first": x, "second": np.maximum(x @ weights["first"].T, 0)}

    def plain(name, x):
        return x @ weights[name].T

    def run(product):
        return product("second", np.maximum(product("first", samples(99, 256)["first"]), 0))

    truth = run(plain)
    answers = truth.argmax(axis=1)
    return Subject(
        "made up", weights, 32, plain, lambda seed: samples(seed, 512), samples(99, 256),
        lambda product: Worth(*worth(run(product), truth, answers), run(product).argmax(axis=1) == answers),
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(subject):
    return {
        (each["algorithm"], each["bits"]): each for each in comparison.compare(subject, numpy_backend, seeds=(0, 1))
    }


def test_every_algorithm_is_tried_at_every_width(found):
    assert set(found) == {(name, bits) for name, entry in ALGORITHMS.items() for bits in entry.bits}
    assert set(comparison.available(numpy_backend, 32)) == set(ALGORITHMS)
    known = {field.name for field in fields(AlgorithmAccuracy)}
    assert all(set(each) <= known for each in found.values())


def test_fewer_bits_are_worse(found):
    for name, entry in ALGORITHMS.items():
        errors = [found[name, bits]["output_error"] for bits in entry.bits]
        assert errors == sorted(errors), name


@pytest.mark.parametrize("bits", [3, 4])
def test_compensated_errors_are_smaller_than_rounded_ones(found, bits):
    nearest = found["RTN", bits]
    for name in ("GPTQ", "GPTQ, act-order"):
        better = found[name, bits]
        assert better["proxy_loss"] < 0.7 * nearest["proxy_loss"]
        assert better["output_error"] + 2 * better["output_error_se"] < nearest["output_error"]
        assert better["divergence_over_rtn"] < 0
    assert nearest["seeds"] == 1
    assert found["GPTQ", bits]["seeds"] == 2


def test_what_is_stored_is_counted(found, subject):
    count = sum(w.size for w in subject.weights.values())
    expected = 4 + (32 + 4) / 32  # a float32 scale and a zero point of 4 bits a group
    assert found["RTN", 4]["bits_per_weight"] == pytest.approx(expected)
    assert found["RTN", 4]["size_bytes"] == count * expected / 8


def test_the_proxy_loss_is_that_of_the_outputs_on_the_calibration(subject):
    trial = comparison.trial(subject, numpy_backend, ALGORITHMS["RTN"], 3, 0)
    x = subject.calibration(0)["first"].astype(np.float64)
    w = subject.weights["first"].astype(np.float64)
    inputs = {name: Layer(w, subject.calibration(0)[name]) for name, w in subject.weights.items()}
    rounded = ALGORITHMS["RTN"].algorithm(numpy_backend, 3, 32)(inputs["first"]).weights
    expected = np.sum((x @ (w - rounded).T) ** 2) / np.sum((x @ w.T) ** 2)
    assert trial.proxy_losses[0] == pytest.approx(expected, rel=1e-4)


def test_worth_is_cross_entropy_and_divergence():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    logits, truth = rng.standard_normal((2, 5, 7))
    loss, divergence = worth(logits, truth, np.arange(5))
    p, q = (np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (truth, logits))
    np.testing.assert_allclose(divergence, [stats.entropy(a, b) for a, b in zip(p, q, strict=True)], rtol=1e-12)
    np.testing.assert_allclose(loss, -np.log(q[np.arange(5), np.arange(5)]), rtol=1e-12)


def test_standard_errors_hold_what_repetition_shows():
    """The error of a mean over samples and calibrations is what many repetitions scatter by."""
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(400):
        samples, calibrations = rng.standard_normal(50), 0.3 * rng.standard_normal((3, 1))
        values = samples + calibrations + 0.1 * rng.standard_normal((3, 50))
        means.append(values.mean())
        errors.append(comparison.standard_error(values.mean(axis=0), values.mean(axis=1)))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.2)
    assert comparison.standard_error(np.array([1.0, 3.0]), np.array([2.0])) == 1
    mean, error = comparison.perplexity(np.array([[1.0, 3.0]]))
    assert (mean, error) == (pytest.approx(np.exp(2)), pytest.approx(np.exp(2)))


def test_a_backend_without_kernels_has_no_algorithm():
    assert comparison.available(Backend("bare")) == []
