"""The paged cache of keys and values: which scale an element has, and what a write stores where.

A cache is (C, P, G, size): C blocks of P slots of G heads. Slot n lies in block ``n // P``, at place ``n % P``. A
quantized cache holds the codes of ``x / scale``, saturated, and is read as ``code * scale``; scales are shared by

===========  =====================  =========================  =========================================
granularity  scales of the keys     scales of the values       shared by
===========  =====================  =========================  =========================================
tensor       ()                     ()                         the whole cache
head         (G,)                   (G,)                       a head
kivi         (G, D)                 (..., G)                   a channel of the keys, a token of the values
===========  =====================  =========================  =========================================

where ... is the axes of what is scaled: (T, G) beside the values of T tokens, (C, P, G) beside a cache of them.

References
----------
.. [1] W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention",
   arXiv:2309.06180, §4.3: blocks and slots.
.. [2] vLLM, `csrc/cache_kernels.cu`, reshape_and_cache_flash: the layout (blocks, slots, heads, head size), a slot
   below zero is padding and is skipped, float8 stores x / scale and saturates.
.. [3] Z. Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", arXiv:2402.02750, §3.2: keys have
   outlier channels, so they are quantized per channel, values per token. Codes here are symmetric.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from lowbit_cts.reference.affine import quantize_enclosure
from lowbit_cts.reference.choices import Division, Overflow, Precision, Rounding, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, determined
from lowbit_cts.reference.encoding import encode, round_to_format
from lowbit_cts.reference.formats import FORMATS, FloatFormat, Format, decode, float_format
from lowbit_cts.reference.operands import check_positive

#: Formats of a cache that has scales.
QUANTIZED = ("int8", "float8_e4m3fn", "float8_e5m2")
GRANULARITIES = ("tensor", "head", "kivi")

_FLOAT32 = float_format("float32")
_Axis = TypeVar("_Axis", int, str)


def scale_shape(of: str, shape: tuple[_Axis, ...], granularity: str) -> tuple[_Axis, ...]:
    """Return the shape of the scales of keys or values.

    Parameters
    ----------
    of : {"key", "value"}
    shape : tuple of int, or of the names of axes
        Of the keys or values, (..., G, size).
    granularity : {"tensor", "head", "kivi"}

    Raises
    ------
    ValueError
        An unknown granularity.
    """
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity: {granularity!r} must be one of {', '.join(GRANULARITIES)}")
    if granularity == "tensor":
        return ()
    if granularity == "head":
        return shape[-2:-1]
    return shape[-2:] if of == "key" else shape[:-1]


def scales_of(
    of: str, scale: float | np.ndarray | None, shape: tuple[int, ...], granularity: str = "tensor"
) -> np.ndarray:
    """Return the scales of keys or values as float64 that broadcasts against them; 1 for None.

    Parameters
    ----------
    of, shape, granularity :
        As `scale_shape`.
    scale : float, ndarray or None

    Raises
    ------
    ValueError
        Scales of another shape; an unknown granularity.
    """
    expected = scale_shape(of, shape, granularity)
    if scale is None:
        return np.ones(())
    found = np.asarray(scale, np.float64)
    if found.shape != expected:
        raise ValueError(f"{of}_scale: has shape {found.shape}, must be {expected} for granularity {granularity!r}")
    return found[..., None] if granularity == "head" or (granularity == "kivi" and of == "value") else found


def slots(row: np.ndarray, context: int, block: int, blocks: int) -> np.ndarray:
    """Return the numbers of the slots of a context in the cache: slot = block number * block size + place in it.

    Parameters
    ----------
    row : ndarray of int, (B,)
        Of the block table. What is beyond the context may be anything.
    context, block, blocks : int
        Slots that are filled; slots in a block; blocks in the cache.

    Raises
    ------
    ValueError
        A context that is negative or longer than the row's blocks, a needed block that the cache has not.
    """
    if not 0 <= context <= row.size * block:
        raise ValueError(f"context_lengths: must lie in [0, {row.size * block}], what the table covers; got {context}")
    needed = row[: -(-context // block)].astype(np.int64)
    if needed.size and (needed.min() < 0 or needed.max() >= blocks):
        raise ValueError(f"block_table: must lie in [0, {blocks - 1}] within the context; got {needed.tolist()}")
    return (needed[:, None] * block + np.arange(block)).reshape(-1)[:context]


@dataclass(frozen=True)
class Cache:
    """A paged cache of keys or values.

    Attributes
    ----------
    of : {"key", "value"}
    codes : ndarray, (C, P, G, size)
    scale : ndarray of float64
        As `scales_of` gives it; ValueError where one is not positive and finite, of those of slots when they are read.
    fmt : Format
    """

    of: str
    codes: np.ndarray
    scale: np.ndarray
    fmt: Format

    def __post_init__(self) -> None:
        """Refuse scales that are not positive; those of slots are looked at when the slots are."""
        if not self._of_slots:
            check_positive(self.scale, f"{self.of}_scale")

    @property
    def _of_slots(self) -> bool:
        return self.scale.ndim == self.codes.ndim

    def numbers(self, at: np.ndarray, held: np.ndarray) -> np.ndarray:
        """Return what slots (S, N) hold, of each sequence and head (S G, N, size); 0 where not `held`."""
        place = np.divmod(at, self.codes.shape[1])
        scale = self.scale
        if self._of_slots:
            scale = scale[place]
            check_positive(scale[held], f"{self.of}_scale")
        with np.errstate(invalid="ignore"):
            found = np.where(held[..., None, None], decode(self.codes[place], self.fmt) * scale, 0.0)
        return found.swapaxes(1, 2).reshape(len(at) * self.codes.shape[2], at.shape[1], self.codes.shape[3])

    def apart(self, sequences: int) -> np.ndarray:
        """Return what the sum of codes may be multiplied by after it was added, (S G, 1, 1): 1 of scales in a sum."""
        heads = self.codes.shape[2]
        shared = self.scale.ndim == 0 or self.scale.shape == (heads, 1)
        of_heads = np.broadcast_to(self.scale.reshape(-1) if shared else 1.0, heads)
        return np.tile(of_heads, sequences)[:, None, None]


def _quotient(x: np.ndarray, scale: np.ndarray, division: Division, intermediate: Precision) -> np.ndarray:
    """Return x / scale by exactly the declared arithmetic, in float64."""
    fmt = float_format(str(intermediate))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if division is Division.RECIPROCAL:
            return round_to_format(x * round_to_format(1.0 / scale, fmt), fmt)
        return round_to_format(x / scale, fmt)


@takes_choices
def stored_enclosure(
    x: np.ndarray,
    scale: np.ndarray,
    *,
    cache_format: str,
    rounding: Rounding = Rounding.HALF_EVEN,
    overflow: Overflow = Overflow.SATURATE,
    division: Division = Division.DIVIDE,
    division_ulps: float = 2.0,
    intermediate: Precision = Precision.FLOAT32,
) -> Enclosure:
    """Return the admissible contents of a cache's slots that are written with x, decoded.

    Parameters
    ----------
    x : ndarray of float64, any shape
        Values of float32, or of a format inside it.
    scale : ndarray of float64, broadcastable to x
        Positive and finite; of a cache that is not quantized not looked at.
    cache_format : str
        One of `QUANTIZED`, or the format of x, which is stored as it is.
    rounding, overflow, division, division_ulps, intermediate :
        See `lowbit_cts.kernels.semantics.Semantics`. `overflow` is that of float8.

    Returns
    -------
    Enclosure, the shape of x
        A NaN has no code in int8, so that every code is admissible; in float8 it is NaN.

    Raises
    ------
    ValueError
        A scale that is not positive and finite.
    """
    fmt = FORMATS[cache_format]
    if cache_format not in QUANTIZED:
        return determined(x, signed_zero=True)
    s = np.broadcast_to(scale, x.shape)
    if not isinstance(fmt, FloatFormat):
        found = quantize_enclosure(
            x.reshape(-1, 1), s.reshape(-1), np.zeros(x.size, np.int64), format=cache_format, granularity="axis",
            axis=0, rounding=rounding, division=division, division_ulps=division_ulps, intermediate=intermediate,
        )  # fmt: skip
        return Enclosure(found.exact.reshape(x.shape), found.lo.reshape(x.shape), found.hi.reshape(x.shape))
    check_positive(s, "scale")
    if division is not Division.APPROXIMATE:
        codes = encode(_quotient(x, s, division, intermediate), fmt, rounding, overflow)
        return determined(decode(codes, fmt), signed_zero=fmt.signed_zero)
    quotient = _quotient(x, s, Division.DIVIDE, intermediate)
    with np.errstate(invalid="ignore"):
        slack = np.where(np.isfinite(quotient), np.abs(quotient) * division_ulps * 2 * _FLOAT32.unit_roundoff, 0.0)
    exact, lo, hi = (decode(encode(quotient + side * slack, fmt, rounding, overflow), fmt) for side in (0, -1, 1))
    beyond = ~np.isnan(x) & (np.isnan(lo) | np.isnan(hi))  # at the edge of what overflows to NaN
    exact, lo, hi = np.where(beyond, np.nan, exact), np.where(beyond, -np.inf, lo), np.where(beyond, np.inf, hi)
    return Enclosure(exact, lo, hi, signed_zero=fmt.signed_zero)


def check_write(
    key: np.ndarray, value: np.ndarray, key_cache: np.ndarray, value_cache: np.ndarray, slot_mapping: np.ndarray
) -> None:
    """Raise a ValueError unless tokens fit the cache; (T, G, D), (T, G, E), (C, P, G, D), (C, P, G, E), (T,)."""
    for name, array, axes in (
        ("key", key, 3), ("value", value, 3), ("key_cache", key_cache, 4), ("value_cache", value_cache, 4),
        ("slot_mapping", slot_mapping, 1),
    ):  # fmt: skip
        if array.ndim != axes:
            raise ValueError(f"{name}: has {array.ndim} axes, must have {axes}")
    if key_cache.shape[:3] != value_cache.shape[:3]:
        raise ValueError(f"value_cache: has shape {value_cache.shape}, must begin as key_cache, {key_cache.shape}")
    for name, array, cache in (("key", key, key_cache), ("value", value, value_cache)):
        expected = (len(slot_mapping), *cache.shape[2:])
        if array.shape != expected:
            raise ValueError(f"{name}: has shape {array.shape}, must be {expected} beside this cache and slot_mapping")
    slots = key_cache.shape[0] * key_cache.shape[1]
    given = slot_mapping[slot_mapping >= 0]
    if given.size and given.max() >= slots:
        raise ValueError(f"slot_mapping: must lie below {slots}, the slots of the cache; got {given.max()}")
    if np.unique(given).size != given.size:
        raise ValueError("slot_mapping: must name no slot twice; which token it would hold is undefined")


@takes_choices
def write_kv_cache_enclosure(
    key: np.ndarray,
    value: np.ndarray,
    key_cache: np.ndarray,
    value_cache: np.ndarray,
    slot_mapping: np.ndarray,
    key_scale: float | np.ndarray | None = None,
    value_scale: float | np.ndarray | None = None,
    *,
    cache_format: str,
    granularity: str = "tensor",
    rounding: Rounding = Rounding.HALF_EVEN,
    overflow: Overflow = Overflow.SATURATE,
    division: Division = Division.DIVIDE,
    division_ulps: float = 2.0,
    intermediate: Precision = Precision.FLOAT32,
) -> dict[str, Enclosure]:
    """Return the admissible contents of a cache after tokens have been written to it, decoded.

    Parameters
    ----------
    key, value : ndarray of float64, shapes (T, G, D) and (T, G, E)
        The numbers of T tokens.
    key_cache, value_cache : ndarray, shapes (C, P, G, D) and (C, P, G, E)
        Codes, as they were before.
    slot_mapping : ndarray of int, shape (T,)
        The slot of each token; one below zero, of any value, is skipped. Slots are distinct.
    key_scale, value_scale : float, ndarray or None
        What numbers are divided by, positive, in the shapes of the granularity, of `kivi` (G, D) and (T, G); None for
        1.
    cache_format, rounding, overflow, division, division_ulps, intermediate :
        As `stored_enclosure`.
    granularity : {"tensor", "head", "kivi"}

    Returns
    -------
    dict with "new_key_cache" and "new_value_cache", the shapes of the caches. What no token addresses is what it was.

    Raises
    ------
    ValueError
        Shapes that do not fit, a slot beyond the cache, a slot of two tokens, a scale of another shape, or that is not
        positive and finite.
    """
    check_write(key, value, key_cache, value_cache, slot_mapping)
    choices: dict[str, Any] = {
        "rounding": rounding, "overflow": overflow, "division": division, "division_ulps": division_ulps,
        "intermediate": intermediate,
    }  # fmt: skip
    held = slot_mapping >= 0
    found = {}
    for of, x, cache, scale in (("key", key, key_cache, key_scale), ("value", value, value_cache, value_scale)):
        placed = scales_of(of, scale, x.shape, granularity)
        check_positive(placed, f"{of}_scale")
        stored = stored_enclosure(np.asarray(x, np.float64), placed, cache_format=cache_format, **choices)
        old = decode(cache, FORMATS[cache_format])
        place = np.divmod(slot_mapping[held], max(1, cache.shape[1]))
        exact, lo, hi = (_with_slots(old, place, part[held]) for part in (stored.exact, stored.lo, stored.hi))
        found[f"new_{of}_cache"] = Enclosure(exact, lo, hi, stored.signed_zero)
    return found


def _with_slots(cache: np.ndarray, place: tuple[np.ndarray, np.ndarray], tokens: np.ndarray) -> np.ndarray:
    """Return a copy of a cache (C, P, G, size) with tokens (T, G, size) at blocks and places in them."""
    new = cache.copy()
    new[place] = tokens
    return new
