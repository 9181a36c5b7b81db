"""Linear layers whose weights have structure, in torch."""

from dataclasses import replace

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend, Division, LoraForm, Semantics, WeightPrecision
from lowbit_cts.kernels.torch.build import Build
from lowbit_cts.kernels.torch.sparse24 import decompress_bits

_FLOATS = ("float32", "float16", "bfloat16")
_BIAS = {"has_bias": (False, True)}
_LAYERS = {"input_format": _FLOATS, **_BIAS}


def _low_rank(a: Tensor, down: Tensor, up: Tensor, bias: Tensor | None) -> Tensor:
    """Return both products and the bias in float32, and round once."""
    y = (a.float() @ down.float()) @ up.float()
    return (y if bias is None else y + bias).to(a.dtype)


def _low_rank_in_format(a: Tensor, down: Tensor, up: Tensor, bias: Tensor | None) -> Tensor:
    """Return both products as PEFT has them, each rounded to the format of a."""
    y = (a @ down) @ up
    return y if bias is None else (y.float() + bias).to(a.dtype)


def _lora(a: Tensor, b: Tensor, down: Tensor, up: Tensor, scaling: Tensor, bias: Tensor | None) -> Tensor:
    x = a.float()
    y = x @ b.float() + (x @ down.float()) @ up.float() * scaling
    return (y if bias is None else y + bias).to(a.dtype)


def _lora_in_format(a: Tensor, b: Tensor, down: Tensor, up: Tensor, scaling: Tensor, bias: Tensor | None) -> Tensor:
    low = (((a @ down) @ up).float() * scaling).to(a.dtype)
    dense = a @ b if bias is None else ((a.float() @ b.float()) + bias).to(a.dtype)
    return dense + low


def _merge(b: Tensor, down: Tensor, up: Tensor, scaling: Tensor) -> Tensor:
    return (b.float() + down.float() @ up.float() * scaling).to(b.dtype)


def _merged(a: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    y = a.float() @ weights.float()
    return (y if bias is None else y + bias).to(a.dtype)


def _llm_int8(a: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None, threshold: float) -> Tensor:
    x = a.float()
    size = x.abs()
    large = (size >= threshold) if threshold > 0 else torch.zeros_like(x, dtype=torch.bool)
    columns = large.any(0)
    largest = torch.where(large, 0.0, size).amax(1) if x.shape[1] else x.new_zeros(x.shape[0])
    inverse = x.new_full((), 127.0) / torch.where(largest > 0, largest, 1.0)
    rows = torch.round(torch.where(columns, 0.0, x) * inverse.unsqueeze(1))
    total = (rows.double() @ codes.double().t()).float()
    y = total * largest.unsqueeze(1) * absmax * (1 / 127**2)
    weights = codes.float() * (absmax / x.new_full((), 127.0)).unsqueeze(1)
    y = y + torch.where(columns, x, 0.0) @ weights.t()
    return (y if bias is None else y + bias).to(a.dtype)


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register the formulas in plain tensor operations; how a division comes out says `arithmetic`."""
    in_format = replace(arithmetic, weight_precision=WeightPrecision.ACTIVATIONS)
    for name, semantics, low_rank, lora in (
        ("float32", arithmetic, build(_low_rank), build(_lora)),
        ("in_format", in_format, build(_low_rank_in_format), build(_lora_in_format)),
    ):
        backend.implements("linear_low_rank", name=name, semantics=semantics, supports=_LAYERS)(
            lambda a, down, up, bias, *, kernel=low_rank: kernel(a, down, up, bias)
        )
        backend.implements("linear_lora", name=name, semantics=semantics, supports=_LAYERS)(
            lambda a, b, down, up, scaling, bias, *, kernel=lora: kernel(a, b, down, up, scaling, bias)
        )
    merge, merged = build(_merge), build(_merged)

    @backend.implements(
        "linear_lora", name="merged", semantics=replace(arithmetic, lora_form=LoraForm.MERGED),
        prepare=merge, supports=_LAYERS,
    )  # fmt: skip
    def linear_merged(a: Tensor, bias: Tensor | None, *, prepared: Tensor) -> Tensor:
        return merged(a, prepared, bias)

    def sparse_weights(values: Tensor, metadata: Tensor, *, metadata_order: str) -> Tensor:
        return decompress_bits(values, metadata, metadata_order)

    @backend.implements(
        "matmul_sparse24", name="decompressed", prepare=sparse_weights,
        supports={"format": ("float16", "bfloat16", "int8"), "metadata_order": ("row", "cutlass")},
    )  # fmt: skip
    def matmul_sparse24(b: Tensor, *, prepared: Tensor, format: str) -> Tensor:
        if format == "int8":
            return (prepared.double() @ b.double()).to(torch.int64).to(torch.int32)
        return prepared @ b

    if arithmetic.division is not Division.DIVIDE:
        return  # the codes of activations would be open
    llm_int8 = build(_llm_int8)

    @backend.implements(
        "matmul_llm_int8", name="composed", semantics=replace(arithmetic, division=Division.RECIPROCAL),
        supports={"threshold": (6.0, 0.0), "input_format": ("float16", "bfloat16"), **_BIAS},
    )  # fmt: skip
    def matmul_llm_int8(a: Tensor, codes: Tensor, absmax: Tensor, bias: Tensor | None, *, threshold: float) -> Tensor:
        return llm_int8(a, codes, absmax, bias, threshold)
