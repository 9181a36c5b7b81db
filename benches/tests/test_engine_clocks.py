import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from lowbit_cts.benches.engine import clocks, machine
from lowbit_cts.benches.engine.clocks import CpuClock, CudaClock, clock_for


def test_cpu_clock_counts_samples_and_tells_its_resolution():
    clock, calls = clock_for("cpu"), []
    readings = clock.time(lambda: calls.append(1), 7)
    assert isinstance(clock, CpuClock)
    assert len(readings) == len(calls) == 7
    assert all(reading.seconds >= 0 and reading.sm_mhz is None for reading in readings)
    assert 1e-9 <= clock.resolution_s < 1e-3


def test_cpu_flush_runs_before_each_sample_and_outside_its_time(monkeypatch):
    ticks, log = iter(range(1000)), []
    clock = CpuClock()
    monkeypatch.setattr(clocks, "perf_counter_ns", lambda: log.append("read") or next(ticks))
    monkeypatch.setattr(clock, "_evict", lambda: log.append("evict"))
    clock.time(lambda: log.append("batch"), 2, flush=True)
    assert log == ["evict", "read", "batch", "read"] * 2


def test_cpu_flush_reads_twice_the_last_level_cache(monkeypatch):
    monkeypatch.setattr(clocks, "last_level_cache_bytes", lambda: 1 << 16)
    clock = CpuClock()
    clock.time(lambda: None, 1, flush=True)
    assert clock._evictor.nbytes == 2 << 16


class FakeCuda:
    """A device whose queue is a list: events note when they are reached, and answer only after a sync."""

    def __init__(self):
        self.log, self.milliseconds, self.synchronized, self.made = [], 0.0, False, 0

    def launch(self, name, milliseconds):
        self.log.append(name)
        self.milliseconds += milliseconds
        self.synchronized = False

    def Event(self, *, enable_timing):
        assert enable_timing
        self.made += 1
        event = SimpleNamespace(at=None)

        def record():
            self.log.append("event")
            event.at = self.milliseconds

        def elapsed_time(end):
            assert self.synchronized, "an event was read before it was reached"
            return end.at - event.at

        event.record, event.elapsed_time = record, elapsed_time
        return event

    def synchronize(self, device):
        self.log.append("synchronize")
        self.synchronized = True

    def device(self, device):
        return nullcontext()

    def _sleep(self, cycles):
        self.launch("lead", 0.7)

    def get_device_properties(self, device):
        return SimpleNamespace(uuid="fake", L2_cache_size=1000)


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()

    def empty(size, *, dtype, device):
        assert size == 2000, "the flush must cover twice the L2"
        return SimpleNamespace(zero_=lambda: fake.launch("flush", 3.0))

    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=fake, empty=empty, uint8=None))
    machine.last_level_cache_bytes.cache_clear()
    yield fake
    machine.last_level_cache_bytes.cache_clear()


def test_cuda_clock_times_only_what_lies_between_its_events(cuda):
    readings = CudaClock().time(lambda: cuda.launch("batch", 0.25), 3, flush=True)
    assert [reading.seconds for reading in readings] == pytest.approx([0.25e-3] * 3)
    assert cuda.log == ["lead", "flush", "event", "batch", "event"] * 3 + ["synchronize"]


def test_cuda_clock_hot_does_not_flush(cuda):
    CudaClock().time(lambda: cuda.launch("batch", 0.25), 2)
    assert cuda.log == ["lead", "event", "batch", "event"] * 2 + ["synchronize"]


def test_cuda_events_are_reused(cuda):
    clock = CudaClock()
    for count in (4, 2, 4):
        clock.time(lambda: None, count)
    assert cuda.made == 8


def test_cuda_clock_reads_the_sm_clock_of_each_sample(cuda, monkeypatch):
    frequencies = iter([1980, 1200])
    monkeypatch.setattr(clocks, "sm_clock_reader", lambda uuid: lambda: next(frequencies))
    readings = CudaClock().time(lambda: None, 2)
    assert [reading.sm_mhz for reading in readings] == [1980, 1200]
