"""compressed-tensors: the words of its "pack-quantized" format.

Not declared: ``packed_dim=0``, which is GPTQ's order of codes that are offset first, and the conversions of
`compressed_tensors.utils.semi_structured_conversions`, whose metadata are in the order of Marlin-24.
"""

from importlib.metadata import version

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from torch import Tensor

from lowbit_cts.kernels import Backend

backend = Backend("compressed_tensors", version=version("compressed-tensors"), arrays="torch")

_SIGNED = {"packing": "compressed_tensors", "bits": tuple(range(1, 9)), "signed": True}


@backend.implements("pack_codes", name="pack_to_int32", supports=_SIGNED)
def pack(codes: Tensor, *, bits: int) -> Tensor:
    """Return ``pack_to_int32(codes, bits)``."""
    return pack_to_int32(codes, bits)


@backend.implements("unpack_codes", name="unpack_from_int32", supports=_SIGNED)
def unpack(words: Tensor, *, bits: int) -> Tensor:
    """Return ``unpack_from_int32``, asked for all the codes that the words hold."""
    rows, columns = words.shape
    return unpack_from_int32(words, bits, torch.Size((rows, columns * 32 // bits)))
