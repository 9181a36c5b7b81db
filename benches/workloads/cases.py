"""Cases of operations at the shapes of real models, with the real numbers that they stand for.

Activations are drawn from the fill, weights and biases always from the standard normal distribution (outliers
are a feature of activations), and all are quantized by the reference's own rules: min-max ranges, and the
codes of IEEE division rounded half to even. Beside the case stands its ideal: what the operation would give
without quantization.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.fills import FILLS, normal
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.kernels.operation import OPERATIONS, Case, Operation
from lowbit_cts.reference import affine
from lowbit_cts.reference.choices import Overflow
from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import FloatFormat, decode, float_format, integer_format
from lowbit_cts.reference.products import integer_product

_BLOCK = 1 << 20
_PLACE = ("granularity", "axis", "group_size")

Arrays = Mapping[str, np.ndarray | None]
Approximate = Callable[..., np.ndarray]


@dataclass(frozen=True, eq=False)
class WorkloadCase:
    """A case at a workload, and what its result is compared with.

    Attributes
    ----------
    case : Case
        The inputs of the operation.
    layer : Layer
    batch : int
        Tokens or images.
    fill : str
        The fill of the activations.
    ideal : callable
        Gives `truth`.
    approximate : callable of the results
        Gives `approximation`.
    """

    case: Case
    layer: Layer
    batch: int
    fill: str
    ideal: Callable[[], np.ndarray]
    approximate: Approximate

    @cached_property
    def truth(self) -> np.ndarray:
        """The result without quantization, float or (matmul_int8) int64; computed when first asked for."""
        return self.ideal()

    def approximation(self, *results: np.ndarray) -> np.ndarray:
        """Return the real numbers that the results of a kernel stand for, in the shape of `truth`.

        Parameters
        ----------
        *results : ndarray
            The operation's results in order, in the carriers of their formats.
        """
        return self.approximate(*results)


def build(
    operation: str,
    layer: Layer,
    batch: int,
    *,
    fill: str = "normal",
    parameters: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> WorkloadCase:
    """Return a case of an operation at a workload.

    Parameters
    ----------
    operation : str
        The name of an operation.
    layer : Layer
    batch : int
        Tokens or images. With ``M = layer.rows(batch)``, products are M x K by K x N, affine operations take
        the M x K activations, casts these as one vector, and additions the M x N outputs as one vector.
    fill : str
        One of `FILLS`.
    parameters : mapping
        Parameters of the operation; those not given take the first value that fits, assumed ones first.
    seed : int
        The same seed gives the same numbers.

    Returns
    -------
    WorkloadCase
        Its truth is, by operation: x itself for quantize_affine, dequantize_affine, fake_quantize_affine,
        choose_qparams_affine and cast_float; the float32 product x @ w + bias for matmul_w8a8 (its error,
        about 1e-6, is far below any quantization's); the exact product of the codes for matmul_int8; the real
        sum for add_int8.

    Raises
    ------
    ValueError
        An unknown operation, fill or parameter, a value that is not admissible, a group size that does not
        divide K.
    """
    _demand("operation", operation, _BUILDERS)
    _demand("fill", fill, FILLS)
    contract = OPERATIONS[operation]
    chosen = complete_parameters(contract, parameters or {})
    rng = np.random.default_rng(seed)
    arrays, ideal, approximate = _BUILDERS[operation](rng, layer, layer.rows(batch), fill, chosen)
    origin = {"workload": layer.id, "batch": batch, "fill": fill, "seed": seed}
    ordered = {argument.name: arrays[argument.name] for argument in contract.arguments}
    return WorkloadCase(Case(contract, chosen, ordered, origin), layer, batch, fill, ideal, approximate)


def complete_parameters(operation: Operation, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return every parameter of an operation: as given, else the first that fits, None where idle.

    Raises
    ------
    ValueError
        An unknown parameter, a value that is not admissible, values that do not go together.
    """
    for name, value in given.items():
        _demand("parameters", name, operation.parameters)
        parameter = operation.parameters[name]
        if value is not None and not parameter.admits(value):
            raise ValueError(f"{name}: {value!r} is not admissible; admissible: {parameter.admissible()}")
    values = {
        name: (*dict.fromkeys((*parameter.assumed, *parameter.values)),) if given.get(name) is None else (given[name],)
        for name, parameter in operation.parameters.items()
    }
    for combination in operation.combinations(values, tuple(operation.parameters)):
        return combination
    raise ValueError(f"{operation.name}: no combination of {dict(given)} is one of the operation's")


def _demand(what: str, name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise ValueError(f"{what}: {name!r} is unknown; admissible: {', '.join(known)}")


# Matrices in real numbers, and their codes


def _blocks(rows: int, columns: int) -> list[slice]:
    """Return slices of rows, about a million elements each, so that float64 temporaries stay small."""
    step = max(1, _BLOCK // max(1, columns))
    return [slice(start, start + step) for start in range(0, rows, step)]


def _of_rows(values: np.ndarray, rows: slice, granularity: str, axis: int | None) -> np.ndarray:
    """Return the part of scales or zero points that belongs to a block of rows."""
    return values[rows] if granularity == "group" or (granularity == "axis" and axis == 0) else values


def qparams(x: np.ndarray, p: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the reference's min-max scale (float32) and zero point (int32) of a matrix."""
    keys = ("format", "mapping", "narrow_range", *_PLACE)
    chosen = affine.choose_qparams_enclosure(x, **{key: p[key] for key in keys if key in p})
    return np.asarray(chosen["scale"].exact, np.float32), np.asarray(chosen["zero_point"].exact, np.int32)


def codes_of(x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, p: Mapping[str, Any]) -> np.ndarray:
    """Return the reference's codes of a matrix, in the carrier of the format, block by block."""
    place = {key: p[key] for key in ("format", "narrow_range", *_PLACE) if key in p}
    codes = np.empty(x.shape, integer_format(p["format"]).carrier)
    for rows in _blocks(*x.shape):
        s, z = (_of_rows(v, rows, p["granularity"], p.get("axis")) for v in (scale, zero_point))
        codes[rows] = affine.quantize(x[rows], s, z, **place)
    return codes


def numbers_of(codes: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, p: Mapping[str, Any]) -> np.ndarray:
    """Return scale * (codes - zero_point) in float32, block by block."""
    place = {key: p[key] for key in ("format", *_PLACE) if key in p}
    numbers = np.empty(codes.shape, np.float32)
    for rows in _blocks(*codes.shape):
        s, z = (_of_rows(v, rows, p["granularity"], p.get("axis")) for v in (scale, zero_point))
        numbers[rows] = affine.dequantize(codes[rows], s, z, **place)
    return numbers


def _encoded(x: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    """Return a float32 matrix in the carrier of a float format, saturating, row block by row block."""
    if fmt.name == "float32":
        return x
    encoded = np.empty(x.shape, fmt.carrier)
    for rows in _blocks(*x.shape):
        encoded[rows] = encode(x[rows], fmt, overflow=Overflow.SATURATE)
    return encoded


def _decoded(codes: np.ndarray, fmt: FloatFormat) -> np.ndarray:
    """Return the numbers of codes in float32, looked up in a table of all codes; native floats as they are."""
    if fmt.carrier.kind == "f":
        return codes
    return decode(np.arange(1 << fmt.bits), fmt).astype(np.float32)[codes]


# One builder an operation: its arrays, the ideal result, and what the results stand for

Built = tuple[Arrays, Callable[[], np.ndarray], Approximate]


def _affine(
    rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return x and the arguments that the affine operations have, quantizing what the kernel will see."""
    x = FILLS[fill](rng, (rows, layer.k))
    source = float_format(p.get("input_format", "float32"))
    seen = _encoded(x, source)
    scale, zero_point = qparams(_decoded(seen, source), p)
    return x, {"x": seen, "scale": scale, "zero_point": zero_point}


def _choose_qparams(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, arrays = _affine(rng, layer, rows, fill, p)
    return arrays, lambda: x, lambda s, z: numbers_of(codes_of(x, s, z, p), s, z, p)


def _quantize(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, arrays = _affine(rng, layer, rows, fill, p)
    scale, zero_point = arrays["scale"], arrays["zero_point"]
    return arrays, lambda: x, lambda codes: numbers_of(codes, scale, zero_point, p)


def _fake_quantize(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, arrays = _affine(rng, layer, rows, fill, p)
    return arrays, lambda: x, lambda y: y


def _dequantize(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, arrays = _affine(rng, layer, rows, fill, p)
    arrays["codes"] = codes_of(x, arrays["scale"], arrays["zero_point"], p)
    return arrays, lambda: x, lambda y: _decoded(y, float_format(p["output_format"]))


def _cast_float(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x = FILLS[fill](rng, (rows, layer.k))
    codes = _encoded(x, float_format(p["source"])).reshape(-1)
    return {"x": codes}, lambda: x.reshape(-1), lambda y: _decoded(y, float_format(p["target"]))


def _matmul_int8(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    codes = []
    for numbers, format in (
        (FILLS[fill](rng, (rows, layer.k)), p["a_format"]),
        (normal(rng, (layer.n, layer.k)), "int8"),
    ):
        rule = {"format": format, "granularity": "tensor", "mapping": "symmetric"}
        codes.append(codes_of(numbers, *qparams(numbers, rule), rule))
    a, b = codes[0], np.ascontiguousarray(codes[1].T)
    return {"a": a, "b": b}, lambda: integer_product(a, b), lambda y: y


def _matmul_w8a8(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, w, bias = (
        FILLS[fill](rng, (rows, layer.k)),
        normal(rng, (layer.n, layer.k)),
        normal(rng, (1, layer.n))[0],
    )
    activation = _rule(p["a_format"], p["activation_granularity"], p["mapping"])
    weight = _rule("int8", p["weight_granularity"], "symmetric")
    a_scale, a_zero_point = qparams(x, activation)
    b_scale, b_zero_point = qparams(w, weight)
    arrays: Arrays = {
        "a": codes_of(x, a_scale, a_zero_point, activation),
        "a_scale": a_scale,
        "a_zero_point": a_zero_point,
        "b": np.ascontiguousarray(codes_of(w, b_scale, b_zero_point, weight).T),
        "b_scale": b_scale,
        "bias": bias if p["has_bias"] else None,
    }
    output = float_format(p["output_format"])
    return arrays, lambda: x @ w.T + (bias if p["has_bias"] else 0), lambda y: _decoded(y, output)


def _rule(format: str, granularity: str, mapping: str) -> dict[str, Any]:
    """Return how an operand of a product is quantized: one scale, or one a row (token, output channel)."""
    place = {"granularity": "tensor"} if granularity == "tensor" else {"granularity": "axis", "axis": 0}
    return {"format": format, "mapping": mapping, **place}


def _add_int8(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    rule = _rule(p["format"], "tensor", "asymmetric")
    a, b = (FILLS[fill](rng, (rows, layer.n)) for _ in range(2))
    arrays: dict[str, np.ndarray] = {}
    for name, numbers in (("a", a), ("b", b), ("y", a + b)):
        scale, zero_point = qparams(numbers, rule)
        arrays |= {f"{name}_scale": scale, f"{name}_zero_point": zero_point}
        if name != "y":
            arrays[name] = codes_of(numbers, scale, zero_point, rule).reshape(-1)
    scale, zero_point = arrays["y_scale"], arrays["y_zero_point"]
    return (
        arrays,
        lambda: np.add(a, b, dtype=np.float64).reshape(-1),
        lambda y: numbers_of(y[None], scale, zero_point, rule)[0],
    )


_BUILDERS: dict[str, Callable[[np.random.Generator, Layer, int, str, dict[str, Any]], Built]] = {
    "choose_qparams_affine": _choose_qparams,
    "quantize_affine": _quantize,
    "dequantize_affine": _dequantize,
    "fake_quantize_affine": _fake_quantize,
    "cast_float": _cast_float,
    "matmul_int8": _matmul_int8,
    "matmul_w8a8": _matmul_w8a8,
    "add_int8": _add_int8,
}
