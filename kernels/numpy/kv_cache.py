"""Writing to a paged cache of keys and values in plain NumPy: tokens scattered to the slots of a copy."""

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.numpy.numbers import WIDE, float32_of
from lowbit_cts.kernels.numpy.small_floats import encode

CACHES = (*WIDE, "int8", "float8_e4m3fn", "float8_e5m2")
GRANULARITIES = ("tensor", "head", "kivi")


def spread(name, scale, shape, granularity):
    """Return a scale that broadcasts against keys or values (..., heads, size), or None; ValueError if it is none."""
    if scale is None:
        return None
    of_token = granularity == "kivi" and name == "value"
    expected = {"tensor": (), "head": shape[-2:-1], "kivi": shape[:-1] if of_token else shape[-2:]}[granularity]
    if scale.shape != expected:
        raise ValueError(f"{name}_scale: has shape {scale.shape}, must be {expected}")
    return scale[..., None] if granularity == "head" or of_token else scale


def _check(key, value, key_cache, value_cache, slot_mapping):
    if key_cache.shape[:3] != value_cache.shape[:3]:
        raise ValueError(f"value_cache: has shape {value_cache.shape}, must begin as key_cache, {key_cache.shape}")
    for name, x, cache in (("key", key, key_cache), ("value", value, value_cache)):
        if x.shape != (*slot_mapping.shape, *cache.shape[2:]):
            raise ValueError(f"{name}: has shape {x.shape}, must be {(*slot_mapping.shape, *cache.shape[2:])}")
    slots = key_cache.shape[0] * key_cache.shape[1]
    if slot_mapping.size and slot_mapping.max() >= slots:
        raise ValueError(f"slot_mapping: must lie below {slots}, the slots of the cache")


def codes_of(x, scale, cache_format, input_format):
    """Return x / scale as codes of a cache, or x as it is where there is no scale."""
    if scale is None:
        return x
    with np.errstate(over="ignore", invalid="ignore"):
        quotient = float32_of(x, input_format) / scale
        if cache_format != "int8":
            return encode(quotient, cache_format, saturate=True)
        return np.clip(np.rint(np.where(np.isnan(quotient), np.float32(0), quotient)), -128, 127).astype(np.int8)


def write_kv_cache(
    key, value, key_cache, value_cache, slot_mapping, key_scale, value_scale,
    *, cache_format, input_format, scale_granularity,
):  # fmt: skip
    """Return the caches with each token in its slot; those below zero are skipped."""
    _check(key, value, key_cache, value_cache, slot_mapping)
    held = slot_mapping >= 0
    written = []
    for name, x, cache, scale in (("key", key, key_cache, key_scale), ("value", value, value_cache, value_scale)):
        codes = codes_of(x, spread(name, scale, x.shape, scale_granularity), cache_format, input_format)
        new = np.array(cache, order="C")
        blocks, block, *rest = cache.shape
        new.reshape(blocks * block, *rest)[slot_mapping[held]] = codes[held]
        written.append(new)
    return tuple(written)


def register(backend: Backend) -> None:
    """Register the kernel."""
    backend.implements(
        "write_kv_cache",
        name="scattered",
        supports={
            "cache_format": CACHES, "input_format": WIDE, "scale_granularity": GRANULARITIES,
            "block_size": (16, 8, 32, 5, 1),
        },
    )(write_kv_cache)  # fmt: skip
