import gc
import subprocess
import sys
import zlib
from functools import partial
from time import thread_time

import numpy as np
import pytest

from lowbit_cts.benches.engine import measure as module
from lowbit_cts.benches.engine.clocks import CpuClock, Reading
from lowbit_cts.benches.engine.machine import last_level_cache_bytes
from lowbit_cts.benches.engine.measure import copies_for_cold, measure, measure_interleaved, ratio_interval
from lowbit_cts.benches.engine.statistics import median_interval


class VirtualClock:
    """Time that passes only as calls say, so that the loop's decisions can be checked exactly."""

    name, device, resolution_s = "virtual", "cpu", 1e-6

    def __init__(self):
        self.now, self.flushes, self.mhz, self.batches = 0.0, 0, None, 0

    def time(self, batch, count, *, flush=False):
        readings = []
        for _ in range(count):
            self.flushes += flush
            self.batches += 1
            start = self.now
            batch()
            readings.append(Reading(self.now - start, self.mhz and self.mhz(self.batches)))
        return readings

    def spend(self, seconds):
        def call():
            self.now += seconds() if callable(seconds) else seconds

        return call


@pytest.fixture
def clock(monkeypatch):
    virtual = VirtualClock()
    monkeypatch.setattr(module, "perf_counter", lambda: virtual.now)
    return virtual


def test_short_calls_are_batched_against_the_resolution(clock):
    measured = measure([clock.spend(3e-6)], clock=clock)
    # a tick of 1 us is a fifth of 0.5 % of 1 ms
    assert measured.calls_per_sample * 3e-6 >= 1e-3
    assert measured.calls_per_sample * 3e-6 < 2e-3
    assert measured.median_s == pytest.approx(3e-6)
    assert measured.converged


def test_long_calls_are_not_batched(clock):
    assert measure([clock.spend(0.01)], clock=clock).calls_per_sample == 1


def test_stops_when_the_median_is_known(clock):
    rng = np.random.default_rng(0)
    measured = measure([clock.spend(lambda: 0.01 * rng.lognormal(0, 0.02))], clock=clock)
    assert measured.converged
    assert measured.relative_half_width <= 0.005
    assert measured.ci_low_s <= 0.01 <= measured.ci_high_s
    # (1.96 * 1.2533 * 0.02 / 0.005)^2 is about 97: neither a handful nor thousands
    assert 30 < len(measured.samples_s) < 400


def test_stops_at_the_time_cap_without_convergence(clock):
    rng = np.random.default_rng(0)
    measured = measure([clock.spend(lambda: 0.01 * rng.lognormal(0, 1))], clock=clock, max_seconds=2)
    assert not measured.converged
    assert 1.9 < sum(measured.samples_s) < 2.3


def test_samples_for_the_least_time(clock):
    measured = measure([clock.spend(0.001)], clock=clock, min_seconds=0.5)
    assert 0.5 <= sum(measured.samples_s) < 0.6


def test_no_time_is_a_smoke_test(clock):
    measured = measure([clock.spend(0.5)], clock=clock, warmup_s=0, min_seconds=0, max_seconds=0)
    assert len(measured.samples_s) == 1
    assert not measured.converged
    assert measured.ci_high_s == np.inf


def test_warms_up_until_the_median_settles(clock):
    # a clock that ramps up over the first second
    def ramp():
        return 0.001 * (1 + max(0.0, 1 - clock.now))

    measured = measure([clock.spend(ramp)], clock=clock, warmup_s=10)
    assert 1.0 < measured.warmup_s < 6
    assert measured.median_s == pytest.approx(0.001)
    assert max(measured.samples_s) == pytest.approx(0.001)


def test_warm_up_is_capped(clock):
    start = clock.now
    measured = measure([clock.spend(lambda: 0.001 * (1 + clock.now - start))], clock=clock, warmup_s=1, max_seconds=1)
    assert 1 <= measured.warmup_s < 1.2


