"""Declaring backends: what is completed, and how each misuse is refused."""

import inspect
from dataclasses import fields
from enum import StrEnum
from functools import partial

import numpy as np
import pytest

from lowbit_cts.kernels import OPERATIONS, PRESETS, Backend, ContractError, Division, Rounding, Semantics
from lowbit_cts.kernels.backend import LAYOUTS
from lowbit_cts.kernels.operation import register
from lowbit_cts.kernels.semantics import SemanticsError
from lowbit_cts.reference.accumulators import ACCUMULATORS, Accumulator


def product(a, b):
    return a @ b


def quantize(x, scale, zero_point, **parameters):
    return x


class Complete:
    def from_numpy(self, array, format):
        return array

    def to_numpy(self, array, format):
        return array

    def synchronize(self):
        pass


class Incomplete:
    def from_numpy(self, array, format):
        return array


def _called(value) -> str:
    """Return a name without an address in it, the same in every process."""
    return repr(value) if isinstance(value, str | int | None) else getattr(value, "__name__", type(value).__name__)


# Backend ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arrays", ["jax", "Torch", "", None, 3, Incomplete(), Complete], ids=_called)
def test_arrays_must_be_a_built_in_exchange_or_an_object_with_its_methods(arrays):
    with pytest.raises(ContractError, match=r"Backend\.arrays: .*numpy, torch, cupy"):
        Backend("acme", arrays=arrays)


def test_an_object_with_the_three_methods_is_an_exchange():
    exchange = Complete()
    assert Backend("acme", arrays=exchange).exchange() is exchange


# implements ---------------------------------------------------------------------------------------------------------

MISUSES = [  # operation, arguments of implements, words of the message
    ("matmul_int9", {}, ["unknown operation", *OPERATIONS]),
    (["matmul_int8"], {}, ["unknown operation", *OPERATIONS]),
    (None, {}, ["unknown operation", *OPERATIONS]),
    ("matmul_int8", {"supports": [("a_format", "int8")]}, ["supports must map parameters to values, not be a list"]),
    ("matmul_int8", {"semantics": "onnx"}, ["semantics must be a Semantics, not str"]),
    ("matmul_int8", {"semantics": {"rounding": "up"}}, ["semantics must be a Semantics, not dict"]),
    ("matmul_int8", {"supports": {"format": "int8"}}, ["undeclared parameter 'format'", "a_format, layout"]),
    ("matmul_int8", {"supports": {"a_format": "int4"}}, ["a_format='int4' is not admissible", "int8, uint8"]),
    ("matmul_int8", {"supports": {"a_format": {"int8", "fp8"}}}, ["a_format='fp8'", "admissible: int8, uint8"]),
    ("matmul_int8", {"supports": {"a_format": ()}}, ["a_format: must support at least one value of: int8, uint8"]),
    ("matmul_int8", {"supports": {"a_format": None}}, ["a_format=None is not admissible"]),
    ("matmul_int8", {"supports": {"layout": "tiled"}}, ["layout 'tiled'", *LAYOUTS]),
    ("matmul_int8", {"supports": {"layout": "strided"}}, ["layout must include 'contiguous'", *LAYOUTS]),
    ("quantize_affine", {"supports": {"axis": True}}, ["axis=True is not admissible; admissible: 0, 1"]),
    ("quantize_affine", {"supports": {"axis": 2}}, ["axis=2 is not admissible; admissible: 0, 1"]),
    ("quantize_affine", {"supports": {"narrow_range": 1}}, ["narrow_range=1 is not admissible", "False, True"]),
    ("quantize_affine", {"supports": {"group_size": 0}}, ["group_size=0", "positive integers"]),
    ("quantize_affine", {"supports": {"group_size": [32, "64"]}}, ["group_size='64'", "positive integers"]),
    ("cast_float", {"supports": {"source": "float32", "target": "float32"}}, ["no combination of the supported"]),
    ("quantize_affine", {"semantics": Semantics(rounding="stochastic")}, ["'stochastic' is not admissible", "half_up"]),
    ("cast_float", {"supports": {"source": "float8_e5m2"}}, ["no combination of the supported values"]),
    ("quantize_affine", {"prepare": lambda: None}, ["prepare: the operation has no constant arguments"]),
]


