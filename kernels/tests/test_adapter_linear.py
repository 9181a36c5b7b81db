"""What the libraries' own linear layers compute, by named cases: an upgrade that changes it fails here, visibly."""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from lowbit_cts.kernels import Case
from lowbit_cts.kernels.adapters import ggml_products, gguf
from lowbit_cts.kernels.torch import backends
from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import decode, float_format
from lowbit_cts.reference.gguf.activations import ACTIVATION_ELEMENTS, quantize_activations
from lowbit_cts.reference.gguf.blocks import quantize
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS
from lowbit_cts.reference.gguf.types import GGML_TYPES

RNG = np.random.default_rng(5)
#: 7 times this has 10 bits, two more than bfloat16.
ODD = 1 + 2.0**-7


def implementation(found, operation, name):
    return {i.name: i for b in found for i in b.implementations if i.operation.name == operation}[name]


def returned(kernel, arrays, **parameters):
    """Return the results of a kernel, decoded, and whether they are admissible as declared."""
    slots = kernel.operation.parameters
    first = {name: kernel.supports[name][0] for name in slots}
    chosen = {name: {**first, "group_size": None, **parameters}[name] for name in slots}
    case = Case(kernel.operation, chosen, arrays)
    exchange = kernel.backend.exchange()
    given = {
        argument.name: None if arrays[argument.name] is None else exchange.from_numpy(
            arrays[argument.name], argument.format(chosen)
        )
        for argument in kernel.operation.arguments
    }  # fmt: skip
    result = kernel.operation.results[0]
    if kernel.takes_out:
        out = np.full(case.result_shape(result), 99, case.format("y").carrier)
        kernel.bound(given, chosen)(out=out)
    else:
        out = exchange.to_numpy(kernel.bound(given, chosen)(), result.format(chosen))
    values = decode(out, float_format(result.format(chosen)))
    return values, case.enclosures(kernel.semantics)["y"].admits(values)


def floats(values, format):
    return encode(np.asarray(values, np.float64), float_format(format))


# torch --------------------------------------------------------------------------------------------------------------


def int4(name, format, code, zero, input_format):
    """Return a[0] w[0] - a[32] w[32], the first under a scale of ODD, the second under 1."""
    a, codes, scale = np.zeros((1, 64)), np.full((64, 1), 8 if format == "uint4" else 0, np.uint8), np.ones((2, 1))
    a[0, 0], a[0, 32], scale[0] = 1, -1, ODD
    codes[0] = codes[32] = code
    arrays = {
        "a": floats(a, input_format), "codes": codes.astype(np.int8) if format == "int4" else codes,
        "scale": floats(scale, input_format), "group_index": None, "bias": None,
        "zero_point": None if zero is None else np.full((2, 1), zero, np.int32),
    }  # fmt: skip
    kernel = implementation(backends, "matmul_w4a16", name)
    values, admissible = returned(kernel, arrays, format=format, group_size=32, input_format=input_format)
    return values[0, 0], admissible.all()


@pytest.mark.parametrize("input_format", ["bfloat16", "float16", "float32"])
def test_int4_weights_stay_in_float32(input_format):
    assert int4("int4pack_mm", "uint4", 15, None, input_format) == (7 * (ODD - 1), True)
    assert int4("int4pack_mm", "int4", 7, None, input_format) == (7 * (ODD - 1), True)


def test_zero_points_times_scale_are_rounded_to_the_activations():
    assert int4("int4pack_mm_zeros", "uint4", 8, 1, "float16") == (7 * (ODD - 1), True)
    assert int4("int4pack_mm_zeros", "uint4", 8, 1, "bfloat16") == (0.0625, True)  # 7.0625 - 7; 7 ODD is 7.0547
    assert int4("int4pack_mm_zeros", "int4", 0, -7, "bfloat16") == (0.0625, True)


@pytest.mark.parametrize("k", [1, 17, 64])
@pytest.mark.parametrize("input_format", ["bfloat16", "float16", "float32"])
def test_int8_weights_of_any_number_of_rows_at_any_address(k, input_format):
    kernel = implementation(backends, "matmul_w8a16", "int8pack_mm")
    arrays = {
        "a": floats(np.ones((3, k)), input_format), "codes": RNG.integers(-128, 127, (k, 5)).astype(np.int8),
        "scale": floats(np.full(5, ODD), input_format), "zero_point": None, "group_index": None, "bias": None,
    }  # fmt: skip
    exchange = kernel.backend.exchange()
    tensors = {name: None if x is None else exchange.from_numpy(x, input_format) for name, x in arrays.items()}
    tensors["codes"] = exchange.from_numpy(arrays["codes"], "int8")
    longer = exchange.from_numpy(floats(np.ones(3 * k + 1), input_format), input_format)
    chosen = {"granularity": "channel", "format": "int8", "mapping": "symmetric", "input_format": input_format,
              "group_size": None, "act_order": None, "has_bias": False}  # fmt: skip
    case = Case(kernel.operation, chosen, arrays)
    for a in (tensors["a"], longer[1:].reshape(3, k)):
        y = exchange.to_numpy(kernel.bound({**tensors, "a": a}, chosen)(), input_format)
        assert case.enclosures(kernel.semantics)["y"].admits(decode(y, float_format(input_format))).all()


