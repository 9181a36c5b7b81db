"""Render a folder of evidence: text for a terminal, Markdown for a pull request, CSV for everything else.

Which records are shown: of each kind, device and backend (ceilings have no backend), those of its newest run.
A run is as new as its newest record. So a run of one backend replaces what was shown of that backend and
leaves the others; and a run over a selection of tests shows that selection only.
"""

import csv
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from lowbit_cts.reports import arithmetic, tables
from lowbit_cts.reports.evidence import Evidence, Record, Run, read
from lowbit_cts.reports.tables import Table

# File name to table, in the order of the report.
TABLES: dict[str, Callable[[Iterable[Record]], Table]] = {
    "libraries": tables.library_matrix,
    "conformance": tables.conformance_matrix,
    "failures": tables.failures,
    "ceilings": tables.ceilings,
    "accuracy_versus_speed": tables.accuracy_versus_speed,
    "formats": tables.number_formats,
    "algorithms": tables.algorithms,
    "models": tables.model_accuracy,
    "layer_errors": tables.layer_errors,
    "tightness": arithmetic.tightness,
    "fingerprints": arithmetic.fingerprints,
}

# Tables of sentences and command lines, which are listed row by row.
LISTED = frozenset({"failures"})

#: Rows of a table that a published report shows; longer ones are in their CSV alone.
PAGE = 200

_NUMERIC = re.compile(r"[-+]?(\d|inf$|nan$)", re.IGNORECASE)


@dataclass(frozen=True)
class Report:
    """A device's folder, its evidence, and the tables made of it."""

    folder: Path
    runs: tuple[Run, ...]
    tables: dict[str, Table]
    torn: int


def device_folders(results: Path) -> list[Path]:
    """Return the folders that hold one device's evidence each.

    Parameters
    ----------
    results : Path
        The folder of all results, or that of one device.

    Returns
    -------
    list of Path
        `results` itself if evidence lies in it, else the folders in it that hold some at any depth.
    """
    if not results.is_dir():
        return []
    if any(results.glob("*.jsonl")):
        return [results]
    return [path for path in sorted(results.iterdir()) if path.is_dir() and any(path.rglob("*.jsonl"))]


def load(folder: Path) -> Evidence:
    """Return all evidence below a folder, see `read`."""
    parts = [read(path) for path in sorted(folder.rglob("*.jsonl"))]
    return Evidence(tuple(r for part in parts for r in part.records), sum(part.torn for part in parts))


def newest(records: Iterable[Record]) -> list[Record]:
    """Return the records a report shows, by the rule this module states, and the runs they refer to."""
    records = list(records)

    def subject(record: Record) -> tuple[str, ...]:
        return record.kind, getattr(record, "device", ""), getattr(record, "backend", "")

    observed = [record for record in records if not isinstance(record, Run)]
    latest = {subject(record): record.run for record in sorted(observed, key=lambda record: record.time)}
    shown = [record for record in observed if record.run == latest[subject(record)]]
    runs = {record.run for record in shown}
    return [*(record for record in records if isinstance(record, Run) and record.run in runs), *shown]


def report(folder: Path) -> Report:
    """Return the report of one device's folder.

    Parameters
    ----------
    folder : Path
        Holds ``*.jsonl`` at any depth.

    Raises
    ------
    ValueError
        If the evidence is not of this schema, see `read`.
    """
    evidence = load(folder)
    records = newest(evidence.records)
    runs = tuple(record for record in records if isinstance(record, Run))
    return Report(folder, runs, {name: table(records) for name, table in TABLES.items()}, evidence.torn)


def captioned(table: Table) -> Table:
    """Return the table less its empty columns and less those with one value, which its note states."""
    gone, constant = [], []
    for header in table.headers:
        values = set(table.column(header))
        if values <= {""}:
            gone.append(header)
        elif len(values) == 1 and len(table.rows) > 1 and header != "verdict":  # what a reader looks for
            gone.append(header)
            constant.append(f"{header}: {values.pop()}")
    return table.without(gone, f"In every row: {'; '.join(constant)}." if constant else "")


def terminal(table: Table, width: int | None = None) -> str:
    """Return a table as text that fits a terminal.

    Parameters
    ----------
    table : Table
        What to show.
    width : int, optional
        Columns of text; those of the terminal by default, or plenty where there is none.

    Returns
    -------
    str
        Constant columns are stated in the note; what is still too wide loses its secondary columns.
    """
    width = width or shutil.get_terminal_size(fallback=(240, 24)).columns
    table, left_out = captioned(table), []
    text = _grid(table, "simple")
    for header in table.secondary:
        if max(map(len, text.splitlines())) <= width:
            break
        left_out.append(header)
        table = table.without([header])
        text = _grid(table, "simple")
    if left_out:
        table = table.without((), f"Left to the files: {', '.join(left_out)}.")
    note = textwrap.fill(table.note, min(width, 110))
    return "\n\n".join(filter(None, (table.title, text, note)))


