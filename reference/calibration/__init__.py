"""Calibration observers: the range that a tensor is quantized over, from samples of it.

========================  ==========================================================================================
module                    range
========================  ==========================================================================================
`moving_average`          moving averages of the least and the greatest number of each batch
`percentile`              a percentile of samples, or of a histogram
`mse`                     of a histogram: the least squared error among candidates, or by a greedy search
`entropy`                 of a histogram: the least divergence of what is kept from what is quantized
========================  ==========================================================================================

`histogram` makes the histograms and lets them grow, `candidates` says which of several candidates may be chosen where
rounding errors leave it open. The min-max rule is `lowbit_cts.reference.affine.choose_qparams_enclosure`.

Samples must be finite, and so must be their range in float32; counts must not be negative, nor all zero (`ValueError`
names the argument and the rule). Of no samples only the histogram is defined.
"""
