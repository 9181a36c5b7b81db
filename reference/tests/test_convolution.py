"""Convolutions held against loops over Python's integers, ONNX's reference evaluator, onnxruntime and SciPy."""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import correlate2d

from lowbit_cts.reference.convolution import conv2d_int8_enclosure, integer_convolution, output_length
from lowbit_cts.reference.formats import integer_format

sys.path.insert(0, str(Path(__file__).parent))  # beside this module; not a package
try:
    from onnx_models import by_fractions, codes, evaluator, runtime
finally:
    sys.path.pop(0)

STRIDES, DILATIONS = ((1, 1), (2, 1), (1, 3)), ((1, 1), (1, 2), (3, 1))
PADS = ((0, 0, 0, 0), (1, 0, 2, 1), (0, 3, 0, 2))


def by_loops(x, z_x, w, z_w, strides, pads, dilations, groups):
    """Return the sums of QLinearConv, tap by tap."""
    images, channels, height, width = x.shape
    outputs, depth, rows, columns = w.shape
    count = channels if groups == "depthwise" else groups
    p = (height + pads[0] + pads[2] - dilations[0] * (rows - 1) - 1) // strides[0] + 1
    q = (width + pads[1] + pads[3] - dilations[1] * (columns - 1) - 1) // strides[1] + 1
    y = np.zeros((images, outputs, p, q), np.int64)
    for m, n, i, j in product(range(images), range(outputs), range(p), range(q)):
        total = 0
        for d, r, s in product(range(depth), range(rows), range(columns)):
            row = i * strides[0] - pads[0] + r * dilations[0]
            column = j * strides[1] - pads[1] + s * dilations[1]
            channel = n // (outputs // count) * depth + d
            inside = 0 <= row < height and 0 <= column < width
            code = int(x[m, channel, row, column]) if inside else int(z_x)
            zero = int(z_w[n]) if np.ndim(z_w) else int(z_w)
            total += (code - int(z_x)) * (int(w[n, d, r, s]) - zero)
        y[m, n, i, j] = total
    return y


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("pads", PADS)
@pytest.mark.parametrize("dilations", DILATIONS)
@pytest.mark.parametrize("groups", [1, 2, "depthwise"])
def test_sums_are_those_of_loops(strides, pads, dilations, groups):
    rng = np.random.default_rng(1)
    channels, outputs = 4, 8 if groups == "depthwise" else 6
    depth = 1 if groups == "depthwise" else channels // groups
    x, w = codes(rng, (2, channels, 7, 6), "uint8"), codes(rng, (outputs, depth, 3, 2), "int8")
    z_x, z_w = np.uint8(7), codes(rng, (outputs,), "int8")
    found = integer_convolution(x, z_x, w, z_w, strides=strides, pads=pads, dilations=dilations, groups=groups)
    assert np.array_equal(found, by_loops(x, z_x, w, z_w, strides, pads, dilations, groups))


def test_sums_are_scipys_correlation():
    rng = np.random.default_rng(2)
    x, w = codes(rng, (1, 3, 9, 11), "int8"), codes(rng, (2, 3, 4, 3), "int8")
    found = integer_convolution(x, np.int64(0), w, np.int64(0))
    for n in range(2):
        expected = sum(correlate2d(x[0, c].astype(int), w[n, c].astype(int), mode="valid") for c in range(3))
        assert np.array_equal(found[0, n], expected)


