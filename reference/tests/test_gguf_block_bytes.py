"""GGUF blocks to the byte: as ggml made them (recorded), as libggml makes them (where it is there), as gguf-py does.

``gguf_block_bytes.json`` holds the SHA-256 of the blocks that libggml made, for every format and fill below. It is
written anew by ``python reference/tests/test_gguf_block_bytes.py``.

The library is that of llama-cpp-python, or the path in `LOWBIT_CTS_LIBGGML`. On x86 its quantizers are plain C;
elsewhere compilers fuse multiplications and additions in them, and it is another oracle.
"""

import ctypes
import hashlib
import importlib.util
import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lowbit_cts.reference.choices import ScaleSearch
from lowbit_cts.reference.gguf.blocks import dequantize, quantize
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS
from lowbit_cts.reference.gguf.types import GGML_TYPES

RECORD = Path(__file__).with_name("gguf_block_bytes.json")
SHAPE = (64, 256)
F = np.float32


def gaussian(rng: np.random.Generator, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return rng.standard_normal(shape).astype(F)


def with_outlier(rng: np.random.Generator) -> np.ndarray:
    x = gaussian(rng) * F(1e-3)
    x[np.arange(len(x)), rng.integers(0, 256, len(x))] = 1e4
    return x


def below_powers_of_two(rng: np.random.Generator) -> np.ndarray:
    """Return blocks whose largest element is among the last numbers below a power of two."""
    x = rng.uniform(-1, 1, SHAPE).astype(F)
    x[:, 7::32] = -(1 - rng.integers(1, 50, (len(x), 8)) * 2.0**-24)
    return np.ldexp(x, rng.integers(-120, 120, (len(x), 1))).astype(F)


def finite_bits(rng: np.random.Generator) -> np.ndarray:
    x = rng.integers(0, 1 << 32, SHAPE, np.uint64).astype(np.uint32).view(F)
    return np.where(np.isfinite(x), x, F(0))


def sparse(rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(SHAPE) < 0.05, gaussian(rng), F(0))


def signed_zeros(rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.integers(0, 2, SHAPE) == 1, F(0), F(-0.0))


FILLS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "gaussian": lambda rng: gaussian(np.random.default_rng(1), (4096, 256)),
    "heavy tails": lambda rng: (rng.standard_normal(SHAPE) / rng.standard_normal(SHAPE)).astype(F),
    "one outlier": with_outlier,
    "rows of all magnitudes": lambda rng: np.ldexp(gaussian(rng), rng.integers(-60, 15, (SHAPE[0], 1))).astype(F),
    "columns of all magnitudes": lambda rng: np.ldexp(gaussian(rng), rng.integers(-20, 5, (1, SHAPE[1]))).astype(F),
    "subnormal": lambda rng: gaussian(rng) * F(1e-40),
    "about the least scale, 1e-15": lambda rng: gaussian(rng) * F(1e-15),
    "d subnormal in float16": lambda rng: gaussian(rng) * F(3e-7),
    "d infinite in float16": lambda rng: gaussian(rng) * F(3e6),
    "squares overflow": lambda rng: gaussian(rng) * F(1e30),
    "differences overflow": lambda rng: rng.uniform(-3.4e38, 3.4e38, SHAPE).astype(F),
    "any finite bits": finite_bits,
    "zeros": lambda rng: np.zeros(SHAPE, F),
    "negative zeros": lambda rng: np.full(SHAPE, -0.0, F),
    "zeros of both signs": signed_zeros,
    "sparse": sparse,
    "sparse, other zeros negative": lambda rng: np.where((x := sparse(rng)) == 0, F(-0.0), x),
    "some blocks zero": lambda rng: gaussian(rng) * rng.integers(0, 2, (SHAPE[0], 1)).astype(F),
    "some groups zero": lambda rng: gaussian(rng) * np.repeat(rng.integers(0, 2, (SHAPE[0], 16)), 16, axis=1).astype(F),
    "constant blocks": lambda rng: np.repeat(gaussian(rng, (SHAPE[0], 1)), 256, axis=1),
    "constant groups": lambda rng: np.repeat(gaussian(rng, (SHAPE[0], 16)), 16, axis=1),
    "all largest, both signs": lambda rng: rng.choice(np.array([-1, 1], F), SHAPE),
    "integers": lambda rng: rng.integers(-8, 9, SHAPE).astype(F),
    "half integers": lambda rng: rng.integers(-16, 17, SHAPE).astype(F) / 2,
    "powers of two": lambda rng: np.ldexp(rng.choice(np.array([-1, 1], F), SHAPE), rng.integers(-9, 9, SHAPE)),
    "ternary": lambda rng: rng.integers(-1, 2, SHAPE).astype(F) * F(0.037),
    "positive": lambda rng: np.abs(gaussian(rng)) + F(0.1),
    "negative": lambda rng: -np.abs(gaussian(rng)) - F(0.1),
    "far from zero": lambda rng: F(5) + gaussian(rng) * F(1e-6),
    "below powers of two": below_powers_of_two,
}

ONE_SHOT = "IQ4_NL, one shot"
NAMES = [*BLOCK_FORMATS, ONE_SHOT]

# Where sums overflow, the scale of IQ4_NL is a NaN, whose sign C leaves open.
CASES = [
    (name, fill)
    for name in NAMES
    for fill in FILLS
    if not (name.startswith("IQ4_NL") and fill in ("squares overflow", "any finite bits"))
]


def filled(fill: str) -> np.ndarray:
    return FILLS[fill](np.random.default_rng(list(FILLS).index(fill)))


def digest(data: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(data).tobytes()).hexdigest()


