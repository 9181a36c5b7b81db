"""GGUF blocks: every byte and scale decoded, every tie and its neighbours encoded, degenerate blocks, and quality."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Refused, Trial
from lowbit_cts.conformance.strategies.gguf import of_bytes, packed, representable, with_ties
from lowbit_cts.kernels import Case, ScaleSearch
from lowbit_cts.reference.gguf.admissible import SEARCHED, distance_ratio
from lowbit_cts.reference.gguf.blocks import dequantize
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS, BlockFormat

Blocks = Callable[[np.random.Generator, BlockFormat], np.ndarray]


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _cases(
    examination: Examination, made: Blocks, wanted: Callable[[BlockFormat], Any], in_a_row: int, what: str
) -> Iterator[Case]:
    """Yield for each supported and wanted type (and output) a case of blocks: of bytes, or of numbers to be such."""
    implementation = examination.implementation
    name = implementation.operation.arguments[0].name
    supported = implementation.operation.combinations(implementation.supports, tuple(implementation.supports))
    chosen = [parameters for parameters in supported if wanted(BLOCK_FORMATS[parameters["type"]])]
    if not chosen:
        raise Refused("no type that it is about is declared as supported")
    for parameters in chosen:
        blocks = made(np.random.default_rng(14), BLOCK_FORMATS[parameters["type"]])
        if name == "x":
            blocks = blocks.astype(np.float32)
        rows = np.resize(blocks, (-(-len(blocks) // in_a_row), in_a_row * blocks.shape[1]))
        yield Case(implementation.operation, parameters, {name: rows}, {"blocks": what})


def _each(
    examination: Examination,
    made: Blocks,
    what: str,
    wanted: Callable[[BlockFormat], Any] = lambda fmt: True,
    check: Callable[[Trial], None] = _enclosed,
    in_a_row: int = 4,
) -> None:
    for case in _cases(examination, made, wanted, in_a_row, what):
        examination.once(check, case)


def _has_halves(fmt: BlockFormat) -> bool:
    return fmt.has("d") and fmt.name != "NVFP4"


def _is_nvfp4(fmt: BlockFormat) -> bool:
    return fmt.name == "NVFP4"


def _is_mxfp4(fmt: BlockFormat) -> bool:
    return fmt.name == "MXFP4"


def _searched(fmt: BlockFormat) -> bool:
    return fmt.name in SEARCHED


def _not_searched(fmt: BlockFormat) -> bool:
    return fmt.name not in SEARCHED


# Dequantization -----------------------------------------------------------------------------------------------------

_dequantizer = pytest.mark.operation("dequantize_gguf")


def _bytes_by_field(fmt: BlockFormat) -> np.ndarray:
    """Return for each byte of a block the field it belongs to; -1 where that is a float16 number."""
    numbers = [i if field.bits or field.trits else -1 for i, field in enumerate(fmt.fields)]
    return np.repeat(numbers, [field.bytes for field in fmt.fields])


def _with_halves(blocks: np.ndarray, fmt: BlockFormat, numbers: np.ndarray) -> np.ndarray:
    """Return blocks with these float16 numbers (count, float16 fields)."""
    places = np.flatnonzero(_bytes_by_field(fmt) < 0)
    blocks[:, places] = np.ascontiguousarray(numbers, "<f2").view(np.uint8).reshape(len(blocks), len(places))
    return blocks


def _halves_of(fmt: BlockFormat) -> int:
    return int((_bytes_by_field(fmt) < 0).sum()) // 2


@_dequantizer
def test_every_byte(examination: Examination) -> None:
    """Every byte of codes and scales takes all 256 values, so that every code is decoded at every place.

    But for those scales of MXFP4 and NVFP4 that are far from 1, or that other formats read otherwise.
    """

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        count = 512
        data = of_bytes(rng, count, fmt, bits=1)
        kept = fmt.scales if fmt.name in ("MXFP4", "NVFP4") else ()
        fields = _bytes_by_field(fmt)
        for place in np.flatnonzero(fields >= 0):
            if fmt.fields[fields[place]].name not in kept:  # other neighbours in the second 256 blocks
                data[:, place] = (np.arange(count) * (1 + 2 * (np.arange(count) // 256)) + 37 * place) % 256
        return data

    _each(examination, blocks, "every byte", in_a_row=1)


@_dequantizer
def test_every_scale(examination: Examination) -> None:
    """float16 scales and mins of every exponent and both signs, where no element leaves float16."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        significands = np.array([0, 1, 2, 341, 511, 512, 682, 1022, 1023])
        codes = (np.arange(1, 19)[:, None] << 10 | significands).ravel()  # up to 7.99
        codes = np.concatenate([codes, codes | 0x8000]).astype(np.uint16)
        numbers = np.stack([rng.permutation(codes) for _ in range(_halves_of(fmt))], axis=1).view(np.float16)
        return _with_halves(of_bytes(rng, len(codes), fmt), fmt, numbers)

    _each(examination, blocks, "scales of every exponent", _has_halves)


