"""A vendor's searches of AWQ: right kernels in several forms and precisions, and ones with a planted fault each."""

import numpy as np

from lowbit_cts.kernels import Backend, Precision, Semantics

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

GRIDS = {
    "format": ("uint4", "uint3", "uint2", "uint8"),
    "granularity": ("channel", "group"),
    "group_size": (32, 16, 128),
}
CANDIDATES = {"candidates": ("activations", "both")}
_WIDE = Semantics(intermediate=Precision.FLOAT64)


class Search:
    """What both of AWQ's searches share."""

    dtype = np.float32
    least_range = 1e-5

    def __init__(self, format, group_size, candidates=None):
        self.largest, self.size, self.candidates = (1 << int(format[4:])) - 1, group_size, candidates

    def taken(self, x, w):
        """Return samples (M, K) and groups (N, G, S)."""
        size = self.size or w.shape[1]
        if x.shape[1] != w.shape[1] or not len(x) or not size or w.shape[1] % size:
            raise ValueError("x, w: must have samples, and the same columns, in whole groups")
        return x.astype(self.dtype), self.grouped(w.astype(self.dtype), size)

    def grouped(self, w, size):
        return w.reshape(len(w), -1, size)

    def zero(self, low, scale):
        return np.clip(-np.rint(low / scale), 0, self.largest)

    def quotient(self, groups, scale):
        return np.rint(groups / scale)

    def codes(self, groups, scale, zero):
        return np.clip(self.quotient(groups, scale) + zero, 0, self.largest)

    def range(self, groups):
        return groups.min(axis=-1, keepdims=True), groups.max(axis=-1, keepdims=True)

    def steps(self):
        return self.largest

    def rounded(self, groups):
        low, high = self.range(groups)
        scale = np.maximum(high - low, self.dtype(self.least_range)) / self.dtype(self.steps())
        zero = self.zero(low, scale)
        return (self.codes(groups, scale, zero) - zero) * scale

    def best(self, errors):
        return np.argmin(errors, axis=0)


class Scales(Search):
    """The search for scales."""

    operation, supports = "awq_scales", GRIDS | CANDIDATES

    def ratios(self):
        return np.arange(20) / 20

    def means(self, x):
        return np.abs(x).mean(axis=0)

    def share(self, groups):
        share = np.abs(groups)
        return (share / (share.max(axis=-1, keepdims=True) + self.dtype(1e-6))).mean(axis=0).ravel()

    def power(self, x, groups, ratio):
        power = self.means(x) ** self.dtype(ratio)
        if self.candidates == "both":
            power = power / (self.share(groups) ** self.dtype(1 - ratio) + self.dtype(1e-4))
        return self.at_least(power)

    def at_least(self, power):
        return np.maximum(power, self.dtype(1e-4))

    def normalised(self, power):
        return power / np.sqrt(power.max() * power.min())

    def output_error(self, x, w, other):
        return np.mean((x @ w.T - x @ other.T) ** 2)

    def unscaled(self, rounded, scale):
        return rounded / scale

    def error(self, x, groups, scale):
        w = groups.reshape(len(groups), -1)
        rounded = self.rounded((w * scale).reshape(groups.shape)).reshape(w.shape)
        return self.output_error(x, w, self.unscaled(rounded, scale))

    def __call__(self, x, w):
        x, groups = self.taken(x, w)
        if not len(w):
            raise ValueError("w: must have rows")
        scales = [self.normalised(self.power(x, groups, ratio)) for ratio in self.ratios()]
        best = int(self.best(np.array([self.error(x, groups, scale) for scale in scales])))
        return np.int32(best), scales[best].astype(np.float32)


class Clipping(Search):
    """The search for bounds."""

    operation, supports = "awq_clipping", GRIDS

    def shares(self):
        return 1 - np.arange(10) / 20

    def top(self, groups):
        return np.abs(groups).max(axis=-1, keepdims=True)

    def clipped(self, groups, bound):
        return np.clip(groups, -bound, bound)

    def errors(self, x, groups, other):
        samples = x.reshape(len(x), *groups.shape[1:])
        parts = [np.einsum("mgs,ngs->mng", samples, weights) for weights in (groups, other)]
        return np.mean((parts[0] - parts[1]) ** 2, axis=0)

    def __call__(self, x, w):
        x, groups = self.taken(x, w)
        top = self.top(groups)
        bounds = [top * self.dtype(share) for share in self.shares()]
        errors = [self.errors(x, groups, self.rounded(self.clipped(groups, bound))) for bound in bounds]
        best = self.best(np.array(errors))
        bound = np.take_along_axis(np.stack(bounds)[..., 0], best[None], axis=0)[0]
        return np.ascontiguousarray(bound, np.float32), best.astype(np.int32)


def _register(backend, kernel, **options):
    supports = {**kernel.supports, **options.pop("supports", {})}
    if kernel.operation == "awq_scales":

        def run(x, w, *, format, group_size, candidates):
            return kernel(format, group_size, candidates)(x, w)

    else:

        def run(x, w, *, format, group_size):
            return kernel(format, group_size)(x, w)

    backend.implements(kernel.operation, name=kernel.__name__, supports=supports, **options)(run)


