"""What every implementation faces, whatever its operation."""

from itertools import combinations
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import strategies as st

from lowbit_cts.conformance.buffers import LAYOUTS
from lowbit_cts.conformance.checks import Violation, observed
from lowbit_cts.conformance.examination import Examination, Refused, Trial
from lowbit_cts.conformance.fills import float_codes
from lowbit_cts.conformance.strategies import wrong_type
from lowbit_cts.kernels import Implementation
from lowbit_cts.kernels.exchange import stream_of


def test_enclosure(examination: Examination) -> None:
    """Every result lies inside the enclosure of the declared semantics."""
    examination.for_all(lambda trial: trial.enclosed(trial.call().results[0]))


def test_exact_regime(examination: Examination) -> None:
    """Where every intermediate is representable, ties and sums fall exactly as declared."""
    examination.for_all(lambda trial: trial.enclosed(trial.call().results[0]), regime="exact")


@pytest.mark.applies(to=lambda implementation: not implementation.random)
def test_repeatability(examination: Examination) -> None:
    """The same inputs give the same bits, and no part of the output is left unwritten.

    Between the two runs the memory that outputs are made of is filled with different bytes.
    """

    def check(trial: Trial) -> None:
        one, other = trial.call(trial.case, trial.case).results
        trial.identical(one, other, "a second run on the same inputs differs, or leaves output unwritten")

    examination.for_all(check, variants=("format",) if "format" in examination.implementation.supports else ())


def test_guard_bands(examination: Examination) -> None:
    """Nothing is written outside the output, at sizes around vectors and tiles; inputs are left untouched.

    The guard bands around inputs (and around outputs that the kernel is given) are checked in every call; here the
    outputs are large enough that memory the kernel allocates itself is checked, too.
    """
    long_axis = {"M": 33} if "M" in _axes(examination) else {}

    def check(trial: Trial) -> None:
        trial.enclosed(trial.call().results[0])

    for extra in (0, 1, 3):
        width = {"K": 256 + extra} if _free_width(examination) else {}
        short = bool(long_axis) or bool(_squared(examination.implementation))
        last = {"N": (64 if short else 2048) + extra} if "N" in _axes(examination) else {}
        examination.for_all(check, sizes={**long_axis, **width, **last}, share=0.3, variants=())


def test_strided(examination: Examination) -> None:
    """Padded rows, every second element and transposed memory give the bits of contiguous memory.

    The memory between the elements is NaN, or a byte that no right answer needs.
    """
    _layouts(examination, "strided")


def test_offset(examination: Examination) -> None:
    """Arguments that begin one element past an aligned address give the bits of aligned ones."""
    _layouts(examination, "offset")


def _layouts(examination: Examination, declared: str) -> None:
    if declared not in examination.implementation.layouts:
        raise Refused(f"the layout {declared} is not declared as supported")
    if not hasattr(examination.exchange(), "view"):
        raise Refused("the backend's own exchange makes no views")

    for layout in LAYOUTS[declared]:

        def check(trial: Trial, layout: str = layout) -> None:
            contiguous = trial.call().results[0]
            other = trial.call(layout=layout).results[0]
            trial.enclosed(other, what=f"in {layout} memory ")
            if trial.determined():
                trial.identical(contiguous, other, f"contiguous and {layout} memory")

        examination.for_all(check, share=1 / len(LAYOUTS[declared]), variants=_granularity(examination))


def test_cut(examination: Examination) -> None:
    """A row, a column, a head or a tail of the inputs alone gives what it gives in the whole."""

    def check(trial: Trial) -> None:
        case, axes = trial.case, trial.independent_axes()
        if not axes:
            trial.enclosed(trial.call().results[0])
            return
        axis = trial.draw(st.sampled_from(axes))
        length = case.sizes[axis]
        start = trial.draw(st.integers(0, length - 1))
        stop = trial.draw(st.sampled_from(sorted({start + 1, length})))
        whole = trial.call().results[0]
        part = case.take(axis, slice(start, stop))
        alone = trial.call(part).results[0]
        trial.enclosed(alone, part, f"{axis}[{start}:{stop}] alone: ")
        if trial.determined():
            expected = {
                r.name: whole[r.name][
                    tuple(slice(start, stop) if s == axis else slice(None) for s in r.shape(case.parameters))
                ]
                for r in case.operation.results
            }
            trial.identical(expected, alone, f"{axis}[{start}:{stop}] in the whole and alone")

    examination.for_all(check, variants=_granularity(examination))


