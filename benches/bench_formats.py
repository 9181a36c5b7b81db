"""Every number format: what it costs in bits, what it keeps of numbers, how fast backends encode and decode."""

import numpy as np
import pytest

from lowbit_cts.benches.engine.replay import replayed_seconds
from lowbit_cts.benches.formats import NUMBER_FORMATS, accuracy, sources
from lowbit_cts.benches.table import Row, measure_row
from lowbit_cts.kernels.numpy import backend as numpy_backend
from lowbit_cts.reports import evidence

_LAYER, _BATCH = "llama-2-7b/attn.q_proj", 256
_LINKS = [link for number_format in NUMBER_FORMATS for link in (number_format.encode, number_format.decode) if link]

ROWS = [
    Row(link["operation"], _LAYER, _BATCH, parameters=link["parameters"])
    for index, link in enumerate(_LINKS)
    if link not in _LINKS[:index]
]


@pytest.mark.benchmark(timer=replayed_seconds)
def bench_formats(implementation, row, cache, benchmark, recorder):
    """Time of an encoder or a decoder at the width of a 7B model, on hot and cold caches."""
    measure_row(implementation, row, cache, benchmark, recorder)


def bench_accuracy_of_formats(recorder, request):
    """SQNR of every format on every source, by the reference; recorded unless the run is a smoke run."""
    smoke = request.config.getoption("--benchmark-disable")
    numbers = {name: x[:64] for name, x in sources().items()} if smoke else sources()
    for number_format in NUMBER_FORMATS:
        sqnr = accuracy(number_format, numbers)
        assert all(np.isfinite(value) for value in sqnr.values()), (number_format.name, sqnr)
        if not smoke:
            recorder.record(
                evidence.FormatAccuracy, numpy_backend, name=number_format.name, bits_per_weight=number_format.bits,
                sqnr_db=sqnr, encode=dict(number_format.encode), decode=dict(number_format.decode),
            )  # fmt: skip
