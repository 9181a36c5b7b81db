"""What is tested: the contract (operations, semantics, backends), first-party kernels and adapters."""

from lowbit_cts.kernels.backend import Backend, ContractError, Implementation
from lowbit_cts.kernels.operation import OPERATIONS, Case, Operation
from lowbit_cts.kernels.semantics import PRESETS, Semantics
from lowbit_cts.reference.choices import (
    Accumulator,
    Contraction,
    DequantizeForm,
    Division,
    OutsideDomain,
    Overflow,
    Precision,
    RangeRule,
    Rounding,
    ScaleRule,
    ZeroPointCorrection,
    ZeroPointOrder,
    ZeroPointRule,
    ZeroScale,
)

__all__ = [
    "OPERATIONS",
    "PRESETS",
    "Accumulator",
    "Backend",
    "Case",
    "ContractError",
    "Contraction",
    "DequantizeForm",
    "Division",
    "Implementation",
    "Operation",
    "OutsideDomain",
    "Overflow",
    "Precision",
    "RangeRule",
    "Rounding",
    "ScaleRule",
    "Semantics",
    "ZeroPointCorrection",
    "ZeroPointOrder",
    "ZeroPointRule",
    "ZeroScale",
]
