"""Convolution of quantized images in torch: conv2d in float64, where products of codes add up exactly, and oneDNN's."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from lowbit_cts.kernels import Backend, Semantics, ZeroPointOrder
from lowbit_cts.kernels.torch.affine import carrier
from lowbit_cts.kernels.torch.build import Build
from lowbit_cts.kernels.torch.onnx_operators import INTEGERS, output_codes
from lowbit_cts.reference.formats import integer_format

Pair = tuple[int, int]

_SUPPORTS = {
    "x_format": INTEGERS,
    "w_format": INTEGERS,
    "y_format": INTEGERS,
    "weight_granularity": ("tensor", "channel"),
    "weight_mapping": ("symmetric", "asymmetric"),
}


def _sums(
    x: Tensor, x_zero_point: Tensor, w: Tensor, w_zero_point: Tensor,
    geometry: tuple[Pair, tuple[int, int, int, int], Pair, int],
) -> Tensor:  # fmt: skip
    strides, (top, left, bottom, right), dilations, groups = geometry
    shifted = pad(x.double() - x_zero_point, (left, right, top, bottom))
    weights = w.double() - w_zero_point.reshape(-1, 1, 1, 1)
    return torch.round(conv2d(shifted, weights, None, strides, 0, dilations, groups)).to(torch.int64)


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register a convolution in float64 with a float32 epilogue; parameters as in `onnx_operators`."""
    codes = build(output_codes)

    @cache
    def sums(*geometry: Any) -> Callable[..., Tensor]:
        """Return the sums of one geometry, which a compiler is to take for constant, as that of a layer is."""
        return build(partial(_sums, geometry=geometry))

    @backend.implements("conv2d_int8", name="composed", semantics=arithmetic, supports=_SUPPORTS)
    def convolution(
        x: Tensor, x_scale: Tensor, x_zero_point: Tensor, w: Tensor, w_scale: Tensor, w_zero_point: Tensor,
        y_scale: Tensor, y_zero_point: Tensor, bias: Tensor | None, *, y_format: str, strides: Pair,
        pads: tuple[int, int, int, int], dilations: Pair, groups: int | str,
    ) -> Tensor:  # fmt: skip
        count = x.shape[1] if groups == "depthwise" else int(groups)
        if not x.shape[1]:
            raise ValueError("x: has no channels, of which conv2d makes no outputs")
        acc = sums(strides, pads, dilations, count)(x, x_zero_point, w, w_zero_point)
        if bias is not None:
            acc = acc + bias.reshape(-1, 1, 1)
        scale = (x_scale * w_scale).reshape(-1, 1, 1)
        return codes(acc, scale, y_scale, y_zero_point, *integer_format(y_format).codes(), carrier(y_format))


def register_native(backend: Backend) -> None:
    """Register oneDNN's quantized convolution where the CPU has it."""
    if backend.device == "cpu" and torch.backends.mkldnn.is_available():
        _register_onednn(backend)


def _register_onednn(backend: Backend) -> None:
    """Register onednn.qconv_pointwise: symmetric int8 weights, no bias, which it takes in float32 and scales apart.

    The image is padded with its zero point beforehand: the operator's own pads are the same on both sides. Depthwise
    weights are packed by the channels of the image, which are not known yet where that is done.
    """

    def prepare(
        w: Tensor, w_scale: Tensor, w_zero_point: Tensor, *, strides: Pair, dilations: Pair, groups: int
    ) -> tuple[Any, ...]:
        if w.shape[0] % groups:
            raise ValueError(f"w: has {w.shape[0]} channels, which are no {groups} groups")
        held = w.clone(memory_format=torch.contiguous_format)
        scales = w_scale.reshape(-1).contiguous()
        if scales.shape[0] not in (1, w.shape[0]):
            raise ValueError(f"w_scale: has {scales.shape[0]} elements, w has {w.shape[0]} channels")
        packed = torch.ops.onednn.qconv_prepack(held, scales, 1.0, 0, strides, (0, 0), dilations, groups, None)
        return packed, scales, torch.zeros_like(scales, dtype=torch.int32)

    @backend.implements(
        "conv2d_int8",
        name="onednn_qconv",
        prepare=prepare,
        semantics=Semantics(zero_point_order=ZeroPointOrder.INSIDE),
        supports={
            **_SUPPORTS,
            "x_format": "uint8",
            "w_format": "int8",
            "weight_mapping": "symmetric",
            "has_bias": False,
            "groups": (1, 2, 3),
        },
    )
    def qconv(
        x: Tensor, x_scale: Tensor, x_zero_point: Tensor, y_scale: Tensor, y_zero_point: Tensor, bias: None, *,
        prepared: Any, y_format: str, strides: Pair, pads: tuple[int, int, int, int], dilations: Pair, groups: int,
    ) -> Tensor:  # fmt: skip
        top, left, bottom, right = pads
        zero = int(x_zero_point)
        wide = pad(x, (left, right, top, bottom), value=zero)
        return torch.ops.onednn.qconv_pointwise(
            wide, float(x_scale), zero, *prepared, None, strides, (0, 0), dilations, groups, float(y_scale),
            int(y_zero_point), carrier(y_format), "none", [], "",
        )  # fmt: skip
