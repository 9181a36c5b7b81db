"""Tables of what is known of the arithmetic of products, beside their verdicts."""

from collections.abc import Iterable

from lowbit_cts.reports.evidence import Record, Tightness, Verdict
from lowbit_cts.reports.tables import Table, number


def tightness(records: Iterable[Record]) -> Table:
    """Return one row per product: how near correct kernels come to its bound, and which faults would pass.

    Parameters
    ----------
    records : iterable of Record
        Those of kind ``tightness``, and the verdicts of the same implementations.

    Returns
    -------
    Table
        A column per regime, length and fault: the share of the planted that escaped, %; empty where none was planted.
    """
    records = list(records)
    found = [record for record in records if isinstance(record, Tightness)]
    worst: dict[tuple[str, ...], float] = {}
    for record in records:
        if isinstance(record, Verdict) and record.verdict in ("exact", "faithful") and record.worst is not None:
            subject = (record.device, record.backend, record.operation, record.implementation)
            worst[subject] = max(worst.get(subject, 0.0), record.worst)
    columns = list(dict.fromkeys((t.regime, t.length, t.fault) for t in found))
    rows = []
    for subject in dict.fromkeys((t.device, t.backend, t.operation, t.implementation) for t in found):
        own = [t for t in found if (t.device, t.backend, t.operation, t.implementation) == subject]
        shares = {(t.regime, t.length, t.fault): 100 * t.escaped / t.planted for t in own if t.planted}
        largest = max((t.largest for t in own if t.regime != "exact"), default=None)
        accumulator = own[0].semantics.get("float_accumulator", own[0].semantics.get("accumulator", ""))
        rows.append(
            (
                *subject,
                accumulator,
                number(worst.get(subject), 2),
                *(number(shares.get(column), 2) for column in columns),
                number(largest, 2),
            )
        )
    return Table(
        "Tightness of the bounds of products",
        (
            *("device", "backend", "operation", "implementation", "accumulator", "worst error / bound"),
            *(f"{fault}, {regime} {length}" for regime, length, fault in columns),
            "largest that escaped / row",
        ),
        tuple(rows),
        "Share of planted faults, %, that would be admissible: one product left out, the scale of a neighbour, the "
        "lowest bit of one code flipped; by regime and number of products in a sum. In the exact regime every partial "
        "sum is representable, so that the enclosure is a point.",
    )
