"""Linear layers on quantized operands, from one token to a batch, beside the same product of wide numbers."""

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LAYER, _WIDE = "bert-base/attn.output", "llama-3-8b/attn.q_proj"
_GROUPS = {"granularity": "group", "group_size": 128, "mapping": "asymmetric", "input_format": "bfloat16"}
_CHANNELS = {"granularity": "channel", "mapping": "symmetric", "input_format": "bfloat16"}

_DECODING, _ALL, _ENDS = (1, 16), (1, 16, 64, 256, 1024, 4096), (1, 64, 4096)

ROWS = [
    *(Row("matmul_w4a16", _LAYER, batch, parameters=_GROUPS) for batch in _ALL),
    *(Row("matmul_w4a16", _WIDE, batch, parameters=_GROUPS) for batch in _DECODING),
    *(Row("matmul_w8a16", _LAYER, batch, parameters=_CHANNELS) for batch in _ALL),
    *(Row("matmul_w8a16", _WIDE, batch, parameters=_CHANNELS) for batch in _DECODING),
    *(Row("matmul_float8", _LAYER, batch, parameters={"scaling": "tensor"}) for batch in _ENDS),
    *(Row("matmul_float8", _LAYER, 64, parameters={"scaling": scaling}) for scaling in ("row", "block")),
    *(
        Row("matmul_mx", _LAYER, 64, parameters={"a_format": format, "b_format": format})
        for format in ("float8_e4m3fn", "float6_e2m3fn")
    ),
    *(
        Row("matmul_mx", _LAYER, batch, parameters={"a_format": "float4_e2m1fn", "b_format": "float4_e2m1fn"})
        for batch in _ENDS
    ),
    *(Row("matmul_nvfp4", _LAYER, batch) for batch in _ENDS),
    *(Row("linear_nf4", _LAYER, batch, parameters={"input_format": "bfloat16"}) for batch in _ENDS),
    *(Row("matvec_gguf", _LAYER, 1, parameters={"type": type}) for type in ("Q4_0", "Q8_0", "Q6_K")),
    *(Row("matvec_gguf", _LAYER, batch, parameters={"type": "Q4_K"}) for batch in _ENDS),
    *(Row("matvec_gguf", _WIDE, batch, parameters={"type": "Q4_K"}) for batch in _DECODING),
]


def bench_linear(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
