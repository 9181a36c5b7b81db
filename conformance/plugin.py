"""The pytest plugin: chooses backends and profile, gives each property its examination, records verdicts.

It does nothing in a run that collects no examination.
"""

import os
import shlex
from collections import Counter
from collections.abc import Generator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from lowbit_cts import __version__
from lowbit_cts.conformance import resume, waivers
from lowbit_cts.conformance.profiles import PROFILES, Profile
from lowbit_cts.kernels import OPERATIONS, Backend, Case, ContractError, Implementation
from lowbit_cts.kernels.discovery import default_backends, load_backends
from lowbit_cts.reports import device, evidence

if TYPE_CHECKING:  # imported on first use, so that a run without examinations does not pay for them
    from lowbit_cts.conformance.examination import Examination
    from lowbit_cts.conformance.host import KernelHost

#: Properties in which an implementation may lose its process before the rest are given up.
_LOST_PROPERTIES = 3


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suite."""
    group = parser.getgroup("lowbit-cts", "conformance of low-bit kernels")
    group.addoption(
        "--backend", action="append", default=[], metavar="NAME|MODULE[:ATTRIBUTE]",
        help="backend under test, repeatable (default: numpy, and torch where installed)",
    )  # fmt: skip
    group.addoption("--profile", choices=list(PROFILES), default="smoke", help="how long to look (default: smoke)")
    group.addoption("--seed", type=int, default=None, help="explore with this seed (default: the same cases every run)")
    group.addoption("--results", default="results", metavar="FOLDER", help="where evidence goes (default: results)")
    group.addoption(
        "--resume", action="store_true",
        help="go on with the newest run of this profile in the results folder: what it has settled is not run again",
    )  # fmt: skip
    group.addoption("--waivers", default=None, metavar="FILE", help="further waivers, a TOML file")


def pytest_configure(config: pytest.Config) -> None:
    """Load what the command line names, so that a mistake in it is a usage error."""
    config.addinivalue_line("markers", "operation(*names): the property is of these operations only")
    config.addinivalue_line(
        "markers", "applies(to=predicate): the property is of implementations for which the predicate holds"
    )
    config.addinivalue_line("markers", "exhaustive: the property runs in the exhaustive profile only")
    _share_cores(getattr(config.option, "numprocesses", None) or 1)
    suite = Suite(config)
    if config.getoption("--backend") or config.getoption("--waivers"):
        try:
            suite.backends  # noqa: B018  (loads them)
            suite.waivers  # noqa: B018
        except (ContractError, waivers.WaiverError) as error:
            raise pytest.UsageError(str(error)) from None
    config.stash[_SUITE] = suite


#: What tells numerical libraries, in this process's children too, how many threads to use.
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def _share_cores(workers: int) -> None:
    """Give each of several workers its share of the cores, unless the user has said how many threads to use.

    With all cores for each, threads that wait for one another make small calls many times as slow.
    """
    if workers > 1 and not any(name in os.environ for name in _THREADS):
        share = max(1, (os.cpu_count() or 1) // workers)
        os.environ.update(dict.fromkeys(_THREADS, str(share)))


class Suite:
    """What one pytest process knows of the run."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.profile: Profile = PROFILES[config.getoption("--profile")]
        self.seed: int | None = config.getoption("--seed")
        worker = getattr(config, "workerinput", None)
        if worker:
            self.run: str = worker["lowbit_cts_run"]
            self.resumed: bool = worker["lowbit_cts_resumed"]
            self.settled = {cast(resume.Key, tuple(key)) for key in worker["lowbit_cts_settled"]}
        else:
            old = self._old_run()
            self.run, self.resumed = old or evidence.new_run(), old is not None
            self.settled = resume.settled(self.results, old) if old else set()
        self.hosts: dict[int, KernelHost] = {}
        self.lost: Counter[str] = Counter()
        self.used_waivers: set[str] = set()
        self._backends: list[tuple[str, Backend]] | None = None
        self._waivers: list[waivers.Waiver] | None = None

    @property
    def results(self) -> Path:
        """The folder of the evidence."""
        return Path(self.config.getoption("--results"))

    def _old_run(self) -> str | None:
        """Return the id of the run to go on with, where that is wished and there is one."""
        if not self.config.getoption("--resume"):
            return None
        old = resume.newest_run(self.results, self.profile.name, self.seed, __version__)
        if old is not None:
            resume.settle(self.results, old)
        return old

    @property
    def backends(self) -> list[tuple[str, Backend]]:
        """The backends under test, each with the specification it came from."""
        if self._backends is None:
            specs = self.config.getoption("--backend") or default_backends()
            self._backends = [(spec, backend) for spec in specs for backend in load_backends(spec)]
            names = Counter(backend.name for _, backend in self._backends)
            for name, count in names.items():
                if count > 1:
                    raise ContractError(f"--backend: {count} backends are called {name!r}; names must differ")
            for spec, backend in self._backends:
                if not backend.implementations:
                    raise ContractError(
                        f"--backend {spec}: {backend.name!r} implements nothing: see Backend.implements"
                    )
        return self._backends

    @property
    def waivers(self) -> list[waivers.Waiver]:
        """The waivers in force."""
        if self._waivers is None:
            files = [Path(__file__).with_name("waivers.toml")]
            if self.config.getoption("--waivers"):
                files.append(Path(self.config.getoption("--waivers")))
            self._waivers = [waiver for file in files for waiver in waivers.load(file)]
        return self._waivers

    def host(self, backend: Backend) -> "KernelHost":
        """Return the backend's kernel host, started on first use."""
        from lowbit_cts.conformance.host import KernelHost

        if id(backend) not in self.hosts:
            spec = next(spec for spec, other in self.backends if other is backend)
            self.hosts[id(backend)] = KernelHost(spec, backend, self.profile.timeout)
        return self.hosts[id(backend)]

    def file(self, backend: Backend) -> Path:
        """Return the evidence file of this run for a backend's device."""
        return self.results / _slug(backend) / f"conformance-{self.run}.jsonl"


