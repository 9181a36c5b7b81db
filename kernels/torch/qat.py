"""The gradients of fake quantization in torch: autograd through its own operators, and plain tensor operations."""

from dataclasses import replace

import torch
from torch import Tensor

from lowbit_cts.kernels import (
    Backend,
    Contraction,
    Division,
    GradientForm,
    GradientMask,
    MaskedGradient,
    Semantics,
    ZeroPointOrder,
)
from lowbit_cts.kernels.torch.build import Build
from lowbit_cts.reference.formats import INTEGER_FORMATS, integer_format

_FORMATS = {"format": INTEGER_FORMATS}
_SIGNED = {"format": [name for name in INTEGER_FORMATS if integer_format(name).signed]}
_UNSIGNED = {"format": [name for name in INTEGER_FORMATS if not integer_format(name).signed]}
_MAPPINGS = {"mapping": ("symmetric", "asymmetric")}
_NARROW = {"narrow_range": (False, True)}
_EVERYWHERE = {"granularity": ("tensor", "axis", "group")}
_BOTH = {"has_zero_point": (False, True)}

#: round(x * (1 / s)) + z, and the upstream gradient times 0 or 1.
_FAKE_QUANTIZE = Semantics(division=Division.RECIPROCAL, masked_gradient=MaskedGradient.PRODUCT)
#: The backward of the learnable operators: round(x * (1 / s) + z), fused on the CPU; their forward has z outside.
_LEARNABLE = replace(_FAKE_QUANTIZE, zero_point_order=ZeroPointOrder.INSIDE)


def register_native(backend: Backend) -> None:
    """Register torch's own fake quantization, forward and backward."""
    _register_fake_quantize(backend)
    _register_learnable(backend)


def _register_fake_quantize(backend: Backend) -> None:
    supports = {**_FORMATS, **_MAPPINGS, **_NARROW}

    @backend.implements(
        "fake_quantize_gradient", semantics=_FAKE_QUANTIZE, supports={**supports, "granularity": "tensor"}
    )
    def fake_quantize_per_tensor(x, upstream, scale, zero_point, *, format, narrow_range):
        x = x.detach().requires_grad_()
        codes = integer_format(format).codes(narrow_range)
        torch.fake_quantize_per_tensor_affine(x, scale, zero_point, *codes).backward(upstream)
        return x.grad

    @backend.implements(
        "fake_quantize_gradient", semantics=_FAKE_QUANTIZE, supports={**supports, "granularity": "axis"}
    )
    def fake_quantize_per_channel(x, upstream, scale, zero_point, *, format, axis, narrow_range):
        x = x.detach().requires_grad_()
        codes = integer_format(format).codes(narrow_range)
        torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, *codes).backward(upstream)
        return x.grad


def _register_learnable(backend: Backend) -> None:
    """Register the operators behind torch.ao's `_LearnableFakeQuantize`; that per tensor is right for z >= 0 alone."""

    def per_tensor(v, upstream, scale, zero_point, gradient_scale, *, format, narrow_range):
        v, scale = v.detach().requires_grad_(), scale.detach().reshape(1).requires_grad_()
        zero = torch.zeros_like(scale) if zero_point is None else zero_point.reshape(1).float()
        codes = integer_format(format).codes(narrow_range)
        y = torch._fake_quantize_learnable_per_tensor_affine(v, scale, zero, *codes, gradient_scale.item())
        y.backward(upstream)
        return v.grad, scale.grad.reshape(())

    def per_channel(v, upstream, scale, zero_point, gradient_scale, *, format, axis, narrow_range):
        v, scale = v.detach().requires_grad_(), scale.detach().requires_grad_()
        zero = torch.zeros_like(scale) if zero_point is None else zero_point.float()
        codes = integer_format(format).codes(narrow_range)
        y = torch._fake_quantize_learnable_per_channel_affine(v, scale, zero, axis, *codes, gradient_scale.item())
        y.backward(upstream)
        return v.grad, scale.grad

    fused = Contraction.FUSED if backend.device == "cpu" else Contraction.EITHER
    semantics = replace(_LEARNABLE, contraction=fused)
    # Codes without 0 are refused.
    signed, unsigned = {**_SIGNED, **_NARROW}, {**_UNSIGNED, **_BOTH, "granularity": "tensor"}
    for name, kernel, supports in (
        ("learnable_per_tensor", per_tensor, {**signed, "granularity": "tensor"}),
        ("learnable_per_tensor_unsigned", per_tensor, unsigned),
        ("learnable_per_channel", per_channel, {**signed, **_BOTH, "granularity": "axis"}),
        ("learnable_per_channel_unsigned", per_channel, {**unsigned, "granularity": "axis"}),
    ):
        backend.implements("lsq_gradient", name=name, semantics=semantics, supports=supports)(kernel)


def _beside(values: Tensor, granularity: str, axis: int | None) -> Tensor:
    """Return scales or zero points as a view that broadcasts against the matrix, or its groups."""
    return values[..., None] if granularity == "group" or (granularity == "axis" and axis == 0) else values


