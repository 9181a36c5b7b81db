"""Convolution of quantized images in plain NumPy: a sum over the taps of the kernel, in int32."""

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.numpy.onnx_operators import INTEGERS, codes_of


def _grouped(x, w, groups):
    """Return images and weights with an axis of groups."""
    count = x.shape[1] if groups == "depthwise" else groups
    if count and (x.shape[1] != count * w.shape[1] or w.shape[0] % count):
        raise ValueError(f"w: has shape {w.shape}, which is no convolution of {x.shape[1]} channels in {count} groups")
    return (
        x.reshape(x.shape[0], count, w.shape[1], *x.shape[2:]),
        w.reshape(count, w.shape[0] // max(1, count), *w.shape[1:]),
    )


def conv2d_int8(
    x, x_scale, x_zero_point, w, w_scale, w_zero_point, y_scale, y_zero_point, bias, *, y_format, strides, pads,
    dilations, groups,
):  # fmt: skip
    """Return the quantized convolution of quantized images."""
    images, outputs = x.shape[0], w.shape[0]
    rows, columns = w.shape[2:]
    top, left, bottom, right = pads
    shifted = np.pad(x.astype(np.int32) - x_zero_point, ((0, 0), (0, 0), (top, bottom), (left, right)))
    weights = w.astype(np.int32) - np.reshape(w_zero_point, (-1, 1, 1, 1))
    shifted, weights = _grouped(shifted, weights, groups)
    extent = [(n - 1) * d + 1 for n, d in zip((rows, columns), dilations, strict=True)]
    p, q = ((n - e) // s + 1 for n, e, s in zip(shifted.shape[3:], extent, strides, strict=True))
    if p < 1 or q < 1 or rows < 1 or columns < 1:
        raise ValueError(f"w: a kernel of {rows} x {columns} does not fit into {x.shape[2]} x {x.shape[3]}")
    acc = np.zeros((images, outputs, p, q), np.int32)
    for r in range(rows):
        for s in range(columns):
            top, left = r * dilations[0], s * dilations[1]
            part = shifted[..., top :: strides[0], left :: strides[1]][..., :p, :q]
            acc += np.einsum("mgdpq,gnd->mgnpq", part, weights[..., r, s]).reshape(acc.shape)
    if bias is not None:
        acc = acc + np.reshape(bias, (-1, 1, 1))
    scale = np.reshape(x_scale * w_scale, (-1, 1, 1))
    return codes_of(acc, scale, y_scale, y_zero_point, y_format)


def register(backend: Backend) -> None:
    """Register the kernel."""
    backend.implements(
        "conv2d_int8",
        supports={
            "x_format": INTEGERS,
            "w_format": INTEGERS,
            "y_format": INTEGERS,
            "weight_granularity": ("tensor", "channel"),
            "weight_mapping": ("symmetric", "asymmetric"),
        },
    )(conv2d_int8)
