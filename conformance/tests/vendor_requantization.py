"""A vendor's requantization: right kernels of every variant, the same mislabelled, and with one planted fault each."""

import numpy as np

from lowbit_cts.kernels import Backend, Requantization, Semantics
from lowbit_cts.kernels.numpy import requantization as plain

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

DOUBLE, SINGLE, FLOAT32, RNDNU, RNDNU16, DOUBLE_UP = Requantization
_EVERYWHERE = {"format": ("int8", "uint8"), "granularity": ("tensor", "channel")}
_ENDS = {"int8": (-128, 127), "uint8": (0, 255)}


def _steps(acc, scale, variant):
    """Return the scaled sums of a variant before a zero point is added."""
    if variant is FLOAT32:
        return np.rint(acc.astype(np.float32) * scale).astype(np.int64)
    function, multiplier = plain._VARIANTS[variant]
    return function(acc.astype(np.int64), *multiplier(scale))


def _saturated(codes, format):
    return np.clip(codes, *_ENDS[format]).astype(format)


def _registered(backend, name, computed, declared):
    def requantize(acc, scale, zero_point, *, format):
        return _saturated(_steps(acc, scale, computed) + zero_point, format)

    semantics = Semantics(requantization=declared)
    backend.implements("requantize", name=name, semantics=semantics, supports=_EVERYWHERE)(requantize)


# Right kernels ------------------------------------------------------------------------------------------------------

for _variant in Requantization:
    _registered(right, str(_variant), _variant, _variant)


@right.implements("requantize", supports=_EVERYWHERE)
def by_a_magic_number(acc, scale, zero_point, *, format):
    """Round by adding 1.5 * 2**23, after clamping: XNNPACK's fmagic."""
    low, high = _ENDS[format]
    scaled = np.clip(acc.astype(np.float32) * scale, (low - zero_point).astype(np.float32),
                     (high - zero_point).astype(np.float32))  # fmt: skip
    rounded = (scaled + np.float32(12582912)).view(np.int32) - np.int32(0x4B400000)
    return (rounded + zero_point).astype(format)


@right.implements("requantize", semantics=Semantics(requantization=RNDNU), supports=_EVERYWHERE)
def in_python_integers(acc, scale, zero_point, *, format, out):
    n = acc.shape[1]
    ratios = [float(s).as_integer_ratio() for s in np.broadcast_to(scale, n)]
    zeros = np.broadcast_to(zero_point, n)
    for row, column in np.ndindex(acc.shape):
        p, q = ratios[column]
        step = (2 * int(acc[row, column]) * p + q) // (2 * q)
        out[row, column] = min(max(step + int(zeros[column]), _ENDS[format][0]), _ENDS[format][1])


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}

# RNDNU and single rounding are one, for a scale that is a float32.
for _computed, _declared in (
    (DOUBLE, SINGLE), (SINGLE, DOUBLE), (SINGLE, FLOAT32), (FLOAT32, SINGLE), (RNDNU, FLOAT32), (FLOAT32, RNDNU),
    (RNDNU16, RNDNU), (RNDNU, RNDNU16), (DOUBLE, FLOAT32), (DOUBLE, DOUBLE_UP), (DOUBLE_UP, DOUBLE),
    (SINGLE, DOUBLE_UP), (DOUBLE_UP, SINGLE),
):  # fmt: skip
    _name = f"{_computed}_declared_as_{_declared}"
    EXPECTED[_name] = "must be"
    _registered(wrong, _name, _computed, _declared)


def _fault(variant=FLOAT32, **options):
    def register(function):
        EXPECTED[function.__name__] = "must be"
        semantics = Semantics(requantization=variant)
        return wrong.implements("requantize", semantics=semantics, **{"supports": _EVERYWHERE, **options})(function)

    return register


@_fault()
def rounds_half_away(acc, scale, zero_point, *, format):
    scaled = acc.astype(np.float32) * scale
    return _saturated(np.copysign(np.floor(np.abs(scaled).astype(np.float64) + 0.5), scaled) + zero_point, format)


@_fault()
def rounds_half_up(acc, scale, zero_point, *, format):
    scaled = (acc.astype(np.float32) * scale).astype(np.float64)
    return _saturated(np.floor(scaled + 0.5) + zero_point, format)


@_fault()
def zero_point_inside(acc, scale, zero_point, *, format):
    return _saturated(np.rint(acc.astype(np.float32) * scale + zero_point.astype(np.float32)), format)


@_fault()
def in_float64(acc, scale, zero_point, *, format):
    return _saturated(np.rint(acc * np.float64(scale)) + zero_point, format)