def _grouped(x: Tensor, granularity: str, group_size: int | None) -> Tensor:
    return x.unflatten(1, (x.shape[1] // group_size, group_size)) if granularity == "group" and group_size else x


def _reduced(granularity: str, axis: int | None) -> tuple[int, ...]:
    return {"tensor": (0, 1), "axis": (1 - (axis or 0),), "group": (2,)}[granularity]


def _gradient(x: Tensor, upstream: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    codes = torch.round(x / scale) + zero_point
    return torch.where((codes >= qmin) & (codes <= qmax), upstream, 0.0)


def _of_paper(
    v: Tensor, upstream: Tensor, scale: Tensor, zero: Tensor, factor: Tensor, qmin: int, qmax: int, sums: tuple
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the paper's eq. (3) and (5), which look at v / s before it is rounded."""
    quotient = v / scale
    low, high = qmin - zero, qmax - zero
    inside = (quotient > low) & (quotient < high)
    steps = torch.where(inside, torch.round(quotient) - quotient, torch.where(quotient >= high, high, low))
    return torch.where(inside, upstream, 0.0), (upstream * steps).sum(sums) * factor


def _straight_through(x: Tensor) -> Tensor:
    """Return x rounded, with the gradient of x."""
    return x + (torch.round(x) - x).detach()


def _initial(v: Tensor, sums: tuple, root: Tensor) -> Tensor:
    return 2 * v.abs().mean(sums) / root


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register the formulas in plain tensor operations, and autograd through a forward of such.

    Parameters
    ----------
    backend : Backend
    build : callable
        Eager or compiled (`lowbit_cts.kernels.torch.build`).
    arithmetic : Semantics
        How a division comes out.
    """
    gradient_, of_paper_, initial_ = build(_gradient), build(_of_paper), build(_initial)
    everything = {**_FORMATS, **_EVERYWHERE}

    @backend.implements(
        "fake_quantize_gradient",
        name="composed",
        semantics=arithmetic,
        supports={**everything, **_MAPPINGS, **_NARROW},
    )
    def fake_quantize_gradient(x, upstream, scale, zero_point, *, format, granularity, axis, group_size, narrow_range):
        codes = integer_format(format).codes(narrow_range)
        scale, zero_point = (_beside(part, granularity, axis) for part in (scale, zero_point))
        x, above = (_grouped(part, granularity, group_size) for part in (x, upstream))
        return gradient_(x, above, scale, zero_point, *codes).reshape(upstream.shape)

    @backend.implements(
        "lsq_gradient",
        name="composed",
        semantics=replace(arithmetic, gradient_mask=GradientMask.QUOTIENT),
        supports={**everything, **_BOTH, **_NARROW},
    )
    def lsq_gradient(
        v, upstream, scale, zero_point, gradient_scale, *, format, granularity, axis, group_size, narrow_range
    ):
        zero = torch.zeros_like(scale) if zero_point is None else zero_point.float()
        wide, zero = (_beside(part, granularity, axis) for part in (scale, zero))
        values, above = (_grouped(part, granularity, group_size) for part in (v, upstream))
        codes = integer_format(format).codes(narrow_range)
        dv, dscale = of_paper_(values, above, wide, zero, gradient_scale, *codes, _reduced(granularity, axis))
        return dv.reshape(v.shape), dscale

    @backend.implements("lsq_initial_scale", name="composed", semantics=arithmetic, supports=everything)
    def lsq_initial_scale(v, *, format, granularity, axis, group_size):
        root = torch.tensor(float(integer_format(format).maximum), device=v.device).sqrt()
        return initial_(_grouped(v, granularity, group_size), _reduced(granularity, axis), root)

    if build.__name__ == "eager":
        _register_autograd(backend, arithmetic)


def _register_autograd(backend: Backend, arithmetic: Semantics) -> None:
    """Register what autograd makes of the forward as one writes it: a clamp, and a rounding with the gradient of 1."""

    @backend.implements(
        "lsq_gradient",
        name="autograd",
        semantics=replace(arithmetic, gradient_mask=GradientMask.QUOTIENT_CLOSED, gradient_form=GradientForm.CHAIN),
        supports={**_FORMATS, **_EVERYWHERE, **_NARROW, **_BOTH},
    )
    def autograd(
        v, upstream, scale, zero_point, gradient_scale, *, format, granularity, axis, group_size, narrow_range
    ):
        qmin, qmax = integer_format(format).codes(narrow_range)
        v, scale = v.detach().requires_grad_(), scale.detach().requires_grad_()
        zero = _beside(torch.zeros_like(scale) if zero_point is None else zero_point.float(), granularity, axis)
        with torch.enable_grad():
            wide = _beside(scale, granularity, axis)
            quotient = torch.clamp(_grouped(v, granularity, group_size) / wide, qmin - zero, qmax - zero)
            (_straight_through(quotient) * wide).backward(_grouped(upstream, granularity, group_size))
        return v.grad, scale.grad * gradient_scale
