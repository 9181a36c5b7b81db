"""Tables of the arithmetic of products."""

from dataclasses import replace

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
