"""Casts to and from float8, exhaustively over 16 bits, against ml_dtypes, onnxruntime and torch."""

import ml_dtypes
import numpy as np
import pytest

from lowbit_cts.reference.casts import cast_float, cast_float_enclosure
from lowbit_cts.reference.choices import Overflow
from lowbit_cts.reference.formats import FORMATS, SMALL_FLOATS, decode

NATIVE = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float6_e3m2fn": ml_dtypes.float6_e3m2fn,
    "float6_e2m3fn": ml_dtypes.float6_e2m3fn,
    "float4_e2m1fn": ml_dtypes.float4_e2m1fn,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}
WIDE = ("float32", "float16", "bfloat16")
FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")


def inputs(source: str) -> np.ndarray:
    """Return every value of a 16-bit or 8-bit source in its native type, or two million float32 values."""
    if source == "float32":
        rng = np.random.default_rng(30)
        bits = rng.integers(0, 1 << 32, 1_000_000, np.uint64).astype(np.uint32)
        near = (rng.standard_normal(1_000_000) * 2.0 ** rng.integers(-20, 18, 1_000_000)).astype(np.float32)
        return np.concatenate([bits.view(np.float32), near])
    width = FORMATS[source].bits
    return np.arange(1 << width).astype(f"u{FORMATS[source].carrier.itemsize}").view(NATIVE[source])


def carried(x: np.ndarray, source: str) -> np.ndarray:
    return x.view(FORMATS[source].carrier)


