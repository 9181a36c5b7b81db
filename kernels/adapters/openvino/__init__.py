"""OpenVINO on the CPU: quantizing and dequantizing, linear layers and convolutions on int8 kernels.

Models are written as OpenVINO's quantization scheme has them, codes dequantized by Convert, Subtract and Multiply and
quantized by FakeQuantize, and the plugin's low-precision transformations put them on integer kernels
(tests/test_adapter_openvino.py looks at what was executed). They demand scales and zero points that are constants; so a
call with others compiles another model.

Not declared, since the plugin computes in float32 there: int8 images with a zero point, weights with zero points or in
uint8, weights that the model does not hold under activations with a zero point. Nor linear layers to float32 whose
activations have a zero point (reports/findings.md), integer sums, for which there is no operator, and FakeQuantize's
own result, whose steps are (high - low) / 255 in float32 and no multiples of a scale.
"""

from importlib.metadata import version

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.adapters.openvino import affine, convolution, products

backend = Backend("openvino", version=version("openvino"), arrays="numpy")
for family in (affine, products, convolution):
    family.register(backend)
