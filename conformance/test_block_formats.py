"""MX and NVFP4: every code, every boundary of elements and of scales, and what NaN, Inf and nothing make of a block."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Refused, Trial
from lowbit_cts.conformance.fills import boundaries, float_codes, nans, neighbours
from lowbit_cts.conformance.strategies.block_formats import element_points, largest_element, largest_power
from lowbit_cts.kernels import Case, GlobalScaleRule, Implementation
from lowbit_cts.reference.formats import decode, float_format
from lowbit_cts.reference.mx import MX_BLOCK, decode_element_mx
from lowbit_cts.reference.nvfp4 import NVFP4_BLOCK

_BLOCK = {"quantize_mx": MX_BLOCK, "dequantize_mx": MX_BLOCK, "quantize_nvfp4": NVFP4_BLOCK}
_VARIED = ("format", "narrow_range", "input_format", "output_format", "levels")
_E4M3, _FLOAT32 = float_format("float8_e4m3fn"), float_format("float32")
_NAN, _INF = float("nan"), float("inf")

#: Where stochastic rounding is watched: fractions of the way to the next value, and how often; bounds are 7 standard
#: deviations.
_FRACTIONS = np.array([1 / 64, 1 / 4, 1 / 2, 3 / 4, 63 / 64])
_REPETITIONS = 1 << 13

_quantizers = pytest.mark.operation("quantize_mx", "quantize_nvfp4")
_quantizer_mx = pytest.mark.operation("quantize_mx")
_quantizer_nvfp4 = pytest.mark.operation("quantize_nvfp4")


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _variants(examination: Examination, *held: str) -> Iterator[dict[str, Any]]:
    """Yield every supported combination of the parameters, those `held` at their first supported value."""
    operation, supports = examination.implementation.operation, examination.implementation.supports
    varied = {name: values[:1] if name in held else values for name, values in supports.items()}
    yield from operation.combinations(varied, tuple(supports))


def _stored(implementation: Implementation, g: float) -> np.ndarray:
    """Return the global scale g as the declared semantics store it."""
    direct = implementation.semantics.global_scale_rule is GlobalScaleRule.AMAX_OVER_2688
    return np.array(g if direct else 1 / g, np.float32)


def _examine(
    examination: Examination,
    parameters: dict[str, Any],
    x: np.ndarray,
    what: Any,
    g: float = 1.0,
    check: Callable[[Trial], None] = _enclosed,
) -> None:
    """Examine a quantizer on codes of x, (M, K)."""
    implementation = examination.implementation
    arrays: dict[str, np.ndarray | None] = {"x": np.ascontiguousarray(x)}
    if "levels" in implementation.operation.parameters:
        arrays["global_scale"] = None if parameters["levels"] == "one" else _stored(implementation, g)
    examination.once(check, Case(implementation.operation, parameters, arrays, {"inputs": what}))


def _element_format(parameters: dict[str, Any]) -> str:
    return parameters.get("format", "float4_e2m1fn")


def _block(examination: Examination) -> int:
    return _BLOCK[examination.implementation.operation.name]


def _under(tops: np.ndarray, size: int) -> np.ndarray:
    """Return a block a row for each of these maxima: smaller numbers of either sign beside it, which moves along."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-0.99, 0.99, (tops.size, size)) * tops.ravel()[:, None]
    rows = np.arange(tops.size)
    x[rows, rows % size] = tops.ravel() * np.where(rows % 3, 1, -1)
    return x


def _as_codes(x: np.ndarray, tops: np.ndarray, input_format: str, subnormal: bool = False) -> np.ndarray:
    """Return blocks as codes, with zeros for what rounds up to more than the maximum of its block, or is subnormal."""
    fmt = float_format(input_format)
    codes = float_codes(x, input_format)
    size = np.abs(decode(codes, fmt))
    beyond = size > np.abs(decode(float_codes(tops, input_format), fmt)).reshape(-1, 1)
    return np.where(beyond | ((size < 2.0**fmt.minimum_exponent) & (not subnormal)), 0, codes)


