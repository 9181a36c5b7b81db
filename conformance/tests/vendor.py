"""A vendor's backend: right kernels of several semantics, and the same kernels with one planted fault each."""

import ctypes
import os
import time
from dataclasses import replace

import numpy as np

from lowbit_cts.kernels import (
    Accumulator,
    Backend,
    Contraction,
    Division,
    Overflow,
    Precision,
    Requantization,
    Rounding,
    Semantics,
    ZeroPointOrder,
)  # fmt: skip
from lowbit_cts.kernels.numpy.vector import add_in_fixed_point

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

PLACES = {"granularity": ("tensor", "axis")}


def _column(values, granularity, axis):
    return values[:, None] if granularity == "axis" and axis == 0 else values


def _saturated(codes, low=-128, high=127):
    return np.clip(codes, low, high).astype(np.int8)


def half_away(t):
    return np.copysign(np.floor(np.abs(t) + np.float32(0.5)), t)


# Right kernels ------------------------------------------------------------------------------------------------------


@right.implements("quantize_affine", supports=PLACES)
def divides(x, scale, zero_point, *, granularity, axis):
    return _saturated(np.rint(x / _column(scale, granularity, axis)) + _column(zero_point, granularity, axis))


@right.implements("quantize_affine", supports=PLACES, semantics=Semantics(division=Division.RECIPROCAL))
def multiplies(x, scale, zero_point, *, granularity, axis):
    inverse = np.float32(1) / _column(scale, granularity, axis)
    return _saturated(np.rint(x * inverse) + _column(zero_point, granularity, axis))


@right.implements("quantize_affine", supports=PLACES, semantics=Semantics(zero_point_order=ZeroPointOrder.INSIDE))
def zero_point_inside(x, scale, zero_point, *, granularity, axis):
    zero = _column(zero_point, granularity, axis).astype(np.float32)
    return _saturated(np.rint(x / _column(scale, granularity, axis) + zero))


@right.implements(
    "quantize_affine",
    supports=PLACES,
    semantics=Semantics(
        division=Division.RECIPROCAL, zero_point_order=ZeroPointOrder.INSIDE, contraction=Contraction.EITHER
    ),
)
def fused_for_odd_columns(x, scale, zero_point, *, granularity, axis):
    inverse = np.float32(1) / _column(scale, granularity, axis)
    zero = _column(zero_point, granularity, axis).astype(np.float32)
    separate = x * inverse + zero
    fused = (x.astype(np.float64) * inverse + zero).astype(np.float32)
    return _saturated(np.rint(np.where(np.arange(x.shape[1]) % 2, fused, separate)))


@right.implements("quantize_affine", supports=PLACES, semantics=Semantics(rounding=Rounding.HALF_AWAY))
def away_from_zero(x, scale, zero_point, *, granularity, axis):
    quotient = (x / _column(scale, granularity, axis)).astype(np.float64)
    return _saturated(half_away(quotient) + _column(zero_point, granularity, axis))


@right.implements("quantize_affine", supports=PLACES, semantics=Semantics(intermediate=Precision.FLOAT64))
def in_float64(x, scale, zero_point, *, granularity, axis):
    quotient = x.astype(np.float64) / _column(scale, granularity, axis)
    return _saturated(np.rint(quotient) + _column(zero_point, granularity, axis))


@right.implements("quantize_affine", semantics=Semantics(division=Division.APPROXIMATE, division_ulps=2))
def two_ulps_off(x, scale, zero_point):
    quotient = x / scale
    quotient = np.nextafter(np.nextafter(quotient, np.float32(np.inf)), np.float32(np.inf))
    return _saturated(np.rint(np.where(np.isinf(x), x, quotient)) + zero_point)


@right.implements("quantize_affine", supports=PLACES)
def into_out(x, scale, zero_point, *, granularity, axis, out):
    out[...] = divides(x, scale, zero_point, granularity=granularity, axis=axis)


@right.implements("matmul_int8")
def product(a, b):
    return a.astype(np.int32) @ b.astype(np.int32)


@right.implements("matmul_w8a8", semantics=Semantics(accumulator=Accumulator.FLOAT32))
def in_float32(a, a_scale, a_zero_point, b, b_scale, bias):
    shifted = a.astype(np.float32) - a_zero_point[:, None].astype(np.float32)
    return (shifted @ b.astype(np.float32)) * (a_scale[:, None] * b_scale) + bias