_SUITE: pytest.StashKey[Suite] = pytest.StashKey()
_slugs: dict[str, str] = {}


def _slug(backend: Backend) -> str:
    if backend.device not in _slugs:
        _slugs[backend.device] = device.describe(backend.device)["slug"]
    return _slugs[backend.device]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker which run it belongs to, and what that has settled."""
    suite = node.config.stash[_SUITE]
    node.workerinput["lowbit_cts_run"] = suite.run
    node.workerinput["lowbit_cts_resumed"] = suite.resumed
    node.workerinput["lowbit_cts_settled"] = [list(key) for key in suite.settled]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a property every implementation that it speaks of."""
    if "examination" not in metafunc.fixturenames:
        return
    suite = metafunc.config.stash[_SUITE]
    try:
        everything = [i for _, backend in suite.backends for i in backend.implementations]
    except ContractError as error:
        raise pytest.UsageError(str(error)) from None
    operation = metafunc.definition.get_closest_marker("operation")
    applies = metafunc.definition.get_closest_marker("applies")
    chosen = [
        i
        for i in everything
        if (operation is None or i.operation.name in operation.args) and (applies is None or applies.kwargs["to"](i))
    ]
    metafunc.parametrize("examination", chosen, ids=[i.id for i in chosen], indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the exhaustive properties, unless the profile is, those of no implementation here, and the settled."""
    suite = config.stash[_SUITE]
    exhaustive = suite.profile.exhaustive

    def belongs(item: pytest.Item) -> bool:
        if item.get_closest_marker("exhaustive") and not exhaustive:
            return False
        callspec = getattr(item, "callspec", None)  # a property that no implementation here is about
        examined = callspec.params.get("examination", True) if callspec else True
        if isinstance(examined, Implementation):
            return _key(cast(pytest.Function, item), examined) not in suite.settled
        return examined is True

    left_out = [item for item in items if not belongs(item)]
    if left_out:
        items[:] = [item for item in items if belongs(item)]
        config.hook.pytest_deselected(items=left_out)


def _key(item: pytest.Function, implementation: Implementation) -> resume.Key:
    backend = implementation.backend
    return (
        backend.name, backend.version, implementation.operation.name, implementation.name, _property(item),
        _part(item).get("shard"),
    )  # fmt: skip


def _property(item: pytest.Function) -> str:
    return item.originalname.removeprefix("test_")


def _part(item: pytest.Function) -> dict[str, Any]:
    """Return the parameters of a property that is examined in parts."""
    return {name: value for name, value in item.callspec.params.items() if name != "examination"}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin the evidence: the circumstances, and what is not declared."""
    config = session.config
    worker = getattr(config, "workerinput", None)
    if config.option.collectonly or (worker and worker["workerid"] != "gw0"):
        return
    if any("examination" in getattr(item, "fixturenames", ()) for item in session.items):
        suite = config.stash[_SUITE]
        if not suite.resumed:
            _begin(suite)


def _begin(suite: Suite) -> None:
    environment = device.environment()
    for slug in dict.fromkeys(_slug(backend) for _, backend in suite.backends):
        here = [backend for _, backend in suite.backends if _slug(backend) == slug]
        evidence.append(
            suite.file(here[0]),
            evidence.Run(
                run=suite.run, time=evidence.now(), suite_version=__version__,
                command=["pytest", *map(str, suite.config.invocation_params.args)], profile=suite.profile.name,
                seed=suite.seed, device=device.describe(here[0].device), environment=environment,
            ),
        )  # fmt: skip
        for backend in here:
            for record in _refusals(suite, backend):
                evidence.append(suite.file(backend), record)


def _refusals(suite: Suite, backend: Backend) -> Iterator[evidence.Verdict]:
    present = {i.operation.name for i in backend.implementations}
    for name in OPERATIONS:
        if name not in present:
            yield evidence.Verdict(
                **_identity(suite, backend), operation=name, implementation="", semantics={}, property="declaration",
                parameters={}, verdict="refused", message="not implemented",
            )  # fmt: skip
    for implementation in backend.implementations:
        if undeclared := implementation.undeclared():
            yield _verdict(
                suite, implementation, "declaration", "refused", undeclared, message="not declared as supported"
            )


def _identity(suite: Suite, backend: Backend) -> dict[str, Any]:
    return {
        "run": suite.run, "time": evidence.now(), "backend": backend.name, "backend_version": backend.version,
        "device": _slug(backend),
    }  # fmt: skip


def _verdict(
    suite: Suite,
    implementation: Implementation,
    property_name: str,
    verdict: str,
    parameters: dict[str, Any],
    **rest: Any,
) -> evidence.Verdict:
    operation = implementation.operation
    return evidence.Verdict(
        **_identity(suite, implementation.backend), operation=operation.name, implementation=implementation.name,
        semantics=implementation.semantics.described(operation.semantics), property=property_name,
        parameters=parameters, verdict=verdict, **rest,
    )  # fmt: skip


@pytest.fixture
def examination(request: pytest.FixtureRequest) -> "Examination":
    """The examination of one property of one implementation."""
    from lowbit_cts.conformance.examination import Examination

    suite = request.config.stash[_SUITE]
    implementation: Implementation = request.param
    return Examination(implementation, suite.host(implementation.backend), suite.profile, suite.seed)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Turn the outcome of an examination into a verdict, evidence and a message."""
    examination = cast("Examination | None", pyfuncitem.funcargs.get("examination"))
    if examination is None:
        return (yield)
    from lowbit_cts.conformance.checks import Violation
    from lowbit_cts.conformance.examination import Refused, failure_text

    suite = pyfuncitem.config.stash[_SUITE]
    implementation = examination.implementation
    property_name = _property(pyfuncitem)
    violation: Violation | None = None
    refusal: Refused | None = None
    if suite.lost[implementation.id] >= _LOST_PROPERTIES:
        text = f"not examined: {implementation.id} was lost (crashed or hung) in {_LOST_PROPERTIES} properties already"
        lost = _verdict(suite, implementation, property_name, "mistrusted", {}, message=text)
        evidence.append(suite.file(implementation.backend), lost)
        pyfuncitem.user_properties.append(("lowbit_cts_verdict", "mistrusted"))
        pytest.fail(f"MISTRUSTED: {text}", pytrace=False)
    try:
        result = yield
    except Violation as caught:
        violation, result = caught, None
    except Refused as caught_refusal:
        refusal, result = caught_refusal, None
    verdict = "refused" if refusal else examination.verdict(violation)
    candidates = [w for w in suite.waivers if w.covers(implementation, property_name)]
    waiver = next((w for w in candidates if violation and w.excuses(violation.case.parameters)), None)
    reproduce = _reproduce(pyfuncitem, suite)
    tally = examination.tally
    message = str(violation or refusal or "") or None
    if verdict == "mistrusted":
        message = f"proved nothing: {tally.cases} cases, none of them able to tell a right kernel from a constant one"
    inputs = _inputs(suite, implementation, property_name, violation.case) if violation else None
    record = _verdict(
        suite, implementation, property_name, verdict,
        {**(violation.case.parameters if violation else tally.parameters), **_part(pyfuncitem)},
        cases=tally.cases, elements=tally.elements, worst=None if violation or refusal else tally.worst,
        message=message, counterexample=inputs,
        reproduce=reproduce if violation else None, waiver=waiver.id if waiver else None,
        seconds=examination.seconds(),
    )  # fmt: skip
    evidence.append(suite.file(implementation.backend), record)
    pyfuncitem.user_properties.append(("lowbit_cts_verdict", "waived" if waiver else verdict))
    if verdict in ("crashed", "hung"):
        suite.lost[implementation.id] += 1
    if refusal:
        pytest.skip(f"refused: {refusal}")
    if waiver and waiver.expires <= datetime.now(UTC).date():
        pytest.fail(f"waiver {waiver.id} expired on {waiver.expires}: {waiver.reason}", pytrace=False)
    if waiver:
        pyfuncitem.user_properties.append(("lowbit_cts_waiver", waiver.id))
        pytest.xfail(f"waived ({waiver.id}): {waiver.reason} {waiver.link}")
    if violation:
        pytest.fail(failure_text(violation, implementation, inputs or "", reproduce), pytrace=False)
    if verdict == "mistrusted":
        pytest.fail(f"MISTRUSTED: {implementation.id}\n  {message}\n  reproduce: {reproduce}", pytrace=False)
    for stale in (w for w in candidates if not w.machines):
        pyfuncitem.user_properties.append(("lowbit_cts_waiver_unused", stale.id))
    return result


def _inputs(suite: Suite, implementation: Implementation, property_name: str, case: Case) -> str:
    """Return a case as NumPy source, its large arrays in a file beside the evidence."""
    from lowbit_cts.conformance.checks import large, source

    arrays = large(case)
    if not arrays:
        return source(case)
    name = f"{suite.run}-{implementation.id.replace('/', '-')}-{property_name}.npz"
    path = suite.file(implementation.backend).parent / "counterexamples" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return source(case, str(path))


def _reproduce(item: pytest.Function, suite: Suite) -> str:
    module = item.module.__name__.rpartition(".")[2]
    parts = ["pytest", "--pyargs", f"lowbit_cts.conformance.{module}::{item.name}"]
    implementation = cast("Examination", item.funcargs["examination"]).implementation
    spec = next(spec for spec, backend in suite.backends if backend is implementation.backend)
    parts += ["--backend", spec, "--profile", suite.profile.name]
    parts += ["--seed", str(suite.seed)] if suite.seed is not None else []
    return shlex.join(parts)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Count verdicts, in the controller too."""
    if report.when == "call":
        for key, value in report.user_properties:
            if key.startswith("lowbit_cts_"):
                _counts[key, str(value)] += 1


_counts: Counter[tuple[str, str]] = Counter()


def _stale_waivers() -> list[str]:
    used = {value for key, value in _counts if key == "lowbit_cts_waiver"}
    return sorted({value for key, value in _counts if key == "lowbit_cts_waiver_unused"} - used)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """End the kernel hosts; fail a run whose waivers match nothing any more."""
    for host in session.config.stash[_SUITE].hosts.values():
        host.close()
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.stash[_SUITE].settled:
        session.exitstatus = pytest.ExitCode.OK
    if exitstatus == 0 and _stale_waivers() and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how many properties got which verdict, and where the evidence is."""
    verdicts = {value: count for (key, value), count in _counts.items() if key == "lowbit_cts_verdict"}
    suite = config.stash[_SUITE]
    if not verdicts and not suite.settled:
        return
    order = [*evidence.VERDICTS, "waived"]
    said = ", ".join(f"{verdicts[name]} {name}" for name in order if name in verdicts)
    terminalreporter.section("Lowbit-CTS")
    terminalreporter.write_line(f"{sum(verdicts.values())} properties: {said or 'nothing left to examine'}")
    if suite.settled:
        terminalreporter.write_line(f"{len(suite.settled)} settled before, see --resume")
    for name in _stale_waivers():
        terminalreporter.write_line(f"waiver {name} matches nothing any more: remove it", red=True)
    files = dict.fromkeys(str(suite.file(backend)) for _, backend in suite.backends)
    terminalreporter.write_line(f"evidence: {', '.join(files)}")
