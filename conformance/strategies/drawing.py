"""The pieces that strategies are made of, and the table they enter."""

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

from lowbit_cts.kernels import Case

Draw = Callable[[st.SearchStrategy], Any]
Sizes = Mapping[str, int]

#: A strategy takes (draw, operation, parameters, regime, sizes) and gives a case.
CASES: dict[str, Callable[..., Case]] = {}


def draws(*operations: str) -> Callable[[Callable[..., Case]], Callable[..., Case]]:
    """Enter a strategy for the cases of operations."""

    def enter(strategy: Callable[..., Case]) -> Callable[..., Case]:
        CASES.update(dict.fromkeys(operations, strategy))
        return strategy

    return enter


#: Lengths around the widths of vectors, warps and tiles.
EDGES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 255, 256, 257)


def lengths(largest: int) -> st.SearchStrategy[int]:
    """Return a strategy for the length of an axis: small ones, and those beside powers of two."""
    return st.one_of(st.integers(1, min(9, largest)), st.sampled_from([n for n in EDGES if n <= largest]))


SEEDS = st.integers(0, 2**16)


def one_of(draw: Draw, options: tuple[str, ...]) -> str:
    """Draw one of several names (of fills)."""
    return draw(st.sampled_from(options))


def size(draw: Draw, sizes: Sizes, symbol: str, largest: int, multiple: int = 1) -> int:
    """Draw the length of an axis, a multiple of a block; where `sizes` fixes it, the nearest multiple below.

    A fixed length is at least one block, but for zero.
    """
    if symbol in sizes:
        return max(1, sizes[symbol] // multiple) * multiple if sizes[symbol] else 0
    return draw(lengths(max(1, largest // multiple))) * multiple
