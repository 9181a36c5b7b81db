"""The model as a GGUF file of one type of blocks, as llama.cpp reads it."""

from pathlib import Path

import numpy as np

from lowbit_cts.benches.workloads.byte_llama.network import CONFIG, MODEL, Product, Weights
from lowbit_cts.reference.gguf.activations import quantize_activations
from lowbit_cts.reference.gguf.blocks import dequantize, quantize
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS
from lowbit_cts.reference.gguf.model import Tensor, Value
from lowbit_cts.reference.gguf.writer import write

#: llama.cpp's names of a block's weights.
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
#: Values of ``general.file_type``.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q8_0": 7, "Q4_K": 15}


def metadata(type: str) -> dict[str, Value]:
    """Return what the file says of the model; its bytes need no tokenizer."""
    return {
        "general.architecture": "llama",
        "general.name": MODEL,
        "general.file_type": np.uint32(FILE_TYPES[type]),
        "llama.vocab_size": np.uint32(CONFIG["vocab_size"]),
        "llama.context_length": np.uint32(CONFIG["max_position_embeddings"]),
        "llama.embedding_length": np.uint32(CONFIG["hidden_size"]),
        "llama.block_count": np.uint32(CONFIG["num_hidden_layers"]),
        "llama.feed_forward_length": np.uint32(CONFIG["intermediate_size"]),
        "llama.attention.head_count": np.uint32(CONFIG["num_attention_heads"]),
        "llama.attention.head_count_kv": np.uint32(CONFIG["num_key_value_heads"]),
        "llama.attention.layer_norm_rms_epsilon": np.float32(CONFIG["rms_norm_eps"]),
        "llama.rope.dimension_count": np.uint32(CONFIG["head_dim"]),
        "llama.rope.freq_base": np.float32(CONFIG["rope_theta"]),
        "tokenizer.ggml.model": "no_vocab",
    }


def interleaved(w: np.ndarray) -> np.ndarray:
    """Return the rows of queries or keys so that the two that turn together are neighbours, as llama.cpp has them."""
    halves = w.reshape(-1, 2, CONFIG["head_dim"] // 2, w.shape[1])
    return halves.swapaxes(1, 2).reshape(w.shape)


def write_gguf(path: Path, weights: Weights, type: str) -> None:
    """Write the model with the matrices in one type, and the norms in float32.

    Parameters
    ----------
    path : Path
    weights : mapping of ndarray of float32
    type : str
        A key of `FILE_TYPES`.

    Raises
    ------
    ValueError
        Another type.
    """
    if type not in FILE_TYPES:
        raise ValueError(f"type: must be one of {', '.join(FILE_TYPES)}; got {type!r}")
    tensors = {"token_embd.weight": _stored(weights["model.embed_tokens.weight"], type)}
    for i in range(CONFIG["num_hidden_layers"]):
        for name, theirs in NAMES.items():
            w = weights[f"model.layers.{i}.{name}.weight"]
            turned = interleaved(w) if theirs in {"attn_q", "attn_k"} else w
            tensors[f"blk.{i}.{theirs}.weight"] = _stored(turned, type)
    tensors["output_norm.weight"] = _stored(weights["model.norm.weight"], type)
    write(path, metadata(type), tensors)


def _stored(w: np.ndarray, type: str) -> Tensor:
    w = np.ascontiguousarray(w, np.float32)
    if w.ndim == 1 or type == "F32":
        return Tensor("F32", w)
    return Tensor("F16", w.astype(np.float16)) if type == "F16" else Tensor(type, quantize(w, type))


def dequantized(weights: Weights, type: str) -> dict[str, np.ndarray]:
    """Return the weights that a file of a type stands for, float32."""
    found = {}
    for name, w in weights.items():
        stored = _stored(w, type)
        values = dequantize(stored.data, type) if stored.type in BLOCK_FORMATS else stored.data
        found[name] = values.astype(np.float32).reshape(w.shape)
    return found


def activations(x: np.ndarray, type: str) -> np.ndarray:
    """Return what llama.cpp's products on a CPU make of activations before they multiply them by weights of a type.

    Parameters
    ----------
    x : ndarray of float32, shape (M, K)
    """
    if type in {"F32", "F16"}:
        return x.astype(type.replace("F", "float")).astype(np.float32)
    return quantize_activations(x, type).elements.values.astype(np.float32)


def product(weights: Weights, type: str) -> Product:
    """Return the product of activations and of weights that are quantized in the way of a type."""
    return lambda name, x: (activations(x.reshape(-1, x.shape[-1]), type) @ weights[name].T).reshape(*x.shape[:-1], -1)
