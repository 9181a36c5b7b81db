"""The command line of Lowbit-CTS."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from lowbit_cts.kernels import OPERATIONS, Operation, Semantics
from lowbit_cts.reference.accumulators import ACCUMULATORS, Accumulator
from lowbit_cts.reports import render

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__)


@app.callback()
def main() -> None:
    """Conformance tests and benchmarks for low-bit and sparse compute kernels."""


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="All results, or one device's.")] = Path("results"),
    publish: Annotated[
        Path | None, typer.Option(help="Write the tables, less the inputs of failures, into DEVICE folders in here.")
    ] = None,
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
        written = render.write(rendered, publish and publish / rendered.folder.resolve().name)
        typer.echo("\nWritten:\n" + "\n".join(f"    {path}" for path in written) + "\n")


@app.command()
def operations(
    name: Annotated[str | None, typer.Argument(help="One operation; all in brief when left out.")] = None,
) -> None:
    """Print the operations: arguments by position, parameters with their values, the semantics that matter."""
    if name is None:
        for operation in OPERATIONS.values():
            typer.echo(f"{operation.name:24}{operation.summary}")
        return
    if name not in OPERATIONS:
        _fail(f"unknown operation {name!r}; admissible: {', '.join(OPERATIONS)}")
    typer.echo(contract(OPERATIONS[name]))


def contract(operation: Operation) -> str:
    """Return an operation's contract as text."""
    lines = [f"{operation.name}: {operation.summary}", f"defined by: {operation.source}", "", "arguments, by position:"]
    lines += [
        f"    {a.name:24}{a.doc}{' (to `prepare`)' if a.name in operation.constant else ''}"
        for a in operation.arguments
    ]
    lines += ["results:", *(f"    {r.name:24}{r.doc}" for r in operation.results), "parameters, by keyword:"]
    for name, parameter in operation.parameters.items():
        lines.append(f"    {name:24}{parameter.doc}")
        lines.append(f"    {'':24}admissible: {parameter.admissible()}")
        lines.append(f"    {'':24}assumed when not declared: {', '.join(map(str, parameter.assumed))}")
    lines.append("semantics that matter, the default first:" if operation.semantics else "semantics that matter: none")
    for name in operation.semantics:
        default = getattr(Semantics(), name)
        if isinstance(default, StrEnum | Accumulator):
            known = type(default) if isinstance(default, StrEnum) else ACCUMULATORS.values()
            doc = (type(default).__doc__ or "").splitlines()[0]
            lines.append(f"    {name:24}{doc}")
            lines.append(f"    {'':24}{', '.join(map(str, (default, *(v for v in known if v != default))))}")
        else:
            lines.append(f"    {name:24}a number, {default:g}")
    return "\n".join(lines)


def _fail(message: str) -> NoReturn:
    typer.echo(f"lowbit-cts: {message}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
