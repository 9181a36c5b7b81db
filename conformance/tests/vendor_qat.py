"""A vendor's gradients of fake quantization: right kernels of many semantics, and the same with one planted fault."""

from functools import partial

import numpy as np

from lowbit_cts.kernels import Backend, Semantics
from lowbit_cts.reference.formats import INTEGER_FORMATS, integer_format

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

F = np.float32
PLACES = {"granularity": ("tensor", "axis", "group"), "group_size": (16, 32)}
WIDE = {"format": INTEGER_FORMATS, **PLACES}
FEW = {"format": ("int4", "uint8"), **PLACES}
LSQ_FEW = {**FEW, "has_zero_point": (False, True)}


class Laid:
    """A matrix, its upstream gradient, and what shares a scale along the axes `shared`."""

    def __init__(self, x, upstream, scale, zero_point, place, codes):
        granularity, axis, group_size = place
        self.shape = x.shape
        self.shared = {"tensor": (0, 1), "axis": (1 - (axis or 0),), "group": (2,)}[granularity]
        if granularity == "group":
            if x.shape[1] % group_size:
                raise ValueError(f"{x.shape[1]} columns are no whole groups of {group_size}")
            x, upstream = (part.reshape(len(part), -1, group_size) for part in (x, upstream))
        wide = granularity == "group" or (granularity == "axis" and axis == 0)
        zero_point = np.zeros(scale.shape, np.int32) if zero_point is None else zero_point
        self.x, self.upstream = x, upstream
        self.s = scale[..., None] if wide else scale
        self.z = (zero_point[..., None] if wide else zero_point).astype(F)
        self.qmin, self.qmax = (F(code) for code in codes)
        self.low, self.high = self.qmin - self.z, self.qmax - self.z


def _fake(mask, close=lambda inside, upstream: np.where(inside, upstream, F(0))):
    """Return a kernel of fake_quantize_gradient with the mask that a function of `Laid` gives."""

    def kernel(x, upstream, scale, zero_point, *, format, granularity, axis, group_size):
        laid = Laid(x, upstream, scale, zero_point, (granularity, axis, group_size), integer_format(format).codes())
        with np.errstate(all="ignore"):
            return close(mask(laid), laid.upstream).astype(F).reshape(laid.shape)

    return kernel


def _of_code(laid):
    code = np.rint(laid.x / laid.s) + laid.z
    return (code >= laid.qmin) & (code <= laid.qmax)


def _of_quotient(laid):
    quotient = laid.x / laid.s
    return (quotient > laid.low) & (quotient < laid.high)


def _closed(laid):
    quotient = laid.x / laid.s
    return (quotient >= laid.low) & (quotient <= laid.high)


def _of_range(laid):
    return (laid.x >= laid.s * laid.low) & (laid.x <= laid.s * laid.high)


def _steps(laid, inside):
    """Return dy/ds."""
    quotient = laid.x / laid.s
    offset = np.clip(np.rint(quotient), laid.low, laid.high)
    return np.where(inside, offset - quotient, np.where(quotient < (laid.low + laid.high) / 2, laid.low, laid.high))


def _lsq(mask=_of_code, steps=_steps, total=None, values=None, wide=F):
    """Return a kernel of lsq_gradient made of a mask, of dy/ds, of their sum and of the gradient of the values."""

    def kernel(v, upstream, scale, zero_point, gradient_scale, *, format, granularity, axis, group_size):
        codes = integer_format(format).codes()
        laid = Laid(v, upstream, scale, zero_point, (granularity, axis, group_size), codes)
        with np.errstate(all="ignore"):
            inside = mask(laid)
            dv = np.where(inside, laid.upstream, F(0)) if values is None else values(laid, inside)
            parts = laid.upstream.astype(wide) * steps(laid, inside).astype(F)
            summed = parts.sum(axis=laid.shared, dtype=F) * gradient_scale
            dscale = summed if total is None else total(parts, laid.shared, gradient_scale)
        return dv.astype(F).reshape(laid.shape), np.asarray(dscale, F)

    return kernel


# Right kernels ------------------------------------------------------------------------------------------------------

