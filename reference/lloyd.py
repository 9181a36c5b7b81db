"""Optimal quantizers on a line: Lloyd-Max for a density, Lloyd's iteration (k-means) for samples.

Both alternate the same two conditions: every number goes to the nearest level, and every level is the mean of what
goes to it. For a log-concave density such as the normal one there is one quantizer that fulfils them (Fleischer 1964).
For samples there are many; which one the iteration finds depends on where it starts, and on what becomes of a level to
which nothing goes. Both are explicit choices.

References
----------
.. [1] S. P. Lloyd, "Least squares quantization in PCM", IEEE Trans. Inf. Theory 28 (1982), 129-137.
.. [2] J. Max, "Quantizing for minimum distortion", IRE Trans. Inf. Theory 6 (1960), 7-12.
.. [3] P. F. Panter and W. Dite, "Quantization distortion in pulse-count modulation with nonuniform spacing of levels",
   Proc. IRE 39 (1951), 44-48.
"""

from collections.abc import Callable

import numpy as np
from scipy.linalg import solve_banded
from scipy.optimize import minimize_scalar
from scipy.special import ndtr, ndtri

from lowbit_cts.reference.choices import (
    Boundary,
    Division,
    EmptyCluster,
    Initialisation,
    Precision,
    TieSide,
    takes_choices,
)
from lowbit_cts.reference.codebooks import assign, codebook_values, decode_codes
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.means import enclose_mean, greatest_step

Density = Callable[[np.ndarray], np.ndarray]
Moments = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


def gaussian_density(x: np.ndarray) -> np.ndarray:
    """Return the density of the standard normal distribution."""
    return np.exp(-0.5 * np.square(x)) / np.sqrt(2 * np.pi)


