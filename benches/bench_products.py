"""Products of 8-bit matrices from one token to a full batch, beside the float32 product of the same shape."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LINEAR = {"activation_granularity": "token", "weight_granularity": "channel", "mapping": "symmetric"}

_ALL = (1, 16, 64, 256, 1024, 4096)

ROWS = [
    *(Row("matmul_int8", "bert-base/attn.output", batch) for batch in _ALL),
    Row("matmul_w8a8", "lenet-5/c5", 64, parameters=_LINEAR),
    *(Row("matmul_w8a8", "bert-base/attn.output", batch, parameters=_LINEAR) for batch in _ALL),
    Row("matmul_w8a8", "bert-base/attn.output", 64, fill="outliers", parameters=_LINEAR),
    *(Row("matmul_w8a8", "llama-3-8b/attn.q_proj", batch, parameters=_LINEAR) for batch in (1, 16)),
]


def bench_products(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
