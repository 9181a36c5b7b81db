"""Affine quantization: ties, the order of the zero point, saturation, special values, degenerate ranges."""

from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.examination import Examination, Refused, Trial
from lowbit_cts.conformance.fills import SPECIALS, float_codes
from lowbit_cts.kernels import Case, Implementation
from lowbit_cts.reference.affine import middle
from lowbit_cts.reference.formats import IntegerFormat, integer_format
from lowbit_cts.reference.granularity import scale_shape

_QUANTIZERS = ("quantize_affine", "fake_quantize_affine")


_VARIED = ("format", "granularity", "axis", "mapping", "narrow_range")


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _variants(implementation: Implementation) -> list[dict[str, Any]]:
    """Return every supported combination of format, granularity and axis, the rest at its first supported value."""
    operation, supports = implementation.operation, implementation.supports
    first = {name: values[:1] for name, values in supports.items()}
    varied = {name: supports[name] for name in _VARIED if name in supports}
    return list(operation.combinations({**first, **varied}, tuple(supports)))


def _case(implementation: Implementation, parameters: dict[str, Any], points: Any, scale: float) -> Case | None:
    """Return a case whose rows (or columns) all hold ``points(zero point)`` times a scale, a zero point a row."""
    fmt = integer_format(parameters["format"])
    qmin, qmax = fmt.codes(bool(parameters.get("narrow_range")))
    group = parameters["group_size"]
    symmetric = parameters["mapping"] == "symmetric"
    zeros = [middle(qmin, qmax)] if symmetric else [qmin, qmin + 1, middle(qmin, qmax), qmax]
    if parameters["granularity"] == "tensor":
        zeros = zeros[1:2] if not symmetric else zeros
    rows = [np.asarray(points(fmt, zero), np.float64) for zero in zeros]
    x = np.stack(rows)
    if group:
        x = np.pad(x, ((0, 0), (0, -x.shape[1] % group)), mode="edge")
    zero_point = np.array(zeros, np.int32)
    if parameters["granularity"] == "axis" and parameters["axis"] == 1:
        x = np.ascontiguousarray(x.T)
    place = scale_shape(x.shape, parameters["granularity"], parameters["axis"], group)
    if parameters["granularity"] == "group":
        zero_point = np.repeat(zero_point[:, None], place[1], axis=1)
    factors = np.full(place, scale, np.float32)
    arrays = {
        "x": float_codes(np.float32(scale) * x, parameters["input_format"]),
        "scale": factors,
        "zero_point": zero_point.reshape(place),
    }
    return Case(implementation.operation, parameters, arrays, {"scale": scale})


def _each(examination: Examination, points: Any, scales: tuple[float, ...]) -> None:
    for parameters in _variants(examination.implementation):
        for scale in scales:
            case = _case(examination.implementation, parameters, points, scale)
            if case is not None:
                examination.once(_enclosed, case)


@pytest.mark.operation(*_QUANTIZERS)
def test_every_tie(examination: Examination) -> None:
    """Every half between two codes, and a quarter to both sides of it, falls as declared; power-of-two scales."""
    _each(
        examination,
        lambda fmt, zero: np.arange(4 * (fmt.minimum - 2), 4 * (fmt.maximum + 2) + 1) / 4 - zero,
        (1.0, 2.0**-7),
    )


@pytest.mark.operation(*_QUANTIZERS)
def test_beside_every_tie(examination: Examination) -> None:
    """The floats just below and just above a tie round to their own sides; 0.49999997 + 0.5 is 1 in float32."""

    def points(fmt: IntegerFormat, zero: int) -> np.ndarray:
        ties = (np.arange(fmt.minimum - 1, fmt.maximum + 1) + 0.5 - zero).astype(np.float32)
        return np.concatenate([np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)])

    _each(examination, points, (1.0, 2.0**-7))


@pytest.mark.operation(*_QUANTIZERS)
def test_zero_point_inside_or_outside_the_rounding(examination: Examination) -> None:
    """[0.5, 1.5, 2.5] with scale 1 and zero point 1 is [1, 3, 3] outside, [2, 2, 4] inside (half to even)."""
    _each(examination, lambda fmt, zero: np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5]), (1.0,))


@pytest.mark.operation(*_QUANTIZERS)
def test_divided_or_multiplied_by_the_reciprocal(examination: Examination) -> None:
    """On the half-point grid with scale 0.1 the quotient and the product by 1 / scale differ in 18 of 254 codes."""
    _each(examination, lambda fmt, zero: np.arange(fmt.minimum, fmt.maximum) + 0.5 - zero, (0.1, 0.7, 1e-3))


@pytest.mark.operation(*_QUANTIZERS)
def test_saturation(examination: Examination) -> None:
    """Values up to 2**20 codes beyond the range saturate on their own side."""
    beyond = 2.0 ** np.arange(1, 21)
    _each(
        examination,
        lambda fmt, zero: np.concatenate([fmt.maximum - zero + beyond, fmt.minimum - zero - beyond]),
        (0.25, 0.03),
    )