def _with_tops(values: np.ndarray, top: np.ndarray, size: int) -> np.ndarray:
    """Return codes as blocks, a row each, with the code `top` among them, at another place in each."""
    filled = np.append(values, np.repeat(values[-1:], -values.size % (size - 1))).reshape(-1, size - 1)
    at = np.arange(filled.shape[0]) % size
    blocks = np.empty((filled.shape[0], size), values.dtype)
    others = np.arange(size) != at[:, None]
    blocks[others], blocks[~others] = filled.ravel(), top
    return blocks


def _beside(values: np.ndarray, input_format: str, reach: int) -> np.ndarray:
    """Return codes of numbers of either sign, and of their neighbours up to `reach` units in the last place away."""
    fmt = float_format(input_format)
    signed = np.concatenate([values, -values])
    steps = range(-reach, reach + 1)
    return np.concatenate([neighbours(signed, fmt, np.full(signed.shape, step)) for step in steps])


# Elements of quantizers


@_quantizer_mx
def test_every_element_boundary(examination: Examination) -> None:
    """Every value of the elements, every middle of two and the numbers beside them round as declared, at three scales.

    The block's maximum is the largest power of two among the elements, their largest value, and almost twice the
    former, where all but the modes that round up saturate.
    """
    for parameters in _variants(examination):
        format, input_format = parameters["format"], parameters["input_format"]
        source, power = float_format(input_format), largest_power(format)
        blocks = []
        for maximum in (power, largest_element(format), power * (2 - 2.0**-7)):
            for exponent in (0, 3, 15 - 2) if input_format == "float16" else (0, 13, -50):
                scale = 2.0**exponent / power
                top = float_codes(np.array(maximum * scale), input_format)
                codes = _beside(element_points(format) * scale, input_format, 2)
                inside = np.abs(decode(codes, source)) <= decode(top, source)
                blocks.append(_with_tops(codes[inside], top, MX_BLOCK))
        _examine(examination, parameters, np.concatenate(blocks), "boundaries of elements")


@_quantizer_nvfp4
def test_every_element_boundary_under_every_scale(examination: Examination) -> None:
    """Under every normal block scale, every value, middle and the numbers beside them round as the steps declare."""
    points = element_points("float4_e2m1fn")
    scales = decode(np.arange(0x08, 0x7F), _E4M3)
    for parameters in _variants(examination):
        input_format = parameters["input_format"]
        source = float_format(input_format)
        for g in (1.0, 0.0371):
            blocks = []
            for scale in scales * (1.0 if parameters["levels"] == "one" else g):
                top = float_codes(np.array(6 * scale), input_format)
                codes = _beside(points[points < 6] * scale, input_format, 1)
                inside = np.abs(decode(codes, source)) <= decode(top, source)
                blocks.append(_with_tops(codes[inside], top, NVFP4_BLOCK))
            _examine(examination, parameters, np.concatenate(blocks), "boundaries of elements", g)
            if parameters["levels"] == "one":
                break


@_quantizers
def test_the_maximum_wherever_it_stands(examination: Examination) -> None:
    """A block's scale comes from its largest magnitude at every place and of either sign, and is its own alone."""
    size = _block(examination)
    rng = np.random.default_rng(1)
    for parameters in _variants(examination, "input_format"):
        x = rng.standard_normal((2 * size, 5, size)) * 0.01
        places = np.arange(size)
        x[places, :, places], x[size + places, :, places] = 1.5, -1.5
        x *= 2.0 ** np.array([0, 3, -3, 5, -1])[:, None]  # neighbours differ
        codes = float_codes(x.reshape(2 * size, 5 * size), parameters["input_format"])
        _examine(examination, parameters, codes, "maxima at every place")


# Scales of MX


def _exponents(parameters: dict[str, Any]) -> np.ndarray:
    """Return the exponents of maxima whose blocks have normal scales from 2**-125 on, and are not the largest."""
    if parameters["input_format"] == "float16":
        return np.arange(-12, 16)
    lowest = int(np.log2(largest_power(parameters["format"]))) - 124
    return np.arange(lowest, 127)


