"""ml_dtypes: NumPy's casts with its small floats.

Overflow becomes Inf, else NaN, else (FP6, FP4) the largest value; E8M0 makes NaN of zero and negative numbers.
"""

import ml_dtypes
import numpy as np

from lowbit_cts.kernels import Backend, Overflow, Semantics
from lowbit_cts.reference.formats import FORMATS, SMALL_FLOATS

backend = Backend("ml_dtypes", version=ml_dtypes.__version__, arrays="numpy")

_WIDE = ("float32", "float16", "bfloat16")


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def astype(x: np.ndarray, *, source: str, target: str) -> np.ndarray:
    """Return ``x.astype(target)``, the codes seen as what they stand for and the result as codes again."""
    with np.errstate(all="ignore"):
        return x.view(_dtype(source)).astype(_dtype(target)).view(FORMATS[target].carrier)


def _register() -> None:
    semantics = Semantics(overflow=Overflow.INFINITY_OR_NAN)
    directions = {
        "to_small": (_WIDE, [name for name in SMALL_FLOATS if name != "float8_e8m0fnu"]),
        "to_float8_e8m0fnu": (_WIDE, "float8_e8m0fnu"),
        "from_small": (SMALL_FLOATS, _WIDE),
        "between_wide": (_WIDE, _WIDE),
        "from_float64": ("float64", ("bfloat16", *SMALL_FLOATS)),
    }
    for name, (source, target) in directions.items():
        backend.implements("cast_float", name=name, semantics=semantics, supports={"source": source, "target": target})(
            astype
        )


_register()
