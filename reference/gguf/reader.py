"""The reader: GGUF files mapped into memory, and taken for hostile. `container` says what is read, and why."""

import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, overload

import numpy as np

from lowbit_cts.reference.gguf.model import (
    ALIGNMENT_KEY,
    DEEPEST_ARRAY,
    DEFAULT_ALIGNMENT,
    LONGEST_KEY,
    LONGEST_TENSOR_NAME,
    MAGIC,
    MOST_DIMENSIONS,
    VERSION,
    Array,
    File,
    Tensor,
    Value,
    alignment_fault,
    carried,
    key_fault,
    name_fault,
    padded,
    shown,
)
from lowbit_cts.reference.gguf.types import ARRAY, GGML_TYPES, NUMBERS, REMOVED_GGML_TYPES, STRING, GgmlType

_TYPES = {kind.code: kind for kind in GGML_TYPES.values()}
_SMALLEST_ITEM = {STRING: 8, ARRAY: 12} | {code: dtype.itemsize for code, dtype in NUMBERS.items()}
_SMALLEST_ENTRY = 8 + 1 + 4 + 1  # a key of one byte, and a byte
_SMALLEST_DESCRIPTION = 8 + 4 + 8 + 4 + 8  # an empty name, one dimension
_PIECE = 1 << 16


def read(path: str | os.PathLike[str]) -> File:
    """Return the content of a GGUF v3 file, mapped into memory and not copied.

    Parameters
    ----------
    path : path
        The arrays and tensors returned are views of this file, and keep it mapped. It must not be cut short meanwhile:
        the system ends a process that touches a page that is gone. (`write` never does that, it replaces files.)

    Returns
    -------
    File

    Raises
    ------
    ValueError
        Anything that the format does not allow, as ``byte N: field: rule``.
    OSError
        The file cannot be opened or mapped.
    """
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return parse(b"")
        return parse(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def parse(buffer: bytes | bytearray | memoryview | mmap.mmap) -> File:
    """Return the content of a GGUF v3 file in memory, as `read` does; arrays and tensors are views of the buffer."""
    cursor = _Cursor(memoryview(buffer).toreadonly().cast("B"))
    magic = bytes(cursor.take(4, "magic"))
    if magic != MAGIC:
        raise _fault(0, "magic", f"{magic!r} is not {MAGIC!r}")
    version = cursor.u32("version")
    if version != VERSION:
        swapped = version & 0xFFFF == 0 and version != 0
        raise _fault(4, "version", "the file is big-endian, which is not read" if swapped else f"{version} is not 3")
    tensors = cursor.count("number of tensors", _SMALLEST_DESCRIPTION)
    entries = cursor.count("number of metadata entries", _SMALLEST_ENTRY)
    metadata, alignment = _read_metadata(cursor, entries)
    return _read_tensors(cursor, tensors, metadata, alignment)


class Metadata(Mapping[str, Value]):
    """Metadata that was read: values by key, in the order of the file, decoded when asked for.

    A number is a NumPy scalar, whose type is the value's type; a string is a str; an array of numbers is a read-only
    view of the file, any other an `Array`, which is indexed each time it is asked for: keep it.
    """

    def __init__(self, buffer: memoryview, places: dict[str, int]):
        self._buffer = buffer
        self._places = places

    def __getitem__(self, key: str) -> Value:
        """Return the value of a key."""
        cursor = _Cursor(self._buffer, self._places[key])
        code = cursor.u32("type")
        if code in NUMBERS:
            return _numbers(cursor, code, 1)[0]
        if code == STRING:
            return cursor.text("string")
        return _array(self._buffer, cursor.position)

    def __contains__(self, key: object) -> bool:
        """Return whether the key is there, without decoding its value."""
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        """Iterate over the keys."""
        return iter(self._places)

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self._places)


class _Items(Sequence[Any]):
    """Items of various sizes, each decoded from where it starts when asked for."""

    def __init__(self, buffer: memoryview, starts: np.ndarray, decode: Callable[[memoryview, int], Any]):
        self._buffer, self._starts, self._decode = buffer, starts, decode

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return _Items(self._buffer, self._starts[index], self._decode)
        return self._decode(self._buffer, int(self._starts[index]))


def _text(buffer: memoryview, position: int) -> str:
    return _Cursor(buffer, position).text("string")


def _array(buffer: memoryview, position: int) -> np.ndarray | Array:
    cursor = _Cursor(buffer, position)
    code, count = cursor.array_header()
    if code in NUMBERS:
        return _numbers(cursor, code, count)
    starts = np.empty(count, np.uint64)
    for i in range(count):
        starts[i] = cursor.position
        _check_value(cursor, code)
    return Array(code, _Items(buffer, starts, _text if code == STRING else _array))


