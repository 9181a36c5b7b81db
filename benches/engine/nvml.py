"""What NVML says about one GPU. Every function answers "unknown" where pynvml or the driver cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# One question each; the value's unit stands in its name.
_QUESTIONS: dict[str, Callable[[Any, Any], Any]] = {
    "driver": lambda nvml, gpu: nvml.nvmlSystemGetDriverVersion(),
    "power_limit_w": lambda nvml, gpu: nvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1000,
    "power_w": lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
    "temperature_c": lambda nvml, gpu: nvml.nvmlDeviceGetTemperature(gpu, nvml.NVML_TEMPERATURE_GPU),
    "sm_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "sm_max_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM),
    "memory_mhz": lambda nvml, gpu: nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_MEM),
    "ecc": lambda nvml, gpu: bool(nvml.nvmlDeviceGetEccMode(gpu)[0]),
    "clock_event_reasons": lambda nvml, gpu: nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu),
}


def _open(uuid: str) -> tuple[Any, Any] | None:
    """The module and the GPU's handle, found by UUID: CUDA and NVML number the devices differently."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except pynvml.NVMLError:
        return None


def _ask(nvml: Any, gpu: Any, question: str) -> Any:
    # An old pynvml lacks a function (AttributeError), a device refuses a question (NVMLError).
    try:
        return _QUESTIONS[question](nvml, gpu)
    except (nvml.NVMLError, AttributeError):
        return None


def gpu_state(uuid: str) -> dict[str, Any]:
    """Driver, power, clocks, temperature, ECC and clock event reasons of a GPU; empty where unknown.

    Parameters
    ----------
    uuid : str
        The GPU's UUID, as CUDA gives it.

    Returns
    -------
    dict
        W, MHz and degrees Celsius as the keys say; None for what this device does not answer.
    """
    opened = _open(uuid)
    return {question: _ask(*opened, question) for question in _QUESTIONS} if opened else {}


def sm_clock_reader(uuid: str) -> Callable[[], float | None]:
    """A function that reads the SM clock in MHz, or None. NVML refreshes it every few milliseconds at best.

    Parameters
    ----------
    uuid : str
        The GPU's UUID, as CUDA gives it.
    """
    opened = _open(uuid)
    if opened is None:
        return lambda: None
    nvml, gpu = opened
    return lambda: _ask(nvml, gpu, "sm_mhz")
