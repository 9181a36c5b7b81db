"""AWQ's searches: awq_scales, awq_clipping."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference.algorithms.awq import RATIOS, SHARES
from lowbit_cts.reference.algorithms.awq_admissible import clipping_enclosures, scales_enclosures
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.formats import integer_format

_GRID = {
    "format": Parameter(
        ("uint4", "uint3", "uint2", "uint8", "uint5", "uint6", "uint7"), "the format of the codes", assumed=("uint4",)
    ),
    "granularity": Parameter(
        ("channel", "group"), "a scale and a zero point a row, or for a group of its columns",
        assumed=("group", "channel"),
    ),
    "group_size": Parameter(
        (32, 16, 128), "columns in a group", assumed=(32, 16, 128), open=True,
        needed=lambda p: p["granularity"] == "group",
    ),
}  # fmt: skip
_SAMPLES = Argument("x", lambda p: "float32", lambda p: ("M", "K"), "float32, finite calibration samples, (M, K)")
_WEIGHTS = Argument("w", lambda p: "float32", lambda p: ("N", "K"), "float32, finite weights, (N, K)")


def _grid(case: Case) -> dict[str, Any]:
    return {"bits": integer_format(case.parameters["format"]).bits, "group_size": case.parameters["group_size"]}


def _multiples(parameters: Parameters) -> dict[str, int]:
    return {"K": parameters["group_size"]} if parameters["granularity"] == "group" else {}


def _groups(sizes: Mapping[str, int], parameters: Parameters) -> int | None:
    if "K" not in sizes:
        return None
    return sizes["K"] // parameters["group_size"] if parameters["granularity"] == "group" else 1


def _scales(case: Case, semantics: Semantics, returned: Mapping[str, np.ndarray] | None = None) -> dict[str, Enclosure]:
    return scales_enclosures(
        case.array("x"), case.array("w"), **_grid(case), candidates=case.parameters["candidates"],
        returned=None if returned is None else returned["ratio_index"], **semantics.choices(case.operation.semantics),
    )  # fmt: skip


def _clipping(
    case: Case, semantics: Semantics, returned: Mapping[str, np.ndarray] | None = None
) -> dict[str, Enclosure]:
    return clipping_enclosures(
        case.array("x"), case.array("w"), **_grid(case),
        returned=None if returned is None else returned["share_index"], **semantics.choices(case.operation.semantics),
    )  # fmt: skip


def _work(candidates: int) -> Any:
    return lambda case: 2.0 * candidates * case.array("x").size * case.sizes["N"]


awq_scales = register(
    Operation(
        name="awq_scales",
        summary="AWQ: the power of the activations' means whose scales, before rounding, keep the output the nearest",
        source="Lin et al., AWQ, arXiv:2306.00978, eq. (4) and (5); mit-han-lab/llm-awq, auto_scale.py",
        arguments=(_SAMPLES, _WEIGHTS),
        results=(
            Argument("ratio_index", lambda p: "int32", lambda p: (), "int32, (): i of the power i / 20, i < 20"),
            Argument("scale", lambda p: "float32", lambda p: ("K",), "float32, (K,): weights are multiplied by it"),
        ),
        parameters=_GRID | {
            "candidates": Parameter(
                ("activations", "both"), "scales of the means of activations, or (AutoAWQ's duo scaling) of those over "
                "the means of weights", assumed=("activations",),
            ),
        },
        semantics=("rounding", "intermediate", "function_ulps"),
        evaluate=_scales,
        follow=_scales,
        independent=lambda p: (),
        variants=("granularity", "candidates"),
        work=_work(len(RATIOS)),
        multiples=_multiples,
        weights=("w",),
        stored=("w",),
    )
)  # fmt: skip

awq_clipping = register(
    Operation(
        name="awq_clipping",
        summary="AWQ: the bound of each group's weights whose clipping and rounding change its outputs the least",
        source="mit-han-lab/llm-awq, auto_clip.py; Lin et al., AWQ, arXiv:2306.00978",
        arguments=(_SAMPLES, _WEIGHTS),
        results=(
            Argument("bound", lambda p: "float32", lambda p: ("N", "G"), "float32, (N, G): a share of the group's max"),
            Argument(
                "share_index", lambda p: "int32", lambda p: ("N", "G"), "int32, (N, G): i of a share 1 - i / 20, i < 10"
            ),
        ),
        parameters=_GRID,
        semantics=("rounding", "intermediate"),
        evaluate=_clipping,
        follow=_clipping,
        independent=lambda p: ("N",),
        variants=("granularity",),
        work=_work(len(SHARES)),
        multiples=_multiples,
        derived={"G": _groups},
        weights=("w",),
        stored=("w",),
    )
)  # fmt: skip
