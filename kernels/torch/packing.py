"""Packed codes, and scales in the orders of their kernels, in torch: shifts, and transposed axes."""

from collections.abc import Callable
from functools import cache, reduce
from math import lcm, prod
from operator import or_

import torch
from torch import Tensor
from torch.nn.functional import pad as padded

from lowbit_cts.kernels import Backend, Semantics
from lowbit_cts.kernels.torch.build import Build
from lowbit_cts.reference.packing.packings import PACKINGS, whole_blocks

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def split(x: Tensor, dim: int, *inner: int) -> Tensor:
    """Return a tensor with an axis split into blocks of the inner sizes.

    The number of blocks is given, not left to be inferred: of an inferred 1 Inductor (2.13) makes a constant, and
    compiles for it what runs on other shapes, too.
    """
    return x.unflatten(dim, (x.shape[dim] // prod(inner), *inner))


def pack_stream(fields: Tensor, bits: int, word: torch.dtype, dim: int = 1) -> Tensor:
    """Return words that hold a matrix's fields along an axis, the first in the lowest bits; what is missing is 0."""
    width = 8 * word.itemsize
    period = lcm(bits, width)
    count, missing = fields.shape[dim], -fields.shape[dim] % (period // bits)
    if missing:
        fields = padded(fields, (0, missing) if dim else (0, 0, 0, missing))
    groups = split(fields, dim, period // bits).to(word)
    words: list[list[Tensor]] = [[] for _ in range(period // width)]
    for i in range(period // bits):
        field = groups.select(dim + 1, i)
        at, place = divmod(i * bits, width)
        words[at].append(field << place)
        if place + bits > width:
            words[at + 1].append(field >> (width - place))
    stream = torch.stack([reduce(or_, parts) for parts in words], dim + 1).flatten(dim, dim + 1)
    return stream.narrow(dim, 0, -(-count * bits // width)).contiguous()


def unpack_stream(words: Tensor, bits: int, dim: int = 1) -> Tensor:
    """Return all the fields that a matrix of words holds along an axis, as uint8."""
    width = 8 * words.dtype.itemsize
    period = lcm(bits, width)
    count, missing = words.shape[dim] * width // bits, -words.shape[dim] % (period // width)
    if missing:
        words = padded(words, (0, missing) if dim else (0, 0, 0, missing))
    groups = split(words, dim, period // width)
    fields = []
    for i in range(period // bits):
        at, place = divmod(i * bits, width)
        field = groups.select(dim + 1, at) >> place
        if place + bits > width:
            low = width - place
            field = field & ((1 << low) - 1) | groups.select(dim + 1, at + 1) << low
        fields.append((field & ((1 << bits) - 1)).to(torch.uint8))
    return torch.stack(fields, dim + 1).flatten(dim, dim + 1).narrow(dim, 0, count)


Order = Callable[[Tensor], Tensor]


def _parts(block: int, parts: int, high_first: bool = False) -> tuple[Order, Order]:
    """Return the order of fields, and its inverse, in which a byte has one code of each part of a block."""

    def forward(codes: Tensor) -> Tensor:
        blocks = split(codes, -1, parts, block // parts)
        return (blocks.flip(-2) if high_first else blocks).transpose(-1, -2).flatten(-3)

    def back(fields: Tensor) -> Tensor:
        blocks = split(fields, -1, block // parts, parts).transpose(-1, -2)
        return (blocks.flip(-2) if high_first else blocks).flatten(-3)

    return forward, back


def _interleaved(codes: Tensor) -> Tensor:
    """Return the codes of eight in the order 0, 2, 4, 6, 1, 3, 5, 7."""
    return split(codes, -1, 4, 2).transpose(-1, -2).flatten(-3)


def _deinterleaved(fields: Tensor) -> Tensor:
    return split(fields, -1, 2, 4).transpose(-1, -2).flatten(-3)


def _lanes() -> list[int]:
    """Return which of 16 x 64 codes, row by row, stands at each place of the 128 words that 32 lanes load.

    The rows are (half, pair, row), the columns (tile, half, column); a lane is (column, row pair), and loads a word
    of each of four tiles, of its column and two rows of each half.
    """
    places = torch.arange(1024).view(2, 4, 2, 4, 2, 8).permute(5, 1, 3, 4, 0, 2)
    return _interleaved(places.reshape(1, -1)).flatten().tolist()


_LANES = _lanes()
_PLACES = sorted(range(1024), key=_LANES.__getitem__)


def _to_marlin(codes: Tensor) -> Tensor:
    tiles = split(split(codes, 1, 64), 0, 16).transpose(1, 2).flatten(2)
    return tiles[:, :, torch.tensor(_LANES, device=codes.device)].flatten(1)


def _from_marlin(fields: Tensor) -> Tensor:
    tiles = split(fields, 1, 1024)[:, :, torch.tensor(_PLACES, device=fields.device)]
    return tiles.unflatten(2, (16, 64)).transpose(1, 2).flatten(2).flatten(0, 1)


def _as_they_are(codes: Tensor) -> Tensor:
    return codes


#: Codes in the order of their fields, and back.
_ORDERS: dict[str, tuple[Order, Order]] = {
    "ggml_q4_0": _parts(32, 2),
    "ggml_nvfp4": _parts(16, 2),
    "ggml_q4_k": _parts(64, 2),
    "ggml_tq2_0": _parts(128, 4),
    "bitnet_i2_s": _parts(128, 4, high_first=True),
    "awq": (_interleaved, _deinterleaved),
    "marlin": (_to_marlin, _from_marlin),
}


def _order(packing: str, bits: int) -> tuple[Order, Order]:
    if packing != "high_first":
        return _ORDERS.get(packing, (_as_they_are, _as_they_are))
    each = 8 // bits

    def reverse(fields: Tensor) -> Tensor:
        whole = padded(fields, (0, -fields.shape[-1] % each))
        return split(whole, -1, each).flip(-1).flatten(-2)

    return reverse, reverse


def _added(packing: str, bits: int, signed: bool) -> int:
    """Return what is added to a code, modulo 256: compressed-tensors' offset, GPTQ version 1's -1."""
    return {"compressed_tensors": signed << (bits - 1), "gptq_zeros_v1": 255}.get(packing, 0)


def _pack(codes: Tensor, packing: str, bits: int, signed: bool) -> Tensor:
    fields = codes.to(torch.uint8)  # modulo 256
    if added := _added(packing, bits, signed):
        fields = fields + added
    if signed or added:
        fields = fields & ((1 << bits) - 1)
    layout = PACKINGS[packing]
    return pack_stream(_order(packing, bits)[0](fields), bits, _WORDS[layout.carrier.itemsize], layout.axis + 2)


def _unpack(words: Tensor, packing: str, bits: int, signed: bool) -> Tensor:
    fields = unpack_stream(words, bits, PACKINGS[packing].axis + 2)
    codes = _order(packing, bits)[1](fields)
    if added := _added(packing, bits, signed):
        codes = (codes - added) & ((1 << bits) - 1)
    if not signed:
        return codes.contiguous()
    sign = 1 << (bits - 1)
    return ((codes ^ sign) - sign).view(torch.int8).contiguous()


def _swizzle(scales: Tensor) -> Tensor:
    rows, columns = scales.shape
    whole = padded(scales, (0, -columns % 4, 0, -rows % 128))
    tiles = split(split(whole, 1, 4), 0, 4, 32)
    return tiles.permute(0, 3, 2, 1, 4).flatten()


def _permute_marlin(scales: Tensor, groups: bool) -> Tensor:
    if groups:
        return split(scales, -1, 8, 8).transpose(-1, -2).flatten(-3)
    return split(scales, -1, 4, 4, 2).transpose(-2, -3).flatten(-4)


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register the kernels for every packing; they move bits, whatever the arithmetic of floats."""
    supports = {"packing": tuple(PACKINGS), "bits": tuple(range(1, 9)), "signed": (False, True)}

    @cache
    def built(kernel: Callable[..., Tensor], packing: str, bits: int, signed: bool) -> Callable[[Tensor], Tensor]:
        # To torch.compile the defaults of a function that it inlines are constants; other numbers become symbols.
        def moved(x: Tensor, packing: str = packing, bits: int = bits, signed: bool = signed) -> Tensor:
            return kernel(x, packing, bits, signed)

        def inlining(x: Tensor) -> Tensor:
            return moved(x)

        return build(inlining)

    @backend.implements("pack_codes", name="composed", supports=supports)
    def pack(codes: Tensor, *, packing: str, bits: int, signed: bool) -> Tensor:
        for length, unit in zip(codes.shape, whole_blocks(packing, bits), strict=True):
            if length % unit:
                raise ValueError(f"codes: have shape {tuple(codes.shape)}, which is not whole blocks of {packing}")
        return built(_pack, packing, bits, signed)(codes)

    @backend.implements("unpack_codes", name="composed", supports=supports)
    def unpack(words: Tensor, *, packing: str, bits: int, signed: bool) -> Tensor:
        layout = PACKINGS[packing]
        if not layout.ragged and words.shape[layout.axis] * 8 * layout.carrier.itemsize % bits:
            raise ValueError(f"words: have shape {tuple(words.shape)}, which codes of {bits} bits do not fill")
        return built(_unpack, packing, bits, signed)(words)

    swizzle_, permute_ = build(_swizzle), build(_permute_marlin)

    @backend.implements("swizzle_scales", name="composed", supports={"format": ("float8_e8m0fnu", "float8_e4m3fn")})
    def swizzle(scales: Tensor) -> Tensor:
        return swizzle_(scales.view(torch.uint8)).view(scales.dtype)  # Inductor has no E8M0

    @backend.implements("permute_scales_marlin", name="composed", supports={"format": ("float16", "bfloat16")})
    def permute(scales: Tensor, *, granularity: str) -> Tensor:
        return permute_(scales, granularity == "group")
