"""Cases of the linear layers: float activations and quantized weights, or both operands in small floats."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.conformance.strategies.gguf import of_bytes
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.codebooks import CODEBOOKS
from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import decode, float_format, integer_format
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS
from lowbit_cts.reference.operands import SCALE_BLOCK

Generator = np.random.Generator

#: Families of activations by regime.
ACTIVATIONS = {"full": ("normal", "outliers"), "exact": ("small", "single"), "special": ("specials",)}


def activations(rng: Generator, shape: tuple[int, int], family: str) -> np.ndarray:
    """Return float64 activations: normal ones, rows of different size; small integers; one nonzero a row; specials.

    Small integers and single ones are times a power of two a row.
    """
    power = fills.powers_of_two(rng, (shape[0], 1), -3, 3)
    if family == "small":
        return rng.integers(-3, 3, shape, endpoint=True) * power
    if family == "single":
        x = np.zeros(shape)
        if x.size:
            x[np.arange(shape[0]), rng.integers(0, shape[1], shape[0])] = 1.0
        return x * power
    x = rng.standard_normal(shape) * np.exp(rng.standard_normal((shape[0], 1)))
    if family == "outliers":
        return np.where(rng.random(shape) < 0.05, 60 * x, x)
    if family == "specials":
        special = np.array([np.inf, -np.inf, np.nan, 1e-8, -1e-8, 0.0, -0.0, 6e4])
        return np.where(rng.random(shape) < 1 / (1 + shape[1]), rng.choice(special, shape), x)
    return x


def bias_of(rng: Generator, chosen: Mapping[str, Any], n: int, exact: bool) -> np.ndarray | None:
    """Return a bias, sixteenths where sums are to be exact; None where there is none."""
    if not chosen["has_bias"]:
        return None
    bias = rng.integers(-64, 64, n, endpoint=True) / 16 if exact else rng.standard_normal(n)
    return bias.astype(np.float32)


def sizes_mn(draw: Draw, sizes: dict) -> tuple[int, int]:
    """Draw the numbers of rows and columns of a product."""
    return size(draw, sizes, "M", 17), size(draw, sizes, "N", 65)


@draws("matmul_w4a16", "matmul_w8a16")
def _weight_only(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    (m, n), k = sizes_mn(draw, sizes), size(draw, sizes, "K", 257)
    family, codes = one_of(draw, ACTIVATIONS[regime]), one_of(draw, fills.CODES)
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    fmt, exact = integer_format(chosen["format"]), regime == "exact"
    group = chosen["group_size"]
    groups = -(-k // group) if group else None
    place = (n,) if groups is None else (groups, n)
    scale = fills.powers_of_two(rng, place, -5, -2) if exact else fills.scales(rng, place) * _smaller(rng)
    scale = np.maximum(scale, 2.0**-24)  # the smallest of float16
    zero = rng.integers(fmt.minimum, fmt.maximum, place, endpoint=True)
    index = None
    if chosen["act_order"]:  # whole groups, shuffled, as sorting by the Hessian's diagonal makes them
        index = rng.permutation(np.arange(k) // (group or 1)).astype(np.int32)
    arrays = {
        "a": fills.float_codes(activations(rng, (m, k), family), chosen["input_format"]),
        "codes": fills.codes(rng, (k, n), fmt, codes),
        "scale": fills.float_codes(scale, chosen["input_format"]),
        "zero_point": zero.astype(np.int32) if chosen["mapping"] == "asymmetric" else None,
        "group_index": index,
        "bias": bias_of(rng, chosen, n, exact),
    }
    return Case(operation, chosen, arrays, {"fill": (family, codes), "seed": seed})


def element_codes(rng: Generator, shape: tuple[int, ...], format: str, exact: bool) -> np.ndarray:
    """Return codes of finite elements; where sums are to be exact, of multiples of 1/2 up to 4."""
    if format == "int8":
        low, high = (-8, 8) if exact else (-128, 127)
        return rng.integers(low, high, shape, endpoint=True).astype(np.int8)
    fmt = float_format(format)
    values = decode(np.arange(1 << fmt.bits), fmt)
    usable = np.isfinite(values)
    if exact:
        usable &= (np.abs(values) <= 4) & (np.rint(2 * values) == 2 * values)
    return rng.choice(np.flatnonzero(usable), shape).astype(fmt.carrier)


def _smaller(rng: Generator) -> float:
    """Return a power of two for all scales of a case: that of normal weights, smaller, subnormal in float16."""
    return float(rng.choice([1.0, 2.0**-6, 2.0**-13]))


def _scale(rng: Generator, shape: tuple[int, ...], exact: bool) -> np.ndarray:
    scale = fills.powers_of_two(rng, shape, -2, 2) if exact else fills.scales(rng, shape) * _smaller(rng)
    return np.asarray(scale, np.float32)


@draws("matmul_float8")
def _matmul_float8(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    (m, n), k = sizes_mn(draw, sizes), size(draw, sizes, "K", 257)
    seed = draw(SEEDS)
    rng, exact = np.random.default_rng(seed), regime == "exact"
    p, q = -(-k // SCALE_BLOCK), -(-n // SCALE_BLOCK)
    places: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    places = {"tensor": ((), ()), "row": ((m,), (n,)), "block": ((m, p), (p, q))}
    of_a, of_b = places[chosen["scaling"]]
    a = element_codes(rng, (m, k), chosen["a_format"], exact)
    if regime == "special" and a.size:
        nan = np.flatnonzero(np.isnan(decode(np.arange(256), float_format(chosen["a_format"]))))
        a[rng.integers(m), rng.integers(k)] = rng.choice(nan)
    b = element_codes(rng, (k, n), chosen["b_format"], exact)
    if regime == "special" and b.size and rng.random() < 0.5:
        nan = np.flatnonzero(np.isnan(decode(np.arange(256), float_format(chosen["b_format"]))))
        b[rng.integers(k), rng.integers(n)] = rng.choice(nan)
    arrays = {
        "a": a,
        "a_scale": _scale(rng, of_a, exact),
        "b": b,
        "b_scale": _scale(rng, of_b, exact),
        "bias": bias_of(rng, chosen, n, exact),
    }
    return Case(operation, chosen, arrays, {"fill": regime, "seed": seed})


def _block_scales(rng: Generator, shape: tuple[int, ...], format: str, spread: int) -> np.ndarray:
    values = 2.0 ** rng.integers(-spread, spread, shape, endpoint=True)
    if format == "float8_e4m3fn" and spread > 2:
        values = values * (1 + rng.integers(0, 7, shape, endpoint=True) / 8)
    return encode(values, float_format(format))


@draws("matmul_mx", "matmul_nvfp4")
def _blocks(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    (m, n), block = sizes_mn(draw, sizes), operation.multiples(chosen)["K"]
    k = size(draw, sizes, "K", 257, block)
    seed = draw(SEEDS)
    rng, exact = np.random.default_rng(seed), regime == "exact"
    arrays: dict[str, np.ndarray | None] = {"bias": bias_of(rng, chosen, n, exact)}
    slots = {argument.name: argument for argument in operation.arguments}
    for name, rows in (("a", m), ("b", n)):
        element, scale = (slots[slot].format(chosen) for slot in (name, f"{name}_scale"))
        arrays[name] = element_codes(rng, (rows, k), element, exact)
        scales = _block_scales(rng, (rows, k // block), scale, 2 if exact else 5)
        if regime == "special" and name == "a" and scales.size:
            scales[rng.integers(rows), rng.integers(k // block)] = 255 if scale == "float8_e8m0fnu" else 127
        arrays[f"{name}_scale"] = scales
        if f"{name}_global_scale" in slots:
            arrays[f"{name}_global_scale"] = _scale(rng, (), exact)
    arrays = {argument.name: arrays[argument.name] for argument in operation.arguments}
    return Case(operation, chosen, arrays, {"fill": regime, "seed": seed})


@draws("linear_nf4")
def _linear_nf4(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    (m, n), block = sizes_mn(draw, sizes), chosen["block_size"]
    k = size(draw, sizes, "K", 257, block)
    family = "single" if regime == "exact" else one_of(draw, ACTIVATIONS[regime])
    seed = draw(SEEDS)
    rng, exact = np.random.default_rng(seed), regime == "exact"
    place = (n, k // block)
    arrays = {
        "a": fills.float_codes(activations(rng, (m, k), family), chosen["input_format"]),
        "codes": rng.integers(0, CODEBOOKS[chosen["codebook"]].size, (n, k)).astype(np.uint8),
        "absmax": _scale(rng, place, exact),
        "bias": np.zeros(n, np.float32) if exact and chosen["has_bias"] else bias_of(rng, chosen, n, exact),
    }
    return Case(operation, chosen, arrays, {"fill": family, "seed": seed})


@draws("matvec_gguf")
def _matvec_gguf(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    fmt = BLOCK_FORMATS[chosen["type"]]
    (m, n), k = sizes_mn(draw, sizes), size(draw, sizes, "K", 512, fmt.elements)
    family = "single" if regime == "exact" else one_of(draw, ACTIVATIONS[regime])
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    blocks = of_bytes(rng, n * k // fmt.elements, fmt, bits=1 if regime == "exact" else 11)
    arrays = {
        "a": activations(rng, (m, k), family).astype(np.float32),
        "blocks": np.ascontiguousarray(blocks).reshape(n, k // fmt.elements * fmt.bytes),
    }
    return Case(operation, chosen, arrays, {"fill": family, "seed": seed})
