"""MX and NVFP4 at the width of a 7B model: bound by memory."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row
from lowbit_cts.reference.mx import MX_FORMATS

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LAYER, _BATCH = "llama-2-7b/attn.q_proj", 256

ROWS = [
    *(
        Row(operation, _LAYER, _BATCH, parameters={"format": format})
        for format in MX_FORMATS
        for operation in ("quantize_mx", "dequantize_mx")
    ),
    *(
        Row(operation, _LAYER, _BATCH, parameters={"levels": levels})
        for levels in ("one", "two")
        for operation in ("quantize_nvfp4", "dequantize_nvfp4")
    ),
    Row("choose_global_scale_nvfp4", _LAYER, _BATCH),
]


def bench_block_formats(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
