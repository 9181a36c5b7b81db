"""Cases of attention over a paged cache."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.kv_cache import scale_shape

Generator = np.random.Generator

#: What a standard deviation is stored as in a quantized cache.
UNIT = {"int8": 40.0, "float8_e4m3fn": 16.0, "float8_e5m2": 16.0}
_FILLS = {"full": ("even", "peaked", "outliers"), "exact": ("zeros",), "special": ("specials",)}
#: Results of a case, and products of a probability and a value, at most: past that there are fewer tokens, then fewer
#: sequences, and shorter contexts, where all axes are long at once.
_RESULTS, _PRODUCTS = 1 << 15, 1 << 19
#: Standard deviations of a query: probabilities alike, and a few slots that have it all.
_SHARPNESS = {"even": 0.5, "peaked": 4.0}


def block_table(rng: Generator, contexts: np.ndarray, columns: int, block: int, blocks: int) -> np.ndarray:
    """Return a table of the contexts' blocks, in no order, each used once if there are enough; beyond them -1 or any.

    Parameters
    ----------
    contexts : ndarray of int, shape (S,)
    columns, block, blocks : int
        Blocks in a row; slots in a block; blocks in the cache.
    """
    used = np.arange(columns) < -(-contexts // block)[:, None]
    if not blocks:
        return np.full(used.shape, -1, np.int32)
    numbers = rng.integers(0, blocks, used.shape)
    if used.sum() <= blocks:
        numbers[used] = rng.permutation(blocks)[: used.sum()]
    beyond = np.where(rng.random(used.shape) < 0.5, -1, rng.integers(0, blocks, used.shape))
    return np.where(used, numbers, beyond).astype(np.int32)


def cache_codes(x: np.ndarray, format: str) -> np.ndarray:
    """Return numbers as codes of a cache, of a quantized one as multiples of its unit."""
    x = x * UNIT.get(format, 1.0)
    if format == "int8":
        return np.clip(np.rint(x), -128, 127).astype(np.int8)
    return fills.float_codes(x, format)


def scale_shapes(chosen: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...] | None]:
    """Return the shapes of key_scale and value_scale, by those of keys and values; None of a cache that has none.

    Parameters
    ----------
    chosen : mapping
        Parameters.
    shapes : mapping
        Of "key" and "value": (..., heads, size).
    """
    granularity = chosen["scale_granularity"]
    return {f"{of}_scale": scale_shape(of, shape, granularity) if granularity else None for of, shape in shapes.items()}


def arrays_of(rng: Generator, chosen: Mapping[str, Any], sizes: Mapping[str, int], contexts: np.ndarray) -> dict:
    """Return normal arguments of attention: values with a mean, keys of different size a head.

    Parameters
    ----------
    chosen : mapping
        Parameters.
    sizes : mapping
        The lengths of S, Q, H, G, D, E, C and B.
    contexts : ndarray of int, shape (S,)
    """
    s, q, h, g, d, e, c, b = (sizes[symbol] for symbol in "SQHGDECB")
    format, block = chosen["cache_format"], chosen["block_size"]
    keys = rng.standard_normal((c, block, g, d)) * np.exp(0.5 * rng.standard_normal((1, 1, g, 1)))
    values = rng.standard_normal((c, block, g, e)) + rng.standard_normal((1, 1, g, e))
    shapes = scale_shapes(chosen, {"key": keys.shape, "value": values.shape})
    scales = {
        name: None if shape is None else np.asarray(np.exp(0.5 * rng.standard_normal(shape)) / UNIT[format], np.float32)
        for name, shape in shapes.items()
    }
    return {
        "query": fills.float_codes(rng.standard_normal((s, q, h, d)), chosen["input_format"]),
        "key_cache": cache_codes(keys, format),
        "value_cache": cache_codes(values, format),
        "block_table": block_table(rng, contexts, b, block, c),
        "context_lengths": contexts.astype(np.int32),
        **scales,
        "softmax_scale": np.asarray(np.exp(0.5 * rng.standard_normal()) / max(1, d) ** 0.5, np.float32),
        "soft_cap": np.asarray(rng.uniform(1, 8), np.float32) if chosen["capped"] else None,
    }


def _contexts(rng: Generator, chosen: Mapping[str, Any], sizes: Mapping[str, int], exact: bool) -> np.ndarray:
    """Return lengths: any, and those around the ends of blocks; or such that a token sees a power of two, or none."""
    results = max(1, sizes["S"] * sizes["Q"] * sizes["H"] * sizes["E"])
    most = min(sizes["B"] * chosen["block_size"], _PRODUCTS // results) if sizes["C"] else 0
    if not exact:
        ends = chosen["block_size"] * rng.integers(0, sizes["B"], sizes["S"], endpoint=True)
        beside = ends + rng.integers(-1, 1, sizes["S"], endpoint=True)
        anywhere = rng.integers(0, most, sizes["S"], endpoint=True)
        return np.clip(np.where(rng.random(sizes["S"]) < 0.5, beside, anywhere), 0, most)
    length = np.arange(most + 1)
    seen = np.maximum(0, length[:, None] - sizes["Q"] + 1 + np.arange(sizes["Q"]))
    if chosen["mask"] == "window":
        seen = np.minimum(seen, chosen["window"])
    if chosen["mask"] == "none":
        seen = length[:, None]
    usable = length[((seen & (seen - 1)) == 0).all(axis=1)]
    return np.maximum(*rng.choice(usable, (2, sizes["S"])))


@draws("attention_paged")
def _attention_paged(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    found = {
        symbol: size(draw, sizes, symbol, most) for symbol, most in zip("SQDECB", (4, 4, 40, 40, 20, 5), strict=True)
    }
    if chosen["grouped"]:
        found["G"] = size(draw, sizes, "G", 4)
        found["H"] = size(draw, sizes, "H", 12, max(1, found["G"]))
    else:
        found["H"] = found["G"] = size(draw, sizes, "H", 4)
    for symbol in "QS":
        others = max(1, int(np.prod([found[other] for other in "SQHE" if other != symbol])))
        found[symbol] = min(found[symbol], max(1, _RESULTS // others))
    family, seed = one_of(draw, _FILLS[regime]), draw(SEEDS)
    rng = np.random.default_rng(seed)
    arrays = arrays_of(rng, chosen, found, _contexts(rng, chosen, found, regime == "exact"))
    query, values = np.shape(arrays["query"]), np.shape(arrays["value_cache"])
    if family in _SHARPNESS:
        arrays["query"] = fills.float_codes(
            _SHARPNESS[family] * rng.standard_normal(query), chosen["input_format"]
        )  # fmt: skip
    elif family == "outliers":
        x = rng.standard_normal(query) * np.where(rng.random(query[-1:]) < 0.1, 20.0, 1.0)
        arrays["query"] = fills.float_codes(x, chosen["input_format"])
    elif family == "zeros":
        arrays["query"] = fills.float_codes(np.zeros(query), chosen["input_format"])
        unit = UNIT.get(chosen["cache_format"], 1.0)
        arrays["value_cache"] = cache_codes(rng.integers(-4, 4, values, endpoint=True) / unit, chosen["cache_format"])
        for name in ("key_scale", "value_scale"):
            if arrays[name] is not None:
                arrays[name] = np.asarray(fills.powers_of_two(rng, arrays[name].shape, -3, 3), np.float32)
    elif family == "specials":
        _spoil(rng, arrays, chosen)
    return Case(operation, chosen, arrays, {"fill": family, "seed": seed})


def _spoil(rng: Generator, arrays: dict, chosen: Mapping[str, Any]) -> None:
    """Put a number that is not finite, of a format that has any, into query and caches, here and there."""
    formats = {"query": chosen["input_format"], **dict.fromkeys(("key_cache", "value_cache"), chosen["cache_format"])}
    for name, format in formats.items():
        if format == "int8" or not arrays[name].size:
            continue
        bad = rng.choice([np.nan, np.inf, -np.inf]) if float_format(format).infinity else np.nan
        at = rng.random(arrays[name].shape) < 2 / arrays[name].size
        arrays[name] = np.where(at, fills.float_codes(np.array(bad), format), arrays[name]).astype(arrays[name].dtype)
