"""What LiteRT executes and computes, by named cases: an upgrade that changes it fails here, visibly."""

from functools import partial

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from lowbit_cts.kernels import OPERATIONS, Case
from lowbit_cts.kernels.adapters import litert as adapter
from lowbit_cts.kernels.adapters.litert import convolution, interpreters, products
from lowbit_cts.kernels.adapters.litert.interpreters import Kernels, Operator, plain
from lowbit_cts.reference.formats import FORMATS

F = np.float32
TENSOR = {"granularity": "tensor", "axis": None, "group_size": None}
GEOMETRY = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "groups": 1}


def returned(operation, name, arrays, **parameters):
    """Return the result of a kernel, and of each element whether it is admissible as declared."""
    (kernel,) = (i for i in adapter.backend.implementations if (i.operation.name, i.name) == (operation, name))
    first = {key: values[0] for key, values in kernel.supports.items() if values}
    case = Case(kernel.operation, {**first, **parameters}, arrays)
    (result,) = kernel.operation.results
    out = np.full(case.result_shape(result), 99, FORMATS[case.format(result.name).name].carrier)
    kernel.bound(arrays, case.parameters)(out=out)
    return out, case.enclosures(kernel.semantics)[result.name].admits(out.astype(np.float64))


def arrays_of(operation, **given):
    """Return int32 zero points of 0 and scales of 1 beside the arrays given, in the operation's order."""
    arrays = {}
    for argument in OPERATIONS[operation].arguments:
        default = F(1) if argument.name.endswith("scale") else np.int32(0)
        arrays[argument.name] = given.get(argument.name, None if argument.name == "bias" else np.array(default))
    return arrays


def executed(monkeypatch, call):
    """Return the operators that a call executes; XNNPACK's parts of a model are one called DELEGATE."""
    found = []

    def kept(*model):
        found.append(interpreters_of(*model))
        return found[-1]

    interpreters_of = interpreters.interpreter
    monkeypatch.setattr(interpreters, "interpreter", kept)
    call()
    (interpreter,) = found
    return [details["op_name"] for details in interpreter._get_ops_details()]


def zeros_of(*shape):
    return np.zeros(shape, np.int8)


@pytest.mark.parametrize(("kernels", "delegated"), [(Kernels.XNNPACK, True), (Kernels.OPTIMIZED, False)])
@pytest.mark.parametrize("scale", [np.array(F(0.5)), np.full(3, 0.5, F)])
def test_xnnpack_takes_products_with_weights_that_the_model_holds(monkeypatch, kernels, delegated, scale):
    held = products.hold(zeros_of(8, 3), scale, np.zeros(scale.shape, np.int32))
    call = partial(
        products.fully_connected_with_held, zeros_of(2, 8), F(1), np.int32(1), F(1), np.int32(0), out=zeros_of(2, 3),
        prepared=held, kernels=kernels,
    )  # fmt: skip
    assert ("DELEGATE" in executed(monkeypatch, call)) == delegated


def test_xnnpack_leaves_products_of_two_inputs_alone(monkeypatch):
    """So there is none of them by that name."""
    call = partial(
        products.fully_connected, zeros_of(2, 8), F(1), np.int32(1), zeros_of(8, 3), F(1), np.int32(0), F(1),
        np.int32(0), out=zeros_of(2, 3), kernels=Kernels.XNNPACK,
    )  # fmt: skip
    assert "DELEGATE" not in executed(monkeypatch, call)


@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 0, 2, 1)])
@pytest.mark.parametrize(("groups", "shape"), [(1, (6, 4, 3, 3)), (2, (6, 2, 3, 3)), ("depthwise", (8, 1, 3, 3))])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize("dilations", [(1, 1), (3, 1)])
def test_xnnpack_takes_convolutions_of_every_geometry(monkeypatch, pads, groups, shape, strides, dilations):
    scale = np.full(shape[0], 0.5, F)
    held = convolution.hold(zeros_of(*shape), scale, np.zeros(shape[0], np.int32), groups=groups)
    p, q = (
        (length + before + after - dilation * 2 - 1) // stride + 1
        for length, before, after, dilation, stride in zip((9, 9), pads[:2], pads[2:], dilations, strides, strict=True)
    )
    call = partial(
        convolution.convolve, zeros_of(2, 4, 9, 9), F(1), np.int32(5), F(1), np.int32(0), None, strides=strides,
        pads=pads, dilations=dilations, groups=groups, out=zeros_of(2, shape[0], p, q), prepared=held,
        kernels=Kernels.XNNPACK,
    )  # fmt: skip
    operators = executed(monkeypatch, call)
    assert operators[-1] == "DELEGATE"
    assert operators.count("DELEGATE") == 1  # the padding, too


#: A scaled sum, 2**-9 of it, and the codes of each set of kernels.
SUMS = [(-12545, -25, -24, -25), (15615, 30, 31, 30), (-22272, -44, -43, -44), (15616, 30, 31, 31)]


