"""LLM.int8(): against bitsandbytes' own definition, exact fractions, and the numbers at the threshold."""

from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.choices import Division, WeightPrecision
from lowbit_cts.reference.llm_int8 import matmul_llm_int8_enclosure, outlier_columns, quantized_rows

RNG = np.random.default_rng(6)


def layer(m=5, k=40, n=7, outliers=True):
    a = np.clip(RNG.standard_normal((m, k)), -4, 4)
    if outliers:
        a[m // 2, k // 3], a[0, k - 1] = 8.0, -6.0
    a = a.astype(np.float16).astype(np.float64)
    return a, RNG.integers(-127, 128, (n, k)), np.exp(RNG.standard_normal(n)).astype(np.float32).astype(np.float64)


def test_six_itself_is_an_outlier_and_zero_means_none():
    a = np.array([[6.0, 5.996, -6.0, 0.0], [0.0, 0.0, 1.0, 2.0]])
    np.testing.assert_array_equal(outlier_columns(a, 6.0), [True, False, True, False])
    assert not outlier_columns(a, 0.0).any()


def test_outliers_do_not_count_in_the_scale_of_their_row():
    a = np.array([[6.0, 2.0, 0.0], [1.0, -4.0, 3.0]], np.float32)
    codes, largest = quantized_rows(a, 6.0, Division.RECIPROCAL)
    np.testing.assert_array_equal(largest, [2.0, 4.0])
    np.testing.assert_array_equal(codes, [[0, 127, 0], [0, -127, 95]])


def real(a, codes, absmax, threshold, division):
    """Return the real result of the quantized layer, by fractions."""
    rows, largest = quantized_rows(a.astype(np.float32), threshold, division)
    columns = outlier_columns(a, threshold)
    found = np.zeros((len(a), len(codes)), object)
    for i, j in np.ndindex(found.shape):
        inside = sum(int(r) * int(c) for r, c in zip(rows[i], codes[j], strict=True))
        scale = Fraction(float(largest[i])) * Fraction(float(absmax[j]))
        beside = sum(
            Fraction(float(a[i, k])) * int(codes[j, k]) * Fraction(float(absmax[j])) / 127
            for k in np.flatnonzero(columns)
        )
        found[i, j] = inside * scale / 127**2 + beside
    return found


@pytest.mark.parametrize("threshold", [6.0, 0.0])
@pytest.mark.parametrize("division", [Division.RECIPROCAL, Division.DIVIDE])
def test_the_real_result_is_the_middle(threshold, division):
    a, codes, absmax = layer()
    found = matmul_llm_int8_enclosure(a, codes, absmax, None, threshold=threshold, format="float16", division=division)
    for index, value in np.ndenumerate(real(a, codes, absmax, threshold, division)):
        nearest = np.float64(np.float16(float(value)))
        assert found.exact[index] == nearest
        assert found.lo[index] <= nearest <= found.hi[index]


@pytest.mark.parametrize("precision", [WeightPrecision.FLOAT32, WeightPrecision.ACTIVATIONS])
def test_simulated_computations_are_inside_and_faults_are_not(precision):
    for _ in range(20):
        a, codes, absmax = layer()
        bias = RNG.standard_normal(7).astype(np.float32)
        found = matmul_llm_int8_enclosure(
            a, codes, absmax, bias, threshold=6.0, format="float16", weight_precision=precision
        )
        x = a.astype(np.float32)
        rows, largest = quantized_rows(x, 6.0, Division.RECIPROCAL)
        columns = outlier_columns(a, 6.0)
        y = (rows @ codes.T).astype(np.float32) * (largest.astype(np.float32)[:, None] * absmax.astype(np.float32))
        y = y / np.float32(127**2)
        weights = codes[:, columns] * (absmax.astype(np.float32) / np.float32(127))[:, None]
        if precision is WeightPrecision.ACTIVATIONS:
            beside = (x[:, columns] @ weights.astype(np.float16).astype(np.float32).T).astype(np.float16)
            y = (y.astype(np.float16) + beside).astype(np.float32)
        else:
            y = y + x[:, columns] @ weights.T.astype(np.float32)
        assert found.admits((y + bias).astype(np.float16).astype(np.float64)).all()
        assert not found.admits((y * 1.01 + bias).astype(np.float16).astype(np.float64)).all()
        without = (rows @ codes.T) * largest[:, None] * absmax / 127**2 + bias
        assert not found.admits(without.astype(np.float16).astype(np.float64)).all()


def test_codes_are_those_of_bitsandbytes():
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    a, _, _ = layer(m=33, k=100)
    found, largest, columns = functional.int8_vectorwise_quant(torch.tensor(a, dtype=torch.float16), threshold=6.0)
    codes, expected = quantized_rows(a.astype(np.float32), 6.0, Division.RECIPROCAL)
    np.testing.assert_array_equal(largest.numpy(), expected)
    np.testing.assert_array_equal(columns.numpy(), np.flatnonzero(outlier_columns(a, 6.0)))
    np.testing.assert_array_equal(found.numpy(), codes)


def test_an_approximate_quotient_leaves_ties_open_and_nothing_else():
    """Of 3 steps and a half either code is admissible; of 3 steps and a quarter one."""
    codes, absmax = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]]), np.full(3, 127.0)
    a = np.array([[127.0, 3.5, 3.25]])
    found = matmul_llm_int8_enclosure(a, codes, absmax, None, threshold=0.0, format="bfloat16", division="approximate")
    assert found.admits(np.array([[127.0, 3.0, 3.0]])).all()
    assert found.admits(np.array([[127.0, 4.0, 3.0]])).all()
    assert not found.admits(np.array([[127.0, 3.0, 4.0]])).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": np.ones((7, 39), int)}, "codes: has 39 columns, must have as many as a (40)"),
        ({"absmax": np.ones(6)}, "absmax: has shape (6,), must be (7,)"),
        ({"absmax": np.zeros(7)}, "absmax: must be positive and finite"),
        ({"a": np.full((5, 40), np.inf)}, "a: must be finite"),
    ],
)
def test_bad_input_is_refused(change, message):
    a, codes, absmax = layer()
    given = {"a": a, "codes": codes, "absmax": absmax, "division": "divide", **change}
    with pytest.raises(ValueError) as caught:
        matmul_llm_int8_enclosure(
            given["a"], given["codes"], given["absmax"], None, threshold=6.0, format="float16",
            division=given["division"],
        )  # fmt: skip
    assert message in str(caught.value)
