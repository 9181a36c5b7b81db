"""Requantization: sums in int32 to codes, saturate(round(acc * scale) + zero_point), by fixed-point arithmetic.

With scale = s_a s_b / s_y this ends every integer-only layer. Libraries agree on the formula and differ in how the
real scale becomes an integer and where the product is rounded: `Requantization` names six ways. They give
different codes at ties, and between ties where a multiplier is short or a product rounded twice.

Sums whose scaled value leaves int32 have a right answer, the saturated code, which `requantize` returns; libraries
shift or add past the end of int32 there (undefined in C), so `requantize_enclosure` admits any code for them.

References
----------
.. [1] B. Jacob et al., arXiv:1712.05877, §2.2, eq. (5) and (6): M = 2**-n M0, M0 in [1/2, 1).
.. [2] gemmlowp, fixedpoint/fixedpoint.h: SaturatingRoundingDoublingHighMul, RoundingDivideByPOT.
.. [3] TensorFlow Lite, kernels/internal/quantization_util.cc: QuantizeMultiplier; kernels/internal/common.cc:
   MultiplyByQuantizedMultiplier, with and without TFLITE_SINGLE_ROUNDING.
.. [4] XNNPACK, src/xnnpack/requantization.h at 75db3c09: fp32, rndnu, rndnu16.
.. [5] ruy, ruy/kernel_avx512.cc at 2af88863; "not meant to be bit-exact-normative", elsewhere it rounds once.
"""

import numpy as np

from lowbit_cts.reference.choices import Requantization, Rounding, takes_choices
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.formats import integer_format
from lowbit_cts.reference.rounding import round_to_integer

_INT32 = np.iinfo(np.int32)
_INT16 = np.iinfo(np.int16)

#: Bits of the integer multiplier. The scale of those with at most 24 bits is a float32 to begin with.
MULTIPLIER_BITS = {
    Requantization.DOUBLE_ROUNDING: 31,
    Requantization.SINGLE_ROUNDING: 31,
    Requantization.RNDNU: 24,
    Requantization.RNDNU16: 15,
    Requantization.DOUBLE_ROUNDING_UP: 31,
}
_TAKES_FLOAT32 = (Requantization.FLOAT32, Requantization.RNDNU, Requantization.RNDNU16)

#: The scales that the definition covers, [low, high).
SCALES = {
    Requantization.DOUBLE_ROUNDING: (0.0, 2.0**30),
    Requantization.SINGLE_ROUNDING: (0.0, np.inf),
    Requantization.FLOAT32: (2.0**-32, 256.0),
    Requantization.RNDNU: (2.0**-32, 256.0),
    Requantization.RNDNU16: (2.0**-32, 256.0),
    Requantization.DOUBLE_ROUNDING_UP: (0.0, 2.0**30),
}
#: Rounded twice, the first time to 32 bits.
_TWICE = (Requantization.DOUBLE_ROUNDING, Requantization.DOUBLE_ROUNDING_UP)


def _scales(scale: np.ndarray, variant: Requantization) -> np.ndarray:
    scale = np.asarray(scale, np.float64)
    if variant in _TAKES_FLOAT32:
        with np.errstate(over="ignore", under="ignore"):
            scale = scale.astype(np.float32).astype(np.float64)
    low, high = SCALES[variant]
    if not np.all((low <= scale) & (scale < high)):
        raise ValueError(
            f"scale: must lie in [{low:g}, {high:g}) for variant {variant!s}; got {scale.ravel()[:4].tolist()}"
        )
    return scale


