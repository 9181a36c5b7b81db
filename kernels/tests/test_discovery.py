"""Finding backends behind a specification, and the message for each way not to."""

import sys
import textwrap
from importlib.metadata import EntryPoint

import pytest

from lowbit_cts.kernels import Backend, ContractError, discovery
from lowbit_cts.kernels.discovery import default_backends, known_backends, load_backends

DECLARES = "from lowbit_cts.kernels import Backend\n"


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module into an importable folder; what the test imports is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(text: str, name: str = "acme_cts") -> str:
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
        return name

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("acme"):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("text", "spec", "names"),
    [
        ("backend = Backend('one')", "acme_cts", ["one"]),
        ("backends = [Backend('one'), Backend('two')]", "acme_cts", ["one", "two"]),
        ("backends = (Backend('one'),)", "acme_cts", ["one"]),
        ("backend = Backend('one')\nbackends = [Backend('two')]", "acme_cts", ["one"]),
        ("backend = Backend('one')\nfast = Backend('fast')", "acme_cts:fast", ["fast"]),
        ("several = [Backend('one'), Backend('two')]", "acme_cts:several", ["one", "two"]),
    ],
)
def test_a_module_gives_its_backend_or_the_named_attribute(module, text, spec, names):
    module(DECLARES + text)
    assert [backend.name for backend in load_backends(spec)] == names


REFUSED = [  # source of the module, specification, message
    (None, "acme_absent", r"no such backend; admissible: .*numpy.*, an importable module, or module:attribute"),
    (None, "acme_absent.inner:backend", "no such backend"),
    ("import acme_dependency", "acme_cts", "the module fails to import: No module named 'acme_dependency'"),
    ("from math import tau2", "acme_cts", "the module fails to import: ImportError: cannot import name 'tau2'"),
    ("backend = (", "acme_cts", "the module fails to import: SyntaxError"),
    ("1 / 0", "acme_cts", "the module fails to import: ZeroDivisionError"),
    ("backend = Backend('a', arrays='jax')", "acme_cts", r"Backend.arrays: 'jax' is unknown; admissible: numpy"),
    ("Backend('a').implements('matmul')", "acme_cts", r"unknown operation; admissible: .*matmul_int8"),
    ("mine = Backend('a')", "acme_cts", "has no attribute 'backend' or 'backends'; its backends: mine"),
    ("x = 1", "acme_cts", "has no attribute 'backend' or 'backends'; its backends: none"),
    ("backend = Backend('a')", "acme_cts:other", "has no attribute 'other'; its backends: backend"),
    ("backend = 'numpy'", "acme_cts", "str is neither a Backend nor a list of Backends"),
    ("backends = [Backend('a'), None]", "acme_cts", "list is neither a Backend nor a list of Backends"),
    ("backends = []", "acme_cts", "list is neither a Backend nor a list of Backends with at least one"),
    ("backends = Backend", "acme_cts", "type is neither a Backend nor a list of Backends"),
    (None, "", "--backend"),
    (None, ":backend", "--backend"),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: f"{case[1]}: {case[0]}")
def test_what_is_no_backend_is_refused_with_the_reason(module, case):
    text, spec, message = case
    if text is not None:
        module(DECLARES + text)
    with pytest.raises(ContractError, match=message) as caught:
        load_backends(spec)
    assert str(caught.value).startswith(f"--backend {spec}: ")


def test_a_module_beside_the_user_is_found_and_the_path_left_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "acme_beside.py").write_text(DECLARES + "backend = Backend('beside')")
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    assert load_backends("acme_beside")[0].name == "beside"
    assert sys.path == path
    del sys.modules["acme_beside"]


def test_a_module_beside_the_user_shadows_nothing(tmp_path, monkeypatch):
    (tmp_path / "tomllib.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tomllib", raising=False)
    with pytest.raises(ContractError, match="tomllib has no attribute 'backend'"):
        load_backends("tomllib")


def test_an_entry_point_stands_for_its_value(module, monkeypatch):
    module(DECLARES + "mine = Backend('from an entry point')", "acme_point")
    point = EntryPoint("acme", "acme_point:mine", discovery.GROUP)
    monkeypatch.setattr(discovery, "entry_points", lambda group: [point] if group == discovery.GROUP else [])
    assert known_backends() == {"acme": "acme_point:mine"}
    assert [backend.name for backend in load_backends("acme")] == ["from an entry point"]
    with pytest.raises(ContractError, match="no such backend; admissible: acme, an importable module"):
        load_backends("acme_nothing")


def test_the_backends_of_the_project_are_known():
    assert {"numpy", "torch"} <= set(known_backends())
    assert set(default_backends()) <= set(known_backends())
    found = load_backends("numpy")
    assert [backend.name for backend in found] == ["numpy"]
    assert all(isinstance(backend, Backend) for backend in found)
