"""Algorithms that quantize a layer, each run on a backend's own kernels.

An algorithm is asked for its kernels first, so that a backend that lacks one is told apart from one that fails, then
fitted to a layer: its weights and what came in during calibration. Scales of channels (AWQ, SmoothQuant) are each
layer's own; a runtime that folds them into what comes before has layers of one input share them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.calls import kernel
from lowbit_cts.kernels.backend import Backend

#: Tokens that a search over candidates looks at; all count for a Hessian.
SEARCHED = 512


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer to quantize.

    Attributes
    ----------
    w : ndarray of float32, shape (N, K)
    x : ndarray of float32, shape (T, K)
        What came in during calibration.
    """

    w: np.ndarray
    x: np.ndarray

    @cached_property
    def hessian(self) -> np.ndarray:
        """2 / T x^T x, float32, symmetric."""
        h = (2 / len(self.x)) * (self.x.T.astype(np.float64) @ self.x)
        return ((h + h.T) / 2).astype(np.float32)

    @cached_property
    def sample(self) -> np.ndarray:
        """Tokens drawn by lot, the same every time, at most `SEARCHED`."""
        return self.x[np.random.default_rng(0).permutation(len(self.x))[:SEARCHED]]


@dataclass(frozen=True, eq=False)
class Fitted:
    """A quantized layer.

    Attributes
    ----------
    product : callable
        x of shape (M, K) to what the layer gives for it, (M, N), float32.
    bits : float
        Bits that are stored, scales (float32) and zero points included.
    weights : ndarray of float32 or None
        What the codes stand for, where nothing but weights is quantized.
    """

    product: Callable[[np.ndarray], np.ndarray]
    bits: float
    weights: np.ndarray | None = None


def by_weights(weights: np.ndarray, bits: float) -> Fitted:
    """Return a layer of which the weights alone are quantized: its product is made in float32."""
    weights = weights.astype(np.float32)
    return Fitted(lambda x: x @ weights.T, bits, weights)


Fit = Callable[[Layer], Fitted]
#: (backend, bits of a weight, columns that share a scale or None for all) to what fits a layer; UnsupportedError where
#: the backend lacks a kernel.
Algorithm = Callable[[Backend, int, int | None], Fit]


def _affine(format: str, group_size: int | None, mapping: str = "asymmetric") -> dict[str, Any]:
    """Return the parameters of quantizing rows, or groups of their columns."""
    if group_size is None:
        place = {"granularity": "axis", "axis": 0, "group_size": None}
    else:
        place = {"granularity": "group", "axis": None, "group_size": group_size}
    return {"format": format, **place, "mapping": mapping}


def _groups(group_size: int | None) -> dict[str, Any]:
    return {"granularity": "group" if group_size else "channel", "group_size": group_size}


def _stored(codes: np.ndarray, bits: int, *others: tuple[np.ndarray, int]) -> float:
    return float(codes.size * bits + sum(array.size * width for array, width in others))


