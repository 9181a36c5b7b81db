"""Ceilings: the copy bandwidth and the matmul rates this device reaches, and the roofline they span."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np
import psutil

from lowbit_cts.benches.engine.clocks import Clock, clock_for
from lowbit_cts.benches.engine.machine import last_level_cache_bytes
from lowbit_cts.benches.engine.measure import Measurement, measure

MATMUL_TYPES = ("float32", "bfloat16", "int8")

# A side is doubled until one call takes this long, then the largest three are measured: on a CPU a
# smaller one is often faster, because it stays in the cache.
_LONG_CALL_S = 0.01
_SMALLEST_SIDE, _LARGEST_SIDE, _SIZES = 256, 16384, 3


class Ceiling(NamedTuple):
    """A rate of the device, with its 95 % confidence interval, and what was counted."""

    name: str
    value: float
    unit: Literal["byte/s", "operation/s"]
    ci_low: float
    ci_high: float
    counted: str


def _rate(name: str, unit: Any, counted: str, amount: float, measured: Measurement) -> Ceiling:
    low, high = amount / measured.ci_high_s, amount / measured.ci_low_s
    # too few samples for an interval: the time may be anything above zero
    return Ceiling(name, amount / measured.median_s, unit, low, high if high > 0 else np.inf, counted)


def _timed(call: Callable[[], Any], clock: Clock, seconds: float) -> Measurement:
    return measure(
        [call],
        clock=clock,
        warmup_s=seconds / 4,
        min_seconds=seconds / 4,
        max_seconds=3 * seconds / 4,
    )


def _copy(device: str, length: int) -> Callable[[], Any]:
    # Filled, because pages never written all map to the same page of zeros, which stays in the cache.
    if find_spec("torch") is None:
        source, target = np.ones(length, np.uint8), np.zeros(length, np.uint8)
        target.fill(2)
        return lambda: np.copyto(target, source)
    import torch

    given = torch.full((length,), 1, dtype=torch.uint8, device=device)
    taken = torch.full((length,), 2, dtype=torch.uint8, device=device)
    return lambda: taken.copy_(given)


def _memory_free(device: str) -> int:
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def copy_bandwidth(device: str, clock: Clock, seconds: float = 0.6) -> Ceiling:
    """Rate of copying between buffers in main memory, each over four times the last-level cache.

    Parameters
    ----------
    device : str
        ``"cpu"``, or a CUDA device as torch names it.
    clock : Clock
        The device's clock.
    seconds : float
        Time to spend, seconds.

    Returns
    -------
    Ceiling
        Byte/s, each byte counted twice: once read, once written. That a CPU may read a line before
        writing it is not counted (as in STREAM).
    """
    length = min(max(4 * last_level_cache_bytes(device) + 4096, 64 << 20), _memory_free(device) // 4)
    measured = _timed(_copy(device, length), clock, seconds)
    return _rate("copy", "byte/s", f"{length} bytes read and {length} written", 2 * length, measured)


def _matmul(dtype: str, side: int, device: str) -> Callable[[], Any]:
    generator = np.random.default_rng(0)
    if find_spec("torch") is None:
        a, b = (generator.standard_normal((side, side), dtype=np.float32) for _ in range(2))
        out = np.empty_like(a)
        return lambda: np.matmul(a, b, out=out)
    import torch

    def operand() -> torch.Tensor:
        if dtype == "int8":
            return torch.randint(-128, 128, (side, side), dtype=torch.int8, device=device)
        return torch.randn((side, side), device=device).to(getattr(torch, dtype))

    # The second operand is transposed, as a layer's weights are: the one layout that every int8 kernel has.
    left, right = operand(), operand().t()
    if dtype == "int8":
        product = torch.empty((side, side), dtype=torch.int32, device=device)
        return lambda: torch._int_mm(left, right, out=product)
    product = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=product)


def _sides(dtype: str, device: str, clock: Clock) -> Iterator[tuple[int, Callable[[], Any]]]:
    side = _SMALLEST_SIDE
    while True:
        call = _matmul(dtype, side, device)
        shortest = min(reading.seconds for reading in clock.time(call, 3))
        if shortest >= _LONG_CALL_S or side >= _LARGEST_SIDE:
            break
        side *= 2
    for size in [side >> shift for shift in range(_SIZES)]:
        yield size, _matmul(dtype, size, device)


def matmul_rate(dtype: str, device: str, clock: Clock, seconds: float = 1.8) -> Ceiling:
    """Best rate of square matrix multiplications, hot, over a few sizes.

    Parameters
    ----------
    dtype : {"float32", "bfloat16", "int8"}
        Type of both operands. int8 accumulates in int32. float32 on CUDA follows torch's TF32 setting.
    device : str
        ``"cpu"``, or a CUDA device as torch names it.
    clock : Clock
        The device's clock.
    seconds : float
        Time to spend on all sizes, seconds.

    Returns
    -------
    Ceiling
        Operation/s, a multiplication and an addition counted separately.
    """
    ceilings = [
        _rate(
            f"matmul_{dtype}",
            "operation/s",
            f"2 * {side}**3 operations",
            2.0 * side**3,
            _timed(call, clock, seconds / _SIZES),
        )
        for side, call in _sides(dtype, device, clock)
    ]
    return max(ceilings, key=lambda ceiling: ceiling.value)


def measured_ceilings(device: str = "cpu", seconds: float = 5.0) -> list[Ceiling]:
    """Copy bandwidth and matmul rates of a device, measured.

    Parameters
    ----------
    device : str
        ``"cpu"``, or a CUDA device as torch names it.
    seconds : float
        Time to spend, seconds, beside that of setting up.

    Returns
    -------
    list of Ceiling
        ``copy`` and ``matmul_<type>``; without torch only float32, and a type that the device refuses
        is left out.
    """
    clock = clock_for(device)
    types = MATMUL_TYPES if find_spec("torch") else MATMUL_TYPES[:1]
    ceilings = [copy_bandwidth(device, clock, seconds / 10)]
    for dtype in types:
        try:
            ceilings.append(matmul_rate(dtype, device, clock, 0.9 * seconds / len(types)))
        except (RuntimeError, NotImplementedError):
            # torch's way to say that this device has no such kernel
            continue
    return ceilings


class Roofline(NamedTuple):
    """Least time the ceilings allow, seconds, and the ceiling that binds."""

    seconds: float
    bound: Literal["compute", "memory"]


def roofline(operations: float, bytes_moved: float, compute_rate: float, bandwidth: float) -> Roofline:
    """Attainable time of a kernel under two ceilings.

    Parameters
    ----------
    operations : float
        Operations the kernel performs.
    bytes_moved : float
        Bytes it must move to and from main memory.
    compute_rate : float
        Ceiling, operation/s.
    bandwidth : float
        Ceiling, byte/s.

    Returns
    -------
    Roofline
        The larger of the two times; ``"compute"`` at the ridge point.

    References
    ----------
    S. Williams, A. Waterman and D. Patterson, Roofline: An Insightful Visual Performance Model
    for Multicore Architectures, CACM 52(4), 2009.
    """
    compute_s, memory_s = operations / compute_rate, bytes_moved / bandwidth
    return Roofline(compute_s, "compute") if compute_s >= memory_s else Roofline(memory_s, "memory")
