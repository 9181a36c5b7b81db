"""PEFT on the CPU: LoRA beside a linear layer, merged into it, and beside a 4-bit layer of bitsandbytes (QLoRA).

A layer is made as `get_peft_model` makes it, and its factors are put in. It computes in the type of its weights: what
down and up give is rounded to it, and what they are scaled to, before the sum. Merging multiplies in float32 on the
CPU, and rounds the scaled product before it is added. A rank of 0 is refused by PEFT.

The 4-bit layer is in training, as QLoRA has it: in evaluation a CPU with AVX512-BF16 has a kernel of its own
(`bitsandbytes` examines it). bitsandbytes knows nested blocks of 256 alone, and numbers blocks through the flattened
weights.
"""

from importlib.util import find_spec
from typing import Any

import peft
import torch
from peft.tuners.lora import Linear, LoraConfig
from torch import Tensor, nn

from lowbit_cts.kernels import Backend, LoraForm, Semantics, WeightPrecision
from lowbit_cts.reference.codebooks import CODEBOOKS

backend = Backend("peft", version=peft.__version__, arrays="torch")

_FLOATS = ("float32", "float16", "bfloat16")
_NAME = "default"
_IN_FORMAT = Semantics(weight_precision=WeightPrecision.ACTIVATIONS)
_MERGED = Semantics(weight_precision=WeightPrecision.ACTIVATIONS, lora_form=LoraForm.MERGED)
_QUANT_TYPES = {"nf4": "nf4", "fp4_bitsandbytes": "fp4"}
#: What a bias would be cast to in 16 bits is not the contract's float32.
_LAYERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("", {"input_format": "float32", "has_bias": (False, True)}),
    ("_16_bits", {"input_format": _FLOATS[1:]}),
)


def _parameter(numbers: Tensor) -> nn.Parameter:
    return nn.Parameter(numbers, requires_grad=False)


def _base(weights: Tensor) -> nn.Linear:
    """Return a linear layer of weights (N, K), which it does not share."""
    layer = nn.Linear(weights.shape[1], weights.shape[0], bias=False, dtype=weights.dtype)
    layer.weight = _parameter(weights.clone(memory_format=torch.contiguous_format))
    return layer


def _adapted(layer: nn.Module, kind: type, down: Tensor, up: Tensor, scaling: Tensor) -> nn.Module:
    """Return a layer with an adapter beside it, of factors (R, K) and (N, R)."""
    rank = down.shape[0]
    config = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights=False)
    adapted = kind(layer, _NAME, config=config, r=rank, lora_alpha=rank)
    places = ((adapted.lora_A[_NAME], down, (rank, adapted.in_features)),
              (adapted.lora_B[_NAME], up, (adapted.out_features, rank)))  # fmt: skip
    for module, factor, shape in places:
        if tuple(factor.shape) != shape:
            raise ValueError(f"a factor has shape {tuple(factor.shape)}, must be {shape}")
        module.weight = _parameter(factor)
    adapted.scaling[_NAME] = float(scaling)
    return adapted


def _called(layer: nn.Module, a: Tensor, bias: Tensor | None) -> Tensor:
    layer.base_layer.bias = None if bias is None else _parameter(bias)
    return layer(a)


def _beside(b: Tensor, down: Tensor, up: Tensor, scaling: Tensor) -> nn.Module:
    return _adapted(_base(b.t()), Linear, down.t(), up.t(), scaling)


def _merged(b: Tensor, down: Tensor, up: Tensor, scaling: Tensor) -> nn.Module:
    layer = _beside(b, down, up, scaling)
    layer.merge()
    return layer


