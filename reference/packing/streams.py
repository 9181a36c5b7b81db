"""Streams: codes of any width, one after another in the bits of an array of words, from the lowest bit on."""

from math import lcm

import numpy as np


def _period(bits: int, width: int) -> tuple[int, int]:
    """Return how many codes fill how many words without a rest."""
    whole = lcm(bits, width)
    return whole // bits, whole // width


def word_count(codes: int, bits: int, width: int) -> int:
    """Return how many words of `width` bits hold so many codes."""
    return -(-codes * bits // width)


def pack_stream(fields: np.ndarray, bits: int, carrier: np.dtype) -> np.ndarray:
    """Return words whose bits are those of the fields, the first field in the lowest bits of the first word.

    Parameters
    ----------
    fields : ndarray of unsigned int, shape (..., n)
        Values below ``2**bits``, not checked.
    bits : int
        1 to 8. A field may straddle two words.
    carrier : dtype
        An integer type; its bits count, not its sign.

    Returns
    -------
    ndarray of `carrier`, shape (..., ceil(n * bits / width)); bits after the last field are 0.
    """
    width = 8 * carrier.itemsize
    *lead, count = fields.shape
    codes, words = _period(bits, width)
    groups = -(-count // codes)
    if groups * codes != count:
        fields = np.concatenate([fields, np.zeros((*lead, groups * codes - count), fields.dtype)], axis=-1)
    unsigned = np.dtype(f"u{carrier.itemsize}")
    source = fields.reshape(*lead, groups, codes)
    target = np.zeros((*lead, groups, words), unsigned)
    for i in range(codes):
        field = source[..., i].astype(unsigned)
        word, place = divmod(i * bits, width)
        target[..., word] |= field << place  # what leaves the word stands in the next
        if place + bits > width:
            target[..., word + 1] |= field >> (width - place)
    stream = target.reshape(*lead, groups * words)[..., : word_count(count, bits, width)]
    return np.ascontiguousarray(stream).view(carrier)


def unpack_stream(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Return the first `count` fields of a stream: uint8, shape (..., count). The inverse of `pack_stream`."""
    width = 8 * words.dtype.itemsize
    *lead, given = words.shape
    codes, period = _period(bits, width)
    groups = -(-count // codes)
    source = np.zeros((*lead, groups * period), f"u{words.dtype.itemsize}")
    source[..., :given] = np.ascontiguousarray(words).view(source.dtype)[..., : groups * period]
    source = source.reshape(*lead, groups, period)
    target = np.empty((*lead, groups, codes), np.uint8)
    for i in range(codes):
        word, place = divmod(i * bits, width)
        field = source[..., word] >> place
        if place + bits > width:
            field = field | (source[..., word + 1] << (width - place))
        target[..., i] = field & ((1 << bits) - 1)
    return target.reshape(*lead, groups * codes)[..., :count]
