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

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lowbit_cts.conformance import fills
from lowbit_cts.kernels import Case, Implementation, Operation
from lowbit_cts.reference.affine import middle
from lowbit_cts.reference.formats import FLOAT8_FORMATS, FORMATS, IntegerFormat, encode, float_format, integer_format
from lowbit_cts.reference.granularity import scale_shape, spread

Draw = Callable[[st.SearchStrategy], Any]
Sizes = Mapping[str, int]

#: Lengths around the widths of vectors, warps and tiles.
EDGES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257)


def lengths(largest: int) -> st.SearchStrategy[int]:
    """Return a strategy for the length of an axis: small ones, and those beside powers of two."""
    return st.one_of(st.integers(1, min(9, largest)), st.sampled_from([n for n in EDGES if n <= largest]))


_SEEDS = st.integers(0, 2**16)


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
    return _CASES[operation.name](draw, operation, chosen, regime, dict(sizes or {}))


def _family(draw: Draw, options: tuple[str, ...]) -> str:
    return draw(st.sampled_from(options))


def _size(draw: Draw, sizes: dict[str, int], symbol: str, largest: int) -> int:
    return sizes[symbol] if symbol in sizes else draw(lengths(largest))


def _matrix_shape(draw: Draw, chosen: Mapping[str, Any], sizes: dict[str, int]) -> tuple[int, int]:
    if chosen["granularity"] != "group":
        return _size(draw, sizes, "M", 65), _size(draw, sizes, "K", 257)
    group = chosen["group_size"]
    groups = draw(st.integers(1, 3))
    if "K" in sizes:  # the nearest width that has whole groups; none at all where there are to be no columns
        groups = max(1, sizes["K"] // group) if sizes["K"] else 0
    return _size(draw, sizes, "M", 33), groups * group


def _affine_arguments(
    rng: np.random.Generator, chosen: Mapping[str, Any], shape: tuple[int, int], regime: str
) -> tuple[np.ndarray, np.ndarray, IntegerFormat]:
    """Return random scales and zero points."""
    fmt = integer_format(chosen["format"])
    qmin, qmax = fmt.codes(bool(chosen.get("narrow_range")))
    place = scale_shape(shape, chosen["granularity"], chosen["axis"], chosen["group_size"])
    scale = fills.powers_of_two(rng, place) if regime == "exact" else fills.scales(rng, place)
    if chosen["mapping"] == "symmetric":
        zero = np.full(place, middle(qmin, qmax))
    else:
        zero = rng.integers(qmin, qmax, size=place, endpoint=True)
    return np.asarray(scale, np.float32), np.asarray(zero, np.int32), fmt


def _quantize(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    shape = _matrix_shape(draw, chosen, sizes)
    family = _family(draw, {"exact": ("grid",), "special": fills.SPECIAL}.get(regime, fills.PLAIN))
    seed = draw(_SEEDS)
    rng = np.random.default_rng(seed)
    scale, zero, fmt = _affine_arguments(rng, chosen, shape, regime)
    place = {name: chosen[name] for name in ("granularity", "axis", "group_size")}
    s, z = (spread(np.asarray(v, np.float64), shape, **place) for v in (scale, zero))
    x = fills.float_codes(fills.QUANTIZE[family](rng, s, z, fmt), chosen["input_format"])
    return Case(operation, chosen, {"x": x, "scale": scale, "zero_point": zero}, {"fill": family, "seed": seed})


def _dequantize(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    shape = _matrix_shape(draw, chosen, sizes)
    family, seed = _family(draw, fills.CODES), draw(_SEEDS)
    rng = np.random.default_rng(seed)
    scale, zero, fmt = _affine_arguments(rng, chosen, shape, regime)
    codes = fills.codes(rng, shape, fmt, family)
    return Case(operation, chosen, {"codes": codes, "scale": scale, "zero_point": zero}, {"fill": family, "seed": seed})


def _choose_qparams(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    shape = _matrix_shape(draw, chosen, sizes)
    family, seed = _family(draw, ("exact",) if regime == "exact" else tuple(fills.OBSERVED)), draw(_SEEDS)
    rng = np.random.default_rng(seed)
    x = _exact_ranges(rng, chosen, shape) if regime == "exact" else fills.observed(rng, shape, family)
    codes = fills.float_codes(x, chosen["input_format"])
    return Case(operation, chosen, {"x": codes}, {"fill": family, "seed": seed})


def _exact_ranges(rng: np.random.Generator, chosen: Mapping[str, Any], shape: tuple[int, int]) -> np.ndarray:
    """Return integers times a power of two whose range, or largest magnitude, is a whole number of code steps."""
    qmin, qmax = integer_format(chosen["format"]).codes(bool(chosen["narrow_range"]))
    steps = qmax - qmin
    asymmetric = chosen["mapping"] == "asymmetric"
    low = float(-rng.integers(0, steps, endpoint=True) if asymmetric else qmin - middle(qmin, qmax))
    x = low + rng.integers(0, steps, size=shape, endpoint=True)
    if asymmetric and low < 0 and rng.random() < 0.5:
        x, low = x + 0.5, low + 0.5  # min / s is a tie, which the zero point must round as declared
    if x.size:  # both ends occur in every row, column and group only if every element is one; most often enough here
        ends = rng.random(shape)
        x = np.where(ends < 0.3, low, np.where(ends > 0.7, low + steps, x))
    return x * 2.0 ** rng.integers(-4, 4)


def _matmul_sizes(draw: Draw, sizes: dict, deep: int) -> tuple[int, int, int]:
    return _size(draw, sizes, "M", 33), _size(draw, sizes, "K", deep), _size(draw, sizes, "N", 65)


def _matmul_int8(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    m, k, n = _matmul_sizes(draw, sizes, 257)
    families = _family(draw, fills.CODES), _family(draw, fills.CODES)
    seed = draw(_SEEDS)
    rng = np.random.default_rng(seed)
    arrays = {
        "a": fills.codes(rng, (m, k), integer_format(chosen["a_format"]), families[0]),
        "b": fills.codes(rng, (k, n), integer_format("int8"), families[1]),
    }
    return Case(operation, chosen, arrays, {"fill": families, "seed": seed})


def _matmul_w8a8(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    m, k, n = _matmul_sizes(draw, sizes, 257)
    families = ("small", "small") if regime == "exact" else (_family(draw, fills.CODES), _family(draw, fills.CODES))
    seed = draw(_SEEDS)
    rng = np.random.default_rng(seed)
    a_format = integer_format(chosen["a_format"])
    token = (m,) if chosen["activation_granularity"] == "token" else ()
    channel = (n,) if chosen["weight_granularity"] == "channel" else ()
    scale = fills.powers_of_two if regime == "exact" else fills.scales
    a_scale, b_scale = scale(rng, token), scale(rng, channel)
    if chosen["mapping"] == "symmetric":
        zero = np.full(token, 0 if a_format.signed else 128)
    elif regime == "exact":
        zero = rng.integers(max(-5, a_format.minimum), 5, size=token, endpoint=True)
    else:
        zero = rng.integers(a_format.minimum, a_format.maximum, size=token, endpoint=True)
    bias = None
    if chosen["has_bias"]:
        steps = rng.integers(-64, 64, size=n, endpoint=True)
        bias = steps * 2.0**-4 if regime == "exact" else rng.standard_normal(n) * np.sum(a_scale)
        bias = bias.astype(np.float32)
    arrays = {
        "a": fills.codes(rng, (m, k), a_format, families[0]),
        "a_scale": np.asarray(a_scale, np.float32),
        "a_zero_point": np.asarray(zero, np.int32),
        "b": fills.codes(rng, (k, n), integer_format("int8"), families[1]),
        "b_scale": np.asarray(b_scale, np.float32),
        "bias": bias,
    }
    return Case(operation, chosen, arrays, {"fill": families, "seed": seed})


def _add_int8(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    n = _size(draw, sizes, "N", 257)
    families = _family(draw, fills.CODES[:2]), _family(draw, fills.CODES[:2])
    seed = draw(_SEEDS)
    rng = np.random.default_rng(seed)
    fmt = integer_format(chosen["format"])
    arrays: dict[str, np.ndarray | None] = {}
    for name, family in zip("ab", families, strict=True):
        arrays[name] = fills.codes(rng, (n,), fmt, family)
    common = rng.integers(-6, 6)
    for name in "aby":
        scale = 2.0 ** (common + rng.integers(-1, 1, endpoint=True)) if regime == "exact" else fills.scales(rng, ())
        arrays[f"{name}_scale"] = np.asarray(scale, np.float32)
        zero = rng.integers(fmt.minimum, fmt.maximum, endpoint=True)
        arrays[f"{name}_zero_point"] = np.asarray(zero, np.int32)
    arrays = {argument.name: arrays[argument.name] for argument in operation.arguments}
    return Case(operation, chosen, arrays, {"fill": families, "seed": seed})


def _cast_float8(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    n = _size(draw, sizes, "N", 257)
    source, target = float_format(chosen["source"]), float_format(chosen["target"])
    seed = draw(_SEEDS)
    rng = np.random.default_rng(seed)
    if chosen["source"] in FLOAT8_FORMATS:
        family, x = "codes", rng.integers(0, 256, size=n).astype(np.uint8)
    elif regime == "exact":  # values of the target: the cast changes nothing
        family, x = "values", encode(rng.choice(fills.boundaries(target), size=n), source)
    else:
        family = _family(draw, ("specials", "bits") if regime == "special" else ("boundaries", "normal"))
        x = fills.float_values(rng, n, source, target, family)
    return Case(operation, chosen, {"x": x}, {"fill": family, "seed": seed})


_CASES: dict[str, Callable[..., Case]] = {
    "choose_qparams_affine": _choose_qparams,
    "quantize_affine": _quantize,
    "dequantize_affine": _dequantize,
    "fake_quantize_affine": _quantize,
    "matmul_int8": _matmul_int8,
    "matmul_w8a8": _matmul_w8a8,
    "add_int8": _add_int8,
    "cast_float8": _cast_float8,
}


def covered() -> tuple[str, ...]:
    """Return the operations that have a strategy."""
    return tuple(_CASES)


def wrong_type(case: Case, name: str) -> np.ndarray | None:
    """Return an argument's values in a wider type than its format's, or None where there is none to take."""
    array = case.arrays[name]
    fmt = FORMATS[case.format(name).name]
    wider = {"int8": np.int16, "uint8": np.int16, "int32": np.int64, "float32": np.float64}
    if array is None or fmt.name not in wider or fmt.carrier.name != array.dtype.name:
        return None
    return array.astype(wider[fmt.name])
