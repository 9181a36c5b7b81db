"""Calibration observers on the activations of a 7B model: histograms by memory, searches in 2048 bins by arithmetic."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LAYER, _BATCH = "llama-2-7b/attn.q_proj", 64
#: A tensor with outliers, which a range may leave out.
_FILL = "outliers"

ROWS = [
    Row("histogram", _LAYER, _BATCH, _FILL, parameters={"bins": 2048}),
    Row("moving_average_range", _LAYER, _BATCH, _FILL),
    *(Row("percentile_range", _LAYER, _BATCH, _FILL, parameters={"histogram": of}) for of in ("values", "magnitudes")),
    *(
        Row(
            "widen_histogram",
            _LAYER,
            _BATCH,
            _FILL,
            parameters={"histogram": "values", "growth": growth, "capacity": room},
        )
        for growth, room in (("same_width", 2500), ("same_bins", None))
    ),
    Row("histogram_percentile_range", _LAYER, _BATCH, _FILL, parameters={"histogram": "magnitudes"}),
    Row("mse_range", _LAYER, _BATCH, _FILL, parameters={"histogram": "magnitudes", "start": 128}),
    Row("mse_range", _LAYER, _BATCH, _FILL, parameters={"histogram": "values", "start": None}),
    *(
        Row("entropy_range", _LAYER, _BATCH, _FILL, parameters={"histogram": of, "levels": 128})
        for of in ("magnitudes", "values")
    ),
]


def bench_observers(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
