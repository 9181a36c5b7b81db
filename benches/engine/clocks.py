"""Clocks: how long one batch of calls takes on a device, in seconds of that device.

A clock has a name, a device and a resolution, and times several samples of a batch in one go: on a GPU the
host must run ahead of the device, so the samples are queued together and awaited once.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from time import perf_counter_ns
from typing import Any, NamedTuple, Protocol

import numpy as np

from lowbit_cts.benches.engine.machine import last_level_cache_bytes
from lowbit_cts.benches.engine.nvml import sm_clock_reader


class Reading(NamedTuple):
    """One sample: seconds the batch took, and the SM clock in MHz where it can be read."""

    seconds: float
    sm_mhz: float | None = None


class Clock(Protocol):
    """What `measure` asks of a clock."""

    name: str
    device: str
    resolution_s: float

    def time(self, batch: Callable[[], Any], count: int, *, flush: bool = False) -> list[Reading]:
        """`count` samples of `batch`, each after evicting the caches if `flush`."""


def _tick_s(readings: int = 1000) -> float:
    # What counts is the clock's step and the cost of reading it, whichever is larger: both show as the
    # distance between two readings in a row.
    ticks = [perf_counter_ns() for _ in range(readings)]
    return float(np.median([b - a for a, b in pairwise(ticks) if b > a])) * 1e-9


class CpuClock:
    """Wall time of the host, for calls that have finished when they return."""

    name = "perf_counter"
    device = "cpu"

    def __init__(self) -> None:
        """Find the clock's resolution."""
        self.resolution_s = _tick_s()
        self._evictor: np.ndarray | None = None

    def time(self, batch: Callable[[], Any], count: int, *, flush: bool = False) -> list[Reading]:
        """Samples of a batch.

        Parameters
        ----------
        batch : callable
            One sample's calls.
        count : int
            Number of samples.
        flush : bool
            Read twice the last-level cache before each sample, so that the batch finds its inputs in
            main memory.

        Returns
        -------
        list of Reading
            Seconds of each whole batch.
        """
        readings = []
        for _ in range(count):
            if flush:
                self._evict()
            start = perf_counter_ns()
            batch()
            readings.append(Reading((perf_counter_ns() - start) * 1e-9))
        return readings

    def _evict(self) -> None:
        if self._evictor is None:
            self._evictor = np.ones(2 * last_level_cache_bytes() // 8)
        # Read, not written: dirty lines would be written back at the expense of the timed call.
        self._evictor.max()


class CudaClock:
    """CUDA events on the current stream of a device, through torch.

    The calls must launch on that stream; work they put on other streams is not seen.

    Parameters
    ----------
    device : str
        CUDA device as torch names it.
    lead_cycles : int
        SM cycles the device spins before each sample, while the host queues the sample: without this
        head start, the gaps between launches are measured instead of short kernels. About 0.5 ms, the
        time in which a host launches some hundred kernels.
    """

    name = "cuda_event"
    # "a resolution of approximately half a microsecond", CUDA Runtime API, cudaEventElapsedTime
    resolution_s = 0.5e-6

    def __init__(self, device: str = "cuda:0", lead_cycles: int = 1_000_000) -> None:
        """Open the device; the events are made when first needed, and then reused."""
        import torch

        self._torch = torch
        self.device = device
        self._lead_cycles = lead_cycles
        self._events: list[tuple[Any, Any]] = []
        self._evictor: Any = None
        self._sm_mhz = sm_clock_reader(str(torch.cuda.get_device_properties(device).uuid))

    def time(self, batch: Callable[[], Any], count: int, *, flush: bool = False) -> list[Reading]:
        """Samples of a batch, queued together and awaited once.

        Parameters
        ----------
        batch : callable
            One sample's calls.
        count : int
            Number of samples.
        flush : bool
            Write twice the L2 cache before each sample's start event.

        Returns
        -------
        list of Reading
            Seconds of each whole batch between its two events, and the SM clock (MHz) while it was
            queued or running.
        """
        cuda = self._torch.cuda
        while len(self._events) < count:
            self._events.append((cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)))
        events, clocks = self._events[:count], []
        with cuda.device(self.device):
            for start, end in events:
                # Private, but the only spin kernel torch has. If it goes, fail rather than time the host.
                cuda._sleep(self._lead_cycles)
                if flush:
                    self._evict()
                start.record()
                batch()
                end.record()
                clocks.append(self._sm_mhz())
            cuda.synchronize(self.device)
        # elapsed_time answers in milliseconds
        return [Reading(start.elapsed_time(end) * 1e-3, mhz) for (start, end), mhz in zip(events, clocks, strict=True)]

    def _evict(self) -> None:
        if self._evictor is None:
            torch, size = self._torch, 2 * last_level_cache_bytes(self.device)
            self._evictor = torch.empty(size, dtype=torch.uint8, device=self.device)
        self._evictor.zero_()


def clock_for(device: str) -> Clock:
    """The clock of a device: ``"cpu"``, or a CUDA device as torch names it."""
    return CudaClock(device) if device.startswith("cuda") else CpuClock()
