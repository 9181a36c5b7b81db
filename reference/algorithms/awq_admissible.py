"""The admissible results of AWQ's searches in floating point.

A search takes the candidate of the least output error, so a kernel may differ from the reference wherever rounding
errors make another one the least. How far a candidate's objective may be off follows from three bounds:

- a scale carries the roundings of a mean, of powers and of a quotient;
- a weight may be rounded to another code where its quotient is that close to a tie, and so may a zero point; the
  difference of the dequantized weight is at most delta_k;
- an output carries those of a sum of products, c_t at sample t, whatever its order (Higham 2002, (3.5)).

The output errors e of a row of weights become e + X d + f, |d_k| <= delta_k and |f_t| <= c_t, hence

    | ||e + X d + f||^2 - ||e||^2 | <= 2 sum_k |X^T e|_k delta_k + 2 sum_t |e_t| c_t + (sum_k ||x_k|| delta_k + ||c||)^2

by the triangle inequality. All of it holds in the worst case. Of identical operations on identical numbers the same
result is taken for granted: a group's weights that are clipped to its bound have all the same code.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from lowbit_cts.reference.algorithms.awq import (
    LEAST_RANGE,
    LEAST_SCALE,
    RATIOS,
    SHARES,
    ScaleCandidates,
    candidate_scales,
    check_layer,
    check_rows,
    group_length,
)
from lowbit_cts.reference.calibration.candidates import least
from lowbit_cts.reference.choices import Precision, Rounding, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, gamma, power_of_two, representable, within
from lowbit_cts.reference.formats import FloatFormat, float_format
from lowbit_cts.reference.rounding import round_to_integer
from lowbit_cts.reference.sums import quantum

_FLOAT32 = float_format("float32")
#: Sums of up to so many units that all terms are whole multiples of are exact.
_EXACT = {Precision.FLOAT32: 2.0**24, Precision.FLOAT64: 2.0**53}


@dataclass(frozen=True)
class _Rounded:
    """Weights rounded to the codes of their groups, (N, G, S), and how far a kernel's may be from them."""

    values: np.ndarray
    room: np.ndarray


