"""Cases of casts between float formats."""

import numpy as np

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import SMALL_FLOATS, float_format


@draws("cast_float")
def _cast_float(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    n = size(draw, sizes, "N", 257)
    source, target = float_format(chosen["source"]), float_format(chosen["target"])
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    if chosen["source"] in SMALL_FLOATS:
        family, x = "codes", rng.integers(0, 1 << source.bits, size=n).astype(np.uint8)
    elif regime == "exact" and chosen["target"] in SMALL_FLOATS:  # values and middles: ties, or nothing changes
        family, x = "values", encode(rng.choice(fills.boundaries(target), size=n), source)
    else:
        small = chosen["target"] in SMALL_FLOATS
        plain = ("boundaries", "normal") if small else ("normal",)
        family = one_of(draw, ("specials", "bits") if regime == "special" else plain)
        x = fills.float_values(rng, n, source, target, family)
    return Case(operation, chosen, {"x": x}, {"fill": family, "seed": seed})