def test_new_contents(examination: Examination) -> None:
    """Other values at the same addresses give their own results: nothing is remembered from the call before."""

    def check(trial: Trial) -> None:
        before = trial.permuted()
        trial.enclosed(trial.call(before, trial.case).results[1], what="after a call on other values in this memory ")

    examination.for_all(check, variants=())


def _prepares(implementation: Implementation) -> bool:
    return implementation.prepare is not None


@pytest.mark.applies(to=_prepares)
def test_prepared_twice(examination: Examination) -> None:
    """What `prepare` made serves several calls: a second one on other inputs gives its own results."""

    def check(trial: Trial) -> None:
        other = trial.permuted()
        replies = trial.call(other, trial.case, other, prepare_once=True)
        for number, case in enumerate((other, trial.case, other)):
            trial.enclosed(replies.results[number], case, f"in call {number + 1} with the same prepared arguments ")

    examination.for_all(check, variants=())


def _defined(trial: Trial) -> bool:
    """Whether the reference has a value for the case; an empty set has no minimum."""
    try:
        trial.case.enclosures(trial.implementation.semantics)
    except ValueError:
        return False
    return True


def test_empty_axes(examination: Examination) -> None:
    """A zero-size axis gives an empty result of the right shape, or an error (`refused`); no crash and no hang."""
    refusals: list[str] = []

    def check(trial: Trial) -> None:
        reply = trial.call(lenient=True)
        trial.examination.tally.count(trial.case, 0, 0.0, True)
        if reply.raised:
            refusals.append(f"{reply.raised} for {trial.case.sizes}")
        elif any(array.size for array in reply.results[0].values()) and _defined(trial):
            trial.enclosed(reply.results[0])  # an empty sum is 0

    for axis in _axes(examination):
        examination.for_all(check, sizes={axis: 0}, share=0.1, variants=_granularity(examination))
    if refusals and len(refusals) == examination.tally.cases:
        raise Refused(f"raises {refusals[0]}")


def test_axes_of_one(examination: Examination) -> None:
    """Axes of length 1 are like any other: a single row, a single column, a single element."""
    axes = _axes(examination)

    def check(trial: Trial) -> None:
        trial.enclosed(trial.call().results[0])

    for fixed in [{axis: 1} for axis in axes] + [dict.fromkeys(axes, 1)]:
        if _free_width(examination) or "K" not in fixed:
            examination.for_all(check, sizes=fixed, share=0.2, variants=())


def test_every_length(examination: Examination) -> None:
    """Every length of an axis up to 34, and those around and between powers of two, gives what its inputs give."""

    def check(trial: Trial) -> None:
        trial.enclosed(trial.call().results[0])

    axes = _axes(examination)
    parameters = _first(examination)
    lengths = (*range(1, 35), 40, 47, 48, 63, 64, 65, 96, 127, 128, 129, 192, 255, 256, 257)
    for axis in axes:
        sweep = [{**dict.fromkeys(axes, 3), axis: length} for length in lengths]
        examination.for_all(check, sizes=sweep, fixed=parameters, variants=(), examples=1)


def test_equal_axes(examination: Examination) -> None:
    """Where all axes have one length, no axis is taken for another."""

    def check(trial: Trial) -> None:
        trial.enclosed(trial.call().results[0])

    for length in (2, 32, 64):
        sizes = dict.fromkeys(_axes(examination), length)
        examination.for_all(check, sizes=sizes, share=0.3, variants=_granularity(examination))


def _has_streams(implementation: Implementation) -> bool:
    return stream_of(implementation.backend.exchange()) is not None


@pytest.mark.applies(to=_has_streams)
def test_side_stream(examination: Examination) -> None:
    """On another stream than the default one the results are the same."""
    examination.for_all(lambda trial: trial.enclosed(trial.call(side_stream=True).results[0]), variants=())