def _maxima(parameters: dict[str, Any], significands: list[float], steps: tuple[int, ...]) -> np.ndarray:
    """Return significands times every power of two in the middle of the range, so many units in the last place off."""
    tops = np.ldexp(np.array(significands)[:, None], _exponents(parameters)).ravel()
    fmt = float_format(parameters["input_format"])
    tops = tops[tops <= fmt.maximum]
    found = [decode(neighbours(tops, fmt, np.full(tops.shape, step)), fmt) for step in steps]
    return np.concatenate(found)


def _significands(parameters: dict[str, Any]) -> list[float]:
    """Return where the rules for scales change: powers, the largest element, and where rounding raises a power."""
    format = parameters["format"]
    bits = 6 if format == "int8" else float_format(format).mantissa_bits
    return [1.0, largest_element(format) / largest_power(format), 2 - 2.0 ** -(bits + 1), 1.75]


@_quantizer_mx
def test_maxima_up_to_powers_of_two(examination: Examination) -> None:
    """Maxima at every power of two, and the two numbers below each, get the scale of their exponent.

    The logarithm of float32 is that of the power for the largest number below it, at 250 of 254 exponents. The same for
    the largest element times powers of two, and where rounding to the elements' mantissa raises the exponent.
    """
    for parameters in _variants(examination, "narrow_range"):
        tops = _maxima(parameters, _significands(parameters), (0, -1, -2))
        codes = _as_codes(_under(tops, MX_BLOCK), tops, parameters["input_format"])
        _examine(examination, parameters, codes, "maxima up to powers of two")


@_quantizer_mx
def test_maxima_above_powers_of_two(examination: Examination) -> None:
    """Maxima just above every power of two, and above the largest element times it, get the scale of their exponent.

    The logarithm of float32 is that of the power, so that a scale that is rounded up is not.
    """
    for parameters in _variants(examination, "narrow_range"):
        tops = _maxima(parameters, _significands(parameters), (1, 2))
        codes = _as_codes(_under(tops, MX_BLOCK), tops, parameters["input_format"])
        _examine(examination, parameters, codes, "maxima above powers of two")


@_quantizer_mx
def test_smallest_scales(examination: Examination) -> None:
    """Blocks down to the smallest subnormal number get scales down to 2**-127, code 0, and elements divided by them."""
    examined = False
    for parameters in _variants(examination, "narrow_range"):
        fmt = float_format(parameters["input_format"])
        if fmt.minimum_exponent > -100:
            continue  # float16 reaches no such scale
        examined = True
        highest = int(np.log2(largest_power(parameters["format"]))) - 122
        largest = largest_element(parameters["format"]) / largest_power(parameters["format"])
        factors = np.array([1.0, 1.25, 1.5, largest * (1 - 2.0**-6), largest, largest * (1 + 2.0**-6)])
        powers = np.ldexp(1.0, np.arange(int(np.log2(fmt.smallest)), highest))
        tops = decode(float_codes(factors[:, None] * powers, fmt.name), fmt).ravel()
        codes = _as_codes(_under(tops, MX_BLOCK), tops, fmt.name, subnormal=True)
        _examine(examination, parameters, codes, "the smallest maxima")
    if not examined:
        raise Refused("no declared format of x reaches a scale of 2**-127")


@_quantizer_mx
def test_largest_maxima(examination: Examination) -> None:
    """Finite maxima up to the largest number get finite scales, though some round up to 2**128 on the way."""
    for parameters in _variants(examination, "narrow_range"):
        fmt = float_format(parameters["input_format"])
        powers = np.ldexp(1.0, np.arange(fmt.maximum_exponent - 2, fmt.maximum_exponent + 1))
        tops = np.append((powers * np.linspace(1, 2, 65)[:-1, None]).ravel(), fmt.maximum)
        codes = _as_codes(_under(tops, MX_BLOCK), tops, parameters["input_format"])
        _examine(examination, parameters, codes, "the largest maxima")


# Scales of NVFP4


