"""Fills: what the numbers in a workload are drawn from, each a documented distribution.

Speed depends on the numbers (switching energy sets the clock) and accuracy does even more, so every
measurement names its fill. Drawn with NumPy's PCG64 from a seed, a fill gives the same numbers on every
machine.
"""

from collections.abc import Callable

import numpy as np

Fill = Callable[[np.random.Generator, tuple[int, int]], np.ndarray]

#: The share of the channels that `outliers` scales, and by how much.
OUTLIER_SHARE, OUTLIER_FACTOR = 0.01, 50.0


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return independent standard normal numbers: mean 0, variance 1.

    Parameters
    ----------
    rng : Generator
    shape : (rows, channels)

    Returns
    -------
    ndarray of float32
    """
    return rng.standard_normal(shape, np.float32)


def outliers(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return standard normal numbers with 1 % of the channels multiplied by 50, the same in every row.

    The channels (columns) are drawn uniformly without replacement, after the numbers; their number is 1 % of
    all, rounded half to even, but at least one. The model is the outlier features of transformers: few, fixed
    channels of the activations with magnitudes 20 to 100 times the others' [1]_.

    Parameters
    ----------
    rng : Generator
    shape : (rows, channels)

    Returns
    -------
    ndarray of float32

    References
    ----------
    .. [1] G. Xiao et al., "SmoothQuant", ICML 2023, arXiv:2211.10438, §3; T. Dettmers et al., "LLM.int8()",
    NeurIPS
       2022, arXiv:2208.07339, §4.
    """
    x = normal(rng, shape)
    channels = shape[1]
    chosen = rng.choice(channels, min(channels, max(1, round(OUTLIER_SHARE * channels))), replace=False)
    x[:, chosen] *= np.float32(OUTLIER_FACTOR)
    return x


#: Degrees of freedom of `heavy_tailed`.
TAIL = 5.0


def heavy_tailed(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    """Return numbers of Student's t distribution with 5 degrees of freedom, scaled to variance 1.

    Its kurtosis is 9, that of the normal distribution 3: about what is found in the weights of trained transformers,
    whose layers fit t distributions of few degrees of freedom [1]_.

    Parameters
    ----------
    rng : Generator
    shape : (rows, channels)

    Returns
    -------
    ndarray of float32

    References
    ----------
    .. [1] J. Dotzel et al., "Learning from Students: Applying t-Distributions to Explore Accurate and Efficient Formats
       for LLMs", ICML 2024, arXiv:2405.03103.
    """
    return (rng.standard_t(TAIL, shape) * np.sqrt((TAIL - 2) / TAIL)).astype(np.float32)


FILLS: dict[str, Fill] = {"normal": normal, "outliers": outliers, "heavy_tailed": heavy_tailed}