for _name, _mask, _semantics in (
    ("of_quotient", _of_quotient, Semantics(gradient_mask="quotient")),
    ("of_clamp", _closed, Semantics(gradient_mask="quotient_closed")),
    ("of_range", _of_range, Semantics(gradient_mask="range")),
    ("by_the_reciprocal", lambda a: (np.abs(np.rint(a.x * (F(1) / a.s)) + a.z - (a.qmin + a.qmax) / 2)
     <= (a.qmax - a.qmin) / 2), Semantics(division="reciprocal")),
    ("half_away", lambda a: ((np.trunc(a.x / a.s) + np.where(np.abs(a.x / a.s - np.trunc(a.x / a.s)) >= F(0.5),
     np.sign(a.x), F(0)) + a.z >= a.qmin) & (np.trunc(a.x / a.s) + np.where(
     np.abs(a.x / a.s - np.trunc(a.x / a.s)) >= F(0.5), np.sign(a.x), F(0)) + a.z <= a.qmax)),
     Semantics(rounding="half_away")),
):  # fmt: skip
    right.implements("fake_quantize_gradient", name=_name, semantics=_semantics, supports=WIDE)(_fake(_mask))

right.implements(
    "fake_quantize_gradient", name="multiplied", semantics=Semantics(masked_gradient="product"), supports=WIDE
)(_fake(_of_code, lambda inside, upstream: upstream * inside))


@right.implements("fake_quantize_gradient", supports={**FEW, "narrow_range": (False, True)})
def into_out(x, upstream, scale, zero_point, *, format, granularity, axis, group_size, narrow_range, out):
    codes = integer_format(format).codes(narrow_range)
    laid = Laid(x, upstream, scale, zero_point, (granularity, axis, group_size), codes)
    with np.errstate(all="ignore"):
        out[...] = np.where(_of_code(laid), laid.upstream, F(0)).reshape(laid.shape)


@right.implements("fake_quantize_gradient", semantics=Semantics(gradient_form="chain"), supports=WIDE)
def chained(x, upstream, scale, zero_point, *, format, granularity, axis, group_size):
    laid = Laid(x, upstream, scale, zero_point, (granularity, axis, group_size), integer_format(format).codes())
    with np.errstate(all="ignore"):
        through = np.where(_of_code(laid), laid.upstream * laid.s, F(0)) * (F(1) / laid.s)
        return through.astype(F).reshape(laid.shape)


for _name, _kernel, _semantics in (
    ("of_paper", _lsq(_of_quotient), Semantics(gradient_mask="quotient")),
    ("of_code", _lsq(), Semantics()),
    ("ends_in_float32", _lsq(_of_range), Semantics(gradient_mask="range")),
    ("factor_first", _lsq(total=lambda parts, shared, g: (parts * g).sum(axis=shared, dtype=F)), Semantics()),
    ("in_float64", _lsq(total=lambda parts, shared, g: parts.sum(axis=shared) * g, wide=np.float64),
     Semantics(float_accumulator="float64")),
    ("through_the_result", _lsq(_of_code, lambda a, inside: np.where(inside, (np.clip(np.rint(a.x / a.s), a.low,
     a.high) * a.s - a.x) / a.s, _steps(a, inside))), Semantics()),
):  # fmt: skip
    right.implements(
        "lsq_gradient", name=_name, semantics=_semantics, supports={**WIDE, "has_zero_point": (False, True)}
    )(_kernel)


@right.implements(
    "lsq_gradient",
    semantics=Semantics(gradient_mask="quotient_closed", gradient_form="chain"),
    supports={**WIDE, "has_zero_point": (False, True)},
)
def sums_apart(v, upstream, scale, zero_point, gradient_scale, *, format, granularity, axis, group_size):
    laid = Laid(v, upstream, scale, zero_point, (granularity, axis, group_size), integer_format(format).codes())
    with np.errstate(all="ignore"):
        inside = _closed(laid)
        offset = np.rint(np.clip(laid.x / laid.s, laid.low, laid.high))
        rounded = (laid.upstream * offset).sum(axis=laid.shared, dtype=F)
        through = np.where(inside, laid.upstream * laid.s, F(0))
        moved = (through * (-laid.x / laid.s / laid.s)).sum(axis=laid.shared, dtype=F)
        dv = (through / laid.s).astype(F).reshape(laid.shape)
        return dv, np.asarray((rounded + moved) * gradient_scale, F)


def _first(v, place):
    """Return magnitudes, and the axes of those that share a scale."""
    granularity, axis, group_size = place
    shared = {"tensor": (0, 1), "axis": (1 - (axis or 0),), "group": (2,)}[granularity]
    if granularity == "group":
        if v.shape[1] % group_size:
            raise ValueError(f"{v.shape[1]} columns are no whole groups of {group_size}")
        v = v.reshape(len(v), -1, group_size)
    return np.abs(v), shared


@right.implements("lsq_initial_scale", supports=WIDE)
def first_scale_by_a_factor(v, *, format, granularity, axis, group_size):
    members, shared = _first(v, (granularity, axis, group_size))
    factor = F(2 / (np.prod([members.shape[a] for a in shared]) * np.sqrt(integer_format(format).maximum)))
    return np.asarray(members.sum(axis=shared, dtype=F) * factor, F)


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def _wrong(operation, name, kernel, word="must be", **options):
    EXPECTED[name] = word
    wrong.implements(operation, name=name, **{"supports": FEW, **options})(kernel)


