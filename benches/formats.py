"""Number formats: what each costs in bits, and what it keeps of numbers of several kinds, by the reference."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lowbit_cts.benches.accuracy import sqnr_db
from lowbit_cts.benches.workloads import fills, lenet

#: Columns of the matrices: a multiple of every block.
WIDTH = 256

Link = Mapping[str, Any]
RoundTrip = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class NumberFormat:
    """A format as it is stored.

    Attributes
    ----------
    name : str
    bits : float
        A number's bits, its share of the scales and zero points included.
    round_trip : callable
        Gives what is left of a float32 matrix of width `WIDTH`.
    encode, decode : mapping
        ``operation`` and ``parameters`` of the rows that measure its speed.
    """

    name: str
    bits: float
    round_trip: RoundTrip
    encode: Link = field(default_factory=dict)
    decode: Link = field(default_factory=dict)


def sources() -> dict[str, np.ndarray]:
    """Return the numbers that formats are judged on, each a float32 matrix of width `WIDTH`.

    Returns
    -------
    dict
        ``normal`` and ``heavy-tailed`` (`lowbit_cts.benches.workloads.fills`, 4096 rows), and, where the extras 'torch'
        and 'models' are there to train it, ``digits weights``: all weights of the network trained on handwritten digits,
        one after another.
    """
    shape = (4096, WIDTH)
    found = {
        "normal": np.random.default_rng(1).standard_normal(shape).astype(np.float32),
        "heavy-tailed": fills.heavy_tailed(np.random.default_rng(1), shape),
    }
    try:
        weights = np.concatenate([w.ravel() for w in lenet.network().weights.values()])
    except ImportError:
        return found
    return {**found, "digits weights": weights[: weights.size // WIDTH * WIDTH].reshape(-1, WIDTH).astype(np.float32)}


def accuracy(number_format: NumberFormat, numbers: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the SQNR of a format on each source, dB."""
    return {name: sqnr_db(x, number_format.round_trip(x)) for name, x in numbers.items()}
