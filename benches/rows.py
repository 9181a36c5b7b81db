"""Rows of the accuracy-versus-speed table: one kernel, workload and cache state, measured and verified."""

import contextlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from lowbit_cts.benches import accuracy
from lowbit_cts.benches.baselines import WIDE, baselines
from lowbit_cts.benches.engine.ceilings import Ceiling, roofline
from lowbit_cts.benches.engine.clocks import clock_for
from lowbit_cts.benches.engine.measure import Cache, Measurement, copies_for_cold, measure, measure_interleaved
from lowbit_cts.benches.workloads.cases import WorkloadCase
from lowbit_cts.kernels import Case, Implementation, Semantics
from lowbit_cts.kernels.exchange import Exchange
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.formats import FORMATS, FloatFormat

Call = Callable[[], Any]

#: A median known no better than this (half-width of its interval over it) is marked in the table.
_UNSETTLED = 0.1

#: Copies of a call's buffers are limited to so many (short calls) and bytes (large ones).
_MOST_COPIES, _MOST_BYTES = 512, 2 << 30


def bound_calls(implementation: Implementation, case: Case, copies: int) -> list[Call]:
    """Return the kernel's call over as many copies of the inputs (and of given outputs)."""
    exchange = implementation.backend.exchange()
    calls: list[Call] = []
    for _ in range(copies):
        arrays = {
            argument.name: _moved(exchange, case.arrays[argument.name], argument.format(case.parameters))
            for argument in case.operation.arguments
        }
        call = implementation.bound(arrays, case.parameters)
        calls.append(_into(exchange, call, case) if implementation.takes_out else call)
    return calls


def _moved(exchange: Exchange, array: np.ndarray | None, format: str) -> Any:
    return None if array is None else exchange.from_numpy(array.copy(), format)


def _into(exchange: Exchange, call: Callable[..., Any], case: Case) -> Call:
    given = [
        exchange.from_numpy(np.zeros(case.result_shape(r), case.format(r.name).carrier), case.format(r.name).name)
        for r in case.operation.results
    ]
    out = given[0] if len(given) == 1 else tuple(given)

    def run() -> Any:
        call(out=out)
        return out

    return run


