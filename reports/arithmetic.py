"""Tables of what is known of the arithmetic of products, beside their verdicts."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from lowbit_cts.reports.evidence import Fingerprint, Record, Tightness, Verdict
from lowbit_cts.reports.tables import Table, cell, number, only, pairs, shape


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
    found = only(Tightness, records)
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


def fingerprints(records: Iterable[Record]) -> Table:
    """Return one row per product and shape that was probed, a column a finding.

    Parameters
    ----------
    records : iterable of Record
        Those of kind ``fingerprint`` are used.

    Returns
    -------
    Table
        Rows by operation and parameters, so that implementations of one stand together; columns in the order in
        which findings were made.
    """
    probed = sorted(
        only(Fingerprint, records),
        key=lambda f: (f.device, f.operation, _chosen(f.parameters), _size(f), f.backend, f.implementation),
    )
    names = list(dict.fromkeys(name for f in probed for name in f.findings))
    return Table(
        "Fingerprints",
        ("device", "operation", "parameters", "shape", "backend", "version", "implementation", *names),
        tuple(
            (
                *(f.device, f.operation, _chosen(f.parameters), shape(f.shape), f.backend, f.backend_version),
                *(f.implementation, *(f.findings.get(name, "") for name in names)),
            )
            for f in probed
        ),
        "Found by probing, without the source. An order is that at the probes' K; what is not determined has its "
        "reason in the evidence.",
        (
            *(name for name in reversed(names) if name not in _TOLD),
            "version",
            *(name for name in reversed(_TOLD) if name in names),
        ),
    )


#: The findings that a page leaves out last, the first of them last of all.
_TOLD = (
    *("order", "accumulator bits", "products", "subnormal inputs"),
    *("rounding of sums", "subnormal products", "batch size"),
)


def fingerprint_differences(one: Iterable[Record], other: Iterable[Record]) -> Table:
    """Return one row per finding in which the products of two sets of fingerprints differ.

    Parameters
    ----------
    one, other : iterable of Record
        Those of kind ``fingerprint`` are used.

    Returns
    -------
    Table
        Compared are fingerprints of one operation, parameters and shape: those of implementations of one name, and of
        what is then left each with each. What has no counterpart is a row, too.
    """
    left, right = (_by_subject(only(Fingerprint, records)) for records in (one, other))
    rows = []
    for key in dict.fromkeys((*left, *right)):
        subject = key[0], key[1], shape(dict(zip("MNK", key[2:], strict=True)))
        for a, b in _paired(left.get(key, []), right.get(key, [])):
            if a is None or b is None:
                rows.append((*subject, _named_by(a), _named_by(b), "(probed)", *(cell(x and "yes") for x in (a, b))))
                continue
            for name in dict.fromkeys((*a.findings, *b.findings)):
                values = a.findings.get(name, ""), b.findings.get(name, "")
                if values[0] != values[1]:
                    rows.append((*subject, _named_by(a), _named_by(b), name, *values))
    return Table(
        "Differences of fingerprints",
        ("operation", "parameters", "shape", "one", "other", "finding", "of one", "of the other"),
        tuple(rows),
    )


def _by_subject(probed: Iterable[Fingerprint]) -> dict[tuple[Any, ...], list[Fingerprint]]:
    found: dict[tuple[Any, ...], list[Fingerprint]] = defaultdict(list)
    for f in probed:
        found[f.operation, _chosen(f.parameters), *_size(f)].append(f)
    return found


def _paired(left: list[Fingerprint], right: list[Fingerprint]) -> list[tuple[Fingerprint | None, Fingerprint | None]]:
    """Return the fingerprints to compare: of one backend and name, else of one name, else each with each."""
    pairs: list[tuple[Fingerprint | None, Fingerprint | None]] = []
    left, right = list(left), list(right)
    for same in (lambda f: (f.backend, f.implementation), lambda f: f.implementation):
        for a in list(left):
            b = next((b for b in right if same(b) == same(a)), None)
            if b is not None:
                pairs.append((a, b))
                left.remove(a)
                right.remove(b)
    if left and right:
        return pairs + [(a, b) for a in left for b in right]
    if pairs:  # the subject was compared; one side has further implementations
        return pairs
    return [(a, None) for a in left] + [(None, b) for b in right]


def _named_by(f: Fingerprint | None) -> str:
    return "" if f is None else f"{f.backend}/{f.implementation}"


def _size(f: Fingerprint) -> tuple[int, ...]:
    return tuple(f.shape[axis] for axis in "MNK")


def _chosen(parameters: Mapping[str, Any]) -> str:
    """Return the formats among parameters, which are what a fingerprint depends on."""
    return pairs(
        {name: value for name, value in parameters.items() if "format" in name or name in ("type", "codebook")}
    )
