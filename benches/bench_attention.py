"""Decoding attention over paged caches: heads of a 7B model, caches of 16 and of 8 bits; bound by memory."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.table import Row, measure_row
from lowbit_cts.benches.workloads import cases, shapes
from lowbit_cts.benches.workloads.cases import WorkloadCase

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)


@dataclass(frozen=True)
class ContextRow(Row):
    """A row whose layer takes the slots of a context: the second product of attention, probabilities @ values."""

    context: int = 512

    @property
    def id(self) -> str:
        """Return a name for the row."""
        return f"context{self.context}-{super().id}"

    @property
    def elements(self) -> int:
        """Return about how many numbers it takes, by which the smallest row is found."""
        return self.batch * self.context * shapes.layer(self.layer).n

    def workload(self) -> WorkloadCase:
        """Return the inputs and the truth, built once."""
        return _built(self.operation, self.layer, self.context, self.batch, self.fill, tuple(self.parameters.items()))


@lru_cache(maxsize=1)
def _built(
    operation: str, layer: str, context: int, batch: int, fill: str, parameters: tuple[tuple[str, Any], ...]
) -> WorkloadCase:
    whole = shapes.layer(layer)
    block = shapes.Layer(whole.model, f"{whole.name.split('.')[0]}.context{context}", whole.n, context)
    return cases.build(operation, block, batch, fill=fill, parameters=dict(parameters))


_LAYER = "llama-2-7b/attn.q_proj"
_CACHES = ("float16", "int8", "float8_e4m3fn")

ROWS = [
    *(
        ContextRow("attention_paged", _LAYER, batch, parameters={"cache_format": cache}, context=context)
        for batch, context in ((1, 512), (8, 512), (1, 4096))
        for cache in _CACHES[: 2 if context > 512 else 3]
    ),
    ContextRow("attention_paged", _LAYER, 1, "outliers", {"cache_format": "int8"}, context=512),
    *(
        ContextRow(
            "attention_paged", _LAYER, 1, fill, {"cache_format": "int8", "scale_granularity": "kivi"}, context=512
        )
        for fill in ("normal", "outliers")
    ),
    ContextRow("attention_paged", _LAYER, 1, parameters={"cache_format": "float32", "input_format": "float32"}),
]


def bench_attention(implementation, row, cache, benchmark, recorder):
    measure_row(implementation, row, cache, benchmark, recorder)
