"""The measuring loop: calibrate, warm up, sample until the median is known well enough.

The interval of the median assumes independent samples. Neighbouring samples are not quite: a confidence
interval here describes this run, and says nothing of the next process. To compare two kernels, take
`measure_interleaved` and its paired rounds.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice
from math import ceil
from time import perf_counter
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lowbit_cts.benches.engine.clocks import Clock, Reading
from lowbit_cts.benches.engine.machine import last_level_cache_bytes, machine_state
from lowbit_cts.benches.engine.statistics import (
    log_ratio_interval,
    median_interval,
    relative_half_width,
    throttled,
)

Cache = Literal["hot", "cold"]
Call = Callable[[], Any]

# A chunk of samples is taken without looking at the time: long enough for a GPU's queue to fill, short
# enough to keep to the time cap.
_CHUNK_S = 0.02
_CHUNK_SAMPLES = 64

# Calls longer than this are calibrated by a single sample, to spare time.
_LONG_CALL_S = 0.1


@dataclass(frozen=True)
class Measurement:
    """Times of one call under one cache state, and how they were taken.

    Attributes
    ----------
    samples_s : tuple of float
        Seconds per call of every sample kept, in the order taken.
    median_s, ci_low_s, ci_high_s : float
        Median and its 95 % confidence interval, seconds per call. The interval is infinite with fewer
        than 6 samples.
    dropped_s : tuple of float
        Seconds per call of the samples dropped because the device was throttled.
    calls_per_sample : int
        Calls in one sample; a sample's time is divided by it.
    cache : {"hot", "cold"}
        State in which each call found its inputs.
    copies : int
        Distinct calls rotated through; 1 and cold means that the caches were flushed before each call.
    clock : str
        Name of the clock.
    converged : bool
        Whether the interval came under the target before time ran out.
    warmup_s : float
        Seconds spent warming up.
    sm_mhz : float or None
        Median SM clock of the samples kept, MHz, where it can be read.
    round_s : tuple of float
        Median of each round, seconds per call (NaN where all were dropped); empty if not interleaved.
    last_output : object
        What the last timed call returned, to be verified.
    last_index : int
        Which of the calls that was.
    machine : mapping
        `machine_state` right after the measurement.
    """

    samples_s: tuple[float, ...]
    median_s: float
    ci_low_s: float
    ci_high_s: float
    dropped_s: tuple[float, ...]
    calls_per_sample: int
    cache: Cache
    copies: int
    clock: str
    converged: bool
    warmup_s: float
    sm_mhz: float | None = None
    round_s: tuple[float, ...] = ()
    last_output: Any = field(default=None, repr=False, compare=False)
    last_index: int = 0
    machine: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def dropped(self) -> int:
        """Number of samples dropped."""
        return len(self.dropped_s)

    @property
    def relative_half_width(self) -> float:
        """Half the confidence interval's width over the median."""
        return relative_half_width(self.ci_low_s, self.median_s, self.ci_high_s)


