"""Paged optimizer states: which pages are on the device, and what is moved, for a budget of pages.

Memory that host and device share is moved page by page when the device touches it, and the page touched longest ago
makes room [1]_. A step of an optimizer reads and writes the states of all parameters in turn; where these fit into the
budget they stay, and where they do not, by as little as a page, every step moves all of them.

References
----------
.. [1] T. Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314, §3, paged optimizers;
   CUDA C++ Programming Guide, unified memory, oversubscription. Which page is evicted is the driver's; least recently
   touched is the usual model.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """What a trace of touches moved.

    Attributes
    ----------
    to_device, to_host : int
        Bytes brought in, and bytes written back, which only pages that were written are.
    faults : int
        Touches of pages that were not on the device.
    resident : int
        The most bytes that were on the device at once.
    """

    to_device: int
    to_host: int
    faults: int
    resident: int


def touched_pages(offset: int, size: int, page: int) -> range:
    """Return the pages of `size` bytes from `offset` on."""
    return range(offset // page, -(-(offset + size) // page)) if size else range(0)


def paged(touches: Iterable[tuple[int, bool]], *, page: int, budget: int) -> Traffic:
    """Return what a trace moves, the pages touched longest ago being evicted.

    Parameters
    ----------
    touches : iterable of (page number, whether it is written)
        In order.
    page : int
        Bytes of a page.
    budget : int
        Pages that fit on the device.

    Returns
    -------
    Traffic
        Pages are on the host first, and what is left on the device in the end is not written back.

    Raises
    ------
    ValueError
        A page or a budget below 1.
    """
    if page < 1 or budget < 1:
        raise ValueError(f"page and budget: must be at least 1; got {page} and {budget}")
    present: OrderedDict[int, bool] = OrderedDict()  # page: written since it came; touched longest ago first
    faults = written_back = most = 0
    for number, written in touches:
        if number in present:
            present[number] |= written
            present.move_to_end(number)
        else:
            if len(present) == budget:
                _, changed = present.popitem(last=False)
                written_back += changed
            present[number] = written
            faults += 1
            most = max(most, len(present))
    return Traffic(faults * page, written_back * page, faults, most * page)


def optimizer_trace(sizes: Sequence[int], *, bytes_per_parameter: int, page: int, steps: int) -> list[tuple[int, bool]]:
    """Return the touches of steps of an optimizer: the states of each tensor in turn, each page read and written.

    Parameters
    ----------
    sizes : sequence of int
        Parameters of each tensor; their states lie one after the other.
    bytes_per_parameter : int
        8 of Adam in float32, 2 of 8-bit Adam.
    page : int
    steps : int

    Raises
    ------
    ValueError
        Negative sizes or steps.
    """
    if min([*sizes, steps], default=0) < 0:
        raise ValueError(f"sizes and steps: must not be negative; got {list(sizes)} and {steps}")
    trace, offset = [], 0
    for size in sizes:
        trace += [(number, True) for number in touched_pages(offset, size * bytes_per_parameter, page)]
        offset += size * bytes_per_parameter
    return trace * steps
