"""Requantization in plain NumPy: the integer arithmetic of gemmlowp and XNNPACK, step by step, in int64."""

import numpy as np

from lowbit_cts.kernels import Backend, Requantization, Semantics
from lowbit_cts.reference.formats import integer_format

_INT32 = np.iinfo(np.int32)


def _multiplier(scale: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale as an integer of so many bits and a power of two."""
    mantissa, exponent = np.frexp(scale.astype(np.float64))
    multiplier = np.floor(mantissa * 2.0**bits + 0.5).astype(np.int64)
    full = multiplier == 1 << bits
    return np.where(full, multiplier // 2, multiplier), exponent.astype(np.int64) + full


def tflite_multiplier(scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale as a 31-bit multiplier and a power of two; 0 below 2**-32."""
    multiplier, shift = _multiplier(scale, 31)
    return np.where(shift < -31, 0, multiplier), np.where(shift < -31, 0, shift)


def _rounding_shift(x: np.ndarray, places: np.ndarray | np.int64) -> np.ndarray:
    """Return x shifted right, ties up."""
    return (x + (1 << (places - 1))) >> places


def double_rounding(acc: np.ndarray, multiplier: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return the scaled sums, rounded to 32 bits, up at ties, and again by the shift, away at ties."""
    product = np.clip(acc << np.maximum(shift, 0), _INT32.min, _INT32.max) * multiplier
    nudged = product + np.where(product >= 0, 1 << 30, 1 - (1 << 30))
    high = np.sign(nudged) * (np.abs(nudged) >> 31)  # a division that truncates
    places = np.maximum(-shift, 0)
    mask = (np.int64(1) << places) - 1
    remainder, threshold = high & mask, (mask >> 1) + (high < 0)
    return (high >> places) + (remainder > threshold)


def _double_rounding_up(acc: np.ndarray, multiplier: np.ndarray, shift: np.ndarray) -> np.ndarray:
    wide = np.clip(acc << np.maximum(shift, 0), _INT32.min, _INT32.max)
    high = _rounding_shift(wide * multiplier, np.int64(31))
    return np.where(shift < 0, _rounding_shift(high, np.maximum(-shift, 1)), high)


def _single_rounding(acc: np.ndarray, multiplier: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return _rounding_shift(acc * multiplier, 31 - shift)


def _rndnu(acc: np.ndarray, multiplier: np.ndarray, shift: np.ndarray) -> np.ndarray:
    return _rounding_shift(acc * multiplier, 24 - shift)


def _rndnu16(acc: np.ndarray, multiplier: np.ndarray, shift: np.ndarray) -> np.ndarray:
    narrow = np.where(shift < 0, _rounding_shift(acc, np.maximum(-shift, 1)), acc << np.maximum(shift, 0))
    return _rounding_shift(np.clip(narrow, -(1 << 15), (1 << 15) - 1) * multiplier, np.int64(15))


_VARIANTS = {
    Requantization.DOUBLE_ROUNDING: (double_rounding, tflite_multiplier),
    Requantization.DOUBLE_ROUNDING_UP: (_double_rounding_up, tflite_multiplier),
    Requantization.SINGLE_ROUNDING: (_single_rounding, tflite_multiplier),
    Requantization.RNDNU: (_rndnu, lambda scale: _multiplier(scale, 24)),
    Requantization.RNDNU16: (_rndnu16, lambda scale: _multiplier(scale, 15)),
}
_EVERYWHERE = {"format": ("int8", "uint8"), "granularity": ("tensor", "channel")}


def _codes(steps: np.ndarray, zero_point: np.ndarray, format: str) -> np.ndarray:
    fmt = integer_format(format)
    return np.clip(steps + zero_point, fmt.minimum, fmt.maximum).astype(fmt.carrier)


def in_float32(acc, scale, zero_point, *, format):
    """Return round(float32(acc) * scale) + zero_point, saturated."""
    return _codes(np.rint(acc.astype(np.float32) * scale), zero_point, format)


def register(backend: Backend) -> None:
    """Register a kernel a variant."""
    backend.implements("requantize", supports=_EVERYWHERE)(in_float32)
    for variant, (steps, multiplier) in _VARIANTS.items():

        def prepare(scale, zero_point, *, multiplier=multiplier):
            if scale.shape != zero_point.shape:
                raise ValueError(f"zero_point: has shape {zero_point.shape}, must be that of scale, {scale.shape}")
            return (*multiplier(scale), zero_point)

        def requantize(acc, *, prepared, format, steps=steps):
            multiplier, shift, zero_point = prepared
            return _codes(steps(acc.astype(np.int64), multiplier, shift), zero_point, format)

        backend.implements(
            "requantize",
            name=str(variant),
            prepare=prepare,
            semantics=Semantics(requantization=variant),
            supports=_EVERYWHERE,
        )(requantize)
