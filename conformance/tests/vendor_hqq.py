"""A vendor's half-quadratic quantization: right kernels in several styles, and one with a planted fault each."""

import numpy as np

from lowbit_cts.kernels import Backend, Semantics

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

F = np.float32
GRIDS = {
    "format": ("uint4", "uint3", "uint2", "uint8"),
    "granularity": ("channel", "group"),
    "group_size": (64, 32, 12),
    "growth": (1.01, 1.0),
}


class Search:
    """The search in small steps, each of which a fault may replace."""

    dtype = np.float32
    steps = 20
    norm = 0.7
    first_weight = 10.0

    def __init__(self, format, group_size, growth):
        self.largest, self.size, self.growth = (1 << int(format[4:])) - 1, group_size, growth

    def groups(self, w):
        size = self.size or w.shape[1]
        if not size or w.shape[1] % size:
            raise ValueError("group_size: must divide the columns")
        return w.reshape(-1, size).astype(self.dtype)

    def scale(self, low, high):
        return np.where(high > low, (high - low) / self.dtype(self.largest), self.dtype(1))

    def first(self, low, scale):
        return -low / scale

    def codes(self, w, scale, zero):
        return np.clip(np.rint(w / scale + zero), 0, self.largest)

    def missed(self, w, codes, scale, zero):
        return w - (codes - zero) * scale

    def error(self, missed):
        return np.mean(np.abs(missed)) if missed.size else 0.0

    def kept(self, missed, weight):
        size = np.abs(missed)
        with np.errstate(divide="ignore"):
            cut = np.where(size > 0, size ** self.dtype(self.norm - 1) / self.dtype(weight), 0)
        return np.sign(missed) * np.maximum(size - cut, 0)

    def mean(self, terms):
        return terms.mean(axis=1, keepdims=True)

    def following(self, w, codes, scale, missed, weight):
        return self.mean(codes - (w - self.kept(missed, weight)) / scale)

    def better(self, error, least):
        return error < least

    def grown(self, weight):
        return weight * self.growth

    def finished(self, found):
        return found

    def __call__(self, w):
        groups = self.groups(w)
        low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
        scale = self.scale(low, high).astype(self.dtype)
        zero, weight, least = self.first(low, scale), self.first_weight, np.inf
        best = np.zeros_like(groups), zero
        for _ in range(self.steps + 1):
            codes = self.codes(groups, scale, zero)
            missed = self.missed(groups, codes, scale, zero)
            error = self.error(missed)
            if not self.better(error, least):
                break
            best, least = (codes, zero), error
            zero, weight = self.following(groups, codes, scale, missed, weight), self.grown(weight)
        codes, zero = self.finished(best)
        place = len(w), -1 if len(w) else w.shape[1] // groups.shape[1]
        return codes.astype(np.uint8).reshape(w.shape), F(scale).reshape(place), F(zero).reshape(place)


def _register(backend, search, name, **options):
    def kernel(w, *, format, group_size, growth):
        return search(format, group_size, growth)(w)

    supports = {**GRIDS, **options.pop("supports", {})}
    backend.implements("quantize_hqq", name=name, supports=supports, **options)(kernel)


# Right kernels ------------------------------------------------------------------------------------------------------


def _right(search=None, **options):
    def register(chosen):
        _register(right, chosen, chosen.__name__, **options)
        return chosen

    return register(search) if search else register


@_right
class all_groups_at_once(Search):
    pass


@_right(semantics=Semantics(float_accumulator="float64"))
class in_float64(Search):
    dtype = np.float64


@_right
class by_reciprocals(Search):
    """As mobiusml/hqq has it: what it calls the scale is the reciprocal."""

    def scale(self, low, high):
        width = high - low
        inverse = np.where(width > 0, F(self.largest) / np.where(width > 0, width, F(1)), F(1))
        return F(1) / inverse

    def first(self, low, scale):
        return -low * (F(1) / scale)

    def codes(self, w, scale, zero):
        return np.clip(np.rint(w * (F(1) / scale) + zero), 0, self.largest)

    def missed(self, w, codes, scale, zero):
        return w - (codes - zero) / (F(1) / scale)

    def following(self, w, codes, scale, missed, weight):
        return self.mean(codes - (w - self.kept(missed, weight)) * (F(1) / scale))


@_right
class sums_in_order(Search):
    def mean(self, terms):
        total = np.zeros((len(terms), 1), F)
        for column in range(terms.shape[1]):
            total += terms[:, column : column + 1]
        return total * (F(1) / F(terms.shape[1]))


@_right
class moves_by_what_was_let_go(Search):
    """The next zero point is this one less the mean of what the norm let go, in codes."""

    def following(self, w, codes, scale, missed, weight):
        zero = self.mean(codes - (w - missed) / scale)
        return zero - self.mean((missed - self.kept(missed, weight)) / scale)


@_right
class means_of_each(Search):
    def following(self, w, codes, scale, missed, weight):
        return self.mean(codes) - self.mean((w - self.kept(missed, weight)) / scale)


@_right
class stops_by_the_sum(Search):
    def error(self, missed):
        return np.sum(np.abs(missed))


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def _wrong(word="must be", **options):
    def register(search):
        EXPECTED[search.__name__] = word
        _register(wrong, search, search.__name__, **options)
        return search

    return register


@_wrong()
class round_to_nearest(Search):
    steps = 0


@_wrong()
class one_step(Search):
    steps = 1


