"""Convolutions of quantized images: every tap, padding, geometry, channels, ties, saturation, accumulators."""

from collections.abc import Mapping
from itertools import combinations as subsets
from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.examination import Examination, Refused, Trial
from lowbit_cts.kernels import Case, Implementation, Requantization
from lowbit_cts.reference.affine import middle
from lowbit_cts.reference.formats import IntegerFormat, integer_format

_FORMATS = ("x_format", "w_format", "y_format")
#: Sums beyond the codes, of both signs.
_BEYOND = np.array([-4000, -1000, -256, -255, -128, -2, -1, 0, 1, 2, 127, 128, 255, 256, 1000, 4000])
_GEOMETRY = ("strides", "pads", "dilations", "groups")
#: A kernel as large as the image stands over it once.
_PLAIN = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}


def _demand_plain_geometry(implementation: Implementation) -> None:
    if any(value not in implementation.supports[name] for name, value in _PLAIN.items()):
        raise Refused("chosen sums need strides and dilations of 1, and no padding")


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def _variants(implementation: Implementation, *names: str) -> list[dict[str, Any]]:
    """Return every supported combination of some parameters, the others at their first supported value."""
    operation, supports = implementation.operation, implementation.supports
    first = {name: values[:1] for name, values in supports.items()}
    varied = {name: supports[name] for name in names if name in supports}
    return list(operation.combinations({**first, **varied}, tuple(supports)))


def _covering(combinations: list[dict[str, Any]], strength: int) -> list[dict[str, Any]]:
    """Return some of the combinations, in which every so many values of the geometry occur together that may."""

    def together(parameters: Mapping[str, Any]) -> set[tuple[tuple[str, Any], ...]]:
        varied = [(name, parameters[name]) for name in (*_GEOMETRY, "has_bias")]
        return set(subsets(varied, strength))

    parts = [together(parameters) for parameters in combinations]
    missing, chosen = set().union(*parts), []
    while missing:
        best = max(range(len(parts)), key=lambda i: len(parts[i] & missing))
        chosen.append(combinations[best])
        missing -= parts[best]
    return chosen


def _zero(fmt: IntegerFormat) -> int:
    return middle(fmt.minimum, fmt.maximum)


def _formats(parameters: Mapping[str, Any]) -> tuple[IntegerFormat, IntegerFormat, IntegerFormat]:
    x, w, y = (integer_format(parameters[name]) for name in _FORMATS)
    return x, w, y


def _case(
    implementation: Implementation, parameters: dict[str, Any], what: str, x: np.ndarray, w: np.ndarray,
    **given: Any,
) -> Case:  # fmt: skip
    """Return a case on codes; zero points are the middles of the formats, scales 1, and biases 0, if not given."""
    of_x, of_w, of_y = _formats(parameters)
    channel = w.shape[:1] if parameters["weight_granularity"] == "channel" else ()
    arrays: dict[str, Any] = {
        "x": x.astype(of_x.carrier),
        "x_scale": np.full((), given.get("x_scale", 1.0), np.float32),
        "x_zero_point": np.full((), given.get("x_zero_point", _zero(of_x)), np.int32),
        "w": w.astype(of_w.carrier),
        "w_scale": np.broadcast_to(given.get("w_scale", 1.0), channel).astype(np.float32),
        "w_zero_point": np.broadcast_to(given.get("w_zero_point", _zero(of_w)), channel).astype(np.int32),
        "y_scale": np.full((), given.get("y_scale", 1.0), np.float32),
        "y_zero_point": np.full((), given.get("y_zero_point", _zero(of_y)), np.int32),
        "bias": None,
    }
    if parameters["has_bias"]:
        arrays["bias"] = np.broadcast_to(given.get("bias", 0), w.shape[:1]).astype(np.int32)
    return Case(implementation.operation, parameters, arrays, {"inputs": what})


