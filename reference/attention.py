"""Attention over a paged cache of keys and values, quantized or not, and what bounds every way to compute it.

A token's scores are ``s_j = tau q . k_j`` over the slots it may see, perhaps capped, ``t_j = c tanh(s_j / c)``, its
probabilities ``p_j = exp(t_j) / sum_i exp(t_i)``, its result ``y = sum_j p_j v_j``. Keys and values lie in blocks of
slots anywhere in the cache; a row of the block table names the blocks of a sequence, and numbers beyond those that its
context needs are never looked at.

Notes
-----
A kernel weights the values with ``w_j = exp(t_j + theta_j - m)``, where theta_j holds the errors of the score, of the
cap, of the argument of exp, of exp itself, and of every rescaling after a larger maximum was found; numerator and
normaliser share it. Since ``sum_j p_j (v_j - y) = 0``,

    sum_j w_j v_j / sum_j w_j - y = sum_j p_j (exp(theta_j) - 1) (v_j - y) / sum_j p_j exp(theta_j),

so that errors of the weights count by how far the values differ from their mean: not at all where one slot is seen, or
all values agree, and never by more than the farthest of them is away. Errors that the two sums do not share are those
of their additions, by Higham's gamma_n, and those of probabilities that are rounded before they are multiplied. A
rescaling can befall the weight of j only after a score above its own, so it is befallen at most as often as there are
such scores. Bounds hold for any order of the slots and for any blocks of them.

References
----------
.. [1] W. Kwon et al., "Efficient Memory Management for Large Language Model Serving with PagedAttention",
   arXiv:2309.06180, eq. (4): blocks, block tables.
.. [2] A. Vaswani et al., "Attention Is All You Need", arXiv:1706.03762, eq. (1).
.. [3] M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", arXiv:1805.02867, algorithm 3.
.. [4] T. Dao, "FlashAttention-2", arXiv:2307.08691, algorithm 1; its layout of paged caches, (blocks, block, heads,
   head size); tokens of the query are the last of the context.
.. [5] Gemma Team, "Gemma 2", arXiv:2408.00118, §2: soft caps. Beltagy et al., arXiv:2004.05150: sliding windows.
.. [6] N. J. Higham, "Accuracy and Stability of Numerical Algorithms", 2nd ed., SIAM 2002, §3.1 and lemma 3.1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit_cts.reference.accumulators import Accumulator
from lowbit_cts.reference.choices import ProbabilityPrecision, SoftmaxParts, WeightPrecision, takes_choices
from lowbit_cts.reference.enclosure import Enclosure, gamma, representable, within
from lowbit_cts.reference.formats import FORMATS, float_format
from lowbit_cts.reference.kv_cache import Cache, scales_of, slots
from lowbit_cts.reference.operands import check_positive, dequantized
from lowbit_cts.reference.sums import Operand, Sums, exactly, inner_products, quantum

MASKS = ("causal", "window", "none")

_FLOAT32 = float_format("float32")
_U32, _U64 = 2.0**-24, 2.0**-53
_TINY = _FLOAT32.smallest_normal
#: Roundings of a score beside those of its sum: scales, their products, and square roots of them on both factors.
_SCORE = 6
#: Roundings of the argument of exp: in units of log 2 both the score and the maximum are rounded before they are
#: subtracted, and log2(e) is.
_ARGUMENT = 4
#: Roundings of a result beside those of its sums: normaliser, its reciprocal, scale.
_EPILOGUE = 4
#: More elements than this are not held at once.
_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Arithmetic:
    """How a kernel computes.

    Attributes
    ----------
    accumulator : Accumulator
        Of the scores, of the weighted values and of the normaliser; the last in float32 if that is coarser.
    probabilities : str or None
        The format that they are rounded to before they are multiplied; None for none below float32.
    parts : bool
        Whether parts of a context are normalised apart.
    ulps : float
        The largest error of exp and tanh in units of the last place of float32.
    epsilon : float
        What is added to the normaliser.
    """

    accumulator: Accumulator
    probabilities: str | None
    parts: bool
    ulps: float
    epsilon: float

    @property
    def step(self) -> float:
        """The largest relative error of exp or tanh."""
        return self.ulps * 2 * _U32

    @property
    def unit_roundoff(self) -> float:
        """Of normalisers and results."""
        return max(self.accumulator.unit_roundoff, _U32)


def visible(tokens: int, context: int, mask: str, window: int | None) -> np.ndarray:
    """Return which slots of a context each of its last tokens sees.

    Parameters
    ----------
    tokens : int
        Query tokens: the last of the context, so the i-th is at ``context - tokens + i``. Where that is negative a
        mask leaves it nothing.
    context : int
        Slots that are filled, those of the query tokens among them.
    mask : {"causal", "window", "none"}
        ``causal``: itself and what is before; ``window``: itself and the ``window - 1`` before; ``none``: all.
    window : int or None

    Returns
    -------
    ndarray of bool, (tokens, context)
    """
    place, slot = context - tokens + np.arange(tokens)[:, None], np.arange(context)
    if mask == "none":
        return np.ones((tokens, context), bool)
    seen = slot <= place
    return seen & (slot > place - window) if mask == "window" and window is not None else seen


def check(
    query: np.ndarray,
    key_cache: np.ndarray,
    value_cache: np.ndarray,
    block_table: np.ndarray,
    context_lengths: np.ndarray,
) -> None:
    """Raise a ValueError unless the shapes fit; (S, Q, H, D), (C, P, G, D), (C, P, G, E), (S, B), (S,)."""
    for name, array, axes in (
        ("query", query, 4), ("key_cache", key_cache, 4), ("value_cache", value_cache, 4),
        ("block_table", block_table, 2), ("context_lengths", context_lengths, 1),
    ):  # fmt: skip
        if array.ndim != axes:
            raise ValueError(f"{name}: has {array.ndim} axes, must have {axes}")
    if key_cache.shape[:3] != value_cache.shape[:3]:
        raise ValueError(f"value_cache: has shape {value_cache.shape}, must begin as key_cache, {key_cache.shape}")
    if query.shape[3] != key_cache.shape[3]:
        raise ValueError(f"query: has a head size of {query.shape[3]}, key_cache of {key_cache.shape[3]}")
    if query.shape[0] != len(block_table) or query.shape[0] != len(context_lengths):
        raise ValueError(
            f"block_table, context_lengths: must have {query.shape[0]} rows, as query; got {len(block_table)} and "
            f"{len(context_lengths)}"
        )
    heads, shared = query.shape[2], key_cache.shape[2]
    if heads and (not shared or heads % shared):
        raise ValueError(f"query: has {heads} heads, must have a multiple of the {shared} of key_cache")


@takes_choices
def attention_enclosure(
    query: np.ndarray,
    key_cache: np.ndarray,
    value_cache: np.ndarray,
    block_table: np.ndarray,
    context_lengths: np.ndarray,
    key_scale: float | np.ndarray | None = None,
    value_scale: float | np.ndarray | None = None,
    softmax_scale: float | np.ndarray = 1.0,
    soft_cap: float | np.ndarray | None = None,
    *,
    cache_format: str,
    input_format: str,
    granularity: str = "tensor",
    mask: str = "causal",
    window: int | None = None,
    float_accumulator: Accumulator = Accumulator.FLOAT32,
    weight_precision: WeightPrecision = WeightPrecision.FLOAT32,
    probability_precision: ProbabilityPrecision = ProbabilityPrecision.FLOAT32,
    softmax_parts: SoftmaxParts = SoftmaxParts.ONE,
    function_ulps: float = 4.0,
    normaliser_epsilon: float = 0.0,
) -> Enclosure:
    """Return the admissible results of attention over a paged cache.

    Parameters
    ----------
    query : ndarray of float, shape (S, Q, H, D)
        S sequences, Q tokens each, the last of its context; H heads.
    key_cache, value_cache : ndarray, shapes (C, P, G, D) and (C, P, G, E)
        Codes: C blocks of P slots, G heads, each shared by H / G consecutive heads of the query.
    block_table : ndarray of int, shape (S, B)
        The blocks of each sequence in the order of its context.
    context_lengths : ndarray of int, shape (S,)
        Slots that are filled. A token that sees none, as of an empty context, gives zeros.
    key_scale, value_scale : float, ndarray or None
        What codes are multiplied by, positive, in the shapes of the granularity, of `kivi` (G, D) and (C, P, G); what
        no context reaches is not looked at. None for 1.
    softmax_scale : float
        tau, often ``1 / sqrt(D)``; positive.
    soft_cap : float or None
        c, positive; None for no cap.
    cache_format, input_format : str
        Of the caches, and of query and results.
    granularity : {"tensor", "head", "kivi"}
        What shares a scale (`lowbit_cts.reference.kv_cache`).
    mask, window :
        As `visible`.
    float_accumulator, weight_precision, probability_precision, softmax_parts, function_ulps, normaliser_epsilon :
        See `lowbit_cts.kernels.semantics.Semantics`. By `weight_precision` keys and values are dequantized.

    Returns
    -------
    Enclosure, shape (S, Q, H, E)
        Where a context holds keys that are not finite, a head of it may give anything; so may one whose query is not,
        and the columns in which values are not.

    Raises
    ------
    ValueError
        Shapes that do not fit, heads that the cache's do not divide, scales or caps that are not positive and finite,
        an unknown mask or granularity, a window that is missing or not positive, a context that is longer than the
        table covers, a block of it that the cache has not.
    """
    check(query, key_cache, value_cache, block_table, context_lengths)
    if mask not in MASKS:
        raise ValueError(f"mask: {mask!r} must be one of {', '.join(MASKS)}")
    if mask == "window" and (window is None or window < 1):
        raise ValueError(f"window: must be a positive integer; got {window}")
    for name, number in (("softmax_scale", softmax_scale), ("soft_cap", 1.0 if soft_cap is None else soft_cap)):
        check_positive(np.asarray(number, np.float64), name)
    arithmetic = Arithmetic(
        float_accumulator,
        None if probability_precision is ProbabilityPrecision.FLOAT32 else input_format,
        softmax_parts is SoftmaxParts.SEVERAL,
        function_ulps,
        normaliser_epsilon,
    )
    query = np.asarray(query, np.float64)
    blocks, block = key_cache.shape[:2]
    contexts = [slots(row, int(n), block, blocks) for row, n in zip(block_table, context_lengths, strict=True)]
    caches = tuple(
        Cache(of, codes, scales_of(of, scale, codes.shape, granularity), FORMATS[cache_format])
        for of, codes, scale in (("key", key_cache, key_scale), ("value", value_cache, value_scale))
    )
    exact, bound = (np.zeros((*query.shape[:3], value_cache.shape[3])) for _ in range(2))
    each = max(map(len, contexts), default=0) * key_cache.shape[2] * (query.shape[3] + exact.shape[3] + exact.shape[1])
    for part in _pieces(len(query), each) if exact.size else ():
        exact[part], bound[part] = _sequences(
            query[part], caches, contexts[part], (mask, window), (weight_precision, input_format),
            float(softmax_scale), None if soft_cap is None else float(soft_cap), arithmetic,
        )  # fmt: skip
    with np.errstate(invalid="ignore", over="ignore"):
        found = within(exact, np.where(np.isnan(exact), 0.0, bound), float_format(input_format))
    anything = np.isnan(exact)
    return Enclosure(found.exact, np.where(anything, -np.inf, found.lo), np.where(anything, np.inf, found.hi))


@takes_choices
def probabilities_room(
    context: int,
    input_format: str,
    *,
    float_accumulator: Accumulator = Accumulator.FLOAT32,
    probability_precision: ProbabilityPrecision = ProbabilityPrecision.FLOAT32,
    softmax_parts: SoftmaxParts = SoftmaxParts.ONE,
    function_ulps: float = 4.0,
    normaliser_epsilon: float = 0.0,
) -> float:
    """Return how far the probabilities of a context, each a result, may be from 1 in sum; inf of parts.

    Parameters
    ----------
    context : int
        Slots.
    input_format : str
        Of the results.
    float_accumulator, probability_precision, softmax_parts, function_ulps, normaliser_epsilon :
        As `attention_enclosure`. Errors of scores and of exp have no part in it: numerator and normaliser share them,
        unless parts are combined by logarithms.
    """
    if softmax_parts is SoftmaxParts.SEVERAL:
        return float("inf")
    output = float_format(input_format)
    unit = max(float_accumulator.unit_roundoff, _U32)
    n = float_accumulator.roundings(np.asarray(context), context) + context + _EPILOGUE
    adding = float(gamma(n, unit)) + 2 * normaliser_epsilon
    rounded = (1 + output.unit_roundoff) ** (2 if probability_precision is ProbabilityPrecision.ACTIVATIONS else 1)
    if adding >= 1:
        return float("inf")
    return (1 + adding) / (1 - adding) * rounded - 1 + 2 * context * output.smallest


def attention(*arguments: Any, **parameters: Any) -> np.ndarray:
    """Return the results of exact arithmetic, rounded once; arguments and parameters as `attention_enclosure`."""
    return attention_enclosure(*arguments, **parameters).exact


@dataclass(frozen=True)
class _Factors:
    """What sums of products are multiplied by: tau, c or None, and scales of codes that may be added unscaled."""

    softmax: float
    cap: float | None
    keys: np.ndarray
    values: np.ndarray


def _sequences(
    query: np.ndarray,
    caches: tuple[Cache, ...],
    contexts: list[np.ndarray],
    masked: tuple[str, int | None],
    precision: tuple[WeightPrecision, str],
    softmax_scale: float,
    soft_cap: float | None,
    arithmetic: Arithmetic,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the results of sequences (S, Q, H, D) whose contexts are so many slots, and their bounds, (S, Q, H, E).

    All are computed at once, on slots up to the longest context, of which each sees its own.
    """
    count, tokens, heads, size = query.shape
    shared, longest = caches[0].codes.shape[2], max(map(len, contexts))
    group = heads // shared
    if not longest:
        nothing = np.zeros((count, tokens, heads, caches[1].codes.shape[3]))
        return nothing, nothing
    held = np.arange(longest) < np.array([len(slots) for slots in contexts])[:, None]
    at = np.zeros(held.shape, np.int64)
    at[held] = np.concatenate(contexts)
    seen = np.zeros((count, tokens, longest), bool)
    for sees, own in zip(seen, contexts, strict=True):
        sees[:, : len(own)] = visible(tokens, len(own), *masked)
    rows = query.reshape(count, tokens, shared, group, size).swapaxes(1, 2)
    rows = rows.reshape(count * shared, tokens * group, size)
    factors = _Factors(softmax_scale, soft_cap, *(cache.apart(count) for cache in caches))
    keys, values = (cache.numbers(at, held) for cache in caches)
    of_rows = np.repeat(np.repeat(seen, group, axis=1), shared, axis=0)
    found = _attended(rows, keys, values, of_rows, factors, precision, arithmetic)
    exact, bound = (
        x.reshape(count, shared, tokens, group, -1).swapaxes(1, 2).reshape(count, tokens, heads, x.shape[2])
        for x in found
    )
    return exact, bound


