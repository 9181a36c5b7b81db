"""Tables: pure functions from records of evidence to rows of text.

Numbers are formatted here, once, so that the terminal, Markdown and CSV agree; the evidence keeps them whole.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from lowbit_cts.reports.evidence import (
    AlgorithmAccuracy,
    Ceiling,
    FormatAccuracy,
    Measurement,
    ModelAccuracy,
    Record,
    Verdict,
)

# Worst first. A waived failure is known, not fine: it outranks what passed, not what nobody has looked at.
SEVERITY = ("violation", "crashed", "hung", "mistrusted", "waived", "faithful", "exact", "refused")
FAILURES = frozenset({"violation", "crashed", "hung"})

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Table:
    """Rows of text under headers.

    Attributes
    ----------
    title : str
        What the rows are.
    headers : tuple of str
        Column names, with units.
    rows : tuple of tuple of str
        Cells, already formatted; empty where there is nothing to say.
    note : str
        How to read it.
    secondary : tuple of str
        Headers that a narrow page leaves out, the first to go first.
    """

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    secondary: tuple[str, ...] = ()

    def column(self, header: str) -> tuple[str, ...]:
        """Return the cells of one column."""
        index = self.headers.index(header)
        return tuple(row[index] for row in self.rows)

    def without(self, headers: Iterable[str], note: str = "") -> "Table":
        """Return the table less some columns, and with a sentence added to its note."""
        gone = set(headers)
        kept = [index for index, header in enumerate(self.headers) if header not in gone]
        return Table(
            self.title,
            tuple(self.headers[index] for index in kept),
            tuple(tuple(row[index] for index in kept) for row in self.rows),
            " ".join(filter(None, (self.note, note))),
            tuple(header for header in self.secondary if header not in gone),
        )


def number(value: float | None, digits: int = 4, unit: float = 1) -> str:
    """Return `value / unit` to some significant digits, and the empty string for None.

    Examples
    --------
    >>> number(123456.7), number(0.0123456), number(1.5e-6, unit=1e-6), number(None)
    ('123457', '0.01235', '1.5', '')
    """
    if value is None:
        return ""
    value = value / unit
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text and abs(value) < 1e9 else text


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's score interval of a proportion, by default of 95 %.

    Parameters
    ----------
    correct, total : int
        Successes, and trials.
    z : float
        Quantile of the standard normal distribution.

    Returns
    -------
    low, high : float
        Between 0 and 1; all of [0, 1] when nothing was tried.

    References
    ----------
    .. [1] E. B. Wilson, "Probable inference, the law of succession, and statistical inference", Journal of
       the American Statistical Association 22, 1927.
    """
    if total == 0:
        return 0.0, 1.0
    share, weight = correct / total, z * z / total
    centre = share + weight / 2
    half = math.sqrt(weight * (share * (1 - share) + weight / 4))
    # At 0 and at `total` the ends are 0 and 1 exactly, which rounding would miss by an ulp either way.
    low = 0.0 if correct == 0 else (centre - half) / (1 + weight)
    high = 1.0 if correct == total else (centre + half) / (1 + weight)
    return low, high


def standing(record: Verdict) -> str:
    """Return the record's verdict, or ``waived`` where a waiver covers its failure."""
    return "waived" if record.waiver and record.verdict in FAILURES else record.verdict


def overall(verdicts: Iterable[str]) -> str:
    """Return the worst of some verdicts by `SEVERITY`, and the empty string of none."""
    return min(verdicts, key=SEVERITY.index, default="")


