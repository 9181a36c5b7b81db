"""The GGUF file: to the byte what gguf-py writes, to the field what it reads, and a ValueError for anything else."""

import io
import os
import struct
import sys
from itertools import chain
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lowbit_cts.reference.gguf import reader
from lowbit_cts.reference.gguf.container import Array, File, Tensor, parse, read, write
from lowbit_cts.reference.gguf.types import ARRAY, GGML_TYPES, NUMBERS, REMOVED_GGML_TYPES, STRING

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
try:
    from gguf_fuzzer import ALLOWANCE, INTERESTING, allocated, content, examine, plain
finally:
    sys.path.remove(str(HERE))

NOT_IN_GGUF_PY = {"Q2_0"}  # 0.19 does not know it yet
WRONG_IN_GGUF_PY = {"Q8_1"}  # 40 bytes, as if its two fp16 were float32
UINT32, INT32, FLOAT32, BOOL = 4, 5, 6, 7


def written(metadata, tensors, alignment=None) -> bytes:
    file = io.BytesIO()
    write(file, metadata, tensors, alignment)
    return file.getvalue()


# A second writer, of pieces with names, that lets everything be wrong.


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def text(string: str | bytes) -> bytes:
    encoded = string.encode() if isinstance(string, str) else string
    return u64(len(encoded)) + encoded


def entry(key: str | bytes, code: int, *value: bytes) -> bytes:
    return text(key) + u32(code) + b"".join(value)


def array(code: int, count: int, *items: bytes) -> bytes:
    return u32(code) + u64(count) + b"".join(items)


def description(name: str | bytes = "w", dims=(4,), code: int = 0, offset: int = 0, count: int | None = None) -> bytes:
    return text(name) + u32(len(dims) if count is None else count) + b"".join(map(u64, dims)) + u32(code) + u64(offset)


def assembled(*, entries=(), descriptions=(), data: bytes = b"", alignment: int = 32, **wrong) -> bytes:
    """Return a file; `wrong` takes the place of magic, version, tensors or entries (their numbers)."""
    head = b"".join(
        [
            wrong.get("magic", b"GGUF"),
            u32(wrong.get("version", 3)),
            u64(wrong.get("tensors", len(descriptions))),
            u64(wrong.get("number", len(entries))),
            *entries,
            *descriptions,
        ]
    )
    return head + bytes(-len(head) % alignment) + data


# Round trips


numbers = st.sampled_from([code for code in NUMBERS if code != BOOL])
names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20).filter(
    lambda name: len(name.encode()) < 64
)
keys = st.text(st.characters(max_codepoint=127, exclude_characters="\0"), min_size=1, max_size=20).filter(
    lambda key: key != "general.alignment"
)


@st.composite
def number_arrays(draw, least: int = 0, most: int = 9) -> np.ndarray:
    """Draw any bits of any type, NaN with payloads among them."""
    code, count = draw(st.sampled_from(list(NUMBERS))), draw(st.integers(least, most))
    if code == BOOL:
        return np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), bool)
    size = count * NUMBERS[code].itemsize
    return np.frombuffer(draw(st.binary(min_size=size, max_size=size)), NUMBERS[code])


strings = st.text(max_size=12)
flat_arrays = number_arrays() | st.builds(Array, st.just(STRING), st.lists(strings, max_size=5))
arrays = st.recursive(
    flat_arrays, lambda inner: st.builds(Array, st.just(ARRAY), st.lists(inner, max_size=4)), max_leaves=8
)
values = st.one_of(number_arrays(1, 1).map(lambda numbers: numbers[0]), strings, arrays)
alignments = st.sampled_from([8, 16, 32, 64, 256, 4096])