def _attended(
    query: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    seen: np.ndarray,
    factors: _Factors,
    precision: tuple[WeightPrecision, str],
    arithmetic: Arithmetic,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the results of rows of the query (B, R, D) on their own keys (B, N, D) and values (B, N, E).

    With bounds of their error, both (B, R, E); NaN where anything may come. `seen` is (B, R, N).
    """
    rows, columns = query.shape[1], values.shape[2]
    q, k, v = (np.where(np.isfinite(x), x, 0.0) for x in (query, keys, values))
    of_keys, of_values = (dequantized(exactly(x), *precision) for x in (k, v))
    with np.errstate(over="ignore", invalid="ignore"):
        turned = Operand(*(x.swapaxes(1, 2) for x in (of_keys.values, of_keys.magnitude, of_keys.error)))
        t, error, flat = _scores(inner_products(exactly(q), turned), factors, arithmetic)
        flat = (flat | ~seen).all(axis=2).reshape(-1)
        t, error, each = (x.reshape(-1, x.shape[2]) for x in (t, error, seen))
        head = np.repeat(np.arange(len(query)), rows)
        y, bound = (np.zeros((len(t), columns)) for _ in range(2))
        for part in _pieces(len(y), v[0].size):
            own = Operand(*(x[head[part]] for x in (of_values.values, of_values.magnitude, of_values.error)))
            scale = factors.values[head[part], 0]
            y[part], bound[part] = _weighted(t[part], error[part], each[part], flat[part], own, scale, arithmetic)
    wild_rows = ~np.isfinite(query).all(axis=2) | ~np.isfinite(keys).all(axis=(1, 2))[:, None]
    wild = wild_rows[..., None] | ~np.isfinite(values).all(axis=1)[:, None]
    y, bound = y.reshape(wild.shape), bound.reshape(wild.shape)
    sighted = np.expand_dims(seen.any(axis=2), 2)
    return np.where((wild & sighted) | ~np.isfinite(bound), np.nan, y), bound


def _pieces(rows: int, each: int) -> Iterator[slice]:
    """Return slices of rows, as many at once as can be held, of so many elements each."""
    step = max(1, _AT_ONCE // max(1, each))
    return (slice(start, start + step) for start in range(0, rows, step))


def _scores(sums: Sums, factors: _Factors, arithmetic: Arithmetic) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return scores, how far a kernel's may be from them, and where they are sums of zeros, all (B, R, N).

    Inf where a sum may overflow.
    """
    accumulator, tau, scale = arithmetic.accumulator, factors.softmax, factors.keys
    s, magnitude = sums.value * tau, (sums.magnitude + sums.error) * tau
    adding = accumulator.error(sums.terms, sums.length, magnitude) + 4 * _U64 * np.abs(s)
    error = np.where(accumulator.exact(sums.magnitude, sums.quantum), 0.0, adding) + sums.error * tau
    scaling = gamma(_SCORE, arithmetic.unit_roundoff) * magnitude + _SCORE * _TINY * np.maximum(1, scale * tau)
    # Codes may be added before either scale, and either scale be first.
    most = 2 * sums.magnitude / scale * np.maximum(1, scale) * max(1.0, tau)
    zeros = magnitude == 0
    error = np.where(most < accumulator.range.maximum, np.where(zeros, 0.0, error + scaling), np.inf)
    cap = factors.cap
    if cap is None:
        return s, error, zeros
    t, moved = cap * np.tanh(s / cap), error + 2 * _U32 * np.abs(s)
    within_cap = np.maximum(cap * np.tanh((s + moved) / cap) - t, t - cap * np.tanh((s - moved) / cap))
    capping = within_cap + (arithmetic.step + 4 * _U32) * np.abs(t) + 2 * _TINY
    return t, np.where(np.isinf(error), np.inf, np.where(zeros, 0.0, capping)), zeros


def _larger(t: np.ndarray, error: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return how many of the other seen scores may come out above each, (R, N); 0 where it is not seen."""
    slots = t.shape[1]
    highest, lowest = np.where(seen, t + error, -np.inf), t - error
    # In order, those that may be highest before those that may be as low: what is not above a score stands before it.
    order = np.argsort(np.concatenate([highest, lowest], axis=1), axis=1, kind="stable")
    before = np.cumsum(order < slots, axis=1)
    not_above = np.empty_like(before)
    np.put_along_axis(not_above, order, before, axis=1)
    return np.where(seen, slots - not_above[:, slots:] - (error > 0), 0)


def _weighted(
    t: np.ndarray,
    error: np.ndarray,
    seen: np.ndarray,
    flat: np.ndarray,
    values: Operand,
    scale: np.ndarray,
    arithmetic: Arithmetic,
) -> tuple[np.ndarray, np.ndarray]:
    """Return values (R, N, E) weighted by the softmax of scores (R, N) that err, and a bound of their error, (R, E).

    `flat` are the rows of which all scores are zeros without a rounding, `scale` (R, 1) is what sums of codes may be
    multiplied by.
    """
    accumulator, unit, step = arithmetic.accumulator, arithmetic.unit_roundoff, arithmetic.step
    counts = seen.sum(axis=1)
    lowest = np.where(seen, t, -np.inf)
    top = lowest.max(axis=1, keepdims=True, initial=-np.inf)
    top = np.where(np.isfinite(top), top, 0.0)
    weights = np.exp(lowest - top)
    total = weights.sum(axis=1, keepdims=True)
    p = weights / np.where(total == 0, 1.0, total)
    size = np.abs(values.values)
    y = (p[..., None] * values.values).sum(axis=1)

    # What the numerator and the normaliser share.
    rises = _larger(t, error, seen)
    argument = _ARGUMENT * _U32 * (np.abs(t) + np.abs(top))
    theta = error + argument + (1 + rises) * step / (1 - step)
    theta = np.where(seen & ~flat[:, None], theta, 0.0)
    logs = np.zeros(theta.shape)
    if arithmetic.parts:  # parts weigh what the logarithms of their sums say, whose exp need not add up to 1
        logs = 2 * argument + 2 * step + 4 * _U32 * (1 + np.log(np.maximum(counts, 1)))[:, None]
    tilt = np.exp(theta.max(axis=1, keepdims=True, initial=0.0))
    apart = np.abs(values.values - y[:, None])
    shared = ((p * np.expm1(theta) * tilt)[..., None] * apart).sum(axis=1)
    shared = np.fmin(shared, (seen[..., None] * apart).max(axis=1, initial=0.0))  # a mean of the values it stays

    # What they do not: additions, rounded probabilities, dequantized values.
    heavy = np.where(seen, np.fmin(p * np.exp(theta) * tilt, 1.0), 0.0)
    terms = counts[:, None] * (2 if arithmetic.parts else 1)
    n = accumulator.roundings(terms, int(terms.max(initial=0))) + rises + _EPILOGUE
    apiece = gamma(n, unit) + gamma(counts + 8, _U64)[:, None] + (1 + gamma(n, unit)) * np.expm1(logs)
    adding = np.where(seen, heavy * apiece, 0.0)[..., None]
    own = (adding * (values.magnitude + values.error) + heavy[..., None] * values.error).sum(axis=1)
    rounded, least = 0.0, _TINY
    if arithmetic.probabilities is not None:
        fmt = float_format(arithmetic.probabilities)
        rounded, least = fmt.unit_roundoff, max(least, fmt.smallest)
    own = own + rounded * np.maximum((heavy[..., None] * size).sum(axis=1), (heavy[..., None] * apart).sum(axis=1))
    whole = (seen[..., None] * size).sum(axis=1)
    below = (least + accumulator.range.smallest_normal) * (whole + counts[:, None] * abs(y))
    normaliser = gamma(n.max(axis=1, keepdims=True, initial=0), unit) + 2 * arithmetic.epsilon  # of a sum of 1 and more
    bound = shared + own + below
    bound = (bound + normaliser / (1 - normaliser) * (np.abs(y) + bound)) * (1 + 2.0**-30)
    unscaled = 2 * whole / np.minimum(1.0, scale)
    overflows = (unscaled > accumulator.range.maximum) & (bound > 0)
    lost = (np.isinf(error) & seen).any(axis=1, keepdims=True) | (normaliser >= 1)
    bound = np.where(overflows | lost, np.inf, bound)
    return y, np.where(_exactly(p, counts, flat, seen, values, arithmetic), 0.0, bound)


def _exactly(
    p: np.ndarray, counts: np.ndarray, flat: np.ndarray, seen: np.ndarray, values: Operand, arithmetic: Arithmetic
) -> np.ndarray:
    """Return where no kernel rounds, (R, E): weights of 1, a power of two of them, and values that add exactly."""
    sums = (seen[..., None] * values.magnitude).sum(axis=1)
    of_values = np.where(seen[..., None], quantum(values.values), np.inf)
    finest = of_values.min(axis=1, initial=np.inf)
    n = np.maximum(counts, 1)[:, None]
    fmt = float_format(arithmetic.probabilities or "float32")
    even = (np.frexp(n)[0] == 0.5) & representable(1.0 / n, fmt) & (n <= 2.0**arithmetic.accumulator.bits)
    whole = arithmetic.accumulator.exact(sums, finest) & arithmetic.accumulator.exact(sums / n, finest / n)
    unmoved = ((seen[..., None] * values.error) == 0).all(axis=1)
    nothing = (sums == 0) & unmoved
    one_sum = not arithmetic.parts and arithmetic.epsilon == 0
    return nothing | (flat[:, None] & even & whole & unmoved & one_sum)
