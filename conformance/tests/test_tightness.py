"""Faults planted in the inputs of products: in the exact regime none escapes, and what escapes is counted right."""

import numpy as np
import pytest

from lowbit_cts.conformance.tightness import FAULTS, Escapes, _count, escapes, is_product
from lowbit_cts.kernels import Case, Semantics
from lowbit_cts.kernels.numpy import backend
from lowbit_cts.kernels.operation import OPERATIONS

PRODUCTS = [i for i in backend.implementations if is_product(i)]
#: Results of 16 bits alone, and codes of activations that a small change leaves as they are.
ROUNDED = ("matmul_llm_int8",)


def test_every_product_is_one():
    named = {name for name in OPERATIONS if name.startswith(("matmul", "linear", "matvec", "qlinear"))}
    assert {i.operation.name for i in PRODUCTS} == named


@pytest.mark.parametrize("implementation", PRODUCTS, ids=lambda i: i.id)
def test_in_the_exact_regime_no_fault_escapes(implementation):
    found = escapes(implementation, "exact", 128, cases=3)
    assert found["product"].planted > 0
    if implementation.operation.name not in ROUNDED:
        assert {kind: e.escaped for kind, e in found.items()} == dict.fromkeys(FAULTS, 0)


def test_a_longer_sum_lets_more_escape():
    layer = next(i for i in PRODUCTS if i.operation.name == "matmul_w4a16")
    short, long = (escapes(layer, "full", k, cases=3)["bit"] for k in (128, 4096))
    assert short.escaped / short.planted < long.escaped / long.planted
    assert 0 < long.largest < 1


def layer_of(weight):
    """Return a layer of two products, one of them small."""
    operation = OPERATIONS["matmul_w4a16"]
    chosen = {
        "format": "uint4", "granularity": "channel", "group_size": None, "mapping": "symmetric", "act_order": None,
        "has_bias": False, "input_format": "float32",
    }  # fmt: skip
    arrays = {
        "a": np.array([[1.0, 2.0**-20]], np.float32), "codes": np.array([[15], [weight]], np.uint8),
        "scale": np.array([0.1], np.float32), "zero_point": None, "group_index": None, "bias": None,
    }  # fmt: skip
    return Case(operation, chosen, arrays)


def test_a_fault_below_the_bound_escapes_and_none_is_counted_where_nothing_changes():
    found = Escapes()
    _count(found, layer_of(15), layer_of(15), Semantics())
    assert (found.planted, found.escaped) == (0, 0)
    _count(found, layer_of(15), layer_of(14), Semantics())
    assert (found.planted, found.escaped) == (1, 1)
    wrong = layer_of(15)
    wrong.arrays["codes"][0] = 14
    _count(found, layer_of(15), wrong, Semantics())
    assert (found.planted, found.escaped) == (2, 1)
