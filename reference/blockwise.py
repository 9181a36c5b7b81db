"""Blockwise quantization with a codebook: blocks along the rows, each scaled by the largest magnitude in it.

A block of `block_size` neighbours in a row is divided by its absmax, and each quotient, in [-1, 1], gets the code of
the codebook's nearest value. What is divided by an absmax of zero, or of next to nothing, is the choice `zero_scale`;
the absmax that is returned is the block's own in any case. bitsandbytes numbers its blocks through the flattened
tensor, which is the same where `block_size` divides the rows; elsewhere give it a matrix of one row.

Double quantization stores the absmax of many blocks in 8 bits: less their mean, in blocks of 256, with the dynamic map.

References
----------
.. [1] T. Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023, arXiv:2305.14314, §3.
.. [2] bitsandbytes 0.50: backends/default/ops.py (CPU: x * (1 / max(absmax, 1e-38)), torch.bucketize over float32
   boundaries), csrc/kernels.cu (CUDA: x * (1 / absmax) under --use_fast_math, trees of thresholds), functional.py
   (double quantization).
"""

import numpy as np

from lowbit_cts.reference.choices import (
    Boundary,
    Contraction,
    Division,
    EqualValues,
    Precision,
    TieSide,
    ZeroScale,
    takes_choices,
)
from lowbit_cts.reference.codebooks import assign, assign_enclosure, decode_codes
from lowbit_cts.reference.enclosure import Enclosure, determined, gamma
from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.granularity import spread
from lowbit_cts.reference.means import mean_enclosure
from lowbit_cts.reference.rounding import fma_float32

_FLOAT32 = float_format("float32")
_U32 = _FLOAT32.unit_roundoff


def _as(precision: Precision, values: np.ndarray) -> np.ndarray:
    return round_to_format(values, float_format(precision.value))


def _absmax_shape(shape: tuple[int, ...], block_size: int, name: str) -> tuple[int, int]:
    if not isinstance(block_size, (int, np.integer)) or block_size < 1:
        raise ValueError(f"block_size: {block_size!r} must be a positive integer")
    if len(shape) != 2:
        raise ValueError(f"{name}: has {len(shape)} dimensions, must have 2 (M, K)")
    if shape[1] % block_size:
        raise ValueError(f"block_size: {block_size} does not divide the axis of length {shape[1]}")
    return shape[0], shape[1] // block_size