def _numbers(cursor: "_Cursor", code: int, count: int) -> np.ndarray:
    position = cursor.position
    cursor.take(count * NUMBERS[code].itemsize, "value")
    return np.ndarray((count,), NUMBERS[code], cursor.buffer, position)


def _fault(position: int, field: str, rule: str) -> ValueError:
    return ValueError(f"byte {position}: {field}: {rule}")


class _Cursor:
    """A place in the file; every step is held against what is left of it."""

    def __init__(self, buffer: memoryview, position: int = 0):
        self.buffer, self.position = buffer, position

    @property
    def left(self) -> int:
        return len(self.buffer) - self.position

    def take(self, size: int, field: str) -> memoryview:
        if size > self.left:
            raise _fault(self.position, field, f"{size} bytes are needed, {self.left} are left")
        self.position += size
        return self.buffer[self.position - size : self.position]

    def u32(self, field: str) -> int:
        return int.from_bytes(self.take(4, field), "little")

    def u64(self, field: str) -> int:
        return int.from_bytes(self.take(8, field), "little")

    def count(self, field: str, smallest: int) -> int:
        """Read how many items of at least `smallest` bytes follow."""
        position, count = self.position, self.u64(field)
        if count > self.left // smallest:
            raise _fault(position, field, f"{count} need {smallest} bytes each or more, {self.left} bytes are left")
        return count

    def array_header(self) -> tuple[int, int]:
        """Read type and number of the items of an array."""
        code = self.value_type("type of the items")
        return code, self.count("number of items", _SMALLEST_ITEM[code])

    def value_type(self, field: str) -> int:
        position, code = self.position, self.u32(field)
        if code not in _SMALLEST_ITEM:
            raise _fault(position, field, f"{code} is not a type of metadata values, 0 to {max(_SMALLEST_ITEM)}")
        return code

    def text(self, field: str) -> str:
        """Read a string that is to be kept."""
        size = self.count(field, 1)
        position = self.position
        return _decoded(self.take(size, field), position, field)

    def check_text(self, field: str) -> None:
        """Move over a string in pieces: decoded as a whole, it could take four times its size."""
        end = self.count(field, 1) + self.position
        while self.position < end:
            cut = min(self.position + _PIECE, end)
            for _ in range(3):  # back to where a character begins
                if cut < end and self.buffer[cut] & 0xC0 == 0x80:
                    cut -= 1
            position = self.position
            _decoded(self.take(cut - position, field), position, field)


def _decoded(piece: memoryview, position: int, field: str) -> str:
    try:
        return str(piece, "utf-8")
    except UnicodeDecodeError as error:
        raise _fault(position + error.start, field, f"not UTF-8 ({error.reason})") from None


def _check_value(cursor: _Cursor, code: int) -> None:
    """Move over a value, and see that all of it is as it must be. Arrays of arrays do not recurse."""
    pending = [(code, 1, 0)]  # so many values of a type are to come, inside so many arrays
    while pending:
        code, count, depth = pending.pop()
        if code == STRING:
            for _ in range(count):
                cursor.check_text("string")
        elif code == ARRAY and count:
            pending.append((ARRAY, count - 1, depth))
            if depth == DEEPEST_ARRAY:
                raise _fault(cursor.position, "array", f"arrays may be {DEEPEST_ARRAY} deep")
            pending.append((*cursor.array_header(), depth + 1))
        elif code in NUMBERS:
            position = cursor.position
            numbers = _numbers(cursor, code, count)
            if numbers.dtype == np.bool_ and (codes := numbers.view(np.uint8)).max(initial=0) > 1:
                worst = int(codes.argmax())
                raise _fault(position + worst, "bool", f"{codes[worst]} is neither 0 nor 1")


def _read_metadata(cursor: _Cursor, entries: int) -> tuple[Metadata, int]:
    """Read all metadata; return it with the alignment."""
    places: dict[str, int] = {}
    alignment = DEFAULT_ALIGNMENT
    for _ in range(entries):
        position = cursor.position
        key = _read_name(cursor, "key", LONGEST_KEY)
        if fault := key_fault(key):
            raise _fault(position, "key", fault)
        if key in places:
            raise _fault(position, "key", f"{shown(key)} is there already, at byte {places[key] - 8 - len(key)}")
        places[key] = cursor.position
        code = cursor.value_type("type of a value")
        if key == ALIGNMENT_KEY:
            alignment = _read_alignment(cursor, code)
        else:
            _check_value(cursor, code)
    return Metadata(cursor.buffer, places), alignment


