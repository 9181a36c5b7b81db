"""Pruning of whole units, filters, channels, neurons, heads, layers, and networks made smaller by them.

A network whose units are masked still does the work; the one without them must give the same results. It does if
whatever a masked unit still puts out, f(0), or f(b) where its bias was left, goes into the biases of the layer after.

References
----------
.. [1] H. Li et al., "Pruning Filters for Efficient ConvNets", arXiv:1608.08710, section 3.1: filters by their L1 norm,
   and the channels of the next layer with them.
.. [2] PyTorch, torch/nn/utils/prune.py, `LnStructured`: of n units n - round(amount * n), the largest, are *kept*, and
   the mask is one of the weight alone: biases stay.
.. [3] P. Michel et al., "Are Sixteen Heads Really Better than One?", arXiv:1905.10650: heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from lowbit_cts.reference.choices import takes_choices
from lowbit_cts.reference.convolution import patches
from lowbit_cts.reference.pruning.unstructured import CountRule, Ties, finite, lowest


class Norm(StrEnum):
    """The size of a unit."""

    L1 = "l1"
    L2 = "l2"


class Size(StrEnum):
    """Whether units that differ in their number of weights compare by all of it or by a weight of theirs."""

    TOTAL = "total"  # sum |w|, sqrt(sum w^2)
    MEAN = "mean"  # mean |w|, sqrt(mean w^2)


class Bias(StrEnum):
    """What becomes of the bias of a masked unit."""

    MASKED = "masked"  # it goes, the unit puts out f(0)
    LEFT = "left"  # it stays, the unit puts out f(b)   (torch.nn.utils.prune of "weight")


#: The axis along which units lie, of weights (outputs, inputs, ...).
AXES = {"filter": 0, "neuron": 0, "channel": 1, "input": 1}

_NORMS: dict[tuple[Norm, Size], Callable[[np.ndarray], np.ndarray]] = {
    (Norm.L1, Size.TOTAL): lambda rows: np.abs(rows).sum(axis=1),
    (Norm.L1, Size.MEAN): lambda rows: np.abs(rows).mean(axis=1),
    (Norm.L2, Size.TOTAL): lambda rows: np.sqrt((rows**2).sum(axis=1)),
    (Norm.L2, Size.MEAN): lambda rows: np.sqrt((rows**2).mean(axis=1)),
}


@takes_choices
def unit_norms(w: np.ndarray, *, unit: str, norm: Norm = Norm.L1) -> np.ndarray:
    """Return the norms of the filters, channels, neurons or inputs of weights.

    Parameters
    ----------
    w : ndarray of float, shape (N, K) or (N, K, R, S)
    unit : {"filter", "neuron", "channel", "input"}
        "filter" and "neuron" are the N outputs, "channel" and "input" the K inputs.
    norm :

    Returns
    -------
    ndarray of float64, shape (N,) or (K,)

    Raises
    ------
    ValueError
        Another unit, weights of fewer than two axes, not finite, none at all.
    """
    if unit not in AXES:
        raise ValueError(f"unit: {unit!r} is not admissible; admissible: {', '.join(AXES)}")
    if np.ndim(w) < 2:
        raise ValueError(f"w: must have axes of outputs and inputs; got shape {np.shape(w)}")
    first = np.moveaxis(finite("w", w), AXES[unit], 0)
    return _NORMS[norm, Size.TOTAL](first.reshape(len(first), -1))


@takes_choices
def head_norms(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, o: np.ndarray, heads: int, *, norm: Norm = Norm.L1
) -> np.ndarray:
    """Return the norms of attention heads, each over its rows of q, k and v and its columns of o, (H,).

    Parameters
    ----------
    q, k, v : ndarray of float, shape (H * D, K)
        Weights of the projections; head h has rows h D to (h + 1) D.
    o : ndarray of float, shape (N, H * D)
    heads : int
        H.
    norm :

    Raises
    ------
    ValueError
        Heads that do not divide the rows, shapes that differ, weights that are not finite, none at all.
    """
    _check_heads(q, k, v, o, heads)
    parts = [
        finite(name, part).reshape(heads, -1) for name, part in (("q", q), ("k", k), ("v", v), ("o", np.transpose(o)))
    ]
    return _NORMS[norm, Size.TOTAL](np.concatenate(parts, axis=1))


def _check_heads(q: np.ndarray, k: np.ndarray, v: np.ndarray, o: np.ndarray, heads: int) -> None:
    if any(np.ndim(part) != 2 for part in (q, k, v, o)):
        raise ValueError("q, k, v and o: must be matrices")
    rows = np.shape(q)[0]
    if heads < 1 or rows % heads:
        raise ValueError(f"heads: must divide the {rows} rows of q; got {heads}")
    if not rows == np.shape(k)[0] == np.shape(v)[0] == np.shape(o)[1]:
        raise ValueError(f"k, v, o: must have as many rows, rows and columns as q has rows, {rows}")


@takes_choices
def layer_norms(weights: Sequence[np.ndarray], *, norm: Norm = Norm.L1, size: Size = Size.MEAN) -> np.ndarray:
    """Return the norm of each layer, (L,); ValueError for none, or weights that are not finite."""
    if not len(weights):
        raise ValueError("weights: must hold a layer or more")
    return np.array([_NORMS[norm, size](finite(f"weights[{i}]", w).reshape(1, -1))[0] for i, w in enumerate(weights)])


@takes_choices
def lowest_units(
    norms: np.ndarray, amount: float, *, ties: Ties = Ties.FIRST, kept: np.ndarray | None = None
) -> np.ndarray:
    """Return the mask of units of which the smallest go, (U,).

    As many as `lowest` says by ``HALF_EVEN``: of 5 units 0.5 are 2, and 3 stay; to keep round(0.5 * 5) = 2 is another
    rule.

    Parameters
    ----------
    norms : ndarray of float, shape (U,)
    amount : float or int
    ties : {FIRST, LAST}
        Libraries that sort by `topk` promise neither.
    kept : ndarray of bool, shape (U,), or None

    Raises
    ------
    ValueError
        As `lowest`; a threshold, norms that are no vector.
    """
    if np.ndim(norms) != 1:
        raise ValueError(f"norms: must be a vector, a unit each; got shape {np.shape(norms)}")
    if ties is Ties.THRESHOLD:
        raise ValueError("ties: a threshold is not admissible of units; admissible: first, last")
    return lowest(norms, amount, count_rule=CountRule.HALF_EVEN, ties=ties, kept=kept)


# Networks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A linear layer, or a convolution.

    Attributes
    ----------
    w : ndarray of float, shape (N, K) or (N, K, R, S)
    bias : ndarray of float, shape (N,)
    stride, padding : int
        Of a convolution, on all sides; what is beyond the image is zero.
    """

    w: np.ndarray
    bias: np.ndarray
    stride: int = 1
    padding: int = 0

    def __post_init__(self) -> None:
        """Check the shapes."""
        if np.ndim(self.w) not in (2, 4):
            raise ValueError(f"w: must be (N, K) or (N, K, R, S); got shape {np.shape(self.w)}")
        finite("w", self.w)
        if np.shape(self.bias) != np.shape(self.w)[:1] or not np.all(np.isfinite(self.bias)):
            raise ValueError(f"bias: must be finite, of shape {np.shape(self.w)[:1]}; got shape {np.shape(self.bias)}")
        if self.stride < 1 or self.padding < 0:
            raise ValueError(f"stride, padding: must be at least 1 and 0; got {self.stride}, {self.padding}")

    @property
    def convolution(self) -> bool:
        """Whether it is a convolution."""
        return self.w.ndim == 4

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Return what it makes of x in float64, (M, K, ...) to (M, N) or (M, K, H, W) to (M, N, P, Q)."""
        if not self.convolution:
            return np.asarray(x.reshape(len(x), -1) @ self.w.T + self.bias)
        below = patches(x, self.w.shape[2:], (self.stride,) * 2, (self.padding,) * 4, (1, 1))
        return np.asarray(np.einsum("mkrspq,nkrs->mnpq", below, self.w) + self.bias[:, None, None])


Activation = Callable[[np.ndarray], np.ndarray]


def relu(x: np.ndarray) -> np.ndarray:
    """Return max(x, 0)."""
    return np.maximum(x, 0.0)


def network(layers: Sequence[Layer], x: np.ndarray, activation: Activation = relu) -> np.ndarray:
    """Return the outputs of layers, with an activation between them, in float64."""
    x = np.asarray(x, np.float64)
    for number, layer in enumerate(layers):
        x = layer.outputs(activation(x) if number else x)
    return x


def _check_network(layers: Sequence[Layer], kept: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Return masks of the outputs of all layers but the last."""
    if len(layers) < 2 or len(kept) != len(layers) - 1:
        raise ValueError(f"kept: must be a mask of every layer but the last of two or more; got {len(kept)}")
    masks = [np.asarray(mask) for mask in kept]
    for number, (layer, after, mask) in enumerate(zip(layers, layers[1:], masks, strict=False)):
        if mask.shape != layer.w.shape[:1] or mask.dtype != bool:
            raise ValueError(f"kept[{number}]: must be a mask of bool of the {len(layer.w)} outputs of its layer")
        if not mask.any():
            raise ValueError(f"kept[{number}]: must keep a unit or more")
        if after.convolution and not layer.convolution:
            raise ValueError(f"layers[{number + 1}]: a convolution cannot follow a linear layer")
        inputs, outputs = after.w.shape[1], len(layer.w)
        flat = layer.convolution and not after.convolution
        if inputs % outputs if flat else inputs != outputs:
            raise ValueError(
                f"layers[{number + 1}]: has {inputs} inputs, must have those of the {outputs} outputs before"
            )
    return masks