def gaussian_moments(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the integrals of f, x f and x**2 f over [low, high], f the standard normal density.

    Parameters
    ----------
    low, high : ndarray of float64, the same shape
        Ends, -inf and inf among them.

    Notes
    -----
    ``x f = -f'`` and ``x**2 f = f - (x f)'``. The mass of an interval right of zero is that of its mirror image, where
    the distribution function does not lose digits to 1.
    """
    low, high = np.asarray(low, np.float64), np.asarray(high, np.float64)
    mirrored = low > 0
    mass = np.where(mirrored, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))
    ends = [np.where(np.isinf(end), 0.0, end) * gaussian_density(end) for end in (low, high)]
    return mass, gaussian_density(low) - gaussian_density(high), mass + ends[0] - ends[1]


def _cells(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the nearest-neighbour cells of sorted levels."""
    middles = (levels[:-1] + levels[1:]) / 2
    return np.concatenate([[-np.inf], middles]), np.concatenate([middles, [np.inf]])


def distortion(levels: np.ndarray, *, moments: Moments = gaussian_moments) -> float:
    """Return the mean squared error of rounding to the nearest of the levels.

    Parameters
    ----------
    levels : ndarray of float64, shape (n,)
        In any order.
    moments : callable
        The integrals of f, x f and x**2 f over intervals, as `gaussian_moments`.
    """
    levels = np.sort(np.asarray(levels, np.float64))
    mass, first, second = moments(*_cells(levels))
    return float(np.sum(second - 2 * levels * first + levels**2 * mass))


def lloyd_max(
    size: int,
    *,
    density: Density = gaussian_density,
    moments: Moments = gaussian_moments,
    start: np.ndarray | None = None,
    iterations: int = 100,
) -> np.ndarray:
    """Return the levels of the optimal quantizer of a log-concave density.

    Parameters
    ----------
    size : int
        The number of levels.
    density, moments : callable
        The density f, and the integrals of f, x f and x**2 f over intervals.
    start : ndarray of float64, shape (size,), or None
        Where to start from; None for the quantiles of f**(1/3), normalised, of the normal density: N(0, 3).
    iterations : int
        At most so many Newton steps; a handful is enough.

    Returns
    -------
    ndarray of float64, shape (size,), ascending

    Raises
    ------
    ValueError
        A size below 1, a start of another size, no convergence.

    Notes
    -----
    Newton's method on y - c(y) = 0, where c are the centroids of the cells of y. A centroid depends on the two ends of
    its cell alone, dc/dt = f(t) |t - c| / mass, and an end on its two neighbours, so the Jacobian is tridiagonal.
    """
    if size < 1:
        raise ValueError(f"size: must be at least 1; got {size}")
    levels = np.sqrt(3) * ndtri((np.arange(size) + 0.5) / size) if start is None else np.sort(start).astype(np.float64)
    if levels.shape != (size,):
        raise ValueError(f"start: has shape {levels.shape}, must be ({size},)")
    for _ in range(iterations):
        low, high = _cells(levels)
        with np.errstate(divide="ignore", invalid="ignore"):
            mass, first, _second = moments(low, high)
            centroid = first / mass
        if not np.all(np.isfinite(centroid)):  # a cell without mass
            break
        ends = high[:-1]  # each the high end of one cell and the low end of the next
        of_lower = density(ends) * (ends - centroid[:-1]) / mass[:-1] / 2
        of_upper = density(ends) * (centroid[1:] - ends) / mass[1:] / 2
        bands = np.array(
            [np.r_[0.0, -of_lower], 1 - np.r_[of_lower, 0.0] - np.r_[0.0, of_upper], np.r_[-of_upper, 0.0]]
        )
        step = solve_banded((1, 1), bands, centroid - levels)
        levels = np.sort(levels + step)
        if np.max(np.abs(step)) <= 1e-10 * np.max(np.abs(levels), initial=1.0):
            return levels  # the convergence is quadratic: what is left is the rounding of the moments
    raise ValueError(f"iterations: {iterations} Newton steps did not converge; give a better start, or more")


def optimal_step(codes: np.ndarray, *, moments: Moments = gaussian_moments, largest: float = 8.0) -> float:
    """Return the step s for which the levels s * codes have the least distortion: the optimal uniform quantizer.

    Parameters
    ----------
    codes : ndarray of float, shape (n,)
        Such as -8 .. 7, or the half-integers of a quantizer without zero.
    moments : callable
        As in `distortion`.
    largest : float
        Where the search ends.
    """
    codes = np.asarray(codes, np.float64)
    found = minimize_scalar(
        lambda s: distortion(s * codes, moments=moments),
        bounds=(0.0, largest),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(found.x)


def panter_dite(size: int) -> float:
    """Return the distortion that the optimal quantizer of the normal density approaches: (sqrt(3) pi / 2) / size**2."""
    return float(np.sqrt(3) * np.pi / 2 / size**2)


def _samples(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if not np.all(np.isfinite(x)):
        raise ValueError("x: must be finite; a NaN or an infinity has no nearest mean")
    return x


def _checked(x: np.ndarray, codes: np.ndarray, codebook: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x, codes = _samples(x), np.asarray(codes)
    if codes.shape != x.shape:
        raise ValueError(f"codes: has shape {codes.shape}, must have that of x, {x.shape}")
    decode_codes(codes, codebook)
    return x.ravel(), codes.ravel().astype(np.int64), codebook_values(codebook).astype(np.float64)


@takes_choices
def initial_codebook(x: np.ndarray, size: int, *, initialisation: Initialisation) -> np.ndarray:
    """Return a codebook to start from.

    Parameters
    ----------
    x : ndarray of float, any shape
        Finite samples.
    size : int
        The number of values.
    initialisation : Initialisation
        Of the quantiles, those between two samples are interpolated.

    Returns
    -------
    ndarray of float64, shape (size,), ascending

    Raises
    ------
    ValueError
        No samples, one that is not finite, a size below 1.
    """
    x = _samples(x)
    if x.size == 0:
        raise ValueError("x: must not be empty")
    if size < 1:
        raise ValueError(f"size: must be at least 1; got {size}")
    parts = (np.arange(size) + 0.5) / size
    if initialisation is Initialisation.QUANTILES:
        return np.quantile(x, parts)
    return x.min() + (x.max() - x.min()) * parts


def objective(x: np.ndarray, codes: np.ndarray, codebook: np.ndarray) -> float:
    """Return the sum of squared distances of the samples from the values of their codes."""
    x, codes, values = _checked(x, codes, codebook)
    return float(np.sum(np.square(x - values[codes])))


def fill_empty(x: np.ndarray, codes: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Return the codes with a sample for each code that has none: the samples farthest from the values of their codes.

    The empty codes, in ascending order, take the farthest sample, the second farthest, and so on; of equally far ones
    that which comes first. A sample that is taken counts no more where it was, and a cluster that loses its last one
    keeps its value.
    """
    shape = np.shape(codes)
    x, codes, values = _checked(x, codes, codebook)
    empty = np.flatnonzero(np.bincount(codes, minlength=values.size) == 0)[: x.size]
    if empty.size:
        codes = codes.copy()
        codes[np.argsort(-np.abs(x - values[codes]), kind="stable")[: empty.size]] = empty
    return codes.reshape(shape)


@takes_choices
def update(
    x: np.ndarray, codes: np.ndarray, codebook: np.ndarray, *, empty: EmptyCluster = EmptyCluster.KEEP
) -> np.ndarray:
    """Return the codebook of the means of the samples of each code, summed in float64.

    Parameters
    ----------
    x : ndarray of float, any shape
        Finite samples.
    codes : ndarray of int, the shape of x
    codebook : ndarray of float, shape (n,)
        The values that the codes were assigned by.
    empty : EmptyCluster
        What becomes of the value of a code that no sample has.

    Returns
    -------
    ndarray of float64, shape (n,)

    Raises
    ------
    ValueError
        A sample that is not finite, codes outside the codebook, shapes that differ.
    """
    if empty is EmptyCluster.FARTHEST:
        codes = fill_empty(x, codes, codebook)
    x, codes, values = _checked(x, codes, codebook)
    count = np.bincount(codes, minlength=values.size)
    total = np.bincount(codes, x, minlength=values.size)
    return np.where(count == 0, values, total / np.maximum(count, 1))


@takes_choices
def update_enclosure(
    x: np.ndarray,
    codes: np.ndarray,
    codebook: np.ndarray,
    *,
    empty: EmptyCluster = EmptyCluster.KEEP,
    intermediate: Precision = Precision.FLOAT32,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
) -> Enclosure:
    """Return the admissible codebooks of `update` in float32, the samples of each code added in any order.

    Parameters and errors are those of `update`; `intermediate`, `division` and `division_ulps` are those of
    `lowbit_cts.reference.means.enclose_mean`. Where the sum of magnitudes is a multiple, up to 2**24, of a power of two
    that divides all samples of a code, one value is admissible. The value of a code without samples is determined.
    """
    if empty is EmptyCluster.FARTHEST:
        codes = fill_empty(x, codes, codebook)
    x, codes, values = _checked(x, codes, codebook)
    count = np.bincount(codes, minlength=values.size)
    total, magnitude = (np.bincount(codes, v, minlength=values.size) for v in (x, np.abs(x)))
    step = np.full(values.size, np.inf)
    np.minimum.at(step, codes, greatest_step(x))
    mean = enclose_mean(
        total, magnitude, count, step, intermediate=intermediate, division=division, division_ulps=division_ulps
    )
    kept = values.astype(np.float32).astype(np.float64)
    exact, lo, hi = (np.where(count == 0, kept, end) for end in (mean.exact, mean.lo, mean.hi))
    return Enclosure(exact, lo, hi)


@takes_choices
def lloyd(
    x: np.ndarray,
    codebook: np.ndarray,
    *,
    iterations: int = 300,
    tie: TieSide = TieSide.LOWER,
    boundary: Boundary = Boundary.EXACT,
    empty: EmptyCluster = EmptyCluster.KEEP,
) -> tuple[np.ndarray, np.ndarray]:
    """Return codes and codebook after Lloyd's iteration: assign, update, until the codes stay as they are.

    Parameters
    ----------
    x : ndarray of float, any shape
        Finite samples.
    codebook : ndarray of float, shape (n,)
        Where to start from, for instance `initial_codebook`.
    iterations : int
        At most so many updates.
    tie, boundary : as `lowbit_cts.reference.codebooks.assign`
    empty : as `update`

    Returns
    -------
    codes : ndarray of int64, the shape of x
        Assigned by the codebook that is returned.
    codebook : ndarray of float64, shape (n,)
    """
    x, values = _samples(x), codebook_values(codebook).astype(np.float64)
    codes = assign(x, values, tie=tie, boundary=boundary)
    for _ in range(iterations):
        values = update(x, codes, values, empty=empty)
        before, codes = codes, assign(x, values, tie=tie, boundary=boundary)
        if np.array_equal(before, codes):
            break
    return codes, values
