"""Products of codes: against Python's integers, rationals, and float32 arithmetic in many orders."""

import ctypes
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest

from lowbit_cts.reference.accumulators import Accumulator
from lowbit_cts.reference.choices import ZeroPointCorrection
from lowbit_cts.reference.products import integer_product, matmul_int8, matmul_w8a8_enclosure, wrap_int32
from lowbit_cts.reference.rounding import fma_float32

ACCUMULATORS = (Accumulator.INT32, Accumulator.FLOAT32, Accumulator.FLOAT64)
FLOAT32, INTEGER, FLOAT = Accumulator.FLOAT32, ZeroPointCorrection.INTEGER, ZeroPointCorrection.FLOAT


def python_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multiply with Python's own integers, which have no width."""
    return a.astype(object) @ b.astype(object)


@pytest.mark.parametrize("a_format", [np.int8, np.uint8])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (4, 129, 2), (17, 64, 9)])
def test_matmul_int8_is_the_product_of_python_integers(shape, a_format):
    m, k, n = shape
    rng = np.random.default_rng(40)
    limits = np.iinfo(a_format)
    a = rng.integers(limits.min, limits.max + 1, (m, k)).astype(a_format)
    b = rng.integers(-128, 128, (k, n)).astype(np.int8)
    assert matmul_int8(a, b).tolist() == python_product(a, b).tolist()
    extreme = matmul_int8(np.full((m, k), limits.max, a_format), np.full((k, n), -128, np.int8))
    np.testing.assert_array_equal(extreme, -128 * k * int(limits.max))


@pytest.mark.parametrize(("m", "k", "n"), [(0, 3, 2), (2, 3, 0), (2, 0, 3)])
def test_empty_products_are_empty_or_zero(m, k, n):
    product = matmul_int8(np.ones((m, k), np.int8), np.ones((k, n), np.int8))
    assert product.shape == (m, n)
    assert not product.any()


def test_wrap_int32_is_the_conversion_of_c():
    rng = np.random.default_rng(41)
    near = [s * 2**e + d for s in (-1, 1) for e in (31, 32, 33) for d in (-1, 0, 1)]
    values = np.array([*near, 0, *rng.integers(-(2**40), 2**40, 1000)])
    assert wrap_int32(values).tolist() == [ctypes.c_int32(int(v)).value for v in values]


@pytest.mark.parametrize(("k", "expected"), [(131071, 131071 * 2**14), (131072, -(2**31)), (131073, -(2**31) + 2**14)])
def test_the_sum_wraps_first_at_131072_products(k, expected):
    a = np.full((1, k), -128, np.int8)
    assert integer_product(a, a.T).item() == k * 2**14
    assert matmul_int8(a, a.T).item() == expected


# W8A8 ---------------------------------------------------------------------------------------------------------------


def layer(seed: int, m: int = 6, k: int = 96, n: int = 8, asymmetric: bool = True, bias: bool = True) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "a": rng.integers(-128, 128, (m, k)),
        "a_scale": (2.0 ** rng.uniform(-8, 2, m)).astype(np.float32),
        "a_zero_point": rng.integers(-128, 128, m) if asymmetric else np.zeros(m, int),
        "b": rng.integers(-128, 128, (k, n)),
        "b_scale": (2.0 ** rng.uniform(-8, 2, n)).astype(np.float32),
        "bias": (rng.standard_normal(n) * 100).astype(np.float32) if bias else None,
    }


def large_sums(seed: int, k: int) -> dict:
    """Return a layer whose sums exceed 2**24: codes of one sign, zero points of the other."""
    case = layer(seed, m=4, k=k, n=4)
    return case | {"a": np.abs(case["a"]), "b": np.abs(case["b"]), "a_zero_point": -np.abs(case["a_zero_point"])}


def enclosed(case: dict, **choices):
    return matmul_w8a8_enclosure(*case.values(), **choices)


