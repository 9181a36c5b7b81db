"""Operands: what quantized matrices stand for, exactly, and what a kernel may make of them before it multiplies.

Each function takes the codes and scales that the quantizers of this package return and gives an
`lowbit_cts.reference.sums.Operand` of their shape. Values are exact in float64, or within 2**-53 of it.

References
----------
.. [1] E. Frantar et al., "GPTQ", arXiv:2210.17323, and its g_idx: row k of the weights belongs to group g_idx[k].
.. [2] E. Frantar et al., "MARLIN", arXiv:2408.11743, §3: weights are dequantized to the activations' fp16.
.. [3] J. Lin et al., "AWQ", arXiv:2306.00978: w = (q - z) s.
.. [4] DeepSeek-AI, "DeepSeek-V3 Technical Report", arXiv:2412.19437, §3.3.2: 1 x 128 tiles, 128 x 128 blocks.
"""

import numpy as np

from lowbit_cts.reference.blockwise import dequantize_blockwise
from lowbit_cts.reference.choices import DequantizeForm, PartPrecision, Precision, WeightPrecision
from lowbit_cts.reference.codebooks import CODEBOOKS
from lowbit_cts.reference.enclosure import representable
from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import decode, float_format, integer_format
from lowbit_cts.reference.gguf.activations import quantize_activations
from lowbit_cts.reference.gguf.blocks import scale_and_offset, unpack
from lowbit_cts.reference.gguf.layout import block_format
from lowbit_cts.reference.mx import dequantize_mx
from lowbit_cts.reference.nvfp4 import dequantize_nvfp4
from lowbit_cts.reference.sums import Operand, exactly, rounded

_FLOAT32 = float_format("float32")

#: Columns and rows that share a scale, in block-scaled float8 products [4]_.
SCALE_BLOCK = 128


def check_positive(scale: np.ndarray, name: str) -> None:
    """Raise a ValueError unless every scale is positive and finite."""
    if not np.all(np.isfinite(scale)) or np.any(np.asarray(scale) <= 0):
        raise ValueError(f"{name}: must be positive and finite")


def _check_shape(array: np.ndarray, shape: tuple[int, ...], name: str) -> None:
    if array.shape != shape:
        raise ValueError(f"{name}: has shape {array.shape}, must be {shape}")


def dequantized(
    operand: Operand,
    precision: WeightPrecision,
    activations: str,
    roundings: int = 1,
    parts: tuple[np.ndarray, ...] = (),
) -> Operand:
    """Return an operand after its dequantization: to float32, and from there to the declared precision.

    Parameters
    ----------
    operand : Operand
    precision : WeightPrecision
    activations : str
        The format that ``WeightPrecision.ACTIVATIONS`` stands for.
    roundings : int
        On the way to one number in that precision.
    parts : tuple of ndarray
        What is rounded on the way, beside the number itself.
    """
    name = activations if precision is WeightPrecision.ACTIVATIONS else str(precision)
    found = operand
    for fmt in dict.fromkeys((_FLOAT32, float_format(name))):
        whole = np.logical_and.reduce([np.ones(operand.values.shape, bool), *(representable(p, fmt) for p in parts)])
        found = rounded(found, fmt, roundings, whole)
    return found


