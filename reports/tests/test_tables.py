import itertools
import math
from dataclasses import replace

import pytest

from lowbit_cts.reports import tables
from lowbit_cts.reports.evidence import VERDICTS, AlgorithmAccuracy, FormatAccuracy


def cell(table, header, row=0):
    return table.column(header)[row]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (0, "0"),
        (1234.56, "1235"),
        (123456.7, "123457"),
        (0.00012346, "0.0001235"),
        (1.5e-9, "1.5e-09"),
        (2e12, "2e+12"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_number(value, text):
    assert tables.number(value) == text


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    # R. G. Newcombe, "Two-sided confidence intervals for the single proportion: comparison of seven
    # methods", Statistics in Medicine 17, 1998, Table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_is_as_published(correct, total, low, high):
    assert tables.wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_stays_in_range():
    assert tables.wilson_interval(0, 0) == (0.0, 1.0)
    assert tables.wilson_interval(7, 7)[1] == 1.0
    assert tables.wilson_interval(0, 7)[0] == 0.0


def test_overall_is_the_worst():
    order = ["violation", "crashed", "hung", "mistrusted", "waived", "faithful", "exact", "refused"]
    for (_, worse), (_, better) in itertools.combinations(enumerate(order), 2):
        assert tables.overall([better, worse]) == tables.overall([worse, better]) == worse
    assert set(order) == {*VERDICTS, "waived"}


def test_conformance_counts_each_verdict_once(verdict):
    records = [replace(verdict, verdict=word, property=word) for word in VERDICTS]
    table = tables.conformance_matrix(records)
    assert len(table.rows) == 1
    assert cell(table, "verdict") == "violation"
    assert {word: cell(table, word) for word in VERDICTS} == dict.fromkeys(VERDICTS, "1")
    assert (cell(table, "cases"), cell(table, "elements")) == ("70", "7000")


def test_each_implementation_has_a_row(verdict):
    others = {"device": "b", "backend": "b", "backend_version": "2", "operation": "b", "implementation": "b"}
    records = [verdict, *(replace(verdict, **{name: value}) for name, value in others.items())]
    assert len(tables.conformance_matrix(records).rows) == 6


def test_a_waived_violation_is_waived_but_hides_no_other(verdict):
    waived = replace(verdict, verdict="violation", waiver="acme-17", worst=3.0)
    table = tables.conformance_matrix([verdict, waived])
    assert [cell(table, header) for header in ("verdict", "waived", "violation")] == ["waived", "1", ""]
    crashed = replace(verdict, verdict="crashed")
    assert cell(tables.conformance_matrix([waived, crashed]), "verdict") == "crashed"
    assert tables.standing(replace(verdict, waiver="unneeded")) == "exact"


@pytest.mark.parametrize(
    ("errors", "text"),
    [([0.5, 0.25, None], "0.5"), ([2, math.nan, 3], "nan"), ([2, math.inf], "inf"), ([None], "")],
)
def test_worst_error(verdict, errors, text):
    records = [replace(verdict, worst=error) for error in errors]
    assert cell(tables.conformance_matrix(records), "worst error/bound") == text


def test_what_is_declared_out_is_compact(verdict):
    refused = [
        {"format": "int4"},
        {"group": 64},
        {"format": "int4"},
        {"format": ["int2", "uint2"]},
        {"format": "fp8", "axis": 0},
    ]
    records = [verdict, *(replace(verdict, verdict="refused", parameters=p) for p in refused)]
    table = tables.conformance_matrix(records)
    assert cell(table, "declared out") == "format: int4 int2 uint2; group: 64; (format=fp8 axis=0)"
    assert cell(table, "verdict") == "exact"


def test_failures_lists_failures_alone_and_the_waived_last(verdict):
    records = [replace(verdict, verdict=word, message=word, reproduce=f"pytest -k {word}") for word in VERDICTS]
    records.insert(0, replace(verdict, verdict="violation", waiver="acme-17"))
    table = tables.failures(records)
    assert table.column("verdict") == ("violation", "crashed", "hung", "waived violation")
    assert cell(table, "reproduce") == "pytest -k violation"
    assert cell(table, "waiver", -1) == "acme-17"


def test_pareto_optimum_of_a_known_example(measurement):
    """Time in µs and SQNR in dB of six kernels; each that is beaten is beaten by one alone."""
    points = [(10, 20), (12, 30), (12, 25), (15, 30), (20, 40), (25, 39)]
    records = [replace(measurement, median_s=t * 1e-6, sqnr_db=s) for t, s in points]
    assert tables.pareto_optimal(records) == [True, True, False, False, True, False]


@pytest.mark.parametrize(
    "other",
    [
        {"device": "b"},
        {"operation": "b"},
        {"shape": {"M": 2, "N": 4096, "K": 14336}},
        {"cache": "hot"},
        {"fill": "outliers"},
        {"parameters": {"source": "float16", "target": "float8_e5m2"}},
        {"parameters": {"format": "int4", "output_format": "bfloat16"}},
    ],
)
def test_only_comparable_rows_compete(measurement, other):
    better = {"median_s": 1e-6, "sqnr_db": 90.0}
    assert tables.pareto_optimal([measurement, replace(measurement, **better)]) == [False, True]
    assert tables.pareto_optimal([measurement, replace(measurement, **better, **other)]) == [True, True]


@pytest.mark.parametrize("flaw", [{"verdict": "violation"}, {"sqnr_db": None}, {"sqnr_db": math.nan}])
def test_what_failed_neither_is_optimal_nor_beats(measurement, flaw):
    flawed = replace(measurement, **{"median_s": 1e-6, "sqnr_db": 99.0, **flaw})
    assert tables.pareto_optimal([measurement, flawed]) == [True, False]


def test_equals_share_the_optimum_and_infinite_sqnr_wins(measurement):
    lossless = replace(measurement, sqnr_db=math.inf)
    assert tables.pareto_optimal([lossless, lossless, measurement]) == [True, True, False]


def test_rates_and_shares(measurement):
    row = replace(measurement, ceiling_share=0.756, bits_per_weight=4.25, mismatches=0, energy_j=2e-3)
    row = replace(row, speedups={"float32": 3.1, "ml_dtypes": 7.0}, ideal_speedups={"float32": 4.0})
    row = replace(row, parameters={"format": "int4", "granularity": "group", "group_size": 128})
    table = tables.accuracy_versus_speed([row])
    expected = {
        "Pareto": "*",
        "shape": "M=1 N=4096 K=14336",
        "format": "int4",
        "scales": "group 128",
        "parameters": "format=int4 granularity=group group_size=128",
        "median µs": "10",
        "CI95 µs": "9.9–10.1",
        "n (dropped)": "100 (3)",
        "GFLOP/s": "11744",
        "GB/s": "3000",
        "% of ceiling": "75.6",
        "over float32": "3.1",
        "ideal over float32": "4",
        "over ml_dtypes": "7",
        "mismatches": "0",
        "mJ": "2",
    }
    assert {header: cell(table, header) for header in expected} == expected


def test_comparable_rows_stand_together_fastest_first(measurement):
    slow = replace(measurement, median_s=30e-6, backend="slow")
    small = replace(measurement, shape={"M": 1, "N": 512, "K": 512}, median_s=99e-6, backend="small")
    hot = replace(measurement, cache="hot", backend="hot")
    table = tables.accuracy_versus_speed([hot, slow, measurement, small])
    assert table.column("backend") == ("acme", "slow", "hot", "small")  # shapes in the order of their text


@pytest.mark.parametrize(
    ("parameters", "formats", "scales"),
    [
        ({"format": "int4", "granularity": "group", "group_size": 128}, "int4", "group 128"),
        ({"format": "uint8", "granularity": "axis", "axis": 0}, "uint8", "axis 0"),
        ({"format": "int8", "output_format": "float16", "granularity": "tensor"}, "int8", "tensor"),
        ({"source": "float32", "target": "float8_e5m2"}, "float32→float8_e5m2", ""),
        ({"a_format": "int8"}, "int8·int8", ""),
        (
            {
                "a_format": "uint8",
                "activation_granularity": "token",
                "weight_granularity": "channel",
                "output_format": "bfloat16",
            },
            "uint8·int8→bfloat16",
            "token×channel",
        ),
        ({}, "", ""),
    ],
)
def test_formats_and_scales_of_parameters(parameters, formats, scales):
    assert (tables.formats(parameters), tables.scales(parameters)) == (formats, scales)


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ({"M": 16, "K": 768, "N": 768}, "M=16 K=768 N=768"),
        ({"M": 4, "K": 256, "G": 2}, "M=4 K=256"),
        ({"batch": 8, "N": 0}, "N=0"),
        ({}, ""),
    ],
)
def test_a_shape_leaves_out_derived_lengths(sizes, text):
    assert tables.shape(sizes) == text