_fakes = partial(_wrong, "fake_quantize_gradient")
_lsqs = partial(_wrong, "lsq_gradient", supports=LSQ_FEW)
_firsts = partial(_wrong, "lsq_initial_scale")


def _wrapped(laid):
    """Return the mask of codes that were converted to int32 by way of int64."""
    steps = np.nan_to_num(np.rint(laid.x / laid.s), nan=1e9).clip(-(2.0**62), 2.0**62).astype(np.int64)
    code = steps.astype(np.int32) + laid.z
    return (code >= laid.qmin) & (code <= laid.qmax)


_fakes("mask_on_x", _fake(_of_quotient))
_fakes("mask_on_code", _fake(_of_code), semantics=Semantics(gradient_mask="quotient"))
_fakes("edges_not_strict", _fake(_closed), semantics=Semantics(gradient_mask="quotient"))
_fakes("edges_strict", _fake(_of_quotient), semantics=Semantics(gradient_mask="quotient_closed"))
_fakes("clamped_before_it_is_compared", _fake(lambda a: ~np.isnan(a.x)))
_fakes("zero_point_forgotten", _fake(lambda a: (np.rint(a.x / a.s) >= a.qmin) & (np.rint(a.x / a.s) <= a.qmax)))
_fakes("zero_point_subtracted", _fake(lambda a: (np.rint(a.x / a.s) - a.z >= a.qmin)
                                      & (np.rint(a.x / a.s) - a.z <= a.qmax)))  # fmt: skip
_fakes("qmax_excluded", _fake(lambda a: _of_code(a) & (np.rint(a.x / a.s) < a.high)))
_fakes("qmin_excluded", _fake(lambda a: _of_code(a) & (np.rint(a.x / a.s) > a.low)))
_fakes("one_code_beyond", _fake(lambda a: _of_code(a) | (np.rint(a.x / a.s) == a.high + 1)))
_fakes("mask_inverted", _fake(lambda a: ~_of_code(a)))
_fakes("below_not_masked", _fake(lambda a: np.rint(a.x / a.s) <= a.high))
_fakes("nan_passes", _fake(lambda a: ~((np.rint(a.x / a.s) < a.low) | (np.rint(a.x / a.s) > a.high))))
_fakes("half_up_undeclared", _fake(lambda a: (np.floor(a.x / a.s + F(0.5)) >= a.low)
                                   & (np.floor(a.x / a.s + F(0.5)) <= a.high)))  # fmt: skip
_fakes("zero_point_inside_undeclared", _fake(lambda a: (np.rint(a.x / a.s + a.z) >= a.qmin)
                                             & (np.rint(a.x / a.s + a.z) <= a.qmax)))  # fmt: skip
_fakes("reciprocal_undeclared", _fake(lambda a: (np.rint(a.x * (F(1) / a.s)) >= a.low)
                                      & (np.rint(a.x * (F(1) / a.s)) <= a.high)))  # fmt: skip
_fakes("wraps_in_int32", _fake(_wrapped))
_fakes("times_the_scale", _fake(_of_code, lambda inside, upstream: np.where(inside, upstream * F(1.0001), F(0))))
_fakes("multiplied_undeclared", _fake(_of_code, lambda inside, upstream: upstream * inside), "nan")
_fakes("upstream_in_float16", _fake(_of_code, lambda inside, u: np.where(inside, u.astype(np.float16), F(0))))
_fakes("chain_undeclared", chained)


def _other_axis(laid, inside):
    """Return dy/ds with what is below and above swapped."""
    return np.where(inside, _steps(laid, inside), laid.low + laid.high - _steps(laid, inside))


_lsqs("factor_missing", _lsq(total=lambda parts, shared, g: parts.sum(axis=shared, dtype=F)))
_lsqs("factor_squared", _lsq(total=lambda parts, shared, g: parts.sum(axis=shared, dtype=F) * g * g))
_lsqs("root_of_the_factor", _lsq(total=lambda parts, shared, g: parts.sum(axis=shared, dtype=F) * np.sqrt(g)))
_lsqs("mean_instead_of_sum", _lsq(total=lambda parts, shared, g: parts.mean(axis=shared, dtype=F) * g))
_lsqs("edges_swapped", _lsq(steps=_other_axis))
_lsqs("sign_of_qn", _lsq(steps=lambda a, inside: np.where(
    inside | (a.x / a.s > a.high), _steps(a, inside), -a.low)))  # fmt: skip
