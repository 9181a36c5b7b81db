"""A real network: LeNet-5 on handwritten digits, quantized by each backend's own kernels."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.workloads import lenet
from lowbit_cts.reports import evidence

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)


def bench_digits(backend, recorder, request):
    """Accuracy, size and error by layer of every variant that the backend has kernels for."""
    if request.config.getoption("--benchmark-disable"):
        pytest.skip("trains a network: not part of a smoke run")
    pytest.importorskip("torch", reason="training the network needs the extra 'torch'")
    pytest.importorskip("sklearn", reason="the digits need the extra 'models'")
    found = lenet.evaluate(backend)
    assert found, f"{backend.name} has kernels for none of the variants: {lenet.missing(backend)}"
    for variant in found:
        fields = {key: value for key, value in variant.items() if key != "kind"}
        recorder.record(evidence.ModelAccuracy, backend, **fields)
    by_name = {variant["variant"]: variant for variant in found}
    whole = by_name["float32"]["accuracy"]
    assert whole >= 0.97, f"the float32 network reaches {whole:.1%} only"
