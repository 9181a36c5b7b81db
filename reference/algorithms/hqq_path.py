"""The admissible results of half-quadratic quantization, along the path that a result took.

With the returned scale s, a zero point z, r = w / s and c = clip(round(r + z)), the next zero point is the mean over a
group of c - r + S(s (r + z - c)) / s, S being `shrunk`. Within one code this grows with z, since S grows; and where a
code goes up by one, z passing a tie, it grows by 1 - 2 S(s / 2) / s, which is not negative. So the next zero point is
monotone in the one before, whatever the codes: the ends of an interval map to the ends of the next, each end with the
codes that rounding decides its way, and with no more added than what a step may err.

In groups of up to some hundred weights nearly every zero point is known to a thousandth of a code. In rows of
thousands, whose mean may be off by gamma_n in float32, little is said of the zero points of 8 bits, and the more of the
codes, which follow from the zero point that is returned; a kernel that adds in float64 and says so is held to more.

All groups stop together, after the step whose error is the least: a result is held against that one of the steps that
may have been the last which suits it best. Its codes follow from the scale and the zero point that it shows.

References
----------
.. [1] N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM 2002, (2.4), lemma 3.1, (3.5).
"""

from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from lowbit_cts.reference.accumulators import Accumulator
from lowbit_cts.reference.algorithms.hqq import GROWTH, NORM, STEPS, WEIGHT, Fitted, checked, shrunk
from lowbit_cts.reference.choices import Rounding, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, gamma, power_of_two, representable, within
from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.rounding import round_to_integer
from lowbit_cts.reference.sums import quantum

_FLOAT32 = float_format("float32")
_U = _FLOAT32.unit_roundoff
#: Weights that are looked at together.
_BLOCK = 1 << 14


def _fits(rows: np.ndarray, *numbers: np.ndarray) -> np.ndarray:
    """Return where all numbers, (R, L) or (R, 1), are values of float32, in those rows that are looked at."""
    found = np.zeros(np.broadcast_shapes(*(x.shape for x in numbers)), bool)
    if rows.any():
        found[rows] = reduce(np.logical_and, (representable(x[rows], _FLOAT32) for x in numbers))
    return found


def _finest(rows: np.ndarray, *numbers: np.ndarray) -> np.ndarray:
    """Return a power of two that divides the numbers of a row, (R, 1); 0 in rows that are not looked at."""
    found = np.zeros((len(rows), 1))
    if rows.any():
        found[rows] = reduce(np.minimum, (quantum(x[rows]).min(axis=1, keepdims=True) for x in numbers))
    return found


