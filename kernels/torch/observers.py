"""Calibration observers in torch: torch.ao's own, and searches in float64 over all candidates at once."""

import math

import torch
from torch import Tensor

from lowbit_cts.kernels import Backend, BinPoint, BinSearch, Precision, Semantics

_WIDE = Semantics(intermediate=Precision.FLOAT64)
_STEP = 1e-5
_PARTS = 16
#: Steps of the greedy search that are tried at once.
_TRIED = 32


def _ends(low: Tensor | None, high: Tensor) -> tuple[float, float]:
    """Return the ends of a range as numbers; of magnitudes it begins with 0."""
    ends = 0.0 if low is None else float(low), float(high)
    if not ends[0] < ends[1]:
        raise ValueError(f"low, high: must be a range with a width; got {ends[0]}, {ends[1]}")
    return ends


def _filled(counts: Tensor) -> Tensor:
    if counts.numel() == 0 or not counts.any():
        raise ValueError("counts: must not be all zero")
    return counts.double()


def _pair(low: float, high: float, like: Tensor) -> tuple[Tensor, Tensor]:
    ends = torch.tensor([low, high], dtype=torch.float64, device=like.device).float()
    return ends[0].clone(), ends[1].clone()


def _mirrored(end: float, like: Tensor) -> tuple[Tensor, Tensor]:
    return _pair(-end, end, like)


def _positions(tensor: Tensor, count: int) -> Tensor:
    return torch.arange(count, device=tensor.device, dtype=torch.float64)


def _edges(low: float, high: float, bins: int, like: Tensor) -> Tensor:
    return low + _positions(like, bins + 1) * ((high - low) / bins)


def _histogram(x, low, high, *, bins):
    low, high = _ends(low, high)
    x = x.double()
    x = x[(x >= low) & (x <= high)]
    at = torch.bucketize(x, _edges(low, high, bins, x), right=True) - 1
    return torch.bincount(at.clamp(0, bins - 1), minlength=bins).int()


def _histc(x, low, high, *, bins):
    low, high = _ends(low, high)
    return torch.histc(x, bins, min=low, max=high).int()


def _widen(counts, low, high, new_low, new_high, *, histogram, growth, capacity):
    (low, high), (new_low, new_high), bins = _ends(low, high), _ends(new_low, new_high), counts.numel()
    width = (high - low) / bins
    if growth == "same_bins":
        if (low, high) != (new_low, new_high):
            middles = low + (_positions(counts, bins * _PARTS) + 0.5) * (width / _PARTS)
            at = torch.bucketize(middles, _edges(new_low, new_high, bins, counts), right=True) - 1
            weights = counts.double().repeat_interleave(_PARTS) / _PARTS
            counts = torch.bincount(at.clamp(0, bins - 1), weights, minlength=bins).float()
        return counts.clone(), *_pair(new_low, new_high, counts)
    over = (max(-new_low, new_high) - high) / width
    added = 0 if over <= 0 else math.floor(over) + 1 if histogram == "values" else math.ceil(over)
    before = added if histogram == "values" else 0
    behind = capacity - before - bins
    if behind < added:
        raise ValueError(f"capacity: must be at least {before + bins + added}; got {capacity}")
    grown = torch.nn.functional.pad(counts, (before, behind))
    return grown, *_pair(low - before * width, high + added * width, counts)


def _moving_average(x, constant):
    x = x.float()
    low, high = x.amin(1), x.amax(1)
    ends = [low[0], high[0]]
    for batch in range(1, x.shape[0]):
        ends = [m + constant * (new[batch] - m) for m, new in zip(ends, (low, high), strict=True)]
    return tuple(end.clone() for end in ends)


def _parts(percentile: Tensor, histogram: str) -> list[float]:
    part, cut = float(percentile) / 100, (100 - float(percentile)) / 200
    return [part] if histogram == "magnitudes" else [cut, 1 - cut]


def _percentile(x, percentile, *, histogram):
    x = x.double().abs() if histogram == "magnitudes" else x.double()
    parts = torch.tensor(_parts(percentile, histogram), dtype=torch.float64, device=x.device)
    ends = torch.quantile(x, parts).float()
    return (-ends[0], ends[0].clone()) if histogram == "magnitudes" else (ends[0].clone(), ends[1].clone())


