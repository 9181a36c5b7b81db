"""What torch's kernels compute, by named cases: an upgrade that changes it fails here, visibly."""

import shutil

import numpy as np
import pytest

pytest.importorskip("torch")

from lowbit_cts.kernels import Case
from lowbit_cts.kernels.torch import backends, compiled_backends
from lowbit_cts.reference.formats import decode

CPU, COMPILED = backends[0], compiled_backends[0]
F32_MAX = np.finfo(np.float32).max


def implementation(operation, name, backend=CPU):
    return next(i for i in backend.implementations if (i.operation.name, i.name) == (operation, name))


def returned(kernel, arrays, **parameters):
    """Return the one result of a kernel as NumPy, and whether each element is admissible as declared."""
    idle = dict.fromkeys(kernel.operation.parameters)
    assumed = {name: kernel.supports[name][0] for name, p in kernel.operation.parameters.items() if not p.open}
    chosen = {**idle, **assumed, "axis": None, **parameters}
    chosen = {name: value for name, value in chosen.items() if name in idle}
    case = Case(kernel.operation, chosen, arrays)
    exchange = kernel.backend.exchange()
    tensors = {
        name: None if array is None else exchange.from_numpy(array, case.format(name).name)
        for name, array in arrays.items()
    }
    (slot,) = kernel.operation.results
    codes = exchange.to_numpy(kernel.bound(tensors, chosen)(), case.format(slot.name).name)
    values = decode(codes, case.format(slot.name))
    return values, case.enclosures(kernel.semantics)[slot.name].admits(values)


def half_points(first, last):
    """Return the float32 values nearest to a tenth of first + 1/2, ..., last - 1/2."""
    return ((np.arange(first, last) + 0.5) * 0.1).astype(np.float32)


def quantized(name, x, scale, zero_point, operation="quantize_affine", **parameters):
    kernel = implementation(operation, name)
    x = np.atleast_2d(np.asarray(x, np.float32))
    place = {}
    if "tensor" not in kernel.supports["granularity"]:
        place = {"granularity": "axis", "axis": 0}
        scale, zero_point = [scale] * len(x), [zero_point] * len(x)
    arrays = {"x": x, "scale": np.asarray(scale, np.float32), "zero_point": np.asarray(zero_point, np.int32)}
    chosen = {"format": "int8", "mapping": "asymmetric", "narrow_range": False}
    values, admissible = returned(kernel, arrays, **chosen, **place, **parameters)
    return values[0].tolist(), admissible[0]


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("quantize_per_tensor", [2, 2, 4]),
        ("quantize_per_channel", [2, 2, 4]),
        ("quantized_decomposed", [1, 3, 3]),
        ("composed", [1, 3, 3]),
    ],
)
def test_zero_point_inside_or_outside_the_rounding(name, codes):
    returned_codes, admissible = quantized(name, [0.5, 1.5, 2.5], 1.0, 1)
    assert returned_codes == codes
    assert admissible.all()


@pytest.mark.parametrize("name", ["fake_quantize_per_tensor", "fake_quantize_per_channel", "composed"])
def test_fake_quantize_adds_the_zero_point_after_rounding(name):
    values, admissible = quantized(name, [0.5, 1.5, 2.5], 1.0, 1, "fake_quantize_affine")
    assert values == [0.0, 2.0, 2.0]
    assert admissible.all()


@pytest.mark.parametrize(
    ("name", "differing"),
    [
        ("quantize_per_tensor", 18),
        ("quantize_per_channel", 18),
        ("quantized_decomposed", 18),
        ("composed", 0),
    ],
)
def test_only_composed_kernels_divide(name, differing):
    x = half_points(-127, 127)
    codes, admissible = quantized(name, x, 0.1, 0)
    divided = np.clip(np.rint(x / np.float32(0.1)), -128, 127)
    assert np.count_nonzero(codes != divided) == differing
    assert admissible.all()


@pytest.mark.parametrize("length", [3, 67])
def test_quantize_per_tensor_fuses_and_per_channel_does_not(length):
    """Where x (1 / s) is a tie only once rounded, the two differ, in the vector body and its scalar tail alike."""
    scale, zero_point = np.float32(0.1), 7
    candidates = half_points(-120, 120)
    product = candidates.astype(np.float64) * (np.float32(1) / scale)  # exact
    separate = np.rint(product.astype(np.float32) + np.float32(zero_point))
    once = np.rint((product + zero_point).astype(np.float32))
    x = np.resize(candidates[separate != once], length)
    (fused, first), (apart, second) = (
        quantized(name, x, scale, zero_point) for name in ("quantize_per_tensor", "quantize_per_channel")
    )
    assert first.all()
    assert second.all()
    assert not np.any(np.equal(fused, apart))


