"""Affine quantization in torch: native, quantized_decomposed, observers, and plain tensor operations."""

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lowbit_cts.kernels import (
    Backend,
    Contraction,
    Division,
    Precision,
    ScaleRule,
    Semantics,
    ZeroPointOrder,
)
from lowbit_cts.kernels.torch.build import Build
from lowbit_cts.reference.affine import middle
from lowbit_cts.reference.formats import INTEGER_FORMATS, integer_format

FLOATS = ("float32", "float16", "bfloat16")
_MAPPINGS = {"mapping": ("symmetric", "asymmetric")}
_FORMATS = {"format": INTEGER_FORMATS, **_MAPPINGS}
_NARROW = {"narrow_range": (False, True)}
_TENSOR = {"granularity": "tensor"}
_AXIS = {"granularity": "axis"}
_TENSOR_OR_AXIS = {"granularity": ("tensor", "axis")}
_EVERYWHERE = {"granularity": ("tensor", "axis", "group")}
#: What torch.quint8 and torch.qint8 hold.
_NATIVE = {"format": ("int8", "uint8"), **_MAPPINGS}
_QUANTIZED = {"int8": torch.qint8, "uint8": torch.quint8}

#: round(x * (1 / s)) + z: fake_quantize, quantized_decomposed.
OUTSIDE = Semantics(division=Division.RECIPROCAL)
#: round(x * (1 / s) + z), as two operations: quantize_per_channel on the CPU.
INSIDE = replace(OUTSIDE, zero_point_order=ZeroPointOrder.INSIDE)
#: The same with one fused multiply-add, in vector body and scalar tail: quantize_per_tensor on the CPU.
INSIDE_FUSED = replace(INSIDE, contraction=Contraction.FUSED)
#: round(double(x) / s) + z: both of them on CUDA, which takes the scale as a double.
DOUBLE = Semantics(intermediate=Precision.FLOAT64)
#: The observers' symmetric scale is max|x| / ((qmax - qmin) / 2); their epsilon is float32's.
OBSERVER = Semantics(scale_rule=ScaleRule.HALF_RANGE, epsilon=2.0**-23)


def carrier(format: str) -> torch.dtype:
    """Return the torch type that holds one code of an integer format an element."""
    return torch.int8 if integer_format(format).signed else torch.uint8


def register_native(backend: Backend) -> None:
    """Register torch's own quantizers, dequantizers and observers."""
    _register_quantized_tensors(backend)
    _register_fake_quantize(backend)
    if find_spec("torch.ao.quantization.fx._decomposed"):
        _register_decomposed(backend)
        _register_observers(backend)


def _register_quantized_tensors(backend: Backend) -> None:
    on_cpu = backend.device == "cpu"

    @backend.implements(
        "quantize_affine", semantics=INSIDE_FUSED if on_cpu else DOUBLE, supports={**_NATIVE, **_TENSOR}
    )
    def quantize_per_tensor(x: Tensor, scale: Tensor, zero_point: Tensor, *, format: str) -> Tensor:
        return torch.quantize_per_tensor(x, scale, zero_point, _QUANTIZED[format]).int_repr()

    @backend.implements("quantize_affine", semantics=INSIDE if on_cpu else DOUBLE, supports={**_NATIVE, **_AXIS})
    def quantize_per_channel(x: Tensor, scale: Tensor, zero_point: Tensor, *, format: str, axis: int) -> Tensor:
        return torch.quantize_per_channel(x, scale, zero_point, axis, _QUANTIZED[format]).int_repr()

    # Quantized tensors keep a per-tensor scale on the host, so here its value must come over: a wait.
    @backend.implements("dequantize_affine", supports={**_NATIVE, **_TENSOR})
    def dequantize_per_tensor(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        return torch._make_per_tensor_quantized_tensor(codes, scale.item(), int(zero_point.item())).dequantize()

    @backend.implements("dequantize_affine", supports={**_NATIVE, **_AXIS})
    def dequantize_per_channel(codes: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int) -> Tensor:
        return torch._make_per_channel_quantized_tensor(codes, scale, zero_point, axis).dequantize()


def _register_fake_quantize(backend: Backend) -> None:
    @backend.implements("fake_quantize_affine", semantics=OUTSIDE, supports={**_FORMATS, **_NARROW, **_TENSOR})
    def fake_quantize_per_tensor(
        x: Tensor, scale: Tensor, zero_point: Tensor, *, format: str, narrow_range: bool
    ) -> Tensor:
        codes = integer_format(format).codes(narrow_range)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, *codes)

    @backend.implements("fake_quantize_affine", semantics=OUTSIDE, supports={**_FORMATS, **_NARROW, **_AXIS})
    def fake_quantize_per_channel(
        x: Tensor, scale: Tensor, zero_point: Tensor, *, format: str, axis: int, narrow_range: bool
    ) -> Tensor:
        codes = integer_format(format).codes(narrow_range)
        return torch.fake_quantize_per_channel_affine(x, scale, zero_point, axis, *codes)


