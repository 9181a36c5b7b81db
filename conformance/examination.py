"""An examination: one property of one implementation, on drawn cases, ending in a verdict."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, find, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from lowbit_cts.conformance.checks import Tally, Violation, enclosed, identical, observed
from lowbit_cts.conformance.host import KernelHost, Lost
from lowbit_cts.conformance.profiles import Profile
from lowbit_cts.conformance.strategies import draw_case
from lowbit_cts.conformance.worker import Call, Reply
from lowbit_cts.kernels import Case, Implementation
from lowbit_cts.kernels.exchange import Exchange
from lowbit_cts.kernels.operation import Argument

#: So many lost processes are spent on one property, that a hang is shrunk but not for ever.
_LOSSES = 6


@dataclass
class Trial:
    """One case on one implementation: what a property does with it.

    Attributes
    ----------
    examination : Examination
    case : Case
    draw : callable
        Draws further structure of the case (a cut, a layout).
    """

    examination: "Examination"
    case: Case
    draw: Callable[[st.SearchStrategy], Any]

    @property
    def implementation(self) -> Implementation:
        """The kernel under test."""
        return self.examination.implementation

    def call(
        self,
        *cases: Case,
        layout: str = "contiguous",
        lenient: bool = False,
        expect_results: bool = True,
        **options: Any,
    ) -> Reply:
        """Run the implementation, once for each case in the same buffers; raise a Violation for what no call may do.

        `lenient` permits an exception: the reply then says so. Without `expect_results` what is returned may be of
        any kind, too: the inputs break a rule.
        """
        chosen = cases or (self.case,)
        call = Call(
            self.case.operation.name, self.implementation.name, dict(chosen[0].parameters),
            tuple(case.arrays for case in chosen), layout=layout, **options,
        )  # fmt: skip
        reply = self.examination.execute(call, chosen[-1])
        observed(reply, chosen[-1], lenient=lenient, expect_results=expect_results)
        return reply

    def enclosed(self, results: dict[str, np.ndarray], case: Case | None = None, what: str = "") -> None:
        """Hold results against the enclosures of a case under the declared semantics."""
        case = case or self.case
        found = enclosed(results, case.enclosures(self.implementation.semantics, results), case, what)
        self.examination.tally.count(case, *found)

    def identical(self, one: dict[str, np.ndarray], other: dict[str, np.ndarray], what: str) -> None:
        """Demand that two results agree bit for bit."""
        identical(one, other, self.case, what)
        elements = sum(array.size for array in one.values())
        alike = all(array.size >= 4 and np.all(array == array.flat[0]) for array in one.values())
        self.examination.tally.count(self.case, elements, 0.0, not alike)

    def determined(self) -> bool:
        """Return whether the declared semantics determine every result of the case."""
        enclosures = self.case.enclosures(self.implementation.semantics).values()
        return all(np.array_equal(e.lo, e.hi, equal_nan=True) for e in enclosures)

    def independent_axes(self) -> list[str]:
        """Return the axes that the case can be cut along."""
        return [axis for axis in self.case.operation.independent(self.case.parameters) if self.case.sizes[axis] > 0]

    def shared_axis(self, argument: Argument, axis: int) -> bool:
        """Return whether the length of an axis follows from another argument, which has the same axis or its origin."""
        operation, parameters = self.case.operation, self.case.parameters
        symbol = argument.shape(parameters)[axis]
        others = {
            other: length
            for slot in operation.arguments
            if slot.name != argument.name and (array := self.case.arrays[slot.name]) is not None
            for other, length in zip(slot.shape(parameters), array.shape, strict=True)
        }
        derived = operation.derived.get(symbol)
        return symbol in others or (derived is not None and derived(others, parameters) is not None)

    def replaced(self, name: str, array: np.ndarray) -> Case:
        """Return the case with another array for an argument."""
        return replace(self.case, arrays={**self.case.arrays, name: np.ascontiguousarray(array).reshape(array.shape)})

    def permuted(self) -> Case:
        """Return the case with the first argument that varies in another order; elements of a block stay together."""
        operation, parameters = self.case.operation, self.case.parameters
        first = next(argument for argument in operation.arguments if argument.name not in operation.constant)
        array = self.case.array(first.name)
        axes = first.shape(parameters)
        block = operation.multiples(parameters).get(axes[-1], 1) if axes else 1
        return self.replaced(first.name, np.roll(array.ravel()[::-1], block).reshape(array.shape))

    def largest(self) -> int:
        """Return the number of elements of the largest argument or result."""
        sizes = [array.size for array in self.case.arrays.values() if array is not None]
        return max(sizes + [int(np.prod(self.case.result_shape(r))) for r in self.case.operation.results])

    def largest_bytes(self) -> int:
        """Return the bytes of all arguments and results."""
        arguments = sum(array.nbytes for array in self.case.arrays.values() if array is not None)
        results = self.case.operation.results
        return arguments + sum(
            int(np.prod(self.case.result_shape(r))) * self.case.format(r.name).carrier.itemsize for r in results
        )


class Examination:
    """Examines one property of one implementation.

    Parameters
    ----------
    implementation : Implementation
    host : KernelHost
    profile : Profile
    random_seed : int or None
        Explore with this seed; None repeats the same cases in every run.
    """

    def __init__(
        self, implementation: Implementation, host: KernelHost, profile: Profile, random_seed: int | None = None
    ) -> None:
        self.implementation = implementation
        self.host = host
        self.profile = profile
        self.random_seed = random_seed
        self.tally = Tally()
        self.started = time.perf_counter()
        self.lost: dict[str, Violation] = {}

    def exchange(self) -> Exchange:
        """Return the exchange of the backend's arrays."""
        return self.implementation.backend.exchange()

    def execute(self, call: Call, case: Case) -> Reply:
        """Run a call in the kernel host; a lost process is a Violation, remembered so that it costs its time once."""
        key = repr((case.parameters, case.origin, call.layout, call.side_stream, call.tile, _shapes(call)))
        if key in self.lost:
            raise self.lost[key]
        if len(self.lost) >= _LOSSES:
            raise _Enough
        answer = self.host.execute(call)
        if isinstance(answer, Lost):
            self.lost[key] = Violation(answer.message, case, answer.verdict)
            raise self.lost[key]
        return answer

    def combinations(self, *varied: str) -> list[dict[str, Any]]:
        """Return every supported combination of parameters that the operation has, the rest at the first that fits."""
        operation, supports = self.implementation.operation, self.implementation.supports
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for chosen in operation.combinations(supports, tuple(supports)):
            found.setdefault(tuple(chosen.get(name) for name in varied), chosen)
        return list(found.values())

    def for_all(
        self,
        check: Callable[[Trial], None],
        *,
        regime: str = "full",
        sizes: Mapping[str, int] | Iterable[Mapping[str, int]] | None = None,
        variants: Iterable[str] | None = None,
        fixed: Mapping[str, Any] | None = None,
        share: float = 1.0,
        examples: int | None = None,
    ) -> None:
        """Check a property on drawn cases of every declared variant; raise the smallest Violation found.

        Parameters
        ----------
        check : callable of a Trial
            Raises a Violation where the property does not hold.
        regime, sizes :
            As `draw_case`; of several sizes, each example holds a case of every one.
        variants : iterable of str
            Parameters of which every supported combination gets examples of its own; default the operation's.
        fixed : mapping
            Parameters held at a value.
        share : float
            Of the profile's number of examples.
        examples : int
            For each variant, whatever the profile says.
        """
        operation = self.implementation.operation
        names = tuple(operation.variants if variants is None else variants)
        sweep: list[Mapping[str, int] | None] = []
        sweep += [sizes] if sizes is None or isinstance(sizes, Mapping) else sizes
        combinations = self._possible(names)
        each = examples or max(self.profile.least, round(self.profile.examples * share / len(combinations)))
        for variant in combinations:
            self._search(check, {**variant, **(fixed or {})}, regime, sweep, each)

    def _possible(self, names: tuple[str, ...]) -> list[dict[str, Any]]:
        """Return the supported combinations of some parameters that values of the others complete."""
        operation, supports = self.implementation.operation, self.implementation.supports

        def completed(chosen: dict[str, Any]) -> bool:
            held = {**supports, **{name: (value,) for name, value in chosen.items()}}
            return next(operation.combinations(held, tuple(operation.parameters)), None) is not None

        return [chosen for chosen in operation.combinations(supports, names) if completed(chosen)]

    def _search(
        self,
        check: Callable[[Trial], None],
        variant: dict[str, Any],
        regime: str,
        sweep: list[Mapping[str, int] | None],
        examples: int,
    ) -> None:
        smallest: list[Violation] = []

        def body(data: st.DataObject) -> None:
            try:
                for sizes in sweep:
                    case = draw_case(data.draw, self.implementation, variant, regime, sizes)
                    check(Trial(self, case, data.draw))
            except Violation as violation:
                smallest.append(violation)
                raise
            except _Enough:
                return

        body = given(st.data())(body)
        if self.random_seed is not None:
            body = seed(self.random_seed)(body)
        run = settings(
            max_examples=examples, derandomize=self.random_seed is None, database=None, deadline=None,
            suppress_health_check=list(HealthCheck), report_multiple_bugs=False, print_blob=False,
            verbosity=Verbosity.quiet, phases=(Phase.generate, Phase.shrink),
        )(body)  # fmt: skip
        try:
            run()
        except Violation as violation:
            raise self._reduced(violation, check) from None
        except Flaky:
            last = smallest[-1]
            raise Violation(f"{last} (not on every run)", last.case, last.verdict) from None

    def _reduced(self, violation: Violation, check: Callable[[Trial], None]) -> Violation:
        """Return the violation on the failing element alone, if cutting the independent axes to it still fails."""
        for case in _cuts(violation):
            try:
                check(Trial(self, case, _simplest))
            except Violation as smaller:
                return smaller
            except _Enough:
                break
        return violation

    def once(self, check: Callable[[Trial], None], case: Case) -> None:
        """Check a property on a given case, cut to the failing element where it fails."""
        trial = Trial(self, case, _simplest)
        try:
            check(trial)
        except Violation as violation:
            raise self._reduced(violation, check) from None

    def seconds(self) -> float:
        """Return the seconds since the examination began."""
        return time.perf_counter() - self.started

    def verdict(self, violation: Violation | None) -> str:
        """Return the verdict on the property."""
        if violation is not None:
            return violation.verdict
        if self.tally.informative == 0:
            return "mistrusted"
        return "exact" if self.tally.worst == 0 else "faithful"


