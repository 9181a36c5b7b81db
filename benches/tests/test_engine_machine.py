import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lowbit_cts.benches.engine import machine, nvml
from lowbit_cts.benches.engine.machine import (
    UNKNOWN_CACHE_BYTES,
    last_level_cache_bytes,
    machine_state,
    use_threads,
)


def write_caches(root, caches):
    for cpu, entries in caches.items():
        for index, (level, kind, size, shared) in enumerate(entries):
            folder = root / f"cpu{cpu}" / "cache" / f"index{index}"
            folder.mkdir(parents=True)
            for name, value in {
                "level": level,
                "type": kind,
                "size": size,
                "shared_cpu_list": shared,
            }.items():
                (folder / name).write_text(f"{value}\n")


def test_state_is_json_and_names_the_conditions():
    state = json.loads(json.dumps(machine_state()))
    assert state["device"]
    assert state["cpus"] == len(machine.allowed_cpus())
    assert state["load_1min"] >= 0
    assert state["last_level_cache_bytes"] == last_level_cache_bytes()
    assert "OMP_NUM_THREADS" in state["threads"]


def test_every_reachable_last_level_cache_counts_once(tmp_path):
    first = [(1, "Instruction", "32K", "0"), (2, "Unified", "1M", "0"), (3, "Unified", "32768K", "0-1")]
    write_caches(tmp_path, {0: first, 1: first, 2: [(3, "Unified", "32768K", "2-3")]})
    assert machine._cpu_cache_bytes(tmp_path, [0, 1]) == 32 << 20
    assert machine._cpu_cache_bytes(tmp_path, [0, 1, 2]) == 64 << 20


def test_without_a_third_level_the_second_is_the_last(tmp_path):
    write_caches(tmp_path, {0: [(1, "Data", "64K", "0"), (2, "Unified", "2M", "0")]})
    assert machine._cpu_cache_bytes(tmp_path, [0]) == 2 << 20


def test_an_untold_cache_is_taken_for_large(tmp_path):
    write_caches(tmp_path, {0: [(3, "Unified", "", "0")]})
    assert machine._cpu_cache_bytes(tmp_path, [0, 5]) == UNKNOWN_CACHE_BYTES


def test_threads_are_set_and_recorded():
    program = """
import os, sys, json
import numpy, torch
from lowbit_cts.benches.engine.machine import machine_state, use_threads
use_threads(1)
json.dump(machine_state()["threads"], sys.stdout)
"""
    pytest.importorskip("torch")
    result = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=50,
        env=dict(os.environ),
    )
    threads = json.loads(result.stdout)
    assert {int(count) for count in threads.values()} == {1}
    assert threads["torch"] == 1


def test_no_threads_are_an_error():
    with pytest.raises(ValueError, match="at least 1"):
        use_threads(0)


@pytest.fixture
def pynvml(monkeypatch):
    class NVMLError(Exception):
        pass

    def refuse(*_):
        raise NVMLError

    def handle(uuid):
        if uuid != "GPU-1234":
            raise NVMLError(uuid)
        return "handle"

    fake = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetPowerManagementLimit=lambda gpu: 700_000,
        nvmlDeviceGetClockInfo=lambda gpu, which: {1: 1755, 2: 2619}[which],
        nvmlDeviceGetEccMode=refuse,
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)


@pytest.mark.parametrize("uuid", ["1234", "GPU-1234"])
@pytest.mark.usefixtures("pynvml")
def test_gpu_state_answers_what_the_device_answers(uuid):
    state = nvml.gpu_state(uuid)
    assert (state["driver"], state["power_limit_w"], state["sm_mhz"]) == ("580.1", 700.0, 1755)
    assert state["ecc"] is None  # refused by the device
    assert state["clock_event_reasons"] is None  # unknown to this pynvml
    assert nvml.sm_clock_reader(uuid)() == 1755


@pytest.mark.usefixtures("pynvml")
def test_an_unknown_gpu_has_no_state():
    assert nvml.gpu_state("MIG-5678") == {}
    assert nvml.sm_clock_reader("MIG-5678")() is None


def test_without_pynvml_nothing_is_known(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.gpu_state("1234") == {}
    assert nvml.sm_clock_reader("1234")() is None
