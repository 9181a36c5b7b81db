"""One ONNX operator run by ONNX's reference evaluator and by onnxruntime, and codes in exact arithmetic."""

from fractions import Fraction

import numpy as np
import pytest

from lowbit_cts.reference.formats import integer_format


def codes(rng, shape, format):
    fmt = integer_format(format)
    return rng.integers(fmt.minimum, fmt.maximum, shape, endpoint=True).astype(fmt.carrier)


def evaluator(operator, inputs, outputs, opset=21, **attributes):
    """Return what ONNX's reference evaluator makes of inputs {name: array}."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(_model(onnx, operator, inputs, outputs, opset, attributes)).run(None, inputs)


def runtime(operator, inputs, outputs, opset=21, **attributes):
    """Return what onnxruntime makes of them."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    model = _model(onnx, operator, inputs, outputs, opset, attributes).SerializeToString()
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, inputs)


def _model(onnx, operator, inputs, outputs, opset, attributes):
    def end(name, dtype):
        return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), None)

    node = onnx.helper.make_node(operator, list(inputs), [f"y{i}" for i in range(len(outputs))], **attributes)
    ends = [end(name, array.dtype) for name, array in inputs.items()]
    results = [end(f"y{i}", dtype) for i, dtype in enumerate(outputs)]
    graph = onnx.helper.make_graph([node], operator, ends, results)
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=10)


def by_fractions(acc, s_a, s_b, s_y, z, format):
    """Return the code of a sum in exact arithmetic, half to even, the zero point outside."""
    fmt = integer_format(format)
    exact = Fraction(int(acc)) * Fraction(float(s_a)) * Fraction(float(s_b)) / Fraction(float(s_y))
    return int(np.clip(round(exact) + int(z), fmt.minimum, fmt.maximum))
