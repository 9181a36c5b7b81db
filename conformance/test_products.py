"""Products of quantized matrices: accumulators, layouts, tails, corrections."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.examination import Examination, Refused, Trial
from lowbit_cts.kernels import Case, Implementation
from lowbit_cts.reference.formats import integer_format

_PRODUCTS = ("matmul_int8", "matmul_w8a8")


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _variants(implementation: Implementation) -> list[dict[str, Any]]:
    return list(implementation.operation.combinations(implementation.supports, tuple(implementation.supports)))


def _case(implementation: Implementation, parameters: dict[str, Any], a: np.ndarray, b: np.ndarray, what: str) -> Case:
    """Return a case on the codes given; scales of 1 and no zero points, where the operation has them."""
    arrays: dict[str, np.ndarray | None] = {
        "a": a.astype(integer_format(parameters["a_format"]).carrier), "b": b.astype(np.int8),
    }  # fmt: skip
    if implementation.operation.name == "matmul_w8a8":
        token = (a.shape[0],) if parameters["activation_granularity"] == "token" else ()
        channel = (b.shape[1],) if parameters["weight_granularity"] == "channel" else ()
        offset = 128 if parameters["mapping"] == "symmetric" and parameters["a_format"] == "uint8" else 0
        arrays |= {
            "a_scale": np.ones(token, np.float32),
            "a_zero_point": np.full(token, offset, np.int32),
            "b_scale": np.ones(channel, np.float32),
            "bias": np.zeros(b.shape[1], np.float32) if parameters["has_bias"] else None,
        }
    arrays = {argument.name: arrays[argument.name] for argument in implementation.operation.arguments}
    return Case(implementation.operation, parameters, arrays, {"inputs": what})


def _each(examination: Examination, inputs: Any, everything: bool = False) -> None:
    """Check the products of ``inputs(qmin, qmax)``: triples of a name and two matrices."""
    variants = _variants(examination.implementation)
    seen: set[str] = set()
    for parameters in variants:
        if parameters["a_format"] in seen and not everything:
            continue
        seen.add(parameters["a_format"])
        fmt = integer_format(parameters["a_format"])
        for what, a, b in inputs(fmt.minimum, fmt.maximum):
            examination.once(_enclosed, _case(examination.implementation, parameters, a, b, what))


@pytest.mark.operation(*_PRODUCTS)
def test_accumulator_holds_the_largest_sums(examination: Examination) -> None:
    """Sums of extreme codes, beyond int16 and beyond float32's 2**24, come out whole."""

    def inputs(low: int, high: int) -> Any:
        for k in (1, 2, 3, 4, 64, 1024, 4096):
            yield f"all {low} times all -128, K={k}", np.full((2, k), low), np.full((k, 3), -128)
            yield f"all {high} times all 127, K={k}", np.full((2, k), high), np.full((k, 3), 127)
            mixed = np.where(np.arange(k) % 2, high, high - 1)
            last = np.where(np.arange(k) == k - 1, high - 1, high)
            yield f"the largest sum but for one odd product, K={k}", np.tile(last, (2, 1)), np.full((k, 3), 127)
            yield f"odd sums, K={k}", np.tile(mixed, (2, 1)), np.where(np.arange(3 * k).reshape(k, 3) % 3, 127, 126)

    _each(examination, inputs)