def test_cold_walks_the_rotation_and_hot_repeats_the_first(clock):
    order = []

    def call(index):
        def run():
            clock.now += 3e-4
            order.append(index)
            return f"output {index}"

        return run

    calls = [call(index) for index in range(5)]
    cold = measure(calls, clock=clock, cache="cold")
    assert order == [position % 5 for position in range(len(order))]
    assert cold.calls_per_sample > 1
    assert (cold.copies, clock.flushes) == (5, 0)
    assert cold.last_index == order[-1]
    assert cold.last_output == f"output {order[-1]}"

    order.clear()
    hot = measure(calls, clock=clock, cache="hot")
    assert set(order) == {0}
    assert (hot.last_output, hot.last_index, hot.copies) == ("output 0", 0, 1)


def test_cold_with_one_copy_flushes_before_every_call(clock):
    calls = []
    measured = measure([lambda: (calls.append(1), clock.spend(1e-5)())], clock=clock, cache="cold")
    assert measured.calls_per_sample == 1
    assert clock.flushes == len(calls)


def test_throttled_samples_are_dropped_and_counted(clock):
    rng = np.random.default_rng(0)
    clock.mhz = lambda batch: 900 if batch % 3 == 0 else 1800
    call = clock.spend(lambda: (0.02 if clock.batches % 3 == 0 else 0.01) * rng.uniform(1, 1.1))
    measured = measure([call], clock=clock, min_seconds=2, max_seconds=3)
    assert measured.dropped > 20
    assert min(measured.dropped_s) >= 0.02
    assert max(measured.samples_s) <= 0.011
    assert measured.sm_mhz == 1800
    interval = (measured.ci_low_s, measured.median_s, measured.ci_high_s)
    assert interval == median_interval(measured.samples_s)


def test_interleaved_rounds_go_there_and_back(clock):
    order = []

    def arm(name, seconds):
        return [lambda: (order.append(name), clock.spend(seconds)())]

    measured = measure_interleaved({"a": arm("a", 0.01), "b": arm("b", 0.02)}, clock=clock, warmup_s=0)
    rounds = len(measured["a"].round_s)
    turns = "".join(order)[-rounds * 12 :]  # 5 samples a turn, after one that is thrown away
    a, b = "a" * 6, "b" * 6
    assert turns == ((a + b + b + a) * rounds)[: len(turns)]
    assert rounds == len(measured["b"].round_s) >= 10
    assert len(measured["a"].samples_s) == 5 * rounds
    assert ratio_interval(measured["b"], measured["a"]) == pytest.approx([np.log(2)] * 3)


def test_interleaving_sees_through_drift(clock):
    rng = np.random.default_rng(0)

    def drifting(seconds):
        return [clock.spend(lambda: seconds * (1 + clock.now) * rng.lognormal(0, 0.01))]

    measured = measure_interleaved({"a": drifting(0.001), "b": drifting(0.00105)}, clock=clock, warmup_s=0)
    low, _, high = ratio_interval(measured["b"], measured["a"])
    assert low <= np.log(1.05) <= high
    assert high - low < 0.02


def test_interleaving_leaves_out_throttled_rounds(clock):
    clock.mhz = lambda batch: 900 if 100 <= batch < 130 else 1800
    arms = {name: [clock.spend(0.01)] for name in "ab"}
    measured = measure_interleaved(arms, clock=clock, warmup_s=0, min_rounds=20)
    assert np.isnan(measured["a"].round_s).any()
    assert ratio_interval(measured["a"], measured["b"]) == pytest.approx((0, 0, 0))


def test_garbage_collection_is_paused_and_restored():
    seen = []
    measure([lambda: seen.append(gc.isenabled())], clock=CpuClock(), warmup_s=0, min_seconds=0, max_seconds=0)
    assert not any(seen)
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: measure([], clock=CpuClock()), "no calls"),
        (lambda: measure([int], clock=CpuClock(), cache="warm"), "'hot' or 'cold'"),
        (lambda: measure_interleaved({"a": [int]}, clock=CpuClock()), "two arms"),
        (lambda: copies_for_cold(0), "at least 1 byte"),
    ],
)
def test_misuse_is_an_error(act, message):
    with pytest.raises(ValueError, match=message):
        act()


