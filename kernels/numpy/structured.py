"""Linear layers whose weights have structure, in plain NumPy."""

import numpy as np

from lowbit_cts.kernels import Backend, Division, LoraForm, Semantics, WeightPrecision
from lowbit_cts.kernels.numpy.numbers import WIDE, float32_of, output_of
from lowbit_cts.kernels.numpy.sparse24 import decompress

_F = np.float32
_BIAS = {"has_bias": (False, True)}


def _finished(y, bias, format):
    with np.errstate(over="ignore", invalid="ignore"):
        return output_of(y if bias is None else y + bias, format)


def _dense(values, metadata, *, format, metadata_order):
    """Return the sparse matrix as one of int32 or float32."""
    dense = decompress(values, metadata, metadata_order=metadata_order)
    return dense.astype(np.int32) if format == "int8" else float32_of(dense, format)


def matmul_sparse24(b, *, prepared, format):
    """Return the decompressed matrix times b."""
    if format == "int8":
        return prepared @ b.astype(np.int32)
    with np.errstate(over="ignore", invalid="ignore"):
        return output_of(prepared @ float32_of(b, format), format)


def linear_low_rank(a, down, up, bias, *, input_format):
    """Return (a @ down) @ up + bias."""
    x, down, up = (float32_of(factor, input_format) for factor in (a, down, up))
    with np.errstate(over="ignore", invalid="ignore"):
        return _finished((x @ down) @ up, bias, input_format)


def linear_lora(a, b, down, up, scaling, bias, *, input_format):
    """Return a @ b + scaling (a @ down) @ up + bias."""
    x, b, down, up = (float32_of(factor, input_format) for factor in (a, b, down, up))
    with np.errstate(over="ignore", invalid="ignore"):
        return _finished(x @ b + (x @ down) @ up * scaling, bias, input_format)


def _merged(b, down, up, scaling, *, input_format):
    b, down, up = (float32_of(factor, input_format) for factor in (b, down, up))
    return float32_of(output_of(b + down @ up * scaling, input_format), input_format)


def linear_merged(a, bias, *, prepared, input_format):
    """Return a @ (b + scaling down @ up) + bias, the weights rounded to their format."""
    with np.errstate(over="ignore", invalid="ignore"):
        return _finished(float32_of(a, input_format) @ prepared, bias, input_format)


def matmul_llm_int8(a, codes, absmax, bias, *, threshold, input_format):
    """Return the integer product of the quantized rows, and beside it that of the columns with outliers."""
    x = float32_of(a, input_format)
    large = (np.abs(x) >= threshold) & (threshold > 0)
    columns = large.any(axis=0)
    largest = np.where(large, _F(0), np.abs(x)).max(axis=1, initial=0)
    inverse = _F(127) / np.where(largest > 0, largest, _F(1))
    rows = np.rint(np.where(columns, _F(0), x) * inverse[:, None]).astype(np.int32)
    y = (rows @ codes.T.astype(np.int32)).astype(_F) * largest[:, None] * absmax * _F(1 / 127**2)
    if columns.any():
        y = y + x[:, columns] @ (codes[:, columns] * (absmax / _F(127))[:, None]).T
    return _finished(y, bias, input_format)


def register(backend: Backend) -> None:
    """Register the kernels."""
    layers = {"input_format": WIDE, **_BIAS}
    backend.implements(
        "matmul_sparse24",
        name="decompressed",
        prepare=_dense,
        supports={"format": ("float16", "bfloat16", "int8"), "metadata_order": ("row", "cutlass")},
    )(matmul_sparse24)
    backend.implements("linear_low_rank", supports=layers)(linear_low_rank)
    backend.implements("linear_lora", supports=layers)(linear_lora)
    backend.implements("linear_lora", semantics=Semantics(lora_form=LoraForm.MERGED), prepare=_merged, supports=layers)(
        linear_merged
    )
    backend.implements(
        "matmul_llm_int8",
        semantics=Semantics(division=Division.RECIPROCAL, weight_precision=WeightPrecision.FLOAT32),
        supports={"threshold": (6.0, 0.0), "input_format": ("float16", "bfloat16"), **_BIAS},
    )(matmul_llm_int8)