@takes_choices
def quantize_multiplier(scale: np.ndarray, *, variant: Requantization) -> tuple[np.ndarray, np.ndarray]:
    """Return the scale as an integer multiplier and a power of two.

    Parameters
    ----------
    scale : ndarray of float64, any shape
        In the interval that `SCALES` gives for the variant, after rounding to float32 where the variant takes that.
    variant : Requantization
        Any but float32, which multiplies by the scale itself.

    Returns
    -------
    multiplier, shift : ndarray of int64, the shape of `scale`
        ``scale ~ multiplier * 2**(shift - bits)`` with `bits` of `MULTIPLIER_BITS` and a multiplier in
        [2**(bits - 1), 2**bits), rounded half away from zero; 24 bits hold a float32 exactly. TFLite's edges: (0, 0)
        for zero and where the shift would be below -31, and, for single rounding, (2**31 - 1, 30) where it would
        exceed 30.

    Raises
    ------
    ValueError
        A scale outside the interval, a NaN, the variant float32.

    Notes
    -----
    Earlier revisions of XNNPACK's rndnu16 saturated a multiplier that rounds to 2**15; [4]_ takes 2**14 and the next
    shift, as TFLite does with 2**31.
    """
    if variant not in MULTIPLIER_BITS:
        raise ValueError(f"variant: {variant!s} has no multiplier; admissible: {', '.join(MULTIPLIER_BITS)}")
    scale = _scales(scale, variant)
    bits = MULTIPLIER_BITS[variant]
    mantissa, exponent = np.frexp(scale)
    multiplier = round_to_integer(np.ldexp(mantissa, bits), Rounding.HALF_AWAY).astype(np.int64)
    carries = multiplier == 1 << bits
    multiplier = np.where(carries, 1 << (bits - 1), multiplier)
    shift = exponent.astype(np.int64) + carries
    if variant in _TAKES_FLOAT32:
        return multiplier, shift
    vanishes = (shift < -31) | (multiplier == 0)
    multiplier, shift = np.where(vanishes, 0, multiplier), np.where(vanishes, 0, shift)
    if variant is Requantization.SINGLE_ROUNDING:
        return np.where(shift > 30, (1 << 31) - 1, multiplier), np.minimum(shift, 30)
    if np.any(shift > 30):
        raise ValueError(f"scale: must round to less than 2**30 in 31 bits; got {scale.ravel()[:4].tolist()}")
    return multiplier, shift


def _shift_right(x: np.ndarray, places: np.ndarray | np.int64) -> np.ndarray:
    """Return x / 2**places rounded to nearest, ties up; places >= 0."""
    return (x + ((np.int64(1) << places) >> 1)) >> places


