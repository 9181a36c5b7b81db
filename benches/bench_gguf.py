"""GGUF blocks at the width of a 7B model: dequantizers are bound by memory, searches of quantizers by arithmetic."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LAYER, _BATCH = "llama-2-7b/attn.q_proj", 256

ROWS = [
    *(
        Row(operation, _LAYER, _BATCH, parameters={"type": name})
        for name in BLOCK_FORMATS
        for operation in ("quantize_gguf", "dequantize_gguf")
    ),
    *(
        Row("dequantize_gguf", _LAYER, _BATCH, parameters={"type": name, "output_format": "bfloat16"})
        for name in ("Q4_0", "Q4_K")
    ),
]


def bench_gguf(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
