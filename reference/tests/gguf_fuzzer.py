"""Mutated GGUF files, what becomes of them, and campaigns of many.

A mutant is a function of its number, so a record of numbers repeats a finding: ``mutant(corpus, number)``.
"""

import io
import json
import os
import random
import re
import resource
import signal
import tempfile
import time
import tracemalloc
import zlib
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import gguf
import numpy as np

from lowbit_cts.reference.gguf import container
from lowbit_cts.reference.gguf.container import Array, Tensor
from lowbit_cts.reference.gguf.types import ARRAY, GGML_TYPES, STRING

INTERESTING = [
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    9,
    10,
    11,
    12,
    13,
    24,
    31,
    32,
    33,
    39,
    41,
    42,
    43,
    63,
    64,
    127,
    128,
    255,
    256,
    4096,
] + [(1 << n) + d for n in (15, 16, 20, 21, 24, 31, 32, 40, 56, 60, 61, 62, 63, 64) for d in (-8, -1, 0, 1)]
ALLOWANCE = 1 << 20  # bytes a reading may allocate whatever the file
PATIENCE = 10  # seconds a file may take
PER_TASK = 1000
KIND = [
    (r"^byte \d+: ", ""),
    (r"(['\"]).*['\"]", "*"),
    (r"\([A-Z]\w+\)", "(TYPE)"),
    (r"\d+ \w+ was removed", "N was removed"),
    (r"(?<![-\w])\d+", "N"),
    (r"\(N(, N)*,?\)", "(N)"),
]


# The files that are mutated


