"""Double quantization, codebooks of one's own, ternary weights at the width of a 7B model: bound by memory."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LAYER, _BATCH = "llama-2-7b/attn.q_proj", 256
#: Enough blocks that their absmax is worth quantizing.
_MANY = 1024

ROWS = [
    *(Row(operation, _LAYER, _MANY) for operation in ("double_quantize", "double_dequantize")),
    *(Row(operation, _LAYER, _BATCH) for operation in ("assign_codebook", "update_codebook")),
    Row("ternarize", _LAYER, _BATCH, parameters={"rule": "bitnet", "granularity": "tensor"}),
]


def bench_codebooks(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
