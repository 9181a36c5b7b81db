"""Linear layers on quantized operands: every weight, group, scale and accumulator, one at a time."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lowbit_cts.conformance.checks import Violation
from lowbit_cts.conformance.examination import Examination, Refused, Trial
from lowbit_cts.kernels import Case, Implementation
from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import FloatFormat, float_format

_WEIGHT_ONLY = ("matmul_w4a16", "matmul_w8a16")
_LINEAR = (*_WEIGHT_ONLY, "matmul_float8", "matmul_mx", "matmul_nvfp4", "linear_nf4", "matvec_gguf")
#: A whole number of blocks of every format.
_K = 256


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])


def with_activations(case: Case, numbers: np.ndarray) -> Case:
    """Return the case with other numbers, (M, K), as its first operand, under scales of 1."""
    fmt = case.format("a")
    codes = encode(numbers, fmt) if isinstance(fmt, FloatFormat) else 64 * numbers  # int8 of MX in 64ths
    arrays = {**case.arrays, "a": codes.astype(fmt.carrier)}
    for name in ("a_scale", "a_global_scale"):
        scale = case.arrays.get(name)
        if scale is not None:
            arrays[name] = np.asarray(encode(np.ones(scale.shape), float_format(case.format(name).name)))
    return replace(case, arrays=arrays)


@pytest.mark.operation(*_LINEAR)
def test_every_weight_counts(examination: Examination) -> None:
    """One activation of 1 in each row reads one row of weights: every code under its own scale and zero point."""

    def check(trial: Trial) -> None:
        m, k = trial.case.sizes["M"], trial.case.sizes["K"]
        case = with_activations(trial.case, np.eye(m, k))
        trial.enclosed(trial.call(case).results[0], case)

    for regime in ("exact", "full"):
        examination.for_all(check, regime=regime, sizes={"M": _K, "K": _K, "N": 17}, share=0.2)
    if examination.implementation.operation.name in _WEIGHT_ONLY:
        examination.for_all(check, sizes={"M": 101, "K": 101, "N": 33}, share=0.2)


@pytest.mark.operation(*_LINEAR)
def test_every_activation_counts(examination: Examination) -> None:
    """All activations count: sums of integers, up to thousands of terms, come out whole."""
    for k in (_K, 4096):
        examination.for_all(_enclosed, regime="exact", sizes={"M": 2, "K": k, "N": 3}, share=0.3)


@pytest.mark.operation(*_LINEAR)
def test_long_sums(examination: Examination) -> None:
    """Thousands of equal terms do not stagnate, and one small term beside large ones that cancel is kept as declared.

    In float16 a sum of ones stops at 2048, in bfloat16 at 256.
    """

    def check(trial: Trial) -> None:
        m, k = trial.case.sizes["M"], trial.case.sizes["K"]
        ramp = np.where(np.arange(k) < k // 2, 1.0, -1.0)
        ramp[k // 3] = 0.5
        for numbers in (np.ones((m, k)), np.tile(ramp, (m, 1)), np.tile(ramp[::-1], (m, 1))):
            case = with_activations(trial.case, numbers)
            trial.enclosed(trial.call(case).results[0], case)

    examination.for_all(check, regime="exact", sizes={"M": 1, "K": 4096, "N": 2}, share=0.3)


@pytest.mark.operation(*_LINEAR)
def test_special_values(examination: Examination) -> None:
    """NaN and infinities reach the results of their row, as IEEE 754 has it, and no others."""
    examination.for_all(_enclosed, regime="special")


@pytest.mark.operation(*_LINEAR)
def test_large_results(examination: Examination) -> None:
    """Rows of powers of two up to the largest: results beyond the output's range are infinite, the others finite."""

    def check(trial: Trial) -> None:
        m, k = trial.case.sizes["M"], trial.case.sizes["K"]
        fmt = trial.case.format("a")
        largest = min(fmt.maximum_exponent, 14) if isinstance(fmt, FloatFormat) else 0
        powers = np.exp2(np.linspace(-2, largest, m).astype(int))
        larger = with_activations(trial.case, np.tile(powers[:, None], (1, k)))
        trial.enclosed(trial.call(larger).results[0], larger)

    examination.for_all(check, sizes={"M": 17, "K": _K, "N": 9}, share=0.3)


def _ordered(implementation: Implementation) -> bool:
    return True in implementation.supports["act_order"] and "group" in implementation.supports["granularity"]


