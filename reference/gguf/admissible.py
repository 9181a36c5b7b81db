"""Which blocks a quantizer may return, where its bytes are determined and where they are not.

The searches of the K-quants and IQ4 are sums of products, of which a compiler may fuse any, and a vendor may search in
another way. Other scales come out then, and other codes. What holds of them all the same is derived from their own
definition:

*Nearest levels.* Given the scales that a block stores, no other code brings an element nearer to x, but for what the
rounding of these scales to float16 explains (`distance_ratio`).

*No worse than one shot.* ggml's searches start from the plain scale of a group (its largest element on the outermost
level, or its range on all of them) and leave it only for a smaller weighted error. Storing the scale found costs at
most half a step of the block's scales; by the triangle inequality, the error of what is stored is at most that of the
plain scale and this cost (`error_ratio`).

References
----------
.. [1] ggml-org/ggml, `src/ggml-quants.c`, version 0.25.3: ``make_qx_quants``, ``make_q3_quants``, ``make_qkx2_quants``,
   ``quantize_row_iq4_nl_impl``.
.. [2] N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM 2002: §3.1.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lowbit_cts.reference.choices import Contraction, ExponentFloor, ScaleSearch, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, determined, gamma
from lowbit_cts.reference.gguf.arithmetic import first_largest
from lowbit_cts.reference.gguf.blocks import quantize, scale_and_offset, unpack
from lowbit_cts.reference.gguf.layout import BlockFormat, block_format

# Unit roundoff of float32.
_U = 2.0**-24

# Up to here the scales of every format are finite in float16.
_LARGEST = 2.0**15

# Between these no format's scale is rounded to zero, or is the largest there is.
_LEAST, _MOST = 2.0**-6, 2.0**12

# From here a float16 scale has all its bits.
_NORMAL = 2.0**-14

# Half a step of quantized scales, and more than the few roundings before they are quantized.
_HALF_STEP = 0.5 + 2.0**-14

# The float16 numbers of a block: scale, min, scale of its mins.
_HALVES = ("d", "m", "dmin")


@dataclass(frozen=True)
class _Decoded:
    """Blocks taken apart, in float64.

    Attributes
    ----------
    scale, offset : ndarray, shape (n, groups, 1)
    scale_rounding, offset_rounding : ndarray, the same shape
        What the rounding of float16 numbers may have moved them.
    level : ndarray, shape (n, groups, elements of a group)
    scale_level : ndarray, shape (n, groups) or (1, 1)
    step, min_step : ndarray, shape (n, 1)
        What the codes of scales and mins multiply, before it was rounded: at most; 0 in formats without.
    """

    scale: np.ndarray
    scale_rounding: np.ndarray
    offset: np.ndarray
    offset_rounding: np.ndarray
    level: np.ndarray
    scale_level: np.ndarray
    step: np.ndarray
    min_step: np.ndarray


def _decoded(blocks: np.ndarray, fmt: BlockFormat) -> _Decoded:
    parts = unpack(blocks, fmt.name)
    scale, offset = scale_and_offset(parts, fmt.name)
    zeros = np.zeros((len(scale), fmt.groups, 1))
    half = {name: parts[name].astype(np.float64)[:, None] if name in parts else zeros[:, :1, 0] for name in _HALVES}
    # Half a unit in the last place of float16.
    rounding = {
        name: np.maximum(np.abs(part) * 2.0**-11, 2.0**-25) if name in parts else part for name, part in half.items()
    }
    levels = np.ones((1, 1)) if fmt.scale_levels is None else fmt.scale_levels[parts["scales"]].astype(np.float64)
    offset_rounding = rounding["m"] + rounding["dmin"] * parts.get("mins", 0)
    return _Decoded(
        scale=zeros + scale[..., None],
        scale_rounding=zeros + (rounding["d"] * np.abs(levels))[..., None],
        offset=zeros if offset is None else zeros + offset[..., None],
        offset_rounding=zeros + offset_rounding[..., None],
        level=fmt.levels[parts["codes"]].reshape(len(scale), fmt.groups, fmt.group).astype(np.float64),
        scale_level=levels,
        step=np.abs(half["d"]) + rounding["d"],
        min_step=np.abs(half["dmin"]) + rounding["dmin"],
    )


def _room(x: np.ndarray, found: _Decoded, nearest: np.ndarray, fmt: BlockFormat) -> np.ndarray:
    """Return how much farther than the nearest level that of an element may lie.

    A code decided by a scale s + ds and an offset o + do, and nearest by them, is by s and o at most as much farther as
    the two levels move: |ds| (|level| + |nearest level|) + 2 |do|. The roundings of the decision itself, at most four
    of numbers up to |x| + |o| and two of codes up to twice the largest level, count twice.
    """
    moved = found.scale_rounding * (np.abs(found.level) + np.abs(nearest)) + 2 * found.offset_rounding
    largest = np.abs(found.scale) * float(np.abs(fmt.levels.astype(int)).max())
    return moved + 8 * _U * (np.abs(x) + np.abs(found.offset) + largest)


def _nearest_levels(x: np.ndarray, found: _Decoded, fmt: BlockFormat) -> np.ndarray:
    levels = np.unique(fmt.levels).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.where(found.scale != 0, (x - found.offset) / found.scale, 0.0)
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, steps)]


def _ratio(value: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Return value / room where the value is positive, infinite where there is no room; else 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(value > 0, np.where(room > 0, value / room, np.inf), 0.0)


def _grouped(x: np.ndarray, fmt: BlockFormat) -> np.ndarray:
    return np.asarray(x, np.float64).reshape(-1, fmt.groups, fmt.group)


def distance_ratio(x: np.ndarray, blocks: np.ndarray, format: str) -> np.ndarray:
    """Return how much farther each element is from x than the nearest level, over what roundings explain.

    Parameters
    ----------
    x : ndarray of float32, shape (..., K)
    blocks : ndarray of uint8, shape (..., K / elements * bytes of a block)
        Blocks whose float16 numbers are finite.
    format : str
        A key of `BLOCK_FORMATS`.

    Returns
    -------
    ndarray of float64, shape (n, groups, elements of a group), n blocks
        Up to 1 where the code is admissible, 0 where its level is a nearest one.

    Notes
    -----
    All of ggml's quantizers satisfy it but ``quantize_row_iq4_nl_ref`` (`ScaleSearch.ONE_SHOT`), which keeps the codes
    that its scale was made from.
    """
    fmt = block_format(format)
    return _distance_ratio(_grouped(x, fmt), _decoded(blocks, fmt), fmt)


def _distance_ratio(x: np.ndarray, found: _Decoded, fmt: BlockFormat) -> np.ndarray:
    nearest = _nearest_levels(x, found, fmt)
    distance, least = (np.abs(x - (found.scale * level + found.offset)) for level in (found.level, nearest))
    return _ratio(distance - least, _room(x, found, nearest, fmt))


@dataclass(frozen=True)
class _Objective:
    """What a search minimizes: the sum of weight * |error|**power in a group.

    `roundings` is how many of float32 the sums of one candidate hold at most, one after the other.
    """

    weight: Callable[[np.ndarray], np.ndarray]
    power: int
    roundings: int

    def norm(self, weight: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Return the weighted norm of errors over the elements of each group."""
        return np.sum(weight * np.abs(error) ** self.power, axis=-1) ** (1 / self.power)


