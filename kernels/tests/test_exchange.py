"""Exchange of arrays: nothing is lost on the way, and what comes back wrong is named."""

import ml_dtypes
import numpy as np
import pytest

from lowbit_cts.kernels.exchange import EXCHANGES, Exchange, ExchangeError, NumpyExchange, make_exchange, stream_of
from lowbit_cts.reference.formats import FORMATS

SPECIAL = {
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
}


@pytest.fixture(params=["numpy", "torch"])
def exchange(request):
    if request.param != "numpy":
        pytest.importorskip(request.param)
    return make_exchange(request.param, "cpu")


def codes(name: str, count: int = 512) -> np.ndarray:
    """Return every code of a small format, random ones of a large one."""
    fmt = FORMATS[name]
    if fmt.bits <= 8 and fmt.carrier.kind in "iu":
        low = getattr(fmt, "minimum", 0) if name in ("int2", "int8") else 0
        return np.arange(int(low), int(low) + (1 << fmt.bits)).astype(fmt.carrier)
    rng = np.random.default_rng(50)
    return rng.integers(0, 256, count * fmt.carrier.itemsize).astype(np.uint8).view(fmt.carrier)


def same_bits(one: np.ndarray, other: np.ndarray) -> None:
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_comes_back_bit_for_bit(exchange, format):
    for shape in ((-1,), (4, -1), (1, -1, 2)):
        array = codes(format).reshape(shape)
        same_bits(exchange.to_numpy(exchange.from_numpy(array, format), format), array)


@pytest.mark.parametrize("format", ["float32", "int8", "int32", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 1)])
def test_scalars_and_empty_arrays_come_back(exchange, format, shape):
    array = np.zeros(shape, FORMATS[format].carrier)
    same_bits(exchange.to_numpy(exchange.from_numpy(array, format), format), array)


@pytest.mark.parametrize("format", FORMATS)
def test_torch_tensors_stand_for_the_same_numbers(format):
    torch = pytest.importorskip("torch")
    array = codes(format)
    tensor = make_exchange("torch", "cpu").from_numpy(array, format)
    dtype = getattr(torch, format, None) if format in (*SPECIAL, "float16", "float32", "float64", "int32") else None
    assert tensor.dtype == (dtype or getattr(torch, array.dtype.name))
    with np.errstate(invalid="ignore"):
        expected = (array.view(SPECIAL[format]) if format in SPECIAL else array).astype(np.float64)
    np.testing.assert_array_equal(tensor.to(torch.float64).numpy(), expected)


VIEWS = [  # offset, shape, strides, in elements of a flat array of 0 .. 59
    (0, (60,), (1,)),
    (7, (4, 5), (10, 1)),
    (3, (5, 4), (1, 10)),
    (1, (3, 4), (20, 2)),
    (5, (), ()),
    (9, (2, 3), (0, 1)),
]
REVERSED = [(59, (60,), (-1,)), (59, (3, 4), (-20, -3)), (40, (3, 4), (-20, 2))]


def expected_view(offset: int, shape: tuple, strides: tuple) -> np.ndarray:
    index = np.full(shape, offset)
    for axis, step in enumerate(strides):
        index = index + step * np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return index


@pytest.mark.parametrize("format", ["int8", "float32", "bfloat16", "float8_e5m2"])
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_a_view_shows_the_elements_its_strides_say(exchange, format, view):
    flat = np.arange(60).astype(FORMATS[format].carrier)
    found = exchange.view(exchange.from_numpy(flat, format), *view)
    np.testing.assert_array_equal(exchange.to_numpy(found, format), expected_view(*view).astype(flat.dtype))


@pytest.mark.parametrize("view", REVERSED, ids=str)
def test_numpy_views_may_run_backward(view):
    flat = np.arange(60, dtype=np.int32)
    exchange = NumpyExchange()
    np.testing.assert_array_equal(exchange.view(flat, *view), expected_view(*view))


@pytest.mark.parametrize("format", ["int8", "float32", "bfloat16"])
def test_a_view_shares_memory_with_its_buffer(exchange, format):
    flat = exchange.from_numpy(np.zeros(60, FORMATS[format].carrier), format)
    exchange.view(flat, 7, (4, 5), (10, 1))[...] = 1
    back = exchange.to_numpy(flat, format) != 0
    assert np.flatnonzero(back).tolist() == expected_view(7, (4, 5), (10, 1)).ravel().tolist()


def test_a_strided_result_comes_back_with_its_values(exchange):
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    moved = exchange.from_numpy(array, "float32")
    np.testing.assert_array_equal(exchange.to_numpy(moved[::2].T, "float32"), array[::2].T)


WRONG = [
    ("int8", "float32", r"has dtype (torch\.)?float32, must be (torch\.)?int8 \(format int8\)"),
    ("int4", "uint4", r"has dtype (torch\.)?uint8, must be (torch\.)?int8 \(format int4\)"),
    ("float16", "float32", r"must be (torch\.)?float16"),
    ("int32", "float64", r"must be (torch\.)?int32"),
]


@pytest.mark.parametrize(("expected", "returned", "message"), WRONG)
def test_a_result_of_the_wrong_type_is_named(exchange, expected, returned, message):
    array = exchange.from_numpy(np.zeros(3, FORMATS[returned].carrier), returned)
    with pytest.raises(ExchangeError, match=message):
        exchange.to_numpy(array, expected)


def test_torch_does_not_take_one_sixteen_bit_or_eight_bit_float_for_another():
    pytest.importorskip("torch")
    exchange = make_exchange("torch", "cpu")
    for returned, expected in (("float16", "bfloat16"), ("float8_e4m3fn", "float8_e5m2"), ("uint8", "float8_e5m2")):
        tensor = exchange.from_numpy(np.zeros(3, FORMATS[returned].carrier), returned)
        with pytest.raises(ExchangeError, match=f"must be torch.{expected}"):
            exchange.to_numpy(tensor, expected)


@pytest.mark.parametrize("result", [None, [1, 2], 3.0, (np.zeros(2),)], ids=repr)
def test_what_is_no_array_is_named(exchange, result):
    with pytest.raises(ExchangeError, match=f"is a {type(result).__name__}, must be a (NumPy array|torch tensor)"):
        exchange.to_numpy(result, "float32")


def test_arrays_of_the_other_library_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(ExchangeError, match="is a Tensor, must be a NumPy array"):
        make_exchange("numpy", "cpu").to_numpy(torch.zeros(3), "float32")
    with pytest.raises(ExchangeError, match="is a ndarray, must be a torch tensor"):
        make_exchange("torch", "cpu").to_numpy(np.zeros(3, np.float32), "float32")


def test_the_cpu_has_no_streams_and_nothing_to_wait_for(exchange):
    assert isinstance(exchange, Exchange)
    assert stream_of(exchange) is None
    assert exchange.synchronize() is None
    exchange.dirty(1 << 12, 0xA5)


def test_an_exchange_without_streams_of_its_own_has_none():
    class Own:
        def from_numpy(self, array, format):
            return array

        def to_numpy(self, array, format):
            return array

        def synchronize(self):
            return None

    own = Own()
    assert make_exchange(own, "cpu") is own
    assert stream_of(own) is None
    assert set(EXCHANGES) == {"numpy", "torch", "cupy"}
