"""The float32 arithmetic of ggml's quantizers: C as it is written, an operation at a time, none of them fused.

All functions take and give float32 arrays unless they say otherwise.

References
----------
.. [1] ggml-org/ggml, `src/ggml-quants.c`, version 0.25.3.
"""

import numpy as np

# Below this magnitude a group of a K-quant or of IQ4 counts as zero.
GROUP_MAX_EPS = np.float32(1e-15)


def nearest_int(x: np.ndarray) -> np.ndarray:
    """Return x rounded to integers, ties to even, int32, for |x| <= 4194303; beyond, what the bits give.

    3 * 2**22 + x has a last place of 1, so the sum is rounded to an integer, which its low 23 bits hold. A ggml built
    with assertions stops where |x| is larger; without, it gives integers modulo 2**23, 0 for NaN, -2**22 for Inf.
    """
    return ((x + np.float32(12582912)).view(np.int32) & 0x7FFFFF) - 0x400000


def truncated(x: np.ndarray) -> np.ndarray:
    """Return the int32 that C's cast makes of x: toward zero.

    What is no integer after that, NaN and infinities, C leaves undefined. It is 0 here, as are the low bytes on x86.
    """
    return np.where(np.isfinite(x), x, np.float32(0)).astype(np.int32)


def round_half_away(x: np.ndarray) -> np.ndarray:
    """Return ``roundf(x)``, as int32; 0 for NaN and infinities, as `truncated`."""
    whole = np.trunc(x)
    return truncated(whole + np.copysign(np.abs(x - whole) >= np.float32(0.5), x))  # x - trunc(x) is exact


def reciprocal(d: np.ndarray) -> np.ndarray:
    """Return 1 / d, and 0 where d is 0; infinite for |d| <= 2**-128."""
    return np.where(d != 0, np.float32(1) / d, np.float32(0))


def in_order(terms: np.ndarray) -> np.ndarray:
    """Return the sum along the first axis as a loop in C has it: from 0, one term after the other."""
    total = np.zeros(terms.shape[1:], np.float32)
    for term in terms:
        total += term
    return total


def first_largest(x: np.ndarray) -> np.ndarray:
    """Return, along the last axis, the first of the elements of the largest magnitude; 0 where all are 0 or NaN."""
    magnitude = np.abs(x)
    largest = np.fmax.reduce(magnitude, axis=-1, keepdims=True)
    first = np.argmax(magnitude == largest, axis=-1)[..., None]
    return np.where(largest > 0, np.take_along_axis(x, first, axis=-1), np.float32(0))[..., 0]


def first_least(x: np.ndarray) -> np.ndarray:
    """Return, along the last axis, the first of the least elements: it says which of 0 and -0."""
    first = np.argmax(x == x.min(axis=-1, keepdims=True), axis=-1)[..., None]
    return np.take_along_axis(x, first, axis=-1)[..., 0]
