"""Binary and ternary weights in plain float32 NumPy."""

import numpy as np

from lowbit_cts.kernels import Backend, Semantics
from lowbit_cts.kernels.numpy.numbers import WIDE, float32_of

#: The least scale of the rounding rule, BitNet's.
EPSILON = 1e-5
_PLACES = {"granularity": ("tensor", "axis", "group")}


def _members(x, granularity, axis, group_size):
    """Return x with what shares a scale along the axes that are returned beside it."""
    if granularity == "group":
        return x.reshape(x.shape[0], x.shape[1] // group_size, group_size), 2
    return x, {"tensor": (0, 1), "axis": 1 - (axis or 0)}[granularity]


def binarize(x, *, input_format, granularity, axis, group_size):
    """Return the signs, of zero +1, and mean|x|."""
    x = float32_of(x, input_format)
    members, shared = _members(x, granularity, axis, group_size)
    return np.where(x >= 0, 1, -1).astype(np.int8), np.abs(members).mean(axis=shared, dtype=np.float32)


def ternarize(x, *, rule, input_format, granularity, axis, group_size):
    """Return -1, 0, 1 by a threshold or by rounding, and the scale."""
    members, shared = _members(float32_of(x, input_format), granularity, axis, group_size)
    size = np.abs(members)
    mean = size.mean(axis=shared, keepdims=True, dtype=np.float32)
    if rule == "bitnet":
        scale = np.maximum(mean, np.float32(EPSILON))
        codes = np.clip(np.rint(members / scale), -1, 1)
    else:
        chosen = size > np.float32(0.7) * mean
        count = np.maximum(chosen.sum(axis=shared, keepdims=True), 1)
        scale = np.where(chosen, size, np.float32(0)).sum(axis=shared, keepdims=True) / count.astype(np.float32)
        codes = np.where(chosen, np.sign(members), np.float32(0))
    return codes.astype(np.int8).reshape(x.shape), scale.squeeze(axis=shared)


def register(backend: Backend) -> None:
    """Register the kernels."""
    backend.implements("binarize", supports={**_PLACES, "input_format": WIDE})(binarize)
    backend.implements(
        "ternarize",
        semantics=Semantics(epsilon=EPSILON),
        supports={**_PLACES, "input_format": WIDE, "rule": ("twn", "bitnet")},
    )(ternarize)
