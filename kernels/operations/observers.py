"""Calibration observers: histogram, widen_histogram, and the ranges by moving averages, percentiles, error, entropy."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference.calibration.entropy import entropy_enclosure
from lowbit_cts.reference.calibration.histogram import GROWTHS, HISTOGRAMS, histogram_enclosure, widen_enclosure
from lowbit_cts.reference.calibration.moving_average import moving_average_enclosure
from lowbit_cts.reference.calibration.mse import greedy_enclosure, mse_enclosure
from lowbit_cts.reference.calibration.percentile import percentile_enclosure, percentile_of_histogram_enclosure
from lowbit_cts.reference.enclosure import Enclosure

_HISTOGRAM = Parameter(HISTOGRAMS, "of numbers over any range, or of magnitudes from 0", assumed=HISTOGRAMS)
_BINS, _LEVELS, _STARTS, _CAPACITIES = (64, 128, 7, 33, 1, 2048), (8, 16, 7, 2, 128), (8, 1, 16), (1024, 2500)
_BITS = Parameter(tuple(range(8, 1, -1)), "bits of a code", assumed=(8,))


def _scalar(name: str, doc: str, format: str = "float32", of_values: bool = False) -> Argument:
    """Return an argument or result of one number; if `of_values`, one that histograms of magnitudes do without."""
    return Argument(
        name, lambda p: format, lambda p: (), doc, present=lambda p: not of_values or p["histogram"] == "values"
    )


_SAMPLES = Argument("x", lambda p: "float32", lambda p: ("N",), "finite samples, (N,)")
_BATCHES = Argument("x", lambda p: "float32", lambda p: ("T", "N"), "finite samples, T batches of N, (T, N)")
_COUNTS = Argument("counts", lambda p: "int32", lambda p: ("U",), "int32, of equal bins, (U,); not all zero")
_WEIGHTS = Argument("counts", lambda p: "float32", lambda p: ("U",), "float32, of equal bins, (U,); not all zero")
_LOW = _scalar("low", "the lower end of the histogram; None of magnitudes, which begin with 0", of_values=True)
_HIGH = _scalar("high", "the upper end of the histogram, above the lower one")
_PERCENTILE = _scalar("percentile", "percent of the samples that are inside, in (0, 100]")
_RANGE = (_scalar("low", "the lower end of the range; of magnitudes -high"), _scalar("high", "its upper end"))


def _ends(case: Case) -> dict[str, Any]:
    """Return the ends of the case's histogram, and of what it is one."""
    low = case.arrays["low"]
    return {"low": 0.0 if low is None else low, "high": case.array("high"), "histogram": case.parameters["histogram"]}


def _choices(case: Case, semantics: Semantics, *left_out: str) -> dict[str, Any]:
    return semantics.choices(tuple(name for name in case.operation.semantics if name not in left_out))


