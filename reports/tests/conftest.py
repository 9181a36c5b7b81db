"""Records to vary, with `dataclasses.replace`, in the tests of tables and rendering."""

from typing import Any

import pytest

from lowbit_cts.reports.evidence import Ceiling, Fingerprint, Measurement, ModelAccuracy, Run, Verdict

COMMON: dict[str, Any] = {"run": "r1", "time": "2025-01-01T00:00:00.000000+00:00"}
KERNEL: dict[str, Any] = {
    "device": "cpu-x",
    "backend": "acme",
    "backend_version": "1",
    "implementation": "fast",
}


@pytest.fixture
def run():
    device = {"kind": "cpu", "name": "X", "slug": "cpu-x"}
    environment = {"python": "3.11", "platform": "Linux", "packages": {"numpy": "2.0"}, "git": None}
    return Run(
        **COMMON,
        suite_version="0.1",
        command=["pytest", "x"],
        profile="smoke",
        device=device,
        environment=environment,
    )


@pytest.fixture
def verdict():
    return Verdict(
        **COMMON,
        **KERNEL,
        operation="quantize_affine",
        semantics={},
        property="enclosure",
        parameters={"format": "int8"},
        verdict="exact",
        cases=10,
        elements=1000,
        worst=0.0,
    )


@pytest.fixture
def measurement():
    return Measurement(
        **COMMON,
        **KERNEL,
        operation="matmul_w4a16",
        parameters={"format": "int4", "group": 128},
        workload="llama-3-8b/mlp.down_proj",
        shape={"M": 1, "N": 4096, "K": 14336},
        fill="normal",
        cache="cold",
        clock="cuda events",
        median_s=10e-6,
        ci_low_s=9.9e-6,
        ci_high_s=10.1e-6,
        samples=100,
        dropped=3,
        operations=2 * 4096 * 14336,
        bytes=30e6,
        sqnr_db=20.0,
    )


@pytest.fixture
def ceiling():
    return Ceiling(
        **COMMON,
        device="cpu-x",
        name="copy bandwidth",
        value=40.0,
        unit="GB/s",
        ci_low=39,
        ci_high=41,
        datasheet=50,
    )


@pytest.fixture
def model():
    return ModelAccuracy(
        **COMMON,
        device="cpu-x",
        model="digits",
        variant="float32",
        backend="acme",
        accuracy=0.9,
        correct=81,
        total=90,
        size_bytes=4000,
        bits_per_weight=32,
        layer_mse={"fc1": 0.0, "fc2": 0.0},
        layer_weight_mse={"fc1": 0.0},
    )


@pytest.fixture
def fingerprint():
    return Fingerprint(
        **COMMON,
        **KERNEL,
        operation="matmul_w4a16",
        semantics={},
        parameters={"format": "uint4", "group_size": 32, "input_format": "float16"},
        shape={"M": 16, "N": 16, "K": 64},
        findings={"order": "sequential", "accumulator bits": "24", "NaN": "not determined"},
        reasons={"NaN": "no NaN"},
    )
