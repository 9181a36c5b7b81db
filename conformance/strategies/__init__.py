"""Hypothesis draws the structure of a case (shape, parameters, family, seed); NumPy draws its bulk.

`draw_case` draws a case of an implementation's operation in a regime:

========  ===========================================================================================
regime    inputs
========  ===========================================================================================
full      finite values near the range, arbitrary scales and the whole range of codes
special   signed zeros, subnormals, infinities, NaN, and values of every magnitude up to the largest
exact     powers of two as scales and sums that every order of summation represents: enclosures are points
========  ===========================================================================================
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lowbit_cts.conformance.strategies import (  # noqa: F401  (fill CASES)
    affine,
    attention,
    awq,
    binary,
    block_formats,
    casts,
    codebooks,
    convolution,
    gguf,
    gptq,
    hqq,
    kv_cache,
    linear,
    observers,
    onnx_operators,
    packing,
    products,
    qat,
    qlora,
    requantization,
    smoothing,
    sparse24,
    structured,
    vector,
)
from lowbit_cts.conformance.strategies.drawing import CASES, Draw, Sizes
from lowbit_cts.kernels import Case, Implementation
from lowbit_cts.reference.formats import FORMATS


def parameters(draw: Draw, implementation: Implementation, variant: Mapping[str, Any]) -> dict[str, Any]:
    """Draw the parameters that a variant leaves open from what the implementation supports."""
    operation = implementation.operation
    chosen = dict(variant)
    for name, parameter in operation.parameters.items():
        if name in chosen:
            continue
        known = {**dict.fromkeys(operation.parameters), **chosen}
        needed = parameter.needed(known) and operation.admits(chosen)
        options = [v for v in implementation.supports[name] if operation.admits({**chosen, name: v})]
        chosen[name] = draw(st.sampled_from(options)) if needed else None
    return chosen


def draw_case(
    draw: Draw,
    implementation: Implementation,
    variant: Mapping[str, Any],
    regime: str,
    sizes: Sizes | None = None,
) -> Case:
    """Draw a case; `sizes` fixes the lengths of symbolic axes, among them zero."""
    chosen = parameters(draw, implementation, variant)
    operation = implementation.operation
    return CASES[operation.name](draw, operation, chosen, regime, dict(sizes or {}))


def covered() -> tuple[str, ...]:
    """Return the operations that have a strategy."""
    return tuple(CASES)


def wrong_type(case: Case, name: str) -> np.ndarray | None:
    """Return an argument's values in a wider type than its format's, or None where there is none to take."""
    array = case.arrays[name]
    fmt = FORMATS[case.format(name).name]
    wider = {"int8": np.int16, "uint8": np.int16, "int32": np.int64, "float32": np.float64}
    if array is None or fmt.name not in wider or fmt.carrier.name != array.dtype.name:
        return None
    with np.errstate(invalid="ignore"):  # signalling NaN
        return array.astype(wider[fmt.name])
