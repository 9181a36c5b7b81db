"""Operations as data: each evaluates, and its independent axes are independent."""

from dataclasses import replace

import numpy as np
import pytest

from lowbit_cts.kernels import OPERATIONS, Case, Operation, Semantics
from lowbit_cts.reference.formats import FORMATS, IntegerFormat

SIZES = {"M": 6, "K": 32, "N": 5, "G": 4}  # four groups of eight in a row


def small_case(operation: Operation, parameters: dict, seed: int = 60) -> Case:
    """Return a case of random codes and numbers; scales are positive, zero points codes of every format."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray | None] = {}
    for argument in operation.arguments:
        if not argument.present(parameters):
            arrays[argument.name] = None
            continue
        shape = tuple(SIZES[symbol] for symbol in argument.shape(parameters))
        fmt = FORMATS[argument.format(parameters)]
        if argument.name.endswith("zero_point"):
            array = np.ones(shape)
        elif argument.name.endswith("scale"):
            array = rng.uniform(0.01, 0.1, shape)
        elif isinstance(fmt, IntegerFormat):
            array = rng.integers(fmt.minimum, fmt.maximum + 1, shape)
        elif fmt.carrier.kind == "u":
            array = rng.integers(0, 1 << fmt.bits, shape)
        else:
            array = rng.standard_normal(shape)
        arrays[argument.name] = np.asarray(array).astype(fmt.carrier)
    return Case(operation, parameters, arrays)


def combinations(operation: Operation) -> list[dict]:
    """Return every combination of the variants, the other parameters at their first assumed value."""
    supports = {
        name: parameter.values if name in operation.variants else parameter.assumed[:1]
        for name, parameter in operation.parameters.items()
    } | ({"group_size": (8,)} if "group_size" in operation.parameters else {})
    return list(operation.combinations(supports, tuple(operation.parameters)))


CASES = [(operation, chosen) for operation in OPERATIONS.values() for chosen in combinations(operation)]
IDS = [f"{operation.name}-{'-'.join(map(str, chosen.values()))}" for operation, chosen in CASES]


@pytest.mark.parametrize(("operation", "parameters"), CASES, ids=IDS)
def test_every_operation_encloses_its_results(operation, parameters):
    case = small_case(operation, parameters)
    found = case.enclosures(Semantics())
    assert list(found) == [result.name for result in operation.results]
    for result in operation.results:
        enclosure = found[result.name]
        assert enclosure.shape == case.result_shape(result)
        assert enclosure.admits(enclosure.exact).all()
        assert not enclosure.ratio(enclosure.exact).any()
        with np.errstate(invalid="ignore"):
            assert np.all((enclosure.lo <= enclosure.hi) | np.isnan(enclosure.exact))
    assert operation.work(case) > 0


@pytest.mark.parametrize(("operation", "parameters"), CASES, ids=IDS)
def test_a_cut_along_an_independent_axis_cuts_the_results(operation, parameters):
    """The results of a part are the part of the results: what makes a failing case shrink."""
    semantics = [
        Semantics(),
        Semantics(division="approximate", contraction="either", accumulator="float32", zero_point_correction="float",
                  zero_point_order="inside", dequantize_form="scale_first", scale_rule="half_range"),
    ]  # fmt: skip
    case = small_case(operation, parameters)
    for chosen in semantics:
        whole = case.enclosures(chosen)
        for symbol in operation.independent(parameters):
            assert symbol in case.sizes
            for indices in (slice(1, 3), [3, 0], slice(0, 0)):
                part = case.take(symbol, indices)
                if 0 in part.sizes.values() and operation.name == "choose_qparams_affine":
                    continue  # no minimum of nothing
                cut = part.enclosures(chosen)
                for result in operation.results:
                    axes = result.shape(parameters)
                    index = tuple(indices if axis == symbol else slice(None) for axis in axes)
                    expected = whole[result.name][index]
                    for name in ("exact", "lo", "hi"):
                        np.testing.assert_array_equal(getattr(cut[result.name], name), getattr(expected, name))


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda o: o.name)
def test_a_cut_leaves_the_case_and_its_other_axes_alone(operation):
    parameters = combinations(operation)[0]
    case = small_case(operation, parameters)
    sizes = case.sizes
    for symbol in operation.independent(parameters):
        assert case.take(symbol, slice(0, 2)).sizes == sizes | {symbol: 2}
    assert case.sizes == sizes


def parameters_of(name: str, **changes: object) -> dict:
    operation = OPERATIONS[name]
    chosen = {key: parameter.assumed[0] for key, parameter in operation.parameters.items()} | changes
    return {key: value if operation.parameters[key].needed(chosen) else None for key, value in chosen.items()}


BYTES = [  # operation, parameters, bytes: M 6, K 32, N 5, G 4
    ("matmul_int8", {}, 6 * 32 + 32 * 5 + 4 * 6 * 5),
    ("matmul_w8a8", {}, 6 * 32 + 4 * 6 + 4 * 6 + 32 * 5 + 4 * 5 + 4 * 5 + 4 * 6 * 5),
    ("matmul_w8a8", {"has_bias": False, "activation_granularity": "tensor", "weight_granularity": "tensor",
                     "output_format": "float16"}, 6 * 32 + 4 + 4 + 32 * 5 + 4 + 2 * 6 * 5),
    ("quantize_affine", {}, 4 * 6 * 32 + 4 + 4 + 6 * 32),
    ("quantize_affine", {"format": "int4", "input_format": "bfloat16", "granularity": "group", "group_size": 8},
     2 * 6 * 32 + 4 * 6 * 4 + 4 * 6 * 4 + 6 * 32 / 2),
    ("dequantize_affine", {"format": "uint3", "granularity": "axis", "axis": 1},
     6 * 32 * 3 / 8 + 2 * 4 * 32 + 4 * 6 * 32),
    ("fake_quantize_affine", {}, 4 * 6 * 32 + 8 + 4 * 6 * 32),
    ("choose_qparams_affine", {"granularity": "axis", "axis": 0}, 4 * 6 * 32 + 4 * 6 + 4 * 6),
    ("cast_float", {"source": "float16"}, 5 * 2 + 5),
    ("add_int8", {}, 3 * 5 + 6 * 4),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "expected"), BYTES)
def test_bytes_moved_are_arguments_read_once_and_results_written_once(name, changes, expected):
    case = small_case(OPERATIONS[name], parameters_of(name, **changes))
    assert case.operation.bytes_moved(case) == expected


def test_work_counts_a_multiplication_and_an_addition_a_product():
    case = small_case(OPERATIONS["matmul_int8"], parameters_of("matmul_int8"))
    assert case.operation.work(case) == 2 * 6 * 32 * 5


def test_invalid_inputs_are_refused_by_the_reference():
    case = small_case(OPERATIONS["quantize_affine"], parameters_of("quantize_affine"))
    zero = replace(case, arrays={**case.arrays, "scale": np.float32(0)})
    with pytest.raises(ValueError, match="scale: must be positive and finite"):
        zero.enclosures(Semantics())