def conformance_matrix(records: Iterable[Record]) -> Table:
    """Return one row per device, backend, operation and implementation: its verdicts counted, worst first.

    Parameters
    ----------
    records : iterable of Record
        Those of kind ``verdict`` are used.

    Returns
    -------
    Table
        Rows in the order of their names.
    """
    groups: dict[tuple[str, ...], list[Verdict]] = defaultdict(list)
    for r in only(Verdict, records):
        groups[r.device, r.backend, r.backend_version, r.operation, r.implementation].append(r)
    rows = []
    for key, group in sorted(groups.items()):
        counts = Counter(standing(record) for record in group)
        rows.append(
            (
                *key,
                overall(counts),
                *(str(counts[verdict] or "") for verdict in SEVERITY),
                number(_worst(record.worst for record in group), 3),
                str(sum(record.cases for record in group)),
                str(sum(record.elements for record in group)),
                _undeclared(group),
            )
        )
    return Table(
        "Conformance",
        (
            *("device", "backend", "version", "operation", "implementation", "verdict", *SEVERITY),
            *("worst error/bound", "cases", "elements", "declared out"),
        ),
        tuple(rows),
        "Each verdict's column counts properties. An implementation's verdict is its worst, in the columns' "
        "order; what it declares out is refused, not failed. An error over bound above 1 is a violation.",
        ("declared out", "elements", "cases"),
    )


def library_matrix(records: Iterable[Record]) -> Table:
    """Return one row per operation and one column per backend: the verdicts of all its kernels' properties, counted.

    Parameters
    ----------
    records : iterable of Record
        Those of kind ``verdict`` are used.

    Returns
    -------
    Table
        Empty where a backend has no kernel of the operation; what is only refused is not shown.
    """
    cells: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    backends: dict[str, None] = {}
    for r in only(Verdict, records):
        backends.setdefault(f"{r.backend} {r.backend_version}")
        if r.implementation and r.verdict != "refused":
            cells[r.device, r.operation, f"{r.backend} {r.backend_version}"][standing(r)] += 1
    rows = []
    for device, operation in dict.fromkeys(key[:2] for key in sorted(cells)):
        counts = [cells.get((device, operation, backend), Counter()) for backend in backends]
        said = [", ".join(f"{count[v]} {v}" for v in SEVERITY if count[v]) for count in counts]
        rows.append((device, operation, *said))
    return Table(
        "Libraries and operations",
        ("device", "operation", *backends),
        tuple(rows),
        "Properties by verdict, over all kernels of a library for an operation.",
    )


def failures(records: Iterable[Record]) -> Table:
    """Return one row per violation, crash and hang, the waived ones last.

    Parameters
    ----------
    records : iterable of Record
        Those of kind ``verdict`` are used.

    Returns
    -------
    Table
        With the message, the shrunk counterexample and the line that reproduces each.
    """
    failed = [record for record in only(Verdict, records) if record.verdict in FAILURES]
    failed.sort(key=lambda r: (SEVERITY.index(standing(r)), r.backend, r.operation, r.implementation, r.property))
    return Table(
        "Failures",
        (
            *("verdict", "device", "backend", "operation", "implementation", "property", "parameters"),
            *("worst error/bound", "message", "counterexample", "reproduce", "waiver"),
        ),
        tuple(
            (
                f"waived {r.verdict}" if r.waiver else r.verdict,
                *(r.device, r.backend, r.operation, r.implementation, r.property, pairs(r.parameters)),
                number(r.worst, 3),
                *(r.message or "", r.counterexample or "", r.reproduce or "", r.waiver or ""),
            )
            for r in failed
        ),
    )


