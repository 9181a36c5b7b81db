"""Cases of merged adapters, and of adapters beside 4-bit weights."""

import numpy as np

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.conformance.strategies.linear import ACTIVATIONS, activations, bias_of, sizes_mn
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.codebooks import CODEBOOKS
from lowbit_cts.reference.qlora import NESTED

Generator = np.random.Generator


def factor(rng: Generator, shape: tuple[int, int], format: str, exact: bool) -> np.ndarray:
    """Return codes of normal numbers, or of quarters."""
    x = rng.integers(-2, 2, shape, endpoint=True) / 4 if exact else rng.standard_normal(shape) / 4
    return fills.float_codes(x, format)


def scaling(rng: Generator, exact: bool) -> np.ndarray:
    """Return alpha / r: a power of two where sums are to be exact."""
    return np.asarray(2.0 ** rng.integers(-1, 2) if exact else rng.uniform(0.3, 2.0), np.float32)


@draws("merge_lora")
def _merge_lora(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    n, k, r = size(draw, sizes, "N", 65), size(draw, sizes, "K", 129), size(draw, sizes, "R", 17)
    family = one_of(draw, ("alike", "small", "large")) if regime != "exact" else "alike"
    seed = draw(SEEDS)
    rng, exact, format = np.random.default_rng(seed), regime == "exact", chosen["input_format"]
    w = rng.integers(-8, 8, (n, k), endpoint=True) / 8 if exact else rng.standard_normal((n, k))
    w = w * {"alike": 1.0, "small": 2.0**-6, "large": 64.0}[family]
    if regime == "special":
        special = np.array([np.inf, -np.inf, np.nan, 1e-8, 0.0, -0.0, 6e4])
        w = np.where(rng.random((n, k)) < 0.1, rng.choice(special, (n, k)), w)
    down, up = factor(rng, (r, k), format, exact), factor(rng, (n, r), format, exact)
    if exact and r > 4:  # few products, so that their sums fit 8 bits
        down = np.where(np.arange(r)[:, None] < 4, down, np.zeros((), down.dtype))
    arrays = {"w": fills.float_codes(w, format), "down": down, "up": up, "scaling": scaling(rng, exact)}
    return Case(operation, chosen, arrays, {"fill": family, "seed": seed})


def _short(codebook: str, bits: int) -> np.ndarray:
    """Return the codes of a codebook whose values are multiples of 2**-bits."""
    scaled = CODEBOOKS[codebook].astype(np.float64) * 2.0**bits
    return np.flatnonzero(np.rint(scaled) == scaled)


@draws("linear_qlora")
def _linear_qlora(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    (m, n), block = sizes_mn(draw, sizes), chosen["block_size"]
    k, r = size(draw, sizes, "K", 257, block), size(draw, sizes, "R", 17)
    family = "single" if regime == "exact" else one_of(draw, ACTIVATIONS[regime])
    seed = draw(SEEDS)
    rng, exact, format = np.random.default_rng(seed), regime == "exact", chosen["input_format"]
    blocks = -(-n * (k // block) // chosen["nested_block_size"])
    codes = np.arange(CODEBOOKS[chosen["codebook"]].size)
    nested = fills.scales(rng, (blocks,))
    offset = np.float32(1.25 * nested.max(initial=0.05))
    absmax_codes = np.arange(256)
    if exact:
        codes, absmax_codes = _short(chosen["codebook"], 2), _short(NESTED, 1)
        offset = np.float32(2.0 ** rng.integers(-3, 1))
        nested = np.full(blocks, offset) * rng.choice([0.5, 1.0], blocks)
    arrays = {
        "a": fills.float_codes(activations(rng, (m, k), family), format),
        "codes": rng.choice(codes, (n, k)).astype(np.uint8),
        "absmax_codes": rng.choice(absmax_codes, (n, k // block)).astype(np.uint8),
        "nested_absmax": np.asarray(nested, np.float32),
        "offset": np.asarray(offset, np.float32),
        "down": factor(rng, (r, k), format, exact),
        "up": factor(rng, (n, r), format, exact),
        "scaling": scaling(rng, exact),
        "bias": bias_of(rng, chosen, n, exact),
    }
    if rng.random() < 0.25:  # where training begins
        arrays["up"] = np.zeros_like(arrays["up"])
    return Case(operation, chosen, arrays, {"fill": family, "seed": seed})
