"""bitsandbytes on the CPU: NF4, FP4 and the dynamic map blockwise, double quantization, linear layers, LLM.int8().

Codes of four bits come packed, the first of a byte in its high bits; here they are one an element. bitsandbytes numbers
its blocks through the flattened tensor; the contract has them along rows, so rows that are no whole blocks are refused.
The 8-bit table is given (`code`), since the one that bitsandbytes makes depends on the machine.

A linear layer dequantizes to the activations' type and calls torch. On CPUs with AVX512-BF16 a layer in evaluation has
its weights in another order (`packing_format_for_cpu`), for a kernel of its own: absmax and the values of the codes in
bfloat16, their product not rounded, sums in float32; subnormal numbers count as 0.

Left out: int8_mm_dequant, whose constant on the CPU is not 1 / 127**2 (reports/findings.md).
"""

from dataclasses import replace
from typing import Any

import bitsandbytes
import torch
from bitsandbytes import functional
from torch import Tensor
from torch.nn.functional import pad

from lowbit_cts.kernels import (
    PRESETS,
    Backend,
    Division,
    PartPrecision,
    ScaleRule,
    Semantics,
    WeightPrecision,
    ZeroScale,
)
from lowbit_cts.reference.codebooks import CODEBOOKS

backend = Backend("bitsandbytes", version=bitsandbytes.__version__, arrays="torch")

_FLOATS = ("float32", "float16", "bfloat16")
_QUANT_TYPES = {"nf4": "nf4", "fp4_bitsandbytes": "fp4"}
_BLOCKS = (64, 128, 256, 32, 4096)
_EIGHT_BIT_BLOCKS = (64, 128, 256, 4096)
#: Rows that the weights of a layer in evaluation are packed in.
_PACKED_ROWS = 32
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


def _state(codes: Tensor, absmax: Tensor, codebook: str, block_size: int) -> tuple[Tensor, functional.QuantState]:
    """Return codes packed as quantize_4bit does, and its state."""
    quant_type = _QUANT_TYPES[codebook]
    packed = (codes[:, ::2] << 4) | codes[:, 1::2]
    state = functional.QuantState(
        absmax=absmax.reshape(-1), shape=codes.shape, code=functional.get_4bit_type(quant_type, device="cpu"),
        blocksize=block_size, quant_type=quant_type, dtype=torch.float32,
    )  # fmt: skip
    return packed.reshape(-1, 1), state


def _register_linear() -> None:
    linear = {"codebook": tuple(_QUANT_TYPES), "block_size": (64, 128, 32, 256)}

    def prepare(codes: Tensor, absmax: Tensor, *, codebook: str, block_size: int) -> Any:
        return _state(codes, absmax, codebook, block_size)

    def matmul_4bit(a: Tensor, bias: Tensor | None, *, prepared: Any) -> Tensor:
        packed, state = prepared
        return bitsandbytes.matmul_4bit(a, packed, state, bias=bias)

    # In 16 bits the bias would have to be, too.
    to_activations = Semantics(weight_precision=WeightPrecision.ACTIVATIONS)
    for name, semantics, supports in (
        ("matmul_4bit", Semantics(), {"input_format": "float32", "has_bias": (False, True)}),
        ("matmul_4bit_16_bits", to_activations, {"input_format": ("float16", "bfloat16")}),
    ):
        backend.implements(
            "linear_nf4", name=name, prepare=prepare, semantics=semantics, supports={**linear, **supports}
        )(matmul_4bit)

    if functional.has_avx512bf16():

        def prepare_packed(
            codes: Tensor, absmax: Tensor, *, codebook: str, block_size: int
        ) -> tuple[Tensor, functional.QuantState, int]:
            rows = codes.shape[0]
            missing = (0, 0, 0, -rows % _PACKED_ROWS)
            packed, state = _state(pad(codes, missing), pad(absmax, missing), codebook, block_size)
            return *functional._convert_weight_packed_for_cpu(packed, state), rows

        @backend.implements(
            "linear_nf4",
            prepare=prepare_packed,
            semantics=Semantics(part_precision=PartPrecision.BFLOAT16),
            supports={**linear, "input_format": "bfloat16"},
        )
        def gemv_4bit(a: Tensor, bias: None, *, prepared: Any) -> Tensor:
            packed, state, rows = prepared
            return bitsandbytes.matmul_4bit(a, packed, state)[:, :rows]


_register_linear()


def _outlier_state(codes: Tensor, absmax: Tensor, *, threshold: float) -> bitsandbytes.MatmulLtState:
    """Return the state in which `Linear8bitLt` keeps weights that were quantized already."""
    state = bitsandbytes.MatmulLtState()
    state.CB, state.SCB, state.threshold, state.has_fp16_weights = codes, absmax, threshold, False
    state.is_training = False  # in training the CPU multiplies in 16 bits alone
    return state


# In bfloat16 activations are rounded to float16 first.
@backend.implements(
    "matmul_llm_int8",
    prepare=_outlier_state,
    semantics=Semantics(division=Division.RECIPROCAL, weight_precision=WeightPrecision.ACTIVATIONS),
    supports={"threshold": (6.0, 0.0), "input_format": "float16", "has_bias": (False, True)},
)
def matmul_8bit_lt(a: Tensor, bias: Tensor | None, *, prepared: bitsandbytes.MatmulLtState) -> Tensor:
    """Return the layer's outputs."""
    return bitsandbytes.matmul(a, prepared.CB, state=prepared, bias=bias)


@backend.implements("matmul_int8", prepare=lambda b: b.t().contiguous())
def int8_linear_matmul(a: Tensor, *, prepared: Tensor) -> Tensor:
    """Return the product with the transposed weights."""
    return functional.int8_linear_matmul(a, prepared)