@pytest.mark.operation(*_PRODUCTS)
def test_sums_that_cancel(examination: Examination) -> None:
    """Half a billion up and the same down again leaves the small rest whole, where the accumulator is an integer."""

    def inputs(low: int, high: int) -> Any:
        rng = np.random.default_rng(0)
        k = 1 << 16
        a = rng.integers(high - 8, high, size=(2, k), endpoint=True)
        b = np.where(np.arange(k) < k // 2, 1, -1)[:, None] * rng.integers(120, 127, size=(k, 3), endpoint=True)
        yield f"up, then down, K={k}", a, b

    _each(examination, inputs)


@pytest.mark.operation(*_PRODUCTS)
def test_pairs_do_not_saturate(examination: Examination) -> None:
    """Adjacent products whose sum exceeds int16 (211*71 + 171*107, and 127*127 twice) do not saturate.

    VPMADDUBSW adds pairs of u8 * s8 products in saturating int16.
    """

    def inputs(low: int, high: int) -> Any:
        pairs = [(127, 127, 127, 127), (-128 if low < 0 else 255, -128, -128 if low < 0 else 255, -128)]
        pairs += [(211, 71, 171, 107), (255, 127, 255, 127), (255, -128, 255, -127)] if low == 0 else []
        for a0, b0, a1, b1 in pairs:
            a, b = np.tile([a0, a1], 32)[None, :], np.tile([b0, b1], 32)[:, None]
            parts = (
                np.arange(64) < np.array([64, 32, 2, 1])[:, None]
            )  # whole rows of pairs, half, one pair, half a pair
            yield f"pairs {a0}*{b0} + {a1}*{b1}", np.where(parts, a, 0), np.repeat(b, 5, axis=1)

    _each(examination, inputs)


@pytest.mark.operation(*_PRODUCTS)
def test_every_product_counts(examination: Examination) -> None:
    """With one nonzero in a row of a, exactly that row of b comes out: no product is dropped, none counted twice."""

    def inputs(low: int, high: int) -> Any:
        for k, n in ((1, 1), (33, 17), (127, 5), (128, 64), (130, 31)):
            ramp = (np.arange(k * n).reshape(k, n) * 37 % 251) - 125
            yield f"identity times ramp, K={k} N={n}", np.eye(k), ramp
            yield f"ramp times identity, K={k}", np.tile((np.arange(k) * 29 % 120) + 1, (3, 1)), np.eye(k)

    _each(examination, inputs)


@pytest.mark.operation(*_PRODUCTS)
def test_tails(examination: Examination) -> None:
    """Every length of K, N and M around vectors and tiles gives what its codes give."""

    def inputs(low: int, high: int) -> Any:
        rng = np.random.default_rng(0)
        for length in (1, 2, 3, 4, 5, 7, 8, 9, 12, 15, 16, 17, 24, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129):
            for m, k, n in ((2, length, 3), (2, 5, length), (length, 5, 3)):
                a = rng.integers(low, high, size=(m, k), endpoint=True)
                yield f"M={m} K={k} N={n}", a, rng.integers(-128, 127, size=(k, n), endpoint=True)

    _each(examination, inputs)


@pytest.mark.operation("matmul_w8a8")
def test_scales_zero_points_and_bias(examination: Examination) -> None:
    """Every combination of granularities, zero points, bias and output format, on distinct scales and zero points."""
    implementation = examination.implementation
    for parameters in _variants(implementation):
        examination.for_all(
            lambda trial: trial.enclosed(trial.call().results[0]), regime="exact",
            variants=(), share=0.1, fixed=parameters,
        )  # fmt: skip


@pytest.mark.operation("matmul_w8a8")
def test_zero_point_correction(examination: Examination) -> None:
    """The whole z * colsum(b) leaves the product: zero points at the ends, and codes all beside a large zero point."""
    implementation = examination.implementation
    if implementation.supports["mapping"] == ("symmetric",):
        raise Refused("there are no zero points to leave the product")
    rng = np.random.default_rng(1)
    for parameters in _variants(implementation):
        if parameters["mapping"] == "symmetric" or parameters["output_format"] != "float32":
            continue
        fmt = integer_format(parameters["a_format"])
        shape = implementation.operation.arguments[2].shape(parameters)
        ends = np.resize([fmt.minimum, fmt.maximum, 1, fmt.maximum - 1], (4,) if shape else ())
        a, b = rng.integers(fmt.minimum, fmt.maximum, (4, 48), endpoint=True), rng.integers(-128, 127, (48, 6))
        near, wide = fmt.maximum - 2 + rng.integers(-2, 2, (4, 8192)), rng.integers(100, 127, (8192, 3))
        large = np.full(ends.shape, fmt.maximum - 2)
        for what, codes, weights, zeros in (("ends", a, b, ends), ("a large zero point", near, wide, large)):
            case = _case(implementation, parameters, codes, weights, what)
            arrays = {**case.arrays, "a_zero_point": zeros.astype(np.int32)}
            examination.once(_enclosed, replace(case, arrays=arrays))
