"""Quantization to Q4_K, Q5_K and Q6_K in torch: the scales that ggml tries, one after the other for all groups.

The sums over a group are torch's, in its order, so that of two scales nearly as good another may win than in ggml; and
each scale is tried with the min of the plain one, where ggml goes on from the best so far.

Functions take blocks as float32 (n, 256) and give uint8 (n, bytes of a block).
"""

import torch
from torch import Tensor


def _bytes_of(half: Tensor) -> Tensor:
    return half.view(torch.uint8)


def _symmetric_scale(x: Tensor) -> Tensor:
    """Return the scales of groups, float32 (n, groups), by least squares weighted with x**2."""
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    inverse = torch.where(largest != 0, 1 / largest, torch.zeros_like(largest))
    weight = x * x
    weighted = weight * x
    scale = torch.zeros_like(largest)
    explained = torch.zeros_like(largest)
    for step in range(-9, 10):
        codes = (x * (inverse * -(32 + 0.1 * step))).round().clamp(-32, 31)
        sum_xl = (weighted * codes).sum(-1, keepdim=True)
        found = sum_xl / (weight * codes.square()).sum(-1, keepdim=True)
        better = found * sum_xl > explained
        scale = torch.where(better, found, scale)
        explained = torch.where(better, found * sum_xl, explained)
    return scale[..., 0]


def to_q6_k(x: Tensor) -> Tensor:
    """Return blocks of Q6_K."""
    groups = x.unflatten(1, (16, 16))
    scale = _symmetric_scale(groups)
    d = scale.gather(1, scale.abs().argmax(1, keepdim=True)) / -128
    level = torch.where(d != 0, (scale / d).round().clamp(max=127), torch.zeros_like(scale))
    half = d.to(torch.float16)
    decoded = (half.float() * level)[..., None]
    codes = torch.where(decoded != 0, groups / decoded, torch.zeros_like(groups)).round().clamp(-32, 31) + 32
    codes = codes.to(torch.uint8).flatten(1).unflatten(1, (2, 4, 32))
    low = torch.cat([codes[:, :, i] & 15 | (codes[:, :, i + 2] & 15) << 4 for i in range(2)], -1)
    high = codes[:, :, 0] >> 4
    for i in range(1, 4):
        high = high | codes[:, :, i] >> 4 << 2 * i
    return torch.cat([low.flatten(1), high.flatten(1), level.to(torch.int8).view(torch.uint8), _bytes_of(half)], 1)


def _scale_and_min(x: Tensor, levels: int, start: float, count: int) -> tuple[Tensor, Tensor]:
    """Return scales and mins of groups, x ~ scale * code - min, by least squares weighted with rms(x) + |x|."""
    weight = (x * x).mean(-1, keepdim=True).sqrt() + x.abs()
    weighted = weight * x
    low = x.amin(-1, keepdim=True).clamp(max=0)
    shifted = x - low
    extent = x.amax(-1, keepdim=True) - low
    inverse = torch.where(extent > 0, 1 / extent, torch.zeros_like(extent))
    sum_w, sum_x = weight.sum(-1, keepdim=True), weighted.sum(-1, keepdim=True)

    scale, offset = extent / levels, low
    codes = (shifted * (inverse * levels)).round().clamp(0, levels)
    least = (weight * (scale * codes + offset - x).square()).sum(-1, keepdim=True)
    for step in range(count):
        codes = (shifted * (inverse * (start + 0.1 * step + levels))).round().clamp(0, levels)
        w_codes = weight * codes
        sum_l, sum_l2 = w_codes.sum(-1, keepdim=True), (w_codes * codes).sum(-1, keepdim=True)
        sum_xl = (weighted * codes).sum(-1, keepdim=True)
        determinant = sum_w * sum_l2 - sum_l * sum_l
        new_offset = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
        new_scale = torch.where(new_offset > 0, sum_xl / sum_l2, new_scale)
        new_offset = new_offset.clamp(max=0)
        error = (weight * (new_scale * codes + new_offset - x).square()).sum(-1, keepdim=True)
        better = (determinant > 0) & (error < least)
        scale, offset, least = (
            torch.where(better, new, old) for new, old in ((new_scale, scale), (new_offset, offset), (error, least))
        )
    return scale[..., 0], -offset[..., 0]


def _six_bits(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the codes of values >= 0 in units of the largest / 63, and that unit in float16."""
    step = values.amax(1, keepdim=True) / 63
    codes = torch.where(step > 0, values / step, torch.zeros_like(values)).round().clamp(0, 63)
    return codes.to(torch.uint8), step.to(torch.float16)


def _with_mins(x: Tensor, levels: int, start: float, count: int) -> tuple[Tensor, Tensor]:
    """Return the codes of elements, uint8 (n, 8, 32), and the 16 bytes that a block begins with."""
    groups = x.unflatten(1, (8, 32))
    (scales, d), (mins, dmin) = (_six_bits(values) for values in _scale_and_min(groups, levels, start, count))
    scale, offset = (d.float() * scales)[..., None], (dmin.float() * mins)[..., None]
    codes = torch.where(scale != 0, (groups + offset) / scale, torch.zeros_like(groups)).round().clamp(0, levels)
    low, high = torch.cat([scales[:, :4], mins[:, :4]], 1), torch.cat([scales[:, 4:], mins[:, 4:]], 1)
    rest = high[:, :4] & 15 | (high[:, 4:] & 15) << 4
    head = torch.cat([_bytes_of(d), _bytes_of(dmin), low | high >> 4 << 6, rest], 1)
    return codes.to(torch.uint8), head


def _nibbles(codes: Tensor) -> Tensor:
    return (codes[:, ::2] & 15 | (codes[:, 1::2] & 15) << 4).flatten(1)


def to_q4_k(x: Tensor) -> Tensor:
    """Return blocks of Q4_K."""
    codes, head = _with_mins(x, 15, -1.0, 21)
    return torch.cat([head, _nibbles(codes)], 1)


def to_q5_k(x: Tensor) -> Tensor:
    """Return blocks of Q5_K."""
    codes, head = _with_mins(x, 31, -0.5, 16)
    high = codes[:, 0] >> 4
    for group in range(1, 8):
        high = high | codes[:, group] >> 4 << group
    return torch.cat([head, high, _nibbles(codes)], 1)
