"""A vendor's ONNX operators: right ones of several semantics, and the same with one planted fault each."""

import numpy as np

from lowbit_cts.kernels import PRESETS, Backend, Semantics
from lowbit_cts.kernels.numpy import onnx_operators as plain
from lowbit_cts.reference.formats import integer_format
from lowbit_cts.reference.requantization import rescale

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

F = np.float32
INTEGERS = ("int8", "uint8")
EVERYWHERE = plain.EVERYWHERE
QUANTIZED = {**EVERYWHERE, "y_format": INTEGERS}
TENSOR = {"a_format": INTEGERS, "b_format": INTEGERS}

# Right kernels ------------------------------------------------------------------------------------------------------


def _corrected(a, z_a, b, z_b, dtype=np.int32):
    """Return the product with the zero points as corrections."""
    z_a, k = np.reshape(z_a, (-1, 1)).astype(dtype), dtype(a.shape[1])
    a, b, z_b = a.astype(dtype), b.astype(dtype), z_b.astype(dtype)
    return a @ b - a.sum(1, keepdims=True, dtype=dtype) * z_b - z_a * b.sum(0, dtype=dtype) + k * z_a * z_b


def _hold(b, b_zero_point):
    if b_zero_point.ndim and b_zero_point.size != b.shape[1]:
        raise ValueError("b_zero_point: must have an element a column of b")
    return b.copy(), b_zero_point.copy()


@right.implements("matmul_integer", supports=EVERYWHERE, prepare=_hold)
def with_corrections(a, a_zero_point, *, prepared):
    return _corrected(a, a_zero_point, *prepared)


@right.implements("matmul_integer", supports=EVERYWHERE)
def in_float64(a, a_zero_point, b, b_zero_point):
    y = (a.astype(float) - np.reshape(a_zero_point, (-1, 1))) @ (b.astype(float) - b_zero_point)
    return y.astype(np.int64).astype(np.int32)


@right.implements("matmul_integer", supports=EVERYWHERE)
def into_out(a, a_zero_point, b, b_zero_point, *, out):
    out[...] = plain.matmul_integer(a, a_zero_point, b, b_zero_point)


def _scaled(a, a_scale, a_zero_point, b, b_scale, b_zero_point):
    return plain.matmul_integer(a, a_zero_point, b, b_zero_point), np.reshape(a_scale, (-1, 1)) * b_scale


def _saturated(values, format):
    fmt = integer_format(format)
    return np.clip(values, fmt.minimum, fmt.maximum).astype(fmt.carrier)


@right.implements("qlinear_matmul", supports=QUANTIZED, semantics=Semantics(zero_point_order="inside"))
def zero_point_inside(*arguments, y_format):
    acc, scale = _scaled(*arguments[:6])
    y_scale, z_y = arguments[6:]
    return _saturated(np.rint(acc.astype(F) * (scale / y_scale) + z_y.astype(F)), y_format)


@right.implements("qlinear_matmul", supports=QUANTIZED)
def scales_one_by_one(a, a_scale, a_zero_point, b, b_scale, b_zero_point, y_scale, y_zero_point, *, y_format):
    acc = plain.matmul_integer(a, a_zero_point, b, b_zero_point).astype(F)
    return _saturated(np.rint(acc * np.reshape(a_scale, (-1, 1)) * b_scale / y_scale) + y_zero_point, y_format)


@right.implements("qlinear_matmul", supports=QUANTIZED)
def multiplier_in_float64(*arguments, y_format):
    acc, _ = _scaled(*arguments[:6])
    scale = np.reshape(arguments[1], (-1, 1)).astype(float) * arguments[4]
    return _saturated(np.rint(acc * (scale / float(arguments[6]))) + arguments[7], y_format)


@right.implements("qlinear_matmul", supports=QUANTIZED, semantics=Semantics(division="reciprocal"))
def by_the_reciprocal(*arguments, y_format):
    acc, scale = _scaled(*arguments[:6])
    return _saturated(np.rint(acc.astype(F) * (scale * (F(1) / arguments[6]))) + arguments[7], y_format)


@right.implements("qlinear_matmul", supports=QUANTIZED, semantics=Semantics(rounding="half_away"))
def away_from_zero(*arguments, y_format):
    acc, scale = _scaled(*arguments[:6])
    t = (acc.astype(F) * (scale / arguments[6])).astype(float)
    return _saturated(np.copysign(np.floor(np.abs(t) + 0.5), t) + arguments[7], y_format)


def _fixed_point(variant):
    def kernel(*arguments, y_format):
        acc, _ = _scaled(*arguments[:6])
        multiplier = np.reshape(arguments[1], (-1, 1)).astype(float) * arguments[4] / float(arguments[6])
        whole = np.broadcast_to(multiplier, acc.shape).ravel()
        scaled = np.zeros(acc.size, np.int64)
        if acc.size:
            scaled = rescale(acc.ravel(), whole, variant=variant)
        return _saturated(scaled.reshape(acc.shape) + arguments[7], y_format)

    return kernel


