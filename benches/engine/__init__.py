"""The measuring engine: clocks, statistics, the measuring loop, ceilings, replay into pytest-benchmark.

`measure` times calls and stops on the confidence interval of their median; `clocks` says what a second
is on each device; `statistics` needs no distribution; `ceilings` measures what the device can do at most,
`datasheet` holds what its maker promises; `machine` records the conditions; `replay` hands the samples to
pytest-benchmark. Nothing here imports torch before a CUDA device or a ceiling asks for it.
"""
