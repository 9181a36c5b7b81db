"""Codebooks: every code, every boundary, degenerate blocks, what is nearest and what is a mean."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Trial
from lowbit_cts.conformance.fills import float_codes, neighbours
from lowbit_cts.conformance.strategies.codebooks import points
from lowbit_cts.kernels import Case, Implementation
from lowbit_cts.reference.codebooks import CODEBOOKS, decode_codes
from lowbit_cts.reference.formats import decode, float_format

_MAX = float(np.finfo(np.float32).max)


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _once(examination: Examination, chosen: dict[str, Any], arrays: dict[str, Any], check: Any = _enclosed) -> None:
    examination.once(check, Case(examination.implementation.operation, chosen, arrays, {}))


# quantize_blockwise -------------------------------------------------------------------------------------------------


def _rows(
    quotients: np.ndarray,
    absmax: float,
    block: int,
    format: str,
    steps: tuple[int, ...],
    signs: tuple[int, ...] = (1, -1),
) -> np.ndarray:
    """Return codes of blocks, (M, 2 * block): quotients times the absmax, and their neighbours.

    The absmax is the first of every block, of signs in turn.
    """
    fmt = float_format(format)
    exact = [neighbours(absmax * quotients, fmt, np.full(quotients.shape, step)) for step in steps]
    x = np.unique(np.clip(decode(np.concatenate(exact), fmt), -absmax, absmax))
    x = np.append(x, -0.0)
    width = max(1, block - 1)
    x = np.resize(x, (-(-x.size // (2 * width)) * 2, width))
    if block > 1:
        x = np.concatenate([absmax * np.resize(signs, len(x))[:, None], x], axis=1)
    return float_codes(x.reshape(-1, 2 * block), format)


@pytest.mark.operation("quantize_blockwise")
def test_every_boundary(examination: Examination) -> None:
    """Every value of the codebook, every middle between two, exact and rounded, and their neighbours get their code."""
    for chosen in examination.combinations("codebook", "input_format"):
        format = chosen["input_format"]
        scales = (1.0, 2.0**-7, 0.3, 1.7, 300.0)
        for absmax in decode(float_codes(np.array(scales), format), float_format(format)):
            x = _rows(points(CODEBOOKS[chosen["codebook"]]), absmax, chosen["block_size"], format, (-2, -1, 0, 1, 2))
            _once(examination, chosen, {"x": x})


def _without_slack(implementation: Implementation) -> bool:
    return implementation.semantics.slack == 0


@pytest.mark.operation("quantize_blockwise")
@pytest.mark.applies(to=_without_slack)
def test_round_trip(examination: Examination) -> None:
    """What a code stands for, times the absmax of its block, a power of two, gets a code of that value again."""

    def check(trial: Trial) -> None:
        found = trial.call().results[0]
        trial.enclosed(found)
        values = CODEBOOKS[trial.case.parameters["codebook"]]
        again = decode_codes(np.minimum(found["codes"], values.size - 1), values) * 0.25
        wrong = np.argwhere(again != trial.case.array("x"))
        if wrong.size:
            at = tuple(int(i) for i in wrong[0])
            x = float(trial.case.array("x")[at])
            raise Violation(f"{x!r} is a value times 0.25 and comes back as {float(again[at])!r}", trial.case, index=at)

    for chosen in examination.combinations("codebook"):
        if chosen["input_format"] == "float32":
            x = _rows(CODEBOOKS[chosen["codebook"]].astype(float), 0.25, chosen["block_size"], "float32", (0,), (1,))
            _once(examination, chosen, {"x": x}, check)


def _blocks_beside(chosen: dict[str, Any], rows: list[np.ndarray]) -> np.ndarray:
    """Return codes of a matrix: each of the blocks between two ordinary ones."""
    block = chosen["block_size"]
    ordinary = np.linspace(-1, 0.9, block)
    x = np.stack([np.concatenate([ordinary, np.resize(row, block), 3 * ordinary]) for row in rows])
    return float_codes(x, chosen["input_format"])


@pytest.mark.operation("quantize_blockwise")
def test_zero_blocks(examination: Examination) -> None:
    """A block of zeros, of either sign, has absmax 0 and the code that zero_scale says; its neighbours have theirs."""
    for chosen in examination.combinations("codebook", "input_format", "block_size"):
        rows = [np.array([0.0]), np.array([-0.0]), np.array([0.0, -0.0, -0.0])]
        _once(examination, chosen, {"x": _blocks_beside(chosen, rows)})


@pytest.mark.operation("quantize_blockwise")
def test_zero_stays_zero(examination: Examination) -> None:
    """A zero beside other numbers gets a code of zero, which every one of these codebooks has."""

    def check(trial: Trial) -> None:
        found = trial.call().results[0]
        trial.enclosed(found)
        values = CODEBOOKS[trial.case.parameters["codebook"]]
        numbers = decode_codes(np.minimum(found["codes"], values.size - 1), values)
        wrong = np.argwhere((numbers != 0) & (trial.case.array("x") == 0))
        if wrong.size:
            at = tuple(int(i) for i in wrong[0])
            message = (
                f"codes[{at[0]}, {at[1]}], of a zero, is {int(found['codes'][at])}, which is {float(numbers[at])!r}"
            )
            raise Violation(f"{message}, must be a code of 0", trial.case, index=at)

    for chosen in examination.combinations("codebook"):
        rows = [np.array([1.0, 0.0, -0.0]), np.array([0.0, -7.0, -0.0, 0.0, 0.1])]
        if chosen["input_format"] == "float32" and chosen["block_size"] >= 8:
            _once(examination, chosen, {"x": _blocks_beside(chosen, rows)}, check)


@pytest.mark.operation("quantize_blockwise")
def test_one_number_in_a_block(examination: Examination) -> None:
    """A block with one number is 1 or -1 there and 0 elsewhere, wherever in the block the number is."""
    for chosen in examination.combinations("codebook", "block_size"):
        block = chosen["block_size"]
        places = np.unique(np.concatenate([np.arange(min(block, 40)), block - 1 - np.arange(min(block, 40))]))
        x = np.zeros((places.size, 2, block))
        x[np.arange(places.size), 0, places], x[np.arange(places.size), 1, places[::-1]] = -2.5, 0.75
        _once(examination, chosen, {"x": float_codes(x.reshape(places.size, -1), chosen["input_format"])})


@pytest.mark.operation("quantize_blockwise")
def test_magnitudes_of_blocks(examination: Examination) -> None:
    """Blocks of every power of two up to the largest number, each beside one of another magnitude."""
    for chosen in examination.combinations("codebook", "input_format"):
        fmt = float_format(chosen["input_format"])
        exponents = np.arange(max(fmt.minimum_exponent, -100), fmt.maximum_exponent)
        pattern = np.resize([1.0, -0.6, 0.3, -0.1, 0.02], chosen["block_size"])
        x = np.concatenate([2.0**exponents, 2.0 ** exponents[::-1]]).reshape(-1, 2)
        x = x[:, :, None] * pattern
        x[-1, 0] = pattern * fmt.maximum
        _once(examination, chosen, {"x": float_codes(x.reshape(len(x), -1), chosen["input_format"])})


@pytest.mark.operation("quantize_blockwise")
def test_tiny_blocks(examination: Examination) -> None:
    """Blocks of next to nothing, subnormal numbers among them, are divided as zero_scale says."""
    for chosen in examination.combinations("codebook"):
        if chosen["input_format"] == "float16":
            continue  # its smallest number is far above
        sizes = (2.0**-149, 3 * 2.0**-149, 1e-42, 1e-39, 2.0**-127, 1e-38, 2.0**-126, 1.5e-38, 1e-36, 2.0**-100)
        rows = [np.array([-0.6, 1.0, 0.0, 0.25, -0.02]) * size for size in sizes]
        _once(examination, chosen, {"x": _blocks_beside(chosen, rows)})


@pytest.mark.operation("quantize_blockwise")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf], ids=str)
def test_what_is_not_finite_stays_in_its_block(examination: Examination, bad: float) -> None:
    """A NaN or an infinity may spoil the codes and the absmax of its block, and of no other."""

    def check(trial: Trial) -> None:
        block, case = trial.case.parameters["block_size"], trial.case
        clean, spoilt = trial.call(case, _with_a_bad_element(case, bad)).results
        elsewhere = np.ones(case.array("x").shape, bool)
        elsewhere[len(elsewhere) // 2, block : 2 * block] = False
        for name, step in (("codes", 1), ("absmax", block)):
            one, other = (np.where(elsewhere[:, ::step], found[name], 0) for found in (clean, spoilt))
            trial.identical({name: one}, {name: other}, f"a block beside one with {bad}")

    for chosen in examination.combinations("codebook", "input_format"):
        x = _blocks_beside(chosen, [np.array([0.5, -0.2])] * 3)
        _once(examination, chosen, {"x": x}, check)


def _with_a_bad_element(case: Case, bad: float) -> Case:
    x = case.array("x").copy()
    x[len(x) // 2, case.parameters["block_size"]] = float_codes(np.array([bad]), case.parameters["input_format"])[0]
    return replace(case, arrays={"x": x})


@pytest.mark.operation("quantize_blockwise", "dequantize_blockwise")
def test_many_blocks_in_a_row(examination: Examination) -> None:
    """Long rows of many blocks, each of another absmax: no neighbour's, and in the last block as in the first."""
    for chosen in examination.combinations("codebook", "block_size"):
        blocks, block = 67, chosen["block_size"]
        absmax = np.exp2(np.random.default_rng(blocks).uniform(-6, 6, (2, blocks))).astype(np.float32)
        table = CODEBOOKS[chosen["codebook"]]
        codes = np.resize(np.arange(table.size), (2, blocks * block)).astype(np.uint8)
        if examination.implementation.operation.name == "dequantize_blockwise":
            _once(examination, chosen, {"codes": codes, "absmax": absmax})
        else:
            x = table[codes] * np.repeat(absmax, block, axis=1)
            _once(examination, chosen, {"x": float_codes(x, chosen["input_format"])})


