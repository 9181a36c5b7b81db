import csv
import subprocess
import sys
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from lowbit_cts.__main__ import app
from lowbit_cts.reports import render
from lowbit_cts.reports.evidence import append
from lowbit_cts.reports.tables import Table

LATER = {"run": "r2", "time": "2025-01-02T00:00:00.000000+00:00"}


@pytest.fixture
def results(tmp_path, run, verdict, measurement, ceiling, model):
    violation = replace(
        verdict,
        property="guard bands",
        verdict="violation",
        worst=2.5,
        message="wrote past | the end\nat index 3",
        counterexample="x = np.zeros(3)\ny = x",
        reproduce="pytest conformance --backend acme -k guard " + "x" * 200,
    )
    slower = replace(measurement, median_s=20e-6, backend="other")
    for record in (run, verdict, violation, measurement, slower):
        append(tmp_path / "results/cpu-x/a.jsonl", record)
    for record in (ceiling, model, replace(model, variant="int8", size_bytes=1000)):
        append(tmp_path / "results/cpu-x/deep/b.jsonl", record)
    return tmp_path / "results"


def test_newest_run_of_each_kind_and_backend(run, verdict, ceiling):
    other = replace(verdict, backend="other")
    again = replace(verdict, **LATER, property="new")
    runs = [run, replace(run, **LATER), replace(run, run="unused")]
    assert render.newest([again, *runs, verdict, other, ceiling]) == [*runs[:2], again, other, ceiling]


def test_a_run_is_as_new_as_its_newest_record(verdict):
    late = replace(verdict, time="2025-01-03T00:00:00.000000+00:00")
    assert render.newest([verdict, replace(verdict, **LATER), late]) == [verdict, late]


def test_device_folders(results, tmp_path):
    (results / "empty").mkdir()
    assert render.device_folders(results) == [results / "cpu-x"]
    assert render.device_folders(results / "cpu-x") == [results / "cpu-x"]
    assert render.device_folders(results / "empty") == render.device_folders(tmp_path / "nowhere") == []


def test_captioned_drops_what_does_not_vary():
    table = Table("t", ("same", "empty", "varies", "verdict"), (("a", "", "1", "exact"), ("a", "", "2", "exact")))
    assert render.captioned(table).headers == ("varies", "verdict")
    assert render.captioned(table).note == "In every row: same: a."
    one = Table("t", ("same", "empty"), (("a", ""),))
    assert render.captioned(one).headers == ("same",)


def test_a_narrow_terminal_leaves_out_secondary_columns_in_order():
    cells = (("a" * 20, "b" * 20, "c" * 20), ("d", "e", "f"))
    table = Table("t", ("main", "second", "third"), cells, secondary=("third", "second"))
    assert "Left to" not in render.terminal(table, 80)
    narrow = render.terminal(table, 50)
    assert max(map(len, narrow.splitlines())) <= 50
    assert "Left to the files: third." in narrow
    assert "b" * 20 in narrow


def test_numbers_are_shown_as_they_were_formatted():
    table = Table("t", ("n", "word"), (("0.10", "info"), ("12", "nan-like")))
    lines = render.terminal(table, 80).splitlines()
    assert lines[-2:] == ["0.10  info", "  12  nan-like"]


def test_markdown_cells_hold_no_bar_and_no_newline():
    table = Table("t", ("a", "b"), (("x|y", "1\n2"), ("z", "3")))
    assert r"| x\|y | 1 2 |" in render.markdown(table)


def test_a_report_is_written_as_markdown_and_csv(results):
    paths = render.write(render.report(results / "cpu-x"))
    assert [path.name for path in paths] == ["report.md", *(f"{name}.csv" for name in render.TABLES)]
    text = paths[0].read_text(encoding="utf-8")
    assert "# Lowbit-CTS: cpu-x" in text
    assert "numpy 2.0" in text
    for title in ("Conformance", "Failures", "Measured ceilings", "Accuracy versus speed", "Model accuracy"):
        assert f"## {title}\n" in text
    with (results / "cpu-x" / "failures.csv").open(newline="", encoding="utf-8") as file:
        (failure,) = csv.DictReader(file)
    assert failure["message"] == "wrote past | the end\nat index 3"


def test_an_old_table_does_not_outlive_its_evidence(results, verdict):
    render.write(render.report(results / "cpu-x"))
    append(results / "cpu-x/a.jsonl", replace(verdict, **LATER))
    render.write(render.report(results / "cpu-x"))
    assert len((results / "cpu-x/failures.csv").read_text().splitlines()) == 1
    assert "Failures" not in (results / "cpu-x/report.md").read_text()


def test_the_command_prints_everything_and_says_where_it_is(results):
    outcome = CliRunner().invoke(app, ["report", str(results)], env={"COLUMNS": "120"})
    assert outcome.exit_code == 0, outcome.output
    for title in ("Conformance", "Failures", "Measured ceilings", "Accuracy versus speed", "Model accuracy"):
        assert f"\n{title}\n" in outcome.output
    assert "reproduce: pytest conformance --backend acme -k guard " + "x" * 200 in outcome.output
    assert "report.md" in outcome.output
    lines = [line for line in outcome.output.splitlines() if "xxx" not in line and str(results) not in line]
    assert max(map(len, lines)) <= 120


def test_torn_evidence_is_reported(results):
    with (results / "cpu-x/a.jsonl").open("a") as file:
        file.write('{"schema": 1, "kind"')
    assert "Torn lines" in CliRunner().invoke(app, ["report", str(results)]).output
    assert "Torn lines" in (results / "cpu-x/report.md").read_text()


def test_a_folder_without_evidence_is_an_error(tmp_path, run):
    for folder in (tmp_path, tmp_path / "nowhere"):
        outcome = CliRunner().invoke(app, ["report", str(folder)])
        assert (outcome.exit_code, outcome.stdout) == (2, "")
        assert "no evidence" in outcome.stderr
    append(tmp_path / "cpu-x/a.jsonl", run)
    assert CliRunner().invoke(app, ["report", str(tmp_path)]).exit_code == 2


def test_evidence_of_another_schema_is_an_error_without_traceback(results):
    (results / "cpu-x/z.jsonl").write_text('{"schema": 99}\n')
    outcome = CliRunner().invoke(app, ["report", str(results)])
    assert outcome.exit_code == 2
    assert "version 99" in outcome.stderr


def test_reports_import_none_of_the_other_folders():
    code = (
        "import sys, lowbit_cts.reports.render, lowbit_cts.reports.device\n"
        "print([m for m in sys.modules if m.startswith('lowbit_cts.') and '.reports' not in m])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
