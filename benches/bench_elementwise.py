"""Elementwise kernels on long vectors: quantized addition, casts of other than float32 numbers."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LAYER, _BATCH = "bert-base/ffn.intermediate", 256
_CASTS = [{"source": "bfloat16", "target": "float8_e4m3fn"}, {"source": "float8_e4m3fn", "target": "bfloat16"}]

ROWS = [
    Row("add_int8", _LAYER, _BATCH),
    *(Row("cast_float", _LAYER, _BATCH, parameters=parameters) for parameters in _CASTS),
]


def bench_elementwise(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