@pytest.mark.operation(*_QUANTIZERS)
def test_huge_values_saturate(examination: Examination) -> None:
    """Finite quotients beyond int32 and int64, up to the largest float, saturate on their own side."""
    huge = np.array([2.0**31, 3e9, 2.0**32, 2.0**33, 2.0**63, 1e20, 1e30, 3e38])
    _each(examination, lambda fmt, zero: np.concatenate([huge, -huge]), (1.0,))


@pytest.mark.operation(*_QUANTIZERS)
def test_infinities_saturate(examination: Examination) -> None:
    """+Inf is the largest code and -Inf the smallest; the elements beside them are what they are alone."""
    _each(examination, lambda fmt, zero: np.array([1.0, np.inf, 2.0, -np.inf, 1.0, 0.0]), (0.5,))


@pytest.mark.operation(*_QUANTIZERS)
def test_nan_stays_alone(examination: Examination) -> None:
    """A NaN becomes some code, and changes no element beside it."""
    _each(examination, lambda fmt, zero: np.array([1.0, np.nan, 2.0, -1.0, np.nan, 0.0, 1.0]), (0.5,))


@pytest.mark.operation(*_QUANTIZERS)
def test_zeros_and_subnormals(examination: Examination) -> None:
    """Signed zeros and subnormals give the zero point, whatever stands beside them."""
    small = np.concatenate([SPECIALS[np.abs(SPECIALS) < 1e-37], [1.0, -1.0]])
    _each(examination, lambda fmt, zero: small, (1.0, 0.1))


@pytest.mark.operation("quantize_affine")
def test_round_trip(examination: Examination) -> None:
    """Quantizing what a code stands for gives the code back, for every code."""
    _each(examination, lambda fmt, zero: np.arange(fmt.minimum, fmt.maximum + 1) - zero, (1.0, 0.1, 3e-3, 7e4))


@pytest.mark.operation("dequantize_affine")
def test_every_code(examination: Examination) -> None:
    """Every code is decoded beside every kind of scale, with zero points at the ends of the range."""
    for parameters in _variants(examination.implementation):
        fmt = integer_format(parameters["format"])
        codes = np.arange(fmt.minimum, fmt.maximum + 1)
        codes = np.resize(codes, max(codes.size, parameters["group_size"] or 1))
        rows = np.stack([codes, codes[::-1]]).astype(fmt.carrier)
        place = scale_shape(rows.shape, parameters["granularity"], parameters["axis"], parameters["group_size"])
        for scale in (1.0, 0.1, 1e-30, 1e30):
            zero = np.resize([fmt.maximum, fmt.minimum], place)
            if parameters["mapping"] == "symmetric":
                zero = np.full(place, middle(fmt.minimum, fmt.maximum))
            arrays = {
                "codes": rows,
                "scale": np.full(place, scale, np.float32),
                "zero_point": np.asarray(zero, np.int32).reshape(place),
            }
            examination.once(
                _enclosed, Case(examination.implementation.operation, parameters, arrays, {"scale": scale})
            )


#: Matrices whose range is degenerate, by name.
_DEGENERATE = {
    "zero": np.zeros((4, 128)),
    "a zero row": np.where(np.arange(4)[:, None] == 1, 0.0, np.linspace(-1, 1, 128)),
    "positive": np.linspace(0.5, 1.0, 512).reshape(4, 128),
    "negative": -np.linspace(0.5, 1.0, 512).reshape(4, 128),
    "constant": np.full((4, 128), 0.75),
    "negative constant": np.full((4, 128), -3.0),
    "one outlier": np.where(np.arange(512).reshape(4, 128) == 200, 300.0, 0.01),
}


@pytest.mark.operation("choose_qparams_affine")
def test_degenerate_ranges(examination: Examination) -> None:
    """All-zero, one-signed and constant inputs get the declared scale and zero point; no NaN, no zero too many."""
    for parameters in _variants(examination.implementation):
        for name, x in _DEGENERATE.items():
            codes = float_codes(x, parameters["input_format"])
            examination.once(
                _enclosed, Case(examination.implementation.operation, parameters, {"x": codes}, {"x": name})
            )


@pytest.mark.operation("choose_qparams_affine")
def test_zero_point_ties(examination: Examination) -> None:
    """Where min / s lies halfway between two codes, the zero point rounds as declared."""
    if "asymmetric" not in examination.implementation.supports["mapping"]:
        raise Refused("the mapping asymmetric is not declared as supported")
    for parameters in _variants(examination.implementation):
        if parameters["mapping"] == "symmetric":
            continue
        qmin, qmax = integer_format(parameters["format"]).codes(bool(parameters["narrow_range"]))
        steps = qmax - qmin
        for below in sorted({1, 2, steps // 2, steps // 2 + 1, steps - 1} - {0}):
            row = np.resize([0.5 - below, 0.5 - below + steps, 0.0], max(4, parameters["group_size"] or 4))
            x = np.tile(row, (3, 1)) * 0.25
            x = np.ascontiguousarray(x.T) if parameters["axis"] == 1 else x
            codes = float_codes(x, parameters["input_format"])
            case = Case(examination.implementation.operation, parameters, {"x": codes}, {"below": below})
            examination.once(_enclosed, case)
