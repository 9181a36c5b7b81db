"""NVFP4: blocks of 16 E2M1 elements with E4M3 scales, of one level or of two (a float32 scale of the whole matrix).

A matrix of shape (M, K) has its blocks along the rows. An element stands for e * s, or with a global scale for
e * s * g, where g = max|x| / (6 * 448) makes the scale of the largest block 448. Some libraries store G = 1 / g
instead. The global scale is one number, or one a row. Codes come one an element, as those of ``float4_e2m1fn``; scales
are codes of ``float8_e4m3fn``, never negative.

The steps are float32, and their order decides codes: `BlockScaleSteps` and `ElementSteps` name the orders in use, and
either convention of the global scale runs through each of them: a product with g is a division by G, a quotient by g a
product with G. With one level, g = 1. The scale saturates at 448, so an infinity in a block gives that, and +-6 as its
code. `NanInBlock` says what becomes of a NaN, `SmallBlockScale` what of scales too small for E4M3.

Under a NaN scale every element is NaN, and under a zero scale zero, whatever its code: the code is 0 here, and any in
the enclosure.

References
----------
.. [1] NVIDIA, "Pretraining Large Language Models with NVFP4", 2025, arXiv:2509.25149, appendix on quantization.
.. [2] NVIDIA, cuBLAS library documentation, "1D Block Scaling for FP8 and FP4 Data Types".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lowbit_cts.reference.choices import (
    BlockScaleSteps,
    Division,
    ElementSteps,
    GlobalScaleRule,
    NanInBlock,
    Overflow,
    Rounding,
    SmallBlockScale,
    ZeroScale,
    takes_choices,
)
from lowbit_cts.reference.enclosure import Enclosure, gamma, power_of_two, representable, within
from lowbit_cts.reference.encoding import encode, round_to_format
from lowbit_cts.reference.formats import decode, float_format
from lowbit_cts.reference.mx import block_maxima, check_scales, in_blocks

#: Elements that share a scale.
NVFP4_BLOCK = 16

_E2M1 = float_format("float4_e2m1fn")
_E4M3 = float_format("float8_e4m3fn")
_FLOAT32 = float_format("float32")
_U32 = _FLOAT32.unit_roundoff
_F = np.float32
_ONE, _SIX, _SIXTH = (np.array(value, _F) for value in (1, _E2M1.maximum, 1 / _E2M1.maximum))
_RANGE = np.array(_E2M1.maximum * _E4M3.maximum, _F)
_LARGEST = _F(_FLOAT32.maximum)
_EIGHTH_CODE = encode(np.array(0.125), _E4M3)


@takes_choices
def choose_global_scale_nvfp4(
    amax: np.ndarray,
    *,
    global_scale_rule: GlobalScaleRule = GlobalScaleRule.AMAX_OVER_2688,
    division: Division = Division.DIVIDE,
    zero_scale: ZeroScale = ZeroScale.ONE,
    epsilon: float = 2.0**-23,
) -> np.ndarray:
    """Return the global scale of a matrix (or a row) whose largest magnitude is amax, in float32.

    Parameters
    ----------
    amax : ndarray of float32, any shape
        Finite, not negative.
    global_scale_rule : GlobalScaleRule
    division : Division
        One division, or a product with a rounded reciprocal, of 2688 or of amax: what PyTorch makes of ``2688 / amax``.
        An approximate division is taken as exact here; the enclosure has its interval.
    zero_scale, epsilon :
        What becomes of an amax / 2688 that is zero. A reciprocal of zero is 1, and one that is infinite (of an amax
        below 2**-116) what its rule says.

    Returns
    -------
    ndarray of float32, the shape of amax.

    Raises
    ------
    ValueError
        A negative, infinite or NaN amax.
    """
    amax = np.asarray(amax, _F)
    if not np.all(np.isfinite(amax) & (amax >= 0)):
        raise ValueError(f"amax: must be finite and not negative; got {amax.ravel()[:4]}")
    of_amax = global_scale_rule is GlobalScaleRule.AMAX_OVER_2688
    dividend, divisor = (amax, _RANGE) if of_amax else (_RANGE, amax)
    with np.errstate(all="ignore"):
        scale = dividend * (_ONE / divisor) if division is Division.RECIPROCAL else dividend / divisor
    return _represented(scale, amax, global_scale_rule, zero_scale, epsilon)


def _represented(
    scale: np.ndarray, amax: np.ndarray, rule: GlobalScaleRule, zero_scale: ZeroScale, epsilon: float
) -> np.ndarray:
    """Return global scales with those that are zero or infinite replaced, each by its rule."""
    if rule is GlobalScaleRule.AMAX_OVER_2688:
        if zero_scale is ZeroScale.EPSILON:
            return np.maximum(scale, _F(epsilon))
        return np.where(scale == 0, _F(zero_scale is ZeroScale.ONE), scale)
    if rule is GlobalScaleRule.SATURATED_RECIPROCAL:
        scale = np.minimum(scale, _LARGEST)
    return np.where(np.isinf(scale) | (amax == 0), _F(1), scale)


@takes_choices
def choose_global_scale_nvfp4_enclosure(
    amax: np.ndarray,
    *,
    global_scale_rule: GlobalScaleRule = GlobalScaleRule.AMAX_OVER_2688,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
    zero_scale: ZeroScale = ZeroScale.ONE,
    epsilon: float = 2.0**-23,
) -> Enclosure:
    """Return the admissible global scales: one, or with an approximate division those within `division_ulps` of it.

    Parameters and errors are those of `choose_global_scale_nvfp4`. Where the ends of an approximate quotient become
    different things (1 for one that is infinite), all between them is admissible.
    """
    exact = choose_global_scale_nvfp4(
        amax, global_scale_rule=global_scale_rule, division=division, zero_scale=zero_scale, epsilon=epsilon
    )
    ends = [exact]
    if division is Division.APPROXIMATE:
        amax = np.asarray(amax, np.float64)
        with np.errstate(divide="ignore"):
            quotient = amax / _RANGE if global_scale_rule is GlobalScaleRule.AMAX_OVER_2688 else _RANGE / amax
        for side in (-1, 1):
            end = quotient * (1 + side * (division_ulps + 1) * 2 * _U32) + side * _FLOAT32.smallest * (quotient > 0)
            with np.errstate(over="ignore"):
                ends.append(_represented(end.astype(_F), amax, global_scale_rule, zero_scale, epsilon))
    wide = [end.astype(np.float64) for end in ends]
    return Enclosure(wide[0], np.minimum.reduce(wide), np.maximum.reduce(wide))


@dataclass(frozen=True)
class _Global:
    """The global scale g: one number or one a row, shape (1, 1) or (M, 1), stored as it is or as G = 1 / g."""

    stored: np.ndarray
    reciprocal: bool

    def times(self, a: np.ndarray) -> np.ndarray:
        """Return a * g, one operation."""
        return a / self.stored if self.reciprocal else a * self.stored

    def under(self, a: np.ndarray) -> np.ndarray:
        """Return a / g, one operation."""
        return a * self.stored if self.reciprocal else a / self.stored

    def exactly(self) -> "_Global":
        """Return it for computations in float64."""
        return _Global(self.stored.astype(np.float64), self.reciprocal)


def _given(global_scale: np.ndarray | None, rule: GlobalScaleRule, rows: int) -> _Global:
    """Return a checked global scale; 1 without it."""
    scale = np.asarray(1 if global_scale is None else global_scale, _F)
    if not np.all(np.isfinite(scale) & (scale > 0)):
        raise ValueError(f"global_scale: must be positive and finite; got {scale.ravel()[:4]}")
    if scale.shape not in ((), (rows,)):
        raise ValueError(f"global_scale: must have the shape () or ({rows},); got {scale.shape}")
    return _Global(scale.reshape(-1, 1), rule is not GlobalScaleRule.AMAX_OVER_2688)


def _block_scales(maxima: np.ndarray, g: _Global, steps: BlockScaleSteps) -> np.ndarray:
    """Return amax / 6 / g by the declared steps, in the type of its arguments."""
    with np.errstate(all="ignore"):
        if steps is BlockScaleSteps.MULTIPLY:
            return maxima * (g.under(_ONE) * _SIXTH)
        if steps is BlockScaleSteps.DIVIDE_BY_PRODUCT:
            return maxima / g.times(_SIX)
        return g.under(maxima / _SIX)


def _scaled(blocks: np.ndarray, scales: np.ndarray, g: _Global, steps: ElementSteps) -> np.ndarray:
    """Return x / (s g) by the declared steps, in the type of its arguments; blocks (M, K / 16, 16)."""
    with np.errstate(all="ignore"):
        if steps is ElementSteps.GLOBAL_FIRST:
            return blocks * (g.under(_ONE) / scales)[..., None]
        if steps is ElementSteps.RECIPROCAL:
            return blocks * np.minimum(1 / (scales * g.times(_ONE)), _LARGEST)[..., None]
        return blocks / g.times(scales)[..., None]


def _encode_scales(quotients: np.ndarray, small: SmallBlockScale) -> np.ndarray:
    """Return the E4M3 codes of numbers >= 0, rounded to nearest even and saturated; NaN stays NaN."""
    if small is SmallBlockScale.NORMAL:
        quotients = np.maximum(quotients, _F(2.0**_E4M3.minimum_exponent))
    elif small is SmallBlockScale.SUBNORMAL:
        quotients = np.maximum(np.where(quotients == 0, _F(1), quotients), _F(_E4M3.smallest))
    codes = encode(quotients, _E4M3, Rounding.HALF_EVEN, Overflow.SATURATE) & 0x7F  # no sign, not even of a NaN
    return np.where(codes == 0, _EIGHTH_CODE, codes) if small is SmallBlockScale.EIGHTH else codes


def _encode_elements(
    x: np.ndarray, scales: np.ndarray, g: _Global, steps: ElementSteps, rounding: Rounding, random: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes of x, and where any code would do: of a NaN, and where the scale alone makes NaN or zero."""
    check_scales(scales, x.shape, NVFP4_BLOCK)
    decoded = decode(scales, _E4M3).astype(_F)
    values = _scaled(in_blocks(x, NVFP4_BLOCK).astype(_F, copy=False), decoded, g, steps)
    free = np.isnan(values)
    free[np.isnan(decoded) | (decoded == 0)] = True
    values[free] = 0
    return encode(values.reshape(x.shape), _E2M1, rounding, Overflow.SATURATE, random=random), free.reshape(x.shape)


