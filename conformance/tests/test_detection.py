"""The suite held against a vendor's backend: all right kernels pass, every planted fault is caught, readably."""

import importlib
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import lowbit_cts.conformance
from lowbit_cts.reports import evidence

HERE = Path(__file__).parent
FAILED = {"violation", "crashed", "hung", "mistrusted"}


#: Modules with backends `right` and `wrong`, and what the failures of the latter must say (`EXPECTED`).
VENDORS = sorted(path.stem for path in HERE.glob("vendor*.py"))


def vendor(module: str):
    """Return a vendor's module, imported as the kernel host imports it."""
    sys.path.insert(0, str(HERE))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(HERE))


def smoke(backend: str, folder: Path, *options: str) -> tuple[subprocess.CompletedProcess, list[evidence.Verdict]]:
    """Run the smoke profile on a backend of vendor.py, as its author would."""
    command = [sys.executable, "-m", "pytest", "--pyargs", "lowbit_cts.conformance", "-q", "-p", "no:cacheprovider"]
    command += ["--backend", backend, "--results", str(folder), *options]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=900, check=False)
    files = list(folder.glob("*/conformance-*.jsonl"))
    assert files, done.stdout + done.stderr
    records = [record for file in files for record in evidence.read(file).records]
    return done, [r for r in records if isinstance(r, evidence.Verdict) and r.verdict != "refused"]


def by_implementation(verdicts: list[evidence.Verdict]) -> dict[str, list[evidence.Verdict]]:
    found = defaultdict(list)
    for verdict in verdicts:
        found[verdict.implementation].append(verdict)
    return found


@pytest.mark.parametrize("module", VENDORS)
def test_right_kernels_of_many_semantics_pass(module, tmp_path):
    done, verdicts = smoke(f"{module}:right", tmp_path)
    wrong = [f"{v.implementation} {v.property}: {v.message}" for v in verdicts if v.verdict in FAILED]
    assert not wrong
    assert done.returncode == 0
    assert len(by_implementation(verdicts)) == len(vendor(module).right.implementations) > 0


@pytest.mark.parametrize("module", VENDORS)
def test_every_planted_fault_is_caught_with_a_readable_counterexample(module, tmp_path):
    expected = vendor(module).EXPECTED
    done, verdicts = smoke(f"{module}:wrong", tmp_path, "-n", "2")
    found = by_implementation(verdicts)
    assert set(found) == set(expected)
    missed = {}
    for name, word in expected.items():
        failed = [v for v in found[name] if v.verdict in FAILED]
        shown = [v for v in failed if word in (v.message or "") and v.counterexample and v.reproduce]
        if not shown:
            missed[name] = [v.message for v in failed][:3]
    assert not missed
    assert done.returncode == 1


def test_right_kernels_under_semantics_that_are_not_theirs_are_flagged(tmp_path):
    _, verdicts = smoke("vendor:mislabelled", tmp_path)
    passed = [
        name for name, all_of in by_implementation(verdicts).items() if not any(v.verdict in FAILED for v in all_of)
    ]
    assert not passed


def test_a_counterexample_is_shrunk_and_can_be_repeated(tmp_path):
    done, verdicts = smoke("vendor:wrong", tmp_path, "-k", "zero_point_off_by_one and test_enclosure")
    (verdict,) = verdicts
    assert verdict.verdict == "violation"
    for text in ("x = np.array([[", "must be", "of 1 elements", "zero_point = np.array("):
        assert text in (verdict.counterexample or "") + (verdict.message or ""), text
    assert (verdict.reproduce or "").startswith("pytest --pyargs 'lowbit_cts.conformance.test_generic::test_enclosure[")
    assert "REPRODUCE" in done.stdout.upper()
    again, _ = smoke("vendor:wrong", tmp_path / "again", "-k", "zero_point_off_by_one and test_enclosure")
    shown = [line for line in done.stdout.splitlines() if " is " in line and "must be" in line]
    assert shown
    assert shown == [line for line in again.stdout.splitlines() if " is " in line and "must be" in line]


@pytest.mark.parametrize("seed", ["7", "11"])
def test_another_seed_finds_no_false_alarm(tmp_path, seed):
    done, verdicts = smoke("vendor:right", tmp_path, "--seed", seed, "-k", "test_enclosure or test_cut or test_strided")
    assert not [v.message for v in verdicts if v.verdict in FAILED]
    assert done.returncode == 0


def test_the_suite_is_installed_beside_its_tests():
    assert Path(lowbit_cts.conformance.__file__).with_name("waivers.toml").is_file()
