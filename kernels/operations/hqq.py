"""Weights quantized by half-quadratic quantization: quantize_hqq."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference.algorithms.hqq import STEPS, Fitted
from lowbit_cts.reference.algorithms.hqq_path import hqq_enclosures
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.formats import integer_format

Sizes = Mapping[str, int]


def _group(columns: int, parameters: Parameters) -> int:
    """Return the columns of a group."""
    return parameters["group_size"] or columns


def _groups(sizes: Sizes, parameters: Parameters) -> int | None:
    if "K" not in sizes:
        return None
    return 1 if parameters["group_size"] is None else sizes["K"] // parameters["group_size"]


def in_groups(w: np.ndarray, parameters: Parameters) -> np.ndarray:
    """Return weights (N, K) with a group a row."""
    size = _group(w.shape[1], parameters)
    if size and w.shape[1] % size:
        raise ValueError(f"group_size: {size} does not divide the {w.shape[1]} columns of w")
    return w.reshape(-1, size) if w.size else w.reshape(0 if size else w.shape[0], size)


def _enclosures(case: Case, semantics: Semantics, returned: Fitted | None) -> dict[str, Enclosure]:
    chosen, w = case.parameters, case.array("w")
    found = hqq_enclosures(
        in_groups(w, chosen), returned, bits=integer_format(chosen["format"]).bits, growth=chosen["growth"],
        **semantics.choices(case.operation.semantics),
    )  # fmt: skip
    shapes = {result.name: case.result_shape(result) for result in case.operation.results}
    return {name: _reshaped(enclosure, shapes[name]) for name, enclosure in found.items()}


def _reshaped(found: Enclosure, shape: tuple[int, ...]) -> Enclosure:
    return Enclosure(found.exact.reshape(shape), found.lo.reshape(shape), found.hi.reshape(shape))


def _evaluate(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    return _enclosures(case, semantics, None)


def _follow(case: Case, semantics: Semantics, returned: Mapping[str, np.ndarray]) -> dict[str, Enclosure]:
    return _enclosures(case, semantics, fitted(case, returned))


def fitted(case: Case, returned: Mapping[str, np.ndarray]) -> Fitted:
    """Return results with a group a row."""
    scale, zero = (returned[name].astype(np.float64).reshape(-1, 1) for name in ("scale", "zero_point"))
    return Fitted(in_groups(returned["codes"].astype(np.float64), case.parameters), scale, zero)


def _whole_groups(parameters: Parameters) -> Mapping[str, Any]:
    return {} if parameters["group_size"] is None else {"K": parameters["group_size"]}


quantize_hqq = register(
    Operation(
        name="quantize_hqq",
        summary="codes, scales and real zero points of weights by half-quadratic quantization",
        source="Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023; mobiusml/hqq",
        arguments=(Argument("w", lambda p: "float32", lambda p: ("N", "K"), "float32, finite weights, (N, K)"),),
        results=(
            Argument("codes", lambda p: p["format"], lambda p: ("N", "K"), "codes, (N, K)"),
            Argument(
                "scale", lambda p: "float32", lambda p: ("N", "G"),
                "float32, (N, G): a weight is (codes - zero_point) scale; 1 where a group is constant",
            ),
            Argument("zero_point", lambda p: "float32", lambda p: ("N", "G"), "float32, no whole number, (N, G)"),
        ),
        parameters={
            "format": Parameter(
                ("uint4", "uint3", "uint2", "uint8", "uint5", "uint6", "uint7"), "the format of the codes",
                assumed=("uint4",),
            ),
            "granularity": Parameter(
                ("channel", "group"), "a scale a row, or for neighbours in a row", assumed=("group", "channel")
            ),
            "group_size": Parameter(
                (64, 32, 12, 128), "columns in a group, which divides them", assumed=(64, 32), open=True,
                needed=lambda p: p["granularity"] == "group",
            ),
            "growth": Parameter(
                (1.01, 1.0), "what the weight of the quadratic term is multiplied by at each step", assumed=(1.01,)
            ),
        },
        semantics=("rounding", "float_accumulator", "function_ulps"),
        evaluate=_evaluate,
        follow=_follow,
        independent=lambda p: (),  # all groups stop together
        variants=("granularity", "growth"),
        work=lambda case: 12.0 * STEPS * case.array("w").size,
        derived={"G": _groups},
        multiples=_whole_groups,
    )
)  # fmt: skip
