"""Implementations run in the kernel host, so that one that crashes does not end the prober."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from lowbit_cts.conformance.fingerprint.probe import ProductFailed
from lowbit_cts.conformance.host import KernelHost, Lost
from lowbit_cts.conformance.worker import Call
from lowbit_cts.kernels import Implementation

Arrays = dict[str, np.ndarray | None]

#: Runs of one call, and bytes of their arguments.
_RUNS, _BYTES = 96, 1 << 26


class Kernel:
    """Calls one implementation.

    Parameters
    ----------
    implementation : Implementation
    host : KernelHost
        Of its backend.
    """

    def __init__(self, implementation: Implementation, host: KernelHost) -> None:
        self.implementation = implementation
        self.host = host

    def __call__(self, arguments: list[Arrays], chosen: dict[str, Any]) -> list[np.ndarray]:
        """Return the first result for each of some arguments, in its carrier.

        Raises
        ------
        ProductFailed
            When the process is lost, the kernel raises, or what it returns is no result.
        """
        operation = self.implementation.operation
        results = []
        for part in _parts([{a.name: given.get(a.name) for a in operation.arguments} for given in arguments]):
            once = all(_same_constants(operation.constant, given, part[0]) for given in part[1:])
            call = Call(operation.name, self.implementation.name, dict(chosen), tuple(part), prepare_once=once)
            answer = self.host.execute(call)
            if isinstance(answer, Lost):
                raise ProductFailed(answer.message)
            if answer.raised or answer.malformed:
                raise ProductFailed(answer.raised or "; ".join(answer.malformed))
            results += [run[operation.results[0].name] for run in answer.results]
        return results


def _parts(arguments: list[Arrays]) -> Iterator[list[Arrays]]:
    """Yield arguments in lists of equal shapes that one call takes."""
    part: list[Arrays] = []
    size = 0
    for given in arguments:
        nbytes = sum(array.nbytes for array in given.values() if array is not None)
        if part and (_shapes(given) != _shapes(part[0]) or len(part) == _RUNS or size + nbytes > _BYTES):
            yield part
            part, size = [], 0
        part.append(given)
        size += nbytes
    if part:
        yield part


def _same_constants(names: tuple[str, ...], one: Arrays, other: Arrays) -> bool:
    """Return whether two products have the weights in common, which are then prepared once."""
    return all(
        (a is None and b is None) or (a is not None and b is not None and a.tobytes() == b.tobytes())
        for a, b in ((one[name], other[name]) for name in names)
    )


def _shapes(given: Arrays) -> list[tuple[int, ...] | None]:
    return [None if array is None else array.shape for array in given.values()]
