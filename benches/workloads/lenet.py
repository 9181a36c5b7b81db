"""A LeNet-style network for 8 x 8 digits, trained once, then run on a backend's kernels.

The network is LeNet-5 [1]_ cut to the size of scikit-learn's bundled digits: two convolutions and three
linear layers, each one matrix product. torch trains it; NumPy runs it, so that the only difference between
two variants is what the operations under test make of the numbers.

References
----------
.. [1] Y. LeCun et al., "Gradient-Based Learning Applied to Document Recognition", Proc. IEEE 86(11), 1998,
§II.B. .. [2] B. Jacob et al., arXiv:1712.05877, §3: weights and activations as 8-bit codes, ranges from
calibration.
"""

import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbit_cts.benches.accuracy import mse
from lowbit_cts.benches.workloads.calls import Kernel, UnsupportedError, kernel
from lowbit_cts.kernels.backend import Backend
from lowbit_cts.reference.formats import FORMATS, integer_format

MODEL = "digits-lenet"


@dataclass(frozen=True)
class Layer:
    """A layer: a convolution (3 x 3, zero padding 1, then ReLU and 2 x 2 max pooling), or linear.

    Attributes
    ----------
    name : str
    n, k : int
        Outputs and inputs of its product.
    convolution : bool
    relu : bool
        Whether a ReLU follows.
    """

    name: str
    n: int
    k: int
    convolution: bool = False
    relu: bool = True


LAYERS = (
    Layer("conv1", 6, 1 * 9, convolution=True),
    Layer("conv2", 16, 6 * 9, convolution=True),
    Layer("linear1", 120, 16 * 4),
    Layer("linear2", 84, 120),
    Layer("linear3", 10, 84, relu=False),
)

#: All that decides the weights; raise the revision when `_fit` or `_digits` changes.
RECIPE: dict[str, Any] = {
    "revision": 1,
    "layers": [(layer.name, layer.n, layer.k, layer.convolution) for layer in LAYERS],
    "test_share": 0.25,
    "calibration_images": 256,
    "seed": 0,
    "epochs": 60,
    "batch": 64,
    "learning_rate": 5e-3,
    "label_smoothing": 0.1,
}


@dataclass(frozen=True, eq=False)
class Network:
    """The trained network and the images to judge it by.

    Attributes
    ----------
    weights, biases : dict of ndarray of float32
        By layer: shape (n, k), the columns of a convolution in the order (channel, row, column), and shape
        (n,).
    calibration : ndarray of float32, shape (images, 1, 8, 8)
        A part of the training set; pixels in [0, 1].
    images : ndarray of float32, shape (images, 1, 8, 8)
    labels : ndarray of int64, shape (images,)
        The held-out test set, with the share of every digit as in the whole.
    """

    weights: dict[str, np.ndarray]
    biases: dict[str, np.ndarray]
    calibration: np.ndarray
    images: np.ndarray
    labels: np.ndarray

    def arrays(self) -> dict[str, np.ndarray]:
        """Return every array under the name it is stored by."""
        named = {f"{layer.name}.weight": self.weights[layer.name] for layer in LAYERS}
        named |= {f"{layer.name}.bias": self.biases[layer.name] for layer in LAYERS}
        return named | {"calibration": self.calibration, "images": self.images, "labels": self.labels}

    def digest(self) -> str:
        """Return a hash of every array, to tell two trainings apart."""
        found = hashlib.sha256()
        for name, array in sorted(self.arrays().items()):
            found.update(name.encode() + np.ascontiguousarray(array).tobytes())
        return found.hexdigest()[:16]


# Training


class MissingExtraError(ImportError):
    """A library of an optional extra is not installed; the message names the extra."""


def _missing(library: str, extra: str) -> MissingExtraError:
    return MissingExtraError(f"training {MODEL} needs {library}: pip install 'lowbit-cts[{extra}]'")


def _digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return training and test images, training and test labels: a stratified split of the digits."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise _missing("scikit-learn", "models") from error
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    return train_test_split(
        images, labels, test_size=RECIPE["test_share"], stratify=labels, random_state=RECIPE["seed"]
    )


