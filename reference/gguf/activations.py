"""Activations as ggml's CPU kernels multiply them: quantized to the blocks of 8 bits that go with a weight's type.

ggml's `vec_dot` takes whole numbers on both sides: float32 activations become Q8_0, Q8_1 or Q8_K first [1]_. A block
has a scale d and codes q; an activation is d q. In Q8_1 a float16 holds d times the sum of the codes, too, which meets
the offset of the weights' block.

References
----------
.. [1] ggml-org/ggml, version 0.25.3: `src/ggml-cpu/ggml-cpu.c` (``type_traits_cpu``), `src/ggml-quants.c`
   (``quantize_row_q8_0_ref``, ``quantize_row_q8_1_ref``, ``quantize_row_q8_K_ref``).
"""

from dataclasses import dataclass

import numpy as np

from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS, block_format
from lowbit_cts.reference.sums import Operand

#: Elements in a block of activations, by its type.
ACTIVATION_ELEMENTS = {"Q8_0": 32, "Q8_1": 32, "Q8_K": 256}
_WITH_SUMS = ("Q4_1", "Q5_1")
_LARGEST = 127
#: Of a quotient x 127 / amax, that a product with a rounded reciprocal of a rounded quotient is off by at most.
_QUOTIENT = 2.0**-22
_HALF_ULP16, _HALF_LEAST16 = 2.0**-11, 2.0**-25


def activation_type(type: str) -> str:
    """Return the type that activations get beside weights of a block format: Q8_K for blocks of 256, else of 32.

    Raises
    ------
    ValueError
        An unknown format.
    """
    if block_format(type).elements == ACTIVATION_ELEMENTS["Q8_K"]:
        return "Q8_K"
    return "Q8_1" if type in _WITH_SUMS else "Q8_0"


#: The same, of all formats.
ACTIVATION_TYPES = {type: activation_type(type) for type in BLOCK_FORMATS}


@dataclass(frozen=True)
class ActivationBlocks:
    """Quantized activations.

    Attributes
    ----------
    elements : Operand, shape (M, K)
        d q. The scale is determined: float32(127 / amax) or its kin only decide codes. A code within `_QUOTIENT` of a
        tie may be either neighbour, of which this is the middle. NaN in blocks with NaN or infinities, of which nothing
        is said.
    sums : Operand, shape (M, K / 32), or None
        Of Q8_1 d times the sum of the codes, as its float16 has it; infinite beyond that.
    """

    elements: Operand
    sums: Operand | None


def quantize_activations(a: np.ndarray, type: str) -> ActivationBlocks:
    """Return activations quantized for weights of a block format.

    Parameters
    ----------
    a : ndarray of float32, shape (M, K)
    type : str
        A key of `BLOCK_FORMATS`: that of the weights.

    Raises
    ------
    ValueError
        An unknown format, a K that is no whole number of blocks.
    """
    kind = activation_type(type)
    size = ACTIVATION_ELEMENTS[kind]
    if a.shape[1] % size:
        raise ValueError(f"a: must have whole blocks of {size} columns; got {a.shape[1]}")
    blocks = np.asarray(a, np.float32).reshape(a.shape[0], -1, size)
    with np.errstate(all="ignore"):
        scale, wide = (_scale_of_256 if kind == "Q8_K" else _scale_of_32)(blocks)
        ratio = np.where(np.isinf(wide), 0.0, blocks * wide)
        below = np.floor(ratio)
        tie = np.abs(ratio - below - 0.5) <= np.abs(ratio) * _QUOTIENT
        codes = np.where(tie, below + 0.5, np.rint(ratio))
        values, error = scale * codes, np.where(tie, np.abs(scale) / 2, 0.0)
        sums = _sums(blocks, codes, tie) if kind == "Q8_1" else None
    elements = Operand(*(part.reshape(a.shape) for part in (values, np.abs(values) + error, error)))
    return ActivationBlocks(elements, sums)


def _scale_of_32(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return d in float16 and what codes are activations times, 127 / amax, of blocks (M, n, 32)."""
    amax = np.abs(blocks).max(axis=-1, keepdims=True, initial=0)
    return (amax / np.float32(_LARGEST)).astype(np.float16).astype(np.float64), _LARGEST / amax.astype(np.float64)


def _scale_of_256(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return d in float32 and its reciprocal, -127 over the first of the largest activations, of blocks (M, n, 256)."""
    place = np.abs(blocks).argmax(axis=-1, keepdims=True)
    largest = np.take_along_axis(blocks, place, axis=-1)
    reciprocal = np.float32(-_LARGEST) / largest
    return (np.float32(1) / reciprocal).astype(np.float64), reciprocal.astype(np.float64)


def _sums(blocks: np.ndarray, codes: np.ndarray, tie: np.ndarray) -> Operand:
    """Return d times the sums of codes in float16, d being the scale in float32."""
    scale = np.abs(blocks).max(axis=-1, initial=0) / np.float32(_LARGEST)
    total, open_ = codes.sum(axis=-1), tie.sum(axis=-1)
    single = scale * total.astype(np.float32)
    slack = scale * open_ / 2.0
    settled = single.astype(np.float16).astype(np.float64)
    middle = np.where(np.isinf(settled) | (open_ == 0), settled, single.astype(np.float64))
    error = np.where(open_ == 0, 0.0, slack + _HALF_ULP16 * (np.abs(middle) + slack) * 1.01 + _HALF_LEAST16)
    return Operand(middle, np.abs(middle) + error, error)
