"""Tables of the arithmetic of products."""

from dataclasses import replace

from lowbit_cts.reports import arithmetic
from lowbit_cts.reports.arithmetic import tightness
from lowbit_cts.reports.evidence import Tightness

PLANTED = Tightness(
    run="r", time="2026-01-01T00:00:00+00:00", device="cpu-x", backend="acme", backend_version="1", operation="matmul",
    implementation="mm", semantics={"float_accumulator": "float32"}, regime="full", length=256,
    fault="product", planted=50, escaped=5, largest=1e-4,
)  # fmt: skip


def test_a_row_a_product_and_a_column_a_fault(verdict):
    other = replace(PLANTED, regime="exact", escaped=0, largest=0.0)
    none = replace(PLANTED, fault="scale", planted=0, escaped=0)
    seen = replace(
        verdict, device="cpu-x", backend="acme", operation="matmul", implementation="mm", verdict="faithful", worst=0.25
    )
    worse = replace(seen, verdict="violation", worst=9.0)
    table = tightness([PLANTED, other, none, seen, worse])
    (row,) = (dict(zip(table.headers, row, strict=True)) for row in table.rows)
    assert row["accumulator"] == "float32"
    assert row["worst error / bound"] == "0.25"
    assert row["product, full 256"] == "10"
    assert row["product, exact 256"] == "0"
    assert row["scale, full 256"] == ""
    assert row["largest that escaped / row"] == "0.0001"


def test_without_evidence_there_is_no_row():
    assert tightness([]).rows == ()


def test_fingerprints_have_a_row_a_product_and_a_column_a_finding(fingerprint):
    vector = replace(fingerprint, shape={"M": 1, "N": 16, "K": 64}, findings={"order": "pairwise", "run": "same"})
    table = arithmetic.fingerprints([fingerprint, replace(fingerprint, backend="aaa"), vector])
    assert table.headers[-4:] == ("order", "run", "accumulator bits", "NaN")
    assert table.column("shape") == ("M=1 N=16 K=64", "M=16 N=16 K=64", "M=16 N=16 K=64")
    assert table.column("backend") == ("acme", "aaa", "acme")
    assert table.column("order") == ("pairwise", "sequential", "sequential")
    assert table.column("accumulator bits") == ("", "24", "24")
    assert table.column("parameters") == ("format=uint4 input_format=float16",) * 3
    assert set(table.secondary) <= set(table.headers)


def test_fingerprints_differ_in_their_findings_alone(fingerprint):
    other = replace(fingerprint, findings={**fingerprint.findings, "order": "pairwise"}, reasons={}, seconds=9.0)
    assert (
        arithmetic.fingerprint_differences([fingerprint], [replace(fingerprint, reasons={}, time="later")]).rows == ()
    )
    table = arithmetic.fingerprint_differences([fingerprint], [other])
    assert [row[-5:] for row in table.rows] == [("acme/fast", "acme/fast", "order", "sequential", "pairwise")]


def test_fingerprints_are_compared_by_name_first_and_then_all_with_all(fingerprint):
    def called(backend, name, order):
        return replace(fingerprint, backend=backend, implementation=name, findings={"order": order})

    def compared(one, other):
        return [row[3:5] for row in arithmetic.fingerprint_differences(one, other).rows]

    a, b = called("a", "x", "1"), called("a", "y", "2")
    assert compared([a, b], [called("b", "y", "3"), called("b", "x", "4")]) == [("a/x", "b/x"), ("a/y", "b/y")]
    assert compared([a, b], [called("b", "z", "5")]) == [("a/x", "b/z"), ("a/y", "b/z")]
    assert compared([a, b], [called("b", "x", "1")]) == []


def test_a_fingerprint_without_counterpart_is_a_difference(fingerprint):
    table = arithmetic.fingerprint_differences([fingerprint], [replace(fingerprint, shape={"M": 1, "N": 16, "K": 64})])
    assert [row[3:] for row in table.rows] == [
        ("acme/fast", "", "(probed)", "yes", ""),
        ("", "acme/fast", "(probed)", "", "yes"),
    ]
