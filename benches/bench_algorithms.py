"""Algorithms on trained models, by each backend's own kernels: which one when."""

import numpy as np
import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.workloads import comparison, subjects
from lowbit_cts.reports import evidence

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

#: Models by name: the language model, the same with channels of outliers, the digits.
SUBJECTS = {
    "byte_llama": subjects.byte_llama,
    "byte_llama_outliers": lambda: subjects.byte_llama(64.0),
    "digits": subjects.digits,
}


@pytest.mark.parametrize("subject", SUBJECTS)
def bench_algorithms(backend, recorder, request, subject):
    """Error of the layers, perplexity and divergence, size and time of every algorithm that the backend has."""
    if request.config.getoption("--benchmark-disable"):
        pytest.skip("takes minutes: not part of a smoke run")
    pytest.importorskip("safetensors", reason="the models need the extra 'models'")
    pytest.importorskip("sklearn", reason="the models need the extra 'models'")
    if not comparison.available(backend):
        pytest.skip("has the kernels for none of the algorithms")
    model = SUBJECTS[subject]()
    whole = comparison.unquantized(model)
    recorder.record(evidence.AlgorithmAccuracy, backend, **{**whole, "backend": backend.name})
    assert whole["divergence"] < 1e-6, "the model does not repeat itself"
    for figures in comparison.compare(model, backend):
        recorder.record(evidence.AlgorithmAccuracy, backend, **figures)
        assert np.isfinite(figures["divergence"]), f"{figures['algorithm']}, {figures['bits']} bits: gives NaN"