def terminal_listing(table: Table) -> str:
    """Return a table one row a paragraph, for cells of whole sentences and command lines to copy."""
    paragraphs = []
    for head, details in map(_paragraph, _rows(table)):
        body = "\n".join(f"{name}: {text}" for name, text in details.items())
        paragraphs.append(f"{head}\n{textwrap.indent(body, '    ')}")
    return "\n\n".join((table.title, *paragraphs))


def terminal_report(report: Report) -> str:
    """Return a whole report as text that fits a terminal."""
    heading = report.folder.resolve().name
    sections = [f"{heading}\n{'=' * len(heading)}"]
    if report.torn:
        sections.append(_torn(report))
    for name, table in report.tables.items():
        if table.rows:
            sections.append((terminal_listing if name in LISTED else terminal)(table))
    return "\n\n".join(sections)


def markdown(table: Table) -> str:
    """Return a table as GitHub Markdown."""
    table = captioned(table)
    return "\n\n".join(filter(None, (f"## {table.title}", _grid(table, "github"), table.note)))


def markdown_listing(table: Table) -> str:
    """Return a table as GitHub Markdown, one row a section."""
    sections = [f"## {table.title}"]
    for head, details in map(_paragraph, _rows(table)):
        sections.append(f"### {head}")
        sections += [f"{name}:\n\n{textwrap.indent(text, '    ')}" for name, text in details.items()]
    return "\n\n".join(sections)


def preamble(report: Report) -> str:
    """Return what the report is of: its runs and what they ran on, as Markdown."""
    lines = [f"# Lowbit-CTS: {report.folder.resolve().name}", ""]
    for run in report.runs:
        device = tables.pairs({key: value for key, value in run.device.items() if value not in (None, {}, [])})
        packages = ", ".join(f"{name} {version}" for name, version in run.environment.get("packages", {}).items())
        git = run.environment.get("git")
        suite = f"{run.suite_version} at {git['revision'][:12]}{' (dirty)' if git['dirty'] else ''}" if git else ""
        facts = {
            "command": f"`{' '.join(run.command)}`",
            "profile": run.profile + ("" if run.seed is None else f", seed {run.seed}"),
            "suite": suite or run.suite_version,
            "device": device,
            "python": run.environment.get("python", ""),
            "platform": run.environment.get("platform", ""),
            "packages": packages,
        }
        lines.append(f"- run `{run.run}`, {run.time}")
        lines += [f"  - {name}: {fact}" for name, fact in facts.items() if fact]
    if report.torn:
        lines += ["", _torn(report)]
    return "\n".join(lines)


def write(report: Report, into: Path | None = None) -> list[Path]:
    """Write the report beside its evidence, or what is to be published of it into another folder.

    Parameters
    ----------
    report : Report
        What to write.
    into : Path or None
        A folder of its own, made where there is none. What is listed row by row (messages with paths, inputs) stays
        with the evidence, and tables of more than `PAGE` rows are in their CSV alone.

    Returns
    -------
    list of Path
        ``report.md`` and one CSV per table; a table without rows has its headers, so that none is stale.
    """
    folder = into or report.folder
    folder.mkdir(parents=True, exist_ok=True)
    shown = {name: table for name, table in report.tables.items() if into is None or name not in LISTED}
    sections = [
        (markdown_listing if name in LISTED else markdown)(table)
        if into is None or len(table.rows) <= PAGE
        else f"## {table.title}\n\n{len(table.rows)} rows, in `{name}.csv`."
        for name, table in shown.items()
        if table.rows
    ]
    paths = [folder / "report.md"]
    paths[0].write_text("\n\n".join((preamble(report), *sections)) + "\n", encoding="utf-8")
    for name, table in shown.items():
        paths.append(folder / f"{name}.csv")
        with paths[-1].open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows((table.headers, *table.rows))
    return paths


def _torn(report: Report) -> str:
    return f"Torn lines of evidence, left by writers that were killed and not shown: {report.torn}."


def _grid(table: Table, style: str) -> str:
    bar = r"\|" if style == "github" else "|"  # a bar would end a Markdown cell
    cells = [[" ".join(cell.split()).replace("|", bar) for cell in row] for row in (table.headers, *table.rows)]
    numeric = [all(_NUMERIC.match(cell) for cell in table.column(h) if cell) for h in table.headers]
    align = ["right" if is_numeric else "left" for is_numeric in numeric]
    # Numbers are formatted already: tabulate must not read them again.
    return tabulate(cells[1:], cells[0], style, disable_numparse=True, colalign=align if table.rows else None)


def _rows(table: Table) -> list[dict[str, str]]:
    return [dict(zip(table.headers, row, strict=True)) for row in table.rows]


def _paragraph(row: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Return a row's first line, of what identifies it, and its other cells."""
    identity = ("verdict", "backend", "operation", "implementation", "property", "parameters")
    head = " · ".join(row[name] for name in identity if row[name])
    return head, {name: cell for name, cell in row.items() if cell and name not in (*identity, "device")}
