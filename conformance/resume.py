"""Going on with a run that was interrupted: what it has settled is not examined again.

A property is settled by a verdict that needs no second look (exact, faithful, refused). Everything else of the old
run's verdicts is dropped from its evidence, examined again and recorded under the same run.
"""

from pathlib import Path

from lowbit_cts.reports import evidence

_SETTLED = ("exact", "faithful", "refused")

#: Backend, version, operation, implementation, property, shard.
Key = tuple[str, str, str, str, str, object]


def newest_run(folder: Path, profile: str, seed: int | None, suite_version: str) -> str | None:
    """Return the newest run in the evidence of any device that had this profile, seed and suite; None if none had."""
    runs = [
        record
        for path in folder.glob("*/conformance-*.jsonl")
        for record in evidence.read(path).records
        if isinstance(record, evidence.Run)
        and (record.profile, record.seed, record.suite_version) == (profile, seed, suite_version)
    ]
    return max(runs, key=lambda record: record.run).run if runs else None


def _files(folder: Path, run: str) -> list[Path]:
    return sorted(folder.glob(f"*/conformance-{run}.jsonl"))


def settle(folder: Path, run: str) -> None:
    """Drop from a run's evidence the verdicts that are to be found again."""
    for path in _files(folder, run):
        kept = [
            record
            for record in evidence.read(path).records
            if not isinstance(record, evidence.Verdict) or record.verdict in _SETTLED
        ]
        rewritten = path.with_suffix(".rewritten")
        rewritten.unlink(missing_ok=True)
        for record in kept:
            evidence.append(rewritten, record)
        rewritten.replace(path)


def settled(folder: Path, run: str) -> set[Key]:
    """Return what a run's evidence has settled."""
    return {
        (r.backend, r.backend_version, r.operation, r.implementation, r.property, r.parameters.get("shard"))
        for path in _files(folder, run)
        for r in evidence.read(path).records
        if isinstance(r, evidence.Verdict) and r.verdict in _SETTLED and r.property != "declaration"
    }
