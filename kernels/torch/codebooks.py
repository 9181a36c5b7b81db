"""Codebooks in torch: thresholds between sorted values and torch.bucketize; sums of clusters by index_add."""

from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from lowbit_cts.kernels import Backend, Boundary, Contraction, Division, EqualValues, Precision, Semantics, TieSide
from lowbit_cts.kernels.operations.codebooks import NESTED
from lowbit_cts.kernels.torch.build import Build
from lowbit_cts.reference.codebooks import CODEBOOKS

_FLOATS = ("float32", "float16", "bfloat16")
#: A block of zeros is divided by this.
_EPSILON = 1e-38


@cache
def codebook_table(codebook: str, device: torch.device) -> Tensor:
    """Return the values of a codebook by code."""
    return torch.tensor(CODEBOOKS[codebook], device=device)


@cache
def _search(codebook: str, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Return what `_sorted` does, with None for codes that are ranks."""
    thresholds, codes = _sorted(codebook_table(codebook, device))
    in_order = torch.equal(codes, torch.arange(codes.numel(), device=device, dtype=codes.dtype))
    return thresholds, None if in_order else codes


def _sorted(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the middles between the sorted values, and their codes, which are at most 256."""
    values, order = torch.sort(values, stable=True)
    return (values[:-1] + values[1:]) * 0.5, order.to(torch.uint8)


def _nearest(x: Tensor, thresholds: Tensor, codes: Tensor | None) -> Tensor:
    ranks = torch.bucketize(x, thresholds, out_int32=True)
    return ranks.to(torch.uint8) if codes is None else codes[ranks]


def _quantize(blocks: Tensor, thresholds: Tensor, codes: Tensor | None) -> tuple[Tensor, Tensor]:
    blocks = blocks.float()
    absmax = blocks.abs().amax(-1)
    return _nearest(blocks / absmax.clamp(min=_EPSILON).unsqueeze(-1), thresholds, codes), absmax


def _dequantize(codes: Tensor, absmax: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
    return (table[codes.int()] * absmax.unsqueeze(-1)).to(dtype)


def _double_dequantize(codes: Tensor, nested: Tensor, offset: Tensor, table: Tensor) -> Tensor:
    return table[codes.int()] * nested.unsqueeze(-1) + offset


def _update(x: Tensor, codes: Tensor, codebook: Tensor) -> Tensor:
    index, samples = codes.int(), x.double()
    nothing = torch.zeros_like(codebook, dtype=torch.float64)
    total = nothing.index_add(0, index, samples)
    count = nothing.index_add(0, index, torch.ones_like(samples))
    return torch.where(count > 0, total / count, codebook.double()).float()


def _blocks(x: Tensor, block_size: int) -> Tensor:
    return x.unflatten(1, (x.shape[1] // block_size, block_size))


def _padded(x: Tensor, block_size: int) -> Tensor:
    """Return a vector as (blocks, block_size), the last filled up with zeros."""
    return pad(x, (0, -x.numel() % block_size)).reshape(-1, block_size)


def _values(codebook: Tensor) -> tuple[Tensor, Tensor]:
    if codebook.numel() == 0:
        raise ValueError("codebook: must hold at least one value")
    return _sorted(codebook)


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register the formulas in plain tensor operations.

    Parameters
    ----------
    backend : Backend
    build : callable
        Eager or compiled (`lowbit_cts.kernels.torch.build`).
    arithmetic : Semantics
        How a division comes out.
    """
    quantize_, dequantize_ = build(_quantize), build(_dequantize)
    nearest_, update_, double_dequantize_ = build(_nearest), build(_update), build(_double_dequantize)
    search = Semantics(tie=TieSide.LOWER, boundary=Boundary.ROUNDED, equal_values=EqualValues.BY_SIDE)
    blockwise = replace(search, epsilon=_EPSILON, division=arithmetic.division, division_ulps=arithmetic.division_ulps)
    # What divides approximately contracts, too: both are Triton's.
    open_to_contraction = arithmetic.division is Division.APPROXIMATE
    contraction = Contraction.EITHER if open_to_contraction else Contraction.SEPARATE
    everything = {"codebook": tuple(CODEBOOKS)}

    @backend.implements(
        "quantize_blockwise", name="composed", semantics=blockwise, supports={**everything, "input_format": _FLOATS}
    )
    def quantize(x, *, codebook, block_size):
        codes, absmax = quantize_(_blocks(x, block_size), *_search(codebook, x.device))
        return codes.reshape(x.shape), absmax

    @backend.implements("dequantize_blockwise", name="composed", supports={**everything, "output_format": _FLOATS})
    def dequantize(codes, absmax, *, codebook, block_size, output_format):
        blocks = _blocks(codes, block_size)
        y = dequantize_(blocks, absmax, codebook_table(codebook, codes.device), getattr(torch, output_format))
        return y.reshape(codes.shape)

    @backend.implements("double_quantize", name="composed", semantics=blockwise)
    def double_quantize(absmax, offset, *, block_size):
        blocks = _padded(absmax - offset, block_size)
        codes, nested = quantize_(blocks, *_search(NESTED, absmax.device))
        return codes.reshape(-1)[: absmax.numel()], nested

    @backend.implements("double_dequantize", name="composed", semantics=replace(search, contraction=contraction))
    def double_dequantize(codes, nested_absmax, offset, *, block_size):
        blocks = _padded(codes, block_size)
        return double_dequantize_(blocks, nested_absmax, offset, codebook_table(NESTED, codes.device)).reshape(-1)[
            : codes.numel()
        ]

    @backend.implements("assign_codebook", name="composed", semantics=search, prepare=_values)
    def assign(x, *, prepared):
        return nearest_(x, *prepared)

    # In float64 the order of the additions, which atomic ones leave open, does not show in float32.
    @backend.implements(
        "update_codebook", name="composed", semantics=replace(arithmetic, intermediate=Precision.FLOAT64)
    )
    def update(x, codes, codebook):
        if x.shape != codes.shape:
            raise ValueError(f"codes: has shape {tuple(codes.shape)}, must have that of x, {tuple(x.shape)}")
        return update_(x, codes, codebook)