@pytest.mark.parametrize("scaling", ["tensor", "row"])
def test_float8_products_take_odd_sizes_and_scales_in_float32(scaling):
    kernel = implementation(backends, "matmul_float8", "scaled_mm")
    places = {"tensor": ((), ()), "row": ((3,), (5,))}[scaling]
    arrays = {
        "a": floats(np.full((3, 17), 1.5), "float8_e4m3fn"), "a_scale": np.full(places[0], 1 / 3, np.float32),
        "b": floats(np.full((17, 5), -2.0), "float8_e4m3fn"), "b_scale": np.full(places[1], 3, np.float32),
        "bias": None,
    }  # fmt: skip
    values, admissible = returned(kernel, arrays, scaling=scaling, output_format="float32")
    assert admissible.all()
    assert np.allclose(values, -51)


# bitsandbytes -------------------------------------------------------------------------------------------------------


def nf4(name, absmax, input_format="bfloat16", columns=33, **semantics):
    adapter = pytest.importorskip("lowbit_cts.kernels.adapters.bitsandbytes")
    names = [i.name for i in adapter.backend.implementations]
    if name not in names:
        pytest.skip("needs a CPU with AVX512-BF16")
    kernel = implementation([adapter.backend], "linear_nf4", name)
    kernel = replace(kernel, semantics=replace(kernel.semantics, **semantics))
    a = np.zeros((2, 64))
    a[:, 3] = 1, -2
    arrays = {
        "a": floats(a, input_format), "codes": np.full((columns, 64), 12, np.uint8), "bias": None,
        "absmax": np.full((columns, 1), absmax, np.float32),
    }  # fmt: skip
    return returned(kernel, arrays, codebook="nf4", block_size=64, input_format=input_format)


def test_llm_int8_is_that_of_the_paper_but_for_a_digit_of_its_constant():
    adapter = pytest.importorskip("lowbit_cts.kernels.adapters.bitsandbytes")
    kernel = implementation([adapter.backend], "matmul_llm_int8", "matmul_8bit_lt")
    a = np.array([[1.0, -0.5, 0.25, 8.0], [0.5, 0.5, -1.0, 0.0]])
    codes, absmax = np.array([[127, -64, 3, 127], [1, 2, 3, 4]], np.int8), np.array([1.0, 127.0], np.float32)
    arrays = {"a": floats(a, "float16"), "codes": codes, "absmax": absmax, "bias": None}
    values, admissible = returned(kernel, arrays, input_format="float16", threshold=6.0)
    rows = np.array([[127, -64, 32], [64, 64, -127]])  # the last column has an outlier
    inside = (rows @ codes[:, :3].T) * absmax * 6.200124e-05
    outside = a[:, 3:] @ (codes[:, 3:] * absmax[:, None] / 127).T
    np.testing.assert_allclose(values, inside + outside, rtol=2.0**-10)
    assert admissible.all()  # the constant shows beside ties alone


def test_packed_nf4_weights_are_products_of_bfloat16():
    values, admissible = nf4("gemv_4bit", 1 + 3 * 2.0**-8)
    assert values[0, 0] == 0.44921875  # 0.44140625 for 0.44071, times 1.015625 for the absmax
    assert admissible.all()
    assert not nf4("gemv_4bit", 1 + 3 * 2.0**-8, part_precision="float32")[1].any()


@pytest.mark.parametrize(
    ("name", "format"),
    [("matmul_4bit", "float32"), ("matmul_4bit_16_bits", "float16"), ("matmul_4bit_16_bits", "bfloat16")],
)
def test_nf4_weights_are_dequantized_to_the_activations(name, format):
    values, admissible = nf4(name, 1.0, format)
    assert values[0, 0] == decode(floats(0.44070982933044434, format), float_format(format))
    assert admissible.all()


# ggml ---------------------------------------------------------------------------------------------------------------

