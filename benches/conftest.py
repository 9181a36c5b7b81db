"""What every bench module shares: the backends under test, the device's ceilings, the evidence of the run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lowbit_cts import __version__
from lowbit_cts.benches.engine.ceilings import Ceiling, measured_ceilings
from lowbit_cts.benches.engine.datasheet import datasheet_peaks
from lowbit_cts.benches.rows import ceiling_record
from lowbit_cts.benches.table import extremes, smallest
from lowbit_cts.kernels import Backend, ContractError
from lowbit_cts.kernels.discovery import default_backends, load_backends
from lowbit_cts.reports import device, evidence

#: The tests of the benches run when they are named.
collect_ignore = ["tests"]


class Recorder:
    """Writes the evidence of a bench run, a file a device, and measures each device's ceilings once."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.run = evidence.new_run()
        self.devices: dict[str, dict[str, Any]] = {}
        self.ceilings: dict[str, dict[str, Ceiling]] = {}

    def file(self, backend: Backend) -> Path:
        """Return the evidence file for a backend's device; the first use begins it with the run's circumstances."""
        known = self.devices.get(backend.device)
        described = known or device.describe(backend.device)
        path = Path(self.config.getoption("--results")) / described["slug"] / f"bench-{self.run}.jsonl"
        if known is None:
            self.devices[backend.device] = described
            evidence.append(
                path,
                evidence.Run(
                    run=self.run, time=evidence.now(), suite_version=__version__,
                    command=["pytest", *map(str, self.config.invocation_params.args)],
                    profile=self.config.getoption("--profile"), device=described, environment=device.environment(),
                ),
            )  # fmt: skip
        return path

    def record(self, kind: Callable[..., evidence.Record], of: Backend, **fields: Any) -> None:
        """Append a record."""
        path = self.file(of)
        slug = self.devices[of.device]["slug"]
        evidence.append(path, kind(run=self.run, time=evidence.now(), device=slug, **fields))

    def ceilings_of(self, backend: Backend) -> dict[str, Ceiling]:
        """Return the measured ceilings of a backend's device, measuring and recording them on first use."""
        if backend.device not in self.ceilings:
            found = measured_ceilings(backend.device)
            self.ceilings[backend.device] = {ceiling.name: ceiling for ceiling in found}
            self.file(backend)
            peaks = datasheet_peaks(str(self.devices[backend.device].get("name", "")))
            for ceiling in found:
                promised = None
                if peaks:
                    type_name = ceiling.name.removeprefix("matmul_")
                    promised = peaks.bandwidth if ceiling.name == "copy" else peaks.rates.get(type_name)
                self.record(
                    evidence.Ceiling, backend, **ceiling_record(ceiling),
                    datasheet=promised / 1e9 if promised else None, source=peaks.source if promised and peaks else None,
                )  # fmt: skip
        return self.ceilings[backend.device]


_RECORDER: pytest.StashKey[Recorder] = pytest.StashKey()


@pytest.fixture(scope="session")
def recorder(request: pytest.FixtureRequest) -> Recorder:
    """The evidence of this run."""
    found = Recorder(request.config)
    request.config.stash[_RECORDER] = found
    return found


def backends(config: pytest.Config) -> list[Backend]:
    """Return the backends under test."""
    try:
        specs = config.getoption("--backend") or default_backends()
        return [backend for spec in specs for backend in load_backends(spec)]
    except ContractError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a bench every implementation of its rows' operations, or every backend."""
    rows = getattr(metafunc.module, "ROWS", ())
    caches: tuple[str, ...] = ("hot", "cold")
    if metafunc.config.getoption("--benchmark-disable"):
        # A row is then run once, to see that its results are admissible: what is in the cache is all one, and of rows
        # that differ in their shape alone the smallest will do.
        caches, rows = caches[:1], smallest(rows)
    elif metafunc.config.getoption("--profile") == "smoke":
        caches, rows = caches[1:], extremes(rows)  # weights that come from memory are what a layer is about
    if "implementation" in metafunc.fixturenames:
        pairs = [
            pytest.param(i, row, cache, id=f"{i.id}-{row.id}-{cache}")
            for backend in backends(metafunc.config)
            for i in backend.implementations
            for row in rows
            if row.runs_on(i)
            for cache in caches
        ]
        metafunc.parametrize(("implementation", "row", "cache"), pairs)
    elif "backend" in metafunc.fixturenames:
        found = backends(metafunc.config)
        metafunc.parametrize("backend", found, ids=[backend.name for backend in found])


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say where the evidence is."""
    recorder = config.stash.get(_RECORDER, None)
    if recorder and recorder.devices:
        folder = Path(config.getoption("--results"))
        files = [str(folder / d["slug"] / f"bench-{recorder.run}.jsonl") for d in recorder.devices.values()]
        terminalreporter.write_line(f"evidence: {', '.join(files)}")
