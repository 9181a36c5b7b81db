"""ONNX's integer products, with zero points, and its dynamic quantizer at the width of BERT base."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LAYER = "bert-base/attn.output"
_UINT8 = {"a_format": "uint8", "weight_mapping": "symmetric"}

ROWS = [
    *(Row("matmul_integer", _LAYER, batch, parameters=_UINT8) for batch in (1, 64)),
    *(Row("qlinear_matmul", _LAYER, batch, parameters={**_UINT8, "y_format": "uint8"}) for batch in (1, 64)),
    *(Row("dynamic_quantize_linear", _LAYER, 256, fill=fill) for fill in ("normal", "outliers")),
]


def bench_onnx_operators(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
