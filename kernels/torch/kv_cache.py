"""Writing to a paged cache of keys and values in torch: quantized tokens, put to the slots of a copy by index."""

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend, Semantics
from lowbit_cts.kernels.torch.build import Build

FLOATS = ("float32", "float16", "bfloat16")
FORMATS = (*FLOATS, "int8", "float8_e4m3fn", "float8_e5m2")
GRANULARITIES = ("tensor", "head", "kivi")


def spread(of: str, scale: Tensor | None, shape: torch.Size, granularity: str | None) -> Tensor | None:
    """Return a scale that broadcasts against keys or values (..., heads, size), or None.

    Raises
    ------
    ValueError
        A scale of another shape.
    """
    if scale is None:
        return None
    of_token = granularity == "kivi" and of == "value"
    of_kivi = shape[:-1] if of_token else shape[-2:]
    expected = {"tensor": torch.Size(), "head": shape[-2:-1], "kivi": of_kivi}[granularity or "tensor"]
    if scale.shape != expected:
        raise ValueError(f"{of}_scale: has shape {tuple(scale.shape)}, must be {tuple(expected)}")
    return scale.unsqueeze(-1) if granularity == "head" or of_token else scale


def _check(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    if key_cache.shape[:3] != value_cache.shape[:3]:
        raise ValueError(
            f"value_cache: has shape {tuple(value_cache.shape)}, must begin as key_cache, {tuple(key_cache.shape)}"
        )
    for name, x, cache in (("key", key, key_cache), ("value", value, value_cache)):
        if x.shape != (*slot_mapping.shape, *cache.shape[2:]):
            raise ValueError(
                f"{name}: has shape {tuple(x.shape)}, must be {(*slot_mapping.shape, *cache.shape[2:])}"
            )  # fmt: skip
    slots = key_cache.shape[0] * key_cache.shape[1]
    if slot_mapping.numel() and int(slot_mapping.max()) >= slots:
        raise ValueError(f"slot_mapping: must lie below {slots}, the slots of the cache")


def _codes(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Return x / scale as codes, ties to even, saturated."""
    quotient = x.float() / scale
    if dtype == torch.int8:
        return quotient.round().clamp(-128, 127).nan_to_num(0.0).to(torch.int8)
    largest = torch.finfo(dtype).max
    return quotient.clamp(-largest, largest).to(dtype)


def register_composed(backend: Backend, build: Build, arithmetic: Semantics) -> None:
    """Register the writer.

    Parameters
    ----------
    backend : Backend
    build : callable
        Eager or compiled (`lowbit_cts.kernels.torch.build`).
    arithmetic : Semantics
        What holds for all of the backend's kernels.
    """
    coded = build(_codes)

    def written(cache: Tensor, x: Tensor, scale: Tensor | None, slots: Tensor) -> Tensor:
        """Return a copy of a cache with tokens in their slots, those below zero skipped."""
        codes = x if scale is None else coded(x, scale, cache.dtype)
        new = cache.clone(memory_format=torch.contiguous_format)
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[cache.element_size()]  # bytes of any format are moved
        held = slots >= 0
        new.view(bits).flatten(0, 1)[slots[held]] = codes.contiguous().view(bits)[held]
        return new

    @backend.implements(
        "write_kv_cache",
        name="composed",
        semantics=arithmetic,
        supports={
            "cache_format": FORMATS, "input_format": FLOATS, "scale_granularity": GRANULARITIES,
            "block_size": (16, 8, 32, 5, 1),
        },
    )  # fmt: skip
    def write_kv_cache(
        key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor,
        key_scale: Tensor | None, value_scale: Tensor | None, *, scale_granularity: str | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        _check(key, value, key_cache, value_cache, slot_mapping)
        new = [
            written(cache, x, spread(of, scale, x.shape, scale_granularity), slot_mapping)
            for of, cache, x, scale in (
                ("key", key_cache, key, key_scale),
                ("value", value_cache, value, value_scale),
            )
        ]
        return new[0], new[1]
