"""Guarded buffers: the layouts are what they say, and damage is told from use."""

import numpy as np
import pytest

from lowbit_cts.conformance.buffers import GUARD, LAYOUTS, STEPS, lay_out, poison
from lowbit_cts.kernels.backend import LAYOUTS as DECLARED
from lowbit_cts.reference.formats import FORMATS, FloatFormat, decode


@pytest.mark.parametrize("layout", STEPS)
@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (1, 1), (0, 4), (4, 0), (2, 3, 4, 5), (3, 1, 2), (2, 0, 3, 1)])
@pytest.mark.parametrize("format", ["float32", "int8", "bfloat16", "float8_e4m3fn", "int32"])
def test_a_buffer_holds_its_values_between_guards(layout, shape, format):
    buffer = lay_out(shape, format, layout, 0xA5)
    values = np.arange(int(np.prod(shape))).reshape(shape).astype(buffer.flat.dtype)
    buffer.fill(values)
    assert np.array_equal(buffer.view, values)
    expected = poison(GUARD, format, 0xA5).tobytes()
    assert buffer.flat[:GUARD].tobytes() == expected
    assert buffer.flat[-GUARD:].tobytes() == expected


def test_the_layouts_are_what_they_are_called():
    strides = {name: lay_out((3, 5), "float32", name, 0).strides for name in STEPS}
    assert strides["contiguous"] == strides["offset"] == (5, 1)
    assert strides["padded"][0] > 5
    assert strides["every_second"][1] == 2
    assert strides["transposed"][0] == 1
    assert lay_out((3, 5), "float32", "offset", 0).offset == GUARD + 1
    assert set(LAYOUTS) == set(DECLARED)
    assert sorted(name for names in LAYOUTS.values() for name in names) == sorted(STEPS)


@pytest.mark.parametrize("layout", STEPS)
def test_damage_inside_is_told_from_damage_around(layout):
    buffer = lay_out((4, 6), "float32", layout, 0x5A)
    buffer.fill(np.ones((4, 6), np.float32))
    buffer.snapshot()
    assert buffer.damage(buffer.flat.copy()) == (False, False)
    for index, verdict in ((buffer.offset, (True, False)), (buffer.offset - 1, (False, True)), (0, (False, True))):
        found = buffer.flat.copy()
        found[index] = 7
        assert buffer.damage(found) == verdict
    found = buffer.flat.copy()
    found[-GUARD] = 7
    assert buffer.damage(found) == (False, True)


def test_a_changed_nan_payload_is_damage():
    buffer = lay_out((2,), "float32", "contiguous", 0xA5)
    buffer.fill(np.zeros(2, np.float32))
    buffer.snapshot()
    found = buffer.flat.copy()
    found[0] = np.float32(np.nan)
    assert buffer.damage(found) == (False, True)


@pytest.mark.parametrize("format", [name for name, fmt in FORMATS.items() if isinstance(fmt, FloatFormat)])
def test_poison_is_nan_and_differs_by_byte_where_the_format_has_payloads(format):
    one, other = poison(4, format, 0xA5), poison(4, format, 0x5A)
    if FORMATS[format].nan_code is not None:
        assert np.isnan(decode(one, FORMATS[format])).all()
    if FORMATS[format].mantissa_bits > 3:
        assert one.tobytes() != other.tobytes()


@pytest.mark.parametrize("axis", [0, 1])
def test_values_are_repeated_along_a_longer_axis(axis):
    values = np.arange(6, dtype=np.int8).reshape(2, 3)
    shape = (8, 3) if axis == 0 else (2, 12)
    buffer = lay_out(shape, "int8", "contiguous", 0xA5)
    buffer.fill(values)
    assert np.array_equal(buffer.view, np.tile(values, (4, 1) if axis == 0 else (1, 4)))
