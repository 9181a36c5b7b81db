"""Backends: libraries under test, and their implementations of operations."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowbit_cts.kernels import operations as _operations  # noqa: F401  (fills OPERATIONS)
from lowbit_cts.kernels.exchange import EXCHANGES, Exchange, make_exchange
from lowbit_cts.kernels.operation import OPERATIONS, Argument, Operation, Parameters
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference.choices import Rounding

#: Memory layouts of arguments, declared like a parameter under the name "layout".
LAYOUTS = ("contiguous", "strided", "offset")


class ContractError(ValueError):
    """A backend is declared wrongly; the message names what, the rule and the admissible values."""


@dataclass(frozen=True, eq=False)
class Implementation:
    """One kernel of a backend: what it computes, what it supports, and how it is called.

    Attributes
    ----------
    backend : Backend
    operation : Operation
    name : str
    run : callable
    semantics : Semantics
    supports : dict of tuple
        The supported values of every parameter of the operation.
    layouts : tuple of str
        The supported memory layouts of the arguments.
    prepare : callable or None
    """

    backend: "Backend"
    operation: Operation
    name: str
    run: Callable[..., Any]
    semantics: Semantics
    supports: Mapping[str, tuple[Any, ...]]
    layouts: tuple[str, ...]
    prepare: Callable[..., Any] | None = None

    @property
    def id(self) -> str:
        """Return backend/operation/name."""
        return f"{self.backend.name}/{self.operation.name}/{self.name}"

    @property
    def random(self) -> bool:
        """Whether results may differ from call to call (stochastic rounding)."""
        return self.operation.random and self.semantics.rounding is Rounding.STOCHASTIC

    @property
    def takes_out(self) -> bool:
        """Whether the kernel writes into arrays it is given (a parameter called `out`)."""
        return "out" in inspect.signature(self.run).parameters

    def undeclared(self) -> dict[str, list[Any]]:
        """Return the admissible values, by parameter, that the implementation does not support."""
        rest = {
            name: [v for v in parameter.values if v not in self.supports[name]]
            for name, parameter in self.operation.parameters.items()
            if not parameter.open
        }
        rest["layout"] = [v for v in LAYOUTS if v not in self.layouts]
        return {name: values for name, values in rest.items() if values}

    def moving(self) -> tuple[Argument, ...]:
        """Return the arguments that `run` takes: all, or those `prepare` does not take."""
        constant = self.operation.constant if self.prepare else ()
        return tuple(argument for argument in self.operation.arguments if argument.name not in constant)

    def prepared(self, arrays: Mapping[str, Any], parameters: Parameters) -> Any:
        """Return what `prepare` makes of the constant arguments; None without a `prepare`."""
        if self.prepare is None:
            return None
        constants = [arrays[name] for name in self.operation.constant]
        return self.prepare(*constants, **_named(self.prepare, parameters))

    def bound(self, arrays: Mapping[str, Any], parameters: Parameters, prepared: Any = None) -> Callable[..., Any]:
        """Return the call of the kernel on arrays of the backend's library; weights are prepared here, untimed.

        Parameters
        ----------
        arrays : mapping of argument name to the library's array, or None
        parameters : mapping
            A value for every parameter of the operation.
        prepared : object
            What `prepared` returned for these constant arguments, to use it again.

        Returns
        -------
        callable of ``out=None`` (an array, or a tuple of arrays in the order of the results)
        """
        positional = [arrays[argument.name] for argument in self.moving()]
        keywords = _named(self.run, parameters)
        if self.prepare:
            keywords["prepared"] = self.prepared(arrays, parameters) if prepared is None else prepared
        if self.takes_out:
            return lambda out=None: self.run(*positional, **keywords, out=out)
        return lambda out=None: self.run(*positional, **keywords)


def _named(function: Callable[..., Any], parameters: Parameters) -> dict[str, Any]:
    """Return the parameters that a function names; all of them where it takes ``**keywords``."""
    names = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in names.values()):
        return dict(parameters)
    return {name: value for name, value in parameters.items() if name in names}


@dataclass(eq=False)
class Backend:
    """A library under test on a device.

    Parameters
    ----------
    name : str
    version : str
        The library's version, for evidence and waivers.
    arrays : {"numpy", "torch", "cupy"} or Exchange
        The kind of arrays the kernels take.
    device : str
        "cpu", "cuda", "cuda:0", ...
    timeout : float or None
        Seconds after which a call counts as hung, where the profile's are too few (kernels compiled on the first
        call).

    Raises
    ------
    ContractError
        When `arrays` is neither a built-in exchange nor an object with its three methods.
    """

    name: str
    version: str = "unknown"
    arrays: str | Exchange = "numpy"
    device: str = "cpu"
    timeout: float | None = None
    implementations: list[Implementation] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check what can be checked without the library."""
        if isinstance(self.arrays, str):
            _demand(self.arrays in EXCHANGES, f"Backend.arrays: {self.arrays!r} is unknown", EXCHANGES)
        elif isinstance(self.arrays, type) or not isinstance(self.arrays, Exchange):
            raise ContractError(
                f"Backend.arrays: {self.arrays!r} must be one of {', '.join(EXCHANGES)}, or an object "
                "with from_numpy(array, format), to_numpy(array, format) and synchronize()"
            )

    def exchange(self) -> Exchange:
        """Return the exchange of the backend's arrays."""
        return make_exchange(self.arrays, self.device)

    def implements(
        self,
        operation: str,
        *,
        semantics: Semantics | None = None,
        supports: Mapping[str, Any] | None = None,
        name: str | None = None,
        prepare: Callable[..., Any] | None = None,
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a function as an implementation of an operation.

        The function takes the operation's arguments by position and the parameters it names by keyword, and returns
        the results; with a parameter called `out` it writes into that instead.

        Parameters
        ----------
        operation : str
            The name of an operation.
        semantics : Semantics
            What the kernel computes, where libraries differ.
        supports : mapping
            Parameter to the supported values (a set, or one value); "layout" beside them. A parameter that is not
            mentioned is supported at its assumed value alone (``lowbit-cts operations`` lists them), layouts all.
        name : str
            Tells several implementations of one operation apart; default the function's name.
        prepare : callable
            Takes the operation's constant arguments (weights) once, untimed; what it returns reaches the function as
            the keyword `prepared`, in their place.

        Raises
        ------
        ContractError
            For anything the operation does not know, with the admissible values.
        """
        where = f"{self.name}: implements({operation!r})"
        _demand(isinstance(operation, str) and operation in OPERATIONS, f"{where}: unknown operation", OPERATIONS)
        contract = OPERATIONS[operation]
        if semantics is not None and not isinstance(semantics, Semantics):
            raise ContractError(f"{where}: semantics must be a Semantics, not {type(semantics).__name__}")
        if semantics is not None and semantics.rounding is Rounding.STOCHASTIC and not contract.random:
            admissible = [rounding for rounding in Rounding if rounding is not Rounding.STOCHASTIC]
            _demand(False, f"{where}: Semantics.rounding: 'stochastic' is not admissible here", admissible)
        if supports is not None and not isinstance(supports, Mapping):
            raise ContractError(f"{where}: supports must map parameters to values, not be a {type(supports).__name__}")
        values = {key: _listed(value) for key, value in (supports or {}).items()}
        layouts = values.pop("layout", LAYOUTS)
        for layout in layouts:
            _demand(layout in LAYOUTS, f"{where}: layout {layout!r} is not admissible", LAYOUTS)
        _demand("contiguous" in layouts, f"{where}: layout must include 'contiguous'", LAYOUTS)
        complete = _complete(contract, values, where)
        if prepare is not None:
            _demand(bool(contract.constant), f"{where}: prepare: the operation has no constant arguments", ())

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            called = name or getattr(function, "__name__", None)
            if not callable(function) or not called:
                raise ContractError(f"{where}: {function!r} must be a function; give anything else callable a name=")
            implementation = Implementation(
                self, contract, called, function, semantics or Semantics(), complete, layouts, prepare
            )
            taken = {i.id for i in self.implementations}
            _demand(implementation.id not in taken, f"{where}: {implementation.name!r} is registered already", ())
            _check_signatures(implementation, where)
            self.implementations.append(implementation)
            return function

        return register


def _demand(condition: bool, message: str, admissible: Iterable[Any]) -> None:
    if not condition:
        values = ", ".join(map(str, admissible))
        raise ContractError(message + (f"; admissible: {values}" if values else ""))


def _listed(value: Any) -> tuple[Any, ...]:
    values = tuple(value) if isinstance(value, (set, frozenset, list, tuple, range)) else (value,)
    return tuple(v.item() if isinstance(v, np.generic) else v for v in values)


def _complete(operation: Operation, supports: Mapping[str, tuple[Any, ...]], where: str) -> dict[str, tuple[Any, ...]]:
    for name, values in supports.items():
        _demand(
            name in operation.parameters, f"{where}: undeclared parameter {name!r}", [*operation.parameters, "layout"]
        )
        parameter = operation.parameters[name]
        for value in values:
            if not parameter.admits(value):
                raise ContractError(
                    f"{where}: {name}={value!r} is not admissible; admissible: {parameter.admissible()}"
                )
        if not values:
            raise ContractError(f"{where}: {name}: must support at least one value of: {parameter.admissible()}")
    complete = {}
    for name, parameter in operation.parameters.items():
        complete[name] = _ordered(supports.get(name, parameter.assumed), parameter.values)
    if next(operation.combinations(complete, tuple(operation.parameters)), None) is None:  # {} is one, too
        raise ContractError(f"{where}: no combination of the supported values is one of the operation's: {complete}")
    return complete


def _ordered(values: tuple[Any, ...], order: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sorted(values, key=lambda v: order.index(v) if v in order else len(order)))


def _check_signatures(implementation: Implementation, where: str) -> None:
    """Refuse functions that cannot be called the way they will be."""
    operation = implementation.operation
    calls = [(implementation.run, [a.name for a in implementation.moving()], {"out", "prepared"})]
    if implementation.prepare:
        calls.append((implementation.prepare, list(operation.constant), set()))
    for function, arguments, extra in calls:
        signature = inspect.signature(function)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in {*operation.parameters, *extra}:
                _demand(
                    parameter.default is not parameter.empty,
                    f"{where}: {implementation.name} demands an unknown parameter {parameter.name!r}",
                    [*operation.parameters, *sorted(extra)],
                )
        keywords: dict[str, Any] = _named(function, dict.fromkeys(operation.parameters))
        if implementation.prepare and function is implementation.run:
            keywords["prepared"] = None
        if "out" in signature.parameters:
            keywords["out"] = None
        try:
            signature.bind(*arguments, **keywords)
        except TypeError as error:
            takes = f"({', '.join(arguments)}, *, {', '.join([*operation.parameters, *sorted(extra)])})"
            called = getattr(function, "__name__", implementation.name)
            raise ContractError(
                f"{where}: {called}{signature} cannot be called: {error}; it is called with the arguments by position "
                f"and the parameters it names by keyword, out of {takes}"
            ) from None
