"""The pytest plugin that finds the benches, wherever they are installed and whatever a project names its tests."""

from pathlib import Path

import pytest

_HERE = Path(__file__).resolve().parent


class BenchModule(pytest.Module):
    """A module ``bench_*.py`` of this folder, whose functions ``bench_*`` are run."""

    def funcnamefilter(self, name: str) -> bool:
        """Return whether a function of the module is a bench."""
        return name.startswith("bench_")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Collect the bench modules of this folder."""
    if file_path.suffix == ".py" and file_path.name.startswith("bench_") and file_path.resolve().parent == _HERE:
        return BenchModule.from_parent(parent, path=file_path)
    return None
