"""Gradients of fake quantization: masks at and beside every edge, linearity, special values, sums of the scale's."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Trial
from lowbit_cts.conformance.fills import SPECIALS, float_codes
from lowbit_cts.kernels import Case, Implementation
from lowbit_cts.reference.affine import middle
from lowbit_cts.reference.formats import IntegerFormat, integer_format
from lowbit_cts.reference.granularity import scale_shape

_GRADIENTS = ("fake_quantize_gradient", "lsq_gradient")
_VARIED = ("format", "granularity", "axis", "mapping", "has_zero_point", "narrow_range")
Points = Callable[[IntegerFormat, int], Any]


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _variants(implementation: Implementation) -> Iterable[dict[str, Any]]:
    """Yield every supported combination of the varied parameters, the rest at its first supported value."""
    operation, supports = implementation.operation, implementation.supports
    first = {name: values[:1] for name, values in supports.items()}
    varied = {name: supports[name] for name in _VARIED if name in supports}
    return operation.combinations({**first, **varied}, tuple(supports))


def _zeros(chosen: dict[str, Any]) -> list[int]:
    """Return the zero points of the rows."""
    qmin, qmax = integer_format(chosen["format"]).codes(bool(chosen["narrow_range"]))
    if chosen.get("has_zero_point") is False:
        return [0, 0]
    symmetric = chosen.get("mapping") == "symmetric"
    return [middle(qmin, qmax)] * 2 if symmetric else [qmin, qmin + 1, middle(qmin, qmax), qmax]


def _upstream(shape: tuple[int, ...]) -> np.ndarray:
    """Return gradients of both signs, none zero and no two neighbours alike: the numbers from 1 to 11, over 4."""
    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    return (np.where(numbers % 3, 1, -1) * ((5 * numbers + 3) % 11 + 1) / 4).astype(np.float32)


def _case(
    implementation: Implementation,
    chosen: dict[str, Any],
    points: Points,
    scale: float,
    upstream: Callable[[tuple[int, ...]], np.ndarray] = _upstream,
    factor: float = 0.5,
) -> Iterable[Case]:
    """Yield cases whose rows (or columns) hold ``points(zero point)`` times a scale; per tensor one a zero point."""
    fmt = integer_format(chosen["format"])
    zeros, group = _zeros(chosen), chosen["group_size"]
    alone = chosen["granularity"] == "tensor"
    for some in [[zero] * 2 for zero in dict.fromkeys(zeros)] if alone else [zeros]:
        x = np.stack([np.asarray(points(fmt, zero), np.float64) for zero in some])
        if group:
            x = np.pad(x, ((0, 0), (0, -x.shape[1] % group)), mode="edge")
        zero_point = np.array(some, np.int32)
        above = upstream(x.shape)
        if chosen["granularity"] == "axis" and chosen["axis"] == 1:
            x, above = np.ascontiguousarray(x.T), np.ascontiguousarray(above.T)
        place = scale_shape(x.shape, chosen["granularity"], chosen["axis"], group)
        if chosen["granularity"] == "group":
            zero_point = np.repeat(zero_point[:, None], place[1], axis=1)
        values = float_codes(np.float32(scale) * x, "float32")
        arrays: dict[str, np.ndarray | None] = {
            "upstream": above,
            "scale": np.full(place, scale, np.float32),
            "zero_point": (zero_point[0] if alone else zero_point).reshape(place),
        }
        if implementation.operation.name == "lsq_gradient":
            if not chosen["has_zero_point"]:
                arrays["zero_point"] = None
            arrays |= {"v": values, "gradient_scale": np.array(factor, np.float32)}
        else:
            arrays["x"] = values
        yield Case(implementation.operation, chosen, arrays, {"scale": scale})


def _each(examination: Examination, points: Points, scales: tuple[float, ...], **options: Any) -> None:
    for chosen in _variants(examination.implementation):
        for scale in scales:
            for case in _case(examination.implementation, chosen, points, scale, **options):
                examination.once(_enclosed, case)


def _beside(points: np.ndarray, ulps: int) -> np.ndarray:
    """Return float32 points and those up to so many units in the last place beside them, on both sides."""
    below = above = points.astype(np.float32)
    found = [below]
    for _ in range(ulps):
        below, above = np.nextafter(below, np.float32(-np.inf)), np.nextafter(above, np.float32(np.inf))
        found += [below, above]
    return np.concatenate(found)


def _edges(fmt: IntegerFormat, zero: int) -> np.ndarray:
    """Return the ends of both ranges of codes, full and narrow, half a code and a code beyond and within."""
    ends = np.array([fmt.minimum, fmt.minimum + 1, fmt.maximum])
    return (ends[:, None] + np.array([-1, -0.5, 0, 0.5, 1])).ravel() - zero


@pytest.mark.operation(*_GRADIENTS)
def test_gradient_at_every_edge(examination: Examination) -> None:
    """At every edge of the range, half a code and a code beside it, and 2 ulp around, it passes as declared.

    The scales are powers of two, so each of these numbers has one quotient, whatever the arithmetic.
    """
    _each(examination, lambda fmt, zero: _beside(_edges(fmt, zero), 2), (1.0, 2.0**-7))


@pytest.mark.operation(*_GRADIENTS)
def test_gradient_beside_edges_of_any_scale(examination: Examination) -> None:
    """With scales that are no powers of two, the floats within 2 ulp of an edge pass by the declared arithmetic."""
    for scale in (0.1, 0.7, 3e-3):

        def points(fmt: IntegerFormat, zero: int, scale: float = scale) -> np.ndarray:
            return _beside(np.float32(scale) * _edges(fmt, zero), 2) / np.float64(np.float32(scale))

        _each(examination, points, (scale,))


@pytest.mark.operation(*_GRADIENTS)
def test_gradient_at_every_tie(examination: Examination) -> None:
    """Halves and quarters of a code over the whole range: inside, every element's gradient passes unchanged."""
    _each(examination, lambda fmt, zero: np.arange(4 * fmt.minimum - 8, 4 * fmt.maximum + 9) / 4 - zero, (1.0, 2.0**-7))


