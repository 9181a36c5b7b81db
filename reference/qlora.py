"""QLoRA: a linear layer of 4-bit weights whose absmax are in 8 bits themselves, with a LoRA adapter beside it.

References
----------
.. [1] T. Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023, arXiv:2305.14314, eq. (5) and
   (6): y = x doubleDequant(c1, c2, w) + x L1 L2.
"""

from dataclasses import replace

import numpy as np

from lowbit_cts.reference.accumulators import Accumulator
from lowbit_cts.reference.blockwise import double_dequantize
from lowbit_cts.reference.choices import PartPrecision, WeightPrecision, takes_choices
from lowbit_cts.reference.codebooks import decode_codes
from lowbit_cts.reference.enclosure import Enclosure, gamma, representable
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.low_rank import low_rank_enclosure
from lowbit_cts.reference.operands import codebook_weights
from lowbit_cts.reference.sums import Operand

_FLOAT32 = float_format("float32")
#: The codebook of the absmax.
NESTED = "dynamic8"


def absmax_of(
    codes: np.ndarray, nested_absmax: np.ndarray, offset: np.ndarray, *, block_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the absmax that codes (N, G) stand for, in float32, and how far a kernel's may be off.

    Product and sum round once, or each: nothing is off where both are values of float32.
    """
    flat = codes.reshape(-1)
    found = double_dequantize(flat, nested_absmax, offset, block_size=block_size).astype(np.float64)
    scale = np.repeat(np.asarray(nested_absmax, np.float64), block_size)[: flat.size]
    product, center = decode_codes(flat, NESTED) * scale, float(offset)
    exact = representable(product, _FLOAT32) & representable(product + center, _FLOAT32)
    room = np.where(exact, 0.0, gamma(3, _FLOAT32.unit_roundoff) * (np.abs(product) + abs(center)))
    return found.reshape(codes.shape), room.reshape(codes.shape)


@takes_choices
def double_quantized_weights(
    codes: np.ndarray,
    absmax_codes: np.ndarray,
    nested_absmax: np.ndarray,
    offset: np.ndarray,
    *,
    codebook: str,
    block_size: int,
    nested_block_size: int,
    activations: str,
    weight_precision: WeightPrecision = WeightPrecision.FLOAT32,
    part_precision: PartPrecision = PartPrecision.FLOAT32,
) -> Operand:
    """Return the weights of blocks under a codebook, whose absmax are under another.

    Parameters
    ----------
    codes : ndarray of int, shape (N, K)
    absmax_codes : ndarray of int, shape (N, K / block_size)
        Codes of `NESTED`, in blocks of `nested_block_size` through the flattened matrix.
    nested_absmax : ndarray of float32, shape (ceil(N K / block_size / nested_block_size),)
    offset : float32 scalar
        What is added to every absmax.
    codebook, block_size, activations, weight_precision, part_precision :
        As `lowbit_cts.reference.operands.codebook_weights`.

    Returns
    -------
    Operand, shape (N, K)

    Raises
    ------
    ValueError
        As `codebook_weights` and `lowbit_cts.reference.blockwise.double_dequantize`.
    """
    absmax, room = absmax_of(absmax_codes, nested_absmax, offset, block_size=nested_block_size)

    def weights(scale: np.ndarray) -> Operand:
        return codebook_weights(
            codes, scale, codebook=codebook, block_size=block_size, activations=activations,
            weight_precision=weight_precision, part_precision=part_precision,
        )  # fmt: skip

    found = weights(absmax)
    if not room.any():
        return found
    ends = [np.abs(weights(absmax + side * room).values - found.values) for side in (-1, 1)]
    return replace(found, error=found.error + np.maximum(*ends))


@takes_choices
def qlora_enclosure(
    x: np.ndarray,
    weights: Operand,
    down: np.ndarray,
    up: np.ndarray,
    scaling: float,
    bias: np.ndarray | None,
    *,
    format: str,
    groups: int,
    float_accumulator: Accumulator = Accumulator.FLOAT32,
    weight_precision: WeightPrecision = WeightPrecision.FLOAT32,
) -> Enclosure:
    """Return the admissible results of x weights^T + scaling (x down^T) up^T + bias.

    Parameters
    ----------
    x : ndarray of float64, shape (M, K)
    weights : Operand, shape (N, K)
        Of `double_quantized_weights`.
    down, up : ndarray of float64, shapes (R, K) and (N, R)
        LoRA's A and B.
    groups : int
        Blocks in a row of weights.
    scaling, bias, format, float_accumulator, weight_precision :
        As `lowbit_cts.reference.low_rank.low_rank_enclosure`.

    Returns
    -------
    Enclosure, shape (M, N)

    Raises
    ------
    ValueError
        As `low_rank_enclosure`.
    """
    return low_rank_enclosure(
        x, weights.T, down.T, up.T, scaling, bias, format=format, groups=groups, float_accumulator=float_accumulator,
        weight_precision=weight_precision,
    )  # fmt: skip
