"""Cases of 2:4 sparse matrices."""

from itertools import combinations

import numpy as np

from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.formats import FORMATS, FloatFormat, decode
from lowbit_cts.reference.packing.sparse24 import metadata_word
from lowbit_cts.reference.packing.streams import pack_stream

#: The two ascending indices of a group, and their four bits.
PAIRS = np.array(list(combinations(range(4), 2)))
FIELDS = (PAIRS[:, 0] | PAIRS[:, 1] << 2).astype(np.uint8)


def _codes(rng: np.random.Generator, shape: tuple[int, ...], format: str) -> np.ndarray:
    """Return random codes of a format, each of its codes as likely, in its carrier."""
    carrier = FORMATS[format].carrier
    bits = rng.integers(0, 256, (*shape, carrier.itemsize)).astype(np.uint8)
    return bits.view(carrier)[..., 0]


def numbers(rng: np.random.Generator, shape: tuple[int, ...], format: str) -> np.ndarray:
    """Return random finite codes of a format that are not zero."""
    codes, fmt = _codes(rng, shape, format), FORMATS[format]
    values = decode(codes, fmt)
    one = np.array(0x3C00, np.uint16).view(np.float16) if format == "float16" else 0x31
    return np.where(np.isfinite(values) & (values != 0), codes, np.asarray(one).astype(fmt.carrier))


def negative_zero(format: str) -> np.ndarray:
    """Return -0 in the carrier of a format; 0 where it has none."""
    fmt = FORMATS[format]
    sign = fmt.sign_bit if isinstance(fmt, FloatFormat) and fmt.signed_zero else 0
    return np.array(sign, f"u{fmt.carrier.itemsize}").view(fmt.carrier)


def _sparse(rng: np.random.Generator, shape: tuple[int, int], format: str, regime: str) -> np.ndarray:
    """Return a 2:4 matrix: two numbers a group in the exact regime, else up to two, and zeros of both signs."""
    groups = (shape[0], shape[1] // 4)
    kept = np.zeros((*groups, 4), bool)
    np.put_along_axis(kept, PAIRS[rng.integers(0, 6, groups)], True, axis=-1)
    zeros = np.zeros(kept.shape, FORMATS[format].carrier)
    if regime != "exact":
        kept &= rng.random(kept.shape) < 0.75
        zeros = np.where(rng.random(kept.shape) < 0.2, negative_zero(format), zeros)
    stored = (_codes if regime == "special" else numbers)(rng, kept.shape, format)
    return np.where(kept, stored, zeros).reshape(shape)


@draws("compress_sparse24")
def _compress(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    whole = operation.multiples(chosen)
    shape = size(draw, sizes, "M", 65, whole.get("M", 1)), size(draw, sizes, "K", 257, whole["K"])
    seed = draw(SEEDS)
    x = _sparse(np.random.default_rng(seed), shape, chosen["format"], regime)
    return Case(operation, chosen, {"x": x}, {"fill": regime, "seed": seed})


@draws("decompress_sparse24")
def _decompress(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    whole, format = operation.multiples(chosen), chosen["format"]
    m, h = size(draw, sizes, "M", 65, whole.get("M", 1)), size(draw, sizes, "H", 129, whole["H"])
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    values = (numbers if regime == "exact" else _codes)(rng, (m, h), format)
    # Any arrangement of such words is one of some matrix, in the order of CUTLASS, too.
    metadata = pack_stream(FIELDS[rng.integers(0, 6, (m, h // 2))], 4, metadata_word(format))
    return Case(operation, chosen, {"values": values, "metadata": metadata}, {"fill": regime, "seed": seed})
