"""Paged caches: writes against explicit loops, a search among all codes, PyTorch's casts; what attention reads back."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lowbit_cts.reference.attention import attention_enclosure
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import FORMATS, IntegerFormat, decode, float_format
from lowbit_cts.reference.kv_cache import (
    GRANULARITIES,
    QUANTIZED,
    Cache,
    scale_shape,
    scales_of,
    slots,
    stored_enclosure,
    write_kv_cache_enclosure,
)

F = np.float32
#: Choices may be given by value.
STORED: Callable[..., Enclosure] = stored_enclosure
WRITTEN: Callable[..., dict[str, Enclosure]] = write_kv_cache_enclosure
T, C, P, G, D, E = 5, 4, 3, 2, 4, 3


def carrier_bits(rng: np.random.Generator, shape: tuple[int, ...], format: str) -> np.ndarray:
    carrier = FORMATS[format].carrier
    return rng.integers(0, 256, (*shape, carrier.itemsize), np.uint8).view(carrier)[..., 0]


def problem(cache_format: str, granularity: str = "tensor", seed: int = 0) -> tuple[list[Any], dict[str, Any]]:
    rng = np.random.default_rng(seed)
    numbers = [rng.standard_normal((T, G, size)).astype(np.float16).astype(np.float64) for size in (D, E)]
    if cache_format not in QUANTIZED:
        numbers = [decode(encode(x, float_format(cache_format)), float_format(cache_format)) for x in numbers]
    caches = [carrier_bits(rng, (C, P, G, size), cache_format) for size in (D, E)]
    scales: list[np.ndarray | None] = [None, None]
    if cache_format in QUANTIZED:
        scales = [
            (0.02 * np.exp(rng.standard_normal(scale_shape(of, x.shape, granularity)))).astype(F)
            for of, x in zip(("key", "value"), numbers, strict=True)
        ]
    at = np.array([7, -1, 0, 11, -(2**40)], np.int64)
    return [*numbers, *caches, at, *scales], {"cache_format": cache_format, "granularity": granularity}


def nearest(quotient: float, format: str) -> float:
    """Return the value of the nearest finite code, of two the even one, found among all there are."""
    fmt = FORMATS[format]
    if isinstance(fmt, IntegerFormat):
        codes = np.arange(fmt.minimum, fmt.maximum + 1)
        values = codes.astype(np.float64)
    else:
        codes = np.arange(256)
        values = decode(codes, fmt)
        codes, values = codes[np.isfinite(values)], values[np.isfinite(values)]
    if np.isnan(quotient):
        return quotient
    limited = min(max(quotient, values.min()), values.max())
    far = np.abs(values - limited)
    best = np.flatnonzero(far == far.min())
    return float(values[min(best, key=lambda i: (int(codes[i]) & 1, np.signbit(values[i]) != np.signbit(quotient)))])


CASES = [
    (format, granularity)
    for format in ("float16", "bfloat16", "float32", *QUANTIZED)
    for granularity in (GRANULARITIES if format in QUANTIZED else ("tensor",))
]


@pytest.mark.parametrize(("cache_format", "granularity"), CASES)
def test_a_write_is_that_of_explicit_loops(cache_format, granularity):
    arguments, parameters = problem(cache_format, granularity)
    key, value, key_cache, value_cache, at, key_scale, value_scale = arguments
    found = WRITTEN(*arguments, **parameters)
    assert list(found) == ["new_key_cache", "new_value_cache"]
    for of, x, cache, scale in (("key", key, key_cache, key_scale), ("value", value, value_cache, value_scale)):
        expected = decode(cache, FORMATS[cache_format]).astype(np.float64)
        for t in range(T):
            if at[t] < 0:
                continue
            for g in range(G):
                for i in range(x.shape[2]):
                    own = x[t, g, i]
                    if scale is not None:
                        index = {"tensor": (), "head": (g,), "kivi": (g, i) if of == "key" else (t, g)}[granularity]
                        own = nearest(float(F(own) / scale[index]), cache_format)
                    expected[at[t] // P, at[t] % P, g, i] = own
        enclosure = found[f"new_{of}_cache"]
        np.testing.assert_array_equal(enclosure.exact, expected)
        assert np.array_equal(enclosure.lo, enclosure.hi, equal_nan=True)
        assert enclosure.admits(expected).all()


def every_float16() -> np.ndarray:
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    return values[np.isfinite(values)].astype(np.float64)


@pytest.mark.parametrize("scale", [1.0, 0.25, 0.3, 17.0])
def test_int8_is_what_torch_makes_of_all_float16(scale):
    torch = pytest.importorskip("torch")
    x = every_float16()
    quotient = torch.from_numpy(x.astype(F)) / torch.tensor(scale, dtype=torch.float32)
    expected = quotient.round().clamp(-128, 127).numpy()
    np.testing.assert_array_equal(STORED(x, np.array(float(F(scale))), cache_format="int8").exact, expected)


@pytest.mark.parametrize("cache_format", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("scale", [1.0, 0.25, 0.3, 17.0])
def test_float8_is_what_torch_makes_of_all_float16(cache_format, scale):
    torch = pytest.importorskip("torch")
    x = every_float16()
    quotient = torch.from_numpy(x.astype(F)) / torch.tensor(scale, dtype=torch.float32)
    largest = float_format(cache_format).maximum
    expected = quotient.clamp(-largest, largest).to(getattr(torch, cache_format)).float().numpy()
    found = STORED(x, np.array(float(F(scale))), cache_format=cache_format)
    np.testing.assert_array_equal(found.exact, expected)
    np.testing.assert_array_equal(np.signbit(found.exact), np.signbit(expected))


@pytest.mark.parametrize("cache_format", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_is_what_ml_dtypes_makes(cache_format):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x, largest = every_float16(), float_format(cache_format).maximum
    expected = np.clip(x.astype(F), -largest, largest).astype(getattr(ml_dtypes, cache_format)).astype(F)
    np.testing.assert_array_equal(STORED(x, np.array(1.0), cache_format=cache_format).exact, expected)


# Choices ------------------------------------------------------------------------------------------------------------


def test_the_declared_arithmetic_decides():
    s = np.array(float(F(0.3)))
    x = np.asarray(F(0.3) * np.linspace(-130, 130, 4001, dtype=F), np.float64)
    kinds = [
        {"division": "divide"}, {"division": "reciprocal"}, {"intermediate": "float64"},
        {"division": "reciprocal", "intermediate": "float64"}, {"rounding": "half_away"}, {"rounding": "toward_zero"},
    ]  # fmt: skip
    found = [STORED(x, s, cache_format="int8", **kind).exact for kind in kinds]
    quotients = [
        (x.astype(F) / F(0.3)).astype(np.float64), (x.astype(F) * (F(1) / F(0.3))).astype(np.float64),
        x / float(F(0.3)), x * (1 / float(F(0.3))),
    ]  # fmt: skip
    for codes, quotient in zip(found, quotients, strict=False):
        np.testing.assert_array_equal(codes, np.clip(np.rint(quotient), -128, 127))
    np.testing.assert_array_equal(found[5], np.clip(np.trunc(quotients[0]), -128, 127))
    ties = STORED(np.array([-1.5, -0.5, 0.5, 1.5, 2.5]), np.array(1.0), cache_format="int8", rounding="half_away")
    np.testing.assert_array_equal(ties.exact, [-2, -1, 1, 2, 3])


@pytest.mark.parametrize("cache_format", QUANTIZED)
def test_an_approximate_division_admits_both_neighbours_at_a_boundary(cache_format):
    x = np.array([2.5, 2.4, -2.5, 1e9, -1e9, 0.0]) if cache_format == "int8" else np.array(
        [1.0625, 1.03, -1.125 - 2.0**-4, 1e9, -1e9, 0.0])  # fmt: skip
    found = STORED(x, np.array(1.0), cache_format=cache_format, division="approximate", division_ulps=2.0)
    open_ = found.lo != found.hi
    if cache_format != "float8_e5m2":  # whose ties are others
        np.testing.assert_array_equal(open_, [True, False, True, False, False, False])
    assert found.admits(STORED(x, np.array(1.0), cache_format=cache_format).exact).all()
    assert np.all(found.lo <= found.hi)


def test_overflow_is_that_which_is_declared():
    x = np.array([1e6, -np.inf, 460.0, np.nan])
    for choice, format, expected in (
        ("saturate", "float8_e4m3fn", [448, -448, 448, np.nan]),
        ("saturate_finite", "float8_e5m2", [57344, -np.inf, 448, np.nan]),
        ("infinity_or_nan", "float8_e5m2", [np.inf, -np.inf, 448, np.nan]),
        ("infinity_or_nan", "float8_e4m3fn", [np.nan, np.nan, 448, np.nan]),
    ):
        np.testing.assert_array_equal(STORED(x, np.array(1.0), cache_format=format, overflow=choice).exact, expected)
    near = STORED(np.array([464.0]), np.array(1.0), cache_format="float8_e4m3fn", division="approximate",
                  overflow="infinity_or_nan")  # fmt: skip
    assert near.admits(np.array([448.0])).all()
    assert near.admits(np.array([np.nan])).all()


def test_nan_has_any_code_of_int8_and_is_nan_in_float8():
    x = np.array([np.nan, 3.0])
    integer = STORED(x, np.array(1.0), cache_format="int8")
    np.testing.assert_array_equal(integer.lo, [-128, 3])
    np.testing.assert_array_equal(integer.hi, [127, 3])
    small = STORED(x, np.array(1.0), cache_format="float8_e5m2")
    assert small.admits(np.array([np.nan, 3.0])).all()
    assert not small.admits(np.array([0.0, 3.0]))[0]


# Theorems -----------------------------------------------------------------------------------------------------------


def ends(found: dict[str, Enclosure]) -> list[np.ndarray]:
    return [x for name in sorted(found) for x in (found[name].exact, found[name].lo, found[name].hi)]


@pytest.mark.parametrize(("cache_format", "granularity"), CASES)
def test_the_order_of_tokens_does_not_matter(cache_format, granularity):
    arguments, parameters = problem(cache_format, granularity, 1)
    order = np.random.default_rng(0).permutation(T)
    moved = [arguments[0][order], arguments[1][order], *arguments[2:4], arguments[4][order], *arguments[5:]]
    if granularity == "kivi":
        moved[6] = arguments[6][order]
    for one, other in zip(ends(WRITTEN(*arguments, **parameters)), ends(WRITTEN(*moved, **parameters)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_skipped_leaves_the_cache_as_it_was():
    arguments, parameters = problem("float8_e4m3fn", seed=2)
    arguments[4] = np.full(T, -1, np.int64)
    found = WRITTEN(*arguments, **parameters)
    for name, cache in (("new_key_cache", arguments[2]), ("new_value_cache", arguments[3])):
        for end in (found[name].exact, found[name].lo, found[name].hi):
            np.testing.assert_array_equal(end, decode(cache, FORMATS["float8_e4m3fn"]))
    nothing = [arguments[0][:0], arguments[1][:0], *arguments[2:4], arguments[4][:0], *arguments[5:]]
    np.testing.assert_array_equal(
        WRITTEN(*nothing, **parameters)["new_key_cache"].exact, found["new_key_cache"].exact
    )  # fmt: skip


@pytest.mark.parametrize(("cache_format", "granularity"), CASES)
def test_attention_to_what_was_written_is_attention_to_the_tokens(cache_format, granularity):
    """Through a table in no order, to within half a unit of each key and value; exactly of a cache that is as it is."""
    arguments, parameters = problem(cache_format, granularity, 3)
    row, context = np.array([[2, 0]]), np.array([T])
    at = slots(row[0], T, P, C)
    np.testing.assert_array_equal(at, [6, 7, 8, 0, 1])
    arguments[4] = at
    written = {name: x.exact for name, x in WRITTEN(*arguments, **parameters).items()}
    fmt = FORMATS[cache_format]
    keys, values = (
        x.astype(fmt.carrier) if isinstance(fmt, IntegerFormat) else encode(x, fmt)
        for x in (written["new_key_cache"], written["new_value_cache"])
    )
    key_scale, value_scale = arguments[5:]
    if granularity == "kivi":  # the caller keeps the scales of tokens beside the cache
        kept = np.full((C, P, G), np.nan, F)
        kept.reshape(C * P, G)[at] = value_scale
        value_scale = kept
    query = np.random.default_rng(4).standard_normal((1, 1, 2 * G, D))
    found = attention_enclosure(query, keys, values, row, context, key_scale, value_scale, input_format="float32",
                                softmax_scale=0.5, **parameters).exact  # fmt: skip
    y = np.zeros((2 * G, E))
    stored = []
    for of, x, scale in (("key", arguments[0], arguments[5]), ("value", arguments[1], arguments[6])):
        s = scales_of(of, scale, x.shape, granularity)
        stored.append(STORED(x, s, cache_format=cache_format).exact * s)
        unit = 0.0 if cache_format not in QUANTIZED else 0.5 if cache_format == "int8" else np.abs(x / s) * 2.0**-3
        saturated = np.abs(x / s) > (fmt.maximum if cache_format in QUANTIZED else np.inf)
        assert np.all((np.abs(stored[-1] - x) <= s * unit * (1 + 1e-6) + 2.0**-17 * s) | saturated)
    for h in range(2 * G):
        scores = 0.5 * stored[0][:, h // 2] @ query[0, 0, h]
        weights = np.exp(scores - scores.max())
        y[h] = weights @ stored[1][:, h // 2] / weights.sum()
    np.testing.assert_allclose(found[0, 0], y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_cache_reads_its_own_scales(granularity):
    rng = np.random.default_rng(5)
    codes = rng.integers(-128, 128, (C, P, G, D)).astype(np.int8)
    for of in ("key", "value"):
        scale = rng.uniform(0.1, 2, scale_shape(of, codes.shape, granularity))
        cache = Cache(of, codes, scales_of(of, scale, codes.shape, granularity), FORMATS["int8"])
        at = np.array([[0, 5, 11], [7, 7, 0]])
        found = cache.numbers(at, np.array([[True, True, True], [True, False, False]]))
        assert found.shape == (2 * G, 3, D)
        for s, j, g, i in np.ndindex(2, 3, G, D):
            c, p = divmod(int(at[s, j]), P)
            index = {"tensor": (), "head": (g,), "kivi": (g, i) if of == "key" else (c, p, g)}[granularity]
            expected = 0.0 if s == 1 and j else codes[c, p, g, i] * float(np.asarray(scale)[index])
            assert found[s * G + g, j, i] == expected
        shared = cache.apart(2)
        own = np.ones(2 * G) if granularity == "kivi" else np.tile(np.broadcast_to(scale, G), 2)
        np.testing.assert_array_equal(shared[:, 0, 0], own)


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, np.zeros((T, G)), "key: has 2 axes, must have 3"),
        (0, np.zeros((T, G, D + 1)), r"key: has shape \(5, 2, 5\), must be \(5, 2, 4\)"),
        (1, np.zeros((T - 1, G, E)), r"value: has shape \(4, 2, 3\), must be \(5, 2, 3\)"),
        (3, np.zeros((C, P + 1, G, E), np.int8), "value_cache: has shape"),
        (4, np.array([0, 1, 2, 3, C * P]), r"slot_mapping: must lie below 12, .*; got 12"),
        (4, np.array([0, 1, 2, 3, 1]), "slot_mapping: must name no slot twice"),
        (4, np.zeros(4, np.int64), "key: has shape"),
        (5, np.ones(G, F), r"key_scale: has shape \(2,\), must be \(\) for granularity 'tensor'"),
        *((i, F(bad), f"{name}: must be positive and finite")
          for i, name in ((5, "key_scale"), (6, "value_scale")) for bad in (np.nan, -1, 0, np.inf)),
    ],
)  # fmt: skip
def test_bad_input_is_refused(position, value, message):
    arguments, parameters = problem("int8")
    arguments[position] = value
    with pytest.raises(ValueError, match=message):
        WRITTEN(*arguments, **parameters)


def test_an_unknown_granularity_is_refused():
    arguments, parameters = problem("int8")
    with pytest.raises(ValueError, match="granularity: 'channel' must be one of tensor, head, kivi"):
        WRITTEN(*arguments, **{**parameters, "granularity": "channel"})