for _suffix, _supports in _LAYERS:

    @backend.implements(
        "linear_lora", name=f"forward{_suffix}", prepare=_beside, semantics=_IN_FORMAT, supports=_supports
    )
    def forward(a: Tensor, bias: Tensor | None, *, prepared: nn.Module) -> Tensor:
        """Return the outputs of the layer and its adapter."""
        return _called(prepared, a, bias)

    @backend.implements(
        "linear_lora", name=f"merged_forward{_suffix}", prepare=_merged, semantics=_MERGED, supports=_supports
    )
    def merged_forward(a: Tensor, bias: Tensor | None, *, prepared: nn.Module) -> Tensor:
        """Return the outputs of the layer with its adapter merged."""
        return _called(prepared, a, bias)


@backend.implements("merge_lora", semantics=_IN_FORMAT, supports={"input_format": _FLOATS})
def merge(w: Tensor, down: Tensor, up: Tensor, scaling: Tensor) -> Tensor:
    """Return the weights after `merge`."""
    layer = _adapted(_base(w), Linear, down, up, scaling)
    layer.merge()
    return layer.base_layer.weight.data


@backend.implements("merge_lora", semantics=_IN_FORMAT, supports={"input_format": _FLOATS})
def get_delta_weight(w: Tensor, down: Tensor, up: Tensor, scaling: Tensor) -> Tensor:
    """Return the weights plus `get_delta_weight`, as DoRA and the conversion of adapters use it."""
    return w + _adapted(_base(w), Linear, down, up, scaling).get_delta_weight(_NAME)


def _register_qlora() -> None:
    from bitsandbytes import functional
    from bitsandbytes.nn import Linear4bit as FourBits
    from bitsandbytes.nn import Params4bit
    from peft.tuners.lora.bnb import Linear4bit

    dynamic = torch.tensor(CODEBOOKS["dynamic8"])

    def prepare(
        codes: Tensor, absmax_codes: Tensor, nested_absmax: Tensor, offset: Tensor, *, codebook: str, block_size: int
    ) -> tuple[Tensor, functional.QuantState]:
        n, k = codes.shape
        nested_block = 256
        if k % block_size or tuple(absmax_codes.shape) != (n, k // block_size):
            raise ValueError(f"absmax_codes: has shape {tuple(absmax_codes.shape)}, must be {(n, k // block_size)}")
        if len(nested_absmax) != -(-absmax_codes.numel() // nested_block):
            raise ValueError("nested_absmax: must have one a nested block")
        quant_type = _QUANT_TYPES[codebook]
        nested = functional.QuantState(absmax=nested_absmax, code=dynamic, blocksize=nested_block, dtype=torch.float32)
        state = functional.QuantState(
            absmax=absmax_codes.reshape(-1), shape=codes.shape, blocksize=block_size, quant_type=quant_type,
            code=functional.get_4bit_type(quant_type, device="cpu"), dtype=torch.float32, offset=offset, state2=nested,
        )  # fmt: skip
        return ((codes[:, ::2] << 4) | codes[:, 1::2]).reshape(-1, 1), state

    def quantized(packed: Tensor, state: functional.QuantState, format: torch.dtype) -> FourBits:
        n, k = state.shape
        layer = FourBits(k, n, bias=False, compute_dtype=format, quant_type=state.quant_type)
        layer.weight = Params4bit(packed, quant_state=state, bnb_quantized=True, quant_type=state.quant_type)
        return layer.train()

    for suffix, supports in _LAYERS:

        @backend.implements(
            "linear_qlora", name=f"linear_4bit{suffix}", prepare=prepare, semantics=_IN_FORMAT,
            supports={
                "codebook": tuple(_QUANT_TYPES), "block_size": (64, 128, 32), "nested_block_size": 256, **supports,
            },
        )  # fmt: skip
        def linear_4bit(
            a: Tensor, down: Tensor, up: Tensor, scaling: Tensor, bias: Tensor | None, *, prepared: Any
        ) -> Tensor:
            packed, state = prepared
            layer = _adapted(quantized(packed, state, a.dtype), Linear4bit, down, up, scaling)
            return _called(layer, a, bias)


if find_spec("bitsandbytes"):
    _register_qlora()
