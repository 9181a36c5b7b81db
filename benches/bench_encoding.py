"""The reference's own encoder beside ml_dtypes: exhaustive runs are only as fast as the truth they are held to."""

from functools import partial

import numpy as np
import pytest

from lowbit_cts.benches.engine.clocks import clock_for
from lowbit_cts.benches.engine.measure import measure_interleaved
from lowbit_cts.benches.engine.replay import replay, replayed_seconds
from lowbit_cts.kernels import OPERATIONS
from lowbit_cts.kernels.numpy import backend as numpy_backend
from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reports import evidence

pytestmark = pytest.mark.benchmark(timer=replayed_seconds)

_ELEMENTS = 1 << 22
#: Elements a second that one core must encode.
LEAST = 50e6


def _cast(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(all="ignore"):
        return x.astype(dtype)


@pytest.mark.parametrize(
    "target",
    ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float6_e2m3fn", "float4_e2m1fn", "float8_e8m0fnu"],
)
def bench_encoder(target, benchmark, recorder, request):
    """Float32 to a small float: `reference.encoding.encode` and the cast of ml_dtypes, measured in turns."""
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="the comparison needs the extra 'ml_dtypes'")
    rng = np.random.default_rng(0)
    x = rng.standard_normal(_ELEMENTS, np.float32) * 2.0 ** rng.integers(-8, 8, _ELEMENTS).astype(np.float32)
    fmt = float_format(target)
    dtype = np.dtype(getattr(ml_dtypes, target, target))
    encode(x, fmt)  # fills its table
    arms = measure_interleaved(
        {"ml_dtypes": [partial(_cast, x, dtype)], "encode": [partial(encode, x, fmt)]},
        clock=clock_for("cpu"), cache="hot", warmup_s=0.1, max_seconds=0.0 if not benchmark.enabled else 0.6,
        samples_per_round=1,
    )  # fmt: skip
    found, baseline = arms["encode"], arms["ml_dtypes"]
    agree = found.last_output.view(f"u{fmt.carrier.itemsize}") == baseline.last_output.view(f"u{fmt.carrier.itemsize}")
    assert np.all(agree[x > 0])  # E8M0 of negative numbers is NaN in both, in every other format they agree, too
    rate = _ELEMENTS / found.median_s
    replay(benchmark, found, {"elements_per_second": rate, "speedup": baseline.median_s / found.median_s})
    if benchmark.enabled:
        _record(recorder, target, found, baseline)
        assert rate >= LEAST, f"{rate / 1e6:.0f} million elements a second; {LEAST / 1e6:.0f} are asked for"


def _record(recorder, target, found, baseline):
    recorder.record(
        evidence.Measurement, numpy_backend, backend="reference", backend_version=np.__version__,
        operation=OPERATIONS["cast_float"].name, implementation="encode",
        parameters={"source": "float32", "target": target}, workload="4 Mi numbers", shape={"N": _ELEMENTS},
        fill="log-uniform normal", cache=found.cache, clock=found.clock, median_s=found.median_s,
        ci_low_s=found.ci_low_s, ci_high_s=found.ci_high_s, samples=len(found.samples_s), dropped=found.dropped,
        calls_per_sample=found.calls_per_sample, operations=float(_ELEMENTS),
        bytes=_ELEMENTS * (4 + float_format(target).bits / 8), bits_per_weight=float(float_format(target).bits),
        speedups={"ml_dtypes": baseline.median_s / found.median_s},
    )  # fmt: skip