@pytest.mark.operation(*_WEIGHT_ONLY)
@pytest.mark.applies(to=_ordered)
def test_any_group_index(examination: Examination) -> None:
    """Rows belong to the groups that group_index names, whatever their order and number."""
    fixed = {"granularity": "group", "act_order": True}

    def check(trial: Trial) -> None:
        k, groups = trial.case.sizes["K"], trial.case.sizes["P"]
        rng = np.random.default_rng(k)
        for index in (
            np.arange(k) % groups,
            np.arange(k)[::-1] * groups // k,
            np.full(k, groups - 1),
            rng.integers(0, groups, k),
        ):
            case = trial.replaced("group_index", index.astype(np.int32))
            case = with_activations(case, np.eye(case.sizes["M"], k))
            trial.enclosed(trial.call(case).results[0], case)

    examination.for_all(check, regime="exact", sizes={"M": 160, "K": 160, "N": 9}, fixed=fixed, variants=(), share=0.5)


@pytest.mark.operation(*_WEIGHT_ONLY)
@pytest.mark.applies(to=_ordered)
def test_a_group_index_outside(examination: Examination) -> None:
    """An index of no group must raise, and not read scales of other memory."""
    fixed = {"granularity": "group", "act_order": True}

    def check(trial: Trial) -> None:
        groups, index = trial.case.sizes["P"], trial.case.array("group_index")
        for wrong in (groups, -1, 2**30):
            broken = index.copy()
            broken[-1] = wrong
            case = trial.replaced("group_index", broken)
            reply = trial.call(case, lenient=True, expect_results=False)
            trial.examination.tally.count(case, 1, 0.0, True)
            if not reply.raised:
                raise Violation(f"accepted a group_index of {wrong} with {groups} groups: must raise", case)

    examination.for_all(check, sizes={"M": 2, "K": 256, "N": 5}, fixed=fixed, variants=(), share=0.3)


@pytest.mark.operation(*_LINEAR)
def test_a_scale_too_few(examination: Examination) -> None:
    """Without the scales of the last group or block a call must raise, and not read past the end of the others."""
    names = ("scale", "b_scale", "absmax")

    def check(trial: Trial) -> None:
        operation, chosen = trial.case.operation, trial.case.parameters
        slots = {argument.name: argument for argument in operation.arguments if argument.name in names}
        trial.examination.tally.count(trial.case, 0, 0.0, True)
        for name, slot in slots.items():
            array, axes = trial.case.array(name), slot.shape(chosen)
            for axis, symbol in enumerate(axes):
                if symbol not in ("P", "Q", "G"):
                    continue
                short = trial.replaced(name, np.delete(array, -1, axis))
                reply = trial.call(short, lenient=True, expect_results=False)
                trial.examination.tally.count(short, 1, 0.0, True)
                if not reply.raised:
                    raise Violation(f"accepted {name} of shape {short.array(name).shape}: must raise", short)

    blocked: dict[str, Any] = {"granularity": "group", "scaling": "block"}
    supports = examination.implementation.supports
    fixed = {name: value for name, value in blocked.items() if value in supports.get(name, ())}
    examination.for_all(check, sizes={"M": 3, "K": 512, "N": 300}, variants=(), share=0.3, fixed=fixed)


@pytest.mark.operation(*_WEIGHT_ONLY, "linear_nf4")
def test_subnormal_activations(examination: Examination) -> None:
    """Subnormal activations of float16 count: one in each row, and the results that they give, are not flushed."""

    def check(trial: Trial) -> None:
        m, k = trial.case.sizes["M"], trial.case.sizes["K"]
        case = with_activations(trial.case, np.eye(m, k) * np.exp2(-24.0 + np.arange(m) % 12)[:, None])
        trial.enclosed(trial.call(case).results[0], case)

    if "float16" not in examination.implementation.supports["input_format"]:
        raise Refused("float16 is not declared as supported, and subnormals of wider ranges may be flushed")
    fixed = {"input_format": "float16", "has_bias": examination.implementation.supports["has_bias"][0]}
    examination.for_all(check, regime="exact", sizes={"M": _K, "K": _K, "N": 9}, fixed=fixed, variants=(), share=0.3)


def _in_blocks(implementation: Implementation) -> bool:
    return "block" in implementation.supports["scaling"]


@pytest.mark.operation("matmul_float8")
@pytest.mark.applies(to=_in_blocks)
def test_many_blocks(examination: Examination) -> None:
    """Several blocks of 128 along both axes, whole and broken ones, have each their own scale."""
    for k, n in ((256, 256), (300, 400), (129, 257)):
        examination.for_all(
            _enclosed, sizes={"M": 5, "K": k, "N": n}, fixed={"scaling": "block"}, variants=(), share=0.2
        )
