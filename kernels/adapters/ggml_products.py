"""Products of float32 activations and weights in GGUF blocks by ggml_mul_mat of libggml-cpu, through ctypes.

On the CPU ggml quantizes the activations first, to the type that `ggml_get_type_traits_cpu` names for the weights. A
call makes a graph of one node and computes it in one thread.
"""

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from lowbit_cts.kernels import ActivationQuantization, Backend, DequantizeForm, Semantics
from lowbit_cts.reference.gguf.activations import ACTIVATION_TYPES
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS
from lowbit_cts.reference.gguf.types import GGML_TYPES

#: Bytes beside the tensors, for their alignment.
_SLACK = 1 << 12
_ALIGNMENT = 64
_NODES = 8
#: On x86 the middle of their codes leaves the sum as a correction, in other lanes of a vector than the products.
_CORRECTED = ("Q6_K", "TQ1_0", "TQ2_0")

_Pointer, _Size = ctypes.c_void_p, ctypes.c_size_t


class _InitParams(ctypes.Structure):
    """``struct ggml_init_params``."""

    _fields_ = (("mem_size", _Size), ("mem_buffer", _Pointer), ("no_alloc", ctypes.c_bool))


class _Plan(ctypes.Structure):
    """``struct ggml_cplan``: its first fields, and room for the rest, which ggml fills in."""

    _fields_ = (("work_size", _Size), ("work_data", _Pointer), ("rest", ctypes.c_byte * 256))


class _CpuTraits(ctypes.Structure):
    """``struct ggml_type_traits_cpu``."""

    _fields_ = (
        ("from_float", ctypes.CFUNCTYPE(None, _Pointer, _Pointer, ctypes.c_int64)),
        ("vec_dot", _Pointer),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    )


_BASE: dict[str, tuple[Any, ...]] = {
    "ggml_init": (_Pointer, _InitParams),
    "ggml_free": (None, _Pointer),
    "ggml_new_tensor_2d": (_Pointer, _Pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64),
    "ggml_mul_mat": (_Pointer, _Pointer, _Pointer, _Pointer),
    "ggml_new_graph_custom": (_Pointer, _Pointer, _Size, ctypes.c_bool),
    "ggml_build_forward_expand": (None, _Pointer, _Pointer),
    "ggml_get_data": (_Pointer, _Pointer),
    "ggml_graph_overhead_custom": (_Size, _Size, ctypes.c_bool),
    "ggml_tensor_overhead": (_Size,),
}
_CPU: dict[str, tuple[Any, ...]] = {
    "ggml_cpu_init": (None,),
    "ggml_graph_plan": (_Plan, _Pointer, ctypes.c_int, _Pointer),
    "ggml_graph_compute": (ctypes.c_int, _Pointer, ctypes.POINTER(_Plan)),
    "ggml_get_type_traits_cpu": (ctypes.POINTER(_CpuTraits), ctypes.c_int),
}


def _typed(library: ctypes.CDLL, functions: dict[str, tuple[Any, ...]]) -> ctypes.CDLL:
    for name, (result, *arguments) in functions.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def cpu_library(path: str) -> ctypes.CDLL:
    """Return libggml-cpu, initialized, its functions typed."""
    library = _typed(ctypes.CDLL(path), _CPU)
    library.ggml_cpu_init()  # tables that float16 is looked up in
    return library


class _Weights:
    """A tensor of weights in a context of its own, which goes with it."""

    def __init__(self, ggml: ctypes.CDLL, blocks: np.ndarray, type: str, columns: int) -> None:
        context = ggml.ggml_init(_InitParams(blocks.nbytes + ggml.ggml_tensor_overhead() + _SLACK, None, False))
        self.tensor = ggml.ggml_new_tensor_2d(context, GGML_TYPES[type].code, columns, blocks.shape[0])
        ctypes.memmove(ggml.ggml_get_data(self.tensor), blocks.ctypes.data, blocks.nbytes)
        self.rows, self.columns = blocks.shape[0], columns
        weakref.finalize(self, ggml.ggml_free, context)


def register(
    backend: Backend, base: ctypes.CDLL, path: str, address: Callable[..., Any], memory: dict[str, set[str]]
) -> None:
    """Register products.

    Parameters
    ----------
    backend : Backend
    base : CDLL
        libggml-base.
    path : str
        Where libggml-cpu is.
    address : callable
        Checks a matrix, its dtype and whole blocks of columns, and returns its address.
    memory : dict
        The layouts of arguments.

    Raises
    ------
    RuntimeError
        Activations are quantized to other types than the reference has.
    """
    ggml, cpu = _typed(base, _BASE), cpu_library(path)
    overhead = ggml.ggml_graph_overhead_custom(_NODES, False) + _NODES * ggml.ggml_tensor_overhead() + _SLACK
    for type, kind in ACTIVATION_TYPES.items():
        found = cpu.ggml_get_type_traits_cpu(GGML_TYPES[type].code).contents.vec_dot_type
        if found != GGML_TYPES[kind].code:
            raise RuntimeError(f"ggml quantizes activations for {type} to type {found}, not {kind}")

    def prepare(blocks: np.ndarray, *, type: str) -> _Weights:
        fmt = BLOCK_FORMATS[type]
        address(blocks, np.uint8, fmt.bytes)
        return _Weights(ggml, blocks, type, blocks.shape[1] // fmt.bytes * fmt.elements)

    def mul_mat(a: np.ndarray, *, prepared: _Weights, out: np.ndarray) -> None:
        source = address(a, np.float32, 1)
        if a.shape[1] != prepared.columns:
            raise ValueError(f"a: has {a.shape[1]} columns, must have {prepared.columns}")
        if not out.size:
            return
        context = ggml.ggml_init(_InitParams(a.nbytes + out.nbytes + overhead, None, False))
        try:
            activations = ggml.ggml_new_tensor_2d(context, GGML_TYPES["F32"].code, a.shape[1], a.shape[0])
            ctypes.memmove(ggml.ggml_get_data(activations), source, a.nbytes)
            result = ggml.ggml_mul_mat(context, prepared.tensor, activations)
            graph = ggml.ggml_new_graph_custom(context, _NODES, False)
            ggml.ggml_build_forward_expand(graph, result)
            plan = cpu.ggml_graph_plan(graph, 1, None)
            work = np.empty(plan.work_size + _SLACK, np.uint8)
            plan.work_data = work.ctypes.data + -work.ctypes.data % _ALIGNMENT
            if status := cpu.ggml_graph_compute(graph, ctypes.byref(plan)):
                raise RuntimeError(f"ggml_graph_compute returned {status}")
            ctypes.memmove(out.ctypes.data, ggml.ggml_get_data(result), out.nbytes)
        finally:
            ggml.ggml_free(context)

    for name, form, types in (
        ("mul_mat", DequantizeForm.SUBTRACT_FIRST, [type for type in BLOCK_FORMATS if type not in _CORRECTED]),
        ("mul_mat_corrected", DequantizeForm.SCALE_FIRST, _CORRECTED),
    ):
        backend.implements(
            "matvec_gguf", name=name, prepare=prepare, supports={"type": tuple(types), **memory},
            semantics=Semantics(activation_quantization=ActivationQuantization.GGML, dequantize_form=form),
        )(mul_mat)  # fmt: skip
