"""ONNX's quantized operators: zero points, accumulators, ties, saturation, dynamic ranges."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.examination import Examination, Refused, Trial
from lowbit_cts.kernels import Case, Implementation, Requantization
from lowbit_cts.reference.affine import middle
from lowbit_cts.reference.formats import IntegerFormat, integer_format

_PRODUCTS = ("matmul_integer", "qlinear_matmul")
_VARIED = ("a_format", "b_format", "y_format", "activation_granularity", "weight_granularity")

#: Codes of a and b less their zero points, (M, K) and (K, N); whole numbers.
Shifted = tuple[str, np.ndarray, np.ndarray]


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _variants(implementation: Implementation, *names: str) -> list[dict[str, Any]]:
    """Return every supported combination of some parameters, the others at their first supported value."""
    operation, supports = implementation.operation, implementation.supports
    first = {name: values[:1] for name, values in supports.items()}
    varied = {name: supports[name] for name in names if name in supports}
    return list(operation.combinations({**first, **varied}, tuple(supports)))


def _zero(fmt: IntegerFormat) -> int:
    return middle(fmt.minimum, fmt.maximum)


def _case(
    implementation: Implementation,
    parameters: dict[str, Any],
    what: str,
    a: np.ndarray,
    b: np.ndarray,
    zeros: tuple[np.ndarray | int, np.ndarray | int] | None = None,
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0),
    y_zero_point: int | None = None,
) -> Case:
    """Return a case on codes; zero points are the middles of the formats where they are not given, scales are equal."""
    formats = [integer_format(parameters[f"{name}_format"]) for name in "ab"]
    places = (
        (a.shape[0],) if parameters["activation_granularity"] == "token" else (),
        (b.shape[1],) if parameters["weight_granularity"] == "channel" else (),
    )
    given = zeros or tuple(_zero(fmt) for fmt in formats)
    arrays: dict[str, np.ndarray] = {}
    for name, codes, fmt, place, zero in zip("ab", (a, b), formats, places, given, strict=True):
        arrays[name] = codes.astype(fmt.carrier)
        arrays[f"{name}_zero_point"] = np.broadcast_to(zero, place).astype(np.int32)
    if implementation.operation.name == "qlinear_matmul":
        output = integer_format(parameters["y_format"])
        for name, scale, place in zip("aby", scales, (*places, ()), strict=True):
            arrays[f"{name}_scale"] = np.full(place, scale, np.float32)
        arrays["y_zero_point"] = np.array(_zero(output) if y_zero_point is None else y_zero_point, np.int32)
    ordered = {argument.name: arrays[argument.name] for argument in implementation.operation.arguments}
    return Case(implementation.operation, parameters, ordered, {"inputs": what})


def _each(
    examination: Examination, inputs: Callable[[IntegerFormat, IntegerFormat], Iterator[Shifted]], **options: Any
) -> None:
    """Check products of codes ``inputs(format of a, format of b)`` for every combination of the formats."""
    implementation = examination.implementation
    for parameters in _variants(implementation, "a_format", "b_format", "y_format"):
        formats = [integer_format(parameters[f"{name}_format"]) for name in "ab"]
        for what, a, b in inputs(*formats):
            examination.once(_enclosed, _case(implementation, parameters, what, a, b, **options))


@pytest.mark.operation(*_PRODUCTS)
def test_zero_points_of_every_row_and_column(examination: Examination) -> None:
    """Every granularity and format with zero points at the ends of the codes, distinct in every row and column."""
    implementation = examination.implementation
    rng = np.random.default_rng(0)
    for parameters in _variants(implementation, *_VARIED, "weight_mapping"):
        of_a, of_b = (integer_format(parameters[f"{name}_format"]) for name in "ab")
        a = rng.integers(of_a.minimum, of_a.maximum, (5, 37), endpoint=True)
        b = rng.integers(of_b.minimum, of_b.maximum, (37, 6), endpoint=True)
        ends_a = np.array([of_a.minimum, of_a.maximum, of_a.minimum + 1, _zero(of_a), of_a.maximum - 7])
        ends_b = np.array([of_b.maximum, of_b.minimum, _zero(of_b) + 1, of_b.maximum - 1, 3, _zero(of_b)])
        if parameters["weight_mapping"] == "symmetric":
            ends_b = np.full(6, _zero(of_b))
        if parameters["activation_granularity"] == "tensor":
            ends_a = ends_a[1]
        if parameters["weight_granularity"] == "tensor":
            ends_b = ends_b[0]
        scales = (0.5, 0.25, 256.0)
        case = _case(implementation, parameters, "ends", a, b, (ends_a, ends_b), scales)
        examination.once(_enclosed, case)


@pytest.mark.operation(*_PRODUCTS)
def test_every_code_counts(examination: Examination) -> None:
    """With one code beside the zero point in a row of a, exactly that row of b comes out, whatever the zero points."""

    def inputs(of_a: IntegerFormat, of_b: IntegerFormat) -> Iterator[Shifted]:
        for k, n in ((1, 1), (33, 17), (64, 5), (130, 31)):
            ramp = np.arange(k * n).reshape(k, n) * 37 % 251 - 125 + _zero(of_b)
            yield f"identity times ramp, K={k} N={n}", np.eye(k) + _zero(of_a), ramp

    _each(examination, inputs)


@pytest.mark.operation(*_PRODUCTS)
def test_sums_beyond_16_and_24_bits(examination: Examination) -> None:
    """Sums of the largest products, and sums of half a billion up and down again, keep their last bit."""

    def inputs(of_a: IntegerFormat, of_b: IntegerFormat) -> Iterator[Shifted]:
        rng = np.random.default_rng(0)
        for k in (2, 64, 1024):
            for a, b in ((of_a.maximum, of_b.maximum), (of_a.minimum, of_b.minimum), (of_a.maximum, of_b.minimum)):
                yield f"all {a} times all {b}, K={k}", np.full((2, k), a), np.full((k, 3), b)
        half = 1 << 14
        large = rng.integers(115, 127, (2, half), endpoint=True)
        up = rng.integers(100, 126, (half, 3), endpoint=True)
        down = -up + (np.arange(half) == half - 1)[:, None]
        yield "up, then down", np.tile(large, 2) + _zero(of_a), np.concatenate([up, down]) + _zero(of_b)

    _each(examination, inputs)


@pytest.mark.operation(*_PRODUCTS)
def test_pairs_of_shifted_codes(examination: Examination) -> None:
    """Adjacent products beyond int16, and differences from zero points beyond 8 bits, do not saturate or wrap."""

    implementation = examination.implementation
    for end in ("minimum", "maximum"):
        for parameters in _variants(implementation, "a_format", "b_format"):
            of_a, of_b = (integer_format(parameters[f"{name}_format"]) for name in "ab")
            zeros = getattr(of_a, end), _zero(of_b)
            if parameters["weight_mapping"] == "asymmetric":
                zeros = getattr(of_a, end), getattr(of_b, end)
            ends = ((of_a.maximum, of_b.maximum), (of_a.minimum, of_b.minimum), (of_a.maximum, of_b.minimum))
            for (high, other), k in product(ends, (1, 2, 4, 63, 64)):
                taken = np.arange(k) < np.array([k, -(-k // 2), 1, 0])[:, None]
                a, b = np.where(taken, high, zeros[0]), np.full((k, 5), other)
                scales = (1.0, 1.0, float(k * 512))
                what = f"up to {k} times {high} * {other}"
                examination.once(_enclosed, _case(implementation, parameters, what, a, b, zeros, scales))


@pytest.mark.operation("matmul_integer")
def test_sums_beyond_int32_wrap(examination: Examination) -> None:
    """Sums of 33025 products of 255 and 255 fit int32; of one more, of 70000 and of 140000 they wrap."""
    implementation = examination.implementation
    for parameters in _variants(implementation, "a_format", "b_format"):
        of_a, of_b = (integer_format(parameters[f"{name}_format"]) for name in "ab")
        symmetric = parameters["weight_mapping"] == "symmetric"
        z_b = _zero(of_b) if symmetric else of_b.minimum
        for k in (33025, 33026, 70000, 140000):
            a, b = np.full((1, k), of_a.maximum), np.full((k, 2), of_b.maximum)
            a[0, -1] -= 1
            b[::2, 1] = of_b.minimum
            case = _case(implementation, parameters, f"K={k}", a, b, (of_a.minimum, z_b))
            examination.once(_enclosed, case)


def _sums(examination: Examination, targets: Callable[[IntegerFormat, int], np.ndarray], cases: Any) -> None:
    """Check the codes of chosen sums: column 0 of b is 16, 16, 16, 1, and row by row a makes the sums.

    `targets` gives the sums by the format and zero point of the output; `cases` yields scales of a, b and y.
    """
    implementation = examination.implementation
    for parameters in _variants(implementation, "a_format", "b_format", "y_format"):
        of_a, of_b, of_y = (integer_format(parameters[f"{name}_format"]) for name in "aby")
        weights = np.array([16, 16, 16, 1])
        for scales in cases:
            for z_y in (of_y.minimum, of_y.minimum + 1, _zero(of_y), of_y.maximum):
                sums = np.asarray(targets(of_y, z_y), np.int64)
                high, low = np.divmod(sums + 8, 16)
                a = np.stack([np.clip(high, -128, 127), np.clip(high - np.clip(high, -128, 127), -128, 127),
                              np.zeros_like(high), low - 8], axis=1)  # fmt: skip
                a[:, 2] = high - a[:, 0] - a[:, 1]
                case = _case(
                    implementation, parameters, f"sums, zero point {z_y}", a + _zero(of_a),
                    np.repeat(weights[:, None], 2, axis=1) + _zero(of_b), None, scales, z_y,
                )  # fmt: skip
                examination.once(_enclosed, case)


def _beyond_integer_multipliers(examination: Examination) -> None:
    """Refuse where the declared requantization is by an integer multiplier, which stands for a scale below 2**30."""
    if examination.implementation.semantics.requantization is not Requantization.FLOAT32:
        raise Refused("integer multipliers stand for scales below 2**30")


def _quarters(fmt: IntegerFormat, zero: int) -> np.ndarray:
    return np.arange(4 * (fmt.minimum - 3 - zero), 4 * (fmt.maximum + 3 - zero) + 1)


@pytest.mark.operation("qlinear_matmul")
def test_every_tie_of_a_product(examination: Examination) -> None:
    """Every quarter of a code, from 3 codes below the range to 3 above it, rounds as declared."""
    _sums(examination, _quarters, [(0.5, 0.5, 1.0), (0.25, 4.0, 4.0), (2.0**-10, 1.0, 2.0**-8)])


@pytest.mark.operation("qlinear_matmul")
def test_scales_that_are_no_powers_of_two(examination: Examination) -> None:
    """Multipliers of tenths and thirds: codes away from ties are determined, and beside ties one of two."""
    _sums(examination, _quarters, [(0.1, 0.3, 0.12), (1e-3, 7.0, 0.028), (3e4, 1e-6, 0.1201)])


@pytest.mark.operation("qlinear_matmul")
def test_products_beyond_the_codes_saturate(examination: Examination) -> None:
    """Scaled sums up to 2**20 codes beyond the range are the code at their own end."""
    beyond = np.array([1, 2, 3, 127, 128, 255, 256, 1000, 4000])
    targets = np.concatenate([-beyond[::-1], [0], beyond])
    _sums(examination, lambda fmt, zero: targets, [(1.0, 1.0, 1.0), (4.0, 8.0, 0.5), (16.0, 8.0, 1.0)])


@pytest.mark.operation("qlinear_matmul")
def test_products_beyond_int32_saturate(examination: Examination) -> None:
    """Scaled sums from 2**31 on, up to 1e30, are the code at their own end."""
    _beyond_integer_multipliers(examination)
    beyond = np.array([1, 2, 100, 4000])
    targets = np.concatenate([-beyond[::-1], [0], beyond])
    _sums(
        examination, lambda fmt, zero: targets, [(2.0**16, 2.0**15, 1.0), (2.0**40, 2.0**20, 0.5), (1e12, 1e12, 1e-3)]
    )


@pytest.mark.operation("qlinear_matmul")
def test_scales_of_every_row_and_column(examination: Examination) -> None:
    """Every granularity on scales that are distinct powers of two: each row and column has its own."""
    for parameters in _variants(examination.implementation, "activation_granularity", "weight_granularity"):
        fixed = {name: parameters[name] for name in ("activation_granularity", "weight_granularity")}
        examination.for_all(_enclosed, regime="exact", variants=(), share=0.2, fixed=fixed)


# DynamicQuantizeLinear ----------------------------------------------------------------------------------------------

_RANGES = {
    "zeros": np.zeros((3, 5)),
    "negative zeros": np.full((2, 2), -0.0),
    "positive": np.linspace(0.5, 1.0, 12).reshape(3, 4),
    "negative": -np.linspace(0.5, 1.0, 12).reshape(3, 4),
    "constant": np.full((4, 9), 0.75),
    "negative constant": np.full((4, 9), -3.0),
    "last is largest": np.where(np.arange(299).reshape(13, 23) == 298, 300.0, 0.01),
    "first is least": np.where(np.arange(299).reshape(13, 23) == 0, -300.0, 0.01),
    "one zero": np.zeros((1, 1)),
    "one number": np.full((1, 1), -2.5),
    "tiny": np.linspace(-1e-30, 2e-30, 12).reshape(4, 3),
    "huge": np.linspace(-1e38, 2e38, 12).reshape(4, 3),
}


def _quantized(examination: Examination, what: str, x: np.ndarray) -> None:
    operation = examination.implementation.operation
    examination.once(_enclosed, Case(operation, {}, {"x": x.astype(np.float32)}, {"x": what}))


@pytest.mark.operation("dynamic_quantize_linear")
def test_dynamic_ranges(examination: Examination) -> None:
    """Zero is within every range, that of zeros alone included; one number at either end of the matrix counts."""
    for what, x in _RANGES.items():
        _quantized(examination, what, x)


@pytest.mark.operation("dynamic_quantize_linear")
def test_dynamic_ties(examination: Examination) -> None:
    """Where the range is 255 steps of a power of two, every half falls as declared; of the zero point, too."""
    for below in (0, 0.5, 1, 1.5, 2.5, 63.5, 127, 127.5, 128.5, 254, 254.5, 255):
        for step in (1.0, 2.0**-9):
            x = step * np.arange(-below, 255 - below + 0.25, 0.5)
            _quantized(examination, f"{below} steps below zero", x[None, :])


@pytest.mark.operation("dynamic_quantize_linear")
def test_the_zero_point_is_a_code(examination: Examination) -> None:
    """Ranges that zero is at an end of, or next to, have zero points 0 and 255, and codes that do not wrap."""
    for low, high in ((-1.0, 1e-9), (-1e-9, 1.0), (-1.0, 0.0), (0.0, 1.0), (-255.4, 0.6), (-0.6, 255.4), (-1.5, 253.5)):
        x = np.concatenate([[low, high], np.linspace(low, high, 62)])
        _quantized(examination, f"from {low} to {high}", x.reshape(8, 8))
