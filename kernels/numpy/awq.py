"""AWQ's searches in NumPy: every candidate in float32, all groups at once, rows in blocks that fit a cache."""

import numpy as np

from lowbit_cts.kernels import Backend

_RATIOS, _SHARES = 20, 10
_LEAST_SCALE, _LEAST_RANGE = np.float32(1e-4), np.float32(1e-5)
#: Weights, and outputs, that are held at once.
_HELD = 1 << 18


def _groups(x, w, group_size):
    """Return the weights by groups, (N, G, S)."""
    if x.shape[1] != w.shape[1]:
        raise ValueError(f"x: has {x.shape[1]} columns, must have the {w.shape[1]} of w")
    size = group_size or w.shape[1]
    if not len(x) or not size or w.shape[1] % size:
        raise ValueError(f"x, w: must have samples, and columns in whole groups of {size}; have {x.shape}, {w.shape}")
    return w.reshape(len(w), -1, size)


def _blocks(groups, outputs):
    """Return slices of rows of which neither the weights nor the outputs are too many."""
    step = max(1, _HELD // max(groups[0].size if len(groups) else 1, outputs))
    return [slice(start, start + step) for start in range(0, len(groups), step)]


def _round(groups, largest):
    """Return weights (N, G, S) rounded to the codes of their groups."""
    low, high = groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)
    scale = np.maximum(high - low, _LEAST_RANGE) / np.float32(largest)
    zero = np.clip(-np.rint(low / scale), 0, largest)
    taken = groups / scale
    np.rint(taken, out=taken)
    taken += zero
    np.clip(taken, 0, largest, out=taken)
    taken -= zero
    taken *= scale
    return taken


def _largest(format):
    return (1 << int(format.removeprefix("uint"))) - 1


def _candidates(x, groups, candidates):
    """Return the scales of every ratio, (20, K)."""
    ratios = (np.arange(_RATIOS) / _RATIOS)[:, None]
    means = np.abs(x).mean(axis=0)
    scales = means ** ratios.astype(np.float32)
    if candidates == "both":
        share = np.abs(groups)
        share /= share.max(axis=-1, keepdims=True) + np.float32(1e-6)
        share = share.mean(axis=0).ravel()
        scales /= share ** (1 - ratios).astype(np.float32) + np.float32(1e-4)
    np.maximum(scales, _LEAST_SCALE, out=scales)
    return scales / np.sqrt(scales.max(axis=1) * scales.min(axis=1))[:, None]


def awq_scales(x, w, *, format, group_size, candidates):
    """Return the index of the ratio of the least output error, and its scales."""
    groups, largest = _groups(x, w, group_size), _largest(format)
    if not len(w):
        raise ValueError("w: must have a row or more")
    scales = _candidates(x, groups, candidates)
    errors = np.zeros(_RATIOS)
    for i, scale in enumerate(scales):
        samples = (x / scale).T
        for rows in _blocks(groups, len(x)):
            scaled = w[rows] * scale
            rounded = _round(scaled.reshape(groups[rows].shape), largest).reshape(scaled.shape)
            rounded -= scaled
            missed = rounded @ samples
            errors[i] += np.vdot(missed, missed)
    best = int(np.argmin(errors))
    return np.int32(best), scales[best].copy()


def awq_clipping(x, w, *, format, group_size):
    """Return the bounds of the least error of each group's outputs, and which shares of its range they are."""
    groups, largest = _groups(x, w, group_size), _largest(format)
    top = np.abs(groups).max(axis=-1)
    samples = np.ascontiguousarray(x.reshape(len(x), -1, groups.shape[2]).transpose(1, 2, 0))  # (G, S, M)
    least, found = np.full(top.shape, np.inf, np.float32), np.zeros(top.shape, np.int32)
    bound = top.copy()
    for rows in _blocks(groups, len(x) * groups.shape[1]):
        for i in range(_SHARES):
            limit = top[rows] * np.float32(1 - i / 20)
            taken = _round(np.clip(groups[rows], -limit[..., None], limit[..., None]), largest)
            taken -= groups[rows]
            missed = taken.transpose(1, 0, 2) @ samples
            error = np.einsum("gnm,gnm->ng", missed, missed)
            better = error < least[rows]
            least[rows][better], found[rows][better], bound[rows][better] = error[better], i, limit[better]
    return bound, found


def register(backend: Backend) -> None:
    """Register the kernels."""
    supports = {
        "format": tuple(f"uint{bits}" for bits in range(2, 9)), "granularity": ("channel", "group"),
        "group_size": (32, 16, 128),
    }  # fmt: skip
    backend.implements("awq_scales", supports={**supports, "candidates": ("activations", "both")})(awq_scales)
    backend.implements("awq_clipping", supports=supports)(awq_clipping)