def _read_alignment(cursor: _Cursor, code: int) -> int:
    position = cursor.position
    if NUMBERS.get(code) != np.uint32:
        raise _fault(position - 4, ALIGNMENT_KEY, f"type {code} is not uint32 (4)")
    alignment = cursor.u32(ALIGNMENT_KEY)
    if fault := alignment_fault(alignment):
        raise _fault(position, ALIGNMENT_KEY, fault)
    return alignment


def _read_name(cursor: _Cursor, field: str, longest: int) -> str:
    """Read a string with a limit, which is checked before the string is decoded."""
    position, size = cursor.position, cursor.count(field, 1)
    if size > longest:
        raise _fault(position, field, f"{size} bytes are more than {longest}")
    cursor.position = position
    return cursor.text(field)


@dataclass(frozen=True, slots=True)
class _Description:
    type: GgmlType
    shape: tuple[int, ...]
    offset: int
    position: int  # of the offset, in the file

    @property
    def nbytes(self) -> int:
        return prod(self.shape) // self.type.block_elements * self.type.block_bytes


def _read_tensors(cursor: _Cursor, count: int, metadata: Metadata, alignment: int) -> File:
    descriptions: dict[str, _Description] = {}
    for _ in range(count):
        position = cursor.position
        name = _read_name(cursor, "name of a tensor", LONGEST_TENSOR_NAME)
        if fault := name_fault(name, cursor.position - position - 8):
            raise _fault(position, "name of a tensor", fault)
        if name in descriptions:
            raise _fault(position, "name of a tensor", f"{name!r} is there already")
        descriptions[name] = _read_description(cursor)
    start, size = padded(cursor.position, alignment), len(cursor.buffer)
    if count and start > size:
        rule = f"the data begin at byte {start}, and the file ends at {size}"
        raise _fault(cursor.position, "padding", rule)
    for name, tensor in descriptions.items():
        if tensor.offset % alignment:
            raise _fault(tensor.position, "offset", f"{tensor.offset} of {name!r} is not a multiple of {alignment}")
        if tensor.offset + tensor.nbytes > size - start:
            rule = f"{name!r} has bytes {tensor.offset} to {tensor.offset + tensor.nbytes} of {size - start}"
            raise _fault(tensor.position, "offset", rule)
    _check_apart(descriptions)
    tensors = {
        name: Tensor(
            tensor.type.name,
            np.ndarray(carried(tensor.type, tensor.shape), tensor.type.carrier, cursor.buffer, start + tensor.offset),
            start + tensor.offset,
        )
        for name, tensor in descriptions.items()
    }
    return File(metadata, tensors, alignment, start)


def _read_description(cursor: _Cursor) -> _Description:
    position, dimensions = cursor.position, cursor.u32("number of dimensions")
    if not 0 < dimensions <= MOST_DIMENSIONS:
        raise _fault(position, "number of dimensions", f"{dimensions} is not 1 to {MOST_DIMENSIONS}")
    at_shape, at_type = cursor.position, cursor.position + 8 * dimensions
    shape = tuple(cursor.u64("dimension") for _ in range(dimensions))[::-1]
    code = cursor.u32("type of a tensor")
    if code not in _TYPES:
        known = f"{REMOVED_GGML_TYPES[code]} was removed" if code in REMOVED_GGML_TYPES else "is not one of ggml's"
        raise _fault(at_type, "type of a tensor", f"{code} {known}")
    kind = _TYPES[code]
    if shape[-1] % kind.block_elements:
        rule = f"rows of {shape[-1]} are not whole blocks of {kind.block_elements} ({kind.name})"
        raise _fault(at_shape, "dimension", rule)
    # Held even where a dimension is 0, so that strides exist.
    if prod(max(n, 1) for n in carried(kind, shape)) * kind.carrier.itemsize >= 1 << 63:
        raise _fault(at_shape, "dimension", f"a tensor of shape {shape} cannot be addressed in 63 bits")
    return _Description(kind, shape, cursor.u64("offset"), cursor.position - 8)


def _check_apart(descriptions: dict[str, _Description]) -> None:
    """See that no two tensors share a byte; all lie in the file."""
    names = [name for name, tensor in descriptions.items() if tensor.nbytes]
    starts = np.array([descriptions[name].offset for name in names], np.int64)
    ends = starts + np.array([descriptions[name].nbytes for name in names], np.int64)
    order = np.argsort(starts)
    overlaps = np.flatnonzero(starts[order[1:]] < ends[order[:-1]])
    if overlaps.size:
        before, behind = order[overlaps[0] : overlaps[0] + 2]
        rule = f"{names[behind]!r} begins at {starts[behind]}, before {names[before]!r} ends at {ends[before]}"
        raise _fault(descriptions[names[behind]].position, "offset", rule)
