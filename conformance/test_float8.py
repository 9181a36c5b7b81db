"""float8 casts: the types are small, so they are enumerated."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest

from lowbit_cts.conformance.examination import Examination, Refused, Trial
from lowbit_cts.conformance.fills import SPECIALS, boundaries, neighbours
from lowbit_cts.kernels import Case
from lowbit_cts.reference.formats import FLOAT8_FORMATS, encode, float_format

#: Inputs of a call when all 2**32 float32 values are cast.
_CHUNK = 1 << 24

pytestmark = pytest.mark.operation("cast_float8")


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _casts(examination: Examination, toward_float8: bool) -> Iterator[tuple[str, str]]:
    """Yield the supported (source, target) pairs of one direction."""
    supports = examination.implementation.supports
    found = [
        (source, target)
        for source, target in product(supports["source"], supports["target"])
        if (target in FLOAT8_FORMATS) == toward_float8 and (source in FLOAT8_FORMATS) != toward_float8
    ]
    if not found:
        direction = "to" if toward_float8 else "from"
        raise Refused(f"no cast {direction} float8 is declared as supported")
    yield from found


def _examine(examination: Examination, source: str, target: str, x: np.ndarray, what: str) -> None:
    parameters = {"source": source, "target": target}
    case = Case(examination.implementation.operation, parameters, {"x": x}, {"inputs": what})
    examination.once(_enclosed, case)


def test_every_code_decoded(examination: Examination) -> None:
    """All 256 codes decode to their values: NaN to NaN, -0 to -0, infinities to infinities."""
    for source, target in _casts(examination, toward_float8=False):
        _examine(examination, source, target, np.arange(256, dtype=np.uint8), "every code")


def test_every_boundary_encoded(examination: Examination) -> None:
    """Every value, every midpoint and the overflow edges, with their neighbours to both sides, round as declared."""
    for source, target in _casts(examination, toward_float8=True):
        fmt = float_format(source)
        edges = boundaries(float_format(target))
        steps = [neighbours(edges, fmt, np.full(edges.shape, step)) for step in (-2, -1, 0, 1, 2)]
        _examine(examination, source, target, np.concatenate(steps), "decision boundaries")


def test_special_values(examination: Examination) -> None:
    """Signed zeros, subnormals, infinities, NaN of both signs, and magnitudes far beyond the range."""
    for source, target in _casts(examination, toward_float8=True):
        values = np.concatenate([SPECIALS, [-np.nan, 448, 449, 464, 465, -465, 57344, 61439, 61440, 65504, -61440]])
        _examine(examination, source, target, encode(values, float_format(source)), "special values")


def test_every_16_bit_input(examination: Examination) -> None:
    """All 65,536 codes of float16 and bfloat16 are cast."""
    sources = [pair for pair in _casts(examination, toward_float8=True) if float_format(pair[0]).bits == 16]
    if not sources:
        raise Refused("no 16-bit source is declared as supported")
    for source, target in sources:
        everything = np.arange(1 << 16, dtype=np.uint16).view(float_format(source).carrier)
        _examine(examination, source, target, everything, "every code")


@pytest.mark.exhaustive
def test_every_float32_input(examination: Examination) -> None:
    """All 2**32 float32 values are cast."""
    sources = [pair for pair in _casts(examination, toward_float8=True) if pair[0] == "float32"]
    if not sources:
        raise Refused("float32 is not declared as a source")
    for source, target in sources:
        for start in range(0, 1 << 32, _CHUNK):
            chunk = np.arange(start, start + _CHUNK, dtype=np.uint32).view(np.float32)
            _examine(examination, source, target, chunk, f"codes from {start:#010x}")
