"""Codebooks: the value of each code as a table, and the code of each value by its nearest neighbour.

A codebook is an array of values indexed by code. The codes need not be in the order of the values (those of FP4 are
not), and several codes may stand for one value (FP4 has two zeros). Enclosures here hold *values*, ``codebook[codes]``,
since an interval of values is an interval of neighbours in every codebook; `rank_enclosure` turns them into ranks,
which tell codes of equal values apart.

References
----------
.. [1] T. Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", NeurIPS 2023, arXiv:2305.14314, §3 and
   appendix E: NormalFloat.
.. [2] T. Dettmers et al., "8-bit Optimizers via Block-wise Quantization", ICLR 2022, arXiv:2110.02861, §1.2, and
   T. Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", ICLR 2016, arXiv:1511.04561: the dynamic map.
.. [3] bitsandbytes 0.50, functional.py: create_normal_map, get_4bit_type, create_dynamic_map.
"""

import numpy as np
from scipy.special import ndtri

from lowbit_cts.reference.choices import Boundary, Contraction, EqualValues, TieSide, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, gamma
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.rounding import two_sum

_U32 = float_format("float32").unit_roundoff
# The values of bitsandbytes FP4 times 12: sign, then two exponent and one mantissa bit, the exponent in an order of its
# own. It is not the E2M1 of OCP: the smallest step is 1/16, not 1/2, of the next power of two.
_FP4_TWELFTHS = (0, 0.0625, 8, 12, 4, 6, 2, 3)


def _equal_steps(start: float, end: float, count: int, contraction: Contraction) -> np.ndarray:
    """Return `count` float32 numbers from start to end in equal steps, each counted from the end it is nearer to."""
    step = (np.float32(end) - np.float32(start)) / np.float32(count - 1)
    ends = np.array([start, end, step], np.float32)
    index = np.arange(count, dtype=np.float32)
    if contraction is Contraction.FUSED:  # index * step is exact in float64, so the sum rounds once
        ends, index = ends.astype(np.float64), index.astype(np.float64)
    steps = np.where(index < count // 2, ends[0] + ends[2] * index, ends[1] - ends[2] * (count - 1 - index))
    return steps.astype(np.float32)


@takes_choices
def normal_float(*, offset: float = 0.9677083, contraction: Contraction = Contraction.FUSED) -> np.ndarray:
    """Return NF4: zero, 8 positive and 7 negative quantiles of the normal distribution, in order, scaled to [-1, 1].

    Parameters
    ----------
    offset : float
        The outermost probability, ``1 - (1/32 + 1/30) / 2`` to seven digits. The literals of every implementation
        stem from this rounded number.
    contraction : Contraction
        Whether the equal steps of the probabilities, in float32, use an FMA; the 16 values come out the same.

    Returns
    -------
    ndarray of float32, shape (16,)
    """
    positive = ndtri(_equal_steps(offset, 0.5, 9, contraction)[:-1].astype(np.float64))
    negative = -ndtri(_equal_steps(offset, 0.5, 8, contraction)[:-1].astype(np.float64))
    values = np.sort(np.concatenate([negative, [0.0], positive])).astype(np.float32)
    return values / values.max()


def bitsandbytes_fp4() -> np.ndarray:
    """Return the FP4 of bitsandbytes by code, shape (16,), float32; code 8 is -0."""
    magnitudes = np.array(_FP4_TWELFTHS, np.float32) / np.float32(12)
    return np.concatenate([magnitudes, -magnitudes])


@takes_choices
def dynamic_map(*, contraction: Contraction = Contraction.FUSED) -> np.ndarray:
    """Return the signed dynamic 8-bit map of bitsandbytes, in order.

    For each decade 10**-6 .. 1, number i = 0 .. 6, the middles of 2**i equal parts of [0.1, 1] times the decade, with
    both signs, and 0 and 1.

    Parameters
    ----------
    contraction : Contraction
        Whether the ends of the parts, in float32, are computed with an FMA. PyTorch's linspace does so on CPUs with
        AVX2 or AVX-512 and not without, so bitsandbytes' map depends on the machine it was made on: 42 of 256 values
        differ by one or two units in the last place.

    Returns
    -------
    ndarray of float32, shape (256,)
    """
    values = [np.array([0, 1], np.float32)]
    for i in range(7):
        ends = _equal_steps(0.1, 1.0, 2**i + 1, contraction)
        middles = (ends[:-1] + ends[1:]) / np.float32(2) * np.float32(10.0 ** (i - 6))
        values += [middles, -middles]
    return np.sort(np.concatenate(values))


CODEBOOKS: dict[str, np.ndarray] = {
    "nf4": normal_float(),
    "fp4_bitsandbytes": bitsandbytes_fp4(),
    "dynamic8": dynamic_map(),
}
for _table in CODEBOOKS.values():
    _table.setflags(write=False)


def codebook_values(codebook: str | np.ndarray) -> np.ndarray:
    """Return the values of a codebook by code: of the table of that name, or of the array itself.

    Raises
    ------
    ValueError
        An unknown name, an array that is not one-dimensional, empty, or not finite.
    """
    if isinstance(codebook, str):
        if codebook not in CODEBOOKS:
            raise ValueError(f"codebook: {codebook!r} is unknown; admissible: {', '.join(CODEBOOKS)}, or an array")
        return CODEBOOKS[codebook]
    values = np.asarray(codebook)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"codebook: has shape {values.shape}, must be (n,) with at least one value")
    if not np.all(np.isfinite(values)):
        raise ValueError("codebook: must be finite")
    return values