def _channels(parameters: Mapping[str, Any], inputs: int, outputs: int) -> tuple[int, int, int]:
    """Return numbers of channels near those given that the groups divide: of inputs, of outputs, of inputs a group."""
    groups = parameters["groups"]
    if groups == "depthwise":
        return inputs, max(1, outputs // inputs) * inputs, 1
    inputs, outputs = (max(1, n // groups) * groups for n in (inputs, outputs))
    return inputs, outputs, inputs // groups


def _spans(parameters: Mapping[str, Any], kernel: tuple[int, int], places: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of an image over which a kernel has so many places, and a little more."""
    pads = parameters["pads"]
    spans = []
    for axis in (0, 1):
        stride, dilation = parameters["strides"][axis], parameters["dilations"][axis]
        length = (places[axis] - 1) * stride + dilation * (kernel[axis] - 1) + 1 + stride // 2
        spans.append(max(1, length - pads[axis] - pads[axis + 2]))
    return spans[0], spans[1]


@pytest.mark.operation("conv2d_int8")
def test_every_tap_counts(examination: Examination) -> None:
    """With one weight of a kernel, the image moves to where that tap looks; in every geometry, for every tap.

    The n-th output has one weight, the n-th of the kernel, and the codes of the image are distinct.
    """
    implementation = examination.implementation
    for parameters in _covering(_variants(implementation, *_GEOMETRY), 2):
        of_x, of_w, _ = _formats(parameters)
        rows, columns = kernel = (3, 2)
        inputs, outputs, depth = _channels(parameters, 6, 1)
        taps = depth * rows * columns
        count = outputs if parameters["groups"] == "depthwise" else parameters["groups"]
        outputs = count * taps
        w = np.zeros((outputs, taps), np.int64)
        w[np.arange(outputs), np.arange(outputs) % taps] = 1
        height, width = _spans(parameters, kernel, (3, 4))
        x = np.arange(2 * inputs * height * width).reshape(2, inputs, height, width) * 37 % 251 - 125 + _zero(of_x)
        w = w.reshape(outputs, depth, rows, columns) + _zero(of_w)
        examination.once(_enclosed, _case(implementation, parameters, "one weight an output", x, w))


@pytest.mark.operation("conv2d_int8")
def test_every_element_of_the_image_counts(examination: Examination) -> None:
    """With one code beside the zero point in each image, the kernel comes out turned around it, or what fits of it."""
    implementation = examination.implementation
    for parameters in _covering(_variants(implementation, *_GEOMETRY), 2):
        of_x, of_w, _ = _formats(parameters)
        inputs, outputs, depth = _channels(parameters, 3, 2)
        height, width = _spans(parameters, (3, 3), (2, 2))
        images = inputs * height * width
        x = (np.eye(images).reshape(images, inputs, height, width) + _zero(of_x)).astype(np.int64)
        w = np.arange(outputs * depth * 9).reshape(outputs, depth, 3, 3) * 53 % 251 - 125 + _zero(of_w)
        examination.once(_enclosed, _case(implementation, parameters, "one code an image", x, w))


@pytest.mark.operation("conv2d_int8")
def test_padding_is_the_zero_point(examination: Examination) -> None:
    """Beyond the image stands its zero point, at either end of the codes: those taps add nothing to a sum."""
    implementation = examination.implementation
    for parameters in _variants(implementation, *_FORMATS[:2], "pads", "dilations"):
        of_x, of_w, _ = _formats(parameters)
        inputs, outputs, depth = _channels(parameters, 2, 3)
        height, width = _spans(parameters, (3, 3), (4, 4))
        x = np.arange(inputs * height * width).reshape(1, inputs, height, width) * 29 % 256 + of_x.minimum
        w = np.full((outputs, depth, 3, 3), of_w.maximum)
        w[1::2] = of_w.minimum
        for zero in (of_x.minimum, of_x.maximum, of_x.minimum + 3):
            scale = 2.0**12
            case = _case(implementation, parameters, f"zero point {zero}", x, w, x_zero_point=zero, y_scale=scale)
            examination.once(_enclosed, case)
            level = np.full_like(x, zero)  # nothing but zero points: every output is the bias, borders included
            given = {"x_zero_point": zero, "bias": np.arange(outputs) * 40 - 40, "y_scale": 1.0}
            if parameters["has_bias"]:
                examination.once(_enclosed, _case(implementation, parameters, "all zero points", level, w, **given))


@pytest.mark.operation("conv2d_int8")
def test_geometries(examination: Examination) -> None:
    """Strides, pads, dilations and groups in every three together, on random codes and sizes that leave remainders."""
    implementation = examination.implementation
    rng = np.random.default_rng(0)
    kernels = (((1, 1), (4, 5)), ((3, 2), (3, 4)), ((2, 4), (5, 2)), ((5, 5), (1, 2)))
    for number, parameters in enumerate(_covering(_variants(implementation, *_GEOMETRY, "has_bias"), 3)):
        of_x, of_w, _ = _formats(parameters)
        inputs, outputs, depth = _channels(parameters, 6, 12)
        for kernel, places in (kernels[number % 4], kernels[(number // 4 + 1) % 4]):
            height, width = _spans(parameters, kernel, places)
            x = rng.integers(of_x.minimum, of_x.maximum, (2, inputs, height, width), endpoint=True)
            w = rng.integers(of_w.minimum, of_w.maximum, (outputs, depth, *kernel), endpoint=True)
            bias, scale = rng.integers(-5000, 5000, outputs), 2.0 ** np.ceil(6 + np.log2(depth * kernel[0] * kernel[1]))
            case = _case(implementation, parameters, f"kernel {kernel}", x, w, bias=bias, y_scale=scale)
            examination.once(_enclosed, case)


@pytest.mark.operation("conv2d_int8")
def test_channels_have_scales_and_zero_points_of_their_own(examination: Examination) -> None:
    """Every granularity and format, with a power of two a channel as its scale and zero points at the ends of codes."""
    implementation = examination.implementation
    rng = np.random.default_rng(0)
    for parameters in _variants(implementation, *_FORMATS, "weight_granularity", "weight_mapping", "groups"):
        of_x, of_w, _ = _formats(parameters)
        inputs, outputs, depth = _channels(parameters, 6, 12)
        per_channel = parameters["weight_granularity"] == "channel"
        numbers = np.arange(outputs if per_channel else 1)
        zeros = np.where(numbers % 3, np.where(numbers % 3 == 1, of_w.minimum, of_w.maximum), _zero(of_w) + 1)
        if parameters["weight_mapping"] == "symmetric":
            zeros = np.full(numbers.shape, _zero(of_w))
        scales = 2.0 ** (numbers % 5 - 2)
        x = rng.integers(of_x.minimum, of_x.maximum, (2, inputs, 4, 5), endpoint=True)
        w = rng.integers(of_w.minimum, of_w.maximum, (outputs, depth, 2, 2), endpoint=True)
        given = {"w_scale": scales, "w_zero_point": zeros, "bias": rng.integers(-999, 999, outputs), "y_scale": 512.0}
        given |= {"x_zero_point": of_x.minimum + 5, "x_scale": 0.5}
        if not per_channel:
            given |= {"w_scale": scales[0], "w_zero_point": zeros[0]}
        examination.once(_enclosed, _case(implementation, parameters, "scales of channels", x, w, **given))


def _sums(examination: Examination, targets: Any, scales: tuple[tuple[float, float, float], ...]) -> None:
    """Check the codes of chosen sums, `targets` by the format and zero point of the output."""
    implementation = examination.implementation
    _demand_plain_geometry(implementation)
    for parameters in _variants(implementation, *_FORMATS):
        of_x, of_w, of_y = _formats(parameters)
        inputs, _, depth = _channels(parameters, 4, 4)
        for (s_x, s_w, s_y), z_y in ((s, z) for s in scales for z in (of_y.minimum, of_y.minimum + 1, of_y.maximum)):
            sums = np.asarray(targets(of_y, z_y), np.int64)
            high, low = np.divmod(sums + 8, 16)  # a sum is 16 times a code, plus a smaller code
            x = np.zeros((1, inputs, sums.size, 8), np.int64)
            x[0, 0, :, :7] = (high[:, None] + np.arange(7)) // 7
            x[0, 0, :, 7] = low - 8
            w = np.zeros(
                (inputs if parameters["groups"] == "depthwise" else 2 * parameters["groups"], depth, 1, 8), int
            )
            w[:, 0, 0, :7], w[:, 0, 0, 7] = 16, 1
            given = {"x_scale": s_x, "w_scale": s_w, "y_scale": s_y, "y_zero_point": z_y}
            case = _case(implementation, {**parameters, **_PLAIN}, "sums", x + _zero(of_x), w + _zero(of_w), **given)
            examination.once(_enclosed, case)


@pytest.mark.operation("conv2d_int8")
def test_every_tie_of_a_convolution(examination: Examination) -> None:
    """Every quarter of a code, from 3 codes below the range to 3 above it, rounds as declared."""

    def quarters(fmt: IntegerFormat, zero: int) -> np.ndarray:
        return np.arange(4 * (fmt.minimum - 3 - zero), 4 * (fmt.maximum + 3 - zero) + 1)

    _sums(examination, quarters, ((0.5, 0.5, 1.0), (2.0**-10, 1.0, 2.0**-8), (0.1, 0.3, 0.12)))


@pytest.mark.operation("conv2d_int8")
def test_convolutions_beyond_the_codes_saturate(examination: Examination) -> None:
    """Scaled sums up to 2**19 codes beyond the range are the code at their own end."""
    _sums(examination, lambda fmt, zero: _BEYOND, ((1.0, 1.0, 1.0), (16.0, 8.0, 1.0)))


@pytest.mark.operation("conv2d_int8")
def test_convolutions_beyond_int32_saturate(examination: Examination) -> None:
    """Scaled sums from 2**31 on, up to 1e30, are the code at their own end."""
    if examination.implementation.semantics.requantization is not Requantization.FLOAT32:
        raise Refused("integer multipliers stand for scales below 2**30")
    _sums(examination, lambda fmt, zero: _BEYOND, ((2.0**16, 2.0**15, 1.0), (1e12, 1e12, 1e-3)))


@pytest.mark.operation("conv2d_int8")
def test_sums_of_many_taps(examination: Examination) -> None:
    """Pairs of products beyond int16, and sums beyond 2**24 that cancel, keep their last bit."""
    implementation = examination.implementation
    _demand_plain_geometry(implementation)
    rng = np.random.default_rng(0)
    for parameters in _variants(implementation, *_FORMATS, "groups"):
        of_x, of_w, _ = _formats(parameters)
        if parameters["groups"] == "depthwise":
            inputs, outputs, depth, rows = 2, 2, 1, 32
        else:
            inputs, outputs, depth = _channels(parameters, 192, 2)
            rows = 4
        geometry = {**parameters, **_PLAIN}
        half = (depth // 2, rows) if depth > 1 else (1, rows // 2)  # up; the other half of channels, or rows, down
        codes = np.tile(rng.integers(115, 127, (*half, 16), endpoint=True), (inputs // half[0], rows // half[1], 1))
        x, up = codes[None], rng.integers(100, 126, (outputs, *half, 16), endpoint=True)
        w = np.concatenate([up, -up], axis=1 if depth > 1 else 2)
        w[:, -1, -1, -1] += 1
        examination.once(_enclosed, _case(implementation, geometry, "up, then down", x + _zero(of_x), w + _zero(of_w)))
        for high, low in ((of_x.maximum, of_w.maximum), (of_x.minimum, of_w.minimum)):
            taken = np.arange(16) < np.array([16, 8, 2, 1])[:, None, None, None]
            image = np.where(taken, high, of_x.minimum + 1) + np.zeros((4, inputs, rows, 16), int)
            given = {"x_zero_point": of_x.minimum + 1, "y_scale": 2.0 ** np.ceil(np.log2(depth * rows * 4096))}
            kernel = np.full((outputs, depth, rows, 16), low)
            examination.once(_enclosed, _case(implementation, geometry, "extremes", image, kernel, **given))
