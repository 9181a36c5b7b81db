"""Trained models as algorithms see them: layers to quantize, what comes in, and what a quantized model is worth."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from lowbit_cts.benches.workloads import lenet
from lowbit_cts.benches.workloads.byte_llama import corpus, network

#: The product of a layer by its name: (name, x of shape (..., K)) to (..., N), float32.
Product = Callable[[str, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Worth:
    """What a model's answers are worth, one figure an independent sample (a window of text, an image).

    Attributes
    ----------
    loss : ndarray of float64
        Cross entropy of the right answer, in nats; of a window the mean over its bytes.
    divergence : ndarray of float64
        Kullback-Leibler divergence of the answers from those of the float32 model, in nats.
    correct : ndarray of bool or None
        Whether the first guess is right; None where samples are windows.
    """

    loss: np.ndarray
    divergence: np.ndarray
    correct: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """A trained model.

    Attributes
    ----------
    name : str
    weights : mapping of ndarray of float32
        Of the layers to quantize, (N, K), by name.
    group_size : int or None
        Columns that share a scale: one that divides those of every layer, or None for all.
    product : Product
        The layers in float32.
    calibration : callable of a seed
        Gives what comes into each layer from a sample of the training data, (T, K).
    held_out : mapping of ndarray of float32
        What comes into each layer from data that was held out, (T, K).
    judge : callable of a Product
        Runs the model on held-out data with other products.
    """

    name: str
    weights: Mapping[str, np.ndarray]
    group_size: int | None
    product: Product
    calibration: Callable[[int], Mapping[str, np.ndarray]]
    held_out: Mapping[str, np.ndarray]
    judge: Callable[[Product], Worth]


@dataclass
class _Recorder:
    """A product that keeps what came in."""

    product: Product
    seen: dict[str, np.ndarray] = field(default_factory=dict)

    def __call__(self, name: str, x: np.ndarray) -> np.ndarray:
        self.seen[name] = np.ascontiguousarray(x.reshape(-1, x.shape[-1]))
        return self.product(name, x)


def worth(logits: np.ndarray, truth: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return cross entropy of the answers and divergence from the truth's distribution, each of shape (...).

    Parameters
    ----------
    logits, truth : ndarray of float, shape (..., classes)
        Of the model, and of the float32 model.
    answers : ndarray of int, shape (...)
    """
    found, full = network.log_softmax(logits), network.log_softmax(truth)
    loss = -np.take_along_axis(found, answers[..., None], axis=-1)[..., 0]
    return loss, np.sum(np.exp(full) * (full - found), axis=-1)


# The language model

#: Windows of held-out text that a model is judged by, those that layers are judged by, and those of a calibration.
JUDGED, LOOKED_AT, CALIBRATED, LENGTH = 64, 8, 32, 256
#: The seed of the held-out windows.
_HELD_OUT_SEED = 1


def judged_windows() -> np.ndarray:
    """Return the windows of held-out text that the language model is judged by, (64, 257), int64."""
    return corpus.windows(JUDGED, LENGTH + 1, held_out=True, seed=_HELD_OUT_SEED)


def judged_by(logits: Callable[[np.ndarray], np.ndarray], truth: np.ndarray) -> Worth:
    """Return what a language model is worth, by its logits of eight windows at a time.

    Parameters
    ----------
    logits : callable of (windows, length), int64
    truth : ndarray, shape (64, 256, 256)
        The logits of the float32 model.
    """
    windows = judged_windows()
    parts = [
        worth(logits(windows[i : i + 8, :-1]), truth[i : i + 8], windows[i : i + 8, 1:])
        for i in range(0, len(windows), 8)
    ]
    return Worth(*(np.concatenate(each).mean(axis=1) for each in zip(*parts, strict=True)))


@cache
def true_logits() -> np.ndarray:
    """Return the float32 model's logits of the judged windows, (64, 256, 256), float32."""
    weights = network.weights()
    windows = judged_windows()[:, :-1]
    parts = [network.logits(windows[i : i + 8], network.plain(weights), weights) for i in range(0, len(windows), 8)]
    return np.concatenate(parts)


def byte_llama(outliers: float = 1.0) -> Subject:
    """Return the language model.

    Parameters
    ----------
    outliers : float
        A power of two. Four channels that come into the products behind the norms are that many times as large, and
        the weights they meet as much smaller, which changes no logit: large models have such channels of their own
        [1]_, a model as small as this has not.

    References
    ----------
    .. [1] T. Dettmers et al., "LLM.int8()", arXiv:2208.07339, §4.
    """
    weights = _with_outliers(network.weights(), outliers)
    products = {name: weights[name] for name in network.product_names()}
    plain = network.plain(weights)

    def inputs(windows: np.ndarray) -> dict[str, np.ndarray]:
        recorder = _Recorder(plain)
        network.logits(windows, recorder, weights)
        return recorder.seen

    return Subject(
        network.MODEL if outliers == 1 else f"{network.MODEL}, 4 channels {outliers:g} times as large",
        products, 128, plain,
        lambda seed: inputs(corpus.windows(CALIBRATED, LENGTH, held_out=False, seed=seed)),
        inputs(judged_windows()[:LOOKED_AT, :-1]),
        lambda product: judged_by(lambda windows: network.logits(windows, product, weights), true_logits()),
    )  # fmt: skip


def _with_outliers(weights: Mapping[str, np.ndarray], factor: float) -> dict[str, np.ndarray]:
    found = dict(weights)
    channels = np.random.default_rng(0).permutation(network.CONFIG["hidden_size"])[:4]
    for norm, behind in (
        ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ):
        for i in range(network.CONFIG["num_hidden_layers"]):
            for name, by in ((norm, factor), *((each, 1 / factor) for each in behind)):
                changed = found[f"model.layers.{i}.{name}.weight"].copy()
                changed[..., channels] *= np.float32(by)
                found[f"model.layers.{i}.{name}.weight"] = changed
    return found


# The digits


def digits() -> Subject:
    """Return the convolutional network of `lenet`; a convolution is a product of its columns."""
    net = lenet.network()
    biases = net.biases

    def run(images: np.ndarray, product: Product) -> tuple[dict[str, np.ndarray], np.ndarray]:
        inputs, outputs = lenet.forward(images, lambda name, x: product(name, x) + biases[name])
        return inputs, outputs[lenet.LAYERS[-1].name]

    def plain(name: str, x: np.ndarray) -> np.ndarray:
        return x @ net.weights[name].T

    held_out, truth = run(net.images, plain)

    def calibration(seed: int) -> dict[str, np.ndarray]:
        chosen = np.random.default_rng(seed).permutation(len(net.calibration))[: len(net.calibration) // 2]
        return run(net.calibration[chosen], plain)[0]

    def judge(product: Product) -> Worth:
        logits = run(net.images, product)[1]
        return Worth(*worth(logits, truth, net.labels), logits.argmax(axis=1) == net.labels)

    return Subject(lenet.MODEL, net.weights, None, plain, calibration, held_out, judge)
