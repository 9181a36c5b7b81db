"""The kernel host: a spawned process per backend, whose death or endless loop is a verdict on one case."""

import ctypes.util
import multiprocessing
import os
import tempfile
import threading
import weakref
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures import wait
from dataclasses import dataclass
from multiprocessing.context import SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pebble import ProcessExpired, ProcessPool

from lowbit_cts.conformance.arena import Arena, Message
from lowbit_cts.conformance.worker import MALLOC_CHECKS, Call, Reply, answer, initialize
from lowbit_cts.kernels import Backend

_STARTING = threading.Lock()

#: More output than this in one call is a flood (bytes).
FLOOD = 1 << 20
_TAIL = 4096

_POLL_SECONDS = 0.25

#: What glibc says before it aborts because of a damaged heap.
_HEAP_WORDS = ("free()", "malloc()", "realloc()", "munmap_chunk", "corrupted", "double free")

#: Seconds a backend may take to be imported.
LOAD_SECONDS = 180.0


@dataclass(frozen=True)
class Lost:
    """A call that did not return: the process died, or was killed because it took too long.

    Attributes
    ----------
    verdict : {"crashed", "hung"}
    message : str
    """

    verdict: str
    message: str


class OutputPipe:
    """Drains what the process writes to its standard streams; keeps the end of it and counts the bytes."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="lowbit-cts-")
        self.path = os.path.join(self.folder.name, "output")
        os.mkfifo(self.path)
        self.count = 0
        self.tail = b""
        # Opened for writing, too, so that the pipe never ends between two processes.
        self.descriptor = os.open(self.path, os.O_RDWR)
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        while chunk := os.read(self.descriptor, 1 << 16):
            self.count += len(chunk)
            self.tail = (self.tail + chunk)[-_TAIL:]

    def start(self) -> int:
        """Forget the output so far, and return the count at which the next begins."""
        self.tail = b""
        return self.count

    def text(self) -> str:
        """Return the end of the output."""
        return self.tail.decode(errors="replace").strip()


class KernelHost:
    """Runs the implementations of one backend in a process of their own.

    Parameters
    ----------
    spec : str
        What stood behind ``--backend``; the process loads it anew.
    backend : Backend
    timeout : float
        Seconds after which a call counts as hung.

    Notes
    -----
    On Linux with glibc, the process of a CPU backend runs under malloc's own checks: a kernel that writes past the
    end of memory it allocated itself aborts when the memory is freed. Its memory is limited to the machine's, so a
    runaway allocation fails instead of taking the machine down.
    """

    def __init__(self, spec: str, backend: Backend, timeout: float) -> None:
        self.timeout = max(timeout, backend.timeout or 0)
        self.output = OutputPipe()
        on_cpu = backend.device == "cpu"
        limit = int(psutil.virtual_memory().total * 0.9) if on_cpu else None
        checked = on_cpu and _has_malloc_debug()
        self.context = _CheckedContext() if checked else multiprocessing.get_context("spawn")
        self.requests, self.replies = Arena(), Arena()
        weakref.finalize(self, _close, self.requests, self.replies)
        self.setup = (spec, backend.name, self.output.path, (self.requests.path, self.replies.path), limit)
        self.isolated = False
        self._start()

    def _start(self) -> None:
        """Begin with a fresh process."""
        self.pool = ProcessPool(max_workers=1, context=self.context)
        self.process: int | None = None
        self.served: set[str] = set()

    def restart(self) -> None:
        """End the process and begin with a fresh one."""
        self.close()
        self._start()

    def execute(self, call: Call) -> Reply | Lost:
        """Return what was observed, or how the process was lost; the next call finds a fresh process.

        A process serves all implementations of the backend, one after the other. Damage to its memory may be of an
        earlier one's making: it is blamed on a kernel only if it shows in a process that has served no other, and
        from the first doubt on every kernel gets a process of its own.
        """
        kernel = f"{call.operation}/{call.implementation}"
        if self.isolated and self.served - {kernel}:
            self.restart()
        answer = self._answer(call, kernel)
        if not _damaged(answer):
            return answer
        if self.served - {kernel}:
            self.restart()
            answer = self._answer(call, kernel)
            self.isolated |= not _damaged(answer)  # not this kernel's making, so the culprit is still at large
        if isinstance(answer, Reply) and _damaged(answer):
            self.restart()
        return answer

    def _answer(self, call: Call, kernel: str) -> Reply | Lost:
        if self.process is None:  # loaded apart from the call: the time to import a library is not the kernel's
            loaded = self._run(initialize, self.setup, LOAD_SECONDS)
            if isinstance(loaded, Lost):
                return Lost(loaded.verdict, f"the backend does not load in the kernel host: {loaded.message}")
            self.process, self.served = loaded, set()
        self.served = served = self.served | {kernel}
        before = self.output.start()
        message = self._run(answer, (self.requests.pack(call),), self.timeout)
        reply = _copied(self.replies.unpack(message)) if isinstance(message, Message) else message
        self.served = served  # a lost process, too, has served whom it served
        printed = self.output.count - before
        if isinstance(reply, Reply) and printed > FLOOD:
            reply.malformed.append(f"wrote {printed / 2**20:.1f} MiB to the standard streams in one call")
        return reply

    def _run(self, function: Any, arguments: tuple[Any, ...], timeout: float) -> Any:
        """Return what the function returns in the process, or how the process was lost."""
        future = self.pool.schedule(function, args=arguments, timeout=timeout)
        try:
            while not future.done():
                wait([future], timeout=_POLL_SECONDS)
                if not future.done() and self._ended():  # an exit with status 0 is no expiry to the pool
                    wait([future], timeout=_POLL_SECONDS)
                    if not future.done():
                        self.restart()
                        return Lost("crashed", "the process ended in the call (exit status 0)")
            return future.result()
        except FutureTimeout:
            self.process = None
            return Lost("hung", f"no result within {timeout:g} s; the process was killed")
        except ProcessExpired as error:
            self.process = None
            code = error.exitcode
            how = f"killed by signal {-code}" if code is not None and code < 0 else f"exit status {code}"
            said = self.output.text()
            heap = "its heap was damaged: something wrote outside memory it had allocated; "
            hint = heap if any(word in said for word in _HEAP_WORDS) else ""
            return Lost("crashed", f"the process ended in the call ({how}){': ' + hint + said if said else ''}")
        except Exception as error:  # not the kernel's, whose exceptions are in the reply
            self.restart()
            return Lost("crashed", f"the process answered nonsense, {type(error).__name__}: {error}")

    def _ended(self) -> bool:
        """Whether the process that was loaded is no more."""
        if self.process is None:
            return False
        try:
            return psutil.Process(self.process).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def close(self) -> None:
        """End the process."""
        self.pool.stop()
        self.pool.join()


def _copied(reply: Reply) -> Reply:
    """Return a reply whose results outlive the next one."""
    reply.results = [{name: np.array(array) for name, array in result.items()} for result in reply.results]
    return reply


def _close(*arenas: Arena) -> None:
    for arena in arenas:
        arena.close()


def _damaged(answer: Reply | Lost) -> bool:
    return bool(answer.overrun) if isinstance(answer, Reply) else answer.verdict == "crashed"


class _CheckedProcess(SpawnProcess):
    """A spawned process under malloc's checks; only it, so the variables are set while it starts."""

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        with _STARTING:
            before = {name: os.environ.get(name) for name in MALLOC_CHECKS}
            os.environ.update(MALLOC_CHECKS)
            try:
                return SpawnProcess._Popen(process_obj)
            finally:
                for name, value in before.items():
                    if value is None:
                        del os.environ[name]
                    else:
                        os.environ[name] = value


class _CheckedContext(SpawnContext):
    Process = _CheckedProcess


def _has_malloc_debug() -> bool:
    library = ctypes.util.find_library("c_malloc_debug")
    return (
        bool(library)
        or any(Path("/lib").glob("*/libc_malloc_debug.so.0"))
        or any(Path("/lib64").glob("libc_malloc_debug.so.0"))
    )
