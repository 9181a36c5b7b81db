"""Quantization to Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: 32 elements, one scale, perhaps a min.

The codes come from the scale in float32, the block carries it in float16, and that is what decodes them.

References
----------
.. [1] ggml-org/ggml, `src/ggml-quants.c`, version 0.25.3: ``quantize_row_q4_0_ref`` .. ``quantize_row_q8_0_ref``.
"""

import numpy as np

from lowbit_cts.reference.choices import Contraction
from lowbit_cts.reference.gguf.arithmetic import first_largest, first_least, reciprocal, round_half_away, truncated
from lowbit_cts.reference.gguf.packing import Parts
from lowbit_cts.reference.rounding import fma_float32


def _half_up(x: np.ndarray, factor: np.ndarray, middle: float, contraction: Contraction) -> np.ndarray:
    """Return trunc(x * factor + middle), int32: half up, but that the sum rounds to float32, too."""
    factor, half = factor[:, None], np.asarray(middle, np.float32)
    if contraction is Contraction.FUSED:
        return truncated(fma_float32(x, factor, half).astype(np.float32))
    return truncated(x * factor + half)


def quantize_symmetric(x: np.ndarray, bits: int, contraction: Contraction) -> Parts:
    """Return the parts of Q4_0 (bits 4) and Q5_0 (5): d is such that the largest element gets the code 0.

    Parameters
    ----------
    x : ndarray of float32, shape (n, 32)

    Notes
    -----
    Of two elements of opposite sign that are largest, the first decides. A block of zeros has d = -0.
    """
    middle = 1 << (bits - 1)
    d = first_largest(x) / np.float32(-middle)
    codes = _half_up(x, reciprocal(d), middle + 0.5, contraction)
    return {"codes": np.minimum(codes, 2 * middle - 1).astype(np.uint8), "d": d.astype(np.float16)}


def quantize_from_min(x: np.ndarray, bits: int, contraction: Contraction) -> Parts:
    """Return the parts of Q4_1 (bits 4) and Q5_1 (5): codes 0 and 2**bits - 1 for the least and greatest element.

    Parameters
    ----------
    x : ndarray of float32, shape (n, 32)
    """
    largest = (1 << bits) - 1
    least = first_least(x)
    d = (x.max(axis=-1) + np.float32(0) - least) / np.float32(largest)  # never -0
    codes = _half_up(x - least[:, None], reciprocal(d), 0.5, contraction)
    return {
        "codes": np.minimum(codes, largest).astype(np.uint8), "d": d.astype(np.float16), "m": least.astype(np.float16)
    }  # fmt: skip


def quantize_q8_0(x: np.ndarray) -> Parts:
    """Return the parts of Q8_0: d = max|x| / 127, codes in two's complement, ties away from zero."""
    d = np.abs(x).max(axis=-1) / np.float32(127)
    codes = round_half_away(x * reciprocal(d)[:, None])
    return {"codes": codes.astype(np.int8).view(np.uint8), "d": d.astype(np.float16)}
