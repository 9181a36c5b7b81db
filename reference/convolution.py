"""Convolution of quantized images in two dimensions, to quantized images.

y[m, n, p, q] = saturate(round(s_x s_w / s_y (acc + bias[n])) + z_y), acc the sum over d, r, s of
(x[m, c, p i + r k - top, q j + s l - left] - z_x) (w[n, d, r, s] - z_w), c the d-th channel of the group of n; beyond
the image x is its zero point, so those terms are 0.

References
----------
.. [1] ONNX operators, docs/Operators.md: QLinearConv (opset 10), and Conv for strides, pads, dilations and groups.
"""

import numpy as np

from lowbit_cts.reference.choices import Division, Requantization, Rounding, ZeroPointOrder, takes_choices
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.output_codes import output_codes_enclosure, scales, zero_points

Pair = tuple[int, int]
Pads = tuple[int, int, int, int]


def output_length(length: int, kernel: int, stride: int, dilation: int, before: int, after: int) -> int:
    """Return the length of an output axis: how many whole kernels fit; 0 where none does.

    floor((length + before + after - dilation (kernel - 1) - 1) / stride) + 1, ONNX Conv.
    """
    return max(0, (length + before + after - dilation * (kernel - 1) - 1) // stride + 1)


def group_count(groups: int | str, channels: int) -> int:
    """Return the number of groups: of "depthwise" convolution the number of channels."""
    return channels if groups == "depthwise" else int(groups)


def _check_geometry(strides: Pair, pads: Pads, dilations: Pair) -> None:
    rules = (("strides", strides, 2, 1), ("pads", pads, 4, 0), ("dilations", dilations, 2, 1))
    for name, values, count, least in rules:
        if len(values) != count or any(value < least for value in values):
            raise ValueError(f"{name}: {values} must be {count} integers of at least {least}")


def _check_channels(x: np.ndarray, w: np.ndarray, groups: int | str) -> int:
    """Return the number of groups of images and weights that go together."""
    for name, array in (("x", x), ("w", w)):
        if array.ndim != 4:
            raise ValueError(f"{name}: has {array.ndim} dimensions, must have 4")
    if not (groups == "depthwise" or (isinstance(groups, int) and groups >= 1)):
        raise ValueError(f'groups: {groups!r} must be a positive integer or "depthwise"')
    channels, outputs = x.shape[1], w.shape[0]
    count = group_count(groups, channels)
    for name, length in (("x", channels), ("w", outputs)):
        if length % count if count else length:
            raise ValueError(f"{name}: has {length} channels, must have a multiple of the number of groups, {count}")
    expected = channels // count if count else 1
    if w.shape[1] != expected:
        raise ValueError(f"w: has {w.shape[1]} channels a group, must have {expected}")
    return count


def patches(x: np.ndarray, kernel: Pair, strides: Pair, pads: Pads, dilations: Pair) -> np.ndarray:
    """Return what lies below the kernel at every place, zeros beyond the image.

    Parameters
    ----------
    x : ndarray, shape (M, C, H, W)
    kernel, strides, dilations : (vertical, horizontal)
    pads : (top, left, bottom, right)

    Returns
    -------
    ndarray, shape (M, C, R, S, P, Q)

    Raises
    ------
    ValueError
        A kernel that fits nowhere into the padded image, or has no taps.
    """
    top, left, bottom, right = pads
    lengths = []
    for size, taps, stride, dilation, before, after in zip(
        x.shape[2:], kernel, strides, dilations, (top, left), (bottom, right), strict=True
    ):
        if taps < 1:
            raise ValueError(f"w: has a kernel of shape {kernel}, must have at least one tap")
        lengths.append(output_length(size, taps, stride, dilation, before, after))
        if lengths[-1] < 1:
            raise ValueError(f"w: the kernel {kernel} with dilations {dilations} is larger than the padded image")
    wide = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    rows, columns = (
        np.arange(taps)[:, None] * dilation + np.arange(length) * stride
        for taps, dilation, length, stride in zip(kernel, dilations, lengths, strides, strict=True)
    )
    return wide[:, :, rows[:, None, :, None], columns[None, :, None, :]]


def integer_convolution(
    x: np.ndarray,
    x_zero_point: np.ndarray,
    w: np.ndarray,
    w_zero_point: np.ndarray,
    *,
    strides: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilations: Pair = (1, 1),
    groups: int | str = 1,
) -> np.ndarray:
    """Return the exact sums of a convolution of codes, as int64, shape (M, N, P, Q).

    Parameters
    ----------
    x : ndarray of int, shape (M, C, H, W)
    x_zero_point : int scalar, ()
    w : ndarray of int, shape (N, C / groups, R, S)
    w_zero_point : ndarray of int, shape () or (N,)
    strides, dilations : (vertical, horizontal), at least 1
    pads : (top, left, bottom, right), at least 0
    groups : int or "depthwise"
        The n-th of N outputs sees the channels of group n // (N / groups) alone; depthwise, every channel is a group.

    Raises
    ------
    ValueError
        Shapes that do not go together, a kernel that fits nowhere, a zero point of another shape.

    Notes
    -----
    Factors of at most 9 bits and fewer than 2**35 taps keep every partial sum of a float64 product below 2**53.
    """
    _check_geometry(strides, pads, dilations)
    x, w = np.asarray(x, np.int64), np.asarray(w, np.int64)
    z_x, z_w = np.asarray(x_zero_point, np.int64), np.asarray(w_zero_point, np.int64)
    count = _check_channels(x, w, groups)
    if z_x.shape != ():
        raise ValueError(f"x_zero_point: has shape {z_x.shape}, must be a scalar ()")
    if z_w.shape not in ((), w.shape[:1]):
        raise ValueError(f"w_zero_point: has shape {z_w.shape}, must be () or {w.shape[:1]}")
    below = patches((x - z_x).astype(np.float64), w.shape[2:], strides, pads, dilations)
    shifted = (w - z_w.reshape(-1, 1, 1, 1)).astype(np.float64)
    images, outputs, places = x.shape[0], w.shape[0], below.shape[-2:]
    taps = w.shape[1] * w.shape[2] * w.shape[3]
    below = below.reshape(images, count, taps, places[0] * places[1])
    kernels = shifted.reshape(count, outputs // count if count else 0, taps)
    sums = np.matmul(kernels[None], below)
    return np.rint(sums).astype(np.int64).reshape(images, outputs, *places)


@takes_choices
def conv2d_int8_enclosure(
    x: np.ndarray,
    x_scale: np.ndarray,
    x_zero_point: np.ndarray,
    w: np.ndarray,
    w_scale: np.ndarray,
    w_zero_point: np.ndarray,
    y_scale: np.ndarray,
    y_zero_point: np.ndarray,
    bias: np.ndarray | None,
    *,
    x_format: str = "int8",
    w_format: str = "int8",
    y_format: str = "int8",
    strides: Pair = (1, 1),
    pads: Pads = (0, 0, 0, 0),
    dilations: Pair = (1, 1),
    groups: int | str = 1,
    rounding: Rounding = Rounding.HALF_EVEN,
    zero_point_order: ZeroPointOrder = ZeroPointOrder.OUTSIDE,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
    requantization: Requantization = Requantization.FLOAT32,
) -> Enclosure:
    """Return the admissible codes of a quantized convolution.

    Parameters
    ----------
    x, x_zero_point, w, w_zero_point, strides, pads, dilations, groups : as `integer_convolution`
    x_scale, y_scale : float32 scalars, ()
    w_scale : ndarray of float32, the shape of `w_zero_point`
    y_zero_point : int scalar, ()
    bias : ndarray of int32, shape (N,), or None
        In units of x_scale w_scale: added to the sums.
    x_format, w_format, y_format : {"int8", "uint8"}
    rounding, zero_point_order, division, division_ulps, requantization :
        As `lowbit_cts.reference.output_codes.output_codes_enclosure`.

    Returns
    -------
    Enclosure of int64, shape (M, N, P, Q)

    Raises
    ------
    ValueError
        As `integer_convolution` and `output_codes_enclosure`; a bias or scale of another shape.
    """
    z_x, z_w = zero_points(x_zero_point, x_format, "x_zero_point"), zero_points(w_zero_point, w_format, "w_zero_point")
    acc = integer_convolution(x, z_x, w, z_w, strides=strides, pads=pads, dilations=dilations, groups=groups)
    s_w, outputs = scales(w_scale, "w_scale"), acc.shape[1]
    if s_w.shape != z_w.shape:
        raise ValueError(f"w_scale: has shape {s_w.shape}, must have that of w_zero_point, {z_w.shape}")
    if np.shape(x_scale) != ():
        raise ValueError(f"x_scale: has shape {np.shape(x_scale)}, must be a scalar ()")
    if bias is not None:
        if np.shape(bias) != (outputs,):
            raise ValueError(f"bias: has shape {np.shape(bias)}, must be ({outputs},)")
        acc = acc + np.asarray(bias, np.int64)[:, None, None]
    return output_codes_enclosure(
        acc, scales(x_scale, "x_scale"), s_w.reshape(-1, 1, 1) if s_w.ndim else s_w, y_scale, y_zero_point,
        format=y_format, rounding=rounding, zero_point_order=zero_point_order, division=division,
        division_ulps=division_ulps, requantization=requantization,
    )  # fmt: skip
