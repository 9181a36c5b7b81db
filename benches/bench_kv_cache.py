"""Writing a prompt's keys and values to a paged cache of 16 and of 8 bits: heads of a 7B model; bound by memory."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LAYER = "llama-2-7b/attn.q_proj"

ROWS = [
    Row("write_kv_cache", _LAYER, 512),
    *(
        Row("write_kv_cache", _LAYER, batch, parameters={"cache_format": cache, "scale_granularity": granularity})
        for batch, cache, granularity in (
            (512, "int8", "tensor"), (512, "int8", "kivi"), (512, "float8_e4m3fn", "tensor"), (32, "int8", "tensor"),
        )
    ),
    Row("write_kv_cache", _LAYER, 512, "outliers", {"cache_format": "int8", "scale_granularity": "kivi"}),
]  # fmt: skip


def bench_kv_cache(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