@st.composite
def tensors(draw, types=tuple(GGML_TYPES)) -> Tensor:
    kind = GGML_TYPES[draw(st.sampled_from(types))]
    rows = draw(st.lists(st.integers(0, 4), max_size=3))
    blocks = draw(st.integers(0, 3))
    shape = (*rows, blocks * kind.block_bytes // kind.carrier.itemsize)
    seed = draw(st.integers(0, 99))
    size = int(np.prod(shape)) * kind.carrier.itemsize
    return Tensor(kind.name, np.frombuffer(np.random.default_rng(seed).bytes(size), kind.carrier).reshape(shape))


@settings(max_examples=300)
@given(st.dictionaries(keys, values, max_size=6), st.dictionaries(names, tensors(), max_size=5), alignments)
def test_what_is_written_is_read(metadata, held, alignment):
    data = written(metadata, held, alignment)
    file = parse(data)
    expected = dict(metadata) | ({"general.alignment": np.uint32(alignment)} if alignment != 32 else {})
    assert list(file.metadata) == list(expected)
    assert [plain(value) for value in file.metadata.values()] == [plain(value) for value in expected.values()]
    assert file.alignment == alignment
    assert file.data_offset % alignment == 0
    assert list(file.tensors) == list(held)
    for name, tensor in file.tensors.items():
        assert (tensor.type, tensor.shape) == (held[name].type, held[name].shape)
        assert (tensor.offset - file.data_offset) % alignment == 0
        assert tensor.data.tobytes() == held[name].data.tobytes()
        kind = GGML_TYPES[tensor.type]
        assert tensor.data.nbytes == np.prod(tensor.shape, dtype=int) // kind.block_elements * kind.block_bytes
    assert written(file.metadata, file.tensors) == data
    assert examine(data) == "accepted"


# gguf-py


typed = {
    "a.u8": (np.uint8(200), gguf.GGUFValueType.UINT8),
    "a.i8": (np.int8(-7), gguf.GGUFValueType.INT8),
    "a.u16": (np.uint16(60000), gguf.GGUFValueType.UINT16),
    "a.i16": (np.int16(-2), gguf.GGUFValueType.INT16),
    "a.u32": (np.uint32(4_000_000_000), gguf.GGUFValueType.UINT32),
    "a.i32": (np.int32(-1), gguf.GGUFValueType.INT32),
    "a.f32": (np.float32(0.1), gguf.GGUFValueType.FLOAT32),
    "a.bool": (np.True_, gguf.GGUFValueType.BOOL),
    "a.string": ("▁Straße 字 😀", gguf.GGUFValueType.STRING),
    "a.u64": (np.uint64(2**64 - 1), gguf.GGUFValueType.UINT64),
    "a.i64": (np.int64(-(2**63)), gguf.GGUFValueType.INT64),
    "a.f64": (np.float64(0.1), gguf.GGUFValueType.FLOAT64),
}


def listed(value):
    """Return a metadata value as gguf-py takes it."""
    if isinstance(value, Array):
        return [listed(item) for item in value.items]
    return value if isinstance(value, str) else value.tolist()


def by_gguf_py(path: Path, metadata, held, alignment=None) -> bytes:
    """Return the file that gguf-py writes; types of nested numbers are what it infers: int32, float32, bool."""
    writer = gguf.GGUFWriter(path, "")
    types = gguf.GGUFValueType
    for key, value in metadata.items():
        if isinstance(value, np.ndarray):
            code = next(code for code, dtype in NUMBERS.items() if dtype == value.dtype)
            writer.add_key_value(key, listed(value), types.ARRAY, types(code))
        elif isinstance(value, Array):
            writer.add_key_value(key, listed(value), types.ARRAY)
        elif isinstance(value, str):
            writer.add_key_value(key, value, types.STRING)
        else:
            code = next(code for code, dtype in NUMBERS.items() if dtype == value.dtype)
            writer.add_key_value(key, value.item(), types(code))
    if alignment:
        writer.add_custom_alignment(alignment)
    for name, tensor in held.items():
        writer.add_tensor(name, tensor.data, raw_dtype=gguf.GGMLQuantizationType[tensor.type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def flattened(value):
    """Return a metadata value as gguf-py reads it, without the nesting."""
    if isinstance(value, Array) and value.type == ARRAY:
        return [leaf for item in value.items for leaf in flattened(item)]
    return listed(value)


def agrees_with_the_reader_of_gguf_py(path: Path, file: File) -> None:
    found = gguf.GGUFReader(path)
    own = [key for key in found.fields if not key.startswith("GGUF.")]
    assert own == list(file.metadata)
    assert found.fields["GGUF.tensor_count"].contents() == len(file.tensors)
    assert found.fields["GGUF.kv_count"].contents() == len(file.metadata)
    for key, value in file.metadata.items():
        field = found.fields[key]
        flat = flattened(value)
        assert field.contents() == flat, key
    assert found.alignment == file.alignment
    assert [tensor.name for tensor in found.tensors] == list(file.tensors)
    for theirs in found.tensors:
        tensor = file.tensors[theirs.name]
        assert theirs.tensor_type.name == tensor.type
        assert tuple(theirs.shape.tolist()) == tensor.shape[::-1]
        assert theirs.data_offset == tensor.offset
        assert (theirs.n_bytes, theirs.n_elements) == (tensor.data.nbytes, np.prod(tensor.shape, dtype=int))
        assert theirs.data.tobytes() == tensor.data.tobytes()
        if tensor.type != "BF16":  # which gguf-py views as bytes
            assert (theirs.data.shape, theirs.data.dtype) == (tensor.data.shape, tensor.data.dtype)


def test_a_file_with_every_type_is_gguf_pys_to_the_byte(tmp_path):
    held = {}
    rng = np.random.default_rng(14)
    for name, kind in GGML_TYPES.items():
        if name not in NOT_IN_GGUF_PY | WRONG_IN_GGUF_PY:
            row = 3 * kind.block_bytes // kind.carrier.itemsize
            held[f"t.{name}"] = Tensor(
                name, np.frombuffer(rng.bytes(6 * kind.block_bytes), kind.carrier).reshape(2, row)
            )
    arrays_of_numbers = {f"of.{dtype.name}": np.array([0, 1, 1], dtype) for code, dtype in NUMBERS.items()}
    metadata = {key: value for key, (value, _) in typed.items()} | arrays_of_numbers
    metadata["of.strings"] = Array(STRING, ["", "a", "▁b"])
    metadata["nested"] = Array(ARRAY, [np.array([1, 2], np.int32), np.array([3], np.int32)])
    theirs = by_gguf_py(tmp_path / "theirs.gguf", metadata, held, 64)
    write(tmp_path / "ours.gguf", metadata, held, 64)
    assert (tmp_path / "ours.gguf").read_bytes() == theirs
    agrees_with_the_reader_of_gguf_py(tmp_path / "theirs.gguf", read(tmp_path / "theirs.gguf"))
    fields = gguf.GGUFReader(tmp_path / "ours.gguf").fields
    for key, (_, kind) in typed.items():
        assert fields[key].types == [kind]


writable = st.one_of(
    st.sampled_from([value for value, _ in typed.values()]),
    strings.filter(bool),
    st.lists(strings, min_size=1, max_size=4).map(lambda items: Array(STRING, items)),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1).map(lambda items: np.array(items, np.int32)),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1).map(lambda items: np.array(items, np.float32)),
    st.lists(st.lists(st.booleans(), min_size=1, max_size=3), min_size=1, max_size=3).map(
        lambda items: Array(ARRAY, [np.array(item) for item in items])
    ),
)
known = tuple(name for name in GGML_TYPES if name not in NOT_IN_GGUF_PY | WRONG_IN_GGUF_PY)


@settings(max_examples=100)
@given(
    st.dictionaries(keys, writable, max_size=5),
    st.dictionaries(names, tensors(known), max_size=4),
    st.none() | alignments,
)
def test_any_file_is_gguf_pys_to_the_byte_and_field(tmp_path_factory, metadata, held, alignment):
    assume(not any(key.startswith("GGUF.") for key in metadata))  # gguf-py's reader keeps counts there
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    theirs = by_gguf_py(path, metadata, held, alignment)
    stated = {"general.alignment": np.uint32(alignment)} if alignment else {}
    assert written({**metadata, **stated}, held) == theirs
    agrees_with_the_reader_of_gguf_py(path, read(path))


def test_table_of_types_is_gguf_pys():
    theirs = {kind.name: (int(kind), *size) for kind, size in gguf.GGML_QUANT_SIZES.items()}
    ours = {kind.name: (kind.code, kind.block_elements, kind.block_bytes) for kind in GGML_TYPES.values()}
    assert set(ours) - set(theirs) == NOT_IN_GGUF_PY
    assert {name for name in theirs if theirs[name] != ours[name]} == WRONG_IN_GGUF_PY
    assert {kind.code for kind in GGML_TYPES.values()} | set(REMOVED_GGML_TYPES) == set(range(43))
    assert {int(code) for code in gguf.GGUFValueType} == {*NUMBERS, STRING, ARRAY}


# definitions.md, traps and rules


def test_shapes_are_reversed_in_the_file():
    data = written({}, {"w": Tensor("F32", np.zeros((2, 3), np.float32))})
    at = 24 + 8 + 1
    assert struct.unpack_from("<IQQIQ", data, at) == (2, 3, 2, 0, 0)
    assert parse(data).tensors["w"].shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "bits"),
    {"Q4_0": 4.5, "Q4_1": 5.0, "Q5_0": 5.5, "Q5_1": 6.0, "Q8_0": 8.5, "Q8_1": 9.0, "Q2_K": 2.625, "Q3_K": 3.4375,
     "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "IQ4_NL": 4.5, "IQ4_XS": 4.25, "MXFP4": 4.25, "NVFP4": 4.5,
     "F32": 32, "BF16": 16}.items(),
)  # fmt: skip
def test_bits_per_weight_are_the_published(name, bits):
    assert GGML_TYPES[name].bits_per_weight == bits


