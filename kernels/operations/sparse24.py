"""2:4 sparse matrices: compress_sparse24, decompress_sparse24."""

from collections.abc import Callable, Mapping

import numpy as np

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference.enclosure import Enclosure, determined
from lowbit_cts.reference.formats import FORMATS, decode
from lowbit_cts.reference.packing import sparse24 as reference

METADATA_ORDER = Parameter(
    ("row", "cutlass"), "row after row, or as CUTLASS's kernels for sm_80 load them", assumed=("row",)
)
#: Formats in which sparse matrices are multiplied.
FORMAT_OF_SUMS = Parameter(("float16", "bfloat16", "int8"), "the format of the elements", assumed=("float16",))
_PARAMETERS = {
    "format": Parameter(
        ("float16", "bfloat16", "int8", "float8_e4m3fn", "float8_e5m2"),
        "the format of the elements",
        assumed=("float16",),
    ),
    "metadata_order": METADATA_ORDER,
}
_DENSE = Argument(
    "x", lambda p: p["format"], lambda p: ("M", "K"), "matrix (M, K) of which each four in a row hold at most 2 numbers"
)
VALUES = Argument("values", lambda p: p["format"], lambda p: ("M", "H"), "the elements at the indices, (M, K / 2)")
METADATA = Argument(
    "metadata",
    lambda p: reference.metadata_word(p["format"]).name,
    lambda p: ("M", "W"),
    "two ascending 2-bit indices a group, the first lowest: int16 (M, K / 16), beside 8 bits int32 (M, K / 32)",
)


def covered(parameters: Parameters) -> int:
    """Return how many elements of a dense row a word of metadata covers."""
    return 8 * reference.metadata_word(parameters["format"]).itemsize


def whole(symbol: str, share: int) -> Callable[[Parameters], Mapping[str, int]]:
    """Return the axes that must be whole; CUTLASS's order moves words in blocks of rows and pairs of columns."""

    def multiples(parameters: Parameters) -> Mapping[str, int]:
        columns = covered(parameters) // share
        if parameters["metadata_order"] == "row":
            return {symbol: columns}
        rows = reference.REORDERED_ROWS[reference.metadata_word(parameters["format"]).itemsize]
        return {"M": rows, symbol: 2 * columns}

    return multiples


def _independent(parameters: Parameters) -> tuple[str, ...]:
    return ("M",) if parameters["metadata_order"] == "row" else ()


def _reordered(metadata: Enclosure, word: np.dtype) -> Enclosure:
    def moved(end: np.ndarray) -> np.ndarray:
        return reference.reorder_metadata(end.astype(word)).astype(np.int64)

    return Enclosure(moved(metadata.exact), moved(metadata.lo), moved(metadata.hi))


def _compress(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    format = case.parameters["format"]
    found = reference.compress_enclosure(case.array("x"), format=format, completion=semantics.index_completion)
    if case.parameters["metadata_order"] == "cutlass":
        found["metadata"] = _reordered(found["metadata"], reference.metadata_word(format))
    return found


def stored(case: Case) -> np.ndarray:
    """Return the codes of the dense matrix that values and metadata store."""
    metadata = case.array("metadata")
    if case.parameters["metadata_order"] == "cutlass":
        metadata = reference.restore_metadata(metadata)
    return reference.decompress(case.array("values"), metadata, format=case.parameters["format"])


def _decompress(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    return {"x": determined(decode(stored(case), FORMATS[case.parameters["format"]]), signed_zero=True)}


compress_sparse24 = register(
    Operation(
        name="compress_sparse24",
        summary="a 2:4 sparse matrix as values and metadata",
        source="Mishra et al., arXiv:2104.08378; PTX ISA, sparse matrix storage; CUTLASS, host_reorder.h",
        arguments=(_DENSE,),
        results=(VALUES, METADATA),
        parameters=_PARAMETERS,
        semantics=("index_completion",),
        evaluate=_compress,
        independent=_independent,
        variants=("format", "metadata_order"),
        work=lambda case: float(case.array("x").size),
        derived={
            "H": lambda sizes, p: sizes["K"] // 2 if "K" in sizes else None,
            "W": lambda sizes, p: sizes["K"] // covered(p) if "K" in sizes else None,
        },
        multiples=whole("K", 1),
        weights=("x",),
        stored=("values", "metadata"),
    )
)

decompress_sparse24 = register(
    Operation(
        name="decompress_sparse24",
        summary="values and metadata of a 2:4 sparse matrix as a dense one, +0 where nothing is stored",
        source="Mishra et al., arXiv:2104.08378; PTX ISA, sparse matrix storage; CUTLASS, host_reorder.h",
        arguments=(VALUES, METADATA),
        results=(_DENSE,),
        parameters=_PARAMETERS,
        semantics=(),
        evaluate=_decompress,
        independent=_independent,
        variants=("format", "metadata_order"),
        work=lambda case: 2.0 * case.array("values").size,
        derived={
            "W": lambda sizes, p: 2 * sizes["H"] // covered(p) if "H" in sizes else None,
            "K": lambda sizes, p: 2 * sizes["H"] if "H" in sizes else None,
        },
        multiples=whole("H", 2),
        weights=("x",),
        stored=("values", "metadata"),
    )
)
