"""torchao: packed nibbles, and block scales in the order of cuBLAS."""

import torch
import torchao
from torch import Tensor
from torchao.prototype.mx_formats.kernels import pack_uint4, unpack_uint4
from torchao.prototype.mx_formats.utils import to_blocked

from lowbit_cts.kernels import Backend

backend = Backend("torchao", version=torchao.__version__, arrays="torch")

# Places of codes and scales in memory -------------------------------------------------------------------------------

#: Two codes a byte, the first in the low nibble; of whole bytes, and contiguous memory only (both are asserted).
_NIBBLES = {"packing": "low_first", "bits": 4, "layout": ("contiguous", "offset")}


@backend.implements("pack_codes", name="pack_uint4", supports=_NIBBLES)
def pack(codes: Tensor) -> Tensor:
    """Return ``pack_uint4(codes)``, with a zero beside an odd last code of a row: the function takes whole bytes."""
    return pack_uint4(torch.nn.functional.pad(codes, (0, codes.shape[1] % 2)))


@backend.implements("unpack_codes", name="unpack_uint4", supports=_NIBBLES)
def unpack(words: Tensor) -> Tensor:
    """Return ``unpack_uint4(words)``."""
    return unpack_uint4(words)


@backend.implements("swizzle_scales", name="to_blocked", supports={"format": ("float8_e8m0fnu", "float8_e4m3fn")})
def swizzle(scales: Tensor) -> Tensor:
    """Return ``to_blocked(scales)``."""
    return to_blocked(scales)
