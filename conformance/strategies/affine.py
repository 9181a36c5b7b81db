"""Cases of the affine operations."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.affine import middle
from lowbit_cts.reference.formats import IntegerFormat, integer_format
from lowbit_cts.reference.granularity import scale_shape, spread


def _matrix_shape(draw: Draw, chosen: Mapping[str, Any], sizes: dict[str, int]) -> tuple[int, int]:
    if chosen["granularity"] != "group":
        return size(draw, sizes, "M", 65), size(draw, sizes, "K", 257)
    group = chosen["group_size"]
    groups = draw(st.integers(1, 3))
    if "K" in sizes:  # the nearest width that has whole groups; none at all where there are to be no columns
        groups = max(1, sizes["K"] // group) if sizes["K"] else 0
    return size(draw, sizes, "M", 33), groups * group


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


@draws("quantize_affine", "fake_quantize_affine")
def _quantize(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    shape = _matrix_shape(draw, chosen, sizes)
    family = one_of(draw, {"exact": ("grid",), "special": fills.SPECIAL}.get(regime, fills.PLAIN))
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    scale, zero, fmt = _affine_arguments(rng, chosen, shape, regime)
    place = {name: chosen[name] for name in ("granularity", "axis", "group_size")}
    s, z = (spread(np.asarray(v, np.float64), shape, **place) for v in (scale, zero))
    x = fills.float_codes(fills.QUANTIZE[family](rng, s, z, fmt), chosen["input_format"])
    return Case(operation, chosen, {"x": x, "scale": scale, "zero_point": zero}, {"fill": family, "seed": seed})


@draws("dequantize_affine")
def _dequantize(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    shape = _matrix_shape(draw, chosen, sizes)
    family, seed = one_of(draw, fills.CODES), draw(SEEDS)
    rng = np.random.default_rng(seed)
    scale, zero, fmt = _affine_arguments(rng, chosen, shape, regime)
    codes = fills.codes(rng, shape, fmt, family)
    return Case(operation, chosen, {"codes": codes, "scale": scale, "zero_point": zero}, {"fill": family, "seed": seed})


@draws("choose_qparams_affine")
def _choose_qparams(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    shape = _matrix_shape(draw, chosen, sizes)
    family, seed = one_of(draw, ("exact",) if regime == "exact" else tuple(fills.OBSERVED)), draw(SEEDS)
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
