"""What libraries make of the language model when they quantize it themselves, and QLoRA of both kinds."""

from importlib.util import find_spec

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.workloads import comparison, subjects
from lowbit_cts.benches.workloads.algorithms import ALGORITHMS
from lowbit_cts.benches.workloads.byte_llama import network
from lowbit_cts.benches.workloads.byte_llama.clients import CLIENTS, held_bytes, logits
from lowbit_cts.benches.workloads.calls import UnsupportedError
from lowbit_cts.kernels.numpy import backend as numpy_backend
from lowbit_cts.reports import evidence

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

#: What the weights below QLoRA's adapters are.
QLORA_BASE = "NF4, double quantization"


def _skip_unless(request, *libraries):
    if request.config.getoption("--benchmark-disable"):
        pytest.skip("takes minutes: not part of a smoke run")
    for library in ("safetensors", *libraries):
        if find_spec(library) is None:
            pytest.skip(f"{library} is not installed")


def _record(recorder, backend, *, of, algorithm, bits, found, **figures):
    recorder.record(
        evidence.AlgorithmAccuracy, backend, model=network.MODEL, backend=of, algorithm=algorithm, bits=bits,
        **comparison.worth_figures([found]), **figures,
    )  # fmt: skip


@pytest.mark.parametrize("client", CLIENTS)
def bench_clients(recorder, request, client):
    """Perplexity and divergence of the model as a library quantizes it."""
    chosen = CLIENTS[client]
    _skip_unless(request, "transformers", chosen.package)
    model = chosen.load()
    found = subjects.judged_by(logits(model), subjects.true_logits())
    _record(
        recorder, numpy_backend, of=chosen.package, algorithm=chosen.algorithm, bits=chosen.bits, found=found,
        size_bytes=held_bytes(model),
    )  # fmt: skip
    assert found.divergence.mean() < 1


def bench_qlora(backend, recorder, request):
    """QLoRA over the backend's own NF4: adapters trained for half a minute, no worse than without."""
    _skip_unless(request, "torch")
    try:
        fit = ALGORITHMS[QLORA_BASE].algorithm(backend, 4, None)
    except UnsupportedError:
        pytest.skip("has no NF4 with double quantization")
    from lowbit_cts.benches.workloads.byte_llama import qlora

    trained = qlora.by_kernels(fit)
    before = comparison.trial(subjects.byte_llama(), backend, ALGORITHMS[QLORA_BASE], 4, 0).worth
    found = subjects.judged_by(trained.logits, subjects.true_logits())
    _record(recorder, backend, of=backend.name, algorithm="QLoRA", bits=4, found=found, **trained.sizes())
    difference = found.loss - before.loss
    assert difference.mean() < 2 * comparison.standard_error(difference, difference[:1])


def bench_qlora_by_peft(recorder, request):
    """The same by PEFT over bitsandbytes."""
    _skip_unless(request, "torch", "transformers", "peft", "bitsandbytes")
    from lowbit_cts.benches.workloads.byte_llama import qlora

    trained = qlora.by_peft()
    found = subjects.judged_by(trained.logits, subjects.true_logits())
    _record(recorder, numpy_backend, of="peft", algorithm="QLoRA", bits=4, found=found, **trained.sizes())
