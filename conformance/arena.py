"""An arena: memory that two processes share, through which large arrays pass instead of through a pipe."""

import mmap
import os
import pickle
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: Bytes that one message may take; larger ones go through the pipe.
SIZE = 1 << 29
#: Buffers below this are not worth the way (bytes).
_LEAST = 1 << 16
_ALIGNMENT = 64


@dataclass(frozen=True)
class Message:
    """A pickled object, and where in the arena its large buffers lie: (offset, length) each."""

    pickled: bytes
    places: Sequence[tuple[int, int]]


class Arena:
    """A file in memory, mapped by both sides; one message at a time.

    Parameters
    ----------
    path : str or None
        The file of an arena that the other side made; None makes one.
    """

    def __init__(self, path: str | None = None) -> None:
        self.owned = path is None
        if path is None:
            folder = "/dev/shm" if os.path.isdir("/dev/shm") else None
            descriptor, self.path = tempfile.mkstemp(prefix="lowbit-cts-", dir=folder)
            os.ftruncate(descriptor, SIZE)  # takes memory as it is written
        else:
            self.path = path
            descriptor = os.open(path, os.O_RDWR)
        self.memory = memoryview(mmap.mmap(descriptor, SIZE))
        os.close(descriptor)

    def pack(self, value: Any) -> Message:
        """Return a message of a value; it holds until the next one is packed."""
        large: list[memoryview] = []
        places: list[tuple[int, int]] = []
        end = 0

        def apart(buffer: pickle.PickleBuffer) -> bool:
            """Take a buffer out of the pickle (False) if it is large and there is room."""
            nonlocal end
            raw = buffer.raw()
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            if raw.nbytes < _LEAST or start + raw.nbytes > SIZE:
                return True
            end = start + raw.nbytes
            places.append((start, raw.nbytes))
            large.append(raw)
            return False

        pickled = pickle.dumps(value, protocol=5, buffer_callback=apart)
        for (start, length), raw in zip(places, large, strict=True):
            self.memory[start : start + length] = raw
        return Message(pickled, places)

    def unpack(self, message: Message) -> Any:
        """Return the value of a message; its large arrays are read-only views of the arena until the next one."""
        parts = [self.memory[start : start + length].toreadonly() for start, length in message.places]
        return pickle.loads(message.pickled, buffers=parts)

    def close(self) -> None:
        """Remove the file, if it is this side's; what is mapped stays until nobody uses it."""
        if self.owned:
            os.unlink(self.path)
            self.owned = False
