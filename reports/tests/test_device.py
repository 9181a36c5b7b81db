import json
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from lowbit_cts.reports import device


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("AMD EPYC", "cpu-amd-epyc-4c"),
        ("AMD EPYC 9654 96-Core Processor", "cpu-amd-epyc-9654-4c"),
        ("Intel(R) Xeon(R) CPU E5-2670 v3 @ 2.30GHz", "cpu-intel-xeon-e5-2670-v3-4c"),
        ("AMD Ryzen 7 7840U w/ Radeon  780M Graphics", "cpu-amd-ryzen-7-7840u-4c"),
        ("Apple M2", "cpu-apple-m2-4c"),
    ],
)
def test_cpu_slug(name, slug):
    assert device.cpu_slug(name, 4) == slug


def test_slug():
    assert device.slug("NVIDIA GeForce RTX 4070 Ti") == "nvidia-geforce-rtx-4070-ti"


def test_the_cpu_is_described():
    found = device.describe()
    assert found["kind"] == "cpu"
    assert found["slug"] == device.slug(found["slug"])
    assert found["slug"].startswith("cpu-")
    assert found["slug"].endswith(f"-{found['cores']}c")
    assert found["memory_bytes"] > 2**28
    assert all(2**12 <= size <= 2**32 for size in found["caches"].values())
    json.dumps(found)


def test_nothing_names_the_host():
    text = json.dumps([device.describe(), device.environment()])
    if len(platform.node()) > 3:
        assert platform.node() not in text
    assert os.path.expanduser("~/") not in text
    assert os.getcwd() not in text


def test_environment_states_versions():
    found = device.environment()
    assert platform.python_version() in found["python"]
    assert found["packages"]["pytest"] == pytest.__version__
    assert "surely-not-installed" not in found["packages"]


def test_revision_is_of_the_file_that_git_tracks(tmp_path):
    tracked, untracked = tmp_path / "tracked", tmp_path / "untracked"
    tracked.write_text("1")
    untracked.write_text("1")
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    for arguments in (["init", "-q"], ["add", "tracked"], [*identity, "commit", "-qm", "m"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    found = device.revision(tracked)
    assert found is not None
    assert len(found["revision"]) == 40
    assert found["dirty"] is False
    tracked.write_text("2")
    assert device.revision(tracked) == {**found, "dirty": True}
    assert device.revision(untracked) is None


class FakeNvml(SimpleNamespace):
    """Enough of pynvml for one H200 that has no SM clock to tell."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    def __getattr__(self, name):
        answers = {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetHandleByIndex": lambda index: f"index {index}",
            "nvmlDeviceGetHandleByUUID": lambda uuid: f"uuid {uuid}",
            "nvmlDeviceGetName": lambda handle: b"NVIDIA H200",
            "nvmlDeviceGetUUID": lambda handle: handle,
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(total=150),
            "nvmlDeviceGetCudaComputeCapability": lambda handle: (9, 0),
            "nvmlDeviceGetPowerManagementLimit": lambda handle: 700_000,
            "nvmlDeviceGetEccMode": lambda handle: [1, 0],
        }
        return answers.get(name, self.refuse)

    def refuse(self, *arguments):
        raise self.NVMLError("not supported")


def test_a_gpu_is_described_as_far_as_it_tells(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = device.describe("cuda:0")
    assert (found["slug"], found["uuid"], found["compute_capability"]) == ("nvidia-h200", "index 0", "9.0")
    assert (found["power_limit_w"], found["ecc"], found["sm_mhz"]) == (700.0, True, None)


@pytest.mark.parametrize(
    ("visible", "index", "handle"),
    [("3,1", 1, "index 1"), ("3,1", 0, "index 3"), ("GPU-12", 0, "uuid GPU-12"), ("", 2, "index 2")],
)
def test_cuda_visible_devices_renumbers(monkeypatch, visible, index, handle):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert device.describe(index)["uuid"] == handle


@pytest.mark.parametrize("module", [None, FakeNvml(nvmlInit=FakeNvml().refuse)])
def test_without_nvml_a_gpu_is_unknown_but_not_a_cpu(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    found = device.describe("cuda:1")
    assert (found["kind"], found["slug"]) == ("cuda", "cuda-1-unknown")


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="tpu"):
        device.describe("tpu")
