"""The PyTorch backends: native operators, and kernels composed of plain ones, eager or compiled.

Every kernel is declared with the arithmetic it was measured to have on the CPU (torch 2.13, x86), which its
documentation seldom states. The declarations for CUDA follow the sources.
"""

import warnings

import torch

from lowbit_cts.kernels import Backend, Division, Semantics
from lowbit_cts.kernels.torch import (
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
    linear_native,
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
from lowbit_cts.kernels.torch.build import compiled, eager

with warnings.catch_warnings():  # quantized tensors are deprecated, which torch says once a process
    warnings.simplefilter("ignore")
    torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.qint8)


#: Families of kernels composed of plain operators.
_COMPOSED = (
    packing, sparse24, requantization, block_formats, codebooks, binary, gguf, linear, structured,
    onnx_operators, convolution, kv_cache, qat, qlora, smoothing,
)  # fmt: skip


def _eager(name: str, device: str) -> Backend:
    # The searches of K-quants take seconds on a slow machine.
    backend = Backend(name, version=torch.__version__, arrays="torch", device=device, timeout=30.0)
    for family in (affine, products, vector):
        family.register_native(backend)
        family.register_composed(backend, eager, Semantics())
    casts.register(backend, eager)
    sparse24.register_native(backend)
    convolution.register_native(backend)
    linear_native.register_native(backend)
    observers.register_native(backend)
    observers.register_composed(backend)
    qat.register_native(backend)
    gptq.register(backend)
    awq.register(backend)
    hqq.register(backend)
    attention.register_native(backend)
    attention.register_composed(backend, eager, Semantics())
    for family in _COMPOSED:
        family.register_composed(backend, eager, Semantics())
    return backend


def _compiled(name: str, device: str) -> Backend:
    backend = Backend(name, version=torch.__version__, arrays="torch", device=device, timeout=600.0)
    # Triton divides by div.full.f32, to 2 ulp; Inductor's C++ divides, and contracts nothing.
    arithmetic = Semantics() if device == "cpu" else Semantics(division=Division.APPROXIMATE, division_ulps=2.0)
    for family in (affine, products, vector):
        family.register_composed(backend, compiled, arithmetic)
    casts.register(backend, compiled)
    attention.register_composed(backend, compiled, arithmetic)
    for family in _COMPOSED:
        family.register_composed(backend, compiled, arithmetic)
    return backend


_DEVICES = {"torch": "cpu"} | ({"torch-cuda": "cuda"} if torch.cuda.is_available() else {})

backends = [_eager(name, device) for name, device in _DEVICES.items()]
compiled_backends = [_compiled(f"{name}-compile", device) for name, device in _DEVICES.items()]
