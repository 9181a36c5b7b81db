"""Cast."""

from collections.abc import Callable
from dataclasses import replace

from lowbit_cts.kernels import Backend, Overflow
from lowbit_cts.kernels.adapters.onnxruntime.sessions import ONNX, TYPES, WIDE, kept_session, run
from lowbit_cts.reference.formats import FLOAT8_FORMATS


def _cast(saturate: int) -> Callable[..., None]:
    def cast(x, *, source, target, out):
        inputs, outputs = (("input", source, ("N",)),), (("output", target, ("N",)),)
        session = kept_session("Cast", inputs, outputs, (("saturate", saturate), ("to", TYPES[target])))
        run(session, {inputs[0]: x}, {outputs[0]: out})

    return cast


def register(backend: Backend) -> None:
    """Register the casts by what is declared of their overflow."""
    narrow = ("float16", "bfloat16", *FLOAT8_FORMATS)
    directions = {
        "Cast_saturate": (1, WIDE, FLOAT8_FORMATS),
        "Cast_no_saturate": (0, WIDE, ("float8_e4m3fn", "float8_e5m2")),
        "Cast_no_saturate_fnuz": (0, WIDE, ("float8_e4m3fnuz", "float8_e5m2fnuz")),
        "Cast_from_small": (1, (*FLOAT8_FORMATS, "float8_e8m0fnu"), WIDE),
        "Cast_between_wide": (1, WIDE, WIDE),
        "Cast_float64_to_float32": (1, "float64", "float32"),
        "Cast_from_float64": (1, "float64", narrow),
    }
    for name, (saturate, source, target) in directions.items():
        overflow = Overflow.SATURATE if saturate else Overflow.INFINITY_OR_NAN
        backend.implements(
            "cast_float",
            name=name,
            semantics=replace(ONNX, overflow=overflow),
            supports={"source": source, "target": target},
        )(_cast(saturate))
