"""GPTQ in NumPy: columns in blocks, the weights transposed so that a column is contiguous."""

import numpy as np

from lowbit_cts.kernels import Backend

#: Columns whose errors are applied to the later ones at once.
_BLOCK = 128


def _upper_factor_of_inverse(h):
    """Return U with h^-1 = U^T U."""
    reverse = np.linalg.cholesky(h[::-1, ::-1])
    return np.triu(np.linalg.inv(reverse)[::-1, ::-1])


def _range(columns, mapping, largest):
    """Return scale and zero point, (N,), of columns (K, N)."""
    low, high = columns.min(axis=0, initial=0), columns.max(axis=0, initial=0)
    if mapping == "symmetric":
        high = np.maximum(-low, high)
        low = -high
    nothing = (low == 0) & (high == 0)
    low, high = np.where(nothing, np.float32(-1), low), np.where(nothing, np.float32(1), high)
    scale = (high - low) / np.float32(largest)
    zero = np.full_like(scale, (largest + 1) // 2) if mapping == "symmetric" else np.rint(-low / scale)
    return scale, zero


def quantize_gptq(w, hessian, *, format, mapping, group_size, static_groups, act_order, damping):
    """Return codes, scales, zero points and the group of each column."""
    if hessian.shape != (w.shape[1], w.shape[1]):
        raise ValueError("hessian: must be square, of the columns of w")
    largest = (1 << int(format.removeprefix("uint"))) - 1
    n, k = w.shape
    left, h = np.array(w.T, order="C"), np.array(hessian)
    dead = np.diag(h) == 0
    h[dead, dead] = 1
    left[dead] = 0
    size = group_size or max(k, 1)
    groups = -(-k // size)
    scale, zero = np.ones((n, groups), np.float32), np.zeros((n, groups), np.float32)
    if static_groups:
        for group in range(groups):
            scale[:, group], zero[:, group] = _range(left[group * size : (group + 1) * size], mapping, largest)
    order = np.argsort(-np.diag(h), kind="stable") if act_order else np.arange(k)
    group_of = np.arange(k) // size
    left, h = left[order], h[order][:, order]
    if static_groups:
        group_of = group_of[order]
    if k:
        h[np.arange(k), np.arange(k)] += np.float32(damping) * np.mean(np.diag(h))
    u = _upper_factor_of_inverse(h)
    codes = np.empty((k, n), np.uint8)
    block = max(_BLOCK // size, 1) * size if size <= _BLOCK or not static_groups else _BLOCK
    for start in range(0, k, block):
        stop = min(start + block, k)
        part, errors = left[start:stop], np.empty((stop - start, n), np.float32)
        for j in range(stop - start):
            group = group_of[start + j]
            if not static_groups and (start + j) % size == 0:
                scale[:, group], zero[:, group] = _range(part[j : j + size], mapping, largest)
            s, z = scale[:, group], zero[:, group]
            code = np.clip(np.rint(part[j] / s) + z, 0, largest)
            codes[start + j] = code
            errors[j] = (part[j] - (code - z) * s) / u[start + j, start + j]
            part[j + 1 :] -= u[start + j, start + j + 1 : stop, None] * errors[j]
        left[stop:] -= u[start:stop, stop:].T @ errors
    placed, index = np.empty_like(codes), np.empty(k, np.int32)
    placed[order], index[order] = codes, group_of
    return np.ascontiguousarray(placed.T), scale, zero.astype(np.int32), index


def register(backend: Backend) -> None:
    """Register the kernel."""
    backend.implements(
        "quantize_gptq",
        supports={
            "format": tuple(f"uint{bits}" for bits in range(2, 9)), "mapping": ("asymmetric", "symmetric"),
            "granularity": ("channel", "group"), "group_size": (32, 12, 128), "static_groups": (False, True),
            "act_order": (False, True), "damping": (0.01, 0.1),
        },
    )(quantize_gptq)  # fmt: skip