def _rms_and_magnitude(x: np.ndarray) -> np.ndarray:
    return np.sqrt(np.mean(x * x, axis=-1, keepdims=True)) + np.abs(x)


_OBJECTIVES = {
    "Q2_K": _Objective(np.abs, 1, 20),
    "Q3_K": _Objective(np.square, 2, 16 + 2 * 5 * 16),  # five rounds of updates
    "Q4_K": _Objective(_rms_and_magnitude, 2, 36),
    "Q5_K": _Objective(_rms_and_magnitude, 2, 36),
    "Q6_K": _Objective(np.square, 2, 20),
    "IQ4_NL": _Objective(np.square, 2, 36),
    "IQ4_XS": _Objective(np.square, 2, 36),
}

# The formats whose scales are searched: contraction and the way of searching leave their bytes open.
SEARCHED = tuple(_OBJECTIVES)


def error_ratio(x: np.ndarray, blocks: np.ndarray, format: str) -> np.ndarray:
    """Return the weighted error of each group over the largest that the search of its format may leave.

    Parameters
    ----------
    x : ndarray of float32, shape (..., K)
    blocks : ndarray of uint8, shape (..., K / elements * bytes of a block)
    format : str
        One of `SEARCHED`.

    Returns
    -------
    ndarray of float64, shape (n, groups), n blocks
        Up to 1 where it is admissible; 0 in a block whose scale is no normal float16 number.

    Notes
    -----
    With ||.|| the weighted norm over a group, (s, q) the scale and codes that the search ends with and P the error of
    the plain scale, ||x - s q|| <= P. Stored is s' = d L, and q' is nearest given s', so that

        ||x - s' q'|| <= ||x - s' q|| <= P + |s - s'| ||q||.

    d L differs from s by half a step d (a whole one on the last level, onto which one more is clipped) and the rounding
    of d. ||q|| is at most ||x|| / |s|, s being the regression of x on q. With mins, x ~ s q - m, and

        ||x - s' q' + m'|| <= P + |s - s'| ||q|| + |m - m'| ||1||.

    The float32 sums that are compared are known to gamma_n. Those of the symmetric formats are of the part of ||x||**2
    that is explained, so that the error itself is known to a few gamma_n of that.
    """
    fmt = block_format(format)
    if format not in _OBJECTIVES:
        raise ValueError(f"format: {format!r} has no search; admissible: {', '.join(SEARCHED)}")
    return _error_ratio(_grouped(x, fmt), _decoded(blocks, fmt), fmt)


