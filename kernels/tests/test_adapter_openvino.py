"""What OpenVINO executes and computes, by named cases: an upgrade that changes it fails here, visibly."""

import numpy as np
import pytest

pytest.importorskip("openvino")

from lowbit_cts.kernels import OPERATIONS, Case
from lowbit_cts.kernels.adapters import openvino as adapter
from lowbit_cts.kernels.adapters.openvino import convolution, models, products
from lowbit_cts.reference.formats import FORMATS

F = np.float32
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


def executed(build, arguments, parameters):
    """Return the kernels by the kinds of nodes of a model as it is executed."""
    model = models.request(build, arguments, parameters).get_compiled_model().get_runtime_model()
    kinds = ((node.get_rt_info()["layerType"], node.get_rt_info()["primitiveType"]) for node in model.get_ordered_ops())
    return {str(getattr(kind, "value", kind)): str(getattr(name, "value", name)) for kind, name in kinds}


def keys(*values):
    return tuple(models.held(np.asarray(value)) for value in values)


@pytest.mark.parametrize("a", [np.uint8, np.int8])
def test_products_run_on_integer_kernels(a):
    codes, w = np.ones((4, 64), a), np.ones((64, 32), np.int8)
    zero = np.int32(3)
    scales = F(0.5), zero, w, np.full(32, 0.25, F), F(2), np.int32(1)
    found = executed(products._quantized_product, (codes,), (*keys(*scales), "uint8"))
    assert found["FullyConnected"].lower().endswith("i8")


def test_linear_layers_run_on_integer_kernels():
    weights = keys(F(0.5), np.ones((64, 32), np.int8), np.ones(32, F))
    found = executed(products._linear, (np.ones((4, 64), np.int8),), (*weights, None))
    assert found["FullyConnected"].lower().endswith("i8")


@pytest.mark.parametrize(("x", "zero", "integer"), [(np.uint8, 3, True), (np.int8, 0, True), (np.int8, 3, False)])
def test_convolutions_run_on_integer_kernels_unless_int8_images_have_a_zero_point(x, zero, integer):
    """So int8 images are not declared."""
    images, w = np.ones((1, 16, 8, 8), x), np.ones((16, 16, 3, 3), np.int8)
    geometry = (GEOMETRY["strides"], (1, 1, 1, 1), GEOMETRY["dilations"])
    values = keys(F(0.5), np.int32(zero), w, np.full(16, 0.25, F), F(2), np.int32(0))
    found = executed(convolution._convolution, (images,), (*values, None, "uint8", geometry, 1))
    assert found["Convolution"].lower().endswith("i8") == integer


def test_zero_points_are_added_before_the_rounding():
    """Sums 1, 3, 5, 7 over 2 with zero point 1 are 1.5, 2.5, 3.5, 4.5, and 2, 2, 4, 4."""
    arrays = arrays_of(
        "qlinear_matmul", a=np.array([[1], [3], [5], [7]], np.uint8), b=np.ones((1, 1), np.int8), y_scale=F(2),
        y_zero_point=np.int32(1),
    )  # fmt: skip
    codes, admissible = returned(
        "qlinear_matmul", "FullyConnected", arrays, a_format="uint8", y_format="uint8", weight_granularity="tensor"
    )
    assert codes.ravel().tolist() == [2, 2, 4, 4]
    assert admissible.all()


def test_codes_of_numbers_round_to_even_with_the_zero_point():
    x = np.array([[0.5, 1.5, 2.5, np.inf, -np.inf]], F)
    arrays = {"x": x, "scale": F(1), "zero_point": np.int32(1)}
    place = {"granularity": "tensor", "axis": None, "group_size": None, "mapping": "asymmetric"}
    for format, expected in (("uint8", [2, 2, 4, 255, 0]), ("int8", [2, 2, 4, 127, -128])):
        codes, admissible = returned("quantize_affine", "FakeQuantize_Convert", arrays, format=format, **place)
        assert codes.ravel().tolist() == expected
        assert admissible.all()


def test_numbers_of_codes_are_scaled_before_the_zero_point_is_subtracted():
    """fma(q, s, -fl(z s)) for every code; (q - z) s rounded once is another number for some."""
    codes, scale, zero = np.arange(256, dtype=np.uint8)[None], F(0.0123), 100
    arrays = {"codes": codes, "scale": scale, "zero_point": np.int32(zero)}
    place = {"granularity": "tensor", "axis": None, "group_size": None, "mapping": "asymmetric", "format": "uint8"}
    y, admissible = returned("dequantize_affine", "Convert_Subtract_Multiply", arrays, **place)
    fused = codes.astype(np.float64) * np.float64(scale) - np.float64(F(zero) * scale)
    np.testing.assert_array_equal(y, fused.astype(F))
    assert np.any(y != (codes.astype(F) - zero) * scale)
    assert admissible.all()


def test_strided_arguments_are_copied_and_kept():
    """A Tensor on shared memory does not keep the array; 64 rows of 64 KiB make the allocator give it back."""
    codes = np.arange(64 * 65536, dtype=np.uint8).reshape(64, 65536)[:, ::2]
    place = {"granularity": "tensor", "axis": None, "group_size": None, "mapping": "asymmetric", "format": "uint8"}
    arrays = {"codes": codes, "scale": F(1), "zero_point": np.int32(0)}
    y, _ = returned("dequantize_affine", "Convert_Subtract_Multiply", arrays, **place)
    np.testing.assert_array_equal(y, codes)


def test_a_kernel_moves_over_an_image_padded_with_its_zero_point():
    arrays = arrays_of(
        "conv2d_int8", x=np.full((1, 1, 2, 2), 9, np.uint8), w=np.ones((1, 1, 3, 3), np.int8), x_zero_point=np.int32(5)
    )
    codes, admissible = returned(
        "conv2d_int8", "Convolution", arrays, **{**GEOMETRY, "pads": (1, 1, 1, 1)}, weight_granularity="tensor",
        has_bias=False, y_format="uint8",
    )  # fmt: skip
    assert codes.ravel().tolist() == [16] * 4  # four codes of 9 - 5, and nothing beside them
    assert admissible.all()


def test_strides_of_small_kernels_move_in_front_of_the_padding():
    """Upstream: every second element from the first on, not from the second, which the padding makes the first."""
    x = np.arange(16, dtype=np.uint8).reshape(1, 1, 4, 4)
    arrays = arrays_of("conv2d_int8", x=x, w=np.ones((1, 1, 1, 1), np.int8))
    parameters = {**GEOMETRY, "strides": (2, 2), "weight_granularity": "tensor", "has_bias": False, "y_format": "uint8"}
    codes, admissible = returned("conv2d_int8", "Convolution_strided", arrays, **parameters)
    assert codes.ravel().tolist() == [0, 2, 8, 10]
    assert admissible.all()
    with pytest.raises(RuntimeError, match="shape"):
        returned("conv2d_int8", "Convolution_strided_and_padded", arrays, **{**parameters, "pads": (1, 1, 1, 1)})


@pytest.mark.parametrize("zero_point", [np.array([0, 1]), np.zeros(3, np.int32)])
def test_zero_points_of_symmetric_weights_are_looked_at(zero_point):
    with pytest.raises(ValueError, match=r"w_zero_point: must be 0, in the shape of the scales, \(2,\)"):
        convolution.hold(np.ones((2, 1, 1, 1), np.int8), np.ones(2, F), zero_point)
