"""The conditions of a measurement: device, caches, threads, load, clocks. A time without is hearsay."""

from __future__ import annotations

import os
import platform
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from lowbit_cts.benches.engine.nvml import gpu_state

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

# Where the system does not tell: more than most machines have, so that "cold" stays cold.
UNKNOWN_CACHE_BYTES = 64 << 20

_SYSFS = Path("/sys/devices/system/cpu")
_UNITS = {"K": 10, "M": 20, "G": 30}


def allowed_cpus() -> list[int]:
    """The logical CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _cpu_cache_bytes(root: Path, cpus: list[int]) -> int:
    # Every instance this process can reach counts: a rotation read by threads on two dies fills both
    # their caches. Instances are told apart by the CPUs that share them.
    sizes: dict[tuple[int, str], int] = {}
    for cpu in cpus:
        for index in (root / f"cpu{cpu}" / "cache").glob("index[0-9]*"):
            try:
                level, kind, size, shared = (
                    (index / name).read_text().strip() for name in ("level", "type", "size", "shared_cpu_list")
                )
                if kind != "Instruction":
                    sizes[int(level), shared] = int(size[:-1]) << _UNITS[size[-1]]
            except (OSError, ValueError, KeyError, IndexError):
                continue
    last = max((level for level, _ in sizes), default=0)
    return sum(size for (level, _), size in sizes.items() if level == last) or UNKNOWN_CACHE_BYTES


@lru_cache(maxsize=8)
def last_level_cache_bytes(device: str = "cpu") -> int:
    """Capacity of the last cache before main memory.

    Parameters
    ----------
    device : str
        ``"cpu"``, or a CUDA device as torch names it (``"cuda:0"``).

    Returns
    -------
    int
        Bytes; of a CPU, all last-level caches this process's CPUs reach together. Where the system does
        not tell, `UNKNOWN_CACHE_BYTES`.
    """
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    return _cpu_cache_bytes(_SYSFS, allowed_cpus())


@lru_cache(maxsize=8)
def device_name(device: str = "cpu") -> str:
    """The maker's name of the device."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def use_threads(count: int) -> None:
    """Have the numerical libraries of this process, and of its children, use so many threads.

    A library that is already loaded no longer reads the environment, so torch is told directly, and BLAS
    and OpenMP through threadpoolctl where that is installed. `machine_state` records what came of it.

    Parameters
    ----------
    count : int
        Threads of each library's pool, at least 1.
    """
    if count < 1:
        raise ValueError(f"the number of threads must be at least 1, got {count}")
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(count)))
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(count)
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return
    threadpool_limits(count)


def _threads() -> dict[str, Any]:
    threads: dict[str, Any] = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    if torch := sys.modules.get("torch"):
        threads["torch"] = torch.get_num_threads()
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return threads
    return threads | {pool["prefix"]: pool["num_threads"] for pool in threadpool_info()}


def _cpu_mhz() -> float | None:
    # Containers and some architectures hide the frequency: psutil then answers None or raises.
    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError, AttributeError):
        return None
    return frequency.current if frequency else None


def _cuda_state(device: str) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(device)
    uuid = str(properties.uuid)
    return {
        "gpu_uuid": uuid,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        **gpu_state(uuid),
    }


def machine_state(device: str = "cpu") -> dict[str, Any]:
    """The machine as it is now, ready for JSON.

    Parameters
    ----------
    device : str
        ``"cpu"``, or a CUDA device as torch names it.

    Returns
    -------
    dict
        Device name and last-level cache (bytes), CPUs and threads, load average (runnable processes
        over 1 min), CPU clock (MHz), library versions; for CUDA also UUID, driver, power limit (W),
        clocks (MHz), ECC and clock event reasons.
    """
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    if torch := sys.modules.get("torch"):
        versions["torch"] = str(torch.__version__)
    return {
        "device": device_name(device),
        "platform": platform.platform(),
        "versions": versions,
        "last_level_cache_bytes": last_level_cache_bytes(device),
        "cpus": len(allowed_cpus()),
        "threads": _threads(),
        "load_1min": round(psutil.getloadavg()[0], 2),
        "cpu_mhz": _cpu_mhz(),
        **(_cuda_state(device) if device.startswith("cuda") else {}),
    }
