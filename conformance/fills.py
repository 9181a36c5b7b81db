"""Families of inputs: seeded NumPy, each made to reach a certain kind of fault."""

from collections.abc import Callable

import numpy as np

from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import FORMATS, FloatFormat, IntegerFormat, decode, float_format

Generator = np.random.Generator
_MAX = float(np.finfo(np.float32).max)
_TINY = float(np.finfo(np.float32).smallest_subnormal)

#: Values at which kernels special-case, overflow or lose the sign.
SPECIALS = np.array(
    [0.0, -0.0, _TINY, -_TINY, 1e-38, -1e-38, 2.0**31, -(2.0**31), 3e9, -3e9, 2.0**32, 1e20, -1e20, _MAX, -_MAX,
     np.inf, -np.inf, np.nan]
)  # fmt: skip


#: Bits of NaN whose payload is easily lost: in the lowest bits, in the highest, in all, without the quiet bit.
NAN_CODES: dict[str, np.ndarray] = {
    "float16": np.array([0x7C01, 0x7DFF, 0x7E00, 0x7FFF], np.uint16),
    "bfloat16": np.array([0x7F81, 0x7FBF, 0x7FC0, 0x7FFF], np.uint16),
    "float32": np.array([0x7F800001, 0x7F801000, 0x7F900000, 0x7FBFFFFF, 0x7FC00000, 0x7FFFFFFF], np.uint32),
    "float64": np.array(
        [0x7FF0000000000001, 0x7FF0000020000000, 0x7FF7FFFFFFFFFFFF, 0x7FF8000000000000, 0x7FFFFFFFFFFFFFFF], np.uint64
    ),
}


def nans(format: str) -> np.ndarray:
    """Return NaN of both signs and of every kind of payload, in the carrier of a wide format."""
    codes = NAN_CODES[format]
    sign = codes.dtype.type(1 << (8 * codes.itemsize - 1))
    return np.concatenate([codes, codes | sign]).view(FORMATS[format].carrier)


def powers_of_two(rng: Generator, shape: tuple[int, ...], low: int = -6, high: int = 6) -> np.ndarray:
    """Return random powers of two: multiplying and dividing by them is exact."""
    return 2.0 ** rng.integers(low, high, size=shape, endpoint=True)