def _error_ratio(x: np.ndarray, found: _Decoded, fmt: BlockFormat) -> np.ndarray:
    objective = _OBJECTIVES[fmt.name]
    weight = objective.weight(x)
    ones = objective.norm(weight, np.ones_like(x))
    plain = _plain_error(x, weight, fmt)
    scale, moved = np.abs(found.scale[..., 0]), found.scale_rounding[..., 0]
    moved_min = found.offset_rounding[..., 0]
    if fmt.scale_levels is not None:
        clipped = found.scale_level == fmt.scale_levels.max() if fmt.scale_levels.min() < 0 else False
        moved = moved + found.step * (_HALF_STEP + 0.5 * clipped)
        moved_min = moved_min + found.min_step * _HALF_STEP
    shifted = objective.norm(weight, x - found.offset) + np.where(found.min_step > 0, moved_min * ones + plain, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(scale > moved, shifted / np.maximum(scale - moved, 0), np.inf)
    codes = np.minimum(codes, float(np.abs(fmt.levels.astype(int)).max()) * ones)
    room = objective.norm(weight, _room(x, found, _nearest_levels(x, found, fmt), fmt))
    error = objective.norm(weight, x - (found.scale * found.level + found.offset))
    bound = plain + moved * codes + moved_min * ones + room
    return np.where(found.step >= _NORMAL, _ratio(error, bound), 0.0)


def _plain_error(x: np.ndarray, weight: np.ndarray, fmt: BlockFormat) -> np.ndarray:
    """Return the weighted error of groups at their plain scale, and what float32 may make of it in a comparison."""
    objective = _OBJECTIVES[fmt.name]
    rounded = gamma(objective.roundings, _U)
    if fmt.has("dmin"):
        low = np.minimum(x.min(axis=-1, keepdims=True), 0.0)
        scale = (x.max(axis=-1, keepdims=True) - low) / fmt.levels.max()
        with np.errstate(invalid="ignore", divide="ignore"):
            codes = np.where(scale > 0, np.rint((x - low) / scale), 0.0)
        error = objective.norm(weight, x - (scale * codes + low))
        # Each difference is computed from numbers within the range, twice (of the plain scale, and of the one found).
        size = objective.norm(weight, np.abs(x) + fmt.levels.max() * scale + np.abs(low))
        return error * (1 + rounded) + 8 * _U * size
    scale = first_largest(x)[..., None] / fmt.levels.min()
    levels = np.unique(fmt.levels).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.where(scale != 0, x / scale, 0.0)
    level = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, steps)]
    error, size = objective.norm(weight, x - scale * level), objective.norm(weight, x)
    # Compared are a**2 b' and a'**2 b of sums a, b.
    return np.sqrt(error**2 + 6 * rounded * size**2)


