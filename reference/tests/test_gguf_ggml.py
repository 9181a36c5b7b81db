"""GGUF files held against ggml's own loader, where its library is there (of llama-cpp-python, or `LOWBIT_CTS_LIBGGML`).

What it takes of mutated files and what is taken here differ in the ways that `container` lists, and in no other.
"""

import ctypes
import faulthandler
import importlib.util
import os
import re
import resource
import struct
import sys
from collections import Counter
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from lowbit_cts.reference.gguf.container import Array, File, Tensor, read, write
from lowbit_cts.reference.gguf.types import ARRAY, GGML_TYPES, NUMBERS, REMOVED_GGML_TYPES, STRING

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    import gguf_fuzzer as fuzzer
finally:
    sys.path.remove(str(HERE))

MUTANTS = int(os.environ.get("LOWBIT_CTS_GGML_FILES", "2000"))


def library() -> str | None:
    if path := os.environ.get("LOWBIT_CTS_LIBGGML"):
        return path
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return None
    return next(map(str, Path(found.origin).parent.glob("lib/libggml-base.so")), None)


pytestmark = pytest.mark.skipif(library() is None or sys.platform != "linux", reason="no libggml-base.so")


class Parameters(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.POINTER(ctypes.c_void_p)))


SIGNATURES = {
    "gguf_init_from_file": (ctypes.c_void_p, ctypes.c_char_p, Parameters),
    "gguf_free": (None, ctypes.c_void_p),
    "gguf_get_alignment": (ctypes.c_size_t, ctypes.c_void_p),
    "gguf_get_data_offset": (ctypes.c_size_t, ctypes.c_void_p),
    "gguf_get_n_kv": (ctypes.c_int64, ctypes.c_void_p),
    "gguf_get_key": (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64),
    "gguf_get_kv_type": (ctypes.c_int, ctypes.c_void_p, ctypes.c_int64),
    "gguf_get_val_data": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64),
    "gguf_get_val_str": (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64),
    "gguf_get_arr_type": (ctypes.c_int, ctypes.c_void_p, ctypes.c_int64),
    "gguf_get_arr_n": (ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64),
    "gguf_get_arr_data": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64),
    "gguf_get_arr_str": (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t),
    "gguf_get_n_tensors": (ctypes.c_int64, ctypes.c_void_p),
    "gguf_get_tensor_name": (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int64),
    "gguf_get_tensor_type": (ctypes.c_int, ctypes.c_void_p, ctypes.c_int64),
    "gguf_get_tensor_offset": (ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64),
    "gguf_get_tensor_size": (ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int64),
    "ggml_get_tensor": (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p),
    "ggml_get_data": (ctypes.c_void_p, ctypes.c_void_p),
    "ggml_free": (None, ctypes.c_void_p),
    "ggml_type_size": (ctypes.c_size_t, ctypes.c_int),
    "ggml_blck_size": (ctypes.c_int64, ctypes.c_int),
    "ggml_type_name": (ctypes.c_char_p, ctypes.c_int),
}
Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


def loaded() -> ctypes.CDLL:
    ggml = ctypes.CDLL(library())
    for name, (result, *arguments) in SIGNATURES.items():
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml


def test_table_of_types_is_ggmls():
    ggml = loaded()
    for kind in GGML_TYPES.values():
        size = (ggml.ggml_blck_size(kind.code), ggml.ggml_type_size(kind.code))
        assert size == (kind.block_elements, kind.block_bytes), kind.name
        assert ggml.ggml_type_name(kind.code).decode().upper() == kind.name.upper()
    for code in REMOVED_GGML_TYPES:
        assert ggml.ggml_type_size(code) == 0