def measured(
    implementation: Implementation, workload: WorkloadCase, cache: Cache, seconds: float, smoke: bool
) -> tuple[Measurement, dict[str, Measurement]]:
    """Return the times of a kernel, and by format of the wide products measured in turns with it.

    Parameters
    ----------
    implementation, workload, cache :
        What to measure.
    seconds : float
        Time to spend sampling, seconds.
    smoke : bool
        Take one short chunk only, to see that it runs.
    """
    case = workload.case
    clock = clock_for(implementation.backend.device)
    moved = int(case.operation.bytes_moved(case))
    once = _seconds_of_one(implementation, case)
    seconds = max(seconds, 12 * once)  # enough samples for an interval, however long a call
    copies = 1
    if cache == "cold":
        copies = min(copies_for_cold(moved, implementation.backend.device), _MOST_COPIES, max(2, _MOST_BYTES // moved))
    calls = bound_calls(implementation, case, copies)
    if smoke:
        return measure(calls, clock=clock, cache=cache, warmup_s=0, min_seconds=0, max_seconds=0), {}
    wide_copies = copies if cache == "hot" else max(2, copies // 4)  # wide operands are two to four times as large
    wide = baselines(case, implementation.backend.device, wide_copies)
    if wide:
        arms = measure_interleaved(
            {**wide, "kernel": calls}, clock=clock, cache=cache, warmup_s=seconds / 3,
            max_seconds=seconds, samples_per_round=1 if once > 0.02 else 5,
        )  # fmt: skip
        return arms.pop("kernel"), arms
    found = measure(
        calls, clock=clock, cache=cache, warmup_s=seconds / 4, min_seconds=seconds / 4, max_seconds=3 * seconds / 4
    )
    return found, {}


def _seconds_of_one(implementation: Implementation, case: Case) -> float:
    """Return about how long a call takes, seconds: the shorter of two."""
    (call,) = bound_calls(implementation, case, 1)
    return min(reading.seconds for reading in clock_for(implementation.backend.device).time(call, 2))


@lru_cache(maxsize=4)
def _enclosures(workload: WorkloadCase, semantics: Semantics) -> dict[str, Enclosure]:
    return workload.case.enclosures(semantics)


def verified(implementation: Implementation, workload: WorkloadCase, output: Any) -> dict[str, Any]:
    """Return the error of the timed buffers: SQNR against the unquantized result, and the verdict of the enclosure."""
    case = workload.case
    exchange = implementation.backend.exchange()
    several = output if isinstance(output, (tuple, list)) else (output,)
    results = {
        r.name: exchange.to_numpy(value, case.format(r.name).name)
        for r, value in zip(case.operation.results, several, strict=True)
    }
    worst, mismatches, admissible = 0.0, 0, True
    followed = case.operation.follow is not None
    enclosures = (
        case.enclosures(implementation.semantics, results)
        if followed
        else _enclosures(workload, implementation.semantics)
    )
    for name, enclosure in enclosures.items():
        values = case.decoded(name, results[name])
        worst = max(worst, float(enclosure.ratio(values).max(initial=0.0)))
        mismatches += accuracy.mismatches(np.asarray(enclosure.exact), values)
        admissible &= bool(enclosure.admits(values).all())
    verdict = "violation" if not admissible else "exact" if mismatches == 0 else "faithful"
    facts: dict[str, Any] = {"worst": worst, "mismatches": mismatches, "verdict": verdict}
    with contextlib.suppress(ValueError):  # an operation without a real-valued truth has no ratio
        facts["sqnr_db"] = accuracy.sqnr_db(workload.truth, workload.approximation(*results.values()))
    return facts


def bits_per_weight(case: Case) -> float:
    """Return the bits that an element of the quantized operand costs, its share of scales and zero points included."""
    operation = case.operation
    bits, elements = 0.0, 0
    for slot in (*operation.arguments, *operation.results):
        array = case.arrays.get(slot.name)
        result = slot in operation.results and slot.name in operation.weights + operation.stored
        size = array.size if array is not None else int(np.prod(case.result_shape(slot))) if result else 0
        elements += size * (slot.name in operation.weights)
        bits += size * case.bits(slot) * (slot.name in operation.stored)
    if not elements and {"N", "K"} <= set(case.sizes):  # weights in blocks of bytes
        elements = case.sizes["N"] * case.sizes["K"]
    if not elements:
        ends = [case.parameters.get("source"), case.parameters.get("target"), case.parameters.get("format")]
        return min(float(FORMATS[name].bits) for name in ends if name in FORMATS)
    return bits / elements


def row(
    implementation: Implementation,
    workload: WorkloadCase,
    found: Measurement,
    wide: Mapping[str, Measurement],
    ceilings: dict[str, Ceiling],
) -> dict[str, Any]:
    """Return the fields of a measurement's evidence, but for run, time and device."""
    case = workload.case
    operations, moved = case.operation.work(case), case.operation.bytes_moved(case)
    facts = verified(implementation, workload, found.last_output)
    share, name = None, None
    factors = [name for name in ("a", "b") if name in case.arrays]
    integer = len(factors) == 2 and not any(isinstance(case.format(name), FloatFormat) for name in factors)
    rate = ceilings.get("matmul_int8" if integer else "matmul_float32")
    if rate and "copy" in ceilings:
        limit = roofline(operations, moved, rate.value, ceilings["copy"].value)
        share, name = limit.seconds / found.median_s, rate.name if limit.bound == "compute" else "copy"
    return {
        "backend": implementation.backend.name,
        "backend_version": implementation.backend.version,
        "operation": case.operation.name,
        "implementation": implementation.name,
        "parameters": {key: value for key, value in case.parameters.items() if value is not None},
        "workload": workload.layer.id,
        "shape": {**case.sizes, "batch": workload.batch},
        "fill": workload.fill,
        "cache": found.cache,
        "clock": found.clock,
        "median_s": found.median_s,
        "ci_low_s": found.ci_low_s,
        "ci_high_s": found.ci_high_s,
        "samples": len(found.samples_s),
        "dropped": found.dropped,
        "calls_per_sample": found.calls_per_sample,
        "operations": operations,
        "bytes": moved,
        "bits_per_weight": bits_per_weight(case),
        "ceiling_share": share,
        "ceiling_name": name,
        "speedups": {name: baseline.median_s / found.median_s for name, baseline in wide.items()},
        "ideal_speedups": {name: WIDE[name] / bits_per_weight(case) for name in wide},
        "sm_mhz": found.sm_mhz,
        "notes": None if found.relative_half_width <= _UNSETTLED else "unsettled: the machine was busy",
        **facts,
    }


def ceiling_record(ceiling: Ceiling) -> dict[str, Any]:
    """Return the fields of a ceiling's evidence in the units of the table, but for run, time and device."""
    unit = {"byte/s": "GB/s", "operation/s": "GOP/s" if "int" in ceiling.name else "GFLOP/s"}[ceiling.unit]
    return {
        "name": ceiling.name.replace("_", " ") + (" bandwidth" if ceiling.name == "copy" else ""),
        "unit": unit,
        **{key: getattr(ceiling, key) / 1e9 for key in ("value", "ci_low", "ci_high")},
    }
