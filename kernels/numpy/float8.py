"""float8 by bit manipulation of float32, as kernels do it (the reference goes by value)."""

import numpy as np

#: Format to (exponent bits, mantissa bits, code of the largest finite value, code at overflow).
_LAYOUT = {"float8_e4m3fn": (4, 3, 0x7E, 0x7F), "float8_e5m2": (5, 2, 0x7B, 0x7C)}


def encode(x: np.ndarray, target: str, *, saturate: bool) -> np.ndarray:
    """Return float32 as float8 codes, rounded to nearest even."""
    exponent_bits, mantissa_bits, largest, at_overflow = _LAYOUT[target]
    bias = (1 << (exponent_bits - 1)) - 1
    dropped = 23 - mantissa_bits
    bits = np.ascontiguousarray(x).view(np.uint32).reshape(x.shape)
    sign, magnitude = (bits >> 24) & 0x80, bits & 0x7FFFFFFF
    # Normal results: rebias, then round the dropped bits with a carry into the exponent.
    even = (magnitude >> dropped) & 1
    rebased = magnitude.astype(np.int64) - ((127 - bias) << 23)
    normal = (rebased + (1 << (dropped - 1)) - 1 + even) >> dropped
    # Subnormal results: adding 2**k lets the adder do the rounding to the last place.
    magic = np.float32(2.0 ** (23 + 1 - bias - mantissa_bits))
    small = (magnitude.view(np.float32) + magic).view(np.uint32).astype(np.int64) - int(magic.view(np.uint32))
    code = np.where(magnitude < ((128 - bias) << 23), small, normal)
    code = np.where(code > largest, largest if saturate else at_overflow, code)
    code = np.where(magnitude > 0x7F800000, 0x7F, code)
    return (sign | code.astype(np.uint32)).astype(np.uint8)


def decode(codes: np.ndarray, source: str) -> np.ndarray:
    """Return the float32 values of float8 codes, looked up in a table of all 256."""
    exponent_bits, mantissa_bits, _, _ = _LAYOUT[source]
    bias = (1 << (exponent_bits - 1)) - 1
    everything = np.arange(256)
    exponent, mantissa = (
        (everything >> mantissa_bits) & ((1 << exponent_bits) - 1),
        everything & ((1 << mantissa_bits) - 1),
    )
    fraction = mantissa / (1 << mantissa_bits)
    size = np.where(exponent > 0, (1 + fraction) * 2.0 ** (exponent - bias), fraction * 2.0 ** (1 - bias))
    if source == "float8_e5m2":
        size[exponent == 31] = np.where(mantissa[exponent == 31] == 0, np.inf, np.nan)
    else:
        size[(everything & 0x7F) == 0x7F] = np.nan
    return np.where(everything >= 128, -size, size).astype(np.float32)[codes]