@pytest.mark.parametrize(("place", "name"), [(1, "xnnpack"), (2, "optimized"), (3, "reference")])
def test_each_set_of_kernels_rounds_a_product_in_its_own_way(place, name):
    """In float32 to even; by ruy, for x86, twice and up; in float64 and away."""
    if name == "optimized" and not products.X86:
        pytest.skip("ruy rounds once on Arm")
    times, rest = np.divmod(np.array([row[0] for row in SUMS]) + 63, 127)
    a = np.stack([times // 2, times - times // 2, rest - 63], axis=1).astype(np.int8)
    b = np.array([[127], [127], [1]], np.int8).repeat(2, axis=1)
    assert (a.astype(int) @ b)[:, 0].tolist() == [row[0] for row in SUMS]
    scales = {"b_scale": np.ones(2, F), "b_zero_point": np.zeros(2, np.int32), "y_scale": F(2.0**9)}
    arrays = arrays_of("qlinear_matmul", a=a, b=b, **scales)
    codes, admissible = returned(
        "qlinear_matmul", f"FULLY_CONNECTED_constant_w_{name}", arrays, weight_granularity="channel"
    )
    assert codes.tolist() == [[row[place]] * 2 for row in SUMS]
    assert admissible.all()


@pytest.mark.parametrize("operation", ["conv2d_int8", "requantize"])
def test_the_reference_rounds_convolutions_and_integers_twice(operation):
    """-12545 is rounded to -6272 times 2**-8, which is -24.5, and away from zero."""
    sums = np.array([[-12545, 15615, -22272]], np.int32)
    if operation == "requantize":
        arrays = {"acc": sums, "scale": np.array(F(2.0**-9)), "zero_point": np.int32(0)}
        codes, admissible = returned(operation, "QUANTIZE_int32_reference", arrays)
    else:
        w = np.zeros((3, 1, 1, 1), np.int8)
        arrays = arrays_of(operation, x=np.zeros((1, 1, 1, 1), np.int8), w=w, bias=sums[0], y_scale=F(2.0**9))
        codes, admissible = returned(
            operation, "CONV_2D_reference", arrays, **GEOMETRY, weight_granularity="tensor", has_bias=True
        )
    assert codes.ravel().tolist() == [-25, 31, -44]
    assert admissible.all()


@pytest.mark.parametrize(
    ("name", "codes"),
    [("xnnpack", [0, 2, 2, 0, -2, 127, -128]), ("reference", [1, 2, 3, -1, -2, -128, -128])],
)
def test_ties_and_infinities(name, codes):
    """Upstream: the reference converts +Inf to int32, and to the smallest code, before it clamps."""
    x = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, np.inf, -np.inf]], F)
    arrays = {"x": x, "scale": F(1), "zero_point": np.int32(0)}
    found, admissible = returned(
        "quantize_affine", f"QUANTIZE_{name}", arrays, **TENSOR, format="int8", mapping="asymmetric"
    )
    assert found[0].tolist() == codes
    assert admissible[0].tolist() == [True] * 5 + [name == "xnnpack", True]


def test_the_optimized_quantizer_rounds_what_is_left_of_eights_away():
    x = np.full((1, 17), 0.5, F)
    arrays = {"x": x, "scale": F(1), "zero_point": np.int32(0)}
    found, admissible = returned(
        "quantize_affine", "QUANTIZE_optimized", arrays, **TENSOR, format="int8", mapping="asymmetric"
    )
    assert found[0].tolist() == [0] * 16 + [1]
    assert admissible[0].tolist() == [True] * 16 + [False]


def test_zero_points_of_integer_products_are_ignored():
    """So BATCH_MATMUL is no matmul_integer."""
    a, b, out = np.array([[5]], np.int8), np.array([[7]], np.int8), np.zeros((1, 1), np.int32)
    one, zero, three = F(1), np.int32(0), np.int32(3)
    tensors = (
        interpreters.quantized(a, one, three), interpreters.quantized(b, one, zero),
        interpreters.quantized(out, one, zero),
    )  # fmt: skip
    interpreters.run(tensors, (Operator("BATCH_MATMUL", 3, (0, 1), 2),), {0: a, 1: b}, out, Kernels.REFERENCE)
    assert out.item() == 35


def test_groups_are_those_declared():
    """CONV_2D would find one group, of the one channel that there is."""
    held = convolution.hold(zeros_of(2, 1, 1, 1), np.ones(2, F), np.zeros(2, np.int32), groups=2)
    place = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "groups": 2}
    with pytest.raises(ValueError, match="x: has 1 channels, must have 2 groups of 1"):
        convolution.convolve(
            zeros_of(1, 1, 1, 1), F(1), np.int32(0), F(1), np.int32(0), None, **place, out=zeros_of(1, 2, 1, 1),
            prepared=held, kernels=Kernels.XNNPACK,
        )  # fmt: skip


def test_the_reference_adds_in_fixed_point():
    """Halves of sums, away from zero."""
    a = np.array([-3, -1, 1, 3], np.int8)
    arrays = arrays_of("add_int8", a=a, b=np.zeros(4, np.int8), a_scale=F(0.5), b_scale=F(0.5))
    codes, admissible = returned("add_int8", "ADD_reference", arrays, format="int8")
    assert codes.tolist() == [-2, -1, 1, 2]
    assert admissible.all()


def test_a_result_of_another_shape_is_refused():
    x = np.zeros((2, 3), F)
    tensors = (plain(x), interpreters.codes("int8", (2, 3), F(1), np.int32(0)))
    with pytest.raises(ValueError, match=r"out: has int8 \(3, 2\), the operator's result is int8 \(2, 3\)"):
        interpreters.run(tensors, (Operator("QUANTIZE", 2, (0,), 1),), {0: x}, zeros_of(3, 2), Kernels.REFERENCE)


def test_a_type_that_litert_has_not_is_refused():
    with pytest.raises(ValueError, match="dtype: LiteRT has no complex256"):
        interpreters._type("complex256")
