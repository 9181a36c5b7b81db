"""Baselines: what the device takes for the same product on wide numbers, as a user would call it without quantizing."""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from lowbit_cts.kernels.operation import Case

Call = Callable[[], Any]

#: The wide formats, and their bits.
WIDE = {"float32": 32, "bfloat16": 16}


def _matmul(case: Case, drawn: Callable[..., Any]) -> Call:
    import torch

    sizes = case.sizes
    # The weights lie as those of a layer do: an output a row.
    return partial(torch.mm, drawn(sizes["M"], sizes["K"]), drawn(sizes["N"], sizes["K"]).t())


def _convolution(case: Case, drawn: Callable[..., Any]) -> Call:
    from torch.nn.functional import conv2d, pad

    chosen, x = case.parameters, case.array("x")
    top, left, bottom, right = chosen["pads"]
    filters = drawn(*case.array("w").shape)
    settings = {
        "stride": chosen["strides"], "dilation": chosen["dilations"], "groups": x.shape[1] // filters.shape[1],
    }  # fmt: skip
    if (top, left) == (bottom, right):
        return partial(conv2d, drawn(*x.shape), filters, padding=(top, left), **settings)
    images = drawn(*x.shape)
    return lambda: conv2d(pad(images, (left, right, top, bottom)), filters, **settings)


def _attention(case: Case, drawn: Callable[..., Any]) -> Call | None:
    """Return attention to keys and values in one piece; None where its mask or its cap is not that of one token."""
    from torch.nn.functional import scaled_dot_product_attention

    sequences, tokens, heads, size = case.array("query").shape
    chosen, contexts = case.parameters, case.array("context_lengths")
    if tokens != 1 or chosen["mask"] == "window" or chosen["capped"] or len(set(contexts.tolist())) != 1:
        return None
    kept, size_of_values = case.array("value_cache").shape[2:]
    heads_and_slots = sequences, kept, int(contexts[0])
    keys, values = drawn(*heads_and_slots, size), drawn(*heads_and_slots, size_of_values)
    query = drawn(sequences, heads, 1, size)
    return partial(scaled_dot_product_attention, query, keys, values, enable_gqa=kept != heads)


_PRODUCTS: dict[str, Callable[..., Call | None]] = {"conv2d_int8": _convolution, "attention_paged": _attention}


def baselines(case: Case, device: str, copies: int = 1) -> dict[str, list[Call]]:
    """Return the calls of the product of the same shape on wide numbers.

    Parameters
    ----------
    case : Case
        Whose shape to take. Products have sizes M, N and K; convolutions and attention have baselines of their own.
    device : str
        ``"cpu"``, or a CUDA device as torch names it.
    copies : int
        Calls of each, on buffers of their own.

    Returns
    -------
    dict of str to list of callable
        By format, see `WIDE`: PyTorch's product; without PyTorch NumPy's in float32. Empty where the operation is no
        product.
    """
    make = _PRODUCTS.get(case.operation.name, _matmul if {"M", "N", "K"} <= set(case.sizes) else None)
    if make is None:
        return {}
    rng = np.random.default_rng(0)
    if find_spec("torch") is None:
        if make is not _matmul:
            return {}
        m, n, k = (case.sizes[name] for name in "MNK")
        return {
            "float32": [
                partial(np.matmul, rng.standard_normal((m, k), np.float32), rng.standard_normal((n, k), np.float32).T)
                for _ in range(copies)
            ]
        }
    import torch

    found: dict[str, list[Call]] = {}
    for name in WIDE:

        def drawn(*shape: int, name: str = name) -> Any:
            return torch.from_numpy(rng.standard_normal(shape, np.float32)).to(device, getattr(torch, name))

        calls = [call for _ in range(copies) if (call := make(case, drawn)) is not None]
        if calls:
            found[name] = calls
    return found
