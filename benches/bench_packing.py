"""Packing and unpacking of a layer's weights, the order of its scales, 2:4 compression: bound by memory."""

from typing import Any

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_LAYER, _BATCH = "bert-base/attn.query", 1
_PACKINGS: list[dict[str, Any]] = [
    *({"packing": packing, "bits": 4, "signed": False} for packing in ("low_first", "gptq", "awq", "marlin")),
    {"packing": "compressed_tensors", "bits": 3, "signed": True},
]
_SPARSE = [{"format": "float16", "metadata_order": "cutlass"}, {"format": "int8", "metadata_order": "row"}]

ROWS = [
    *(Row(operation, _LAYER, _BATCH, parameters=p) for operation in ("pack_codes", "unpack_codes") for p in _PACKINGS),
    Row("swizzle_scales", "llama-2-7b/attn.q_proj", _BATCH),
    *(
        Row(operation, _LAYER, _BATCH, parameters=p)
        for operation in ("compress_sparse24", "decompress_sparse24")
        for p in _SPARSE
    ),
]


def bench_packing(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
