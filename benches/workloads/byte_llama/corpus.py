"""Text to train on and to be judged by: the sources of Python's standard library, as bytes."""

import sysconfig
import zlib
from functools import cache
from pathlib import Path

import numpy as np

#: Folders that are not read: tests, tables of code points, what was installed beside the library.
LEFT_OUT = {"test", "tests", "idle_test", "encodings", "site-packages", "dist-packages", "__pycache__"}
#: A file in so many is held out, by a hash of its path, so that the same are in every version of Python.
HELD_OUT_SHARE = 16


@cache
def files(held_out: bool) -> tuple[Path, ...]:
    """Return the modules to train on, or those held out, in the order of their paths.

    Raises
    ------
    FileNotFoundError
        When Python's standard library is not there as source.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = tuple(
        path
        for path in sorted(root.rglob("*.py"))
        if not LEFT_OUT & set(path.relative_to(root).parts)
        and (zlib.crc32(path.relative_to(root).as_posix().encode()) % HELD_OUT_SHARE == 0) == held_out
    )
    if not found:
        raise FileNotFoundError(f"{root}: has no sources of the standard library")
    return found


@cache
def text(held_out: bool) -> np.ndarray:
    """Return the bytes of the files one after the other, uint8."""
    return np.frombuffer(b"\n".join(path.read_bytes() for path in files(held_out)), np.uint8)


def windows(count: int, length: int, *, held_out: bool, seed: int) -> np.ndarray:
    """Return windows of the text at random places, (count, length), int64.

    Raises
    ------
    ValueError
        A length that the text does not have.
    """
    bytes_ = text(held_out)
    if not 0 < length <= bytes_.size:
        raise ValueError(f"length: must be 1 to {bytes_.size}; got {length}")
    starts = np.random.default_rng(seed).integers(0, bytes_.size - length + 1, count)
    return bytes_[starts[:, None] + np.arange(length)].astype(np.int64)
