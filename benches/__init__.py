"""Benchmarks: implementations measured against roofline and baseline, and the accuracy they keep."""
