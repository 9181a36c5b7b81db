"""The checks themselves: what they let pass, what they do not, and what they say."""

import numpy as np
import pytest

from lowbit_cts.conformance.checks import Tally, Violation, enclosed, identical, large, observed, source
from lowbit_cts.conformance.worker import Reply
from lowbit_cts.kernels import OPERATIONS, Case, Semantics

CASE = Case(
    OPERATIONS["quantize_affine"],
    {
        "format": "int8", "input_format": "float32", "granularity": "tensor", "axis": None, "group_size": None,
        "mapping": "asymmetric", "narrow_range": False,
    },
    {
        "x": np.array([[0.5, 1.5, np.inf, np.nan]], np.float32),
        "scale": np.array(1, np.float32),
        "zero_point": np.array(3, np.int32),
    },
)  # fmt: skip


def check(codes):
    return enclosed({"codes": np.array([codes], np.int8)}, CASE.enclosures(Semantics()), CASE)


def test_the_right_codes_pass_whatever_becomes_of_nan():
    assert check([3, 5, 127, -128])[:2] == (4, 0.0)
    assert check([3, 5, 127, 99])[:2] == (4, pytest.approx(227 / 255))


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        ([4, 5, 127, 0], "codes[0, 0] is 4, must be 3; 1 of 4"),
        ([3, 5, -128, 0], "codes[0, 2] is -128, must be 127"),
        ([0, 0, 0, 0], "3 of 4 elements"),
    ],
)
def test_a_wrong_code_is_shown_with_what_was_admissible(codes, words):
    with pytest.raises(Violation) as caught:
        check(codes)
    assert words in str(caught.value)


def test_a_code_that_the_format_has_not_is_a_violation():
    formats = {"source": "float32", "target": "float6_e2m3fn"}
    case = Case(OPERATIONS["cast_float"], formats, {"x": np.ones(2, np.float32)})
    codes = {"y": np.array([8, 0x88], np.uint8)}
    with pytest.raises(Violation, match=r"y\[1\] is the code 136, must be one of float6_e2m3fn, which") as caught:
        enclosed(codes, case.enclosures(Semantics()), case)
    assert caught.value.index == (1,)
    with pytest.raises(Violation, match="is the code 136"):
        identical({"y": codes["y"][:1]}, {"y": codes["y"][1:]}, case, "twice")


def test_identical_is_bitwise():
    case = Case(OPERATIONS["dequantize_affine"], {**CASE.parameters, "output_format": "float32"}, {})
    zero, minus = {"y": np.array([0.0], np.float32)}, {"y": np.array([-0.0], np.float32)}
    identical(zero, zero, case, "twice")
    with pytest.raises(Violation, match=r"twice: y\[0\] is 0.0, then -0.0"):
        identical(zero, minus, case, "twice")


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(raised="ValueError: no"), "raised ValueError: no"),
        (Reply(malformed=["result y has shape (1,), must be (2,)"]), "must be (2,)"),
        (Reply(changed=["x"]), "wrote to its input x"),
        (Reply(overrun=["scale"]), "guard band around scale"),
    ],
)
def test_what_no_call_may_do(reply, words):
    with pytest.raises(Violation) as caught:
        observed(reply, CASE)
    assert words in str(caught.value)


def test_invalid_inputs_excuse_an_exception_but_no_stray_write():
    observed(Reply(raised="ValueError"), CASE, lenient=True)
    with pytest.raises(Violation):
        observed(Reply(raised="ValueError", overrun=["x"]), CASE, lenient=True)


def test_the_source_of_a_case_runs_and_gives_the_case():
    names: dict = {"np": np}
    exec(source(CASE), names)
    for name, array in CASE.arrays.items():
        assert np.array_equal(names[name], array, equal_nan=True)
        assert names[name].dtype == array.dtype


def test_results_that_are_all_alike_prove_nothing():
    zeros = Case(CASE.operation, CASE.parameters, {**CASE.arrays, "x": np.zeros((2, 8), np.float32)})
    found = enclosed({"codes": np.full((2, 8), 3, np.int8)}, zeros.enclosures(Semantics()), zeros)
    tally = Tally()
    tally.count(zeros, *found)
    assert (tally.cases, tally.informative) == (1, 0)
    assert check([3, 5, 127, 0])[2]


def test_large_arrays_are_loaded_from_a_file(tmp_path):
    big = Case(CASE.operation, CASE.parameters, {**CASE.arrays, "x": np.arange(400, dtype=np.float32).reshape(20, 20)})
    path = str(tmp_path / "case.npz")
    np.savez_compressed(path, **large(big))
    names: dict = {"np": np}
    exec(source(big, path), names)
    assert np.array_equal(names["x"], big.arrays["x"])
    assert list(large(big)) == ["x"]
