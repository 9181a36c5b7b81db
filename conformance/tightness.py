"""How tight the bounds of products are: which small faults of a kernel would stay inside the enclosure.

A fault is planted in the inputs of the reference, not in a kernel: a factor that becomes zero is product, a
scale that becomes its neighbour's is a scale of the wrong group, a code of which the lowest bit is flipped is one bit
of one code. The fault escapes if the reference's own result for the spoiled inputs is admissible for the whole ones.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lowbit_cts.conformance.strategies import draw_case
from lowbit_cts.kernels import Case, Implementation
from lowbit_cts.kernels.operation import Argument
from lowbit_cts.reference.formats import FloatFormat, IntegerFormat, decode

#: Formats in which results show a fault that 16 bits would round away.
_WIDE = {"output_format": "float32", "input_format": "float32"}
#: Faults of each kind that are planted in a case.
_FAULTS = 24


@dataclass
class Escapes:
    """Faults of one kind in one regime.

    Attributes
    ----------
    planted, escaped : int
    largest : float
        Of those that escaped, the largest change of a result, relative to the largest result of its row.
    """

    planted: int = 0
    escaped: int = 0
    largest: float = 0.0


def _is_code(slot: Argument, case: Case) -> bool:
    """Whether an argument holds codes of a few bits: integers that are no indices, or small floats."""
    fmt = case.format(slot.name)
    small = isinstance(fmt, FloatFormat) and fmt.bits <= 8 and not slot.name.endswith("scale")
    integer = isinstance(fmt, IntegerFormat) and fmt.bits <= 8
    return (small or integer) and slot.name in ("a", "b", "codes", "blocks", "values")


def _varied(case: Case) -> Argument:
    """Return the operand that is summed over and not constant."""
    operation = case.operation
    return next(slot for slot in operation.arguments if slot.name not in operation.constant and slot.name in "ab")


def _with(case: Case, name: str, index: Any, value: Any) -> Case:
    array = case.array(name).copy()
    array[index] = value
    return replace(case, arrays={**case.arrays, name: array})


def _left_out(rng: np.random.Generator, case: Case) -> Iterator[Case]:
    name = _varied(case).name
    fmt = case.format(name)
    numbers = decode(case.array(name), fmt)
    places = np.argwhere(numbers != 0)
    for place in places[rng.permutation(len(places))[:_FAULTS]]:
        yield _with(case, name, tuple(place), np.zeros((), fmt.carrier))


def _wrong_scales(rng: np.random.Generator, case: Case) -> Iterator[Case]:
    for slot in case.operation.arguments:
        array = case.arrays[slot.name]
        if not slot.name.endswith(("scale", "absmax")) or array is None or array.size < 2:
            continue
        axis = int(rng.integers(array.ndim))
        places = np.argwhere(array != np.roll(array, -1, axis=axis))
        for place in places[rng.permutation(len(places))[:_FAULTS]]:
            yield _with(case, slot.name, tuple(place), np.roll(array, -1, axis=axis)[tuple(place)])


def _flipped_bits(rng: np.random.Generator, case: Case) -> Iterator[Case]:
    for slot in case.operation.arguments:
        array = case.arrays[slot.name]
        if array is None or not array.size or not _is_code(slot, case):
            continue
        unsigned = array.view(f"u{array.itemsize}")
        for flat in rng.choice(array.size, min(_FAULTS, array.size), replace=False):
            place = np.unravel_index(flat, array.shape)
            yield _with(case, slot.name, place, (unsigned[place] ^ 1).astype(unsigned.dtype).view(array.dtype))


#: What is spoiled, to what plants the fault: a product left out, the scale of a neighbour, a bit of a code.
FAULTS: dict[str, Callable[[np.random.Generator, Case], Iterator[Case]]] = {
    "product": _left_out,
    "scale": _wrong_scales,
    "bit": _flipped_bits,
}


def _count(found: Escapes, whole: Case, spoiled: Case, semantics: Any) -> None:
    """Count one fault; where it changes no rounded result, nobody could see it, and it is none."""
    try:
        other = spoiled.enclosures(semantics)["y"]
    except ValueError:
        return  # what the reference refuses, a kernel may
    truth = whole.enclosures(semantics)["y"]
    if np.array_equal(truth.exact, other.exact) and np.array_equal(truth.lo, other.lo):
        return
    found.planted += 1
    values = np.asarray(other.exact, truth.exact.dtype)
    if truth.admits(values).all():
        found.escaped += 1
        size = np.maximum(np.abs(truth.exact).max(axis=-1, keepdims=True), np.finfo(float).tiny)
        found.largest = max(found.largest, float((np.abs(values - truth.exact) / size).max()))


#: Regimes, and how many products are in a sum.
LENGTHS = (("exact", 256), ("full", 256), ("full", 4096))


def is_product(implementation: Implementation) -> bool:
    """Return whether an implementation is of a product: its only result is y of shape (M, N), a sum over K."""
    operation = implementation.operation
    chosen = next(operation.combinations(implementation.supports, tuple(operation.parameters)))
    summed = any("K" in argument.shape(chosen) for argument in operation.arguments)
    return [result.shape(chosen) for result in operation.results] == [("M", "N")] and summed


def escapes(implementation: Implementation, regime: str, k: int, cases: int = 4) -> dict[str, Escapes]:
    """Plant faults in drawn cases of a product, under the semantics an implementation declares.

    Parameters
    ----------
    implementation : Implementation
        Of an operation with a result y of shape (M, N).
    regime : {"full", "exact"}
    k : int
        The length that is summed over.
    cases : int
        How many are drawn.

    Returns
    -------
    dict of `Escapes` by the kinds of `FAULTS`
    """
    found = {kind: Escapes() for kind in FAULTS}
    wide = {
        name: value
        for name, value in _WIDE.items()
        if name in implementation.supports and value in implementation.supports[name]
    }

    @settings(max_examples=cases, derandomize=True, database=None, deadline=None, phases=(Phase.generate,),
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(st.data())
    def body(data: st.DataObject) -> None:
        case = draw_case(data.draw, implementation, wide, regime, {"M": 2, "K": k, "N": 3})
        rng = np.random.default_rng(0)
        for kind, plant in FAULTS.items():
            for spoiled in plant(rng, case):
                _count(found[kind], case, spoiled, implementation.semantics)

    body()
    return found
