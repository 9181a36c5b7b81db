"""What becomes of subnormals, NaN, infinities and of what overflows the output."""

from collections.abc import Mapping

import numpy as np

from lowbit_cts.conformance.fingerprint.accumulator import Place
from lowbit_cts.conformance.fingerprint.findings import NotDetermined
from lowbit_cts.conformance.fingerprint.probe import Probe, Unexpressible, scattered
from lowbit_cts.reference.formats import FloatFormat, NanCodes, float_format

KEPT, FLUSHED = "kept", "flushed to zero"


class Special:
    """Probes with special numbers.

    Parameters
    ----------
    probe : Probe
    place : Place or None
        Where three terms are added one after the other; None where the order is not known.
    accumulator : str or None
        The format of the sums, where known.
    """

    def __init__(self, probe: Probe, place: Place | None, accumulator: str | None) -> None:
        self.probe = probe
        self.place = place
        self.accumulator = float_format(accumulator) if accumulator else None

    def _inner(self, a: Mapping[int, float], b: Mapping[int, float], other: float = 1.0) -> float:
        """Return an inner product of factors at positions; elsewhere a is 0 and b is `other`."""
        left = scattered([dict(a)], self.probe.length)
        right = np.full_like(left, other)
        right[0, list(b)] = list(b.values())
        return float(self.probe.inner(left, right)[0])

    def _factored(self, terms: Mapping[int, float], exponents: tuple[int, ...] = (-8, -4, 0)) -> float:
        """Return a sum of terms that are products of normal numbers, b being a power of two."""
        for exponent in exponents:
            b = 2.0**exponent
            try:
                return self._inner({at: t / b for at, t in terms.items()}, {}, other=b)
            except Unexpressible:
                continue
        raise Unexpressible(f"the operands do not make terms as small as {min(map(abs, terms.values())):g}")

    @staticmethod
    def _flushed(y: float, kept: float, flushed: float = 0.0) -> str:
        if y == kept:
            return KEPT
        if y == flushed:
            return FLUSHED
        raise NotDetermined(f"the result is {y:g}; {kept:g} had they been kept, {flushed:g} had they been flushed")

    def subnormal_inputs(self) -> str:
        """Return what becomes of a subnormal in a, beside a factor that makes the product normal."""
        return self._subnormal_operand(self.probe.a, in_a=True)

    def subnormal_weights(self) -> str:
        """Return what becomes of a subnormal in b."""
        if not isinstance(self.probe.b, FloatFormat):
            raise NotDetermined("the elements of b are no floats")
        return self._subnormal_operand(self.probe.b, in_a=False)

    def _subnormal_operand(self, fmt: FloatFormat, in_a: bool) -> str:
        if self.probe.blocked and not in_a:
            raise NotDetermined("a number is subnormal only beside others in its block")
        if fmt.mantissa_bits == 0:
            raise NotDetermined(f"{fmt.name} has no subnormals")
        small = 2.0 ** (fmt.minimum_exponent - 1)
        for exponent in (24, 12, 10, 8, 6, 4, 2, 1):
            large = 2.0**exponent
            if small * large < self.probe.output.smallest_normal:
                break
            try:
                y = self._inner({0: small}, {}, other=large) if in_a else self._inner({0: large}, {}, other=small)
            except Unexpressible:
                continue
            return self._flushed(y, small * large)
        raise NotDetermined("no factor makes the product of a subnormal a normal number of the output")

    def subnormal_products(self) -> str:
        """Return what becomes of a product that is subnormal in the accumulator, its factors being normal."""
        least = self._least_exponent()
        small, normal = 2.0 ** (least - 4), 2.0**least
        for share in (least // 2, -8, -4):
            b = 2.0**share
            if min(small, normal) / b < self.probe.a.smallest_normal:
                continue
            try:
                y = self._inner({0: normal / b, 1: small / b}, {}, other=b)
            except Unexpressible:
                continue
            return self._flushed(y, normal + small, normal)
        raise NotDetermined("the operands make no product that is subnormal in the accumulator")

    def _least_exponent(self) -> int:
        if self.accumulator is None:
            raise NotDetermined("the range of the accumulator is not known")
        return max(self.accumulator.minimum_exponent, self.probe.output.minimum_exponent)

    def subnormal_sums(self) -> str:
        """Return what becomes of a partial sum that is subnormal in the accumulator."""
        if self.place is None or self.place.last is None:
            raise NotDetermined("the order of summation is not known")
        least = self._least_exponent()
        if self.accumulator is None or least != self.accumulator.minimum_exponent:
            raise NotDetermined("the output does not show what is subnormal in the accumulator")
        normal = 2.0**least
        place = self.place
        assert place.last is not None
        y = self._factored({place.first: 1.5 * normal, place.second: -normal, place.last: normal})
        return self._flushed(y, 1.5 * normal, normal)

    def subnormal_outputs(self) -> str:
        """Return what becomes of a result that is subnormal in the output's format, its terms being normal."""
        normal = self.probe.output.smallest_normal
        return self._flushed(self._factored({0: 1.5 * normal, 1: -normal}), 0.5 * normal)

    def output_overflow(self) -> str:
        """Return what becomes of a result beyond the largest number of the output."""
        beyond = self.probe.output.maximum_exponent + 1
        span = max(self.probe.spans, key=lambda span: span.highest)
        positions = np.arange(0, self.probe.length, span.stride)
        needed = 2 ** max(1, beyond - span.highest) if beyond - span.highest < 12 else positions.size + 1
        if needed > positions.size:
            raise NotDetermined(f"sums of {positions.size} terms do not reach 2^{beyond}")
        exponent = min(span.highest, beyond - 1)
        row = dict.fromkeys(map(int, positions[:needed]), 2.0**exponent)
        y, negative = self.probe.placed([row, {at: -t for at, t in row.items()}])
        if np.isinf(y) and y > 0 and negative == -y:
            return "infinity"
        if np.isnan(y):
            return "NaN"
        if y == -negative and y >= 2.0 ** (beyond - 1):
            return f"saturates at {y:g}"
        raise NotDetermined(f"the results are {y:g} and {negative:g}")

    def nan(self) -> str:
        """Return what becomes of a NaN in a, and of the rows beside it."""
        self._has_nan()
        a = np.ones((self.probe.rows, self.probe.length))
        a[0, 1] = np.nan
        y = self.probe.product([(a, np.ones((self.probe.length, self.probe.columns)))])[0]
        if np.isnan(y[0]).all() and not np.isnan(y[1:]).any():
            return "propagates, in its row alone" if len(y) > 1 else "propagates"
        if np.isnan(y[1:]).any():
            return "reaches other rows"
        return f"lost: the result is {y[0, 0]:g}"

    def _has_nan(self) -> None:
        if self.probe.a.nan is NanCodes.NONE:
            raise NotDetermined(f"{self.probe.a.name} has no NaN")

    def _has_infinity(self) -> None:
        if not self.probe.a.infinity:
            raise NotDetermined(f"{self.probe.a.name} has no infinity")

    def nan_times_zero(self) -> str:
        """Return what NaN times a zero weight adds."""
        self._has_nan()
        return _word(self._inner({0: 1.0, 1: np.nan}, {1: 0.0}))

    def infinity(self) -> str:
        """Return what becomes of infinities in a."""
        self._has_infinity()
        found = self._inner({0: 1.0, 1: np.inf}, {}), self._inner({0: 1.0, 1: -np.inf}, {})
        return "propagates" if found == (np.inf, -np.inf) else f"gives {_word(found[0])} and {_word(found[1])}"

    def infinity_minus_infinity(self) -> str:
        """Return the sum of the two infinities."""
        self._has_infinity()
        return _word(self._inner({0: 1.0, 1: np.inf, self.probe.length - 1: -np.inf}, {}))

    def infinity_times_zero(self) -> str:
        """Return what infinity times a zero weight adds."""
        self._has_infinity()
        return _word(self._inner({0: 1.0, 1: np.inf}, {1: 0.0}))

    def negative_zeros(self) -> str:
        """Return the sum of terms that are all -0."""
        if not self.probe.a.signed_zero:
            raise NotDetermined(f"{self.probe.a.name} has no -0")
        a = np.full((1, self.probe.length), -0.0)
        y = self.probe.inner(a, 1.0)[0]
        return _word(float(y)) if y != 0 else "-0" if np.signbit(y) else "+0"


def _word(y: float) -> str:
    return "NaN" if np.isnan(y) else f"{y:g}"
