"""bitsandbytes on the CPU: NF4, FP4 and the dynamic map blockwise, double quantization, LLM.int8()'s product.

Codes of four bits come packed, the first of a byte in its high bits; here they are one an element. bitsandbytes numbers
its blocks through the flattened tensor; the contract has them along rows, so rows that are no whole blocks are refused.
The 8-bit table is given (`code`), since the one that bitsandbytes makes depends on the machine.

Left out: int8_mm_dequant, whose constant on the CPU is not 1 / 127**2 (reports/findings.md).
"""

from dataclasses import replace

import bitsandbytes
import torch
from bitsandbytes import functional
from torch import Tensor

from lowbit_cts.kernels import PRESETS, Backend, ScaleRule, Semantics, ZeroScale
from lowbit_cts.reference.codebooks import CODEBOOKS

backend = Backend("bitsandbytes", version=bitsandbytes.__version__, arrays="torch")

_FLOATS = ("float32", "float16", "bfloat16")
_QUANT_TYPES = {"nf4": "nf4", "fp4_bitsandbytes": "fp4"}
_BLOCKS = (64, 128, 256, 32, 4096)
_EIGHT_BIT_BLOCKS = (64, 128, 256, 4096)
_DYNAMIC = torch.tensor(CODEBOOKS["dynamic8"])

FOUR_BITS = PRESETS["bitsandbytes"]
#: 8 bits are looked up in a table of 2**16 numbers in [-1, 1]; the slack is half a step, and the rounding of the place.
EIGHT_BITS = replace(FOUR_BITS, zero_scale=ZeroScale.ZERO, slack=1 / 65535 + 2.0**-22)


def _refuse_broken_rows(x: Tensor, block_size: int) -> None:
    if x.shape[1] % block_size:
        raise ValueError(f"block_size: {block_size} does not divide {x.shape[1]} columns")


@backend.implements(
    "quantize_blockwise",
    semantics=FOUR_BITS,
    supports={"codebook": tuple(_QUANT_TYPES), "block_size": _BLOCKS, "input_format": _FLOATS},
)
def quantize_4bit(x: Tensor, *, codebook: str, block_size: int) -> tuple[Tensor, Tensor]:
    """Return the unpacked codes and the absmax."""
    _refuse_broken_rows(x, block_size)
    packed, state = functional.quantize_4bit(x, blocksize=block_size, quant_type=_QUANT_TYPES[codebook])
    codes = torch.stack([packed >> 4, packed & 15], dim=-1)
    return codes.reshape(x.shape), state.absmax.reshape(x.shape[0], -1 if x.numel() else x.shape[1] // block_size)


# From 2048 on it goes through torch.compile where there is AVX-512, a compilation a shape.
@backend.implements(
    "dequantize_blockwise",
    supports={"codebook": tuple(_QUANT_TYPES), "block_size": _BLOCKS[:-1], "output_format": _FLOATS},
)
def dequantize_4bit(codes: Tensor, absmax: Tensor, *, codebook: str, block_size: int, output_format: str) -> Tensor:
    """Return the numbers of codes that are packed here."""
    _refuse_broken_rows(codes, block_size)
    pairs = codes.reshape(-1, 2)
    state = functional.QuantState(
        absmax=absmax.reshape(-1), shape=codes.shape, dtype=getattr(torch, output_format), blocksize=block_size,
        quant_type=_QUANT_TYPES[codebook],
    )  # fmt: skip
    return functional.dequantize_4bit((pairs[:, :1] << 4) | pairs[:, 1:], state)


@backend.implements(
    "quantize_blockwise",
    semantics=EIGHT_BITS,
    supports={"codebook": "dynamic8", "block_size": _EIGHT_BIT_BLOCKS, "input_format": _FLOATS},
)
def quantize_blockwise(x: Tensor, *, block_size: int) -> tuple[Tensor, Tensor]:
    """Return the codes and the absmax."""
    _refuse_broken_rows(x, block_size)
    codes, state = functional.quantize_blockwise(x, code=_DYNAMIC, blocksize=block_size)
    return codes, state.absmax.reshape(x.shape[0], x.shape[1] // block_size)


@backend.implements(
    "dequantize_blockwise",
    supports={"codebook": "dynamic8", "block_size": _EIGHT_BIT_BLOCKS, "output_format": _FLOATS},
)
def dequantize_blockwise(codes: Tensor, absmax: Tensor, *, block_size: int, output_format: str) -> Tensor:
    """Return the numbers of the codes."""
    _refuse_broken_rows(codes, block_size)
    state = functional.QuantState(
        absmax=absmax.reshape(-1), code=_DYNAMIC, dtype=getattr(torch, output_format), blocksize=block_size
    )
    return functional.dequantize_blockwise(codes, state)


@backend.implements("double_quantize", semantics=EIGHT_BITS)
def compress_statistics(absmax: Tensor, offset: Tensor, *, block_size: int) -> tuple[Tensor, Tensor]:
    """Return the codes of absmax less the offset and the nested absmax, as quantize_4bit does to its own."""
    codes, state = functional.quantize_blockwise(absmax - offset, code=_DYNAMIC, blocksize=block_size)
    return codes, state.absmax


@backend.implements("double_dequantize")
def decompress_statistics(codes: Tensor, nested_absmax: Tensor, offset: Tensor, *, block_size: int) -> Tensor:
    """Return the absmax, as dequantize_4bit does for its own."""
    absmax = functional.dequantize_blockwise(codes, absmax=nested_absmax, code=_DYNAMIC, blocksize=block_size)
    return absmax + offset


@backend.implements(
    "choose_qparams_affine",
    semantics=Semantics(scale_rule=ScaleRule.QMAX, zero_scale=ZeroScale.ZERO),
    supports={"granularity": "axis", "axis": 0, "mapping": "symmetric", "input_format": _FLOATS},
)
def int8_vectorwise_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row-wise statistics over 127; the codes are computed and dropped."""
    _, largest, _ = functional.int8_vectorwise_quant(x)
    return largest / torch.full((), 127.0), torch.zeros_like(largest, dtype=torch.int32)


@backend.implements("matmul_int8", prepare=lambda b: b.t().contiguous())
def int8_linear_matmul(a: Tensor, *, prepared: Tensor) -> Tensor:
    """Return the product with the transposed weights."""
    return functional.int8_linear_matmul(a, prepared)