def affine_weights(
    codes: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray | None,
    group_index: np.ndarray | None = None,
    *,
    format: str,
    group_size: int | None,
    activations: str,
    weight_precision: WeightPrecision = WeightPrecision.FLOAT32,
    dequantize_form: DequantizeForm = DequantizeForm.SUBTRACT_FIRST,
) -> Operand:
    """Return the weights (q - z) s of a weight-only quantized layer.

    Parameters
    ----------
    codes : ndarray of int, shape (K, N)
    scale : ndarray of float64, shape (N,), or (P, N) with P = ceil(K / group_size)
    zero_point : ndarray of int, the shape of scale, or None
        None is the middle of the codes: 0 for signed ones, 2**(bits - 1) for unsigned.
    group_index : ndarray of int, shape (K,), or None
        The group of each row [1]_; None for consecutive groups.
    format : str
        An integer format.
    group_size : int or None
        Rows in a group, the last one perhaps fewer; None for a scale a column.
    activations : str
        The format of the other operand.
    weight_precision, dequantize_form :
        To what the weights are dequantized, and whether z is subtracted first. With ``SCALE_FIRST`` q s and z s, or
        both less the middle of the codes times s, are multiplied or rounded apart.

    Returns
    -------
    Operand, shape (K, N)

    Raises
    ------
    ValueError
        A group size that is not positive, shapes that do not fit, a scale that is not positive and finite, codes or
        zero points outside the format, a group index outside the groups.
    """
    fmt = integer_format(format)
    codes, scale = np.asarray(codes, np.int64), np.asarray(scale, np.float64)
    if codes.ndim != 2:
        raise ValueError(f"codes: has {codes.ndim} dimensions, must have 2")
    k, n = codes.shape
    check_positive(scale, "scale")
    middle = 0 if fmt.minimum < 0 else (fmt.maximum + 1) // 2
    zero = np.full(scale.shape, middle) if zero_point is None else np.asarray(zero_point, np.int64)
    for name, values in (("codes", codes), ("zero_point", zero)):
        if values.size and (values.min() < fmt.minimum or values.max() > fmt.maximum):
            raise ValueError(f"{name}: must lie in [{fmt.minimum}, {fmt.maximum}]")
    if group_size is None:
        _check_shape(scale, (n,), "scale")
        _check_shape(zero, (n,), "zero_point")
        s, z = np.broadcast_to(scale, codes.shape), np.broadcast_to(zero, codes.shape)
    else:
        if group_size < 1:
            raise ValueError(f"group_size: must be a positive integer; got {group_size}")
        groups = -(-k // group_size)
        _check_shape(scale, (groups, n), "scale")
        _check_shape(zero, (groups, n), "zero_point")
        index = np.arange(k) // group_size if group_index is None else np.asarray(group_index)
        _check_shape(index, (k,), "group_index")
        if k and (index.min() < 0 or index.max() >= groups):
            raise ValueError(f"group_index: must lie in [0, {groups - 1}]; got [{index.min()}, {index.max()}]")
        s, z = scale[index], zero[index]
    values = (codes - z) * s
    if dequantize_form is DequantizeForm.SUBTRACT_FIRST:
        return dequantized(exactly(values), weight_precision, activations)
    apart = np.maximum(np.abs(codes), np.abs(codes - middle)) + np.maximum(np.abs(z), np.abs(z - middle))
    parts = tuple(part * s for part in (codes, z, codes - middle, z - middle))
    return dequantized(exactly(values, apart * s, parts), weight_precision, activations, roundings=3, parts=parts)


def float8_matrix(codes: np.ndarray, scale: np.ndarray, *, format: str, scaling: str, axis: int) -> Operand:
    """Return the numbers of a matrix of float8 codes with scales.

    Parameters
    ----------
    codes : ndarray of uint8, shape (R, C)
    scale : ndarray of float64
        By `scaling`: ``tensor`` of shape (); ``row`` a scale for each index of `axis`; ``tile`` one for each index of
        `axis` and 128 of the other; ``block`` one for 128 x 128. What is left over at the ends has one, too.
    format : str
    scaling : {"tensor", "row", "tile", "block"}
    axis : int
        The axis that is not summed over.

    Returns
    -------
    Operand, shape (R, C)

    Raises
    ------
    ValueError
        A scale of another shape, or one that is not positive and finite.
    """
    codes, scale = np.asarray(codes), np.asarray(scale, np.float64)
    check_positive(scale, "scale")
    blocks = [-(-length // SCALE_BLOCK) for length in codes.shape]
    blocked = {"tensor": (), "row": (), "tile": (1 - axis,), "block": (0, 1)}[scaling]
    kept = {"tensor": (), "row": (axis,), "tile": (0, 1), "block": (0, 1)}[scaling]
    _check_shape(scale, tuple(blocks[i] if i in blocked else codes.shape[i] for i in kept), "scale")
    for i in blocked:
        scale = np.repeat(scale, SCALE_BLOCK, axis=i).take(np.arange(codes.shape[i]), axis=i)
    if scaling == "row":
        scale = np.expand_dims(scale, 1 - axis)
    return exactly(decode(codes, float_format(format)) * scale)


def mx_matrix(codes: np.ndarray, scale: np.ndarray, *, format: str) -> Operand:
    """Return the numbers of MX blocks, (R, K) codes and (R, K / 32) scales; errors as `dequantize_mx`."""
    return exactly(dequantize_mx(codes, scale, format=format, output_format="float64"))


def nvfp4_matrix(codes: np.ndarray, scale: np.ndarray, global_scale: np.ndarray | None) -> Operand:
    """Return the numbers of NVFP4 blocks, (R, K) codes and (R, K / 16) scales; errors as `dequantize_nvfp4`."""
    return exactly(dequantize_nvfp4(codes, scale, global_scale, output_format="float64"))


def codebook_weights(
    codes: np.ndarray,
    absmax: np.ndarray,
    *,
    codebook: str,
    block_size: int,
    activations: str,
    weight_precision: WeightPrecision = WeightPrecision.FLOAT32,
    part_precision: PartPrecision = PartPrecision.FLOAT32,
) -> Operand:
    """Return the weights of blocks under a codebook, (N, K) codes; parameters and errors as `dequantize_blockwise`."""
    values = dequantize_blockwise(
        codes, absmax, codebook=codebook, block_size=block_size, output_format="float64",
        intermediate=Precision.FLOAT64,
    )  # fmt: skip
    if part_precision is not PartPrecision.FLOAT32:
        fmt = float_format(str(part_precision))
        table = round_to_format(CODEBOOKS[codebook].astype(np.float64), fmt)
        scale = round_to_format(np.asarray(absmax, np.float64), fmt)
        return exactly(table[codes] * np.repeat(scale, block_size, axis=1))
    return dequantized(exactly(values), weight_precision, activations)


def _finite_parts(blocks: np.ndarray, type: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the levels (n, groups, group) of n blocks, their scales (n, groups), and offsets or None, in float64.

    Raises
    ------
    ValueError
        As `lowbit_cts.reference.gguf.blocks.unpack`; a scale that is not finite.
    """
    fmt, parts = block_format(type), unpack(blocks, type)
    scale, offset = scale_and_offset(parts, type)
    if not np.all(np.isfinite(scale)) or (offset is not None and not np.all(np.isfinite(offset))):
        raise ValueError("blocks: the scales must be finite")
    levels = np.asarray(fmt.levels[parts["codes"]], np.float64).reshape(-1, fmt.groups, fmt.group)
    return levels, np.asarray(scale, np.float64), None if offset is None else np.asarray(offset, np.float64)


def gguf_weights(
    blocks: np.ndarray,
    *,
    type: str,
    activations: str,
    weight_precision: WeightPrecision = WeightPrecision.FLOAT32,
    dequantize_form: DequantizeForm = DequantizeForm.SUBTRACT_FIRST,
) -> Operand:
    """Return the weights of GGUF blocks.

    Parameters
    ----------
    blocks : ndarray of uint8, shape (N, n * bytes of a block)
    type : str
        A key of `BLOCK_FORMATS`.
    activations, weight_precision : as `affine_weights`
    dequantize_form :
        With ``SCALE_FIRST`` the least level (-8 of Q4_0) may leave the sum as a correction.

    Returns
    -------
    Operand, shape (N, K). In float32 scale * level + offset takes three roundings.

    Raises
    ------
    ValueError
        As `lowbit_cts.reference.gguf.blocks.unpack`; a scale that is not finite.
    """
    fmt = block_format(type)
    levels, scale, offset = _finite_parts(blocks, type)
    scaled = scale[..., None] * levels
    shift = np.zeros(()) if offset is None else offset[..., None]
    parts = [scaled, np.broadcast_to(shift, scaled.shape)]
    apart = np.abs(scaled) + np.abs(shift)
    if dequantize_form is DequantizeForm.SCALE_FIRST:
        lowest = np.broadcast_to(scale[..., None] * float(fmt.levels.min()), scaled.shape)
        parts.append(lowest)
        apart = apart + 2 * np.abs(lowest)
    shape = blocks.shape[0], blocks.shape[1] // fmt.bytes * fmt.elements
    values, magnitude, *parts = (x.reshape(shape) for x in (scaled + shift, apart, *parts))
    operand = exactly(values, magnitude, tuple(parts))
    return dequantized(operand, weight_precision, activations, roundings=3, parts=(parts[0],))


def ggml_factors(
    a: np.ndarray,
    blocks: np.ndarray,
    *,
    type: str,
    dequantize_form: DequantizeForm = DequantizeForm.SUBTRACT_FIRST,
) -> tuple[Operand, Operand]:
    """Return the factors that ggml's CPU kernels multiply: quantized activations and weights in GGUF blocks.

    Parameters
    ----------
    a : ndarray of float32, shape (M, K)
    blocks, type, dequantize_form : as `gguf_weights`

    Returns
    -------
    tuple of Operand, shapes (M, L) and (N, L)
        L is K, and where the weights have offsets, which meet the sums of a group's activations, so many groups more.

    Raises
    ------
    ValueError
        As `lowbit_cts.reference.gguf.blocks.unpack` and
        `lowbit_cts.reference.gguf.activations.quantize_activations`; a scale that is not finite.
    """
    quantized, fmt = quantize_activations(a, type), block_format(type)
    levels, scale, offset = _finite_parts(blocks, type)
    apart = np.abs(scale[..., None] * levels)
    if dequantize_form is DequantizeForm.SCALE_FIRST:
        apart = apart + 2 * np.abs(scale)[..., None] * abs(float(fmt.levels.min()))
    rows = len(blocks), -1
    scaled = exactly((scale[..., None] * levels).reshape(rows), apart.reshape(rows))
    if offset is None:
        return quantized.elements, scaled
    sums = quantized.sums or _summed(quantized.elements, fmt.group)
    return _beside(quantized.elements, sums), _beside(scaled, exactly(offset.reshape(rows)))


def _summed(operand: Operand, group: int) -> Operand:
    """Return the sums of so many neighbours in each row."""
    parts = (operand.values, operand.magnitude, operand.error)
    return Operand(*(part.reshape(len(part), -1, group).sum(axis=-1) for part in parts))


def _beside(first: Operand, second: Operand) -> Operand:
    """Return the columns of two operands."""
    pairs = ((first.values, second.values), (first.magnitude, second.magnitude), (first.error, second.error))
    return Operand(*(np.concatenate(pair, axis=1) for pair in pairs))
