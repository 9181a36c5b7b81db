"""Cases of requantization."""

import numpy as np

from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.formats import IntegerFormat, integer_format

INT32 = np.iinfo(np.int32)


def near(
    rng: np.random.Generator, shape: tuple[int, ...], scale: np.ndarray, zero: np.ndarray, fmt: IntegerFormat
) -> np.ndarray:
    """Return sums that scale to quarters of a code, ties among them, from 3 codes below the range to 3 above it."""
    low, high = fmt.minimum - 3, fmt.maximum + 3
    quarters = rng.integers(4 * low, 4 * high, size=shape, endpoint=True) / 4 - zero
    return np.clip(np.rint(quarters / scale), INT32.min, INT32.max).astype(np.int32)


def _acc(rng: np.random.Generator, family: str, shape: tuple[int, int], *place: object) -> np.ndarray:
    if family == "near":
        return near(rng, shape, *place)  # type: ignore[arg-type]
    acc = rng.integers(INT32.min, INT32.max, size=shape, endpoint=True)
    return (acc >> rng.integers(0, 31, size=shape)).astype(np.int32)  # every magnitude


@draws("requantize")
def _requantize(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    m, n = size(draw, sizes, "M", 65), size(draw, sizes, "N", 129)
    family = "near" if regime == "exact" else one_of(draw, ("near", "wide"))
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    place = (n,) if chosen["granularity"] == "channel" else ()
    # From 1 on sums leave int32, where libraries are free: seldom, and not in the exact regime.
    exponent = rng.integers(-20, -1, size=place, endpoint=True) if regime == "exact" else rng.uniform(-28, 1, place)
    fmt = integer_format(chosen["format"])
    scale = np.asarray(2.0**exponent, np.float32)
    zero = np.asarray(rng.integers(fmt.minimum, fmt.maximum, size=place, endpoint=True), np.int32)
    acc = _acc(rng, family, (m, n), scale.astype(np.float64), zero, fmt)
    return Case(operation, chosen, {"acc": acc, "scale": scale, "zero_point": zero}, {"fill": family, "seed": seed})
