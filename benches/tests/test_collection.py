"""The benches are found where they are installed, whatever the configuration of the project that runs them."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("target", ["lowbit_cts.benches", "lowbit_cts.benches.bench_affine"])
def test_benches_are_collected_away_from_the_checkout(tmp_path, target):
    (tmp_path / "pytest.ini").write_text("[pytest]\npython_files = check_*.py\npython_functions = check_*\n")
    command = [sys.executable, "-m", "pytest", "--pyargs", target, "--collect-only", "-q", "--backend", "numpy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "::bench_affine[numpy/quantize_affine/quantize-" in done.stdout
    found = [line for line in done.stdout.splitlines() if "::" in line]
    assert len(found) == len(set(found))
