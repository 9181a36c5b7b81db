"""Adapters: other people's libraries, one module each, held to what they declare or document.

A module here imports its library, which comes with the extra of the same name (``pip install lowbit-cts[gguf]``), and
registers as backends what it has of the suite's operations, by the library's own public functions. Where a library
deviates from what it declares or documents, that is a waiver (conformance/waivers.toml) or a finding
(reports/findings.md); the semantics say what it was meant to compute, not what it happens to return.
"""
