"""QUANTIZE, DEQUANTIZE, one after the other, QUANTIZE from int32, and ADD."""

from functools import partial

import numpy as np

from lowbit_cts.kernels import Backend, DequantizeForm, Division, Requantization, Rounding, Semantics
from lowbit_cts.kernels.adapters.litert.interpreters import Kernels, Operator, codes, plain, quantized, run

_BYTES = ("int8", "uint8")
_MAPPINGS = {"mapping": ("symmetric", "asymmetric"), "format": _BYTES}
_ONE, _ZERO = np.ones((), np.float32), np.zeros((), np.int32)


def quantize(x, scale, zero_point, *, format, axis, out, kernels):
    """Write the codes."""
    tensors = (plain(x), codes(format, x.shape, scale, zero_point, axis or 0))
    run(tensors, (Operator("QUANTIZE", 2, (0,), 1),), {0: x}, out, kernels)


def dequantize(given, scale, zero_point, *, axis, out, kernels):
    """Write the numbers."""
    tensors = (quantized(given, scale, zero_point, axis or 0), plain(out))
    run(tensors, (Operator("DEQUANTIZE", 3, (0,), 1),), {0: given}, out, kernels)


def fake_quantize(x, scale, zero_point, *, format, axis, out, kernels):
    """Write what the one operator makes of the other's codes, in one model."""
    tensors = (plain(x), codes(format, x.shape, scale, zero_point, axis or 0), plain(out))
    operators = (Operator("QUANTIZE", 2, (0,), 1), Operator("DEQUANTIZE", 3, (1,), 2))
    run(tensors, operators, {0: x}, out, kernels)


def requantize(acc, scale, zero_point, *, format, out, kernels):
    """Write the codes of sums, whose tensor has the scale; that of the codes has 1."""
    tensors = (quantized(acc, scale, _ZERO), codes(format, acc.shape, _ONE, zero_point))
    run(tensors, (Operator("QUANTIZE", 2, (0,), 1),), {0: acc}, out, kernels)


def add(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point, *, format, out, kernels):
    """Write the codes of the sum."""
    operands = quantized(a, a_scale, a_zero_point), quantized(b, b_scale, b_zero_point)
    tensors = (*operands, codes(format, a.shape, y_scale, y_zero_point))
    run(tensors, (Operator("ADD", 2, (0, 1), 2),), {0: a, 1: b}, out, kernels)


def register(backend: Backend) -> None:
    """Register the operators by their kernels; those with scales along an axis are the reference's everywhere."""
    somewhere = {**_MAPPINGS, "granularity": "tensor"}
    everywhere = {**_MAPPINGS, "granularity": ("tensor", "axis")}
    by_reciprocal = Semantics(division=Division.RECIPROCAL)
    away = Semantics(rounding=Rounding.HALF_AWAY)
    scale_first = Semantics(dequantize_form=DequantizeForm.SCALE_FIRST)
    for kernels, quantizing, dequantizing, supports in (
        (Kernels.XNNPACK, by_reciprocal, Semantics(), somewhere),
        (Kernels.OPTIMIZED, by_reciprocal, scale_first, somewhere),
        (Kernels.REFERENCE, away, Semantics(), everywhere),
    ):
        name = kernels.name.lower()
        backend.implements("quantize_affine", name=f"QUANTIZE_{name}", semantics=quantizing, supports=supports)(
            partial(quantize, kernels=kernels)
        )
        backend.implements("dequantize_affine", name=f"DEQUANTIZE_{name}", semantics=dequantizing, supports=supports)(
            partial(dequantize, kernels=kernels)
        )
        if dequantizing == Semantics():  # the contract's fake quantizer subtracts first
            backend.implements(
                "fake_quantize_affine", name=f"QUANTIZE_DEQUANTIZE_{name}", semantics=quantizing, supports=supports
            )(partial(fake_quantize, kernels=kernels))
    double = Semantics(requantization=Requantization.DOUBLE_ROUNDING)
    for kernels in (Kernels.OPTIMIZED, Kernels.REFERENCE):
        backend.implements("requantize", name=f"QUANTIZE_int32_{kernels.name.lower()}", semantics=double)(
            partial(requantize, kernels=kernels)
        )
    # The optimized kernels and XNNPACK's round operands in other places.
    backend.implements("add_int8", name="ADD_reference", semantics=double, supports={"format": _BYTES})(
        partial(add, kernels=Kernels.REFERENCE)
    )
