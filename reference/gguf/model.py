"""What a GGUF file holds, as values in Python, and the limits that reader and writer share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit_cts.reference.gguf.types import GGML_TYPES, GgmlType

MAGIC, VERSION = b"GGUF", 3
DEFAULT_ALIGNMENT = 32
ALIGNMENT_KEY = "general.alignment"
LARGEST_ALIGNMENT = 1 << 20
LONGEST_KEY = 65535
LONGEST_TENSOR_NAME = 63
MOST_DIMENSIONS = 4
DEEPEST_ARRAY = 16


@dataclass(frozen=True, eq=False)
class Array:
    """A metadata array of strings (`type` 8) or of arrays (9); one of numbers is an ndarray.

    Attributes
    ----------
    type : int
        `types.STRING` or `types.ARRAY`.
    items : sequence of str, or of ndarray and Array
        Of an array that was read, decoded one by one when asked for.
    """

    type: int
    items: Sequence[Any]


Value = np.generic | str | np.ndarray | Array


@dataclass(frozen=True, eq=False, slots=True)
class Tensor:
    """A tensor as it lies in the file.

    Attributes
    ----------
    type : str
        A name of `types.GGML_TYPES`.
    data : ndarray
        Rows of blocks in the type's carrier: of numbers the tensor itself, bfloat16 as uint16; of quantized types uint8
        of shape ``(*shape[:-1], shape[-1] // block_elements * block_bytes)``. Read-only where it was read.
    offset : int or None
        The byte of the file where the data begins; not used in writing.
    """

    type: str
    data: np.ndarray
    offset: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each axis, in NumPy's order (the file's is reversed)."""
        return elements(GGML_TYPES[self.type], self.data.shape)


@dataclass(frozen=True, eq=False)
class File:
    """A GGUF file that was read: what `write` takes, and where the data begins (a byte of the file)."""

    metadata: Mapping[str, Value]
    tensors: dict[str, Tensor]
    alignment: int
    data_offset: int


def elements(kind: GgmlType, carried: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in elements of rows of blocks in their carrier."""
    return (*carried[:-1], carried[-1] * kind.carrier.itemsize // kind.block_bytes * kind.block_elements)


def carried(kind: GgmlType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in the carrier of rows of so many elements; the inverse of `elements`."""
    return (*shape[:-1], shape[-1] // kind.block_elements * kind.block_bytes // kind.carrier.itemsize)


def padded(size: int, alignment: int) -> int:
    """Return the next multiple of the alignment."""
    return -(-size // alignment) * alignment


def alignment_fault(alignment: int) -> str | None:
    """Return what is wrong with an alignment, or None."""
    if alignment % 8 or alignment & (alignment - 1) or not 0 < alignment <= LARGEST_ALIGNMENT:
        return f"{alignment} is not a power of two from 8 to {LARGEST_ALIGNMENT}"
    return None


def key_fault(key: str) -> str | None:
    """Return what is wrong with a key, or None."""
    if not key.isascii() or "\0" in key or not 0 < len(key) <= LONGEST_KEY:
        return f"a key is 1 to {LONGEST_KEY} ASCII characters, none of them NUL"
    return None


def name_fault(name: str, size: int) -> str | None:
    """Return what is wrong with a tensor's name of `size` bytes, or None."""
    if "\0" in name or size > LONGEST_TENSOR_NAME:
        return f"the name of a tensor is at most {LONGEST_TENSOR_NAME} bytes, none of them NUL"
    return None


def shown(name: object) -> str:
    """Return a name as a message shows it."""
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"