def epilogues(acc: np.ndarray, case: dict) -> dict[str, np.ndarray]:
    """Return s_a s_b acc + bias in float32, in every association, fused and not."""
    acc = acc.astype(np.float32)
    s_a, s_b = case["a_scale"][:, None], case["b_scale"][None, :]
    bias = np.float32(0) if case["bias"] is None else case["bias"][None, :]
    return {
        "(acc s_a) s_b + bias": acc * s_a * s_b + bias,
        "s_a (s_b acc) + bias": s_a * (s_b * acc) + bias,
        "acc (s_a s_b) + bias": acc * (s_a * s_b) + bias,
        "fma(acc s_a, s_b, bias)": fma_float32(acc * s_a, s_b, bias).astype(np.float32),
        "fma(acc s_b, s_a, bias)": fma_float32(acc * s_b, s_a, bias).astype(np.float32),
        "fma(acc, s_a s_b, bias)": fma_float32(acc, s_a * s_b, bias).astype(np.float32),
    }


OUTPUTS = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def assert_admitted(found, values: dict[str, np.ndarray], output: str = "float32") -> None:
    for name, value in values.items():
        assert value.dtype == np.float32
        with np.errstate(over="ignore"):
            rounded = value.astype(OUTPUTS[output]).astype(np.float64)
        assert found.admits(rounded).all(), name


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("k", [1, 96, 4096])
def test_every_association_of_the_epilogue_is_admitted(k, output):
    for seed in range(20):
        for bias in (True, False):
            case = layer(seed, k=k, bias=bias)
            acc = python_product(case["a"] - case["a_zero_point"][:, None], case["b"]).astype(np.int64)
            assert_admitted(enclosed(case, output_format=output), epilogues(acc, case), output)


def test_a_bias_that_cancels_leaves_the_error_of_the_terms():
    for seed in range(50):
        case = layer(seed, m=1)
        acc = python_product(case["a"] - case["a_zero_point"][:, None], case["b"]).astype(np.int64)
        case["bias"] = -epilogues(acc, case | {"bias": None})["(acc s_a) s_b + bias"][0]
        assert_admitted(enclosed(case), epilogues(acc, case))


def test_a_zero_point_subtracted_in_float32_is_admitted_where_declared():
    differing = 0
    for seed in range(10):
        case = large_sums(seed, k=4097)
        acc = python_product(case["a"], case["b"]).astype(np.float32)
        sums = case["b"].sum(axis=0).astype(np.float32)[None, :]
        z = case["a_zero_point"].astype(np.float32)[:, None]
        found = enclosed(case, zero_point_correction=FLOAT)
        assert_admitted(found, epilogues(acc - z * sums, case))
        assert_admitted(found, epilogues(fma_float32(-z, sums, acc).astype(np.float32), case))
        exact = python_product(case["a"] - case["a_zero_point"][:, None], case["b"]).astype(np.float64)
        differing += np.sum(acc - z * sums != exact.astype(np.float32))
    assert differing > 0, "the correction rounds on these inputs"


def test_a_correction_that_cancels_leaves_the_error_of_the_terms():
    """The product exceeds 2**24 and rounds; the zero point, in the middle of the codes, takes nearly all of it away."""
    lost = 0
    for seed in range(10):
        case = large_sums(seed, k=8191)
        case["a_zero_point"] = np.full(4, int(case["a"].mean()))
        acc, sums = python_product(case["a"], case["b"]), case["b"].sum(axis=0)[None, :]
        rounded = acc.astype(np.float32) - (case["a_zero_point"][:, None] * sums).astype(np.float32)
        case["bias"] = None
        assert_admitted(enclosed(case, zero_point_correction=FLOAT), epilogues(rounded, case))
        lost += np.sum(~enclosed(case).admits(epilogues(rounded, case)["(acc s_a) s_b + bias"].astype(np.float64)))
    assert lost > 0, "an integer correction would not err like this"


def sums_in_orders(products: np.ndarray) -> dict[str, np.ndarray]:
    """Add float32 products over axis 1 forward, backward, in pairs, and one lane beside the other."""

    def forward(terms):
        total = np.zeros_like(terms[:, 0])
        for i in range(terms.shape[1]):
            total = total + terms[:, i]
        return total

    def pairwise(terms):
        while terms.shape[1] > 1:
            odd = terms[:, -1:] if terms.shape[1] % 2 else terms[:, :0]
            terms = np.concatenate([terms[:, 0:-1:2] + terms[:, 1::2], odd], axis=1)
        return terms[:, 0]

    return {
        "forward": forward(products),
        "backward": forward(products[:, ::-1]),
        "pairwise": pairwise(products),
        "lanes": sum(forward(products[:, lane::4]) for lane in range(4)),
    }