def _register_decomposed(backend: Backend) -> None:
    """Register the operators of PT2E graphs, which are themselves composed of plain ones."""
    import torch.ao.quantization.fx._decomposed

    ops = torch.ops.quantized_decomposed

    @backend.implements(
        "quantize_affine",
        name="quantized_decomposed",
        semantics=OUTSIDE,
        supports={**_FORMATS, **_NARROW, **_TENSOR_OR_AXIS, "input_format": FLOATS},
    )
    def quantize(
        x: Tensor, scale: Tensor, zero_point: Tensor, *, format: str, axis: int | None, narrow_range: bool
    ) -> Tensor:
        codes = *integer_format(format).codes(narrow_range), carrier(format)
        if axis is None:
            return ops.quantize_per_tensor.tensor(x, scale, zero_point, *codes)
        return ops.quantize_per_channel(x, scale, zero_point, axis, *codes)

    @backend.implements(
        "dequantize_affine",
        name="quantized_decomposed",
        supports={**_FORMATS, **_TENSOR_OR_AXIS, "output_format": FLOATS},
    )
    def dequantize(
        codes: Tensor, scale: Tensor, zero_point: Tensor, *, format: str, axis: int | None, output_format: str
    ) -> Tensor:
        kind = *integer_format(format).codes(), carrier(format)
        output = getattr(torch, output_format)
        if axis is None:
            return ops.dequantize_per_tensor.tensor(codes, scale, zero_point, *kind, out_dtype=output)
        return ops.dequantize_per_channel(codes, scale, zero_point, axis, *kind, out_dtype=output)


def _register_observers(backend: Backend) -> None:
    """Register MinMaxObserver and PerChannelMinMaxObserver: one observation, then calculate_qparams."""
    from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver

    def observed(
        x: Tensor, *, format: str, mapping: str, axis: int | None, narrow_range: bool
    ) -> tuple[Tensor, Tensor]:
        qmin, qmax = integer_format(format).codes(narrow_range)
        affine = "affine" if mapping == "asymmetric" else "symmetric"
        settings: dict[str, Any] = {
            "dtype": torch.qint8 if qmin < 0 else torch.quint8,
            "qscheme": getattr(torch, f"per_{'tensor' if axis is None else 'channel'}_{affine}"),
            "quant_min": qmin,
            "quant_max": qmax,
            "factory_kwargs": {"device": x.device},
        }
        if axis is None:
            observer: Any = MinMaxObserver(**settings)
        else:
            observer = PerChannelMinMaxObserver(ch_axis=axis, **settings)
        observer(x)
        scale, zero_point = observer.calculate_qparams()
        zero_point = zero_point.to(torch.int32)  # int64 where symmetric
        return (scale, zero_point) if axis is not None else (scale.reshape(()), zero_point.reshape(()))

    # The observers refuse unsigned codes without 0, and have another middle for those below 8 bits.
    signed = {
        "format": [name for name in INTEGER_FORMATS if integer_format(name).signed],
        **_MAPPINGS,
        **_NARROW,
    }
    unsigned = {"format": [name for name in INTEGER_FORMATS if not integer_format(name).signed]}
    for name, supports in (("observer", signed), ("observer_unsigned", unsigned)):
        backend.implements(
            "choose_qparams_affine",
            name=name,
            semantics=OBSERVER,
            supports={**supports, **_TENSOR_OR_AXIS, "input_format": FLOATS},
        )(observed)


def _beside(x: Tensor, values: Tensor, granularity: str, axis: int | None) -> Tensor:
    """Return scales or zero points as a view that broadcasts against x, or its groups (M, G, group_size)."""
    if granularity == "group":
        return values[..., None]
    return values[:, None] if granularity == "axis" and axis == 0 else values


