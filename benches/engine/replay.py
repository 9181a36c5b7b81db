"""Replay of a measurement into pytest-benchmark, for its tables, storage and comparison.

pytest-benchmark takes two readings of its timer around a call. Its timer is therefore a clock that stands
still, and the "call" sets it to the next sample: each of its rounds is one of our samples. A module says so
once, and each benchmark measures, then replays::

    pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

    def test_copy(benchmark):
        replay(benchmark, measure([copy], clock=CpuClock()), {"gb_per_s": ...})

Under ``--benchmark-disable``, which xdist implies, nothing is recorded: measure with all times zero then.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from lowbit_cts.benches.engine.measure import Measurement

# What of a measurement the statistics of pytest-benchmark do not hold.
_FACTS = (
    "clock",
    "cache",
    "copies",
    "calls_per_sample",
    "ci_low_s",
    "ci_high_s",
    "converged",
    "dropped",
    "warmup_s",
    "sm_mhz",
    "machine",
)

_seconds = 0.0


# A plain function: the JSON records the timer's name, and an object's would contain its address.
def replayed_seconds() -> float:
    """The timer to give pytest-benchmark: seconds on the clock that only `replay` moves."""
    return _seconds


def _set(seconds: float) -> None:
    global _seconds  # noqa: PLW0603 - the timer's protocol has no argument to carry it
    _seconds = seconds


def replay(benchmark: Any, measurement: Measurement, extra_info: Mapping[str, Any] | None = None) -> None:
    """Give pytest-benchmark one round per sample, and the facts that its statistics cannot hold.

    Parameters
    ----------
    benchmark : pytest_benchmark.fixture.BenchmarkFixture
        The test's ``benchmark`` fixture, with `replayed_seconds` as its timer.
    measurement : Measurement
        Its samples, in seconds per call, become the rounds.
    extra_info : mapping, optional
        Further facts for the JSON's ``extra_info``, beside the measurement's own.

    Raises
    ------
    RuntimeError
        If the fixture has another timer, which would have recorded the replay's own run time.
    """
    samples = iter(measurement.samples_s)
    # The setup runs outside the two readings. Starting every round from zero keeps the samples exact,
    # which a running sum would not. Samples run out only under --benchmark-cprofile, which calls once more.
    benchmark.pedantic(
        lambda: _set(next(samples, 0.0)),
        setup=lambda: _set(0.0),
        rounds=len(measurement.samples_s),
        iterations=1,
    )
    if benchmark.stats is not None and tuple(benchmark.stats.stats.data) != measurement.samples_s:
        raise RuntimeError("mark the module with pytest.mark.benchmark(timer=replayed_seconds) to replay into it")
    benchmark.extra_info.update({name: _plain(getattr(measurement, name)) for name in _FACTS})
    benchmark.extra_info.update(extra_info or {})


def _plain(value: Any) -> Any:
    # JSON has no infinity: the ends of an interval from too few samples are null there.
    return None if isinstance(value, float) and not isfinite(value) else value
