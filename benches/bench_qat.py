"""The gradients of fake quantization and of its scales, at the width of a 7B model: bound by memory."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LAYER, _BATCH = "llama-2-7b/attn.q_proj", 256
_TENSOR = {"format": "int8", "granularity": "tensor"}
_ROWS = {"format": "int8", "granularity": "axis", "axis": 0}
_GROUPS = {"format": "int4", "granularity": "group", "group_size": 128}

ROWS = [
    *(Row("fake_quantize_gradient", _LAYER, _BATCH, parameters=parameters) for parameters in (_TENSOR, _ROWS, _GROUPS)),
    *(Row("lsq_gradient", _LAYER, _BATCH, parameters=parameters) for parameters in (_TENSOR, _ROWS, _GROUPS)),
    Row("lsq_initial_scale", _LAYER, _BATCH, parameters=_TENSOR),
]


def bench_qat(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