@pytest.mark.parametrize("case", MISUSES, ids=lambda case: f"{case[0]}: {case[2][0]}")
def test_a_misuse_is_refused_with_what_would_be_right(case):
    operation, arguments, words = case
    backend = Backend("acme")
    with pytest.raises(ContractError) as caught:
        backend.implements(operation, **arguments)
    for word in ("acme", f"implements({operation!r})", *words):
        assert word in str(caught.value)
    assert backend.implementations == []


UNCALLABLE = [
    (lambda a: a, ["cannot be called: too many positional", "(a, b, *, a_format"]),
    (lambda a, b, c: a, ["missing a required argument: 'c'", "(a, b, *, a_format"]),
    (lambda *, a, b: a, ["'a'", "admissible: a_format, out, prepared"]),
    (lambda a, b, *, tile: a, ["demands an unknown parameter 'tile'", "admissible: a_format, out, prepared"]),
    (lambda a, b, *, prepared: a, ["missing a required argument: 'prepared'"]),
    (lambda a, b, a_format: a, None),  # named, so given by keyword
    (lambda a, b, *, tile=16: a, None),
    (lambda a, b, *, out: a, None),
    (lambda *arrays, **parameters: arrays, None),
    (lambda weights, input: weights, None),  # arguments come by position, whatever their names
]


@pytest.mark.parametrize("case", UNCALLABLE, ids=lambda case: str(inspect.signature(case[0])))
def test_a_function_that_cannot_be_called_as_it_will_be_is_refused(case):
    function, words = case
    backend = Backend("acme")
    if words is None:
        assert backend.implements("matmul_int8")(function) is function
        return
    with pytest.raises(ContractError) as caught:
        backend.implements("matmul_int8")(function)
    for word in words:
        assert word in str(caught.value)
    assert backend.implementations == []


PREPARED = [
    (lambda b: b, lambda a, *, prepared: a, None),
    (lambda b, *, a_format: b, lambda a, *, prepared, out: a, None),
    (lambda b: b, lambda a: a, "unexpected keyword argument 'prepared'|got an unexpected"),
    (lambda b: b, lambda a, b, *, prepared: a, "missing a required argument: 'b'"),
    (lambda a, b: b, lambda a, *, prepared: a, "missing a required argument: 'b'"),
    (lambda b, *, out: b, lambda a, *, prepared: a, "demands an unknown parameter 'out'"),
    (lambda b, *, tile: b, lambda a, *, prepared: a, "demands an unknown parameter 'tile'"),
]


@pytest.mark.parametrize(("prepare", "run", "message"), PREPARED)
def test_prepare_takes_the_constants_and_run_the_rest_with_what_it_prepared(prepare, run, message):
    backend = Backend("acme")
    register_it = backend.implements("matmul_int8", name="prepared", prepare=prepare)
    if message is None:
        register_it(run)
        assert [argument.name for argument in backend.implementations[0].moving()] == ["a"]
    else:
        with pytest.raises(ContractError, match=message):
            register_it(run)


@pytest.mark.parametrize("given", [partial(product, a_format="int8"), "product", None], ids=["partial", "str", "None"])
def test_what_has_no_name_or_is_no_function_is_refused(given):
    backend = Backend("acme")
    with pytest.raises(ContractError, match="must be a function; give anything else callable a name="):
        backend.implements("matmul_int8")(given)
    assert backend.implementations == []


def test_a_callable_without_a_name_is_given_one():
    backend = Backend("acme")
    kernel = partial(product)
    assert backend.implements("matmul_int8", name="bound")(kernel) is kernel
    assert backend.implementations[0].id == "acme/matmul_int8/bound"


