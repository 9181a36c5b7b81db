"""Linear layers whose weights have structure: every stored element, factor and outlier."""

from dataclasses import replace

import numpy as np
import pytest

from lowbit_cts.conformance.examination import Examination, Trial
from lowbit_cts.conformance.fills import float_codes
from lowbit_cts.kernels import Case
from lowbit_cts.reference.formats import FORMATS, FloatFormat, float_format

_FACTORS = ("linear_low_rank", "linear_lora")


def _enclosed(trial: Trial, case: Case | None = None) -> None:
    case = case or trial.case
    trial.enclosed(trial.call(case).results[0], case)


def _with(case: Case, **numbers: np.ndarray | None) -> Case:
    """Return the case with other numbers for some arguments."""
    arrays = dict(case.arrays)
    for name, values in numbers.items():
        if values is not None:
            fmt = case.format(name)
            arrays[name] = float_codes(values, fmt.name) if isinstance(fmt, FloatFormat) else values.astype(fmt.carrier)
    return replace(case, arrays=arrays)


@pytest.mark.operation("matmul_sparse24")
def test_every_stored_element_counts(examination: Examination) -> None:
    """Times the identity a sparse matrix is itself: every value at its index, nothing elsewhere."""

    def check(trial: Trial) -> None:
        _enclosed(trial, _with(trial.case, b=np.eye(trial.case.sizes["K"], trial.case.sizes["N"])))

    for k in (64, 192):
        examination.for_all(check, sizes={"M": 64, "K": k, "N": k}, share=0.3)


@pytest.mark.operation("matmul_sparse24")
def test_every_dense_element_counts(examination: Examination) -> None:
    """Sums of thousands of products come out whole, for every pair of indices a group may have."""
    examination.for_all(_enclosed, regime="exact", sizes={"M": 32, "K": 2048, "N": 3}, share=0.3)


@pytest.mark.operation("matmul_sparse24")
def test_integer_sums_beyond_float32(examination: Examination) -> None:
    """Sums of extreme int8 codes are exact beyond 2**24."""

    def check(trial: Trial) -> None:
        case = trial.case
        if FORMATS[case.parameters["format"]].name == "int8":
            largest = {name: np.full_like(case.array(name), 127) for name in ("values", "b")}
            largest["b"][0] = 126
            case = replace(case, arrays={**case.arrays, **largest})
        _enclosed(trial, case)

    examination.for_all(check, regime="exact", sizes={"M": 32, "K": 8192, "N": 2}, share=0.2)


@pytest.mark.operation(*_FACTORS)
def test_every_rank_counts(examination: Examination) -> None:
    """One activation and one rank at a time: each product of the factors, times the scaling, beside the dense layer."""

    def check(trial: Trial) -> None:
        sizes = trial.case.sizes
        rows = np.arange(sizes["K"]) % sizes["R"]
        _enclosed(trial, _with(trial.case, a=np.eye(sizes["M"], sizes["K"])))
        one = np.zeros((sizes["K"], sizes["R"]))
        one[np.arange(sizes["K"]), rows] = np.exp2(-(np.arange(sizes["K"]) % 3.0))
        _enclosed(trial, _with(trial.case, a=np.eye(sizes["M"], sizes["K"]), down=one))

    for rank in (1, 8, 33):
        examination.for_all(check, regime="exact", sizes={"M": 48, "K": 48, "N": 9, "R": rank}, share=0.3)


@pytest.mark.operation(*_FACTORS)
def test_special_values_of_factors(examination: Examination) -> None:
    """NaN and infinities of the activations reach their rows, and no others."""
    examination.for_all(_enclosed, regime="special", sizes={"M": 6, "K": 40, "N": 5, "R": 4}, share=0.5)


@pytest.mark.operation("linear_lora")
def test_no_adapter_and_nothing_else(examination: Examination) -> None:
    """With an adapter of zeros (LoRA's start) the dense layer is left; with dense zeros the adapter is."""

    def check(trial: Trial) -> None:
        case = trial.case
        _enclosed(trial, _with(case, up=np.zeros(case.array("up").shape)))
        _enclosed(trial, _with(case, b=np.zeros(case.array("b").shape)))
        _enclosed(trial, _with(case, scaling=np.zeros(())))

    examination.for_all(check, sizes={"M": 5, "K": 64, "N": 33, "R": 8}, share=0.3)


@pytest.mark.operation("matmul_llm_int8")
def test_the_threshold_belongs_to_the_outliers(examination: Examination) -> None:
    """6.0 itself is an outlier, the number before it is not; one in a row makes the column one of every row."""

    def check(trial: Trial) -> None:
        case = trial.case
        m, k = case.sizes["M"], case.sizes["K"]
        rng = np.random.default_rng(k)
        ulp = float_format(case.parameters["input_format"]).unit_roundoff * 8  # of numbers from 4 to 8
        for top in (6.0, 6.0 - ulp, 6.0 + ulp, -6.0, -6.0 + ulp):
            x = np.clip(rng.standard_normal((m, k)), -3, 3)
            x[m // 2, k // 3] = top
            _enclosed(trial, _with(case, a=x))

    for m in (1, 2, 7):
        examination.for_all(check, sizes={"M": m, "K": 96, "N": 17}, share=0.3)


@pytest.mark.operation("matmul_llm_int8")
def test_rows_of_outliers_and_of_zeros(examination: Examination) -> None:
    """Rows that are all outliers, all zeros, or whose largest magnitude is an outlier, are scaled without them."""

    def check(trial: Trial) -> None:
        case = trial.case
        m, k = case.sizes["M"], case.sizes["K"]
        x = np.clip(np.random.default_rng(k).standard_normal((m, k)), -3, 3)
        x[0] = 0.0
        x[1] = 7.0 + np.arange(k) % 5
        every = x.copy()
        x[1, : k // 2] = 1.0
        for rows in (x, every, np.zeros((m, k)), x[:, ::-1]):
            _enclosed(trial, _with(case, a=rows))

    examination.for_all(check, sizes={"M": 5, "K": 64, "N": 17}, share=0.5)


@pytest.mark.operation("matmul_llm_int8")
def test_ties_of_rows(examination: Examination) -> None:
    """Codes halfway between two integers go to the even one, under a largest magnitude of 127 steps."""

    def check(trial: Trial) -> None:
        case = trial.case
        steps = (np.arange(case.sizes["M"] * case.sizes["K"]) % 253 - 126 + 0.5).reshape(case.sizes["M"], -1)
        steps = np.where(np.abs(steps) > 126, 1.5, steps)
        if case.parameters["input_format"] == "bfloat16":  # 8 bits
            steps = np.where(np.abs(steps) > 63, 2.5, steps)
        steps[:, 0] = 127
        _enclosed(trial, _with(case, a=steps * 2.0**-6))

    examination.for_all(check, sizes={"M": 3, "K": 250, "N": 9}, share=0.5)
