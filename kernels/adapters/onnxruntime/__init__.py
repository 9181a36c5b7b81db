"""onnxruntime: ONNX's quantization operators and casts on the CPU provider, each alone in a model.

Kernels write into the arrays they are given (I/O binding), codes below 8 bits by way of ONNX's packing: the first code
of a byte in its lowest bits. Graph optimizations are off, so that the operator named is the one that runs.

Not declared, since onnxruntime has no kernel for it or refuses it in the call: bfloat16 in QuantizeLinear and
DequantizeLinear, QuantizeLinear of float16 by a float32 scale, scales and zero points a token in MatMulIntegerToFloat
(it takes a vector of scales for those of columns), zero points a token in MatMulInteger and QLinearMatMul, results of
another type than the first operand's in QLinearMatMul and QLinearConv, casts of 4- and 6-bit floats. Not declared,
since the suite has no name for its rule: casts to E8M0, where what lies below the smallest number is NaN
(``saturate=0``), or negative numbers become the smallest (``saturate=1``).
"""

import onnxruntime

from lowbit_cts.kernels import Backend
from lowbit_cts.kernels.adapters.onnxruntime import affine, calibration, casts, operators, products, weight_only

backend = Backend("onnxruntime", version=onnxruntime.__version__, arrays="numpy")
for family in (affine, products, operators, weight_only, casts, calibration):
    family.register(backend)
