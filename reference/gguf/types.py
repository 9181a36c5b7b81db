"""The types of a GGUF file as data: of tensors (ggml's, by name) and of metadata values (by code).

References
----------
.. [1] ggml-org/ggml, `include/ggml.h` (`enum ggml_type`), `src/ggml-common.h` (sizes of the blocks), `docs/gguf.md`
   (`gguf_metadata_value_type`); commit d99724f2.
"""

from dataclasses import dataclass

import numpy as np

BLOCKS = np.dtype(np.uint8)


@dataclass(frozen=True)
class GgmlType:
    """A type of tensors: rows are whole blocks of `block_elements` elements in `block_bytes` bytes.

    `carrier` is the NumPy type the data is viewed in: the numbers themselves where a block is one number (bfloat16 as
    its uint16 code), bytes elsewhere.
    """

    name: str
    code: int
    block_elements: int
    block_bytes: int
    carrier: np.dtype = BLOCKS

    @property
    def bits_per_weight(self) -> float:
        """Bits an element takes, scales included."""
        return 8 * self.block_bytes / self.block_elements


def _number(name: str, code: int, carrier: str) -> GgmlType:
    return GgmlType(name, code, 1, np.dtype(carrier).itemsize, np.dtype(carrier))


GGML_TYPES: dict[str, GgmlType] = {
    kind.name: kind
    for kind in [
        _number("F32", 0, "<f4"),
        _number("F16", 1, "<f2"),
        GgmlType("Q4_0", 2, 32, 18),
        GgmlType("Q4_1", 3, 32, 20),
        GgmlType("Q5_0", 6, 32, 22),
        GgmlType("Q5_1", 7, 32, 24),
        GgmlType("Q8_0", 8, 32, 34),
        GgmlType("Q8_1", 9, 32, 36),  # two fp16; gguf-py counts two float32 and says 40
        GgmlType("Q2_K", 10, 256, 84),
        GgmlType("Q3_K", 11, 256, 110),
        GgmlType("Q4_K", 12, 256, 144),
        GgmlType("Q5_K", 13, 256, 176),
        GgmlType("Q6_K", 14, 256, 210),
        GgmlType("Q8_K", 15, 256, 292),
        GgmlType("IQ2_XXS", 16, 256, 66),
        GgmlType("IQ2_XS", 17, 256, 74),
        GgmlType("IQ3_XXS", 18, 256, 98),
        GgmlType("IQ1_S", 19, 256, 50),
        GgmlType("IQ4_NL", 20, 32, 18),
        GgmlType("IQ3_S", 21, 256, 110),
        GgmlType("IQ2_S", 22, 256, 82),
        GgmlType("IQ4_XS", 23, 256, 136),
        _number("I8", 24, "i1"),
        _number("I16", 25, "<i2"),
        _number("I32", 26, "<i4"),
        _number("I64", 27, "<i8"),
        _number("F64", 28, "<f8"),
        GgmlType("IQ1_M", 29, 256, 56),
        _number("BF16", 30, "<u2"),
        GgmlType("TQ1_0", 34, 256, 54),
        GgmlType("TQ2_0", 35, 256, 66),
        GgmlType("MXFP4", 39, 32, 17),
        GgmlType("NVFP4", 40, 64, 36),
        GgmlType("Q1_0", 41, 128, 18),
        GgmlType("Q2_0", 42, 64, 18),
    ]
}

REMOVED_GGML_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}

STRING, ARRAY = 8, 9

# The other types of metadata values are numbers, and a NumPy type says which.
NUMBERS: dict[int, np.dtype] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
