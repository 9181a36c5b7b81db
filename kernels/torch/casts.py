"""float8 casts in torch: Tensor.to, both directions."""

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend, Overflow, Semantics
from lowbit_cts.kernels.torch.build import Build, compiled
from lowbit_cts.reference.formats import FLOAT8_FORMATS

_WIDE = ("float32", "float16", "bfloat16")
#: Since 2.13 E4M3FN, which has no Inf, saturates, Inf too (before, NaN); E5M2 overflows to Inf.
_OVERFLOW = {"float8_e4m3fn": Overflow.SATURATE, "float8_e5m2": Overflow.INFINITY_OR_NAN}


def _to(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)


def register(backend: Backend, build: Build) -> None:
    """Register `Tensor.to` toward each float8 format, and from them."""
    cast = build(_to)

    def to(x: Tensor, *, target: str) -> Tensor:
        return cast(x, getattr(torch, target))

    for target, overflow in _OVERFLOW.items():
        if build is compiled and backend.device != "cpu" and target == "float8_e5m2":
            continue  # Triton converts by cvt.rn.satfinite on some architectures only
        backend.implements(
            "cast_float8",
            name=f"to_{target}",
            semantics=Semantics(overflow=overflow),
            supports={"source": _WIDE, "target": target},
        )(to)
    # Widening overflows nowhere, and keeps Inf.
    backend.implements(
        "cast_float8",
        name="from_float8",
        semantics=Semantics(overflow=Overflow.INFINITY_OR_NAN),
        supports={"source": FLOAT8_FORMATS, "target": _WIDE},
    )(to)
