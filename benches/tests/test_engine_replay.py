import json
import os
import subprocess
import sys
from statistics import median

import pytest

BENCH = """
import pytest
from lowbit_cts.benches.engine.measure import Measurement
from lowbit_cts.benches.engine.replay import replay, replayed_seconds

# Sums of these are inexact in binary, and their order is not sorted.
SAMPLES = (0.1, 3e-9, 0.3, 0.7, 1e-6)

def measurement(samples):
    return Measurement(
        samples_s=samples, median_s=sorted(samples)[len(samples) // 2], ci_low_s=float("-inf"), ci_high_s=0.7,
        dropped_s=(0.9,), calls_per_sample=3, cache="cold", copies=7, clock="perf_counter", converged=False,
        warmup_s=0.5, machine={"device": "fake"},
    )

@pytest.mark.benchmark(timer=replayed_seconds)
def test_first(benchmark):
    replay(benchmark, measurement(SAMPLES), {"sqnr_db": 42.5})

@pytest.mark.benchmark(timer=replayed_seconds)
def test_second(benchmark):
    replay(benchmark, measurement((2.0,)))
"""

OTHER_TIMER = (
    BENCH
    + """
def test_without_our_timer(benchmark):
    replay(benchmark, measurement(SAMPLES))
"""
)


@pytest.fixture
def run_pytest(tmp_path):
    def run(source, *options):
        (tmp_path / "test_bench.py").write_text(source)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "pytest_benchmark.plugin",
        ]
        return subprocess.run(
            [*command, *options, "--rootdir", str(tmp_path), "-c", os.devnull, str(tmp_path)],
            cwd=tmp_path,
            env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=50,
        )

    return run


def test_samples_and_facts_arrive_in_the_json(run_pytest, tmp_path):
    result = run_pytest(BENCH, f"--benchmark-json={tmp_path / 'out.json'}")
    assert result.returncode == 0, result.stdout + result.stderr
    first, second = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    samples = [0.1, 3e-9, 0.3, 0.7, 1e-6]
    assert first["stats"]["data"] == samples
    assert first["stats"]["median"] == median(samples)
    assert first["stats"]["rounds"] == 5
    assert second["stats"]["data"] == [2.0]
    facts = first["extra_info"]
    assert facts["sqnr_db"] == 42.5
    assert (facts["cache"], facts["copies"], facts["dropped"], facts["converged"]) == ("cold", 7, 1, False)
    assert (facts["ci_low_s"], facts["ci_high_s"]) == (None, 0.7)
    assert facts["machine"] == {"device": "fake"}
    assert "0x" not in first["options"]["timer"], "an address in the JSON differs from run to run"


@pytest.mark.parametrize("option", ["--benchmark-disable", "--benchmark-cprofile=tottime"])
def test_passes_under(run_pytest, option):
    result = run_pytest(BENCH, option)
    assert result.returncode == 0, result.stdout + result.stderr


def test_another_timer_is_an_error(run_pytest):
    result = run_pytest(OTHER_TIMER)
    assert result.returncode == 1
    assert "1 failed, 2 passed" in result.stdout
    assert "timer=replayed_seconds" in result.stdout
