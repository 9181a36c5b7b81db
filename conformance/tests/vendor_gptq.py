"""A vendor's GPTQ: right kernels in two precisions and three forms, and one with a planted fault each."""

import numpy as np

from lowbit_cts.kernels import Backend, Precision, Semantics

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

GRIDS = {
    "format": ("uint4", "uint3", "uint2", "uint8"),
    "mapping": ("asymmetric", "symmetric"),
    "granularity": ("channel", "group"),
    "group_size": (32, 12, 128),
    "static_groups": (False, True),
    "act_order": (False, True),
    "damping": (0.01, 0.1),
}


class Layer:
    """GPTQ in small steps, each of which a fault may replace."""

    dtype = np.float32

    def __init__(self, format, mapping, group_size, static_groups, act_order, damping):
        self.largest, self.symmetric = (1 << int(format[4:])) - 1, mapping == "symmetric"
        self.size, self.static, self.act_order, self.damping = group_size, bool(static_groups), act_order, damping

    def dead(self, w, h):
        found = np.diag(h) == 0
        h[found, found] = 1
        w[:, found] = 0

    def order(self, diagonal):
        return np.argsort(-diagonal, kind="stable") if self.act_order else np.arange(len(diagonal))

    def share(self, h):
        return self.damping * np.mean(np.diag(h))

    def factor(self, h):
        return np.linalg.cholesky(np.linalg.inv(h)).T

    def range(self, columns):
        low, high = columns.min(axis=1, initial=0), columns.max(axis=1, initial=0)
        if self.symmetric:
            high = np.maximum(-low, high)
            low = -high
        nothing = low == high
        return np.where(nothing, -1, low).astype(self.dtype), np.where(nothing, 1, high).astype(self.dtype)

    def parameters(self, columns):
        low, high = self.range(columns)
        scale = ((high - low) / self.dtype(self.largest)).astype(np.float32)
        zero = np.full(len(low), (self.largest + 1) // 2) if self.symmetric else self.zero(low, scale)
        return scale, zero

    def zero(self, low, scale):
        return np.rint(-low / scale)

    def code(self, column, scale, zero):
        return np.clip(np.rint(column / scale) + zero, 0, self.largest)

    def error(self, missed, u, j):
        return missed / u[j, j]

    def update(self, left, error, u, j):
        left[:, j + 1 :] -= np.outer(error, u[j, j + 1 :])

    def at_start(self, left, original, members):
        return left[:, members]

    def group_index(self, order, size):
        places = np.arange(len(order)) // size
        found = places.copy()
        if not self.static:
            found[order] = places
        return found

    def placed(self, codes, order):
        found = np.empty_like(codes)
        found[:, order] = codes
        return found

    def __call__(self, w, hessian):
        if hessian.shape != (w.shape[1],) * 2:
            raise ValueError("hessian: must be square")
        w, h = np.array(w, self.dtype), np.array(hessian, self.dtype)
        n, k = w.shape
        self.dead(w, h)
        order, size = self.order(np.diag(h)), self.size or max(k, 1)
        index = self.group_index(order, size)
        groups = -(-k // size)
        scale, zero = np.ones((n, groups), np.float32), np.zeros((n, groups))
        if self.static:
            for group in range(groups):
                scale[:, group], zero[:, group] = self.parameters(w[:, group * size : (group + 1) * size])
        original, h = w[:, order], h[order][:, order]
        left = original.copy()
        if k:
            h[np.arange(k), np.arange(k)] += self.dtype(self.share(h))
        u = self.factor(h).astype(self.dtype)
        codes = np.zeros((n, k))
        for j in range(k):
            group = index[order[j]]
            if not self.static and j % size == 0:
                members = slice(j, j + size)
                scale[:, group], zero[:, group] = self.parameters(self.at_start(left, original, members))
            s, z = scale[:, group], zero[:, group]
            codes[:, j] = self.code(left[:, j], s, z)
            self.update(left, self.error(left[:, j] - (codes[:, j] - z) * s, u, j).astype(self.dtype), u, j)
        return (
            self.placed(codes, order).astype(np.uint8), scale, zero.astype(np.int32), index.astype(np.int32)
        )  # fmt: skip


def _register(backend, layer, name, **options):
    def kernel(w, hessian, *, format, mapping, group_size, static_groups, act_order, damping):
        return layer(format, mapping, group_size, static_groups, act_order, damping)(w, hessian)

    supports = {**GRIDS, **options.pop("supports", {})}
    backend.implements("quantize_gptq", name=name, supports=supports, **options)(kernel)


# Right kernels ------------------------------------------------------------------------------------------------------


def _right(layer=None, **options):
    def register(chosen):
        _register(right, chosen, chosen.__name__, **options)
        return chosen

    return register(layer) if layer else register


@_right
class column_by_column(Layer):
    pass


@_right(semantics=Semantics(intermediate=Precision.FLOAT64))
class in_float64(Layer):
    dtype = np.float64


@_right
class factor_of_the_reversed(Layer):
    def factor(self, h):
        return np.linalg.inv(np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1])


@_right
class times_the_reciprocal(Layer):
    def code(self, column, scale, zero):
        return np.clip(np.rint(column * (np.float32(1) / scale)) + zero, 0, self.largest)


@_right
class factor_by_double(Layer):
    def factor(self, h):
        return np.linalg.cholesky(np.linalg.inv(h.astype(np.float64))).T


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def _wrong(word="must be", **options):
    def register(layer):
        EXPECTED[layer.__name__] = word
        _register(wrong, layer, layer.__name__, **options)
        return layer

    return register


@_wrong()
class round_to_nearest(Layer):
    def update(self, left, error, u, j):
        pass


@_wrong()
class feeds_back_no_further_than_128(Layer):
    def update(self, left, error, u, j):
        stop = (j // 128 + 1) * 128
        left[:, j + 1 : stop] -= np.outer(error, u[j, j + 1 : stop])


@_wrong()
class last_column_of_a_block_forgotten(Layer):
    def update(self, left, error, u, j):
        if j % 32 != 31:
            super().update(left, error, u, j)


@_wrong()
class adds_the_error(Layer):
    def update(self, left, error, u, j):
        left[:, j + 1 :] += np.outer(error, u[j, j + 1 :])


@_wrong()
class error_not_divided(Layer):
    def error(self, missed, u, j):
        return missed


@_wrong()
class error_divided_twice(Layer):
    def error(self, missed, u, j):
        return missed / u[j, j] ** 2


@_wrong()
class inverse_instead_of_its_factor(Layer):
    def factor(self, h):
        return np.linalg.inv(h)


@_wrong()
class factor_of_the_hessian(Layer):
    def factor(self, h):
        return np.linalg.cholesky(h).T


@_wrong()
class lower_factor(Layer):
    def factor(self, h):
        return np.linalg.cholesky(np.linalg.inv(h))


@_wrong()
class factor_in_float16(Layer):
    def factor(self, h):
        return super().factor(h).astype(np.float16)


@_wrong()
class not_damped(Layer):
    def share(self, h):
        return 1e-6 * np.mean(np.diag(h))


@_wrong()
class damped_by_the_largest(Layer):
    def share(self, h):
        return self.damping * np.max(np.diag(h))


@_wrong()
class damped_absolutely(Layer):
    def share(self, h):
        return self.damping


@_wrong(supports={"act_order": True})
class least_important_first(Layer):
    def order(self, diagonal):
        return np.argsort(diagonal, kind="stable")


@_wrong(supports={"act_order": True})
class codes_in_the_order_of_processing(Layer):
    def placed(self, codes, order):
        return codes


@_wrong(supports={"act_order": True, "granularity": "group"})
class groups_of_neighbours(Layer):
    def group_index(self, order, size):
        return np.arange(len(order)) // size


@_wrong(supports={"granularity": "group", "static_groups": False})
class scales_of_the_original_weights(Layer):
    def at_start(self, left, original, members):
        return original[:, members]


@_wrong(supports={"granularity": "group", "static_groups": False})
class scales_of_what_the_last_block_of_128_left(Layer):
    def at_start(self, left, original, members):
        self.stale = left.copy() if members.start % 128 == 0 else self.stale
        return self.stale[:, members]


@_wrong()
class dead_columns_kept(Layer):
    def dead(self, w, h):
        found = np.diag(h) == 0
        h[found, found] = 1


@_wrong()
class a_code_too_many(Layer):
    def code(self, column, scale, zero):
        return np.clip(np.rint(column / scale) + zero, 0, self.largest - 1)


@_wrong(supports={"format": ("uint4", "uint3", "uint2")})
class not_clipped(Layer):
    def code(self, column, scale, zero):
        return (np.rint(column / scale) + zero) % 256


@_wrong()
class truncates(Layer):
    def code(self, column, scale, zero):
        return np.clip(np.floor(column / scale + 0.5 - 1e-3) + zero, 0, self.largest)


@_wrong(supports={"mapping": "asymmetric"})
class zero_point_truncated(Layer):
    def zero(self, low, scale):
        return np.floor(-low / scale)


@_wrong(supports={"mapping": "asymmetric"})
class range_without_zero(Layer):
    def range(self, columns):
        low, high = columns.min(axis=1), columns.max(axis=1)
        nothing = low == high
        return np.where(nothing, low - 1, low), np.where(nothing, high + 1, high)


@_wrong(supports={"mapping": "symmetric"})
class symmetric_by_the_largest_code(Layer):
    def parameters(self, columns):
        scale, zero = super().parameters(columns)
        return (scale * np.float32(self.largest / (self.largest - 1))).astype(np.float32), zero


@_wrong()
class rows_of_zeros_have_scale_zero(Layer):
    def range(self, columns):
        low, high = super().range(columns)
        nothing = ~columns.any(axis=1)
        return np.where(nothing, -(2.0**-20), low), np.where(nothing, 2.0**-20, high)


@_wrong()
class one_update_of_many_lost(Layer):
    def update(self, left, error, u, j):
        super().update(left, error, u, j)
        if j == 5 and left.shape[1] > 40:
            left[:, 40] += error * u[5, 40]


@_wrong()
class first_row_s_error_for_all(Layer):
    def update(self, left, error, u, j):
        error = error.copy()
        if len(error) > 16:
            error[16:] = error[0]
        super().update(left, error, u, j)
