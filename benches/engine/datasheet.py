"""What the makers' data sheets promise: dense peaks, to be printed beside the measured ceilings."""

from __future__ import annotations

from typing import NamedTuple


class Peaks(NamedTuple):
    """Peaks of one GPU: byte/s, operation/s by type (dense, not 2:4 sparse), and where they are from."""

    bandwidth: float
    rates: dict[str, float]
    source: str


def _peaks(terabytes: float, source: str, **tera: float) -> Peaks:
    return Peaks(terabytes * 1e12, {name: rate * 1e12 for name, rate in tera.items()}, source)


# The makers print sparse rates, and some tables print those as dense; this one compares them dense.
_DENSE_RATES = "https://github.com/stas00/ml-engineering/tree/master/compute/accelerator"
_A100 = {"float32": 19.5, "bfloat16": 312.0, "int8": 624.0}
_HOPPER = {"float32": 67.0, "bfloat16": 989.0, "float8": 1979.0, "int8": 1979.0}
_BLACKWELL = {"bfloat16": 2250.0, "float8": 4500.0, "int8": 4500.0, "float4": 9000.0}

# By part of the name the driver gives, first match first.
# None: a board that contains another's name, but has other peaks.
DATASHEET: dict[str, Peaks | None] = {
    "NVIDIA A100-SXM4-40GB": _peaks(1.555, _DENSE_RATES, **_A100),
    "NVIDIA A100-PCIE-40GB": _peaks(1.555, _DENSE_RATES, **_A100),
    "NVIDIA A100-SXM4-80GB": _peaks(2.039, _DENSE_RATES, **_A100),
    "NVIDIA A100 80GB PCIe": _peaks(1.935, _DENSE_RATES, **_A100),
    "NVIDIA H100 80GB HBM3": _peaks(3.35, _DENSE_RATES, **_HOPPER),
    "NVIDIA H200 NVL": None,
    "NVIDIA H200": _peaks(4.8, _DENSE_RATES, **_HOPPER),
    "NVIDIA B200": _peaks(8.0, _DENSE_RATES, **_BLACKWELL),
}


def datasheet_peaks(name: str) -> Peaks | None:
    """Data sheet peaks of a GPU.

    Parameters
    ----------
    name : str
        The device's name, as the driver gives it.

    Returns
    -------
    Peaks or None
        None for CPUs, slices of a GPU (MIG), and boards not listed.
    """
    if "MIG" in name:
        return None
    return next((peaks for part, peaks in DATASHEET.items() if part in name), None)
