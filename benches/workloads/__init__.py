"""Workloads: shapes of real models, documented fills, the cases made of them, a small model to train.

`shapes` reads the table of layers (``shapes.toml``), `fills` draws numbers, `cases` makes inputs of any
operation from both, `lenet` trains a small convolutional network and asks what quantizing it costs.
"""