class _Arm:
    """One thing being measured: its rotation of calls and the readings so far, round by round."""

    def __init__(self, calls: Sequence[Call], clock: Clock, cache: Cache, target: float) -> None:
        if not calls:
            raise ValueError("nothing to measure: no calls")
        if cache not in ("hot", "cold"):
            raise ValueError(f"cache must be 'hot' or 'cold', got {cache!r}")
        self.clock, self.cache, self.target = clock, cache, target
        self.copies = 1 if cache == "hot" else len(calls)
        self.flush = cache == "cold" and self.copies == 1
        self._rotation = cycle(calls[: self.copies])
        self._calls_made = 0
        self.calls_per_sample = 1
        self.chunk = 1
        self.warmup_s = 0.0
        self.output: Any = None
        self.readings: list[Reading] = []
        self.round_ends: list[int] = []

    def _batch(self) -> None:
        # The last output is kept for verification and freed here, inside the timing, so that every
        # sample allocates and frees as many outputs as it makes.
        self.output = None
        for call in islice(self._rotation, self.calls_per_sample - 1):
            call()
        self.output = next(self._rotation)()
        self._calls_made += self.calls_per_sample

    def read(self, count: int) -> list[Reading]:
        return self.clock.time(self._batch, count, flush=self.flush)

    def prepare(self, warmup_s: float) -> None:
        """Warm up and calibrate, so that the next samples count."""
        self.read(1)  # the first call loads, allocates or compiles
        self.calibrate()
        self.warm(warmup_s)
        self.calibrate()  # warm calls are shorter, and more of them fit a sample

    def calibrate(self) -> None:
        """Choose how many calls a sample needs, and how many samples fit a chunk."""
        # One tick of the clock shall be no more than a fifth of the target.
        sample_s = 5 * self.clock.resolution_s / self.target
        while True:
            started = perf_counter()
            readings = self.read(1)
            if readings[0].seconds < _LONG_CALL_S:
                readings += self.read(2)
            wall = (perf_counter() - started) / len(readings)
            shortest = min(reading.seconds for reading in readings)
            if self.flush or shortest >= sample_s:
                break
            growth = 1.3 * sample_s / max(shortest, self.clock.resolution_s)
            self.calls_per_sample = ceil(self.calls_per_sample * min(growth, 10))
        self.chunk = max(1, min(_CHUNK_SAMPLES, int(_CHUNK_S / max(wall, shortest))))

    def warm(self, cap_s: float, agreement: float = 0.01) -> None:
        """Run until three windows in a row have the same median, or the cap."""
        started, before, agreed = perf_counter(), 0.0, 0
        while agreed < 2 and (elapsed := perf_counter() - started) < cap_s:
            window = self.read(self.chunk)
            while perf_counter() - started < elapsed + cap_s / 10:
                window += self.read(self.chunk)
            now = float(np.median([reading.seconds for reading in window]))
            agreed = agreed + 1 if abs(now - before) <= agreement * now else 0
            before = now
        self.warmup_s = perf_counter() - started

    def sample(self, count: int) -> None:
        """Take one round of so many samples."""
        self.readings += self.read(count)
        self.round_ends.append(len(self.readings))

    def seconds(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Seconds per call of every sample, and which of them to drop."""
        drop = throttled([reading.sm_mhz for reading in self.readings])
        return np.array([reading.seconds for reading in self.readings]) / self.calls_per_sample, drop

    def round_medians(self) -> NDArray[np.float64]:
        """Seconds per call; NaN for a round that was throttled throughout."""
        seconds, drop = self.seconds()
        rounds = np.split(np.arange(seconds.size), self.round_ends[:-1])
        kept = (seconds[indices][~drop[indices]] for indices in rounds)
        return np.array([np.median(samples) if samples.size else np.nan for samples in kept])

    def converged(self, min_samples: int) -> bool:
        """Whether the median is known to the target."""
        seconds, drop = self.seconds()
        interval = median_interval(seconds[~drop])
        return bool((~drop).sum() >= min_samples and relative_half_width(*interval) <= self.target)

    def measurement(self, min_samples: int, *, interleaved: bool = False) -> Measurement:
        """What is known now."""
        seconds, drop = self.seconds()
        low, median, high = median_interval(seconds[~drop])
        clocks = [r.sm_mhz for r, out in zip(self.readings, drop, strict=True) if r.sm_mhz and not out]
        return Measurement(
            samples_s=tuple(seconds[~drop].tolist()),
            median_s=median,
            ci_low_s=low,
            ci_high_s=high,
            dropped_s=tuple(seconds[drop].tolist()),
            calls_per_sample=self.calls_per_sample,
            cache=self.cache,
            copies=self.copies,
            clock=self.clock.name,
            converged=self.converged(min_samples),
            warmup_s=self.warmup_s,
            sm_mhz=float(np.median(clocks)) if clocks else None,
            round_s=tuple(self.round_medians().tolist()) if interleaved else (),
            last_output=self.output,
            last_index=(self._calls_made - 1) % self.copies,
            machine=machine_state(self.clock.device),
        )


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def copies_for_cold(bytes_per_call: int, device: str = "cpu") -> int:
    """Copies of a call's inputs and outputs that together exceed twice the last-level cache.

    Parameters
    ----------
    bytes_per_call : int
        Bytes one call reads and writes.
    device : str
        ``"cpu"``, or a CUDA device as torch names it.

    Returns
    -------
    int
        At least 2: a rotation through one would be hot.
    """
    if bytes_per_call < 1:
        raise ValueError(f"a call touches at least 1 byte, got {bytes_per_call}")
    return max(2, 2 * last_level_cache_bytes(device) // bytes_per_call + 1)


def measure(
    calls: Sequence[Call],
    *,
    clock: Clock,
    cache: Cache = "hot",
    warmup_s: float = 1.0,
    min_seconds: float = 0.2,
    max_seconds: float = 15.0,
    min_samples: int = 20,
    target: float = 0.005,
) -> Measurement:
    """Time a call until the median is known to the target, or time runs out.

    Parameters
    ----------
    calls : sequence of callable
        The same call over different copies of its inputs. Hot repeats the first; cold rotates through
        all, or, given a single one, flushes the caches before each call.
    clock : Clock
        The device's clock.
    cache : {"hot", "cold"}
        Whether a call finds its inputs in the cache.
    warmup_s : float
        Longest warm-up, seconds; it ends sooner if the median settles.
    min_seconds, max_seconds : float
        Bounds on the time spent sampling, seconds. A narrow interval over a few milliseconds only
        describes those milliseconds. 0 for both (and for `warmup_s`) takes one short chunk: a smoke test.
    min_samples : int
        Fewest samples, unless time runs out.
    target : float
        Half-width of the median's 95 % confidence interval, relative to the median.

    Returns
    -------
    Measurement
        Seconds per call, with the last output of the timed calls.

    Notes
    -----
    A sample includes the Python call, some 50 ns; calls shorter than a few microseconds are not for it.
    """
    arm = _Arm(calls, clock, cache, target)
    with _no_garbage_collection():
        arm.prepare(warmup_s)
        started, next_look = perf_counter(), min_samples
        while True:
            arm.sample(arm.chunk)
            elapsed = perf_counter() - started
            if elapsed >= max_seconds:
                break
            if elapsed >= min_seconds and len(arm.readings) >= next_look:
                if arm.converged(min_samples):
                    break
                # Looking costs a sort, and each look is a chance to stop early by luck.
                next_look = ceil(1.1 * len(arm.readings))
    return arm.measurement(min_samples)


def measure_interleaved(
    arms: Mapping[str, Sequence[Call]],
    *,
    clock: Clock,
    cache: Cache = "hot",
    warmup_s: float = 1.0,
    max_seconds: float = 30.0,
    min_rounds: int = 10,
    samples_per_round: int = 5,
    target: float = 0.005,
) -> dict[str, Measurement]:
    """Time several calls in turns, so that what disturbs the machine disturbs all alike.

    Rounds alternate in order (A B, B A, ...), which cancels a steady drift. Each turn starts with a sample
    that is thrown away: the other arm has just been in the caches.

    Parameters
    ----------
    arms : mapping of str to sequence of callable
        What to compare, each as for `measure`. The first is the baseline.
    clock : Clock
        The device's clock.
    cache : {"hot", "cold"}
        As for `measure`.
    warmup_s : float
        Longest warm-up of each arm, seconds.
    max_seconds : float
        Bound on the time spent sampling all arms, seconds.
    min_rounds : int
        Fewest rounds, unless time runs out.
    samples_per_round : int
        Samples of each arm in a round.
    target : float
        Half-width of the 95 % interval of each arm's median log ratio to the baseline.

    Returns
    -------
    dict of str to Measurement
        With `round_s` filled, for `ratio_interval`. `converged` speaks of each arm's own median.
    """
    running = {name: _Arm(calls, clock, cache, target) for name, calls in arms.items()}
    if len(running) < 2:
        raise ValueError(f"interleaving takes two arms or more, got {len(running)}")
    turns = list(running.values())
    with _no_garbage_collection():
        for arm in turns:
            arm.prepare(warmup_s)
        started, next_look = perf_counter(), min_rounds
        while True:
            for arm in turns:
                arm.read(1)
                arm.sample(samples_per_round)
            turns.reverse()
            rounds = len(turns[0].round_ends)
            if perf_counter() - started >= max_seconds:
                break
            if rounds >= next_look:
                if _ratios_known(list(running.values()), target):
                    break
                next_look = ceil(1.1 * rounds)
    min_samples = min_rounds * samples_per_round
    return {name: arm.measurement(min_samples, interleaved=True) for name, arm in running.items()}


def _ratios_known(arms: list[_Arm], target: float) -> bool:
    baseline, *others = (np.log(arm.round_medians()) for arm in arms)
    for ratios in (other - baseline for other in others):
        known = ratios[np.isfinite(ratios)]
        if not known.size:
            return False
        low, _, high = median_interval(known)
        if high - low > 2 * target:
            return False
    return True


def ratio_interval(
    a: Measurement, b: Measurement, confidence: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Bootstrap interval of the log ratio of two interleaved measurements, paired by round.

    Parameters
    ----------
    a, b : Measurement
        From the same `measure_interleaved`.
    confidence : float
        Nominal coverage.
    seed : int
        Seed of the bootstrap.

    Returns
    -------
    low, median, high : float
        Natural logarithm of a's time over b's: 0.01 reads "a takes 1 % longer".
    """
    return log_ratio_interval(a.round_s, b.round_s, confidence=confidence, seed=seed)
