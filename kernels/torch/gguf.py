"""GGUF blocks in torch: all types dequantized, those without a search quantized, in plain tensor operations.

Functions take blocks as uint8 (n, bytes of a block) and give elements as float32 (n, elements of a block), or the
reverse.
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend, Contraction, Division, ExponentFloor, Semantics
from lowbit_cts.kernels.torch import gguf_k_quants
from lowbit_cts.kernels.torch.build import Build

FLOATS = ("float32", "float16", "bfloat16")
_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_FP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)  # twice E2M1
#: Between E2M1's magnitudes.
_FP4_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


def _ue4m3(code: int) -> float:
    """Return half of an unsigned E4M3 scale; ggml reads 0x7f as 0."""
    exponent, mantissa = code >> 3 & 15, code & 7
    value = mantissa * 2.0**-10 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 11)
    return 0.0 if code == 0x7F else value


_TABLES = {"iq4": _IQ4, "fp4": _FP4, "ue4m3": tuple(map(_ue4m3, range(256))), "fp4_middles": _FP4_MIDDLES}


@cache
def _table(name: str, device: torch.device) -> Tensor:
    return torch.tensor(_TABLES[name], dtype=torch.float32, device=device)


# Dequantization -----------------------------------------------------------------------------------------------------


def _half(blocks: Tensor, at: int) -> Tensor:
    """Return the float16 number at a byte of each block, as float32 (n, 1)."""
    low, high = blocks[:, at : at + 1].to(torch.int16), blocks[:, at + 1 : at + 2].to(torch.int16)
    return (low | high << 8).view(torch.float16).float()  # at any address


def _codes(data: Tensor, bits: int, run: int) -> Tensor:
    """Return the codes in runs of bytes: first the low bits of all bytes of a run, then the next ones."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=data.device)[:, None]
    runs = data.unflatten(1, (data.shape[1] // run, 1, run))
    return (runs >> shifts & ((1 << bits) - 1)).flatten(1)


def _trits(data: Tensor, count: int, run: int) -> Tensor:
    """Return the first ternary digits of bytes, which are fractions of 256."""
    powers = torch.tensor([1, 3, 9, 27, 81], dtype=torch.int16, device=data.device)[:count, None]
    runs = data.to(torch.int16).unflatten(1, (data.shape[1] // run, 1, run))
    return ((runs * powers & 255) * 3 >> 8).flatten(1)


def _scaled(levels: Tensor, scales: Tensor) -> Tensor:
    """Return levels times the scale of their group."""
    return (levels.float().unflatten(1, (scales.shape[1], -1)) * scales[..., None]).flatten(1)


def _shifted(codes: Tensor, scales: Tensor, mins: Tensor) -> Tensor:
    groups = codes.float().unflatten(1, (scales.shape[1], -1))
    return (groups * scales[..., None] - mins[..., None]).flatten(1)


def _six_bits(data: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 8 scales and 8 mins of Q4_K and Q5_K from their 12 bytes."""
    low, high = data[:, :8] & 63, data[:, :8] >> 6 << 4
    rest = torch.cat([data[:, 8:] & 15, data[:, 8:] >> 4], 1) | high
    return torch.cat([low[:, :4], rest[:, :4]], 1), torch.cat([low[:, 4:], rest[:, 4:]], 1)


def _q4_0(b: Tensor) -> Tensor:
    return (_codes(b[:, 2:], 4, 16).float() - 8) * _half(b, 0)


def _q4_1(b: Tensor) -> Tensor:
    return _codes(b[:, 4:], 4, 16).float() * _half(b, 0) + _half(b, 2)


def _q5_0(b: Tensor) -> Tensor:
    codes = _codes(b[:, 6:], 4, 16) | _codes(b[:, 2:6], 1, 1) << 4
    return (codes.float() - 16) * _half(b, 0)


def _q5_1(b: Tensor) -> Tensor:
    codes = _codes(b[:, 8:], 4, 16) | _codes(b[:, 4:8], 1, 1) << 4
    return codes.float() * _half(b, 0) + _half(b, 2)


def _q8_0(b: Tensor) -> Tensor:
    return b[:, 2:].contiguous().view(torch.int8).float() * _half(b, 0)


def _q2_k(b: Tensor) -> Tensor:
    scales = b[:, :16]
    return _shifted(_codes(b[:, 16:80], 2, 32), _half(b, 80) * (scales & 15), _half(b, 82) * (scales >> 4))


def _q3_k(b: Tensor) -> Tensor:
    codes = _codes(b[:, 32:96], 2, 32) | _codes(b[:, :32], 1, 32) << 2
    scales = _codes(b[:, 96:104], 4, 8) | _codes(b[:, 104:108], 2, 4) << 4
    return _scaled(codes.float() - 4, _half(b, 108) * (scales.float() - 32))


def _q4_k(b: Tensor) -> Tensor:
    scales, mins = _six_bits(b[:, 4:16])
    return _shifted(_codes(b[:, 16:], 4, 32), _half(b, 0) * scales, _half(b, 2) * mins)


def _q5_k(b: Tensor) -> Tensor:
    scales, mins = _six_bits(b[:, 4:16])
    codes = _codes(b[:, 48:], 4, 32) | _codes(b[:, 16:48], 1, 32) << 4
    return _shifted(codes, _half(b, 0) * scales, _half(b, 2) * mins)


def _q6_k(b: Tensor) -> Tensor:
    codes = _codes(b[:, :128], 4, 64) | _codes(b[:, 128:192], 2, 32) << 4
    scales = b[:, 192:208].contiguous().view(torch.int8)
    return _scaled(codes.float() - 32, _half(b, 208) * scales)


def _iq4_nl(b: Tensor, levels: Tensor) -> Tensor:
    return levels[_codes(b[:, 2:], 4, 16).int()] * _half(b, 0)


def _iq4_xs(b: Tensor, levels: Tensor) -> Tensor:
    scales = _codes(b[:, 4:8], 4, 1) | _codes(b[:, 2:4], 2, 1) << 4
    return _scaled(levels[_codes(b[:, 8:], 4, 16).int()], _half(b, 0) * (scales.float() - 32))


def _mxfp4(b: Tensor, levels: Tensor) -> Tensor:
    e = b[:, :1].int()
    scales = torch.where(e < 2, 0x200000 << e.clamp(max=1), (e - 1) << 23).view(torch.float32)  # 2**(e - 128)
    return levels[_codes(b[:, 1:], 4, 16).int()] * scales


def _nvfp4(b: Tensor, levels: Tensor, scales: Tensor) -> Tensor:
    return _scaled(levels[_codes(b[:, 4:], 4, 8).int()], scales[b[:, :4].int()])


def _tq1_0(b: Tensor) -> Tensor:
    codes = torch.cat([_trits(b[:, :32], 5, 32), _trits(b[:, 32:48], 5, 16), _trits(b[:, 48:52], 4, 4)], 1)
    return (codes.float() - 1) * _half(b, 52)


def _tq2_0(b: Tensor) -> Tensor:
    return (_codes(b[:, :64], 2, 32).float() - 1) * _half(b, 64)


#: Bytes and elements of a block, how it is dequantized, and the tables that takes.
_DEQUANTIZERS: dict[str, tuple[int, int, Callable[..., Tensor], tuple[str, ...]]] = {
    "Q4_0": (18, 32, _q4_0, ()),
    "Q4_1": (20, 32, _q4_1, ()),
    "Q5_0": (22, 32, _q5_0, ()),
    "Q5_1": (24, 32, _q5_1, ()),
    "Q8_0": (34, 32, _q8_0, ()),
    "Q2_K": (84, 256, _q2_k, ()),
    "Q3_K": (110, 256, _q3_k, ()),
    "Q4_K": (144, 256, _q4_k, ()),
    "Q5_K": (176, 256, _q5_k, ()),
    "Q6_K": (210, 256, _q6_k, ()),
    "IQ4_NL": (18, 32, _iq4_nl, ("iq4",)),
    "IQ4_XS": (136, 256, _iq4_xs, ("iq4",)),
    "MXFP4": (17, 32, _mxfp4, ("fp4",)),
    "NVFP4": (36, 64, _nvfp4, ("fp4", "ue4m3")),
    "TQ1_0": (54, 256, _tq1_0, ()),
    "TQ2_0": (66, 256, _tq2_0, ()),
}
TYPES = tuple(_DEQUANTIZERS)


def checked(blocks: Tensor, type: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what `dequantize_blocks` takes first: blocks of bytes, and the tables of the type on their device."""
    if blocks.dtype != torch.uint8:
        raise TypeError(f"blocks: must be uint8, not {blocks.dtype}")
    return blocks, tuple(_table(name, blocks.device) for name in _DEQUANTIZERS[type][3])


def dequantize_blocks(blocks: Tensor, tables: tuple[Tensor, ...], type: str, dtype: torch.dtype) -> Tensor:
    """Return the elements of blocks."""
    size, elements, dequantizer, _ = _DEQUANTIZERS[type]
    n = blocks.shape[1] // size
    y = dequantizer(blocks.reshape(blocks.shape[0] * n, size), *tables).to(dtype)
    return y.reshape(blocks.shape[0], n * elements)


# Quantization -------------------------------------------------------------------------------------------------------


def _bytes_of(half: Tensor) -> Tensor:
    return half.to(torch.float16).view(torch.uint8)


def _packed(codes: Tensor, bits: int, run: int) -> Tensor:
    """Return the bytes that `_codes` takes apart."""
    each = 8 // bits
    places = codes.to(torch.uint8).unflatten(1, (codes.shape[1] // (run * each), each, run))
    data = places[:, :, 0]
    for place in range(1, each):
        data = data | places[:, :, place] << bits * place
    return data.flatten(1)


def _inverse(d: Tensor) -> Tensor:
    return torch.where(d != 0, 1 / d, torch.zeros_like(d))


def _truncated(x: Tensor, largest: int) -> Tensor:
    """Return codes of numbers that are not negative, cut off; 0 where a number is none."""
    return torch.nan_to_num(x, nan=0.0, posinf=0.0).clamp(max=largest).to(torch.uint8)


def _half_away(x: Tensor) -> Tensor:
    whole = x.trunc()
    return torch.nan_to_num(whole + torch.copysign(((x - whole).abs() >= 0.5).float(), x), nan=0.0, posinf=0, neginf=0)


def _symmetric(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return scale and codes: the element of the largest magnitude, of several the first, has the code 0."""
    middle = 1 << (bits - 1)
    d = (x.gather(1, x.abs().argmax(1, keepdim=True)) + 0.0) / -middle  # -0 of any zeros
    return d, _truncated(x * _inverse(d) + (middle + 0.5), 2 * middle - 1)


def _from_min(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    largest, low = (1 << bits) - 1, x.gather(1, x.argmin(1, keepdim=True))
    d = (x.amax(1, keepdim=True) + 0.0 - low) / largest  # never -0
    return d, low, _truncated((x - low) * _inverse(d) + 0.5, largest)


def _rounded(x: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Return scale and levels of -largest .. largest."""
    d = x.abs().amax(1, keepdim=True) / largest
    return d, _half_away(x * _inverse(d))


def _fifth_bits(codes: Tensor) -> Tensor:
    return _packed(codes >> 4, 1, 1)


def _to_q4_0(x: Tensor) -> Tensor:
    d, codes = _symmetric(x, 4)
    return torch.cat([_bytes_of(d), _packed(codes, 4, 16)], 1)


def _to_q4_1(x: Tensor) -> Tensor:
    d, low, codes = _from_min(x, 4)
    return torch.cat([_bytes_of(d), _bytes_of(low), _packed(codes, 4, 16)], 1)


def _to_q5_0(x: Tensor) -> Tensor:
    d, codes = _symmetric(x, 5)
    return torch.cat([_bytes_of(d), _fifth_bits(codes), _packed(codes & 15, 4, 16)], 1)


def _to_q5_1(x: Tensor) -> Tensor:
    d, low, codes = _from_min(x, 5)
    return torch.cat([_bytes_of(d), _bytes_of(low), _fifth_bits(codes), _packed(codes & 15, 4, 16)], 1)


def _to_q8_0(x: Tensor) -> Tensor:
    d, levels = _rounded(x, 127)
    return torch.cat([_bytes_of(d), levels.to(torch.int8).view(torch.uint8)], 1)


def _to_tq1_0(x: Tensor) -> Tensor:
    d, levels = _rounded(x, 1)
    codes = (levels + 1).to(torch.int32)
    fields = []
    for first, last, count, run in ((0, 160, 5, 32), (160, 240, 5, 16), (240, 256, 4, 4)):
        number = torch.zeros_like(codes[:, :run])
        for place, digits in enumerate(codes[:, first:last].unflatten(1, (count, run)).unbind(1)):
            number = number + digits * 3 ** (4 - place)
        fields.append(torch.div(number * 256 + 242, 243, rounding_mode="floor").to(torch.uint8))
    return torch.cat([*fields, _bytes_of(d)], 1)


def _to_tq2_0(x: Tensor) -> Tensor:
    d, levels = _rounded(x, 1)
    return torch.cat([_packed(levels + 1, 2, 32), _bytes_of(d)], 1)


def _to_mxfp4(x: Tensor, middles: Tensor) -> Tensor:
    size = x.abs()
    largest = size.amax(1, keepdim=True)
    e = (torch.frexp(largest).exponent + 124).clamp(min=0) * (largest > 0)
    codes = torch.bucketize(size * ((254 - e) << 23).view(torch.float32), middles)  # a tie goes to the lesser level
    codes = codes + 8 * ((codes > 0) & (x < 0))
    return torch.cat([e.to(torch.uint8), _packed(codes, 4, 16)], 1)


#: Elements and bytes of a block, how it is quantized, and the tables that takes.
_QUANTIZERS: dict[str, tuple[int, int, Callable[..., Tensor], tuple[str, ...]]] = {
    "Q4_0": (32, 18, _to_q4_0, ()),
    "Q4_1": (32, 20, _to_q4_1, ()),
    "Q5_0": (32, 22, _to_q5_0, ()),
    "Q5_1": (32, 24, _to_q5_1, ()),
    "Q8_0": (32, 34, _to_q8_0, ()),
    "MXFP4": (32, 17, _to_mxfp4, ("fp4_middles",)),
    "TQ1_0": (256, 54, _to_tq1_0, ()),
    "TQ2_0": (256, 66, _to_tq2_0, ()),
    "Q4_K": (256, 144, gguf_k_quants.to_q4_k, ()),
    "Q5_K": (256, 176, gguf_k_quants.to_q5_k, ()),
    "Q6_K": (256, 210, gguf_k_quants.to_q6_k, ()),
}


def _quantize(x: Tensor, tables: tuple[Tensor, ...], type: str) -> Tensor:
    elements, size, quantizer, _ = _QUANTIZERS[type]
    n = x.shape[1] // elements
    return quantizer(x.reshape(x.shape[0] * n, elements), *tables).reshape(x.shape[0], n * size)


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register both operations.

    Parameters
    ----------
    backend : Backend
    build : callable
        Eager or compiled (`lowbit_cts.kernels.torch.build`).
    arithmetic : Semantics
        How a division comes out; quantizers are registered where it is IEEE's, since a scale rounded otherwise may be
        another float16 number.
    """
    dequantize_, quantize_ = build(dequantize_blocks), build(_quantize)

    @backend.implements("dequantize_gguf", name="composed", supports={"type": TYPES, "output_format": FLOATS})
    def dequantize(blocks: Tensor, *, type: str, output_format: str) -> Tensor:
        return dequantize_(*checked(blocks, type), type, getattr(torch, output_format))

    if arithmetic.division is not Division.DIVIDE:
        return

    # The sums of the K-quants' search are in no particular order.
    searched = tuple(name for name in _QUANTIZERS if name.endswith("_K"))
    for name, semantics, types in (
        ("composed", Semantics(exponent_floor=ExponentFloor.EXACT), set(_QUANTIZERS) - set(searched)),
        ("searched", Semantics(contraction=Contraction.EITHER), searched),
    ):

        @backend.implements("quantize_gguf", name=name, semantics=semantics, supports={"type": types})
        def quantize(x: Tensor, *, type: str) -> Tensor:
            tables = tuple(_table(name, x.device) for name in _QUANTIZERS[type][3])
            return quantize_(x, tables, type)