@pytest.mark.operation(*_GRADIENTS)
def test_gradient_outside_is_zero(examination: Examination) -> None:
    """Values from 1 to 2**20 codes beyond the range have the gradient 0; the scale's is that of their own edge."""
    beyond = np.array([1.0, 1.5, 2, 3, 8, 100, 256, 300, 1000, 65536, 2.0**20])

    def points(fmt: IntegerFormat, zero: int) -> np.ndarray:
        return np.concatenate([fmt.maximum - zero + beyond, [0, 0.25], fmt.minimum - zero - beyond])

    _each(examination, points, (0.25, 0.03))


@pytest.mark.operation(*_GRADIENTS)
def test_gradient_of_huge_values(examination: Examination) -> None:
    """Quotients beyond int32 and int64, up to the largest float, are outside on their own side."""
    huge = np.array([2.0**31, 3e9, 2.0**32, 2.0**33, 2.0**62, 2.0**63, 1e20, 1e30, 3e38])
    _each(examination, lambda fmt, zero: np.concatenate([huge, [0, 0.25], -huge]), (1.0,))


@pytest.mark.operation(*_GRADIENTS)
def test_gradient_of_infinities(examination: Examination) -> None:
    """Infinities are outside on their own side; the elements beside them are what they are alone."""
    _each(examination, lambda fmt, zero: np.array([0.25, np.inf, 1.0, -np.inf, 0.0, 1.25, np.inf]), (0.5,))


@pytest.mark.operation(*_GRADIENTS)
def test_gradient_of_nan(examination: Examination) -> None:
    """A NaN is inside no range: its gradient is that of a masked element, and no other row's changes."""

    def points(fmt: IntegerFormat, zero: int) -> np.ndarray:
        row = np.array([0.25, 1.0, 0.5, -0.25, 0.75, 0.0, 1.0])
        return np.where(np.arange(7) % 3 == 1, np.nan, row) if zero in (fmt.minimum, 0) else row

    _each(examination, points, (0.5,))


@pytest.mark.operation(*_GRADIENTS)
def test_upstream_that_is_not_finite(examination: Examination) -> None:
    """An infinity or NaN passes inside the range, outside it is masked as declared; rows beside it do not change."""

    def upstream(shape: tuple[int, ...]) -> np.ndarray:
        found = _upstream(shape)
        found[0, 1::2] = np.resize([np.inf, np.nan, -np.inf, 3e38], found[0, 1::2].size)
        return found

    def points(fmt: IntegerFormat, zero: int) -> np.ndarray:
        far = fmt.maximum - fmt.minimum + 4.0
        return np.array([0.25, 0.0, 1.0, far, 0.0, far, -0.25, -far, 0.5, 0.0, -far, 0.25, far, far])

    _each(examination, points, (0.5,), upstream=upstream)


@pytest.mark.operation(*_GRADIENTS)
def test_gradient_of_zeros_and_subnormals(examination: Examination) -> None:
    """Signed zeros and subnormals are where the code zero_point is."""
    small = np.concatenate([SPECIALS[np.abs(SPECIALS) < 1e-37], [1.0, -1.0]])
    _each(examination, lambda fmt, zero: small, (1.0, 0.1))


