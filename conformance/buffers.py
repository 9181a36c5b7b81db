"""Guarded buffers: arguments laid out in poisoned memory, so that stray reads and writes show."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from lowbit_cts.reference.formats import FORMATS, FloatFormat, NanCodes

#: Elements of poison before and after every argument: tiles of 16 vectors of 64 single bytes.
GUARD = 1024

#: What a layout does to a matrix of R rows and C columns: (row step, column step, shift) in elements. Of more axes the
#: last two are such a matrix; transposed memory has all of them in the opposite order.
STEPS = {
    "contiguous": lambda rows, columns: (columns, 1, 0),
    "offset": lambda rows, columns: (columns, 1, 1),
    "padded": lambda rows, columns: (columns + 5, 1, 0),
    "every_second": lambda rows, columns: (2 * columns + 3, 2, 0),
    "transposed": lambda rows, columns: (1, rows, 0),
    "transposed_padded": lambda rows, columns: (1, rows + 3, 0),
}

#: The layouts behind each one an implementation declares.
LAYOUTS = {
    "contiguous": ("contiguous",),
    "offset": ("offset",),
    "strided": ("padded", "every_second", "transposed", "transposed_padded"),
}


def poison(count: int, format: str, byte: int) -> np.ndarray:
    """Return `count` codes that no kernel should look at: NaN where there is one; what is free of it from `byte`."""
    fmt = FORMATS[format]
    codes = np.full(count * fmt.carrier.itemsize, byte, np.uint8).view(fmt.carrier)
    if not isinstance(fmt, FloatFormat):
        return codes
    poisonous = byte & ((1 << fmt.bits) - 1) if fmt.nan_code is None else fmt.nan_code
    if fmt.nan is NanCodes.IEEE:
        poisonous |= byte & ((1 << (fmt.mantissa_bits - 1)) - 1)
    return np.full(count, poisonous, f"u{fmt.carrier.itemsize}").view(fmt.carrier)


@dataclass
class Buffer:
    """One argument in memory: a flat array, and the part of it that is the argument."""

    format: str
    flat: np.ndarray
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    shared: Any = None
    expected: Any = None

    @property
    def view(self) -> np.ndarray:
        """The argument, as a view into the flat array."""
        steps = tuple(step * self.flat.itemsize for step in self.strides)
        return np.ndarray(self.shape, self.flat.dtype, self.flat, self.offset * self.flat.itemsize, steps)

    def fill(self, values: np.ndarray) -> None:
        """Write the argument's values; of a longer axis, as often as they fit (contiguous layouts only)."""
        longer = [axis for axis, (n, m) in enumerate(zip(values.shape, self.shape, strict=True)) if n != m]
        if not longer:
            self.view[...] = values
            return
        (axis,) = longer
        before, after = self.shape[:axis], self.shape[axis + 1 :]
        self.view.reshape(*before, -1, values.shape[axis], *after)[...] = np.expand_dims(values, axis)

    def snapshot(self) -> None:
        """Remember the buffer as it is."""
        self.expected = self.flat.copy()

    def damage(self, found: np.ndarray) -> tuple[bool, bool]:
        """Return whether the argument itself, and whether the memory around it, differ from the snapshot."""
        if self.expected.tobytes() == found.tobytes():
            return False, False
        bits = f"u{self.flat.itemsize}"
        changed = self.expected.view(bits) != found.view(bits)
        mask = Buffer(self.format, changed, self.offset, self.shape, self.strides).view
        inside = int(np.count_nonzero(mask))
        return inside > 0, int(np.count_nonzero(changed)) > inside


def _steps(shape: tuple[int, ...], layout: str) -> tuple[tuple[int, ...], int]:
    """Return the step of every axis of an array in the layout, and where it begins, in elements."""
    if len(shape) > 2 and layout.startswith("transposed"):
        _, column_step, shift = STEPS[layout](shape[0], shape[1])
        return (1, *(column_step * prod(shape[1:axis]) for axis in range(1, len(shape)))), shift
    rows, columns = (1, *shape)[-2:] if shape else (1, 1)
    row_step, column_step, shift = STEPS[layout](rows, columns)
    outer = tuple(rows * row_step * prod(shape[axis + 1 : -2]) for axis in range(len(shape) - 2))
    return (*outer, *(row_step, column_step)[max(0, 2 - len(shape)) :]), shift


def lay_out(shape: tuple[int, ...], format: str, layout: str, byte: int, dtype: np.dtype | None = None) -> Buffer:
    """Return a poisoned buffer that holds an array of the shape in the layout, its values still to be filled in."""
    strides, shift = _steps(shape, layout)
    span = 1 + sum(max(0, n - 1) * step for n, step in zip(shape, strides, strict=True))
    count = 2 * GUARD + span + shift
    flat = poison(count, format, byte)
    if dtype is not None and dtype != flat.dtype:  # a deliberately wrong type
        flat = np.full(count * dtype.itemsize, byte, np.uint8).view(dtype)
    return Buffer(format, flat, GUARD + shift, shape, strides)
