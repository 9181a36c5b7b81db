"""Packings: every code at every place, words known from elsewhere, instruction layouts, and other libraries."""

import hashlib
from math import lcm

import ml_dtypes
import numpy as np
import pytest

from lowbit_cts.reference.packing.packings import PACKINGS, SignedCodes, pack, unpack
from lowbit_cts.reference.packing.streams import pack_stream, unpack_stream

WIDTHS = [(name, bits) for name, packing in PACKINGS.items() for bits in packing.bits]
SIGNED = [(name, bits) for name, bits in WIDTHS if PACKINGS[name].signed is not SignedCodes.REFUSED]
STREAMS = [(name, bits) for name, bits in WIDTHS if name in ("low_first", "gptq_zeros_v2", "compressed_tensors")]
RNG = np.random.default_rng(6)


def block(name: str, bits: int) -> int:
    """Return how many codes fill blocks and words without a rest."""
    packing = PACKINGS[name]
    return lcm(len(packing.order(bits)) * bits, 8 * packing.carrier.itemsize) // bits


def matrix_shape(name: str, bits: int) -> tuple[int, int]:
    """Return the shape of a matrix of two blocks along the packed axis, three along the other."""
    packing = PACKINGS[name]
    if packing.tile > 1:
        return 2 * packing.tile, 3 * block(name, bits) // packing.tile
    return (2 * block(name, bits), 3) if packing.axis == -2 else (3, 2 * block(name, bits))


def hexadecimal(words: np.ndarray) -> list[str]:
    return [f"{word:#0{2 + 2 * words.itemsize}x}" for word in words.view(f"u{words.itemsize}").ravel()]


@pytest.mark.parametrize(("name", "bits"), WIDTHS)
def test_every_code_returns_from_every_place(name, bits):
    shape = matrix_shape(name, bits)
    places = np.arange(shape[0] * shape[1]).reshape(shape)
    for first in range(1 << bits):
        codes = (places + first) % (1 << bits)
        words = pack(codes, packing=name, bits=bits)
        assert words.dtype == PACKINGS[name].carrier
        assert words.size * words.itemsize * 8 == codes.size * bits
        found = unpack(words, packing=name, bits=bits)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize(("name", "bits"), SIGNED)
def test_every_signed_code_returns(name, bits):
    codes = np.resize(np.arange(-(1 << (bits - 1)), 1 << (bits - 1)), matrix_shape(name, bits))
    found = unpack(pack(codes, packing=name, bits=bits, signed=True), packing=name, bits=bits, signed=True)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, codes)


@pytest.mark.parametrize(("name", "bits"), WIDTHS)
def test_all_words_return_from_their_codes(name, bits):
    shape = pack(np.zeros(matrix_shape(name, bits), np.uint8), packing=name, bits=bits).shape
    carrier = PACKINGS[name].carrier
    words = RNG.integers(0, 1 << (8 * carrier.itemsize), shape, np.uint64).astype(f"u{carrier.itemsize}").view(carrier)
    codes = unpack(words, packing=name, bits=bits)
    np.testing.assert_array_equal(pack(codes, packing=name, bits=bits), words)


@pytest.mark.parametrize(("name", "bits"), WIDTHS)
def test_strides_and_leading_axes_do_not_matter(name, bits):
    codes = RNG.integers(0, 1 << bits, (2, *matrix_shape(name, bits)))
    words = pack(codes, packing=name, bits=bits)
    np.testing.assert_array_equal(words[1], pack(np.asfortranarray(codes[1]), packing=name, bits=bits))
    wide = np.repeat(words, 2, axis=-1)[..., ::2]
    np.testing.assert_array_equal(unpack(wide, packing=name, bits=bits), codes)


# Words.


def test_eight_nibbles_in_a_word():
    codes = np.arange(8)
    assert hexadecimal(pack(codes[:, None], packing="gptq", bits=4)) == ["0x76543210"]
    assert hexadecimal(pack(codes, packing="awq", bits=4)) == ["0x75316420"]
    assert hexadecimal(pack(codes - 8, packing="compressed_tensors", bits=4, signed=True)) == ["0x76543210"]


