"""Quantization to IQ4_NL, IQ4_XS (16 levels of no formula), MXFP4 and NVFP4 (levels of E2M1).

References
----------
.. [1] ggml-org/ggml, `src/ggml-quants.c`, version 0.25.3: ``quantize_row_iq4_nl_impl``, ``quantize_row_mxfp4_ref``,
   ``quantize_row_nvfp4_ref``, ``best_index_int8``, ``best_index_mxfp4``; `src/ggml-impl.h`: ``ggml_fp32_to_ue4m3``.
.. [2] OCP Microscaling Formats (MX) v1.0, §6.3.
"""

import numpy as np

from lowbit_cts.reference.choices import ExponentFloor, ScaleSearch
from lowbit_cts.reference.gguf.arithmetic import GROUP_MAX_EPS, first_largest, in_order, nearest_int
from lowbit_cts.reference.gguf.layout import FP4_LEVELS, HALF_E8M0, HALF_UE4M3, IQ4_LEVELS
from lowbit_cts.reference.gguf.packing import Parts

F = np.float32
_LEVELS = IQ4_LEVELS.astype(F)

# The code of every half step from -127 to 113: midpoints are whole or half numbers, and go up.
_CODES = np.searchsorted((_LEVELS[1:] + _LEVELS[:-1]) / 2, np.arange(-254, 227) / 2, side="right").astype(np.uint8)


def nearest_iq4(x: np.ndarray) -> np.ndarray:
    """Return the codes of the levels nearest to x, uint8; a midpoint goes to the greater level, NaN to the greatest."""
    steps = np.floor(np.clip(np.where(np.isnan(x), F(113), x), F(-127), F(113)) * F(2))
    return _CODES[steps.astype(np.intp) + 254]


