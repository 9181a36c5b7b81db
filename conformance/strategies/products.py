"""Cases of the products."""

import numpy as np

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.formats import integer_format


def _matmul_sizes(draw: Draw, sizes: dict, deep: int) -> tuple[int, int, int]:
    return size(draw, sizes, "M", 33), size(draw, sizes, "K", deep), size(draw, sizes, "N", 65)


@draws("matmul_int8")
def _matmul_int8(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    m, k, n = _matmul_sizes(draw, sizes, 257)
    families = one_of(draw, fills.CODES), one_of(draw, fills.CODES)
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    arrays = {
        "a": fills.codes(rng, (m, k), integer_format(chosen["a_format"]), families[0]),
        "b": fills.codes(rng, (k, n), integer_format("int8"), families[1]),
    }
    return Case(operation, chosen, arrays, {"fill": families, "seed": seed})


@draws("matmul_w8a8")
def _matmul_w8a8(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    m, k, n = _matmul_sizes(draw, sizes, 257)
    families = ("small", "small") if regime == "exact" else (one_of(draw, fills.CODES), one_of(draw, fills.CODES))
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    a_format = integer_format(chosen["a_format"])
    token = (m,) if chosen["activation_granularity"] == "token" else ()
    channel = (n,) if chosen["weight_granularity"] == "channel" else ()
    scale = fills.powers_of_two if regime == "exact" else fills.scales
    a_scale, b_scale = scale(rng, token), scale(rng, channel)
    if chosen["mapping"] == "symmetric":
        zero = np.full(token, 0 if a_format.signed else 128)
    elif regime == "exact":
        zero = rng.integers(max(-5, a_format.minimum), 5, size=token, endpoint=True)
    else:
        zero = rng.integers(a_format.minimum, a_format.maximum, size=token, endpoint=True)
    bias = None
    if chosen["has_bias"]:
        steps = rng.integers(-64, 64, size=n, endpoint=True)
        bias = steps * 2.0**-4 if regime == "exact" else rng.standard_normal(n) * np.sum(a_scale)
        bias = bias.astype(np.float32)
    arrays = {
        "a": fills.codes(rng, (m, k), a_format, families[0]),
        "a_scale": np.asarray(a_scale, np.float32),
        "a_zero_point": np.asarray(zero, np.int32),
        "b": fills.codes(rng, (k, n), integer_format("int8"), families[1]),
        "b_scale": np.asarray(b_scale, np.float32),
        "bias": bias,
    }
    return Case(operation, chosen, arrays, {"fill": families, "seed": seed})
