"""The arena: what is packed on one side is unpacked on the other, whatever its size."""

import os

import numpy as np
import pytest

from lowbit_cts.conformance import arena as module
from lowbit_cts.conformance.arena import Arena


@pytest.fixture
def sides():
    here = Arena()
    yield here, Arena(here.path)
    here.close()


@pytest.mark.parametrize("count", [0, 1, 1000, 1 << 15, 1 << 18, 3_000_001])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_of_any_size_arrive(sides, count, dtype):
    here, there = sides
    value = {"x": np.arange(count).astype(dtype), "y": np.arange(count)[::2], "none": None, "z": np.float32(1)}
    found = there.unpack(here.pack(value))
    assert found["none"] is None
    for name in ("x", "y", "z"):
        np.testing.assert_array_equal(found[name], value[name])
        assert np.asarray(found[name]).dtype == np.asarray(value[name]).dtype


def test_large_arrays_pass_outside_the_message_and_are_read_only(sides):
    here, there = sides
    x = np.ones((1024, 1024), np.float32)
    message = here.pack((x, x[:2].copy()))
    assert len(message.pickled) < 1 << 16
    assert [length for _, length in message.places] == [x.nbytes]
    found, small = there.unpack(message)
    assert not found.flags.writeable
    assert small.flags.writeable


def test_what_does_not_fit_goes_with_the_message(sides, monkeypatch):
    here, there = sides
    monkeypatch.setattr(module, "SIZE", 1 << 20)
    arrays = [np.full(1 << 18, value, np.uint8) for value in range(6)]
    message = here.pack(arrays)
    assert 1 <= len(message.places) < len(arrays)
    for one, other in zip(there.unpack(message), arrays, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_file_is_gone_when_the_side_that_made_it_closes(sides):
    here, there = sides
    there.close()
    assert os.path.exists(here.path)
    here.close()
    assert not os.path.exists(here.path)
