"""Requantization in torch: float32, and the integer arithmetic of TFLite and XNNPACK in int64."""

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend, Requantization, Semantics
from lowbit_cts.kernels.torch.affine import carrier
from lowbit_cts.kernels.torch.build import Build
from lowbit_cts.reference.formats import integer_format

_INT32 = torch.iinfo(torch.int32)
_INT16 = torch.iinfo(torch.int16)
_EVERYWHERE = {"format": ("int8", "uint8"), "granularity": ("tensor", "channel")}

#: Bits of the integer multiplier.
_BITS = {
    Requantization.DOUBLE_ROUNDING: 31,
    Requantization.SINGLE_ROUNDING: 31,
    Requantization.RNDNU: 24,
    Requantization.RNDNU16: 15,
    Requantization.DOUBLE_ROUNDING_UP: 31,
}


def _multiplier(scale: Tensor, variant: Requantization) -> tuple[Tensor, Tensor]:
    """Return the scale as an integer multiplier and a power of two; TFLite's is 0 below 2**-32."""
    bits = _BITS[variant]
    mantissa, exponent = torch.frexp(scale.double())
    multiplier = torch.floor(mantissa * 2**bits + 0.5).long()
    full = multiplier == 1 << bits
    multiplier, shift = torch.where(full, 1 << (bits - 1), multiplier), exponent.long() + full
    tiny = (shift < -31) & (bits == 31)
    return multiplier.masked_fill(tiny, 0), shift.masked_fill(tiny, 0)


def _shifted(x: Tensor, places: Tensor | int) -> Tensor:
    """Return x / 2**places to nearest, ties up."""
    return (x + ((torch.ones_like(x) << places) >> 1)) >> places


def _saturated(steps: Tensor, zero_point: Tensor, qmin: int, qmax: int, dtype: torch.dtype) -> Tensor:
    return torch.clamp(steps + zero_point, qmin, qmax).to(dtype)


def _in_float32(acc: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, dtype: torch.dtype) -> Tensor:
    return _saturated(torch.round(acc.float() * scale), zero_point, qmin, qmax, dtype)


def _double_rounding(acc: Tensor, multiplier: Tensor, shift: Tensor, *codes) -> Tensor:
    wide = torch.clamp(acc.long() << shift.clamp_min(0), _INT32.min, _INT32.max)
    high = _shifted(wide * multiplier, 31)
    return _saturated(torch.sign(high) * _shifted(high.abs(), (-shift).clamp_min(0)), *codes)


def _double_rounding_up(acc: Tensor, multiplier: Tensor, shift: Tensor, *codes) -> Tensor:
    wide = torch.clamp(acc.long() << shift.clamp_min(0), _INT32.min, _INT32.max)
    return _saturated(_shifted(_shifted(wide * multiplier, 31), (-shift).clamp_min(0)), *codes)


def _single_rounding(acc: Tensor, multiplier: Tensor, shift: Tensor, *codes) -> Tensor:
    return _saturated(_shifted(acc.long() * multiplier, 31 - shift), *codes)


def _rndnu(acc: Tensor, multiplier: Tensor, shift: Tensor, *codes) -> Tensor:
    return _saturated(_shifted(acc.long() * multiplier, 24 - shift), *codes)


def _rndnu16(acc: Tensor, multiplier: Tensor, shift: Tensor, *codes) -> Tensor:
    wide = _shifted(acc.long() << shift.clamp_min(0), (-shift).clamp_min(0))
    return _saturated(_shifted(torch.clamp(wide, _INT16.min, _INT16.max) * multiplier, 15), *codes)


_VARIANTS = {
    Requantization.DOUBLE_ROUNDING: _double_rounding,
    Requantization.SINGLE_ROUNDING: _single_rounding,
    Requantization.RNDNU: _rndnu,
    Requantization.RNDNU16: _rndnu16,
    Requantization.DOUBLE_ROUNDING_UP: _double_rounding_up,
}


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register a kernel a variant; what becomes of the scale is prepared once."""
    in_float32_ = build(_in_float32)

    @backend.implements("requantize", name="float32", supports=_EVERYWHERE)
    def in_float32(acc: Tensor, scale: Tensor, zero_point: Tensor, *, format: str) -> Tensor:
        return in_float32_(acc, scale, zero_point, *integer_format(format).codes(), carrier(format))

    for variant, steps in _VARIANTS.items():

        def prepare(scale: Tensor, zero_point: Tensor, *, variant: Requantization = variant) -> tuple[Tensor, ...]:
            return (*_multiplier(scale, variant), zero_point)

        def requantize(acc, *, prepared, format, steps=build(steps)):  # noqa: B008
            return steps(acc, *prepared, *integer_format(format).codes(), carrier(format))

        backend.implements(
            "requantize",
            name=str(variant),
            prepare=prepare,
            semantics=Semantics(requantization=variant),
            supports=_EVERYWHERE,
        )(requantize)
