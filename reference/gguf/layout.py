"""The block formats of GGUF as data: where the bits of a block lie, and what its integers stand for.

A tensor's rows are cut into blocks of `elements` neighbours, each stored in `bytes` bytes by itself. An element is

    scale * level + offset,    level = levels[code],

where the scale is the block's ``d``, or ``d`` times the level of the scale of its group of `group` elements, or that
level alone; the offset is nothing, the block's ``m``, or ``-dmin`` times the group's min.

References
----------
.. [1] ggml-org/ggml, `src/ggml-common.h` (the structs ``block_*``, ``kvalues_iq4nl``, ``kvalues_fp4``), version 0.25.3.
.. [2] OCP Microscaling Formats (MX) v1.0, §5.3.3 (E2M1), §5.4.1 (E8M0).
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Field:
    """A part of a block, of `bytes` bytes.

    With `bits` 1, 2, 4 or 8 it holds unsigned codes in chunks of `run` bytes: code i of a chunk lies in byte i % run,
    `bits` (i // run) bits up. With `trits` it holds that many base-3 digits a byte, likewise in chunks. `bits` 6 is the
    packing of 8 scales and 8 mins that Q4_K and Q5_K share. Otherwise it is one little-endian float16.
    """

    name: str
    bytes: int
    bits: int = 0
    run: int = 1
    trits: int = 0


@dataclass(frozen=True)
class BlockFormat:
    """A block format.

    Attributes
    ----------
    name : str
        ggml's.
    elements, group : int
        Elements in a block, and those that share a scale.
    fields : tuple of Field
        In the order of memory.
    levels : ndarray of int8
        The level each code stands for.
    codes, scales : tuple of str
        The fields the codes and the groups' scales are made of, that with the low bits first; the fields of trits one
        after the other. Empty when the block has one scale, ``d``.
    scale_levels : ndarray of float32
        The number each code of a group's scale stands for.
    """

    name: str
    elements: int
    group: int
    fields: tuple[Field, ...]
    levels: np.ndarray
    codes: tuple[str, ...] = ("qs",)
    scales: tuple[str, ...] = ()
    scale_levels: np.ndarray | None = None

    @property
    def bytes(self) -> int:
        """Bytes in a block."""
        return sum(field.bytes for field in self.fields)

    @property
    def groups(self) -> int:
        """Groups in a block."""
        return self.elements // self.group

    @property
    def bits_per_weight(self) -> float:
        """Bits an element takes, scales included."""
        return 8 * self.bytes / self.elements

    def has(self, name: str) -> bool:
        """Return whether the block has a field of that name."""
        return any(field.name == name for field in self.fields)


def _integers(low: int, high: int) -> np.ndarray:
    """Return the levels low .. high of the codes 0 .. high - low."""
    return np.arange(low, high + 1, dtype=np.int8)


_TWOS_COMPLEMENT = np.arange(256, dtype=np.uint8).view(np.int8)

# The 16 levels of IQ4_NL and IQ4_XS, denser around zero.
IQ4_LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)

# E2M1, twice: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and the negatives of those; code 8 is 0 here, not -0.
FP4_LEVELS = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)

# E8M0, halved since the levels are doubled: 2**(e - 128). 255, NaN in MX, is 2**127 here.
HALF_E8M0 = np.ldexp(1.0, np.arange(256) - 128).astype(np.float32)


def _half_ue4m3() -> np.ndarray:
    """Return half the numbers of E4M3 codes without regard to bit 7; 0 for 0x7f, which is NaN in OFP8, not for 0xff."""
    exponent, mantissa = np.arange(256) >> 3 & 15, np.arange(256) & 7
    values = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7)) / 2
    values[0x7F] = 0
    return values.astype(np.float32)


HALF_UE4M3 = _half_ue4m3()

_D, _M, _DMIN = Field("d", 2), Field("m", 2), Field("dmin", 2)
_NIBBLES = Field("qs", 16, bits=4, run=16)
_FIFTH_BITS = Field("qh", 4, bits=1, run=1)

BLOCK_FORMATS: dict[str, BlockFormat] = {
    fmt.name: fmt
    for fmt in [
        BlockFormat("Q4_0", 32, 32, (_D, _NIBBLES), _integers(-8, 7)),
        BlockFormat("Q4_1", 32, 32, (_D, _M, _NIBBLES), _integers(0, 15)),
        BlockFormat("Q5_0", 32, 32, (_D, _FIFTH_BITS, _NIBBLES), _integers(-16, 15), ("qs", "qh")),
        BlockFormat("Q5_1", 32, 32, (_D, _M, _FIFTH_BITS, _NIBBLES), _integers(0, 31), ("qs", "qh")),
        BlockFormat("Q8_0", 32, 32, (_D, Field("qs", 32, bits=8, run=32)), _TWOS_COMPLEMENT),
        BlockFormat(
            "Q2_K", 256, 16,
            (Field("scales_and_mins", 16, bits=4, run=16), Field("qs", 64, bits=2, run=32), _D, _DMIN),
            _integers(0, 3), scales=("scales_and_mins",), scale_levels=_integers(0, 15),
        ),
        BlockFormat(
            "Q3_K", 256, 16,
            (Field("hmask", 32, bits=1, run=32), Field("qs", 64, bits=2, run=32),
             Field("scales_l", 8, bits=4, run=8), Field("scales_h", 4, bits=2, run=4), _D),
            _integers(-4, 3), ("qs", "hmask"), ("scales_l", "scales_h"), _integers(-32, 31),
        ),
        BlockFormat(
            "Q4_K", 256, 32,
            (_D, _DMIN, Field("scales_and_mins", 12, bits=6), Field("qs", 128, bits=4, run=32)),
            _integers(0, 15), scales=("scales_and_mins",), scale_levels=_integers(0, 63),
        ),
        BlockFormat(
            "Q5_K", 256, 32,
            (_D, _DMIN, Field("scales_and_mins", 12, bits=6), Field("qh", 32, bits=1, run=32),
             Field("qs", 128, bits=4, run=32)),
            _integers(0, 31), ("qs", "qh"), ("scales_and_mins",), _integers(0, 63),
        ),
        BlockFormat(
            "Q6_K", 256, 16,
            (Field("ql", 128, bits=4, run=64), Field("qh", 64, bits=2, run=32),
             Field("scales", 16, bits=8, run=16), _D),
            _integers(-32, 31), ("ql", "qh"), ("scales",), _TWOS_COMPLEMENT,
        ),
        BlockFormat("IQ4_NL", 32, 32, (_D, _NIBBLES), IQ4_LEVELS),
        BlockFormat(
            "IQ4_XS", 256, 32,
            (_D, Field("scales_h", 2, bits=2), Field("scales_l", 4, bits=4), Field("qs", 128, bits=4, run=16)),
            IQ4_LEVELS, ("qs",), ("scales_l", "scales_h"), _integers(-32, 31),
        ),
        BlockFormat("MXFP4", 32, 32, (Field("e", 1, bits=8), _NIBBLES), FP4_LEVELS, ("qs",), ("e",), HALF_E8M0),
        BlockFormat(
            "NVFP4", 64, 16, (Field("d", 4, bits=8), Field("qs", 32, bits=4, run=8)),
            FP4_LEVELS, ("qs",), ("d",), HALF_UE4M3,
        ),
        BlockFormat(
            "TQ1_0", 256, 256,
            (Field("qs", 32, trits=5, run=32), Field("qs_tail", 16, trits=5, run=16),
             Field("qh", 4, trits=4, run=4), _D),
            _integers(-1, 1), ("qs", "qs_tail", "qh"),
        ),
        BlockFormat("TQ2_0", 256, 256, (Field("qs", 64, bits=2, run=32), _D), _integers(-1, 2)),
    ]
}  # fmt: skip


def block_format(name: str) -> BlockFormat:
    """Return the block format of that name; ValueError with the admissible names otherwise."""
    if name not in BLOCK_FORMATS:
        raise ValueError(f"format: {name!r} is not a block format; admissible: {', '.join(BLOCK_FORMATS)}")
    return BLOCK_FORMATS[name]
