"""Whether a result depends on anything but its operands: the batch's size, its place in it, the run."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from lowbit_cts.conformance.fingerprint.findings import NOT_DETERMINED, Findings, NotDetermined
from lowbit_cts.conformance.fingerprint.probe import Pair

INDEPENDENT, REPEATED = "independent", "the same bits"

#: Sizes of batches, about the tiles of kernels.
_SIZES = (1, 2, 3, 4, 6, 7, 8, 12, 15, 16, 17, 24, 31, 32, 33, 48, 64)
_LENGTH, _COLUMNS, _ROWS, _RUNS = 512, 24, 67, 6
#: Positions that stay together, as long as the smallest groups with a scale.
_BLOCK = 32


class Operands(Protocol):
    """What is drawn for a product, and the product."""

    @property
    def cancels(self) -> bool:
        """Whether a takes numbers of either sign, so that products can cancel."""

    @property
    def draw(self) -> Callable[[np.random.Generator, int, int, int], Pair]:
        """Operands (M, K) and (K, N), of a generator, M, K and N."""

    @property
    def product(self) -> Callable[[Sequence[Pair]], list[np.ndarray]]:
        """Products of pairs of matrices."""


def _operands(probe: Operands, columns: int = _COLUMNS) -> Pair:
    """Return operands whose products are, where a takes any sign, 0 but for what rounding leaves: all of it shows."""
    rng = np.random.default_rng(11)
    a, b = probe.draw(rng, _ROWS, _LENGTH, columns)
    if not probe.cancels:
        return a, b
    half = np.arange(_LENGTH // 2).reshape(-1, _BLOCK)
    order = half[rng.permutation(len(half)), ::-1].ravel()
    return np.hstack([a[:, : _LENGTH // 2], -a[:, order]]), np.vstack([b[: _LENGTH // 2], b[order]])


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.tobytes() == other.tobytes()


def batch_size(probe: Operands) -> str:
    """Return for which sizes of the batch the first row's results are the same bits."""
    a, b = _operands(probe)
    rows = [y[0] for y in probe.product([(a[:m], b) for m in _SIZES])]
    kinds: list[tuple[np.ndarray, list[int]]] = []
    for m, row in zip(_SIZES, rows, strict=True):
        kind = next((sizes for known, sizes in kinds if _same(known, row)), None)
        if kind is None:
            kinds.append((row, [m]))
        else:
            kind.append(m)
    if len(kinds) == 1:
        return _independent(probe, rows[0])
    return "differs: " + " | ".join(_ranges(sizes, _SIZES) for _, sizes in kinds)


def _independent(probe: Operands, y: np.ndarray) -> str:
    """Return that results depend on nothing; NotDetermined if sums that cancel leave nothing for an order to change."""
    if probe.cancels and not np.any(y):
        raise NotDetermined("the sums that were drawn are exact in this accumulator")
    return INDEPENDENT


def _ranges(chosen: list[int], of: tuple[int, ...]) -> str:
    """Return numbers of a tuple, those that follow each other in it as a range."""
    texts, run = [], [chosen[0]]
    for number in [*chosen[1:], None]:
        if number is not None and of.index(number) == of.index(run[-1]) + 1:
            run.append(number)
            continue
        texts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
        run = [number] if number is not None else []
    return " ".join(texts)


def row(probe: Operands) -> str:
    """Return in which rows of a batch of equal rows the results differ from the first's."""
    a, b = _operands(probe)
    y = probe.product([(np.repeat(a[:1], _ROWS, axis=0), b)])[0]
    return _unequal([_same(y[0], other) for other in y], "rows") or _independent(probe, y)


def column(probe: Operands) -> str:
    """Return in which columns, of weights with equal columns, the results differ from the first's."""
    a, b = _operands(probe, _ROWS)
    y = probe.product([(a[:16], np.repeat(b[:, :1], _ROWS, axis=1))])[0].T
    return _unequal([_same(y[0], other) for other in y], "columns") or _independent(probe, y)


def _unequal(same: list[bool], what: str) -> str:
    odd = [i for i, equal in enumerate(same) if not equal]
    return "" if not odd else f"{what} {_ranges(odd, tuple(range(len(same))))} of {len(same)} differ"


def run(probe: Operands) -> str:
    """Return whether the same operands give the same bits in every run."""
    a, b = _operands(probe)
    results = probe.product([(a, b)] * _RUNS) + probe.product([(a, b)])
    return REPEATED if all(_same(results[0], y) for y in results) else "differs from run to run"


def find(found: Findings, probe: Operands) -> None:
    """Add what results depend on to the findings; on nothing but the run, where that is so."""
    finds = {"batch size": batch_size, "row in the batch": row, "column": column}
    found.attempt("run", lambda: run(probe))
    if found.values["run"] == REPEATED:
        for name, look in finds.items():
            found.attempt(name, lambda look=look: look(probe))  # type: ignore[misc]
    elif found.values["run"] != NOT_DETERMINED:
        found.undetermined("results differ from run to run", *finds)
    else:
        found.undetermined(found.reasons["run"], *finds)
