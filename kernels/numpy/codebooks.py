"""Codebooks in plain float32 NumPy: thresholds between sorted values, and a search among them."""

import numpy as np

from lowbit_cts.kernels import Backend, Precision, Semantics
from lowbit_cts.kernels.numpy.numbers import WIDE, float32_of, output_of
from lowbit_cts.reference.codebooks import CODEBOOKS

#: A block of zeros is divided by this.
EPSILON = 1e-38
_BLOCKWISE = Semantics(epsilon=EPSILON)


def _thresholds(codebook):
    """Return the middles between sorted values in float32, and the code of each value, of equal ones the first."""
    values, codes = np.unique(codebook, return_index=True)
    return (values[:-1] + values[1:]) * np.float32(0.5), codes


def _nearest(x, codebook):
    thresholds, codes = _thresholds(codebook)
    return codes[np.searchsorted(thresholds, x)].astype(np.uint8)


def _blocks(x, block_size):
    return x.reshape(x.shape[0], x.shape[1] // block_size, block_size)


def quantize_blockwise(x, *, codebook, block_size, input_format):
    """Return the codes of x / absmax, and the absmax."""
    blocks = _blocks(float32_of(x, input_format), block_size)
    absmax = np.abs(blocks).max(axis=2)
    quotients = blocks / np.maximum(absmax, np.float32(EPSILON))[..., None]
    return _nearest(quotients, CODEBOOKS[codebook]).reshape(x.shape), absmax


def dequantize_blockwise(codes, absmax, *, codebook, block_size, output_format):
    """Return codebook[codes] * absmax."""
    with np.errstate(over="ignore"):
        values = CODEBOOKS[codebook][_blocks(codes, block_size)] * absmax[..., None]
    return output_of(values.reshape(codes.shape), output_format)


def double_quantize(absmax, offset, *, block_size):
    """Return 8-bit codes of absmax - offset, and the nested absmax."""
    centered = np.zeros(-(-absmax.size // block_size) * block_size, np.float32)
    centered[: absmax.size] = absmax - offset
    blocks = centered.reshape(1, -1)
    codes, nested = quantize_blockwise(blocks, codebook="dynamic8", block_size=block_size, input_format="float32")
    return codes[0, : absmax.size], nested[0]


def double_dequantize(codes, nested_absmax, offset, *, block_size):
    """Return dynamic8[codes] * nested_absmax + offset."""
    spread = np.repeat(nested_absmax, block_size)[: codes.size]
    return CODEBOOKS["dynamic8"][codes] * spread + offset


def assign_codebook(x, *, prepared):
    """Return the code of the nearest value."""
    thresholds, codes = prepared
    return codes[np.searchsorted(thresholds, x)].astype(np.uint8)


def _prepare(codebook):
    if codebook.size == 0:
        raise ValueError("codebook: must hold at least one value")
    return _thresholds(codebook)


def update_codebook(x, codes, codebook):
    """Return the mean of the samples of each code, in float64 sums; where there are none, the value stays."""
    count = np.bincount(codes, minlength=codebook.size)
    total = np.bincount(codes, weights=x, minlength=codebook.size)
    with np.errstate(invalid="ignore"):
        return np.where(count, total / count, codebook).astype(np.float32)


def register(backend: Backend) -> None:
    """Register the kernels."""
    everything = {"codebook": tuple(CODEBOOKS)}
    backend.implements("quantize_blockwise", semantics=_BLOCKWISE, supports={**everything, "input_format": WIDE})(
        quantize_blockwise
    )
    backend.implements("dequantize_blockwise", supports={**everything, "output_format": WIDE})(dequantize_blockwise)
    backend.implements("double_quantize", semantics=_BLOCKWISE)(double_quantize)
    backend.implements("double_dequantize")(double_dequantize)
    backend.implements("assign_codebook", prepare=_prepare)(assign_codebook)
    backend.implements("update_codebook", semantics=Semantics(intermediate=Precision.FLOAT64))(update_codebook)
