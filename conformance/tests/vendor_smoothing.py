"""A vendor's SmoothQuant: right kernels in several forms and precisions, and ones with a planted fault each."""

import numpy as np

from lowbit_cts.kernels import Backend, Precision, Semantics

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")


class Smoothing:
    """SmoothQuant in small steps, each of which a fault may replace."""

    dtype = np.float32
    floor = 1e-5

    def __init__(self, alpha):
        self.alpha = alpha

    def magnitudes(self, w):
        return np.abs(w).max(axis=0, initial=0)

    def quotient(self, absmax, largest):
        return absmax**self.alpha / largest ** (1 - self.alpha)

    def smoothed(self, w, scale):
        return w * scale

    def __call__(self, absmax, w):
        if absmax.shape != w.shape[1:]:
            raise ValueError("w: must have the columns of absmax")
        absmax, w, floor = absmax.astype(self.dtype), w.astype(self.dtype), self.dtype(self.floor)
        scale = np.maximum(self.quotient(absmax, np.maximum(self.magnitudes(w), floor)), floor)
        return scale.astype(np.float32), self.smoothed(w, scale).astype(np.float32)


def _register(backend, kernel, **options):
    def run(absmax, w, *, alpha):
        return kernel(alpha)(absmax, w)

    supports = {"alpha": (0.5, 0.75, 0.25, 0.0, 1.0)}
    backend.implements("smooth_weights", name=kernel.__name__, supports=supports, **options)(run)


# Right kernels ------------------------------------------------------------------------------------------------------


def _right(kernel=None, **options):
    def register(chosen):
        _register(right, chosen, **options)
        return chosen

    return register(kernel) if kernel else register


@_right
class smoothing_in_float32(Smoothing):
    pass


@_right(semantics=Semantics(intermediate=Precision.FLOAT64))
class smoothing_in_float64(Smoothing):
    dtype = np.float64


@_right
class smoothing_by_the_reciprocal(Smoothing):
    def quotient(self, absmax, largest):
        return absmax**self.alpha * (np.float32(1) / largest ** (1 - self.alpha))


@_right
class smoothing_by_a_negative_power(Smoothing):
    def quotient(self, absmax, largest):
        return largest ** (self.alpha - 1) * absmax**self.alpha


@_right
class smoothing_by_logarithms(Smoothing):
    def quotient(self, absmax, largest):
        if self.alpha in (0.0, 0.5, 1.0):
            return super().quotient(absmax, largest)
        with np.errstate(divide="ignore"):
            logarithms = [np.log2(part.astype(np.float64)) for part in (absmax, largest)]
        return np.exp2(self.alpha * logarithms[0] - (1 - self.alpha) * logarithms[1]).astype(np.float32)


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def _wrong(kernel):
    EXPECTED[kernel.__name__] = "must be"
    _register(wrong, kernel)
    return kernel


@_wrong
class alpha_of_the_weights(Smoothing):
    def quotient(self, absmax, largest):
        return absmax ** (1 - self.alpha) / largest**self.alpha


@_wrong
class quotient_upside_down(Smoothing):
    def quotient(self, absmax, largest):
        return largest ** (1 - self.alpha) / np.maximum(absmax, np.float32(1e-5)) ** self.alpha


@_wrong
class no_floor(Smoothing):
    floor = 0


@_wrong
class no_floor_of_the_scale(Smoothing):
    def __call__(self, absmax, w):
        scale, _ = super().__call__(absmax, w)
        scale = np.where(absmax == 0, np.float32(self.alpha == 0), scale)
        return scale, w * scale


@_wrong
class floor_of_a_float16(Smoothing):
    floor = 6.2e-5


@_wrong
class mean_weight(Smoothing):
    def magnitudes(self, w):
        return np.abs(w).mean(axis=0) if len(w) else np.zeros(w.shape[1])


@_wrong
class largest_weight_of_its_sign(Smoothing):
    def magnitudes(self, w):
        return w.max(axis=0, initial=0)


@_wrong
class largest_weight_of_the_rows(Smoothing):
    def magnitudes(self, w):
        largest = np.abs(w).max(axis=1, initial=0)
        return np.resize(largest, w.shape[1]) if largest.size else np.zeros(w.shape[1])


@_wrong
class last_row_forgotten(Smoothing):
    def magnitudes(self, w):
        return np.abs(w[:-1]).max(axis=0, initial=0) if len(w) > 8 else super().magnitudes(w)


@_wrong
class weights_divided(Smoothing):
    def smoothed(self, w, scale):
        return w / scale


@_wrong
class weights_times_a_float16(Smoothing):
    def smoothed(self, w, scale):
        return w * scale.astype(np.float16).astype(np.float32)


@_wrong
class scales_of_a_bfloat16(Smoothing):
    def quotient(self, absmax, largest):
        found = super().quotient(absmax, largest).astype(np.float32)
        return (found.view(np.uint32) & 0xFFFF0000).view(np.float32)
