"""Cases of ONNX's quantized operators."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of, size
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.affine import middle
from lowbit_cts.reference.formats import integer_format

Generator = np.random.Generator


def zero_points(rng: Generator, place: tuple[int, ...], format: str, mapping: str = "asymmetric") -> np.ndarray:
    """Return zero points, any codes of the format, its ends among them; the middle one of symmetric operands."""
    fmt = integer_format(format)
    if mapping == "symmetric":
        return np.full(place, middle(fmt.minimum, fmt.maximum), np.int32)
    anywhere = rng.integers(fmt.minimum, fmt.maximum, place, endpoint=True)
    ends = rng.choice([fmt.minimum, fmt.maximum], place)
    return np.where(rng.random(place) < 0.2, ends, anywhere).astype(np.int32)


def operand_scale(rng: Generator, place: tuple[int, ...], exact: bool) -> np.ndarray:
    """Return scales of an operand; powers of two where the codes are to be determined."""
    return np.asarray(fills.powers_of_two(rng, place, -4, 0) if exact else fills.scales(rng, place), np.float32)


def output_scale(rng: Generator, acc: float, a_scale: np.ndarray, b_scale: np.ndarray, exact: bool) -> np.ndarray:
    """Return a scale of the output under which sums of about `acc` are spread over the codes and a little beyond."""
    common = float(np.sqrt(np.mean(np.square(a_scale, dtype=np.float64))) if np.size(a_scale) else 1.0)
    common *= float(np.sqrt(np.mean(np.square(b_scale, dtype=np.float64))) if np.size(b_scale) else 1.0)
    wanted = max(acc, 1.0) * common / rng.choice([20.0, 60.0, 200.0])
    return np.asarray(2.0 ** np.ceil(np.log2(wanted)) if exact else wanted, np.float32)


def deviation(codes: np.ndarray, format: str) -> float:
    """Return the root mean square of codes and of a zero point among them, for scales of outputs."""
    half = (integer_format(format).maximum - integer_format(format).minimum) / 2
    return float(np.sqrt(np.mean(np.square(codes, dtype=np.float64)) + half**2 / 3)) if codes.size else 1.0


def _product(draw: Draw, chosen: Mapping[str, Any], sizes: dict) -> tuple[Generator, dict[str, np.ndarray], dict]:
    m, k, n = size(draw, sizes, "M", 33), size(draw, sizes, "K", 257), size(draw, sizes, "N", 65)
    families = one_of(draw, fills.CODES), one_of(draw, fills.CODES)
    seed = draw(SEEDS)
    rng = np.random.default_rng(seed)
    token = (m,) if chosen["activation_granularity"] == "token" else ()
    channel = (n,) if chosen["weight_granularity"] == "channel" else ()
    arrays = {
        "a": fills.codes(rng, (m, k), integer_format(chosen["a_format"]), families[0]),
        "a_zero_point": zero_points(rng, token, chosen["a_format"]),
        "b": fills.codes(rng, (k, n), integer_format(chosen["b_format"]), families[1]),
        "b_zero_point": zero_points(rng, channel, chosen["b_format"], chosen["weight_mapping"]),
    }
    return rng, arrays, {"fill": families, "seed": seed}


@draws("matmul_integer")
def _matmul_integer(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    _, arrays, origin = _product(draw, chosen, sizes)
    return Case(operation, chosen, arrays, origin)


@draws("qlinear_matmul")
def _qlinear_matmul(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    rng, arrays, origin = _product(draw, chosen, sizes)
    exact = regime == "exact"
    arrays["a_scale"] = operand_scale(rng, arrays["a_zero_point"].shape, exact)
    arrays["b_scale"] = operand_scale(rng, arrays["b_zero_point"].shape, exact)
    acc = deviation(arrays["a"], chosen["a_format"]) * deviation(arrays["b"], chosen["b_format"])
    acc *= np.sqrt(arrays["a"].shape[1])
    arrays["y_scale"] = output_scale(rng, acc, arrays["a_scale"], arrays["b_scale"], exact)
    arrays["y_zero_point"] = zero_points(rng, (), chosen["y_format"])
    arrays = {argument.name: arrays[argument.name] for argument in operation.arguments}
    return Case(operation, chosen, arrays, origin)


@draws("dynamic_quantize_linear")
def _dynamic_quantize(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    shape = size(draw, sizes, "M", 65), size(draw, sizes, "K", 257)
    family, seed = one_of(draw, ("exact",) if regime == "exact" else tuple(fills.OBSERVED)), draw(SEEDS)
    rng = np.random.default_rng(seed)
    x = whole_steps(rng, shape) if regime == "exact" else fills.observed(rng, shape, family)
    return Case(operation, chosen, {"x": x.astype(np.float32)}, {"fill": family, "seed": seed})


def whole_steps(rng: Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return halves of a power of two whose range is 255 of it: codes and zero points at ties and between them."""
    low = -rng.integers(0, 510, endpoint=True) / 2
    x = low + rng.integers(0, 510, shape, endpoint=True) / 2
    ends = rng.random(shape)
    x = np.where(ends < 0.2, low, np.where(ends > 0.8, low + 255, x))
    return x * 2.0 ** rng.integers(-6, 6)
