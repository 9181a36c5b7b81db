"""Half-quadratic quantization of a layer."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_GROUPS = {"granularity": "group", "group_size": 64}

ROWS = [
    Row("quantize_hqq", "bert-base/attn.output", 256, parameters={"format": format, **_GROUPS})
    for format in ("uint4", "uint3", "uint2")
]


def bench_hqq(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