def _grouped(x: Tensor, granularity: str, group_size: int | None) -> Tensor:
    """Return x as (M, G, group_size) where neighbours share a scale."""
    return x.unflatten(1, (x.shape[1] // group_size, group_size)) if granularity == "group" and group_size else x


def _codes(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    # A NaN has no code; it gets the zero point, for a conversion to int8 would make of it what the machine likes.
    steps = torch.nan_to_num(torch.round(x.float() / scale), nan=0.0)
    return torch.clamp(steps + zero_point, qmin, qmax)


def _quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, dtype: torch.dtype) -> Tensor:
    return _codes(x, scale, zero_point, qmin, qmax).to(dtype)


def _dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor, dtype: torch.dtype) -> Tensor:
    return ((codes.to(torch.int32) - zero_point).float() * scale).to(dtype)


def _fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> Tensor:
    return (_codes(x, scale, zero_point, qmin, qmax) - zero_point) * scale


def _choose_symmetric(x: Tensor, reduced: tuple[int, ...], qmin: int, qmax: int, zero: int) -> tuple[Tensor, Tensor]:
    largest = torch.amax(torch.abs(x.float()), reduced)
    scale = torch.clamp(largest / ((qmax - qmin) / 2), min=OBSERVER.epsilon)
    return scale, torch.full_like(scale, zero, dtype=torch.int32)


def _choose_asymmetric(x: Tensor, reduced: tuple[int, ...], qmin: int, qmax: int) -> tuple[Tensor, Tensor]:
    x = x.float()
    low, high = torch.clamp(torch.amin(x, reduced), max=0.0), torch.clamp(torch.amax(x, reduced), min=0.0)
    scale = torch.clamp((high - low) / (qmax - qmin), min=OBSERVER.epsilon)
    zero_point = torch.clamp(qmin - torch.round(low / scale), qmin, qmax)
    return scale, zero_point.to(torch.int32)


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register the formulas in plain tensor operations, for every format and granularity.

    Parameters
    ----------
    backend : Backend
    build : callable
        Eager or compiled (`lowbit_cts.kernels.torch.build`).
    arithmetic : Semantics
        How a division comes out.
    """
    quantize_, dequantize_, fake_quantize_ = build(_quantize), build(_dequantize), build(_fake_quantize)
    choose_symmetric, choose_asymmetric = build(_choose_symmetric), build(_choose_asymmetric)
    everything = {**_FORMATS, **_EVERYWHERE}

    @backend.implements(
        "quantize_affine",
        name="composed",
        semantics=arithmetic,
        supports={**everything, **_NARROW, "input_format": FLOATS},
    )
    def quantize(x, scale, zero_point, *, format, granularity, axis, group_size, narrow_range):
        scale, zero_point = (_beside(x, v, granularity, axis) for v in (scale, zero_point))
        codes = integer_format(format).codes(narrow_range)
        grouped = _grouped(x, granularity, group_size)
        return quantize_(grouped, scale, zero_point, *codes, carrier(format)).reshape(x.shape)

    @backend.implements(
        "dequantize_affine",
        name="composed",
        semantics=arithmetic,
        supports={**everything, "output_format": FLOATS},
    )
    def dequantize(codes, scale, zero_point, *, granularity, axis, group_size, output_format):
        scale, zero_point = (_beside(codes, v, granularity, axis) for v in (scale, zero_point))
        grouped = _grouped(codes, granularity, group_size)
        return dequantize_(grouped, scale, zero_point, getattr(torch, output_format)).reshape(codes.shape)

    @backend.implements(
        "fake_quantize_affine", name="composed", semantics=arithmetic, supports={**everything, **_NARROW}
    )
    def fake_quantize(x, scale, zero_point, *, format, granularity, axis, group_size, narrow_range):
        scale, zero_point = (_beside(x, v, granularity, axis) for v in (scale, zero_point))
        codes = integer_format(format).codes(narrow_range)
        return fake_quantize_(_grouped(x, granularity, group_size), scale, zero_point, *codes).reshape(x.shape)

    @backend.implements(
        "choose_qparams_affine",
        name="composed",
        semantics=replace(OBSERVER, division=arithmetic.division),
        supports={**everything, **_NARROW, "input_format": FLOATS},
    )
    def choose_qparams(x, *, format, granularity, axis, group_size, mapping, narrow_range):
        qmin, qmax = integer_format(format).codes(narrow_range)
        reduced = {"tensor": (0, 1), "axis": (1 - (axis or 0),), "group": (2,)}[granularity]
        x = _grouped(x, granularity, group_size)
        if mapping == "symmetric":
            return choose_symmetric(x, reduced, qmin, qmax, middle(qmin, qmax))
        return choose_asymmetric(x, reduced, qmin, qmax)
