"""The operations, one module a family."""

from lowbit_cts.kernels.operations import (
    affine,
    attention,
    binary,
    block_formats,
    casts,
    codebooks,
    convolution,
    gguf,
    linear,
    onnx_operators,
    packing,
    products,
    requantization,
    sparse24,
    structured,
    vector,
)

__all__ = [
    "affine",
    "attention",
    "binary",
    "block_formats",
    "casts",
    "codebooks",
    "convolution",
    "gguf",
    "linear",
    "onnx_operators",
    "packing",
    "products",
    "requantization",
    "sparse24",
    "structured",
    "vector",
]
