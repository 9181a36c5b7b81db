"""A vendor's packings: right kernels, and the same with one planted fault each."""

import numpy as np

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.numpy import packing as plain
from lowbit_cts.reference.packing.packings import PACKINGS

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

_ALL = {"packing": tuple(PACKINGS), "bits": tuple(range(1, 9)), "signed": (False, True)}
_SCALES = {"format": ("float8_e8m0fnu", "float8_e4m3fn")}


# Right kernels ------------------------------------------------------------------------------------------------------


@right.implements("pack_codes", supports={"packing": ("low_first", "high_first"), "signed": (False, True)})
def nibbles(codes, *, packing):
    codes = np.pad(codes.view(np.uint8) & 15, ((0, 0), (0, codes.shape[1] % 2)))
    one, other = codes[:, ::2], codes[:, 1::2]
    return one | other << 4 if packing == "low_first" else one << 4 | other


@right.implements("unpack_codes", supports={"signed": (False, True)})
def low_nibble_first(words, *, signed):
    codes = np.stack([words & 15, words >> 4], axis=2).reshape(len(words), -1)
    return (codes ^ 8).view(np.int8) - np.int8(8) if signed else codes


@right.implements("pack_codes", supports={"packing": "gptq", "bits": (2, 3, 4, 8)})
def gptq_by_big_integers(codes, *, bits, out):
    rows, columns = codes.shape
    if rows * bits % 32:
        raise ValueError("codes do not fill their words")
    for column in range(columns):
        total = sum(int(code) << (bits * row) for row, code in enumerate(codes[:, column]))
        out[:, column] = np.frombuffer(total.to_bytes(rows * bits // 8, "little"), np.int32)


@right.implements("pack_codes", supports={"packing": "gptq_zeros_v1", "bits": (2, 4, 8)})
def zeros_field_by_field(codes, *, bits):
    each = 32 // bits
    fields = (codes.astype(np.int64) - 1) % (1 << bits)
    words = (fields.reshape(len(codes), -1, each) << (bits * np.arange(each))).sum(axis=2)
    return words.astype(np.uint32).view(np.int32)


@right.implements("unpack_codes", supports={"packing": "awq"})
def awq_by_masks(words):
    register = words.view(np.uint32)[:, :, None] >> np.array([0, 4, 8, 12], np.uint32)
    pairs = np.stack([register & 15, register >> 16 & 15], axis=3)
    return pairs.astype(np.uint8).reshape(len(words), -1)


@right.implements("swizzle_scales", supports=_SCALES)
def swizzles_scale_by_scale(scales, *, out):
    out[...] = 0
    tiles = -(-scales.shape[1] // 4)
    for m, c in np.ndindex(scales.shape):
        out[512 * (m // 128 * tiles + c // 4) + m % 32 * 16 + m % 128 // 32 * 4 + c % 4] = scales[m, c]


@right.implements("permute_scales_marlin", supports={"format": ("float16", "bfloat16")})
def permutes_by_a_list(scales, *, granularity):
    if granularity == "group":
        order = [i + 8 * j for i in range(8) for j in range(8)]
    else:
        order = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]
    return scales.reshape(-1, len(order))[:, order].reshape(scales.shape)


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {
    "high_nibble_first": "must be",
    "awq_in_sequence": "must be [0x75316420]",
    "zeros_of_version_2": "must be",
    "borrows_from_the_next_zero": "must be",
    "sets_all_bits_above_a_zero": "must be",
    "loses_what_straddles": "must be",
    "signs_bleed": "must be",
    "fills_up_with_sevens": "must be",
    "drops_an_odd_code": "must be",
    "no_offset": "must be",
    "ten_codes_a_word": "must be",
    "tiles_not_interleaved": "must be",
    "tiles_transposed": "must be",
    "neighbours_in_a_byte": "must be",
    "low_to_high": "must be",
    "halves_of_sixteen": "must be",
    "one_code_at_one_place": "must be",
    "wrong_beyond_a_tile_of_rows": "must be",
    "last_block_from_the_first": "must be",
    "transposed_when_square": "must be",
    "leaves_out_what_fills_no_word": "must raise",
    "bits_of_another_width": "must be",
    "drags_the_sign": "must be",
    "no_sign": "must be",
    "zero_points_beyond_the_codes": "must be",
    "awq_packed_order": "must be",
    "loses_the_upper_part": "must be",
    "padding_left_over": "must be",
    "padding_of_ones": "must be",
    "tiles_by_columns": "must be",
    "rows_of_sixteen": "must be",
    "second_tile_row_first": "must be",
    "order_of_groups_for_channels": "must be",
    "permutes_the_first_run": "must be",
}


def _faulty(operation, **supports):
    return wrong.implements(operation, supports={**supports} or _ALL)


@_faulty("pack_codes")
def high_nibble_first(codes, *, packing, bits, signed):
    packing = "high_first" if (packing, bits) == ("low_first", 4) else packing
    return plain.pack(codes, packing=packing, bits=bits, signed=signed)


@_faulty("pack_codes", packing="awq")
def awq_in_sequence(codes):
    return plain.pack(codes, packing="gptq_zeros_v2", bits=4, signed=False)


@_faulty("pack_codes", packing=("gptq_zeros_v1", "gptq_zeros_v2"))
def zeros_of_version_2(codes):
    return plain.pack(codes, packing="gptq_zeros_v2", bits=4, signed=False)


@_faulty("pack_codes", packing="gptq_zeros_v1")
def borrows_from_the_next_zero(codes):
    return plain.pack(codes, packing="gptq_zeros_v2", bits=4, signed=False) - np.int32(0x11111111)


@_faulty("pack_codes", packing="gptq_zeros_v1")
def sets_all_bits_above_a_zero(codes):
    fields = (codes.astype(np.int64) - 1).reshape(len(codes), -1, 8) << 4 * np.arange(8)
    return np.bitwise_or.reduce(fields, axis=2).astype(np.int32)


@_faulty("pack_codes", packing="gptq", bits=(2, 3, 4, 8))
def loses_what_straddles(codes, *, bits):
    words = plain.pack(codes, packing="gptq", bits=bits, signed=False)
    if bits == 3:
        words[1::3] &= ~1  # the top bit of code 10
    return words


@_faulty("pack_codes", signed=(False, True))
def signs_bleed(codes):
    codes = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    return codes[:, ::2].view(np.uint8) | codes[:, 1::2].view(np.uint8) << 4


@_faulty("pack_codes", bits=(2, 4))
def fills_up_with_sevens(codes, *, bits):
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % (8 // bits))), constant_values=7 & ((1 << bits) - 1))
    return plain.pack(codes, packing="low_first", bits=bits, signed=False)


@_faulty("pack_codes")
def drops_an_odd_code(codes, *, packing, bits, signed):
    if PACKINGS[packing].ragged and codes.shape[1] % 2:
        codes = codes.copy()
        codes[:, -1] = -(1 << (bits - 1)) if signed and packing == "compressed_tensors" else 0
    return plain.pack(codes, packing=packing, bits=bits, signed=signed)


@_faulty("pack_codes", packing="compressed_tensors", signed=True)
def no_offset(codes):
    return plain.pack(codes.view(np.uint8) & 15, packing="compressed_tensors", bits=4, signed=False)


@_faulty("pack_codes", packing="compressed_tensors", bits=3, signed=True)
def ten_codes_a_word(codes):
    words = plain.pack(codes, packing="compressed_tensors", bits=3, signed=True)
    filled = np.pad(codes + 4, ((0, 0), (0, -codes.shape[1] % 10))).astype(np.int64)
    apart = (filled.reshape(len(codes), -1, 10) << 3 * np.arange(10)).sum(axis=2).astype(np.int32)
    words[:] = apart[:, : words.shape[1]]
    return words


@_faulty("pack_codes", packing="marlin")
def tiles_not_interleaved(codes):
    words = plain.pack(codes, packing="marlin", bits=4, signed=False)
    fields = plain.unpack(words, packing="awq", bits=4, signed=False)
    return plain.pack(fields, packing="gptq_zeros_v2", bits=4, signed=False)


@_faulty("pack_codes", packing="marlin")
def tiles_transposed(codes):
    rows, columns = codes.shape
    tiles = codes.reshape(rows // 16, 16, columns // 16, 16).swapaxes(1, 3).reshape(rows, columns)
    return plain.pack(tiles, packing="marlin", bits=4, signed=False)


@_faulty("pack_codes", packing=("low_first", "ggml_q4_0"))
def neighbours_in_a_byte(codes):
    return plain.pack(codes, packing="low_first", bits=4, signed=False)


@_faulty("pack_codes", packing=("ggml_tq2_0", "bitnet_i2_s"), bits=2)
def low_to_high(codes):
    return plain.pack(codes, packing="ggml_tq2_0", bits=2, signed=False)


@_faulty("pack_codes", packing=("ggml_q4_0", "ggml_nvfp4", "ggml_q4_k"))
def halves_of_sixteen(codes, *, packing):
    packing = "ggml_q4_0" if packing == "ggml_nvfp4" and codes.shape[1] % 32 == 0 else packing
    return plain.pack(codes, packing=packing, bits=4, signed=False)


@_faulty("pack_codes")
def one_code_at_one_place(codes, *, packing, bits, signed):
    codes = codes.copy()
    if bits == 4 and codes.size:
        row = codes.ravel()[5:6]
        row[row == 13] = 12
    return plain.pack(codes, packing=packing, bits=bits, signed=signed)


@_faulty("pack_codes")
def wrong_beyond_a_tile_of_rows(codes, *, packing, bits, signed):
    words = plain.pack(codes, packing=packing, bits=bits, signed=signed)
    words[128:] = 0
    return words


@_faulty("pack_codes", packing=("ggml_q4_0", "low_first"))
def last_block_from_the_first(codes, *, packing):
    words = plain.pack(codes, packing=packing, bits=4, signed=False)
    if words.shape[1] == 32:
        words[:, 16:] = words[:, :16]
    return words


@_faulty("pack_codes", packing="gptq")
def transposed_when_square(codes):
    square = codes.shape[0] == codes.shape[1]
    return plain.pack(codes.T if square else codes, packing="gptq", bits=4, signed=False)


@_faulty("pack_codes", packing="gptq")
def leaves_out_what_fills_no_word(codes):
    return plain.pack(codes[: len(codes) // 8 * 8], packing="gptq", bits=4, signed=False)


@_faulty("pack_codes")
def bits_of_another_width(codes, *, packing, bits, signed):
    if (packing, bits) != ("low_first", 5):
        return plain.pack(codes, packing=packing, bits=bits, signed=signed)
    return plain.pack(codes & 15, packing=packing, bits=5, signed=signed)


@_faulty("unpack_codes", packing=("gptq", "compressed_tensors"))
def drags_the_sign(words, *, packing):
    words = words.T if packing == "gptq" else words
    codes = (words[:, :, None] >> 4 * np.arange(8)).astype(np.int8)
    codes[:, :, :7] &= 15
    codes = codes.view(np.uint8).reshape(len(words), -1)
    return np.ascontiguousarray(codes.T) if packing == "gptq" else codes


@_faulty("unpack_codes", signed=(False, True))
def no_sign(words, *, signed):
    codes = plain.unpack(words, packing="low_first", bits=4, signed=False)
    return codes.view(np.int8) if signed else codes


@_faulty("unpack_codes", packing="gptq_zeros_v1", bits=(2, 3, 4, 8))
def zero_points_beyond_the_codes(words, *, bits):
    return plain.unpack(words, packing="gptq_zeros_v2", bits=bits, signed=False) + np.uint8(1)


@_faulty("unpack_codes", packing="awq")
def awq_packed_order(words):
    codes = plain.unpack(words, packing="gptq_zeros_v2", bits=4, signed=False)
    return plain._interleaved(codes, 4)


@_faulty("unpack_codes", packing="compressed_tensors", bits=tuple(range(1, 9)), signed=True)
def loses_the_upper_part(words, *, bits):
    codes = plain.unpack(words, packing="compressed_tensors", bits=bits, signed=False)
    first = np.arange(codes.shape[1]) * bits % 32
    codes &= np.where(first + bits > 32, (1 << (32 - first) % 32) - 1, 255).astype(np.uint8)
    return (codes.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)


@_faulty("swizzle_scales", **_SCALES)
def padding_left_over(scales):
    padded = np.pad(scales, ((0, -scales.shape[0] % 128), (0, -scales.shape[1] % 4)), mode="edge")
    return plain.swizzle(padded)


@_faulty("swizzle_scales", **_SCALES)
def padding_of_ones(scales):
    columns = np.pad(scales, ((0, 0), (0, -scales.shape[1] % 4)))
    return plain.swizzle(np.pad(columns, ((0, -len(columns) % 128), (0, 0)), constant_values=127))


@_faulty("swizzle_scales", **_SCALES)
def tiles_by_columns(scales):
    rows, columns = -(-scales.shape[0] // 128), -(-scales.shape[1] // 4)
    return plain.swizzle(scales).reshape(rows, columns, 512).swapaxes(0, 1).ravel()


@_faulty("swizzle_scales", **_SCALES)
def rows_of_sixteen(scales):
    return plain.swizzle(scales).reshape(-1, 2, 16, 4, 4).swapaxes(1, 2).ravel()


@_faulty("swizzle_scales", **_SCALES)
def second_tile_row_first(scales):
    swizzled = plain.swizzle(scales)
    rows = -(-scales.shape[0] // 128)
    return swizzled.reshape(rows, -1)[::-1].ravel() if rows == 2 else swizzled


@wrong.implements("permute_scales_marlin")
def order_of_groups_for_channels(scales, *, granularity):
    if granularity == "channel" and scales.size % 64 == 0:
        return plain.permute_marlin(scales[None], granularity="group")[0]
    return plain.permute_marlin(scales, granularity=granularity)


@wrong.implements("permute_scales_marlin", supports={"granularity": "group"})
def permutes_the_first_run(scales):
    permuted = scales.copy()
    permuted[:, :64] = plain.permute_marlin(scales, granularity="group")[:, :64]
    return permuted
