"""Quantization to Q2_K .. Q6_K: 256 elements in groups of 16 or 32, whose scales (and mins) are quantized themselves.

Each quantizer searches a scale a group, in float32; quantizes these scales; and rounds the elements anew by what the
block will decode to. Where that scale decodes to 0, the codes of the search stay: they decode to 0 (or to the min)
whatever they are.

In the searches the elements of a group are the first axis, and all groups of all blocks the last: every sum is then a
loop over the first axis, in C's order, and C's ``if`` is a choice between lanes.

References
----------
.. [1] ggml-org/ggml, `src/ggml-quants.c`, version 0.25.3: ``quantize_row_q2_K_ref`` .. ``quantize_row_q6_K_ref``,
   ``make_qx_quants``, ``make_q3_quants``, ``make_qkx2_quants``.
"""

from dataclasses import dataclass

import numpy as np

from lowbit_cts.reference.gguf.arithmetic import GROUP_MAX_EPS, first_largest, in_order, nearest_int
from lowbit_cts.reference.gguf.packing import Parts

F = np.float32


def _groups(x: np.ndarray, size: int) -> np.ndarray:
    """Return blocks (n, 256) as lanes of groups, (size, n * 256 / size)."""
    return np.ascontiguousarray(x.reshape(-1, size).T)


def _blocks(lanes: np.ndarray) -> np.ndarray:
    """Return codes of groups (size, lanes) as blocks, uint8 (n, 256)."""
    return np.ascontiguousarray(lanes.T.astype(np.uint8)).reshape(-1, 256)


def _nearest_level(x: np.ndarray, low: int, high: int) -> np.ndarray:
    """Return x rounded to integers of [low, high], float32."""
    return np.clip(nearest_int(x), low, high).astype(F)


def _requantized(x: np.ndarray, d: np.ndarray, low: int, high: int, codes: np.ndarray) -> np.ndarray:
    """Return the codes of blocks x by the decoded scales d of their groups, (n, groups); `codes` where d is 0."""
    d = d[..., None]
    x = x.reshape(*d.shape[:2], -1)
    level = np.clip(nearest_int(x / d), low, high) - low
    return np.where(d != 0, level.astype(np.uint8), codes.reshape(x.shape)).reshape(codes.shape)