libggml = [backend for backend in gguf.backends if backend.name == "libggml"]
PRODUCTS = [i for b in libggml for i in b.implementations if i.operation.name == "matvec_gguf"]
needs_ggml = pytest.mark.skipif(not PRODUCTS, reason="needs libggml-base and libggml-cpu")
BY_KIND = {"Q8_0": "Q4_0", "Q8_1": "Q4_1", "Q8_K": "Q4_K"}
FILLS: dict[str, Callable[[tuple[int, int]], np.ndarray]] = {
    "normal": RNG.standard_normal,
    "integers": lambda shape: RNG.integers(-3, 4, shape),
    "halves": lambda shape: RNG.integers(-127, 128, shape) / 2,
    "tiny": lambda shape: 1e-7 * RNG.standard_normal(shape),
    "vanishing": lambda shape: 1e-38 * RNG.standard_normal(shape),
    "large": lambda shape: 1e5 * RNG.standard_normal(shape),
    "zeros": np.zeros,
}


def library_path():
    path = gguf._library_path()
    assert path is not None
    return str(Path(path).with_name(Path(path).name.replace("ggml-base", "ggml-cpu")))


@needs_ggml
@pytest.mark.parametrize("kind", BY_KIND)
@pytest.mark.parametrize("fill", FILLS)
def test_ggml_quantizes_activations_as_the_reference(kind, fill):
    a = FILLS[fill]((40, 512)).astype(np.float32)
    blocks = np.zeros((a.size // ACTIVATION_ELEMENTS[kind], GGML_TYPES[kind].block_bytes), np.uint8)
    quantizer = ggml_products.cpu_library(library_path()).ggml_get_type_traits_cpu(GGML_TYPES[kind].code).contents
    quantizer.from_float(a.ctypes.data_as(ctypes.c_void_p), blocks.ctypes.data_as(ctypes.c_void_p), a.size)
    scale = blocks[:, :4].copy().view(np.float32) if kind == "Q8_K" else blocks[:, :2].copy().view(np.float16)
    start = {"Q8_0": 2, "Q8_1": 4, "Q8_K": 4}[kind]
    codes = blocks[:, start : start + ACTIVATION_ELEMENTS[kind]].view(np.int8)
    found = quantize_activations(a, BY_KIND[kind])
    values = (scale.astype(np.float64) * codes).reshape(a.shape)
    assert np.all(np.abs(values - found.elements.values) <= found.elements.error)
    if found.sums is not None:
        sums = blocks[:, 2:4].copy().view(np.float16).astype(np.float64).reshape(len(a), -1)
        with np.errstate(invalid="ignore"):
            assert np.all((sums == found.sums.values) | (np.abs(sums - found.sums.values) <= found.sums.error))


def product(type, a, weights, **semantics):
    (kernel,) = [i for i in PRODUCTS if type in i.supports["type"]]
    kernel = replace(kernel, semantics=replace(kernel.semantics, **semantics))
    return returned(kernel, {"a": a.astype(np.float32), "blocks": weights}, type=type)


@needs_ggml
@pytest.mark.parametrize("type", BLOCK_FORMATS)
@pytest.mark.parametrize("rows", [1, 2, 17])
def test_ggml_multiplies_quantized_activations(type, rows):
    weights = quantize(RNG.standard_normal((9, 512)).astype(np.float32), type)
    a = RNG.standard_normal((rows, 512))
    assert product(type, a, weights)[1].all()
    assert not product(type, a, weights, activation_quantization="none")[1].all()
    a[np.arange(rows), RNG.integers(0, 512, rows)] = 6e4
    assert product(type, a, weights)[1].all()


@needs_ggml
@pytest.mark.parametrize("type", ["TQ1_0", "TQ2_0"])
def test_ggml_corrects_ternary_products_by_the_sums_of_activations(type):
    weights = quantize(RNG.standard_normal((99, 512)).astype(np.float32), type)
    a = RNG.standard_normal((9, 512))
    a[np.arange(9), RNG.integers(0, 512, 9)] = 6e4
    assert product(type, a, weights)[1].all()
    assert not product(type, a, weights, dequantize_form="subtract_first")[1].all()


@needs_ggml
def test_ggml_overflows_where_sums_of_activations_leave_float16():
    weights = quantize(np.linspace(1, 2, 32, dtype=np.float32)[None], "Q4_1")
    assert product("Q4_1", np.full((1, 32), 2000.0), weights)[0][0, 0] < 1e5
    values, admissible = product("Q4_1", np.full((1, 32), 2048.0), weights)
    assert values[0, 0] == np.inf
    assert admissible.all()