def test_sums_in_float32_are_admitted_in_any_order():
    rounded = 0
    for seed in range(5):
        case = large_sums(seed, k=3000)
        exact = python_product(case["a"] - case["a_zero_point"][:, None], case["b"]).astype(np.float64)
        a, b, z = (case[name].astype(np.float32) for name in ("a", "b", "a_zero_point"))
        shifted = (a - z[:, None])[:, :, None] * b[None]
        raw = sums_in_orders(a[:, :, None] * b[None])
        correction = z[:, None] * b.sum(axis=0)[None, :]
        found = enclosed(case, accumulator=FLOAT32)
        for total in sums_in_orders(shifted).values():
            assert_admitted(found, epilogues(total, case))
            rounded += np.sum(total != exact)
        found = enclosed(case, accumulator=FLOAT32, zero_point_correction=FLOAT)
        for total in raw.values():
            assert_admitted(found, epilogues(total - correction, case))
    assert rounded > 0, "the sums round on these inputs"


def test_sums_in_float32_that_rise_and_fall_are_admitted():
    """Partial sums exceed 2**24 and round; the total does not."""
    rounded = 0
    for seed in range(5):
        case = large_sums(seed, k=6000) | {"bias": None}
        case["b"][3000:] = -case["b"][:3000]
        case["a"][:, 3000:] = case["a"][:, :3000]
        a, b = (case["a"] - case["a_zero_point"][:, None]).astype(np.float32), case["b"].astype(np.float32)
        found = enclosed(case, accumulator=FLOAT32)
        np.testing.assert_array_equal(found.exact, 0)
        for total in sums_in_orders(a[:, :, None] * b[None]).values():
            assert_admitted(found, epilogues(total, case))
            rounded += np.sum(total != 0)
    assert rounded > 0


def power_of_two_layer(seed: int, k: int = 48) -> dict:
    rng = np.random.default_rng(seed)
    case = layer(seed, k=k)
    case["a_scale"] = (2.0 ** rng.integers(-8, 3, 6)).astype(np.float32)
    case["b_scale"] = (2.0 ** rng.integers(-8, 3, 8)).astype(np.float32)
    case["bias"] = rng.integers(-64, 64, 8).astype(np.float32)
    return case


def rational_layer(case: dict) -> list[list[Fraction]]:
    acc = python_product(case["a"] - case["a_zero_point"][:, None], case["b"])
    bias = np.zeros(acc.shape[1]) if case["bias"] is None else case["bias"]
    return [
        [Fraction(float(s_a)) * Fraction(float(s_b)) * int(acc[i, j]) + Fraction(float(bias[j]))
         for j, s_b in enumerate(case["b_scale"])]
        for i, s_a in enumerate(case["a_scale"])
    ]  # fmt: skip


@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=str)
@pytest.mark.parametrize("correction", ZeroPointCorrection)
def test_in_the_exact_regime_one_result_is_admissible(accumulator, correction):
    """Scales are powers of two, sum |a - z| |b| stays below 2**24: nothing rounds, in any order."""
    for seed in range(10):
        case = power_of_two_layer(seed)
        found = enclosed(case, accumulator=accumulator, zero_point_correction=correction)
        truth = np.array(rational_layer(case))
        assert np.all(truth == [[Fraction(v) for v in row] for row in found.exact.tolist()])
        np.testing.assert_array_equal(found.lo, found.exact)
        np.testing.assert_array_equal(found.hi, found.exact)


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_rational_result_is_inside_and_float32_stays_near_it(output):
    for seed in range(10):
        case = layer(seed)
        found = enclosed(case, output_format=output)
        truth = np.array(rational_layer(case)).astype(np.float64).astype(np.float32)
        assert_admitted(found, {"truth": truth}, output)
        if output == "float32":
            terms = np.abs(found.exact) + 2 * np.abs(case["bias"])[None, :]
            assert np.max((found.hi - found.lo) / terms) < 16 * 2.0**-24, "a few roundings of what was added"


