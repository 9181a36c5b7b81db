"""Builders of workload cases, one module a family of operations."""

from lowbit_cts.benches.workloads.builders import affine, casts, products, vector  # noqa: F401  (fill BUILDERS)
