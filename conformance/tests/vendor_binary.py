"""A vendor's binary and ternary kernels: right ones, and the same with one planted fault each."""

from functools import partial

import numpy as np

from lowbit_cts.kernels import PRESETS, Backend, Semantics
from lowbit_cts.kernels.numpy import binary as plain

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

F = np.float32
ONE = F(1)
PLACES = {"granularity": ("tensor", "axis", "group"), "group_size": (16, 32)}


def _codes(condition):
    return np.where(condition, 1, -1).astype(np.int8)


def _shared(x, granularity, axis, group_size):
    members, axes = plain._members(x, granularity, axis, group_size)
    return members, axes if isinstance(axes, tuple) else (axes,)


def _mean(x, place, dtype=F):
    members, axes = _shared(np.abs(x), *place)
    total = members.sum(axis=axes, keepdims=True, dtype=dtype)
    return total, members.size // max(1, total.size), axes


def _scale(x, place):
    total, count, axes = _mean(x, place)
    return (total / F(count)).squeeze(axis=axes)


# Right kernels ------------------------------------------------------------------------------------------------------


@right.implements("binarize", semantics=Semantics(sign_of_zero="sign_bit"), supports=PLACES)
def sign_bits(x, *, granularity, axis, group_size):
    return _codes(~np.signbit(x)), _scale(x, (granularity, axis, group_size))


@right.implements(
    "binarize",
    semantics=Semantics(sign_of_zero="zero", intermediate="float64", division="reciprocal"),
    supports=PLACES,
)
def three_signs(x, *, granularity, axis, group_size):
    total, count, axes = _mean(x, (granularity, axis, group_size), np.float64)
    return np.sign(x).astype(np.int8), (total * (1 / count)).astype(F).squeeze(axis=axes)


@right.implements("binarize", supports=PLACES)
def into_out(x, *, granularity, axis, group_size, out):
    codes, scale = out
    codes[...], scale[...] = _codes(x >= 0), _scale(x, (granularity, axis, group_size))


def _bitnet(x, place, rounded=np.rint, least=1e-5):
    members, _ = _shared(x, *place)
    total, count, axes = _mean(x, place)
    scale = np.maximum(total * (ONE / F(count)), F(least))
    codes = np.clip(rounded(members * (ONE / scale)), -1, 1)
    return codes.astype(np.int8).reshape(x.shape), scale.squeeze(axis=axes)


@right.implements("ternarize", semantics=PRESETS["bitnet"], supports=PLACES)
def as_bitnet(x, *, granularity, axis, group_size):
    return _bitnet(x, (granularity, axis, group_size))


def _twn(x, place, factor=0.7, dtype=F, above=np.greater):
    members, _ = _shared(x, *place)
    total, count, axes = _mean(x, place, dtype)
    size = np.abs(members)
    chosen = above(size, factor * (total / dtype(count)))
    kept = np.where(chosen, size, F(0)).sum(axis=axes, keepdims=True, dtype=dtype)
    scale = kept / np.maximum(chosen.sum(axis=axes, keepdims=True), 1)
    codes = np.where(chosen, np.sign(members), 0).astype(np.int8)
    return codes.reshape(x.shape), scale.astype(F).squeeze(axis=axes)


@right.implements("ternarize", semantics=Semantics(intermediate="float64"), supports={**PLACES, "rule": "twn"})
def threshold_in_float64(x, *, granularity, axis, group_size):
    return _twn(x, (granularity, axis, group_size), dtype=np.float64)


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def _wrong(operation, word="must be", **options):
    def register(function):
        EXPECTED[function.__name__] = word
        return wrong.implements(operation, **{"supports": PLACES, **options})(function)

    return register


_signs = partial(_wrong, "binarize")


@_signs()
def zero_is_negative(x, *, granularity, axis, group_size):
    return _codes(x > 0), _scale(x, (granularity, axis, group_size))


@_signs()
def sign_bit_undeclared(x, *, granularity, axis, group_size):
    return _codes(~np.signbit(x)), _scale(x, (granularity, axis, group_size))


