"""The pieces that workload cases are built of, and the table that builders enter."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference import affine
from lowbit_cts.reference.choices import Overflow
from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import FloatFormat, decode, integer_format

_BLOCK = 1 << 20
_PLACE = ("granularity", "axis", "group_size")

Arrays = Mapping[str, np.ndarray | None]
Approximate = Callable[..., np.ndarray]
Built = tuple[Arrays, Callable[[], np.ndarray], Approximate]

#: A builder takes (rng, layer, rows, fill, parameters); it gives the arrays of the operation, the ideal result, and
#: what the results stand for.
BUILDERS: dict[str, Callable[[np.random.Generator, Layer, int, str, dict[str, Any]], Built]] = {}


def builds(operation: str) -> Callable[[Callable[..., Built]], Callable[..., Built]]:
    """Enter the builder of an operation's cases."""

    def enter(builder: Callable[..., Built]) -> Callable[..., Built]:
        BUILDERS[operation] = builder
        return builder

    return enter


def blocks_of(rows: int, columns: int) -> list[slice]:
    """Return slices of rows, about a million elements each, so that float64 temporaries stay small."""
    step = max(1, _BLOCK // max(1, columns))
    return [slice(start, start + step) for start in range(0, rows, step)]


def _of_rows(values: np.ndarray, rows: slice, granularity: str, axis: int | None) -> np.ndarray:
    """Return the part of scales or zero points that belongs to a block of rows."""
    return values[rows] if granularity == "group" or (granularity == "axis" and axis == 0) else values


def qparams(x: np.ndarray, p: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the reference's min-max scale (float32) and zero point (int32) of a matrix."""
    keys = ("format", "mapping", "narrow_range", *_PLACE)
    chosen = affine.choose_qparams_enclosure(x, **{key: p[key] for key in keys if key in p})
    return np.asarray(chosen["scale"].exact, np.float32), np.asarray(chosen["zero_point"].exact, np.int32)


def codes_of(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, p: Mapping[str, Any]) -> np.ndarray:
    """Return the reference's codes of a matrix, in the carrier of the format, block by block."""
    place = {key: p[key] for key in ("format", "narrow_range", *_PLACE) if key in p}
    codes = np.empty(x.shape, integer_format(p["format"]).carrier)
    for rows in blocks_of(*x.shape):
        s, z = (_of_rows(v, rows, p["granularity"], p.get("axis")) for v in (scale, zero_point))
        codes[rows] = affine.quantize(x[rows], s, z, **place)
    return codes


def numbers_of(codes: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, p: Mapping[str, Any]) -> np.ndarray:
    """Return scale * (codes - zero_point) in float32, block by block."""
    place = {key: p[key] for key in ("format", *_PLACE) if key in p}
    numbers = np.empty(codes.shape, np.float32)
    for rows in blocks_of(*codes.shape):
        s, z = (_of_rows(v, rows, p["granularity"], p.get("axis")) for v in (scale, zero_point))
        numbers[rows] = affine.dequantize(codes[rows], s, z, **place)
    return numbers


def encoded(x: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    """Return a float32 matrix in the carrier of a float format, saturating, row block by row block."""
    if fmt.name == "float32":
        return x
    encoded = np.empty(x.shape, fmt.carrier)
    for rows in blocks_of(*x.shape):
        encoded[rows] = encode(x[rows], fmt, overflow=Overflow.SATURATE)
    return encoded


def decoded(codes: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    """Return the numbers of codes in float32, looked up in a table of all codes; native floats as they are."""
    if fmt.carrier.kind == "f":
        return codes
    return decode(np.arange(1 << fmt.bits), fmt).astype(np.float32)[codes]


def rule_of(format: str, granularity: str, mapping: str) -> dict[str, Any]:
    """Return how an operand of a product is quantized: one scale, or one a row (token, output channel)."""
    place = {"granularity": "tensor"} if granularity == "tensor" else {"granularity": "axis", "axis": 0}
    return {"format": format, "mapping": mapping, **place}
