"""LLM.int8(): rows of activations in int8, columns with outliers beside them in 16 bits.

References
----------
.. [1] T. Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", arXiv:2208.07339, §3.
.. [2] bitsandbytes, int8_vectorwise_quant and int8_mixed_scaled_mm: an element of magnitude threshold is an outlier;
   outliers do not count in the largest magnitude of their row.
"""

import numpy as np

from lowbit_cts.reference.accumulators import Accumulator
from lowbit_cts.reference.choices import Division, WeightPrecision, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, gamma
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.operands import dequantized
from lowbit_cts.reference.products import integer_product
from lowbit_cts.reference.sums import Sums, enclosed, exactly, inner_products, quantum

_F = np.float32
_U32 = 2.0**-24


def outlier_columns(a: np.ndarray, threshold: float) -> np.ndarray:
    """Return which columns hold an element of at least the threshold's magnitude, (K,); none for a threshold of 0."""
    return (np.abs(a) >= threshold).any(axis=0) if threshold > 0 else np.zeros(a.shape[1], bool)


def quantized_rows(a: np.ndarray, threshold: float, division: Division) -> tuple[np.ndarray, np.ndarray]:
    """Return the int8 codes of rows and their largest magnitudes, outliers counted as zeros.

    Parameters
    ----------
    a : ndarray of float32, shape (M, K)
    threshold : float
    division : {Division.RECIPROCAL, Division.DIVIDE}
        Whether an element is multiplied by 127 / largest, or 127 times itself divided by it, in float32.
    """
    largest = np.where((np.abs(a) >= threshold) & (threshold > 0), _F(0), np.abs(a)).max(axis=1, initial=0)
    inside = np.where(outlier_columns(a, threshold), _F(0), a)
    top = np.where(largest > 0, largest, _F(1))[:, None]
    with np.errstate(over="ignore"):
        steps = inside * (_F(127) / top) if division is Division.RECIPROCAL else inside * _F(127) / top
    return np.rint(steps).astype(np.int64), largest.astype(np.float64)


def _open(a: np.ndarray, threshold: float, largest: np.ndarray, ulps: float) -> np.ndarray:
    """Return, as 0 or 1, by how many steps the code of an element may be another under approximate quotients."""
    inside = np.where(outlier_columns(a, threshold), 0.0, a)
    steps = np.abs(inside) * 127 / np.where(largest > 0, largest, 1.0)[:, None]
    return (np.abs(steps - np.floor(steps) - 0.5) <= (ulps + 2) * 2.0**-23 * steps).astype(np.float64)


@takes_choices
def matmul_llm_int8_enclosure(
    a: np.ndarray,
    codes: np.ndarray,
    absmax: np.ndarray,
    bias: np.ndarray | None,
    *,
    threshold: float,
    format: str,
    division: Division = Division.RECIPROCAL,
    division_ulps: float = 2.0,
    float_accumulator: Accumulator = Accumulator.FLOAT32,
    weight_precision: WeightPrecision = WeightPrecision.ACTIVATIONS,
) -> Enclosure:
    """Return the admissible results of LLM.int8()'s linear layer.

    Parameters
    ----------
    a : ndarray of float64, shape (M, K)
        Finite activations, values of `format`.
    codes : ndarray of int, shape (N, K)
        Weight codes of int8; a weight is codes * absmax / 127.
    absmax : ndarray of float64, shape (N,)
    bias : ndarray of float64, shape (N,), or None
    threshold : float
        Columns with a magnitude of at least this are multiplied in `format`, against dequantized weights; 0 for none.
    format : {"float16", "bfloat16"}
        Of the activations and of the output.
    division, division_ulps :
        How activations are scaled to their codes. An approximate quotient leaves those open that are as near to a tie.
    float_accumulator, weight_precision :
        Of the product of the outlier columns.

    Returns
    -------
    Enclosure, shape (M, N)
        The integer product is exact; its scaling rounds up to four times in float32, and once to the output's format
        where the outliers' product, which rounds, too, is added in that format.

    Raises
    ------
    ValueError
        Shapes that do not chain, an absmax that is not positive and finite, activations that are not finite.
    """
    if a.shape[1] != codes.shape[1]:
        raise ValueError(f"codes: has {codes.shape[1]} columns, must have as many as a ({a.shape[1]})")
    if absmax.shape != codes.shape[:1]:
        raise ValueError(f"absmax: has shape {absmax.shape}, must be {codes.shape[:1]}")
    if not np.all(np.isfinite(absmax)) or np.any(absmax <= 0):
        raise ValueError("absmax: must be positive and finite")
    if not np.all(np.isfinite(a)):
        raise ValueError("a: must be finite")
    rows, largest = quantized_rows(a.astype(_F), threshold, division)
    total = integer_product(rows, codes.T).astype(np.float64)
    open_steps = _open(a, threshold, largest, division_ulps) if division is Division.APPROXIMATE else None
    scaled = total * (largest[:, None] * absmax[None, :]) / 127**2
    outliers = np.where(outlier_columns(a, threshold), a, 0.0)
    weights = dequantized(exactly(codes * absmax[:, None] / 127), weight_precision, format, roundings=2)
    beside = inner_products(exactly(outliers), weights.T)
    output = float_format(format)
    both = outliers.any() & (total != 0)
    steps = gamma(6, _U32) * np.abs(scaled)
    if open_steps is not None:
        steps = steps + (1 + gamma(6, _U32)) * (open_steps @ np.abs(codes.T)) * (largest[:, None] * absmax) / 127**2
    in_format = np.where(both, 2 * output.unit_roundoff * (np.abs(scaled) + beside.magnitude) + output.smallest, 0.0)
    sums = Sums(
        scaled + beside.value, beside.error + np.where((total == 0) & (open_steps is None), 0.0, steps) + in_format,
        np.abs(scaled) + beside.magnitude, np.minimum(beside.quantum, quantum(scaled)), beside.terms + 1,
        beside.length + 1,
    ).plus(bias)  # fmt: skip
    return enclosed(sums, float_accumulator, output, 2)
