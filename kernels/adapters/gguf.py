"""GGUF blocks by gguf-py, and by ggml itself where its library is there.

`gguf` is the Python package that llama.cpp converts models with; it quantizes half of the types and dequantizes all.
`libggml` is the library of llama-cpp-python, or that in the environment variable `LOWBIT_CTS_LIBGGML`, called through
ctypes: ``ggml_quantize_chunk``, which quantizes files, and the ``to_float`` of ``ggml_get_type_traits``; where
libggml-cpu lies beside it, ``ggml_mul_mat``, too (`ggml_products`).
"""

import ctypes
import importlib.util
import os
import platform
from importlib.metadata import version
from pathlib import Path

import numpy as np

from lowbit_cts.kernels import Backend, Contraction, Semantics
from lowbit_cts.kernels.adapters import ggml_products
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS
from lowbit_cts.reference.gguf.types import GGML_TYPES

_TYPES = tuple(BLOCK_FORMATS)

# gguf-py ------------------------------------------------------------------------------------------------------------

#: gguf-py has no quantizers of the others.
_QUANTIZED_BY_GGUF = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4", "TQ1_0", "TQ2_0")


def _gguf() -> Backend:
    import gguf

    backend = Backend("gguf", version=version("gguf"), arrays="numpy")

    @backend.implements("quantize_gguf", supports={"type": _QUANTIZED_BY_GGUF})
    def quantize(x: np.ndarray, *, type: str) -> np.ndarray:
        with np.errstate(all="ignore"):
            return gguf.quants.quantize(x, gguf.GGMLQuantizationType[type])

    # It views rows as float16, which NumPy refuses where their elements are not neighbours.
    memory = {"layout": {"contiguous", "offset"}}

    @backend.implements("dequantize_gguf", supports={"type": _TYPES, **memory})
    def dequantize(blocks: np.ndarray, *, type: str) -> np.ndarray:
        with np.errstate(all="ignore"):
            return gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[type])

    return backend


# libggml ------------------------------------------------------------------------------------------------------------


class _Traits(ctypes.Structure):
    """``struct ggml_type_traits``, as far as it is needed."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def _library_path() -> str | None:
    """Return where libggml-base is, without loading llama.cpp."""
    if path := os.environ.get("LOWBIT_CTS_LIBGGML"):
        return path
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        return None
    return next((str(path) for path in sorted(Path(found.origin).parent.glob("lib/libggml-base.*"))), None)


def _address(array: np.ndarray, dtype: type, columns: int) -> ctypes.c_void_p:
    """Return the address of a matrix, refusing what C would read as something else."""
    if array.dtype != dtype:
        raise TypeError(f"must be {np.dtype(dtype)}, not {array.dtype}")
    if array.shape[1] == 0 or array.shape[1] % columns:  # ggml asserts, or divides by it
        raise ValueError(f"rows must be whole blocks of {columns}; got {array.shape[1]}")
    return ctypes.c_void_p(array.ctypes.data)


def _libggml(path: str) -> Backend:
    library = ctypes.CDLL(path)
    library.ggml_version.restype = ctypes.c_char_p
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    )  # fmt: skip
    library.ggml_get_type_traits.restype = ctypes.POINTER(_Traits)
    backend = Backend("libggml", version=library.ggml_version().decode(), arrays="numpy")
    # Pointers to rows, one after the other. Compilers for Arm fuse multiplications and additions unasked.
    memory = {"layout": {"contiguous", "offset"}}
    x86 = platform.machine() in ("x86_64", "AMD64")
    semantics = Semantics(contraction=Contraction.SEPARATE if x86 else Contraction.EITHER)

    @backend.implements("quantize_gguf", semantics=semantics, supports={"type": _TYPES, **memory})
    def quantize_chunk(x: np.ndarray, *, type: str, out: np.ndarray) -> None:
        source = _address(x, np.float32, BLOCK_FORMATS[type].elements)
        kind = GGML_TYPES[type].code
        written = library.ggml_quantize_chunk(kind, source, out.ctypes.data, 0, *x.shape, None)
        if written != out.size:
            raise RuntimeError(f"ggml_quantize_chunk wrote {written} bytes of {out.size}")

    @backend.implements("dequantize_gguf", supports={"type": _TYPES, **memory})
    def to_float(blocks: np.ndarray, *, type: str, out: np.ndarray) -> None:
        source = _address(blocks, np.uint8, BLOCK_FORMATS[type].bytes)
        traits = library.ggml_get_type_traits(GGML_TYPES[type].code).contents
        traits.to_float(source, out.ctypes.data, out.size)

    cpu = Path(path).with_name(Path(path).name.replace("ggml-base", "ggml-cpu"))
    if cpu != Path(path) and cpu.exists():
        ggml_products.register(backend, library, str(cpu), _address, memory)
    return backend


_path = _library_path()
backends = [_libggml(_path)] if _path else []
if importlib.util.find_spec("gguf") or not backends:
    backends.insert(0, _gguf())