def _shares_axes(implementation: Implementation) -> bool:
    arguments = implementation.operation.arguments
    return any(
        set(one.shape(parameters)) & set(other.shape(parameters)) - set(implementation.operation.derived)
        for parameters in implementation.operation.combinations(implementation.supports, tuple(implementation.supports))
        for one, other in combinations(arguments, 2)
    )


@pytest.mark.applies(to=_shares_axes)
def test_wrong_shape(examination: Examination) -> None:
    """An argument that is one element short along an axis is an error, not a read past its end."""

    def check(trial: Trial) -> None:
        case = trial.case
        choices = [
            (argument.name, axis)
            for argument in case.operation.arguments
            if (array := case.arrays[argument.name]) is not None
            for axis in range(array.ndim)
            if array.shape[axis] >= 4 and trial.shared_axis(argument, axis)
        ]
        if not choices:
            return
        name, axis = trial.draw(st.sampled_from(choices))
        array = case.array(name)
        short = trial.replaced(name, np.delete(array, -1, axis=axis))
        reply = trial.call(short, lenient=True, expect_results=False)
        trial.examination.tally.count(short, 1, 0.0, True)
        if not reply.raised:
            raise Violation(
                f"accepted {name} of shape {short.array(name).shape}, where {array.shape} belongs to the other "
                "arguments: must raise",
                short,
            )

    examination.for_all(check, variants=_granularity(examination))


def _has_groups(implementation: Implementation) -> bool:
    operation = implementation.operation
    combinations = operation.combinations(implementation.supports, tuple(implementation.supports))
    return any(operation.multiples(parameters) for parameters in combinations)


@pytest.mark.applies(to=_has_groups)
def test_undivided_group(examination: Examination) -> None:
    """A group or block that does not divide the axis is an error; the last elements are never left out in silence."""

    def check(trial: Trial) -> None:
        case = trial.case
        broken = {axis: length for axis, length in case.operation.multiples(case.parameters).items() if length > 1}
        if not broken:
            return
        axis = trial.draw(st.sampled_from(sorted(broken)))
        short = case.take(axis, slice(0, case.sizes[axis] - 1))
        reply = trial.call(short, lenient=True, expect_results=False)
        trial.examination.tally.count(short, 1, 0.0, True)
        if not reply.raised:
            raise Violation(
                f"accepted {axis}={short.sizes[axis]}, which is no multiple of {broken[axis]}: must raise", short
            )

    examination.for_all(check, variants=_granularity(examination), share=2.0)


def test_wrong_type(examination: Examination) -> None:
    """An argument of another type than declared is an error, or gives what its values give in the right type."""

    def check(trial: Trial) -> None:
        case = trial.case
        found = {a.name: wrong_type(case, a.name) for a in case.operation.arguments}
        wider = {name: array for name, array in found.items() if array is not None}
        if not wider:
            trial.examination.tally.count(case, 0, 0.0, True)
            return
        name = trial.draw(st.sampled_from(list(wider)))
        wide = trial.replaced(name, wider[name])
        reply = trial.call(wide, lenient=True, expect_results=False)
        trial.examination.tally.count(wide, 0, 0.0, True)
        if not reply.raised and not reply.malformed and reply.results:
            trial.enclosed(reply.results[0], what=f"with {name} as {wide.array(name).dtype} ")

    examination.for_all(check, regime="exact", variants=())


def _scales(implementation: Implementation) -> list[str]:
    return [a.name for a in implementation.operation.arguments if a.name.endswith("scale")]


