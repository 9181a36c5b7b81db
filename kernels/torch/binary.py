"""Binary and ternary weights in torch."""

from dataclasses import replace

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend, Semantics
from lowbit_cts.kernels.torch.build import Build

#: The least scale of the rounding rule, BitNet's.
_EPSILON = 1e-5
_SUPPORTS = {"granularity": ("tensor", "axis", "group"), "input_format": ("float32", "float16", "bfloat16")}


def _members(x: Tensor, granularity: str, axis: int | None, group_size: int | None) -> tuple[Tensor, tuple[int, ...]]:
    """Return x with what shares a scale along the axes that are returned beside it."""
    if granularity == "group" and group_size:
        return x.unflatten(1, (x.shape[1] // group_size, group_size)), (2,)
    return x, (0, 1) if granularity == "tensor" else (1 - (axis or 0),)


def _count(members: Tensor, shared: tuple[int, ...]) -> Tensor:
    """Return how many weights share a scale, on the device: CUDA divides by a number as by its reciprocal."""
    count = 1
    for axis in shared:
        count *= members.shape[axis]
    return torch.full((), count, dtype=torch.float32, device=members.device)


def _binarize(members: Tensor, shared: tuple[int, ...], count: Tensor) -> tuple[Tensor, Tensor]:
    x = members.float()
    return torch.where(x >= 0, 1, -1).to(torch.int8), x.abs().sum(shared) / count


def _by_rounding(members: Tensor, shared: tuple[int, ...], count: Tensor) -> tuple[Tensor, Tensor]:
    x = members.float()
    scale = (x.abs().sum(shared, keepdim=True) / count).clamp(min=_EPSILON)
    return torch.round(x / scale).clamp(-1, 1).to(torch.int8), scale


def _by_threshold(members: Tensor, shared: tuple[int, ...], count: Tensor) -> tuple[Tensor, Tensor]:
    x = members.float()
    size = x.abs()
    chosen = size > 0.7 * (size.sum(shared, keepdim=True) / count)
    above = torch.where(chosen, size, 0.0).sum(shared, keepdim=True)
    scale = above / chosen.sum(shared, keepdim=True).clamp(min=1)
    return torch.where(chosen, x.sign(), 0.0).to(torch.int8), scale


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register the formulas in plain tensor operations.

    Parameters
    ----------
    backend : Backend
    build : callable
        Eager or compiled (`lowbit_cts.kernels.torch.build`).
    arithmetic : Semantics
        How a division comes out.
    """
    binarize_ = build(_binarize)
    ternarize_ = {"bitnet": build(_by_rounding), "twn": build(_by_threshold)}

    @backend.implements("binarize", name="composed", semantics=arithmetic, supports=_SUPPORTS)
    def binarize(x, *, granularity, axis, group_size):
        members, shared = _members(x, granularity, axis, group_size)
        codes, scale = binarize_(members, shared, _count(members, shared))
        return codes.reshape(x.shape), scale

    @backend.implements(
        "ternarize",
        name="composed",
        semantics=replace(arithmetic, epsilon=_EPSILON),
        supports={**_SUPPORTS, "rule": ("twn", "bitnet")},
    )
    def ternarize(x, *, rule, granularity, axis, group_size):
        members, shared = _members(x, granularity, axis, group_size)
        codes, scale = ternarize_[rule](members, shared, _count(members, shared))
        return codes.reshape(x.shape), scale.squeeze(shared)
