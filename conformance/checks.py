"""Verdicts: what a kernel returned, held against what was admissible."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowbit_cts.conformance.worker import Reply
from lowbit_cts.kernels import Case
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.formats import FORMATS, FloatFormat

#: Results of at least this many elements that are all alike prove little.
_ALIKE = 4


class Violation(AssertionError):
    """A property does not hold; `verdict` says how, `case` on what, `index` where."""

    def __init__(self, message: str, case: Case, verdict: str = "violation", index: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.case = case
        self.verdict = verdict
        self.index = index


@dataclass
class Tally:
    """What a property saw: cases, elements, the worst error over bound, and whether any case proved something."""

    cases: int = 0
    elements: int = 0
    worst: float = 0.0
    informative: int = 0
    parameters: dict[str, list[Any]] = field(default_factory=dict)

    def count(self, case: Case, elements: int, worst: float, informative: bool) -> None:
        """Add a case."""
        self.cases += 1
        self.elements += elements
        self.worst = max(self.worst, worst)
        self.informative += informative
        for name, value in case.parameters.items():
            seen = self.parameters.setdefault(name, [])
            if value is not None and value not in seen:
                seen.append(value)


def observed(reply: Reply, case: Case, lenient: bool = False, expect_results: bool = True) -> None:
    """Raise a Violation for what no call may do: raise, return the wrong kind, write where it should not.

    `lenient` permits it to raise; without `expect_results` it may return anything, since the inputs break a rule.
    """
    if reply.raised and not lenient:
        raise Violation(f"raised {reply.raised}, though the parameters are declared as supported", case)
    if reply.malformed and expect_results:
        raise Violation("; ".join(reply.malformed), case)
    if reply.changed:
        raise Violation(f"wrote to its input {', '.join(reply.changed)}", case)
    if reply.overrun:
        around = ", ".join(reply.overrun)
        raise Violation(f"damaged the guard band around {around}: wrote outside the memory of an array", case)


def enclosed(
    results: dict[str, np.ndarray], enclosures: dict[str, Enclosure], case: Case, what: str = ""
) -> tuple[int, float, bool]:
    """Return (elements, worst error over bound, informative), or raise a Violation at the worst element."""
    elements, worst, informative = 0, 0.0, False
    for name, enclosure in enclosures.items():
        values = _decoded(name, results[name], case, what)
        ratio = enclosure.ratio(values)
        wrong = ~enclosure.admits(values)
        if wrong.any():
            raise _violation(name, values, enclosure, ratio, wrong, case, what)
        elements += values.size
        worst = max(worst, float(ratio.max(initial=0.0)))
        exact = enclosure.exact
        informative |= exact.size < _ALIKE or bool(np.any(exact != exact.flat[0]))
    return elements, worst, informative


def _decoded(name: str, codes: np.ndarray, case: Case, what: str) -> np.ndarray:
    """Return the numbers that codes stand for, or raise a Violation at one that the format has not."""
    fmt = case.format(name)
    beyond = codes >> fmt.bits != 0 if isinstance(fmt, FloatFormat) and fmt.bits < 8 else np.zeros(0, bool)
    if not beyond.any():
        return case.decoded(name, codes)
    at = tuple(int(i) for i in np.argwhere(beyond)[0])
    place, count = f"{name}[{', '.join(map(str, at))}]" if at else name, int(beyond.sum())
    message = f"{what}{place} is the code {int(codes[at])}, must be one of {fmt.name}, which has {fmt.bits} bits; "
    raise Violation(f"{message}{count} of {codes.size} elements are no codes", case, index=at)


def _violation(
    name: str, values: np.ndarray, enclosure: Enclosure, ratio: np.ndarray, wrong: np.ndarray, case: Case, what: str
) -> Violation:
    index = np.unravel_index(int(np.argmax(np.where(wrong, ratio, -1.0))), values.shape)
    at = tuple(int(i) for i in index)
    found, lo, hi, exact = (_shown(name, a[index], case) for a in (values, enclosure.lo, enclosure.hi, enclosure.exact))
    alone = enclosure.lo[index] == enclosure.hi[index] or exact == "nan"
    by_value = " in the order of their values" if name in case.operation.orders else ""
    within = exact if alone else f"in [{lo}, {hi}]{by_value} (exact: {exact})"
    rule = enclosure.rule or within
    place = f"{name}[{', '.join(map(str, at))}]" if at else name
    count = int(wrong.sum())
    message = f"{what}{place} is {found}, must be {rule}; {count} of {values.size} elements are inadmissible"
    return Violation(message, case, index=at)


def _shown(name: str, number: Any, case: Case) -> str:
    return _show(case.encoded(name, np.asarray(number))[()])


def _show(value: Any) -> str:
    return str(int(value)) if isinstance(value, (int, np.integer)) else repr(float(value))


def identical(one: dict[str, np.ndarray], other: dict[str, np.ndarray], case: Case, what: str) -> None:
    """Raise a Violation unless two results agree bit for bit."""
    for name, array in one.items():
        bits = f"u{array.itemsize}"
        differ = np.atleast_1d(array).view(bits) != np.atleast_1d(other[name]).view(bits)
        if differ.any():
            index = tuple(int(i) for i in np.argwhere(differ)[0])
            pair = [_shown(name, _decoded(name, np.atleast_1d(a)[index], case, ""), case) for a in (array, other[name])]
            raise Violation(
                f"{what}: {name}[{', '.join(map(str, index))}] is {pair[0]}, then {pair[1]}; "
                f"{int(differ.sum())} of {differ.size} elements differ",
                case,
                index=index if array.ndim else (),
            )


#: Arrays of more elements than this are shown by their beginning, and kept in a file.
SHOWN = 120


def large(case: Case) -> dict[str, np.ndarray]:
    """Return the arrays of a case that are too large to be shown whole."""
    return {name: array for name, array in case.arrays.items() if array is not None and array.size > SHOWN}


def source(case: Case, saved: str | None = None) -> str:
    """Return the inputs as NumPy source; arrays too large to be shown are loaded from the file `saved`."""
    lines = [f"parameters = {_plain(case.parameters)}"]
    for argument in case.operation.arguments:
        array = case.arrays[argument.name]
        if array is None:
            lines.append(f"{argument.name} = None")
            continue
        format = argument.format(case.parameters)
        coded = isinstance(FORMATS[format], FloatFormat) and array.dtype.kind == "u"
        note = f"  # codes of {format}" if coded else ""
        if array.size <= SHOWN:
            lines.append(f"{argument.name} = np.array({_list(array)}, np.{array.dtype}){_reshape(array)}{note}")
        else:
            value = f"np.load({saved!r})[{argument.name!r}]" if saved else "..."
            begins = f"{array.dtype}{list(array.shape)}, begins {_list(array.ravel()[:8])}"
            lines.append(f"{argument.name} = {value}  # {begins}")
    lines.append(f"# made from {_plain(case.origin)}")
    return "\n".join(lines)


def _plain(mapping: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{key!r}: {value!r}" for key, value in mapping.items() if value is not None) + "}"


def _reshape(array: np.ndarray) -> str:
    return "" if array.size else f".reshape({array.shape})"


def _list(array: np.ndarray) -> str:
    values = array.tolist()
    return repr(values).replace("nan", "np.nan").replace("inf", "np.inf")
