"""Casts between floating-point formats, each value rounded once.

References
----------
.. [1] OCP 8-bit Floating Point Specification (OFP8) v1.0.
.. [2] ONNX operator Cast, table of float8 conversions (saturate true and false).
"""

import numpy as np

from lowbit_cts.reference.choices import Overflow, Rounding, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, determined
from lowbit_cts.reference.formats import FLOAT8_FORMATS, decode, encode, float_format


@takes_choices
def cast_float8(
    x: np.ndarray,
    *,
    source: str,
    target: str,
    rounding: Rounding = Rounding.HALF_EVEN,
    overflow: Overflow = Overflow.SATURATE,
) -> np.ndarray:
    """Return an array of codes of `source` as codes of `target`; one of the two is a float8 format.

    Parameters
    ----------
    x : ndarray, any shape
        In the carrier of `source`.
    source, target : str
        float32, float16, bfloat16, float8_e4m3fn or float8_e5m2.
    rounding, overflow :
        Used toward float8; from float8 every value is exact in the wider formats.

    Returns
    -------
    ndarray in the carrier of `target`, the same shape.

    Raises
    ------
    ValueError
        Unknown formats, or none of the two a float8 format.
    """
    start, end = float_format(source), float_format(target)
    if (source in FLOAT8_FORMATS) == (target in FLOAT8_FORMATS):
        raise ValueError(f"source, target: one of the two must be a float8 format; got {source}, {target}")
    if target not in FLOAT8_FORMATS:  # wide enough for every value: infinities stay
        overflow = Overflow.INFINITY_OR_NAN
    return encode(decode(np.asarray(x), start), end, rounding, overflow)


@takes_choices
def cast_float8_enclosure(
    x: np.ndarray,
    *,
    source: str,
    target: str,
    rounding: Rounding = Rounding.HALF_EVEN,
    overflow: Overflow = Overflow.SATURATE,
) -> Enclosure:
    """Return the one admissible result of `cast_float8`, decoded: any NaN code is NaN, -0 is not +0."""
    codes = cast_float8(x, source=source, target=target, rounding=rounding, overflow=overflow)
    return determined(decode(codes, float_format(target)), signed_zero=True)