def every_type() -> tuple[dict, dict[str, Tensor]]:
    rng = np.random.default_rng(14)
    metadata = {f"a.{dtype.name}": np.frombuffer(b"\1" * dtype.itemsize, dtype)[0] for dtype in NUMBERS.values()}
    metadata |= {f"of.{dtype.name}": np.array([0, 1, 1], dtype) for dtype in NUMBERS.values()}
    metadata |= {"text": "字 é", "of.text": Array(STRING, ["", "a", "▁b"]), "nothing": np.zeros(0, np.int16)}
    metadata |= {"no.text": Array(STRING, [])}
    tensors = {"empty": Tensor("F32", np.zeros((3, 0), np.float32)), "": Tensor("I8", np.zeros((1, 2, 3, 4), np.int8))}
    for name, kind in GGML_TYPES.items():
        row = 3 * kind.block_bytes // kind.carrier.itemsize
        tensors[name] = Tensor(name, np.frombuffer(rng.bytes(6 * kind.block_bytes), kind.carrier).reshape(2, row))
    return metadata, tensors


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_ggml_reads_what_is_written(tmp_path, alignment):
    metadata, tensors = every_type()
    path = tmp_path / "w.gguf"
    write(path, metadata, tensors, alignment)
    file, ggml, context = read(path), loaded(), ctypes.c_void_p()
    gguf = ggml.gguf_init_from_file(str(path).encode(), Parameters(False, ctypes.pointer(context)))
    assert gguf
    assert ggml.gguf_get_alignment(gguf) == file.alignment == alignment
    assert ggml.gguf_get_data_offset(gguf) == file.data_offset
    agrees_on_metadata(ggml, gguf, file)
    assert ggml.gguf_get_n_tensors(gguf) == len(file.tensors)
    for i, (name, tensor) in enumerate(file.tensors.items()):
        assert ggml.gguf_get_tensor_name(gguf, i).decode() == name
        assert ggml.gguf_get_tensor_type(gguf, i) == GGML_TYPES[tensor.type].code
        assert ggml.gguf_get_tensor_offset(gguf, i) + file.data_offset == tensor.offset
        assert ggml.gguf_get_tensor_size(gguf, i) == tensor.data.nbytes
        data = ggml.ggml_get_data(ggml.ggml_get_tensor(context, name.encode()))
        assert ctypes.string_at(data, tensor.data.nbytes) == tensor.data.tobytes()
    ggml.gguf_free(gguf)
    ggml.ggml_free(context)


def agrees_on_metadata(ggml: ctypes.CDLL, gguf: int, file: File) -> None:
    assert ggml.gguf_get_n_kv(gguf) == len(file.metadata)
    for i, (key, value) in enumerate(file.metadata.items()):
        assert ggml.gguf_get_key(gguf, i).decode() == key
        code = ggml.gguf_get_kv_type(gguf, i)
        if isinstance(value, str):
            assert code == STRING
            assert ggml.gguf_get_val_str(gguf, i).decode() == value
        elif isinstance(value, np.generic):
            assert NUMBERS[code] == value.dtype
            assert ctypes.string_at(ggml.gguf_get_val_data(gguf, i), value.itemsize) == value.tobytes()
        else:
            assert code == ARRAY
            inner, count = ggml.gguf_get_arr_type(gguf, i), ggml.gguf_get_arr_n(gguf, i)
            if isinstance(value, Array):
                assert inner == value.type == STRING
                strings = [ggml.gguf_get_arr_str(gguf, i, j).decode() for j in range(count)]
                assert strings == list(value.items)
            else:
                assert NUMBERS[inner] == value.dtype
                assert count == len(value)
                data = ggml.gguf_get_arr_data(gguf, i)
                assert ctypes.string_at(data, value.nbytes) == value.tobytes() if count else True


def alignment_of(ggml: ctypes.CDLL, path: Path, data: bytes) -> int | None:
    """Return the alignment of a file that ggml loads, or None."""
    path.write_bytes(data)
    gguf = ggml.gguf_init_from_file(str(path).encode(), Parameters(True, None))
    alignment = ggml.gguf_get_alignment(gguf) if gguf else None
    ggml.gguf_free(gguf)
    return alignment


def assembled(key: bytes, alignment: int, names: tuple[bytes, ...] = ()) -> bytes:
    """Return a file with that alignment under that key, and tensors of nothing."""
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(names), 1)
    head += struct.pack("<Q", len(key)) + key + struct.pack("<II", 4, alignment)
    for name in names:
        head += struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 0, 0, 0)
    return head + bytes(4096)


KEY = b"general.alignment"
TAKEN = [
    *[(f"alignment {n}", assembled(KEY, n), n, n in (8, 64)) for n in (1, 4, 8, 64, 1 << 21)],
    *[(f"alignment {n}", assembled(KEY, n), None, False) for n in (0, 24, 40)],
    ("alignment by a key with NUL", assembled(KEY + b"\0", 64), 64, False),
    ("name of 63", assembled(KEY, 32, (b"w" * 63,)), 32, True),
    ("name of 64", assembled(KEY, 32, (b"w" * 64,)), None, False),
    ("name with NUL", assembled(KEY, 32, (b"a\0b",)), 32, False),
]


@pytest.mark.parametrize(("data", "alignment", "taken"), [case[1:] for case in TAKEN], ids=[case[0] for case in TAKEN])
def test_where_the_document_and_ggml_disagree(tmp_path, data, alignment, taken):
    assert alignment_of(loaded(), tmp_path / "w.gguf", data) == alignment
    assert (fuzzer.examine(data) == "accepted") == taken


