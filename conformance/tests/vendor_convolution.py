"""A vendor's convolutions: right ones of several semantics, and the same with one planted fault each."""

import numpy as np
from vendor_onnx_operators import _saturated

from lowbit_cts.kernels import Backend, Semantics
from lowbit_cts.reference.requantization import rescale

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

F = np.float32
INTEGERS = ("int8", "uint8")
FORMATS = {"x_format": INTEGERS, "w_format": INTEGERS, "y_format": INTEGERS}
EVERYWHERE = {
    **FORMATS, "weight_granularity": ("tensor", "channel"), "weight_mapping": ("symmetric", "asymmetric"),
}  # fmt: skip


def _sums(x, z_x, w, z_w, strides, pads, dilations, groups, beyond=0, dtype=np.int64):
    """Return the sums of a convolution by im2col; `beyond` is what stands beyond the image, less the zero point."""
    count = x.shape[1] if groups == "depthwise" else groups
    if count and (x.shape[1] != count * w.shape[1] or w.shape[0] % count):
        raise ValueError("w: the channels do not go together")
    if z_w.ndim and z_w.size != w.shape[0]:
        raise ValueError("w_zero_point: must have an element a channel")
    top, left, bottom, right_ = pads
    wide = np.pad(x.astype(dtype) - dtype(z_x), ((0, 0), (0, 0), (top, bottom), (left, right_)), constant_values=beyond)
    rows, columns = ((n - 1) * d + 1 for n, d in zip(w.shape[2:], dilations, strict=True))
    if min(w.shape[2:]) < 1 or rows > wide.shape[2] or columns > wide.shape[3]:
        raise ValueError("w: the kernel does not fit into the image")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (rows, columns), axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    m, _, p, q, r, s = windows.shape
    parts = windows.reshape(m, count, w.shape[1], p, q, r, s).transpose(1, 0, 3, 4, 2, 5, 6)
    parts = parts.reshape(count, m * p * q, w.shape[1] * r * s)
    outputs = w.shape[0] // max(1, count)
    kernels = (w.astype(dtype) - np.reshape(z_w, (-1, 1, 1, 1)).astype(dtype)).reshape(count, outputs, -1)
    acc = parts @ kernels.transpose(0, 2, 1)
    return acc.reshape(count, m, p, q, outputs).transpose(1, 0, 4, 2, 3).reshape(m, w.shape[0], p, q)


def _channel(values):
    return np.reshape(values, (-1, 1, 1))


def _convolve(
    x, s_x, z_x, w, s_w, z_w, s_y, z_y, bias, *, y_format, strides, pads, dilations, groups, sums=_sums, codes=None,
    scale=None,
):  # fmt: skip
    acc = sums(x, z_x, w, z_w, strides, pads, dilations, groups)
    if bias is not None:
        acc = acc + _channel(bias)
    scale = _channel(s_x * s_w) if scale is None else scale
    return _saturated((codes or _outside)(acc.astype(F), scale, s_y, z_y), y_format)


def _outside(acc, scale, s_y, z_y):
    return np.rint(acc * (scale / s_y)) + z_y


def _inside(acc, scale, s_y, z_y):
    return np.rint(acc * (scale / s_y) + z_y.astype(F))


# Right kernels ------------------------------------------------------------------------------------------------------

GEOMETRY = ("strides", "pads", "dilations", "groups", "y_format")


def _kernel(**options):
    def kernel(*arguments, y_format, strides, pads, dilations, groups):
        return _convolve(
            *arguments, y_format=y_format, strides=strides, pads=pads, dilations=dilations, groups=groups, **options
        )

    return kernel


def _hold(w, w_scale, w_zero_point):
    return w.copy(), w_scale.copy(), w_zero_point.copy()


right.implements("conv2d_int8", name="by_im2col", supports=EVERYWHERE)(_kernel())
right.implements(
    "conv2d_int8", name="zero_point_inside", supports=EVERYWHERE, semantics=Semantics(zero_point_order="inside")
)(_kernel(codes=_inside))


@right.implements("conv2d_int8", supports=EVERYWHERE, prepare=_hold)
def held_weights(x, s_x, z_x, s_y, z_y, bias, *, prepared, y_format, strides, pads, dilations, groups):
    return _convolve(
        x, s_x, z_x, *prepared, s_y, z_y, bias, y_format=y_format, strides=strides, pads=pads, dilations=dilations,
        groups=groups,
    )  # fmt: skip


