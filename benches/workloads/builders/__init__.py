"""Builders of workload cases, one module a family of operations."""

from lowbit_cts.benches.workloads.builders import (  # noqa: F401  (fill BUILDERS)
    affine,
    attention,
    binary,
    block_formats,
    casts,
    codebooks,
    convolution,
    gguf,
    gptq,
    kv_cache,
    linear,
    observers,
    onnx_operators,
    packing,
    products,
    qat,
    requantization,
    structured,
    vector,
)
