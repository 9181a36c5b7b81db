"""AWQ's searches in torch: every candidate in float32, all groups at once; nothing waits for the device."""

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend

_RATIOS, _SHARES = 20, 10
_LEAST_SCALE, _LEAST_RANGE = 1e-4, 1e-5
#: Weights, or outputs, that are held at once: on the CPU what a cache holds, elsewhere what a device is busy with.
_HELD = {"cpu": 1 << 18}
_HELD_ELSEWHERE = 1 << 28


def _groups(x: Tensor, w: Tensor, group_size: int | None) -> Tensor:
    """Return the weights by groups, (N, G, S)."""
    size = group_size or w.shape[1]
    if x.shape[1] != w.shape[1]:
        raise ValueError(f"x: has {x.shape[1]} columns, must have the {w.shape[1]} of w")
    if not x.shape[0] or not size or w.shape[1] % size:
        raise ValueError(f"x, w: must have samples, and columns in whole groups of {size}; have {x.shape}, {w.shape}")
    return w.reshape(w.shape[0], w.shape[1] // size, size)


def _block(w: Tensor, outputs: int) -> int:
    """Return how many rows are taken at once."""
    return max(1, _HELD.get(w.device.type, _HELD_ELSEWHERE) // max(w.shape[1], outputs))


def _round(groups: Tensor, largest: int) -> Tensor:
    """Return weights (N, G, S) rounded to the codes of their groups."""
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = (high - low).clamp_(min=_LEAST_RANGE) / torch.full((), largest, dtype=groups.dtype, device=groups.device)
    zero = (low / scale).round_().neg_().clamp_(0, largest)
    return (groups / scale).round_().add_(zero).clamp_(0, largest).sub_(zero).mul_(scale)


def _largest(format: str) -> int:
    return (1 << int(format.removeprefix("uint"))) - 1


def _candidates(x: Tensor, groups: Tensor, candidates: str) -> Tensor:
    """Return the scales of every ratio, (20, K)."""
    ratios = torch.arange(_RATIOS, device=x.device, dtype=x.dtype)[:, None] / _RATIOS
    scales = x.abs().mean(0) ** ratios
    if candidates == "both":
        share = groups.abs()
        share = share.div_(share.amax(-1, keepdim=True) + 1e-6).mean(0).flatten()
        scales = scales / (share ** (1 - ratios) + 1e-4)
    scales = scales.clamp(min=_LEAST_SCALE)
    low, high = torch.aminmax(scales, dim=1, keepdim=True)
    return scales / (high * low).sqrt()


def awq_scales(x: Tensor, w: Tensor, *, format: str, group_size: int | None, candidates: str) -> tuple[Tensor, Tensor]:
    """Return the index of the ratio of the least output error, and its scales."""
    groups, largest = _groups(x, w, group_size), _largest(format)
    if not w.shape[0]:
        raise ValueError("w: must have a row or more")
    scales = _candidates(x, groups, candidates)
    errors = torch.zeros(_RATIOS, dtype=torch.float64, device=x.device)
    for i in range(_RATIOS):
        samples = (x / scales[i]).t()
        for rows in w.split(_block(w, x.shape[0])):
            scaled = rows * scales[i]
            rounded = _round(scaled.view(-1, *groups.shape[1:]), largest).view(scaled.shape)
            errors[i] += (rounded.sub_(scaled) @ samples).square_().sum()
    best = errors.argmin()
    return best.int(), scales.index_select(0, best.reshape(1))[0]


def awq_clipping(x: Tensor, w: Tensor, *, format: str, group_size: int | None) -> tuple[Tensor, Tensor]:
    """Return the bounds of the least error of each group's outputs, and which shares of its range they are."""
    groups, largest = _groups(x, w, group_size), _largest(format)
    if not w.shape[0]:
        return w.new_empty(groups.shape[:2]), torch.empty(groups.shape[:2], dtype=torch.int32, device=w.device)
    samples = x.reshape(x.shape[0], *groups.shape[1:]).permute(1, 2, 0).contiguous()  # (G, S, M)
    shares = torch.tensor([1 - i / 20 for i in range(_SHARES)], dtype=w.dtype, device=w.device)
    bounds, indices = [], []
    for part in groups.split(_block(w, x.shape[0] * groups.shape[1])):
        top = part.abs().amax(-1)
        errors = []
        for i in range(_SHARES):
            limit = (top * (1 - i / 20))[..., None]
            clipped = torch.minimum(torch.maximum(part, -limit), limit)
            missed = _round(clipped, largest).sub_(part).transpose(0, 1) @ samples
            errors.append(missed.square_().sum(-1).t())
        index = torch.stack(errors).argmin(0)
        bounds.append(top * shares[index])
        indices.append(index.int())
    return torch.cat(bounds), torch.cat(indices)


def register(backend: Backend) -> None:
    """Register the kernels."""
    supports = {
        "format": tuple(f"uint{bits}" for bits in range(2, 9)), "granularity": ("channel", "group"),
        "group_size": (32, 16, 128),
    }  # fmt: skip
    backend.implements("awq_scales", supports={**supports, "candidates": ("activations", "both")})(awq_scales)
    backend.implements("awq_clipping", supports=supports)(awq_clipping)