# dequantize_blockwise -----------------------------------------------------------------------------------------------


@pytest.mark.operation("dequantize_blockwise")
def test_every_code(examination: Examination) -> None:
    """Every code at every place of two neighbours, beside absmax from the smallest to the largest."""
    for chosen in examination.combinations("codebook", "output_format"):
        table, block = CODEBOOKS[chosen["codebook"]], chosen["block_size"]
        rows = np.stack([np.roll(np.arange(table.size), -turn) for turn in (0, 1, table.size // 2)])
        rows = np.resize(rows, (3, -(-max(rows.size // 3, 2 * block) // block) * block)).astype(np.uint8)
        for absmax in (1.0, 0.1, 1.5e-5, 77.7, 1e-30, 1e30):
            scales = np.full((3, rows.shape[1] // block), absmax, np.float32)
            scales[:, 1::2] *= np.float32(3)
            _once(examination, chosen, {"codes": rows, "absmax": scales})


@pytest.mark.operation("dequantize_blockwise")
def test_absmax_at_the_ends_of_the_range(examination: Examination) -> None:
    """An absmax of zero gives zeros, the largest one the largest numbers, that of float16 Inf where it is beyond."""
    _each_absmax(examination, [0.0, 1e-30, _MAX, 1e38, 65504.0, 65520.0, 7e4, 1.0])


@pytest.mark.operation("dequantize_blockwise")
def test_subnormal_products(examination: Examination) -> None:
    """Products below the smallest normal number of the output are rounded, and not flushed to zero."""
    _each_absmax(examination, [2.0**-149, 1e-40, 2.0**-126, 1e-37, 6e-8, 3e-8, 2.0**-14, 1e-6])


def _each_absmax(examination: Examination, scales: list[float]) -> None:
    """Hold the kernel to blocks of every code beside each absmax."""
    for chosen in examination.combinations("codebook", "output_format"):
        table, block = CODEBOOKS[chosen["codebook"]], chosen["block_size"]
        width = -(-table.size // block)  # blocks that hold every code
        codes = np.tile(np.resize(np.arange(table.size), width * block), (1, len(scales)))
        absmax = np.repeat(np.array([scales], np.float32), width, axis=1)
        _once(examination, chosen, {"codes": codes.astype(np.uint8), "absmax": absmax})


@pytest.mark.operation("dequantize_blockwise")
@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
def test_an_absmax_that_is_not_finite_stays_in_its_block(examination: Examination, bad: float) -> None:
    """A NaN or an infinite absmax spoils its own block alone."""

    def check(trial: Trial) -> None:
        case, block = trial.case, trial.case.parameters["block_size"]
        absmax = case.array("absmax").copy()
        absmax[len(absmax) // 2, 1] = bad
        clean, spoilt = trial.call(case, trial.replaced("absmax", absmax)).results
        elsewhere = np.ones(clean["y"].shape, bool)
        elsewhere[len(elsewhere) // 2, block : 2 * block] = False
        kept = [np.where(elsewhere, found["y"], np.zeros_like(found["y"])) for found in (clean, spoilt)]
        trial.identical({"y": kept[0]}, {"y": kept[1]}, f"a block beside one with absmax {bad}")

    for chosen in examination.combinations("codebook", "output_format"):
        codes = np.resize(np.arange(CODEBOOKS[chosen["codebook"]].size), (3, 3 * chosen["block_size"]))
        absmax = np.array([[1.0, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)
        _once(examination, chosen, {"codes": codes.astype(np.uint8), "absmax": absmax}, check)


@pytest.mark.operation("dequantize_blockwise", "double_dequantize")
def test_an_absmax_too_few(examination: Examination) -> None:
    """Without an absmax for the last block a call must raise, and not read past the end of the others."""

    def check(trial: Trial) -> None:
        name = "absmax" if "absmax" in trial.case.arrays else "nested_absmax"
        array = trial.case.array(name)
        short = trial.replaced(name, array[..., :-1])
        call = trial.call(short, lenient=True, expect_results=False)
        trial.examination.tally.count(short, 1, 0.0, True)
        if not call.raised:
            raise Violation(f"accepted {array.shape[-1] - 1} {name} for {array.shape[-1]} blocks: must raise", short)

    examination.for_all(check, sizes={"M": 3, "K": 1024, "N": 1000}, variants=())


# double_quantize, double_dequantize ---------------------------------------------------------------------------------


@pytest.mark.operation("double_quantize")
def test_short_last_blocks(examination: Examination) -> None:
    """A last block of any length, of a single number too, is divided and searched like a whole one."""
    for chosen in examination.combinations("block_size"):
        block = chosen["block_size"]
        for length in (1, 2, block - 1, block, block + 1, block + 2, 3 * block - 1):
            if length < 1:
                continue
            quotients = np.resize(points(CODEBOOKS["dynamic8"]), 3 * block)[:length]
            for step in (0, 1, -1):
                absmax = neighbours(quotients * 0.7, float_format("float32"), np.full(length, step))
                absmax[-1] = np.float32(1.3)  # the last block has an absmax of its own
                _once(examination, chosen, {"absmax": absmax, "offset": np.zeros((), np.float32)})


@pytest.mark.operation("double_quantize")
def test_equal_absmax(examination: Examination) -> None:
    """Where every absmax is the offset, the differences are blocks of zeros: what zero_scale says."""
    for chosen in examination.combinations("block_size"):
        absmax = np.full(chosen["block_size"] + 3, 2.6, np.float32)
        absmax[: chosen["block_size"]] *= np.float32(1.5)
        for offset in (absmax[0], absmax[-1], np.float32(0)):
            _once(examination, chosen, {"absmax": absmax, "offset": np.asarray(offset)})


@pytest.mark.operation("double_quantize")
def test_an_offset_far_away(examination: Examination) -> None:
    """An offset below, above and far beyond all absmax is subtracted in float32, whatever sign remains."""
    for chosen in examination.combinations("block_size"):
        absmax = np.linspace(0.1, 5, 2 * chosen["block_size"] + 5).astype(np.float32)
        for offset in (-2.0, 0.05, 4.99, 7.3, 1e4, 1e9):
            _once(examination, chosen, {"absmax": absmax, "offset": np.asarray(np.float32(offset))})


@pytest.mark.operation("double_dequantize")
def test_every_nested_code(examination: Examination) -> None:
    """All 256 codes beside nested absmax and offsets of many magnitudes; product and sum round as declared."""
    for chosen in examination.combinations("block_size"):
        block = chosen["block_size"]
        count = -(-(2 * 256 + 7) // block) * block + 3
        codes = np.resize(np.concatenate([np.arange(256), np.arange(256)[::-1]]), count).astype(np.uint8)
        for offset in (0.0, 2.6, 0.3, 1e-3, 1e6):
            nested = np.exp2(np.linspace(-8, 8, -(-count // block))).astype(np.float32)
            arrays = {"codes": codes, "nested_absmax": nested, "offset": np.asarray(np.float32(offset))}
            _once(examination, chosen, arrays)


# assign_codebook ----------------------------------------------------------------------------------------------------

_EVEN = np.arange(-4, 5) / 4

#: Codebooks, by what is particular about them.
_VALUES: dict[str, np.ndarray] = {
    "in order": _EVEN,
    "backwards": _EVEN[::-1],
    "in no order": _EVEN[[3, 8, 0, 5, 1, 7, 2, 6, 4]],
    "equal values": np.array([1.0, -1.0, 0.5, 1.0, 0.5, -1.0, 1.0]),
    "all equal": np.full(5, 0.5),
    "two zeros": np.array([0.0, 1.0, -0.0, -1.0]),
    "zeros the other way": np.array([-0.0, 1.0, -1.0, 0.0]),
    "three zeros": np.array([0.5, -0.0, 0.0, -0.0, -1.0]),
    "one value": np.array([0.3]),
    "two values": np.array([2.0, -1.0]),
    "one sign": np.array([3.0, 1.0, 2.0, 7.0]),
    "far apart": np.array([1e-20, 1e10, -1e-10, -1e20, 1.0]),
    "close together": 1 + np.arange(5) * 2.0**-23,
    **CODEBOOKS,
    "dynamic8 in no order": np.random.default_rng(0).permutation(CODEBOOKS["dynamic8"]),
}


def _each_codebook(x: Callable[[np.ndarray], np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for values in _VALUES.values():
        codebook = values.astype(np.float32)
        yield {"x": np.asarray(x(codebook), np.float32), "codebook": codebook}


@pytest.mark.operation("assign_codebook")
def test_every_value_and_every_middle(examination: Examination) -> None:
    """Every value, every middle of two and their neighbours get their code: in any order, with equal values, or one."""

    def x(codebook: np.ndarray) -> np.ndarray:
        at = points(codebook)
        return np.concatenate([neighbours(at, float_format("float32"), np.full(at.shape, s)) for s in (-1, 0, 1)])

    for arrays in _each_codebook(x):
        _once(examination, {}, arrays)


@pytest.mark.operation("assign_codebook")
def test_beyond_the_ends(examination: Examination) -> None:
    """Numbers beyond the least and the greatest value get the code of that one, up to the largest floats."""
    beyond = np.array([1.5, 8.0, 1e4, 1e12, 1e30])
    for arrays in _each_codebook(lambda c: np.concatenate([c.max() + beyond, c.min() - beyond])):
        _once(examination, {}, arrays)


@pytest.mark.operation("assign_codebook")
def test_infinities_and_huge_numbers(examination: Examination) -> None:
    """+Inf and the largest float get the code of the greatest value, -Inf and the least float that of the least."""
    for arrays in _each_codebook(lambda c: np.array([np.inf, 0.1, -np.inf, 3.4e38, -3.4e38, 0.2])):
        _once(examination, {}, arrays)


@pytest.mark.operation("assign_codebook")
def test_nan_gets_some_code(examination: Examination) -> None:
    """A NaN gets a code of the codebook, whichever, and changes none beside it."""
    for arrays in _each_codebook(lambda c: np.array([0.1, np.nan, -0.7, np.nan, 5.0, 0.0])):
        _once(examination, {}, arrays)


@pytest.mark.operation("assign_codebook")
def test_zeros_and_subnormals(examination: Examination) -> None:
    """Zeros of both signs and numbers next to nothing; among several zeros the declared one."""
    tiny = np.array([0.0, 2.0**-149, 1e-40, 2.0**-126, 1e-20])
    for arrays in _each_codebook(lambda c: np.concatenate([tiny, -tiny, c])):
        _once(examination, {}, arrays)


# update_codebook ----------------------------------------------------------------------------------------------------


def _samples(codes: list[int] | np.ndarray, codebook: Any, x: Any = None) -> dict[str, np.ndarray]:
    codes = np.asarray(codes, np.uint8)
    numbers = (np.arange(codes.size) % 13 - 5) / 4 if x is None else np.asarray(x)
    return {"x": numbers.astype(np.float32), "codes": codes, "codebook": np.asarray(codebook, np.float32)}


@pytest.mark.operation("update_codebook")
def test_empty_clusters(examination: Examination) -> None:
    """A value to which no sample went becomes what empty_cluster says: the first, the last, all but one, several."""
    codebook = np.array([-2.0, 7.0, 0.5, 3.0, 100.0])
    for codes in ([1, 2, 3, 4] * 5, [0, 1, 2, 3] * 5, [2] * 9, [0, 4] * 6, [3], [1, 1, 2, 2]):
        _once(examination, {}, _samples(codes, codebook))


@pytest.mark.operation("update_codebook")
def test_equally_far_samples(examination: Examination) -> None:
    """Where empty clusters take the farthest samples, of equally far ones the first goes to the first empty cluster."""
    codebook = np.array([0.0, 50.0, 60.0, 70.0])
    for x in ([1.0, -1.0, 1.0, -1.0, 0.0], [0.0, 2.0, -2.0], [3.0, 3.0, 3.0, 3.0], [0.0, 0.0, 0.0, 0.0], [5.0]):
        _once(examination, {}, _samples([0] * len(x), codebook, x))


@pytest.mark.operation("update_codebook")
def test_clusters_of_every_size(examination: Examination) -> None:
    """One, two, three, ... samples of a code, in runs and scattered: every sample counts once, in its own cluster."""
    runs = np.repeat(np.arange(40), np.arange(1, 41))
    scattered = np.random.default_rng(1).permutation(runs)
    for codes in (runs, runs[::-1], scattered):
        _once(examination, {}, _samples(codes, np.zeros(40)))


@pytest.mark.operation("update_codebook")
def test_all_256_codes(examination: Examination) -> None:
    """Every code that a byte holds has its own cluster, and a codebook of one value has them all."""
    codes = np.random.default_rng(2).permutation(np.resize(np.arange(256), 3000))
    _once(examination, {}, _samples(codes, np.linspace(-1, 1, 256)))
    _once(examination, {}, _samples(np.zeros(3000), [3.0]))


@pytest.mark.operation("update_codebook")
def test_many_samples(examination: Examination) -> None:
    """The mean of 2**17 equal numbers is that number, where their sums are exact, and near it where they are not."""
    for value in (0.125, 0.1, 3.3):
        codes = np.resize([0, 1, 1, 1], 1 << 17)
        _once(examination, {}, _samples(codes, [0.0, 1.0], np.full(codes.size, value)))


@pytest.mark.operation("update_codebook")
def test_cancelling_samples(examination: Examination) -> None:
    """Sums of large numbers of both signs that cancel lose no more than their additions may."""
    big = np.array([2.0**20, 1.0, -(2.0**20), 0.5, 2.0**20, -(2.0**20), 0.25, -1.0])
    codes = np.resize(np.repeat([0, 1], 8), 64)
    _once(examination, {}, _samples(codes, [0.0, 1.0, 2.0], np.resize(big, 64)))