def accuracy_versus_speed(records: Iterable[Record]) -> Table:
    """Return one row per measurement, comparable ones together, the fastest first.

    Parameters
    ----------
    records : iterable of Record
        Those of kind ``measurement`` are used.

    Returns
    -------
    Table
        Pareto-optimal rows (time against SQNR) bear a ``*``, see `pareto_optimal`.
    """
    measured = sorted(only(Measurement, records), key=lambda m: (*_comparable(m), m.median_s))
    optimal = pareto_optimal(measured)
    columns: dict[str, Callable[[Measurement], str]] = {
        "device": lambda m: m.device,
        "operation": lambda m: m.operation,
        "workload": lambda m: m.workload,
        "shape": lambda m: shape(m.shape),
        "cache": lambda m: m.cache,
        "fill": lambda m: m.fill,
        "backend": lambda m: m.backend,
        "version": lambda m: m.backend_version,
        "implementation": lambda m: m.implementation,
        "format": lambda m: formats(m.parameters),
        "scales": lambda m: scales(m.parameters),
        "parameters": lambda m: pairs(m.parameters),
        "bpw": lambda m: number(m.bits_per_weight),
        "median µs": lambda m: number(m.median_s, unit=1e-6),
        "CI95 µs": lambda m: _interval(m.ci_low_s, m.ci_high_s, 1e-6),
        "n (dropped)": lambda m: f"{m.samples} ({m.dropped})",
        "GFLOP/s": lambda m: number(m.operations / m.median_s, unit=1e9),
        "GB/s": lambda m: number(m.bytes / m.median_s, unit=1e9),
        "% of ceiling": lambda m: number(m.ceiling_share, 3, unit=1e-2),
        "ceiling": lambda m: m.ceiling_name or "",
        **_speedups(measured),
        "SQNR dB": lambda m: number(m.sqnr_db, 3),
        "mismatches": lambda m: cell(m.mismatches),
        "worst error/bound": lambda m: number(m.worst, 3),
        "verdict": lambda m: m.verdict or "",
        "SM MHz": lambda m: number(m.sm_mhz),
        "W": lambda m: number(m.power_w),
        "mJ": lambda m: number(m.energy_j, unit=1e-3),
        "clock": lambda m: m.clock,
        "notes": lambda m: m.notes or "",
    }
    return Table(
        "Accuracy versus speed",
        ("Pareto", *columns),
        tuple(
            ("*" if mark else "", *(cell(m) for cell in columns.values()))
            for m, mark in zip(measured, optimal, strict=True)
        ),
        "* marks what no other row of its operation, shape, cache and fill beats in both time and SQNR. "
        "GFLOP/s count arithmetic operations of whatever type; GB/s the fewest bytes a call must move; the "
        "ceiling is the measured roofline; over X says how many times as long the product on X took, measured in turns "
        "(float32 and bfloat16 by PyTorch), and ideal the same by bytes alone; mJ the energy of one call.",
        (
            *(
                "notes",
                "clock",
                "W",
                "SM MHz",
                "mJ",
                "version",
                "ceiling",
                "n (dropped)",
                "mismatches",
            ),
            *("workload", "parameters", "GFLOP/s", "fill", "bpw", "ideal over float32", "CI95 µs", "worst error/bound"),
        ),
    )


def _speedups(measured: Iterable[Measurement]) -> dict[str, Callable[[Measurement], str]]:
    """Return the columns of speedups: one for each thing that was measured in turns, and one for what is ideal."""

    def column(field: str, name: str) -> Callable[[Measurement], str]:
        return lambda m: number(getattr(m, field).get(name), 3)

    columns: dict[str, Callable[[Measurement], str]] = {}
    for name in dict.fromkeys(name for m in measured for name in m.speedups):
        columns[f"over {name}"] = column("speedups", name)
        if any(name in m.ideal_speedups for m in measured):
            columns[f"ideal over {name}"] = column("ideal_speedups", name)
    return columns


def shape(sizes: Mapping[str, Any]) -> str:
    """Return the lengths of the axes that are not derived from others: ``M=16 K=768 N=768``."""
    return pairs({name: size for name, size in sizes.items() if name not in ("G", "batch")})


def formats(parameters: Mapping[str, Any]) -> str:
    """Return the formats of a measurement: ``int4``, ``float32→float8_e5m2``, ``uint8·int8→bfloat16``."""
    if "source" in parameters:
        return f"{parameters['source']}→{parameters['target']}"
    if left := parameters.get("a_format", parameters.get("x_format")):
        right = parameters.get("b_format", parameters.get("w_format", "int8"))
        output = parameters.get("output_format", parameters.get("y_format"))
        return f"{left}·{right}" + (f"→{output}" if output else "")
    named = ("format", "type", "cache_format", "codebook")
    return cell(next((parameters[name] for name in named if parameters.get(name)), None))