def _block_scales(examination: Examination, normal: bool) -> None:
    """Examine blocks whose maxima lie beside every boundary of scales, above the smallest normal number or up to it."""
    edges = boundaries(_E4M3)
    least = 2.0**_E4M3.minimum_exponent
    # A subnormal scale, 1.5 times the smallest, and a quarter of it; far above the largest.
    edges = (
        np.append(edges[edges > least], [600, 1e4])
        if normal
        else np.append(edges[(edges > 0) & (edges <= least)], 2.0**-12)
    )
    for parameters in _variants(examination):
        fmt = float_format(parameters["input_format"])
        for g in (1.0,) if parameters["levels"] == "one" else (1.0, 2.0**-5, 0.0371, 1.7):
            tops = 6 * g * np.unique(edges)
            near = [decode(neighbours(tops, fmt, np.full(tops.shape, step)), fmt) for step in range(-2, 3)]
            tops = np.unique(np.concatenate(near))
            tops = tops[(tops > 0) & (tops < fmt.maximum)]
            codes = _as_codes(_under(tops, NVFP4_BLOCK), tops, parameters["input_format"])
            _examine(examination, parameters, codes, "maxima beside boundaries of scales", g)


@_quantizer_nvfp4
def test_every_block_scale(examination: Examination) -> None:
    """Maxima at and beside every boundary of E4M3 above 2**-6 get their scales, those above 448 get 448."""
    _block_scales(examination, normal=True)


@_quantizer_nvfp4
def test_small_block_scales(examination: Examination) -> None:
    """Maxima whose scale is 2**-6 or below, down to where it rounds to zero, get the scale that is declared."""
    _block_scales(examination, normal=False)


@_quantizer_nvfp4
def test_extreme_global_scales(examination: Examination) -> None:
    """Under very small and very large global scales blocks get the scales and elements of ordinary ones."""
    rng = np.random.default_rng(2)
    for parameters in _variants(examination):
        if parameters["levels"] == "one":
            continue
        far = 8 if parameters["input_format"] == "float16" else 100
        for g in (1.3 * 2.0**-far, 1.3 * 2.0 ** (far - 6)):
            x = rng.standard_normal((16, 3, NVFP4_BLOCK)) * 2.0 ** rng.integers(0, 4, (16, 3, 1)) * g
            codes = float_codes(x.reshape(16, 3 * NVFP4_BLOCK), parameters["input_format"])
            _examine(examination, parameters, codes, "extreme global scales", g)
    if set(examination.implementation.supports["levels"]) == {"one"}:
        raise Refused("two levels are not declared as supported")


# Blocks of zeros, NaN, Inf


def _beside_ordinary(x: np.ndarray) -> np.ndarray:
    """Return blocks (M, size) with an ordinary block before and after each, (M, 3 size)."""
    rng = np.random.default_rng(3)
    before, after = (rng.standard_normal(x.shape) * factor for factor in (0.5, 3.0))
    return np.concatenate([before, x, after], axis=1)


def _blocks_of(examination: Examination, x: np.ndarray, what: str) -> None:
    for parameters in _variants(examination):
        numbers = _beside_ordinary(x)
        codes = float_codes(numbers, parameters["input_format"])
        codes[np.isnan(numbers)] = np.resize(nans(parameters["input_format"]), int(np.isnan(numbers).sum()))
        _examine(examination, parameters, codes, what)


@_quantizers
def test_zero_blocks(examination: Examination) -> None:
    """A block of zeros, of either sign, has the declared scale and zeros as elements; those beside it are as ever."""
    size = _block(examination)
    x = np.zeros((4, size))
    x[1], x[2, ::2] = -0.0, -0.0
    _blocks_of(examination, x, "blocks of zeros")


@_quantizers
def test_nan_in_a_block(examination: Examination) -> None:
    """A NaN of any payload, at every place of a block, alone, beside Inf and everywhere, does what is declared."""
    size = _block(examination)
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2 * size + 3, size))
    places = np.arange(size)
    x[places, places], x[size + places, places] = _NAN, -_NAN
    x[-3:-1, 1], x[-3:-1, 3] = _NAN, [_INF, -_INF]
    x[-1] = _NAN
    _blocks_of(examination, x, "blocks with NaN")


