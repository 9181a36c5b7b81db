"""The suite held against a vendor's backend: all right kernels pass, every planted fault is caught, readably."""

import importlib
import json
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import pytest

import lowbit_cts.conformance
from lowbit_cts.reports import evidence

HERE = Path(__file__).parent
FAILED = {"violation", "crashed", "hung", "mistrusted"}
#: {module: {planted fault: the test that is to catch it}}, found by running all of them.
CAUGHT_BY_FILE = HERE / "caught_by.json"
CAUGHT_BY = json.loads(CAUGHT_BY_FILE.read_text())


#: Modules with backends `right` and `wrong`, and what the failures of the latter must say (`EXPECTED`).
VENDORS = sorted(path.stem for path in HERE.glob("vendor*.py"))


def vendor(module: str):
    """Return a vendor's module, imported as the kernel host imports it."""
    sys.path.insert(0, str(HERE))
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(str(HERE))


def smoke(
    backend: str, folder: Path, *options: str, tests: tuple[str, ...] = ("lowbit_cts.conformance",)
) -> tuple[subprocess.CompletedProcess, list[evidence.Verdict]]:
    """Run the smoke profile, or some tests of it, on a vendor's backend, as its author would."""
    command = [sys.executable, "-m", "pytest", "--pyargs", *tests, "-q", "-p", "no:cacheprovider"]
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


def shown(verdicts: list[evidence.Verdict], word: str) -> list[evidence.Verdict]:
    """Return the failures that say what is expected, with a counterexample and a way to see it again."""
    return [
        v for v in verdicts if v.verdict in FAILED and word in (v.message or "") and v.counterexample and v.reproduce
    ]


def _cost(failure: evidence.Verdict) -> float:
    """Return the time that a failure took to show; damage to memory shows the surer the more calls there are."""
    return -failure.cases if failure.verdict == "crashed" else failure.seconds


def find_properties(module: str, folder: Path) -> dict[str, str]:
    """Return for every planted fault the property, of all that catch it as expected, that takes the least time."""
    found = by_implementation(smoke(f"{module}:wrong", folder, "-n", "2")[1])
    best = {name: min(shown(found[name], word), key=_cost) for name, word in vendor(module).EXPECTED.items()}
    return {name: shlex.split(verdict.reproduce or "")[2] for name, verdict in sorted(best.items())}


@pytest.mark.parametrize("module", VENDORS)
def test_right_kernels_of_many_semantics_pass(module, tmp_path):
    done, verdicts = smoke(f"{module}:right", tmp_path, "--profile", "glance")
    wrong = [f"{v.implementation} {v.property}: {v.message}" for v in verdicts if v.verdict in FAILED]
    assert not wrong
    assert done.returncode == 0
    assert len(by_implementation(verdicts)) == len(vendor(module).right.implementations) > 0


@pytest.mark.parametrize("module", VENDORS)
def test_every_planted_fault_is_caught_with_a_readable_counterexample(module, tmp_path):
    """Each by the property that caught_by.json names; run as a script, this module looks for it among all."""
    expected, properties = vendor(module).EXPECTED, CAUGHT_BY[module]
    assert set(properties) == set(expected) == {i.name for i in vendor(module).wrong.implementations}
    done, verdicts = smoke(f"{module}:wrong", tmp_path, tests=tuple(properties.values()))
    found = by_implementation(verdicts)
    missed = {name: [v.message for v in found[name]] for name, word in expected.items() if not shown(found[name], word)}
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


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        everything = {module: find_properties(module, Path(scratch, module)) for module in VENDORS}
    CAUGHT_BY_FILE.write_text(json.dumps(everything, indent=1) + "\n")