@_dequantizer
def test_large_scales(examination: Examination) -> None:
    """The largest float16 scales: in float16, elements beyond it are infinite, and the others as they are."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        numbers = rng.uniform(8, 65504, (64, _halves_of(fmt))) * rng.choice([-1, 1], (64, _halves_of(fmt)))
        numbers[:4] = 65504
        return _with_halves(of_bytes(rng, 64, fmt), fmt, numbers.astype(np.float16))

    _each(examination, blocks, "large scales", _has_halves)


@_dequantizer
def test_subnormal_scales(examination: Examination) -> None:
    """Zero, of both signs, and subnormal float16 scales and mins are the numbers that they are."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        codes = np.array([0, 1, 2, 3, 255, 256, 511, 512, 1022, 1023, 1024], np.uint16)
        codes = np.concatenate([codes, codes | np.uint16(0x8000)])
        numbers = np.stack([np.roll(codes, 5 * i) for i in range(_halves_of(fmt))], axis=1).view(np.float16)
        return _with_halves(of_bytes(rng, len(codes), fmt), fmt, numbers)

    _each(examination, blocks, "subnormal scales", _has_halves)


@_dequantizer
def test_infinite_and_nan_scales(examination: Examination) -> None:
    """Inf and NaN in a float16 scale or min give what float32 makes of them, in their own block only."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        special = np.array([np.inf, -np.inf, np.nan, -np.nan, 1, -1], np.float16)
        count = _halves_of(fmt)
        numbers = np.stack([column.ravel() for column in np.meshgrid(*[special] * count)], axis=1)
        return _with_halves(of_bytes(rng, len(numbers), fmt), fmt, numbers)

    _each(examination, blocks, "infinite and NaN scales", _has_halves)


def _of_scales(codes: np.ndarray) -> Blocks:
    """Return blocks of MXFP4 or NVFP4 whose scales take these codes, each group another."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        data = of_bytes(rng, len(codes), fmt)
        data[:, : fmt.fields[0].bytes] = np.stack([np.roll(codes, i) for i in range(fmt.fields[0].bytes)], axis=1)
        return data

    return blocks


@_dequantizer
def test_every_e8m0_scale(examination: Examination) -> None:
    """MXFP4's 253 scales from 2**-126 on are powers of two; in 16 bits, elements over- and underflow."""
    codes = np.arange(2, 255, dtype=np.uint8)
    _each(examination, _of_scales(codes), "every E8M0 scale", _is_mxfp4)


@_dequantizer
def test_ends_of_e8m0(examination: Examination) -> None:
    """MXFP4's scale 0 is 2**-127, 1 is 2**-126; 255, NaN in OCP MX, is 2**128, so that elements from 1 on overflow."""
    codes = np.array([0, 1, 255, 127], np.uint8)
    _each(examination, _of_scales(codes), "first and last E8M0 scales", _is_mxfp4)


@_dequantizer
def test_every_ue4m3_scale(examination: Examination) -> None:
    """NVFP4's scales are E4M3 numbers, subnormal ones among them."""
    codes = np.arange(0x7F, dtype=np.uint8)
    _each(examination, _of_scales(codes), "every E4M3 scale", _is_nvfp4)


@_dequantizer
def test_unused_ue4m3_scales(examination: Examination) -> None:
    """NVFP4's scale 0x7f, NaN in OFP8, is 0; bit 7 is not looked at, so that 0xff is 480."""
    codes = np.concatenate([[0x7F], np.arange(0x80, 0x100)]).astype(np.uint8)
    _each(examination, _of_scales(codes), "E4M3 codes that no quantizer writes", _is_nvfp4)


# Quantization: ties -------------------------------------------------------------------------------------------------

_quantizer = pytest.mark.operation("quantize_gguf")


