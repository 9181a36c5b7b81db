"""Calls of a backend's kernels on NumPy arrays, for workloads made of several operations."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lowbit_cts.kernels.backend import Backend, Implementation
from lowbit_cts.kernels.operation import OPERATIONS, Case


class UnsupportedError(LookupError):
    """No implementation of the backend declares what is asked for."""


#: An operation on NumPy arrays (or None) in the order of its arguments; gives its results.
Kernel = Callable[..., tuple[np.ndarray, ...]]


def kernel(backend: Backend, operation: str, parameters: dict[str, Any]) -> Kernel:
    """Return the backend's first implementation that declares the parameters, on NumPy arrays.

    Parameters
    ----------
    backend : Backend
    operation : str
    parameters : dict
        A value for every parameter of the operation, None where it means nothing.

    Returns
    -------
    callable of the arguments
        Takes and returns arrays in the carriers of their formats.

    Raises
    ------
    UnsupportedError
        When there is none.
    """
    contract = OPERATIONS[operation]
    chosen = next((i for i in backend.implementations if i.operation is contract and _declares(i, parameters)), None)
    if chosen is None:
        raise UnsupportedError(f"{backend.name}: no implementation of {operation} declares {parameters}")
    exchange = backend.exchange()

    def results(*arrays: np.ndarray | None) -> tuple[np.ndarray, ...]:
        named = dict(zip((argument.name for argument in contract.arguments), arrays, strict=True))
        case = Case(contract, parameters, named)

        def given(name: str, array: np.ndarray | None) -> Any:
            return None if array is None else exchange.from_numpy(array, case.format(name).name)

        run = chosen.bound({name: given(name, array) for name, array in named.items()}, parameters)
        slots = contract.results
        if chosen.takes_out:
            found = [given(r.name, np.empty(case.result_shape(r), case.format(r.name).carrier)) for r in slots]
            run(out=tuple(found) if len(slots) > 1 else found[0])
        else:
            found = list(run()) if len(slots) > 1 else [run()]
        exchange.synchronize()
        return tuple(exchange.to_numpy(y, case.format(r.name).name) for r, y in zip(slots, found, strict=True))

    return results


def _declares(implementation: Implementation, parameters: Mapping[str, Any]) -> bool:
    supports = implementation.supports
    return all(value is None or value in supports[name] for name, value in parameters.items())