def symmetric_search(x: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scales and codes of groups on [-levels, levels - 1], by least squares weighted with x**2 (Q6_K).

    Codes are tried at 19 scales around -levels / (largest element); for each, the best scale given the codes is their
    weighted regression, and the one that explains most wins.

    Parameters
    ----------
    x : ndarray of float32, shape (size, lanes)

    Returns
    -------
    scale : ndarray of float32, shape (lanes,)
    codes : ndarray of float32, shape (size, lanes)
        Moved to [0, 2 levels - 1]; 0 in a group that counts as zero.
    """
    largest = first_largest(x.T)
    weight = x * x
    weighted = weight * x

    def regress(inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        level = _nearest_level(inverse * x, -levels, levels - 1)
        return level, in_order(weighted * level), in_order(weight * level * level)

    codes, sum_lx, sum_l2 = regress(F(-levels) / largest)
    scale = np.where(sum_l2 != 0, sum_lx / sum_l2, F(0))
    best = scale * sum_lx
    for step in (*range(-9, 0), *range(1, 10)):
        level, sum_lx, sum_l2 = regress(-(F(levels) + F(0.1) * F(step)) / largest)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        codes = np.where(better, level, codes)
        scale = np.where(better, sum_lx / sum_l2, scale)
        best = np.where(better, scale * sum_lx, best)
    zero = np.abs(largest) < GROUP_MAX_EPS
    return np.where(zero, F(0), scale), np.where(zero, F(0), codes + F(levels))


def coordinate_search(x: np.ndarray, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return scales and codes of groups on [-levels, levels - 1], by coordinate descent (Q3_K).

    From the codes at the scale -levels / (largest element), each code in turn, five times over, moves to what it would
    be at the regression of the others, if that explains more. Parameters and results as `symmetric_search`.
    """
    largest = first_largest(x.T)
    weight = x * x
    weighted = weight * x
    codes = _nearest_level(F(-levels) / largest * x, -levels, levels - 1)
    sum_lx, sum_l2 = in_order(weighted * codes), in_order(weight * codes * codes)
    for _ in range(5):
        changed = False
        for element, w, wx, code in zip(x, weight, weighted, codes, strict=True):  # code is a view
            others_lx = sum_lx - wx * code
            others_l2 = sum_l2 - w * code * code
            new = _nearest_level(element * others_l2 / others_lx, -levels, levels - 1)
            new_lx = others_lx + wx * new
            new_l2 = others_l2 + w * new * new
            better = (others_lx > 0) & (new != code) & (new_l2 > 0)
            better &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            if better.any():
                changed = True
                np.copyto(code, new, where=better)
                np.copyto(sum_lx, new_lx, where=better)
                np.copyto(sum_l2, new_l2, where=better)
        if not changed:
            break
    scale = np.where(sum_l2 > 0, sum_lx / sum_l2, F(0))
    zero = np.abs(largest) < GROUP_MAX_EPS
    return np.where(zero, F(0), scale), np.where(zero, F(0), codes + F(levels))


@dataclass(frozen=True)
class Grid:
    """The inverse scales that `scale_and_min_search` tries: (start + step i + levels) / (max - min), i = 0 .. last."""

    levels: int
    start: float
    step: float
    last: int


def scale_and_min_search(
    x: np.ndarray, weight: np.ndarray, grid: Grid, absolute: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scales, mins and codes of groups, x ~ scale * code - min, codes in [0, levels] (Q2_K, Q4_K, Q5_K).

    For the codes of each inverse scale of the grid, scale and min are the weighted regression of x on them, the min
    being held at 0 where it came out below; the pair of the least weighted error wins, and the next inverse scales are
    taken from its min. Where none is better, the plain scale (max - min) / levels stays.

    Parameters
    ----------
    x, weight : ndarray of float32, shape (size, lanes)
    grid : Grid
    absolute : bool
        Errors are |difference|, else its square.

    Returns
    -------
    scale, min : ndarray of float32, shape (lanes,)
    codes : ndarray of float32, shape (size, lanes)
    """
    sum_w = in_order(weight)
    weighted = weight * x
    sum_x = in_order(weighted)
    low = np.minimum(x.min(axis=0), F(0))
    high = x.max(axis=0)
    flat = high == low

    def tried(numerator: np.float32) -> np.ndarray:
        return _nearest_level(numerator / (high - low) * (x - low), 0, grid.levels)

    def error(scale: np.ndarray, codes: np.ndarray, low: np.ndarray) -> np.ndarray:
        difference = scale * codes + low - x
        return in_order(weight * (np.abs(difference) if absolute else difference * difference))

    scale = F(1) / (F(grid.levels) / (high - low))
    codes = tried(F(grid.levels))
    least = error(scale, codes, low)
    for i in range(grid.last + 1):
        level = tried(F(grid.start) + F(grid.step) * F(i) + F(grid.levels))
        w_level = weight * level
        sum_l, sum_l2, sum_xl = in_order(w_level), in_order(w_level * level), in_order(w_level * x)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        positive = new_low > 0
        new_low = np.where(positive, F(0), new_low)
        new_scale = np.where(positive, sum_xl / sum_l2, (sum_w * sum_xl - sum_x * sum_l) / determinant)
        new_error = error(new_scale, level, new_low)
        better = (determinant > 0) & (new_error < least)
        np.copyto(codes, level, where=better)
        scale, low, least = (
            np.where(better, new, old) for new, old in ((new_scale, scale), (new_low, low), (new_error, least))
        )
    return np.where(flat, F(0), scale), -low, np.where(flat, F(0), codes)


def _quantize_with_mins(x: np.ndarray, weight: np.ndarray, grid: Grid, largest: int, absolute: bool) -> Parts:
    """Return the parts of blocks x, searched with `weight` (size, lanes); scales and mins are codes in [0, largest]."""
    found = scale_and_min_search(_groups(x, len(weight)), weight, grid, absolute)
    scale, least = (part.reshape(len(x), -1) for part in found[:2])

    def quantized(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        top = np.fmax.reduce(values, axis=1, initial=0, keepdims=True) + F(0)  # never -0
        inverse = np.where(top > 0, F(largest) / top, F(0))
        codes = np.minimum(nearest_int(inverse * values) & 0xFF, largest).astype(np.uint8)
        half = (top / F(largest)).astype(np.float16)
        return codes, half[:, 0], half.astype(F) * codes.astype(F)

    scales, d, decoded_scale = quantized(scale)
    mins, dmin, decoded_min = quantized(least)
    shifted = x + np.repeat(decoded_min, len(weight), axis=1)
    codes = _requantized(shifted, decoded_scale, 0, grid.levels, _blocks(found[2]))
    return {"codes": codes, "scales": scales, "mins": mins, "d": d, "dmin": dmin}


def quantize_q2_k(x: np.ndarray) -> Parts:
    """Return the parts of Q2_K of blocks, float32 (n, 256): groups of 16, the error |difference| weighted with |x|."""
    return _quantize_with_mins(x, np.abs(_groups(x, 16)), Grid(3, -0.5, 0.1, 15), 15, absolute=True)


def _magnitude_above_rms(x: np.ndarray) -> np.ndarray:
    lanes = _groups(x, 32)
    return np.sqrt(in_order(lanes * lanes) / F(32)) + np.abs(lanes)


def quantize_q4_k(x: np.ndarray) -> Parts:
    """Return the parts of Q4_K of blocks, float32 (n, 256): groups of 32, squared error weighted with rms + |x|."""
    return _quantize_with_mins(x, _magnitude_above_rms(x), Grid(15, -1.0, 0.1, 20), 63, absolute=False)


def quantize_q5_k(x: np.ndarray) -> Parts:
    """Return the parts of Q5_K of blocks, float32 (n, 256), as Q4_K."""
    return _quantize_with_mins(x, _magnitude_above_rms(x), Grid(31, -0.5, 0.1, 15), 63, absolute=False)


def quantize_q3_k(x: np.ndarray) -> Parts:
    """Return the parts of Q3_K of blocks, float32 (n, 256): groups of 16, the largest scale having the level -32."""
    scale, codes = coordinate_search(_groups(x, 16), 4)
    scale = scale.reshape(len(x), -1)
    largest = first_largest(scale)[:, None]
    inverse = F(-32) / largest
    level = np.clip(nearest_int(inverse * scale).astype(np.int8), -32, 31)
    level = np.where(largest != 0, level, np.int8(-32))
    d = np.where(largest != 0, F(1) / inverse, F(0)).astype(np.float16)
    codes = _requantized(x, d.astype(F) * level.astype(F), -4, 3, _blocks(codes))
    return {"codes": codes, "scales": (level + np.int8(32)).view(np.uint8), "d": d[:, 0]}


def quantize_q6_k(x: np.ndarray) -> Parts:
    """Return the parts of Q6_K of blocks, float32 (n, 256): groups of 16, the largest scale having the level -128."""
    scale, codes = symmetric_search(_groups(x, 16), 32)
    scale = scale.reshape(len(x), -1)
    largest = first_largest(scale)[:, None]
    zero = np.abs(largest) < GROUP_MAX_EPS
    inverse = F(-128) / largest
    level = np.minimum(nearest_int(inverse * scale), 127).astype(np.int8)
    d = (F(1) / inverse).astype(np.float16)
    codes = _requantized(x, d.astype(F) * level.astype(F), -32, 31, _blocks(codes))
    return {
        "codes": np.where(zero, np.uint8(0), codes), "scales": np.where(zero, np.int8(0), level).view(np.uint8),
        "d": np.where(zero, np.float16(0), d)[:, 0],
    }  # fmt: skip
