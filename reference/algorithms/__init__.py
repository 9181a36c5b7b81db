"""Algorithms that choose codes: each by its definition, and what may be said of results that rounding decided.

An algorithm makes thousands of decisions, each on what those before left. A result is therefore judged along its own
path: every decision is held against what was admissible after the decisions that the result shows before it.
"""
