import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from enum import Enum
from typing import Any

import numpy as np
import pytest

from lowbit_cts.reports import evidence
from lowbit_cts.reports.evidence import (
    AlgorithmAccuracy,
    Ceiling,
    Fingerprint,
    FormatAccuracy,
    Measurement,
    ModelAccuracy,
    Run,
    Tightness,
    Verdict,
    append,
    read,
)

TIME = "2025-01-01T00:00:00.000000+00:00"
RUN = Run(run="r", time=TIME, suite_version="0.1", command=["pytest"], profile="smoke", device={}, environment={})
VERDICT = Verdict(
    run="r",
    time=TIME,
    backend="acme",
    backend_version="1",
    device="cpu",
    operation="quantize_affine",
    implementation="quantize",
    semantics={"overflow": "NaN"},
    property="enclosure",
    parameters={"format": "int8"},
    verdict="exact",
)
MEASUREMENT = Measurement(
    run="r",
    time=TIME,
    device="cpu",
    backend="acme",
    backend_version="1",
    operation="matmul",
    implementation="mm",
    parameters={"format": "int8"},
    workload="w",
    shape={"M": 1, "N": 2, "K": 3},
    fill="normal",
    cache="hot",
    clock="perf_counter_ns",
    median_s=1e-6,
    ci_low_s=0.9e-6,
    ci_high_s=1.1e-6,
    samples=20,
    operations=12.0,
    bytes=11.0,
)
CEILING = Ceiling(run="r", time=TIME, device="cpu", name="copy", value=9.5, unit="GB/s", ci_low=9, ci_high=10)
MODEL = ModelAccuracy(
    run="r",
    time=TIME,
    device="cpu",
    model="m",
    variant="int8",
    backend="acme",
    accuracy=0.5,
    correct=1,
    total=2,
    size_bytes=8,
    bits_per_weight=8,
    layer_mse={"fc": 0.1},
    layer_weight_mse={},
)

ALGORITHM = AlgorithmAccuracy(
    run="r",
    time=TIME,
    device="cpu",
    model="m",
    algorithm="RTN",
    backend="acme",
    bits=4,
    perplexity=2.5,
    perplexity_se=0.1,
    divergence=0.01,
    divergence_se=0.0,
)

FORMAT = FormatAccuracy(
    run="r",
    time=TIME,
    device="cpu",
    name="nf4",
    bits_per_weight=4.5,
    sqnr_db={"normal": float("inf")},
    encode={"operation": "quantize_blockwise", "parameters": {"codebook": "nf4"}},
    decode={},
)

FINGERPRINT = Fingerprint(
    run="r",
    time=TIME,
    device="cpu",
    backend="acme",
    backend_version="1",
    operation="matmul_w4a16",
    implementation="mm",
    semantics={"float_accumulator": "float32"},
    parameters={"format": "uint4", "group_size": None},
    shape={"M": 1, "N": 16, "K": 64},
    findings={"order": "sequential", "NaN": "not determined"},
    reasons={"NaN": "int8 has no NaN"},
    tree="((0 1) 2)",
)
TIGHTNESS = Tightness(
    run="r",
    time=TIME,
    device="cpu",
    backend="acme",
    backend_version="1",
    operation="matmul_w4a16",
    implementation="mm",
    semantics={"float_accumulator": "float32"},
    regime="full",
    length=256,
    fault="product",
    planted=96,
    escaped=3,
    largest=1e-5,
)

# Appends lines long enough that a kill meets one in its write, until killed or until it has written `count`.
WRITER = """
import sys
from dataclasses import replace
from lowbit_cts.reports.evidence import append, read
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
verdict = read(path).records[0]
for cases in range(count):
    append(path, replace(verdict, backend=name, cases=cases, message="x" * (cases * 7919 % 100_000)))
"""


def writer(path, name, count):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(count)])


def kept(path) -> tuple[Any, ...]:
    return read(path).records


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "evidence.jsonl"


def test_every_kind_is_read_as_it_was_written(path):
    records = (RUN, VERDICT, MEASUREMENT, CEILING, MODEL, ALGORITHM, FORMAT, FINGERPRINT, TIGHTNESS)
    for record in records:
        append(path, record)
    assert read(path) == evidence.Evidence(records, torn=0)
    assert {record.kind for record in records} == set(evidence.KINDS)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_travels_as_strict_json(path, value):
    text = replace(VERDICT, worst=value).to_json()
    assert "\n" not in text
    json.loads(text, parse_constant=pytest.fail)
    append(path, replace(VERDICT, worst=value))
    append(path, replace(MODEL, layer_mse={"fc": value}))
    verdict, model = kept(path)
    np.testing.assert_equal(verdict.worst, value)
    np.testing.assert_equal(model.layer_mse["fc"], value)
    assert verdict.semantics == {"overflow": "NaN"}, "a string in a free-form mapping must stay one"


