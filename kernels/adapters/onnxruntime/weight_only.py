"""com.microsoft.MatMulNBits: float activations, weights in 4 or 8 bits, in blocks of a power of two.

B is (N, blocks, bytes of a block), the first code of a byte in its lowest bits; scales and zero points are (N, blocks),
the latter packed as the codes are. Without zero points the middle of the codes stands for 0. The accuracy level is 0:
products in float32.

With g_idx, which is of 4 bits alone, zero points are ignored, so those are not declared there.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.adapters.onnxruntime.sessions import MATRIX, MICROSOFT, ONNX, Tensor, given, run, session
from lowbit_cts.reference.packing.streams import pack_stream


def _packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """Return rows of codes in bytes, the first in the lowest bits."""
    per_byte = 8 // bits
    whole = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per_byte)))
    return pack_stream(whole.reshape(-1).astype(np.uint8), bits, np.dtype(np.uint8)).reshape(codes.shape[0], -1)


def _tensors(input_format: str, mapping: str, act_order: bool | None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    absent = ("", "", ())
    inputs = (
        ("A", input_format, MATRIX),
        ("B", "uint8", ("N", "P", "bytes")),
        ("scales", input_format, ("N", "P")),
        ("zero_points", "uint8", ("N", "Z")) if mapping == "asymmetric" else absent,
        ("g_idx", "int32", ("K",)) if act_order else absent,
    )
    return inputs, (("Y", input_format, ("M", "N")),)


def hold(codes, scale, zero_point, group_index, *, bits, group_size, input_format, mapping, act_order):
    """Return a session that holds the weights, packed, with their scales and zero points."""
    k, n = codes.shape
    blocks = -(-k // group_size)
    if scale.shape != (blocks, n):
        raise ValueError(f"scale: has shape {scale.shape}, must be {(blocks, n)}")
    whole = np.pad(codes.T, ((0, 0), (0, blocks * group_size - k)))
    held = {"B": _packed(whole, bits).reshape(n, blocks, -1), "scales": np.ascontiguousarray(scale.T)}
    if zero_point is not None:
        if zero_point.shape != scale.shape:
            raise ValueError(f"zero_point: has shape {zero_point.shape}, must be {scale.shape}")
        held["zero_points"] = _packed(zero_point.T.astype(np.uint8), bits)
    if group_index is not None:
        if group_index.shape != (k,):
            raise ValueError(f"group_index: has shape {group_index.shape}, must be {(k,)}")
        held["g_idx"] = group_index.astype(np.int32)
    attributes = (("K", k), ("N", n), ("bits", bits), ("block_size", group_size), ("accuracy_level", 0))
    return session("MatMulNBits", *_tensors(input_format, mapping, act_order), attributes, MICROSOFT, held)


def multiply(a, bias, *, input_format, mapping, act_order, out, prepared):
    """Write the layer's outputs by the weights that the model holds."""
    inputs, outputs = _tensors(input_format, mapping, act_order)
    run(prepared, given(inputs, a, None, None, None, None), {outputs[0]: out})


def _named(bits: int) -> Callable[..., Any]:
    def prepare(codes, scale, zero_point, group_index, *, group_size, input_format, mapping, act_order):
        return hold(
            codes, scale, zero_point, group_index, bits=bits, group_size=group_size, input_format=input_format,
            mapping=mapping, act_order=act_order,
        )  # fmt: skip

    return prepare


def register(backend: Backend) -> None:
    """Register both widths, and 4 bits with a group for every row of the weights, without zero points."""
    formats = {"input_format": ("float32", "float16"), "group_size": (128, 64, 32)}
    for bits in (4, 8):
        supports = {**formats, "format": f"uint{bits}", "mapping": ("symmetric", "asymmetric")}
        backend.implements(
            f"matmul_w{bits}a16", name="MatMulNBits", semantics=ONNX, prepare=_named(bits), supports=supports
        )(multiply)
    backend.implements(
        "matmul_w4a16", name="MatMulNBits_g_idx", semantics=ONNX, prepare=_named(4),
        supports={**formats, "format": "uint4", "act_order": True},
    )(multiply)  # fmt: skip
