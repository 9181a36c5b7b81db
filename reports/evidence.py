"""Evidence: what a run observed, one JSON object a line, and the only source of every report.

Each line carries the schema version and its kind::

    {"schema": 1, "kind": "verdict", "run": "...", "time": "...", ...}

Strict JSON has no NaN and no infinities, so they travel as the strings ``"NaN"``, ``"Infinity"`` and
``"-Infinity"``. Fields typed as floats (and as mappings to floats) turn them back on reading; in free-form
mappings (``parameters``, ``semantics``, ``device``, ...) they stay strings, where ``"NaN"`` may be meant.
"""

import errno
import json
import math
import os
import re
import uuid
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

SCHEMA = 1

VERDICTS = ("exact", "faithful", "violation", "refused", "crashed", "hung", "mistrusted")
CACHES = ("hot", "cold")


def now() -> str:
    """Return the time as evidence states it: ISO 8601, UTC, microseconds (so that text sorts by time)."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def new_run() -> str:
    """Return a new run id: unique, and sortable by the second at which the run began."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What every record of evidence states.

    Attributes
    ----------
    run : str
        Identifies the run, see `new_run`.
    time : str
        ISO 8601, UTC, see `now`.
    """

    kind: ClassVar[str]

    run: str
    time: str

    def to_json(self) -> str:
        """Return the record as one line of strict JSON, without the newline.

        Raises
        ------
        TypeError
            If a field holds what JSON cannot say (NumPy scalars and arrays can be said).
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return json.dumps(_portable({"schema": SCHEMA, "kind": self.kind, **values}), allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class Run(Record):
    """The circumstances of a run; every other record refers to one.

    Attributes
    ----------
    suite_version : str
        Version of Lowbit-CTS.
    command : list of str
        The command line.
    profile : str
        ``smoke``, ``standard`` or ``exhaustive``.
    seed : int or None
        The seed given by the user; None when the run is derandomized.
    device, environment : dict
        From `lowbit_cts.reports.device`.
    """

    kind = "run"

    suite_version: str
    command: list[str]
    profile: str
    seed: int | None = None
    device: dict[str, Any]
    environment: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Verdict(Record):
    """The outcome of one property of one implementation at one set of parameters.

    Attributes
    ----------
    backend, backend_version, device, operation, implementation : str
        What was tested; `device` is a slug.
    semantics : dict of str to str
        The declared semantics.
    property : str
        What was checked, e.g. ``enclosure``.
    parameters : dict
        What was exercised; for ``refused``, what the implementation does not declare.
    verdict : str
        One of `VERDICTS`.
    cases, elements : int
        How many cases were run, and how many output elements they held.
    worst : float or None
        Largest observed error over the admissible error (dimensionless): 0 is exact, above 1 a violation.
    message : str or None
        What went wrong.
    counterexample : str or None
        The shrunk inputs, as NumPy source.
    reproduce : str or None
        One command line that shows the outcome again.
    waiver : str or None
        The waiver that covers a known deviation.
    seconds : float
        Wall time spent, s.
    """

    kind = "verdict"

    backend: str
    backend_version: str
    device: str
    operation: str
    implementation: str
    semantics: dict[str, str]
    property: str
    parameters: dict[str, Any]
    verdict: str
    cases: int = 0
    elements: int = 0
    worst: float | None = None
    message: str | None = None
    counterexample: str | None = None
    reproduce: str | None = None
    waiver: str | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:  # noqa: D105
        _check("verdict", self.verdict, VERDICTS)


@dataclass(frozen=True, kw_only=True)
class Measurement(Record):
    """One kernel, timed at one shape on one device, with the error of the very buffers that were timed.

    Attributes
    ----------
    device, backend, backend_version, operation, implementation : str
        What was timed; `device` is a slug.
    parameters : dict
        Includes ``format``.
    workload : str
        Where the shape comes from, e.g. ``llama-3-8b/mlp.down_proj``.
    shape : dict of str to int
        The symbolic sizes, e.g. ``{"M": 1, "N": 4096, "K": 14336}``, in elements.
    fill : str
        The fill family of the inputs.
    cache : str
        ``hot`` or ``cold``.
    clock : str
        What told the time, e.g. ``perf_counter_ns`` or ``cuda events``.
    median_s, ci_low_s, ci_high_s : float
        Median time of one call and its 95 % confidence interval, s.
    samples, dropped : int
        Samples kept, and samples thrown away because the device was throttled.
    calls_per_sample : int
        Calls timed together as one sample.
    operations : float
        Arithmetic operations of one call (a multiplication and an addition count two).
    bytes : float
        The fewest bytes one call must move.
    bits_per_weight : float or None
        Storage, scales and zero points included, bits.
    ceiling_share : float or None
        Share (0 to 1) of the measured roofline min(compute rate, bandwidth * intensity).
    ceiling_name : str or None
        The ceiling that binds.
    speedups, ideal_speedups : dict of str to float
        How many times as long the same took in turns with it, by what else did it: ``float32`` and ``bfloat16`` are
        the product on such numbers, others a library; and what the byte ratio promises (dimensionless).
    sqnr_db : float or None
        Signal over quantization noise, dB; infinite when nothing was lost.
    mismatches : int or None
        Output elements outside the enclosure.
    worst : float or None
        Largest error over bound (dimensionless).
    verdict : str or None
        One of `VERDICTS`, of the timed buffers.
    energy_j : float or None
        Energy of one call, J.
    power_w : float or None
        Mean power while timed, W.
    sm_mhz : float or None
        Median clock of the multiprocessors while timed, MHz.
    notes : str or None
        Anything else a reader must know.
    """

    kind = "measurement"

    device: str
    backend: str
    backend_version: str
    operation: str
    implementation: str
    parameters: dict[str, Any]
    workload: str
    shape: dict[str, int]
    fill: str
    cache: str
    clock: str
    median_s: float
    ci_low_s: float
    ci_high_s: float
    samples: int
    dropped: int = 0
    calls_per_sample: int = 1
    operations: float
    bytes: float
    bits_per_weight: float | None = None
    ceiling_share: float | None = None
    ceiling_name: str | None = None
    speedups: dict[str, float] = field(default_factory=dict)
    ideal_speedups: dict[str, float] = field(default_factory=dict)
    sqnr_db: float | None = None
    mismatches: int | None = None
    worst: float | None = None
    verdict: str | None = None
    energy_j: float | None = None
    power_w: float | None = None
    sm_mhz: float | None = None
    notes: str | None = None

    def __post_init__(self) -> None:  # noqa: D105
        _check("cache", self.cache, CACHES)
        _check("verdict", self.verdict, (None, *VERDICTS))


@dataclass(frozen=True, kw_only=True)
class Ceiling(Record):
    """A rate that nothing on the device was seen to exceed.

    Attributes
    ----------
    device : str
        Slug.
    name : str
        E.g. ``copy bandwidth`` or ``matmul float32``.
    value, ci_low, ci_high : float
        Measured rate and its 95 % confidence interval, in `unit`.
    unit : str
        ``GB/s``, ``GFLOP/s`` or ``GOP/s``.
    datasheet : float or None
        What the vendor states, in `unit`.
    source : str or None
        Where the vendor states it.
    """

    kind = "ceiling"

    device: str
    name: str
    value: float
    unit: str
    ci_low: float
    ci_high: float
    datasheet: float | None = None
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class ModelAccuracy(Record):
    """What quantizing a whole model costs.

    Attributes
    ----------
    device : str
        Slug.
    model, variant, backend : str
        E.g. ``digits-mlp``, ``int8 per tensor`` (or ``float32``), ``numpy``.
    accuracy : float
        Share of correct answers, 0 to 1.
    correct, total : int
        Answers.
    size_bytes : int
        Size of the stored weights, bytes.
    bits_per_weight : float
        Scales and zero points included, bits.
    layer_mse : dict of str to float
        Mean squared error of each layer's output against float32, in the output's units squared.
    layer_weight_mse : dict of str to float
        Mean squared error of each layer's weights against float32.
    """

    kind = "model"

    device: str
    model: str
    variant: str
    backend: str
    accuracy: float
    correct: int
    total: int
    size_bytes: int
    bits_per_weight: float
    layer_mse: dict[str, float]
    layer_weight_mse: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class AlgorithmAccuracy(Record):
    """What an algorithm makes of a trained model at one bit width. Each ``_se`` is the standard error of its figure.

    Attributes
    ----------
    device : str
        Slug.
    model, algorithm, backend : str
        E.g. ``byte-llama``, ``GPTQ``, ``numpy``; the backend is a library's name where that quantized by itself.
    bits : int
        Of a weight's code.
    group_size : int or None
        Columns that share a scale; None: all.
    bits_per_weight : float or None
        Scales and zero points included, bits.
    size_bytes : int or None
        Of the quantized layers, bytes.
    training_bytes : int or None
        Of adapters trained on top: they, their gradients and the optimizer's states, and the quantized layers.
    seeds : int
        Calibrations that the figures are means over.
    seconds : float or None
        To fit all layers, calibration samples given, s.
    output_error : float or None
        Squared error of the layers' outputs for held-out inputs, over the squared outputs; the mean over layers.
    proxy_loss : float or None
        tr(D H D^T) / tr(W H W^T) with D the weights' error and H of the calibration; the mean over layers.
    perplexity : float
        The exponential of the cross entropy of held-out data.
    divergence : float
        Kullback-Leibler divergence from the float32 model's answers, nats an answer.
    divergence_over_rtn : float or None
        That less the divergence of round to nearest at as many bits, sample by sample, nats.
    accuracy : float or None
        Share of right answers, 0 to 1.
    """

    kind = "algorithm"

    device: str
    model: str
    algorithm: str
    backend: str
    bits: int
    group_size: int | None = None
    bits_per_weight: float | None = None
    size_bytes: int | None = None
    training_bytes: int | None = None
    seeds: int = 1
    seconds: float | None = None
    output_error: float | None = None
    output_error_se: float | None = None
    proxy_loss: float | None = None
    perplexity: float
    perplexity_se: float
    divergence: float
    divergence_se: float
    divergence_over_rtn: float | None = None
    divergence_over_rtn_se: float | None = None
    accuracy: float | None = None
    accuracy_se: float | None = None


@dataclass(frozen=True, kw_only=True)
class FormatAccuracy(Record):
    """What a number format keeps of numbers of several kinds, by the reference.

    Attributes
    ----------
    device : str
        Slug of the machine that computed it; the figures do not depend on it.
    name : str
        E.g. ``nf4, blocks of 64``.
    bits_per_weight : float
        Scales and zero points included, bits.
    sqnr_db : dict of str to float
        Signal over quantization noise by the source of the numbers, dB.
    encode, decode : dict
        ``operation`` and ``parameters`` of the measurements that encode and decode it; empty where none does.
    """

    kind = "format"

    device: str
    name: str
    bits_per_weight: float
    sqnr_db: dict[str, float]
    encode: dict[str, Any]
    decode: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Fingerprint(Record):
    """What probing found out of the arithmetic of one product, at one set of parameters and one shape.

    Attributes
    ----------
    device, backend, backend_version, operation, implementation : str
        What was probed; `device` is a slug.
    semantics : dict of str to str
        The declared semantics.
    parameters : dict
        Every parameter of the operation.
    shape : dict of str to int
        M, N and K of the probes, in elements.
    findings : dict of str to str
        By name, such as ``order`` or ``accumulator bits``; ``not determined`` where the probes cannot tell.
    reasons : dict of str to str
        Of findings that are not determined, why.
    tree : str or None
        The order of summation as nested parentheses of positions, where it was found.
    seconds : float
        Wall time spent, s.
    """

    kind = "fingerprint"

    device: str
    backend: str
    backend_version: str
    operation: str
    implementation: str
    semantics: dict[str, str]
    parameters: dict[str, Any]
    shape: dict[str, int]
    findings: dict[str, str]
    reasons: dict[str, str]
    tree: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Tightness(Record):
    """How many planted faults of one kind a bound would let pass, under the semantics of one product.

    Attributes
    ----------
    device, backend, backend_version, operation, implementation : str
        Whose semantics were taken; `device` is a slug.
    semantics : dict of str to str
        The declared semantics.
    regime : str
        ``exact``, where no order of summation rounds, or ``full``.
    length : int
        Products in a sum.
    fault : str
        What was planted, such as ``product``.
    planted, escaped : int
        How many, and how many of them stayed inside the enclosure.
    largest : float
        The largest change of a result that escaped, over the largest result of its row (dimensionless).
    """

    kind = "tightness"

    device: str
    backend: str
    backend_version: str
    operation: str
    implementation: str
    semantics: dict[str, str]
    regime: str
    length: int
    fault: str
    planted: int
    escaped: int
    largest: float


_RECORDS: tuple[type[Record], ...] = (
    Run, Verdict, Measurement, Ceiling, ModelAccuracy, AlgorithmAccuracy, FormatAccuracy, Fingerprint, Tightness,
)  # fmt: skip
KINDS = {cls.kind: cls for cls in _RECORDS}


@dataclass(frozen=True)
class Evidence:
    """What a file of evidence held: its `records`, and how many lines were `torn` by a dying writer."""

    records: tuple[Record, ...]
    torn: int = 0


def append(path: str | os.PathLike[str], record: Record) -> None:
    """Append one record, so that several processes may append at once and any may be killed at any time.

    The whole line is one write to a descriptor opened for appending, which the kernel does not interleave
    with another's. A writer killed in its write leaves a line without an end: the next one begins anew.

    Parameters
    ----------
    path : path-like
        The file; it and its folder are made when missing.
    record : Record
        What to append.

    Raises
    ------
    OSError
        If the line could not be written whole (the disk is full).
    """
    line = record.to_json().encode() + b"\n"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        end = os.lseek(descriptor, 0, os.SEEK_END)
        if end and os.pread(descriptor, 1, end - 1) != b"\n":
            line = b"\n" + line
        if os.write(descriptor, line) != len(line):
            raise OSError(errno.ENOSPC, "evidence was not written whole", os.fspath(path))
    finally:
        os.close(descriptor)


def read(path: str | os.PathLike[str]) -> Evidence:
    """Read a file of evidence, whatever its writers died of.

    Parameters
    ----------
    path : path-like
        A file of JSON lines.

    Returns
    -------
    Evidence
        Every record that was written whole, in the file's order. Fields this version does not know are
        ignored.

    Raises
    ------
    ValueError
        If a line is whole but of another schema version, an unknown kind, or lacks a field.
    """
    records, torn = [], 0
    for number, line in enumerate(Path(path).read_bytes().decode(errors="replace").split("\n"), start=1):
        if not line.strip():
            continue
        value, damaged = _object(line)
        torn += damaged
        if value is not None:
            try:
                records.append(_record(value))
            except ValueError as error:
                raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from None
    return Evidence(tuple(records), torn)


def _check(name: str, value: str | None, admissible: tuple[str | None, ...]) -> None:
    if value not in admissible:
        raise ValueError(f"{name} is {value!r}, which is none of {', '.join(map(str, admissible))}")


def _portable(value: Any) -> Any:
    """Return `value` in terms strict JSON has."""
    if isinstance(value, Enum):
        return _portable(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(_portable(key)): _portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_portable(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((_portable(item) for item in value), key=str)
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays
        return _portable(value.tolist())
    raise TypeError(f"evidence cannot hold {value!r}, a {type(value).__name__}")


# A string inside JSON escapes its quotes, so this marks the start of a record or of a nested mapping.
_START = re.compile(r'\{"schema":')


def _object(line: str) -> tuple[dict[str, Any] | None, bool]:
    """Return the object that a line holds, if any, and whether the line was torn.

    A writer that looked at the file's end before another died in its write continues the torn line: the
    record is then the line's end. (A nested mapping never parses to the line's end: a brace is left.)
    """
    for start in (0, *(match.start() for match in _START.finditer(line, 1))):
        try:
            value = json.loads(line[start:])
        except ValueError:
            continue
        if isinstance(value, dict):
            return value, start > 0
    return None, True


def _record(value: dict[str, Any]) -> Record:
    if (schema := value.get("schema")) != SCHEMA:
        raise ValueError(f"evidence has schema version {schema!r}; this suite knows version {SCHEMA}")
    cls = KINDS.get(kind := value.get("kind", ""))
    if cls is None:
        raise ValueError(f"evidence is of kind {kind!r}, which is none of {', '.join(KINDS)}")
    try:
        known = {field.name: _restored(field, value[field.name]) for field in fields(cls) if field.name in value}
        return cls(**known)
    except TypeError as error:  # a field is missing
        raise ValueError(f"{kind}: {error}") from None


def _restored(field: Field[Any], value: Any) -> Any:
    """Undo `_portable` where the field's type says that a float was meant."""
    if field.type == dict[str, float]:
        return {name: float(item) for name, item in value.items()}
    if field.type in (float, float | None) and value is not None:
        return float(value)
    return value