def decode_codes(codes: np.ndarray, codebook: str | np.ndarray) -> np.ndarray:
    """Return the values that codes stand for, in float64.

    Raises
    ------
    ValueError
        A code outside [0, n), and as `codebook_values`.
    """
    values = codebook_values(codebook)
    codes = np.asarray(codes)
    if codes.size and (codes.min() < 0 or codes.max() >= values.size):
        raise ValueError(f"codes: must lie in [0, {values.size - 1}]; got [{codes.min()}, {codes.max()}]")
    return values.astype(np.float64)[codes]


def codes_by_value(codebook: str | np.ndarray) -> np.ndarray:
    """Return the codes in the order of their values, shape (n,): of equal ones -0 first, then the smaller code."""
    values = codebook_values(codebook)
    return np.lexsort((~np.signbit(values), values))  # stable: of what is equal the first comes first


def rank_enclosure(values: Enclosure, codes: np.ndarray, codebook: str | np.ndarray) -> Enclosure:
    """Return the admissible codes, as ranks in `codes_by_value`.

    Parameters
    ----------
    values : Enclosure of float64
        The admissible values.
    codes : ndarray of int, the same shape
        The codes by exactly the declared arithmetic and the declared choice among codes of equal values.
    codebook : str or ndarray of float, shape (n,)

    Returns
    -------
    Enclosure of int64
        Where one value is admissible, one code is; elsewhere all codes of the admissible values are.
    """
    order = codes_by_value(codebook)
    table = codebook_values(codebook).astype(np.float64)[order]
    exact = np.argsort(order)[np.asarray(codes)]
    lo, hi = np.searchsorted(table, values.lo, side="left"), np.searchsorted(table, values.hi, side="right") - 1
    single = values.lo == values.hi
    return Enclosure(exact, np.where(single, exact, lo), np.where(single, exact, hi))


def _first_above(values: np.ndarray, codes: np.ndarray, tie: TieSide, boundary: Boundary) -> np.ndarray:
    """Return, for each neighbouring pair of distinct sorted values, the least float64 that goes to the upper one.

    `codes` are those of the values. The exact boundary may need more than 53 bits; its rounding error says on which
    side of it the rounded one lies, and a number that equals the rounded one is then no tie.
    """
    below, above = values[:-1], values[1:]
    if boundary is Boundary.ROUNDED:
        middle = ((below.astype(np.float32) + above.astype(np.float32)) * np.float32(0.5)).astype(np.float64)
        error = np.zeros(middle.shape)
    else:
        total, error = two_sum(below.astype(np.float64), above.astype(np.float64))
        middle = total / 2
    lower_at_tie = {
        TieSide.LOWER: np.ones(middle.shape, bool),
        TieSide.UPPER: np.zeros(middle.shape, bool),
        TieSide.TOWARD_ZERO: np.abs(below) <= np.abs(above),
        TieSide.LOWEST_CODE: codes[:-1] < codes[1:],
        TieSide.EVEN_CODE: (codes[:-1] % 2 == 0) | (codes[1:] % 2 == 1),
    }[tie]
    stays_below = np.where(error == 0, lower_at_tie, error > 0)
    first = np.where(stays_below, np.nextafter(middle, np.inf), middle)
    return np.maximum.accumulate(first)  # rounded boundaries may coincide: then whoever stays below one, stays


