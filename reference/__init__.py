"""Ground truth in NumPy: one technique a module, and for each the results that a correct kernel may return."""