def _histogram(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    counts = histogram_enclosure(
        case.array("x"), case.array("low"), case.array("high"), bins=case.parameters["bins"],
        **_choices(case, semantics),
    )  # fmt: skip
    return {"counts": counts}


def _widen(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    new_low = case.arrays["new_low"]
    return widen_enclosure(
        case.array("counts"), **_ends(case), new_low=0.0 if new_low is None else new_low,
        new_high=case.array("new_high"), growth=case.parameters["growth"], capacity=case.parameters["capacity"],
        **_choices(case, semantics),
    )  # fmt: skip


def _moving_average(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    return moving_average_enclosure(case.array("x"), case.array("constant"), **_choices(case, semantics))


def _percentile(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    return percentile_enclosure(
        case.array("x"), case.array("percentile"), histogram=case.parameters["histogram"], **_choices(case, semantics)
    )


def _percentile_of_histogram(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    return percentile_of_histogram_enclosure(
        case.array("counts"), **_ends(case), percentile=case.array("percentile"), **_choices(case, semantics)
    )


def _mse(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    ends, bits = _ends(case), case.parameters["bits"]
    if ends.pop("histogram") == "magnitudes":
        start = case.parameters["start"]
        return mse_enclosure(case.array("counts"), ends["high"], bits=bits, start=start, **_choices(case, semantics))
    choices = _choices(case, semantics, "bin_point", "equal_candidates")
    return greedy_enclosure(case.array("counts"), **ends, bits=bits, **choices)


def _entropy(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    return entropy_enclosure(
        case.array("counts"), **_ends(case), levels=case.parameters["levels"], **_choices(case, semantics)
    )


def _open(values: tuple[int, ...], doc: str, **options: Any) -> Parameter:
    return Parameter(values, doc, assumed=values, open=True, **options)


def _nothing(parameters: Parameters) -> tuple[str, ...]:
    return ()


histogram = register(
    Operation(
        name="histogram",
        summary="counts of samples in equal bins [a, b) over a range; the last one holds its end, too",
        source="numpy.histogram; torch.histc",
        arguments=(_SAMPLES, _scalar("low", "the lower end of the range"), _scalar("high", "its upper end")),
        results=(Argument("counts", lambda p: "int32", lambda p: ("U",), "int32, (bins,); none of what lies outside"),),
        parameters={"bins": _open(_BINS, "how many bins")},
        semantics=("bin_search", "intermediate"),
        evaluate=_histogram,
        independent=_nothing,
        variants=("bins",),
        work=lambda case: 4.0 * case.array("x").size,
        derived={"U": lambda sizes, p: p["bins"]},
        weights=("x",),
        stored=("x",),
    )
)


def _grown(sizes: Mapping[str, int], parameters: Parameters) -> int | None:
    return parameters["capacity"] or sizes.get("U")


widen_histogram = register(
    Operation(
        name="widen_histogram",
        summary="the histogram over a wider range: more bins of the same width, or as many wider ones",
        source="onnxruntime.quantization.calibrate.HistogramCollector; torch.ao.quantization.HistogramObserver",
        arguments=(
            _WEIGHTS,
            _LOW,
            _HIGH,
            _scalar("new_low", "what it is to reach below; None of magnitudes", of_values=True),
            _scalar("new_high", "what it is to reach above"),
        ),
        results=(
            Argument("counts", lambda p: "float32", lambda p: ("Y",), "float32, (capacity,), zeros behind; or (U,)"),
            _scalar("low", "the lower end of the new histogram; 0 of magnitudes"),
            _scalar("high", "its upper end"),
        ),
        parameters={
            "histogram": _HISTOGRAM,
            "growth": Parameter(GROWTHS, "more bins of the same width, or as many wider ones", assumed=GROWTHS),
            "capacity": _open(
                _CAPACITIES,
                "with bins of the same width: how many the result has room for",
                needed=lambda p: p.get("growth", "same_width") == "same_width",
            ),
        },
        semantics=("intermediate",),
        evaluate=_widen,
        independent=_nothing,
        variants=("histogram", "growth"),
        work=lambda case: 2.0 * case.array("counts").size,
        derived={"Y": _grown},
        weights=("counts",),
        stored=("counts",),
    )
)

moving_average_range = register(
    Operation(
        name="moving_average_range",
        summary="moving averages of the least and the greatest number of batches; the first batch sets them",
        source="Jacob et al., arXiv:1712.05877, §3.1; torch.ao.quantization.MovingAverageMinMaxObserver",
        arguments=(_BATCHES, _scalar("constant", "the weight of a new number, in (0, 1]")),
        results=_RANGE,
        parameters={},
        semantics=("average_form", "contraction"),
        evaluate=_moving_average,
        independent=_nothing,
        variants=(),
        work=lambda case: 2.0 * case.array("x").size,
        weights=("x",),
        stored=("x",),
    )
)

percentile_range = register(
    Operation(
        name="percentile_range",
        summary="quantiles of samples: q = (100 - percentile) / 200 and 1 - q; of magnitudes percentile / 100",
        source="Hyndman and Fan, Sample Quantiles in Statistical Packages, The American Statistician 50 (1996)",
        arguments=(_SAMPLES, _PERCENTILE),
        results=_RANGE,
        parameters={"histogram": _HISTOGRAM},
        semantics=("quantile_rule", "intermediate"),
        evaluate=_percentile,
        independent=_nothing,
        variants=("histogram",),
        work=lambda case: case.array("x").size * max(1.0, np.log2(max(1, case.array("x").size))),
        weights=("x",),
        stored=("x",),
    )
)

_OF_HISTOGRAMS: dict[str, Any] = {
    "results": _RANGE,
    "independent": _nothing,
    "weights": ("counts",),
    "stored": ("counts",),
}

histogram_percentile_range = register(
    Operation(
        name="histogram_percentile_range",
        summary="a point of the first bin up to which at least the part is counted",
        source="onnxruntime.quantization.calibrate, compute_percentile; Model Optimizer, calib/histogram.py",
        arguments=(_COUNTS, _LOW, _HIGH, _PERCENTILE),
        parameters={"histogram": _HISTOGRAM},
        semantics=("bin_point", "intermediate"),
        evaluate=_percentile_of_histogram,
        variants=("histogram",),
        work=lambda case: 2.0 * case.array("counts").size,
        **_OF_HISTOGRAMS,
    )
)

mse_range = register(
    Operation(
        name="mse_range",
        summary="the least squared error: of magnitudes among bins from `start` on; of values by the greedy search",
        source="Model Optimizer, calib/histogram.py; torch.ao.quantization.HistogramObserver",
        arguments=(_COUNTS, _LOW, _HIGH),
        parameters={
            "histogram": _HISTOGRAM,
            "bits": _BITS,
            "start": _open(
                _STARTS,
                "of magnitudes: the first bin that is a candidate",
                needed=lambda p: p.get("histogram", "magnitudes") == "magnitudes",
            ),
        },
        semantics=("bin_point", "equal_candidates", "intermediate"),
        evaluate=_mse,
        variants=("histogram",),
        work=lambda case: 6.0 * case.array("counts").size ** 2,
        **_OF_HISTOGRAMS,
    )
)

entropy_range = register(
    Operation(
        name="entropy_range",
        summary="the window of bins with the least divergence between its counts and the same in few levels",
        source="S. Migacz, 8-bit Inference with TensorRT, GTC 2017, S7310",
        arguments=(_COUNTS, _LOW, _HIGH),
        parameters={
            "histogram": _HISTOGRAM,
            "levels": _open(_LEVELS, "how many levels the bins of a window are joined to, at least 2"),
        },
        semantics=("entropy_rule", "bin_point", "equal_candidates", "intermediate"),
        evaluate=_entropy,
        variants=("histogram",),
        work=lambda case: 8.0 * case.array("counts").size ** 2,
        **_OF_HISTOGRAMS,
    )
)