def test_a_name_is_taken_once_for_an_operation():
    backend = Backend("acme")
    backend.implements("matmul_int8")(product)
    with pytest.raises(ContractError, match="'product' is registered already"):
        backend.implements("matmul_int8")(product)
    backend.implements("matmul_int8", name="other")(product)
    assert [i.id for i in backend.implementations] == ["acme/matmul_int8/product", "acme/matmul_int8/other"]


# What is declared ---------------------------------------------------------------------------------------------------


def declared(operation, function=quantize, **arguments):
    backend = Backend("acme")
    backend.implements(operation, **arguments)(function)
    return backend.implementations[0]


def test_parameters_that_are_not_mentioned_get_their_assumed_values():
    supports = declared("quantize_affine", supports={"format": "uint4"}).supports
    assert supports["format"] == ("uint4",)
    for name, parameter in OPERATIONS["quantize_affine"].parameters.items():
        if name != "format":
            assert set(supports[name]) == set(parameter.assumed), name
    assert declared("quantize_affine").layouts == LAYOUTS


@pytest.mark.parametrize(
    "listed", [{"uint8", "int8"}, ["uint8", "int8"], ("uint8", "int8"), frozenset({"int8", "uint8"})]
)
def test_values_may_be_listed_in_any_collection_and_are_kept_in_the_operations_order(listed):
    assert declared("quantize_affine", supports={"format": listed}).supports["format"] == ("int8", "uint8")


def test_any_positive_group_size_may_be_declared():
    found = declared("quantize_affine", supports={"group_size": range(40, 60, 10), "granularity": "group"})
    assert found.supports["group_size"] == (40, 50)


@pytest.mark.parametrize("listed", [np.int64(40), [np.int32(40)], np.arange(40, 41).tolist()], ids=repr)
def test_numpy_integers_are_integers(listed):
    found = declared("quantize_affine", supports={"group_size": listed, "granularity": "group"}).supports["group_size"]
    assert found == (40,)
    assert type(found[0]) is int


def test_undeclared_values_are_those_the_suite_must_see_refused():
    supports = {"a_format": "uint8", "layout": ("contiguous", "offset")}
    assert declared("matmul_int8", product, supports=supports).undeclared() == {
        "a_format": ["int8"],
        "layout": ["strided"],
    }
    everything = {"a_format": ("int8", "uint8")}
    assert declared("matmul_int8", product, supports=everything).undeclared() == {}


def test_idle_parameters_are_none_and_make_no_combinations():
    operation = OPERATIONS["quantize_affine"]
    supports = {name: p.values for name, p in operation.parameters.items()} | {
        "group_size": (8, 16),
        "format": ("int8",),
    }
    names = ("granularity", "axis", "group_size")
    found = [tuple(chosen.values()) for chosen in operation.combinations(supports, names)]
    assert sorted(found, key=str) == sorted(
        [("tensor", None, None), ("axis", 0, None), ("axis", 1, None), ("group", None, 8), ("group", None, 16)], key=str
    )


def test_combinations_are_only_those_of_the_operation():
    operation = OPERATIONS["cast_float"]
    supports = {name: p.values for name, p in operation.parameters.items()}
    found = list(operation.combinations(supports, ("source", "target")))
    assert len(found) == 4 * 8 + 8 * 3 + 3 * 3  # four wide sources, eight small formats, three wide targets
    assert all(c["target"] not in ("float64", c["source"]) for c in found)


def test_bound_gives_arguments_by_position_and_named_parameters_by_keyword():
    calls = []

    def run(a, *, prepared, a_format, out):
        calls.append(("run", a, prepared, a_format, out))
        return out

    def prepare(b):
        calls.append(("prepare", b))
        return "packed"

    implementation = declared("matmul_int8", run, prepare=prepare)
    call = implementation.bound({"a": "A", "b": "B"}, {"a_format": "int8"})
    assert implementation.takes_out
    assert calls == [("prepare", "B")], "weights are prepared once, before the calls"
    assert call(out="Y") == "Y"
    call(out=None)
    assert calls[1:] == [("run", "A", "packed", "int8", "Y"), ("run", "A", "packed", "int8", None)]


