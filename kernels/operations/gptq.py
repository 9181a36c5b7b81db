"""Weights quantized by GPTQ: quantize_gptq."""

from collections.abc import Mapping

import numpy as np

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference.algorithms.gptq import Grid, Quantized, gptq
from lowbit_cts.reference.algorithms.gptq_path import path_enclosures
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.formats import integer_format

Sizes = Mapping[str, int]


def grid_of(parameters: Parameters) -> Grid:
    """Return the grid that parameters choose."""
    return Grid(
        integer_format(parameters["format"]).bits, parameters["mapping"] == "symmetric", parameters["group_size"],
        bool(parameters["static_groups"]), parameters["act_order"],
    )  # fmt: skip


def _groups(sizes: Sizes, parameters: Parameters) -> int | None:
    return len(grid_of(parameters).groups(sizes["K"])) if "K" in sizes else None


def _follow(case: Case, semantics: Semantics, returned: Mapping[str, np.ndarray]) -> dict[str, Enclosure]:
    result = Quantized(
        returned["codes"].astype(np.int64), returned["scale"].astype(np.float64),
        returned["zero_point"].astype(np.int64), returned["group_index"].astype(np.int64),
    )  # fmt: skip
    return path_enclosures(
        case.array("w"), case.array("hessian"), grid_of(case.parameters), result,
        damping=case.parameters["damping"], **semantics.choices(case.operation.semantics),
    )  # fmt: skip


def _evaluate(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    own = gptq(
        case.array("w"), case.array("hessian"), grid_of(case.parameters), damping=case.parameters["damping"],
        rounding=semantics.rounding,
    )  # fmt: skip
    return _follow(case, semantics, vars(own))


def _work(case: Case) -> float:
    """Return the arithmetic: factorization and inverse of the Hessian, and an update of each later column."""
    n, k = case.sizes["N"], case.sizes["K"]
    return k**3 + 1.0 * n * k * k


quantize_gptq = register(
    Operation(
        name="quantize_gptq",
        summary="codes, scales and groups of weights by GPTQ: column by column, errors spread over the later ones",
        source="Frantar et al., GPTQ, arXiv:2210.17323, algorithm 1",
        arguments=(
            Argument("w", lambda p: "float32", lambda p: ("N", "K"), "float32, finite weights, (N, K)"),
            Argument(
                "hessian", lambda p: "float32", lambda p: ("K", "K"),
                "float32, symmetric and positive semidefinite, not yet damped, (K, K); a zero on its diagonal is a "
                "dead column",
            ),
        ),
        results=(
            Argument("codes", lambda p: p["format"], lambda p: ("N", "K"), "codes, columns as in w, (N, K)"),
            Argument("scale", lambda p: "float32", lambda p: ("N", "G"), "float32, (N, G)"),
            Argument("zero_point", lambda p: "int32", lambda p: ("N", "G"), "int32, (N, G)"),
            Argument("group_index", lambda p: "int32", lambda p: ("K",), "int32, (K,): the group of each column"),
        ),
        parameters={
            "format": Parameter(
                ("uint4", "uint3", "uint2", "uint8", "uint5", "uint6", "uint7"), "the format of the codes",
                assumed=("uint4",),
            ),
            "mapping": Parameter(
                ("asymmetric", "symmetric"),
                "symmetric: scale 2 max|w| / (2**bits - 1), zero point 2**(bits - 1); a group of zeros has -1 to 1",
                assumed=("asymmetric",),
            ),
            "granularity": Parameter(
                ("channel", "group"), "a scale a row, or for the columns of a group, in the order of processing",
                assumed=("group", "channel"),
            ),
            "group_size": Parameter(
                (32, 12, 128), "columns in a group", assumed=(32,), open=True,
                needed=lambda p: p["granularity"] == "group",
            ),
            "static_groups": Parameter(
                (False, True), "scales of the weights as they came, in groups of neighbours; or as they are when their "
                "group begins", assumed=(False,), needed=lambda p: p["granularity"] == "group",
            ),
            "act_order": Parameter(
                (False, True), "columns by falling diagonal of the Hessian, equal ones in any order",
                assumed=(False,),
            ),
            "damping": Parameter((0.01, 0.1), "share of the mean of the diagonal that is added to it",
                                 assumed=(0.01,)),
        },
        semantics=("rounding", "intermediate"),
        evaluate=_evaluate,
        follow=_follow,
        independent=lambda p: ("N",),
        variants=("granularity", "static_groups", "act_order"),
        work=_work,
        derived={"G": _groups},
    )
)  # fmt: skip
