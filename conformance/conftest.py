"""The suite is what stands beside this file; the tests of the suite run when they are named."""

collect_ignore = ["tests"]
