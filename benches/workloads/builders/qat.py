"""Workload cases of quantization-aware training: gradients where no value is at an end of the range."""

from typing import Any

import numpy as np

from lowbit_cts.benches.workloads.builders.building import Built, blocks_of, builds, qparams
from lowbit_cts.benches.workloads.fills import FILLS
from lowbit_cts.benches.workloads.shapes import Layer
from lowbit_cts.reference.formats import integer_format
from lowbit_cts.reference.granularity import spread
from lowbit_cts.reference.means import members

#: Of the min-max scale: the ends of the range are beyond every value, so that all masks let the same gradients pass.
_ROOM = np.float32(1.0625)


def _place(p: dict[str, Any]) -> tuple[str, int | None, int | None]:
    return p["granularity"], p["axis"], p["group_size"]


def _training(
    rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return values, normal upstream gradients, scales and zero points.

    Unsigned codes without zero points are those of activations after a ReLU: the values are magnitudes.
    """
    x = FILLS[fill](rng, (rows, layer.k))
    unsigned = not integer_format(p["format"]).signed
    if unsigned and p.get("has_zero_point") is False:
        x = np.abs(x)
    mapping = "asymmetric" if unsigned else "symmetric"
    scale, zero_point = qparams(x, {"mapping": mapping, **p})
    return x, rng.standard_normal(x.shape, np.float32), np.asarray(scale * _ROOM), zero_point


@builds("fake_quantize_gradient")
def _fake_quantize_gradient(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    x, upstream, scale, zero_point = _training(rng, layer, rows, fill, p)
    arrays = {"x": x, "upstream": upstream, "scale": scale, "zero_point": zero_point}
    return arrays, lambda: upstream, lambda dx: dx


@builds("lsq_gradient")
def _lsq_gradient(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    v, upstream, scale, zero_point = _training(rng, layer, rows, fill, p)
    factor = np.float32(1 / np.sqrt(v.size * integer_format(p["format"]).maximum))
    arrays = {
        "v": v, "upstream": upstream, "scale": scale, "gradient_scale": np.array(factor),
        "zero_point": zero_point if p["has_zero_point"] else None,
    }  # fmt: skip

    def ideal() -> np.ndarray:
        terms = np.empty(v.shape)
        s = spread(scale, v.shape, *_place(p))
        for block in blocks_of(*v.shape):
            quotient = v[block] / s[block].astype(np.float64)
            terms[block] = upstream[block] * (np.rint(quotient) - quotient)
        return factor * members(terms, *_place(p)).sum(axis=-1)

    return arrays, ideal, lambda dv, dscale: dscale


@builds("lsq_initial_scale")
def _lsq_initial_scale(rng: np.random.Generator, layer: Layer, rows: int, fill: str, p: dict[str, Any]) -> Built:
    v = FILLS[fill](rng, (rows, layer.k))

    def ideal() -> np.ndarray:
        root = np.sqrt(integer_format(p["format"]).maximum)
        return 2 * np.abs(members(v, *_place(p))).mean(axis=-1, dtype=np.float64) / root

    return {"v": v}, ideal, lambda scale: scale
