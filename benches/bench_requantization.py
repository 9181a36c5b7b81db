"""Requantization of a layer's sums: bound by memory, or by 64-bit integer arithmetic."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

ROWS = [Row("requantize", "bert-base/attn.query", 256, parameters={"format": "int8", "granularity": "channel"})]


def bench_requantization(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
