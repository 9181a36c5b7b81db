"""Fingerprints of backends: every product implementation at every format that it is probed in, as evidence."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lowbit_cts.conformance.fingerprint import integers
from lowbit_cts.conformance.fingerprint.adapters import (
    ADAPTERS,
    Chosen,
    combinations,
    probe_of,
    sparse24_arguments,
)
from lowbit_cts.conformance.fingerprint.findings import Findings
from lowbit_cts.conformance.fingerprint.kernel import Arrays, Kernel
from lowbit_cts.conformance.fingerprint.probe import Pair
from lowbit_cts.conformance.fingerprint.prober import fingerprint
from lowbit_cts.conformance.host import KernelHost
from lowbit_cts.kernels import OPERATIONS as CONTRACTS
from lowbit_cts.kernels import Backend, Implementation
from lowbit_cts.reference.formats import FloatFormat, decode, float_format, integer_format
from lowbit_cts.reports import device, evidence

#: M of the probes: matrices, and vectors, for which libraries have other kernels.
ROWS = (16, 1)


def columns_of(rows: int) -> int:
    """Return N of the probes: more with few rows, since for the smallest products libraries have other kernels."""
    return max(16, 128 // rows)


#: Seconds a call may take: some dozens of products.
TIMEOUT = 60.0

_PREFERRED = {
    "has_bias": (False,), "mapping": ("asymmetric",), "activation_granularity": ("tensor",),
    "weight_granularity": ("tensor",), "weight_mapping": ("symmetric",), "b_format": ("int8",),
}  # fmt: skip
#: Products of integers alone, and the parameters of which every value is probed.
_INTEGERS: dict[str, tuple[str, ...]] = {
    "matmul_int8": ("a_format",),
    "matmul_integer": ("a_format",),
    "matmul_w8a8": ("a_format", "output_format"),
}

#: The operations that can be probed.
OPERATIONS = (*ADAPTERS, *_INTEGERS)


def _integer_arguments(operation: str, a: np.ndarray, b: np.ndarray, chosen: Chosen) -> Arrays:
    if operation == "matmul_sparse24":
        return sparse24_arguments(a, b, "int8")
    zero, middle = _zero(chosen), 128 if chosen.get("b_format") == "uint8" else 0
    arguments: Arrays = {
        "a": (a + zero).astype(integer_format(chosen["a_format"]).carrier),
        "b": (b + middle).astype(np.uint8 if middle else np.int8),
    }
    rows = (a.shape[0],) if chosen.get("activation_granularity") == "token" else ()
    columns = (b.shape[1],) if chosen.get("weight_granularity") == "channel" else ()
    arguments |= {"a_zero_point": np.full(rows, zero, np.int32), "b_zero_point": np.full(columns, middle, np.int32)}
    arguments |= {"a_scale": np.ones(rows, np.float32), "b_scale": np.ones(columns, np.float32)}
    arguments["bias"] = np.zeros(b.shape[1], np.float32) if chosen.get("has_bias") else None
    return {argument.name: arguments[argument.name] for argument in CONTRACTS[operation].arguments}


def _zero(chosen: Chosen) -> int:
    return 128 if chosen.get("mapping") == "symmetric" and chosen["a_format"] == "uint8" else 0


def _integer_findings(
    implementation: Implementation, chosen: Chosen, rows: int, call: Kernel, dependences: bool
) -> Findings:
    name = implementation.operation.results[0].format(chosen)
    output: FloatFormat | None = None if name == "int32" else float_format(name)
    fmt, zero = integer_format(chosen.get("a_format", "int8")), _zero(chosen)
    operation = implementation.operation.name

    def product(pairs: Sequence[Pair]) -> list[np.ndarray]:
        results = call([_integer_arguments(operation, a, b, chosen) for a, b in pairs], chosen)
        return [y.astype(np.float64) if output is None else np.asarray(decode(y, output)) for y in results]

    probe = integers.IntegerProbe(
        product, fmt.minimum - zero, fmt.maximum - zero, output, rows=rows, columns=columns_of(rows)
    )
    return integers.fingerprint(probe, dependences)


def _findings(
    implementation: Implementation, chosen: Chosen, rows: int, call: Kernel, dependences: bool
) -> tuple[Findings, int]:
    if implementation.operation.name in _INTEGERS or implementation.operation.results[0].format(chosen) == "int32":
        return _integer_findings(implementation, chosen, rows, call, dependences), 64
    probe = probe_of(implementation, chosen, rows, columns_of(rows), call)
    return fingerprint(probe, dependences), probe.length


def chosen_parameters(implementation: Implementation) -> list[Chosen]:
    """Return the parameters at which an implementation is probed."""
    name = implementation.operation.name
    if name in _INTEGERS:
        return list(combinations(implementation, _INTEGERS[name], _PREFERRED))
    adapter = ADAPTERS[name]
    return list(combinations(implementation, adapter.sweep, adapter.preferred))


def examine(
    spec: str,
    backend: Backend,
    run: str,
    wanted: Callable[[Implementation], bool] = lambda implementation: True,
    rows: tuple[int, ...] = ROWS,
) -> Iterator[evidence.Fingerprint]:
    """Yield the fingerprints of a backend's products.

    Parameters
    ----------
    spec : str
        What stood behind ``--backend``; the kernel host loads it anew.
    backend : Backend
    run : str
        The id of the run.
    wanted : callable of an Implementation
        Which of the products to look at.
    rows : tuple of int
        M of the probes; what results depend on is looked for once, with the largest.
    """
    chosen = [i for i in backend.implementations if i.operation.name in OPERATIONS and wanted(i)]
    if not chosen:
        return
    slug = device.describe(backend.device)["slug"]
    host = KernelHost(spec, backend, TIMEOUT)
    try:
        for implementation in chosen:
            call = Kernel(implementation, host)
            for parameters in chosen_parameters(implementation):
                for m in rows:
                    started = time.perf_counter()
                    found, length = _findings(implementation, parameters, m, call, m == max(rows))
                    yield _record(
                        implementation, parameters, {"M": m, "N": columns_of(m), "K": length}, found,
                        run=run, device=slug, seconds=time.perf_counter() - started,
                    )  # fmt: skip
    finally:
        host.close()


def _record(
    implementation: Implementation, parameters: Chosen, shape: dict[str, int], found: Findings, **rest: Any
) -> evidence.Fingerprint:
    backend, operation = implementation.backend, implementation.operation
    return evidence.Fingerprint(
        time=evidence.now(), backend=backend.name, backend_version=backend.version, operation=operation.name,
        implementation=implementation.name, semantics=implementation.semantics.described(operation.semantics),
        parameters=parameters, shape=shape, findings=found.values, reasons=found.reasons, tree=found.tree, **rest,
    )  # fmt: skip
