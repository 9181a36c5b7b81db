"""Cases of convolutions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from lowbit_cts.conformance import fills
from lowbit_cts.conformance.strategies.drawing import SEEDS, Draw, draws, one_of
from lowbit_cts.conformance.strategies.onnx_operators import (
    deviation,
    operand_scale,
    output_scale,
    zero_points,
)
from lowbit_cts.kernels import Case, Operation
from lowbit_cts.reference.convolution import output_length
from lowbit_cts.reference.formats import integer_format

#: Multiply-adds of a drawn case at most.
_WORK = 1 << 21
#: The longest axes that are drawn.
_LONGEST = {"M": 3, "C": 17, "H": 12, "W": 17, "N": 17, "R": 4, "S": 5}


def _spans(lengths: Mapping[str, int], chosen: Mapping[str, Any]) -> tuple[int, int]:
    """Return the least height and width that a kernel fits into once, nothing where it fits into the pads."""
    rows, columns = (chosen["dilations"][axis] * (lengths["RS"[axis]] - 1) + 1 for axis in (0, 1))
    top, left, bottom, right = chosen["pads"]
    return max(0, rows - top - bottom), max(0, columns - left - right)


def _whole(lengths: dict[str, int], chosen: Mapping[str, Any], fixed: Mapping[str, int]) -> None:
    """Make channels and outputs whole groups, which stay empty, and the image as large as the kernel."""
    groups = chosen["groups"]
    if groups == "depthwise":
        if "C" not in fixed and "N" in fixed:
            lengths["C"] = lengths["N"]
        count = lengths["C"]
        lengths["N"] = max(1, lengths["N"] // count) * count if count else 0
        if "N" in fixed and not fixed["N"]:
            lengths["N"] = 0
    else:
        for symbol in "CN":
            lengths[symbol] = max(1, lengths[symbol] // groups) * groups if lengths[symbol] else 0
    for symbol, least in zip("HW", _spans(lengths, chosen), strict=True):
        lengths[symbol] = max(lengths[symbol], least)


def _work(lengths: Mapping[str, int], chosen: Mapping[str, Any]) -> int:
    pads, work = chosen["pads"], lengths["M"] * lengths["N"] * lengths["R"] * lengths["S"]
    for axis in (0, 1):
        work *= output_length(
            lengths["HW"[axis]], lengths["RS"[axis]], chosen["strides"][axis], chosen["dilations"][axis], pads[axis],
            pads[axis + 2],
        )  # fmt: skip
    groups = chosen["groups"]
    return work * (1 if groups == "depthwise" else lengths["C"] // groups)


def drawn_lengths(draw: Draw, chosen: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, int]:
    """Draw the lengths of the axes; those that `sizes` fixes as far as they go together, and are no great work.

    A kernel has at least one tap.
    """
    lengths = {symbol: sizes.get(symbol, 0) for symbol in _LONGEST}
    for symbol, longest in _LONGEST.items():
        if symbol not in sizes:
            lengths[symbol] = draw(st.integers(1, longest))
    lengths |= {symbol: max(1, lengths[symbol]) for symbol in "RS"}
    _whole(lengths, chosen, sizes)
    while _work(lengths, chosen) > _WORK:
        least = dict(zip("HW", (max(1, span) for span in _spans(lengths, chosen)), strict=True))
        least["N"] = lengths["C"] if chosen["groups"] == "depthwise" else 1
        widest = max("RSMNCHW", key=lambda symbol: lengths[symbol] - least.get(symbol, 1))
        lengths[widest] = -(-lengths[widest] // 2)
        _whole(lengths, chosen, {})
    return lengths


@draws("conv2d_int8")
def _conv2d(draw: Draw, operation: Operation, chosen: dict, regime: str, sizes: dict) -> Case:
    n = drawn_lengths(draw, chosen, sizes)
    families = one_of(draw, fills.CODES), one_of(draw, fills.CODES)
    seed = draw(SEEDS)
    rng, exact = np.random.default_rng(seed), regime == "exact"
    x_format, w_format = chosen["x_format"], chosen["w_format"]
    depth = 1 if chosen["groups"] == "depthwise" else n["C"] // chosen["groups"]
    channel = (n["N"],) if chosen["weight_granularity"] == "channel" else ()
    x = fills.codes(rng, (n["M"], n["C"], n["H"], n["W"]), integer_format(x_format), families[0])
    w = fills.codes(rng, (n["N"], depth, n["R"], n["S"]), integer_format(w_format), families[1])
    x_scale, w_scale = operand_scale(rng, (), exact), operand_scale(rng, channel, exact)
    acc = deviation(x, x_format) * deviation(w, w_format) * np.sqrt(depth * n["R"] * n["S"])
    bias = np.rint(acc * rng.standard_normal(n["N"])).astype(np.int32) if chosen["has_bias"] else None
    arrays = {
        "x": x,
        "x_scale": x_scale,
        "x_zero_point": zero_points(rng, (), x_format),
        "w": w,
        "w_scale": w_scale,
        "w_zero_point": zero_points(rng, channel, w_format, chosen["weight_mapping"]),
        "y_scale": output_scale(rng, acc, x_scale, w_scale, exact),
        "y_zero_point": zero_points(rng, (), chosen["y_format"]),
        "bias": bias,
    }
    return Case(operation, chosen, arrays, {"fill": families, "seed": seed})
