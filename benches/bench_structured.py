"""Linear layers whose weights have structure, beside the dense float32 product of the same shape."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LAYER = "bert-base/attn.output"

ROWS = [
    *(Row("matmul_sparse24", _LAYER, 64, parameters={"format": format}) for format in ("float16", "bfloat16")),
    *(Row("matmul_sparse24", _LAYER, batch, parameters={"format": "int8"}) for batch in (1, 64, 1024)),
    *(Row("linear_lora", _LAYER, batch, parameters={"input_format": "bfloat16"}) for batch in (1, 64)),
    *(Row("linear_qlora", _LAYER, batch, parameters={"input_format": "bfloat16"}) for batch in (1, 64)),
    Row("merge_lora", _LAYER, 1, parameters={"input_format": "bfloat16"}),
    Row("linear_low_rank", _LAYER, 64, parameters={"input_format": "bfloat16"}),
    *(Row("matmul_llm_int8", _LAYER, batch, fill="outliers") for batch in (1, 16, 64, 256, 1024, 4096)),
]


def bench_structured(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