def _iq4_scale(x: np.ndarray, scale_search: ScaleSearch) -> tuple[np.ndarray, np.ndarray]:
    """Return scales and first codes of groups, x being (size, lanes), by least squares weighted with x**2."""
    largest = first_largest(x.T)
    weight = x * x

    def regress(inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        codes = nearest_iq4(inverse * x)
        weighted = weight * _LEVELS[codes]
        return codes, in_order(weighted * x), in_order(weighted * _LEVELS[codes])

    grid = scale_search is ScaleSearch.GRID
    codes, sum_qx, sum_q2 = regress(F(1) / (largest / (-_LEVELS[0] if grid else _LEVELS[0])))
    scale = np.where(sum_q2 > 0, sum_qx / sum_q2, F(0))
    best = scale * sum_qx
    for step in range(-7, 8) if grid else ():
        _, sum_qx, sum_q2 = regress((F(step) + _LEVELS[0]) / largest)
        better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
        scale = np.where(better, sum_qx / sum_q2, scale)
        best = np.where(better, scale * sum_qx, best)
    zero = np.abs(largest) < GROUP_MAX_EPS
    return np.where(zero, F(0), scale), np.where(zero, nearest_iq4(np.zeros((), F)), codes)


def quantize_iq4_nl(x: np.ndarray, scale_search: ScaleSearch) -> Parts:
    """Return the parts of IQ4_NL of blocks, float32 (n, 32).

    Notes
    -----
    ggml has two quantizers, see `ScaleSearch`. The one without a grid leaves the codes of a zero block as it found
    them in memory; here they are 8, the level 1, as with the grid. The scale is 0 all the same.
    """
    scale, codes = _iq4_scale(np.ascontiguousarray(x.T), scale_search)
    codes = codes.T
    if scale_search is ScaleSearch.GRID:
        codes = nearest_iq4(np.where(scale != 0, F(1) / scale, F(0))[:, None] * x)
    return {"codes": np.ascontiguousarray(codes), "d": scale.astype(np.float16)}


def quantize_iq4_xs(x: np.ndarray) -> Parts:
    """Return the parts of IQ4_XS of blocks, float32 (n, 256): groups of 32, the largest scale having the level -32.

    The codes are those of the float32 scale, before it is rounded to float16.
    """
    scale, _ = _iq4_scale(np.ascontiguousarray(x.reshape(-1, 32).T), ScaleSearch.GRID)
    scale = scale.reshape(len(x), 8)
    d = -first_largest(scale)[:, None] / F(32)
    level = np.clip(nearest_int(np.where(d != 0, F(1) / d, F(0)) * scale), -32, 31)
    group_scale = d * level.astype(F)
    inverse = np.where(group_scale != 0, F(1) / group_scale, F(0))
    codes = nearest_iq4(inverse[..., None] * x.reshape(len(x), 8, 32)).reshape(x.shape)
    return {"codes": codes, "scales": (level + 32).astype(np.uint8), "d": d[:, 0].astype(np.float16)}


def nearest_fp4(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the E2M1 codes of the levels nearest to x in units of `scale`, by the distances |level * scale - x|.

    Of two at the same distance the smaller in magnitude; what is nearest to zero is +0. The distances are of float32,
    so that a level beyond its range is infinitely far, and an x beyond 2**24 levels equally far from all: it is 0.
    """
    size = np.abs(x)
    codes = np.zeros(x.shape, np.uint8)
    least = size.copy()
    for code in range(1, 8):
        distance = np.abs(FP4_LEVELS[code].astype(F) * scale - size)
        np.copyto(codes, np.uint8(code), where=distance < least)
        np.minimum(least, distance, out=least)
    return codes | ((codes > 0) & np.signbit(x)).astype(np.uint8) << np.uint8(3)


def quantize_mxfp4(x: np.ndarray, exponent_floor: ExponentFloor) -> Parts:
    """Return the parts of MXFP4 of blocks, float32 (n, 32): the scale is 2**(floor(log2 max|x|) - 2).

    Notes
    -----
    ggml computes floor(log2) in float32, which is one too much in the last numbers below a power of two, where the
    logarithm rounds to an integer: for 250 of the 254 normal binades, in 1 number (8 to 16, say) to 44 numbers (beyond
    2**64 and below 2**-64). Their scale is twice that of MX, and their largest element, which would be 8 - epsilon
    in units of it and saturate at 6, is 4 with no error to speak of. log2f itself is not correctly rounded everywhere,
    but glibc's 2.36 has the floor of the correctly rounded logarithm for every float, which is the one here.

    Below 2**-125 the code of the scale would be negative. C leaves the cast undefined; here and on x86 it wraps, to
    255 for 2**-126. No level of a scale so large is nearer than 0, so the block decodes to zeros.
    """
    largest = np.abs(x).max(axis=-1).astype(np.float64)
    if exponent_floor is ExponentFloor.FLOAT32_LOG2:
        floor = np.floor(np.log2(largest).astype(F))
    else:
        floor = np.frexp(largest)[1] - 1
    e = np.where(largest > 0, floor + 125, 0).astype(np.int32).astype(np.uint8)
    return {"codes": nearest_fp4(x, HALF_E8M0[e][:, None]), "scales": e[:, None]}


def ue4m3(x: np.ndarray) -> np.ndarray:
    """Return ggml's codes of numbers x >= 0 of float32 in E4M3 without a sign: half up, at most 448.

    Notes
    -----
    Whatever comes to lie in the binade of 448 is 448, from 248 on, although 256, 288 .. 416 have codes; and what
    rounds up to the least normal number, 2**-6, stays the largest subnormal one.
    """
    bits = x.view(np.int32)
    normal = (bits >> 20) + (bits >> 19 & 1) - ((127 - 7) << 3)
    subnormal = (np.minimum(x, F(1)) * F(512) + F(0.5)).astype(np.int32)
    codes = np.where(bits >> 23 <= 127 - 7, np.minimum(subnormal, 7), np.where(normal < 15 << 3, normal, 0x7E))
    return codes.astype(np.uint8)


def quantize_nvfp4(x: np.ndarray) -> Parts:
    """Return the parts of NVFP4 of blocks, float32 (n, 64): groups of 16, their scales max|x| / 6 in E4M3."""
    groups = x.reshape(len(x), 4, 16)
    codes = ue4m3(np.abs(groups).max(axis=-1) / F(6))
    return {"codes": nearest_fp4(groups, HALF_UE4M3[codes][..., None]).reshape(x.shape), "scales": codes}