@pytest.mark.parametrize(("low", "high"), [(math.nan, math.nan), (9.9e-6, math.inf), (-math.inf, 10.1e-6)])
def test_an_interval_from_too_few_samples_is_blank(measurement, low, high):
    table = tables.accuracy_versus_speed([replace(measurement, ci_low_s=low, ci_high_s=high)])
    assert cell(table, "CI95 µs") == ""


def test_ceilings_beside_the_datasheet(ceiling):
    table = tables.ceilings([ceiling, replace(ceiling, name="a", datasheet=None)])
    assert table.column("% of datasheet") == ("", "80")
    assert cell(table, "CI95") == "39–41"


def test_models_are_held_against_float32(model):
    quantized = replace(
        model,
        variant="int8",
        correct=80,
        accuracy=80 / 90,
        size_bytes=1100,
        layer_mse={"fc1": 1e-5, "fc2": 2e-5},
    )
    table = tables.model_accuracy([model, quantized, replace(quantized, model="without a base")])
    assert table.column("× smaller than float32") == ("1", "3.64", "")
    assert table.column("vs float32 points") == ("+0.00", "-1.11", "")
    assert cell(table, "CI95 %") == "82.08–94.65"
    layers = tables.layer_errors([model, quantized])
    assert layers.column("layer") == ("fc1", "fc2") * 2
    assert layers.column("output MSE") == ("0", "0", "1e-05", "2e-05")
    assert layers.column("weight MSE") == ("0", "", "0", "")


