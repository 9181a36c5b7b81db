"""Cases of vector operations."""

import numpy as np

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.formats import integer_format


@draws("add_int8")
def _add_int8(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    n = size(draw, sizes, "N", 257)
    families = one_of(draw, fills.CODES[:2]), one_of(draw, fills.CODES[:2])
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    fmt = integer_format(chosen["format"])
    arrays: dict[str, np.ndarray | None] = {}
    for name, family in zip("ab", families, strict=True):
        arrays[name] = fills.codes(rng, (n,), fmt, family)
    common = rng.integers(-6, 6)
    for name in "aby":
        scale = 2.0 ** (common + rng.integers(-1, 1, endpoint=True)) if regime == "exact" else fills.scales(rng, ())
        arrays[f"{name}_scale"] = np.asarray(scale, np.float32)
        zero = rng.integers(fmt.minimum, fmt.maximum, endpoint=True)
        arrays[f"{name}_zero_point"] = np.asarray(zero, np.int32)
    arrays = {argument.name: arrays[argument.name] for argument in operation.arguments}
    return Case(operation, chosen, arrays, {"fill": families, "seed": seed})