@_quantizer
def test_every_tie(examination: Examination) -> None:
    """Numbers on levels and halfway between them, at scales that are powers of two: ties fall as declared."""
    _each(
        examination,
        lambda rng, fmt: with_ties(rng, representable(rng, 256, fmt, bits=1), fmt),
        "levels and middles",
        _not_searched,
    )


@_quantizer
def test_beside_every_tie(examination: Examination) -> None:
    """The floats beside a tie, and the tie, at scales of eight bits: trunc(x * (1 / d) + 8.5) rounds three times."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        parts = representable(rng, 512, fmt, bits=8)
        ties = with_ties(rng, parts, fmt).astype(np.float32)
        kept = ties == dequantize(packed(parts, fmt), fmt.name)
        step = np.where(kept, 0, rng.integers(-1, 1, ties.shape, endpoint=True))
        return np.where(step == 0, ties, np.nextafter(ties, np.where(step > 0, np.inf, -np.inf).astype(np.float32)))

    _each(examination, blocks, "beside middles", _not_searched, in_a_row=512)


@_quantizer
def test_near_ties_of_random_scales(examination: Examination) -> None:
    """Numbers within two last places of a tie of a float32 scale: codes come of that, not of the scale in float16."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        count = (1 << 14) // fmt.elements
        parts = representable(rng, count, fmt)
        if "m" in parts:  # near to it, x has not the bits
            parts["m"][::2] = 0
        scale = rng.uniform(1, 2, (count, 1)).astype(np.float32)
        x = with_ties(rng, parts, fmt).astype(np.float32) * scale
        return x * (1 + rng.integers(-2, 2, x.shape, endpoint=True) * 2.0**-23 * (rng.random(x.shape) < 0.5))

    _each(examination, blocks, "near ties of random scales", in_a_row=1)


@_quantizer
def test_first_of_the_largest_decides(examination: Examination) -> None:
    """Of elements of the same largest magnitude and opposite signs the first gets the outermost level of Q4_0, Q5_0."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        x = rng.uniform(-0.9, 0.9, (64, fmt.elements))
        places = np.argsort(rng.random(x.shape), axis=1)[:, :3]
        np.put_along_axis(x, places, rng.choice([-1.0, 1.0], places.shape), axis=1)
        return x * np.exp(rng.standard_normal((64, 1)))

    _each(examination, blocks, "several largest elements")


@_quantizer
def test_below_powers_of_two(examination: Examination) -> None:
    """Blocks whose largest element is among the last numbers below a power of two: floor(log2) of MXFP4.

    In float32 the logarithm of the largest number below 2**k rounds to k for 250 of 254 k.
    """

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        exponents = np.arange(-120, 14)
        x = rng.uniform(-1, 1, (3 * len(exponents), fmt.elements))
        x[:, 5] = 1 - np.array([1, 4, 60]).repeat(len(exponents)) * 2.0**-24
        return np.ldexp(x, np.tile(exponents, 3)[:, None])

    _each(examination, blocks, "below powers of two", _is_mxfp4)


# Quantization: degenerate blocks ------------------------------------------------------------------------------------


@_quantizer
def test_zero_blocks(examination: Examination) -> None:
    """Blocks, groups and rows of zeros have scales and codes of zeros, whatever stands beside them."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        x = np.abs(rng.standard_normal((32, fmt.groups, fmt.group))) * (rng.random((32, fmt.groups, 1)) < 0.5)
        x[::4] = 0
        return x.reshape(32, -1)

    _each(examination, blocks, "zero blocks and groups")


@_quantizer
def test_signs_of_zero(examination: Examination) -> None:
    """Blocks of negative zeros, and of zeros of both signs, alone and among numbers: the sign of a scale is ggml's."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        zeros = np.where(rng.random((32, fmt.elements)) < 0.5, 0.0, -0.0)
        zeros[:4] = -0.0
        return np.where(rng.random(zeros.shape) < np.where(np.arange(32) < 16, 0, 0.1)[:, None], 1.0, zeros)

    _each(examination, blocks, "zeros of both signs")


@_quantizer
def test_constant_and_distant_blocks(examination: Examination) -> None:
    """Blocks and groups of one number, and numbers so far from zero that float16 loses what differs in the min."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        x = rng.standard_normal((48, fmt.elements))
        x[:16] = x[:16, :1]
        x[16:32] = x[16:32].reshape(16, -1, 16)[..., :1].repeat(16, axis=2).reshape(16, -1)
        x[32:] = x[32:] * 10.0 ** -rng.integers(1, 7, (16, 1)) + rng.choice([-5, 5], (16, 1))
        return x

    _each(examination, blocks, "constant and distant blocks")


