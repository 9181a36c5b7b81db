"""Blocks of bytes apart into their fields, and together: integers only, no arithmetic.

The *parts* of blocks are a dict of arrays, their first axis the blocks:

=============  ==============================  =================================================
key            type, shape                     what
=============  ==============================  =================================================
``codes``      uint8 (n, elements)             codes of the elements, in their order
``scales``     uint8 (n, groups)               codes of the groups' scales, where there are any
``mins``       uint8 (n, groups)               the groups' mins (Q2_K, Q4_K, Q5_K)
``d``          float16 (n,)                    scale of the block, where it has one
``m, dmin``    float16 (n,)                    min of the block (Q4_1, Q5_1), scale of its mins
=============  ==============================  =================================================

References
----------
.. [1] ggml-org/ggml, `src/ggml-quants.c`, version 0.25.3: ``dequantize_row_*``, ``get_scale_min_k4``.
"""

import numpy as np

from lowbit_cts.reference.gguf.layout import BlockFormat, Field

Parts = dict[str, np.ndarray]


def unpack_bits(data: np.ndarray, bits: int, run: int) -> np.ndarray:
    """Return the codes of a field, uint8 (n, 8 / bits * bytes), from its bytes, uint8 (n, bytes)."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    chunks = data.reshape(len(data), data.shape[1] // run, 1, run)
    return (chunks >> shifts & np.uint8((1 << bits) - 1)).reshape(len(data), 8 // bits * data.shape[1])


def pack_bits(codes: np.ndarray, bits: int, run: int) -> np.ndarray:
    """Return the bytes that `unpack_bits` takes apart; of the codes only the low `bits` bits are used."""
    size = codes.shape[1] * bits // 8
    chunks = (codes & np.uint8((1 << bits) - 1)).reshape(len(codes), size // run, 8 // bits, run)
    data = chunks[:, :, 0].copy()
    for place in range(1, 8 // bits):
        data |= chunks[:, :, place] << np.uint8(bits * place)
    return data.reshape(len(codes), size)


def unpack_trits(data: np.ndarray, trits: int, run: int) -> np.ndarray:
    """Return the base-3 digits of a field, the most significant first.

    A byte v stands for the fraction v / 256, and its digits are those of the fraction: multiplied by three, the digit
    is what passes 256. A byte that `pack_trits` never gives has digits, too.
    """
    chunks = data.reshape(len(data), data.shape[1] // run, 1, run)
    fractions = chunks * np.array([1, 3, 9, 27, 81], np.uint8)[:trits, None]  # modulo 256
    return (fractions.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(data), trits * data.shape[1])


def pack_trits(digits: np.ndarray, trits: int, run: int) -> np.ndarray:
    """Return the bytes that `unpack_trits` takes apart: ceil(256 N / 243), N the digits and zeros up to five."""
    size = digits.shape[1] // trits
    chunks = digits.reshape(len(digits), size // run, trits, run).astype(np.uint16)
    number = sum(chunks[:, :, place] * np.uint16(3 ** (4 - place)) for place in range(trits))
    return ((number * np.uint32(256) + 242) // 243).astype(np.uint8).reshape(len(digits), size)


def unpack_scales_and_mins(data: np.ndarray) -> np.ndarray:
    """Return 8 scales and 8 mins of 6 bits, uint8 (n, 16), from 12 bytes.

    Bytes 0..3 hold scales 0..3 and bytes 4..7 mins 0..3 in their low 6 bits. Bytes 8..11 hold the low 4 bits of
    scales and mins 4..7, whose high 2 bits are the high 2 bits of bytes 0..7.
    """
    first = data[:, :8] & np.uint8(63)
    second = unpack_bits(data[:, 8:], bits=4, run=4) | (data[:, :8] >> np.uint8(6) << np.uint8(4))
    return np.concatenate([first[:, :4], second[:, :4], first[:, 4:], second[:, 4:]], axis=1)


def pack_scales_and_mins(codes: np.ndarray) -> np.ndarray:
    """Return the 12 bytes that `unpack_scales_and_mins` takes apart."""
    first = np.concatenate([codes[:, 0:4], codes[:, 8:12]], axis=1)
    second = np.concatenate([codes[:, 4:8], codes[:, 12:16]], axis=1)
    high = first | (second >> np.uint8(4) << np.uint8(6))
    return np.concatenate([high, pack_bits(second, bits=4, run=4)], axis=1)


def parts_of(fmt: BlockFormat) -> dict[str, tuple[tuple[int, ...], int | None]]:
    """Return for each part of a block its shape, and the largest code (None where it is a float16)."""
    halves = {field.name: ((), None) for field in fmt.fields if not (field.bits or field.trits)}
    parts: dict[str, tuple[tuple[int, ...], int | None]] = {"codes": ((fmt.elements,), len(fmt.levels) - 1)}
    if fmt.scale_levels is not None:
        parts["scales"] = (fmt.groups,), len(fmt.scale_levels) - 1
        if fmt.has("scales_and_mins"):
            parts["mins"] = parts["scales"]
    return parts | halves


def _unpack_field(data: np.ndarray, field: Field) -> np.ndarray:
    if field.trits:
        return unpack_trits(data, field.trits, field.run)
    if field.bits == 6:
        return unpack_scales_and_mins(data)
    if field.bits:
        return unpack_bits(data, field.bits, field.run)
    return np.ascontiguousarray(data).view("<f2").astype(np.float16, copy=False)[:, 0]


def _pack_field(values: np.ndarray, field: Field) -> np.ndarray:
    if field.trits:
        return pack_trits(values, field.trits, field.run)
    if field.bits == 6:
        return pack_scales_and_mins(values)
    if field.bits:
        return pack_bits(values, field.bits, field.run)
    return values.astype("<f2").view(np.uint8).reshape(-1, 2)


def unpack(blocks: np.ndarray, fmt: BlockFormat) -> Parts:
    """Return the parts of blocks, uint8 (n, fmt.bytes)."""
    ends = np.cumsum([field.bytes for field in fmt.fields])
    found = {
        field.name: _unpack_field(data, field)
        for field, data in zip(fmt.fields, np.split(blocks, ends[:-1], axis=1), strict=True)
    }
    bits = {field.name: field.bits for field in fmt.fields}

    def joined(names: tuple[str, ...]) -> np.ndarray:
        codes, *high = (found.pop(name) for name in names)
        if bits[names[0]] == 0:
            return np.concatenate([codes, *high], axis=1)
        for part in high:
            codes = codes | part << np.uint8(bits[names[0]])
        return codes

    parts = {"codes": joined(fmt.codes)}
    if fmt.scales:
        parts["scales"] = joined(fmt.scales)
    if fmt.has("scales_and_mins"):
        parts["scales"], parts["mins"] = np.split(parts["scales"], 2, axis=1)
    return parts | found


def pack(parts: Parts, fmt: BlockFormat) -> np.ndarray:
    """Return the blocks, uint8 (n, fmt.bytes), of parts as `unpack` gives them."""
    found = dict(parts)
    bits = {field.name: field.bits for field in fmt.fields}

    def split(codes: np.ndarray, names: tuple[str, ...]) -> None:
        if bits[names[0]] == 0:
            sizes = [field.bytes * field.trits for field in fmt.fields if field.name in names]
            found.update(zip(names, np.split(codes, np.cumsum(sizes)[:-1], axis=1), strict=True))
            return
        found[names[0]] = codes
        for name in names[1:]:
            found[name] = codes >> np.uint8(bits[names[0]])

    if fmt.has("scales_and_mins"):
        found["scales"] = np.concatenate([parts["scales"], parts["mins"]], axis=1)
    if fmt.scales:
        split(found["scales"], fmt.scales)
    split(parts["codes"], fmt.codes)
    return np.concatenate([_pack_field(found[field.name], field) for field in fmt.fields], axis=1)