def _codes(quotient: np.ndarray, room: np.ndarray, rounding: Rounding) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rounded quotients, and the least and the greatest that they may be rounded to."""
    lowest, highest = (round_to_integer(quotient + side * room, rounding) for side in (-1, 1))
    return round_to_integer(quotient, rounding), lowest, highest


def _rounded(
    groups: np.ndarray, off: np.ndarray, bits: int, fmt: FloatFormat, rounding: Rounding, clipped: np.ndarray | None
) -> Iterator[_Rounded]:
    """Yield what groups, (N, G, S), each number known to `off`, may be rounded to.

    One of the yielded is that of the kernel; without `clipped` there is one. With it (-1, 0, 1: clipped to the lower
    bound, not, to the upper one), where the codes of clipped weights or zero points are open, one for each choice.
    """
    unit, largest = fmt.unit_roundoff, (1 << bits) - 1
    ends = {}
    for name, pick in (("low", np.min), ("high", np.max)):
        one = pick(groups, axis=-1, keepdims=True)
        most = [pick(groups + side * off, axis=-1, keepdims=True) for side in (-1, 1)]
        ends[name] = one, np.maximum(one - most[0], most[1] - one)
    (low, low_off), (high, high_off) = ends["low"], ends["high"]
    spread = high - low
    span, spread_off = np.maximum(spread, LEAST_RANGE), low_off + high_off
    step = span / largest
    exact = (spread_off == 0) & representable(spread, fmt) & representable(step, fmt) & (step * largest == spread)
    exact &= spread > LEAST_RANGE * (1 + 4 * unit)
    step_off = np.where(exact, 0.0, (spread_off + gamma(3, unit) * span) / largest)
    settled = exact & power_of_two(step)

    def room(numbers: np.ndarray, number_off: np.ndarray) -> np.ndarray:
        inside = step_off < step
        relative = gamma(2, unit) + step_off / np.where(inside, step - step_off, step)
        wide = number_off / np.where(inside, step - step_off, step) + np.abs(numbers / step) * relative
        return np.where(settled & (number_off == 0), 0.0, np.where(inside, wide, np.inf))

    with np.errstate(invalid="ignore"):
        zeros = [np.clip(-z, 0, largest) for z in _codes(low / step, room(low, low_off), rounding)]
        codes = [
            np.nan_to_num(c, posinf=1e30, neginf=-1e30) for c in _codes(groups / step, room(groups, off), rounding)
        ]

    def made(zero: tuple[np.ndarray, ...], code: list[np.ndarray]) -> _Rounded:
        value, lowest, highest = (
            np.clip(c, -z, largest - z)
            for c, z in zip(code, (zero[0], np.maximum(zero[1], zero[2]), np.minimum(zero[1], zero[2])), strict=True)
        )
        apart = np.maximum(highest - value, value - lowest)
        magnitude = np.maximum(np.abs(lowest), np.abs(highest))
        steps = np.where(exact, 0.0, step_off + gamma(2, unit) * step)
        return _Rounded(value * step, apart * step + magnitude * steps)

    canonical = made((zeros[0], zeros[1], zeros[2]), codes)
    if clipped is None or not (np.any((codes[1] != codes[2]) & (clipped != 0)) or np.any(zeros[1] != zeros[2])):
        yield canonical
        return
    for which, below, above in product((1, 2), repeat=3):
        chosen = np.where(clipped < 0, codes[below], np.where(clipped > 0, codes[above], 0.0))
        picked = [np.where(clipped != 0, chosen, code) for code in codes]
        yield made((zeros[which],) * 3, picked)


@dataclass(frozen=True)
class Objective:
    """The least and the greatest that an objective, a mean squared error, may come out as."""

    low: np.ndarray
    high: np.ndarray


class _Judge:
    """Bounds the mean squared output error of groups of columns on samples.

    Parameters
    ----------
    x : ndarray of float64, shape (M, G, S)
        Samples, in the groups of columns that an output is the sum of; one group for whole outputs.
    w : ndarray of float64, shape (N, G, S)
    rows : bool
        Whether the outputs of all rows of weights count together.
    precision : Precision
    """

    def __init__(self, x: np.ndarray, w: np.ndarray, rows: bool, precision: Precision) -> None:
        self.x, self.w = x.transpose(1, 0, 2), w.transpose(1, 2, 0)  # (G, M, S), (G, S, N)
        self.together, self.fmt, self.exact = rows, float_format(precision.value), _EXACT[precision]
        self.norms = np.sqrt(np.sum(self.x**2, axis=1))[..., None]  # (G, S, 1)
        self.own = np.abs(self.x) @ np.abs(self.w)

    def __call__(self, values: np.ndarray, room: np.ndarray) -> Objective:
        """Return the objectives of weights (N, G, S) that are known to `room`: (N, G), or () of all rows together."""
        fmt, unit = self.fmt, self.fmt.unit_roundoff
        taken, delta = values.transpose(1, 2, 0), room.transpose(1, 2, 0)
        samples, columns = self.x.shape[1:]
        missed = self.w - taken
        errors = self.x @ missed
        through = np.abs(self.x) @ (np.abs(missed) + delta)
        # Two sums of products and their difference, or one sum of the differences' products.
        sums = gamma(columns + 3, unit) * (self.own + np.abs(self.x) @ (np.abs(taken) + delta))
        sums = np.where(sums > 0, sums + 2 * columns * fmt.smallest_normal, 0.0)
        own = np.sum(errors**2, axis=1)
        across = np.sum(np.abs(np.swapaxes(self.x, 1, 2) @ errors) * delta, axis=1)
        linear = across + np.sum(np.abs(errors) * sums, axis=1)
        norm = np.sum(self.norms * delta, axis=1) + np.sqrt(np.sum(sums**2, axis=1))
        count = samples * (taken.shape[-1] if self.together else 1)
        # The squares and their sum; or a sum over the products of samples (X^T X) first.
        products = gamma(samples + 2 * columns + 6, unit) * np.sum(through**2, axis=1)
        after = gamma(count + 4, unit) * (own + 2 * linear + norm**2) + products
        off = (2 * linear + norm**2 + after) * (1 + 2.0**-20) + count * fmt.smallest_normal
        largest = np.maximum(np.max(through + sums, axis=1), self.own.max(axis=1)) ** 2 * count
        off = np.where(largest < fmt.maximum, off, np.inf)  # NaN, too
        whole = self._exact(taken, through, count) & ~delta.any(axis=1)
        if self.together:
            parts = own.sum(), off.sum(), products.sum(), whole.all()
            own, off, products, whole = (np.asarray(part) for part in parts)
        off = np.where(whole, 0.0, off)
        low, high = (np.where(np.isinf(off), end * np.inf, own + end * off) for end in (-1.0, 1.0))
        # A sum of squares is not negative, one over products of samples may come out so.
        low = np.where(np.isinf(off), low, np.maximum(low, -2 * products - count * fmt.smallest_normal))
        return Objective(low.T / count, high.T / count)

    def _exact(self, taken: np.ndarray, through: np.ndarray, count: int) -> np.ndarray:
        """Return for which rows, (G, N), no order of summation rounds, and neither does the mean."""
        units = quantum(self.x).min(axis=(1, 2))[:, None] * np.minimum(quantum(self.w), quantum(taken)).min(axis=1)
        outputs = np.max(self.own + np.abs(self.x) @ np.abs(taken), axis=1)
        units = np.where(outputs == 0, np.inf, units)
        squares = np.sum(through**2, axis=1)
        if self.together:
            units, squares = np.asarray(units.min()), np.asarray(squares.sum())
        fits = (outputs <= self.exact * units) & (squares <= self.exact * units**2)
        fits &= (units**2 / count >= self.fmt.smallest_normal) & power_of_two(np.asarray(float(count)))
        return fits | (outputs == 0)


def _hull(found: list[Objective]) -> Objective:
    return Objective(np.min([f.low for f in found], axis=0), np.max([f.high for f in found], axis=0))


def _admissible(found: list[Objective]) -> tuple[np.ndarray, np.ndarray]:
    """Return the best candidate, and which are admissible, (candidates, ...)."""
    low, high = (np.array([getattr(f, end) for f in found]) for end in ("low", "high"))
    infinite = np.isinf(high)
    with np.errstate(invalid="ignore"):
        middle = np.where(infinite, 0.0, (low + high) / 2)
    return least(middle, np.where(infinite, np.inf, high - middle))


def _chosen(best: np.ndarray, admissible: np.ndarray, returned: np.ndarray | None) -> Enclosure:
    """Return the enclosure of an index: of a returned one, that alone if it is admissible."""
    index = np.arange(len(admissible)).reshape(-1, *[1] * best.ndim)
    lowest = np.where(admissible, index, len(admissible)).min(axis=0)
    highest = np.where(admissible, index, -1).max(axis=0)
    if returned is None:
        return Enclosure(best, lowest, highest)
    inside = (returned >= 0) & (returned < len(admissible))
    taken = inside & np.take_along_axis(admissible, np.where(inside, returned, 0)[None], axis=0)[0]
    one = np.where(taken, returned, best)
    rule = "" if best.ndim else f"one of {', '.join(map(str, np.flatnonzero(admissible)))}"
    return Enclosure(one, one, one, rule=rule)


def _size_ends(x: np.ndarray, fmt: FloatFormat) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean magnitude of each column, and the least and the greatest that it may come out as."""
    magnitudes = np.abs(x)
    mean = magnitudes.mean(axis=0)
    whole = magnitudes.sum(axis=0) <= quantum(x).min(axis=0, initial=np.inf) / fmt.unit_roundoff
    whole &= power_of_two(np.asarray(float(len(x))))
    off = np.where(whole, 0.0, gamma(len(x) + 2, fmt.unit_roundoff) * mean + fmt.smallest)
    off = np.where(mean == 0, 0.0, off)
    return mean, mean - off, mean + off


