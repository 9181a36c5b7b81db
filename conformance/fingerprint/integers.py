"""Products of integer codes: whether their sums are exact, where they overflow, and how they are rounded to floats."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lowbit_cts.conformance.fingerprint import dependence
from lowbit_cts.conformance.fingerprint.findings import Findings, NotDetermined
from lowbit_cts.conformance.fingerprint.order import last_of
from lowbit_cts.conformance.fingerprint.probe import Pair
from lowbit_cts.conformance.fingerprint.rounding import EXACT, matching
from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import FloatFormat

_EXACT = "integer sums that are exact are the same in every order"
_INTEGERS = "the operands are integers"
_BIG = 14  # of products, the exponent: 128 * 128
#: The exponent of int32's overflow, and that up to which sums are looked at for whether they round.
_TOP, _ROUNDED = 31, 26
_OFFSETS = (1, 2, 3, 4, 5, 6, 7, 12)


@dataclass(frozen=True)
class IntegerProbe:
    """A product of integer matrices.

    Attributes
    ----------
    product : callable
        Takes a list of pairs of int64 matrices and returns the list of their products as float64.
    least, most : int
        Of a. The elements of b are -128 ... 127.
    output : FloatFormat or None
        None of int32.
    rows, columns : int
        M and N of every probe.
    cancels : bool
        As of `lowbit_cts.conformance.fingerprint.dependence.Operands`.
    """

    product: Callable[[Sequence[Pair]], list[np.ndarray]]
    least: int
    most: int
    output: FloatFormat | None
    rows: int = 16
    columns: int = 16
    cancels: bool = False

    def draw(self, rng: np.random.Generator, m: int, k: int, n: int) -> Pair:
        """Return random codes."""
        return (
            rng.integers(self.least, self.most, (m, k), endpoint=True),
            rng.integers(-128, 127, (k, n), endpoint=True),
        )

    def sums(self, runs: Sequence[Sequence[tuple[int, int, int]]]) -> np.ndarray:
        """Return the sums over runs of (a, b, how often), each in a product of its own, of a multiple of 64 columns."""
        pairs = []
        for run in runs:
            a = np.concatenate([np.full(count, a, np.int64) for a, _, count in run])
            b = np.concatenate([np.full(count, b, np.int64) for _, b, count in run])
            pad = (0, -a.size % 64)
            a, b = np.pad(a, pad), np.pad(b, pad)
            pairs.append((np.tile(a, (self.rows, 1)), np.tile(b[:, None], (1, self.columns))))
        return np.array([y[0, 0] for y in self.product(pairs)])

    def power(self, exponent: int, sign: int) -> tuple[int, int, int]:
        """Return a run whose sum is sign * 2**exponent."""
        if exponent < _BIG:
            base = min(exponent, 12)
            return 1 << base // 2, sign << (base - base // 2), 1 << (exponent - base)
        if self.least <= -128:
            a, b = (-128, -128) if sign > 0 else (64, -128)
        else:
            a, b = (128, 64) if sign > 0 else (128, -128)
        return a, b, (1 << exponent) // abs(a * b)

    @cached_property
    def lost(self) -> int | None:
        """The exponent of the first power of two beside which a one is lost, wherever it stands; None up to 2**26."""

        def kept(exponent: int) -> bool:
            up, down, one = self.power(exponent, 1), self.power(exponent, -1), (1, 1, 1)
            return bool(np.all(self.sums([[up, one, down], [one, up, down], [up, down, one]]) == 1))

        last = last_of(kept, 1, _ROUNDED)
        return None if last == _ROUNDED else 1 if last is None else last + 1


def fingerprint(probe: IntegerProbe, dependences: bool = True) -> Findings:
    """Return what probing tells of an integer product."""
    found = Findings()
    found.undetermined(_EXACT, "order")
    finds = (
        ("accumulator bits", bits), ("accumulator range", overflow), ("accumulator", accumulator),
        ("sums of neighbours", neighbours), ("rounding of the output", output_rounding),
    )  # fmt: skip
    for name, find in finds:
        found.attempt(name, lambda find=find: find(probe))  # type: ignore[misc]
    found.undetermined(_INTEGERS, "subnormal inputs", "NaN", "infinity")
    if dependences:
        dependence.find(found, probe)
    return found


def bits(probe: IntegerProbe) -> str:
    """Return the bits to which sums are exact."""
    return f"at least {_ROUNDED + 1}, exact" if probe.lost is None else f"{probe.lost}"


def overflow(probe: IntegerProbe) -> str:
    """Return what becomes of a sum beyond int32."""
    if probe.lost is not None:
        raise NotDetermined("sums are not exact so far")
    past = 1 << (_TOP - 5)
    y = float(probe.sums([[probe.power(_TOP, 1), probe.power(_TOP - 5, 1)]])[0])
    whole = 2.0**_TOP
    if y == _output(probe, past - whole):
        return "wraps at 2^31"
    beyond, limits = _output(probe, whole + past), (_output(probe, whole - 1), _output(probe, whole))
    if y == beyond and beyond not in limits:
        return "2^31 is exceeded"
    if y in limits and beyond not in limits:
        return "saturates at 2^31"
    if y == beyond:
        raise NotDetermined("the output's range ends before 2^31")
    raise NotDetermined(f"2^31 + {past} gives {y:g}")


def accumulator(probe: IntegerProbe) -> str:
    """Return the type of the sums."""
    if probe.lost is not None:
        names = {24: "float32", 11: "float16", 8: "bfloat16"}
        if probe.lost not in names:
            raise NotDetermined(f"sums are exact to {probe.lost} bits, which no known type has")
        return names[probe.lost]
    return {"wraps at 2^31": "int32", "saturates at 2^31": "int32, saturating"}.get(
        overflow(probe), "exact beyond 31 bits"
    )


def neighbours(probe: IntegerProbe) -> str:
    """Return whether sums of a few neighbours with extreme factors saturate on the way (as in 16 bits)."""
    extremes = [(a, b) for a in (probe.least, probe.most) for b in (-128, 127)]
    cases = [(a, b, count) for count in (1, 2, 3, 4, 8, 64) for a, b in extremes]
    for (a, b, count), y in zip(cases, probe.sums([[case] for case in cases]).tolist(), strict=True):
        if y != _output(probe, a * b * count):
            return f"{count} of {a} * {b} give {y:g}, not {a * b * count}"
    return "exact"


def output_rounding(probe: IntegerProbe) -> str:
    """Return how sums are rounded to floats."""
    if probe.output is None:
        return "nothing to round: sums are the output"
    own, lost = probe.output.mantissa_bits + 1, probe.lost
    if lost is not None and lost < own + 3:
        raise NotDetermined(f"sums are exact to {lost} bits, the output has {own}")
    exponent = own + 2
    base = 3 << (exponent - 1)
    cases = []
    for sign in (1, -1):
        for offset in _OFFSETS:
            wanted = sign * base + sign * offset
            a, b = (64, 64 * sign)
            many, rest = divmod(abs(wanted), 4096)
            run = [(a, b, many), (1, sign * (rest % 64), 1), (64, sign * (rest // 64), 1)]
            cases.append(((sign * base, sign * offset), [part for part in run if part[2]]))
    y = probe.sums([run for _, run in cases])
    names = matching([(terms, int(value)) for (terms, _), value in zip(cases, y.tolist(), strict=True)], own, EXACT)
    if not names:
        raise NotDetermined("the results are those of no rounding known here")
    return " or ".join(names)


def _output(probe: IntegerProbe, value: float) -> float:
    """Return a sum as the output holds it."""
    if probe.output is None:
        return float(value)
    return float(round_to_format(np.array([float(value)]), probe.output)[0])