@takes_choices
def choose_scale_nvfp4(
    x: np.ndarray,
    global_scale: np.ndarray | None = None,
    *,
    global_scale_rule: GlobalScaleRule = GlobalScaleRule.AMAX_OVER_2688,
    block_scale_steps: BlockScaleSteps = BlockScaleSteps.DIVIDE,
    small_block_scale: SmallBlockScale = SmallBlockScale.ZERO,
    nan_in_block: NanInBlock = NanInBlock.NAN_SCALE,
) -> np.ndarray:
    """Return the E4M3 codes of the blocks' scales.

    Parameters
    ----------
    x : ndarray of float, shape (M, K)
        Values of float32 (or of a format inside it); 16 divides K.
    global_scale : ndarray of float32, shape () or (M,), or None
        The stored global scale, as `choose_global_scale_nvfp4` returns it; None for one level.
    global_scale_rule : GlobalScaleRule
        Whether it is g, or G = 1 / g.
    block_scale_steps : BlockScaleSteps
        Approximate steps are taken as `DIVIDE` here; `quantize_nvfp4_enclosure` has their interval.
    small_block_scale : SmallBlockScale
    nan_in_block : NanInBlock

    Returns
    -------
    ndarray of uint8, shape (M, K / 16).

    Raises
    ------
    ValueError
        A shape that has no blocks, a global scale that is not positive and finite or has another shape.
    """
    x = np.asarray(x)
    maxima = block_maxima(x, NVFP4_BLOCK, nan_in_block).astype(_F)
    g = _given(global_scale, global_scale_rule, x.shape[0])
    return _encode_scales(_block_scales(maxima, g, block_scale_steps), small_block_scale)