@takes_choices
def masked(layers: Sequence[Layer], kept: Sequence[np.ndarray], *, bias: Bias = Bias.MASKED) -> list[Layer]:
    """Return a network with the weights of some units zero.

    Parameters
    ----------
    layers : sequence of Layer
    kept : sequence of ndarray of bool, shapes (N,)
        Of the outputs of every layer but the last.
    bias :
        Of units that went.

    Raises
    ------
    ValueError
        Masks of another number, shape or type, that keep nothing; layers that do not chain.
    """
    found = []
    for layer, mask in zip(layers, [*_check_network(layers, kept), None], strict=True):
        if mask is None:
            found.append(layer)
            continue
        w = layer.w * mask.reshape(-1, *[1] * (layer.w.ndim - 1))
        found.append(replace(layer, w=w, bias=layer.bias * mask if bias is Bias.MASKED else layer.bias))
    return found


@takes_choices
def shrunk(
    layers: Sequence[Layer],
    kept: Sequence[np.ndarray],
    activation: Activation = relu,
    *,
    bias: Bias = Bias.MASKED,
) -> list[Layer]:
    """Return a network without some units whose results are those of the masked one.

    The layer after loses the inputs that come from them; where they put out what is not zero, its biases take it.

    Parameters
    ----------
    layers, kept, bias :
        As `masked`. A linear layer may follow a convolution: its inputs are then the images, channel by channel.
    activation : callable
        Elementwise.

    Raises
    ------
    ValueError
        As `masked`; a unit that puts out what is not zero before a convolution with padding, which sees that inside the
        image and zeros beyond it: no bias is the same.
    """
    masks = _check_network(layers, kept)
    found = list(layers)
    for number, mask in enumerate(masks):
        layer, after = found[number], found[number + 1]
        left = np.zeros(len(layer.bias)) if bias is Bias.MASKED else np.asarray(layers[number].bias, np.float64)
        constant = np.where(mask, 0.0, activation(left))
        if after.convolution and after.padding and np.any(constant):
            raise ValueError(
                f"layers[{number + 1}]: its padding must be 0, since a masked unit before it puts out {constant.max()}"
            )
        repeated = after.w.shape[1] // len(mask) if not after.convolution else 1
        stays, gone = np.repeat(mask, repeated), np.repeat(constant, repeated)
        taps = after.w.reshape(*after.w.shape[:2], -1).sum(axis=2)
        found[number] = replace(layer, w=layer.w[mask], bias=layer.bias[mask])
        found[number + 1] = replace(after, w=after.w[:, stays], bias=after.bias + taps @ gone)
    return found


def shrunk_heads(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, o: np.ndarray, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the projections of attention without some heads, (h D, K) thrice and (N, h D).

    A masked head is one whose columns of o are zero: queries and keys of zeros still have probabilities, all equal.

    Parameters
    ----------
    q, k, v, o : ndarray of float
        As `head_norms`.
    kept : ndarray of bool, shape (H,)

    Raises
    ------
    ValueError
        As `head_norms`; a mask of another type.
    """
    mask = np.asarray(kept)
    if mask.ndim != 1 or mask.dtype != bool:
        raise ValueError("kept: must be a mask of bool, a head each")
    _check_heads(q, k, v, o, len(mask))
    rows = np.repeat(mask, q.shape[0] // len(mask))
    return q[rows], k[rows], v[rows], o[:, rows]