_lsqs("sign_of_all", _lsq(steps=lambda a, inside: -_steps(a, inside)))
_lsqs("rounded_without_the_quotient", _lsq(steps=lambda a, inside: np.clip(np.rint(a.x / a.s), a.low, a.high)))
_lsqs("nothing_outside", _lsq(steps=lambda a, inside: np.where(inside, _steps(a, inside), F(0))))
_lsqs("zero_point_of_the_edges_forgotten", _lsq(steps=lambda a, inside: np.where(
    inside, _steps(a, inside), _steps(a, inside) + a.z)))  # fmt: skip
_lsqs("not_divided_by_the_scale", _lsq(steps=lambda a, inside: np.where(
    inside, _steps(a, inside) * a.s, _steps(a, inside))))  # fmt: skip
_lsqs("of_code_for_the_paper", _lsq(), supports=LSQ_FEW, semantics=Semantics(gradient_mask="quotient"))
_lsqs("of_paper_for_the_code", _lsq(_of_quotient))
_lsqs("edges_open_for_a_clamp", _lsq(_of_quotient), semantics=Semantics(gradient_mask="quotient_closed"))
_lsqs("masked_by_code_summed_by_quotient", _lsq(steps=lambda a, inside: _steps(a, _of_quotient(a))))
_lsqs("sum_in_float16", _lsq(total=lambda parts, shared, g: parts.astype(np.float16).sum(
    axis=shared, dtype=np.float16).astype(F) * g))  # fmt: skip
_lsqs("sum_in_bfloat16_terms", _lsq(total=lambda parts, shared, g: (
    (parts.view(np.uint32) & np.uint32(0xFFFF0000)).view(F)).sum(axis=shared, dtype=F) * g))  # fmt: skip
_lsqs("last_element_left_out", _lsq(total=lambda parts, shared, g: (
    parts.sum(axis=shared, dtype=F) - parts[(..., -1) if shared != (0,) else -1].sum(
        axis=(-1 if shared == (0, 1) else ()), dtype=F)) * g))  # fmt: skip
_lsqs("sum_of_4096", _lsq(total=lambda parts, shared, g: (
    parts[..., :4096] if shared != (0,) else parts[:4096]).sum(axis=shared, dtype=F) * g))  # fmt: skip
_lsqs("wrong_axis_where_square", _lsq(total=lambda parts, shared, g: parts.sum(
    axis=(1 - shared[0],) if len(shared) == 1 and parts.ndim == 2 and len(set(parts.shape)) == 1 else shared,
    dtype=F) * g))  # fmt: skip
_lsqs("groups_reversed", _lsq(total=lambda parts, shared, g: (
    parts[:, ::-1] if shared == (2,) else parts).sum(axis=shared, dtype=F) * g))  # fmt: skip
_lsqs("values_times_the_factor", _lsq(values=lambda a, inside: np.where(inside, a.upstream * F(0.5), F(0))))
_lsqs("values_unmasked", _lsq(values=lambda a, inside: a.upstream))
_lsqs("infinity_times_zero", _lsq(_closed, lambda a, inside: np.where(
    inside, F(1), F(0)) * -(a.x / a.s) + np.rint(np.clip(a.x / a.s, a.low, a.high))), "nan",
    semantics=Semantics(gradient_mask="quotient_closed"))  # fmt: skip


def _first_scale(change):
    def kernel(v, *, format, granularity, axis, group_size):
        members, shared = _first(v, (granularity, axis, group_size))
        fmt = integer_format(format)
        with np.errstate(all="ignore"):
            return np.asarray(change(members, shared, F(fmt.maximum), F(fmt.minimum)), F)

    return kernel


_firsts("mean_of_squares", _first_scale(lambda m, shared, qp, qn: 2 * np.sqrt((m * m).mean(axis=shared)) / np.sqrt(qp)))
_firsts("without_the_root", _first_scale(lambda m, shared, qp, qn: 2 * m.mean(axis=shared, dtype=F) / qp))
_firsts("without_the_two", _first_scale(lambda m, shared, qp, qn: m.mean(axis=shared, dtype=F) / np.sqrt(qp)))
_firsts("root_of_all_codes", _first_scale(
    lambda m, shared, qp, qn: 2 * m.mean(axis=shared, dtype=F) / np.sqrt(qp - qn)))  # fmt: skip
_firsts("largest_over_qp", _first_scale(lambda m, shared, qp, qn: 2 * m.max(axis=shared) / np.sqrt(qp)))
_firsts("first_scale_in_float16", _first_scale(
    lambda m, shared, qp, qn: (2 * m.mean(axis=shared, dtype=F) / np.sqrt(qp)).astype(np.float16)))  # fmt: skip
