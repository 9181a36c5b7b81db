"""Small floats by bit manipulation of float32, as kernels do it (the reference goes by value)."""

import numpy as np

#: Format to (exponent bits, mantissa bits, bias, code of the largest finite value, code at overflow, code of NaN); of
#: formats without NaN the last two are the largest value.
LAYOUT = {
    "float8_e4m3fn": (4, 3, 7, 0x7E, 0x7F, 0x7F),
    "float8_e5m2": (5, 2, 15, 0x7B, 0x7C, 0x7F),
    "float8_e4m3fnuz": (4, 3, 8, 0x7F, 0x80, 0x80),
    "float8_e5m2fnuz": (5, 2, 16, 0x7F, 0x80, 0x80),
    "float6_e3m2fn": (3, 2, 3, 0x1F, 0x1F, 0x1F),
    "float6_e2m3fn": (2, 3, 1, 0x1F, 0x1F, 0x1F),
    "float4_e2m1fn": (2, 1, 1, 0x7, 0x7, 0x7),
}


def encode(x: np.ndarray, target: str, *, saturate: bool) -> np.ndarray:
    """Return float32 as codes of a small float with a sign, rounded to nearest even."""
    exponent_bits, mantissa_bits, bias, largest, at_overflow, nan = LAYOUT[target]
    dropped = 23 - mantissa_bits
    bits = np.ascontiguousarray(x).view(np.uint32).reshape(x.shape)
    sign, magnitude = (bits >> 31) << (exponent_bits + mantissa_bits), bits & 0x7FFFFFFF
    # Normal results: rebias, then round the dropped bits with a carry into the exponent.
    even = (magnitude >> dropped) & 1
    rebased = magnitude.astype(np.int64) - ((127 - bias) << 23)
    normal = (rebased + (1 << (dropped - 1)) - 1 + even) >> dropped
    # Subnormal results: adding 2**k lets the adder do the rounding to the last place.
    magic = np.float32(2.0 ** (23 + 1 - bias - mantissa_bits))
    small = (magnitude.view(np.float32) + magic).view(np.uint32).astype(np.int64) - int(magic.view(np.uint32))
    code = np.where(magnitude < ((128 - bias) << 23), small, normal)
    code = np.where(code > largest, largest if saturate else at_overflow, code)
    code = np.where(magnitude > 0x7F800000, nan, code)
    if target.endswith("uz"):  # the sign alone is NaN
        sign = np.where(code == 0, 0, sign)
    return (sign | code.astype(np.uint32)).astype(np.uint8)


def decode(codes: np.ndarray, source: str) -> np.ndarray:
    """Return the float32 values of codes, looked up in a table of all 256."""
    return _decoded(source)[codes]


def _decoded(source: str) -> np.ndarray:
    everything = np.arange(256)
    if source == "float8_e8m0fnu":
        values = 2.0 ** (everything - 127.0)
        values[255] = np.nan
        return values.astype(np.float32)
    exponent_bits, mantissa_bits, bias, largest, at_overflow, nan = LAYOUT[source]
    magnitude = everything & ((1 << (exponent_bits + mantissa_bits)) - 1)
    exponent, mantissa = magnitude >> mantissa_bits, magnitude & ((1 << mantissa_bits) - 1)
    fraction = mantissa / (1 << mantissa_bits)
    size = np.where(exponent > 0, (1 + fraction) * 2.0 ** (exponent - bias), fraction * 2.0 ** (1 - bias))
    size[magnitude > largest] = np.nan
    if at_overflow not in (largest, nan):
        size[magnitude == at_overflow] = np.inf
    negative = everything >> (exponent_bits + mantissa_bits) & 1
    values = np.where(negative, -size, size)
    if source.endswith("uz"):
        values[nan] = np.nan
    return values.astype(np.float32)


def encode_scale(x: np.ndarray) -> np.ndarray:
    """Return positive float32 as the nearest powers of two, ties up; everything else as NaN."""
    bits = np.ascontiguousarray(x).view(np.uint32).reshape(x.shape)
    exponent, mantissa = bits >> 23, bits & 0x7FFFFF
    # A subnormal of float32 lies below 2**-126: the nearest of 2**-127 and 2**-126 changes at three quarters.
    up = np.where(exponent > 0, mantissa >= 0x400000, mantissa >= 0x600000)
    valid = (x > 0) & np.isfinite(x)
    return np.where(valid, exponent + up, 255).astype(np.uint8)
