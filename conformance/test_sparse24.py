"""2:4 sparse matrices: every pattern in every group, every value, what holds too many numbers, the way back."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Trial
from lowbit_cts.conformance.strategies.sparse24 import FIELDS, negative_zero, numbers
from lowbit_cts.kernels import Case
from lowbit_cts.reference.formats import FORMATS, decode
from lowbit_cts.reference.packing.sparse24 import decompress, metadata_word, restore_metadata
from lowbit_cts.reference.packing.streams import pack_stream

#: Which elements of a group are numbers: all patterns of at most two.
_PATTERNS = np.array([pattern for pattern in product([False, True], repeat=4) if sum(pattern) <= 2])
_ROWS = 32  # whole in either order of metadata


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _supported(examination: Examination) -> Iterator[dict[str, Any]]:
    implementation = examination.implementation
    yield from implementation.operation.combinations(implementation.supports, tuple(implementation.supports))


def _width(parameters: dict[str, Any]) -> int:
    """Return the columns that two words of metadata cover."""
    return 16 * metadata_word(parameters["format"]).itemsize


def _examine(examination: Examination, parameters: dict[str, Any], what: str, **arrays: np.ndarray) -> None:
    examination.once(_enclosed, Case(examination.implementation.operation, parameters, arrays, {"inputs": what}))


def _patterned(parameters: dict[str, Any], patterns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return distinct numbers, and where they are to stand: each pattern in each group of two words."""
    groups = _width(parameters) // 4
    shifted = np.stack([np.roll(np.resize(patterns, (_ROWS, 4)), group, axis=0) for group in range(groups)], axis=1)
    found = numbers(np.random.default_rng(24), shifted.shape, parameters["format"])
    return found, shifted


@pytest.mark.operation("compress_sparse24")
def test_two_numbers_in_every_group(examination: Examination) -> None:
    """Each of the six pairs of places, in each group of a word: metadata 4, 8, 9, C, D and E, the first index low."""
    for parameters in _supported(examination):
        found, kept = _patterned(parameters, _PATTERNS[_PATTERNS.sum(1) == 2])
        x = np.where(kept, found, np.zeros((), found.dtype)).reshape(_ROWS, -1)
        _examine(examination, parameters, "pairs", x=x)


@pytest.mark.operation("compress_sparse24")
def test_fewer_than_two_numbers(examination: Examination) -> None:
    """A group of one number, or of none, gets two ascending indices, as declared; never two that are equal."""
    for parameters in _supported(examination):
        found, kept = _patterned(parameters, _PATTERNS)
        x = np.where(kept, found, np.zeros((), found.dtype)).reshape(_ROWS, -1)
        _examine(examination, parameters, "every pattern", x=x)


@pytest.mark.operation("compress_sparse24")
def test_negative_zeros_are_zeros(examination: Examination) -> None:
    """A -0 is no number: it takes no place that a number needs."""
    for parameters in _supported(examination):
        found, kept = _patterned(parameters, _PATTERNS)
        x = np.where(kept, found, negative_zero(parameters["format"])).reshape(_ROWS, -1)
        _examine(examination, parameters, "zeros are -0", x=x)


@pytest.mark.operation("compress_sparse24")
def test_the_way_back(examination: Examination) -> None:
    """Values and metadata stand for the matrix they were made of, whichever indices fill up a group."""

    def returns(trial: Trial) -> None:
        reply = trial.call().results[0]
        case = trial.case
        metadata, format = reply["metadata"], case.parameters["format"]
        if case.parameters["metadata_order"] == "cutlass":
            metadata = restore_metadata(metadata)
        try:
            dense = decompress(reply["values"], metadata, format=format)
        except ValueError as error:
            raise Violation(str(error), case) from None
        trial.examination.tally.count(case, dense.size, 0.0, True)
        found, expected = (decode(codes, FORMATS[format]) for codes in (dense, case.array("x")))
        wrong = (found != expected) & ~(np.isnan(found) & np.isnan(expected))
        if wrong.any():
            row, column = (int(i) for i in np.argwhere(wrong)[0])
            raise Violation(
                f"values and metadata give x[{row}, {column}] back as {found[row, column]}, must be "
                f"{expected[row, column]}",
                case,
            )

    examination.for_all(returns)


