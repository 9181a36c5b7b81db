"""GPTQ in torch: columns in blocks, as the paper's own code has it."""

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend

_BLOCK = 128


def _upper_factor_of_inverse(h: Tensor) -> Tensor:
    """Return U with h^-1 = U^T U."""
    lower = torch.linalg.cholesky(h)
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)


def _range(columns: Tensor, symmetric: bool, largest: int) -> tuple[Tensor, Tensor]:
    """Return scale and zero point, (N,), of columns (K, N)."""
    low, high = columns.amin(0).clamp(max=0), columns.amax(0).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    nothing = (low == 0) & (high == 0)
    low, high = low.masked_fill(nothing, -1), high.masked_fill(nothing, 1)
    scale = (high - low) / torch.full_like(high, largest)
    zero = torch.full_like(scale, (largest + 1) // 2) if symmetric else torch.round(-low / scale)
    return scale, zero


def quantize_gptq(
    w: Tensor,
    hessian: Tensor,
    *,
    format: str,
    mapping: str,
    group_size: int | None,
    static_groups: bool,
    act_order: bool,
    damping: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return codes, scales, zero points and the group of each column."""
    n, k = w.shape
    if hessian.shape != (k, k):
        raise ValueError("hessian: must be square, of the columns of w")
    largest, symmetric = (1 << int(format.removeprefix("uint"))) - 1, mapping == "symmetric"
    dead = torch.diagonal(hessian) == 0
    h = hessian + torch.diag_embed(dead.to(hessian.dtype))
    left = torch.where(dead, 0.0, w).t().contiguous()  # a column is a row
    size = group_size or max(k, 1)
    groups = -(-k // size)
    group_of = torch.arange(k, device=w.device) // size
    scale, zero = w.new_ones((groups, n)), w.new_zeros((groups, n))
    if static_groups:
        for group in range(groups):
            scale[group], zero[group] = _range(left[group * size : (group + 1) * size], symmetric, largest)
    order = torch.arange(k, device=w.device)
    if act_order:
        order = torch.argsort(torch.diagonal(h), descending=True, stable=True)
    left, h = left[order], h[order][:, order]
    if static_groups:
        group_of = group_of[order]
    if k:
        h = h + torch.diag_embed((damping * torch.diagonal(h).mean()).expand(k))
        u = _upper_factor_of_inverse(h)
    codes = torch.empty((k, n), dtype=torch.uint8, device=w.device)
    index = group_of.tolist()
    block = max(_BLOCK // size, 1) * size if size <= _BLOCK or not static_groups else _BLOCK
    for start in range(0, k, block):
        stop = min(start + block, k)
        part, errors = left[start:stop], torch.empty_like(left[start:stop])
        inside = u[start:stop, start:stop]
        diagonal = torch.diagonal(inside).tolist()
        for j in range(stop - start):
            group = index[start + j]
            if not static_groups and (start + j) % size == 0:
                scale[group], zero[group] = _range(part[j : j + size], symmetric, largest)
            code = (torch.round(part[j] / scale[group]) + zero[group]).clamp_(0, largest)
            codes[start + j] = code.to(torch.uint8)
            errors[j] = (part[j] - (code - zero[group]) * scale[group]) / diagonal[j]
            part[j + 1 :].addr_(inside[j, j + 1 :], errors[j], alpha=-1)
        left[stop:].addmm_(u[start:stop, stop:].t(), errors, alpha=-1)
    placed, places = torch.empty_like(codes), torch.empty_like(group_of)
    placed[order], places[order] = codes, group_of
    return placed.t().contiguous(), scale.t().contiguous(), zero.t().to(torch.int32).contiguous(), places.int()


def register(backend: Backend) -> None:
    """Register the kernel."""
    backend.implements(
        "quantize_gptq",
        supports={
            "format": tuple(f"uint{bits}" for bits in range(2, 9)), "mapping": ("asymmetric", "symmetric"),
            "granularity": ("channel", "group"), "group_size": (32, 12, 128), "static_groups": (False, True),
            "act_order": (False, True), "damping": (0.01, 0.1),
        },
    )(quantize_gptq)  # fmt: skip