@right.implements("matmul_w8a8", prepare=lambda b, b_scale: (b.astype(np.int32), b_scale, b.sum(0, dtype=np.int32)))
def with_column_sums(a, a_scale, a_zero_point, bias, *, prepared):
    b, b_scale, sums = prepared
    total = a.astype(np.int32) @ b - a_zero_point[:, None] * sums
    return b_scale * (a_scale[:, None] * total.astype(np.float32)) + bias


@right.implements("add_int8", semantics=Semantics(division=Division.RECIPROCAL))
def sums(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point):
    inverse = np.float32(1) / y_scale
    one = (a - a_zero_point).astype(np.float32) * (a_scale * inverse)
    other = (b - b_zero_point).astype(np.float32) * (b_scale * inverse)
    return _saturated(np.rint(one + other) + y_zero_point)


@right.implements("dequantize_affine", supports=PLACES)
def scales(codes, scale, zero_point, *, granularity, axis):
    shifted = codes - _column(zero_point, granularity, axis)
    return shifted.astype(np.float32) * _column(scale, granularity, axis)


_BOTH = ("float32", "float8_e4m3fn")


@right.implements("cast_float", supports={"source": _BOTH, "target": _BOTH})
def casts_both_ways(x, *, source, target):
    from lowbit_cts.kernels.numpy import small_floats as float8

    if source == "float32":
        return float8.encode(x, target, saturate=True)
    return float8.decode(x, source)


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {
    "half_away_undeclared": "must be",
    "truncates": "must be",
    "wraps": "must be",
    "drops_the_tail": "must be",
    "leaves_the_tail_unwritten": "unwritten",
    "zero_point_off_by_one": "must be",
    "wrong_axis": "must be",
    "scale_of_the_first_row": "must be",
    "overwrites_its_input": "wrote to its input x",
    "writes_past_the_input": "guard band",
    "writes_past_out": "guard band",
    "writes_past_its_own_output": "process ended",
    "hangs": "no result within",
    "hangs_on_seven_rows": "no result within",
    "segfaults": "process ended",
    "exits": "exit status 3",
    "floods": "MiB",
    "asks_for_too_much": "MemoryError",
    "raises": "RuntimeError",
    "remembers": "must be",
    "ignores_strides": "must be",
    "returns_float": "dtype",
    "reads_past_the_end": "must be",
    "int16_accumulator": "must be",
    "saturating_pairs": "must be",
    "drops_one_product": "must be",
    "wrong_for_one_row": "must be",
    "zero_point_not_multiplied": "must be",
    "bias_before_the_scale": "must be",
    "saturates_undeclared": "must be",
    "decodes_minus_zero_as_zero": "must be",
    "rounds_twice": "must be",
    "no_lower_saturation": "must be",
    "zero_range_gives_nan": "must be",
    "accepts_any_group": "must raise",
    "rounds_half_up_by_adding": "must be",
    "wrong_for_seventeen_columns": "must be",
    "returns_the_same_buffer": "changed when the kernel was called again",
    "takes_dense_transposed_for_contiguous": "must be",
    "exits_quietly": "exit status 0",
    "calls_exit": "SystemExit",
    "float32_accumulator": "must be",
    "float32_linear": "must be",
    "float_correction": "must be",
    "destroys_what_was_prepared": "prepared",
    "rounds_the_sum": "must be",
    "adds_in_fixed_point": "must be",
    "adds_in_floating_point": "must be",
}


def _wrong(operation, **options):
    return wrong.implements(operation, **options)


def _fault(function, supports=PLACES):
    """Register a faulty quantizer."""
    return _wrong("quantize_affine", supports=supports)(function)


@_fault
def half_away_undeclared(x, scale, zero_point, *, granularity, axis):
    return away_from_zero(x, scale, zero_point, granularity=granularity, axis=axis)


@_fault
def truncates(x, scale, zero_point, *, granularity, axis):
    return _saturated(np.trunc(x / _column(scale, granularity, axis)) + _column(zero_point, granularity, axis))


@_fault
def wraps(x, scale, zero_point, *, granularity, axis):
    codes = np.rint(x / _column(scale, granularity, axis)) + _column(zero_point, granularity, axis)
    return np.nan_to_num(codes, nan=0, posinf=127, neginf=-128).astype(np.int64).astype(np.int8)