def _blocks(x: np.ndarray, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a matrix as (M, K // block_size, block_size), and the absmax of each block."""
    x = np.asarray(x, np.float64)
    target = _absmax_shape(x.shape, block_size, "x")
    if not np.all(np.isfinite(x)):
        raise ValueError("x: must be finite; the absmax of a NaN or an infinity is no scale")
    blocks = x.reshape(*target, block_size)
    return blocks, np.abs(blocks).max(axis=-1)


def _quotients(
    blocks: np.ndarray,
    absmax: np.ndarray,
    division: Division,
    intermediate: Precision,
    zero_scale: ZeroScale,
    epsilon: float,
) -> np.ndarray:
    """Return x / absmax by the declared arithmetic; NaN for 0 / 0 and for zero times an infinite reciprocal."""
    divisor = absmax
    if zero_scale is ZeroScale.EPSILON:
        divisor = np.maximum(absmax, np.float64(np.float32(epsilon)))
    elif zero_scale is ZeroScale.ONE:
        divisor = np.where(absmax < 2.0**_FLOAT32.minimum_exponent, 1.0, absmax)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        if division is Division.RECIPROCAL:
            return _as(intermediate, blocks * _as(intermediate, 1.0 / divisor)[..., None])
        return _as(intermediate, blocks / divisor[..., None])


def _approximate(division: Division, division_ulps: float) -> float:
    """Return the relative error of a quotient by its declared error in units of the last place."""
    return 2 * _U32 * division_ulps * (division is Division.APPROXIMATE)


def _nearest(
    blocks: np.ndarray,
    absmax: np.ndarray,
    codebook: str | np.ndarray,
    arithmetic: tuple[Division, Precision, ZeroScale, float],
    tie: TieSide,
    boundary: Boundary,
    relative: float | np.ndarray,
    slack: float,
) -> Enclosure:
    """Return the admissible values of the quotients of blocks, known but for a relative and an absolute error."""
    division, intermediate, zero_scale, epsilon = arithmetic
    rounded = _quotients(blocks, absmax, division, intermediate, zero_scale, epsilon)
    around = rounded
    if division is Division.APPROXIMATE:  # the declared error is that of the unrounded quotient
        around = _quotients(blocks, absmax, division, Precision.FLOAT64, zero_scale, epsilon)
    room = np.nan_to_num(relative * np.abs(around)) + slack
    exact = assign_enclosure(rounded, codebook, tie=tie, boundary=boundary)
    found = assign_enclosure(around, codebook, tie=tie, boundary=boundary, slack=room)
    return Enclosure(exact.exact, np.minimum(exact.lo, found.lo), np.maximum(exact.hi, found.hi))


@takes_choices
def quantize_blockwise(
    x: np.ndarray,
    *,
    codebook: str | np.ndarray,
    block_size: int,
    division: Division = Division.DIVIDE,
    intermediate: Precision = Precision.FLOAT32,
    tie: TieSide = TieSide.LOWER,
    boundary: Boundary = Boundary.EXACT,
    equal_values: EqualValues = EqualValues.LOWEST_CODE,
    zero_scale: ZeroScale = ZeroScale.EPSILON,
    epsilon: float = 1e-38,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes and the absmax of each block, by exactly the declared arithmetic.

    Parameters
    ----------
    x : ndarray of float, shape (M, K)
        Finite values of float32 (or of a format inside it).
    codebook : str or ndarray of float32, shape (n,)
        A name of `CODEBOOKS`, or the values by code; they should reach to -1 and 1.
    block_size : int
        A divisor of K.
    division, intermediate :
        How x / absmax is computed, and in which type; an approximate division as an exact one.
    tie, boundary, equal_values : as `assign`
    zero_scale, epsilon :
        What is divided by: the absmax or `epsilon`, whichever is larger; 1 in place of a zero or subnormal absmax; or
        the absmax as it is. In the last case 0 / 0 is NaN, with which every comparison fails: code 0.

    Returns
    -------
    codes : ndarray of int64, shape (M, K)
    absmax : ndarray of float32, shape (M, K // block_size)

    Raises
    ------
    ValueError
        A NaN or infinity in x, a block size that does not divide K, an unknown codebook.
    """
    blocks, absmax = _blocks(x, block_size)
    quotients = _quotients(blocks, absmax, division, intermediate, zero_scale, epsilon)
    codes = assign(quotients, codebook, tie=tie, boundary=boundary, equal_values=equal_values)
    return codes.reshape(np.shape(x)), absmax.astype(np.float32)


@takes_choices
def quantize_blockwise_enclosure(
    x: np.ndarray,
    *,
    codebook: str | np.ndarray,
    block_size: int,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
    intermediate: Precision = Precision.FLOAT32,
    tie: TieSide = TieSide.LOWER,
    boundary: Boundary = Boundary.EXACT,
    zero_scale: ZeroScale = ZeroScale.EPSILON,
    epsilon: float = 1e-38,
    slack: float = 0.0,
) -> dict[str, Enclosure]:
    """Return the admissible values ``codebook[codes]`` and the absmax of each block.

    Parameters and errors are those of `quantize_blockwise`, and

    division_ulps : float
        Error of an approximate quotient in units of its last place in float32.
    slack : float
        Absolute error of a quotient by design, where a kernel looks it up on a grid: half a grid step.

    Returns
    -------
    dict with "codes", shape (M, K), and "absmax", shape (M, K // block_size). The absmax is determined, and so is the
    value of each code unless the division is approximate or there is slack. Where the quotient is NaN, any value.
    """
    blocks, absmax = _blocks(x, block_size)
    arithmetic = (division, intermediate, zero_scale, epsilon)
    found = _nearest(blocks, absmax, codebook, arithmetic, tie, boundary, _approximate(division, division_ulps), slack)
    exact, lo, hi = (end.reshape(np.shape(x)) for end in (found.exact, found.lo, found.hi))
    return {"codes": Enclosure(exact, lo, hi), "absmax": determined(absmax)}


def _products(codes: np.ndarray, absmax: np.ndarray, codebook: str | np.ndarray, block_size: int) -> np.ndarray:
    """Return ``codebook[codes] * absmax``, exactly: the product of two 24-bit significands."""
    codes = np.asarray(codes)
    _absmax_shape(codes.shape, block_size, "codes")
    values = decode_codes(codes, codebook)
    absmax = np.asarray(absmax, np.float64)
    if not np.all(np.isfinite(absmax)):
        raise ValueError("absmax: must be finite")
    return values * spread(absmax, codes.shape, "group", group_size=block_size, name="absmax")


@takes_choices
def dequantize_blockwise(
    codes: np.ndarray,
    absmax: np.ndarray,
    *,
    codebook: str | np.ndarray,
    block_size: int,
    output_format: str = "float32",
    intermediate: Precision = Precision.FLOAT32,
) -> np.ndarray:
    """Return the values of the codes times the absmax of their block, in `output_format`.

    Parameters
    ----------
    codes : ndarray of int, shape (M, K)
    absmax : ndarray of float32, shape (M, K // block_size)
    codebook, block_size : as `quantize_blockwise`
    output_format : {"float32", "float16", "bfloat16"}
    intermediate : Precision
        Whether a 16-bit output is rounded from the float32 product, or from the product itself.

    Returns
    -------
    ndarray of float64, shape (M, K): values of `output_format`.

    Raises
    ------
    ValueError
        Codes outside the codebook, an absmax that is not finite, shapes that do not fit the block size.
    """
    output = float_format(output_format)
    return round_to_format(_as(intermediate, _products(codes, absmax, codebook, block_size)), output)


@takes_choices
def dequantize_blockwise_enclosure(
    codes: np.ndarray,
    absmax: np.ndarray,
    *,
    codebook: str | np.ndarray,
    block_size: int,
    output_format: str = "float32",
    intermediate: Precision = Precision.FLOAT32,
) -> Enclosure:
    """Return the admissible results of `dequantize_blockwise`: of float32 one, of 16 bits those of both roundings."""
    output = float_format(output_format)
    product = _products(codes, absmax, codebook, block_size)
    once = round_to_format(product, output)
    twice = round_to_format(_as(Precision.FLOAT32, product), output)
    exact = twice if intermediate is Precision.FLOAT32 else once
    return Enclosure(exact, np.minimum(once, twice), np.maximum(once, twice))


def _padded(values: np.ndarray, block_size: int) -> np.ndarray:
    """Return a vector as a matrix of blocks, the last filled up with zeros, which no absmax notices."""
    if not isinstance(block_size, (int, np.integer)) or block_size < 1:
        raise ValueError(f"block_size: {block_size!r} must be a positive integer")
    blocks = -(-values.size // block_size)
    return np.concatenate([values, np.zeros(blocks * block_size - values.size)]).reshape(blocks, block_size)


def _flat_absmax(absmax: np.ndarray) -> np.ndarray:
    flat = np.asarray(absmax, np.float64).ravel()
    if flat.size == 0:
        raise ValueError("absmax: must not be empty; an empty set has no mean")
    if not np.all(np.isfinite(flat)):
        raise ValueError("absmax: must be finite")
    return flat


@takes_choices
def double_quantize(
    absmax: np.ndarray,
    *,
    offset: np.ndarray | None = None,
    codebook: str | np.ndarray = "dynamic8",
    block_size: int = 256,
    division: Division = Division.DIVIDE,
    intermediate: Precision = Precision.FLOAT32,
    tie: TieSide = TieSide.LOWER,
    boundary: Boundary = Boundary.EXACT,
    zero_scale: ZeroScale = ZeroScale.EPSILON,
    epsilon: float = 1e-38,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the absmax of many blocks in 8 bits: less their mean, and quantized blockwise.

    Parameters
    ----------
    absmax : ndarray of float32, any shape, n elements
        Taken in C order.
    offset : float32 scalar or None
        What is subtracted; None for the mean.
    codebook, block_size, division, intermediate, tie, boundary, zero_scale, epsilon : as `quantize_blockwise`
        The last block may be short.

    Returns
    -------
    codes : ndarray of int64, shape (n,)
    nested_absmax : ndarray of float32, shape (ceil(n / block_size),)
    offset : ndarray of float32, shape ()

    Raises
    ------
    ValueError
        An empty absmax, or one that is not finite, and as `quantize_blockwise`.
    """
    flat = _flat_absmax(absmax)
    center = np.float32(flat.mean() if offset is None else offset)
    centered = _as(Precision.FLOAT32, flat - np.float64(center))
    codes, nested = quantize_blockwise(
        _padded(centered, block_size), codebook=codebook, block_size=block_size, division=division,
        intermediate=intermediate, tie=tie, boundary=boundary, zero_scale=zero_scale, epsilon=epsilon,
    )  # fmt: skip
    return codes.ravel()[: flat.size], nested[:, 0], np.asarray(center)


@takes_choices
def double_quantize_enclosure(
    absmax: np.ndarray,
    *,
    offset: np.ndarray | None = None,
    codebook: str | np.ndarray = "dynamic8",
    block_size: int = 256,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
    intermediate: Precision = Precision.FLOAT32,
    tie: TieSide = TieSide.LOWER,
    boundary: Boundary = Boundary.EXACT,
    zero_scale: ZeroScale = ZeroScale.EPSILON,
    epsilon: float = 1e-38,
    slack: float = 0.0,
) -> dict[str, Enclosure]:
    """Return the admissible values of the codes, the nested absmax and the offset.

    The mean may be summed in any order, in the type of `intermediate`. All else follows from it: (a - o) / max|a - o|
    falls as o grows, so the least and the greatest offset bound every code. Where the mean is exact, or the offset
    given, one value is admissible, but for an approximate division and for slack.

    Parameters and errors are those of `double_quantize`; `division_ulps` and `slack` are those of
    `quantize_blockwise_enclosure`.

    Returns
    -------
    dict with "codes", shape (n,), "nested_absmax", shape (ceil(n / block_size),), and "offset", shape ()
    """
    flat = _flat_absmax(absmax)
    if offset is None:
        mean = mean_enclosure(flat, intermediate=intermediate, division=Division.RECIPROCAL)
    else:
        mean = determined(np.asarray(np.float32(offset), np.float64))
    # Where the mean is open, a - o, its absmax and the quotient round at other places than at the ends.
    relative = _approximate(division, division_ulps) + gamma(8, _U32) * (mean.lo < mean.hi)
    arithmetic = (division, intermediate, zero_scale, epsilon)
    centered, found = [], []
    for end in (mean.exact, mean.lo, mean.hi):
        blocks = _padded(_as(Precision.FLOAT32, flat - end), block_size)
        centered.append(blocks)
        largest = np.abs(blocks).max(axis=1)
        found.append(_nearest(blocks, largest, codebook, arithmetic, tie, boundary, relative, slack))
    exact, highest, lowest = centered
    nested = Enclosure(
        np.abs(exact).max(axis=1),
        np.maximum(lowest.max(axis=1), (-highest).max(axis=1)),
        np.maximum(highest.max(axis=1), (-lowest).max(axis=1)),
    )
    values = (found[0].exact, found[2].lo, found[1].hi)
    value, lo, hi = (end.ravel()[: flat.size] for end in values)
    return {"codes": Enclosure(value, lo, hi), "nested_absmax": nested, "offset": mean}


@takes_choices
def double_dequantize(
    codes: np.ndarray,
    nested_absmax: np.ndarray,
    offset: np.ndarray,
    *,
    codebook: str | np.ndarray = "dynamic8",
    block_size: int = 256,
    contraction: Contraction = Contraction.SEPARATE,
) -> np.ndarray:
    """Return the absmax that double quantization stored: ``codebook[codes] * nested_absmax + offset`` in float32.

    Parameters
    ----------
    codes : ndarray of int, shape (n,)
    nested_absmax : ndarray of float32, shape (ceil(n / block_size),)
    offset : float32 scalar
    codebook, block_size : as `double_quantize`
    contraction : Contraction
        Whether product and sum round separately or once; EITHER gives the separate result here, and both in
        `double_dequantize_enclosure`.

    Returns
    -------
    ndarray of float32, shape (n,)

    Raises
    ------
    ValueError
        Codes outside the codebook, a nested absmax or offset that is not finite, shapes that do not fit.
    """
    codes = np.asarray(codes)
    if codes.ndim != 1:
        raise ValueError(f"codes: has {codes.ndim} dimensions, must have 1")
    values = decode_codes(codes, codebook)
    scales = np.asarray(nested_absmax, np.float64)
    center = np.asarray(offset, np.float64)
    blocks = _padded(values, block_size).shape[0]
    for name, given, shape in (("nested_absmax", scales, (blocks,)), ("offset", center, ())):
        if given.shape != shape:
            raise ValueError(f"{name}: has shape {given.shape}, must be {shape}")
        if not np.all(np.isfinite(given)):
            raise ValueError(f"{name}: must be finite")
    scales = np.repeat(scales, block_size)[: codes.size]
    if contraction is Contraction.FUSED:
        return fma_float32(values, scales, center).astype(np.float32)
    return _as(Precision.FLOAT32, _as(Precision.FLOAT32, values * scales) + center).astype(np.float32)


@takes_choices
def double_dequantize_enclosure(
    codes: np.ndarray,
    nested_absmax: np.ndarray,
    offset: np.ndarray,
    *,
    codebook: str | np.ndarray = "dynamic8",
    block_size: int = 256,
    contraction: Contraction = Contraction.SEPARATE,
) -> Enclosure:
    """Return the admissible results of `double_dequantize`, shape (n,): one, or two where the fusion is left open."""
    kinds = [Contraction.SEPARATE, Contraction.FUSED] if contraction is Contraction.EITHER else [contraction]
    results = [
        double_dequantize(
            codes, nested_absmax, offset, codebook=codebook, block_size=block_size, contraction=kind
        ).astype(np.float64)
        for kind in kinds
    ]
    return Enclosure(results[0], np.minimum.reduce(results), np.maximum.reduce(results))
