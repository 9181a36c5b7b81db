"""What a call through the kernel host costs beside the kernel: measured by pytest-benchmark, and bounded."""

import numpy as np
import pytest

from lowbit_cts.conformance.host import KernelHost
from lowbit_cts.conformance.worker import Call
from lowbit_cts.kernels.discovery import load_backends


@pytest.fixture(scope="module")
def host():
    (backend,) = load_backends("numpy")
    kernels = KernelHost("numpy", backend, timeout=30.0)
    yield kernels
    kernels.close()


def test_a_call_costs_at_most_a_millisecond_for_64_kib_of_arrays(host, benchmark):
    parameters = {
        "format": "int8", "input_format": "float32", "granularity": "tensor", "axis": None, "group_size": None,
        "mapping": "asymmetric", "narrow_range": False,
    }  # fmt: skip
    arrays = {
        "x": np.ones((128, 128), np.float32), "scale": np.array(1, np.float32), "zero_point": np.array(0, np.int32),
    }  # fmt: skip
    call = Call("quantize_affine", "quantize", parameters, (arrays,))
    inside = [host.execute(call).seconds for _ in range(20)]
    benchmark.pedantic(host.execute, args=(call,), rounds=200, warmup_rounds=10)
    benchmark.extra_info["seconds_inside"] = float(np.median(inside))
    if benchmark.stats is not None:
        overhead = benchmark.stats.stats.median - np.median(inside)
        assert overhead <= 1e-3, f"{overhead * 1e3:.2f} ms beside {np.median(inside) * 1e3:.2f} ms in the worker"