def defined(blocks: np.ndarray, x: np.ndarray, name: str) -> np.ndarray:
    """Return the blocks without those whose codes ggml leaves as it finds them in memory: of zeros, in one shot."""
    if name != ONE_SHOT:
        return blocks
    return blocks.reshape(-1, 18)[np.abs(x.reshape(-1, 32)).max(axis=1) >= F(1e-15)]


def quantized(x: np.ndarray, name: str) -> np.ndarray:
    if name == ONE_SHOT:
        return quantize(x, "IQ4_NL", scale_search=ScaleSearch.ONE_SHOT)
    return quantize(x, name)


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads(RECORD.read_text())


@pytest.mark.parametrize("fill", FILLS)
def test_the_fills_are_those_of_the_record(record, fill):
    assert digest(filled(fill)) == record["fills"][fill]


@pytest.mark.parametrize(("name", "fill"), CASES)
def test_blocks_are_those_that_ggml_made(record, name, fill):
    x = filled(fill)
    assert digest(defined(quantized(x, name), x, name)) == record["blocks"][name][fill]


class Library:
    """libggml-base, through ctypes."""

    def __init__(self, path: str):
        self.library = ctypes.CDLL(path)
        self.library.ggml_version.restype = ctypes.c_char_p
        self.library.ggml_quantize_chunk.restype = ctypes.c_size_t

    @property
    def version(self) -> str:
        return self.library.ggml_version().decode()

    def quantize(self, x: np.ndarray, name: str) -> np.ndarray:
        fmt = BLOCK_FORMATS[name.partition(",")[0]]
        x = np.ascontiguousarray(x)
        blocks = np.zeros((*x.shape[:-1], x.shape[-1] // fmt.elements * fmt.bytes), np.uint8)
        source, target = (ctypes.c_void_p(array.ctypes.data) for array in (x, blocks))
        if name == ONE_SHOT:
            self.library.quantize_row_iq4_nl_ref(source, target, ctypes.c_int64(x.size))
            return blocks
        rows = [ctypes.c_int64(n) for n in (0, x.size // x.shape[-1], x.shape[-1])]
        kind = ctypes.c_int(GGML_TYPES[fmt.name].code)
        written = self.library.ggml_quantize_chunk(kind, source, target, *rows, ctypes.c_void_p())
        assert written == blocks.size
        return blocks

    def dequantize(self, blocks: np.ndarray, name: str) -> np.ndarray:
        fmt = BLOCK_FORMATS[name]
        x = np.zeros((*blocks.shape[:-1], blocks.shape[-1] // fmt.bytes * fmt.elements), F)
        function = getattr(self.library, "dequantize_row_" + name.lower().replace("_k", "_K"))
        function(ctypes.c_void_p(blocks.ctypes.data), ctypes.c_void_p(x.ctypes.data), ctypes.c_int64(x.size))
        return x


def library_path() -> str | None:
    """Return where libggml-base is, without loading llama.cpp."""
    if path := os.environ.get("LOWBIT_CTS_LIBGGML"):
        return path
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return None
    return next(map(str, Path(found.origin).parent.glob("lib/libggml-base.so")), None)


@pytest.fixture(scope="module")
def library() -> Library:
    path = library_path()
    if path is None:
        pytest.skip("no libggml-base.so")
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("libggml-base is compiled with fused multiplications")
    return Library(path)


@pytest.mark.parametrize(("name", "fill"), CASES)
def test_libggml_makes_the_recorded_blocks(record, library, name, fill):
    x = filled(fill)
    found = digest(defined(library.quantize(x, name), x, name))
    assert found == record["blocks"][name][fill], f"ggml {library.version}; recorded with {record['ggml']}"


def same_numbers(got: np.ndarray, expected: np.ndarray) -> None:
    """Compare bit for bit; of two NaN only that they are."""
    nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(np.int32)[~nan], expected.view(np.int32)[~nan])


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_libggml_dequantizes_random_bytes_alike(library, name):
    blocks = np.random.default_rng(6).integers(0, 256, (4000, BLOCK_FORMATS[name].bytes), np.uint8)
    same_numbers(dequantize(blocks, name), library.dequantize(blocks, name))


# gguf-py has no quantizers of the others.
BY_GGUF = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]

# Where gguf-py differs from ggml: a block of zeros with negative ones among them has d or m of the other sign.
SIGNS_OF_ZERO = [
    "negative zeros", "zeros of both signs", "sparse, other zeros negative", "some blocks zero", "some groups zero"
]  # fmt: skip

# Where C leaves casts undefined, NumPy does, too.
UNDEFINED = ["subnormal", "differences overflow", "any finite bits"]


@pytest.mark.parametrize("fill", [fill for fill in FILLS if fill not in UNDEFINED])
@pytest.mark.parametrize("name", BY_GGUF)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_gguf_py_makes_the_same_blocks(name, fill):
    gguf = pytest.importorskip("gguf")
    x = filled(fill)
    got, expected = quantize(x, name), gguf.quants.quantize(x, gguf.GGMLQuantizationType[name])
    if fill in SIGNS_OF_ZERO:
        np.testing.assert_array_equal(dequantize(got, name), dequantize(expected, name))
    else:
        np.testing.assert_array_equal(got, expected)


def write_record() -> None:
    path = library_path()
    if path is None:
        raise SystemExit("no libggml-base.so: install llama-cpp-python, or set LOWBIT_CTS_LIBGGML")
    library = Library(path)
    blocks: dict[str, dict[str, str]] = {name: {} for name in NAMES}
    for name, fill in CASES:
        x = filled(fill)
        blocks[name][fill] = digest(defined(library.quantize(x, name), x, name))
    content = {
        "ggml": f"{library.version}, {platform.machine()}",
        "fills": {fill: digest(filled(fill)) for fill in FILLS},
        "blocks": blocks,
    }
    RECORD.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    write_record()
