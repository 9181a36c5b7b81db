"""Products of quantized matrices: the integer product, and the W8A8 linear layer built on it.

References
----------
.. [1] N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM 2002, §3.1 and §3.5.
.. [2] vLLM, scaled_mm epilogues: y = s_a (s_b (acc - z_a colsum(B))) + bias, in float32, fused or not.
.. [3] B. Jacob et al., arXiv:1712.05877, eq. (7): the zero point leaves the product as a correction.
"""

import numpy as np

from lowbit_cts.reference.accumulators import Accumulator
from lowbit_cts.reference.choices import ZeroPointCorrection, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, gamma, power_of_two, representable, within
from lowbit_cts.reference.formats import float_format

_FLOAT32 = float_format("float32")
_U32 = _FLOAT32.unit_roundoff


def _check_shapes(a: np.ndarray, b: np.ndarray) -> None:
    for name, matrix in (("a", a), ("b", b)):
        if matrix.ndim != 2:
            raise ValueError(f"{name}: has {matrix.ndim} dimensions, must have 2")
    if a.shape[1] != b.shape[0]:
        raise ValueError(f"b: has {b.shape[0]} rows, must have as many as a has columns ({a.shape[1]})")


def integer_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the exact product of integer matrices as int64.

    Parameters
    ----------
    a : ndarray of int, shape (M, K)
    b : ndarray of int, shape (K, N)

    Raises
    ------
    ValueError
        When the shapes do not chain.

    Notes
    -----
    Factors of at most 9 bits and K below 2**35 keep every partial sum of a float64 product below 2**53, so BLAS adds
    them exactly in any order.
    """
    _check_shapes(a, b)
    return np.rint(np.asarray(a, np.float64) @ np.asarray(b, np.float64)).astype(np.int64)


def wrap_int32(values: np.ndarray) -> np.ndarray:
    """Return integers modulo 2**32, in [-2**31, 2**31)."""
    return (values + 2**31) % 2**32 - 2**31


def matmul_int8(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return a @ b in int32 (wrapping beyond it), as int64; parameters and errors as `integer_product`."""
    return wrap_int32(integer_product(a, b))


def _column(values: np.ndarray, count: int, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.shape not in ((), (count,)):
        raise ValueError(f"{name}: has shape {values.shape}, must be () or ({count},)")
    return np.broadcast_to(values, (count,))


@takes_choices
def matmul_w8a8_enclosure(
    a: np.ndarray,
    a_scale: np.ndarray,
    a_zero_point: np.ndarray,
    b: np.ndarray,
    b_scale: np.ndarray,
    bias: np.ndarray | None,
    *,
    output_format: str = "float32",
    accumulator: Accumulator = Accumulator.INT32,
    zero_point_correction: ZeroPointCorrection = ZeroPointCorrection.INTEGER,
) -> Enclosure:
    """Return the admissible results of a linear layer with 8-bit weights and activations.

    y[m, n] = a_scale[m] b_scale[n] sum_k (a[m, k] - a_zero_point[m]) b[k, n] + bias[n]

    Parameters
    ----------
    a : ndarray of int, shape (M, K)
        Activation codes.
    a_scale, a_zero_point : ndarray of float32 and int, both of shape () or (M,)
        Per tensor or per token.
    b : ndarray of int, shape (K, N)
        Weight codes, symmetric.
    b_scale : ndarray of float32, shape () or (N,)
        Per tensor or per output channel.
    bias : ndarray of float32, shape (N,), or None
    output_format : {"float32", "float16", "bfloat16"}
    accumulator, zero_point_correction :
        The declared arithmetic of the sum.

    Returns
    -------
    Enclosure, shape (M, N)
        ``|y' - y| <= gamma_n s_a s_b S + gamma_2 (|s_a s_b acc| + |bias|)``, then one rounding to the output, where S
        is the sum of what is rounded while it is added: nothing for int32, sum |a| |b| for a float accumulator. The
        bound is 0 wherever the scales are powers of two and every partial sum is representable.

    Raises
    ------
    ValueError
        Shapes that do not chain, a scale that is not positive and finite.
    """
    _check_shapes(a, b)
    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    (m, k), n = a.shape, b.shape[1]
    for name, scale in (("a_scale", a_scale), ("b_scale", b_scale)):
        if not np.all(np.isfinite(scale)) or np.any(np.asarray(scale) <= 0):
            raise ValueError(f"{name}: must be positive and finite")
    s_a = _column(np.asarray(a_scale, np.float64), m, "a_scale")[:, None]
    s_b = _column(np.asarray(b_scale, np.float64), n, "b_scale")[None, :]
    z = _column(np.asarray(a_zero_point, np.int64), m, "a_zero_point")[:, None]
    offset = np.zeros(n) if bias is None else _column(np.asarray(bias, np.float64), n, "bias")
    scale = s_a * s_b
    total = integer_product(a - z, b).astype(np.float64)
    magnitudes = integer_product(np.abs(a) + np.abs(z), np.abs(b)).astype(np.float64)

    # Roundings of the sum itself, in units of the codes.
    if not accumulator.integer:
        in_order = accumulator.exact(magnitudes, np.ones(()))
        summing = np.where(in_order, 0.0, accumulator.error(np.full((), 2 * k), 2 * k, magnitudes, 1))
    elif zero_point_correction is ZeroPointCorrection.FLOAT:
        summing = np.where(magnitudes <= 2**24, 0.0, gamma(3, _U32) * magnitudes)
    else:
        summing = np.zeros_like(total)

    # Roundings of the epilogue: to float32, by each scale (in any association), the bias (fused or not).
    shift = np.broadcast_to(offset[None, :], total.shape)
    scaled = scale * total
    result = scaled + shift
    exact_scales = power_of_two(s_a) & power_of_two(s_b) & (scale >= 2.0**-100) & (scale <= 2.0**100)
    exactly = exact_scales & (np.abs(total) <= 2**24) & representable(result, _FLOAT32)
    # A scale product may underflow on its way: then it errs by a subnormal step, times the sum.
    tiny = _FLOAT32.smallest * (1 + np.abs(total) + np.maximum(s_a, s_b))
    with np.errstate(over="ignore"):
        epilogue = np.where(exactly, 0.0, gamma(5, _U32) * np.abs(scaled) + 2 * _U32 * np.abs(shift) + tiny)
    return within(result, scale * summing + epilogue, float_format(output_format))
