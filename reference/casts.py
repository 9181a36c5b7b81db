"""Casts between floating-point formats, each value rounded once.

References
----------
.. [1] OCP 8-bit Floating Point Specification (OFP8) v1.0; OCP Microscaling Formats (MX) v1.0, §5.
.. [2] ONNX operator Cast, tables of float8, float4 and float8e8m0 conversions.
"""

from typing import Any

import numpy as np

from lowbit_cts.reference.choices import OutsideDomain, Overflow, Rounding, takes_choices
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import SMALL_FLOATS, decode, float_format

WIDE_FLOATS = ("float64", "float32", "float16", "bfloat16")


def is_cast(source: str, target: str) -> bool:
    """Return whether the suite knows a cast: between two formats, not both small, and not to float64."""
    return target not in (source, "float64") and not {source, target} <= set(SMALL_FLOATS)


@takes_choices
def cast_float(
    x: np.ndarray,
    *,
    source: str,
    target: str,
    rounding: Rounding = Rounding.HALF_EVEN,
    overflow: Overflow = Overflow.SATURATE,
    outside_domain: OutsideDomain = OutsideDomain.NAN,
    random: np.ndarray | None = None,
) -> np.ndarray:
    """Return an array of codes of `source` as codes of `target`.

    Parameters
    ----------
    x : ndarray, any shape
        In the carrier of `source`.
    source, target : str
        Names of float formats, for which `is_cast` holds.
    rounding : Rounding
    overflow : Overflow
        Toward a small float. Toward float32, float16 and bfloat16 it is IEEE 754's, whatever is said: Inf.
    outside_domain : OutsideDomain
        What zero and negative numbers become in E8M0.
    random : ndarray of float64 in [0, 1)
        For stochastic rounding, as `encode`.

    Returns
    -------
    ndarray in the carrier of `target`, the same shape.

    Raises
    ------
    ValueError
        Unknown formats, or a pair that is no cast.
    """
    start, end = float_format(source), float_format(target)
    if not is_cast(source, target):
        raise ValueError(
            f"source, target: {source} to {target} is no cast; admissible: two formats of which one at least is of "
            f"{', '.join(WIDE_FLOATS)}, float64 as the source only"
        )
    if target in WIDE_FLOATS:
        overflow = Overflow.INFINITY_OR_NAN
    choices = rounding, overflow, outside_domain
    x = np.asarray(x)
    if start.bits <= 16 and x.size > 1 << start.bits and rounding is not Rounding.STOCHASTIC:
        everything = np.arange(1 << start.bits)
        return encode(decode(everything, start), end, *choices)[x.view(f"u{x.itemsize}")]
    numbers = x if start.carrier.kind == "f" else decode(x, start)
    with np.errstate(invalid="ignore"):
        return encode(numbers, end, *choices, random)


@takes_choices
def cast_float_enclosure(
    x: np.ndarray,
    *,
    source: str,
    target: str,
    rounding: Rounding = Rounding.HALF_EVEN,
    overflow: Overflow = Overflow.SATURATE,
    outside_domain: OutsideDomain = OutsideDomain.NAN,
) -> Enclosure:
    """Return the admissible results of `cast_float`, decoded: any NaN code is NaN, -0 is not +0.

    Stochastic rounding may give either neighbour. NaN in a format that has none may give anything, since no
    specification says what ([1]_, MX §5.3: implementation-defined).
    """
    choices: dict[str, Any] = {
        "source": source,
        "target": target,
        "overflow": overflow,
        "outside_domain": outside_domain,
    }
    end = float_format(target)
    if rounding is Rounding.STOCHASTIC:
        shape = np.shape(x)
        ends = [
            decode(cast_float(x, rounding=rounding, random=random, **choices), end)
            for random in (np.zeros(shape), np.full(shape, np.nextafter(1.0, 0.0)))
        ]
        exact, lo, hi = ends[1], np.minimum(*ends), np.maximum(*ends)
    else:
        exact = lo = hi = decode(cast_float(x, rounding=rounding, **choices), end)
    if end.nan_code is None:
        nan = np.isnan(decode(np.asarray(x), float_format(source)))
        lo, hi = np.where(nan, -np.inf, lo), np.where(nan, np.inf, hi)
    return Enclosure(exact, lo, hi, signed_zero=end.signed_zero)