@pytest.mark.parametrize("accumulator", [Accumulator.INT32, Accumulator.FLOAT32])
def test_one_code_wrong_falls_outside_while_the_sum_stays_below_2_to_the_20(accumulator):
    """float32 output, no bias: the bound is gamma_5 of the sum, less than a code; float32 sums so far are exact."""
    for seed in range(10):
        case = layer(seed, k=48, bias=False)
        acc = python_product(case["a"] - case["a_zero_point"][:, None], case["b"]).astype(np.int64)
        assert np.abs(acc).max() < 2**20
        found = enclosed(case, accumulator=accumulator)
        for wrong in (acc - 1, acc + 1):
            for value in epilogues(wrong, case).values():
                assert not found.admits(value.astype(np.float64)).any()


def test_one_product_missing_falls_outside_in_the_exact_regime_of_a_sixteen_bit_output():
    """Sums up to 2**8 are bfloat16 values: the last product dropped shows wherever it is not zero."""
    rng = np.random.default_rng(42)
    a, b = rng.integers(-2, 3, (16, 32)), rng.integers(-2, 3, (32, 16))
    one = np.float32(1)
    for output in ("float16", "bfloat16"):
        found = matmul_w8a8_enclosure(a, one, 0, b, one, None, output_format=output)
        missing = python_product(a[:, :-1], b[:-1]).astype(np.float64)
        dropped = np.outer(a[:, -1], b[-1]) != 0
        np.testing.assert_array_equal(found.admits(missing), ~dropped)


@pytest.mark.parametrize(
    ("output", "bias", "expected"),
    [
        ("float16", 65519.0, 65504.0),
        ("float16", 65520.0, np.inf),
        ("float16", -65520.0, -np.inf),
        ("float16", 70000.0, np.inf),
        ("float16", 2049.0, 2048.0),  # ties to even
        ("float16", 2051.0, 2052.0),
        ("bfloat16", 257.0, 256.0),
        ("bfloat16", 259.0, 260.0),
        ("bfloat16", float(np.float32(3.4e38)), np.inf),
        ("float32", float(np.float32(3.4e38)), float(np.float32(3.4e38))),
    ],
)
def test_the_output_is_rounded_once_and_overflows_to_infinity(output, bias, expected):
    zero = np.zeros((1, 1), int)
    found = matmul_w8a8_enclosure(zero, np.float32(1), 0, zero, np.float32(1), np.float32([bias]), output_format=output)
    assert found.lo.item() == found.exact.item() == found.hi.item() == expected


def test_a_sixteen_bit_output_may_be_rounded_from_a_float32_sum_with_the_bias():
    """In float32, 2049 + 1e-6 is the tie 2049; in the reals it lies above."""
    one = np.ones((1, 1), int)
    found = matmul_w8a8_enclosure(
        one, np.float32(1e-3), 0, one, np.float32(1e-3), np.float32([2049]), output_format="float16"
    )
    assert (found.lo.item(), found.exact.item(), found.hi.item()) == (2048, 2050, 2050)


@pytest.mark.parametrize("accumulator", ACCUMULATORS, ids=str)
def test_without_products_the_result_is_the_bias(accumulator):
    case = layer(0, k=0)
    found = enclosed(case, accumulator=accumulator)
    np.testing.assert_array_equal(found.exact, np.broadcast_to(case["bias"], (6, 8)))
    assert_admitted(found, epilogues(np.zeros((6, 8)), case))


@pytest.mark.parametrize("shape", [{"m": 0}, {"n": 0}])
def test_a_zero_size_axis_gives_a_result_with_that_axis(shape):
    sizes = {"m": 6, "n": 8} | shape
    assert enclosed(layer(0, **shape)).shape == (sizes["m"], sizes["n"])


def test_scales_of_a_tensor_are_scales_of_every_row_and_column():
    case = layer(1)
    case["a_scale"][:], case["b_scale"][:], case["a_zero_point"][:] = 0.1, 0.2, 3
    scalars = case | {"a_scale": np.float32(0.1), "b_scale": np.float32(0.2), "a_zero_point": np.int32(3)}
    for one, other in zip(vars(enclosed(case)).values(), vars(enclosed(scalars)).values(), strict=True):
        np.testing.assert_array_equal(one, other)
