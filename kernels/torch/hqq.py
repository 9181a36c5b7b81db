"""Half-quadratic quantization in torch: all groups at once, by the reciprocals of the scales."""

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend

_NORM, _WEIGHT, _STEPS = 0.7, 10.0, 20


def _kept(missed: Tensor, weight: float) -> Tensor:
    """Return what the norm keeps of errors."""
    size = missed.abs()
    return torch.sign(missed) * (size - size.pow(_NORM - 1) / weight).clamp_min(0)


def quantize_hqq(w: Tensor, *, format: str, group_size: int | None, growth: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, scales and zero points."""
    n, k = w.shape
    size = group_size or k
    if not size or k % size:
        raise ValueError(f"group_size: {size} does not divide {k} columns")
    largest = (1 << int(format.removeprefix("uint"))) - 1
    groups = w.reshape(n, k // size, size)
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    scale = torch.where(high > low, (high - low) / torch.full_like(high, largest), 1.0)
    inverse = scale.reciprocal()
    steps, zero = groups * inverse, -low * inverse
    weight, least, best = _WEIGHT, float("inf"), (torch.zeros_like(groups), zero)
    for _ in range(_STEPS + 1):
        codes = torch.round(steps + zero).clamp_(0, largest)
        missed = groups - (codes - zero) * scale
        error = float(missed.abs().mean()) if w.numel() else 0.0
        if error >= least:
            break
        least, best = error, (codes, zero)
        zero = (codes - (groups - _kept(missed, weight)) * inverse).mean(2, keepdim=True)
        weight *= growth
    codes, zero = best
    return codes.to(torch.uint8).reshape(n, k), scale.squeeze(2), zero.squeeze(2)


def register(backend: Backend) -> None:
    """Register the kernel."""
    backend.implements(
        "quantize_hqq",
        supports={
            "format": tuple(f"uint{bits}" for bits in range(2, 9)), "granularity": ("channel", "group"),
            "group_size": (64, 32, 12, 128), "growth": (1.01, 1.0),
        },
    )(quantize_hqq)  # fmt: skip