def test_parameters_may_hold_numpy_enums_sets_and_newlines(path):
    Overflow = Enum("Overflow", {"SATURATE": "saturate"})
    parameters = {
        "scale": np.float32(0.5),
        "axis": np.int64(1),
        "groups": {32, 128},
        "overflow": Overflow.SATURATE,
        "nan": np.float32(math.nan),
        "text": "two\nlines\u2028and more",
        "shape": (1, 2),
    }
    append(path, replace(VERDICT, parameters=parameters))
    (verdict,) = kept(path)
    assert verdict.parameters == {
        "scale": 0.5,
        "axis": 1,
        "groups": [128, 32],
        "overflow": "saturate",
        "nan": "NaN",
        "text": "two\nlines\u2028and more",
        "shape": [1, 2],
    }


def test_what_json_cannot_say_is_an_error_not_a_repr():
    with pytest.raises(TypeError, match="object"):
        replace(VERDICT, parameters={"x": object()}).to_json()


@pytest.mark.parametrize(("record", "change"), [(VERDICT, {"verdict": "passed"}), (MEASUREMENT, {"cache": "warm"})])
def test_words_outside_the_vocabulary_are_refused(record, change):
    with pytest.raises(ValueError, match="none of"):
        replace(record, **change)


def test_an_unknown_schema_names_file_line_and_known_version(path):
    append(path, VERDICT)
    with path.open("a") as file:
        file.write('\n{"schema": 2, "kind": "verdict"}\n')
    with pytest.raises(ValueError, match=r"evidence\.jsonl, line 3: .*version 2.* knows version 1"):
        read(path)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"schema": 1, "kind": "rumour"}', "kind 'rumour'"),
        ('{"schema": 1, "kind": "ceiling", "run": "r"}', "missing.*'time'"),
        ('{"name": "something else"}', "version None"),
    ],
)
def test_a_whole_line_that_is_no_evidence_is_an_error(path, line, complaint):
    path.parent.mkdir()
    path.write_text(line)
    with pytest.raises(ValueError, match=complaint):
        read(path)


def test_unknown_fields_are_ignored(path):
    path.parent.mkdir()
    path.write_text(json.dumps({**json.loads(VERDICT.to_json()), "mood": "good"}, sort_keys=True))
    assert read(path).records == (VERDICT,)


@pytest.mark.parametrize("cut", [1, 10, 100, -1])
def test_a_torn_line_is_counted_and_costs_no_other(path, cut):
    """Written after the tear: by a writer that saw it, and by one that looked before it happened."""
    whole = replace(VERDICT, parameters={"schema": {"schema": 1}}, message='{"schema": 1')
    append(path, whole)
    with path.open("a") as file:
        file.write(whole.to_json()[:cut])
    append(path, whole)
    with path.open("a") as file:
        file.write(whole.to_json()[:cut] + whole.to_json() + "\n" + "\0" * 8)
    append(path, CEILING)
    assert read(path) == evidence.Evidence((whole, whole, whole, CEILING), torn=3)


def test_a_record_after_a_torn_line_stands_on_a_line_of_its_own(path):
    path.parent.mkdir()
    path.write_text("torn")
    append(path, VERDICT)
    assert path.read_text() == f"torn\n{VERDICT.to_json()}\n"


def test_a_line_is_one_write(path, monkeypatch):
    written = []

    def write(_, data):
        written.append(data)
        return len(data)

    monkeypatch.setattr(os, "write", write)
    append(path, VERDICT)
    assert written == [VERDICT.to_json().encode() + b"\n"]


def test_a_short_write_is_an_error(path, monkeypatch):
    monkeypatch.setattr(os, "write", lambda _, data: len(data) - 1)
    with pytest.raises(OSError, match="not written whole"):
        append(path, VERDICT)


def test_a_killed_writer_costs_at_most_its_last_line(path):
    append(path, VERDICT)
    for attempt in range(3):
        process = writer(path, f"killed{attempt}", 10**9)
        start = path.stat().st_size
        deadline = time.monotonic() + 60
        while path.stat().st_size < start + 2_000_000 and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        append(path, CEILING)
        records, torn = kept(path), read(path).torn
        cases = [record.cases for record in records if getattr(record, "backend", "") == f"killed{attempt}"]
        assert cases, "the writer was killed before it wrote"
        assert cases == list(range(len(cases)))
        assert torn <= attempt + 1
        assert records[-1] == CEILING


def test_concurrent_writers_lose_nothing(path):
    append(path, VERDICT)
    processes = [writer(path, name, 150) for name in "abcd"]
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    found = read(path)
    assert found.torn == 0
    for name in "abcd":
        assert [record.cases for record in kept(path) if record.backend == name] == list(range(150))


def test_run_ids_are_unique_and_times_sort():
    assert len({evidence.new_run() for _ in range(100)}) == 100
    times = [evidence.now() for _ in range(100)]
    assert times == sorted(times)
    assert times[0].endswith("+00:00")
