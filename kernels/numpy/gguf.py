"""GGUF blocks in plain NumPy: the types that most models are made of."""

from collections.abc import Callable

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.numpy.numbers import WIDE, output_of


def _half(blocks, at):
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(data, run):
    """Return the codes of runs of bytes: the low nibbles of each run before its high ones."""
    runs = data.reshape(len(data), -1, run)
    return np.concatenate([runs & 15, runs >> 4], axis=2).reshape(len(data), -1)


def _q4_0(blocks):
    return (_nibbles(blocks[:, 2:], 16).astype(np.float32) - 8) * _half(blocks, 0)


def _q8_0(blocks):
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


def _q4_k(blocks):
    packed = blocks[:, 4:16]
    high = packed[:, :8] >> 6 << 4
    scales = np.concatenate([packed[:, :4] & 63, packed[:, 8:] & 15 | high[:, :4]], axis=1)
    mins = np.concatenate([packed[:, 4:8] & 63, packed[:, 8:] >> 4 | high[:, 4:]], axis=1)
    codes = _nibbles(blocks[:, 16:], 32).reshape(-1, 8, 32).astype(np.float32)
    y = codes * (_half(blocks, 0) * scales)[..., None] - (_half(blocks, 2) * mins)[..., None]
    return y.reshape(-1, 256)


def _q6_k(blocks):
    low = _nibbles(blocks[:, :128], 64).reshape(-1, 2, 4, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    levels = (low | high << 4).astype(np.float32).reshape(-1, 16, 16) - 32
    scales = _half(blocks, 208) * blocks[:, 192:208].view(np.int8)
    return (levels * scales[..., None]).reshape(-1, 256)


#: Bytes and elements of a block, and how it is dequantized.
_DEQUANTIZERS: dict[str, tuple[int, int, Callable[[np.ndarray], np.ndarray]]] = {
    "Q4_0": (18, 32, _q4_0), "Q8_0": (34, 32, _q8_0), "Q4_K": (144, 256, _q4_k), "Q6_K": (210, 256, _q6_k),
}  # fmt: skip
TYPES = tuple(_DEQUANTIZERS)


def dequantize(blocks, *, type, output_format):
    """Return the elements of blocks."""
    if blocks.dtype != np.uint8:
        raise TypeError(f"blocks: must be uint8, not {blocks.dtype}")
    size, elements, dequantizer = _DEQUANTIZERS[type]
    rows, n = len(blocks), blocks.shape[1] // size
    y = dequantizer(np.ascontiguousarray(blocks).reshape(rows * n, size))
    return output_of(y.reshape(rows, n * elements), output_format)


def _inverse(d):
    with np.errstate(divide="ignore"):
        return np.where(d != 0, np.float32(1) / d, np.float32(0))


def _bytes_of(d):
    with np.errstate(over="ignore"):
        return d.astype(np.float16).view(np.uint8)


def quantize_q4_0(x):
    """Return blocks of Q4_0: the element of the largest magnitude, of several the first, has the code 0."""
    blocks = np.ascontiguousarray(x).reshape(len(x) * (x.shape[1] // 32), 32)
    first = np.abs(blocks).argmax(axis=1)[:, None]
    d = (np.take_along_axis(blocks, first, axis=1) + np.float32(0)) / np.float32(-8)
    codes = np.nan_to_num(blocks * _inverse(d) + np.float32(8.5), nan=0, posinf=0)
    codes = np.minimum(codes, np.float32(15)).astype(np.uint8)
    data = np.concatenate([_bytes_of(d), codes[:, :16] | codes[:, 16:] << 4], axis=1)
    return data.reshape(len(x), x.shape[1] // 32 * 18)


def quantize_q8_0(x):
    """Return blocks of Q8_0: the largest magnitude is 127, ties go away from zero."""
    blocks = np.ascontiguousarray(x).reshape(len(x) * (x.shape[1] // 32), 32)
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    steps = np.nan_to_num(blocks * _inverse(d), nan=0, posinf=0, neginf=0)
    whole = np.trunc(steps)
    codes = whole + np.copysign(np.abs(steps - whole) >= 0.5, steps)
    data = np.concatenate([_bytes_of(d), codes.astype(np.int8).view(np.uint8)], axis=1)
    return data.reshape(len(x), x.shape[1] // 32 * 34)


def quantize(x, *, type):
    """Return blocks."""
    with np.errstate(invalid="ignore", over="ignore"):
        return {"Q4_0": quantize_q4_0, "Q8_0": quantize_q8_0}[type](x)


def register(backend: Backend) -> None:
    """Register the kernels."""
    backend.implements("dequantize_gguf", supports={"type": TYPES, "output_format": WIDE})(dequantize)
    backend.implements("quantize_gguf", supports={"type": ("Q4_0", "Q8_0")})(quantize)