@takes_choices
def encode_nvfp4(
    x: np.ndarray,
    scales: np.ndarray,
    global_scale: np.ndarray | None = None,
    *,
    global_scale_rule: GlobalScaleRule = GlobalScaleRule.AMAX_OVER_2688,
    element_steps: ElementSteps = ElementSteps.DIVIDE,
    rounding: Rounding = Rounding.HALF_EVEN,
    random: np.ndarray | None = None,
) -> np.ndarray:
    """Return the codes of the elements under given block scales.

    Parameters
    ----------
    x, global_scale, global_scale_rule : as `choose_scale_nvfp4`
    scales : ndarray of uint8, shape (M, K / 16)
        E4M3 codes.
    element_steps : ElementSteps
        Approximate steps are taken as `DIVIDE` here.
    rounding : Rounding
    random : ndarray of float64 in [0, 1), the shape of x
        With stochastic rounding, see `encode`.

    Returns
    -------
    ndarray of uint8, shape (M, K); 0 where any code is admissible.

    Raises
    ------
    ValueError
        As `choose_scale_nvfp4`; scales of another shape; stochastic rounding without `random`.
    """
    x = np.asarray(x)
    in_blocks(x, NVFP4_BLOCK)
    g = _given(global_scale, global_scale_rule, x.shape[0])
    return _encode_elements(x, np.asarray(scales), g, element_steps, rounding, random)[0]


