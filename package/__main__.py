"""The command line of Lowbit-CTS."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from lowbit_cts import __version__
from lowbit_cts.kernels import OPERATIONS, Backend, ContractError, Implementation, Operation, Semantics
from lowbit_cts.kernels.discovery import default_backends, load_backends
from lowbit_cts.reference.accumulators import ACCUMULATORS, Accumulator
from lowbit_cts.reports import arithmetic, device, render
from lowbit_cts.reports.evidence import Fingerprint, Record, Run, Tightness, append, new_run, now, read

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
            typer.echo(f"{operation.name:27}{operation.summary}")
        return
    if name not in OPERATIONS:
        _fail(f"unknown operation {name!r}; admissible: {', '.join(OPERATIONS)}")
    typer.echo(contract(OPERATIONS[name]))


@app.command()
def fingerprint(
    backend: Annotated[
        list[str] | None, typer.Option(help="NAME or MODULE[:ATTRIBUTE], repeatable; numpy, and torch where installed.")
    ] = None,
    operation: Annotated[list[str] | None, typer.Option(help="Only this operation, repeatable.")] = None,
    implementation: Annotated[list[str] | None, typer.Option(help="Only implementations of this name.")] = None,
    results: Annotated[Path, typer.Option(help="Where evidence goes.")] = Path("results"),
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(help="Two files or folders of evidence, or backends to probe: print where they differ."),
    ] = None,
) -> None:
    """Probe products for their arithmetic: order of summation, accumulator, rounding, subnormals, dependences.

    With --compare the exit status is 1 if any finding differs.
    """
    from lowbit_cts.conformance.fingerprint.examine import OPERATIONS as PROBED

    for name in operation or ():
        if name not in PROBED:
            _fail(f"--operation: {name!r} cannot be probed; admissible: {', '.join(PROBED)}")
    if compare is None:
        records = [
            r for spec in backend or default_backends() for r in _probed(spec, operation, implementation, results)
        ]
        typer.echo(render.terminal(arithmetic.fingerprints(records)))
        return
    if backend:
        _fail("--backend: stands alone; with --compare name the two backends there")
    sides = []
    for side in compare:
        path = Path(side)
        try:
            found = (
                render.newest(evidence_in(path)) if path.exists() else _probed(side, operation, implementation, results)
            )
        except (ValueError, OSError) as error:
            _fail(f"--compare: {error}")
        kept = [record for record in found if _wanted(record, operation, implementation)]
        if not kept:
            _fail(f"--compare: no fingerprint of these products in {side}")
        sides.append(kept)
    differences = arithmetic.fingerprint_differences(*sides)
    if differences.rows:
        typer.echo(render.terminal(differences))
        raise typer.Exit(1)
    typer.echo("No finding differs.")


@app.command()
def tightness(
    backend: Annotated[
        list[str] | None, typer.Option(help="NAME or MODULE[:ATTRIBUTE], repeatable; numpy, and torch where installed.")
    ] = None,
    results: Annotated[Path, typer.Option(help="Where evidence goes.")] = Path("results"),
) -> None:
    """Plant small faults under the declared semantics of products, and count those that their bounds let pass."""
    from lowbit_cts.conformance.tightness import LENGTHS, escapes, is_product

    records: list[Tightness] = []
    for spec in backend or default_backends():
        try:
            backends = load_backends(spec)
        except ContractError as error:
            _fail(str(error))
        for loaded in backends:
            path, slug, run = _begun(loaded, "tightness", results)
            for product in filter(is_product, loaded.implementations):
                semantics = product.semantics.described(product.operation.semantics)
                for regime, length in LENGTHS:
                    for fault, counts in escapes(product, regime, length).items():
                        records.append(
                            Tightness(
                                run=run, time=now(), device=slug, backend=loaded.name, backend_version=loaded.version,
                                operation=product.operation.name, implementation=product.name, semantics=semantics,
                                regime=regime, length=length, fault=fault, planted=counts.planted,
                                escaped=counts.escaped, largest=counts.largest,
                            )
                        )  # fmt: skip
                        append(path, records[-1])
    typer.echo(render.terminal(arithmetic.tightness(records)))


def _begun(backend: Backend, profile: str, results: Path) -> tuple[Path, str, str]:
    """Begin a file of evidence with the circumstances of its run; return it, the device's slug and the run."""
    described, run = device.describe(backend.device), new_run()
    path = results / described["slug"] / f"{profile}-{run}.jsonl"
    circumstances = Run(
        run=run, time=now(), suite_version=__version__, command=["lowbit-cts", *sys.argv[1:]], profile=profile,
        device=described, environment=device.environment(),
    )  # fmt: skip
    append(path, circumstances)
    return path, described["slug"], run


def evidence_in(path: Path) -> list[Record]:
    """Return the records of a file, or of all files below a folder."""
    return list((render.load(path) if path.is_dir() else read(path)).records)


def _wanted(record: Record, operation: list[str] | None, implementation: list[str] | None) -> bool:
    return (
        isinstance(record, Fingerprint)
        and (not operation or record.operation in operation)
        and (not implementation or record.implementation in implementation)
    )


def _probed(
    spec: str, operation: list[str] | None, implementation: list[str] | None, results: Path
) -> list[Fingerprint]:
    """Probe the backends behind a specification, and leave the evidence in the results folder."""
    from lowbit_cts.conformance.fingerprint.examine import examine

    try:
        backends = load_backends(spec)
    except ContractError as error:
        _fail(str(error))

    def wanted(candidate: Implementation) -> bool:
        return (not operation or candidate.operation.name in operation) and (
            not implementation or candidate.name in implementation
        )

    records = []
    for loaded in backends:
        described, run = device.describe(loaded.device), new_run()
        path = results / described["slug"] / f"fingerprints-{run}.jsonl"
        for record in examine(spec, loaded, run, wanted):
            if not path.exists():
                append(
                    path,
                    Run(
                        run=run, time=now(), suite_version=__version__, command=["lowbit-cts", *sys.argv[1:]],
                        profile="fingerprint", device=described, environment=device.environment(),
                    ),
                )  # fmt: skip
            append(path, record)
            records.append(record)
            typer.echo(f"{record.backend}/{record.operation}/{record.implementation} {record.seconds:.1f} s", err=True)
    return records


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
