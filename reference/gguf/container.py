r"""The GGUF v3 file: metadata and tensors, written to the byte and read by mapping, without trust.

A file is ``"GGUF"``, the version 3, the numbers of tensors and of metadata entries; the entries (key, type, value); the
tensors' descriptions (name, dimensions with the contiguous one first, type, offset); and, from the next multiple of the
alignment on, their data. Everything is little-endian, strings and arrays carry their length in 64 bits, and nothing
before the data is aligned.

Reading takes no length on trust: a count is held against the bytes that are left, at the smallest size an item can
have, before anything is allocated or repeated for it. It allocates some hundred bytes for each key and each tensor that
is there, and nothing in proportion to what a file merely claims; values and data stay in the file until asked for. It
takes time linear in the size of metadata and descriptions (n tensors are ordered besides). Whatever is wrong is a
ValueError ``byte N: field: rule``, where N is where the field begins.

The document [1]_ and ggml's loader [2]_ disagree in places. What is read here, and written, is what both take where a
limit is in question, and one unambiguous reading elsewhere:

- *alignment*: a uint32, a multiple of 8 (document) and a power of two (ggml, gguf-py), up to 1 MiB. ggml takes 4, but
  then its own float64 and int64 tensors lie at addresses that C does not allow; ggml does not load 24; and beyond 1 MiB
  an alignment serves only to make small files large.
- *tensor names*: up to 64 bytes (document), fewer than 64 (ggml, which adds a NUL): fewer than 64. They may be empty.
- *keys*: ASCII, 1 to 65535 bytes (document). That they be lower_snake_case is not asked, for ggml's own
  ``gemma-embedding.context_length`` is not. ggml takes any bytes.
- *NUL* in keys and tensor names: refused. To ggml a name ends there: ``"general.alignment\0"`` sets the alignment, and
  ``"a\0b"`` and ``"a\0c"`` are two tensors called ``"a"`` (0.25.3) or the same twice (before).
- *strings*: UTF-8 (document). ggml takes any bytes.
- *bool*: 0 or 1 (document). To ggml and gguf-py any other byte is true.
- *nested arrays*: up to 16 deep (document: any depth; ggml: none at all; gguf-py flattens them).
- *dimensions*: 1 to 4, any of them 0. ggml reads none at all as one element, but never writes that.
- *version*: 3 (document). ggml and gguf-py take 2 as well, which differs in nothing but this number.
- *order of the data, gaps*: any (document), and no two tensors overlap. ggml takes the data only in the order of the
  descriptions and without gaps, which is what is written here.
- *padding*: that of the last tensor may be missing (ggml wants it, unless told to leave the data alone). What padding
  and gaps hold, and what follows the last tensor, is not looked at.
- *big-endian files*: refused by name. Within quantized blocks each field would have to be swapped on its own.

References
----------
.. [1] ggml-org/ggml, `docs/gguf.md`.
.. [2] ggml-org/ggml, `src/gguf.cpp` (`gguf_init_from_reader`), commit d99724f2.
"""

from lowbit_cts.reference.gguf.model import Array, File, Tensor, Value
from lowbit_cts.reference.gguf.reader import parse, read
from lowbit_cts.reference.gguf.writer import write

__all__ = ["Array", "File", "Tensor", "Value", "parse", "read", "write"]
