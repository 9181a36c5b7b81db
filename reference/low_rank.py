"""Linear layers in factors: low rank, and LoRA beside a dense layer or merged into it, and the merging itself.

References
----------
.. [1] E. J. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, eq. (3):
   y = x W + (alpha / r) (x A) B.
.. [2] C. Eckart, G. Young, "The approximation of one matrix by another of lower rank", Psychometrika 1, 1936.
"""

import numpy as np

from lowbit_cts.reference.accumulators import Accumulator
from lowbit_cts.reference.choices import LoraForm, WeightPrecision, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, representable
from lowbit_cts.reference.formats import FloatFormat, float_format
from lowbit_cts.reference.sums import Operand, Sums, enclosed, exactly, inner_products, rounded

_FLOAT32 = float_format("float32")
#: Roundings, in the accumulator, of the scaling and of the sum of both paths.
_STEPS = 3


def _summed(sums: Sums, accumulator: Accumulator, kept: FloatFormat) -> Operand:
    """Return sums as the operand of a further product: added in an accumulator, and kept in a format."""
    exact = accumulator.exact(sums.magnitude, sums.quantum) & representable(sums.value, kept)
    adding = accumulator.error(sums.terms, sums.length, sums.magnitude + sums.error, 1)
    error = sums.error + np.where(exact, 0.0, adding)
    found = Operand(sums.value, np.abs(sums.value) + error, error)
    return rounded(found, kept, 1, exact)


def _together(one: Sums, other: Sums) -> Sums:
    with np.errstate(invalid="ignore"):
        value = one.value + other.value
    return Sums(
        value, one.error + other.error, one.magnitude + other.magnitude,
        np.minimum(one.quantum, other.quantum), one.terms + other.terms, one.length + other.length,
    )  # fmt: skip


def _delta(
    first: np.ndarray,
    second: np.ndarray,
    scaling: float,
    accumulator: Accumulator,
    fmt: FloatFormat,
    precision: WeightPrecision,
) -> Sums:
    """Return scaling first second; with ``ACTIVATIONS`` rounded to the format, the product and what it is scaled to."""
    product = inner_products(exactly(first), exactly(second * scaling))
    return _rounded_sums(product, accumulator, fmt, 2) if precision is WeightPrecision.ACTIVATIONS else product


def _check(scaling: float, down: tuple[int, int], up: tuple[int, int], x: int, n: int | None) -> None:
    """Raise a ValueError unless factors (K, R) and (R, N) chain with K columns of x and N of the dense weights."""
    if x != down[0]:
        raise ValueError(f"down: has {down[0]} rows, must have as many as x has columns ({x})")
    if up[0] != down[1] or (n is not None and n != up[1]):
        raise ValueError(f"up: has shape {up}, must be ({down[1]}, N) with the columns of w")
    if not np.isfinite(scaling):
        raise ValueError("scaling: must be finite")


@takes_choices
def merge_enclosure(
    w: np.ndarray,
    down: np.ndarray,
    up: np.ndarray,
    scaling: float,
    *,
    format: str,
    float_accumulator: Accumulator = Accumulator.FLOAT32,
    weight_precision: WeightPrecision = WeightPrecision.FLOAT32,
) -> Enclosure:
    """Return the admissible weights w + scaling up down of a layer with its adapter merged.

    Parameters
    ----------
    w : ndarray of float64, shape (N, K)
    down, up : ndarray of float64, shapes (R, K) and (N, R)
        LoRA's A and B.
    scaling : float
    format : {"float32", "float16", "bfloat16"}
        Of the weights, the factors and the result.
    float_accumulator : Accumulator
    weight_precision : {FLOAT32, ACTIVATIONS}
        In which the scaled product is kept before it is added; ``ACTIVATIONS`` is the format.

    Returns
    -------
    Enclosure, shape (N, K)
        Of factors whose product is zero, or of rank 0, the weights themselves.

    Raises
    ------
    ValueError
        Shapes that do not chain; a scaling that is not finite.
    """
    _check(scaling, down.shape[::-1], up.shape[::-1], w.shape[1], w.shape[0])
    output = float_format(format)
    delta = _delta(up, down, scaling, float_accumulator, output, weight_precision)
    return enclosed(delta.plus(w), float_accumulator, output, _STEPS)


