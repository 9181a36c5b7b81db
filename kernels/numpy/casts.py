"""Casts between float formats: by bits toward small ones, by tables from them, by NumPy's own between wide ones."""

import numpy as np

from lowbit_cts.kernels import Backend, Overflow, Semantics
from lowbit_cts.kernels.numpy import small_floats
from lowbit_cts.kernels.numpy.numbers import WIDE, float32_of, output_of
from lowbit_cts.reference.formats import SMALL_FLOATS


def decode(x, *, source, target):
    """Return a small float's values in a wide format."""
    return output_of(small_floats.decode(x, source), target)


def between_wide(x, *, source, target):
    """Return NumPy's own cast; bfloat16 by way of float32, which holds all of its values."""
    with np.errstate(over="ignore", invalid="ignore"):
        return output_of(float32_of(x, source), target) if "bfloat16" in (source, target) else x.astype(target)


def encode_scale(x, *, source):
    """Return E8M0 scales."""
    return small_floats.encode_scale(float32_of(x, source))


def register(backend: Backend) -> None:
    """Register the kernels; float64 goes to float32 and float16 only, where NumPy rounds once."""
    for overflow in (Overflow.SATURATE, Overflow.INFINITY_OR_NAN):

        def encode(x, *, source, target, overflow=overflow):
            return small_floats.encode(float32_of(x, source), target, saturate=overflow is Overflow.SATURATE)

        backend.implements(
            "cast_float",
            name=f"encode_{overflow}",
            semantics=Semantics(overflow=overflow),
            supports={"source": WIDE, "target": tuple(small_floats.LAYOUT)},
        )(encode)
    no_infinity = Semantics(overflow=Overflow.INFINITY_OR_NAN)
    backend.implements("cast_float", semantics=no_infinity, supports={"source": WIDE, "target": "float8_e8m0fnu"})(
        encode_scale
    )
    backend.implements("cast_float", supports={"source": SMALL_FLOATS, "target": WIDE})(decode)
    backend.implements("cast_float", supports={"source": WIDE, "target": WIDE})(between_wide)
    backend.implements(
        "cast_float", name="from_float64", supports={"source": "float64", "target": ("float32", "float16")}
    )(between_wide)
