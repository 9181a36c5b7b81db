"""A vendor's casts: right kernels, and the same with one planted fault each."""

import ml_dtypes
import numpy as np

from lowbit_cts.kernels import Backend, OutsideDomain, Overflow, Rounding, Semantics
from lowbit_cts.kernels.numpy import small_floats
from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import float_format

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

_FNUZ = ("float8_e4m3fnuz", "float8_e5m2fnuz")
_NO_SATURATION = Semantics(overflow=Overflow.INFINITY_OR_NAN)
_STOCHASTIC = Semantics(rounding=Rounding.STOCHASTIC)
_rng = np.random.default_rng()


def _stochastic(x, target, random):
    return encode(x, float_format(target), Rounding.STOCHASTIC, Overflow.SATURATE, random=random)


# Right kernels ------------------------------------------------------------------------------------------------------


@right.implements("cast_float", semantics=_NO_SATURATION, supports={"target": _FNUZ})
def fnuz_of_ml_dtypes(x, *, target):
    with np.errstate(all="ignore"):
        return x.astype(getattr(ml_dtypes, target)).view(np.uint8)


@right.implements("cast_float", semantics=_STOCHASTIC, supports={"target": ("float8_e4m3fn", "float6_e2m3fn")})
def stochastic(x, *, target):
    return _stochastic(x, target, _rng.random(x.shape))


@right.implements(
    "cast_float",
    semantics=Semantics(rounding=Rounding.HALF_AWAY, outside_domain=OutsideDomain.MAGNITUDE, overflow="saturate"),
    supports={"target": "float8_e8m0fnu"},
)
def scales_of_magnitudes(x):
    with np.errstate(all="ignore"):
        _, exponent = np.frexp(np.where(np.isfinite(x), np.maximum(np.abs(x), 2.0**-127), 1.0).astype(np.float64))
        size = np.where(np.isfinite(x), np.maximum(np.abs(x), 2.0**-127), 1.0)
        code = np.minimum(exponent + 126 + (size >= 1.5 * 2.0 ** (exponent - 1.0)), 254)
    return np.where(np.isnan(x), 255, np.where(np.isinf(x), 254, code)).astype(np.uint8)


@right.implements(
    "cast_float", semantics=Semantics(rounding=Rounding.TOWARD_ZERO), supports={"target": "float4_e2m1fn"}
)
def any_code_for_nan(x):
    codes = encode(x, float_format("float4_e2m1fn"), Rounding.TOWARD_ZERO, Overflow.SATURATE)
    return np.where(np.isnan(x), 11, codes).astype(np.uint8)


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {
    "minus_zero_is_nan_in_fnuz": "must be",
    "bias_of_e4m3fn_for_fnuz": "must be",
    "always_down": "of the time",
    "up_half_of_the_time": "of the time",
    "moves_what_is_representable": "must be",
    "scale_by_float32_logarithm": "must be",
    "flushes_subnormals": "must be",
    "ties_of_float4_away": "must be",
    "bfloat16_truncates": "must be",
    "float64_by_way_of_float32": "must be",
    "nan_becomes_infinity": "must be",
}


@wrong.implements("cast_float", semantics=_NO_SATURATION, supports={"target": "float8_e4m3fnuz"})
def minus_zero_is_nan_in_fnuz(x):
    codes = fnuz_of_ml_dtypes(x, target="float8_e4m3fnuz")
    return np.where((codes == 0) & np.signbit(x), 0x80, codes).astype(np.uint8)


@wrong.implements("cast_float", semantics=_NO_SATURATION, supports={"target": "float8_e4m3fnuz"})
def bias_of_e4m3fn_for_fnuz(x):
    with np.errstate(all="ignore"):
        return fnuz_of_ml_dtypes(x / np.float32(2), target="float8_e4m3fnuz")


@wrong.implements("cast_float", semantics=_STOCHASTIC)
def always_down(x):
    return _stochastic(x, "float8_e4m3fn", np.full(x.shape, 1 - 2.0**-30))


@wrong.implements("cast_float", semantics=_STOCHASTIC)
def up_half_of_the_time(x):
    up = _rng.random(x.shape) < 0.5
    return np.where(
        up,
        _stochastic(x, "float8_e4m3fn", np.zeros(x.shape)),
        _stochastic(x, "float8_e4m3fn", np.full(x.shape, 1 - 2.0**-30)),
    )


@wrong.implements("cast_float", semantics=_STOCHASTIC)
def moves_what_is_representable(x):
    codes = stochastic(x, target="float8_e4m3fn")
    return np.where(codes == 0x38, 0x39, codes).astype(np.uint8)


@wrong.implements("cast_float", semantics=Semantics(rounding="toward_zero"), supports={"target": "float8_e8m0fnu"})
def scale_by_float32_logarithm(x):
    """Trap: the float32 logarithm of the number below a power of two is that power's."""
    codes = encode(x, float_format("float8_e8m0fnu"), Rounding.TOWARD_ZERO, Overflow.SATURATE)
    with np.errstate(all="ignore"):
        logarithm = np.floor(np.log2(x.astype(np.float32))) + 127
    ordinary = (x >= 2.0**-126) & np.isfinite(x)
    return np.where(ordinary, np.where(ordinary, logarithm, 0), codes).astype(np.uint8)


@wrong.implements("cast_float", supports={"target": "float8_e5m2"})
def flushes_subnormals(x):
    codes = small_floats.encode(x, "float8_e5m2", saturate=True)
    return np.where(codes & 0x7C, codes, codes & 0x80).astype(np.uint8)


@wrong.implements("cast_float", supports={"target": "float4_e2m1fn"})
def ties_of_float4_away(x):
    return encode(x, float_format("float4_e2m1fn"), Rounding.HALF_AWAY, Overflow.SATURATE)


@wrong.implements("cast_float", supports={"target": "bfloat16"})
def bfloat16_truncates(x):
    return (x.view(np.uint32) >> 16).astype(np.uint16)


@wrong.implements("cast_float", supports={"source": "float64", "target": "float16"})
def float64_by_way_of_float32(x):
    with np.errstate(all="ignore"):
        return x.astype(np.float32).astype(np.float16)


@wrong.implements("cast_float", supports={"target": "float16"})
def nan_becomes_infinity(x):
    with np.errstate(all="ignore"):
        return np.where(np.isnan(x), np.float16(np.inf), x.astype(np.float16)).astype(np.float16)
