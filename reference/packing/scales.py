"""Orders of scales in memory: the blocks that Blackwell's tensor cores read, and the permutations of Marlin.

References
----------
.. [1] cuBLAS documentation, "1D Block Scaling Factors Layout": tiles of 128 x 4 scales of one byte, 512 bytes each.
.. [2] IST-DASLab/marlin, marlin/__init__.py: _get_perms, Layer.pack.
.. [3] PTX ISA, "Matrix fragments for mma.m16n8k16": which lane holds which columns of B and of the accumulator.
"""

import numpy as np


def _check_matrix(array: np.ndarray, name: str) -> None:
    if array.ndim != 2:
        raise ValueError(f"{name}: has {array.ndim} dimensions, must have 2")


def swizzle_scales(scales: np.ndarray) -> np.ndarray:
    """Return the scales of a block-scaled matrix (MXFP8, MXFP4, NVFP4) in the order of cuBLAS.

    Parameters
    ----------
    scales : ndarray of any type, shape (M, C)
        One a block: C = K / 32 or K / 16.

    Returns
    -------
    ndarray of the same type, shape (ceil(M / 128) * ceil(C / 4), 32, 16)
        Tile after tile, along C first. Scale (m, c) of a tile of 128 x 4 stands at [m % 32, 4 * (m // 32) + c]. Rows
        and columns beyond the matrix are 0.

    Raises
    ------
    ValueError
        Anything but a matrix.
    """
    scales = np.asarray(scales)
    _check_matrix(scales, "scales")
    m, c = scales.shape
    tiles = np.pad(scales, ((0, -m % 128), (0, -c % 4))).reshape(-(-m // 128), 4, 32, -(-c // 4), 4)
    return np.ascontiguousarray(tiles.transpose(0, 3, 2, 1, 4)).reshape(-1, 32, 16)


def unswizzle_scales(swizzled: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return the scales, of that shape (M, C), that `swizzle_scales` put in order; the padding may hold anything.

    Parameters
    ----------
    swizzled : ndarray, as `swizzle_scales` returns it, or any reshape of that
    shape : (int, int)

    Raises
    ------
    ValueError
        A size that is not that of the shape's tiles.
    """
    swizzled = np.asarray(swizzled)
    m, c = shape
    rows, columns = -(-m // 128), -(-c // 4)
    if swizzled.size != rows * columns * 512:
        raise ValueError(f"swizzled: has {swizzled.size} elements, must have {rows * columns * 512} for shape {shape}")
    tiles = swizzled.reshape(rows, columns, 32, 4, 4).transpose(0, 3, 2, 1, 4)
    return np.ascontiguousarray(tiles.reshape(128 * rows, 4 * columns)[:m, :c])


def _marlin_order(groups: int) -> np.ndarray:
    """Return which column's scale stands at each place of a run of columns.

    With several groups the weights are scaled, as operand B: a lane of group g = lane // 4 holds columns g + 8 j of a
    run of 64. A scale a column is left to the accumulator: lane t = lane % 4 holds columns 2 t and 2 t + 1 of each
    eight of a run of 32. Either way a lane's eight scales are one load.
    """
    if groups > 1:
        return np.arange(64).reshape(8, 8).T.ravel()
    return np.arange(32).reshape(4, 4, 2).transpose(1, 0, 2).ravel()


def _permute_columns(scales: np.ndarray, order: np.ndarray) -> np.ndarray:
    groups, columns = scales.shape
    return scales.reshape(groups, columns // len(order), len(order))[..., order].reshape(groups, columns)


def _marlin_scales(scales: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales = np.asarray(scales)
    _check_matrix(scales, "scales")
    order = _marlin_order(scales.shape[0])
    if scales.shape[1] % len(order):
        raise ValueError(f"scales: have {scales.shape[1]} columns, must be a multiple of {len(order)}")
    return scales, order


def permute_marlin_scales(scales: np.ndarray) -> np.ndarray:
    """Return the scales of a Marlin weight in the order in which its kernel loads them.

    Parameters
    ----------
    scales : ndarray of any type, shape (G, N)
        One a group along K and a column; G = 1 is per channel, in another order than several groups.

    Returns
    -------
    ndarray of the same type and shape.

    Raises
    ------
    ValueError
        Anything but a matrix; N not a multiple of 64, or of 32 with one group.
    """
    scales, order = _marlin_scales(scales)
    return _permute_columns(scales, order)


def unpermute_marlin_scales(scales: np.ndarray) -> np.ndarray:
    """Return the scales that `permute_marlin_scales` put in order."""
    scales, order = _marlin_scales(scales)
    return _permute_columns(scales, np.argsort(order))