@_quantizer
def test_sparse_blocks(examination: Examination) -> None:
    """Blocks with a single element, at every place, and with an outlier beside small ones."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        places = np.eye(fmt.elements) * rng.choice([-1, 1], (fmt.elements, 1))
        outliers = places[:: max(1, fmt.elements // 32)] * 300 + rng.standard_normal((32, fmt.elements)) * 0.01
        return np.concatenate([places * 0.75, outliers])

    _each(examination, blocks, "single elements and outliers")


@_quantizer
def test_subnormal_scales_written(examination: Examination) -> None:
    """Numbers so small that the scale is subnormal in float16, or zero: codes come of the scale in float32."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        return np.ldexp(rng.standard_normal((96, fmt.elements)), np.repeat(np.arange(-44, -8, 3), 8)[:, None])

    _each(examination, blocks, "subnormal scales")


@_quantizer
def test_groups_about_the_least_magnitude(examination: Examination) -> None:
    """Groups of K-quants and IQ4 up to 1e-15 count as zero."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        size = np.float32(1e-15) * np.array([0.5, 1 - 2.0**-23, 1, 1 + 2.0**-22, 2, 100])
        x = rng.uniform(-1, 1, (48, fmt.groups, fmt.group))
        x[..., 3] = 1
        return (x * rng.choice(size, (48, fmt.groups, 1))).reshape(48, -1)

    _each(examination, blocks, "about 1e-15", _searched)


def _no_larger(trial: Trial) -> None:
    """Demand that elements decode to nothing larger than twice the largest of their block: |x - y| <= max|x|."""
    case, fmt = trial.case, BLOCK_FORMATS[trial.case.parameters["type"]]
    blocks = trial.call().results[0]["blocks"]
    x = case.array("x").astype(np.float64).reshape(-1, fmt.elements)
    with np.errstate(invalid="ignore"):
        error = np.abs(dequantize(blocks, fmt.name).astype(np.float64).reshape(x.shape) - x)
    wrong = ~(error <= np.abs(x).max(axis=1, keepdims=True))
    trial.examination.tally.count(case, x.size, 0.0, True)
    if wrong.any():
        raise _at(trial, fmt, wrong, "decodes to a number farther from x than zero is")


def _at(trial: Trial, fmt: BlockFormat, wrong: np.ndarray, what: str) -> Violation:
    """Return a violation at the first wrong element, `wrong` having the shape (blocks, elements)."""
    block, element = (int(i) for i in np.argwhere(wrong)[0])
    in_a_row = trial.case.sizes["K"] // fmt.elements
    row, at = divmod(block, in_a_row)
    x = trial.case.array("x").reshape(-1, fmt.elements)[block, element]
    place = f"element {at * fmt.elements + element} of row {row}, {x!r} in {fmt.name},"
    return Violation(
        f"{place} {what}; {int(wrong.sum())} of {wrong.size} elements do", trial.case, index=(row, at * fmt.bytes)
    )


@_quantizer
def test_smallest_numbers(examination: Examination) -> None:
    """Subnormal numbers, and those whose scale has no reciprocal in float32, decode to zero or something as small."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        x = np.ldexp(rng.uniform(-1, 1, (96, fmt.elements)), np.repeat(np.arange(-148, -120, 3)[:10], 10)[:96, None])
        return x.astype(np.float32)

    _each(examination, blocks, "subnormal numbers", check=_no_larger)


