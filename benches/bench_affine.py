"""Quantizers beside those of the number formats, at the width of a 7B model: bound by memory."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LAYER, _BATCH = "llama-2-7b/attn.q_proj", 256
_TENSOR = {"format": "int8", "granularity": "tensor"}
_ROWS = {"format": "int8", "granularity": "axis", "axis": 0}
_GROUPS = {"format": "int4", "granularity": "group", "group_size": 128}

ROWS = [
    Row("quantize_affine", _LAYER, _BATCH, parameters=_TENSOR),
    *(Row("quantize_affine", _LAYER, _BATCH, "outliers", parameters) for parameters in (_TENSOR, _ROWS)),
    Row("dequantize_affine", _LAYER, _BATCH, parameters=_TENSOR),
    Row("fake_quantize_affine", _LAYER, _BATCH, parameters=_TENSOR),
    *(Row("choose_qparams_affine", _LAYER, _BATCH, parameters=parameters) for parameters in (_TENSOR, _GROUPS)),
    Row("choose_global_scale_nvfp4", _LAYER, _BATCH),
    *(
        Row("dequantize_gguf", _LAYER, _BATCH, parameters={"type": name, "output_format": "bfloat16"})
        for name in ("Q4_0", "Q4_K")
    ),
]


def bench_affine(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