def test_bytes_of_nibbles():
    codes = np.arange(32) % 16
    assert hexadecimal(pack(codes[:4], packing="low_first", bits=4)) == ["0x10", "0x32"]
    assert hexadecimal(pack(codes[:4], packing="high_first", bits=4)) == ["0x01", "0x23"]
    assert hexadecimal(pack([1] * 16 + [2] * 16, packing="ggml_q4_0", bits=4)) == ["0x21"] * 16
    assert hexadecimal(pack([0, -1, -8, 7], packing="low_first", bits=4, signed=True)) == ["0xf0", "0x78"]


def test_bytes_of_two_bits():
    assert hexadecimal(pack([0, 1, 2, 3], packing="low_first", bits=2)) == ["0xe4"]
    assert hexadecimal(pack([0, 1, 2, 3], packing="high_first", bits=2)) == ["0x1b"]
    quarters = np.repeat([0, 1, 2, 3], 32)
    assert hexadecimal(pack(quarters, packing="ggml_tq2_0", bits=2)) == ["0xe4"] * 32
    assert hexadecimal(pack(quarters, packing="bitnet_i2_s", bits=2)) == ["0x1b"] * 32


def test_symmetric_zero_points_of_gptq():
    eight = np.full(8, 8)
    assert hexadecimal(pack(eight, packing="gptq_zeros_v1", bits=4)) == ["0x77777777"]
    assert hexadecimal(pack(eight, packing="gptq_zeros_v2", bits=4)) == ["0x88888888"]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_zero_point_of_zero_wraps_in_gptq_version_1_and_leaves_its_neighbours_alone(bits):
    zeros = np.resize([0, 1, (1 << bits) - 1], 96)
    words = pack(zeros, packing="gptq_zeros_v1", bits=bits)
    stored = unpack(words, packing="gptq_zeros_v2", bits=bits)
    np.testing.assert_array_equal(stored, np.resize([(1 << bits) - 1, 0, (1 << bits) - 2], 96))
    np.testing.assert_array_equal(unpack(words, packing="gptq_zeros_v1", bits=bits), zeros)


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (0, [7, 0, 0]),
        (9, [7 << 27, 0, 0]),
        (10, [0xC0000000, 1, 0]),
        (11, [0, 7 << 1, 0]),
        (20, [0, 7 << 28, 0]),
        (21, [0, 0x80000000, 3]),
        (22, [0, 0, 7 << 2]),
        (31, [0, 0, 7 << 29]),
    ],
)
def test_three_bits_of_gptq_lie_10_1_10_1_10(place, words):
    codes = np.zeros((32, 1), int)
    codes[place] = 7
    np.testing.assert_array_equal(pack(codes, packing="gptq", bits=3)[:, 0].view(np.uint32), words)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_stream_of_compressed_tensors_is_that_of_gptq(bits):
    codes = RNG.integers(0, 1 << bits, (64, 5))
    np.testing.assert_array_equal(
        pack(codes.T - (1 << (bits - 1)), packing="compressed_tensors", bits=bits, signed=True),
        pack(codes, packing="gptq", bits=bits).T,
    )