def scales(parameters: Mapping[str, Any]) -> str:
    """Return which elements share a scale: ``tensor``, ``axis 0``, ``group 128``, ``token×channel``."""
    if "activation_granularity" in parameters:
        return f"{parameters['activation_granularity']}×{parameters['weight_granularity']}"
    detail = parameters.get("axis", parameters.get("group_size"))
    return " ".join(str(part) for part in (parameters.get("granularity"), detail) if part is not None)


def _interval(low: float, high: float, unit: float = 1.0) -> str:
    """Return the ends of an interval; nothing where there were too few samples for one."""
    return f"{number(low, unit=unit)}–{number(high, unit=unit)}" if math.isfinite(high - low) else ""


def pareto_optimal(measured: Sequence[Measurement]) -> list[bool]:
    """Return which measurements no comparable one beats in time and SQNR.

    Comparable are those of one device, operation, shape, output, cache state and fill (SQNR depends on the data).
    What failed, or has no SQNR, neither is optimal nor beats another.

    Parameters
    ----------
    measured : sequence of Measurement
        In any order.

    Returns
    -------
    list of bool
        In the same order.
    """
    rivals: dict[tuple[Any, ...], list[tuple[float, float]]] = defaultdict(list)
    points: list[tuple[float, float] | None] = []
    for m in measured:
        eligible = m.sqnr_db is not None and not math.isnan(m.sqnr_db) and m.verdict not in FAILURES
        point = (-m.median_s, m.sqnr_db or 0.0) if eligible else None  # more is better in both
        points.append(point)
        if point:
            rivals[_comparable(m)].append(point)

    def beaten(point: tuple[float, float], other: tuple[float, float]) -> bool:
        return other != point and other[0] >= point[0] and other[1] >= point[1]

    return [
        point is not None and not any(beaten(point, other) for other in rivals[_comparable(m)])
        for m, point in zip(measured, points, strict=True)
    ]


def ceilings(records: Iterable[Record]) -> Table:
    """Return one row per measured ceiling, beside what the datasheet promises.

    Parameters
    ----------
    records : iterable of Record
        Those of kind ``ceiling`` are used.

    Returns
    -------
    Table
        Rows by device, unit and name.
    """
    return Table(
        "Measured ceilings",
        ("device", "ceiling", "measured", "CI95", "unit", "datasheet", "% of datasheet", "source"),
        tuple(
            (
                *(c.device, c.name, number(c.value), _interval(c.ci_low, c.ci_high), c.unit),
                number(c.datasheet),
                number(100 * c.value / c.datasheet if c.datasheet else None, 3),
                c.source or "",
            )
            for c in sorted(only(Ceiling, records), key=lambda c: (c.device, c.unit, c.name))
        ),
        secondary=("source",),
    )


def model_accuracy(records: Iterable[Record]) -> Table:
    """Return one row per model and variant: its accuracy, with Wilson's 95 % interval, and its size.

    Parameters
    ----------
    records : iterable of Record
        Those of kind ``model`` are used.

    Returns
    -------
    Table
        In the order of the evidence within a model; `× smaller` is against the model's ``float32`` variant.
    """
    models = sorted(only(ModelAccuracy, records), key=lambda m: (m.device, m.model))
    full = {(m.device, m.model): m for m in models if m.variant == "float32"}

    def row(m: ModelAccuracy) -> tuple[str, ...]:
        base = full.get((m.device, m.model))
        low, high = wilson_interval(m.correct, m.total)
        return (
            *(m.device, m.model, m.variant, m.backend),
            f"{100 * m.accuracy:.2f}",
            f"{100 * low:.2f}–{100 * high:.2f}",
            f"{100 * (m.accuracy - base.accuracy):+.2f}" if base else "",
            f"{m.correct}/{m.total}",
            number(m.size_bytes, unit=1000),
            number(m.bits_per_weight),
            number(base.size_bytes / m.size_bytes, 3) if base and m.size_bytes else "",
        )

    return Table(
        "Model accuracy",
        (
            *("device", "model", "variant", "backend", "accuracy %", "CI95 %", "vs float32 points"),
            *("correct", "kB", "bpw", "× smaller than float32"),
        ),
        tuple(map(row, models)),
        "The intervals are Wilson's.",
    )


