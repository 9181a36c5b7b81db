"""Quantization to TQ1_0 and TQ2_0: levels -1, 0, 1 times the largest magnitude of 256 elements.

Meant for weights that are ternary already (BitNet b1.58), which they hold exactly up to the float16 scale. On anything
else the scale is a poor one: a Gaussian keeps 1.85 dB.

References
----------
.. [1] ggml-org/ggml, `src/ggml-quants.c`, version 0.25.3: ``quantize_row_tq1_0_ref``, ``quantize_row_tq2_0_ref``.
"""

import numpy as np

from lowbit_cts.reference.gguf.arithmetic import reciprocal, round_half_away
from lowbit_cts.reference.gguf.packing import Parts


def quantize_ternary(x: np.ndarray) -> Parts:
    """Return the parts of blocks, float32 (n, 256); codes are levels + 1."""
    d = np.abs(x).max(axis=-1)
    levels = round_half_away(x * reciprocal(d)[:, None])
    return {"codes": (levels + 1).astype(np.uint8), "d": d.astype(np.float16)}
