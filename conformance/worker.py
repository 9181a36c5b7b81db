"""What happens in the kernel host's process: one implementation is called on guarded buffers and observed."""

import faulthandler
import os
import resource
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowbit_cts.conformance.arena import Arena, Message
from lowbit_cts.conformance.buffers import Buffer, lay_out
from lowbit_cts.kernels import Case, Implementation
from lowbit_cts.kernels.discovery import load_backends
from lowbit_cts.kernels.exchange import Exchange, ExchangeError, stream_of
from lowbit_cts.kernels.operation import OPERATIONS, Argument

#: Fill of unwritten memory, alternating from run to run: what a kernel leaves unwritten differs between two runs.
POISON = (0xA5, 0x5A)

#: The environment in which glibc's malloc checks, when memory is freed, that nothing was written past its end.
MALLOC_CHECKS = {"LD_PRELOAD": "libc_malloc_debug.so.0", "GLIBC_TUNABLES": "glibc.malloc.check=3"}

Arrays = Mapping[str, np.ndarray | None]


@dataclass(frozen=True)
class Call:
    """A request: run an implementation on one or more contents of the same buffers.

    Attributes
    ----------
    operation, implementation : str
        Names.
    parameters : dict
    contents : tuple of mapping
        The arguments of each run, all of the same shapes; each run sees the same addresses.
    layout : str
        A key of `lowbit_cts.conformance.buffers.STEPS`.
    prepare_once : bool
        Prepare the constant arguments of the first run only, and use what that made in every run.
    side_stream : bool
        Run on another stream than the default one.
    tile : tuple of (symbol, repetitions) or None
        Repeat the arguments along an independent axis in the worker; the results must repeat, too.
    """

    operation: str
    implementation: str
    parameters: dict[str, Any]
    contents: tuple[Arrays, ...]
    layout: str = "contiguous"
    prepare_once: bool = False
    side_stream: bool = False
    tile: tuple[str, int] | None = None


@dataclass
class Reply:
    """What was observed.

    Attributes
    ----------
    results : list of dict
        The results of each run, in the carriers of their formats.
    raised : str or None
        Type and text of the exception of the last run, if it raised.
    malformed : list of str
        What is wrong with the kind, type or shape of a result.
    changed, overrun : list of str
        Arguments that were written to; buffers whose guard bands were.
    unequal_tiles : list of int
        Repetitions whose results differ from the first's.
    """

    results: list[dict[str, np.ndarray]] = field(default_factory=list)
    raised: str | None = None
    malformed: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    overrun: list[str] = field(default_factory=list)
    unequal_tiles: list[int] = field(default_factory=list)
    seconds: float = 0.0


_implementations: dict[tuple[str, str], Implementation] = {}
_exchange: Exchange
_requests: Arena
_replies: Arena


def initialize(spec: str, backend_name: str, pipe: str, arenas: tuple[str, str], memory_limit: int | None) -> int:
    """Prepare the process: output into the pipe, memory bounded, the backend loaded; return its number."""
    global _exchange, _requests, _replies  # noqa: PLW0603  (one backend a process is what the process is for)
    _requests, _replies = (Arena(path) for path in arenas)
    output = os.open(pipe, os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    for name in MALLOC_CHECKS:  # meant for this process, not for the compilers it may start
        os.environ.pop(name, None)
    if memory_limit:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, resource.RLIM_INFINITY))
    backend = next(b for b in load_backends(spec) if b.name == backend_name)
    _implementations.update({(i.operation.name, i.name): i for i in backend.implementations})
    _exchange = backend.exchange()
    return os.getpid()


def answer(message: Message) -> Message:
    """Run the call that a message holds, and return what was observed as one."""
    return _replies.pack(execute(_requests.unpack(message)))


def execute(call: Call) -> Reply:
    """Run the call, and return what was observed."""
    implementation = _implementations.get((call.operation, call.implementation))
    if implementation is None:
        raise LookupError(
            f"{call.operation}/{call.implementation} was not registered when its module was imported again"
        )
    operation = OPERATIONS[call.operation]
    first = Case(operation, call.parameters, _shapes_of(operation.arguments, call))
    buffers: dict[str, Buffer | None] = {}
    for argument in operation.arguments:
        array = first.arrays[argument.name]
        format = argument.format(call.parameters)
        buffers[argument.name] = (
            None if array is None else lay_out(array.shape, format, call.layout, POISON[0], array.dtype)
        )
    reply = Reply()
    started = time.perf_counter()
    prepared: Any = None
    kept: list[Any] = []
    for number, arrays in enumerate(call.contents):
        given = _given(buffers, arrays)
        if call.prepare_once and prepared is None:
            prepared = implementation.prepared(given, call.parameters)
        kept.append(_run_once(implementation, first, buffers, given, number, prepared, call.side_stream, reply))
        if reply.raised or reply.malformed:
            break
    if len(reply.results) > 1 and not implementation.takes_out:
        _recheck(operation.results, first, kept[0], reply)
    reply.seconds = time.perf_counter() - started
    if call.tile and reply.results:
        _compare_tiles(operation.results, call, reply)
    return reply


def _given(buffers: dict[str, Buffer | None], arrays: Arrays) -> dict[str, Any]:
    """Write a run's values into the buffers, and return the library's arrays."""
    given: dict[str, Any] = {}
    for name, buffer in buffers.items():
        values = arrays[name]
        given[name] = None
        if buffer is not None and values is not None:
            buffer.fill(values)
            buffer.snapshot()
            given[name] = _hand_over(_exchange, buffer)
    return given