right.implements(
    "qlinear_matmul", name="in_fixed_point", supports=QUANTIZED, semantics=Semantics(requantization="double_rounding")
)(_fixed_point("double_rounding"))


def _dynamic(x, nothing=None, dtype=F, inverse=False, order="outside"):
    x = x.astype(dtype)
    low, high = np.minimum(x.min(), dtype(0)), np.maximum(x.max(), dtype(0))
    span = high - low
    scale = F(span * (dtype(1) / dtype(255)) if inverse else span / dtype(255)) if span else nothing or F(1)
    zero_point = np.clip(np.rint(-low / dtype(scale)), 0, 255)
    t = x * (dtype(1) / dtype(scale)) if inverse else x / dtype(scale)
    codes = np.rint(t) + zero_point if order == "outside" else np.rint(t + zero_point)
    return np.clip(codes, 0, 255).astype(np.uint8), np.array(scale, F), np.array(zero_point, np.int32)


def _dynamic_kernel(name, choices, **options):
    semantics = Semantics(**{**vars(PRESETS["onnx"]), **choices})
    right.implements("dynamic_quantize_linear", name=name, semantics=semantics)(lambda x: _dynamic(x, **options))


_dynamic_kernel("as_the_evaluator", {"zero_scale": "unit_range"}, nothing=F(1) / F(255))
_dynamic_kernel("dynamic_in_float64", {"intermediate": "float64"}, dtype=np.float64)
_dynamic_kernel("dynamic_by_the_reciprocal", {"division": "reciprocal"}, inverse=True)
_dynamic_kernel("dynamic_zero_point_inside", {"zero_point_order": "inside"}, order="inside")
_dynamic_kernel("smallest_scale", {"zero_scale": "epsilon", "epsilon": 2.0**-126}, nothing=F(2.0**-126))

# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def _wrong(operation, word="must be", **options):
    def register(function):
        EXPECTED[function.__name__] = word
        return wrong.implements(operation, **options)(function)

    return register


def _integer(**options):
    return _wrong("matmul_integer", **{"supports": EVERYWHERE, **options})


@_integer()
def zero_points_swapped(a, a_zero_point, b, b_zero_point):
    if a_zero_point.shape or b_zero_point.shape:
        return plain.matmul_integer(a, a_zero_point, b, b_zero_point)
    return plain.matmul_integer(a, b_zero_point, b, a_zero_point)


@_integer()
def last_term_forgotten(a, a_zero_point, b, b_zero_point):
    """The correction K z_a z_b is left out."""
    z_a = np.reshape(a_zero_point, (-1, 1))
    return _corrected(a, a_zero_point, b, b_zero_point) - np.int32(a.shape[1]) * z_a * b_zero_point


@_integer()
def a_row_for_all_rows(a, a_zero_point, b, b_zero_point):
    return plain.matmul_integer(a, a_zero_point.ravel()[:1].reshape(()) if a_zero_point.size else a_zero_point, b,
                                b_zero_point)  # fmt: skip


@_integer()
def zero_point_along_columns(a, a_zero_point, b, b_zero_point):
    """The zero point of a row is subtracted from a column, where there are as many."""
    if a_zero_point.ndim and a_zero_point.size == a.shape[1]:
        return (a.astype(np.int32) - a_zero_point) @ (b.astype(np.int32) - b_zero_point)
    return plain.matmul_integer(a, a_zero_point, b, b_zero_point)


@_integer()
def differences_in_8_bits(a, a_zero_point, b, b_zero_point):
    shifted = (a.astype(np.int32) - np.reshape(a_zero_point, (-1, 1))).astype(
        np.int8 if a.dtype == np.int8 else np.int16
    )
    return shifted.astype(np.int32) @ (b.astype(np.int32) - b_zero_point)


@_integer()
def sums_saturate(a, a_zero_point, b, b_zero_point):
    y = (a.astype(float) - np.reshape(a_zero_point, (-1, 1))) @ (b.astype(float) - b_zero_point)
    return np.clip(y, -(2**31), 2**31 - 1).astype(np.int32)


@_integer()
def sums_in_float32(a, a_zero_point, b, b_zero_point):
    return (_corrected(a, a_zero_point, b, b_zero_point, F)).astype(np.int64).astype(np.int32)


@_integer()
def codes_of_b_are_signed(a, a_zero_point, b, b_zero_point):
    return plain.matmul_integer(a, a_zero_point, b.view(np.int8), b_zero_point)


@_integer(word="accepted")
def zero_point_of_one_column_short(a, a_zero_point, b, b_zero_point):
    if b_zero_point.ndim and b_zero_point.size != b.shape[1]:
        b_zero_point = np.resize(b_zero_point, b.shape[1])
    return plain.matmul_integer(a, a_zero_point, b, b_zero_point)


def _quantized(**options):
    return _wrong("qlinear_matmul", **{"supports": QUANTIZED, **options})


@_quantized()
def zero_point_inside_undeclared(*arguments, y_format):
    return zero_point_inside(*arguments, y_format=y_format)