# Right kernels ------------------------------------------------------------------------------------------------------


def _right(kernel=None, **options):
    def register(chosen):
        _register(right, chosen, **options)
        return chosen

    return register(kernel) if kernel else register


@_right
class scales_in_float32(Scales):
    pass


@_right(semantics=_WIDE)
class scales_in_float64(Scales):
    dtype = np.float64


@_right
class scales_by_products_of_samples(Scales):
    def output_error(self, x, w, other):
        if x.shape[1] > 1024:
            return super().output_error(x, w, other)
        missed = w - other
        return np.sum((missed @ (x.T @ x)) * missed) / (len(x) * len(w))


@_right
class scales_of_scaled_samples(Scales):
    def error(self, x, groups, scale):
        w = groups.reshape(len(groups), -1)
        scaled = w * scale
        missed = self.rounded(scaled.reshape(groups.shape)).reshape(w.shape) - scaled
        return np.mean((missed @ (x / scale).T) ** 2)


@_right
class scales_from_the_last_sample(Scales):
    def means(self, x):
        return np.add.accumulate(np.abs(x[::-1]))[-1] / self.dtype(len(x))

    def output_error(self, x, w, other):
        outputs = x[:, ::-1] @ (w - other)[:, ::-1].T
        return np.add.accumulate((outputs**2).ravel())[-1] / outputs.size

    def quotient(self, groups, scale):
        return np.rint(groups * (np.float32(1) / scale))


@_right
class clipping_in_float32(Clipping):
    pass


@_right(semantics=_WIDE)
class clipping_in_float64(Clipping):
    dtype = np.float64


@_right
class clipping_by_products_of_samples(Clipping):
    def errors(self, x, groups, other):
        if groups.shape[2] > 1024:
            return super().errors(x, groups, other)
        samples, missed = x.reshape(len(x), *groups.shape[1:]), groups - other
        products = np.einsum("mgs,mgt->gst", samples, samples)
        return np.einsum("ngs,gst,ngt->ng", missed, products, missed) / np.float32(len(x))


@_right
class clipping_by_the_reciprocal(Clipping):
    def quotient(self, groups, scale):
        return np.rint(groups * (np.float32(1) / scale))

    def errors(self, x, groups, other):
        samples = x.reshape(len(x), *groups.shape[1:])
        missed = np.einsum("mgs,ngs->mng", samples[::-1, :, ::-1], (other - groups)[..., ::-1])
        return np.sum(missed**2, axis=0)


@_right
class clipping_one_share_at_a_time(Clipping):
    def best(self, errors):
        least, found = np.full(errors.shape[1:], np.inf), np.zeros(errors.shape[1:], int)
        for i, error in enumerate(errors):
            found[error < least] = i
            least = np.minimum(least, error)
        return found


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def _wrong(word="must be", **options):
    def register(kernel):
        EXPECTED[kernel.__name__] = word
        _register(wrong, kernel, **options)
        return kernel

    return register


@_wrong(supports={"candidates": "activations"})
class largest_activation(Scales):
    def means(self, x):
        return np.abs(x).max(axis=0)


@_wrong(supports={"candidates": "activations"})
class mean_without_magnitudes(Scales):
    def means(self, x):
        return np.abs(x.mean(axis=0))


@_wrong(supports={"candidates": "activations"})
class mean_of_squares(Scales):
    def means(self, x):
        return np.sqrt(np.mean(x**2, axis=0))


@_wrong()
class ratios_from_one_twentieth(Scales):
    def ratios(self):
        return np.arange(1, 21) / 20


@_wrong()
class ratios_of_nineteenths(Scales):
    def ratios(self):
        return np.arange(20) / 19


@_wrong()
class last_ratio_not_tried(Scales):
    def best(self, errors):
        return np.argmin(errors[:-1])


@_wrong(supports={"candidates": "activations"})
class last_of_equal_ratios(Scales):
    def best(self, errors):
        return len(errors) - 1 - np.argmin(errors[::-1])


@_wrong()
class worst_ratio(Scales):
    def best(self, errors):
        return np.argmax(errors)


@_wrong()
class not_normalised(Scales):
    def normalised(self, power):
        return power


@_wrong()
class normalised_without_the_root(Scales):
    def normalised(self, power):
        return power / (power.max() * power.min())


@_wrong()
class normalised_by_the_mean(Scales):
    def normalised(self, power):
        return power / power.mean()


@_wrong()
class scales_without_a_floor(Scales):
    def at_least(self, power):
        return np.maximum(power, self.dtype(1e-6))


@_wrong()
class scales_not_divided_out(Scales):
    def unscaled(self, rounded, scale):
        return rounded


@_wrong()
class error_of_the_weights(Scales):
    def output_error(self, x, w, other):
        return np.mean((w - other) ** 2)


@_wrong()
class error_of_the_first_sample(Scales):
    def output_error(self, x, w, other):
        return super().output_error(x[:1], w, other)


@_wrong()
class error_of_the_first_row(Scales):
    def output_error(self, x, w, other):
        return super().output_error(x, w[:1], other[:1])