class Refused(Exception):
    """The property does not apply to what the implementation declares."""


class _Enough(Exception):
    """The search costs more than it can still tell."""


def _simplest(strategy: st.SearchStrategy) -> Any:
    return find(strategy, lambda value: True, settings=settings(database=None, deadline=None))


def _shapes(call: Call) -> list[tuple[int, ...]]:
    return [array.shape for arrays in call.contents for array in arrays.values() if array is not None]


def _cuts(violation: Violation) -> Iterable[Case]:
    """Yield smaller cases that still hold the failing element, the smallest first."""
    case = violation.case
    result = case.operation.results[0]
    axes = result.shape(case.parameters)
    if len(axes) != len(violation.index):
        return
    free = [
        (axis, at)
        for axis, at in zip(axes, violation.index, strict=True)
        if axis in case.operation.independent(case.parameters) and 1 < case.sizes[axis] > at
    ]
    for keep in (free, *([one] for one in free)) if len(free) > 1 else (free,):
        if keep:
            smaller = case
            for axis, at in keep:
                smaller = smaller.take(axis, slice(at, at + 1))
            yield replace(smaller, origin={**case.origin, "cut": dict(keep)})


def failure_text(violation: Violation, implementation: Implementation, inputs: str, reproduce: str) -> str:
    """Return what a failing test prints; `inputs` is the case as NumPy source."""
    semantics = implementation.semantics.described(implementation.operation.semantics)
    return "\n".join(
        [
            f"{violation.verdict.upper()}: {implementation.id}",
            f"  {violation}",
            f"  operation: {implementation.operation.name}, {implementation.operation.summary}",
            f"  declared semantics: {', '.join(f'{k}={v}' for k, v in semantics.items()) or 'none needed'}",
            "  inputs:",
            *(f"    {line}" for line in inputs.splitlines()),
            f"  reproduce: {reproduce}",
        ]
    )
