"""Every number format: what it costs in bits, and what it keeps of normal, heavy-tailed and real numbers."""

import numpy as np

from lowbit_cts.benches.formats import NUMBER_FORMATS, accuracy, sources
from lowbit_cts.kernels.numpy import backend as numpy_backend
from lowbit_cts.reports import evidence


def bench_formats(recorder, request):
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