def _fit(images: np.ndarray, labels: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return trained weights and biases: Adam, cosine learning rate, smoothed labels, He initialization.

    Initialization and order come from NumPy's generator and all sums run on one thread, so that the seed
    decides the result on a given machine and torch version, and torch's global generator is left alone.
    """
    try:
        import torch
        from torch.nn import functional
    except ImportError as error:
        raise _missing("torch", "torch") from error
    rng = np.random.default_rng(RECIPE["seed"])

    def parameter(values: np.ndarray) -> Any:
        return torch.tensor(values, dtype=torch.float32, requires_grad=True)

    weights = {each.name: parameter(rng.normal(0, np.sqrt(2 / each.k), (each.n, each.k))) for each in LAYERS}
    biases = {each.name: parameter(np.zeros(each.n)) for each in LAYERS}

    def logits(x: Any) -> Any:
        for layer in LAYERS:
            w, bias = weights[layer.name], biases[layer.name]
            if layer.convolution:
                y = functional.conv2d(x, w.reshape(layer.n, -1, 3, 3), bias, padding=1)
                x = functional.max_pool2d(functional.relu(y), 2)
            else:
                y = functional.linear(x.flatten(1), w, bias)
                x = functional.relu(y) if layer.relu else y
        return x

    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.Adam([*weights.values(), *biases.values()], lr=RECIPE["learning_rate"])
    steps = RECIPE["epochs"] * -(-len(x) // RECIPE["batch"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(RECIPE["epochs"]):
            for chosen in torch.from_numpy(rng.permutation(len(x))).split(RECIPE["batch"]):
                optimizer.zero_grad()
                loss = functional.cross_entropy(logits(x[chosen]), y[chosen], label_smoothing=RECIPE["label_smoothing"])
                loss.backward()
                optimizer.step()
                schedule.step()
    finally:
        torch.set_num_threads(threads)
    return tuple({name: v.detach().numpy() for name, v in values.items()} for values in (weights, biases))  # type: ignore[return-value]


def train() -> Network:
    """Return the network, trained anew by `RECIPE`.

    Raises
    ------
    MissingExtraError
        When torch or scikit-learn is not installed.
    """
    seen, images, seen_labels, labels = _digits()
    weights, biases = _fit(seen, seen_labels)
    return Network(weights, biases, seen[: RECIPE["calibration_images"]], images, labels)


def cache_path() -> Path:
    """Return where the trained network is kept: the user's cache folder, by a hash of the recipe."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = hashlib.sha256(json.dumps(RECIPE, sort_keys=True).encode()).hexdigest()[:16]
    return root / "lowbit-cts" / f"{MODEL}-{key}.npz"


def network() -> Network:
    """Return the network from the cache, or trained and put there.

    Raises
    ------
    MissingExtraError
        When it must be trained, and torch or scikit-learn is not installed.
    """
    path = cache_path()
    try:
        with np.load(path) as stored:
            return Network(
                {layer.name: stored[f"{layer.name}.weight"] for layer in LAYERS},
                {layer.name: stored[f"{layer.name}.bias"] for layer in LAYERS},
                *(stored[name] for name in ("calibration", "images", "labels")),
            )
    except (OSError, zipfile.BadZipFile, ValueError, KeyError, EOFError):
        pass  # not there, or not what this version wrote
    trained = train()
    with suppress(OSError):  # a cache that cannot be written costs seconds, not the run
        _store(trained, path)
    return trained


def _store(net: Network, path: Path) -> None:
    """Write the network so that readers see the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".npz")
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, **net.arrays())  # type: ignore[arg-type]
        os.replace(unfinished, path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


# Inference

#: y = x W^T + bias of a named layer: (name, x of shape (M, K)) to y of shape (M, N), both float32.
Product = Callable[[str, np.ndarray], np.ndarray]


def im2col(x: np.ndarray) -> np.ndarray:
    """Return the 3 x 3 neighbourhoods of every pixel, zeros outside, as rows of a matrix.

    Parameters
    ----------
    x : ndarray, shape (images, channels, height, width)

    Returns
    -------
    ndarray, shape (images * height * width, channels * 9), columns in the order (channel, row, column)
    """
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))  # (B, C, H, W, 3, 3)
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * 9)


def max_pool(x: np.ndarray) -> np.ndarray:
    """Return the maxima of 2 x 2 pixels."""
    count, channels, height, width = x.shape
    return x.reshape(count, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))


def forward(images: np.ndarray, product: Product) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the inputs and the outputs of every layer's product; the last output are the logits.

    Parameters
    ----------
    images : ndarray of float32, shape (images, 1, 8, 8)
    product : Product

    Returns
    -------
    inputs, outputs : dict of ndarray
        By layer: (M, K) and (M, N), before the ReLU.
    """
    inputs, outputs = {}, {}
    x = images
    for layer in LAYERS:
        rows = im2col(x) if layer.convolution else x.reshape(len(images), -1)
        y = product(layer.name, rows)
        inputs[layer.name], outputs[layer.name] = rows, y
        x = np.maximum(y, 0) if layer.relu else y
        if layer.convolution:
            side = round((len(rows) / len(images)) ** 0.5)
            x = max_pool(x.reshape(len(images), side, side, layer.n).transpose(0, 3, 1, 2))
    return inputs, outputs


def float_product(net: Network, weights: Mapping[str, np.ndarray] | None = None) -> Product:
    """Return the float32 product, by the network's weights or others in their place."""
    chosen = net.weights if weights is None else weights
    return lambda name, x: x @ chosen[name].T + net.biases[name]


# Quantization by a backend


@dataclass(frozen=True)
class Variant:
    """A way to quantize the network.

    Attributes
    ----------
    name : str
    weight_format : str or None
        An integer format, symmetric; None leaves the weights in float32.
    weight_granularity : {"tensor", "channel"}
        One scale, or one an output channel.
    activations : {None, "tensor", "token"}
        None: float32, the weights are dequantized for a float32 product. Else int8, asymmetric: by ranges
        calibrated on a part of the training set ("tensor"), or by each row's own when it runs ("token").
    """

    name: str
    weight_format: str | None = None
    weight_granularity: str = "channel"
    activations: str | None = None


VARIANTS = (
    Variant("float32"),
    Variant("int8 per tensor", "int8", "tensor", "tensor"),
    Variant("int8 per channel", "int8", "channel", "tensor"),
    Variant("int8 per channel, dynamic per token", "int8", "channel", "token"),
    Variant("int4 per channel, weights only", "int4", "channel"),
    Variant("int3 per channel, weights only", "int3", "channel"),
    Variant("int2 per channel, weights only", "int2", "channel"),
)


def _affine(format: str, granularity: str, mapping: str) -> dict[str, Any]:
    """Return the parameters of quantizing an (M, K) operand: one scale, or one a row (token, channel)."""
    place = {"granularity": "tensor", "axis": None} if granularity == "tensor" else {"granularity": "axis", "axis": 0}
    return {"format": format, **place, "group_size": None, "mapping": mapping}


@dataclass(frozen=True, eq=False)
class Kernels:
    """The kernels of a backend that a variant runs on.

    Attributes
    ----------
    weights, activations : tuple of Kernel
        choose_qparams_affine and quantize_affine at the operand's parameters; none where it stays in float32.
    dequantize, matmul : Kernel or None
        dequantize_affine of the weights, or matmul_w8a8.
    """

    weights: tuple[Kernel, ...] = ()
    activations: tuple[Kernel, ...] = ()
    dequantize: Kernel | None = None
    matmul: Kernel | None = None


def kernels(backend: Backend, variant: Variant) -> Kernels:
    """Return the kernels that a variant runs on; UnsupportedError where the backend lacks one."""

    def quantizer(rule: dict[str, Any]) -> tuple[Kernel, ...]:
        parameters = {**rule, "input_format": "float32", "narrow_range": False}
        return tuple(kernel(backend, name, parameters) for name in ("choose_qparams_affine", "quantize_affine"))

    if variant.weight_format is None:
        return Kernels()
    weight = _affine(variant.weight_format, variant.weight_granularity, "symmetric")
    if variant.activations is None:
        dequantize = kernel(backend, "dequantize_affine", {**weight, "output_format": "float32"})
        return Kernels(quantizer(weight), dequantize=dequantize)
    matmul = {
        "a_format": "int8", "activation_granularity": variant.activations, "mapping": "asymmetric",
        "weight_granularity": variant.weight_granularity, "has_bias": True, "output_format": "float32",
    }  # fmt: skip
    activation = _affine("int8", variant.activations, "asymmetric")
    return Kernels(quantizer(weight), quantizer(activation), matmul=kernel(backend, "matmul_w8a8", matmul))


@dataclass(frozen=True, eq=False)
class Quantized:
    """A quantized network.

    Attributes
    ----------
    product : Product
    weights : dict of ndarray of float32
        What the codes stand for.
    scales : int
        Scales of weights, in float32; symmetric weights store no zero points.
    static_ranges : int
        Calibrated activation scales (float32), each with a zero point (one byte).
    """

    product: Product
    weights: Mapping[str, np.ndarray]
    scales: int = 0
    static_ranges: int = 0


def quantized(net: Network, variant: Variant, backend: Backend) -> Quantized:
    """Return the network quantized by a backend's implementations.

    Raises
    ------
    UnsupportedError
        When the backend lacks an implementation that the variant needs.
    """
    run = kernels(backend, variant)
    if not run.weights:
        return Quantized(float_product(net), net.weights)
    choose, quantize = run.weights
    qparams = {name: choose(w) for name, w in net.weights.items()}
    codes = {name: quantize(w, *qparams[name])[0] for name, w in net.weights.items()}
    scales = sum(scale.size for scale, _ in qparams.values())
    if run.dequantize:
        weights = {name: run.dequantize(codes[name], *qparams[name])[0] for name in codes}
        return Quantized(float_product(net, weights), weights, scales)
    matmul = run.matmul
    assert matmul
    weights = {name: codes[name] * qparams[name][0].reshape(-1, 1) for name in codes}
    columns = {name: np.ascontiguousarray(c.T) for name, c in codes.items()}
    choose, quantize = run.activations
    static = variant.activations == "tensor"
    inputs, _ = forward(net.calibration, float_product(net))
    ranges = {name: choose(rows) for name, rows in inputs.items()} if static else {}

    def product(name: str, x: np.ndarray) -> np.ndarray:
        scale, zero_point = ranges[name] if static else choose(x)
        a = quantize(x, scale, zero_point)[0]
        return matmul(a, scale, zero_point, columns[name], qparams[name][0], net.biases[name])[0]

    return Quantized(product, weights, scales, len(ranges))


def _judge(net: Network, variant: Variant, backend: Backend, truth: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return what a variant costs, against the float32 outputs of every layer."""
    model = quantized(net, variant, backend)
    _, outputs = forward(net.images, model.product)
    correct = int(np.sum(outputs[LAYERS[-1].name].argmax(axis=1) == net.labels))
    total, count = len(net.labels), sum(layer.n * layer.k for layer in LAYERS)
    bits = integer_format(variant.weight_format).bits if variant.weight_format else FORMATS["float32"].bits
    weight_bits = count * bits + 32 * model.scales
    other_bits = 32 * sum(layer.n for layer in LAYERS) + (32 + 8) * model.static_ranges
    return {
        "kind": "model",
        "model": MODEL,
        "variant": variant.name,
        "backend": backend.name,
        "accuracy": correct / total,
        "correct": correct,
        "total": total,
        "size_bytes": -(-(weight_bits + other_bits) // 8),
        "bits_per_weight": weight_bits / count,
        "layer_mse": {name: mse(y, outputs[name]) for name, y in truth.items()},
        "layer_weight_mse": {name: mse(w, model.weights[name]) for name, w in net.weights.items()},
    }


def missing(backend: Backend, variants: Iterable[Variant] = VARIANTS) -> dict[str, str]:
    """Return the variants that a backend has no implementations for, and what it lacks."""
    lacks: dict[str, str] = {}
    for variant in variants:
        try:
            kernels(backend, variant)
        except UnsupportedError as error:
            lacks[variant.name] = str(error)
    return lacks


def evaluate(
    backend: Backend, variants: Iterable[Variant] = VARIANTS, net: Network | None = None
) -> list[dict[str, Any]]:
    """Return what quantizing the network by a backend's kernels costs, a mapping a variant.

    Parameters
    ----------
    backend : Backend
    variants : iterable of Variant
        Those the backend has no implementations for are left out; `missing` names them.
    net : Network
        Default: `network`.

    Returns
    -------
    list of dict
        With the fields of the evidence of kind "model" except ``run``, ``time`` and ``device``.
        ``size_bytes`` counts weights (packed, `bits` each), their scales, biases and calibrated activation
        ranges, bytes; ``bits_per_weight`` weights and their scales; ``layer_mse`` compares outputs before the
        ReLU with the float32 network's, each layer being fed what the quantized layers before it gave.

    Raises
    ------
    MissingExtraError
        When the network must be trained, and torch or scikit-learn is not installed.
    """
    net = network() if net is None else net
    _, truth = forward(net.images, float_product(net))
    variants = tuple(variants)
    lacking = missing(backend, variants)
    return [_judge(net, variant, backend, truth) for variant in variants if variant.name not in lacking]