@pytest.mark.parametrize("size", [62, 63, 64, 65])
def test_names_of_64_bytes_satisfy_the_document_but_not_ggml(size):
    data = assembled(descriptions=[description("é" * (size // 2) + "x" * (size % 2))], data=bytes(16))
    if size < 64:
        assert parse(data).tensors
    else:
        with pytest.raises(ValueError, match=r"^byte 24: name of a tensor: 6\d bytes are more than 63"):
            parse(data)


@pytest.mark.parametrize("alignment", [0, 1, 2, 4, 8, 16, 24, 32, 40, 1 << 20, 1 << 21, 1 << 31, 2**32 - 1])
def test_alignment_is_a_power_of_two_and_a_multiple_of_8(alignment):
    entries = [entry("general.alignment", UINT32, u32(alignment))]
    data = assembled(
        entries=entries, descriptions=[description()], data=bytes(16), alignment=alignment % (1 << 21) or 1
    )
    if alignment in (8, 16, 32, 1 << 20):
        assert parse(data).alignment == alignment
    else:
        with pytest.raises(ValueError, match=rf"^byte 53: general.alignment: {alignment} is not a power of two from 8"):
            parse(data)
        with pytest.raises(ValueError, match=rf"^alignment: {alignment} is not a power of two"):
            written({}, {}, alignment)


def test_alignment_is_stated_once():
    stated = {"general.alignment": np.uint32(64), "b": np.uint8(1)}
    assert parse(written(stated, {})).alignment == 64
    assert list(parse(written({"b": np.uint8(1)}, {}, 64)).metadata) == ["b", "general.alignment"]
    assert "general.alignment" not in parse(written({}, {}, 32)).metadata
    with pytest.raises(ValueError, match=r"^alignment: 32 contradicts general.alignment, which is 64"):
        written(stated, {}, 32)
    with pytest.raises(ValueError, match=r"^metadata: general.alignment must be a numpy.uint32"):
        written({"general.alignment": np.int32(64)}, {})


@pytest.mark.parametrize("depth", [1, 15, 16, 17])
def test_arrays_are_nested_up_to_16(depth):
    value: Array | np.ndarray = np.array([1, 2], np.int16)
    for _ in range(depth - 1):
        value = Array(ARRAY, [value])
    raw = array(3, 2, struct.pack("<hh", 1, 2))
    for _ in range(depth - 1):
        raw = array(ARRAY, 1, raw)
    data = assembled(entries=[entry("a", ARRAY, raw)])
    if depth <= 16:
        assert written({"a": value}, {}) == data
        assert plain(parse(data).metadata["a"]) == plain(value)
    else:
        with pytest.raises(ValueError, match=r"^byte \d+: array: arrays may be 16 deep"):
            parse(data)
        with pytest.raises(ValueError, match=r"^metadata: 'a': arrays may be 16 deep"):
            written({"a": value}, {})


# Files that are wrong: what, the byte where it says so, the message


ALIGNED = entry("general.alignment", UINT32, u32(32))
WHOLE = bytes(16)
MANY = [2**31, 2**32 - 1, 2**60, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]

HOSTILE = [
    ("empty", b"", 0, "magic: 4 bytes are needed, 0 are left"),
    ("magic alone", b"GGUF", 4, "version: 4 bytes are needed, 0 are left"),
    ("other magic", assembled(magic=b"GGML"), 0, "magic: b'GGML' is not b'GGUF'"),
    ("big-endian", b"GGUF" + struct.pack(">IQQ", 3, 0, 0), 4, "version: the file is big-endian"),
    *[(f"version {v}", assembled(version=v), 4, f"version: {v} is not 3") for v in (0, 1, 2, 4, 2**32 - 1)],
    *[(f"{n} tensors", assembled(tensors=n), 8, f"number of tensors: {n} need 32 bytes") for n in MANY],
    *[(f"{n} entries", assembled(number=n), 16, f"number of metadata entries: {n} need 14 bytes") for n in MANY],
    *[(f"key of {n}", assembled(entries=[u64(n) + bytes(24)]), 24, f"key: {n} need 1 bytes") for n in (33, *MANY)],
    ("empty key", assembled(entries=[entry("", 0, b"\0")]), 24, "key: a key is 1 to 65535 ASCII"),
    ("long key", assembled(entries=[entry("k" * 65536, 0, b"\0")]), 24, "key: 65536 bytes are more than 65535"),
    ("NUL in a key", assembled(entries=[entry("general.alignment\0", 0, b"\0")]), 24, "key: a key is .* none .* NUL"),
    ("key not ASCII", assembled(entries=[entry("é", 0, b"\0")]), 24, "key: a key is .* ASCII"),
    ("key not UTF-8", assembled(entries=[entry(b"ab\xff", 0, b"\0")]), 34, "key: not UTF-8"),
    ("key twice", assembled(entries=[entry("ab", 0, b"\0")] * 2), 39, "key: 'ab' is there already, at byte 24"),
    *[
        (f"value of type {c}", assembled(entries=[entry("k", c, bytes(8))]), 33, f"type of a value: {c} is not a type")
        for c in (13, 255, 2**32 - 1)
    ],
    *[
        (f"items of type {c}", assembled(entries=[entry("k", ARRAY, array(c, 0))]), 37,
         f"type of the items: {c} is not a type")
        for c in (13, 2**32 - 1)
    ],
    *[
        (f"bool {b}", assembled(entries=[entry("k", BOOL, bytes([b]))]), 37, f"bool: {b} is neither 0 nor 1")
        for b in (2, 128, 255)
    ],
    ("bools", assembled(entries=[entry("k", ARRAY, array(BOOL, 3, b"\1\0\2"))]), 51, "bool: 2 is neither 0 nor 1"),
    *[
        (f"{n} of type {c}", assembled(entries=[entry("k", ARRAY, array(c, n))]), 41, f"number of items: {n} need {s} ")
        for c, s in [(0, 1), (3, 2), (FLOAT32, 4), (BOOL, 1), (12, 8), (STRING, 8), (ARRAY, 12)]
        for n in MANY
    ],
    *[
        (f"string of {n}", assembled(entries=[entry("k", STRING, u64(n))]), 37, f"string: {n} need 1 bytes")
        for n in (20, *MANY)
    ],
    ("string not UTF-8", assembled(entries=[entry("k", STRING, text(b"a\xc3("))]), 46, "string: not UTF-8"),
    ("surrogate", assembled(entries=[entry("k", STRING, text(b"\xed\xa0\x80"))]), 45, "string: not UTF-8"),
    ("overlong NUL", assembled(entries=[entry("k", STRING, text(b"\xc0\x80"))]), 45, "string: not UTF-8"),
    ("late in a long string", assembled(entries=[entry("k", STRING, text(b"\xc3\xa9" * 90000 + b"\xff"))]), 180045,
     "string: not UTF-8"),
    ("only continuations", assembled(entries=[entry("k", STRING, text(b"\x80" * 90000))]), 45, "string: not UTF-8"),
    ("items not UTF-8", assembled(entries=[entry("k", ARRAY, array(STRING, 2, text("a"), text(b"\xff")))]), 66,
     "string: not UTF-8"),
    *[
        (f"alignment of type {c}", assembled(entries=[entry("general.alignment", c, bytes(16))]), 49,
         rf"general.alignment: type {c} is not uint32 \(4\)")
        for c in NUMBERS if c != UINT32
    ],
    ("alignment twice", assembled(entries=[ALIGNED, ALIGNED]), 57, "key: 'general.alignment' is there already"),
    *[(f"name of {n}", assembled(descriptions=[u64(n) + bytes(24)]), 24, f"name of a tensor: {n} need 1 bytes")
      for n in MANY],
    ("NUL in a name", assembled(descriptions=[description("a\0b")], data=WHOLE), 24,
     "name of a tensor: .* none .* NUL"),
    ("name not UTF-8", assembled(descriptions=[description(b"\xff")], data=WHOLE), 32, "name of a tensor: not UTF-8"),
    ("name twice", assembled(descriptions=[description("é"), description("é", offset=32)], data=bytes(64)), 58,
     "name of a tensor: 'é' is there already"),
    *[
        (f"{n} dimensions", assembled(descriptions=[description(dims=(1,) * n)], data=WHOLE), 33,
         f"number of dimensions: {n} is not 1 to 4")
        for n in (0, 5, 6)
    ],
    *[
        (f"{n} dimensions claimed", assembled(descriptions=[description(count=n)], data=WHOLE), 33,
         f"number of dimensions: {n} is not 1 to 4")
        for n in (2**31, 2**32 - 1)
    ],
    *[
        (f"type {c}", assembled(descriptions=[description(code=c)], data=WHOLE), 45,
         f"type of a tensor: {c} is not one of ggml's")
        for c in (43, 100, 2**31, 2**32 - 1)
    ],
    *[
        (f"type {name}", assembled(descriptions=[description(code=c)], data=WHOLE), 45,
         f"type of a tensor: {c} {name} was removed")
        for c, name in REMOVED_GGML_TYPES.items()
    ],
    *[
        (f"rows of {n} in {kind.name}", assembled(descriptions=[description(dims=(n, 2), code=kind.code)], data=WHOLE),
         37, f"dimension: rows of {n} are not whole blocks of {kind.block_elements}")
        for kind in GGML_TYPES.values() if kind.block_elements > 1
        for n in (1, kind.block_elements - 1, kind.block_elements + 1, 2**64 - 1)
    ],
    *[
        (f"dimensions {dims}", assembled(descriptions=[description(dims=dims)], data=WHOLE), 37,
         "dimension: a tensor of shape .* cannot be addressed in 63 bits")
        for dims in [(2**61,), (2**62,), (2**63,), (2**64 - 1,), (2**32, 2**32), (2**31, 2**31), (2**16,) * 4,
                     (2**32 + 1, 2**32), (0, 2**64 - 1), (2**62, 2**62, 0, 4), (2**63, 0)]
    ],
    *[
        (f"dimensions {dims}", assembled(descriptions=[description(dims=dims)], data=WHOLE), 49 + 8 * (len(dims) - 1),
         "offset: 'w' has bytes 0 to")
        for dims in [(5,), (2, 3), (2**60,), (2**30, 2**30)]
    ],
    *[
        (f"offset {o}", assembled(descriptions=[description(offset=o)], data=bytes(64)), 49,
         f"offset: {o} of 'w' is not a multiple of 32")
        for o in (1, 4, 16, 31, 33, 2**63 + 8, 2**64 - 1, 2**64 - 16)
    ],
    *[
        (f"offset {o}", assembled(descriptions=[description(offset=o)], data=bytes(64)), 49,
         f"offset: 'w' has bytes {o} to {o + 16} of 64")
        for o in (64, 2**32, 2**63, 2**64 - 32)
    ],
    ("offset at the end, of nothing", assembled(descriptions=[description(dims=(0,), offset=96)], data=bytes(64)), 49,
     "offset: 'w' has bytes 96 to 96 of 64"),
    ("no padding", assembled(descriptions=[description(dims=(0,))], alignment=1), 57,
     "padding: the data begin at byte 64, and the file ends at 57"),
    ("overlap", assembled(descriptions=[description("a", (12,)), description("b", offset=32)], data=bytes(64)), 82,
     "offset: 'b' begins at 32, before 'a' ends at 48"),
    ("overlap by a byte", assembled(
        descriptions=[description("a", (33,), GGML_TYPES["I8"].code), description("b", offset=32)], data=bytes(64)
    ), 82, "offset: 'b' begins at 32, before 'a' ends at 33"),
    ("overlap, backwards", assembled(descriptions=[description("a", (12,), offset=32), description("b", (12,))],
     data=bytes(96)), 49, "offset: 'a' begins at 32, before 'b' ends at 48"),
    ("the same bytes", assembled(descriptions=[description("a"), description("b")], data=WHOLE), (49, 82), "offset: "),
]  # fmt: skip


@pytest.mark.parametrize(("data", "at", "message"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE])
def test_a_wrong_file_is_refused_with_its_byte(data, at, message):
    places = "|".join(map(str, at if isinstance(at, tuple) else (at,)))
    with pytest.raises(ValueError, match=rf"^byte ({places}): {message}"):
        parse(data)
    assert allocated(data) <= len(data) + ALLOWANCE


def test_arrays_a_million_deep_do_not_recurse():
    data = assembled(entries=[entry("k", ARRAY, array(ARRAY, 1) * 1_000_000, array(0, 0))])
    with pytest.raises(ValueError, match=r"^byte 229: array: arrays may be 16 deep"):
        parse(data)
    assert allocated(data) < ALLOWANCE


ACCEPTED = {
    "bytes behind the last tensor": assembled(descriptions=[description()], data=WHOLE + b"\xff" * 999),
    "a gap": assembled(descriptions=[description(offset=64)], data=b"\xff" * 80),
    "another order": assembled(descriptions=[description("a", offset=32), description("b")], data=bytes(48)),
    "no padding behind the last tensor": assembled(descriptions=[description()], data=WHOLE),
    "padding that is not 0": assembled(descriptions=[description()], data=WHOLE)[:57] + b"\xff" * 7 + WHOLE,
    "a tensor of nothing between": assembled(
        descriptions=[description("a", (12,)), description("b", (0, 3), offset=32)], data=bytes(48)
    ),
    "an empty name": assembled(descriptions=[description("")], data=WHOLE),
    "no tensors, no padding": assembled(alignment=1),
    "NUL in a string": assembled(entries=[entry("k", STRING, text("a\0b"))]),
    "a key that is no snake": assembled(entries=[entry("Gemma-Embedding..x y", 0, b"\7")]),
    "a dimension of 0 beside large ones": assembled(descriptions=[description(dims=(2**30, 0, 2**30))]),
    "types 41 and 42": assembled(
        descriptions=[description("a", (128,), 41), description("b", (64,), 42, 32)], data=bytes(50)
    ),
}


@pytest.mark.parametrize("data", ACCEPTED.values(), ids=ACCEPTED)
def test_what_is_odd_but_clear_is_read(data):
    assert examine(data) == "accepted"


@pytest.mark.parametrize("character", ["é", "字", "😀"])
@pytest.mark.parametrize("shift", range(4))
def test_long_strings_are_checked_piece_by_piece_between_characters(character, shift):
    string = "a" * shift + character * 70_000
    assert parse(assembled(entries=[entry("k", STRING, text(string))])).metadata["k"] == string


def test_content_of_a_gap_and_an_order_of_its_own():
    first, second = np.arange(4, dtype=np.float32), np.arange(4, 8, dtype=np.float32)
    data = assembled(
        descriptions=[description("a", offset=96), description("b")],
        data=second.tobytes() + b"\xff" * 80 + first.tobytes() + b"\xff",
    )
    file = parse(data)
    np.testing.assert_array_equal(file.tensors["a"].data, first)
    np.testing.assert_array_equal(file.tensors["b"].data, second)


# Every prefix, every field


def small() -> bytes:
    nested = Array(ARRAY, [Array(STRING, ["a", "é"]), np.array([True]), np.zeros(0, np.float64)])
    metadata = {"u": np.uint16(7), "s": "字", "b": np.array([True, False]), "n": nested, "f": np.arange(3.0)}
    held = {"x": Tensor("Q4_0", np.arange(36, dtype=np.uint8).reshape(2, 18)), "y": Tensor("F16", np.ones(5, "f2"))}
    return written(metadata, held, 8)


def test_a_file_cut_anywhere_is_refused_up_to_its_last_padding():
    data = small()
    end = max(tensor.offset + tensor.data.nbytes for tensor in parse(data).tensors.values())
    assert end < len(data)
    for size in range(end):
        assert examine(data[:size]) != "accepted", size
    for size in range(end, len(data) + 1):
        assert content(parse(data[:size])) == content(parse(data))


def test_any_byte_may_be_anything():
    data = small()
    for at in range(len(data)):
        for value in (0, 1, 0x7F, 0x80, 0xFF, data[at] ^ 1, data[at] ^ 128):
            examine(data[:at] + bytes([value]) + data[at + 1 :])


@st.composite
def pieces(draw) -> list[bytes]:
    """Draw a file as a list of its fields."""
    keys_drawn = draw(st.lists(st.sampled_from("abcdef"), unique=True, max_size=4))
    held = draw(st.lists(st.sampled_from("tuvw"), unique=True, max_size=3))
    found = [b"GGUF", u32(3), u64(len(held)), u64(len(keys_drawn))]

    def value(code: int, depth: int) -> list[bytes]:
        if code == STRING:
            string = draw(strings).encode()
            return [u64(len(string)), string]
        if code == ARRAY:
            inner = draw(st.sampled_from([*NUMBERS, STRING] + [ARRAY] * 3 * (depth < 3)))
            items = [value(inner, depth + 1) for _ in range(draw(st.integers(0, 3)))]
            return [u32(inner), u64(len(items)), *chain(*items)]
        return [bytes([draw(st.integers(0, 1))]) + bytes(NUMBERS[code].itemsize - 1)]

    for key in keys_drawn:
        code = draw(st.sampled_from([*NUMBERS, STRING, ARRAY, ARRAY]))
        found += [u64(1), key.encode(), u32(code), *value(code, 0)]
    offset = 0
    for name in held:
        kind = GGML_TYPES[draw(st.sampled_from(["F32", "I8", "Q4_0", "BF16", "TQ1_0"]))]
        dims = [kind.block_elements * draw(st.integers(0, 2)), *draw(st.lists(st.integers(0, 3), max_size=3))]
        found += [u64(1), name.encode(), u32(len(dims)), *map(u64, dims), u32(kind.code), u64(offset)]
        offset += -(-int(np.prod(dims)) // kind.block_elements * kind.block_bytes // 32) * 32
    head = sum(map(len, found))
    return [*found, bytes(-head % 32), bytes(offset)]


@settings(max_examples=100)
@given(pieces())
def test_files_of_the_second_writer_are_read(fields):
    assert examine(b"".join(fields)) == "accepted"


@settings(max_examples=1500)
@given(pieces(), st.data())
def test_a_file_with_wrong_fields_is_read_or_refused(fields, data):
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(fields) - 1))
        size = len(fields[at])
        change = data.draw(st.sampled_from(["number", "number", "number", "bytes", "drop", "repeat", "swap"]))
        if change == "number":
            number = data.draw(st.sampled_from(INTERESTING))
            fields[at] = (number % (1 << 8 * size)).to_bytes(size, "little") if size in (1, 2, 4, 8) else fields[at]
        elif change == "bytes":
            fields[at] = data.draw(st.binary(max_size=16))
        elif change == "drop":
            fields[at] = b""
        elif change == "repeat":
            fields[at] *= 2
        else:
            other = data.draw(st.integers(0, len(fields) - 1))
            fields[at], fields[other] = fields[other], fields[at]
    examine(b"".join(fields))


# Memory, time, mapping


def crowded(count: int) -> dict[str, bytes]:
    """Return files of as many items as possible."""
    nothing = np.zeros((1, 0), np.int8)
    return {
        "keys": written({f"{i:x}": np.uint8(1) for i in range(count)}, {}),
        "tensors": written({}, {f"{i:x}": Tensor("I8", nothing) for i in range(count)}),
        "strings": written({"s": Array(STRING, [""] * count)}, {}),
        "arrays": assembled(entries=[entry("a", ARRAY, array(ARRAY, count, array(0, 0) * count))]),
        "numbers": written({"n": np.zeros(count)}, {}),
        "bools": written({"n": np.zeros(count, bool)}, {}),
        "text": written({"t": "a" * 10 * count + "😀"}, {}),
        "data": written({}, {"t": Tensor("F32", np.zeros(count, np.float32))}),
    }


@pytest.mark.parametrize("name", crowded(1))
def test_reading_allocates_for_what_is_there(name):
    count = 20_000
    data = crowded(count)[name]
    peak = allocated(data)
    if name in ("keys", "tensors"):  # Python's names and records, and nothing else
        assert peak < 700 * count
    else:
        assert peak < ALLOWANCE
    lying = data.replace(struct.pack("<Q", count), struct.pack("<Q", 2**60))
    assert lying == data or allocated(lying) < ALLOWANCE


@pytest.mark.parametrize("name", crowded(1))
def test_reading_takes_fewer_steps_than_there_are_bytes(name, monkeypatch):
    taken = []
    take = reader._Cursor.take
    monkeypatch.setattr(reader._Cursor, "take", lambda *arguments: taken.append(1) or take(*arguments))
    data = crowded(2000)[name]
    parse(data)
    assert len(taken) <= len(data) // 2


def test_items_are_found_without_being_kept():
    strings = [f"{'é' * (i % 7)}{i}" for i in range(1000)]
    items = parse(written({"s": Array(STRING, strings)}, {})).metadata["s"].items
    assert list(items) == strings
    assert (items[0], items[-1], items[999]) == (strings[0], strings[-1], strings[999])
    assert list(items[10:20:3]) == strings[10:20:3]
    with pytest.raises(IndexError):
        items[1000]


def test_a_file_is_mapped_and_not_copied(tmp_path):
    path = tmp_path / "mapped.gguf"
    values = np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024)
    write(path, {"n": np.arange(1 << 18)}, {"w": Tensor("F32", values)})
    file = read(path)
    weight, numbers = file.tensors["w"].data, file.metadata["n"]
    for view in (weight, numbers):
        assert not view.flags.owndata
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
    assert weight.flags.aligned
    np.testing.assert_array_equal(weight, values)


def test_a_file_may_be_rewritten_from_its_own_mapping(tmp_path):
    path = tmp_path / "w.gguf"
    write(path, {}, {"w": Tensor("F32", np.arange(1 << 16, dtype=np.float32))})
    (tmp_path / "link.gguf").symlink_to(path)
    file = read(path)
    write(tmp_path / "link.gguf", {"k": np.uint8(1)}, file.tensors)
    assert (tmp_path / "link.gguf").is_symlink()
    np.testing.assert_array_equal(read(path).tensors["w"].data, file.tensors["w"].data)
    assert sorted(os.listdir(tmp_path)) == ["link.gguf", "w.gguf"]


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ValueError, match=r"^byte 0: magic"):
        read(tmp_path / "empty.gguf")


def test_only_little_endian_bytes_are_written():
    swapped = {"n": np.arange(3, dtype=">f4"), "s": np.arange(3, dtype=">u2")[1]}
    native = {"n": np.arange(3, dtype=np.float32), "s": np.uint16(1)}
    tensor = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert written(swapped, {"w": Tensor("F32", tensor.astype(">f4").T)}) == written(
        native, {"w": Tensor("F32", np.ascontiguousarray(tensor.T))}
    )


BLOCKS = np.zeros((2, 18), np.uint8)
REFUSED = [
    ({"": np.uint8(1)}, {}, r"metadata: '': a key is 1 to 65535 ASCII"),
    ({"é": np.uint8(1)}, {}, r"metadata: 'é': a key is"),
    ({1: np.uint8(1)}, {}, r"metadata: 1: a key is a str"),
    ({"k": 1}, {}, r"metadata: 'k': int has no type in a file; admissible: str, Array, .* uint8, int8"),
    ({"k": True}, {}, r"metadata: 'k': bool has no type"),
    ({"k": ["a"]}, {}, r"metadata: 'k': list has no type"),
    ({"k": np.float16(1)}, {}, r"metadata: 'k': float16 of float16 has no type"),
    ({"k": np.zeros(2, complex)}, {}, r"metadata: 'k': ndarray of complex128"),
    ({"k": np.zeros((2, 2))}, {}, r"metadata: 'k': an array has one axis, not 2"),
    ({"k": np.array(["a"])}, {}, r"metadata: 'k': ndarray of <U1"),
    ({"k": "\ud800"}, {}, r"metadata: 'k': '\\ud800' is not Unicode text"),
    ({"k": Array(0, [1])}, {}, r"metadata: 'k': an Array is of type 8"),
    ({"k": Array(STRING, [1])}, {}, r"metadata: 'k': int in an Array of type 8"),
    ({"k": Array(ARRAY, ["a"])}, {}, r"metadata: 'k': str in an Array of type 9"),
    ({}, {"w": BLOCKS}, r"tensors: 'w': ndarray in place of Tensor"),
    ({}, {1: Tensor("Q4_0", BLOCKS)}, r"tensors: 1: int in place of str"),
    ({}, {"w" * 64: Tensor("Q4_0", BLOCKS)}, r"tensors: '.*': the name of a tensor is at most 63 bytes"),
    ({}, {"\0": Tensor("Q4_0", BLOCKS)}, r"tensors: '\\x00': the name of a tensor"),
    ({}, {"w": Tensor("Q4_2", BLOCKS)}, r"tensors: 'w': type 'Q4_2'; admissible: F32, F16"),
    ({}, {"w": Tensor("Q4_0", BLOCKS[:, :17])}, r"tensors: 'w': rows of 17 bytes are not whole blocks of 18"),
    ({}, {"w": Tensor("F32", np.zeros(3))}, r"tensors: 'w': data of F32 is float32, not float64"),
    ({}, {"w": Tensor("F32", np.float32(3).reshape(()))}, r"tensors: 'w': 0 axes; admissible: 1 to 4"),
    ({}, {"w": Tensor("I8", np.zeros((1, 1, 1, 1, 1), np.int8))}, r"tensors: 'w': 5 axes"),
]


@pytest.mark.parametrize(("metadata", "held", "message"), REFUSED)
def test_what_no_reader_takes_is_not_written(tmp_path, metadata, held, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        write(tmp_path / "w.gguf", metadata, held)
    assert not os.listdir(tmp_path)
