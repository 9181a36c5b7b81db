"""A Llama of bytes, run in NumPy: what the products are made of is left to the caller.

References
----------
.. [1] H. Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", arXiv:2302.13971, §2.2; names and
   configuration as `LlamaForCausalLM` of transformers has them.
"""

from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

MODEL = "byte-llama"

#: As transformers reads it. The embedding is the last product's weight, too; every length is one that blocks of 256 and
#: groups of 128 divide.
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "torch_dtype": "bfloat16",
}
_HIDDEN, _INNER = CONFIG["hidden_size"], CONFIG["intermediate_size"]
_HEADS, _GROUPS, _WIDTH = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]

#: Weights of a block's products: outputs and inputs.
PRODUCTS = {
    "self_attn.q_proj": (_HEADS * _WIDTH, _HIDDEN),
    "self_attn.k_proj": (_GROUPS * _WIDTH, _HIDDEN),
    "self_attn.v_proj": (_GROUPS * _WIDTH, _HIDDEN),
    "self_attn.o_proj": (_HIDDEN, _HEADS * _WIDTH),
    "mlp.gate_proj": (_INNER, _HIDDEN),
    "mlp.up_proj": (_INNER, _HIDDEN),
    "mlp.down_proj": (_HIDDEN, _INNER),
}

Weights = Mapping[str, np.ndarray]
#: y = x W^T of a product by the name of its weight: (name, x of shape (..., K)) to (..., N), float32.
Product = Callable[[str, np.ndarray], np.ndarray]


def product_names() -> list[str]:
    """Return the names of the weights of every block's products, in the order in which they are used."""
    return [f"model.layers.{i}.{name}.weight" for i in range(CONFIG["num_hidden_layers"]) for name in PRODUCTS]


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight by its name."""
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (CONFIG["vocab_size"], _HIDDEN)}
    for i in range(CONFIG["num_hidden_layers"]):
        found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in PRODUCTS.items()}
        found |= {f"model.layers.{i}.{n}.weight": (_HIDDEN,) for n in ("input_layernorm", "post_attention_layernorm")}
    return found | {"model.norm.weight": (_HIDDEN,)}


@cache
def weights() -> dict[str, np.ndarray]:
    """Return the trained weights, float32, as they were stored in bfloat16; not to be written to.

    Raises
    ------
    ImportError
        When safetensors is not installed.
    """
    try:
        from safetensors import deserialize
    except ImportError as error:
        raise ImportError(f"{MODEL} needs safetensors: pip install 'lowbit-cts[models]'") from error
    found = {}
    for name, tensor in deserialize((files(__package__) / "model.safetensors").read_bytes()):
        patterns = np.frombuffer(tensor["data"], np.uint16).astype(np.uint32) << 16
        found[name] = patterns.view(np.float32).reshape(tensor["shape"])
        found[name].flags.writeable = False
    return found


def plain(weights: Weights) -> Product:
    """Return the float32 product by weights."""
    return lambda name, x: x @ weights[name].T


def _norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    mean = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    return np.asarray(x / np.sqrt(mean + np.float32(CONFIG["rms_norm_eps"])) * weight)


@cache
def _angles(length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cosine and sine of the rotary positions, (length, head_dim)."""
    frequencies = CONFIG["rope_theta"] ** (-np.arange(0, _WIDTH, 2) / _WIDTH)
    angles = np.arange(length)[:, None] * np.concatenate([frequencies, frequencies])
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _rotated(x: np.ndarray) -> np.ndarray:
    cosine, sine = _angles(x.shape[-2])
    first, second = x[..., : _WIDTH // 2], x[..., _WIDTH // 2 :]
    return np.asarray(x * cosine + np.concatenate([-second, first], axis=-1) * sine)


def _attention(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return causal attention of (windows, length, heads or groups of them, width)."""
    count, length = query.shape[:2]
    query, key, value = (x.reshape(count, length, -1, _WIDTH).transpose(0, 2, 1, 3) for x in (query, key, value))
    query, key = _rotated(query), _rotated(key)
    grouped = query.reshape(count, _GROUPS, _HEADS // _GROUPS, length, _WIDTH)
    scores = grouped @ key[:, :, None].swapaxes(-1, -2) * np.float32(_WIDTH**-0.5)
    scores = np.where(np.tri(length, dtype=bool), scores, np.float32(-np.inf))
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    mixed = scores / scores.sum(axis=-1, keepdims=True) @ value[:, :, None]
    return mixed.reshape(count, _HEADS, length, _WIDTH).transpose(0, 2, 1, 3).reshape(count, length, -1)


def logits(tokens: np.ndarray, product: Product, weights: Weights) -> np.ndarray:
    """Return the logits of the next byte at every place.

    Parameters
    ----------
    tokens : ndarray of int64, shape (windows, length)
    product : Product
        What makes the products of the blocks and, with the embedding, the last one; it may keep what it is given.
    weights : mapping of ndarray of float32
        The embedding and the norms.

    Returns
    -------
    ndarray of float32, shape (windows, length, 256)
    """
    x = weights["model.embed_tokens.weight"][tokens]
    for i in range(CONFIG["num_hidden_layers"]):
        block = f"model.layers.{i}."

        def linear(name: str, inner: np.ndarray, block: str = block) -> np.ndarray:
            return product(f"{block}{name}.weight", inner)

        inner = _norm(x, weights[f"{block}input_layernorm.weight"])
        mixed = _attention(*(linear(f"self_attn.{name}_proj", inner) for name in "qkv"))
        x = x + linear("self_attn.o_proj", mixed)
        inner = _norm(x, weights[f"{block}post_attention_layernorm.weight"])
        gate = linear("mlp.gate_proj", inner)
        x = x + linear("mlp.down_proj", gate / (1 + np.exp(-gate)) * linear("mlp.up_proj", inner))
    return product("model.embed_tokens.weight", _norm(x, weights["model.norm.weight"]))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return logarithms of the probabilities, in nats, float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return np.asarray(x - np.log(np.sum(np.exp(x), axis=-1, keepdims=True)))
