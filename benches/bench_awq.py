"""SmoothQuant and AWQ of a layer: a pass over the weights, and searches by arithmetic."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LAYER, _LARGE_LAYER = "bert-base/attn.output", "llama-2-7b/attn.q_proj"
#: Channels of activations with outliers, which both algorithms are made for.
_FILL = "outliers"
_GROUPS = {"format": "uint4", "granularity": "group", "group_size": 128}

ROWS = [
    Row("smooth_weights", _LARGE_LAYER, 64, _FILL, parameters={"alpha": 0.5}),
    *(
        Row("awq_scales", _LAYER, 512, _FILL, parameters={**_GROUPS, "candidates": candidates})
        for candidates in ("activations", "both")
    ),
    Row("awq_clipping", _LAYER, 512, _FILL, parameters=_GROUPS),
]


def bench_awq(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
