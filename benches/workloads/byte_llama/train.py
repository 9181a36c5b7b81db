"""Trains the language model: ``python -m lowbit_cts.benches.workloads.byte_llama.train FOLDER``.

Writes ``config.json`` and ``model.safetensors`` as transformers reads them, and ``loss.csv``. The seed decides the
result on a given machine, torch and Python; the files in this folder are what it gave once.
"""

import csv
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lowbit_cts.benches.workloads.byte_llama import corpus
from lowbit_cts.benches.workloads.byte_llama.network import CONFIG, shapes

#: The product of a layer by the name of its weight and what comes in.
Product = Callable[[str, Tensor], Tensor]

SEED, STEPS, WARMUP, BATCH, LENGTH, RATE, DECAY = 0, 2700, 100, 8, 256, 3e-3, 0.1
#: Steps between two lines of the loss curve, and windows of held-out text that are judged for one.
EVERY, JUDGED = 100, 32


def initial(rng: np.random.Generator) -> dict[str, Tensor]:
    """Return weights to begin with: normal, those that end a block smaller by the root of the number of blocks."""
    last = 1 / math.sqrt(2 * CONFIG["num_hidden_layers"])
    weights = {}
    for name, shape in shapes().items():
        deviation = 0.02 * (last if name.endswith(("o_proj.weight", "down_proj.weight")) else 1)
        values = np.ones(shape) if len(shape) == 1 else rng.normal(0, deviation, shape)
        weights[name] = torch.tensor(values, dtype=torch.float32, requires_grad=True)
    return weights


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return functional.rms_norm(x, weight.shape, weight, CONFIG["rms_norm_eps"])


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cosine + torch.cat([-second, first], dim=-1) * sine


def logits(weights: Mapping[str, Tensor], tokens: Tensor, product: Product | None = None) -> Tensor:
    """Return the logits of the next byte at every place, (windows, length, 256).

    Parameters
    ----------
    weights : mapping of Tensor
    tokens : Tensor of int64, shape (windows, length)
    product : callable of (name, x), or None
        What makes the products; None: the weights as they are.
    """
    linear = product or (lambda name, x: functional.linear(x, weights[name]))
    count, length = tokens.shape
    heads, groups, width = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"], CONFIG["head_dim"]
    frequencies = CONFIG["rope_theta"] ** (-torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * torch.cat([frequencies, frequencies])
    cosine, sine = angles.cos(), angles.sin()
    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(CONFIG["num_hidden_layers"]):

        def project(name: str, inner: Tensor, layer: int = layer) -> Tensor:
            return linear(f"model.layers.{layer}.{name}.weight", inner)

        inner = _norm(x, weights[f"model.layers.{layer}.input_layernorm.weight"])
        query, key, value = (
            project(f"self_attn.{name}_proj", inner).view(count, length, n, width).transpose(1, 2)
            for name, n in (("q", heads), ("k", groups), ("v", groups))
        )
        query, key = _rotated(query, cosine, sine), _rotated(key, cosine, sine)
        key, value = (each.repeat_interleave(heads // groups, dim=1) for each in (key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + project("self_attn.o_proj", mixed.transpose(1, 2).reshape(count, length, -1))
        inner = _norm(x, weights[f"model.layers.{layer}.post_attention_layernorm.weight"])
        gate = functional.silu(project("mlp.gate_proj", inner))
        x = x + project("mlp.down_proj", gate * project("mlp.up_proj", inner))
    return linear("model.embed_tokens.weight", _norm(x, weights["model.norm.weight"]))


def cross_entropy(run: Callable[[Tensor], Tensor], windows: np.ndarray) -> Tensor:
    """Return the mean cross entropy of the next byte, in nats, by what gives the logits of tokens."""
    tokens = torch.from_numpy(windows)
    found = run(tokens[:, :-1])
    return functional.cross_entropy(found.float().reshape(-1, found.shape[-1]), tokens[:, 1:].reshape(-1))


def train() -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return the weights and the loss curve."""
    rng = np.random.default_rng(SEED)
    weights = initial(rng)
    matrices = [w for w in weights.values() if w.ndim == 2]
    vectors = [w for w in weights.values() if w.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}],
        lr=RATE, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip

    def share(step: int) -> float:
        return min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / STEPS))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    judged = corpus.windows(JUDGED, LENGTH + 1, held_out=True, seed=SEED)
    curve, seen, begun = [], [], time.process_time()
    for step in range(STEPS):
        windows = corpus.windows(BATCH, LENGTH + 1, held_out=False, seed=int(rng.integers(2**31)))
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            found = cross_entropy(lambda tokens: logits(weights, tokens), windows)
        found.backward()
        torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        optimizer.step()
        schedule.step()
        seen.append(float(found.detach()))
        if (step + 1) % EVERY == 0:
            with torch.no_grad():
                held_out = float(cross_entropy(lambda tokens: logits(weights, tokens), judged))
            curve.append({
                "step": step + 1, "training_loss": round(float(np.mean(seen)), 4), "held_out_loss": round(held_out, 4),
                "cpu_seconds": round(time.process_time() - begun, 1),
            })  # fmt: skip
            print(curve[-1], flush=True)
            seen.clear()
    return weights, curve


def main(folder: Path) -> None:
    """Train and write the files."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # more would add in another order
    weights, curve = train()
    save_file(
        {name: w.detach().to(torch.bfloat16) for name, w in weights.items()},
        folder / "model.safetensors", metadata={"format": "pt"},
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    with (folder / "loss.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(curve[0]))
        writer.writeheader()
        writer.writerows(curve)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
