"""Builders of workload cases, one module a family of operations."""

from lowbit_cts.benches.workloads.builders import (  # noqa: F401  (fill BUILDERS)
    affine,
    binary,
    block_formats,
    casts,
    codebooks,
    gguf,
    packing,
    products,
    requantization,
    vector,
)