def test_algorithms_stand_by_their_divergence_with_its_error():
    rtn = AlgorithmAccuracy(
        run="r1", time="2025-01-01T00:00:00.000000+00:00", device="cpu-x", model="m", algorithm="RTN", backend="acme",
        bits=4, bits_per_weight=4.5, size_bytes=1000, perplexity=3.14159, perplexity_se=0.0123, divergence=0.0567,
        divergence_se=0.0012, accuracy=0.9, accuracy_se=0.01,
    )  # fmt: skip
    better = replace(rtn, algorithm="GPTQ", divergence=0.03, divergence_over_rtn=-0.0267, divergence_over_rtn_se=0.0004)
    table = tables.algorithms([rtn, better, replace(rtn, bits=8), replace(rtn, algorithm="bare", perplexity_se=0.0)])
    assert table.column("bits") == ("8", "4", "4", "4")
    assert table.column("algorithm") == ("RTN", "GPTQ", "RTN", "bare")
    assert table.column("perplexity") == ("3.1416 ± 0.012", "3.1416 ± 0.012", "3.1416 ± 0.012", "3.1416 ± 0")
    assert table.column("KL nats") == ("0.0567 ± 0.0012", "0.0300 ± 0.0012", "0.0567 ± 0.0012", "0.0567 ± 0.0012")
    assert table.column("KL less that of RTN") == ("", "-0.02670 ± 0.00040", "", "")
    assert table.column("accuracy %")[0] == "90.0 ± 1.0"


def test_formats_bear_the_speed_of_the_fastest_kernel_of_each_backend(measurement):
    link = {"operation": "quantize_gguf", "parameters": {"type": "Q4_0"}}
    fmt = FormatAccuracy(
        run="r1", time=measurement.time, device="cpu-x", name="Q4_0", bits_per_weight=4.5,
        sqnr_db={"normal": 21.31, "heavy-tailed": 19.0}, encode=link, decode={},
    )  # fmt: skip
    one = replace(
        measurement, operation="quantize_gguf", parameters={"type": "Q4_0", "input": "x"}, shape={"M": 10, "K": 100},
        median_s=1e-6, cache="hot",
    )  # fmt: skip
    slower, other = replace(one, median_s=2e-6), replace(one, parameters={"type": "Q4_1"}, median_s=1e-9)
    table = tables.number_formats([fmt, slower, one, other, replace(one, backend="b", cache="cold")])
    assert table.column("backend") == ("acme", "b")
    assert table.column("SQNR dB, heavy-tailed") == ("19", "19")
    assert table.column("encode M/s hot") == ("1000", "")
    assert table.column("encode M/s cold") == ("", "1000")
    assert tables.number_formats([fmt]).column("backend") == ("",)


def test_libraries_are_columns_and_refusals_no_entries(verdict):
    records = [
        verdict,
        replace(verdict, property="cut", verdict="violation", waiver="w"),
        replace(verdict, backend="b", property="cut", verdict="faithful"),
        replace(verdict, backend="b", operation="matmul_int8", verdict="refused"),
    ]
    table = tables.library_matrix(records)
    assert table.headers == ("device", "operation", "acme 1", "b 1")
    assert table.rows == (("cpu-x", "quantize_affine", "1 waived, 1 exact", "1 faithful"),)