@_fault()
def saturates_before_the_zero_point(acc, scale, zero_point, *, format):
    return (np.clip(_steps(acc, scale, FLOAT32), *_ENDS[format]) + zero_point).astype(format)


@_fault()
def wraps(acc, scale, zero_point, *, format):
    return (_steps(acc, scale, FLOAT32) + zero_point).astype(format)


@_fault()
def saturates_unsigned_as_signed(acc, scale, zero_point, *, format):
    return np.clip(_steps(acc, scale, FLOAT32) + zero_point, -128, 127).astype(format)


@_fault()
def wraps_at_the_end_of_int32(acc, scale, zero_point, *, format):
    steps = _steps(acc, scale, FLOAT32)
    wrong_sign = (acc == np.iinfo(np.int32).min) & (np.asarray(scale) > 0.05)  # -acc is acc
    return _saturated(np.where(wrong_sign, -steps, steps) + zero_point, format)


@_fault()
def scale_of_the_first_channel(acc, scale, zero_point, *, format):
    return _saturated(_steps(acc, np.ravel(scale)[:1], FLOAT32) + zero_point, format)


@_fault()
def zero_point_of_the_channel_before(acc, scale, zero_point, *, format):
    shifted = np.roll(zero_point, 1) if zero_point.size > 16 else zero_point
    return _saturated(_steps(acc, scale, FLOAT32) + shifted, format)


@_fault()
def last_column_of_sixteen(acc, scale, zero_point, *, format):
    codes = _saturated(_steps(acc, scale, FLOAT32) + zero_point, format)
    if acc.shape[1] % 16 == 1:
        codes[:, -1] = np.clip(zero_point if np.ndim(zero_point) == 0 else zero_point[-1], *_ENDS[format])
    return codes


@_fault()
def scale_plus_an_ulp(acc, scale, zero_point, *, format):
    return _saturated(_steps(acc, np.nextafter(scale, np.float32(1e9)), FLOAT32) + zero_point, format)


def _double(acc, scale, *, away=False, up=False, no_left_shift=False):
    multiplier, shift = plain.tflite_multiplier(scale)
    wide = acc.astype(np.int64) << (0 if no_left_shift else np.maximum(shift, 0))
    product = np.clip(wide, -(2**31), 2**31 - 1) * multiplier
    # A nudge of the product's sign makes ties go away from zero.
    high = np.sign(product) * ((np.abs(product) + (1 << 30)) >> 31) if away else (product + (1 << 30)) >> 31
    places = np.maximum(-shift, 0)
    half = (1 << places) >> 1
    return (high + half) >> places if up else np.sign(high) * ((np.abs(high) + half) >> places)


@_fault(DOUBLE)
def high_multiplication_ties_away(acc, scale, zero_point, *, format):
    return _saturated(_double(acc, scale, away=True) + zero_point, format)


@_fault(DOUBLE)
def shift_ties_up(acc, scale, zero_point, *, format):
    return _saturated(_double(acc, scale, up=True) + zero_point, format)


@_fault(DOUBLE)
def never_shifts_left(acc, scale, zero_point, *, format):
    return _saturated(_double(acc, scale, no_left_shift=True) + zero_point, format)


@_fault(SINGLE)
def multiplies_in_int32(acc, scale, zero_point, *, format):
    multiplier, shift = plain.tflite_multiplier(scale)
    product = (acc * multiplier).astype(np.int32).astype(np.int64)
    return _saturated(((product + (1 << (30 - shift))) >> (31 - shift)) + zero_point, format)


@_fault(SINGLE)
def truncates(acc, scale, zero_point, *, format):
    multiplier, shift = plain.tflite_multiplier(scale)
    return _saturated((acc * multiplier >> (31 - shift)) + zero_point, format)


@_fault(RNDNU)
def multiplier_of_23_bits(acc, scale, zero_point, *, format):
    multiplier, shift = plain._multiplier(scale, 24)
    return _saturated(plain._rndnu(acc.astype(np.int64), multiplier & ~1, shift) + zero_point, format)


@_fault(RNDNU16)
def multiplier_saturates(acc, scale, zero_point, *, format):
    """Saturate a multiplier that rounds to 2**15, as earlier revisions of XNNPACK did."""
    mantissa, exponent = np.frexp(scale.astype(np.float64))
    multiplier = np.minimum(np.floor(mantissa * 2.0**15 + 0.5), 2**15 - 1).astype(np.int64)
    steps = plain._rndnu16(acc.astype(np.int64), multiplier, exponent.astype(np.int64))
    return _saturated(steps + zero_point, format)
