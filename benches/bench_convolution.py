"""Quantized convolutions of ResNet-50 and LeNet-5 at a batch of one and more: bound by arithmetic."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LAYER = {"x_format": "uint8", "y_format": "uint8", "weight_granularity": "channel", "weight_mapping": "symmetric"}
_SAME = {**_LAYER, "pads": (1, 1, 1, 1), "has_bias": False}

ROWS = [
    Row("conv2d_int8", "lenet-5/c3", 16, parameters={**_LAYER, "has_bias": False}),
    Row("conv2d_int8", "resnet-50/layer1.conv2", 1, parameters=_SAME),
    Row("conv2d_int8", "resnet-50/layer4.conv2", 1, parameters=_SAME),
]


def bench_convolution(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
