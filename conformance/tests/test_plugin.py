"""The plugin: mistakes are usage errors, evidence is written, waivers work and cannot rot."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lowbit_cts.reports import evidence

BACKEND = """
import numpy as np
from lowbit_cts.kernels import Backend, Semantics

backend = Backend("acme", version="2.1")

@backend.implements({operation!r}, supports={supports!r})
def quantize(x, scale, zero_point):
    return np.clip(np.rint(x / scale) + zero_point, -128, 127).astype(np.int8)
"""


def run(folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "pytest", "--pyargs", "lowbit_cts.conformance", "-q", "-p", "no:cacheprovider"]
    return subprocess.run([*command, *options], cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def write(folder: Path, operation: str = "quantize_affine", supports: dict | None = None) -> None:
    (folder / "acme.py").write_text(BACKEND.format(operation=operation, supports=supports or {}))


@pytest.mark.parametrize(
    ("operation", "supports", "words"),
    [
        ("quantise", {}, ("unknown operation", "quantize_affine")),
        ("quantize_affine", {"colour": "red"}, ("undeclared parameter 'colour'", "granularity")),
        ("quantize_affine", {"format": {"int9"}}, ("format='int9' is not admissible", "int8")),
        ("quantize_affine", {"layout": "diagonal"}, ("layout 'diagonal'", "strided")),
        ("quantize_affine", {"granularity": ()}, ("granularity: must support at least one", "tensor")),
        ("matmul_int8", {}, ("cannot be called",)),
    ],
)
def test_a_misdeclared_backend_is_one_usage_error(tmp_path, operation, supports, words):
    write(tmp_path, operation, supports)
    done = run(tmp_path, "--backend", "acme")
    said = done.stdout + done.stderr
    assert done.returncode == 4
    for word in words:
        assert word in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("missing", None, ("no such backend", "numpy", "torch")),
        ("broken", "def (", ("fails to import", "SyntaxError")),
        ("absent", "import a_module_nobody_has", ("fails to import", "a_module_nobody_has")),
        ("raises", "raise RuntimeError('no licence')", ("fails to import", "no licence")),
        ("empty", "", ("has no attribute 'backend'",)),
        ("empty:kernel", "", ("has no attribute 'kernel'",)),
        ("other", "backend = 3", ("neither a Backend",)),
        ("bad", "from lowbit_cts.kernels import Semantics\nSemantics(rounding='up_a_bit')", ("half_even", "rounding")),
        (
            "twice",
            "from lowbit_cts.kernels import Backend\nbackends=[Backend('a'), Backend('a')]",
            ("names must differ",),
        ),
        ("idle", "from lowbit_cts.kernels import Backend\nbackend = Backend('idle')", ("implements nothing",)),
    ],
)
def test_a_backend_that_cannot_be_loaded_is_one_usage_error(tmp_path, name, text, words):
    if text is not None:
        (tmp_path / f"{name.partition(':')[0]}.py").write_text(text)
    done = run(tmp_path, "--backend", name)
    said = done.stdout + done.stderr
    assert done.returncode == 4
    for word in words:
        assert word in said
    assert "Traceback" not in said


def test_a_run_leaves_its_circumstances_its_verdicts_and_what_is_not_declared(tmp_path):
    write(tmp_path)
    done = run(tmp_path, "--backend", "acme", "-k", "test_enclosure or test_side_stream", "--seed", "3")
    assert done.returncode == 0
    (file,) = (tmp_path / "results").glob("*/conformance-*.jsonl")
    assert str(file.relative_to(tmp_path)) in done.stdout
    records = evidence.read(file).records
    (circumstances,) = (r for r in records if isinstance(r, evidence.Run))
    assert (circumstances.profile, circumstances.seed) == ("smoke", 3)
    verdicts = [r for r in records if isinstance(r, evidence.Verdict)]
    refused = {(v.operation, v.implementation) for v in verdicts if v.verdict == "refused"}
    assert ("matmul_int8", "") in refused
    assert ("quantize_affine", "quantize") in refused
    (enclosure,) = (v for v in verdicts if v.property == "enclosure")
    assert (enclosure.verdict, enclosure.backend, enclosure.backend_version) == ("exact", "acme", "2.1")
    assert enclosure.cases >= 2
    assert enclosure.elements > enclosure.cases


def test_workers_share_one_run(tmp_path):
    write(tmp_path)
    assert run(tmp_path, "--backend", "acme", "-n", "2").returncode == 0
    (file,) = (tmp_path / "results").glob("*/conformance-*.jsonl")
    records = evidence.read(file).records
    assert len({r.run for r in records}) == 1
    assert sum(isinstance(r, evidence.Run) for r in records) == 1
    properties = [r.property for r in records if isinstance(r, evidence.Verdict) and r.verdict != "refused"]
    assert len(properties) == len(set(properties)) > 20


WAIVER = """
[[waiver]]
id = "acme-halves"
backend = "acme"
versions = "{versions}"
operation = "quantize_affine"
property = "{property}"
reason = "rounds halves away"
machines = "{machines}"
link = "https://example.org/acme/1"
expires = {expires}
"""


def test_an_interrupted_run_is_resumed_under_its_own_name(tmp_path):
    write(tmp_path)
    first = run(tmp_path, "--backend", "acme", "-k", "enclosure or exact_regime")
    assert first.returncode == 0, first.stdout
    (file,) = (tmp_path / "results").glob("*/*.jsonl")
    before = evidence.read(file).records
    broken = replace(before[-1], verdict="hung")
    file.write_text("".join(record.to_json() + "\n" for record in (*before[:-1], broken)))
    for parallel in ([], ["-n", "2"]):
        again = run(
            tmp_path, "--backend", "acme", "-k", "enclosure or exact_regime or test_every_tie", "--resume", *parallel
        )
        assert again.returncode == 0, again.stdout
        assert f"{3 if parallel else 1} settled before" in again.stdout
        assert list((tmp_path / "results").glob("*/*.jsonl")) == [file]
    properties = [r.property for r in evidence.read(file).records if isinstance(r, evidence.Verdict)]
    assert sorted(p for p in properties if p != "declaration") == ["enclosure", "every_tie", "exact_regime"]
    assert not any(getattr(r, "verdict", "") == "hung" for r in evidence.read(file).records)
    other = run(tmp_path, "--backend", "acme", "-k", "enclosure", "--resume", "--seed", "3")
    assert other.returncode == 0
    assert len(list((tmp_path / "results").glob("*/*.jsonl"))) == 2, "another seed is another run"


def waiver(property: str, versions: str = ">=2", expires: str = "2999-01-01", machines: str = "") -> str:
    return WAIVER.format(property=property, versions=versions, expires=expires, machines=machines)


def waived(folder: Path, property: str = "every_tie", **changes: str):
    rounding = "np.copysign(np.floor(np.abs(x / scale) + np.float32(0.5)), x)"
    text = BACKEND.format(operation="quantize_affine", supports={}).replace("np.rint(x / scale)", rounding)
    (folder / "acme.py").write_text(text)
    (folder / "waivers.toml").write_text(waiver(property, **changes))
    return run(
        folder, "--backend", "acme", "--waivers", "waivers.toml", "-k", "test_every_tie or test_saturation", "-rx"
    )


def test_a_waiver_excuses_what_it_names_and_shows_it(tmp_path):
    done = waived(tmp_path)
    assert done.returncode == 0
    assert "1 xfailed" in done.stdout
    assert "acme-halves" in done.stdout
    (file,) = (tmp_path / "results").glob("*/*.jsonl")
    (verdict,) = (r for r in evidence.read(file).records if getattr(r, "property", "") == "every_tie")
    assert (verdict.verdict, verdict.waiver) == ("violation", "acme-halves")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"property": "saturation"}, "matches nothing any more"),
        ({"versions": "<2"}, "VIOLATION"),
        ({"expires": "2020-01-01"}, "expired on 2020-01-01"),
    ],
)
def test_a_waiver_that_does_not_hold_fails_the_run(tmp_path, changes, words):
    done = waived(tmp_path, **changes)
    assert done.returncode == 1
    assert words in done.stdout


def test_a_waiver_of_some_machines_may_match_nothing(tmp_path):
    done = waived(tmp_path, property="saturation", machines="those with a vector unit")
    assert "matches nothing" not in done.stdout
    assert "VIOLATION" in done.stdout, "and it excuses nothing else"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[waiver]]\nid = 'x'", "missing field 'backend'"),
        (waiver("p", versions="=>1"), "versions"),
        (waiver("p", expires="'soon'"), "expires must be a date"),
        (2 * waiver("p"), "the id is taken"),
        ("[waiver", "waivers.toml"),
    ],
)
def test_a_broken_waiver_file_is_a_usage_error(tmp_path, text, words):
    write(tmp_path)
    (tmp_path / "waivers.toml").write_text(text)
    done = run(tmp_path, "--backend", "acme", "--waivers", "waivers.toml")
    assert done.returncode == 4
    assert words in done.stdout + done.stderr


def test_the_plugin_leaves_other_test_suites_alone(tmp_path):
    (tmp_path / "test_other.py").write_text("def test_one():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "Lowbit-CTS" not in done.stdout
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("said", [None, "3"])
def test_several_workers_share_the_cores(tmp_path, monkeypatch, said):
    """Kernels in the workers' processes see it; what the user said stands."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    if said:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    share = said or str(max(1, (os.cpu_count() or 1) // 2))
    (tmp_path / "test_share.py").write_text(
        f"import os\nimport pytest\n\n@pytest.mark.parametrize('i', range(4))\ndef test(i):\n"
        f"    assert os.environ['OMP_NUM_THREADS'] == {share!r}\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", "test_share.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert "4 passed" in done.stdout, done.stdout