@_fault
def drops_the_tail(x, scale, zero_point, *, granularity, axis):
    codes = divides(x, scale, zero_point, granularity=granularity, axis=axis)
    codes[:, x.shape[1] // 8 * 8 :] = 0
    return codes


@_fault
def leaves_the_tail_unwritten(x, scale, zero_point, *, granularity, axis):
    codes = np.empty(x.shape, np.int8)
    whole = x.shape[1] // 4 * 4
    codes[:, :whole] = divides(x, scale, zero_point, granularity=granularity, axis=axis)[:, :whole]
    return codes


@_fault
def zero_point_off_by_one(x, scale, zero_point, *, granularity, axis):
    return divides(x, scale, zero_point + 1, granularity=granularity, axis=axis)


@_fault
def wrong_axis(x, scale, zero_point, *, granularity, axis):
    if granularity == "axis" and x.shape[0] == x.shape[1]:
        axis = 1 - axis
    return divides(x, scale, zero_point, granularity=granularity, axis=axis)


@_fault
def scale_of_the_first_row(x, scale, zero_point, *, granularity, axis):
    if granularity == "axis" and axis == 0 and x.shape[1] == 1:
        scale = np.broadcast_to(scale[:1], scale.shape)
    return divides(x, scale, zero_point, granularity=granularity, axis=axis)


@_fault
def overwrites_its_input(x, scale, zero_point, *, granularity, axis):
    codes = divides(x, scale, zero_point, granularity=granularity, axis=axis)
    x[-1:, -1:] += 1
    return codes


@_fault
def writes_past_the_input(x, scale, zero_point, *, granularity, axis):
    codes = divides(x, scale, zero_point, granularity=granularity, axis=axis)
    if x.size:
        np.lib.stride_tricks.as_strided(x[-1:, -1:].ravel()[:0], (2,), (4,))  # the address alone
        (ctypes.c_float * 2).from_address(x[-1:, -1:].ctypes.data)[1] = 0.0
    return codes


@_fault
def writes_past_out(x, scale, zero_point, *, granularity, axis, out):
    out[...] = divides(x, scale, zero_point, granularity=granularity, axis=axis)
    (ctypes.c_byte * (out.size + 1)).from_address(out.ctypes.data)[out.size] = 7


@_fault
def writes_past_its_own_output(x, scale, zero_point, *, granularity, axis):
    codes = divides(x, scale, zero_point, granularity=granularity, axis=axis)
    own = np.empty(x.shape, np.int8)
    own[...] = codes
    (ctypes.c_byte * (own.size + 1)).from_address(own.ctypes.data)[own.size] = 7
    return own


@_fault
def hangs(x, scale, zero_point, *, granularity, axis):
    while True:
        time.sleep(1)


@_fault
def hangs_on_seven_rows(x, scale, zero_point, *, granularity, axis):
    while x.shape[0] == 7:
        pass
    return divides(x, scale, zero_point, granularity=granularity, axis=axis)


@_fault
def segfaults(x, scale, zero_point, *, granularity, axis):
    if x.shape[1] > 20:
        ctypes.string_at(0)
    return divides(x, scale, zero_point, granularity=granularity, axis=axis)


@_fault
def exits(x, scale, zero_point, *, granularity, axis):
    if x.shape[0] > 8:
        os._exit(3)
    return divides(x, scale, zero_point, granularity=granularity, axis=axis)


@_fault
def floods(x, scale, zero_point, *, granularity, axis):
    os.write(1, b"All work and no play makes a dull kernel.\n" * 100_000)
    return divides(x, scale, zero_point, granularity=granularity, axis=axis)


@_fault
def asks_for_too_much(x, scale, zero_point, *, granularity, axis):
    np.ones(1 << 40, np.int8)
    return divides(x, scale, zero_point, granularity=granularity, axis=axis)


@_fault
def raises(x, scale, zero_point, *, granularity, axis):
    if x.shape[1] % 2:
        raise RuntimeError("columns must be even")
    return divides(x, scale, zero_point, granularity=granularity, axis=axis)


_cache = {}


@_fault
def remembers(x, scale, zero_point, *, granularity, axis):
    key = x.ctypes.data, x.shape, granularity, axis
    if key not in _cache:
        _cache[key] = divides(x, scale, zero_point, granularity=granularity, axis=axis)
    return _cache[key].copy()


@_fault
def ignores_strides(x, scale, zero_point, *, granularity, axis):
    flat = (ctypes.c_float * x.size).from_address(x.ctypes.data)
    dense = np.frombuffer(flat, np.float32).reshape(x.shape)
    return divides(dense, scale, zero_point, granularity=granularity, axis=axis)


@_fault
def returns_float(x, scale, zero_point, *, granularity, axis):
    return divides(x, scale, zero_point, granularity=granularity, axis=axis).astype(np.float32)


@_fault
def reads_past_the_end(x, scale, zero_point, *, granularity, axis):
    codes = divides(x, scale, zero_point, granularity=granularity, axis=axis)
    if x.size and x.flags.c_contiguous and x.shape[1] % 16 == 1:
        after = np.float32((ctypes.c_float * 2).from_address(x[-1:, -1:].ctypes.data)[1])
        codes[-1, -1] = np.nan_to_num(after + x[-1, -1], nan=-99)
    return codes


@_fault
def no_lower_saturation(x, scale, zero_point, *, granularity, axis):
    codes = np.rint(x / _column(scale, granularity, axis)) + _column(zero_point, granularity, axis)
    return np.nan_to_num(np.minimum(codes, 127), neginf=-128).astype(np.int64).astype(np.int8)


@_wrong("quantize_affine", supports=PLACES, semantics=Semantics(rounding=Rounding.HALF_UP))
def rounds_half_up_by_adding(x, scale, zero_point, *, granularity, axis):
    quotient = x / _column(scale, granularity, axis)
    return _saturated(np.floor(quotient + np.float32(0.5)) + _column(zero_point, granularity, axis))


@_fault
def wrong_for_seventeen_columns(x, scale, zero_point, *, granularity, axis):
    codes = divides(x, scale, zero_point, granularity=granularity, axis=axis)
    return codes ^ 1 if x.shape[1] == 17 else codes


_static = np.zeros(1 << 20, np.int8)


@_fault
def returns_the_same_buffer(x, scale, zero_point, *, granularity, axis):
    mine = _static[: x.size].reshape(x.shape)
    mine[...] = divides(x, scale, zero_point, granularity=granularity, axis=axis)
    return mine


@_fault
def takes_dense_transposed_for_contiguous(x, scale, zero_point, *, granularity, axis):
    if x.flags.f_contiguous and not x.flags.c_contiguous:
        x = x.T.reshape(x.shape)
    return divides(x, scale, zero_point, granularity=granularity, axis=axis)


@_fault
def exits_quietly(x, scale, zero_point, *, granularity, axis):
    if x.shape[0] > 8:
        os._exit(0)
    return divides(x, scale, zero_point, granularity=granularity, axis=axis)


@_fault
def calls_exit(x, scale, zero_point, *, granularity, axis):
    raise SystemExit(1)


@_wrong("matmul_int8")
def float32_accumulator(a, b):
    return (a.astype(np.float32) @ b.astype(np.float32)).astype(np.int32)


@_wrong("matmul_w8a8")
def float32_linear(a, a_scale, a_zero_point, b, b_scale, bias):
    return in_float32(a, a_scale, a_zero_point, b, b_scale, bias)


@_wrong("matmul_w8a8")
def float_correction(a, a_scale, a_zero_point, b, b_scale, bias):
    total = (a.astype(np.int32) @ b.astype(np.int32)).astype(np.float32)
    correction = a_zero_point[:, None].astype(np.float32) * b.sum(0, dtype=np.int32).astype(np.float32)
    return (total - correction) * a_scale[:, None] * b_scale + bias


@_wrong("matmul_int8", prepare=lambda b: b.astype(np.int32))
def destroys_what_was_prepared(a, *, prepared):
    y = a.astype(np.int32) @ prepared
    prepared[...] = 0
    return y


_FIXED_POINT = Semantics(requantization=Requantization.DOUBLE_ROUNDING)
_wrong("add_int8", name="adds_in_fixed_point", supports={"format": ("int8", "uint8")})(add_in_fixed_point)
_wrong("add_int8", name="adds_in_floating_point", semantics=_FIXED_POINT)(sums)


@_wrong("choose_qparams_affine", supports={"narrow_range": True})
def rounds_the_sum(x):
    low, high = np.minimum(x.min(), np.float32(0)), np.maximum(x.max(), np.float32(0))
    scale = np.maximum((high - low) / np.float32(254), np.float32(2.0**-23))
    return scale, np.asarray(np.clip(np.rint(-127 - low / scale), -127, 127), np.int32)


@_wrong("matmul_int8")
def int16_accumulator(a, b):
    return (a.astype(np.int16) @ b.astype(np.int16)).astype(np.int32)


@_wrong("matmul_int8", supports={"a_format": ("int8", "uint8")})
def saturating_pairs(a, b):
    k = a.shape[1] // 2 * 2
    pairs = a[:, :k].reshape(len(a), -1, 2).astype(np.int32)[:, :, None, :]
    weights = b[:k].T.reshape(b.shape[1], -1, 2).astype(np.int32).transpose(1, 0, 2)[None]
    total = np.clip((pairs * weights).sum(-1), -32768, 32767).sum(1)
    return (total + a[:, k:].astype(np.int32) @ b[k:].astype(np.int32)).astype(np.int32)


@_wrong("matmul_int8")
def drops_one_product(a, b):
    a = a.astype(np.int32)
    if a.shape[1] > 16:
        a[:, 16] = 0
    return a @ b.astype(np.int32)


@_wrong("matmul_int8")
def wrong_for_one_row(a, b):
    y = a.astype(np.int32) @ b.astype(np.int32)
    return y + 1 if len(a) == 1 else y


@_wrong("matmul_w8a8")
def zero_point_not_multiplied(a, a_scale, a_zero_point, b, b_scale, bias):
    total = a.astype(np.int32) @ b.astype(np.int32) - b.sum(0, dtype=np.int32)
    return (a_scale[:, None] * b_scale * total).astype(np.float32) + bias


@_wrong("matmul_w8a8")
def bias_before_the_scale(a, a_scale, a_zero_point, b, b_scale, bias):
    total = (a.astype(np.int32) - a_zero_point[:, None]) @ b.astype(np.int32)
    return ((total + bias) * a_scale[:, None] * b_scale).astype(np.float32)


@_wrong("cast_float", semantics=Semantics(overflow=Overflow.INFINITY_OR_NAN))
def saturates_undeclared(x):
    from lowbit_cts.kernels.numpy import small_floats as float8

    return float8.encode(x, "float8_e4m3fn", saturate=True)


@_wrong("cast_float", supports={"source": "float8_e4m3fn", "target": "float32"})
def decodes_minus_zero_as_zero(x):
    from lowbit_cts.kernels.numpy import small_floats as float8

    return float8.decode(x, "float8_e4m3fn") + np.float32(0)


@_wrong("cast_float", supports={"source": "float32", "target": "float8_e4m3fn"})
def rounds_twice(x):
    from lowbit_cts.kernels.numpy import small_floats as float8

    with np.errstate(over="ignore"):
        half = x.astype(np.float16).astype(np.float32)
    return float8.encode(half, "float8_e4m3fn", saturate=True)


@_wrong("choose_qparams_affine")
def zero_range_gives_nan(x):
    low, high = np.minimum(x.min(), np.float32(0)), np.maximum(x.max(), np.float32(0))
    with np.errstate(invalid="ignore"):
        scale = np.asarray((high - low) / np.float32(255), np.float32)
        zero = np.clip(-128 - np.rint(low / scale), -128, 127)
    return scale, np.nan_to_num(zero).astype(np.int32)


@_wrong("quantize_affine", supports={"granularity": "group", "group_size": 32})
def accepts_any_group(x, scale, zero_point, *, group_size):
    columns = np.minimum(np.arange(x.shape[1]) // group_size, scale.shape[1] - 1)
    return _saturated(np.rint(x / scale[:, columns]) + zero_point[:, columns])


#: The right kernels under semantics that are not theirs.
mislabelled = Backend("mislabelled", version="1.0")
for kernel, semantics in (
    (divides, Semantics(division=Division.RECIPROCAL)),
    (multiplies, Semantics()),
    (zero_point_inside, Semantics()),
    (away_from_zero, Semantics(rounding=Rounding.HALF_UP)),
    (in_float64, replace(Semantics(), division=Division.RECIPROCAL)),
):
    mislabelled.implements("quantize_affine", supports=PLACES, semantics=semantics)(kernel)