def cast(x: np.ndarray, source: str, target: str, overflow: Overflow) -> np.ndarray:
    """Return the codes of the reference, as integers."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        codes = cast_float(carried(x, source), source=source, target=target, overflow=overflow)
    assert codes.dtype == FORMATS[target].carrier
    return codes.view(f"u{codes.itemsize}")


def same_codes(got: np.ndarray, expected: np.ndarray) -> None:
    """Compare codes; of two NaN only that they are."""
    with np.errstate(invalid="ignore"):
        nan = np.isnan(expected.astype(np.float32))
        assert np.array_equal(np.isnan(got.view(expected.dtype).astype(np.float32)), nan)
    np.testing.assert_array_equal(got[~nan], expected.view(got.dtype)[~nan])


@pytest.mark.parametrize("target", FLOAT8)
@pytest.mark.parametrize("source", WIDE)
def test_to_float8_without_saturation_is_ml_dtypes(source, target):
    x = inputs(source)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype(NATIVE[target])
    same_codes(cast(x, source, target, Overflow.INFINITY_OR_NAN), expected)


@pytest.mark.parametrize("target", WIDE)
@pytest.mark.parametrize("source", SMALL_FLOATS)
def test_every_small_code_widens_as_in_ml_dtypes(source, target):
    x = inputs(source)
    for overflow in Overflow:
        same_codes(cast(x, source, target, overflow), x.astype(NATIVE[target]))


# Where onnxruntime 1.31 without saturation differs from ml_dtypes and gfloat: magnitudes that round to
# one step beyond the largest number give 448 (E4M3FN, NaN elsewhere) and NaN (E5M2, Inf elsewhere).
ORT_ALONE = {"float8_e4m3fn": (480.0, 496.0), "float8_e5m2": (61440.0, 65536.0)}


@pytest.mark.parametrize("target", FLOAT8[:2])
@pytest.mark.parametrize("source", WIDE)
@pytest.mark.parametrize("saturate", [True, False])
def test_to_float8_is_the_cast_of_onnxruntime(source, target, saturate):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    wide = {"float32": types.FLOAT, "float16": types.FLOAT16, "bfloat16": types.BFLOAT16}[source]
    narrow = {"float8_e4m3fn": types.FLOAT8E4M3FN, "float8_e5m2": types.FLOAT8E5M2}[target]
    x = inputs(source)
    nodes = [  # every value of the source is a float32, and every float8 too
        helper.make_node("Cast", ["x"], ["w"], to=wide),
        helper.make_node("Cast", ["w"], ["q"], to=narrow, saturate=int(saturate)),
        helper.make_node("Cast", ["q"], ["y"], to=types.FLOAT),
    ]
    ends = [[helper.make_tensor_value_info(name, types.FLOAT, x.shape)] for name in ("x", "y")]
    graph = helper.make_graph(nodes, "graph", *ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with np.errstate(invalid="ignore"):
        wide_x = x.astype(np.float32)
        expected = session.run(None, {"x": wide_x})[0]
    overflow = Overflow.SATURATE if saturate else Overflow.INFINITY_OR_NAN
    got = decode(cast(x, source, target, overflow), FORMATS[target])
    if not saturate:
        low, high = ORT_ALONE[target]
        alone = (low <= np.abs(wide_x)) & (np.abs(wide_x) < high)
        assert np.any(alone)
        got, expected = got[~alone], expected[~alone]
    np.testing.assert_array_equal(got, expected)
    numbers = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(got)[numbers], np.signbit(expected)[numbers])


@pytest.mark.parametrize("target", FLOAT8)
@pytest.mark.parametrize("source", WIDE)
def test_saturating_the_finite_leaves_infinities_to_the_format(source, target):
    x = inputs(source)
    finite = np.isfinite(x.astype(np.float32))
    mixed = cast(x, source, target, Overflow.SATURATE_FINITE)
    np.testing.assert_array_equal(mixed[finite], cast(x, source, target, Overflow.SATURATE)[finite])
    np.testing.assert_array_equal(mixed[~finite], cast(x, source, target, Overflow.INFINITY_OR_NAN)[~finite])


@pytest.mark.parametrize("target", WIDE)
@pytest.mark.parametrize("source", ["float64", *WIDE])
def test_casts_between_wide_floats_are_those_of_numpy_and_ml_dtypes(source, target):
    if source == target:
        with pytest.raises(ValueError, match=f"{source} to {target} is no cast"):
            cast_float(np.zeros(1), source=source, target=target)
        return
    if source == "float64":
        x = inputs("float32").astype(np.float64)
        x = np.concatenate([x, np.nextafter(x, np.inf), np.nextafter(x, -np.inf)])
        if target == "bfloat16":  # ml_dtypes rounds float64 twice, by way of float32
            x = x[: inputs("float32").size]
    else:
        x = inputs(source)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = x.astype({**NATIVE, "float64": np.float64}[target])
        got = cast_float(x.view(FORMATS[source].carrier), source=source, target=target)
    same_codes(got.view(f"u{got.itemsize}"), expected)


def test_a_stochastic_result_is_one_of_two_neighbours():
    x = np.array([1.0, 1.01, -1.01, 0.0, np.inf, np.nan, 1e9], np.float32)
    found = cast_float_enclosure(x, source="float32", target="float8_e4m3fn", rounding="stochastic")
    np.testing.assert_array_equal(found.lo, [1, 1, -1.125, 0, 448, np.nan, 448])
    np.testing.assert_array_equal(found.hi, [1, 1.125, -1, 0, 448, np.nan, 448])


def test_nan_may_become_anything_in_a_format_that_has_none():
    found = cast_float_enclosure(np.float32([np.nan, 1.0]), source="float32", target="float4_e2m1fn")
    assert found.admits(np.array([-3.0, 1.0])).tolist() == [True, True]
    assert found.admits(np.array([0.5, 1.5])).tolist() == [True, False]


def torch_codes(x: np.ndarray, source: str, target: str) -> np.ndarray:
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(x.view(f"i{x.itemsize}")).view(getattr(torch, source))
    return tensor.to(getattr(torch, target)).view(torch.uint8).numpy().view(NATIVE[target])


@pytest.mark.parametrize("source", WIDE)
def test_torch_casts_to_e5m2_overflow_to_infinity(source):
    x = inputs(source)
    same_codes(cast(x, source, "float8_e5m2", Overflow.INFINITY_OR_NAN), torch_codes(x, source, "float8_e5m2"))


@pytest.mark.parametrize("source", WIDE)
def test_torch_casts_to_e4m3fn_saturate_from_2_13_on(source):
    torch = pytest.importorskip("torch")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
        pytest.skip("older releases give NaN")
    x = inputs(source)
    same_codes(cast(x, source, "float8_e4m3fn", Overflow.SATURATE), torch_codes(x, source, "float8_e4m3fn"))


def test_a_float8_result_is_determined_to_the_sign_of_zero():
    x = np.array([0.0, -0.0, 1e-9, -1e-9, np.nan, 1e9], np.float32)
    found = cast_float_enclosure(x, source="float32", target="float8_e4m3fn")
    np.testing.assert_array_equal(found.exact, [0, 0, 0, 0, np.nan, 448])
    assert found.admits(found.exact).all()
    assert found.admits(-found.exact).tolist() == [False, False, False, False, True, False]