def test_four_codes_of_six_bits_are_three_bytes():
    assert hexadecimal(pack([0x3F, 0, 0, 0], packing="low_first", bits=6)) == ["0x3f", "0x00", "0x00"]
    assert hexadecimal(pack([0, 0x3F, 0, 0], packing="low_first", bits=6)) == ["0xc0", "0x0f", "0x00"]
    assert hexadecimal(pack([0, 0, 0x3F, 0], packing="low_first", bits=6)) == ["0x00", "0xf0", "0x03"]
    assert hexadecimal(pack([0, 0, 0, 0x3F], packing="low_first", bits=6)) == ["0x00", "0x00", "0xfc"]


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("carrier", ["u1", "<u2", "<i4"])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 31, 32, 33, 67])
def test_a_stream_is_one_long_integer(bits, carrier, count):
    fields = RNG.integers(0, 1 << bits, count).astype(np.uint8)
    total = sum(int(field) << (bits * i) for i, field in enumerate(fields))
    words = pack_stream(fields, bits, np.dtype(carrier))
    width = 8 * np.dtype(carrier).itemsize
    assert len(words) == -(-count * bits // width)
    assert int.from_bytes(words.tobytes(), "little") == total
    np.testing.assert_array_equal(unpack_stream(words, bits, count), fields)


@pytest.mark.parametrize(("name", "bits"), STREAMS)
def test_packings_in_sequence_are_streams(name, bits):
    codes = RNG.integers(0, 1 << bits, 64)
    total = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    assert int.from_bytes(pack(codes, packing=name, bits=bits).tobytes(), "little") == total


PLACES = {  # of code j: which byte, which shift
    "high_first": lambda j, bits: (j // (8 // bits), 8 - bits * (1 + j % (8 // bits))),
    "ggml_q4_0": lambda j, _: (j // 32 * 16 + j % 16, j % 32 // 16 * 4),
    "ggml_nvfp4": lambda j, _: (j // 16 * 8 + j % 8, j % 16 // 8 * 4),
    "ggml_q4_k": lambda j, _: (j // 64 * 32 + j % 32, j % 64 // 32 * 4),
    "ggml_tq2_0": lambda j, _: (j // 128 * 32 + j % 32, j % 128 // 32 * 2),
    "bitnet_i2_s": lambda j, _: (j // 128 * 32 + j % 32, 6 - j % 128 // 32 * 2),
}


@pytest.mark.parametrize(("name", "bits"), [(name, bits) for name, bits in WIDTHS if name in PLACES])
def test_byte_packings_put_each_code_where_they_say(name, bits):
    codes = RNG.integers(0, 1 << bits, 256)
    packed = pack(codes, packing=name, bits=bits)
    for j, code in enumerate(codes):
        byte, shift = PLACES[name](j, bits)
        assert packed[byte] >> shift & ((1 << bits) - 1) == code


# Instructions: what a lane's registers must hold.


def pairs_of_lanes(word: int) -> list[tuple[int, int]]:
    """Return what four masks of a word leave in the two 16-bit halves of a register (lop3 conversions to half2)."""
    registers = [(word >> shift) & 0x000F000F for shift in (0, 4, 8, 12)]
    return [(register & 0xFFFF, register >> 16) for register in registers]


def test_masks_of_an_awq_word_give_neighbouring_columns():
    codes = RNG.integers(0, 16, (3, 16))
    words = pack(codes, packing="awq", bits=4).view(np.uint32)
    for row, columns in zip(words, codes, strict=True):
        for i, word in enumerate(row):
            found = pairs_of_lanes(int(word))
            assert np.ravel(found).tolist() == columns[8 * i : 8 * i + 8].tolist()


def test_the_order_of_marlin_is_that_of_its_authors():
    order = PACKINGS["marlin"].order(4)
    assert order[:8].tolist() == [0, 128, 8, 136, 16, 144, 24, 152]
    assert sorted(order) == list(range(1024))
    assert hashlib.sha256(order.astype("<i4").tobytes()).hexdigest().startswith("4a976ee0bbf9e61f")


def test_a_lane_loads_its_fragments_of_a_marlin_weight():
    """A load of 128 bits has the B fragments of mma.m16n8k16 for 16 rows and 64 columns: 4 words of two fragments."""
    k, n = 48, 192
    codes = RNG.integers(0, 16, (k, n))
    words = pack(codes, packing="marlin", bits=4).view(np.uint32)
    assert words.shape == (k // 16, 2 * n)
    for step in range(k // 16):
        for run in range(n // 64):
            for lane in range(32):
                group, member = divmod(lane, 4)
                load = words[step, 128 * run + 4 * lane :][:4]
                for tile, word in enumerate(load):
                    pairs = pairs_of_lanes(int(word))
                    for half in range(2):
                        column = 64 * run + 16 * tile + 8 * half + group
                        for register in range(2):
                            row = 16 * step + 2 * member + 8 * register
                            assert pairs[2 * half + register] == (codes[row, column], codes[row + 1, column])


# Other libraries.


@pytest.mark.parametrize("name", ["uint2", "int2", "uint4", "int4", "float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"])
@pytest.mark.parametrize("count", [1, 7, 8, 30])
def test_low_first_is_the_packing_of_onnx(name, count):
    onnx = pytest.importorskip("onnx")
    numpy_helper = pytest.importorskip("onnx.numpy_helper")
    if not hasattr(onnx.TensorProto, name.removesuffix("fn").replace("_", "").upper()):
        pytest.skip(f"onnx {onnx.__version__} has no {name}")
    bits = int(name.split("int")[-1]) if "int" in name else int(name[5])
    codes = RNG.integers(0, 1 << bits, count).astype(np.uint8)
    if name.startswith("int"):
        values = np.where(codes >> (bits - 1), codes.astype(int) - (1 << bits), codes).astype(getattr(ml_dtypes, name))
        packed = pack(values.astype(int), packing="low_first", bits=bits, signed=True)
    else:
        values = codes.view(getattr(ml_dtypes, name)) if "float" in name else codes.astype(getattr(ml_dtypes, name))
        packed = pack(codes, packing="low_first", bits=bits)
    assert packed.tobytes() == numpy_helper.from_array(values).raw_data


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [8, 13])
def test_a_low_first_stream_is_numpys_packbits(bits, count):
    codes = RNG.integers(0, 1 << bits, count).astype(np.uint8)
    expected = np.packbits(np.unpackbits(codes[:, None], axis=1, bitorder="little")[:, :bits], bitorder="little")
    np.testing.assert_array_equal(pack(codes, packing="low_first", bits=bits), expected)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("count", [8, 13])
def test_a_high_first_stream_is_numpys_packbits(bits, count):
    codes = RNG.integers(0, 1 << bits, count).astype(np.uint8)
    expected = np.packbits(np.unpackbits(codes[:, None], axis=1)[:, -bits:])
    np.testing.assert_array_equal(pack(codes, packing="high_first", bits=bits), expected)


def half(value: float, count: int) -> np.ndarray:
    return np.broadcast_to(np.array([value], np.float16).view(np.uint8), (count, 2))


def gguf_blocks(name: str, codes: np.ndarray) -> np.ndarray:
    """Return blocks of the ggml type with these codes and unit scales, (blocks, bytes)."""
    count = len(codes)
    if name == "TQ2_0":
        return np.hstack([pack(codes, packing="ggml_tq2_0", bits=2), half(1, count)])
    if name == "Q4_K":  # scales 1, minima 0: six bits each, the last four of the scales in the last bytes
        scales = np.array([1] * 4 + [0] * 4 + [1] * 4, np.uint8)
        head = [half(1, count), half(0, count), np.broadcast_to(scales, (count, 12))]
        return np.hstack([*head, pack(codes, packing="ggml_q4_k", bits=4)])
    if name == "NVFP4":  # UE4M3 1.0
        return np.hstack([np.full((count, 4), 7 << 3, np.uint8), pack(codes, packing="ggml_nvfp4", bits=4)])
    return np.hstack([half(1, count), pack(codes, packing="ggml_q4_0", bits=4)])


@pytest.mark.parametrize(
    ("name", "length", "bits", "values"),
    [
        ("Q4_0", 32, 4, np.arange(16) - 8),
        ("IQ4_NL", 32, 4, [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]),
        ("Q4_K", 256, 4, np.arange(16)),
        ("NVFP4", 64, 4, [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]),
        ("TQ2_0", 256, 2, np.arange(4) - 1),
    ],
)
def test_gguf_reads_the_packings_of_ggml(name, length, bits, values):
    gguf = pytest.importorskip("gguf")
    kind = getattr(gguf.GGMLQuantizationType, name, None)
    if kind is None:
        pytest.skip(f"this release of gguf has no {name}")
    codes = RNG.integers(0, 1 << bits, (5, length))
    found = gguf.quants.dequantize(gguf_blocks(name, codes), kind)
    np.testing.assert_array_equal(found, np.asarray(values)[codes])


def test_low_first_nibbles_are_those_of_torchao():
    torch = pytest.importorskip("torch")
    kernels = pytest.importorskip("torchao.prototype.mx_formats.kernels")
    codes = RNG.integers(0, 16, (6, 10)).astype(np.uint8)
    packed = pack(codes, packing="low_first", bits=4)
    np.testing.assert_array_equal(kernels.pack_uint4(torch.from_numpy(codes)).numpy(), packed)
    np.testing.assert_array_equal(kernels.unpack_uint4(torch.from_numpy(packed)).numpy(), codes)


@pytest.mark.parametrize("count", [128, 191])
def test_high_first_nibbles_are_those_of_bitsandbytes(count):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    codes = np.resize(np.r_[15, np.arange(16)], count)  # every block has its largest magnitude, 1
    table = functional.get_4bit_type("nf4", device="cpu")
    found = functional.quantize_4bit(table[torch.from_numpy(codes)], blocksize=64, quant_type="nf4")[0].numpy().ravel()
    filled = np.append(codes, np.full(count % 2, 7))  # an odd end is filled up with the code of 0.0, in NF4 7
    np.testing.assert_array_equal(found, pack(filled, packing="high_first", bits=4))
    np.testing.assert_array_equal(unpack(found, packing="high_first", bits=4, count=count), codes)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(3, 32), (4, 64), (5, 37), (2, 1)])
def test_packing_of_compressed_tensors(bits, shape):
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    codes = RNG.integers(-(1 << (bits - 1)), 1 << (bits - 1), shape).astype(np.int8)
    words = pack(codes, packing="compressed_tensors", bits=bits, signed=True)
    np.testing.assert_array_equal(helpers.pack_to_int32(torch.from_numpy(codes), bits).numpy(), words)
    back = helpers.unpack_from_int32(torch.from_numpy(words), bits, torch.Size(shape)).numpy()
    np.testing.assert_array_equal(back, codes)
    found = unpack(words, packing="compressed_tensors", bits=bits, count=shape[1], signed=True)
    np.testing.assert_array_equal(found, codes)


# Input that ends early, is empty or breaks a rule.

RAGGED = [(name, bits) for name, bits in WIDTHS if PACKINGS[name].ragged]


@pytest.mark.parametrize(("name", "bits"), RAGGED)
def test_codes_may_end_inside_a_word(name, bits):
    for count in range(70):
        codes = np.full(count, (1 << bits) - 1)
        words = pack(codes, packing=name, bits=bits)
        assert len(words) == -(-count * bits // (8 * words.itemsize))
        assert sum(int(word).bit_count() for word in words.view(f"u{words.itemsize}")) == count * bits
        np.testing.assert_array_equal(unpack(words, packing=name, bits=bits, count=count), codes)


@pytest.mark.parametrize(("name", "bits"), [pair for pair in WIDTHS if pair not in RAGGED])
def test_other_packings_demand_whole_blocks(name, bits):
    rows, columns = matrix_shape(name, bits)
    short = (rows - 1, columns) if PACKINGS[name].axis == -2 else (rows, columns - 1)
    with pytest.raises(ValueError, match=r"^codes: axis -[12] has length \d+, must be a multiple of \d+"):
        pack(np.zeros(short, np.uint8), packing=name, bits=bits)
    words = pack(np.zeros((rows, columns), np.uint8), packing=name, bits=bits)
    if len(PACKINGS[name].order(bits)) * bits > 8 * words.itemsize or bits == 3:
        words = words[:-1] if PACKINGS[name].axis == -2 else words[..., :-1]
        with pytest.raises(ValueError, match=r"^words: axis -[12] has length \d+, which whole blocks"):
            unpack(words, packing=name, bits=bits)


@pytest.mark.parametrize(("name", "bits"), WIDTHS)
def test_an_empty_axis_stays_empty(name, bits):
    rows, columns = matrix_shape(name, bits)
    for shape in [(0, columns), (rows, 0)]:
        words = pack(np.zeros(shape, np.uint8), packing=name, bits=bits)
        assert words.size == 0
        assert unpack(words, packing=name, bits=bits).shape == shape


def test_bad_input_is_one_message():
    eight = np.zeros((8, 8), np.uint8)
    for call, message in [
        (lambda: pack(eight, packing="acme", bits=4), "^packing: 'acme' is unknown; admissible: low_first, "),
        (lambda: pack(eight, packing="awq", bits=3), "^bits: 3 is not a width of awq; admissible: 4"),
        (lambda: pack(eight, packing="gptq", bits=4, signed=True), "^signed: gptq holds unsigned codes; .*low_first"),
        (lambda: pack(eight + 16, packing="gptq", bits=4), r"^codes: must lie in \[0, 16\); got \[16, 16\]"),
        (lambda: pack(eight - 9.0, packing="gptq", bits=4), "^codes: has dtype float64, must be an integer type"),
        (lambda: pack([-9], packing="low_first", bits=4, signed=True), r"^codes: must lie in \[-8, 8\)"),
        (lambda: pack([8], packing="low_first", bits=4, signed=True), r"^codes: must lie in \[-8, 8\)"),
        (lambda: pack(eight[0], packing="gptq", bits=4), "^codes: has 1 dimensions, must have at least 2"),
        (lambda: pack(eight, packing="marlin", bits=4), "^codes: have 8 rows, must be a multiple of 16"),
        (lambda: pack(np.zeros((16, 32), int), packing="marlin", bits=4), "^codes: axis -1 .* multiple of 64"),
        (lambda: unpack(eight, packing="awq", bits=4), "^words: have dtype uint8, must be int32"),
        (lambda: unpack(eight[0], packing="low_first", bits=4, count=14), "^words: axis -1 .* of 14 codes"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