@_quantizer
def test_scales_beyond_float16(examination: Examination) -> None:
    """Numbers whose scale is beyond float16, where no search is: it is infinite, and codes are what they are."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        return np.ldexp(np.abs(rng.standard_normal((96, fmt.elements))) + 0.01, np.arange(14, 110)[:, None])

    _each(examination, blocks, "scales beyond float16", lambda fmt: _has_halves(fmt) and _not_searched(fmt))


@_quantizer
def test_saturation(examination: Examination) -> None:
    """Numbers beyond 6 * 448, the largest of NVFP4, become that; what rounds to a scale of 256 and more has 448."""

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        return np.ldexp(rng.uniform(-1, 1, (64, fmt.elements)), np.repeat(np.arange(8, 24), 4)[:, None])

    _each(examination, blocks, "beyond the largest scale", _is_nvfp4)


def _elsewhere(hurt: Callable[[np.ndarray], np.ndarray]) -> Callable[[Trial], None]:
    """Return a check that what stands in one block, given by `hurt`, changes no other; an error is an answer, too."""

    def check(trial: Trial) -> None:
        case, fmt = trial.case, BLOCK_FORMATS[trial.case.parameters["type"]]
        blocks = case.array("x").reshape(-1, fmt.elements)
        bad = np.arange(len(blocks)) % 3 == 1
        given = np.where(bad[:, None], hurt(blocks), blocks).astype(np.float32).reshape(case.array("x").shape)
        reply = trial.call(trial.replaced("x", given), lenient=True)
        trial.examination.tally.count(case, blocks.size, 0.0, True)
        if reply.raised:
            return
        expected = case.enclosures(trial.implementation.semantics)["blocks"].exact.astype(np.uint8)
        found = reply.results[0]["blocks"]
        patched = np.where(np.repeat(bad, fmt.bytes).reshape(found.shape), expected, found)
        trial.enclosed({"blocks": patched}, what="beside such a block ")

    return check


@_quantizer
def test_huge_numbers_stay_in_their_block(examination: Examination) -> None:
    """Finite numbers of 1e6 to 1e37 in a block of a K-quant or IQ4 change no other block, and end no process."""

    def hurt(blocks: np.ndarray) -> np.ndarray:
        return blocks * 10.0 ** (6 + np.arange(len(blocks)) * 32 // len(blocks))[:, None]

    _each(
        examination, lambda rng, fmt: rng.uniform(-1, 1, (64, fmt.elements)), "huge numbers", _searched,
        _elsewhere(hurt),
    )  # fmt: skip


@_quantizer
def test_nan_and_infinities_stay_in_their_block(examination: Examination) -> None:
    """A NaN or an infinity in a block is an error, or makes any bytes of it, and changes no other block."""

    def hurt(blocks: np.ndarray) -> np.ndarray:
        special = np.array([np.nan, np.inf, -np.inf])[np.arange(len(blocks)) // 3 % 3]
        return np.where(np.arange(blocks.shape[1]) == 7, special[:, None], blocks)

    _each(
        examination, lambda rng, fmt: rng.standard_normal((18, fmt.elements)), "NaN and infinities",
        check=_elsewhere(hurt),
    )  # fmt: skip


# Quantization: quality ----------------------------------------------------------------------------------------------


@_quantizer
def test_representable_numbers_come_back(examination: Examination) -> None:
    """Numbers that a block can hold, with the scales a quantizer begins with, decode to themselves.

    At those scales they have no error, so that a quantizer that minimizes one, whatever its weights, has none either.
    """

    def check(trial: Trial) -> None:
        fmt, x = BLOCK_FORMATS[trial.case.parameters["type"]], trial.case.array("x")
        blocks = trial.call().results[0]["blocks"]
        wrong = dequantize(blocks, fmt.name) != x
        trial.examination.tally.count(trial.case, x.size, 0.0, True)
        if wrong.any():
            raise _at(trial, fmt, wrong.reshape(-1, fmt.elements), "does not come back")

    def blocks(rng: np.random.Generator, fmt: BlockFormat) -> np.ndarray:
        return dequantize(packed(representable(rng, 256, fmt), fmt), fmt.name)

    _each(examination, blocks, "representable numbers", check=check)


@_quantizer
def test_codes_are_nearest(examination: Examination) -> None:
    """Given the scales of its block, no code but the one stored brings an element nearer, roundings of scales aside."""
    semantics = examination.implementation.semantics
    keeps_codes = semantics.scale_search is ScaleSearch.ONE_SHOT
    if keeps_codes and set(examination.implementation.supports["type"]) == {"IQ4_NL"}:
        raise Refused("with scale_search=one_shot codes are those that the scale was made from")

    def check(trial: Trial) -> None:
        name = trial.case.parameters["type"]
        if name == "IQ4_NL" and keeps_codes:
            return
        fmt = BLOCK_FORMATS[name]
        x = trial.case.array("x")
        ratio = distance_ratio(x, trial.call().results[0]["blocks"], name).reshape(-1, fmt.elements)
        wrong = ~(ratio <= 1)
        trial.examination.tally.count(trial.case, x.size, float(np.where(wrong, 0, ratio).max(initial=0)), True)
        if wrong.any():
            raise _at(trial, fmt, wrong, "has a nearer level under the scales stored")

    examination.for_all(check)
