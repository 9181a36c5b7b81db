"""Array exchange: how NumPy carriers become the arrays of a library under test, and back.

An exchange is an object with ``from_numpy(array, format)``, ``to_numpy(array, format)`` and ``synchronize()``, where
`format` is the name of a format in `lowbit_cts.reference.formats`. The built-in ones also make views: the suite
lays a padded, guarded buffer out in NumPy, moves it whole, and hands the kernel a view into it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import numpy as np

from lowbit_cts.reference.formats import FLOAT8_FORMATS, FORMATS


class ExchangeError(TypeError):
    """An implementation returned something that is not an array of the expected kind."""


@runtime_checkable
class Exchange(Protocol):
    """What a backend's `arrays` must offer."""

    def from_numpy(self, array: np.ndarray, format: str) -> Any:
        """Return the library's array with the same shape and values; `array` is in the carrier of `format`."""

    def to_numpy(self, array: Any, format: str) -> np.ndarray:
        """Return the array in the carrier of `format`; a TypeError says what is wrong with it."""

    def synchronize(self) -> None:
        """Wait until everything submitted to the device is done."""


def _blocks(nbytes: int) -> int:
    """Return how many blocks to dirty: as many as allocators keep of small ones, one of large ones."""
    return 8 if nbytes < 1 << 20 else 1


class NumpyExchange:
    """NumPy arrays, shared without a copy."""

    def from_numpy(self, array: np.ndarray, format: str) -> np.ndarray:
        """Return the array itself."""
        return array

    def to_numpy(self, array: Any, format: str) -> np.ndarray:
        """Return the array itself, if its type is the carrier's."""
        if not isinstance(array, (np.ndarray, np.generic)):
            raise ExchangeError(f"is a {type(array).__name__}, must be a NumPy array")
        expected = FORMATS[format].carrier
        if array.dtype != expected:
            raise ExchangeError(f"has dtype {array.dtype}, must be {expected} (format {format})")
        return np.asarray(array)

    def view(self, flat: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
        """Return a view into a flat array; offset and strides count elements, strides may be negative."""
        byte_strides = tuple(step * flat.itemsize for step in strides)
        return np.ndarray(shape, flat.dtype, flat, offset * flat.itemsize, byte_strides)

    def stream(self) -> AbstractContextManager | None:
        """Return a context that runs on a stream other than the default one; None where there are no streams."""
        return None

    def dirty(self, nbytes: int, byte: int) -> None:
        """Leave freed memory of that size full of `byte`, so that what a kernel does not write shows."""
        blocks = [np.full(nbytes, byte, np.uint8) for _ in range(_blocks(nbytes))]
        del blocks

    def synchronize(self) -> None:
        """Return at once: NumPy is synchronous."""


class TorchExchange:
    """torch tensors on one device; on the CPU they share memory with NumPy."""

    def __init__(self, device: str) -> None:
        import torch

        self.torch = torch
        self.device = torch.device(device)
        names = ("bfloat16", *FLOAT8_FORMATS, "float8_e8m0fnu")
        self.special = {name: getattr(torch, name) for name in names}

    def dtype(self, format: str) -> Any:
        """Return the torch dtype of a format."""
        return self.special.get(format) or getattr(self.torch, FORMATS[format].carrier.name)

    def from_numpy(self, array: np.ndarray, format: str) -> Any:
        """Return a tensor on the device."""
        if format not in self.special or array.dtype != FORMATS[format].carrier:
            return self.torch.from_numpy(array).to(self.device)
        bits = self.torch.from_numpy(array.view(f"i{array.itemsize}"))
        return bits.view(self.special[format]).to(self.device)

    def to_numpy(self, array: Any, format: str) -> np.ndarray:
        """Return the tensor's codes, if its dtype is the format's."""
        if not isinstance(array, self.torch.Tensor):
            raise ExchangeError(f"is a {type(array).__name__}, must be a torch tensor")
        if array.dtype != self.dtype(format):
            raise ExchangeError(f"has dtype {array.dtype}, must be {self.dtype(format)} (format {format})")
        tensor = array.detach().cpu().contiguous()
        if format in self.special:
            bits = {1: self.torch.uint8, 2: self.torch.int16}[tensor.element_size()]
            return tensor.view(bits).numpy().view(FORMATS[format].carrier)
        return tensor.numpy()

    def view(self, flat: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        """Return a view into a flat tensor."""
        return flat.as_strided(shape, strides, offset)

    def stream(self) -> AbstractContextManager | None:
        """Return a context on a side stream (CUDA only) that waits for it at its end."""
        return _side_stream(self.torch) if self.device.type == "cuda" else None

    def dirty(self, nbytes: int, byte: int) -> None:
        """Leave freed memory of that size full of `byte`."""
        size = (nbytes,)
        blocks = [
            self.torch.full(size, byte, dtype=self.torch.uint8, device=self.device) for _ in range(_blocks(nbytes))
        ]
        del blocks

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            self.torch.cuda.synchronize(self.device)


class _side_stream(AbstractContextManager):
    """Run on a new torch stream, ordered after the current one, and wait for it at the end."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch

    def __enter__(self) -> None:
        current = self.torch.cuda.current_stream()
        self.side = self.torch.cuda.Stream()
        self.side.wait_stream(current)
        self.context = self.torch.cuda.stream(self.side)
        self.context.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self.context.__exit__(*exc)
        self.side.synchronize()


class CupyExchange:
    """CuPy arrays on the current device."""

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy

    def from_numpy(self, array: np.ndarray, format: str) -> Any:
        """Return a copy on the device, float8 and bfloat16 as their carriers."""
        return self.cupy.asarray(array)

    def to_numpy(self, array: Any, format: str) -> np.ndarray:
        """Return a copy in NumPy, if its type is the carrier's."""
        if not isinstance(array, self.cupy.ndarray):
            raise ExchangeError(f"is a {type(array).__name__}, must be a CuPy array")
        return NumpyExchange().to_numpy(self.cupy.asnumpy(array), format)

    def view(self, flat: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Any:
        """Return a view into a flat array."""
        pointer = flat.data + offset * flat.itemsize
        byte_strides = tuple(step * flat.itemsize for step in strides)
        return self.cupy.ndarray(shape, flat.dtype, pointer, byte_strides)

    def stream(self) -> AbstractContextManager | None:
        """Return a context on a non-blocking stream, ordered after what was submitted."""
        self.cupy.cuda.get_current_stream().synchronize()
        return self.cupy.cuda.Stream(non_blocking=True)

    def dirty(self, nbytes: int, byte: int) -> None:
        """Leave freed memory of that size full of `byte`."""
        blocks = [self.cupy.full(nbytes, byte, self.cupy.uint8) for _ in range(_blocks(nbytes))]
        del blocks

    def synchronize(self) -> None:
        """Wait for the device."""
        self.cupy.cuda.Device().synchronize()


_BUILT_IN: dict[str, Callable[[str], Exchange]] = {
    "numpy": lambda device: NumpyExchange(),
    "torch": TorchExchange,
    "cupy": lambda device: CupyExchange(),
}
EXCHANGES = tuple(_BUILT_IN)


def make_exchange(arrays: str | Exchange, device: str) -> Exchange:
    """Return the exchange of a backend: a built-in one by name, on its device, or the object itself."""
    return _BUILT_IN[arrays](device) if isinstance(arrays, str) else arrays


def stream_of(exchange: Exchange) -> AbstractContextManager | None:
    """Return a context on another stream than the default one; None where the exchange has no streams."""
    return exchange.stream() if hasattr(exchange, "stream") else None