def test_bound_leaves_out_parameters_that_are_not_named():
    implementation = declared("matmul_int8", product)
    a, b = np.eye(2, dtype=np.int8), np.ones((2, 3), np.int8)
    np.testing.assert_array_equal(implementation.bound({"a": a, "b": b}, {"a_format": "int8"})(), b)
    assert not implementation.takes_out


# Semantics ----------------------------------------------------------------------------------------------------------

CHOICES = [f for f in fields(Semantics) if isinstance(f.default, StrEnum)]
ACCUMULATING = [f for f in fields(Semantics) if isinstance(f.default, Accumulator)]
NUMBERS = [f for f in fields(Semantics) if not isinstance(f.default, StrEnum | Accumulator)]


@pytest.mark.parametrize("field", CHOICES, ids=lambda f: f.name)
def test_every_choice_is_taken_by_member_or_by_value_and_no_other(field):
    for member in type(field.default):
        for given in (member, str(member)):
            assert getattr(Semantics(**{field.name: given}), field.name) is member
    for wrong in ("sideways", "", None, 0, 1.5):
        with pytest.raises(SemanticsError) as caught:
            Semantics(**{field.name: wrong})
        assert str(caught.value).startswith(f"Semantics.{field.name}: {wrong!r} is not admissible; admissible: ")
        assert all(str(member) in str(caught.value) for member in type(field.default))


@pytest.mark.parametrize("field", ACCUMULATING, ids=lambda f: f.name)
def test_an_accumulator_is_taken_by_name_or_as_itself(field):
    own = Accumulator(14, chunk=16)
    assert getattr(Semantics(**{field.name: own}), field.name) is own
    for name, known in ACCUMULATORS.items():
        assert getattr(Semantics(**{field.name: name}), field.name) is known
        assert Semantics(**{field.name: name}).described((field.name,)) == {field.name: name}
    for wrong in ("fp32", "", None, 0):
        with pytest.raises(SemanticsError, match=f"Semantics.{field.name}: {wrong!r} is not admissible; admissible: "):
            Semantics(**{field.name: wrong})


@pytest.mark.parametrize("field", NUMBERS, ids=lambda f: f.name)
@pytest.mark.parametrize("wrong", [0, -1.0, float("inf"), float("nan"), "2", None, True], ids=repr)
def test_every_number_must_be_positive_or_zero_where_that_means_none(field, wrong):
    if wrong == 0 == field.default:
        assert getattr(Semantics(**{field.name: wrong}), field.name) == 0
        return
    with pytest.raises(SemanticsError, match=f"Semantics.{field.name}: .* must be .*a positive number"):
        Semantics(**{field.name: wrong})


def test_presets_are_valid_and_described_without_idle_numbers():
    names = tuple(f.name for f in fields(Semantics))
    for preset in PRESETS.values():
        text = preset.described(names)
        assert ("division_ulps" in text) == (preset.division == "approximate")
        assert ("epsilon" in text) == (preset.zero_scale == "epsilon")
        assert not {"slack", "distance_roundings"} & set(text)
        assert text["rounding"] == str(preset.rounding)
    approximate = Semantics(division="approximate")
    assert approximate.described(("division", "division_ulps")) == {"division": "approximate", "division_ulps": "2.0"}
    assert approximate.choices(("division", "rounding")) == {
        "division": Division.APPROXIMATE,
        "rounding": Rounding.HALF_EVEN,
    }


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda o: o.name)
def test_operations_name_existing_fields_arguments_and_parameters(operation):
    assert set(operation.semantics) <= {f.name for f in fields(Semantics)}
    assert set(operation.constant) <= {argument.name for argument in operation.arguments}
    assert set(operation.variants) <= set(operation.parameters)
    for name, parameter in operation.parameters.items():
        assert all(parameter.admits(value) for value in (*parameter.values, *parameter.assumed)), name
        assert set(parameter.assumed) <= set(parameter.values), name
        assert parameter.assumed, name


def test_an_operation_is_defined_once():
    with pytest.raises(ValueError, match="'matmul_int8' is defined twice"):
        register(OPERATIONS["matmul_int8"])
