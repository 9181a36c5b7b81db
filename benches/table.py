"""Rows of a bench module's table, and the bench that measures each."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from lowbit_cts.benches import rows
from lowbit_cts.benches.engine.replay import replay
from lowbit_cts.benches.workloads import cases, shapes
from lowbit_cts.benches.workloads.cases import WorkloadCase
from lowbit_cts.kernels import OPERATIONS, Implementation
from lowbit_cts.reports import evidence

#: Seconds spent on one row.
ROW_SECONDS = 0.5


@dataclass(frozen=True)
class Row:
    """A line of the table: an operation at a layer of a real model, a batch, a fill and parameters."""

    operation: str
    layer: str
    batch: int
    fill: str = "normal"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Return a name for the row."""
        chosen = "-".join(str(value) for value in self.parameters.values())
        return f"{self.layer}-batch{self.batch}-{self.fill}{'-' + chosen if chosen else ''}"

    @property
    def elements(self) -> int:
        """Return about how many numbers it takes, by which the smallest row is found."""
        layer = shapes.layer(self.layer)
        return self.batch * layer.m + layer.n * layer.k

    def runs_on(self, implementation: Implementation) -> bool:
        """Return whether the implementation is of the operation and supports the parameters."""
        operation = OPERATIONS[self.operation]
        if implementation.operation is not operation:
            return False
        complete = cases.complete_parameters(operation, self.parameters)
        return all(
            value is None or value in implementation.supports[name] or operation.parameters[name].open
            for name, value in complete.items()
        )

    def workload(self) -> WorkloadCase:
        """Return the inputs and the truth, built once."""
        return _built(self.operation, self.layer, self.batch, self.fill, tuple(self.parameters.items()))


def smallest(rows: Iterable[Row]) -> list[Row]:
    """Return the rows, of those that differ in their shape alone the smallest."""
    return [alike[0] for alike in _by_size(rows)]


def extremes(rows: Iterable[Row]) -> list[Row]:
    """Return the rows, of those that differ in their shape alone the smallest and the largest."""
    return [row for alike in _by_size(rows) for row in alike[:1] + alike[1:][-1:]]


def _by_size(rows: Iterable[Row]) -> list[list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.elements):
        found.setdefault(f"{row.operation} {row.fill} {dict(row.parameters)}", []).append(row)
    return list(found.values())


@lru_cache(maxsize=2)
def _built(operation: str, layer: str, batch: int, fill: str, parameters: tuple[tuple[str, Any], ...]) -> WorkloadCase:
    return cases.build(operation, shapes.layer(layer), batch, fill=fill, parameters=dict(parameters))


def measure_row(implementation: Implementation, row: Row, cache: Any, benchmark: Any, recorder: Any) -> None:
    """Measure a row, verify the timed buffers, record the evidence and replay the samples."""
    smoke = not benchmark.enabled
    workload = row.workload()
    found, wide = rows.measured(implementation, workload, cache, ROW_SECONDS, smoke)
    ceilings = {} if smoke else recorder.ceilings_of(implementation.backend)
    facts = rows.row(implementation, workload, found, wide, ceilings)
    if not smoke:
        recorder.record(evidence.Measurement, implementation.backend, **facts)
    kept = ("sqnr_db", "mismatches", "worst", "verdict", "ceiling_share", "speedups", "bits_per_weight")
    replay(benchmark, found, {key: facts.get(key) for key in kept})
    assert facts["verdict"] != "violation", (
        f"{implementation.id} on {row.id}: the timed buffers are outside the enclosure (worst error over bound "
        f"{facts['worst']:.3g}, {facts['mismatches']} mismatches)"
    )
