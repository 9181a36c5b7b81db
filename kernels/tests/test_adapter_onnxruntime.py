"""What onnxruntime computes, by named cases: an upgrade that changes it fails here, visibly."""

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from lowbit_cts.kernels import OPERATIONS, Case
from lowbit_cts.kernels.adapters import onnxruntime as adapter
from lowbit_cts.kernels.adapters.onnxruntime import affine, products
from lowbit_cts.kernels.adapters.onnxruntime.sessions import TYPES, run, session
from lowbit_cts.reference.casts import cast_float
from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import FLOAT8_FORMATS, FORMATS, decode, float_format, integer_format

INF, NAN = np.inf, np.nan


def implementation(operation, name):
    found = {i.name: i for i in adapter.backend.implementations if i.operation.name == operation}
    return found[name]


def returned(operation, name, arrays, **parameters):
    """Return the results of a kernel, decoded, and of each whether its elements are admissible as declared."""
    kernel = implementation(operation, name)
    slots = kernel.operation.parameters
    first = {name: kernel.supports[name][0] for name, parameter in slots.items() if not parameter.open}
    chosen = {**dict.fromkeys(slots), **first, "axis": None, **parameters}
    case = Case(kernel.operation, {name: chosen[name] for name in slots}, arrays)
    out = tuple(np.full(case.result_shape(r), 99, case.format(r.name).carrier) for r in kernel.operation.results)
    kernel.bound(arrays, case.parameters)(out=out if len(out) > 1 else out[0])
    values = {r.name: decode(a, case.format(r.name)) for r, a in zip(kernel.operation.results, out, strict=True)}
    enclosures = case.enclosures(kernel.semantics)
    return values, {name: enclosures[name].admits(values[name]) for name in values}


def one(results):
    values, admissible = results
    (name,) = values
    return values[name], admissible[name]