def algorithms(records: Iterable[Record]) -> Table:
    """Return one row per algorithm, bit width and backend: what it makes of a trained model.

    Parameters
    ----------
    records : iterable of Record
        Those of kind ``algorithm``.

    Returns
    -------
    Table
        By model and bits, within these the smallest divergence first.
    """
    found = sorted(
        only(AlgorithmAccuracy, records), key=lambda a: (a.device, a.model, -a.bits, a.divergence, a.algorithm)
    )
    rows = tuple(
        (
            *(a.device, a.model, str(a.bits), a.algorithm, a.backend, number(a.bits_per_weight, 3)),
            number(a.size_bytes, unit=1000),
            number(a.training_bytes, unit=1000),
            f"{number(a.perplexity, 5)} ± {number(a.perplexity_se, 2)}",  # on the same samples: all digits count
            _with_error(a.divergence, a.divergence_se),
            _with_error(a.divergence_over_rtn, a.divergence_over_rtn_se),
            _with_error(a.output_error, a.output_error_se),
            number(a.proxy_loss, 3),
            _with_error(a.accuracy, a.accuracy_se, unit=0.01),
            number(a.seconds, 3),
            str(a.seeds),
        )
        for a in found
    )
    return Table(
        "Which algorithm when",
        (
            *("device", "model", "bits", "algorithm", "backend", "bpw", "kB", "training kB"),
            *("perplexity", "KL nats"),
            *("KL less that of RTN", "output error", "proxy loss", "accuracy %", "seconds", "calibrations"),
        ),
        rows,
        "±: standard error over held-out samples and calibrations; of the output error over calibrations. Perplexity "
        "is of a byte, of an image for digits. Output error and proxy loss are shares of the squared output.",
        ("proxy loss", "training kB", "calibrations", "seconds"),
    )


def _with_error(value: float | None, error: float | None, unit: float = 1.0) -> str:
    """Return a figure with its standard error, to the digits that the error leaves."""
    if value is None or error is None or not (error > 0 and math.isfinite(value / error)):
        return number(value, 4, unit)
    digits = max(1 - math.floor(math.log10(error / unit)), 0)
    return f"{value / unit:.{digits}f} ± {error / unit:.{digits}f}"


def number_formats(records: Iterable[Record]) -> Table:
    """Return one row per number format and backend: what it costs, what it keeps, how fast it is made and undone.

    Parameters
    ----------
    records : iterable of Record
        Those of kind ``format``, and the measurements that they name.

    Returns
    -------
    Table
        Formats in the order of the evidence; speeds are those of a backend's fastest kernel.
    """
    found = only(FormatAccuracy, records)
    measured = only(Measurement, records)
    sources = list(dict.fromkeys(source for f in found for source in f.sqnr_db))
    rows = []
    for f in found:
        speeds = {
            (direction, m.cache, m.backend): max(
                _elements(n.shape) / n.median_s for n in made if (n.cache, n.backend) == (m.cache, m.backend)
            )
            for direction, link in (("encode", f.encode), ("decode", f.decode))
            for made in [[m for m in measured if m.device == f.device and _named(m, link)]]
            for m in made
        }
        for backend in dict.fromkeys(key[2] for key in speeds) or [""]:
            rows.append(
                (
                    *(f.device, f.name, number(f.bits_per_weight)),
                    *(number(f.sqnr_db.get(source), 4) for source in sources),
                    backend,
                    *(
                        number(speeds.get((direction, cache, backend)), 3, unit=1e6)
                        for direction in ("encode", "decode")
                        for cache in ("hot", "cold")
                    ),
                )
            )
    return Table(
        "Number formats",
        (
            *("device", "format", "bits", *(f"SQNR dB, {source}" for source in sources), "backend"),
            *("encode M/s hot", "encode M/s cold", "decode M/s hot", "decode M/s cold"),
        ),
        tuple(rows),
        "Bits a number with its share of the scales; SQNR by the reference; millions of numbers a second of the "
        "fastest kernel of a backend.",
    )