@takes_choices
def assign(
    x: np.ndarray,
    codebook: str | np.ndarray,
    *,
    tie: TieSide = TieSide.LOWER,
    boundary: Boundary = Boundary.EXACT,
    equal_values: EqualValues = EqualValues.LOWEST_CODE,
) -> np.ndarray:
    """Return the code of the codebook's value nearest to each number.

    Parameters
    ----------
    x : ndarray of float, any shape
        Numbers of float64 or of a format inside it, compared without rounding. Infinities go to the ends.
    codebook : str or ndarray of float, shape (n,)
        A name of `CODEBOOKS`, or the values by code; with rounded boundaries values of float32.
    tie : TieSide
        For a number on the boundary of two values.
    boundary : Boundary
    equal_values : EqualValues
        For a value that has several codes.

    Returns
    -------
    ndarray of int64, the shape of x; a NaN gets code 0 here, and any code in `assign_enclosure`.

    Raises
    ------
    ValueError
        As `codebook_values`.
    """
    table = codebook_values(codebook)
    x = np.asarray(x)
    values, first_code = np.unique(table, return_index=True)
    rank = np.searchsorted(_first_above(values, first_code, tie, boundary), x, side="right")
    rank = np.where(np.isnan(x), np.searchsorted(values, table[0]), rank)
    codes = first_code[rank]
    if equal_values is EqualValues.BY_SIDE:
        last_code = table.size - 1 - np.unique(table[::-1], return_index=True)[1]
        codes = np.where(x > values[rank], last_code[rank], codes)
    elif equal_values is EqualValues.BY_SIGN:
        zeros = np.flatnonzero(table == 0)
        negative = zeros[np.signbit(table[zeros])]
        positive = zeros[~np.signbit(table[zeros])]
        if negative.size and positive.size:
            codes = np.where(values[rank] == 0, np.where(x < 0, negative[0], positive[0]), codes)
    return codes.astype(np.int64)


@takes_choices
def assign_enclosure(
    x: np.ndarray,
    codebook: str | np.ndarray,
    *,
    tie: TieSide = TieSide.LOWER,
    boundary: Boundary = Boundary.EXACT,
    slack: float | np.ndarray = 0.0,
    distance_roundings: int = 0,
) -> Enclosure:
    """Return the admissible values for each number: those nearest to it, as far as it and its distances are known.

    Parameters
    ----------
    x, codebook, tie, boundary : as `assign`
    slack : float or ndarray, broadcastable to x
        Absolute error of x, >= 0. A kernel that looks the value up in a table over a grid errs by half a grid step.
    distance_roundings : int
        How many float32 roundings the compared distances carry: 1 for ``|x - c|``, 2 for ``(x - c)**2``.

    Returns
    -------
    Enclosure of float64, the shape of x
        One value is admissible without slack and roundings. Codes of equal values are all the same here. A NaN admits
        every value.
    """
    table = codebook_values(codebook)
    values = np.unique(table).astype(np.float64)
    x = np.asarray(x, np.float64)
    slack = np.broadcast_to(np.asarray(slack, np.float64), x.shape)

    def nearest(numbers: np.ndarray) -> np.ndarray:
        return table.astype(np.float64)[assign(numbers, table, tie=tie, boundary=boundary)]

    exact = nearest(x)
    lo = hi = exact
    if np.any(slack > 0):  # one float64 ulp outward covers the rounding of this very sum
        lo = nearest(np.where(slack > 0, np.nextafter(x - slack, -np.inf), x))
        hi = nearest(np.where(slack > 0, np.nextafter(x + slack, np.inf), x))
    if distance_roundings:
        bound = gamma(distance_roundings, _U32)
        with np.errstate(invalid="ignore"):
            # A square below 2**-149 underflows, so distances below 2**-74 may all look alike.
            reach = (np.abs(x - exact) + slack) * (1 + bound) / (1 - bound) * (1 + 2.0**-50) + slack + 2.0**-74
        reach = np.where(np.isfinite(x), reach, 0.0)
        within_reach = np.searchsorted(values, x - reach, side="left"), np.searchsorted(values, x + reach, "right") - 1
        lo = np.minimum(lo, values[np.minimum(within_reach[0], values.size - 1)])
        hi = np.maximum(hi, values[np.maximum(within_reach[1], 0)])
    lost = np.isnan(x)
    return Enclosure(exact, np.where(lost, -np.inf, lo), np.where(lost, np.inf, hi))
