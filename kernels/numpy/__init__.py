"""The NumPy backend: plain float32 NumPy, as a user would write it. It is under test; it is not the reference."""

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.numpy import affine, casts, products, vector

backend = Backend("numpy", version=np.__version__, arrays="numpy")
for family in (affine, products, vector, casts):
    family.register(backend)
