"""Which algorithm when: every algorithm at every bit width on a trained model, with standard errors."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.algorithms import ALGORITHMS, Entry, Fitted, Layer
from lowbit_cts.benches.workloads.calls import UnsupportedError
from lowbit_cts.benches.workloads.subjects import Subject, Worth
from lowbit_cts.kernels.backend import Backend

#: Calibrations, each on another sample, where the algorithm depends on it.
SEEDS = (0, 1, 2)
#: The name of what is compared against.
BASELINE = "RTN"


@dataclass(frozen=True, eq=False)
class Trial:
    """One calibration: the errors of each layer, the bits stored, seconds to fit all layers, what the model is worth.

    Attributes
    ----------
    output_errors : ndarray of float64
        A layer's squared error of the outputs for held-out inputs, over the squared outputs.
    proxy_losses : ndarray of float64 or None
        A layer's tr(d H d^T) over tr(w H w^T), H of the calibration, where only weights are quantized.
    """

    output_errors: np.ndarray
    proxy_losses: np.ndarray | None
    bits: float
    seconds: float
    worth: Worth


@lru_cache(maxsize=len(SEEDS))
def calibrated(subject: Subject, seed: int) -> dict[str, Layer]:
    """Return the layers after the calibration of a seed, their Hessians made: all algorithms find them ready."""
    inputs = subject.calibration(seed)
    layers = {name: Layer(w, inputs[name]) for name, w in subject.weights.items()}
    for layer in layers.values():
        _ = layer.hessian, layer.sample
    return layers


@lru_cache(maxsize=1)
def true_outputs(subject: Subject) -> dict[str, np.ndarray]:
    """Return what each layer gives for the held-out inputs in float32, (T, N)."""
    return {name: subject.product(name, subject.held_out[name]) for name in subject.weights}


def trial(subject: Subject, backend: Backend, entry: Entry, bits: int, seed: int) -> Trial:
    """Return what an algorithm makes of a model after the calibration of a seed.

    Raises
    ------
    UnsupportedError
        When the backend lacks a kernel that the algorithm needs.
    """
    fit = entry.algorithm(backend, bits, subject.group_size)
    layers = calibrated(subject, seed)
    begun = time.perf_counter()
    fitted = {name: fit(layer) for name, layer in layers.items()}
    seconds = time.perf_counter() - begun

    def product(name: str, x: np.ndarray) -> np.ndarray:
        if name not in fitted:
            return subject.product(name, x)
        return fitted[name].product(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)

    errors = [
        float(np.sum((fitted[name].product(subject.held_out[name]) - truth) ** 2) / np.sum(truth**2))
        for name, truth in true_outputs(subject).items()
    ]
    proxies = None if entry.activations else [_proxy_loss(layers[name], fitted[name]) for name in fitted]
    return Trial(
        np.array(errors), None if proxies is None else np.array(proxies), sum(f.bits for f in fitted.values()), seconds,
        subject.judge(product),
    )  # fmt: skip


def _proxy_loss(layer: Layer, fitted: Fitted) -> float:
    assert fitted.weights is not None
    w, h = layer.w.astype(np.float64), layer.hessian
    missed = w - fitted.weights
    return float(np.sum((missed @ h) * missed) / np.sum((w @ h) * w))


def standard_error(samples: np.ndarray, seeds: np.ndarray) -> float:
    """Return the standard error of a mean over independent samples, each the mean over calibrations.

    Parameters
    ----------
    samples : ndarray, shape (samples,)
    seeds : ndarray, shape (calibrations,)
        The mean over samples of each calibration; their variance adds to that of the samples, where there are two or
        more.
    """
    variance = np.var(samples, ddof=1) / samples.size
    if seeds.size > 1:
        variance += np.var(seeds, ddof=1) / seeds.size
    return float(np.sqrt(variance))


def _summary(values: np.ndarray) -> tuple[float, float]:
    """Return mean and standard error of figures, (calibrations, samples)."""
    return float(values.mean()), standard_error(values.mean(axis=0), values.mean(axis=1))


def perplexity(losses: np.ndarray) -> tuple[float, float]:
    """Return the exponential of the mean loss, (calibrations, samples), and its standard error to first order."""
    mean, error = _summary(losses)
    return float(np.exp(mean)), float(np.exp(mean) * error)


def figures(trials: list[Trial], baseline: list[Trial] | None = None) -> dict[str, Any]:
    """Return what several calibrations of one algorithm gave, as the evidence of kind "algorithm" names it.

    Parameters
    ----------
    trials : list of Trial
    baseline : list of Trial or None
        Those of round to nearest at the same bits: divergences are compared sample by sample.
    """
    found: dict[str, Any] = worth_figures([t.worth for t in trials])
    outputs = np.array([t.output_errors.mean() for t in trials])
    found["output_error"], found["output_error_se"] = float(outputs.mean()), _over_seeds(outputs)
    if trials[0].proxy_losses is not None:
        found["proxy_loss"] = float(np.mean([t.proxy_losses for t in trials]))
    if baseline:
        mine, theirs = (np.array([t.worth.divergence for t in each]) for each in (trials, baseline))
        difference = mine - theirs.mean(axis=0)
        found["divergence_over_rtn"], found["divergence_over_rtn_se"] = _summary(difference)
    return {
        **found, "seeds": len(trials), "seconds": float(np.median([t.seconds for t in trials])),
        "size_bytes": -(-int(trials[0].bits) // 8),
    }  # fmt: skip


def worth_figures(worths: list[Worth]) -> dict[str, Any]:
    """Return perplexity, divergence and accuracy with standard errors over samples and calibrations."""
    losses = np.array([w.loss for w in worths])
    divergence, error = _summary(np.array([w.divergence for w in worths]))
    found: dict[str, Any] = {"divergence": divergence, "divergence_se": error}
    found["perplexity"], found["perplexity_se"] = perplexity(losses)
    if worths[0].correct is not None:
        found["accuracy"], found["accuracy_se"] = _summary(np.array([w.correct for w in worths], float))
    return found


def _over_seeds(values: np.ndarray) -> float | None:
    return float(np.std(values, ddof=1) / np.sqrt(values.size)) if values.size > 1 else None


def available(backend: Backend, group_size: int | None = None) -> list[str]:
    """Return the algorithms that a backend has the kernels for, at one of their bit widths or more."""

    def has(entry: Entry, bits: int) -> bool:
        try:
            entry.algorithm(backend, bits, group_size)
        except UnsupportedError:
            return False
        return True

    return [name for name, entry in ALGORITHMS.items() if any(has(entry, bits) for bits in entry.bits)]


def compare(
    subject: Subject, backend: Backend, names: Iterable[str] | None = None, seeds: tuple[int, ...] = SEEDS
) -> Iterator[dict[str, Any]]:
    """Yield what every algorithm that a backend has the kernels for makes of a model, at each of its bit widths.

    Parameters
    ----------
    subject : Subject
    backend : Backend
    names : iterable of str or None
        Of `ALGORITHMS`; None: all. Round to nearest comes first, since others are compared with it.
    seeds : tuple of int
        Calibrations.
    """
    count = sum(w.size for w in subject.weights.values())
    nearest: dict[int, list[Trial]] = {}
    for name in names or ALGORITHMS:
        entry = ALGORITHMS[name]
        for bits in entry.bits:
            try:
                trials = [trial(subject, backend, entry, bits, s) for s in (seeds if entry.calibrated else seeds[:1])]
            except UnsupportedError:
                continue
            if name == BASELINE:
                nearest[bits] = trials
            compared = None if name == BASELINE or entry.activations else nearest.get(bits)
            yield {
                "model": subject.name, "algorithm": name, "bits": bits, "group_size": subject.group_size,
                "backend": backend.name, "bits_per_weight": trials[0].bits / count, **figures(trials, compared),
            }  # fmt: skip


def unquantized(subject: Subject) -> dict[str, Any]:
    """Return the figures of the model itself, in float32."""
    count = sum(w.size for w in subject.weights.values())
    return {
        "model": subject.name, "algorithm": "none (float32)", "bits": 32, "group_size": None, "backend": "numpy",
        "bits_per_weight": 32.0, "size_bytes": 4 * count, "seeds": 1,
        **worth_figures([subject.judge(subject.product)]),
    }  # fmt: skip
