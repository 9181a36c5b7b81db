"""Probes of this suite's operations: how the numbers of a probe become arguments of a kernel, and results numbers.

Weights that are codes take the numbers of a group from one scale; where a group's numbers have none that makes all of
them codes, the probe is `Unexpressible`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowbit_cts.conformance.fingerprint.probe import Pair, Probe, Span, Unexpressible, drawn, expressed, span_of
from lowbit_cts.kernels import Implementation
from lowbit_cts.reference.codebooks import CODEBOOKS
from lowbit_cts.reference.formats import FloatFormat, IntegerFormat, decode, float_format, integer_format
from lowbit_cts.reference.gguf.blocks import pack
from lowbit_cts.reference.gguf.layout import block_format
from lowbit_cts.reference.mx import MX_BLOCK
from lowbit_cts.reference.nvfp4 import NVFP4_BLOCK
from lowbit_cts.reference.operands import SCALE_BLOCK
from lowbit_cts.reference.packing.sparse24 import metadata_word

Arrays = dict[str, np.ndarray | None]
Chosen = dict[str, Any]

#: K of the search for blocks, where the formats mask that many terms.
_LONG = 1024


@dataclass(frozen=True)
class Adapter:
    """How the numbers of a probe reach an operation.

    Attributes
    ----------
    arguments : callable of (a (M, K), b (K, N), parameters)
        Gives the arguments; raises `Unexpressible`.
    a, b : callable of the parameters
        The formats of the elements.
    spans : callable of the parameters
    sweep : tuple of str
        Parameters of which every supported value is probed; of the others the first of those preferred, or supported.
    preferred : mapping of parameter to values
    shared, blocked, long : bool
        As of `Probe`.
    length : callable of the parameters
        K of the probes.
    """

    arguments: Callable[[np.ndarray, np.ndarray, Chosen], Arrays]
    a: Callable[[Chosen], FloatFormat]
    b: Callable[[Chosen], FloatFormat | IntegerFormat]
    spans: Callable[[Chosen], tuple[Span, ...]]
    sweep: tuple[str, ...]
    preferred: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    shared: bool = False
    blocked: bool = False
    long: bool = False
    length: Callable[[Chosen], int] = field(default=lambda chosen: 64)


def _scaled(b: np.ndarray, least: int, most: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return codes (K, N) and scales (ceil(K / size), N) that make the numbers of b, in groups of `size` rows."""
    k, n = b.shape
    groups = -(-k // size)
    padded = np.zeros((groups * size, n))
    padded[:k] = b
    blocks = padded.reshape(groups, size, n)
    present = np.abs(np.where(blocks == 0, np.nan, blocks))
    if not np.all(np.isfinite(present) | (blocks == 0)):
        raise Unexpressible("weights in codes hold finite numbers only")
    smallest = np.fmin.reduce(present, axis=1, initial=np.inf)
    mantissas, exponents = np.frexp(np.where(blocks == 0, 0.5, blocks))
    odd = np.abs(mantissas * 2.0**53).astype(np.int64)
    trailing = np.frexp((odd & -odd).astype(np.float64))[1] - 1
    lowest = np.where(blocks == 0, 2000, exponents - 53 + trailing).min(axis=1)
    for scale in (smallest, np.ldexp(1.0, np.minimum(lowest, 1000))):
        used = np.where(np.any(blocks != 0, axis=1), scale, 1.0)
        codes = blocks / used[:, None]
        if np.all((codes == np.rint(codes)) & (codes >= least) & (codes <= most)):
            return codes.reshape(-1, n)[:k], used
    raise Unexpressible("no scale makes codes of all weights of a group")


def _weight_only(a: np.ndarray, b: np.ndarray, chosen: Chosen) -> Arrays:
    fmt, activations = integer_format(chosen["format"]), float_format(chosen["input_format"])
    middle = 0 if fmt.minimum < 0 else (fmt.maximum + 1) // 2
    codes, scale = _scaled(b, fmt.minimum - middle, fmt.maximum - middle, chosen["group_size"] or b.shape[0])
    if chosen["granularity"] == "channel":
        scale = scale[0]
    return {
        "a": expressed(a, activations, "a"),
        "codes": (codes + middle).astype(fmt.carrier),
        "scale": expressed(scale, activations, "the scales"),
        "zero_point": np.full(scale.shape, middle, np.int32) if chosen["mapping"] == "asymmetric" else None,
        "group_index": (np.arange(b.shape[0]) // chosen["group_size"]).astype(np.int32)
        if chosen["act_order"]
        else None,
    }


def _float8(a: np.ndarray, b: np.ndarray, chosen: Chosen) -> Arrays:
    scaling, (m, k), n = chosen["scaling"], a.shape, b.shape[1]
    blocks, wide = -(-k // SCALE_BLOCK), -(-n // SCALE_BLOCK)
    a_shape = {"tensor": (), "row": (m,), "block": (m, blocks)}[scaling]
    b_shape = {"tensor": (), "row": (n,), "block": (blocks, wide)}[scaling]
    return {
        "a": expressed(a, float_format(chosen["a_format"]), "a"),
        "a_scale": np.ones(a_shape, np.float32),
        "b": expressed(b, float_format(chosen["b_format"]), "b"),
        "b_scale": np.ones(b_shape, np.float32),
    }


def _block_scaled(
    x: np.ndarray, element: FloatFormat, scale: FloatFormat, size: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return codes (R, K) and scales (R, K / size), powers of two that put the largest of a block at the top."""
    rows, k = x.shape
    if k % size:
        raise Unexpressible(f"{name} needs whole blocks of {size}")
    blocks = x.reshape(rows, k // size, size)
    largest = np.abs(np.where(np.isfinite(blocks), blocks, 0)).max(axis=-1)
    exponent = np.where(largest > 0, np.frexp(largest)[1] - 1 - element.maximum_exponent, 0)
    exponent = np.clip(exponent, scale.minimum_exponent, scale.maximum_exponent)
    over = largest > np.ldexp(element.maximum, exponent)
    exponent = np.minimum(exponent + over, scale.maximum_exponent)
    scales = np.ldexp(1.0, exponent)
    codes = expressed(blocks / scales[..., None], element, f"a block of {name}")
    return codes.reshape(rows, k), expressed(scales, scale, f"the scales of {name}")


def _mx(a: np.ndarray, b: np.ndarray, chosen: Chosen) -> Arrays:
    scale = float_format("float8_e8m0fnu")
    a_codes, a_scale = _block_scaled(a, float_format(chosen["a_format"]), scale, MX_BLOCK, "a")
    b_codes, b_scale = _block_scaled(b.T, float_format(chosen["b_format"]), scale, MX_BLOCK, "b")
    return {"a": a_codes, "a_scale": a_scale, "b": b_codes, "b_scale": b_scale}


def _nvfp4(a: np.ndarray, b: np.ndarray, chosen: Chosen) -> Arrays:
    element, scale = float_format("float4_e2m1fn"), float_format("float8_e4m3fn")
    a_codes, a_scale = _block_scaled(a, element, scale, NVFP4_BLOCK, "a")
    b_codes, b_scale = _block_scaled(b.T, element, scale, NVFP4_BLOCK, "b")
    one = np.ones((), np.float32)
    return {
        "a": a_codes, "a_scale": a_scale, "a_global_scale": one,
        "b": b_codes, "b_scale": b_scale, "b_global_scale": one,
    }  # fmt: skip


def _nf4(a: np.ndarray, b: np.ndarray, chosen: Chosen) -> Arrays:
    size, (k, n) = chosen["block_size"], b.shape
    if k % size:
        raise Unexpressible(f"weights need whole blocks of {size}")
    blocks = b.T.reshape(n, k // size, size)
    largest = np.abs(blocks).max(axis=-1)
    if not np.all(np.isfinite(largest)):
        raise Unexpressible("weights in codes hold finite numbers only")
    absmax = np.where(largest > 0, largest, 1.0)
    values = CODEBOOKS[chosen["codebook"]].astype(np.float64)
    share = blocks / absmax[..., None]
    codes = np.abs(share[..., None] - values).argmin(axis=-1)
    if not np.array_equal(values[codes], share):
        raise Unexpressible("a block of weights is not made of values of the codebook")
    return {
        "a": expressed(a, float_format(chosen["input_format"]), "a"),
        "codes": codes.reshape(n, k).astype(np.uint8),
        "absmax": expressed(absmax, float_format("float32"), "absmax"),
    }


def _gguf(a: np.ndarray, b: np.ndarray, chosen: Chosen) -> Arrays:
    fmt = block_format(chosen["type"])
    if fmt.scales or any(field.name in ("m", "dmin", "e") for field in fmt.fields):
        raise Unexpressible(f"blocks of {fmt.name} have offsets or scales of groups")
    k, n = b.shape
    if k % fmt.elements:
        raise Unexpressible(f"weights need whole blocks of {fmt.elements}")
    levels = fmt.levels.astype(np.int64)
    numbers, scale = _scaled(b, int(levels.min()), int(levels.max()), fmt.elements)
    codes = np.argsort(levels, kind="stable")[np.searchsorted(np.sort(levels), numbers.astype(np.int64))]
    half = expressed(scale.T.ravel(), float_format("float16"), "the scales")
    blocks = pack({"codes": codes.T.reshape(-1, fmt.elements).astype(np.uint8), "d": half}, fmt.name)
    return {"a": expressed(a, float_format("float32"), "a"), "blocks": blocks.reshape(n, -1)}


def sparse24_arguments(a: np.ndarray, b: np.ndarray, format: str) -> Arrays:
    """Return the arguments whose sparse matrix holds a, (M, K), in the first two places of each four of 2 K columns.

    Raises
    ------
    Unexpressible
        A K that is no whole number of words of metadata.
    """
    (m, k), n = a.shape, b.shape[1]
    word = metadata_word(format)
    if k % (4 * word.itemsize):
        raise Unexpressible(f"the sparse matrix needs whole words of metadata, {4 * word.itemsize} of its numbers")
    dense = np.zeros((k // 2, 4, n))
    dense[:, :2] = b.reshape(k // 2, 2, n)
    codes = [
        x.astype(np.int8) if format == "int8" else expressed(x, float_format(format), name)
        for x, name in ((a, "a"), (dense.reshape(2 * k, n), "b"))
    ]
    # Every group of four has the indices 0 and 1: two bits each, the first lowest.
    metadata = np.full((m, k // 4), 0x44, np.uint8).view(word)
    return {"values": codes[0], "metadata": metadata, "b": codes[1]}


def _sparse24(a: np.ndarray, b: np.ndarray, chosen: Chosen) -> Arrays:
    return sparse24_arguments(a, b, chosen["format"])


def _format(name: str) -> Callable[[Chosen], FloatFormat]:
    return lambda chosen: float_format(chosen[name])


def _own(name: str) -> Callable[[Chosen], tuple[Span, ...]]:
    return lambda chosen: (span_of(float_format(chosen[name])),)


def _mx_spans(chosen: Chosen) -> tuple[Span, ...]:
    a, b = float_format(chosen["a_format"]), float_format(chosen["b_format"])
    # Elements of a block share what the scale adds; one a block may have any power of two of float32.
    return span_of(a, b), Span(MX_BLOCK, -126, 127)


def _nvfp4_spans(chosen: Chosen) -> tuple[Span, ...]:
    element, scale = float_format("float4_e2m1fn"), float_format("float8_e4m3fn")
    low = scale.minimum_exponent + element.minimum_exponent
    return span_of(element, element), Span(NVFP4_BLOCK, 2 * low, 2 * (scale.maximum_exponent + 2))


def _wide_enough(span: Span) -> bool:
    """Return whether a term can mask another in a sum of 24 bits."""
    return span.highest - span.lowest > 26


_LAYERS = {"has_bias": (False,), "mapping": ("symmetric",), "granularity": ("group",), "group_size": (32, 64, 128)}
_WEIGHTS = Adapter(
    _weight_only, _format("input_format"), lambda chosen: integer_format(chosen["format"]), _own("input_format"),
    sweep=("input_format",), preferred={**_LAYERS, "act_order": (False,)}, long=True,
)  # fmt: skip

#: Adapters by operation. GGUF types are those that have a scale a block and no offset.
ADAPTERS: dict[str, Adapter] = {
    "matmul_w4a16": _WEIGHTS,
    "matmul_w8a16": _WEIGHTS,
    "matmul_float8": Adapter(
        _float8, _format("a_format"), _format("b_format"),
        lambda chosen: (span_of(float_format(chosen["a_format"]), float_format(chosen["b_format"])),),
        sweep=("output_format",), preferred={"has_bias": (False,), "scaling": ("tensor", "row", "block")}, shared=True,
    ),
    "matmul_mx": Adapter(
        _mx, _format("a_format"), _format("b_format"), _mx_spans, sweep=("output_format",),
        preferred={
            "has_bias": (False,),
            "a_format": ("float8_e4m3fn", "float8_e5m2", "float6_e3m2fn", "float6_e2m3fn", "float4_e2m1fn"),
            "b_format": ("float8_e4m3fn", "float8_e5m2", "float6_e3m2fn", "float6_e2m3fn", "float4_e2m1fn"),
        },
        shared=True, blocked=True,
        length=lambda chosen: 64 if _wide_enough(_mx_spans(chosen)[0]) else 16 * MX_BLOCK,
    ),
    "matmul_nvfp4": Adapter(
        _nvfp4, lambda chosen: float_format("float4_e2m1fn"), lambda chosen: float_format("float4_e2m1fn"),
        _nvfp4_spans, sweep=("output_format",), preferred={"has_bias": (False,)}, shared=True, blocked=True,
        length=lambda chosen: 16 * NVFP4_BLOCK,
    ),
    "linear_nf4": Adapter(
        _nf4, _format("input_format"), lambda chosen: integer_format("int4"), _own("input_format"),
        sweep=("input_format",), preferred={"has_bias": (False,), "block_size": (32, 64), "codebook": ("nf4",)},
        long=True,
    ),
    "matvec_gguf": Adapter(
        _gguf, lambda chosen: float_format("float32"), lambda chosen: integer_format("int8"),
        lambda chosen: (span_of(float_format("float32")),), sweep=(),
        preferred={"type": ("Q8_0", "Q4_0", "Q5_0", "IQ4_NL")}, long=True,
    ),
    "matmul_sparse24": Adapter(
        _sparse24, _format("format"), _format("format"), _own("format"), sweep=("format",),
        preferred={"metadata_order": ("row",)}, long=True,
    ),
}  # fmt: skip


def combinations(
    implementation: Implementation, sweep: tuple[str, ...], preferred: Mapping[str, tuple[Any, ...]]
) -> Iterator[Chosen]:
    """Yield the parameters to probe an implementation with: every supported value of some, the preferred of others."""
    operation, supports = implementation.operation, dict(implementation.supports)
    for name, values in supports.items():
        if name not in sweep:
            liked = [value for value in preferred.get(name, ()) if value in values]
            supports[name] = tuple(liked[:1] or values[:1])
    yield from operation.combinations(supports, tuple(operation.parameters))


def _drawing(adapter: Adapter, chosen: Chosen) -> Callable[[np.random.Generator, int, int, int], Pair] | None:
    """Return how operands are drawn where blocks have scales or a codebook; None where the formats say it."""
    if adapter.blocked:
        return _blocks_drawn(adapter.a(chosen), adapter.b(chosen))
    if "codebook" not in chosen:
        return None
    values = CODEBOOKS[chosen["codebook"]].astype(np.float64)

    def draw(rng: np.random.Generator, m: int, k: int, n: int) -> Pair:
        b = rng.choice(values, (k, n))
        b[::32] = 1.0  # of the smallest blocks, too, the largest is 1
        return drawn(rng, (m, k), float_format(chosen["input_format"])), b

    return draw


def _blocks_drawn(
    a: FloatFormat, b: FloatFormat | IntegerFormat
) -> Callable[[np.random.Generator, int, int, int], Pair]:
    """Return how operands are drawn of which every 32 neighbours along K have a power of two in common."""

    def draw(rng: np.random.Generator, m: int, k: int, n: int) -> Pair:
        sizes = [2.0 ** rng.choice((-3, 2, 7), (rows, -(-k // 32))).repeat(32, axis=1)[:, :k] for rows in (m, n)]
        return drawn(rng, (m, k), a) * sizes[0], drawn(rng, (k, n), b) * sizes[1].T

    return draw


def probe_of(
    implementation: Implementation,
    chosen: Chosen,
    rows: int,
    columns: int,
    call: Callable[[list[Arrays], Chosen], list[np.ndarray]],
) -> Probe:
    """Return a probe of an implementation at some parameters.

    Parameters
    ----------
    implementation : Implementation
        Of an operation in `ADAPTERS`.
    chosen : dict
        A value for every parameter.
    rows, columns : int
        M and N of the probes.
    call : callable of (list of arguments, parameters)
        Gives the results in their carriers.
    """
    adapter = ADAPTERS[implementation.operation.name]
    output = float_format(implementation.operation.results[0].format(chosen))

    def product(pairs: Sequence[Pair]) -> list[np.ndarray]:
        arguments = [adapter.arguments(a, b, chosen) for a, b in pairs]
        return [np.asarray(decode(y, output)) for y in call(arguments, chosen)]

    return Probe(
        product, adapter.a(chosen), adapter.b(chosen), output, adapter.spans(chosen), rows=rows, columns=columns,
        length=adapter.length(chosen), long=_LONG if adapter.long else 0, shared=adapter.shared,
        blocked=adapter.blocked, draw=_drawing(adapter, chosen),  # type: ignore[arg-type]
    )  # fmt: skip
