"""Operations: named contracts that implementations are held to, as data."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.formats import FORMATS, Format, decode

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Parameter:
    """A parameter of an operation.

    Attributes
    ----------
    values : tuple
        The admissible values, or for an open set those the suite draws from.
    doc : str
    assumed : tuple
        The values an implementation supports when it does not say.
    open : bool
        Any positive integer is admissible (a group size).
    needed : callable of the other parameters
        Whether the parameter means anything beside them; where not, it is None (an axis without per-axis scales).
    """

    values: tuple[Any, ...]
    doc: str
    assumed: tuple[Any, ...]
    open: bool = False
    needed: Callable[[Parameters], bool] = field(default=lambda parameters: True)

    def admits(self, value: Any) -> bool:
        """Return whether a value is admissible."""
        if self.open:
            return isinstance(value, int) and not isinstance(value, bool) and value > 0
        return any(value == v and type(value) is type(v) for v in self.values)

    def admissible(self) -> str:
        """Return the admissible values, for messages."""
        return "positive integers" if self.open else ", ".join(map(str, self.values))


@dataclass(frozen=True)
class Argument:
    """An argument or result: its name, its format and its symbolic shape, both by the parameters.

    Attributes
    ----------
    name : str
    format : callable of the parameters
        Gives the name of a format in `lowbit_cts.reference.formats`.
    shape : callable of the parameters
        Gives the symbols of the axes, such as ``("M", "K")``; ``()`` for a scalar.
    present : callable of the parameters
        Whether the argument is given; where not, it is None (a bias).
    bits : callable of the case or None
        The bits that an element takes where it is stored, if fewer than its format has (codes of a small codebook).
    doc : str
    """

    name: str
    format: Callable[[Parameters], str]
    shape: Callable[[Parameters], tuple[str, ...]]
    doc: str
    present: Callable[[Parameters], bool] = field(default=lambda parameters: True)
    bits: Callable[["Case"], float] | None = None


@dataclass(frozen=True)
class Case:
    """Concrete inputs of one operation.

    Attributes
    ----------
    operation : Operation
    parameters : dict
        A value for every parameter of the operation; None where it means nothing beside the others.
    arrays : mapping of ndarray or None
        One entry an argument, codes in the carrier of its format.
    origin : dict
        What the inputs were made from (fill, seed), for messages.
    """

    operation: "Operation"
    parameters: dict[str, Any]
    arrays: Mapping[str, np.ndarray | None]
    origin: dict[str, Any] = field(default_factory=dict)

    @property
    def sizes(self) -> dict[str, int]:
        """The length of every symbolic axis."""
        found: dict[str, int] = {}
        for argument in self.operation.arguments:
            array = self.arrays[argument.name]
            if array is not None:
                found |= dict(zip(argument.shape(self.parameters), array.shape, strict=True))
        for symbol, length in self.operation.derived.items():
            if symbol not in found and (derived := length(found, self.parameters)) is not None:
                found[symbol] = derived
        return found

    def array(self, name: str) -> np.ndarray:
        """Return an argument that the case has; ValueError where it is None."""
        array = self.arrays[name]
        if array is None:
            raise ValueError(f"{name}: is None in this case of {self.operation.name}")
        return array

    def format(self, name: str) -> Format:
        """Return the format of an argument or result."""
        slots = {slot.name: slot for slot in (*self.operation.arguments, *self.operation.results)}
        return FORMATS[slots[name].format(self.parameters)]

    def bits(self, slot: Argument) -> float:
        """Return the bits that an element of an argument or result takes where it is stored."""
        return slot.bits(self) if slot.bits else FORMATS[slot.format(self.parameters)].bits

    def decoded(self, name: str, codes: np.ndarray) -> np.ndarray:
        """Return the numbers that codes of an argument or result stand for; of a codebook their ranks by value."""
        numbers = decode(codes, self.format(name))
        order = self.operation.orders.get(name)
        return numbers if order is None else _permuted(numbers, np.argsort(order(self)))

    def encoded(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """Return decoded numbers as one would show them: ranks as the codes that they are the ranks of."""
        order = self.operation.orders.get(name)
        return numbers if order is None else _permuted(numbers, order(self))

    def result_shape(self, result: Argument) -> tuple[int, ...]:
        """Return the shape of a result."""
        return tuple(self.sizes[symbol] for symbol in result.shape(self.parameters))

    def take(self, symbol: str, indices: Any) -> "Case":
        """Return the case cut along an independent axis: every argument that has it."""
        arrays = {
            argument.name: _take(self.arrays[argument.name], argument.shape(self.parameters), symbol, indices)
            for argument in self.operation.arguments
        }
        return replace(self, arrays=arrays)

    def enclosures(
        self, semantics: Semantics, returned: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, Enclosure]:
        """Return the admissible results under the semantics, an enclosure a result.

        Parameters
        ----------
        semantics : Semantics
        returned : mapping of ndarray, or None
            The results to be judged, in their carriers, for operations that are judged along their path; None: those
            of the reference.
        """
        if returned is not None and self.operation.follow is not None:
            return self.operation.follow(self, semantics, returned)
        return self.operation.evaluate(self, semantics)


def _permuted(numbers: np.ndarray, permutation: np.ndarray) -> np.ndarray:
    """Return integers permuted; those that the permutation does not hold, which no codebook has, stay."""
    held = (numbers >= 0) & (numbers < permutation.size)
    return np.where(held, permutation[np.where(held, numbers, 0)], numbers) if permutation.size else numbers


def _take(array: np.ndarray | None, axes: tuple[str, ...], symbol: str, indices: Any) -> np.ndarray | None:
    if array is None or symbol not in axes:
        return array
    return array[tuple(indices if axis == symbol else slice(None) for axis in axes)]


@dataclass(frozen=True)
class Operation:
    """A named contract.

    Attributes
    ----------
    name, summary, source : str
        The source is the paper, equation or specification that defines it.
    arguments, results : tuple of Argument
        Implementations take the arguments by position, in this order.
    parameters : dict of Parameter
        Implementations take those they name, by keyword.
    semantics : tuple of str
        The fields of `Semantics` that matter.
    evaluate : callable of (case, semantics)
        The reference: an `Enclosure` for each result; ValueError for invalid inputs.
    follow : callable of (case, semantics, results), or None
        For algorithms whose every decision depends on those before: what was admissible at each, given the decisions
        that the results show before it.
    independent : callable of the parameters
        The axes along which results do not depend on each other: a cut through them cuts the results.
    variants : tuple of str
        Parameters whose every declared combination is exercised, even in the smallest profile.
    constant : tuple of str
        Arguments that `prepare` takes once, untimed (weights and their scales).
    admits : callable of the parameters
        Whether a combination of admissible values is one of the operation's.
    work : callable of the case
        Arithmetic operations of a call.
    derived : mapping of symbol to callable of (sizes, parameters)
        The lengths of axes that follow from those of others (groups, packed words); None where there is no such axis.
    multiples : callable of the parameters
        The axes whose length must be a multiple of a number (a block), and that number.
    random : bool
        Whether ``rounding="stochastic"`` is admissible.
    orders : mapping of result to callable of the case
        For results that are codes of a codebook: the codes in the order of the values they stand for. The enclosure of
        such a result holds ranks in this order.
    weights : tuple of str
        Arguments and results of which an element is a weight, where bits per weight are counted.
    stored : tuple of str
        Arguments and results that a quantized operand is stored in: codes or words, scales, metadata.
    """

    name: str
    summary: str
    source: str
    arguments: tuple[Argument, ...]
    results: tuple[Argument, ...]
    parameters: Mapping[str, Parameter]
    semantics: tuple[str, ...]
    evaluate: Callable[[Case, Semantics], dict[str, Enclosure]]
    independent: Callable[[Parameters], tuple[str, ...]]
    variants: tuple[str, ...]
    work: Callable[[Case], float]
    constant: tuple[str, ...] = ()
    follow: Callable[[Case, Semantics, Mapping[str, np.ndarray]], dict[str, Enclosure]] | None = None
    admits: Callable[[Parameters], bool] = field(default=lambda parameters: True)
    derived: Mapping[str, Callable[[Mapping[str, int], Parameters], int | None]] = field(default_factory=dict)
    multiples: Callable[[Parameters], Mapping[str, int]] = field(default=lambda parameters: {})
    random: bool = False
    orders: Mapping[str, Callable[[Case], np.ndarray]] = field(default_factory=dict)
    weights: tuple[str, ...] = ("b", "codes")
    stored: tuple[str, ...] = ("b", "b_scale", "codes", "scale", "zero_point")

    def combinations(self, supports: Mapping[str, tuple[Any, ...]], names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """Yield the supported combinations of the named parameters that are the operation's, idle ones as None."""
        seen = set()
        for values in product(*(supports[name] for name in names)):
            chosen = dict(zip(names, values, strict=True))
            chosen = {
                name: value if self.parameters[name].needed({**chosen}) else None for name, value in chosen.items()
            }
            key = tuple(chosen.values())
            if key not in seen and self.admits(chosen):
                seen.add(key)
                yield chosen

    def bytes_moved(self, case: Case) -> float:
        """Return the least memory traffic of a call in bytes: every argument read and every result written once."""
        read = [(a, array.size) for a in self.arguments if (array := case.arrays[a.name]) is not None]
        written = [(r, int(np.prod(case.result_shape(r)))) for r in self.results]
        return sum(size * case.bits(slot) / 8 for slot, size in read + written)


#: Every operation of the suite by name, filled by the modules of `lowbit_cts.kernels.operations`.
OPERATIONS: dict[str, Operation] = {}


def register(operation: Operation) -> Operation:
    """Add an operation to `OPERATIONS`."""
    if operation.name in OPERATIONS:
        raise ValueError(f"operation {operation.name!r} is defined twice")
    OPERATIONS[operation.name] = operation
    return operation