@takes_choices
def low_rank_enclosure(
    x: np.ndarray,
    w: np.ndarray | Operand | None,
    down: np.ndarray,
    up: np.ndarray,
    scaling: float,
    bias: np.ndarray | None,
    *,
    format: str,
    float_accumulator: Accumulator = Accumulator.FLOAT32,
    weight_precision: WeightPrecision = WeightPrecision.FLOAT32,
    lora_form: LoraForm = LoraForm.SEPARATE,
    groups: int = 0,
) -> Enclosure:
    """Return the admissible results of x w + scaling (x down) up + bias.

    Parameters
    ----------
    x : ndarray of float64, shape (M, K)
    w : ndarray of float64 or Operand, shape (K, N), or None
        Dense weights, or quantized ones with what a kernel may make of them; None is a layer of low rank alone.
    down, up : ndarray of float64, shapes (K, R) and (R, N)
    scaling : float
        alpha / r of LoRA.
    bias : ndarray of float64, shape (N,), or None
    format : {"float32", "float16", "bfloat16"}
        Of the operands and of the output.
    float_accumulator : Accumulator
    weight_precision : {FLOAT32, ACTIVATIONS}
        In which x down, and with ``ACTIVATIONS`` both paths before they are added, are kept; of a merged adapter
        scaling down up, before it is added to the weights.
    lora_form : LoraForm
        With ``MERGED`` x is multiplied by w + scaling down up, rounded to the format.
    groups : int
        Parts of a sum that a kernel may scale apart.

    Returns
    -------
    Enclosure, shape (M, N)

    Raises
    ------
    ValueError
        Shapes that do not chain; a scaling that is not finite; quantized weights that an adapter is merged into.
    """
    dense = w if isinstance(w, Operand) or w is None else exactly(w)
    _check(scaling, down.shape, up.shape, x.shape[1], None if dense is None else dense.values.shape[1])
    if dense is not None and dense.values.shape[0] != down.shape[0]:
        raise ValueError(f"w: has {dense.values.shape[0]} rows, must have as many as x has columns ({down.shape[0]})")
    output = float_format(format)
    kept = output if weight_precision is WeightPrecision.ACTIVATIONS else _FLOAT32
    if lora_form is LoraForm.MERGED:
        if isinstance(w, Operand):
            raise ValueError("lora_form: merged is not admissible with quantized weights; admissible: separate")
        product = _delta(down, up, scaling, float_accumulator, output, weight_precision).plus(w)
        merged = rounded(_summed(product, float_accumulator, _FLOAT32), output, 1)
        return enclosed(inner_products(exactly(x), merged).plus(bias), float_accumulator, output, _STEPS)
    hidden = _summed(inner_products(exactly(x), exactly(down)), float_accumulator, kept)
    low = inner_products(hidden, exactly(up * scaling))
    if weight_precision is WeightPrecision.ACTIVATIONS:
        low = _rounded_sums(low, float_accumulator, output, 2)
    if dense is None:
        return enclosed(low.plus(bias), float_accumulator, output, _STEPS)
    sums = inner_products(exactly(x), dense).plus(bias)
    if weight_precision is WeightPrecision.ACTIVATIONS:
        sums = _rounded_sums(sums, float_accumulator, output, 1)
    return enclosed(_together(sums, low), float_accumulator, output, _STEPS + groups)


def _rounded_sums(sums: Sums, accumulator: Accumulator, fmt: FloatFormat, roundings: int) -> Sums:
    """Return sums that were rounded to a format so many times before they are added to others."""
    exact = accumulator.exact(sums.magnitude, sums.quantum) & representable(sums.value, fmt)
    step = roundings * (1 + 2 * roundings * fmt.unit_roundoff) * fmt.unit_roundoff
    adding = accumulator.error(sums.terms, sums.length, sums.magnitude + sums.error, 1)
    too_large = sums.magnitude + adding > fmt.maximum
    error = sums.error + np.where(exact, 0.0, step * (sums.magnitude + adding) + roundings * fmt.smallest)
    return Sums(sums.value, np.where(too_large, np.inf, error), sums.magnitude, sums.quantum, sums.terms, sums.length)
