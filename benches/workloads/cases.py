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

from lowbit_cts.benches.workloads import builders  # noqa: F401  (fills BUILDERS)
from lowbit_cts.benches.workloads.builders.building import BUILDERS, Approximate
from lowbit_cts.benches.workloads.fills import FILLS
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.kernels.operation import OPERATIONS, Case, Operation


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
    _demand("operation", operation, BUILDERS)
    _demand("fill", fill, FILLS)
    contract = OPERATIONS[operation]
    chosen = complete_parameters(contract, parameters or {})
    rng = np.random.default_rng(seed)
    arrays, ideal, approximate = BUILDERS[operation](rng, layer, layer.rows(batch), fill, chosen)
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
