"""Lowbit-CTS: conformance tests and benchmarks for low-bit and sparse compute kernels."""

__version__ = "0.1.0"