@_signs()
def third_code_undeclared(x, *, granularity, axis, group_size):
    return np.sign(x).astype(np.int8), _scale(x, (granularity, axis, group_size))


@_signs(semantics=Semantics(sign_of_zero="sign_bit"))
def sign_bit_of_subnormals_lost(x, *, granularity, axis, group_size):
    return _codes(~np.signbit(x) | ((np.abs(x) < 2.0**-126) & (x != 0))), _scale(x, (granularity, axis, group_size))


@_signs()
def one_bit_codes(x, *, granularity, axis, group_size):
    return (x >= 0).astype(np.int8), _scale(x, (granularity, axis, group_size))


@_signs()
def root_of_the_mean_square(x, *, granularity, axis, group_size):
    members, axes = _shared(x, granularity, axis, group_size)
    return _codes(x >= 0), np.sqrt(np.mean(members**2, axis=axes)).astype(F)


@_signs()
def largest_magnitude_as_scale(x, *, granularity, axis, group_size):
    members, axes = _shared(np.abs(x), granularity, axis, group_size)
    return _codes(x >= 0), members.max(axis=axes)


@_signs()
def magnitude_of_the_mean(x, *, granularity, axis, group_size):
    members, axes = _shared(x, granularity, axis, group_size)
    return _codes(x >= 0), np.abs(members.mean(axis=axes, dtype=F))


@_signs()
def mean_of_the_others_than_zero(x, *, granularity, axis, group_size):
    total, _, axes = _mean(x, (granularity, axis, group_size))
    members, _ = _shared(x, granularity, axis, group_size)
    count = np.maximum((members != 0).sum(axis=axes, keepdims=True), 1)
    return _codes(x >= 0), (total / count.astype(F)).squeeze(axis=axes)


@_signs()
def scale_of_the_other_axis(x, *, granularity, axis, group_size):
    if granularity == "axis" and x.shape[0] == x.shape[1]:
        axis = 1 - axis
    return _codes(x >= 0), _scale(x, (granularity, axis, group_size))


@_signs()
def groups_reversed(x, *, granularity, axis, group_size):
    scale = _scale(x, (granularity, axis, group_size))
    return _codes(x >= 0), scale[:, ::-1].copy() if granularity == "group" else scale


@_signs()
def mean_in_float16(x, *, granularity, axis, group_size):
    with np.errstate(over="ignore"):
        return _codes(x >= 0), _scale(x, (granularity, axis, group_size)).astype(np.float16).astype(F)


@_signs()
def mean_without_the_last_row(x, *, granularity, axis, group_size):
    scale = _scale(x, (granularity, axis, group_size))
    return _codes(x >= 0), _scale(x[:-1], ("axis", 1, None)) if axis == 1 and len(x) > 32 else scale


_rounds = partial(_wrong, "ternarize", semantics=PRESETS["bitnet"])


@_rounds()
def half_away(x, *, granularity, axis, group_size):
    return _bitnet(x, (granularity, axis, group_size), lambda q: np.copysign(np.floor(np.abs(q) + F(0.5)), q))


@_rounds()
def half_up_by_adding(x, *, granularity, axis, group_size):
    return _bitnet(x, (granularity, axis, group_size), lambda q: np.floor(q + F(0.5)))


@_rounds()
def truncates(x, *, granularity, axis, group_size):
    return _bitnet(x, (granularity, axis, group_size), np.trunc)


def _quotients(x, place):
    """Return the rounded quotients before they are clamped, and the scale."""
    members, _ = _shared(x, *place)
    total, count, _ = _mean(x, place)
    quotients = np.rint(members * (ONE / np.maximum(total * (ONE / F(count)), F(1e-5))))
    return quotients.reshape(x.shape), _bitnet(x, place)[1]


@_rounds()
def without_clamp(x, *, granularity, axis, group_size):
    quotients, scale = _quotients(x, (granularity, axis, group_size))
    return np.clip(quotients, -128, 127).astype(np.int8), scale