def _named(m: Measurement, link: Mapping[str, Any]) -> bool:
    """Return whether a measurement is of the operation and parameters that a format names."""
    wanted = link.get("parameters", {}).items()
    return m.operation == link.get("operation") and all(m.parameters.get(name) == value for name, value in wanted)


def _elements(sizes: Mapping[str, int]) -> int:
    """Return the numbers that a call encodes or decodes."""
    return sizes["M"] * sizes["K"] if "K" in sizes else sizes["N"]


def layer_errors(records: Iterable[Record]) -> Table:
    """Return one row per layer of each model and variant: the error of its output and of its weights.

    Parameters
    ----------
    records : iterable of Record
        Those of kind ``model`` are used.

    Returns
    -------
    Table
        Layers in the model's order.
    """
    rows = []
    for m in sorted(only(ModelAccuracy, records), key=lambda m: (m.device, m.model)):
        for layer in dict.fromkeys((*m.layer_mse, *m.layer_weight_mse)):  # their union, in order
            errors = (number(m.layer_mse.get(layer), 3), number(m.layer_weight_mse.get(layer), 3))
            rows.append((m.device, m.model, m.variant, m.backend, layer, *errors))
    return Table(
        "Layer errors",
        ("device", "model", "variant", "backend", "layer", "output MSE", "weight MSE"),
        tuple(rows),
        "Mean squared errors against float32.",
    )


def only(cls: type[R], records: Iterable[Record]) -> list[R]:
    """Return the records of one kind."""
    return [record for record in records if isinstance(record, cls)]


def _worst(errors: Iterable[float | None]) -> float | None:
    """Return the largest error; one that is not a number is beyond any bound."""
    known = (error for error in errors if error is not None)
    return max(known, key=lambda error: math.inf if math.isnan(error) else error, default=None)


def _comparable(m: Measurement) -> tuple[Any, ...]:
    ends = str(m.parameters.get("source")), str(m.parameters.get("output_format"))
    return m.device, m.operation, shape(m.shape), m.cache, m.fill, *ends


def cell(value: Any) -> str:
    """Return a parameter's value compactly."""
    if isinstance(value, Mapping):
        return f"({pairs(value)})"
    if isinstance(value, list | tuple):
        return "/".join(map(cell, value))
    return "" if value is None else number(value) if isinstance(value, float) else str(value)


def pairs(mapping: Mapping[str, Any]) -> str:
    """Return parameters compactly: ``format=int4 group=128``."""
    return " ".join(f"{name}={cell(value)}" for name, value in mapping.items())


def _undeclared(group: Iterable[Verdict]) -> str:
    """Return what was refused, the values of one parameter together: ``format: int4 int2; group: 64``."""
    values: dict[str, dict[str, None]] = defaultdict(dict)  # a dict for a set that keeps its order
    for record in group:
        if record.verdict == "refused":
            # A refused combination of several parameters says nothing of each alone.
            one = len(record.parameters) == 1
            name, value = next(iter(record.parameters.items())) if one else ("", record.parameters)
            for item in value if isinstance(value, list) else [value]:
                values[name][cell(item)] = None
    return "; ".join(f"{name}: {' '.join(items)}" if name else " ".join(items) for name, items in values.items())
