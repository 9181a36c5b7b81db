"""The NumPy backend: plain float32 NumPy, as a user would write it. It is under test; it is not the reference."""

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.numpy import (
    affine,
    attention,
    awq,
    binary,
    block_formats,
    casts,
    codebooks,
    convolution,
    gguf,
    gptq,
    hqq,
    kv_cache,
    linear,
    observers,
    onnx_operators,
    packing,
    products,
    qat,
    qlora,
    requantization,
    smoothing,
    sparse24,
    structured,
    vector,
)

backend = Backend("numpy", version=np.__version__, arrays="numpy")
for family in (
    affine, products, vector, casts, packing, sparse24, requantization, block_formats, codebooks, binary, gguf,
    linear, structured, onnx_operators, convolution, attention, kv_cache, gptq, hqq, qlora, qat, observers, smoothing,
    awq,
):  # fmt: skip
    family.register(backend)