@_quantized()
def multiplier_in_float16(*arguments, y_format):
    acc, scale = _scaled(*arguments[:6])
    with np.errstate(over="ignore"):
        multiplier = (scale / arguments[6]).astype(np.float16).astype(F)
    return _saturated(np.nan_to_num(np.rint(acc.astype(F) * multiplier)) + arguments[7], y_format)


@_quantized()
def zero_point_of_the_output_forgotten(*arguments, y_format):
    return plain.qlinear_matmul(*arguments[:7], np.zeros((), np.int32), y_format=y_format)


@_quantized()
def scale_of_a_for_b(*arguments, y_format):
    """The scale of a is squared where both are one."""
    changed = list(arguments)
    if not arguments[1].ndim and not arguments[4].ndim:
        changed[4] = arguments[1]
    return plain.qlinear_matmul(*changed, y_format=y_format)


@_quantized()
def wraps_to_8_bits(*arguments, y_format):
    acc, scale = _scaled(*arguments[:6])
    t = np.clip(np.rint(acc.astype(F) * (scale / arguments[6])), -(2.0**40), 2.0**40) + arguments[7]
    return t.astype(np.int64).astype(integer_format(y_format).carrier)


@_quantized()
def by_way_of_int32(*arguments, y_format):
    """Scaled sums are converted to int32 before they are clamped."""
    acc, scale = _scaled(*arguments[:6])
    t = np.rint(acc.astype(F) * (scale / arguments[6])).astype(float)
    t = np.where(np.abs(t) < 2.0**31, t, -(2.0**31))
    return _saturated(t.astype(np.int64) + arguments[7], y_format)


@_quantized()
def saturates_before_the_zero_point(*arguments, y_format):
    acc, scale = _scaled(*arguments[:6])
    codes = np.clip(np.rint(acc.astype(F) * (scale / arguments[6])), -128, 127)
    return _saturated(codes + arguments[7], y_format)


@_quantized()
def half_up_undeclared(*arguments, y_format):
    acc, scale = _scaled(*arguments[:6])
    return _saturated(np.floor((acc.astype(F) * (scale / arguments[6])).astype(float) + 0.5) + arguments[7], y_format)


@_quantized(semantics=Semantics(requantization="double_rounding"))
def single_rounding_for_double(*arguments, y_format):
    return _fixed_point("single_rounding")(*arguments, y_format=y_format)


@_quantized()
def first_scale_of_b_for_all(*arguments, y_format):
    changed = list(arguments)
    if arguments[4].ndim and arguments[4].size:
        changed[4] = np.full_like(arguments[4], arguments[4][0])
    return plain.qlinear_matmul(*changed, y_format=y_format)


def _dynamically(**options):
    return _wrong("dynamic_quantize_linear", **{"semantics": PRESETS["onnx"], **options})


@_dynamically()
def range_without_zero(x):
    low, high = x.min(), x.max()
    scale = (high - low) / F(255) if high > low else F(1)
    zero_point = np.clip(np.rint(-low / scale), 0, 255)
    codes = np.clip(np.rint(x / scale) + zero_point, 0, 255).astype(np.uint8)
    return codes, np.array(scale, F), np.array(zero_point, np.int32)


@_dynamically()
def scale_of_nothing_is_the_evaluators(x):
    return _dynamic(x, nothing=F(1) / F(255))


@_dynamically()
def two_hundred_and_fifty_six_steps(x):
    low, high = np.minimum(x.min(), F(0)), np.maximum(x.max(), F(0))
    scale = (high - low) / F(256) if high > low else F(1)
    zero_point = np.clip(np.rint(-low / scale), 0, 255)
    return np.clip(np.rint(x / scale) + zero_point, 0, 255).astype(np.uint8), np.array(scale, F), np.array(
        zero_point, np.int32)  # fmt: skip


@_dynamically()
def zero_point_is_cut(x):
    """The zero point is truncated, not rounded."""
    _, scale, _ = _dynamic(x)
    zero_point = np.floor(-np.minimum(x.min(), F(0)) / scale)
    return np.clip(np.rint(x / scale) + zero_point, 0, 255).astype(np.uint8), scale, np.array(zero_point, np.int32)


@_dynamically()
def unrounded_zero_point(x):
    """The zero point is added before it is rounded, and the sum is rounded."""
    _, scale, zero_point = _dynamic(x)
    exact = -np.minimum(x.min(), F(0)) / scale
    return np.clip(np.rint(x / scale + exact), 0, 255).astype(np.uint8), scale, zero_point


@_dynamically()
def codes_wrap(x):
    _, scale, zero_point = _dynamic(x)
    return (np.rint(x / scale) + zero_point).astype(np.int64).astype(np.uint8), scale, zero_point


@_dynamically()
def last_element_unseen(x):
    _, scale, zero_point = _dynamic(x.ravel()[:-1][None, :] if x.size > 1 else x)
    return np.clip(np.rint(x / scale) + zero_point, 0, 255).astype(np.uint8), scale, zero_point


@_dynamically()
def reciprocal_undeclared(x):
    return _dynamic(x, inverse=True)
