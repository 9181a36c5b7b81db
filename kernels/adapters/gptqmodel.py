"""GPTQModel: the class that quantizes one layer, given the Hessian instead of activations.

Blocks are as long as a group: within a longer one it takes the scales of a group from weights that the errors of the
same block have not reached yet. Two-bit codes are declared with symmetric ranges only, since for asymmetric ones it
searches the zero point.
"""

import os
from importlib.metadata import version

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")

import torch
from gptqmodel.quantization import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ
from torch import Tensor

from lowbit_cts.kernels import Backend

backend = Backend("gptqmodel", version=version("gptqmodel"), arrays="torch")

_BLOCK = 128


def quantize(
    w: Tensor,
    hessian: Tensor,
    *,
    format: str,
    mapping: str,
    group_size: int | None,
    static_groups: bool | None,
    act_order: bool,
    damping: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return codes, scales, zero points and the group of each column."""
    rows, columns = w.shape
    bits = int(format.removeprefix("uint"))
    layer = torch.nn.Linear(columns, rows, bias=False)
    layer.weight.data = w.clone()
    config = QuantizeConfig(
        bits=bits, group_size=group_size or -1, sym=mapping == "symmetric", desc_act=act_order,
        static_groups=bool(static_groups), act_group_aware=False, damp_percent=damping, offload_to_disk=False,
    )  # fmt: skip
    task = GPTQ(layer, config)
    task.quantizer.configure(perchannel=True)
    task.H, task.nsamples, task.fallback = hessian.clone(), 1, None
    values, scale, zero, index, *_ = task.quantize(blocksize=min(group_size or _BLOCK, _BLOCK))
    group = index.long()
    codes = torch.round(values / scale[:, group]) + zero[:, group]
    return codes.to(torch.uint8), scale, zero.to(torch.int32), index


_ANY = {
    "group_size": (32, 128), "static_groups": (False, True), "act_order": (False, True), "damping": (0.01, 0.1),
}  # fmt: skip
_ASYMMETRIC = {**_ANY, "format": ("uint3", "uint4", "uint8"), "mapping": "asymmetric"}
_SYMMETRIC = {**_ANY, "format": ("uint2", "uint3", "uint4", "uint8"), "mapping": "symmetric"}
for _name, _supports in {
    "GPTQ.quantize": {**_ASYMMETRIC, "granularity": "group"},
    "GPTQ.quantize, channel": {**_ASYMMETRIC, "granularity": "channel"},
    "GPTQ.quantize, symmetric": {**_SYMMETRIC, "granularity": ("group", "channel")},
}.items():
    backend.implements("quantize_gptq", name=_name, supports=_supports)(quantize)
