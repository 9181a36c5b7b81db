"""Finding backends by what stands behind ``--backend``: an entry point, a module, or ``module:attribute``."""

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points

from lowbit_cts.kernels.backend import Backend, ContractError

GROUP = "lowbit_cts.backends"


def known_backends() -> dict[str, str]:
    """Return the registered names and what they stand for (``module:attribute``)."""
    return {point.name: point.value for point in entry_points(group=GROUP)}


def default_backends() -> list[str]:
    """Return the names used when none is given: NumPy, and torch where it is installed."""
    return ["numpy", *(["torch"] if importlib.util.find_spec("torch") else [])]


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Let a module beside the user be imported; last on the path and for the import only, so it shadows nothing."""
    here = os.getcwd()
    sys.path.append(here)
    try:
        yield
    finally:
        sys.path.remove(here)


def load_backends(spec: str) -> list[Backend]:
    """Return the backends behind a specification.

    Parameters
    ----------
    spec : str
        The name of an entry point of the group ``lowbit_cts.backends``, or ``module`` (its attribute `backend` or
        `backends`), or ``module:attribute``; the attribute is a `Backend` or a list of them.

    Raises
    ------
    ContractError
        When there is no such backend, the module fails to import, or the attribute is something else.
    """
    known = known_backends()
    module_name, _, attribute = known.get(spec, spec).partition(":")
    try:
        with _working_directory_importable():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            names = ", ".join(sorted(known))
            raise ContractError(
                f"--backend {spec}: no such backend; admissible: {names}, an importable module, or module:attribute"
            ) from None
        raise ContractError(f"--backend {spec}: the module fails to import: {error}") from error
    except ContractError as error:
        raise ContractError(f"--backend {spec}: {error}") from error
    except Exception as error:  # whatever a stranger's module raises is a message, not our traceback
        raise ContractError(f"--backend {spec}: the module fails to import: {type(error).__name__}: {error}") from error
    attributes = [attribute] if attribute else ["backend", "backends"]
    found = next((getattr(module, name) for name in attributes if hasattr(module, name)), None)
    if found is None:
        present = [name for name, value in vars(module).items() if isinstance(value, Backend)]
        raise ContractError(
            f"--backend {spec}: {module_name} has no attribute {' or '.join(map(repr, attributes))}; its backends: "
            f"{', '.join(present) or 'none'}"
        )
    backends = [found] if isinstance(found, Backend) else found
    if not isinstance(backends, (list, tuple)) or not backends or not all(isinstance(b, Backend) for b in backends):
        raise ContractError(
            f"--backend {spec}: {type(found).__name__} is neither a Backend nor a list of Backends with at least one"
        )
    return list(backends)
