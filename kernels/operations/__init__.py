"""The operations, one module a family."""

from lowbit_cts.kernels.operations import affine, casts, products, vector

__all__ = ["affine", "casts", "products", "vector"]