def _beside(trial: Trial, results: dict[str, np.ndarray], row: int, what: str) -> None:
    """Hold against their enclosures all rows but one, and of that one all but its first word of metadata."""
    case, word = trial.case, _width(trial.case.parameters) // 2  # columns
    others = np.delete(np.arange(case.sizes["M"]), row)
    for rows, first in ((others, 0), ([row], 1)):
        columns = {"K": slice(first * word, None), "H": slice(first * word // 2, None), "W": slice(first, None)}
        alone = case
        for axis, indices in {"M": rows, **columns}.items():
            alone = alone.take(axis, indices)
        part = {
            result.name: results[result.name][rows][:, columns[result.shape(case.parameters)[1]]]
            for result in case.operation.results
        }
        try:
            trial.enclosed(part, alone, f"{what}: ")
        except Violation as violation:  # of a case that is not to be cut further
            raise Violation(str(violation), case) from None


@pytest.mark.operation("compress_sparse24")
def test_overfull_groups(examination: Examination) -> None:
    """Three or four numbers in a group are an error, or leave what stands beside them unharmed."""

    def unharmed(trial: Trial) -> None:
        reply = trial.call(lenient=True)
        trial.examination.tally.count(trial.case, 0, 0.0, True)
        if not reply.raised and trial.case.parameters["metadata_order"] == "row":
            _beside(trial, reply.results[0], 3, "beside an overfull group")

    for parameters in _supported(examination):
        found, kept = _patterned(parameters, _PATTERNS[_PATTERNS.sum(1) == 2])
        x = np.where(kept, found, np.zeros((), found.dtype))
        for number in (3, 4):
            x[3, 1, :number] = found[3, 1, :number]
            examination.once(
                unharmed,
                Case(
                    examination.implementation.operation,
                    parameters,
                    {"x": x.reshape(_ROWS, -1).copy()},
                    {"numbers in a group": number},
                ),
            )


@pytest.mark.operation("decompress_sparse24")
def test_every_pair_of_indices(examination: Examination) -> None:
    """Each of the six pairs of indices, in each group of a word, puts its two values where it says."""
    for parameters in _supported(examination):
        groups = _width(parameters) // 4
        fields = np.stack([np.roll(np.resize(FIELDS, _ROWS), group) for group in range(groups)], axis=1)
        values = numbers(np.random.default_rng(24), (_ROWS, 2 * groups), parameters["format"])
        metadata = pack_stream(fields, 4, metadata_word(parameters["format"]))
        _examine(examination, parameters, "every pair", values=values, metadata=metadata)


def _every_code(format: str) -> np.ndarray:
    """Return all codes of a format, in whole blocks of rows and words."""
    fmt = FORMATS[format]
    codes = np.arange(max(1 << fmt.bits, 64 * _ROWS)) % (1 << fmt.bits)
    return codes.astype(f"u{fmt.carrier.itemsize}").view(fmt.carrier).reshape(_ROWS, -1)


@pytest.mark.operation("compress_sparse24", "decompress_sparse24")
def test_every_value_is_kept(examination: Examination) -> None:
    """All codes of the format, NaN, infinities and subnormals among them, are moved as they are."""
    for parameters in _supported(examination):
        values = _every_code(parameters["format"])
        if examination.implementation.operation.name == "compress_sparse24":
            x = np.zeros((*values.shape, 2), values.dtype)
            x[:, :, 1] = values
            _examine(examination, parameters, "every code", x=x.reshape(_ROWS, -1))
        else:
            fields = np.resize(FIELDS, (_ROWS, values.shape[1] // 2))
            metadata = pack_stream(fields, 4, metadata_word(parameters["format"]))
            _examine(examination, parameters, "every code", values=values, metadata=metadata)


@pytest.mark.operation("decompress_sparse24")
def test_metadata_a_word_short(examination: Examination) -> None:
    """Metadata with a word a row too few is an error, not a read past its end."""

    def check(trial: Trial) -> None:
        metadata = trial.case.array("metadata")
        if metadata.shape[1] < 2:
            return
        short = trial.replaced("metadata", metadata[:, :-1])
        reply = trial.call(short, lenient=True, expect_results=False)
        trial.examination.tally.count(short, 1, 0.0, True)
        if not reply.raised:
            raise Violation(
                f"accepted metadata of shape {short.array('metadata').shape}, where {metadata.shape} belongs to the "
                "values: must raise",
                short,
            )

    examination.for_all(check, sizes={"H": 128}, variants=("format",))


@pytest.mark.operation("decompress_sparse24")
def test_indices_that_do_not_ascend(examination: Examination) -> None:
    """Equal or descending indices are an error, or leave what stands beside them unharmed; no stray write."""

    def unharmed(trial: Trial) -> None:
        reply = trial.call(lenient=True)
        trial.examination.tally.count(trial.case, 0, 0.0, True)
        if not reply.raised and trial.case.parameters["metadata_order"] == "row":
            _beside(trial, reply.results[0], 3, "beside indices that do not ascend")

    for parameters in _supported(examination):
        for field in sorted(set(range(16)) - set(FIELDS.tolist())):
            groups = _width(parameters) // 4
            fields = np.resize(FIELDS, (_ROWS, groups))
            fields[3, 1] = field
            values = numbers(np.random.default_rng(24), (_ROWS, 2 * groups), parameters["format"])
            metadata = pack_stream(fields, 4, metadata_word(parameters["format"]))
            arrays = {"values": values, "metadata": metadata}
            examination.once(
                unharmed, Case(examination.implementation.operation, parameters, arrays, {"field": f"{field:04b}"})
            )