def quantized(x, format, place="tensor", axis=None, group_size=None, scale=1.0, zero=0):
    x = np.atleast_2d(np.asarray(x, np.float32))
    shape = {"tensor": (), "axis": (x.shape[axis or 0],), "group": (x.shape[0], x.shape[1] // (group_size or 1))}[place]
    arrays = {"x": x, "scale": np.full(shape, scale, np.float32), "zero_point": np.full(shape, zero, np.int32)}
    bits = FORMATS[format].bits
    parameters = {"format": format, "granularity": place, "axis": axis, "group_size": group_size}
    codes, admissible = one(
        returned("quantize_affine", f"QuantizeLinear_{bits}_bit", arrays, mapping="asymmetric", **parameters)
    )
    return codes[0].tolist(), admissible[0].tolist()


def cast(name, x, source, target):
    fmt = float_format(source)
    codes = np.asarray(x, np.float64) if source == "float64" else encode(np.asarray(x, np.float64), fmt)
    return one(returned("cast_float", name, {"x": codes}, source=source, target=target))


@pytest.mark.parametrize("format", ["int8", "uint8", "int4", "uint4", "int2", "uint2"])
@pytest.mark.parametrize("columns", [1, 2, 3, 5, 8])
def test_codes_below_8_bits_are_packed_and_unpacked(format, columns):
    fmt = integer_format(format)
    codes = np.resize(np.arange(fmt.minimum, fmt.maximum + 1), 3 * columns).reshape(3, columns)
    found, admissible = quantized(codes[:1], format)
    assert found == codes[0].tolist()
    assert all(admissible)
    arrays = {"codes": codes.astype(fmt.carrier), "scale": np.float32(0.5), "zero_point": np.int32(1)}
    parameters = {"format": format, "granularity": "tensor", "output_format": "float16", "mapping": "asymmetric"}
    numbers, admissible = one(returned("dequantize_affine", "DequantizeLinear", arrays, **parameters))
    np.testing.assert_array_equal(numbers, (codes - 1) / 2)
    assert admissible.all()


def test_the_zero_point_is_added_after_the_rounding_and_the_scale_divides():
    assert quantized([0.5, 1.5, 2.5], "int8", zero=1)[0] == [1, 3, 3]
    x = ((np.arange(-127, 127) + 0.5) * 0.1).astype(np.float32)
    codes, admissible = quantized(x, "int8", scale=0.1)
    assert codes == np.clip(np.rint(x / np.float32(0.1)), -128, 127).tolist()
    assert all(admissible)


@pytest.mark.parametrize(
    ("format", "place", "codes"),
    [
        ("int8", {}, [127, 127, -128]),
        ("int4", {}, [7, 7, -8]),
        ("int4", {"place": "axis", "axis": 0}, [7, 7, -8]),
        ("int4", {"place": "axis", "axis": 1}, [7, -8, -8]),
        ("uint4", {"place": "axis", "axis": 1}, [15, 0, 0]),
        ("int2", {}, [1, -2, -2]),
        ("uint2", {}, [3, 0, 0]),
    ],
)
def test_codes_below_8_bits_overflow_from_2_to_the_31_on(format, place, codes):
    """Upstream: where 2 bits, or 4 with a scale a column, go by way of int32, +Inf becomes the smallest code."""
    found, admissible = quantized([2.0**30, INF, -INF], format, **place)
    assert found == codes
    assert admissible == [True, codes[1] == codes[0], True]


def test_a_block_that_does_not_divide_the_row_is_refused_here_not_upstream():
    arrays = np.zeros((1, 6), np.float32), np.ones((1, 2), np.float32), np.zeros((1, 2), np.int32)
    out = np.empty((1, 6), np.int8)
    with pytest.raises(ValueError, match="4 does not divide 6 columns"):
        affine.quantize(*arrays, format="int8", granularity="group", axis=None, group_size=4, out=out)


def test_a_scale_of_another_type_is_refused():
    arrays = np.zeros((1, 6), np.float32), np.float64(1), np.int32(0)
    with pytest.raises(Exception, match="Unexpected input data type"):
        affine.quantize(*arrays, format="int8", granularity="tensor", axis=None, group_size=None,
                         out=np.empty((1, 6), np.int8))  # fmt: skip


@pytest.mark.parametrize("x", [np.zeros((2, 3)), np.array([[-1.0, 3.0]]), np.array([[1.0, 2.0]])])
def test_dynamic_quantization(x):
    values, admissible = returned("choose_qparams_affine", "DynamicQuantizeLinear", {"x": x.astype(np.float32)})
    assert all(a.all() for a in admissible.values())
    span = max(x.max(), 0) - min(x.min(), 0)
    assert values["scale"] == (np.float32(span) / np.float32(255) if span else 1)  # of nothing but zeros it is 1
    assert values["zero_point"] == (64 if x.min() < 0 else 0)  # round(63.75)


def test_addition_rounds_after_the_zero_point():
    """1 / 2 + 1 is 1.5, and becomes 2; zero points added after the rounding would give 1."""
    arrays = {"a": np.full(65, 1, np.int8), "b": np.full(65, 0, np.int8)}
    for name, scale, zero in (("a", 1, 0), ("b", 1, 0), ("y", 2, 1)):
        arrays |= {f"{name}_scale": np.array(scale, np.float32), f"{name}_zero_point": np.array(zero, np.int32)}
    arrays = {a.name: arrays[a.name] for a in implementation("add_int8", "QLinearAdd").operation.arguments}
    values, admissible = one(returned("add_int8", "QLinearAdd", arrays))
    assert set(values.tolist()) == {2}
    assert admissible.all()


@pytest.mark.parametrize("name", ["MatMulInteger", "MatMulInteger_constant_B"])
def test_a_product_of_nothing_is_not_written(name):
    """Upstream: with K = 0 what was in the memory of the output stays there."""
    arrays = {"a": np.zeros((2, 0), np.int8), "b": np.zeros((0, 3), np.int8)}
    kernel = implementation("matmul_int8", f"{name}_s8s8")
    y = np.full((2, 3), 99, np.int32)
    kernel.bound(arrays, {"a_format": "int8"})(out=y)
    assert (y == 99).all()


@pytest.mark.parametrize(("flags", "suffix"), [("avx2 avx512bw", True), ("avx2 avx_vnni", False)])
def test_products_are_told_apart_by_what_the_processor_has(monkeypatch, flags, suffix):
    monkeypatch.setattr(products.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(products.Path, "exists", lambda self: True)
    monkeypatch.setattr(products.Path, "read_text", lambda self: f"flags : {flags}\n")
    assert products.adds_pairs_in_16_bits() is suffix


def test_pairs_of_products_do_not_saturate_where_there_is_vnni():
    exact = not products.adds_pairs_in_16_bits()
    name = "MatMulInteger_u8s8" if exact else "MatMulInteger_u8s8_without_vnni"
    arrays = {"a": np.full((1, 2), 255, np.uint8), "b": np.full((2, 1), 127, np.int8)}
    values, admissible = one(returned("matmul_int8", name, arrays))
    assert values.item() == (2 * 255 * 127 if exact else 32767)
    assert admissible.all() == exact


def test_a_scale_of_one_axis_is_one_a_column_of_the_outputs():
    """Upstream: a vector of activation scales is refused or taken for those of columns; so none is declared."""
    inputs = (("A", "int8", ("M", "K")), ("B", "int8", ("K", "N")), ("a_scale", "float32", ("M",)),
              ("b_scale", "float32", ()))  # fmt: skip
    outputs = (("Y", "float32", ("M", "N")),)
    made = session("MatMulIntegerToFloat", inputs, outputs, domain="com.microsoft")
    for columns in (2, 3):
        arrays = np.ones((2, 4), np.int8), np.ones((4, columns), np.int8), np.array([1, 2], np.float32), np.float32(1)
        y = np.empty((2, columns), np.float32)
        if columns == 2:
            run(made, dict(zip(inputs, arrays, strict=True)), {outputs[0]: y})
            assert y.tolist() == [[4, 8], [4, 8]]
        else:
            with pytest.raises(Exception, match="2 by 3"):
                run(made, dict(zip(inputs, arrays, strict=True)), {outputs[0]: y})


@pytest.mark.parametrize(("input_format", "match"), [("bfloat16", "NOT_IMPLEMENTED"), ("float16", "type mismatch")])
def test_sixteen_bit_inputs_with_a_float32_scale_are_refused(input_format, match):
    inputs = (("x", input_format, ("N",)), ("y_scale", "float32", ()), ("y_zero_point", "int8", ()))
    outputs = (("y", "int8", ("N",)),)
    arrays = np.zeros(3, FORMATS[input_format].carrier), np.float32(1), np.int8(0)
    with pytest.raises(Exception, match=match):
        run(
            session("QuantizeLinear", inputs, outputs),
            dict(zip(inputs, arrays, strict=True)),
            {outputs[0]: np.empty(3, np.int8)},
        )


@pytest.mark.parametrize("target", FLOAT8_FORMATS)
def test_saturating_casts_saturate_infinities_too(target):
    y, admissible = cast("Cast_saturate", [1e9, INF, -INF, NAN, -0.0], "float32", target)
    largest = float_format(target).maximum
    np.testing.assert_array_equal(y, [largest, largest, -largest, NAN, 0])
    assert admissible.all()


@pytest.mark.parametrize(
    ("target", "x", "y", "admitted"),
    [
        ("float8_e4m3fn", [464, 465, 479, 480, 495, 496], [448, NAN, NAN, 448, 448, NAN], [1, 1, 1, 0, 0, 1]),
        ("float8_e5m2", [61439, 61440, 65535, 65536], [57344, NAN, NAN, INF], [1, 0, 0, 1]),
    ],
)
def test_casts_that_do_not_saturate_err_just_beyond_the_largest_number(target, x, y, admitted):
    """Upstream: a carry out of the mantissa at the top becomes the largest number of E4M3FN, and a NaN of E5M2."""
    found, admissible = cast("Cast_no_saturate", x, "float32", target)
    np.testing.assert_array_equal(found, y)
    assert admissible.tolist() == [bool(a) for a in admitted]


@pytest.mark.parametrize("target", ["float8_e4m3fnuz", "float8_e5m2fnuz"])
def test_overflow_of_fnuz_is_nan(target):
    largest = float_format(target).maximum
    y, admissible = cast("Cast_no_saturate_fnuz", [largest, 2 * largest, -INF], "bfloat16", target)
    np.testing.assert_array_equal(y, [largest, NAN, NAN])
    assert admissible.all()


def test_float64_is_rounded_twice():
    """Upstream: 1 + 2**-4 + 2**-40 lies above the tie between 1 and 1.125, its float32 on it."""
    x = [1 + 2.0**-4 + 2.0**-40, 1 + 2.0**-4]
    y, admissible = cast("Cast_from_float64", x, "float64", "float8_e4m3fn")
    assert y.tolist() == [1, 1]
    assert admissible.tolist() == [False, True]
    y, admissible = cast("Cast_float64_to_float32", x, "float64", "float32")
    assert y.tolist() == np.array(x, np.float32).tolist()
    assert admissible.all()


@pytest.mark.parametrize("source", [*FLOAT8_FORMATS, "float8_e8m0fnu"])
@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16"])
def test_every_small_code_widens(source, target):
    codes = np.arange(256, dtype=np.uint8)
    y, _ = one(returned("cast_float", "Cast_from_small", {"x": codes}, source=source, target=target))
    np.testing.assert_array_equal(y, decode(cast_float(codes, source=source, target=target), FORMATS[target]))


@pytest.mark.parametrize(
    ("saturate", "round_mode", "codes"),
    [(1, "up", [0, 0, 0, 128, 254]), (0, "nearest", [255, 255, 255, 128, 255])],
)
def test_casts_to_e8m0_have_a_rule_of_their_own(saturate, round_mode, codes):
    """The two columns of ONNX Cast's table: 0, what lies below 2**-127, -1, 1.5 and Inf; so they are not declared."""
    inputs, outputs = (("input", "float32", ("N",)),), (("output", "float8_e8m0fnu", ("N",)),)
    attributes = (("to", TYPES["float8_e8m0fnu"]), ("saturate", saturate), ("round_mode", round_mode))
    x = np.array([0.0, 2.0**-128, -1.0, 1.5, INF], np.float32)
    y = np.empty(x.shape, np.uint8)
    run(session("Cast", inputs, outputs, attributes), {inputs[0]: x}, {outputs[0]: y})
    assert y.tolist() == codes


def arrays_of(operation, **given):
    """Return int32 zero points of 0 and scales of 1 beside the arrays given, in the operation's order."""
    arrays = {}
    for argument in OPERATIONS[operation].arguments:
        default = np.float32(1) if argument.name.endswith("scale") else np.int32(0)
        arrays[argument.name] = given.get(argument.name, None if argument.name == "bias" else np.array(default))
    return arrays


def test_the_quantized_product_rounds_before_the_zero_point():
    """Sums 1, 3, 5, 7 over 2 with zero point 1: the definition of the order, [1, 3, 3, 5] outside."""
    a, b = np.array([[1], [3], [5], [7]], np.uint8), np.ones((1, 1), np.int8)
    name = f"QLinearMatMul_{products.suffix('uint8', 'int8')}"
    arrays = arrays_of("qlinear_matmul", a=a, b=b, y_scale=np.float32(2), y_zero_point=np.int32(1))
    formats = {"a_format": "uint8", "y_format": "uint8"}
    codes, admissible = one(
        returned(
            "qlinear_matmul", name, arrays, **formats, activation_granularity="tensor", weight_granularity="tensor"
        )
    )
    assert codes.ravel().tolist() == [1, 3, 3, 5]
    assert admissible.all()


def test_sums_of_the_integer_product_wrap():
    k = 33026
    arrays = arrays_of("matmul_integer", a=np.full((1, k), 255, np.uint8), b=np.full((k, 1), 255, np.uint8))
    sums, admissible = one(returned("matmul_integer", "MatMulInteger_u8u8", arrays, weight_granularity="tensor"))
    assert sums.item() == k * 255 * 255 - 2**32
    assert admissible.all()


@pytest.mark.parametrize("operator", ["MatMulInteger", "QLinearMatMul"])
def test_a_zero_point_a_row_is_refused_upstream(operator):
    """So it is not declared: onnxruntime#27897."""
    zero, scale = np.uint8(0), np.float32(1)
    row, scales = np.ones(2, np.uint8), np.ones(2, np.float32)
    a, b = ("a", "uint8", ("M", "K")), ("b", "uint8", ("K", "N"))
    if operator == "MatMulInteger":
        inputs = (a, b, ("z", "uint8", ("M",)), ("u", "uint8", ()))
        arrays, result = (np.ones((2, 3), np.uint8), np.ones((3, 1), np.uint8), row, zero), "int32"
    else:
        inputs = (a, ("s", "float32", ("M",)), ("z", "uint8", ("M",)), b, ("t", "float32", ()), ("u", "uint8", ()),
                  ("v", "float32", ()), ("w", "uint8", ()))  # fmt: skip
        arrays = (np.ones((2, 3), np.uint8), scales, row, np.ones((3, 1), np.uint8), scale, zero, scale, zero)
        result = "uint8"
    outputs = (("y", result, ("M", "N")),)
    y = np.zeros((2, 1), FORMATS[result].carrier)
    with pytest.raises(Exception, match=r"zero point|quantization|scale"):
        run(session(operator, inputs, outputs), dict(zip(inputs, arrays, strict=True)), {outputs[0]: y})


@pytest.mark.parametrize(("bits", "middle"), [(4, 8), (8, 128)])
@pytest.mark.parametrize("mapping", ["symmetric", "asymmetric"])
def test_weights_in_few_bits_are_packed_in_blocks(bits, middle, mapping):
    """Activations of one 1 a row give the weights: the first code of a byte lowest, the last block short."""
    rng = np.random.default_rng(0)
    k, n = 40, 3  # a block of 32, and one of 8
    codes = rng.integers(0, 1 << bits, (k, n)).astype(np.uint8)
    scale = 2.0 ** rng.integers(-3, 3, (2, n)).astype(np.float32)
    zero = rng.integers(0, 1 << bits, (2, n)).astype(np.int32) if mapping == "asymmetric" else None
    arrays = {"a": np.eye(k, dtype=np.float32), "codes": codes, "scale": scale.astype(np.float32), "zero_point": zero,
              "group_index": None, "bias": None}  # fmt: skip
    parameters = {"input_format": "float32", "mapping": mapping, "group_size": 32, "granularity": "group",
                  "act_order": False}  # fmt: skip
    y, admissible = one(returned(f"matmul_w{bits}a16", "MatMulNBits", arrays, **parameters))
    shift = np.repeat(middle if zero is None else zero, 32, axis=0)[:k] if zero is not None else middle
    np.testing.assert_array_equal(y, (codes.astype(int) - shift) * np.repeat(scale, 32, axis=0)[:k])
    assert admissible.all()


def test_a_kernel_moves_over_an_image_padded_with_its_zero_point():
    x, w = np.full((1, 1, 2, 2), 9, np.uint8), np.ones((1, 1, 3, 3), np.int8)
    arrays = arrays_of("conv2d_int8", x=x, w=w, x_zero_point=np.int32(5))
    name = f"QLinearConv_{products.suffix('uint8', 'int8')}"
    geometry = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1}
    codes, admissible = one(
        returned("conv2d_int8", name, arrays, **geometry, weight_granularity="tensor", has_bias=False)
    )
    assert codes.ravel().tolist() == [16] * 4  # four codes of 9 - 5, and nothing beside them
    assert admissible.all()
