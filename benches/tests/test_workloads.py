from math import log10

import numpy as np
import pytest

from lowbit_cts.benches.accuracy import mismatches, relative_frobenius, sqnr_db
from lowbit_cts.benches.workloads import cases, fills, shapes
from lowbit_cts.benches.workloads.builders import building
from lowbit_cts.benches.workloads.builders.building import codes_of
from lowbit_cts.benches.workloads.calls import kernel
from lowbit_cts.kernels import OPERATIONS, Semantics
from lowbit_cts.kernels.numpy import backend

SMALL = shapes.Layer("made-up", "linear", n=24, k=64)

# Shapes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", shapes.table()["models"])
def test_weights_of_the_table(model):
    assert sum(layer.weights for layer in shapes.layers(model)) == shapes.table()["models"][model]["weights"]


@pytest.mark.parametrize(
    ("model", "others", "published"),
    [
        ("llama-2-7b", 32000 * 4096 + 65 * 4096, 6_738_415_616),  # embedding, norms
        ("llama-3-8b", 128256 * 4096 + 65 * 4096, 8_030_261_248),
        # embeddings, their norm; in a block biases and two norms; the pooler's bias
        ("bert-base", (30522 + 512 + 2 + 2) * 768 + 12 * (5 * 768 + 3072 + 4 * 768) + 768, 109_482_240),
        ("resnet-50", 53_120 + 1000, 25_557_032),  # batch norms, the last layer's bias
        ("lenet-5", 6 + 16 + 120 + 84 + 10, 61_706),  # biases
    ],
)
def test_weights_are_the_published_models(model, others, published):
    assert sum(layer.weights for layer in shapes.layers(model)) + others == published


def test_weights_in_the_blocks():
    def blocks(model, *outside):
        return sum(layer.weights for layer in shapes.layers(model) if layer.name not in outside)

    assert blocks("llama-2-7b", "lm_head") == 6_476_005_376
    assert blocks("llama-3-8b", "lm_head") == 6_979_321_856
    assert blocks("bert-base", "pooler") == 84_934_656


def test_multiply_adds_of_convolutions():
    """The rows of im2col are right if the multiply-adds are: 4.09 G (torchvision)."""

    def count(model):
        return sum(layer.m * layer.weights for layer in shapes.layers(model))

    assert count("resnet-50") == 4_089_184_256
    assert count("lenet-5") == 28 * 28 * 150 + 10 * 10 * 2400 + 48_000 + 10_080 + 840


def test_layers_are_found_by_name():
    layer = shapes.layer("llama-3-8b/mlp.down_proj")
    assert (layer.n, layer.k, layer.rows(16)) == (4096, 14336, 16)
    assert layer in shapes.layers()
    with pytest.raises(ValueError, match="admissible: llama-2-7b"):
        shapes.layers("llama-9")
    with pytest.raises(ValueError, match="admissible: c1"):
        shapes.layer("lenet-5/c2")


def test_workloads_are_every_layer_with_every_batch():
    found = list(shapes.workloads("lenet-5", (1, 8)))
    assert [(layer.name, batch) for layer, batch in found[:3]] == [("c1", 1), ("c1", 8), ("c3", 1)]
    assert len(list(shapes.workloads())) == len(shapes.layers()) * len(shapes.batches())
    assert {2**i for i in range(13)} <= set(shapes.batches())
    assert sorted(shapes.batches()) == list(shapes.batches())


# Fills -----------------------------------------------------------------------------------------------------


def test_normal_is_standard_normal():
    x = fills.normal(np.random.default_rng(0), (1000, 1000))
    assert x.dtype == np.float32
    assert abs(x.mean(dtype=np.float64)) < 5e-3
    assert x.var(dtype=np.float64) == pytest.approx(1, abs=0.01)
    assert np.mean(x**4, dtype=np.float64) == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize(("channels", "expected"), [(1000, 10), (250, 2), (64, 1), (1, 1)])
def test_outliers_are_a_hundredth_of_the_channels(channels, expected):
    rng = np.random.default_rng(0)
    deviations = fills.outliers(rng, (2000, channels)).std(axis=0)
    large = deviations > 10
    assert large.sum() == expected
    assert deviations[large] == pytest.approx(50, rel=0.1)
    assert deviations[~large] == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("fill", fills.FILLS.values(), ids=fills.FILLS)
