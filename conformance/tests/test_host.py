"""The kernel host: whatever a kernel does to its process is an answer, and the next call finds a fresh one."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from lowbit_cts.conformance.host import FLOOD, KernelHost, Lost
from lowbit_cts.conformance.worker import Call, Reply
from lowbit_cts.kernels.discovery import load_backends

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def host():
    sys.path.insert(0, str(HERE))
    wrong = next(b for b in load_backends("vendor:wrong"))
    kernels = KernelHost("vendor:wrong", wrong, timeout=2.0)
    yield kernels
    kernels.close()
    sys.path.remove(str(HERE))


def call(name, rows=8, columns=40):
    parameters = {
        "format": "int8", "input_format": "float32", "granularity": "tensor", "axis": None, "group_size": None,
        "mapping": "asymmetric", "narrow_range": False,
    }  # fmt: skip
    arrays = {
        "x": np.zeros((rows, columns), np.float32),
        "scale": np.array(1, np.float32), "zero_point": np.array(0, np.int32),
    }  # fmt: skip
    return Call("quantize_affine", name, parameters, (arrays,))


def alive(host):
    """Whether a kernel that does nothing to the process still answers."""
    reply = host.execute(call("half_away_undeclared"))
    return isinstance(reply, Reply) and reply.raised is None and len(reply.results) == 1


@pytest.mark.parametrize(
    ("name", "verdict", "words"),
    [
        ("segfaults", "crashed", "Segmentation fault"),
        ("hangs", "hung", "no result within 2 s"),
        ("writes_past_its_own_output", "crashed", "signal 6"),
    ],
)
def test_a_lost_process_is_an_answer(host, name, verdict, words):
    answer = host.execute(call(name, columns=400))
    assert isinstance(answer, Lost)
    assert answer.verdict == verdict
    assert words in answer.message
    assert alive(host)


def test_an_exit_is_a_crash_with_its_status(host):
    answer = host.execute(call("exits", rows=9))
    assert isinstance(answer, Lost)
    assert (answer.verdict, "exit status 3" in answer.message) == ("crashed", True)
    assert alive(host)


def test_an_endless_loop_that_holds_the_interpreter_is_killed(host):
    answer = host.execute(call("hangs_on_seven_rows", rows=7))
    assert isinstance(answer, Lost)
    assert answer.verdict == "hung"
    assert alive(host)


def test_an_exception_is_in_the_reply(host):
    reply = host.execute(call("raises", columns=3))
    assert reply.raised == "RuntimeError: columns must be even"
    assert alive(host)


def test_a_failing_allocation_is_an_exception(host):
    assert "MemoryError" in host.execute(call("asks_for_too_much")).raised
    assert alive(host)


def test_a_flood_of_output_is_counted_and_kept_out_of_the_way(host, capfd):
    reply = host.execute(call("floods"))
    assert FLOOD == 2**20
    assert re.match(r"wrote \d\.\d MiB to the standard streams", reply.malformed[0])
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    assert alive(host)


def test_a_backend_that_loads_only_outside_the_host_is_an_answer(tmp_path, monkeypatch):
    (tmp_path / "moody.py").write_text(
        "import multiprocessing\nfrom lowbit_cts.kernels import Backend\nbackend = Backend('moody')\n"
        "if multiprocessing.parent_process():\n    raise OSError('no device in a second process')\n"
    )
    monkeypatch.chdir(tmp_path)
    (moody,) = load_backends("moody")
    kernels = KernelHost("moody", moody, timeout=5.0)
    answer = kernels.execute(call("any"))
    kernels.close()
    assert isinstance(answer, Lost)
    assert "does not load in the kernel host" in answer.message
    assert "no device in a second process" in answer.message


NEIGHBOURS = """
import os
import numpy as np
from lowbit_cts.kernels import Backend

backend = Backend("neighbours")
damaged = False

@backend.implements("quantize_affine")
def culprit(x, scale, zero_point):
    global damaged
    damaged = True
    return np.zeros(x.shape, np.int8)

@backend.implements("quantize_affine")
def victim(x, scale, zero_point):
    if damaged:
        os._exit(7)
    return np.zeros(x.shape, np.int8)

@backend.implements("quantize_affine")
def crasher(x, scale, zero_point):
    os._exit(8)
"""


def test_a_kernel_is_not_blamed_for_what_another_did_to_their_process(tmp_path, monkeypatch):
    (tmp_path / "neighbours.py").write_text(NEIGHBOURS)
    monkeypatch.chdir(tmp_path)
    (neighbours,) = load_backends("neighbours")
    kernels = KernelHost("neighbours", neighbours, timeout=5.0)
    assert isinstance(kernels.execute(call("culprit")), Reply)
    crashed = kernels.execute(call("crasher"))
    assert "exit status 8" in crashed.message
    assert not kernels.isolated  # it crashed in a process of its own, too
    assert isinstance(kernels.execute(call("culprit")), Reply)
    assert isinstance(kernels.execute(call("victim")), Reply)
    assert kernels.isolated
    assert isinstance(kernels.execute(call("culprit")), Reply)
    assert isinstance(kernels.execute(call("victim")), Reply)
    kernels.close()


def test_the_documented_limit_of_a_call_is_the_backends_where_it_is_longer():
    (backend,) = load_backends("numpy")
    backend.timeout = 30.0
    patient = KernelHost("numpy", backend, timeout=2.0)
    patient.close()
    assert patient.timeout == 30.0