def test_fake_quantize_per_channel_wraps_beyond_int64():
    """Upstream: a quotient of 2**63 or more is converted to int64 before it is clamped, and comes out as qmin."""
    x = [2.0**62, 2.0**63, np.inf, -np.inf]
    values, admissible = quantized("fake_quantize_per_channel", x, 1.0, 0, "fake_quantize_affine")
    assert values == [127.0, -128.0, -128.0, -128.0]
    assert admissible.tolist() == [True, False, False, True]


def test_quantized_add_rounds_its_tail_otherwise():
    """Upstream: past the last whole vector of 64 the zero point is added before the rounding."""
    scales = {f"{name}_scale": np.float32(scale) for name, scale in zip("aby", (1, 1, 2), strict=True)}
    zeros = {f"{name}_zero_point": np.int32(zero) for name, zero in zip("aby", (0, 0, 1), strict=True)}
    arrays = {"a": np.full(65, 1, np.int8), "b": np.full(65, 0, np.int8), **scales, **zeros}
    kernel = implementation("add_int8", "quantized_add")
    arrays = {a.name: np.asarray(arrays[a.name]) for a in kernel.operation.arguments}
    values, admissible = returned(kernel, arrays, format="int8")
    assert values.tolist() == [1] * 64 + [2]  # 1 / 2: round(0.5) + 1, and round(0.5 + 1)
    assert admissible.tolist() == [True] * 64 + [False]


@pytest.mark.parametrize("backend", [CPU, COMPILED], ids=lambda b: b.name)
@pytest.mark.parametrize(
    ("target", "overflowed"),
    [("float8_e4m3fn", [448.0, 448.0, 448.0, -448.0]), ("float8_e5m2", [57344.0, np.inf, np.inf, -np.inf])],
)
def test_float8_overflow(backend, target, overflowed):
    """E4M3FN saturates, Inf too; E5M2 overflows to Inf, from the tie above its largest value on."""
    if backend is COMPILED and not any(map(shutil.which, ("g++", "c++", "clang++"))):
        pytest.skip("no C++ compiler")
    edge = {"float8_e4m3fn": 465, "float8_e5m2": 61440}[target]
    x = np.array([np.nextafter(np.float32(edge), np.float32(0)), edge, np.inf, -F32_MAX], np.float32)
    kernel = implementation("cast_float", f"to_{target}", backend)
    values, admissible = returned(kernel, {"x": x}, source="float32", target=target)
    assert values.tolist() == overflowed
    assert admissible.all()


def test_composed_kernels_of_every_granularity_give_nan_a_code():
    kernel = implementation("quantize_affine", "composed")
    x = np.array([[np.nan, 1.0, np.inf, -3.0]], np.float32)
    for place, shape in (("tensor", ()), ("axis", (1,)), ("group", (1, 1))):
        arrays = {"x": x, "scale": np.full(shape, 0.5, np.float32), "zero_point": np.full(shape, 2, np.int32)}
        chosen = {"granularity": place, "axis": 0 if place == "axis" else None, "group_size": 4}
        chosen |= {"format": "uint2", "narrow_range": True, "input_format": "float32"}
        _, admissible = returned(kernel, arrays, **chosen)
        assert admissible.all(), place


@pytest.mark.parametrize("name", ["semi_structured", "composed"])
def test_of_an_overfull_group_two_numbers_are_kept(name):
    """Torch's conversion raises nothing where a group of four holds three or four: of 1 2 3 4 it keeps 1 and 2."""
    import torch

    kernel = implementation("compress_sparse24", name)
    x = torch.zeros(32, 32, dtype=torch.float16)
    x[0, :4] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    x[0, 4:8] = torch.tensor([0.0, 5.0, 6.0, 7.0])
    values, metadata = kernel.bound({"x": x}, {"format": "float16", "metadata_order": "cutlass"})()
    assert values[0, :4].tolist() == [1, 2, 5, 7]
    assert hex(int(metadata[0, 0]) & 0xFF) == "0xd4"


@pytest.mark.parametrize(
    ("name", "codes"),
    [
        ("float32", [0, 0, 2, -2, -2]),
        ("double_rounding", [1, -1, 2, -2, -3]),
        ("single_rounding", [1, 0, 2, -1, -2]),
        ("rndnu", [1, 0, 2, -1, -2]),
        ("rndnu16", [1, 0, 2, -1, -2]),
    ],
)
def test_where_the_variants_of_requantization_disagree(name, codes):
    kernel = implementation("requantize", name)
    acc = np.array([[8, -8, 24, -24, -40]], np.int32)
    arrays = {"acc": acc, "scale": np.array(2.0**-4, np.float32), "zero_point": np.array(0, np.int32)}
    values, admissible = returned(kernel, arrays, format="int8", granularity="tensor")
    assert values[0].tolist() == codes
    assert admissible.all()