def test_fills_repeat_and_fit_any_shape(fill):
    first, second = (fill(np.random.default_rng(7), (5, 33)) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.shape == (5, 33)
    assert fill(np.random.default_rng(7), (0, 4)).shape == (0, 4)


# Cases -----------------------------------------------------------------------------------------------------

EVERY = [
    ("quantize_affine", {}),
    ("quantize_affine", {"granularity": "axis", "axis": 0, "format": "uint4"}),
    ("quantize_affine", {"granularity": "axis", "axis": 1, "narrow_range": True}),
    ("quantize_affine", {"granularity": "group", "group_size": 16, "mapping": "symmetric"}),
    ("quantize_affine", {"input_format": "bfloat16"}),
    ("dequantize_affine", {"granularity": "group"}),
    ("dequantize_affine", {"output_format": "bfloat16"}),
    ("fake_quantize_affine", {"granularity": "axis"}),
    ("fake_quantize_gradient", {"granularity": "axis", "axis": 1, "mapping": "asymmetric"}),
    ("lsq_gradient", {}),
    ("lsq_gradient", {"format": "uint4", "granularity": "group", "group_size": 32}),
    ("lsq_gradient", {"format": "uint8", "granularity": "axis", "has_zero_point": True}),
    ("lsq_initial_scale", {"granularity": "axis", "axis": 0}),
    ("choose_qparams_affine", {}),
    ("choose_qparams_affine", {"granularity": "group", "input_format": "float16"}),
    ("smooth_weights", {"alpha": 0.75}),
    ("awq_scales", {"candidates": "both"}),
    ("awq_clipping", {"format": "uint3", "granularity": "channel"}),
    ("quantize_gptq", {}),
    ("quantize_gptq", {"granularity": "channel", "act_order": True, "format": "uint8"}),
    ("quantize_hqq", {}),
    ("quantize_hqq", {"granularity": "channel", "format": "uint8"}),
    ("cast_float", {}),
    ("cast_float", {"source": "float8_e5m2"}),
    ("cast_float", {"source": "float8_e4m3fn", "target": "bfloat16"}),
    ("matmul_int8", {"a_format": "uint8"}),
    ("matmul_w8a8", {}),
    ("matmul_w8a8", {"activation_granularity": "tensor", "weight_granularity": "tensor"}),
    ("matmul_w8a8", {"a_format": "uint8", "mapping": "symmetric", "has_bias": False}),
    ("add_int8", {"format": "uint8"}),
    ("matmul_integer", {"a_format": "uint8", "weight_granularity": "channel"}),
    ("qlinear_matmul", {"activation_granularity": "token"}),
    ("qlinear_matmul", {"a_format": "uint8", "b_format": "uint8", "y_format": "uint8"}),
    ("dynamic_quantize_linear", {}),
    ("conv2d_int8", {}),
    ("conv2d_int8", {"x_format": "uint8", "pads": (1, 1, 1, 1), "groups": 2, "has_bias": True}),
    ("conv2d_int8", {"groups": "depthwise", "weight_mapping": "asymmetric", "strides": (2, 2)}),
    ("pack_codes", {}),
    ("pack_codes", {"packing": "compressed_tensors", "bits": 3, "signed": True}),
    ("pack_codes", {"packing": "marlin"}),
    ("unpack_codes", {"packing": "gptq"}),
    ("unpack_codes", {"bits": 1, "signed": True}),
    ("swizzle_scales", {}),
    ("swizzle_scales", {"format": "float8_e4m3fn"}),
    ("permute_scales_marlin", {}),
    ("permute_scales_marlin", {"format": "bfloat16", "granularity": "channel"}),
    ("compress_sparse24", {"metadata_order": "cutlass"}),
    ("compress_sparse24", {"format": "int8"}),
    ("decompress_sparse24", {"format": "float8_e5m2", "metadata_order": "cutlass"}),
    ("requantize", {"granularity": "channel"}),
    ("requantize", {"format": "uint8"}),
    ("quantize_mx", {"format": "float4_e2m1fn"}),
    ("quantize_mx", {"format": "int8", "input_format": "bfloat16"}),
    ("dequantize_mx", {"format": "float6_e3m2fn"}),
    ("choose_global_scale_nvfp4", {}),
    ("quantize_nvfp4", {"input_format": "float16"}),
    ("dequantize_nvfp4", {"levels": "one", "output_format": "bfloat16"}),
    ("quantize_gguf", {"type": "Q8_0"}),
    ("quantize_gguf", {}),
    ("dequantize_gguf", {"type": "Q8_0", "output_format": "bfloat16"}),
    ("quantize_blockwise", {"block_size": 32}),
    ("quantize_blockwise", {"codebook": "dynamic8", "block_size": 64, "input_format": "float16"}),
    ("dequantize_blockwise", {"codebook": "fp4_bitsandbytes", "block_size": 32, "output_format": "bfloat16"}),
    ("double_quantize", {"block_size": 64}),
    ("double_dequantize", {}),
    ("assign_codebook", {}),
    ("update_codebook", {}),
    ("binarize", {"granularity": "axis", "axis": 0}),
    ("ternarize", {"rule": "twn", "granularity": "group", "group_size": 16}),
    ("ternarize", {"rule": "bitnet", "input_format": "bfloat16"}),
    ("histogram", {"bins": 2048}),
    ("widen_histogram", {"capacity": 2500}),
    ("widen_histogram", {"histogram": "magnitudes", "growth": "same_bins"}),
    ("moving_average_range", {}),
    ("percentile_range", {"histogram": "magnitudes"}),
    ("histogram_percentile_range", {}),
    ("mse_range", {"histogram": "values"}),
    ("entropy_range", {"levels": 128}),
    ("attention_paged", {"cache_format": "float8_e4m3fn", "grouped": True, "block_size": 16}),
    ("attention_paged", {"cache_format": "int8", "mask": "window", "window": 5, "capped": True}),
    ("attention_paged", {"cache_format": "int8", "scale_granularity": "kivi"}),
    ("attention_paged", {"cache_format": "float8_e5m2", "scale_granularity": "head"}),
    ("write_kv_cache", {"input_format": "float32", "cache_format": "float32"}),
    ("write_kv_cache", {"cache_format": "int8", "scale_granularity": "kivi", "block_size": 16}),
    ("write_kv_cache", {"cache_format": "float8_e4m3fn", "scale_granularity": "head"}),
    ("matmul_w4a16", {"group_size": 32}),
    ("matmul_w4a16", {"group_size": 32, "mapping": "asymmetric", "act_order": True, "has_bias": True}),
    ("matmul_w8a16", {"granularity": "channel", "input_format": "bfloat16"}),
    ("matmul_float8", {"has_bias": True}),
    ("matmul_float8", {"scaling": "row", "b_format": "float8_e5m2", "output_format": "float32"}),
    ("matmul_float8", {"scaling": "block"}),
    ("matmul_mx", {"has_bias": True}),
    ("matmul_mx", {"a_format": "float6_e2m3fn", "b_format": "int8"}),
    ("matmul_nvfp4", {}),
    ("linear_nf4", {"block_size": 32}),
    ("matvec_gguf", {}),
    ("matmul_sparse24", {}),
    ("matmul_sparse24", {"format": "int8"}),
    ("linear_low_rank", {"has_bias": True}),
    ("linear_lora", {"input_format": "bfloat16"}),
    ("linear_qlora", {"input_format": "bfloat16", "has_bias": True}),
    ("merge_lora", {}),
    ("matmul_llm_int8", {}),
    ("matvec_gguf", {"type": "Q8_0"}),
]

#: Relative errors of what has too few levels for outliers.
COARSE = {
    "attention_paged": 0.3,
    "dequantize_blockwise": 0.2, "matmul_w4a16": 0.3, "matmul_nvfp4": 0.3, "linear_nf4": 0.3, "matvec_gguf": 0.3,
    "moving_average_range": 1.0, "entropy_range": 1.0, "assign_codebook": 0.8, "binarize": 1.0, "ternarize": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("fill", fills.FILLS)
@pytest.mark.parametrize(("operation", "parameters"), EVERY)
def test_cases_are_good_inputs_and_close_to_their_ideal(operation, parameters, fill, monkeypatch):
    monkeypatch.setattr(building, "_BLOCK", 200)  # several blocks of rows
    built = cases.build(operation, SMALL, 10, fill=fill, parameters=parameters)
    contract, case = built.case.operation, built.case
    for argument in contract.arguments:
        array = case.arrays[argument.name]
        if array is not None:
            assert array.dtype == case.format(argument.name).carrier
            assert isinstance(array, np.ndarray)
    arguments = [case.arrays[argument.name] for argument in contract.arguments]
    results = kernel(backend, operation, case.parameters)(*arguments)
    returned = {slot.name: result for slot, result in zip(contract.results, results, strict=True)}
    enclosures = case.enclosures(Semantics(), returned)
    for slot, result in zip(contract.results, results, strict=True):
        assert enclosures[slot.name].admits(case.decoded(slot.name, result)).all()
    approximation = built.approximation(*results)
    assert approximation.shape == built.truth.shape
    assert relative_frobenius(built.truth, approximation) < COARSE.get(operation, 0.15)


def test_every_operation_has_a_case():
    assert {operation for operation, _ in EVERY} == set(OPERATIONS)


@pytest.mark.parametrize(
    "place",
    [
        {},
        {"granularity": "axis", "axis": 0},
        {"granularity": "axis", "axis": 1},
        {"granularity": "group", "group_size": 32},
    ],
)
def test_codes_are_the_references(place, monkeypatch):
    monkeypatch.setattr(building, "_BLOCK", 200)
    built = cases.build("quantize_affine", SMALL, 10, fill="outliers", parameters=place)
    exact = built.case.enclosures(Semantics())["codes"].exact
    arrays, parameters = built.case.arrays, built.case.parameters
    codes = codes_of(arrays["x"], arrays["scale"], arrays["zero_point"], parameters)
    assert mismatches(exact, codes) == 0
    chosen = cases.build("choose_qparams_affine", SMALL, 10, fill="outliers", parameters=place)
    for name, enclosure in chosen.case.enclosures(Semantics()).items():
        assert np.array_equal(enclosure.exact, arrays[name])


def test_sqnr_of_a_normal_signal_is_what_its_scale_says():
    built = cases.build("quantize_affine", SMALL, 1000)
    codes = codes_of(*built.case.arrays.values(), built.case.parameters)
    predicted = 10 * log10(12 * np.mean(built.truth**2) / built.case.arrays["scale"] ** 2)
    assert sqnr_db(built.truth, built.approximation(codes)) == pytest.approx(predicted, abs=0.1)


def test_outliers_cost_what_a_scale_a_channel_saves():
    def sqnr(fill, **parameters):
        layer = shapes.Layer("made-up", "wide", n=8, k=512)
        built = cases.build("quantize_affine", layer, 200, fill=fill, parameters=parameters)
        codes = codes_of(*built.case.arrays.values(), built.case.parameters)
        quiet = np.abs(built.truth).max(axis=0) < 10
        return sqnr_db(built.truth[:, quiet], built.approximation(codes)[:, quiet])

    assert sqnr("outliers") < sqnr("normal") - 25
    assert sqnr("outliers", granularity="axis", axis=1) > sqnr("normal")


def test_truth_of_products():
    built = cases.build("matmul_w8a8", SMALL, 4, seed=3)
    rng = np.random.default_rng(3)
    x, w = fills.normal(rng, (4, 64)), fills.normal(rng, (24, 64))
    assert built.truth == pytest.approx(x @ w.T + built.case.arrays["bias"], abs=1e-4)
    exact = cases.build("matmul_int8", SMALL, 4)
    a, b = (exact.case.arrays[name].astype(int) for name in "ab")
    assert np.array_equal(exact.truth, a @ b)


def test_convolutions_have_rows_of_im2col():
    layer = shapes.layer("lenet-5/c3")
    assert cases.build("matmul_int8", layer, 2).case.sizes == {"M": 200, "K": 150, "N": 16}


@pytest.mark.parametrize(
    ("name", "parameters", "image", "output"),
    [
        ("resnet-50/conv1", {"strides": (2, 2), "pads": (1, 1, 1, 1)}, (3, 227, 227), (64, 112, 112)),
        ("resnet-50/layer1.conv2", {"pads": (1, 1, 1, 1)}, (64, 56, 56), (64, 56, 56)),
        ("resnet-50/layer3.conv1", {}, (1024, 14, 14), (256, 14, 14)),
        ("lenet-5/c3", {}, (6, 14, 14), (16, 10, 10)),
    ],
)
def test_convolutions_have_the_shapes_of_their_layers(name, parameters, image, output):
    layer = shapes.layer(name)
    built = cases.build("conv2d_int8", layer, 1, parameters=parameters)
    assert built.case.arrays["x"].shape == (1, *image)
    assert built.truth.shape == (1, *output)
    assert built.case.operation.work(built.case) == 2 * layer.m * layer.n * layer.k


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"operation": "matmul_int1"}, "operation: 'matmul_int1' is unknown"),
        ({"fill": "zeros"}, "fill: 'zeros' is unknown; admissible: normal"),
        ({"parameters": {"shape": 3}}, "parameters: 'shape' is unknown"),
        ({"parameters": {"format": "int9"}}, "format: 'int9' is not admissible"),
        ({"parameters": {"granularity": "group", "group_size": 48}}, "does not divide"),
    ],
)
def test_what_does_not_exist_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cases.build(**{"operation": "quantize_affine", "layer": SMALL, "batch": 1, **arguments})
    with pytest.raises(ValueError, match="no combination"):
        cases.build("cast_float", SMALL, 1, parameters={"source": "float32", "target": "float32"})
