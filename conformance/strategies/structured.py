"""Cases of linear layers whose weights have structure."""

import numpy as np

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.conformance.strategies.linear import ACTIVATIONS, activations, bias_of, sizes_mn
from lowbit_cts.conformance.strategies.sparse24 import FIELDS
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.formats import integer_format
from lowbit_cts.reference.packing.sparse24 import metadata_word, reorder_metadata
from lowbit_cts.reference.packing.streams import pack_stream


def _elements(rng: np.random.Generator, shape: tuple[int, int], format: str, regime: str) -> np.ndarray:
    """Return finite codes; small integers in the exact regime."""
    if format == "int8":
        return fills.codes(rng, shape, integer_format("int8"), "uniform")
    if regime == "exact":
        return fills.float_codes(rng.integers(-3, 3, shape, endpoint=True) / 2, format)
    return fills.float_codes(rng.standard_normal(shape) * np.exp(rng.standard_normal((shape[0], 1))), format)


@draws("matmul_sparse24")
def _matmul_sparse24(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    whole, format = operation.multiples(chosen), chosen["format"]
    m, k = size(draw, sizes, "M", 65, whole.get("M", 1)), size(draw, sizes, "K", 257, whole["K"])
    if "H" in sizes and "K" not in sizes:
        k = 2 * size(draw, sizes, "H", 129, whole["H"])
    n, seed = size(draw, sizes, "N", 33), draw(SEEDS)
    rng = np.random.default_rng(seed)
    fields = FIELDS[rng.integers(0, 6, (m, k // 4))]
    metadata = pack_stream(fields, 4, metadata_word(format))
    if chosen["metadata_order"] == "cutlass" and metadata.size:
        metadata = reorder_metadata(metadata)
    values = _elements(rng, (m, k // 2), format, regime)
    if regime == "full" and format != "int8":  # any finite numbers of ordinary size, and zeros among them
        values = np.where(rng.random(values.shape) < 0.1, np.zeros((), values.dtype), values)
    arrays = {"values": values, "metadata": metadata, "b": _elements(rng, (k, n), format, regime)}
    return Case(operation, chosen, arrays, {"fill": regime, "seed": seed})


def _factor(rng: np.random.Generator, shape: tuple[int, int], format: str, exact: bool) -> np.ndarray:
    x = rng.integers(-2, 2, shape, endpoint=True) / 4 if exact else rng.standard_normal(shape) / 4
    return fills.float_codes(x, format)


@draws("linear_low_rank", "linear_lora")
def _low_rank(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    (m, n), k, r = sizes_mn(draw, sizes), size(draw, sizes, "K", 129), size(draw, sizes, "R", 17)
    family, seed = one_of(draw, ACTIVATIONS[regime]), draw(SEEDS)
    rng, exact, format = np.random.default_rng(seed), regime == "exact", chosen["input_format"]
    if exact and format != "float32":  # few products, so that their sums fit 8 bits
        family = "single"
    x = activations(rng, (m, k), family)
    arrays = {
        "a": fills.float_codes(x, format),
        "b": _factor(rng, (k, n), format, exact),
        "down": _factor(rng, (k, r), format, exact),
        "up": _factor(rng, (r, n), format, exact),
        "scaling": np.asarray(
            2.0 ** rng.integers(-1, 2) if exact else rng.uniform(0.3, 2.0) * rng.choice([1.0, 2.0**-13]), np.float32
        ),
        "bias": bias_of(rng, chosen, n, exact),
    }
    arrays = {argument.name: arrays[argument.name] for argument in operation.arguments}
    return Case(operation, chosen, arrays, {"fill": family, "seed": seed})


@draws("matmul_llm_int8")
def _matmul_llm_int8(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    (m, n), k = sizes_mn(draw, sizes), size(draw, sizes, "K", 257)
    codes, seed = one_of(draw, fills.CODES), draw(SEEDS)
    rng = np.random.default_rng(seed)
    x = np.clip(rng.standard_normal((m, k)), -4, 4)
    if regime == "exact":  # the largest magnitude is 127 steps: codes are whole, and so are ties
        x = rng.integers(-254, 254, (m, k), endpoint=True) / 2 * 2.0**-6
        x[:, :1] = 127 * 2.0**-6
    columns = rng.random(k) < 2 / max(1, k)
    outliers = np.where(rng.random((m, k)) < 0.5, rng.choice([6.0, -6.0, 8.5, -30.0], (m, k)), x)
    x = np.where(columns, outliers, x)
    arrays = {
        "a": fills.float_codes(x, chosen["input_format"]),
        "codes": fills.codes(rng, (n, k), integer_format("int8"), codes),
        "absmax": np.asarray(fills.scales(rng, (n,)) * 10, np.float32),
        "bias": bias_of(rng, chosen, n, regime == "exact"),
    }
    return Case(operation, chosen, arrays, {"fill": codes, "seed": seed})
