"""FULLY_CONNECTED of int8, to int8, and BATCH_MATMUL of int8, to int32."""

import platform
from functools import partial
from typing import Any

import numpy as np

from lowbit_cts.kernels import Backend, Requantization, Rounding, Semantics
from lowbit_cts.kernels.adapters.litert.interpreters import (
    Kernels,
    Operator,
    Tensor,
    codes,
    quantized,
    run,
)

_NOT_GIVEN = -1
_ONE, _ZERO = np.ones((), np.float32), np.zeros((), np.int32)

X86 = platform.machine() in ("x86_64", "AMD64")
#: ruy's kernels for x86 round twice, those for Arm once.
RUY = Semantics(requantization=Requantization.DOUBLE_ROUNDING_UP if X86 else Requantization.SINGLE_ROUNDING)
#: Sums scaled in float32 by XNNPACK, in float64, and rounded away at ties, by the reference.
_REQUANTIZED = {
    Kernels.XNNPACK: Semantics(),
    Kernels.OPTIMIZED: RUY,
    Kernels.REFERENCE: Semantics(rounding=Rounding.HALF_AWAY),
}


def multiply(a, b, *, out, kernels):
    """Write the sums of BATCH_MATMUL, whose tensors have zero points of 0."""
    tensors = (quantized(a, _ONE, _ZERO), quantized(b, _ONE, _ZERO), quantized(out, _ONE, _ZERO))
    operator = Operator("BATCH_MATMUL", 3, (0, 1), 2)
    run(tensors, (operator,), {0: a, 1: b}, out, kernels)


def _layer(a: np.ndarray, a_scale: Any, a_zero_point: Any, weights: Tensor, out: np.ndarray, *y: Any) -> Any:
    tensors = (quantized(a, a_scale, a_zero_point), weights, codes("int8", out.shape, *y))
    # Without the option rows are cut anew, as long as those of the weights, whatever is left over.
    return tensors, (Operator("FULLY_CONNECTED", 5, (0, 1, _NOT_GIVEN), 2, (("keepNumDims", True),)),)


def fully_connected(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point, *, out, kernels):
    """Write the codes, the weights an input."""
    w = np.ascontiguousarray(b.T)
    weights = quantized(w, b_scale, b_zero_point)
    tensors, operators = _layer(a, a_scale, a_zero_point, weights, out, y_scale, y_zero_point)
    run(tensors, operators, {0: a, 1: w}, out, kernels)


def hold(b, b_scale, b_zero_point):
    """Return the weights, (N, K), as a model holds them."""
    return quantized(np.ascontiguousarray(b.T), b_scale, b_zero_point, held=True)


def fully_connected_with_held(a, a_scale, a_zero_point, y_scale, y_zero_point, *, out, prepared, kernels):
    """Write the codes by the weights that the model holds."""
    tensors, operators = _layer(a, a_scale, a_zero_point, prepared, out, y_scale, y_zero_point)
    run(tensors, operators, {0: a}, out, kernels)


def register(backend: Backend) -> None:
    """Register the products by their kernels; XNNPACK has them for weights that the model holds."""
    for kernels in (Kernels.OPTIMIZED, Kernels.REFERENCE):
        backend.implements("matmul_int8", name=f"BATCH_MATMUL_{kernels.name.lower()}")(
            partial(multiply, kernels=kernels)
        )
    for kernels, semantics in _REQUANTIZED.items():
        name = kernels.name.lower()
        # Of one scale for all weights the optimized kernels take the product with that of a in float32.
        places = ("channel",) if kernels is Kernels.OPTIMIZED else ("tensor", "channel")
        supports = {"weight_granularity": places, "weight_mapping": "symmetric"}
        if kernels is not Kernels.XNNPACK:
            backend.implements(
                "qlinear_matmul", name=f"FULLY_CONNECTED_{name}", semantics=semantics, supports=supports
            )(partial(fully_connected, kernels=kernels))  # fmt: skip
        backend.implements(
            "qlinear_matmul", name=f"FULLY_CONNECTED_constant_w_{name}", semantics=semantics, supports=supports,
            prepare=hold,
        )(partial(fully_connected_with_held, kernels=kernels))  # fmt: skip
