"""Linear layers on quantized operands, from one token to a batch, beside the float32 product of the same shape."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LAYER, _WIDE = "bert-base/attn.output", "llama-3-8b/attn.q_proj"
_GROUPS = {"granularity": "group", "group_size": 128, "mapping": "asymmetric", "input_format": "bfloat16"}
_CHANNELS = {"granularity": "channel", "mapping": "symmetric", "input_format": "bfloat16"}

ROWS = [
    *(Row("matmul_w4a16", _LAYER, batch, parameters=_GROUPS) for batch in (1, 16, 256)),
    Row("matmul_w4a16", _WIDE, 1, parameters=_GROUPS),
    *(Row("matmul_w8a16", _LAYER, batch, parameters=_CHANNELS) for batch in (1, 16, 256)),
    Row("matmul_w8a16", _WIDE, 1, parameters=_CHANNELS),
    *(Row("matmul_float8", _LAYER, 64, parameters={"scaling": scaling}) for scaling in ("tensor", "row", "block")),
    *(
        Row("matmul_mx", _LAYER, 64, parameters={"a_format": format, "b_format": format})
        for format in ("float8_e4m3fn", "float6_e2m3fn", "float4_e2m1fn")
    ),
    Row("matmul_nvfp4", _LAYER, 64),
    *(Row("linear_nf4", _LAYER, batch, parameters={"input_format": "bfloat16"}) for batch in (1, 16, 64)),
    *(Row("matvec_gguf", _LAYER, 1, parameters={"type": type}) for type in ("Q4_0", "Q8_0", "Q4_K", "Q6_K")),
    Row("matvec_gguf", _LAYER, 16, parameters={"type": "Q4_K"}),
]


def bench_linear(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