@_wrong()
class nineteen_steps(Search):
    steps = 19


@_wrong()
class another_norm(Search):
    norm = 0.5


@_wrong()
class soft_threshold(Search):
    norm = 1.0


@_wrong()
class another_weight(Search):
    first_weight = 9.0


@_wrong(supports={"growth": 1.01})
class weight_does_not_grow(Search):
    def grown(self, weight):
        return weight


@_wrong(supports={"growth": 1.01})
class weight_shrinks(Search):
    def grown(self, weight):
        return weight / self.growth


@_wrong()
class keeps_everything(Search):
    def kept(self, missed, weight):
        return missed


@_wrong()
class keeps_nothing(Search):
    def kept(self, missed, weight):
        return 0 * missed


@_wrong()
class kept_without_its_sign(Search):
    def kept(self, missed, weight):
        return np.abs(super().kept(missed, weight))


@_wrong()
class not_cut_at_zero(Search):
    def kept(self, missed, weight):
        size = np.abs(missed)
        with np.errstate(divide="ignore"):
            cut = np.where(size > 0, size ** F(-0.3) / F(weight), 0)
        return np.sign(missed) * (size - np.minimum(cut, 1))


@_wrong()
class kept_is_added(Search):
    def following(self, w, codes, scale, missed, weight):
        return self.mean(codes - (w + self.kept(missed, weight)) / scale)


@_wrong()
class kept_is_not_scaled(Search):
    def following(self, w, codes, scale, missed, weight):
        return self.mean(codes - w / scale - self.kept(missed, weight))


@_wrong()
class zero_point_rounded(Search):
    def following(self, w, codes, scale, missed, weight):
        return np.rint(super().following(w, codes, scale, missed, weight))


@_wrong()
class first_zero_point_rounded(Search):
    def first(self, low, scale):
        return np.rint(-low / scale)


@_wrong()
class zero_point_in_float16(Search):
    def finished(self, found):
        return found[0], found[1].astype(np.float16)


@_wrong()
class zero_is_in_the_range(Search):
    def scale(self, low, high):
        return super().scale(np.minimum(low, 0), np.maximum(high, 0))


@_wrong()
class one_code_too_many(Search):
    def scale(self, low, high):
        return np.where(high > low, (high - low) / F(self.largest + 1), F(1))


@_wrong()
class constant_groups_have_a_small_scale(Search):
    def scale(self, low, high):
        return np.maximum((high - low) / F(self.largest), F(1e-8))


@_wrong()
class small_ranges_count_as_constant(Search):
    def scale(self, low, high):
        return np.where(high - low > 0.05, (high - low) / F(self.largest), F(1))


@_wrong()
class not_clipped(Search):
    def codes(self, w, scale, zero):
        return np.rint(w / scale + zero) % 256


@_wrong()
class codes_cut_at_the_second_largest(Search):
    def codes(self, w, scale, zero):
        return np.minimum(super().codes(w, scale, zero), self.largest - 1)


@_wrong()
class codes_floored(Search):
    def codes(self, w, scale, zero):
        return np.clip(np.floor(w / scale + zero), 0, self.largest)


@_wrong()
class ties_go_up(Search):
    def codes(self, w, scale, zero):
        return np.clip(np.floor(w / scale + zero + self.dtype(0.5)), 0, self.largest)


@_wrong()
class codes_of_the_first_zero_point(Search):
    def finished(self, found):
        return (found[0] if self.steps == 0 else self.held), found[1]

    def following(self, w, codes, scale, missed, weight):
        self.held = codes if weight == self.first_weight else self.held
        return super().following(w, codes, scale, missed, weight)


@_wrong()
class returns_the_last(Search):
    def following(self, w, codes, scale, missed, weight):
        self.last = super().following(w, codes, scale, missed, weight)
        return self.last

    def finished(self, found):
        return found[0], self.last


@_wrong()
class does_not_stop(Search):
    def better(self, error, least):
        return True


@_wrong()
class each_row_stops_alone(Search):
    def __call__(self, w):
        rows = [super(each_row_stops_alone, self).__call__(row[None]) for row in w]
        return tuple(np.concatenate(part) for part in zip(*rows, strict=True)) if rows else super().__call__(w)


@_wrong()
class stops_by_the_squares(Search):
    def error(self, missed):
        return np.mean(missed**2) if missed.size else 0.0


@_wrong()
class stops_by_the_first_groups(Search):
    def error(self, missed):
        return super().error(missed[: max(1, len(missed) // 2)])


@_wrong()
class mean_of_the_first_columns(Search):
    def mean(self, terms):
        return terms[:, : max(1, terms.shape[1] // 8 * 8)].mean(axis=1, keepdims=True)


@_wrong(supports={"granularity": "group"})
class groups_down_the_columns(Search):
    def groups(self, w):
        found = super().groups(w)
        return w.T.reshape(found.shape) if w.shape[0] == w.shape[1] else found


@_wrong("must raise", supports={"granularity": "group"})
class a_short_group_is_left_out(Search):
    def groups(self, w):
        size = self.size
        self.broken = w.shape[1] % size
        return w[:, : w.shape[1] // size * size].reshape(-1, size)

    def __call__(self, w):
        whole = w.shape[1] // self.size * self.size
        codes, scale, zero = super().__call__(w[:, :whole])
        return np.pad(codes, ((0, 0), (0, w.shape[1] - whole))), scale, zero
