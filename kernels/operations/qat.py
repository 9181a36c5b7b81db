"""Quantization-aware training: fake_quantize_gradient, lsq_gradient, lsq_initial_scale."""

from typing import Any

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.operations import affine
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference import lsq, qat
from lowbit_cts.reference.enclosure import Enclosure

_SHARED = affine.fake_quantize_affine
_PLACE = ("granularity", "axis", "group_size")
_PLACES = {name: _SHARED.parameters[name] for name in _PLACE}
_FORMAT, _NARROW = _SHARED.parameters["format"], _SHARED.parameters["narrow_range"]
_HAS_ZERO_POINT = Parameter((False, True), "whether there are zero points; where not, they are 0", assumed=(False,))
_GROUPED: dict[str, Any] = {"derived": _SHARED.derived, "multiples": _SHARED.multiples}
_GRADIENT = (*_SHARED.semantics, "gradient_mask", "masked_gradient", "gradient_form")


def _matrix(parameters: Parameters) -> tuple[str, ...]:
    return ("M", "K")


def _floats(name: str, doc: str) -> Argument:
    return Argument(name, lambda p: "float32", _matrix, doc)


_, _SCALE, _ZERO_POINT = _SHARED.arguments
_OPTIONAL_ZERO_POINT = Argument(
    "zero_point", lambda p: "int32", _SCALE.shape, "int32, the shape of scale", present=lambda p: p["has_zero_point"]
)
_UPSTREAM = _floats("upstream", "gradient with respect to the quantized matrix, (M, K)")
_DSCALE = Argument("dscale", lambda p: "float32", _SCALE.shape, "gradient with respect to scale, its shape")


def _independent_sets(parameters: Parameters) -> tuple[str, ...]:
    return tuple(axis for axis in _SCALE.shape(parameters) if axis != "G")


def _chosen(case: Case, semantics: Semantics, *more: str) -> dict[str, Any]:
    place = {name: case.parameters[name] for name in ("format", *_PLACE, *more)}
    return {**place, **semantics.choices(case.operation.semantics)}


def _elements(operations_each: int) -> Any:
    return lambda case: float(operations_each * case.sizes["M"] * case.sizes["K"])


def _fake_quantize_gradient(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    arguments = (case.array(name) for name in ("x", "upstream", "scale", "zero_point"))
    return {"dx": qat.fake_quantize_gradient_enclosure(*arguments, **_chosen(case, semantics, "narrow_range"))}


def _lsq_gradient(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    return lsq.lsq_gradient_enclosure(
        case.array("v"), case.array("upstream"), case.array("scale"), case.arrays["zero_point"],
        case.array("gradient_scale"), **_chosen(case, semantics, "narrow_range"),
    )  # fmt: skip


def _lsq_initial_scale(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    return {"scale": lsq.lsq_initial_scale_enclosure(case.array("v"), **_chosen(case, semantics))}


fake_quantize_gradient = register(
    Operation(
        name="fake_quantize_gradient",
        summary="straight-through gradient of fake_quantize_affine: the upstream gradient inside the range, 0 outside",
        source="Krishnamoorthi, arXiv:1806.08342, eq. (13); Esser et al., arXiv:1902.08153, eq. (5)",
        arguments=(_floats("x", "matrix that was quantized, (M, K)"), _UPSTREAM, _SCALE, _ZERO_POINT),
        results=(_floats("dx", "gradient with respect to x, (M, K)"),),
        parameters={"format": _FORMAT, **_PLACES, "mapping": _SHARED.parameters["mapping"], "narrow_range": _NARROW},
        semantics=_GRADIENT,
        evaluate=_fake_quantize_gradient,
        independent=_SHARED.independent,
        variants=("format", "granularity", "axis"),
        work=_elements(5),
        **_GROUPED,
    )
)

lsq_gradient = register(
    Operation(
        name="lsq_gradient",
        summary="gradients of learned step size quantization: of the values, and of the scales by gradient_scale",
        source="Esser et al., Learned Step Size Quantization, arXiv:1902.08153, eq. (3) and (5)",
        arguments=(
            _floats("v", "values that were quantized, (M, K)"),
            _UPSTREAM,
            _SCALE,
            _OPTIONAL_ZERO_POINT,
            Argument("gradient_scale", lambda p: "float32", lambda p: (), "float32, (): 1 / sqrt(N Q_P) in LSQ"),
        ),
        results=(_floats("dv", "gradient with respect to v, (M, K)"), _DSCALE),
        parameters={"format": _FORMAT, **_PLACES, "has_zero_point": _HAS_ZERO_POINT, "narrow_range": _NARROW},
        semantics=(*_GRADIENT, "float_accumulator"),
        evaluate=_lsq_gradient,
        independent=_independent_sets,
        variants=("format", "granularity", "axis", "has_zero_point"),
        work=_elements(9),
        **_GROUPED,
    )
)

lsq_initial_scale = register(
    Operation(
        name="lsq_initial_scale",
        summary="first step size of LSQ: 2 mean|v| / sqrt(Q_P)",
        source="Esser et al., Learned Step Size Quantization, arXiv:1902.08153, §2.1",
        arguments=(_floats("v", "values to be quantized, (M, K)"),),
        results=(_SCALE,),
        parameters={"format": _FORMAT, **_PLACES},
        semantics=("float_accumulator",),
        evaluate=_lsq_initial_scale,
        independent=_independent_sets,
        variants=("format", "granularity", "axis"),
        work=_elements(2),
        **_GROUPED,
    )
)