def _expanded(values: np.ndarray, columns: int) -> np.ndarray:
    """Return values of groups of columns, (N, G), for every column."""
    return np.repeat(values.reshape(len(values), -1), columns // (values.size // len(values)), axis=1)


def round_to_nearest(backend: Backend, bits: int, group_size: int | None) -> Fit:
    """Fit by the ranges of the weights alone (RTN)."""
    quantize = _quantizer(backend, bits, group_size)
    return lambda layer: by_weights(*quantize(layer.w))


def _quantizer(backend: Backend, bits: int, group_size: int | None) -> Callable[[np.ndarray], tuple[np.ndarray, float]]:
    """Return what rounds weights to the nearest code of their groups, and counts their bits."""
    rule = _affine(f"uint{bits}", group_size)
    inputs = {"input_format": "float32", "narrow_range": False}
    choose = kernel(backend, "choose_qparams_affine", {**rule, **inputs})
    quantize = kernel(backend, "quantize_affine", {**rule, **inputs})
    dequantize = kernel(backend, "dequantize_affine", {**rule, "output_format": "float32"})

    def run(w: np.ndarray) -> tuple[np.ndarray, float]:
        scale, zero = choose(w)
        codes = quantize(w, scale, zero)[0]
        return dequantize(codes, scale, zero)[0], _stored(codes, bits, (scale, 32), (zero, bits))

    return run


def _gptq(act_order: bool) -> Algorithm:
    def algorithm(backend: Backend, bits: int, group_size: int | None) -> Fit:
        run = kernel(
            backend, "quantize_gptq",
            {
                "format": f"uint{bits}", "mapping": "asymmetric", **_groups(group_size), "act_order": act_order,
                "static_groups": act_order if group_size else None, "damping": 0.01,
            },
        )  # fmt: skip

        def fit(layer: Layer) -> Fitted:
            codes, scale, zero, index = run(layer.w, layer.hessian)
            weights = (codes.astype(np.float32) - zero[:, index]) * scale[:, index]
            return by_weights(weights, _stored(codes, bits, (scale, 32), (zero, bits)))

        return fit

    return algorithm


def activation_aware(backend: Backend, bits: int, group_size: int | None) -> Fit:
    """Fit scales of channels, then how much of a group's range is clipped, by the outputs' error on a sample (AWQ)."""
    rule = {"format": f"uint{bits}", **_groups(group_size)}
    choose = kernel(backend, "awq_scales", {**rule, "candidates": "activations"})
    clip = kernel(backend, "awq_clipping", rule)
    quantize = _quantizer(backend, bits, group_size)

    def fit(layer: Layer) -> Fitted:
        scale = choose(layer.sample, layer.w)[1]
        scaled = layer.w * scale
        bound = _expanded(clip(layer.sample / scale, scaled)[0], scale.size)
        weights, bits_stored = quantize(np.clip(scaled, -bound, bound))
        return by_weights(weights / scale, bits_stored)  # the scales are folded and cost nothing

    return fit


def half_quadratic(backend: Backend, bits: int, group_size: int | None) -> Fit:
    """Fit the zero points to a norm below 1 of the error (HQQ); no sample is looked at."""
    run = kernel(backend, "quantize_hqq", {"format": f"uint{bits}", **_groups(group_size), "growth": 1.01})

    def fit(layer: Layer) -> Fitted:
        codes, scale, zero = run(layer.w)
        columns = layer.w.shape[1]
        weights = (codes - _expanded(zero, columns)) * _expanded(scale, columns)
        return by_weights(weights, _stored(codes, bits, (scale, 32), (zero, 32)))

    return fit


def normal_float(backend: Backend, bits: int, group_size: int | None) -> Fit:
    """Fit NF4 in blocks of 64, their maxima in 8 bits again (QLoRA's base)."""
    blocks = {"codebook": "nf4", "block_size": 64}
    quantize = kernel(backend, "quantize_blockwise", {**blocks, "input_format": "float32"})
    dequantize = kernel(backend, "dequantize_blockwise", {**blocks, "output_format": "float32"})
    nest = kernel(backend, "double_quantize", {"block_size": 256})
    unnest = kernel(backend, "double_dequantize", {"block_size": 256})

    def fit(layer: Layer) -> Fitted:
        flat = np.zeros((1, -(-layer.w.size // 64) * 64), np.float32)  # blocks run on over the rows
        flat[0, : layer.w.size] = layer.w.ravel()
        codes, absmax = quantize(flat)
        offset = np.array(absmax.mean())
        nested, nested_absmax = nest(absmax[0], offset)
        weights = dequantize(codes, unnest(nested, nested_absmax, offset)[0][None])[0]
        bits_stored = _stored(codes, 4, (nested, 8), (nested_absmax, 32), (offset, 32))
        return by_weights(weights[0, : layer.w.size].reshape(layer.w.shape), bits_stored)

    return fit


def _int8(
    backend: Backend, granularity: str
) -> tuple[Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], Callable[..., np.ndarray], Callable[..., Any]]:
    """Return what quantizes weights, what multiplies, and what chooses ranges of activations."""
    inputs = {"input_format": "float32", "narrow_range": False}
    weight = {**_affine("int8", None, "symmetric"), **inputs}
    choose_w, quantize_w = (kernel(backend, f"{verb}_affine", weight) for verb in ("choose_qparams", "quantize"))
    activation = {**_affine("uint8", None), **inputs}
    if granularity == "tensor":
        activation |= {"granularity": "tensor", "axis": None}
    choose, quantize = (kernel(backend, f"{verb}_affine", activation) for verb in ("choose_qparams", "quantize"))
    matmul = kernel(
        backend, "matmul_w8a8",
        {
            "a_format": "uint8", "activation_granularity": granularity, "weight_granularity": "channel",
            "mapping": "asymmetric", "has_bias": False, "output_format": "float32",
        },
    )  # fmt: skip

    def weights(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scale, zero = choose_w(w)
        return np.ascontiguousarray(quantize_w(w, scale, zero)[0].T), scale

    def product(x: np.ndarray, qparams: Any, codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return matmul(quantize(x, *qparams)[0], *qparams, codes, scale, None)[0]

    return weights, product, choose


def static_int8(backend: Backend, bits: int, group_size: int | None) -> Fit:
    """Fit weights of a channel to int8, activations by the range that calibration saw to uint8 (naive W8A8)."""
    weights, product, choose = _int8(backend, "tensor")

    def fit(layer: Layer) -> Fitted:
        codes, scale = weights(layer.w)
        qparams = choose(layer.x)
        return Fitted(lambda x: product(x, qparams, codes, scale), _stored(codes, 8, (scale, 32)) + 40)

    return fit


def smoothed_int8(backend: Backend, bits: int, group_size: int | None) -> Fit:
    """Fit as `static_int8` after channels are balanced (SmoothQuant, alpha = 0.5)."""
    smooth = kernel(backend, "smooth_weights", {"alpha": 0.5})
    weights, product, choose = _int8(backend, "tensor")

    def fit(layer: Layer) -> Fitted:
        factors, smoothed = smooth(np.abs(layer.x).max(axis=0), layer.w)
        codes, scale = weights(smoothed)
        qparams = choose(layer.x / factors)
        bits_stored = _stored(codes, 8, (scale, 32)) + 40  # the factors are folded and cost nothing
        return Fitted(lambda x: product(x / factors, qparams, codes, scale), bits_stored)

    return fit


def dynamic_int8(backend: Backend, bits: int, group_size: int | None) -> Fit:
    """Fit weights of a channel; the activations of a token by their own range when it comes."""
    weights, product, choose = _int8(backend, "token")

    def fit(layer: Layer) -> Fitted:
        codes, scale = weights(layer.w)
        return Fitted(lambda x: product(x, choose(x), codes, scale), _stored(codes, 8, (scale, 32)))

    return fit


def mixed_int8(backend: Backend, bits: int, group_size: int | None) -> Fit:
    """Fit weights of a channel; columns of activations with an outlier stay in float16 (LLM.int8())."""
    inputs = {"input_format": "float32", "narrow_range": True}
    weight = {**_affine("int8", None, "symmetric"), **inputs}
    choose, quantize = (kernel(backend, f"{verb}_affine", weight) for verb in ("choose_qparams", "quantize"))
    matmul = kernel(backend, "matmul_llm_int8", {"threshold": 6.0, "has_bias": False, "input_format": "float16"})

    def fit(layer: Layer) -> Fitted:
        scale, zero = choose(layer.w)
        codes, absmax = quantize(layer.w, scale, zero)[0], np.abs(layer.w).max(axis=1)

        def product(x: np.ndarray) -> np.ndarray:
            return matmul(x.astype(np.float16), codes, absmax, None)[0].astype(np.float32)

        return Fitted(product, _stored(codes, 8, (scale, 32)))

    return fit


@dataclass(frozen=True)
class Entry:
    """A row of the table of algorithms.

    Attributes
    ----------
    algorithm : Algorithm
    bits : tuple of int
        Bits of a weight that it is tried at.
    calibrated : bool
        Whether the samples decide anything, so that another seed gives another result.
    activations : bool
        Whether activations are quantized, too.
    """

    algorithm: Algorithm
    bits: tuple[int, ...] = (8, 4, 3, 2)
    calibrated: bool = False
    activations: bool = False


ALGORITHMS: Mapping[str, Entry] = {
    "RTN": Entry(round_to_nearest),
    "HQQ": Entry(half_quadratic),
    "NF4, double quantization": Entry(normal_float, (4,)),
    "GPTQ": Entry(_gptq(False), calibrated=True),
    "GPTQ, act-order": Entry(_gptq(True), calibrated=True),
    "AWQ": Entry(activation_aware, calibrated=True),
    "W8A8 static": Entry(static_int8, (8,), calibrated=True, activations=True),
    "W8A8 static, SmoothQuant": Entry(smoothed_int8, (8,), calibrated=True, activations=True),
    "W8A8 dynamic": Entry(dynamic_int8, (8,), activations=True),
    "LLM.int8()": Entry(mixed_int8, (8,), activations=True),
}
