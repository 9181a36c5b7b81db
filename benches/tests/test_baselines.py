"""The baselines: products of the right shape and format, of operations that are products."""

from importlib import util

import numpy as np
import pytest

from lowbit_cts.benches import baselines as module
from lowbit_cts.benches.baselines import baselines
from lowbit_cts.benches.table import Row

torch = pytest.importorskip("torch")


def case(operation, layer="lenet-5/c3", batch=2, **parameters):
    return Row(operation, layer, batch, parameters=parameters).workload().case


CASES = [
    case("matmul_w4a16", "bert-base/attn.output"),
    case("matmul_w8a8", batch=3),
    case("conv2d_int8", pads=(1, 1, 1, 1), strides=(2, 2)),
    case("conv2d_int8", pads=(1, 0, 2, 1), dilations=(2, 2), groups="depthwise"),
    case("attention_paged", "bert-base/attn.output"),
    case("attention_paged", "bert-base/attn.output", grouped=True, mask="none"),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{case.operation.name}" for i, case in enumerate(CASES)])
def test_a_baseline_gives_the_shape_of_the_result_in_its_format(case):
    (result,) = case.operation.results
    for name, calls in baselines(case, "cpu", 2).items():
        first, second = (call() for call in calls)
        assert first.dtype == getattr(torch, name)
        assert first.numel() == np.prod(case.result_shape(result))
        assert first.data_ptr() != second.data_ptr()
        assert not torch.equal(first, second)  # each has numbers of its own
        assert torch.isfinite(first).all()
    assert list(baselines(case, "cpu")) == ["float32", "bfloat16"]


def test_a_convolution_pads_as_the_case_does():
    convolution = case("conv2d_int8", pads=(1, 0, 2, 1), strides=(2, 1))
    (call,) = baselines(convolution, "cpu")["float32"]
    assert tuple(call().shape) == convolution.result_shape(convolution.operation.results[0])


@pytest.mark.parametrize(
    "other",
    [
        case("quantize_affine"),
        case("attention_paged", "bert-base/attn.output", capped=True),
        case("attention_paged", "bert-base/attn.output", mask="window"),
    ],
)
def test_what_is_no_product_or_another_attention_has_none(other):
    assert baselines(other, "cpu") == {}


def test_without_torch_numpy_multiplies_in_float32(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "torch" else util.find_spec(name))
    (call,) = baselines(CASES[0], "cpu")["float32"]
    assert call().shape == (CASES[0].sizes["M"], CASES[0].sizes["N"])
    assert list(baselines(CASES[0], "cpu")) == ["float32"]
    assert baselines(CASES[2], "cpu") == {}