@_rounds()
def wraps_what_is_large(x, *, granularity, axis, group_size):
    """Makes bytes of the quotients before it clamps them."""
    quotients, scale = _quotients(x, (granularity, axis, group_size))
    return np.clip(quotients.astype(np.int64).astype(np.int8), -1, 1), scale


@_rounds()
def scale_is_the_largest_magnitude(x, *, granularity, axis, group_size):
    """Trap: ggml's TQ1_0 and TQ2_0 scale by the largest magnitude, for weights that are ternary already."""
    members, axes = _shared(np.abs(x), granularity, axis, group_size)
    scale = np.maximum(members.max(axis=axes, keepdims=True), F(1e-5))
    signed, _ = _shared(x, granularity, axis, group_size)
    return np.rint(signed / scale).astype(np.int8).reshape(x.shape), scale.squeeze(axis=axes)


@_rounds()
def without_epsilon(x, *, granularity, axis, group_size):
    with np.errstate(all="ignore"):
        codes, scale = _bitnet(x, (granularity, axis, group_size), lambda q: np.nan_to_num(np.rint(q)), 0)
    return codes, scale


@_rounds()
def epsilon_added(x, *, granularity, axis, group_size):
    """The paper's w / (mean|w| + epsilon)."""
    place = granularity, axis, group_size
    members, _ = _shared(x, *place)
    total, count, axes = _mean(x, place)
    scale = total * (ONE / F(count)) + F(1e-5)
    return np.clip(np.rint(members / scale), -1, 1).astype(np.int8).reshape(x.shape), scale.squeeze(axis=axes)


@_rounds()
def inverse_scale(x, *, granularity, axis, group_size):
    codes, scale = _bitnet(x, (granularity, axis, group_size))
    return codes, (ONE / scale).astype(F)


@_rounds()
def codes_for_the_tensor(x, *, granularity, axis, group_size):
    return _bitnet(x, ("tensor", None, None))[0], _bitnet(x, (granularity, axis, group_size))[1]


_thresholds = partial(_wrong, "ternarize", supports={**PLACES, "rule": "twn"})


@_thresholds()
def optimal_threshold(x, *, granularity, axis, group_size):
    return _twn(x, (granularity, axis, group_size), factor=0.767032)


@_thresholds()
def threshold_of_70_percent_of_the_largest(x, *, granularity, axis, group_size):
    members, axes = _shared(x, granularity, axis, group_size)
    size = np.abs(members)
    chosen = size > F(0.7) * size.max(axis=axes, keepdims=True)
    scale = np.where(chosen, size, F(0)).sum(axis=axes) / np.maximum(chosen.sum(axis=axes), 1)
    return np.where(chosen, np.sign(members), 0).astype(np.int8).reshape(x.shape), scale.astype(F)


@_thresholds()
def zeros_above_a_threshold_of_zero(x, *, granularity, axis, group_size):
    codes, scale = _twn(x, (granularity, axis, group_size), above=np.greater_equal)
    return np.where((codes == 0) & (x == 0) & (np.abs(x).max(initial=0) == 0), 1, codes).astype(np.int8), scale


@_thresholds()
def nothing_above_gives_nan(x, *, granularity, axis, group_size):
    codes, scale = _twn(x, (granularity, axis, group_size))
    return codes, np.where(scale == 0, np.nan, scale).astype(F)


@_thresholds()
def mean_of_all_as_scale(x, *, granularity, axis, group_size):
    place = granularity, axis, group_size
    return _twn(x, place)[0], _scale(x, place)


@_thresholds()
def sign_lost(x, *, granularity, axis, group_size):
    codes, scale = _twn(x, (granularity, axis, group_size))
    return np.where(np.arange(x.shape[1]) == 257 - 1, np.abs(codes), codes).astype(np.int8), scale


@_thresholds()
def threshold_a_thousandth_low(x, *, granularity, axis, group_size):
    return _twn(x, (granularity, axis, group_size), factor=0.7 * 0.9995)