@right.implements("conv2d_int8", supports={**EVERYWHERE, "groups": "depthwise", "layout": ("contiguous", "offset")})
def depthwise_alone(*arguments, y_format, strides, pads, dilations, out):
    geometry = {"strides": strides, "pads": pads, "dilations": dilations, "groups": "depthwise"}
    out[...] = _convolve(*arguments, y_format=y_format, **geometry)


@right.implements(
    "conv2d_int8", supports={**EVERYWHERE, "groups": 1}, semantics=Semantics(requantization="single_rounding")
)
def in_fixed_point(x, s_x, z_x, w, s_w, z_w, s_y, z_y, bias, *, y_format, strides, pads, dilations, groups):
    acc = _sums(x, z_x, w, z_w, strides, pads, dilations, groups)
    acc = acc if bias is None else acc + _channel(bias)
    multiplier = np.broadcast_to(_channel(float(s_x) * s_w.astype(float) / float(s_y)), acc.shape)
    codes = rescale(acc.ravel(), multiplier.ravel(), variant="single_rounding") if acc.size else acc
    return _saturated(codes.reshape(acc.shape) + z_y, y_format)


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def _wrong(name, kernel, word="must be", **options):
    EXPECTED[name] = word
    wrong.implements("conv2d_int8", name=name, **{"supports": EVERYWHERE, **options})(kernel)


def _faulty(name, sums, **options):
    _wrong(name, _kernel(sums=sums), **options)


def _padded_with_codes_of_zero(x, z_x, w, z_w, *geometry):
    """Beyond the image stands the code 0, not the zero point."""
    return _sums(x, z_x, w, z_w, *geometry, beyond=-int(z_x))


def _first_and_last_pads_swapped(x, z_x, w, z_w, strides, pads, dilations, groups):
    return _sums(x, z_x, w, z_w, strides, (pads[2], pads[3], pads[0], pads[1]), dilations, groups)


def _vertical_stride_for_both(x, z_x, w, z_w, strides, pads, dilations, groups):
    """Columns are as far apart as rows, where the image has as many."""
    expected = _sums(x, z_x, w, z_w, strides, pads, dilations, groups)
    near = _sums(x, z_x, w, z_w, (strides[0], strides[0]), pads, dilations, groups)
    return near[..., : expected.shape[3]] if near.shape[3] >= expected.shape[3] else expected


def _dilations_ignored_within_the_image(x, z_x, w, z_w, strides, pads, dilations, groups):
    """The taps of a row lie side by side, though the output has the right size."""
    expected = _sums(x, z_x, w, z_w, strides, pads, dilations, groups)
    near = _sums(x, z_x, w, z_w, strides, pads, (dilations[0], 1), groups)
    return near[..., : expected.shape[2], : expected.shape[3]]


def _turned(x, z_x, w, z_w, *geometry):
    """A convolution in the sense of mathematics: the kernel is turned around."""
    return _sums(x, z_x, w[:, :, ::-1, ::-1], z_w, *geometry)


def _transposed_kernel(x, z_x, w, z_w, *geometry):
    return _sums(x, z_x, w.transpose(0, 1, 3, 2) if w.shape[2] == w.shape[3] else w, z_w, *geometry)


def _groups_interleaved(x, z_x, w, z_w, strides, pads, dilations, groups):
    """The n-th output sees the group n modulo their number."""
    acc = _sums(x, z_x, w, z_w, strides, pads, dilations, groups)
    count = x.shape[1] if groups == "depthwise" else groups
    if count < 2 or w.shape[0] < 2 * count:
        return acc
    order = np.arange(w.shape[0]).reshape(count, -1).T.ravel()
    place = np.argsort(order)
    zeros = z_w[order] if z_w.ndim else z_w
    return _sums(x, z_x, w[order], zeros, strides, pads, dilations, groups)[:, place]


def _last_tap_forgotten(x, z_x, w, z_w, *geometry):
    cut = w.astype(np.int64) - np.reshape(z_w, (-1, 1, 1, 1))
    if cut.size and w[0, 0].size > 1:
        cut[:, -1, -1, -1] = 0
    return _sums(x, z_x, cut, np.zeros((), np.int64), *geometry)


def _in_float32(x, z_x, w, z_w, *geometry):
    return _sums(x, z_x, w, z_w, *geometry, dtype=np.float32).astype(np.int64)