@dataclass(frozen=True, kw_only=True)
class BlockEnclosure(Enclosure):
    """Blocks that are not determined: any bytes, if what they decode to is as good as it must be.

    Attributes
    ----------
    x : ndarray of float32, shape (..., K)
        What was quantized.
    format : str
    one_shot_error, nearest_levels : bool
        Which of the two conditions (see this module) must hold.

    Notes
    -----
    A block is judged as a whole. Where x is so large that a scale may be infinite in float16, anything goes; elsewhere
    the float16 numbers must be finite. And some element must decode to more than its half, or twice the scales were
    better for all.
    """

    x: np.ndarray
    format: str
    one_shot_error: bool
    nearest_levels: bool

    def admits(self, values: np.ndarray) -> np.ndarray:
        """Return, elementwise, whether bytes are those of admissible blocks."""
        return self._of_bytes(self._judged(values) <= 1, values)

    def ratio(self, values: np.ndarray) -> np.ndarray:
        """Return, elementwise, the error of a block over the admissible one; 0 where the bytes are those of ggml."""
        return np.where(values == self.exact, 0.0, self._of_bytes(self._judged(values), values))

    def _of_bytes(self, judged: np.ndarray, values: np.ndarray) -> np.ndarray:
        return np.repeat(judged, block_format(self.format).bytes).reshape(np.shape(values))

    def _judged(self, values: np.ndarray) -> np.ndarray:
        """Return for each block its error over the admissible one."""
        fmt = block_format(self.format)
        blocks = np.asarray(values).astype(np.uint8)
        x = _grouped(self.x, fmt)
        with np.errstate(invalid="ignore", over="ignore"):
            found = _decoded(blocks, fmt)
            finite = np.all(np.isfinite(found.scale + found.offset), axis=(1, 2))
            ratios = [np.zeros(len(x))]
            if self.nearest_levels:
                ratios.append(_distance_ratio(x, found, fmt).max(axis=(1, 2)))
            if self.one_shot_error:
                ratios.append(_error_ratio(x, found, fmt).max(axis=1))
            halved = np.all(2 * np.abs(found.scale * found.level + found.offset) <= np.abs(x), axis=(1, 2))
        largest = np.abs(x).max(axis=(1, 2), initial=0.0)
        judged = np.where(finite, np.max(ratios, axis=0), np.inf)
        judged = np.where(halved & (largest >= _LEAST) & (largest <= _MOST), np.inf, judged)
        return np.where(largest > _LARGEST, 0.0, judged)

    def __getitem__(self, index: Any) -> "BlockEnclosure":
        """Return the enclosure of some rows."""
        ends = {name: getattr(self, name)[index] for name in ("exact", "lo", "hi", "x")}
        return replace(self, **ends)


@takes_choices
def quantize_enclosure(
    x: np.ndarray,
    format: str,
    *,
    contraction: Contraction = Contraction.SEPARATE,
    scale_search: ScaleSearch = ScaleSearch.GRID,
    exponent_floor: ExponentFloor = ExponentFloor.FLOAT32_LOG2,
) -> Enclosure:
    """Return the admissible blocks of x.

    Parameters
    ----------
    x : ndarray of float32, shape (..., K)
        Finite; K a multiple of the block's elements.
    format : str
        A key of `BLOCK_FORMATS`.
    contraction : {separate, fused, either}
        "either" admits both codes where they differ. Of a searched format (`SEARCHED`), "separate" alone determines the
        bytes; otherwise they must be as good as this module says.
    scale_search : ScaleSearch
        With "any", of all formats: the codes must be nearest to the scales stored. No error is demanded of these, which
        may be weighted by what is known of the activations.
    exponent_floor : ExponentFloor
        As `quantize`.

    Returns
    -------
    Enclosure
        Of the bytes, of the shape of the blocks.

    Raises
    ------
    ValueError
        As `quantize`.
    """
    known = ScaleSearch.GRID if scale_search is ScaleSearch.ANY else scale_search
    given: dict[str, Any] = {"scale_search": known, "exponent_floor": exponent_floor}
    separate = quantize(x, format, contraction=Contraction.SEPARATE, **given)
    exact = separate.astype(np.int64)
    if scale_search is ScaleSearch.ANY or (format in SEARCHED and contraction is not Contraction.SEPARATE):
        anything = np.zeros_like(exact), np.full_like(exact, 255)
        keeps_codes = format == "IQ4_NL" and scale_search is ScaleSearch.ONE_SHOT
        rule = "of a block that is as good as its format allows"
        return BlockEnclosure(
            exact, *anything, rule=rule, x=np.asarray(x), format=format,
            one_shot_error=scale_search is not ScaleSearch.ANY, nearest_levels=not keeps_codes,
        )  # fmt: skip
    if contraction is Contraction.SEPARATE or format in SEARCHED:
        return determined(exact)
    fused = quantize(x, format, contraction=Contraction.FUSED, **given).astype(np.int64)
    if contraction is Contraction.FUSED:
        return determined(fused)
    # Codes of one or the other in each byte: no less than the bits of both, and no more than those of any.
    return Enclosure(exact, exact & fused, exact | fused)
