"""Conformance: properties of implementations, examined in a kernel host and recorded as verdicts."""
