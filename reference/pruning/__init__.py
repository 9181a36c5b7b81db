"""Pruning: which weights, filters or layers go, when, and what becomes of those that stay.

==================  ================================================================================
`unstructured`      single weights: magnitude, random, Taylor, SNIP, Wanda, n of m; counts and ties
`sparsegpt`         SparseGPT: single weights, the errors spread over those that are still free
`structured`        filters, channels, neurons, heads, layers by norm; masked networks made smaller
`schedules`         how much goes when: one shot, Zhu and Gupta, lottery tickets and their rewinding
==================  ================================================================================

A mask is True where a weight is kept. What goes is the lowest by some score; how many that are follows from a fraction
by a declared rule (`unstructured.CountRule`), which of equal scores by another (`unstructured.Ties`).
"""
