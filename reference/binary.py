"""Binary weights: w ~ alpha sign(w), with alpha the mean magnitude of what shares it.

For given signs, alpha = mean|w| has the least squared error, and sign(w) has the least for any alpha > 0 (XNOR-Net,
§3.1). What the code of a zero weight is, the paper leaves open, and libraries differ.

References
----------
.. [1] M. Rastegari et al., "XNOR-Net: ImageNet Classification Using Binary Convolutional Neural Networks", ECCV 2016,
   arXiv:1603.05279, eq. (5) and (6).
"""

from typing import Any

import numpy as np

from lowbit_cts.reference.choices import Division, Precision, SignOfZero, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, determined
from lowbit_cts.reference.means import mean_enclosure, members


def _codes(x: np.ndarray, sign_of_zero: SignOfZero) -> np.ndarray:
    if sign_of_zero is SignOfZero.ZERO:
        return np.sign(x).astype(np.int64)
    negative = np.signbit(x) if sign_of_zero is SignOfZero.SIGN_BIT else x < 0
    return np.where(negative, -1, 1)


@takes_choices
def binarize_enclosure(
    x: np.ndarray,
    *,
    granularity: str = "tensor",
    axis: int | None = None,
    group_size: int | None = None,
    sign_of_zero: SignOfZero = SignOfZero.POSITIVE,
    intermediate: Precision = Precision.FLOAT32,
    division: Division = Division.DIVIDE,
    division_ulps: float = 0.0,
) -> dict[str, Enclosure]:
    """Return the admissible codes and scales of binary weights.

    Parameters
    ----------
    x : ndarray of float, shape (M, K)
        The weights: finite values of float32 (or of a format inside it).
    granularity, axis, group_size : as `lowbit_cts.reference.granularity`
        What shares a scale; a row, in XNOR-Net an output filter, is axis 0.
    sign_of_zero : SignOfZero
        The code of a zero weight.
    intermediate, division, division_ulps : as `lowbit_cts.reference.means.enclose_mean`

    Returns
    -------
    dict with "codes", of -1 and 1 (and 0 with `SignOfZero.ZERO`), shape (M, K), determined, and "scale", mean|w| in
    float32 added in any order, shape by `granularity`.

    Raises
    ------
    ValueError
        A NaN or infinity in x, a zero-size axis, shapes that do not fit the granularity.
    """
    x = np.asarray(x, np.float64)
    if not np.all(np.isfinite(x)):
        raise ValueError("x: must be finite; the mean of a NaN or an infinity is no scale")
    scale = mean_enclosure(
        np.abs(members(x, granularity, axis, group_size)),
        intermediate=intermediate, division=division, division_ulps=division_ulps,
    )  # fmt: skip
    return {"codes": determined(_codes(x, sign_of_zero)), "scale": scale}


def binarize(x: np.ndarray, **choices: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the codes, in int64, and the means rounded once to float32; parameters as `binarize_enclosure`."""
    found = binarize_enclosure(x, **choices)
    return found["codes"].exact, found["scale"].exact.astype(np.float32)
