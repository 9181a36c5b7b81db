"""Numerical fingerprints: what a product computes, found by probing it and without its source.

`probe` says what a prober needs of a product; `order` finds the tree in which the terms are added, `accumulator` the
precision, range and rounding of its nodes, `special` what becomes of subnormals, NaN, infinities and overflows,
`dependence` whether results depend on anything but their operands, `integers` the sums of codes. `adapters` make
probes of this suite's operations, `examine` runs them on backends.
"""

from lowbit_cts.conformance.fingerprint.findings import Findings, NotDetermined
from lowbit_cts.conformance.fingerprint.probe import Probe, Span, Unexpressible
from lowbit_cts.conformance.fingerprint.prober import fingerprint

__all__ = ["Findings", "NotDetermined", "Probe", "Span", "Unexpressible", "fingerprint"]
