"""The operations, one module a family."""

from lowbit_cts.kernels.operations import (
    affine,
    binary,
    block_formats,
    casts,
    codebooks,
    gguf,
    linear,
    packing,
    products,
    requantization,
    sparse24,
    vector,
)

__all__ = [
    "affine",
    "binary",
    "block_formats",
    "casts",
    "codebooks",
    "gguf",
    "linear",
    "packing",
    "products",
    "requantization",
    "sparse24",
    "vector",
]