@dataclass(frozen=True)
class _Groups:
    """What does not change on the way.

    Attributes
    ----------
    w, scale : ndarray, shapes (R, L) and (R, 1)
    quotient, room : ndarray, shape (R, L)
        w / scale, and how far a kernel's may be off: it divides, or multiplies by a reciprocal; nothing where the scale
        is a power of two.
    largest : int
        The greatest code.
    rounding : Rounding
    accumulator : Accumulator
        In which means are added.
    function_ulps : float
        The error of the power.
    plain : ndarray of bool, shape (R,)
        Where the scale is a power of two: elsewhere no step is taken for exact.
    """

    w: np.ndarray
    scale: np.ndarray
    quotient: np.ndarray
    room: np.ndarray
    largest: int
    rounding: Rounding
    accumulator: Accumulator
    function_ulps: float
    plain: np.ndarray

    def codes(self, zero: np.ndarray, side: float) -> np.ndarray:
        """Return the codes by a zero point: those of real numbers (side 0), the least (-1) or the greatest (1)."""
        steps = self.quotient + zero
        rounding = np.where(_fits(self.plain, steps, zero), 0.0, _U * (np.abs(steps) + np.abs(zero)))
        shifted = steps + side * (self.room + rounding)
        return np.clip(round_to_integer(shifted, self.rounding), 0, self.largest).astype(np.float64)

    def missed(self, codes: np.ndarray, zero: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return w - (codes - zero) scale, and how far a kernel's may be off."""
        product = (codes - zero) * self.scale
        value = self.w - product
        room = gamma(4, _U) * np.abs(product) + _U * np.abs(value)
        return value, np.where(_fits(self.plain, zero, codes - zero, product, value), 0.0, room)

    def following(self, zero: np.ndarray, side: float, weight: float, step: int) -> np.ndarray:
        """Return the zero point after this one, an end of what it may be by `side`."""
        codes = self.codes(zero, side)
        value, room = self.missed(codes, zero)
        value = value + side * room
        active = np.abs(value) * (1 + 2.0**-16) >= weight ** (-1 / (2 - NORM))
        power = np.where(active, (2 * self.function_ulps + step + 5) * _U * np.abs(value), 0.0)
        kept = shrunk(value, weight) + side * power if active.any() else np.zeros_like(value)
        share = (self.w - kept) / self.scale
        terms = codes - share
        settled = (power == 0) & (kept == 0) & _fits(self.plain, terms)
        errors = np.where(settled, 0.0, gamma(4, _U) * np.abs(share) + _U * np.abs(terms))
        length = terms.shape[1]
        magnitude = np.maximum(np.abs(terms), np.abs(share)).sum(axis=1, keepdims=True)
        exact = self.accumulator.exact(magnitude, _finest(self.plain, terms, share))
        exact &= settled.all(axis=1, keepdims=True)
        adding = self.accumulator.error(np.array(length), length, magnitude, 1)
        mean = terms.sum(axis=1, keepdims=True) / length
        whole = exact & _fits(self.plain, mean) & (length & (length - 1) == 0)
        off = (errors.sum(axis=1, keepdims=True) + np.where(exact, 0.0, adding)) / length
        return np.asarray(mean + side * np.where(whole, 0.0, off + 2 * _U * np.abs(mean)))

    def error(self, low: np.ndarray, high: np.ndarray) -> "_Error":
        """Return the sum of the magnitudes of what is missed, by zero points in an interval."""
        ends = [self.codes(low, -1), self.codes(high, 1)]
        (down, down_room), (up, up_room) = self.missed(ends[0], low), self.missed(ends[1], high)
        room, moved = np.maximum(down_room, up_room), ends[0] != ends[1]
        # Within a code the error rises through zero; where the code changes it falls from half a step to minus half.
        crosses = np.where(moved, (down < 0) | (up > 0) | (ends[1] - ends[0] > 1), (down < 0) & (up > 0))
        sizes = np.abs(down), np.abs(up)
        least = np.where(crosses, 0.0, np.maximum(np.minimum(*sizes) - room, 0.0))
        most = np.maximum(*sizes) + room
        most = np.where(moved, np.maximum(most, self.scale / 2 + room), most)
        exact = bool(np.array_equal(least, most))
        finest = float(quantum(most).min(initial=np.inf)) if exact else 0.0
        return _Error(float(least.sum()), float(most.sum()), exact, finest)

    def own_error(self, zero: np.ndarray) -> float:
        """Return the sum of the magnitudes of what is missed, in real numbers."""
        return float(np.abs(self.missed(self.codes(zero, 0.0), zero)[0]).sum())

    def blocks(self) -> list[tuple[slice, "_Groups"]]:
        """Return the groups in parts that a cache holds."""
        size = max(1, _BLOCK // self.w.shape[1])
        rows = [slice(start, start + size) for start in range(0, len(self.w), size)]
        parts = ("w", "scale", "quotient", "room", "plain")
        return [(part, replace(self, **{name: getattr(self, name)[part] for name in parts})) for part in rows]


@dataclass(frozen=True)
class _Error:
    """An error, known to lie between two numbers; of an exact one a kernel compares the sum, or the quotient.

    Attributes
    ----------
    low, high : float
    exact : bool
        Whether every term is known.
    finest : float
        A power of two that divides the terms of an exact one.
    """

    low: float
    high: float
    exact: bool
    finest: float

    def mean(self, count: int, accumulator: Accumulator) -> "_Error":
        """Return what a kernel may take for the mean of so many terms, of which this is the sum."""
        exact = self.exact and bool(accumulator.exact(np.asarray(self.high), np.asarray(self.finest)))
        adding = 0.0 if exact else float(accumulator.error(np.array(count), count, np.asarray(self.high), 1))
        rounding = 0.0 if exact else 4 * _U
        low, high = (self.low - adding) / count * (1 - rounding), (self.high + adding) / count * (1 + rounding)
        return _Error(low, high, exact, self.finest)

    def may_be_below(self, other: "_Error") -> bool:
        """Return whether a kernel may have found this one to be the smaller."""
        return self.low < other.high

    def may_not_be_below(self, other: "_Error") -> bool:
        """Return whether a kernel may have found this one not to be the smaller."""
        if self.exact and other.exact:
            return bool(np.float32(self.high) >= np.float32(other.low))
        return self.high >= other.low


def _total(errors: list[_Error]) -> _Error:
    """Return the sum of errors."""
    exact, finest = all(e.exact for e in errors), min((e.finest for e in errors), default=np.inf)
    return _Error(sum(e.low for e in errors), sum(e.high for e in errors), exact, finest)


def _steps(groups: _Groups, low: np.ndarray, growth: float) -> list[Enclosure]:
    """Return the zero points, (R, 1), of every step that may have been the best one; the first is the likeliest."""
    zero = -low / groups.scale
    exact = _fits(groups.plain, zero)
    room = np.where(exact, 0.0, (gamma(3, _U) + _U) * np.abs(zero))
    ends, weight, blocks, count = [zero, zero - room, zero + room], WEIGHT, groups.blocks(), max(1, groups.w.size)
    errors: list[_Error] = []
    own: list[float] = []
    zeros: list[Enclosure] = []
    for step in range(STEPS + 1):
        error = _total([part.error(ends[1][rows], ends[2][rows]) for rows, part in blocks])
        errors.append(error.mean(count, groups.accumulator))
        own.append(sum(part.own_error(ends[0][rows]) for rows, part in blocks))
        zeros.append(_rounded(ends))
        if step and not errors[-1].may_be_below(errors[-2]):
            break
        for end, side in zip(ends, (0.0, -1.0, 1.0), strict=True):
            for rows, part in blocks:
                end[rows] = part.following(end[rows], side, weight, step)
        weight *= growth
    reached = len(errors) if len(errors) == STEPS + 1 and errors[-1].may_be_below(errors[-2]) else len(errors) - 1
    rising = [step for step in range(1, len(own)) if own[step] >= own[step - 1]]
    likeliest = min(rising[0] - 1 if rising else STEPS, reached - 1)
    last = [t for t in range(reached) if t == STEPS or errors[t + 1].may_not_be_below(errors[t])]
    return [zeros[t] for t in sorted(last, key=lambda t: t != likeliest)]


def _rounded(ends: list[np.ndarray]) -> Enclosure:
    """Return the numbers of float32 between two ends, and the one of the real path."""
    exact, low, high = (round_to_format(end, _FLOAT32) for end in ends)
    return Enclosure(np.clip(exact, low, high), low, high)


@takes_choices
def hqq_enclosures(
    w: np.ndarray,
    returned: Fitted | None = None,
    *,
    bits: int,
    growth: float = GROWTH,
    rounding: Rounding = Rounding.HALF_EVEN,
    float_accumulator: Accumulator = Accumulator.FLOAT32,
    function_ulps: float = 4.0,
) -> dict[str, Enclosure]:
    """Return what was admissible along the path of a result.

    Parameters
    ----------
    w, bits, growth :
        As `lowbit_cts.reference.algorithms.hqq.hqq`; weights are values of float32.
    returned : Fitted or None
        What a kernel returned; None is what follows from real numbers.
    rounding :
        Of codes.
    float_accumulator :
        In which the means, of a group and of all errors, are added in any order.
    function_ulps : float
        The error of the power in units of the last place of float32.

    Returns
    -------
    dict of Enclosure
        "codes" (R, L), by the returned scale and zero point; "scale" (R, 1); "zero_point" (R, 1) of the admissible step
        which suits the returned zero points best. Where every number on the way is a value of float32, groups are as
        long as a power of two and scales are powers of two, all of them are determined.

    Raises
    ------
    ValueError
        As `hqq`.
    """
    w = checked(w, bits=bits, growth=growth)
    largest = (1 << bits) - 1
    low, high = w.min(axis=1, keepdims=True), w.max(axis=1, keepdims=True)
    width = high - low
    scale = np.where(width > 0, width / largest, 1.0)
    settled = (width == 0) | (power_of_two(scale) & representable(width, _FLOAT32))
    scales = within(scale, np.where(settled, 0.0, gamma(3, _U) * scale), _FLOAT32)
    chosen = scales.exact
    if returned is not None:
        chosen = np.where(np.isfinite(returned.scale) & (returned.scale > 0), returned.scale, chosen)
    quotient = w / chosen
    plain = power_of_two(chosen)
    room = np.where(plain, 0.0, gamma(3, _U) * np.abs(quotient))
    groups = _Groups(w, chosen, quotient, room, largest, rounding, float_accumulator, function_ulps, plain[:, 0])
    steps = _steps(groups, low, growth)
    best = steps[0] if returned is None else min(steps, key=lambda zero: int((~zero.admits(returned.zero)).sum()))
    zero = best.exact if returned is None else np.where(np.isfinite(returned.zero), returned.zero, best.exact)
    codes, least, most = (groups.codes(zero, side).astype(np.int64) for side in (0.0, -1.0, 1.0))
    return {"codes": Enclosure(codes, least, most), "scale": scales, "zero_point": best}
