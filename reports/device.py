"""What a run ran on: the device, the versions around it, and the device's short name.

Nothing here names the host, its user or a path, so that evidence may be published as it is.
"""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

# Distributions whose versions change a verdict or a time. CuPy has one name per CUDA version.
PACKAGES = (
    "lowbit-cts", "numpy", "scipy", "hypothesis", "pytest", "pytest-benchmark", "pytest-xdist", "pebble",
    "torch", "torchao", "triton", "cupy", "cupy-cuda12x", "cupy-cuda13x", "nvidia-ml-py", "ml_dtypes",
    "onnxruntime", "scikit-learn", "bitsandbytes", "nvidia-cublas", "nvidia-cublas-cu12", "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13", "nvidia-cusparselt-cu12", "nvidia-cusparselt-cu13",
)  # fmt: skip

# Instruction-set extensions that low-bit kernels choose their path by (x86, then Arm).
EXTENSIONS = (
    "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni",
    "avx_vnni_int8", "amx_tile", "amx_int8", "amx_bf16", "amx_fp16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme",
)  # fmt: skip

# What a vendor adds to a processor's name that tells no two of them apart.
_DECORATION = re.compile(r"\((r|tm|c)\)|@.*|\bw(ith\b|/).*|\b(cpu|processor|\d+-core)\b", re.IGNORECASE)


def slug(*parts: str) -> str:
    """Return a name fit for folders and tables: lower case, digits and hyphens.

    Examples
    --------
    >>> slug("NVIDIA H200")
    'nvidia-h200'
    """
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def cpu_slug(name: str, cores: int) -> str:
    """Return the slug of a processor.

    Examples
    --------
    >>> cpu_slug("Intel(R) Xeon(R) CPU E5-2670 v3 @ 2.30GHz", 12)
    'cpu-intel-xeon-e5-2670-v3-12c'
    """
    return slug("cpu", _DECORATION.sub(" ", name), f"{cores}c")


def describe(kind: str | int = "cpu") -> dict[str, Any]:
    """Return what is known of a device.

    Parameters
    ----------
    kind : str or int
        ``"cpu"``, or a CUDA device: its index, ``"cuda"`` or ``"cuda:1"``.

    Returns
    -------
    dict
        `kind`, `name` and `slug` always. Sizes are in bytes, clocks in MHz, power in W; what the system does
        not tell is None. Without NVML a CUDA device is not mistaken for another: its name says ``unknown``.
    """
    if kind == "cpu":
        return _cpu()
    match = re.fullmatch(r"(?:cuda)?:?(\d+)?", str(kind))
    if match is None:
        raise ValueError(f'device is {kind!r}, which is neither "cpu", "cuda", "cuda:N" nor an index')
    return _gpu(int(match[1] or 0))


def environment() -> dict[str, Any]:
    """Return the versions a result may depend on.

    Returns
    -------
    dict
        `python` and `platform`; `packages`, name to version, those installed of `PACKAGES`; `git`, the
        suite's `revision` and whether it is `dirty`, or None when it is not run from a checkout.
    """
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "git": revision(Path(__file__)),
    }


def revision(file: Path) -> dict[str, Any] | None:
    """Return the git revision that a file belongs to, and whether the checkout differs from it.

    None unless git tracks the file: an installed copy may lie inside somebody else's checkout.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", *arguments]
        return subprocess.run(
            command, cwd=file.parent, check=True, capture_output=True, text=True, timeout=30
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return {
            "revision": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    info = _cpuinfo()
    name = info.get("model name") or platform.processor() or platform.machine()
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count() or 1
    flags = set((info.get("flags") or info.get("Features") or "").split())
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "kind": "cpu",
        "name": name,
        # The machine's cores, not those this process is pinned to: pinning must not rename the device.
        "slug": cpu_slug(name, cores),
        "architecture": platform.machine(),
        "cores": cores,
        "threads": psutil.cpu_count(),
        "threads_usable": len(affinity(0)) if affinity else None,
        "max_mhz": (frequency.max or None) if frequency else None,
        "caches": _caches(),
        "memory_bytes": psutil.virtual_memory().total,
        "extensions": [name for name in EXTENSIONS if name in flags],
    }


def _cpuinfo() -> dict[str, str]:
    """Return the first processor's entries of Linux's /proc/cpuinfo, or nothing elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _caches() -> dict[str, int]:
    """Return the size in bytes of each cache that the first core sees, e.g. ``{"L1d": 32768, ...}``."""
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}
    caches = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((folder / part).read_text().strip() for part in ("level", "type", "size"))
        except OSError:
            continue
        caches[f"L{level}{ {'Data': 'd', 'Instruction': 'i'}.get(kind, '') }"] = int(size[:-1]) * unit[size[-1]]
    return caches


def _gpu(index: int) -> dict[str, Any]:
    common = {"kind": "cuda", "index": index, "host_cpu": _cpu()["name"]}
    try:
        import pynvml as nvml

        nvml.nvmlInit()
    except Exception as error:  # not installed, no driver, or one that fails in its own way
        return {**common, "name": "unknown", "slug": f"cuda-{index}-unknown", "nvml": str(error)}

    def told(query: Callable[..., Any], *arguments: Any) -> Any:
        try:
            answer = query(*arguments)
        except nvml.NVMLError:  # this device does not tell
            return None
        return answer.decode() if isinstance(answer, bytes) else answer

    try:
        handle = _handle(nvml, index)
        name = told(nvml.nvmlDeviceGetName, handle) or "unknown"
        memory = told(nvml.nvmlDeviceGetMemoryInfo, handle)
        capability = told(nvml.nvmlDeviceGetCudaComputeCapability, handle)
        power_limit = told(nvml.nvmlDeviceGetPowerManagementLimit, handle)  # mW
        ecc = told(nvml.nvmlDeviceGetEccMode, handle)  # current, pending
        return {
            **common,
            "name": name,
            "slug": slug(name),
            "uuid": told(nvml.nvmlDeviceGetUUID, handle),
            "driver": told(nvml.nvmlSystemGetDriverVersion),
            "cuda_driver": told(nvml.nvmlSystemGetCudaDriverVersion),
            "compute_capability": capability and ".".join(map(str, capability)),
            "memory_bytes": memory and memory.total,
            "power_limit_w": power_limit and power_limit / 1000,
            "sm_mhz": told(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
            "sm_max_mhz": told(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
            "memory_mhz": told(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
            "memory_max_mhz": told(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM),
            "ecc": None if ecc is None else bool(ecc[0]),
        }
    except nvml.NVMLError as error:
        return {**common, "name": "unknown", "slug": f"cuda-{index}-unknown", "nvml": str(error)}
    finally:
        nvml.nvmlShutdown()


def _handle(nvml: Any, index: int) -> Any:
    """Return NVML's handle of a CUDA device, which CUDA_VISIBLE_DEVICES may have renumbered."""
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    name = visible[index] if index < len(visible) else str(index)
    return nvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else nvml.nvmlDeviceGetHandleByUUID(name)
