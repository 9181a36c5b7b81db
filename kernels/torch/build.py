"""How a composed kernel is built: left to run eagerly, or handed to torch.compile."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

Build = Callable[[Callable[..., Any]], Callable[..., Any]]


def eager(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return the kernel itself."""
    return kernel


def compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return the kernel under torch.compile, with symbolic shapes and code ranges.

    A suite of many formats, ranks and strides specializes a kernel more often than a model does. At its
    recompile limit torch would run the kernel eagerly, and what is tested would not be what is named; so the
    limit is lifted, and a graph that is not whole is an error, as is a missing C++ compiler.
    """
    program = torch.compile(kernel, dynamic=True, fullgraph=True)

    @wraps(kernel)
    def run(*arguments: Any, **parameters: Any) -> Any:
        import torch._dynamo

        with torch._dynamo.config.patch(recompile_limit=4096, accumulated_recompile_limit=4096):
            return program(*arguments, **parameters)

    return run