@_wrong()
class error_without_squares(Scales):
    def output_error(self, x, w, other):
        return np.abs(np.mean(x @ w.T - x @ other.T))


@_wrong(supports={"candidates": "both"})
class weights_not_normalised_by_groups(Scales):
    def share(self, groups):
        return np.abs(groups).mean(axis=0).ravel()


@_wrong(supports={"candidates": "both"})
class weights_normalised_by_rows(Scales):
    def share(self, groups):
        return super().share(groups.reshape(len(groups), 1, -1))


@_wrong(supports={"candidates": "both"})
class same_power_of_both(Scales):
    def power(self, x, groups, ratio):
        other = self.share(groups) ** self.dtype(ratio) + self.dtype(1e-4)
        return self.at_least(self.means(x) ** self.dtype(ratio) / other)


@_wrong(supports={"granularity": "group"})
class groups_across_the_columns(Scales):
    def grouped(self, w, size):
        return w.reshape(len(w), size, -1).swapaxes(1, 2)

    def error(self, x, groups, scale):
        w = groups.swapaxes(1, 2).reshape(len(groups), -1)
        scaled = w * scale
        rounded = self.rounded(self.grouped(scaled, groups.shape[2]))
        return self.output_error(x, w, rounded.swapaxes(1, 2).reshape(w.shape) / scale)


@_wrong()
class range_with_zero(Scales):
    def range(self, groups):
        low, high = super().range(groups)
        return np.minimum(low, 0), np.maximum(high, 0)


@_wrong()
class symmetric_range(Scales):
    def range(self, groups):
        largest = np.abs(groups).max(axis=-1, keepdims=True)
        return -largest, largest


@_wrong()
class a_step_too_many(Scales):
    def steps(self):
        return self.largest + 1


@_wrong(supports={"format": ("uint8", "uint4")})
class codes_wrap(Scales):
    def codes(self, groups, scale, zero):
        return (self.quotient(groups, scale) + zero) % (self.largest + 1)


@_wrong()
class zero_point_not_clipped(Clipping):
    def zero(self, low, scale):
        return -np.rint(low / scale)


@_wrong()
class truncated_quotients(Clipping):
    def quotient(self, groups, scale):
        return np.trunc(groups / scale)


@_wrong()
class clipped_from_above(Clipping):
    def clipped(self, groups, bound):
        return np.minimum(groups, bound)


@_wrong()
class set_to_zero_beyond_the_bound(Clipping):
    def clipped(self, groups, bound):
        return np.where(np.abs(groups) > bound, 0, groups)


@_wrong()
class bound_of_the_greatest(Clipping):
    def top(self, groups):
        return np.abs(groups.max(axis=-1, keepdims=True))


@_wrong()
class shares_from_below_one(Clipping):
    def shares(self):
        return 1 - np.arange(1, 11) / 20


@_wrong()
class shares_of_tenths(Clipping):
    def shares(self):
        return 1 - np.arange(10) / 10


@_wrong()
class last_share_not_tried(Clipping):
    def best(self, errors):
        return np.argmin(errors[:-1], axis=0)


@_wrong()
class last_of_equal_shares(Clipping):
    def best(self, errors):
        return len(errors) - 1 - np.argmin(errors[::-1], axis=0)


@_wrong()
class error_against_the_clipped(Clipping):
    def __call__(self, x, w):
        bound, _ = super().__call__(x, w)
        x, groups = self.taken(x, w)
        bounds = [self.top(groups) * self.dtype(share) for share in self.shares()]
        clipped = [self.clipped(groups, bound) for bound in bounds]
        best = np.argmin([self.errors(x, part, self.rounded(part)) for part in clipped], axis=0)
        bound = np.take_along_axis(np.stack(bounds)[..., 0], best[None], axis=0)[0]
        return np.ascontiguousarray(bound, np.float32), best.astype(np.int32)


@_wrong()
class one_share_a_row(Clipping):
    def errors(self, x, groups, other):
        errors = super().errors(x, groups, other)
        return np.broadcast_to(errors.sum(axis=1, keepdims=True), errors.shape)


@_wrong()
class one_share_for_all_rows(Clipping):
    def errors(self, x, groups, other):
        errors = super().errors(x, groups, other)
        return np.broadcast_to(errors.sum(axis=0), errors.shape)


@_wrong()
class samples_of_the_first_group(Clipping):
    def errors(self, x, groups, other):
        samples = np.tile(x[:, : groups.shape[2]], (1, groups.shape[1]))
        return super().errors(samples, groups, other)


@_wrong()
class mean_before_the_square(Clipping):
    def errors(self, x, groups, other):
        return super().errors(x.mean(axis=0, keepdims=True), groups, other)


@_wrong()
class every_second_sample(Clipping):
    def errors(self, x, groups, other):
        return super().errors(x[::2], groups, other)


@_wrong()
class bounds_of_the_rounded(Clipping):
    def __call__(self, x, w):
        bound, best = super().__call__(x, w)
        return bound * np.float32(1 - 2.0**-12), best