def inputs_of(rng, x_format, w_format, per_channel, groups, has_bias, power_of_two):
    channels, outputs = 6, 12
    count = channels if groups == "depthwise" else groups
    place = (outputs,) if per_channel else ()
    scale = (lambda s: 2.0 ** rng.integers(-4, 2, s)) if power_of_two else (lambda s: rng.uniform(0.01, 0.2, s))
    arrays = {
        "x": codes(rng, (2, channels, 7, 6), x_format), "x_scale": scale(()), "x_zero_point": codes(rng, (), x_format),
        "w": codes(rng, (outputs, channels // count, 3, 2), w_format), "w_scale": scale(place),
        "w_zero_point": codes(rng, place, w_format) if not per_channel or w_format == "uint8"
        else np.zeros(place, np.int8),
        "y_scale": 2.0 ** rng.integers(4, 7) if power_of_two else rng.uniform(10, 100),
        "y_zero_point": codes(rng, (), x_format),
    }  # fmt: skip
    arrays |= {name: np.asarray(arrays[name], np.float32) for name in ("x_scale", "w_scale", "y_scale")}
    bias = rng.integers(-20000, 20000, outputs).astype(np.int32) if has_bias else None
    return arrays, bias


@pytest.mark.parametrize(("run", "order"), [(evaluator, "inside"), (runtime, "outside")])
@pytest.mark.parametrize(("x_format", "w_format"), [("int8", "int8"), ("uint8", "int8"), ("uint8", "uint8")])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("groups", [1, 3, "depthwise"])
def test_conv2d_is_onnx(run, order, x_format, w_format, per_channel, groups):
    rng = np.random.default_rng(3)
    sides = STRIDES, PADS, DILATIONS
    for (strides, pads, dilations), power_of_two in zip(product(*sides), [True, False] * 14, strict=False):
        has_bias = bool(rng.integers(2))
        arrays, bias = inputs_of(rng, x_format, w_format, per_channel, groups, has_bias, power_of_two)
        geometry = {"strides": strides, "pads": pads, "dilations": dilations}
        given = arrays if bias is None else {**arrays, "bias": bias}
        count = 6 if groups == "depthwise" else groups
        (found,) = run(
            "QLinearConv", given, [integer_format(x_format).carrier], **geometry, group=count, kernel_shape=[3, 2]
        )
        enclosure = conv2d_int8_enclosure(
            *arrays.values(), bias, x_format=x_format, w_format=w_format, y_format=x_format, **geometry,
            groups=groups, zero_point_order=order,
        )  # fmt: skip
        assert enclosure.shape == found.shape
        assert enclosure.admits(found.astype(np.int64)).all()
        if power_of_two:
            assert np.array_equal(enclosure.lo, enclosure.hi)


def test_codes_are_those_of_fractions():
    rng = np.random.default_rng(4)
    arrays, bias = inputs_of(rng, "uint8", "int8", True, 2, True, False)
    geometry = {"strides": (2, 1), "pads": (1, 0, 2, 1), "dilations": (1, 2)}
    found = conv2d_int8_enclosure(
        *arrays.values(), bias, x_format="uint8", w_format="int8", y_format="uint8", **geometry, groups=2
    )
    acc = by_loops(arrays["x"], arrays["x_zero_point"], arrays["w"], arrays["w_zero_point"], *geometry.values(), 2)
    for (m, n, i, j), total in np.ndenumerate(acc):
        expected = by_fractions(total + bias[n], arrays["x_scale"], arrays["w_scale"][n], arrays["y_scale"],
                                arrays["y_zero_point"], "uint8")  # fmt: skip
        assert found.exact[m, n, i, j] == expected


@pytest.mark.parametrize(
    ("length", "kernel", "stride", "dilation", "pads", "expected"),
    [(5, 3, 1, 1, (0, 0), 3), (5, 3, 2, 1, (1, 1), 3), (6, 3, 2, 1, (1, 1), 3), (5, 3, 1, 2, (0, 0), 1),
     (4, 3, 1, 2, (0, 0), 0), (224, 7, 2, 1, (3, 3), 112), (1, 1, 3, 1, (0, 0), 1), (0, 1, 1, 1, (0, 0), 0)],
)  # fmt: skip
def test_output_lengths(length, kernel, stride, dilation, pads, expected):
    assert output_length(length, kernel, stride, dilation, *pads) == expected


def test_no_images_and_no_channels():
    one = np.float32(1)
    x, w = np.zeros((0, 2, 4, 4), np.int8), np.ones((3, 2, 3, 3), np.int8)
    found = conv2d_int8_enclosure(x, one, np.int64(0), w, one, np.int64(0), one, np.int64(5), None)
    assert found.shape == (0, 3, 2, 2)
    x, w = np.zeros((1, 0, 4, 4), np.int8), np.ones((3, 0, 3, 3), np.int8)
    found = conv2d_int8_enclosure(x, one, np.int64(0), w, one, np.int64(0), one, np.int64(5), np.arange(3))
    assert found.exact[0, :, 0, 0].tolist() == [5, 6, 7]  # an empty sum is 0


X, W, ONE, NONE = np.ones((1, 4, 5, 5), np.int8), np.ones((6, 2, 3, 3), np.int8), np.float32(1), np.int64(0)


@pytest.mark.parametrize(
    ("changes", "geometry", "match"),
    [
        ({}, {"groups": 1}, "w: has 2 channels a group, must have 4"),
        ({}, {"groups": 3}, "x: has 4 channels, must have a multiple of the number of groups, 3"),
        ({3: W[:5]}, {"groups": 2}, "w: has 5 channels, must have a multiple of the number of groups, 2"),
        ({}, {"groups": "depthwise"}, "w: has 6 channels, must have a multiple of the number of groups, 4"),
        ({}, {"groups": 0}, "groups: 0 must be a positive integer"),
        ({0: X[0]}, {}, "x: has 3 dimensions, must have 4"),
        ({}, {"dilations": (3, 1)}, "larger than the padded image"),
        ({3: W[:, :, :0]}, {}, "must have at least one tap"),
        ({}, {"strides": (0, 1)}, "strides: "),
        ({}, {"pads": (0, 0, -1, 0)}, "pads: "),
        ({}, {"pads": (1, 1)}, "pads: "),
        ({4: np.ones(6, np.float32)}, {}, "w_scale: has shape"),
        ({4: np.ones(5, np.float32), 5: np.zeros(5, int)}, {}, "w_zero_point: has shape"),
        ({1: np.ones(1, np.float32)}, {}, "x_scale: has shape"),
        ({2: np.zeros(1, int)}, {}, "x_zero_point: has shape"),
        ({2: np.int64(128)}, {}, "x_zero_point: must lie in"),
        ({8: np.zeros(5, np.int32)}, {}, "bias: has shape"),
        ({6: np.float32(-1)}, {}, "y_scale: must be positive"),
    ],
)
def test_bad_convolutions_are_refused(changes, geometry, match):
    arguments = [X, ONE, NONE, W, ONE, NONE, ONE, NONE, None]
    for place, value in changes.items():
        arguments[place] = value
    with pytest.raises(ValueError, match=match):
        conv2d_int8_enclosure(*arguments, **{"groups": 2, **geometry})
