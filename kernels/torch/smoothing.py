"""SmoothQuant in torch."""

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend, Semantics
from lowbit_cts.kernels.torch.build import Build

_FLOOR = 1e-5


def _smooth(absmax: Tensor, w: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    largest = w.abs().amax(0) if w.shape[0] else torch.zeros_like(absmax)
    scale = (absmax.pow(alpha) / largest.clamp(min=_FLOOR).pow(1 - alpha)).clamp(min=_FLOOR)
    return scale, w * scale


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register the kernel."""
    smooth = build(_smooth)

    @backend.implements("smooth_weights", name="composed", supports={"alpha": (0.5, 0.75, 0.25, 0.0, 1.0)})
    def composed(absmax: Tensor, w: Tensor, *, alpha: float) -> tuple[Tensor, Tensor]:
        if w.shape[1:] != absmax.shape:
            raise ValueError(f"w: has shape {tuple(w.shape)}, must have the {absmax.numel()} columns of absmax")
        return smooth(absmax, w, alpha)
