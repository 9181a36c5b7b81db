"""Casts in torch: Tensor.to in every direction, and stochastic rounding composed of plain operators."""

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend, OutsideDomain, Overflow, Rounding, Semantics
from lowbit_cts.kernels.torch.build import Build, compiled
from lowbit_cts.reference.formats import FLOAT8_FORMATS, FloatFormat, float_format

_WIDE = ("float32", "float16", "bfloat16")
_SMALL = (*FLOAT8_FORMATS, "float8_e8m0fnu")
#: Since 2.13 E4M3FN, which has no Inf, saturates, Inf too (before, NaN); E5M2 overflows to Inf, the FNUZ types to NaN,
#: E8M0 drops the sign and makes zero its smallest number.
_TO = {
    "float8_e4m3fn": Semantics(overflow=Overflow.SATURATE),
    "float8_e5m2": Semantics(overflow=Overflow.INFINITY_OR_NAN),
    "float8_e4m3fnuz": Semantics(overflow=Overflow.INFINITY_OR_NAN),
    "float8_e5m2fnuz": Semantics(overflow=Overflow.INFINITY_OR_NAN),
    "float8_e8m0fnu": Semantics(overflow=Overflow.INFINITY_OR_NAN, outside_domain=OutsideDomain.MAGNITUDE),
}


def _to(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)


def _stochastic(x: Tensor, fmt: FloatFormat, dtype: torch.dtype) -> Tensor:
    """Return x rounded up in magnitude with the probability of its fraction of a unit in the last place."""
    exponent = torch.frexp(x).exponent - 1
    last_place = torch.ldexp(torch.ones_like(x), exponent.clamp_min(fmt.minimum_exponent) - fmt.mantissa_bits)
    steps = x.abs() / last_place  # exact: a power of two
    whole = steps.floor()
    # 24 random bits, as many as the fraction can have below 1.
    up = torch.rand_like(x) < steps - whole
    rounded = torch.copysign((whole + up).mul(last_place), x)
    return torch.where(x.isfinite(), rounded, x).to(dtype)


def register(backend: Backend, build: Build) -> None:
    """Register `Tensor.to` toward each small float, from them, and between wide floats; stochastic rounding."""
    cast, stochastic = build(_to), build(_stochastic)

    def to(x: Tensor, *, target: str) -> Tensor:
        return cast(x, getattr(torch, target))

    def stochastically(x: Tensor, *, target: str) -> Tensor:
        return stochastic(x, float_format(target), getattr(torch, target))

    for target, semantics in _TO.items():
        if build is compiled and backend.device != "cpu" and target == "float8_e5m2":
            continue  # Triton converts by cvt.rn.satfinite on some architectures only
        backend.implements(
            "cast_float", name=f"to_{target}", semantics=semantics, supports={"source": _WIDE, "target": target}
        )(to)
    # Widening overflows nowhere, and keeps Inf.
    wide = Semantics(overflow=Overflow.INFINITY_OR_NAN)
    backend.implements("cast_float", name="from_small", semantics=wide, supports={"source": _SMALL, "target": _WIDE})(
        to
    )
    backend.implements("cast_float", name="between_wide", semantics=wide, supports={"source": _WIDE, "target": _WIDE})(
        to
    )
    backend.implements(
        "cast_float", name="from_float64", semantics=wide, supports={"source": "float64", "target": _WIDE}
    )(to)
    backend.implements(
        "cast_float",
        name="stochastic",
        semantics=Semantics(rounding=Rounding.STOCHASTIC, overflow=Overflow.INFINITY_OR_NAN),
        supports={"source": "float32", "target": ("bfloat16", "float8_e5m2")},
    )(stochastically)