def _zero_point_of_weights_forgotten_at_borders(x, z_x, w, z_w, strides, pads, dilations, groups):
    """The correction by the zero point of the weights takes the taps beyond the image for those of the code 0."""
    acc = _sums(x, z_x, w, z_w, strides, pads, dilations, groups)
    ones = np.ones_like(w, dtype=np.int64)
    outside = _sums(np.zeros_like(x, dtype=np.int64), np.int64(0), ones, np.zeros((), int), strides, pads, dilations,
                    groups, beyond=1)  # fmt: skip
    return acc + int(z_x) * _channel(z_w) * outside


def _sums_in_16_bits(x, z_x, w, z_w, *geometry):
    return np.clip(_sums(x, z_x, w, z_w, *geometry), -(2**15), 2**15 - 1)


_faulty("padded_with_codes_of_zero", _padded_with_codes_of_zero)
_faulty("first_and_last_pads_swapped", _first_and_last_pads_swapped)
_faulty("vertical_stride_for_both", _vertical_stride_for_both)
_faulty("dilations_ignored", _dilations_ignored_within_the_image)
_faulty("kernel_turned", _turned)
_faulty("kernel_transposed", _transposed_kernel)
_faulty("groups_interleaved", _groups_interleaved)
_faulty("last_tap_forgotten", _last_tap_forgotten)
_faulty("sums_in_float32", _in_float32)
_faulty("borders_corrected_twice", _zero_point_of_weights_forgotten_at_borders)
_faulty("sums_in_16_bits", _sums_in_16_bits)
_wrong("zero_point_inside_undeclared", _kernel(codes=_inside))
_wrong("rounds_half_up", _kernel(codes=lambda acc, scale, s_y, z_y: np.floor(
    (acc * (scale / s_y)).astype(float) + 0.5) + z_y))  # fmt: skip
_wrong("wraps_to_8_bits", _kernel(codes=lambda acc, scale, s_y, z_y: (
    np.clip(_outside(acc, scale, s_y, z_y), -2.0**40, 2.0**40).astype(np.int64) + 128) % 256 - 128))  # fmt: skip


def _first_scale(*arguments, **geometry):
    changed = list(arguments)
    if arguments[4].ndim and arguments[4].size:
        changed[4] = np.full_like(arguments[4], arguments[4][0])
    return _convolve(*changed, **geometry)


def _last_bias(*arguments, **geometry):
    changed = list(arguments)
    if arguments[8] is not None and arguments[8].size:
        changed[8] = np.full_like(arguments[8], arguments[8][-1])
    return _convolve(*changed, **geometry)


def _bias_in_codes(*arguments, **geometry):
    """The bias is added after the sums are scaled."""
    bias, format = arguments[8], geometry["y_format"]
    acc = _sums(arguments[0], arguments[2], arguments[3], arguments[5], *(geometry[name] for name in GEOMETRY[:4]))
    codes = _outside(acc.astype(F), _channel(arguments[1] * arguments[4]), *arguments[6:8])
    return _saturated(codes if bias is None else codes + _channel(bias), format)


def _short_bias(*arguments, **geometry):
    changed = list(arguments)
    if arguments[8] is not None and arguments[3].shape[0]:
        changed[8] = np.resize(arguments[8], arguments[3].shape[0])
    return _convolve(*changed, **geometry)


def _loose(function):
    def kernel(*arguments, y_format, strides, pads, dilations, groups):
        return function(*arguments, y_format=y_format, strides=strides, pads=pads, dilations=dilations, groups=groups)

    return kernel


_wrong("first_scale_for_all", _loose(_first_scale))
_wrong("last_bias_for_all", _loose(_last_bias))
_wrong("bias_in_codes", _loose(_bias_in_codes))
_wrong("bias_of_any_length", _loose(_short_bias), word="accepted")


def _remainder_dropped(*arguments, **geometry):
    """Outputs beyond whole groups are computed by the last group."""
    w, groups = arguments[3], geometry["groups"]
    if isinstance(groups, int) and w.shape[0] % groups:
        extra = -w.shape[0] % groups
        changed = list(arguments)
        for place in (3, 4, 5, 8):
            if arguments[place] is not None and np.ndim(arguments[place]):
                changed[place] = np.concatenate([arguments[place], arguments[place][:extra]])
        return _convolve(*changed, **geometry)[:, : w.shape[0]]
    return _convolve(*arguments, **geometry)


_wrong("any_number_of_outputs", _loose(_remainder_dropped), word="no multiple")
