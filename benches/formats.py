"""Number formats: what each costs in bits, and what it keeps of numbers of several kinds, by the reference."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from lowbit_cts.benches.accuracy import sqnr_db
from lowbit_cts.benches.workloads import fills, lenet
from lowbit_cts.benches.workloads.builders.building import codes_of, numbers_of, qparams
from lowbit_cts.reference import blockwise, mx, nvfp4
from lowbit_cts.reference.binary import binarize
from lowbit_cts.reference.casts import cast_float
from lowbit_cts.reference.formats import FORMATS, decode, float_format
from lowbit_cts.reference.gguf import blocks as gguf
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS
from lowbit_cts.reference.ternary import ternarize

#: Columns of the matrices: a multiple of every block.
WIDTH = 256

Link = Mapping[str, Any]
RoundTrip = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class NumberFormat:
    """A format as it is stored.

    Attributes
    ----------
    name : str
    bits : float
        A number's bits, its share of the scales and zero points included.
    round_trip : callable
        Gives what is left of a float32 matrix of width `WIDTH`.
    encode, decode : mapping
        ``operation`` and ``parameters`` of the rows that measure its speed.
    """

    name: str
    bits: float
    round_trip: RoundTrip
    encode: Link = field(default_factory=dict)
    decode: Link = field(default_factory=dict)


def sources() -> dict[str, np.ndarray]:
    """Return the numbers that formats are judged on, each a float32 matrix of width `WIDTH`.

    Returns
    -------
    dict
        ``normal`` and ``heavy-tailed`` (`lowbit_cts.benches.workloads.fills`, 4096 rows), and, where the extras 'torch'
        and 'models' are there to train it, ``digits weights``: all weights of the network trained on handwritten
        digits, one after another.
    """
    shape = (4096, WIDTH)
    found = {
        "normal": np.random.default_rng(1).standard_normal(shape).astype(np.float32),
        "heavy-tailed": fills.heavy_tailed(np.random.default_rng(1), shape),
    }
    try:
        weights = np.concatenate([w.ravel() for w in lenet.network().weights.values()])
    except ImportError:
        return found
    return {**found, "digits weights": weights[: weights.size // WIDTH * WIDTH].reshape(-1, WIDTH).astype(np.float32)}


def accuracy(number_format: NumberFormat, numbers: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the SQNR of a format on each source, dB."""
    return {name: sqnr_db(x, number_format.round_trip(x)) for name, x in numbers.items()}


def _link(operation: str, **parameters: Any) -> Link:
    return {"operation": operation, "parameters": parameters}


# Integers: affine, scales in float32, zero points in the codes' format


def _affine(x: np.ndarray, **rule: Any) -> np.ndarray:
    scale, zero_point = qparams(x, rule)
    return numbers_of(codes_of(x, scale, zero_point, rule), scale, zero_point, rule)


def _integers(format: str, mapping: str, group_size: int | None = None) -> NumberFormat:
    place: dict[str, Any] = {"format": format, "granularity": "axis", "axis": 0}
    if group_size:
        place = {"format": format, "granularity": "group", "group_size": group_size}
    zero_bits = FORMATS[format].bits if mapping == "asymmetric" else 0
    return NumberFormat(
        f"{format} {mapping}, {f'groups of {group_size}' if group_size else 'a scale a row of 256'}",
        FORMATS[format].bits + (32 + zero_bits) / (group_size or 256),
        partial(_affine, mapping=mapping, **place),
        _link("quantize_affine", **place),
        _link("dequantize_affine", **place),
    )


# Floats of their own


def _cast(x: np.ndarray, target: str) -> np.ndarray:
    return decode(cast_float(x, source="float32", target=target), float_format(target))


def _float(target: str) -> NumberFormat:
    return NumberFormat(
        target, FORMATS[target].bits, partial(_cast, target=target),
        _link("cast_float", source="float32", target=target), _link("cast_float", source=target, target="float32"),
    )  # fmt: skip


# Blocks


def _mx(x: np.ndarray, format: str) -> np.ndarray:
    return mx.dequantize_mx(*mx.quantize_mx(x, format=format), format=format)