def test_two_tensors_may_have_one_name_to_ggml(tmp_path):
    path, ggml = tmp_path / "w.gguf", loaded()
    data = assembled(KEY, 32, (b"a\0b", b"a\0c"))
    if alignment_of(ggml, path, data):  # 0.25.3 compares what is behind the NUL, and forgets it
        gguf = ggml.gguf_init_from_file(str(path).encode(), Parameters(True, None))
        assert [ggml.gguf_get_tensor_name(gguf, i) for i in range(2)] == [b"a", b"a"]
        ggml.gguf_free(gguf)
    assert fuzzer.examine(data).startswith("name of a tensor: ")


# Mutants: what is told here | what ggml tells (nothing where it loads the file).
# Loading the data, ggml ends the process where it cannot allocate what a file claims: "aborted".

DIFFERENCES = [
    (r"accepted", r".*key .* has invalid GGUF type 9\n.*"),  # nested arrays
    (r"accepted", r".*tensor .* has offset \d+, expected \d+\n.*"),  # gaps, order
    (r"accepted", r".*failed to read tensor data binary blob"),  # padding of the last tensor
    (r"key: a key is .* ASCII", r""),
    (r"(key|string|name of a tensor): not UTF-8", r""),
    (r"name of a tensor: the name of a tensor is .* NUL", r""),
    (r"bool: ", r""),
    (r"version: N is not N", r""),  # 2
    (r"number of dimensions: ", r""),  # 0
    (r"general.alignment: N is not a power of two", r""),  # 1, 2, 4, more than 1 MiB
    (r"(?!accepted)", r"aborted"),
]
DIFFERENCES_WITHOUT_DATA = [
    *DIFFERENCES,
    (r"offset: \* has bytes", r""),  # which ggml's callers check
    (r"offset: \* ends at", r""),
]


def _load(connection, files, numbers: range, path: str, no_alloc: bool) -> None:
    """Send what ggml makes of each mutant, in a process of its own."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    faulthandler.disable()
    os.environ["GGML_NO_BACKTRACE"] = "1"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), -1))
    ggml, told = loaded(), []
    log = Log(lambda level, text, _: told.append(text))
    ggml.ggml_log_set(log, None)
    for number in numbers:
        Path(path).write_bytes(fuzzer.mutant(files, number))
        told.clear()
        connection.send((number, "aborted"))
        context = ctypes.c_void_p()
        wanted = Parameters(True, None) if no_alloc else Parameters(False, ctypes.pointer(context))
        gguf = ggml.gguf_init_from_file(path.encode(), wanted)
        message = b"".join(told).decode(errors="replace").strip()
        assert bool(gguf) == (not message)
        connection.send((number, message))
        ggml.gguf_free(gguf)
        if context:
            ggml.ggml_free(context)


def verdicts_of_ggml(files, count: int, path: Path, no_alloc: bool) -> dict[int, str]:
    processes, found = get_context("fork"), {}
    while len(found) < count:
        ours, theirs = processes.Pipe(duplex=False)
        numbers = range(len(found), count)
        process = processes.Process(target=_load, args=(theirs, files, numbers, str(path), no_alloc))
        process.start()
        theirs.close()
        before = len(found)
        try:
            while True:
                number, message = ours.recv()
                found[number] = message
        except EOFError:
            process.join()
        assert len(found) > before, "ggml's process does nothing"
    return found


@pytest.mark.parametrize("no_alloc", [True, False])
def test_mutants_are_taken_as_ggml_takes_them_but_for_what_is_listed(tmp_path, no_alloc):
    files = fuzzer.corpus()
    verdicts = verdicts_of_ggml(files, MUTANTS, tmp_path / "mutant.gguf", no_alloc)
    differences = DIFFERENCES_WITHOUT_DATA if no_alloc else DIFFERENCES
    counts: Counter[str] = Counter()
    unknown = []
    for number, theirs in verdicts.items():
        ours = fuzzer.examine(fuzzer.mutant(files, number))
        if (ours == "accepted") == (theirs == "") and theirs != "aborted":
            counts["refused by both" if theirs else "taken by both"] += 1
            continue
        known = [pair for pair in differences if re.match(pair[0], ours) and re.search(f"^{pair[1]}$", theirs)]
        counts[f"{ours} | {known[0][1] if known else theirs}"] += 1
        if not known:
            unknown.append((number, ours, theirs))
    print(*counts.most_common(), sep="\n")
    assert not unknown
    assert counts["taken by both"] > MUTANTS // 20