@pytest.mark.operation(*_GRADIENTS)
def test_gradient_is_linear(examination: Examination) -> None:
    """The gradients of two upstream gradients add up to that of their sum, where nothing rounds."""

    def check(trial: Trial) -> None:
        one = trial.case
        other = replace(one, arrays={**one.arrays, "upstream": -4 * np.roll(one.array("upstream"), 1)})
        both = replace(one, arrays={**one.arrays, "upstream": one.array("upstream") + other.array("upstream")})
        parts = [trial.call(case).results[0] for case in (one, other, both)]
        for case, results in zip((one, other, both), parts, strict=True):
            trial.enclosed(results, case)
        for name, enclosure in both.enclosures(trial.implementation.semantics).items():
            total = np.float64(parts[0][name]) + parts[1][name]
            differs = (total != parts[2][name]) & (enclosure.lo == enclosure.hi)
            if np.any(differs):
                at = tuple(int(i) for i in np.argwhere(differs)[0])
                values = [float(part[name][at]) for part in parts]
                text = f"{values[0]!r} + {values[1]!r}, the gradients of the parts, must be {values[2]!r}, that of the"
                raise Violation(f"{name}{list(at)}: {text} sum", both, index=at)

    examination.for_all(check, regime="exact", variants=("granularity",))


def _one_hot(shape: tuple[int, ...]) -> np.ndarray:
    """Return gradients that are zero but for one element a row, another in each."""
    found = np.zeros(shape, np.float32)
    found[np.arange(shape[0]), np.arange(shape[0]) % shape[1]] = 3.0
    return found


@pytest.mark.operation("lsq_gradient")
def test_scale_gradient_of_one_element(examination: Examination) -> None:
    """Where the upstream gradient is zero but for one element, the scale's is that element's, to a few roundings."""
    for scale in (1.0, 0.1):
        for start in range(0, 24, 4):

            def points(fmt: IntegerFormat, zero: int, start: int = start) -> np.ndarray:
                inside = np.linspace(fmt.minimum - 1.3, fmt.maximum + 1.3, 24) - zero
                return np.roll(inside, -start)[:12]

            _each(examination, points, (scale,), upstream=_one_hot, factor=0.37)


@pytest.mark.operation("lsq_gradient")
@pytest.mark.parametrize("length", [7, 64, 1000, 4096, 9000])
def test_scale_gradient_of_equal_elements(examination: Examination, length: int) -> None:
    """Of n elements a quarter of a code above theirs the scale's gradient is -n g / 4, exactly, and of both signs."""

    def points(fmt: IntegerFormat, zero: int) -> np.ndarray:
        return np.full(length, fmt.maximum - 0.75 - zero)

    def upstream(shape: tuple[int, ...]) -> np.ndarray:
        return np.where(np.arange(shape[0])[:, None] % 2, np.full(shape, -2), 1).astype(np.float32)

    _each(examination, points, (0.5,), upstream=upstream, factor=2.0**-6)


@pytest.mark.operation("lsq_gradient")
def test_gradient_scale(examination: Examination) -> None:
    """The gradient of the scale is multiplied by gradient_scale, from 2**-20 to 2**10; that of the values is not."""
    for factor in (2.0**-20, 0.3, 1.0, 5.0, 2.0**10):
        _each(examination, lambda fmt, zero: np.arange(-12, 12) / 4, (0.5,), factor=factor)


def _first_scales(examination: Examination, rows: np.ndarray) -> None:
    implementation = examination.implementation
    for chosen in implementation.operation.combinations(
        {n: v[:1] if n == "group_size" else v for n, v in implementation.supports.items()},
        tuple(implementation.supports),
    ):
        if chosen["granularity"] == "tensor":
            matrices = [np.stack([row, row[::-1]]) for row in rows]
        elif chosen["granularity"] == "group":
            wide = np.stack([np.resize(row, chosen["group_size"]) for row in rows])
            matrices = [np.concatenate([wide, wide[::-1]], axis=1)]
        else:
            matrices = [np.ascontiguousarray(rows.T) if chosen["axis"] == 1 else rows]
        for x in matrices:
            examination.once(_enclosed, Case(implementation.operation, chosen, {"v": float_codes(x, "float32")}, {}))


@pytest.mark.operation("lsq_initial_scale")
def test_first_scale_of_equal_magnitudes(examination: Examination) -> None:
    """Values of one magnitude and both signs have a first scale of twice it over sqrt(Q_P); zeros of 0."""
    signs = np.array([1.0, -1, -1, 1, 1, 1, -1, 1])
    _first_scales(examination, np.stack([signs * size for size in (1.0, 0.75, 2.0**-10, 48.0, 0.1, 0.0)]))


@pytest.mark.operation("lsq_initial_scale")
def test_first_scale_of_one_large_value(examination: Examination) -> None:
    """One value far above the others, first, last and between them, of both signs, is in its own mean alone."""
    rows = np.full((5, 32), 0.01) * np.where(np.arange(32) % 3, 1, -1)
    rows[np.arange(5), [0, 31, 17, 0, 31]] = [100, 100, 7, -100, -100]
    _first_scales(examination, rows)
