"""Channels of weights multiplied by what their activations are divided by: smooth_weights."""

from collections.abc import Mapping

import numpy as np

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference.algorithms.smoothquant import smoothing_enclosures
from lowbit_cts.reference.enclosure import Enclosure


def _enclosures(case: Case, semantics: Semantics, returned: np.ndarray | None) -> dict[str, Enclosure]:
    return smoothing_enclosures(
        case.array("absmax"), case.array("w"), alpha=case.parameters["alpha"], returned=returned,
        **semantics.choices(case.operation.semantics),
    )  # fmt: skip


def _follow(case: Case, semantics: Semantics, returned: Mapping[str, np.ndarray]) -> dict[str, Enclosure]:
    return _enclosures(case, semantics, returned["scale"])


def _evaluate(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    return _enclosures(case, semantics, None)


smooth_weights = register(
    Operation(
        name="smooth_weights",
        summary="SmoothQuant: scales that balance ranges of activations and weights, and the weights times them",
        source="Xiao et al., SmoothQuant, arXiv:2211.10438, eq. (4); a largest weight and a scale are at least 1e-5",
        arguments=(
            Argument(
                "absmax", lambda p: "float32", lambda p: ("K",),
                "float32, the largest magnitude of each channel of the activations, finite, (K,)",
            ),
            Argument(
                "w", lambda p: "float32", lambda p: ("N", "K"),
                "float32, finite, (N, K): the rows of all layers that share the input",
            ),
        ),
        results=(
            Argument("scale", lambda p: "float32", lambda p: ("K",), "float32, (K,): activations are divided by it"),
            Argument("smoothed", lambda p: "float32", lambda p: ("N", "K"), "float32, w times the scales, (N, K)"),
        ),
        parameters={
            "alpha": Parameter(
                (0.5, 0.75, 0.25, 0.0, 1.0), "how much of the range of activations is left to the weights",
                assumed=(0.5,),
            ),
        },
        semantics=("intermediate", "function_ulps"),
        evaluate=_evaluate,
        follow=_follow,
        independent=lambda p: ("K",),
        variants=("alpha",),
        work=lambda case: 2.0 * case.array("w").size + 3.0 * case.array("absmax").size,
        weights=("w",),
        stored=("w",),
    )
)  # fmt: skip
