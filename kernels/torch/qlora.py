"""Adapters merged, and beside 4-bit weights, in torch: in float32, or as PEFT has them in the layer's own type."""

from dataclasses import replace

from torch import Tensor

from lowbit_cts.kernels import Backend, Semantics, WeightPrecision
from lowbit_cts.kernels.torch.build import Build
from lowbit_cts.kernels.torch.codebooks import NESTED, codebook_table

_FLOATS = ("float32", "float16", "bfloat16")


def _merge(w: Tensor, down: Tensor, up: Tensor, scaling: Tensor) -> Tensor:
    return (w.float() + up.float() @ down.float() * scaling).to(w.dtype)


def _merge_in_format(w: Tensor, down: Tensor, up: Tensor, scaling: Tensor) -> Tensor:
    """Return the weights plus an adapter that was rounded to their type before."""
    return w + ((up.float() @ down.float()) * scaling).to(w.dtype)


def _weights(
    codes: Tensor, absmax_codes: Tensor, nested: Tensor, offset: Tensor, values: Tensor, nested_values: Tensor
) -> Tensor:
    """Return the weights in float32, (K, N)."""
    absmax = (nested_values[absmax_codes.int()] * nested + offset).unsqueeze(-1)
    size = codes.shape[1] // max(absmax_codes.shape[1], 1)
    blocks = codes.unflatten(1, (absmax_codes.shape[1], size)).int()
    return (values[blocks] * absmax).flatten(1).t()


def _layer(a: Tensor, weights: Tensor, down: Tensor, up: Tensor, scaling: Tensor, bias: Tensor | None) -> Tensor:
    x = a.float()
    y = x @ weights + (x @ down.float().t()) @ up.float().t() * scaling
    return (y if bias is None else y + bias).to(a.dtype)


def _layer_in_format(
    a: Tensor, weights: Tensor, down: Tensor, up: Tensor, scaling: Tensor, bias: Tensor | None
) -> Tensor:
    low = (((a @ down.t()) @ up.t()).float() * scaling).to(a.dtype)
    rounded = weights.to(a.dtype)
    dense = a @ rounded if bias is None else (a.float() @ rounded.float() + bias).to(a.dtype)
    return dense + low


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register the formulas in plain tensor operations; how a division comes out says `arithmetic`."""
    in_format = replace(arithmetic, weight_precision=WeightPrecision.ACTIVATIONS)
    dequantize = build(_weights)

    def prepare(
        codes: Tensor,
        absmax_codes: Tensor,
        nested_absmax: Tensor,
        offset: Tensor,
        *,
        codebook: str,
        block_size: int,
        nested_block_size: int,
    ) -> Tensor:
        groups, missing = codes.shape[1] // block_size, -absmax_codes.numel() % nested_block_size
        if tuple(absmax_codes.shape) != (codes.shape[0], groups) or codes.shape[1] % block_size:
            raise ValueError(f"absmax_codes: has shape {tuple(absmax_codes.shape)}, must be {(len(codes), groups)}")
        if nested_absmax.numel() * nested_block_size != absmax_codes.numel() + missing:
            raise ValueError(f"nested_absmax: has {nested_absmax.numel()} elements, must have one a nested block")
        nested = nested_absmax.repeat_interleave(nested_block_size)[: absmax_codes.numel()].reshape(absmax_codes.shape)
        tables = codebook_table(codebook, codes.device), codebook_table(NESTED, codes.device)
        return dequantize(codes, absmax_codes, nested, offset, *tables)

    supports = {"codebook": ("nf4", "fp4_bitsandbytes"), "input_format": _FLOATS, "has_bias": (False, True)}
    for name, semantics, merge, layer in (
        ("float32", arithmetic, build(_merge), build(_layer)),
        ("in_format", in_format, build(_merge_in_format), build(_layer_in_format)),
    ):
        backend.implements("merge_lora", name=name, semantics=semantics, supports={"input_format": _FLOATS})(
            lambda w, down, up, scaling, *, kernel=merge: kernel(w, down, up, scaling)
        )
        backend.implements("linear_qlora", name=name, semantics=semantics, prepare=prepare, supports=supports)(
            lambda a, down, up, scaling, bias, *, prepared, kernel=layer: kernel(a, prepared, down, up, scaling, bias)
        )