def scales(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return log-normal float32 scales, centred on 0.05: neighbours differ, so a scale of another row shows."""
    return (0.05 * np.exp(rng.standard_normal(shape))).astype(np.float32)


def grid(rng: Generator, scale: np.ndarray, zero: np.ndarray, fmt: IntegerFormat) -> np.ndarray:
    """Return points at quarters of a code, ties among them, from 3 codes below the range to 3 above it."""
    low, high = fmt.minimum - 3, fmt.maximum + 3
    steps = rng.integers(4 * low, 4 * high, size=scale.shape, endpoint=True) / 4
    return scale * (steps - zero)


def ties(rng: Generator, scale: np.ndarray, zero: np.ndarray, fmt: IntegerFormat) -> np.ndarray:
    """Return float32 values nearest to a tie, and their neighbours on both sides."""
    codes = rng.integers(fmt.minimum - 1, fmt.maximum, size=scale.shape, endpoint=True) + 0.5
    x = (scale * (codes - zero)).astype(np.float32)
    direction = np.sign(rng.integers(-1, 1, size=x.shape, endpoint=True)).astype(np.float32)
    return np.where(direction == 0, x, np.nextafter(x, direction * np.float32(_MAX)))


def normal(rng: Generator, scale: np.ndarray, zero: np.ndarray, fmt: IntegerFormat) -> np.ndarray:
    """Return normal values that mostly fall inside the range."""
    return scale * rng.standard_normal(scale.shape) * (fmt.maximum - fmt.minimum) / 4


def outliers(rng: Generator, scale: np.ndarray, zero: np.ndarray, fmt: IntegerFormat) -> np.ndarray:
    """Return normal values, one in ten 50 times as large."""
    return normal(rng, scale, zero, fmt) * np.where(rng.random(scale.shape) < 0.1, 50, 1)


def full_range(rng: Generator, scale: np.ndarray, zero: np.ndarray, fmt: IntegerFormat) -> np.ndarray:
    """Return values of every magnitude of float32, log-uniform."""
    signs = np.where(rng.random(scale.shape) < 0.5, -1.0, 1.0)
    return signs * 2.0 ** rng.uniform(-130, 127, size=scale.shape)


def specials(rng: Generator, scale: np.ndarray, zero: np.ndarray, fmt: IntegerFormat) -> np.ndarray:
    """Return normal values with special ones among them."""
    return np.where(
        rng.random(scale.shape) < 0.4, rng.choice(SPECIALS, size=scale.shape), normal(rng, scale, zero, fmt)
    )


QuantizeFill = Callable[[Generator, np.ndarray, np.ndarray, IntegerFormat], np.ndarray]

#: What quantizers are fed, given the scale and zero point beside each element.
QUANTIZE: dict[str, QuantizeFill] = {
    "grid": grid, "ties": ties, "normal": normal, "outliers": outliers, "full_range": full_range, "specials": specials,
}  # fmt: skip
PLAIN = ("grid", "ties", "normal", "outliers")
SPECIAL = ("specials", "full_range")


def observed(rng: Generator, shape: tuple[int, int], family: str) -> np.ndarray:
    """Return a matrix whose range is to be observed, of one of the families `OBSERVED`."""
    x = rng.standard_normal(shape) * np.exp(rng.standard_normal((shape[0], 1)))
    return OBSERVED[family](rng, x)


OBSERVED: dict[str, Callable[[Generator, np.ndarray], np.ndarray]] = {
    "normal": lambda rng, x: x,
    "positive": lambda rng, x: np.abs(x) + 0.5,
    "negative": lambda rng, x: -np.abs(x) - 0.5,
    "outlier": lambda rng, x: np.where(rng.random(x.shape) < 1 / max(1, x.size), 300.0, x),
    "constant": lambda rng, x: np.full_like(x, rng.choice([3.0, -0.75])),
    "zero": lambda rng, x: np.zeros_like(x),
    "zero_rows": lambda rng, x: np.where(rng.random((x.shape[0], 1)) < 0.5, 0.0, x),
    "tiny": lambda rng, x: x * 1e-5,
    "huge": lambda rng, x: np.clip(x * 1e3, -6e4, 6e4),
}


def codes(rng: Generator, shape: tuple[int, ...], fmt: IntegerFormat, family: str) -> np.ndarray:
    """Return codes: uniform over all, only the extremes, a single one, or small (magnitudes up to 3)."""
    low, high = fmt.minimum, fmt.maximum
    if family == "extremes":
        values = rng.choice([low, high], size=shape)
    elif family == "single":
        values = np.zeros(shape, np.int64)
        if values.size:
            values.flat[rng.integers(values.size)] = high
    elif family == "small":
        values = rng.integers(max(low, -3), min(high, 3), size=shape, endpoint=True)
    else:
        values = rng.integers(low, high, size=shape, endpoint=True)
    return values.astype(fmt.carrier)


CODES = ("uniform", "extremes", "single", "small")


def boundaries(fmt: FloatFormat) -> np.ndarray:
    """Return every decision boundary of a small float as float64: all midpoints, values and the overflow edges.

    Of E8M0 without those among the subnormal numbers of float32, which have a property of their own.
    """
    values = decode(np.arange(fmt.largest_magnitude + 1), fmt)
    step = values[-1] - values[-2]
    edges = np.concatenate([values, (values[:-1] + values[1:]) / 2, values[-1] + step * np.array([0.5, 1.0, 2.0])])
    if not fmt.zero:
        edges = edges[edges >= 2.0**-126]
    return np.concatenate([edges, -edges])


def float_values(rng: Generator, count: int, source: FloatFormat, target: FloatFormat, family: str) -> np.ndarray:
    """Return codes of `source` to be cast to `target`: boundaries and neighbours, random bits, normal, specials."""
    if family == "boundaries":
        chosen = rng.choice(boundaries(target), size=count)
        return neighbours(chosen, source, rng.integers(-1, 1, size=count, endpoint=True))
    if family == "bits":
        bits = rng.integers(0, 1 << source.bits, size=count, dtype=np.uint64)
        return bits.astype(f"u{source.carrier.itemsize}").view(source.carrier)
    values = rng.standard_normal(count) * np.exp(2 * rng.standard_normal(count))
    if family == "specials":
        values = np.where(rng.random(count) < 0.5, rng.choice(SPECIALS, size=count), values)
    return values if source.name == "float64" else encode(values, source)


def neighbours(values: np.ndarray, fmt: FloatFormat, steps: np.ndarray) -> np.ndarray:
    """Return the codes of finite values in `fmt`, moved by `steps` units in the last place away from zero."""
    codes = np.asarray(values, fmt.carrier) if fmt.name == "float64" else encode(values, fmt)
    unsigned = f"u{fmt.carrier.itemsize}"
    bits = codes.view(unsigned).astype(np.int64)
    magnitude = bits & (fmt.sign_bit - 1)  # all of them without a sign
    moved = np.clip(magnitude + steps, 0, fmt.largest_magnitude)
    return ((bits - magnitude) | moved).astype(unsigned).view(fmt.carrier)


def float_codes(x: np.ndarray, format: str) -> np.ndarray:
    """Return numbers as codes of a float format, those beyond it at its largest value."""
    fmt = float_format(format)
    with np.errstate(over="ignore"):
        limited = np.where(np.isfinite(x), np.clip(x, -fmt.maximum, fmt.maximum), x)
    return encode(limited, fmt)