@pytest.mark.applies(to=_scales)
def test_invalid_scale(examination: Examination) -> None:
    """A NaN, negative, zero or infinite scale is an error, or gives codes or numbers; no crash, no stray write."""
    scales = _scales(examination.implementation)

    def check(trial: Trial) -> None:
        present = [name for name in scales if trial.case.arrays[name] is not None]
        if not present:
            trial.examination.tally.count(trial.case, 0, 0.0, True)
            return
        name = trial.draw(st.sampled_from(present))
        bad = trial.draw(st.sampled_from([np.nan, -1.0, 0.0, np.inf]))
        array = trial.case.array(name).copy()
        code = float_codes(np.array(bad), trial.case.format(name).name)
        array[...] = np.where(np.arange(array.size).reshape(array.shape) == array.size // 2, code, array)
        trial.call(trial.replaced(name, array), lenient=True)
        trial.examination.tally.count(trial.case, array.size, 0.0, True)

    examination.for_all(check, variants=())


#: Elements along an axis that are as many as in a layer of a large model, and no round number.
_LONG = {"M": 517, "N": 16411, "K": 16411, "H": 8203, "W": 2053, "B": 9433}


def _squared(implementation: Implementation) -> set[str]:
    """Return the axes that an argument has twice."""
    chosen = next(implementation.operation.combinations(implementation.supports, tuple(implementation.supports)))
    shapes = [argument.shape(chosen) for argument in implementation.operation.arguments]
    return {symbol for shape in shapes for symbol in shape if shape.count(symbol) > 1}


def _plain_axes(implementation: Implementation) -> bool:
    chosen = next(implementation.operation.combinations(implementation.supports, tuple(implementation.supports)))
    symbols = {s for a in implementation.operation.arguments if a.present(chosen) for s in a.shape(chosen)}
    return symbols - set(implementation.operation.derived) <= set(_LONG)


@pytest.mark.applies(to=_plain_axes)
def test_long_axes(examination: Examination) -> None:
    """One axis as long as in a large model, the others short: nothing changes beyond some length."""
    axes = _axes(examination)
    for axis in axes:
        if axis in _squared(examination.implementation):
            continue  # so long a square would not fit
        sizes = dict.fromkeys(axes, 2) | {axis: _LONG[axis]}
        examination.for_all(lambda trial: trial.enclosed(trial.call().results[0]), sizes=sizes, variants=(), examples=2)


@pytest.mark.exhaustive
def test_more_than_two_to_the_31_elements(examination: Examination) -> None:
    """Beyond 2**31 elements every repetition of the inputs gives the results of the first: indices have 64 bits."""

    def check(trial: Trial) -> None:
        if trial.implementation.random:
            raise Refused("results are random, so repetitions differ")
        axes = [axis for axis in trial.independent_axes() if axis in trial.case.operation.results[0].shape(
            trial.case.parameters)]  # fmt: skip
        if not axes:
            raise Refused("no axis is independent, so none can be repeated")
        repetitions = (2**31 + 2**20) // trial.largest() + 1
        needed = 2.5 * trial.largest_bytes() * repetitions  # buffers and snapshots, results and copies
        if needed > psutil.virtual_memory().available:
            raise Refused(f"needs about {needed / 2**30:.0f} GiB of memory")
        reply = trial.call(tile=(axes[0], repetitions), lenient=True)
        if "memory" in (reply.raised or "").lower():
            raise Refused(f"the kernel ran out of memory: {reply.raised}")
        observed(reply, trial.case)
        trial.enclosed(reply.results[0])
        if reply.unequal_tiles:
            tile = reply.unequal_tiles[0]
            raise Violation(
                f"repetition {tile} of {repetitions} along {axes[0]} differs from the first "
                f"({len(reply.unequal_tiles)} do)",
                trial.case,
            )

    sizes = {"M": 64, "K": 4096, "N": 4096} if "M" in _axes(examination) else {"N": 1 << 16}
    if "N" in _axes(examination) and "M" in _axes(examination):
        sizes["K"] = 2
    examination.for_all(check, sizes=sizes, variants=(), examples=1)


def _first(examination: Examination) -> dict[str, Any]:
    """Return the first supported combination of parameters."""
    implementation = examination.implementation
    return next(implementation.operation.combinations(implementation.supports, tuple(implementation.supports)))


def _axes(examination: Examination) -> list[str]:
    arguments, parameters = examination.implementation.operation.arguments, _first(examination)
    symbols = [s for a in arguments if a.present(parameters) for s in a.shape(parameters)]
    return [s for s in dict.fromkeys(symbols) if s not in examination.implementation.operation.derived]


def _granularity(examination: Examination) -> tuple[str, ...]:
    return ("granularity",) if "granularity" in examination.implementation.supports else ()


def _free_width(examination: Examination) -> bool:
    """Whether K may have any length: no groups must divide it."""
    return "K" in _axes(examination) and not _has_groups(examination.implementation)
