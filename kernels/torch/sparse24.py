"""2:4 sparse matrices in torch: the conversions beside SparseSemiStructuredTensor, and plain gathers and shifts."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.sparse import _semi_structured_conversions as conversions

from lowbit_cts.kernels import Backend, Semantics
from lowbit_cts.kernels.torch.build import Build
from lowbit_cts.kernels.torch.packing import pack_stream, split, unpack_stream

_FORMATS = ("float16", "bfloat16", "int8", "float8_e4m3fn", "float8_e5m2")
#: Metadata by which elements of a group are numbers, element i being bit i; of more than two as torch's conversion.
_FIELDS = (0xE, 0x8, 0x9, 0x4, 0xE, 0x8, 0x9, 0x4, 0xE, 0xC, 0xD, 0x4, 0xE, 0xC, 0xD, 0x4)
#: The type in which an element's bits are moved, and the word of its metadata, by its bytes.
_BITS = {1: torch.uint8, 2: torch.int16}
_WORDS = {1: torch.int32, 2: torch.int16}
_BLOCKS = {torch.int16: (4, 8), torch.int32: (2, 8)}


def _to_cutlass(metadata: Tensor) -> Tensor:
    """Return metadata in CUTLASS's order: rows 8 apart side by side, 2 x 2 transposed, pairs of columns together."""
    rows = split(metadata, 0, *_BLOCKS[metadata.dtype]).transpose(1, 2).flatten(0, 2)
    return split(split(rows, 1, 2), 0, 2).permute(2, 0, 3, 1).reshape(metadata.shape)


def _from_cutlass(metadata: Tensor) -> Tensor:
    rows, columns = metadata.shape
    blocks = metadata.reshape(columns // 2, rows // 2, 2, 2).permute(1, 3, 0, 2).reshape(rows, columns)
    parts, eight = _BLOCKS[metadata.dtype]
    return split(blocks, 0, eight, parts).transpose(1, 2).flatten(0, 2)


def _compress(x: Tensor, signed_zero: bool, cutlass: bool) -> tuple[Tensor, Tensor]:
    groups = split(x, -1, 4)
    numbers = (groups << 1 if signed_zero else groups) != 0  # a sign alone is a zero
    first, second, third, fourth = numbers.to(torch.uint8).unbind(-1)
    patterns = first | second << 1 | third << 2 | fourth << 3
    fields = torch.tensor(_FIELDS, dtype=torch.uint8, device=x.device)[patterns.int()]
    pairs = torch.stack([fields & 3, fields >> 2], -1).long()
    values = groups.gather(-1, pairs).flatten(-2)
    metadata = pack_stream(fields, 4, _WORDS[x.dtype.itemsize])
    return values, _to_cutlass(metadata) if cutlass else metadata


def _decompress(values: Tensor, metadata: Tensor, cutlass: bool) -> Tensor:
    fields = unpack_stream(_from_cutlass(metadata) if cutlass else metadata, 4)
    pairs = torch.stack([fields & 3, fields >> 2], -1).long()
    dense = torch.zeros((*fields.shape, 4), dtype=values.dtype, device=values.device)
    return dense.scatter(-1, pairs, split(values, -1, 2)).flatten(-2)


def decompress_bits(values: Tensor, metadata: Tensor, metadata_order: str, kernel: Callable = _decompress) -> Tensor:
    """Return the dense matrix by a kernel that moves its bits; ValueError where the shapes do not belong together."""
    rows, half = values.shape
    if metadata.shape != (rows, half // (4 * metadata.dtype.itemsize)) or half % (4 * metadata.dtype.itemsize):
        raise ValueError(f"metadata: have shape {tuple(metadata.shape)}, values {tuple(values.shape)}")
    bits = values.view(_BITS[values.dtype.itemsize])
    return kernel(bits, metadata, metadata_order == "cutlass").view(values.dtype)


def register_native(backend: Backend) -> None:
    """Register torch's conversions to and from CUTLASS's layout, plain tensor code behind the sparse tensor type."""
    # They view their arguments, which strided memory does not allow.
    supports = {"format": _FORMATS[:3], "metadata_order": "cutlass", "layout": ("contiguous", "offset")}

    @backend.implements("compress_sparse24", name="semi_structured", supports=supports)
    def compress(x: Tensor) -> tuple[Tensor, Tensor]:
        return conversions.sparse_semi_structured_from_dense_cutlass(x)

    @backend.implements("decompress_sparse24", name="semi_structured", supports=supports)
    def decompress(values: Tensor, metadata: Tensor) -> Tensor:
        return conversions.sparse_semi_structured_to_dense_cutlass(values, metadata)


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register plain gathers and shifts, for every format and order of metadata."""
    supports = {"format": _FORMATS, "metadata_order": ("row", "cutlass")}
    compress_, decompress_ = build(_compress), build(_decompress)

    @backend.implements("compress_sparse24", name="composed", supports=supports)
    def compress(x: Tensor, *, metadata_order: str) -> tuple[Tensor, Tensor]:
        covered = 8 * _WORDS[x.dtype.itemsize].itemsize
        if x.shape[1] % covered:
            raise ValueError(f"x: has {x.shape[1]} columns, must be a multiple of {covered}")
        bits = x.view(_BITS[x.dtype.itemsize])
        values, metadata = compress_(bits, x.dtype.is_floating_point, metadata_order == "cutlass")
        return values.view(x.dtype), metadata

    @backend.implements("decompress_sparse24", name="composed", supports=supports)
    def decompress(values: Tensor, metadata: Tensor, *, metadata_order: str) -> Tensor:
        return decompress_bits(values, metadata, metadata_order, decompress_)