@_quantizers
def test_infinity_in_a_block(examination: Examination) -> None:
    """An infinity of either sign at every place of a block, and everywhere, does what is declared."""
    size = _block(examination)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2 * size + 2, size))
    places = np.arange(size)
    x[places, places], x[size + places, places] = _INF, -_INF
    x[-2:] = np.array([[1], [-1]]) * _INF
    _blocks_of(examination, x, "blocks with infinities")


# Stochastic rounding


def _rounds_at_random(implementation: Implementation) -> bool:
    return implementation.random


@_quantizers
@pytest.mark.applies(to=_rounds_at_random)
def test_unbiased(examination: Examination) -> None:
    """Stochastic rounding goes up as often as the value is far along, and each element on its own."""
    size = _block(examination)
    for parameters in _variants(examination, "input_format"):
        format = _element_format(parameters)
        points = element_points(format)[::2]  # the values, less those beyond the largest
        top = largest_power(format) if size == MX_BLOCK else largest_element(format)
        low = np.searchsorted(points, top / 4)
        places = np.resize([0, 0, low, low, 1], size - 1)
        share = np.resize(np.repeat(_FRACTIONS, 2), size - 1)
        signs = np.where(np.arange(size - 1) % 2, -1, 1)
        row = np.append(top, signs * (points[places] + share * (points[places + 1] - points[places])))
        x = np.tile(row, (_REPETITIONS, 1)).astype(np.float32)
        codes = float_codes(x, parameters["input_format"])

        def check(trial: Trial, share: np.ndarray = share) -> None:
            _balanced(trial, share)

        _examine(examination, parameters, codes, "fractions of the way to the next value", check=check)


def _balanced(trial: Trial, share: np.ndarray) -> None:
    """Demand that columns from the second on go up with their frequencies, and neighbours not together."""
    case = trial.case
    x = np.abs(decode(case.array("x"), case.format("x")))[:, 1:]
    results = trial.call().results[0]
    trial.enclosed(results)
    y = np.abs(decode_element_mx(results["codes"], _element_format(case.parameters)))[:, 1:]
    went_up = y > x
    _frequent(case, went_up, share, "elements")
    _frequent(case, went_up[:, :-1] & went_up[:, 1:], share[:-1] * share[1:], "two neighbours in a block")


def _frequent(case: Case, happened: np.ndarray, chance: np.ndarray, what: str) -> None:
    """Raise a Violation where a column happened more or less often than its chance."""
    frequency, deviation = happened.mean(0), np.sqrt(chance * (1 - chance) / len(happened))
    wrong = np.abs(frequency - chance) > 7 * deviation
    if wrong.any():
        at = int(np.argmax(wrong))
        raise Violation(
            f"{what} from column {at + 1} on went up {frequency[at]:.4f} of the time, must {chance[at]:.4f} of it",
            case,
        )


# Dequantizers


def _decode(examination: Examination, parameters: dict[str, Any], scales: np.ndarray, g: float = 1.0) -> None:
    """Examine every code beside each of these codes of scales, if there are any."""
    if not scales.size:
        return  # E5M2 spans more than float16, whatever the scale
    implementation = examination.implementation
    format = _element_format(parameters)
    bits = 8 if format == "int8" else float_format(format).bits
    row = np.resize(np.arange(1 << bits, dtype=np.uint8), max(1 << bits, 32))
    groups = row.size // (MX_BLOCK if "format" in parameters else NVFP4_BLOCK)
    codes = np.tile(row.view(np.int8) if format == "int8" else row, (scales.size, 1))
    arrays: dict[str, np.ndarray | None] = {"codes": codes, "scale": np.repeat(scales[:, None], groups, axis=1)}
    if "levels" in parameters:
        arrays["global_scale"] = None if parameters["levels"] == "one" else _stored(implementation, g)
    examination.once(_enclosed, Case(implementation.operation, parameters, arrays, {"global scale": g}))


def _ordinary(parameters: dict[str, Any]) -> np.ndarray:
    """Return which E8M0 codes give normal numbers of the output with every element but zero."""
    output, format = float_format(parameters["output_format"]), parameters["format"]
    values = decode_element_mx(np.arange(128 if format == "int8" else 1 << float_format(format).bits), format)
    values = np.abs(values[np.isfinite(values) & (values != 0)])
    scales = 2.0 ** (np.arange(255) - 127.0)
    return (scales * values.min() >= 2.0**output.minimum_exponent) & (scales * values.max() <= output.maximum)