def _mx_format(format: str) -> NumberFormat:
    return NumberFormat(
        f"MX {format}, blocks of 32", FORMATS[format].bits + 8 / mx.MX_BLOCK, partial(_mx, format=format),
        _link("quantize_mx", format=format), _link("dequantize_mx", format=format),
    )  # fmt: skip


def _nvfp4(x: np.ndarray, levels: str) -> np.ndarray:
    scale = nvfp4.choose_global_scale_nvfp4(np.abs(x).max()) if levels == "two" else None
    return nvfp4.dequantize_nvfp4(*nvfp4.quantize_nvfp4(x, scale), scale)


def _nvfp4_format(levels: str) -> NumberFormat:
    return NumberFormat(
        f"NVFP4, levels: {levels}", 4 + 8 / nvfp4.NVFP4_BLOCK, partial(_nvfp4, levels=levels),
        _link("quantize_nvfp4", levels=levels), _link("dequantize_nvfp4", levels=levels),
    )  # fmt: skip


# Codebooks


def _blockwise(x: np.ndarray, codebook: str, block_size: int) -> np.ndarray:
    codes, absmax = blockwise.quantize_blockwise(x, codebook=codebook, block_size=block_size)
    return blockwise.dequantize_blockwise(codes, absmax, codebook=codebook, block_size=block_size)


def _twice(x: np.ndarray, codebook: str, block_size: int) -> np.ndarray:
    codes, absmax = blockwise.quantize_blockwise(x, codebook=codebook, block_size=block_size)
    kept = blockwise.double_dequantize(*blockwise.double_quantize(absmax.ravel()))
    return blockwise.dequantize_blockwise(codes, kept.reshape(absmax.shape), codebook=codebook, block_size=block_size)


def _codebook(codebook: str, bits: int, block_size: int) -> NumberFormat:
    chosen: dict[str, Any] = {"codebook": codebook, "block_size": block_size}
    return NumberFormat(
        f"{codebook}, blocks of {block_size}", bits + 32 / block_size, partial(_blockwise, **chosen),
        _link("quantize_blockwise", **chosen), _link("dequantize_blockwise", **chosen),
    )  # fmt: skip


def _scaled(quantize: Callable[..., tuple[np.ndarray, np.ndarray]], x: np.ndarray, **choices: Any) -> np.ndarray:
    codes, scale = quantize(x, granularity="axis", axis=0, **choices)
    return codes * scale[:, None]


# ggml


def _gguf(x: np.ndarray, type: str) -> np.ndarray:
    return gguf.dequantize(gguf.quantize(x, type), type)


NUMBER_FORMATS: list[NumberFormat] = [
    *(_float(name) for name in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
                                "float8_e5m2fnuz", "float6_e3m2fn", "float6_e2m3fn", "float4_e2m1fn")),
    *(_integers(name, mapping) for name in ("int8", "int4") for mapping in ("symmetric", "asymmetric")),
    *(_integers(name, "asymmetric", 128) for name in ("int8", "int4", "int3", "int2")),
    _integers("int4", "symmetric", 32),
    *(_mx_format(name) for name in mx.MX_FORMATS),
    *(_nvfp4_format(levels) for levels in ("one", "two")),
    *(_codebook(name, 4, size) for name in ("nf4", "fp4_bitsandbytes") for size in (64, 128)),
    _codebook("dynamic8", 8, 256),
    NumberFormat("nf4, blocks of 64, double quantization", 4 + 8 / 64 + 32 / (64 * 256),
                 partial(_twice, codebook="nf4", block_size=64)),
    NumberFormat("binary, a scale a row of 256", 1 + 32 / 256, partial(_scaled, binarize),
                 _link("binarize", granularity="axis", axis=0)),
    *(NumberFormat(f"ternary ({rule}), a scale a row of 256", np.log2(3) + 32 / 256,
                   partial(_scaled, ternarize, rule=rule), _link("ternarize", rule=rule, granularity="axis", axis=0))
      for rule in ("twn", "bitnet")),
    *(NumberFormat(f"ggml {name}", 8 * fmt.bytes / fmt.elements, partial(_gguf, type=name),
                   _link("quantize_gguf", type=name), _link("dequantize_gguf", type=name))
      for name, fmt in BLOCK_FORMATS.items()),
]  # fmt: skip
