"""The wide floats as NumPy holds them: bfloat16 comes and goes as its 16 bits."""

import numpy as np

#: Formats of inputs and outputs.
WIDE = ("float32", "float16", "bfloat16")


def float32_of(x: np.ndarray, format: str) -> np.ndarray:
    """Return x as float32; bfloat16 comes as its 16 bits."""
    if format == "bfloat16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32)


def bfloat16_of(x: np.ndarray) -> np.ndarray:
    """Return float32 rounded to the 16 bits of bfloat16, to nearest even."""
    bits = x.view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def output_of(x: np.ndarray, format: str) -> np.ndarray:
    """Return float32 rounded to a wide format."""
    if format == "bfloat16":
        return bfloat16_of(x)
    with np.errstate(over="ignore"):
        return x.astype(format)