def written_by_gguf_py(path: Path, build, alignment: int | None = None) -> bytes:
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    build(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def _model(writer: gguf.GGUFWriter) -> None:
    """Write what the head of a language model looks like."""
    writer.add_name("tiny")
    writer.add_context_length(2048)
    writer.add_rope_freq_base(10000.0)
    writer.add_bool("llama.tie", True)
    writer.add_token_list(["<s>", "</s>", "▁a", "b", "é", "字"])
    writer.add_token_scores([0.0, 0.0, -1.5, -2.0, -3.0, -4.0])
    writer.add_token_types([3, 3, 1, 1, 1, 1])
    writer.add_chat_template("{% for m in messages %}{{ m }}{% endfor %}")
    rng = np.random.default_rng(1)
    writer.add_tensor("token_embd.weight", rng.standard_normal((6, 8)).astype(np.float32))
    writer.add_tensor("blk.0.attn_norm.weight", np.ones(8, np.float32))
    weight = gguf.quants.quantize(rng.standard_normal((3, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("blk.0.attn_q.weight", weight, raw_dtype=gguf.GGMLQuantizationType.Q4_0)


def _every_value_type(writer: gguf.GGUFWriter) -> None:
    kinds = gguf.GGUFValueType
    for code in kinds:
        if code is kinds.STRING:
            writer.add_string("a.string", "text")
        elif code is not kinds.ARRAY:
            writer.add_key_value(f"a.{code.name.lower()}", True if code is kinds.BOOL else 1, code)
            writer.add_key_value(f"of.{code.name.lower()}", [0, 1, 1], kinds.ARRAY, code)
    writer.add_array("nested", [[[1, 2], [3]], [[4]]])
    writer.add_array("nested.strings", [["a", "b"], ["c"]])


def _every_tensor_type(writer: gguf.GGUFWriter) -> None:
    for kind, (elements, size) in gguf.GGML_QUANT_SIZES.items():
        if kind.name == "Q8_1":  # whose size gguf-py has wrong
            continue
        carrier = GGML_TYPES[kind.name].carrier
        data = np.zeros((2, size // carrier.itemsize), carrier)
        assert data.nbytes == 2 * size
        writer.add_tensor(f"t.{kind.name}", data, raw_dtype=kind)
        assert writer.tensors[0][f"t.{kind.name}"].shape == (2, elements)


def _four_dimensions(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("conv", np.arange(120, dtype=np.float16).reshape(2, 3, 4, 5))
    writer.add_tensor("empty", np.zeros((3, 0), np.float32))
    writer.add_tensor("index", np.arange(5, dtype=np.int64))


def ours() -> bytes:
    """Return what gguf-py does not write: empty arrays, deep ones, no metadata to speak of."""
    deep: Array | np.ndarray = np.array([7], np.uint8)
    for _ in range(6):
        deep = Array(ARRAY, [deep, Array(ARRAY, [])])
    metadata = {"deep": deep, "none": Array(STRING, []), "no.numbers": np.zeros(0, np.float64)}
    tensors = {"": Tensor("BF16", np.arange(3, dtype=np.uint16)), "é": Tensor("Q8_1", np.zeros((1, 36), np.uint8))}
    file = io.BytesIO()
    container.write(file, metadata, tensors, 8)
    return file.getvalue()


def corpus() -> list[tuple[bytes, list[tuple[int, int]]]]:
    """Return files, each with position and size of its fields as gguf-py finds them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.gguf"
        files = [
            written_by_gguf_py(path, _model),
            written_by_gguf_py(path, _every_value_type, 64),
            written_by_gguf_py(path, _every_tensor_type),
            written_by_gguf_py(path, _four_dimensions, 128),
            written_by_gguf_py(path, lambda writer: None),
            ours(),
        ]
        return [(file, _fields(path, file)) for file in files]


def _fields(path: Path, file: bytes) -> list[tuple[int, int]]:
    path.write_bytes(file)
    reader = gguf.GGUFReader(path)
    base = reader.data.__array_interface__["data"][0]
    fields = [*reader.fields.values(), *(tensor.field for tensor in reader.tensors)]
    found = {(part.__array_interface__["data"][0] - base, part.nbytes) for field in fields for part in field.parts}
    return sorted((at, size) for at, size in found if size)


# Mutations


def _flip(rng, data, at, size, other):
    data[at] ^= 1 << rng.randrange(8)


def _byte(rng, data, at, size, other):
    data[at] = rng.randrange(256)


def _integer(rng, data, at, size, other):
    """Write an interesting integer, as wide as the field (strings: as their length), or not."""
    if size > 8:
        at, size = max(at - 8, 0), 8
    if rng.random() < 0.3:
        size = rng.choice((1, 2, 4, 8))
    value = rng.choice(INTERESTING) if rng.random() < 0.9 else len(data) - at + rng.randrange(-40, 2)
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


def _step(rng, data, at, size, other):
    size = min(size, 8)
    value = int.from_bytes(data[at : at + size], "little") + rng.choice((-32, -8, -1, 1, 8, 32))
    data[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, "little")


def _insert(rng, data, at, size, other):
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 12, 64)))


def _delete(rng, data, at, size, other):
    del data[at : at + rng.choice((1, 2, 4, 8, 12, 64))]


def _lengthen(rng, data, at, size, other):
    """Make a string longer or shorter, and say so; elsewhere shift the rest of the file by a multiple of 8."""
    if at >= 8 and int.from_bytes(data[at - 8 : at], "little") == size:
        new = bytes(rng.choices(b"a.\0\xc3\xa9", k=rng.choice((0, 1, size, size + 1, 63, 64, 65))))
        data[at - 8 : at + size] = len(new).to_bytes(8, "little") + new
    else:
        data[at:at] = bytes(8 * rng.choice((1, 4, 8)))


def _repeat(rng, data, at, size, other):
    size = rng.randrange(1, 64)
    data[at:at] = data[at : at + size] * rng.choice((1, 1, 2, 50))


def _splice(rng, data, at, size, other):
    start = rng.randrange(len(other))
    data[at : at + rng.choice((0, 64, len(data)))] = other[start : start + rng.choice((8, 64, len(other)))]


def _move(rng, data, at, size, other):
    """Copy a piece to another place: duplicate names, types where sizes were."""
    size, start = rng.choice((4, 8, 16, 40)), rng.randrange(len(data))  # of bytes, not of the field
    data[at : at + size] = data[start : start + size]


def _truncate(rng, data, at, size, other):
    del data[at:]


MUTATIONS = (
    (_flip, 3), (_byte, 1), (_integer, 6), (_step, 3), (_lengthen, 3), (_insert, 1), (_delete, 1), (_repeat, 1),
    (_splice, 1), (_move, 1), (_truncate, 1),
)  # fmt: skip


def mutant(files: list[tuple[bytes, list[tuple[int, int]]]], number: int) -> bytes:
    """Return the mutant of that number: up to five mutations of a file."""
    rng = random.Random(number)
    file, fields = rng.choice(files)
    data = bytearray(file)
    mutations, weights = zip(*MUTATIONS, strict=True)
    for mutate in rng.choices(mutations, weights, k=rng.choice((1, 1, 1, 2, 3, 5))):
        if data:
            at, size = rng.choice(fields) if rng.random() < 0.75 else (rng.randrange(len(data)), 1)
            mutate(rng, data, min(at, len(data) - 1), size, rng.choice(files)[0])
    return bytes(data)


# What becomes of a file


def plain(value):
    """Return a metadata value as something that compares by type and bit."""
    if isinstance(value, Array):
        return value.type, [plain(item) for item in value.items]
    if isinstance(value, str):
        return value
    return value.dtype.str, value.shape, value.tobytes()


def content(file: container.File) -> tuple[list, list]:
    """Return everything in a file that was read, having touched all of it."""
    tensors = [
        (name, tensor.type, tensor.shape, tensor.data.dtype.str, tensor.data.tobytes())
        for name, tensor in file.tensors.items()
    ]
    return [(key, plain(value)) for key, value in file.metadata.items()], [*tensors, file.alignment]


def rewritten(file: container.File) -> bytes:
    target = io.BytesIO()
    container.write(target, file.metadata, file.tensors, file.alignment)
    return target.getvalue()


def kind(text: str) -> str:
    """Return a message without its numbers and names."""
    for pattern, by in KIND:
        text = re.sub(pattern, by, text, flags=re.DOTALL)
    return text


def outcome(read, source) -> container.File | str:
    """Return the file, or why it is refused; any exception but a ValueError that says where goes on."""
    try:
        return read(source)
    except ValueError as error:
        refused = error
    assert type(refused) is ValueError, repr(refused)
    return str(refused)


def examine(data: bytes) -> str:
    """Return what becomes of a file; AssertionError, or whatever goes wrong."""
    file = outcome(container.parse, data)
    if isinstance(file, str):
        told = re.match(r"byte (\d+): [a-z. ]+: .", file)
        assert told, file
        assert int(told[1]) <= len(data), file
        return kind(file)
    found = content(file)
    for tensor in file.tensors.values():
        assert not tensor.data.flags.writeable
        assert data[tensor.offset : tensor.offset + tensor.data.nbytes] == tensor.data.tobytes()
    first = rewritten(file)
    again = container.parse(first)
    assert content(again) == found
    assert rewritten(again) == first
    return "accepted"


def allocated(data: bytes) -> int:
    """Return the most bytes that Python and NumPy held while a file was read."""
    tracemalloc.start()
    try:
        outcome(container.parse, data)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak


def examine_mapped(data: bytes, path: Path) -> str:
    """Return what becomes of a file that is read by mapping."""
    path.write_bytes(data)
    file = outcome(container.read, path)
    if isinstance(file, str):
        return kind(file)
    content(file)
    return "accepted"


# Campaigns

NOTHING = {"seconds_of_slowest_file": 0.0, "peak_bytes_allocated": 0, "peak_bytes_beyond_file_size": 0}
_STATE: dict = {}


def _prepare(files, folder: str) -> None:
    _STATE["files"] = files
    _STATE["path"] = Path(folder) / f"{os.getpid()}.gguf"
    signal.signal(signal.SIGALRM, _too_long)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 29), -1))  # so that a huge allocation is an error


def _too_long(*_) -> None:
    raise TimeoutError(f"more than {PATIENCE} s")


def _task(numbers: range) -> dict:
    found = {"outcomes": Counter(), **NOTHING, "bytes": 0, "failures": []}
    for number in numbers:
        data = mutant(_STATE["files"], number)
        signal.alarm(PATIENCE)
        try:
            start = time.perf_counter()
            verdict = examine(data)
            seconds = time.perf_counter() - start
            if number % 50 == 0:
                peak = allocated(data)
                assert peak <= len(data) + ALLOWANCE, f"{peak} bytes allocated for {len(data)}"
                found["peak_bytes_allocated"] = max(found["peak_bytes_allocated"], peak)
                beyond = max(found["peak_bytes_beyond_file_size"], peak - len(data))
                found["peak_bytes_beyond_file_size"] = beyond
                assert examine_mapped(data, _STATE["path"]) == verdict, "a mapped file is read differently"
        except Exception as error:  # whatever it is, it is the finding
            found["failures"].append({"number": number, "error": repr(error), "crc32": zlib.crc32(data)})
            continue
        finally:
            signal.alarm(0)
        found["outcomes"][verdict] += 1
        found["bytes"] += len(data)
        found["seconds_of_slowest_file"] = max(found["seconds_of_slowest_file"], round(seconds, 4))
    return found


def campaign(count: int, progress=None, processes: int | None = None) -> dict:
    """Examine mutants 0 to `count`, on all cores; return a record."""
    processes = processes or len(os.sched_getaffinity(0))
    tasks = [range(at, min(at + PER_TASK, count)) for at in range(0, count, PER_TASK)]
    start, done, size = time.perf_counter(), 0, 0
    outcomes: Counter = Counter()
    failures: list[dict] = []
    worst = NOTHING
    with (
        tempfile.TemporaryDirectory() as folder,
        get_context("fork").Pool(processes, _prepare, (corpus(), folder)) as pool,
    ):
        for found in pool.imap_unordered(_task, tasks):
            outcomes += found["outcomes"]
            failures += found["failures"]
            worst = {name: max(value, found[name]) for name, value in worst.items()}
            size += found["bytes"]
            done += found["outcomes"].total() + len(found["failures"])
            if progress:
                progress(done, time.perf_counter() - start)
    accepted = outcomes.pop("accepted", 0)
    return {
        "mutants": count,
        "accepted": accepted,
        "refused": outcomes.total(),
        "failures": failures,
        "processes": processes,
        "seconds": round(time.perf_counter() - start, 1),
        "bytes": size,
        **worst,
        "refused_by_kind": dict(outcomes.most_common()),
    }


def save(record: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
