"""Cases of packed codes and of scales in the orders of their kernels."""

import numpy as np

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.formats import FORMATS, IntegerFormat
from lowbit_cts.reference.packing.packings import PACKINGS


def code_format(bits: int, signed: bool) -> IntegerFormat:
    """Return the integer format of codes of so many bits, from a single one on."""
    return IntegerFormat(f"{bits} bits", bits, signed, np.dtype(np.int8 if signed else np.uint8))


@draws("pack_codes")
def _pack(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    whole = operation.multiples(chosen)
    shape = size(draw, sizes, "M", 65, whole.get("M", 1)), size(draw, sizes, "K", 257, whole.get("K", 1))
    family, seed = one_of(draw, fills.CODES), draw(SEEDS)
    rng = np.random.default_rng(seed)
    codes = fills.codes(rng, shape, code_format(chosen["bits"], chosen["signed"]), family)
    if chosen["packing"] == "gptq_zeros_v1":  # a zero point of 0 has a property of its own
        codes = np.maximum(codes, 1).astype(codes.dtype)
    return Case(operation, chosen, {"codes": codes}, {"fill": family, "seed": seed})


@draws("unpack_codes")
def _unpack(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    """Draw words of random bits; of those that hold a ragged end of codes, too, which a kernel must not look at."""
    axes, whole = operation.arguments[0].shape(chosen), operation.multiples(chosen)
    largest = {"M": 65, "K": 65, "V": 17, "W": 257 if "V" in axes else 65}
    shape = tuple(size(draw, sizes, axis, largest[axis], whole.get(axis, 1)) for axis in axes)
    seed = draw(SEEDS)
    carrier = PACKINGS[chosen["packing"]].carrier
    bits = np.random.default_rng(seed).integers(0, 256, (*shape, carrier.itemsize)).astype(np.uint8)
    return Case(operation, chosen, {"words": bits.view(carrier)[..., 0]}, {"fill": "bits", "seed": seed})


@draws("swizzle_scales")
def _swizzle(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    shape = size(draw, sizes, "M", 257), size(draw, sizes, "G", 17)
    seed = draw(SEEDS)
    scales = np.random.default_rng(seed).integers(0, 256, shape).astype(FORMATS[chosen["format"]].carrier)
    return Case(operation, chosen, {"scales": scales}, {"fill": "bits", "seed": seed})


@draws("permute_scales_marlin")
def _permute(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    groups = chosen["granularity"] == "group"
    n = size(draw, sizes, "N", 257, operation.multiples(chosen)["N"])
    shape = (size(draw, sizes, "G", 9), n) if groups else (n,)
    seed = draw(SEEDS)
    scales = fills.float_codes(fills.scales(np.random.default_rng(seed), shape), chosen["format"])
    return Case(operation, chosen, {"scales": scales}, {"fill": "scales", "seed": seed})
