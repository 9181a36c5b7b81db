"""Which elements share a scale: the whole tensor, a row or column, or a group along the rows.

A matrix is (M, K). Its scales, zero points and statistics have the shape

====================  ===========================  ==========================================
granularity           shape                        shared by
====================  ===========================  ==========================================
tensor                ()                           all elements
axis, axis = 0        (M,)                         a row
axis, axis = 1        (K,)                         a column
group                 (M, K // group_size)         `group_size` neighbours in a row
====================  ===========================  ==========================================
"""

import numpy as np

GRANULARITIES = ("tensor", "axis", "group")


def scale_shape(
    shape: tuple[int, int], granularity: str, axis: int | None = None, group_size: int | None = None
) -> tuple[int, ...]:
    """Return the shape of the scales of a matrix.

    Raises
    ------
    ValueError
        When the matrix is not 2-D, `granularity` unknown, `axis` not 0 or 1, or `group_size` not a divisor of K.
    """
    if len(shape) != 2:
        raise ValueError(f"x: has {len(shape)} dimensions, must have 2 (M, K)")
    if granularity == "tensor":
        return ()
    if granularity == "axis":
        if axis not in (0, 1):
            raise ValueError(f"axis: {axis!r} is not an axis of a matrix; admissible: 0, 1")
        return (shape[axis],)
    if granularity == "group":
        if not isinstance(group_size, (int, np.integer)) or group_size < 1:
            raise ValueError(f"group_size: {group_size!r} must be a positive integer")
        if shape[1] % group_size:
            raise ValueError(f"group_size: {group_size} does not divide the axis of length {shape[1]}")
        return (shape[0], shape[1] // group_size)
    raise ValueError(f"granularity: {granularity!r} is unknown; admissible: {', '.join(GRANULARITIES)}")


def spread(
    values: np.ndarray,
    shape: tuple[int, int],
    granularity: str,
    axis: int | None = None,
    group_size: int | None = None,
    name: str = "scale",
) -> np.ndarray:
    """Return per-group `values` repeated so that each element of the matrix stands beside its own.

    Raises
    ------
    ValueError
        Naming `name` when `values` does not have the shape of the granularity, and as `scale_shape`.
    """
    values = np.asarray(values)
    expected = scale_shape(shape, granularity, axis, group_size)
    if values.shape != expected:
        raise ValueError(f"{name}: has shape {values.shape}, must be {expected} for granularity {granularity!r}")
    if granularity == "axis":
        values = values[:, None] if axis == 0 else values[None, :]
    elif granularity == "group":
        values = np.repeat(values, int(group_size or 1), axis=1)
    return np.broadcast_to(values, shape)


def extremes(
    x: np.ndarray, granularity: str, axis: int | None = None, group_size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the minimum and maximum of a matrix per tensor, axis or group, in the shape of its scales.

    Raises
    ------
    ValueError
        When a set to be reduced is empty, and as `scale_shape`.
    """
    target = scale_shape(x.shape, granularity, axis, group_size)
    if x.size == 0:
        raise ValueError(f"x: has a zero-size axis (shape {x.shape}); an empty set has no minimum and maximum")
    if granularity == "group":
        x = x.reshape(*target, -1)
    reduced = {"tensor": None, "axis": 1 - int(axis or 0), "group": 2}[granularity]
    return x.min(axis=reduced), x.max(axis=reduced)