def _percentile_of_histogram(counts, low, high, percentile, *, histogram):
    (low, high), bins, counts = _ends(low, high), counts.numel(), _filled(counts)
    sums = torch.cumsum(counts / counts.sum(), 0)
    parts = torch.tensor(_parts(percentile, histogram), dtype=torch.float64, device=counts.device)
    ends = [low + at * ((high - low) / bins) for at in torch.searchsorted(sums, parts).tolist()]
    return _mirrored(ends[0], counts) if histogram == "magnitudes" else _pair(ends[0], ends[1], counts)


def _least_error(counts: Tensor, high: float, bits: int, start: int) -> tuple[Tensor, Tensor]:
    bins, largest = counts.numel(), 2 ** (bits - 1) - 1
    if bins <= start:
        raise ValueError(f"start: must be less than the number of bins, {bins}; got {start}")
    middles = (_positions(counts, bins) + 0.5) * (high / bins)
    scale = middles[start:, None] / largest
    quantized = (middles / scale).round_().clamp_(max=largest).mul_(scale)
    error = quantized.sub_(middles).square_() @ counts
    return _mirrored(float(middles[start + int(error.argmin())]), counts)


def _path(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bounds that the greedy search tries, one pair after the other."""
    sums = counts.cumsum(0)
    total, sums = float(sums[-1]), sums.cpu()
    rounds = torch.full((round(1 / _STEP) + 3,), _STEP, dtype=torch.float64)
    lower = rounds.cumsum(0)
    upper = torch.cat([torch.ones(1, dtype=torch.float64), -rounds]).cumsum(0)[1:]
    reached = torch.searchsorted(sums, lower * total)
    fallen = 1 - torch.searchsorted(sums, upper * total, right=True)  # ascending: the negative of the bin
    i = j = first = 0
    last = counts.numel() - 1
    tried = []
    while first < last and (lower[i - 1] if i else 0.0) < (upper[j - 1] if j else 1.0):
        left, right = max(first, min(int(reached[i]), last)), min(last, max(-int(fallen[j]), first))
        if left - first > last - right:
            i, first = i + 1, left
        elif right < last:
            j, last = j + 1, right
        else:
            j = min(int(torch.searchsorted(fallen, -last, right=True)), fallen.numel() - 1)
            continue
        tried.append((first, last))
    tried = torch.tensor(tried or [(0, counts.numel() - 1)], dtype=torch.float64, device=counts.device)
    return tried[:, :1], tried[:, 1:]


def _spread_errors(counts: Tensor, width: float, first: Tensor, last: Tensor, levels: int) -> Tensor:
    """Return the errors of ranges, a row each, bins spread evenly."""
    share = width * (last - first + 1) / levels
    begin = (_positions(counts, counts.numel()) - first) * width
    end = begin + width
    of_begin, of_end = ((place / share).floor_().clamp_(0, levels - 1) for place in (begin, end))
    left, right = begin - (of_begin + 0.5) * share, end - (of_end + 0.5) * share
    return (right**3 - left**3 + 2 * (of_end - of_begin) * (share / 2) ** 3) @ counts


def _greedy(counts: Tensor, low: float, high: float, bits: int) -> tuple[Tensor, Tensor]:
    width, (firsts, lasts) = (high - low) / counts.numel(), _path(counts)
    found, least = [0.0, 0.0], math.inf
    for first, last in zip(firsts.split(_TRIED), lasts.split(_TRIED), strict=True):
        errors = _spread_errors(counts, width, first, last, 2**bits).tolist()
        for step, error in zip(torch.cat([first, last], 1).tolist(), errors, strict=True):
            if error > least:
                return _pair(low + found[0] * width, low + (found[1] + 1) * width, counts)
            found, least = step, error
    return _pair(low + found[0] * width, low + (found[1] + 1) * width, counts)


def _mse(counts, low, high, *, histogram, bits, start):
    ends, counts = _ends(low, high), _filled(counts)
    return _greedy(counts, *ends, bits) if histogram == "values" else _least_error(counts, ends[1], bits, start)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    return torch.where(p > 0, p * (p / q).log(), 0.0).sum(1).nan_to_num(torch.inf)


def _entropy(counts, low, high, *, histogram, levels):
    (low, high), bins, counts = _ends(low, high), counts.numel(), _filled(counts)
    if bins < levels:
        raise ValueError(f"levels: must be at most the number of bins, {bins}; got {levels}")
    middle, place = bins // 2, torch.arange(bins, device=counts.device)
    if histogram == "magnitudes":
        end = torch.arange(levels, bins + 1, device=counts.device)
        first = torch.zeros_like(end)
    else:
        reach = torch.arange(levels // 2, middle + 1, device=counts.device)
        first, end = middle - reach, (middle + reach + 1).clamp(max=bins)
    sums = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    before, behind = sums[first], sums[-1] - sums[end]
    rows = torch.arange(end.numel(), device=counts.device)
    inside = (place >= first[:, None]) & (place < end[:, None])
    window = torch.where(inside, counts, 0.0)
    p = window.clone()
    p[rows, first] += before
    p[rows, end - 1] += behind
    level = torch.where(inside, (place - first[:, None]) * levels // (end - first)[:, None], 0)
    filled = torch.zeros(end.numel(), levels, dtype=torch.float64, device=counts.device)
    total = filled.scatter_add(1, level, window)
    filled = filled.scatter_add(1, level, (window > 0).double())
    q = torch.where(window > 0, (total / filled.clamp(min=1)).gather(1, level), 0.0)
    best, width = int(_divergence(p, q).argmin()), (high - low) / bins
    if histogram == "magnitudes":
        return _mirrored(int(end[best]) * width, counts)
    return _pair(low + int(first[best]) * width, low + int(end[best]) * width, counts)


def _of_moving_average_observer(x, constant):
    from torch.ao.quantization import MovingAverageMinMaxObserver

    observer = MovingAverageMinMaxObserver(averaging_constant=float(constant)).to(x.device)
    for batch in x:
        observer(batch)
    if not observer.min_val.isfinite():
        raise ValueError(f"x: must hold batches of samples; has shape {tuple(x.shape)}")
    return observer.min_val, observer.max_val


def _observer(counts: Tensor, low: Tensor, high: Tensor):
    """Return torch's observer that has seen a histogram."""
    from torch.ao.quantization import HistogramObserver

    _ends(low, high)
    observer = HistogramObserver(bins=counts.numel()).to(counts.device)
    observer.histogram.copy_(counts)
    observer.min_val, observer.max_val = low.clone(), high.clone()
    return observer


def _search_of_histogram_observer(counts, low, high):
    low, high = _observer(_filled(counts), low, high)._non_linear_param_search()
    return low, high


def _histogram_observer_combined(counts, low, high, new_low, new_high):
    observer = _observer(counts, low, high)
    nothing = torch.zeros_like(counts)
    wider = observer._combine_histograms(counts, low, high, nothing, new_low, new_high)
    return wider.float(), new_low.clone(), new_high.clone()


def register_native(backend: Backend) -> None:
    """Register torch.histc and the observers of torch.ao.quantization."""
    by_position = Semantics(bin_search=BinSearch.POSITION)
    values = {"histogram": "values"}
    backend.implements("histogram", name="histc", semantics=by_position)(_histc)
    backend.implements("moving_average_range", name="MovingAverageMinMaxObserver")(_of_moving_average_observer)
    backend.implements("mse_range", name="HistogramObserver", supports=values)(_search_of_histogram_observer)
    backend.implements("widen_histogram", name="HistogramObserver", supports={**values, "growth": "same_bins"})(
        _histogram_observer_combined
    )


def register_composed(backend: Backend) -> None:
    """Register the searches in plain tensor operations; they branch on what they find, so they run eagerly."""
    backend.implements("histogram", name="composed", semantics=_WIDE)(_histogram)
    backend.implements("widen_histogram", name="composed", semantics=_WIDE)(_widen)
    backend.implements("moving_average_range", name="composed")(_moving_average)
    backend.implements("percentile_range", name="composed", semantics=_WIDE)(_percentile)
    backend.implements("histogram_percentile_range", name="composed", semantics=_WIDE)(_percentile_of_histogram)
    backend.implements(
        "mse_range",
        name="composed",
        semantics=Semantics(bin_point=BinPoint.CENTRE, intermediate=Precision.FLOAT64),
        supports={"bits": tuple(range(2, 9))},
    )(_mse)
    backend.implements("entropy_range", name="composed", semantics=_WIDE)(_entropy)
