"""A small language model: Llama's architecture over bytes, trained on the text of Python's standard library.

`corpus` is the text, `train` made the committed files, `network` runs the model in NumPy.
"""
