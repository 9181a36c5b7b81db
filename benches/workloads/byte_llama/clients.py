"""Libraries that people quantize language models with, on the language model, each in its own way.

Every client loads the committed files as transformers does, quantizes them itself, and is judged by its logits.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import as_file, files
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.byte_llama import corpus

#: Windows of text that a client calibrates on, where it does, and the bytes of one.
CALIBRATED, LENGTH = 32, 256


@dataclass(frozen=True)
class Client:
    """A way of a library to quantize the model.

    Attributes
    ----------
    package : str
        The library, as it is imported.
    algorithm : str
        What it does, in the library's terms.
    bits : int
    load : callable
        Gives the quantized model, a torch module.
    """

    package: str
    algorithm: str
    bits: int
    load: Callable[[], Any]


def folder() -> Any:
    """Return a context that gives the folder of the model's files as a path."""
    return as_file(files(__package__))


def load(**options: Any) -> Any:
    """Return the model as transformers loads it, in float32 unless the options say else."""
    import torch
    from transformers import LlamaForCausalLM

    with folder() as path:
        return LlamaForCausalLM.from_pretrained(path, **{"dtype": torch.float32, **options}).eval()


def logits(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return a model's logits as a function of tokens (windows, length), int64, in float32."""
    import torch

    def run(tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.from_numpy(tokens), use_cache=False).logits.float().numpy()

    return run


def held_bytes(model: Any) -> int:
    """Return the bytes in memory of a model's quantized products: codes, scales, tables; adapters are not counted."""
    return sum(
        tensor.nbytes
        for name, module in model.named_modules()
        if "_proj" in name and "lora_" not in name
        for held in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        for tensor in _tensors(held)
    )


def _tensors(held: Any) -> Iterator[Any]:
    """Yield the plain tensors of a parameter: torchao's have them inside, bitsandbytes' beside them."""
    if hasattr(held, "__tensor_flatten__"):
        for name in held.__tensor_flatten__()[0]:
            yield from _tensors(getattr(held, name))
        return
    yield held
    state, row_scales = getattr(held, "quant_state", None), getattr(held, "SCB", None)
    if state is not None:
        yield from (value for value in state.as_dict(packed=True).values() if hasattr(value, "nbytes"))
    if row_scales is not None:
        yield row_scales


def _bitsandbytes(**options: Any) -> Any:
    from transformers import BitsAndBytesConfig

    return load(quantization_config=BitsAndBytesConfig(**options), device_map="cpu")


def _bitsandbytes_4bit() -> Any:
    import torch

    return _bitsandbytes(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip


def _torchao(bits: int, dynamic: bool = False) -> Any:
    import torch
    from torchao import quantization
    from transformers import TorchAoConfig

    if dynamic:
        config = quantization.Int8DynamicActivationInt8WeightConfig()
    else:
        config = quantization.IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{bits}"), granularity=quantization.PerGroup(128)
        )
    return load(quantization_config=TorchAoConfig(config), device_map="cpu")


def _gptqmodel(bits: int, act_order: bool = False) -> Any:
    """Return the model quantized by GPTQModel on windows of training text, saved and loaded again."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import GPTQModel, QuantizeConfig

    rows = corpus.windows(CALIBRATED, LENGTH, held_out=False, seed=0).tolist()
    config = QuantizeConfig(
        bits=bits, group_size=128, desc_act=act_order, act_group_aware=False, sym=True, offload_to_disk=False
    )
    with folder() as path, TemporaryDirectory() as with_tokenizer, TemporaryDirectory() as saved:
        shutil.copytree(path, with_tokenizer, dirs_exist_ok=True)
        _tokenizer().save_pretrained(with_tokenizer)
        model = GPTQModel.load(with_tokenizer, config, device="cpu")
        model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], batch_size=8)
        model.save(saved)
        return GPTQModel.load(saved, device="cpu").model.float().eval()


def _tokenizer() -> Any:
    """Return the tokenizer of bytes, each a token of its own: the model needs none, but GPTQModel asks for one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]  # stand for themselves; the others follow 255
    others = [byte for byte in range(256) if byte not in printed]
    letters = {byte: chr(byte) for byte in printed} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE({letter: byte for byte, letter in letters.items()}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=letters[0], eos_token=letters[0])


CLIENTS: Mapping[str, Client] = {
    "bitsandbytes-nf4": Client("bitsandbytes", "NF4, double quantization", 4, _bitsandbytes_4bit),
    "bitsandbytes-int8": Client("bitsandbytes", "LLM.int8()", 8, partial(_bitsandbytes, load_in_8bit=True)),
    "torchao-int8": Client("torchao", "RTN, symmetric", 8, partial(_torchao, 8)),
    "torchao-int4": Client("torchao", "RTN, symmetric", 4, partial(_torchao, 4)),
    "torchao-int3": Client("torchao", "RTN, symmetric", 3, partial(_torchao, 3)),
    "torchao-w8a8": Client("torchao", "W8A8 dynamic", 8, partial(_torchao, 8, dynamic=True)),
    "gptqmodel-int8": Client("gptqmodel", "GPTQ, symmetric", 8, partial(_gptqmodel, 8)),
    "gptqmodel-int4": Client("gptqmodel", "GPTQ, symmetric", 4, partial(_gptqmodel, 4)),
    "gptqmodel-int4-act-order": Client("gptqmodel", "GPTQ, symmetric, act-order", 4, partial(_gptqmodel, 4, True)),
    "gptqmodel-int3": Client("gptqmodel", "GPTQ, symmetric", 3, partial(_gptqmodel, 3)),
}