@takes_choices
def quantize_nvfp4(
    x: np.ndarray,
    global_scale: np.ndarray | None = None,
    *,
    global_scale_rule: GlobalScaleRule = GlobalScaleRule.AMAX_OVER_2688,
    block_scale_steps: BlockScaleSteps = BlockScaleSteps.DIVIDE,
    element_steps: ElementSteps = ElementSteps.DIVIDE,
    small_block_scale: SmallBlockScale = SmallBlockScale.ZERO,
    nan_in_block: NanInBlock = NanInBlock.NAN_SCALE,
    rounding: Rounding = Rounding.HALF_EVEN,
    random: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes of the elements and of the block scales of x.

    Parameters
    ----------
    x, global_scale, global_scale_rule, block_scale_steps, small_block_scale, nan_in_block : as `choose_scale_nvfp4`
    element_steps, rounding, random : as `encode_nvfp4`

    Returns
    -------
    codes : ndarray of uint8, shape (M, K)
    scales : ndarray of uint8, shape (M, K / 16)

    Raises
    ------
    ValueError
        As `choose_scale_nvfp4` and `encode_nvfp4`.
    """
    scales = choose_scale_nvfp4(
        x, global_scale, global_scale_rule=global_scale_rule, block_scale_steps=block_scale_steps,
        small_block_scale=small_block_scale, nan_in_block=nan_in_block,
    )  # fmt: skip
    codes = encode_nvfp4(
        x, scales, global_scale, global_scale_rule=global_scale_rule, element_steps=element_steps, rounding=rounding,
        random=random,
    )  # fmt: skip
    return codes, scales


def _ends(values: np.ndarray, ulps: float) -> list[np.ndarray]:
    """Return the ends of the interval of four roundings of float32 and two reciprocals within so many ulps."""
    slack = float(gamma(4, _U32)) + 2 * ulps * 2 * _U32
    return [values * (1 - slack), values * (1 + slack)]


@takes_choices
def quantize_nvfp4_enclosure(
    x: np.ndarray,
    global_scale: np.ndarray | None = None,
    *,
    global_scale_rule: GlobalScaleRule = GlobalScaleRule.AMAX_OVER_2688,
    block_scale_steps: BlockScaleSteps = BlockScaleSteps.DIVIDE,
    element_steps: ElementSteps = ElementSteps.DIVIDE,
    division_ulps: float = 0.0,
    small_block_scale: SmallBlockScale = SmallBlockScale.ZERO,
    nan_in_block: NanInBlock = NanInBlock.NAN_SCALE,
    rounding: Rounding = Rounding.HALF_EVEN,
    scales: np.ndarray | None = None,
) -> dict[str, Enclosure]:
    """Return the admissible codes and block scales of x, decoded.

    One code is admissible where the steps are declared. With approximate steps, scale and elements are what the ends of
    their interval round to: up to four roundings of float32 and two reciprocals within `division_ulps` units in the
    last place. That holds for global scales, and products with block scales, that are normal numbers together with
    their reciprocals. With stochastic rounding either neighbour is admissible. Any code is for a NaN, and under a scale
    that is NaN or zero. The sign of a zero is not looked at.

    Parameters
    ----------
    division_ulps : float
        The error of an approximate reciprocal.
    scales : ndarray of uint8, shape (M, K / 16), optional
        Scales that a kernel has returned, by which its elements are to be judged. Without them an element may have the
        code of any admissible scale.
    others : as `quantize_nvfp4`

    Returns
    -------
    dict with "codes", shape (M, K), the elements without their scales, and "scale", shape (M, K / 16).

    Raises
    ------
    ValueError
        As `quantize_nvfp4`.
    """
    x = np.asarray(x)
    g = _given(global_scale, global_scale_rule, x.shape[0])
    maxima = block_maxima(x, NVFP4_BLOCK, nan_in_block)
    chosen = [_encode_scales(_block_scales(maxima.astype(_F), g, block_scale_steps), small_block_scale)]
    if block_scale_steps is BlockScaleSteps.APPROXIMATE:
        quotients = _block_scales(maxima.astype(np.float64), g.exactly(), BlockScaleSteps.DIVIDE)
        chosen += [_encode_scales(end, small_block_scale) for end in _ends(quotients, division_ulps)]

    ways: Sequence[Rounding] = [rounding] if rounding is not Rounding.STOCHASTIC else [Rounding.DOWN, Rounding.UP]
    found: list[np.ndarray] = []
    anything = np.zeros(x.shape, bool)
    for codes in chosen if scales is None else [np.asarray(scales)]:
        for way in ways:
            encoded, free = _encode_elements(x, codes, g, element_steps, way, None)
            found.append(encoded)
            anything |= free
            if element_steps is ElementSteps.APPROXIMATE:
                blocks, exact_scales = in_blocks(x, NVFP4_BLOCK).astype(np.float64), decode(codes, _E4M3)
                quotients = _scaled(blocks, exact_scales, g.exactly(), ElementSteps.DIVIDE).reshape(x.shape)
                found += [encode(end, _E2M1, way, Overflow.SATURATE) for end in _ends(quotients, division_ulps)]
    elements, decoded = [decode(codes, _E2M1) for codes in found], [decode(codes, _E4M3) for codes in chosen]
    lo, hi = np.minimum.reduce(elements), np.maximum.reduce(elements)
    return {
        "codes": Enclosure(elements[0], np.where(anything, -np.inf, lo), np.where(anything, np.inf, hi)),
        "scale": Enclosure(decoded[0], np.minimum.reduce(decoded), np.maximum.reduce(decoded)),
    }


def _factors(
    codes: np.ndarray, scales: np.ndarray, global_scale: np.ndarray | None, rule: GlobalScaleRule
) -> tuple[np.ndarray, np.ndarray, _Global]:
    """Return e * s of every element as blocks, s, and g: each exact in float64."""
    codes, scales = np.asarray(codes), np.asarray(scales)
    blocks = in_blocks(decode(codes, _E2M1), NVFP4_BLOCK, "codes")
    check_scales(scales, codes.shape, NVFP4_BLOCK)
    decoded = decode(scales, _E4M3)
    return blocks * decoded[..., None], decoded, _given(global_scale, rule, codes.shape[0]).exactly()


@takes_choices
def dequantize_nvfp4(
    codes: np.ndarray,
    scales: np.ndarray,
    global_scale: np.ndarray | None = None,
    *,
    global_scale_rule: GlobalScaleRule = GlobalScaleRule.AMAX_OVER_2688,
    output_format: str = "float32",
) -> np.ndarray:
    """Return e * s * g (or e * s / G) of every element, exact and then rounded once to the output's format.

    Parameters
    ----------
    codes : ndarray of uint8, shape (M, K)
    scales : ndarray of uint8, shape (M, K / 16)
    global_scale, global_scale_rule : as `choose_scale_nvfp4`
    output_format : str
        float32, float16 or bfloat16.

    Returns
    -------
    ndarray of float64, shape (M, K), values of the output's format; NaN under a NaN scale.

    Raises
    ------
    ValueError
        As `choose_scale_nvfp4`; a code that the format has not; an unknown format.
    """
    products, _, g = _factors(codes, scales, global_scale, global_scale_rule)
    # A product of 30 bits is exact; a quotient of float32 values rounded to 53 bits first rounds as if once [Figueroa].
    exact = _Global(g.stored[..., None], g.reciprocal).times(products)
    return round_to_format(exact.reshape(np.shape(codes)), float_format(output_format))


@takes_choices
def dequantize_nvfp4_enclosure(
    codes: np.ndarray,
    scales: np.ndarray,
    global_scale: np.ndarray | None = None,
    *,
    global_scale_rule: GlobalScaleRule = GlobalScaleRule.AMAX_OVER_2688,
    output_format: str = "float32",
) -> Enclosure:
    """Return the admissible values of e * s * g in the output's format; parameters as `dequantize_nvfp4`.

    The factors may be multiplied in any order in float32, with 1 / G rounded, and the result rounded to the output from
    there: up to three roundings. Where s * g is a float32 (as with one level) and G, if it is that, a power of two,
    every order is exact up to the last product, and the value determined but for that last step.
    """
    output = float_format(output_format)
    products, decoded, g = _factors(codes, scales, global_scale, global_scale_rule)
    exact = _Global(g.stored[..., None], g.reciprocal).times(products).reshape(np.shape(codes))
    sure = representable(g.times(decoded), _FLOAT32) & (power_of_two(g.stored) | (not g.reciprocal))
    # Where 1 / G or s * g is subnormal, its rounding is half of 2**-149, times what multiplies it: 6 * 448 at most.
    bound = gamma(3, _U32) * np.abs(exact) + _RANGE * _FLOAT32.smallest
    bound[np.repeat(sure, NVFP4_BLOCK, axis=1)] = 0.0
    once, twice = within(exact, bound, output), within(round_to_format(exact, _FLOAT32), bound, output)
    return Enclosure(once.exact, np.minimum(once.lo, twice.lo), np.maximum(once.hi, twice.hi))
