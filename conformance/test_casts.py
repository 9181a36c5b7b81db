"""Casts between float formats: the types are small, so they are enumerated."""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest

from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Refused, Trial
from lowbit_cts.conformance.fills import NAN_CODES, SPECIALS, boundaries, nans, neighbours
from lowbit_cts.kernels import Case, Implementation
from lowbit_cts.reference.casts import cast_float, is_cast
from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import SMALL_FLOATS, FloatFormat, decode, float_format

#: Inputs of a call when all 2**32 float32 values are cast, and the parts that are run, and resumed, apart.
_CHUNK = 1 << 22
_SHARDS = 64

#: Values that a stochastic rounding is watched on, and how often; the bound is 7 standard deviations of the mean.
_FRACTIONS = np.array([1 / 64, 1 / 4, 1 / 2, 3 / 4, 63 / 64])
_REPETITIONS = 1 << 14

pytestmark = pytest.mark.operation("cast_float")


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _casts(examination: Examination, wanted: Callable[[FloatFormat, FloatFormat], bool]) -> Iterator[tuple[str, str]]:
    """Yield the supported (source, target) pairs that are wanted."""
    supports = examination.implementation.supports
    found = [
        (source, target)
        for source, target in product(supports["source"], supports["target"])
        if is_cast(source, target) and wanted(float_format(source), float_format(target))
    ]
    if not found:
        raise Refused("no such cast is declared as supported")
    yield from found


def _narrows(source: FloatFormat, target: FloatFormat) -> bool:
    return target.mantissa_bits < source.mantissa_bits and target.name != "float32"


def _examine(
    examination: Examination, source: str, target: str, x: np.ndarray, what: str, check: Callable = _enclosed
) -> None:
    parameters = {"source": source, "target": target}
    case = Case(examination.implementation.operation, parameters, {"x": x}, {"inputs": what})
    examination.once(check, case)


def test_every_code_decoded(examination: Examination) -> None:
    """All codes of a small float decode to their values: NaN to NaN, -0 to -0, infinities to infinities."""
    for source, target in _casts(examination, lambda source, target: source.name in SMALL_FLOATS):
        codes = np.arange(1 << float_format(source).bits, dtype=np.uint8)
        _examine(examination, source, target, codes, "every code")


def test_every_boundary_encoded(examination: Examination) -> None:
    """Every value, every midpoint and the overflow edges, with their neighbours to both sides, round as declared."""
    for source, target in _casts(examination, _narrows):
        fmt = float_format(source)
        edges = boundaries(float_format(target))
        steps = [neighbours(edges, fmt, np.full(edges.shape, step)) for step in (-2, -1, 0, 1, 2)]
        _examine(examination, source, target, np.concatenate(steps), "decision boundaries")


def test_smallest_scales(examination: Examination) -> None:
    """Subnormal float32 and bfloat16 numbers become the nearer of E8M0's two smallest, 2**-127 and 2**-126."""
    for source, target in _casts(examination, lambda source, target: not target.zero and source.bits >= 16):
        if source == "float16":
            continue  # its smallest number is far above
        values = np.linspace(0, 2.0**-125, 257)[1:]
        _examine(examination, source, target, encode(values, float_format(source)), "around 2**-127 and 2**-126")


def test_special_values(examination: Examination) -> None:
    """Signed zeros, subnormals, infinities, NaN of both signs, and magnitudes far beyond the range."""
    for source, target in _casts(examination, _narrows):
        values = np.concatenate([SPECIALS, [-np.nan, 448, 449, 464, 465, -465, 57344, 61439, 61440, 65504, -61440]])
        _examine(examination, source, target, encode(values, float_format(source)), "special values")


def test_nan_payloads(examination: Examination) -> None:
    """A NaN is a NaN whatever its payload: in the lowest bits alone, which a cast drops, or in all, which carry."""
    for source, target in _casts(examination, lambda source, target: source.name in NAN_CODES):
        numbers = np.array([1.0, -2.0])
        codes = numbers if source == "float64" else encode(numbers, float_format(source))
        _examine(examination, source, target, np.concatenate([nans(source), codes]), "NaN of every payload")


def test_every_16_bit_input(examination: Examination) -> None:
    """All 65,536 codes of float16 and bfloat16 are cast."""
    for source, target in _casts(examination, lambda source, target: source.bits == 16):
        everything = np.arange(1 << 16, dtype=np.uint16).view(float_format(source).carrier)
        _examine(examination, source, target, everything, "every code")


def _rounds_at_random(implementation: Implementation) -> bool:
    return implementation.random


@pytest.mark.applies(to=_rounds_at_random)
def test_unbiased(examination: Examination) -> None:
    """Stochastic rounding goes up as often as the value is far along: the mean over many roundings is the value."""
    for source, target in _casts(examination, lambda source, target: source.name == "float32" and target.bits <= 16):
        end = float_format(target)
        exponents = sorted({max(end.minimum_exponent, -20), 0, min(end.maximum_exponent, 20) - 1})
        step = 2 * end.unit_roundoff
        below = np.array([sign * 2.0**exponent for exponent in exponents for sign in (1, -1)])
        x = below[:, None, None] * (1 + step * _FRACTIONS[:, None]) * np.ones(_REPETITIONS)
        _examine(examination, source, target, x.ravel().astype(np.float32), "fractions of a last place", _balanced)


def _balanced(trial: Trial) -> None:
    x = trial.case.array("x").reshape(-1, len(_FRACTIONS), _REPETITIONS)
    reply = trial.call().results[0]
    trial.enclosed(reply)
    y = decode(reply["y"], trial.case.format("y")).reshape(x.shape)
    went_up = np.mean(np.abs(y) > np.abs(x), axis=2)
    wrong = np.abs(went_up - _FRACTIONS) > 7 * np.sqrt(_FRACTIONS * (1 - _FRACTIONS) / _REPETITIONS)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise Violation(
            f"{float(x[row, column, 0])!r}, {_FRACTIONS[column]} of the way to the next value, went there "
            f"{went_up[row, column]:.4f} of the time",
            trial.case,
        )


@pytest.mark.exhaustive
@pytest.mark.parametrize("shard", range(_SHARDS))
def test_every_float32_input(examination: Examination, shard: int) -> None:
    """All 2**32 float32 values are cast, in 64 parts that run in parallel (-n) and are resumed apart (--resume)."""
    if examination.implementation.random:
        raise Refused("results are random")
    length = (1 << 32) // _SHARDS
    for source, target in _casts(examination, lambda source, target: source.name == "float32" and target.bits <= 16):
        for start in range(shard * length, (shard + 1) * length, _CHUNK):
            chunk = np.arange(start, start + _CHUNK, dtype=np.uint32).view(np.float32)
            _examine(examination, source, target, chunk, f"codes from {start:#010x}", _same_codes)


def _same_codes(trial: Trial) -> None:
    """Compare codes, which is fast, and hold against the enclosure those that differ (NaN codes, mostly)."""
    case = trial.case
    found = trial.call().results[0]["y"]
    choices = trial.implementation.semantics.choices(case.operation.semantics)
    expected = cast_float(case.array("x"), **case.parameters, **choices)
    trial.examination.tally.count(case, found.size, 0.0, True)
    differ = np.flatnonzero(found.view(f"u{found.itemsize}") != expected.view(f"u{found.itemsize}"))
    if differ.size:
        trial.enclosed({"y": found[differ]}, trial.replaced("x", case.array("x")[differ]))
