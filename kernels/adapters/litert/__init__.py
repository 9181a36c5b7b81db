"""LiteRT (TensorFlow Lite) on the CPU: its int8 operators, each in a model of its own, by three sets of kernels.

XNNPACK's are those that LiteRT takes by default; where XNNPACK has none, as for weights that the model does not hold,
those called optimized here, on ruy, are taken; the reference's when they are asked for. Models are built with the
schema that comes with LiteRT; scales, zero points and shapes are part of them, so a call with others builds another. An
interpreter has as many threads as the machine.

LiteRT has its channels last: the images of convolutions are moved there and back in the call, which timings include.

Not declared: FAKE_QUANT, which makes a scale of its own from the range it is given; ADD by XNNPACK and by the optimized
kernels, fixed-point arithmetic that the suite has no name for; fake quantization by the optimized DEQUANTIZE, which
scales first; zero points of BATCH_MATMUL to int32, which are ignored; DEPTHWISE_CONV_2D and per-tensor FULLY_CONNECTED
of the optimized kernels (reports/findings.md); uint8 in layers, which the quantization specification does not have; and
int4, which LiteRT has in the weights of float layers.
"""

from importlib.metadata import version

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.adapters.litert import affine, convolution, products

backend = Backend("litert", version=version("ai-edge-litert"), arrays="numpy")
for family in (affine, products, convolution):
    family.register(backend)