@pytest.mark.parametrize("bytes_per_call", [1000, 1 << 20, 1 << 40])
def test_copies_exceed_twice_the_cache_and_no_more(bytes_per_call):
    copies, twice = copies_for_cold(bytes_per_call), 2 * last_level_cache_bytes()
    assert copies * bytes_per_call > twice
    assert copies == 2 or (copies - 1) * bytes_per_call <= twice


# From here on time is real, and a shared machine changes speed from one second to the next. Both sides take
# short turns, and the median over the turns of their ratio counts. The other side's clock is the thread's own,
# which stands still while the machine runs something else: the engine's median is to be as insensitive.


def assert_agree(ours, theirs, tolerance, turns=12, tries=3):
    ratios = [np.median([ours() / theirs() for _ in range(turns)])]
    while abs(ratios[-1] - 1) > tolerance and len(ratios) < tries:
        ratios.append(np.median([ours() / theirs() for _ in range(turns)]))
    assert abs(ratios[-1] - 1) <= tolerance, f"measured / expected, try by try: {ratios}"


def quick_median(call):
    return measure([call], clock=CpuClock(), warmup_s=0.02, min_seconds=0.05, max_seconds=0.1).median_s


def spin(count):
    # Compiled code that allocates nothing. A Python loop over integers differs by 5 % from one state of
    # the heap to the next.
    zlib.crc32(SPUN[:count])


SPUN = memoryview(bytes(1 << 22))


def long_loop(call, repeats):
    # one reading over many calls: neither batches, nor rotation, nor statistics
    start = thread_time()
    for _ in range(repeats):
        call()
    return (thread_time() - start) / repeats


@pytest.mark.parametrize("microseconds", [5, 200])
def test_a_calibrated_spin_is_measured_right(microseconds):
    one = min(long_loop(lambda: spin(100_000), 100) for _ in range(20)) / 100_000
    count = round(microseconds * 1e-6 / one)
    repeats = round(0.01 / (microseconds * 1e-6))

    def call():
        spin(count)

    assert_agree(
        lambda: quick_median(call),
        lambda: np.median([long_loop(call, repeats) for _ in range(9)]),
        tolerance=0.03,
    )


def test_agrees_with_torch_benchmark_timer():
    benchmark = pytest.importorskip("torch.utils.benchmark")

    def call():
        spin(100_000)

    timer = benchmark.Timer("call()", globals={"call": call}, timer=thread_time)
    assert_agree(lambda: quick_median(call), lambda: timer.blocked_autorange(min_run_time=0.1).median, tolerance=0.05)


def test_cold_is_slower_than_hot_when_memory_binds():
    size = 1 << 18  # fits the cache, but a rotation of it does not
    copies = [np.ones(size, np.uint8) for _ in range(copies_for_cold(size))]
    calls = [copy.max for copy in copies]

    def attempt():
        hot, cold = (
            measure(calls, clock=CpuClock(), cache=cache, warmup_s=0.1, max_seconds=0.3) for cache in ("hot", "cold")
        )
        return cold.median_s, hot.median_s

    assert max(np.divide(*attempt()) for _ in range(3)) > 1.15


def test_interleaving_finds_a_five_percent_slowdown_and_no_other():
    counts = {"base": 400_000, "same": 400_000, "slow": 420_000}

    def attempt():
        arms = {name: [partial(spin, count)] for name, count in counts.items()}
        measured = measure_interleaved(arms, clock=CpuClock(), warmup_s=0.1, max_seconds=1.5, min_rounds=20)
        same = ratio_interval(measured["same"], measured["base"])[1]
        slow = ratio_interval(measured["slow"], measured["base"])[1]
        return abs(same) < 0.015 and abs(slow - np.log(1.05)) < 0.015

    assert any(attempt() for _ in range(5))


def test_measuring_on_the_cpu_never_imports_torch():
    program = """
import sys
from lowbit_cts.benches.engine import ceilings, clocks, datasheet, machine, measure, nvml, replay, statistics
measure.measure([int], clock=clocks.clock_for("cpu"), warmup_s=0, min_seconds=0, max_seconds=0)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=50)