def _run_once(
    implementation: Implementation,
    case: Case,
    buffers: dict[str, Buffer | None],
    given: dict[str, Any],
    number: int,
    prepared: Any,
    side_stream: bool,
    reply: Reply,
) -> Any:
    """Run the kernel, add what was observed to the reply, and return what the kernel returned."""
    exchange, byte = _exchange, POISON[number % 2]
    results = case.operation.results
    shapes = {r.name: case.result_shape(r) for r in results}
    out = None
    if implementation.takes_out:
        outputs = [lay_out(shapes[r.name], case.format(r.name).name, "contiguous", byte) for r in results]
        for buffer in outputs:
            buffer.snapshot()
        handed = [_hand_over(exchange, buffer) for buffer in outputs]
        out = handed[0] if len(handed) == 1 else tuple(handed)
    elif hasattr(exchange, "dirty"):
        for r in results:
            exchange.dirty(max(1, int(np.prod(shapes[r.name])) * case.format(r.name).carrier.itemsize), byte)
    stream = stream_of(exchange) if side_stream else None
    try:
        with stream or nullcontext():
            returned = implementation.bound(given, case.parameters, prepared)(out=out)
        exchange.synchronize()
    except (Exception, SystemExit) as error:  # any exception of a kernel is an answer
        reply.raised = f"{type(error).__name__}: {error}"
        returned = None
    for name, held in buffers.items():
        if held is not None:
            inside, outside = held.damage(_fetch(exchange, held, given[name]))
            reply.changed += [name] if inside and name not in reply.changed else []
            reply.overrun += [name] if outside and name not in reply.overrun else []
    if reply.raised:
        return None
    if implementation.takes_out:
        written = {}
        for r, output, array in zip(results, outputs, handed, strict=True):
            found = _fetch(exchange, output, array)
            if output.damage(found)[1] and r.name not in reply.overrun:
                reply.overrun.append(r.name)
            output.flat = found
            written[r.name] = output.view.copy()
        reply.results.append(written)
        return None
    reply.results.append(_collect(exchange, returned, results, case, shapes, reply))
    return returned


def _recheck(results: tuple[Argument, ...], case: Case, first: Any, reply: Reply) -> None:
    """Say so if the first result is no longer what it was: two results in the same memory."""
    several = first if isinstance(first, (tuple, list)) else (first,)
    for r, value in zip(results, several, strict=True):
        again = _exchange.to_numpy(value, case.format(r.name).name)
        if again.tobytes() != reply.results[0][r.name].tobytes():
            reply.malformed.append(f"result {r.name} of the first call changed when the kernel was called again")


def _hand_over(exchange: Exchange, buffer: Buffer) -> Any:
    """Return the library's array for a buffer: a view into the moved flat array, where the exchange makes views."""
    if hasattr(exchange, "view"):
        buffer.shared = exchange.from_numpy(buffer.flat, buffer.format)
        return exchange.view(buffer.shared, buffer.offset, buffer.shape, buffer.strides)
    return exchange.from_numpy(buffer.view.copy(), buffer.format)


def _fetch(exchange: Exchange, buffer: Buffer, array: Any) -> np.ndarray:
    """Return the flat buffer as it is now; around an array without views nothing can have changed."""
    if hasattr(exchange, "view"):
        try:
            return exchange.to_numpy(buffer.shared, buffer.format).copy()
        except ExchangeError:  # a deliberately wrong type is not the format's; what NumPy shares is as good
            return buffer.flat.copy()
    found = buffer.expected.copy()
    Buffer(buffer.format, found, buffer.offset, buffer.shape, buffer.strides).view[...] = exchange.to_numpy(
        array, buffer.format
    )
    return found


def _collect(
    exchange: Exchange,
    returned: Any,
    results: tuple[Argument, ...],
    case: Case,
    shapes: dict[str, tuple[int, ...]],
    reply: Reply,
) -> dict[str, np.ndarray]:
    several = returned if isinstance(returned, (tuple, list)) else (returned,)
    if len(several) != len(results):
        names = ", ".join(r.name for r in results)
        reply.malformed.append(f"returned {len(several)} results, must return {len(results)}: {names}")
        return {}
    collected = {}
    for r, value in zip(results, several, strict=True):
        try:
            array = exchange.to_numpy(value, case.format(r.name).name)
        except TypeError as error:
            reply.malformed.append(f"result {r.name} {error}")
            continue
        if array.shape != shapes[r.name]:
            reply.malformed.append(f"result {r.name} has shape {array.shape}, must be {shapes[r.name]}")
            continue
        collected[r.name] = np.array(array, copy=True)
    return collected


def _shapes_of(arguments: tuple[Argument, ...], call: Call) -> Arrays:
    """Return arrays of the shapes and types of the first contents, repeated if asked for; they take no memory."""
    shapes: dict[str, np.ndarray | None] = {}
    symbol, repetitions = call.tile or ("", 1)
    for argument in arguments:
        array, axes = call.contents[0][argument.name], argument.shape(call.parameters)
        shapes[argument.name] = None
        if array is not None:
            lengths = [n * repetitions if axis == symbol else n for n, axis in zip(array.shape, axes, strict=True)]
            shapes[argument.name] = np.broadcast_to(np.zeros((), array.dtype), lengths)
    return shapes


def _compare_tiles(results: tuple[Argument, ...], call: Call, reply: Reply) -> None:
    assert call.tile is not None
    symbol, repetitions = call.tile
    unequal: set[int] = set()
    for run in reply.results:
        for r in results:
            if r.name not in run or symbol not in r.shape(call.parameters):
                continue
            parts = np.split(run[r.name], repetitions, axis=r.shape(call.parameters).index(symbol))
            first = parts[0].tobytes()
            unequal |= {i for i, part in enumerate(parts) if part.tobytes() != first}
            run[r.name] = parts[0].copy()
    reply.unequal_tiles = sorted(unequal)
