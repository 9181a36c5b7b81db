"""Moving averages of the least and the greatest number of batches.

References
----------
.. [1] B. Jacob et al., arXiv:1712.05877, §3.1: exponential moving averages of the ranges of activations.
.. [2] torch.ao.quantization.MovingAverageMinMaxObserver: the first batch sets them, then m += c (new - m), c = 0.01.
"""

import numpy as np

from lowbit_cts.reference.calibration.histogram import samples
from lowbit_cts.reference.choices import AverageForm, Contraction, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, determined, gamma
from lowbit_cts.reference.encoding import round_to_format
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.rounding import fma_float32

_FLOAT32 = float_format("float32")


def _narrow(value: np.ndarray) -> np.ndarray:
    return round_to_format(value, _FLOAT32)


def _step(m: np.ndarray, new: np.ndarray, c: np.ndarray, form: AverageForm, fused: bool) -> np.ndarray:
    """Return the average after one more number, each operation rounded to float32."""
    if form is AverageForm.WEIGHTED:
        kept, taken = _narrow(_narrow(1 - c) * m), _narrow(c * new)
        return _narrow(kept + taken)
    change = _narrow(new - m)
    return fma_float32(c, change, m) if fused else _narrow(m + _narrow(c * change))


def _real(m: np.ndarray, new: np.ndarray, c: np.ndarray, form: AverageForm, side: int) -> np.ndarray:
    """Return an end of the interval of the average after one more number, whatever is fused."""
    size = np.abs(m) * (1 - c) + c * np.abs(new) if form is AverageForm.WEIGHTED else c * np.abs(new - m)
    slack = gamma(3, _FLOAT32.unit_roundoff) * size + 3 * _FLOAT32.smallest
    return _narrow(m + c * (new - m) + side * slack)


@takes_choices
def moving_average_enclosure(
    x: np.ndarray,
    constant: np.ndarray | float,
    *,
    average_form: AverageForm = AverageForm.INCREMENT,
    contraction: Contraction = Contraction.SEPARATE,
) -> dict[str, Enclosure]:
    """Return the admissible moving averages of minimum and maximum.

    Parameters
    ----------
    x : ndarray of float, shape (T, N)
        Finite samples of float32, T batches of N.
    constant : float
        The weight c of a new number, a float32 in (0, 1].
    average_form : AverageForm
    contraction : Contraction
        Whether the product and the sum round once. Of a weighted sum it is open which product is fused.

    Returns
    -------
    dict with "low" and "high", float32. One number each is admissible, but where the fusion is open.

    Raises
    ------
    ValueError
        No samples, one that is not finite, a range beyond float32, a constant outside (0, 1].
    """
    x = samples(x)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"x: must hold batches of samples, (T, N), none of them empty; has shape {x.shape}")
    c = np.asarray(constant, np.float64)
    if not 0 < c <= 1:
        raise ValueError(f"constant: must lie in (0, 1]; got {float(c)}")
    if x.max() - x.min() > _FLOAT32.maximum:
        raise ValueError("x: its range, max - min, must be at most the largest float32")
    open_ = contraction is Contraction.EITHER or (
        contraction is Contraction.FUSED and average_form is AverageForm.WEIGHTED
    )  # fmt: skip
    found = {}
    for name, of_batches in (("low", x.min(axis=1)), ("high", x.max(axis=1))):
        exact = lo = hi = of_batches[0]
        for new in of_batches[1:]:
            exact = _step(exact, new, c, average_form, contraction is Contraction.FUSED)
            if open_:
                lo, hi = _real(lo, new, c, average_form, -1), _real(hi, new, c, average_form, 1)
        found[name] = determined(np.asarray(exact))
        if open_:
            found[name] = Enclosure(np.asarray(exact), np.asarray(lo), np.asarray(hi))
    return found
