"""The writer of GGUF files: a function of what it is given, byte for byte."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lowbit_cts.reference.gguf.model import (
    ALIGNMENT_KEY,
    DEEPEST_ARRAY,
    DEFAULT_ALIGNMENT,
    MAGIC,
    MOST_DIMENSIONS,
    VERSION,
    Array,
    Tensor,
    Value,
    alignment_fault,
    key_fault,
    name_fault,
    padded,
    shown,
)
from lowbit_cts.reference.gguf.types import ARRAY, GGML_TYPES, NUMBERS, STRING

_NUMBER_CODES = {(dtype.kind, dtype.itemsize): code for code, dtype in NUMBERS.items()}


def write(
    target: str | os.PathLike[str] | BinaryIO,
    metadata: Mapping[str, Value],
    tensors: Mapping[str, Tensor],
    alignment: int | None = None,
) -> None:
    """Write a GGUF v3 file: a function of what it is given, byte for byte what gguf-py writes for the same.

    Parameters
    ----------
    target : path or binary file
        A file at that path is replaced when all is written, so its mappings stay whole.
    metadata : mapping of str
        NumPy scalars (bool, integers of 8 to 64 bits, float32, float64), str, ndarrays of one axis, and `Array`.
    tensors : mapping of str to Tensor
        Written in this order, without gaps.
    alignment : int, optional
        Of the data. By default ``general.alignment``, and 32 where that is not among the metadata. If it is neither, it
        becomes the last entry of the metadata.

    Raises
    ------
    ValueError
        What a reader would refuse, before anything is written.
    """
    metadata, alignment = _with_alignment(metadata, alignment)
    head = [MAGIC, _u32(VERSION), _u64(len(tensors)), _u64(len(metadata))]
    for key, value in metadata.items():
        if fault := "a key is a str" if not isinstance(key, str) else key_fault(key):
            raise ValueError(f"metadata: {shown(key)}: {fault}")
        head += [_encoded_text(key, "metadata"), _u32(_code(value, key)), *_encoded(value, key)]
    offset = 0
    for name, tensor in tensors.items():
        for given, admissible in ((name, str), (tensor, Tensor)):
            if not isinstance(given, admissible):
                raise ValueError(f"tensors: {shown(name)}: {type(given).__name__} in place of {admissible.__name__}")
        head += _encoded_description(name, tensor, offset)
        offset += padded(tensor.data.nbytes, alignment)
    content = b"".join(head)
    if not isinstance(target, str | os.PathLike):
        _write_all(target, content, tensors, alignment)
        return
    path = Path(target).resolve()  # a link stays one
    partial = path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb") as file:
            _write_all(file, content, tensors, alignment)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_all(file: BinaryIO, head: bytes, tensors: Mapping[str, Tensor], alignment: int) -> None:
    file.write(head)
    file.write(bytes(padded(len(head), alignment) - len(head)))
    for tensor in tensors.values():
        carrier = GGML_TYPES[tensor.type].carrier
        data = np.ascontiguousarray(tensor.data, carrier).reshape(-1).view(np.uint8)
        file.write(data.data)
        file.write(bytes(padded(data.nbytes, alignment) - data.nbytes))


def _with_alignment(metadata: Mapping[str, Value], alignment: int | None) -> tuple[Mapping[str, Value], int]:
    stated = metadata.get(ALIGNMENT_KEY)
    if stated is not None and not (isinstance(stated, np.generic) and stated.dtype == np.uint32):
        raise ValueError(f"metadata: {ALIGNMENT_KEY} must be a numpy.uint32")
    if alignment is None:
        alignment = DEFAULT_ALIGNMENT if stated is None else int(stated)
    if fault := alignment_fault(alignment):
        raise ValueError(f"alignment: {fault}")
    if stated is None and alignment != DEFAULT_ALIGNMENT:
        metadata = {**metadata, ALIGNMENT_KEY: np.uint32(alignment)}
    elif stated is not None and alignment != stated:
        raise ValueError(f"alignment: {alignment} contradicts {ALIGNMENT_KEY}, which is {stated}")
    return metadata, alignment


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _encoded_text(text: str, field: str) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{field}: {shown(text)} is not Unicode text ({error.reason})") from None
    return _u64(len(encoded)) + encoded


def _code(value: Value, key: str) -> int:
    if isinstance(value, str):
        return STRING
    if isinstance(value, np.ndarray | Array):
        return ARRAY
    return _number_code(value, key)


def _number_code(value: Any, key: str) -> int:
    dtype = getattr(value, "dtype", None)
    code = _NUMBER_CODES.get((dtype.kind, dtype.itemsize)) if isinstance(dtype, np.dtype) else None
    if code is None:
        admissible = ", ".join(number.name for number in NUMBERS.values())
        kind = type(value).__name__ if dtype is None else f"{type(value).__name__} of {dtype}"
        raise ValueError(
            f"metadata: {shown(key)}: {kind} has no type in a file; admissible: str, Array, and NumPy scalars and "
            f"arrays of {admissible}"
        )
    return code


def _encoded(value: Value, key: str, depth: int = 1) -> list[bytes]:
    """Return a value without its type."""
    if isinstance(value, str):
        return [_encoded_text(value, f"metadata: {shown(key)}")]
    if isinstance(value, np.generic):
        return [_little_endian(np.asarray(value))]
    if depth > DEEPEST_ARRAY:
        raise ValueError(f"metadata: {shown(key)}: arrays may be {DEEPEST_ARRAY} deep")
    if isinstance(value, np.ndarray):
        if value.ndim != 1:
            raise ValueError(f"metadata: {shown(key)}: an array has one axis, not {value.ndim}")
        return [_u32(_number_code(value, key)), _u64(len(value)), _little_endian(value)]
    admissible = {STRING: str, ARRAY: np.ndarray | Array}.get(value.type)
    if admissible is None:
        raise ValueError(f"metadata: {shown(key)}: an Array is of type {STRING} (string) or {ARRAY} (array)")
    encoded = [_u32(value.type), _u64(len(value.items))]
    for item in value.items:
        if not isinstance(item, admissible):
            raise ValueError(f"metadata: {shown(key)}: {type(item).__name__} in an Array of type {value.type}")
        encoded += _encoded(item, key, depth + 1)
    return encoded


def _little_endian(numbers: np.ndarray) -> bytes:
    if numbers.dtype == np.bool_:
        numbers = numbers.view(np.uint8) != 0  # a view of other bytes may hold any
    return np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<")).tobytes()


def _encoded_description(name: str, tensor: Tensor, offset: int) -> list[bytes]:
    encoded = _encoded_text(name, "tensors")
    if fault := name_fault(name, len(encoded) - 8):
        raise ValueError(f"tensors: {shown(name)}: {fault}")
    kind = GGML_TYPES.get(tensor.type)
    if kind is None:
        raise ValueError(f"tensors: {name!r}: type {tensor.type!r}; admissible: {', '.join(GGML_TYPES)}")
    data = tensor.data
    if (data.dtype.kind, data.dtype.itemsize) != (kind.carrier.kind, kind.carrier.itemsize):
        raise ValueError(f"tensors: {name!r}: data of {kind.name} is {kind.carrier.name}, not {data.dtype.name}")
    if not 0 < data.ndim <= MOST_DIMENSIONS:
        raise ValueError(f"tensors: {name!r}: {data.ndim} axes; admissible: 1 to {MOST_DIMENSIONS}")
    if data.shape[-1] * data.itemsize % kind.block_bytes:
        rule = f"rows of {data.shape[-1]} bytes are not whole blocks of {kind.block_bytes} ({kind.name})"
        raise ValueError(f"tensors: {name!r}: {rule}")
    shape = tensor.shape
    return [encoded, _u32(len(shape)), *map(_u64, shape[::-1]), _u32(kind.code), _u64(offset)]
