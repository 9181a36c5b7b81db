"""The command line of Lowbit-CTS."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from lowbit_cts.reports import render

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.callback()
def main() -> None:
    """Conformance tests and benchmarks for low-bit and sparse compute kernels."""


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="All results, or one device's.")] = Path("results"),
) -> None:
    """Render evidence: print its tables, and write them beside it as Markdown and CSV."""
    folders = render.device_folders(folder)
    if not folders:
        _fail(f"no evidence (*.jsonl) in {folder}")
    try:
        reports = [render.report(device) for device in folders]
    except ValueError as error:
        _fail(str(error))
    reports = [report for report in reports if any(table.rows for table in report.tables.values())]
    if not reports:
        _fail(f"no verdict, measurement, ceiling or model in the evidence in {folder}")
    for rendered in reports:
        typer.echo(render.terminal_report(rendered))
        typer.echo("\nWritten:\n" + "\n".join(f"    {path}" for path in render.write(rendered)) + "\n")


def _fail(message: str) -> NoReturn:
    typer.echo(f"lowbit-cts: {message}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
