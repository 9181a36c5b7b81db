"""GPTQ of a layer, and how long a layer of 4096 by 4096 takes at most."""

from importlib.util import find_spec
from time import perf_counter

import numpy as np
import pytest

from lowbit_cts.benches.engine.clocks import clock_for
from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.rows import bound_calls
from lowbit_cts.benches.table import Row, measure_row
from lowbit_cts.benches.workloads import cases, shapes

_GROUPS = {"granularity": "group", "group_size": 128}

ROWS = [
    *(
        Row(
            "quantize_gptq", "bert-base/attn.output", 2048, parameters={"format": format, **_GROUPS, "act_order": order}
        )
        for format, order in (("uint4", False), ("uint4", True), ("uint3", False))
    ),
]

#: Seconds that NumPy may take for the large layer on two cores; more are no slower.
MOST = 60.0


@pytest.mark.benchmark(timer=replayed_seconds)
def bench_gptq(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)


def bench_a_layer_of_4096(backend, benchmark):
    """One call on 4096 x 4096 weights in groups of 128: within the limit, and better than rounding to nearest."""
    if not benchmark.enabled:
        pytest.skip("takes minutes: not part of a smoke run")
    found = [i for i in backend.implementations if i.operation.name == "quantize_gptq"]
    if not found:
        pytest.skip("has no quantize_gptq")
    layer = shapes.layer("llama-3-8b/attn.q_proj")
    parameters = {"format": "uint4", "act_order": False, **_GROUPS}
    workload = cases.build("quantize_gptq", layer, 4096, parameters=parameters)
    (call,) = bound_calls(found[0], workload.case, 1)
    results = []
    benchmark.pedantic(lambda: results.append(call()), rounds=2)
    seconds = min(reading.seconds for reading in clock_for(backend.device).time(call, 1))
    exchange = backend.exchange()
    slots = workload.case.operation.results
    arrays = [
        exchange.to_numpy(value, workload.case.format(slot.name).name)
        for slot, value in zip(slots, results[-1], strict=True)
    ]
    truth = workload.truth
    error = np.linalg.norm(workload.approximation(*arrays) - truth) / np.linalg.norm(truth)
    benchmark.extra_info["relative_output_error"] = float(error)
    assert error < 0.06  # rounding to nearest: 0.09
    assert backend.name != "numpy" or seconds <= MOST


def bench_beside_gptqmodel(benchmark):
    """PyTorch's path and GPTQModel's on the same layer in turns: ours is the faster one."""
    if not benchmark.enabled:
        pytest.skip("takes half a minute: not part of a smoke run")
    if find_spec("gptqmodel") is None:
        pytest.skip("gptqmodel is not installed")
    from lowbit_cts.kernels.adapters import gptqmodel
    from lowbit_cts.kernels.torch import backends

    parameters = {"format": "uint4", "act_order": False, **_GROUPS}
    workload = cases.build("quantize_gptq", shapes.layer("bert-base/ffn.output"), 2048, parameters=parameters)
    calls = []
    for backend in (backends[0], gptqmodel.backend):
        kernel = next(i for i in backend.implementations if i.operation.name == "quantize_gptq")
        calls.append(bound_calls(kernel, workload.case, 1)[0])
    times = np.empty((3, 2))
    for turn in range(len(times)):
        for i, call in enumerate(calls):
            begun = perf_counter()
            call()
            times[turn, i] = perf_counter() - begun
    ours, theirs = np.median(times, axis=0)
    benchmark.extra_info["times_as_fast"] = float(theirs / ours)
    benchmark.pedantic(calls[0], rounds=1)
    assert ours < theirs