def _powers(
    base: tuple[np.ndarray, np.ndarray, np.ndarray], exponents: np.ndarray, ulps: float, fmt: FloatFormat
) -> tuple[np.ndarray, ...]:
    """Return powers, (exponents, K), of bases between ends, with how far each may be off on either side."""
    exact, lowest, highest = (np.maximum(b, 0.0)[None, :] ** exponents[:, None] for b in base)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.where(base[0] > 0, np.abs(np.log(base[0])), 0.0)
        # The exponent itself is rounded.
        relative = 2 * ulps * fmt.unit_roundoff + exponents[:, None] * logarithm * 2 * fmt.unit_roundoff
    trivial = (exponents[:, None] == 0) | (base[0] == 0) | (base[0] == 1)
    relative = np.where(trivial, 0.0, relative)
    return exact, lowest * (1 - relative), highest * (1 + relative)


def _scale_ends(
    x: np.ndarray, w: np.ndarray, size: int, candidates: ScaleCandidates, ulps: float, fmt: FloatFormat
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scales of all ratios, (20, K), and how far they may be off."""
    unit = fmt.unit_roundoff
    exact = candidate_scales(x, w, group_size=size, candidates=candidates)
    means = _size_ends(x, fmt)
    found = list(_powers(means, RATIOS, ulps, fmt))
    if candidates is ScaleCandidates.BOTH:
        groups = np.abs(w).reshape(len(w), -1, size)
        share = (groups / (groups.max(axis=-1, keepdims=True) + 1e-6)).reshape(w.shape).mean(axis=0)
        off = gamma(len(w) + 6, unit) * share
        other = [p + 1e-4 for p in _powers((share, share - off, share + off), 1 - RATIOS, ulps, fmt)]
        around = gamma(4, unit)
        found = [found[0] / other[0], found[1] / other[2] * (1 - around), found[2] / other[1] * (1 + around)]
    top = np.maximum(found[0], LEAST_SCALE)
    lower = np.maximum(found[1], LEAST_SCALE * (1 - 2 * unit))
    upper = np.maximum(found[2], LEAST_SCALE * (1 + 2 * unit))
    settled = (found[1] == found[2]) & (found[0] > LEAST_SCALE * (1 + 4 * unit))
    lower, upper = np.where(settled, top, lower), np.where(settled, top, upper)
    norm = [np.sqrt(p.max(axis=1, initial=0.0) * p.min(axis=1, initial=np.inf))[:, None] for p in (lower, upper)]
    unscaled = np.all((top == 1) & settled, axis=1)[:, None]
    rounding = gamma(5, unit)
    off = np.maximum(exact - lower / norm[1] * (1 - rounding), upper / norm[0] * (1 + rounding) - exact)
    with np.errstate(over="ignore"):
        over = np.abs(x).sum(axis=0).max(initial=0.0) * 4 > fmt.maximum
    return exact, np.where(unscaled, 0.0, np.where(over, np.inf, off))


def _scaled(
    w: np.ndarray, s: np.ndarray, s_off: np.ndarray, size: int, bits: int, fmt: FloatFormat, rounding: Rounding
) -> tuple[np.ndarray, np.ndarray]:
    """Return round(w s) / s, and how far a kernel's may be from it."""
    unit, shape = fmt.unit_roundoff, (len(w), -1, size)
    scaled, off = w * s, np.zeros_like(w)
    plain = np.all((s_off == 0) & power_of_two(s))
    left = np.where(s_off < s, s - s_off, s)
    relative = np.where(s_off < s, s_off / left, np.inf)
    if not plain:
        off = np.where(w == 0, 0.0, np.abs(scaled) * (relative + gamma(1, unit)) + fmt.smallest_normal)
    (rounded,) = _rounded(scaled.reshape(shape), off.reshape(shape), bits, fmt, rounding, None)
    values, room = rounded.values.reshape(w.shape) / s, rounded.room.reshape(w.shape) / s
    if not plain:
        room = (room + np.abs(values) * gamma(2, unit)) * (1 + relative) + np.abs(values) * relative
    return values, np.nan_to_num(room, nan=np.inf, posinf=np.inf)


@takes_choices
def scale_objectives(
    x: np.ndarray,
    w: np.ndarray,
    *,
    bits: int,
    group_size: int | None = None,
    candidates: ScaleCandidates = ScaleCandidates.ACTIVATIONS,
    rounding: Rounding = Rounding.HALF_EVEN,
    intermediate: Precision = Precision.FLOAT32,
    function_ulps: float = 4.0,
) -> tuple[np.ndarray, np.ndarray, list[Objective]]:
    """Return the scales of all ratios, (20, K), how far a kernel's may be off, and the ratios' errors.

    Parameters and errors as `scales_enclosures`.
    """
    x, w = check_layer(x, w)
    check_rows(w)
    size, fmt = group_length(w.shape[1], group_size), float_format(intermediate.value)
    scales, off = _scale_ends(x, w, size, candidates, function_ulps, fmt)
    judge, found = _Judge(x[:, None], w[:, None], True, intermediate), []
    with np.errstate(invalid="ignore", over="ignore"):
        for s, s_off in zip(scales, off, strict=True):
            values, room = _scaled(w, s, s_off, size, bits, fmt, rounding)
            found.append(judge(values[:, None], room[:, None]))
    return scales, off, found


@takes_choices
def scales_enclosures(
    x: np.ndarray,
    w: np.ndarray,
    *,
    bits: int,
    group_size: int | None = None,
    candidates: ScaleCandidates = ScaleCandidates.ACTIVATIONS,
    returned: np.ndarray | None = None,
    rounding: Rounding = Rounding.HALF_EVEN,
    intermediate: Precision = Precision.FLOAT32,
    function_ulps: float = 4.0,
) -> dict[str, Enclosure]:
    """Return which ratios may be the best, and the scales of the best one or of that returned.

    Parameters
    ----------
    x, w, bits, group_size, candidates :
        As `lowbit_cts.reference.algorithms.awq.search_scales`.
    returned : ndarray of int, shape (), or None
        The index of a ratio that a kernel found; it is judged by itself, and so are the scales, by its ratio.
    rounding : Rounding
        Of codes and zero points.
    intermediate : Precision
        In which scales, codes, outputs and errors are computed, sums in any order.
    function_ulps : float
        The largest error of a power in units of its last place.

    Returns
    -------
    dict of Enclosure: "ratio_index", () of int64, and "scale", (K,) of float32
        Where sums are exact, or candidates far enough apart, one index is admissible.

    Raises
    ------
    ValueError
        As `lowbit_cts.reference.algorithms.awq.search_scales`.
    """
    scales, off, found = scale_objectives(
        x, w, bits=bits, group_size=group_size, candidates=candidates, rounding=rounding, intermediate=intermediate,
        function_ulps=function_ulps,
    )  # fmt: skip
    best, admissible = _admissible(found)
    index = _chosen(best, admissible, returned)
    open_ = [int(index.exact)] if returned is not None else np.flatnonzero(admissible)
    every = [within(scales[i], off[i], _FLOAT32) for i in open_]
    exact = within(scales[int(index.exact)], np.zeros(()), _FLOAT32).exact
    scale = Enclosure(exact, np.min([e.lo for e in every], axis=0), np.max([e.hi for e in every], axis=0))
    return {"ratio_index": index, "scale": scale}


@takes_choices
def clipping_objectives(
    x: np.ndarray,
    w: np.ndarray,
    *,
    bits: int,
    group_size: int | None = None,
    rounding: Rounding = Rounding.HALF_EVEN,
    intermediate: Precision = Precision.FLOAT32,
) -> tuple[list[Enclosure], list[Objective]]:
    """Return the bounds of all shares, (N, G) each, and the shares' errors.

    Parameters and errors as `clipping_enclosures`.
    """
    x, w = check_layer(x, w)
    size, fmt = group_length(w.shape[1], group_size), float_format(intermediate.value)
    groups = w.reshape(len(w), w.shape[1] // size, size)
    magnitudes = np.abs(groups)
    largest = magnitudes.max(axis=-1, initial=0.0, keepdims=True)
    judge = _Judge(x.reshape(len(x), -1, size), groups, False, intermediate)
    found, bounds = [], []
    for share in SHARES:
        bound = share * largest
        whole = representable(bound, _FLOAT32) & representable(share, _FLOAT32)
        off = np.where(whole, 0.0, gamma(3, fmt.unit_roundoff) * bound)
        bounds.append(within(bound[..., 0], off[..., 0], _FLOAT32))
        near = np.where(magnitudes >= bound - off, off, 0.0)
        clipped = np.where(magnitudes >= bound + off, np.sign(groups), 0.0)
        with np.errstate(invalid="ignore", over="ignore"):
            made = _rounded(np.clip(groups, -bound, bound), near, bits, fmt, rounding, clipped)
            found.append(_hull([judge(one.values, one.room) for one in made]))
    return bounds, found


@takes_choices
def clipping_enclosures(
    x: np.ndarray,
    w: np.ndarray,
    *,
    bits: int,
    group_size: int | None = None,
    returned: np.ndarray | None = None,
    rounding: Rounding = Rounding.HALF_EVEN,
    intermediate: Precision = Precision.FLOAT32,
) -> dict[str, Enclosure]:
    """Return which shares of the range of each group may be the best, and the bounds of the best or the returned ones.

    Parameters
    ----------
    x, w, bits, group_size :
        As `lowbit_cts.reference.algorithms.awq.search_clipping`.
    returned : ndarray of int, shape (N, G), or None
        Indices of shares that a kernel found; each is judged by itself, and so is the bound, by its share.
    rounding, intermediate :
        As `scales_enclosures`.

    Returns
    -------
    dict of Enclosure: "bound", float32, and "share_index", int64, both (N, G)

    Raises
    ------
    ValueError
        As `lowbit_cts.reference.algorithms.awq.search_clipping`.
    """
    bounds, found = clipping_objectives(
        x, w, bits=bits, group_size=group_size, rounding=rounding, intermediate=intermediate
    )
    best, admissible = _admissible(found)
    index = _chosen(best, admissible, returned)
    stacked = [np.stack([getattr(b, end) for b in bounds]) for end in ("exact", "lo", "hi")]

    def at(values: np.ndarray, which: np.ndarray) -> np.ndarray:
        return np.asarray(np.take_along_axis(values, which[None].astype(np.int64), axis=0)[0])

    # Shares fall: the greatest index has the least bound.
    return {
        "bound": Enclosure(at(stacked[0], index.exact), at(stacked[1], index.hi), at(stacked[2], index.lo)),
        "share_index": index,
    }
