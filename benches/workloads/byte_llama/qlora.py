"""QLoRA on the language model: the weights in NF4, doubly quantized, and adapters of low rank that are trained.

Once by a backend's own kernels and once by PEFT over bitsandbytes, from the same adapters on the same text.

References
----------
.. [1] T. Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314, eq. (5) and (6).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from lowbit_cts.benches.workloads.algorithms import Fit, Layer
from lowbit_cts.benches.workloads.byte_llama import clients, corpus, network, train

RANK, ALPHA, STEPS, BATCH, LENGTH, RATE = 8, 16, 120, 8, 256, 3e-4
_SEED = 7

Logits = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Trained:
    """A model with trained adapters.

    Attributes
    ----------
    logits : callable
        Of tokens (windows, length), int64.
    losses : ndarray of float64, shape (STEPS,)
    base_bytes, adapter_bytes : int
        Of the quantized weights, and of the adapters in float32.
    """

    logits: Logits
    losses: np.ndarray
    base_bytes: int
    adapter_bytes: int

    def sizes(self) -> dict[str, int]:
        """Return the bytes that are stored, and those held while training: gradients and Adam's two moments, too."""
        stored = self.base_bytes + self.adapter_bytes
        return {"size_bytes": stored, "training_bytes": stored + 3 * self.adapter_bytes}


def adapters() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return where training begins, by the name of the weight: A (rank, K) uniform, and B (N, rank) zero."""
    rng = np.random.default_rng(_SEED)
    found = {}
    for name in network.product_names():
        n, k = network.shapes()[name]
        bound = 1 / np.sqrt(k)  # Kaiming's, with a negative slope of sqrt(5)
        down = rng.uniform(-bound, bound, (RANK, k)).astype(np.float32)
        found[name] = (down, np.zeros((n, RANK), np.float32))
    return found


def _fit(run: Callable[[Tensor], Tensor], parameters: Iterable[Tensor]) -> np.ndarray:
    """Train parameters by AdamW on windows of the training text; return the losses."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        windows = corpus.windows(BATCH, LENGTH + 1, held_out=False, seed=1000 + step)
        found = train.cross_entropy(run, windows)
        found.backward()
        optimizer.step()
        losses.append(float(found.detach()))
    return np.array(losses)


def by_kernels(fit: Fit) -> Trained:
    """Return the model with adapters trained over the weights that an algorithm fits without samples."""
    plain = network.weights()
    fitted = {name: fit(Layer(plain[name], plain[name][:0])) for name in network.product_names()}
    base = {name: layer.weights for name, layer in fitted.items() if layer.weights is not None}
    weights = {name: torch.from_numpy(np.array(base.get(name, w))) for name, w in plain.items()}
    trained = {name: [torch.tensor(each, requires_grad=True) for each in pair] for name, pair in adapters().items()}

    def product(name: str, x: Tensor) -> Tensor:
        y = functional.linear(x, weights[name])
        if name not in trained:
            return y
        down, up = trained[name]
        return y + (ALPHA / RANK) * functional.linear(functional.linear(x, down), up)

    def run(tokens: Tensor) -> Tensor:
        return train.logits(weights, tokens, product)

    parameters = [each for pair in trained.values() for each in pair]
    losses = _fit(run, parameters)

    def logits(tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return run(torch.from_numpy(tokens)).numpy()

    return Trained(logits, losses, int(sum(layer.bits for layer in fitted.values())) // 8, _bytes(parameters))


def by_peft() -> Trained:
    """Return the model of bitsandbytes with adapters of PEFT, trained in the same way."""
    from peft import LoraConfig, get_peft_model

    targets = [name.rsplit(".", 1)[-1] for name in network.PRODUCTS]
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, lora_dropout=0.0)
    model: Any = get_peft_model(clients.CLIENTS["bitsandbytes-nf4"].load(), config)
    named = dict(model.named_parameters())
    for name, pair in adapters().items():
        for letter, values in zip("AB", pair, strict=True):
            place = f"base_model.model.{name.removesuffix('.weight')}.lora_{letter}.default.weight"
            named[place].data.copy_(torch.from_numpy(values))
    parameters = [each for each in named.values() if each.requires_grad]
    losses = _fit(lambda tokens: model(tokens, use_cache=False).logits, parameters)
    return Trained(clients.logits(model), losses, clients.held_bytes(model), _bytes(parameters))


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in parameters)