@pytest.mark.operation("dequantize_mx")
def test_every_code_under_every_scale(examination: Examination) -> None:
    """Every code of the elements, NaN and infinities too, is decoded under every scale that gives normal numbers."""
    for parameters in _variants(examination):
        _decode(examination, parameters, np.flatnonzero(_ordinary(parameters)).astype(np.uint8))


@pytest.mark.operation("dequantize_mx")
def test_scales_at_the_ends_of_the_range(examination: Examination) -> None:
    """Under the other scales, 2**-127 (code 0) to 2**127, results become subnormal, zero or infinite as they must."""
    for parameters in _variants(examination):
        _decode(examination, parameters, np.flatnonzero(~_ordinary(parameters)).astype(np.uint8))


@pytest.mark.operation("dequantize_mx", "dequantize_nvfp4")
def test_nan_scale(examination: Examination) -> None:
    """Under a scale that is NaN every element is NaN; the blocks beside it are as ever."""
    for parameters in _variants(examination):
        nan, ordinary = (0xFF, 0x80) if "format" in parameters else (0x7F, 0x30)
        _decode(examination, parameters, np.array([ordinary, nan, ordinary + 1], np.uint8))


@pytest.mark.operation("dequantize_nvfp4")
def test_every_code_under_every_block_scale(examination: Examination) -> None:
    """Every code is decoded under every block scale from 0 to 448, beside global scales of any kind."""
    for parameters in _variants(examination):
        far = 2.0**-9 if parameters["output_format"] == "float16" else 1.1e-30
        for g in (1.0,) if parameters["levels"] == "one" else (1.0, 0.0371, 2.0**-5, far, 1 / far):
            _decode(examination, parameters, np.arange(0x7F, dtype=np.uint8), g)


# The global scale


def _global_scales(examination: Examination, matrices: list[np.ndarray], what: str) -> None:
    for parameters in _variants(examination):
        for x in matrices:
            _examine(examination, parameters, float_codes(x, parameters["input_format"]), what)


_chooser = pytest.mark.operation("choose_global_scale_nvfp4")


@_chooser
def test_the_largest_magnitude_wherever_it_stands(examination: Examination) -> None:
    """The global scale comes from the largest magnitude of all, in every row, in the corners, and of either sign."""
    x = np.random.default_rng(6).uniform(-1, 1, (67, 129))
    places = [(row, (37 * row) % 129) for row in range(67)] + [(0, 0), (0, 128), (66, 0), (66, 128)]
    matrices = []
    for number, place in enumerate(places):
        one = x.copy()
        one[place] = (7 + number) * (-1) ** number
        matrices.append(one)
    _global_scales(examination, matrices, "the largest magnitude anywhere")


@_chooser
def test_global_scales_of_every_magnitude(examination: Examination) -> None:
    """Matrices from the smallest normal numbers to the largest number get their scale, or the declared substitute."""
    for parameters in _variants(examination):
        fmt = float_format(parameters["input_format"])
        exponents = np.arange(fmt.minimum_exponent, fmt.maximum_exponent + 1)
        for top in np.append(1.3 * 2.0 ** exponents[:: max(1, exponents.size // 40)], fmt.maximum):
            x = top * np.array([[0.5, -1.0, 0.25, 0.0]])
            _examine(examination, parameters, float_codes(x, fmt.name), "every magnitude")


@_chooser
def test_zero_matrix(examination: Examination) -> None:
    """A matrix of zeros, and those of subnormal numbers, get the declared scale."""
    tiny = [2.0**-149, 2.0**-140, 2.0**-130, 2.0**-127]
    matrices = [np.zeros((3, 32)), np.full((3, 32), -0.0), *(np.full((2, 16), -top) for top in tiny)]
    _global_scales(examination, [*matrices, np.linspace(-1, 1, 64).reshape(2, 32)], "zeros")