def _shift_right_away(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return x / 2**places rounded to nearest, ties away from zero; places >= 0."""
    return np.sign(x) * _shift_right(np.abs(x), places)


def _shift_left(x: np.ndarray, places: np.ndarray) -> np.ndarray:
    return x << np.maximum(places, 0)


def _scaled(acc: np.ndarray, scale: np.ndarray, variant: Requantization) -> tuple[np.ndarray, np.ndarray]:
    """Return round(acc * scale) by the variant's arithmetic, in int64, and where some step of it leaves int32."""
    if variant is Requantization.FLOAT32:
        product = acc.astype(np.float32) * scale.astype(np.float32)
        return np.rint(product).astype(np.int64), np.zeros(product.shape, bool)
    multiplier, shift = quantize_multiplier(scale, variant=variant)
    if variant is Requantization.RNDNU16:  # saturates at every step
        narrow = np.where(shift >= 0, _shift_left(acc, shift), _shift_right(acc, np.maximum(-shift, 0)))
        result = _shift_right(np.clip(narrow, _INT16.min, _INT16.max) * multiplier, np.int64(15))
        return result, np.zeros(result.shape, bool)
    if variant in _TWICE:
        wide = _shift_left(acc, shift)
        high = _shift_right(np.clip(wide, _INT32.min, _INT32.max) * multiplier, np.int64(31))
        again = _shift_right_away if variant is Requantization.DOUBLE_ROUNDING else _shift_right
        return again(high, np.maximum(-shift, 0)), (wide < _INT32.min) | (wide > _INT32.max)
    result = _shift_right(acc * multiplier, MULTIPLIER_BITS[variant] - shift)
    return result, (result < _INT32.min) | (result > _INT32.max)


def _sums(acc: np.ndarray) -> np.ndarray:
    acc = np.asarray(acc)
    if acc.dtype.kind not in "iu" or (acc.size and (acc.min() < _INT32.min or acc.max() > _INT32.max)):
        found = f"[{acc.min()}, {acc.max()}]" if acc.size else "none"
        raise ValueError(
            f"acc: must be integers in [{_INT32.min}, {_INT32.max}]; has dtype {acc.dtype}, values in {found}"
        )
    return acc.astype(np.int64)


def _channels(values: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    if values.shape != () and values.shape != shape[-1:]:
        raise ValueError(f"{name}: has shape {values.shape}, must be () or that of the last axis, {shape[-1:]}")
    return values


@takes_choices
def rescale(acc: np.ndarray, scale: np.ndarray, *, variant: Requantization) -> np.ndarray:
    """Return round(acc * scale) by the variant's arithmetic, before a zero point is added and the codes are clamped.

    TFLite's MultiplyByQuantizedMultiplier. Parameters and errors are those of `requantize`.

    Returns
    -------
    ndarray of int64, the shape of `acc`. Double rounding and rndnu16 saturate on their way, to 32 and 16 bits.
    """
    acc = _sums(acc)
    return _scaled(acc, _channels(_scales(scale, variant), acc.shape, "scale"), variant)[0]


@takes_choices
def requantize_enclosure(
    acc: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, *, format: str, variant: Requantization
) -> Enclosure:
    """Return the admissible codes of `requantize`: its own; any code where libraries run past the end of int32.

    That is where double rounding shifts a sum left past it (scales from 1 on), where the result of single rounding or
    rndnu lies beyond it, and where TFLite's and ruy's add the zero point past it before they clamp. The parameters,
    shapes and errors are those of `requantize`.
    """
    fmt = integer_format(format)
    acc = _sums(acc)
    z = _channels(np.asarray(zero_point, np.int64), acc.shape, "zero_point")
    if z.size and (z.min() < fmt.minimum or z.max() > fmt.maximum):
        raise ValueError(f"zero_point: must lie in [{fmt.minimum}, {fmt.maximum}]; got [{z.min()}, {z.max()}]")
    result, beyond = _scaled(acc, _channels(_scales(scale, variant), acc.shape, "scale"), variant)
    total = result + z
    if variant in (*_TWICE, Requantization.SINGLE_ROUNDING):
        beyond = beyond | (total < _INT32.min) | (total > _INT32.max)
    codes = np.clip(total, fmt.minimum, fmt.maximum)
    return Enclosure(codes, np.where(beyond, fmt.minimum, codes), np.where(beyond, fmt.maximum, codes))


def requantize(
    acc: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, *, format: str, variant: Requantization
) -> np.ndarray:
    """Return the codes saturate(round(acc * scale) + zero_point), scaled and rounded by the variant's arithmetic.

    Parameters
    ----------
    acc : ndarray of int, shape (..., N)
        Sums, any integers of int32.
    scale : ndarray of float64, shape () or (N,)
        Per tensor or per channel; s_a s_b / s_y. In the interval that `SCALES` gives for the variant. XNNPACK's
        variants take a float32, so a wider scale is rounded to that first; TFLite's take a float64.
    zero_point : ndarray of int, shape () or (N,)
        Codes of `format`.
    format : {"int8", "uint8"}, or any other int2 .. uint8
    variant : Requantization
        XNNPACK has rndnu16 for uint8 only.

    Returns
    -------
    ndarray of int64, the shape of `acc`; computed in int64, so exact for every sum.

    Raises
    ------
    ValueError
        Sums that are not integers of int32, a scale outside the variant's interval, a zero point outside the format,
        shapes that do not fit.
    """
    return requantize_enclosure(acc, scale, zero_point, format=format, variant=variant).exact
