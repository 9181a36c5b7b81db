"""Quantized vector addition: every pair of codes."""

import numpy as np
import pytest

from lowbit_cts.conformance.examination import Examination, Trial
from lowbit_cts.kernels import Case
from lowbit_cts.reference.formats import integer_format

#: (a_scale, b_scale, y_scale): equal, halves (ties everywhere), saturating, and in the ratio of thirds.
_SCALES = ((1.0, 1.0, 1.0), (0.5, 0.5, 1.0), (0.25, 1.0, 2.0), (2.0, 2.0, 1.0), (0.1, 0.3, 0.2))


@pytest.mark.operation("add_int8")
def test_every_pair_of_codes(examination: Examination) -> None:
    """Every sum of two codes comes out as declared, ties and saturation included."""
    operation = examination.implementation.operation
    for format in examination.implementation.supports["format"]:
        fmt = integer_format(format)
        codes = np.arange(fmt.minimum, fmt.maximum + 1).astype(fmt.carrier)
        a, b = (grid.ravel() for grid in np.meshgrid(codes, codes, indexing="ij"))
        for number, scales in enumerate(_SCALES):
            zeros = [fmt.minimum, fmt.minimum + 127, fmt.maximum][number % 3 :] + [fmt.minimum + 5] * 2
            arrays: dict[str, np.ndarray | None] = {"a": a, "b": b}
            for name, scale, zero in zip("aby", scales, zeros, strict=False):
                arrays[f"{name}_scale"] = np.array(scale, np.float32)
                arrays[f"{name}_zero_point"] = np.array(zero, np.int32)
            arrays = {argument.name: arrays[argument.name] for argument in operation.arguments}
            case = Case(operation, {"format": format}, arrays, {"scales": scales})
            examination.once(_enclosed, case)


def _enclosed(trial: Trial) -> None:
    trial.enclosed(trial.call().results[0])
