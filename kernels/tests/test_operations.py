"""Operations as data: each evaluates, and its independent axes are independent."""

from dataclasses import replace

import numpy as np
import pytest

from lowbit_cts.kernels import OPERATIONS, Case, Operation, Semantics
from lowbit_cts.reference.encoding import encode
from lowbit_cts.reference.formats import FORMATS, IntegerFormat

#: Four groups of eight in a row; one nested block; codebooks of seven values; halves and words of a row.
SIZES = {
    "M": 6, "K": 32, "N": 5, "G": 4, "B": 1, "C": 7, "R": 3, "H": 16, "V": 3, "W": 9, "S": 6, "Q": 3, "D": 10, "E": 11,
    "T": 9, "U": 160,
}  # fmt: skip
#: Arguments that are codes, and fewer than their format has.
FEWER_CODES = {("update_codebook", "codes"): SIZES["C"], ("pack_codes", "codes"): 16}
_OF_HISTOGRAMS = ("histogram_percentile_range", "mse_range", "entropy_range")
#: Arguments of which not any numbers will do, and what makes those that will of any.
ADMISSIBLE = {
    **{(name, "group_index"): lambda x: x & 3 for name in ("matmul_w4a16", "matmul_w8a16")},
    ("matmul_sparse24", "metadata"): lambda x: np.full(x.nbytes, 0x4E, np.uint8).view(x.dtype).reshape(x.shape),
    **{(name, "absmax"): lambda x: np.abs(x) + 1 for name in ("matmul_llm_int8", "smooth_weights")},
    ("matvec_gguf", "blocks"): lambda x: x & 0x3F,  # no float16 is infinite
    ("quantize_gptq", "hessian"): lambda x: np.maximum(x @ x.T, (x @ x.T).T) + np.eye(len(x), dtype=x.dtype),
    ("attention_paged", "block_table"): lambda x: x & 3,
    ("attention_paged", "context_lengths"): lambda x: x & 7,
    ("attention_paged", "soft_cap"): lambda x: np.abs(x) + 1,
    ("write_kv_cache", "slot_mapping"): lambda x: 2 * np.arange(x.size) - 1,
    **{(name, "counts"): lambda x: np.abs(x.astype(int)) % 100 + 1 for name in ("widen_histogram", *_OF_HISTOGRAMS)},
    **{(name, "low"): lambda x: -np.ones_like(x) for name in ("histogram", "widen_histogram", *_OF_HISTOGRAMS)},
    **{(name, "high"): np.ones_like for name in ("histogram", "widen_histogram", *_OF_HISTOGRAMS)},
    ("widen_histogram", "new_low"): lambda x: -2 * np.ones_like(x),
    ("widen_histogram", "new_high"): lambda x: 2 * np.ones_like(x),
    ("moving_average_range", "constant"): lambda x: np.full_like(x, 0.25),
    **{(name, "percentile"): lambda x: np.full_like(x, 99) for name in ("percentile_range", _OF_HISTOGRAMS[0])},
    ("compress_sparse24", "x"): lambda x: np.where(np.arange(x.shape[1]) % 4 < 2, x, 0),
    ("decompress_sparse24", "metadata"): lambda x: np.full(x.nbytes, 0x4E, np.uint8).view(x.dtype).reshape(x.shape),
}
#: Operations without a value for an empty set.
NOT_OF_NOTHING = ("choose_qparams_affine", "binarize", "ternarize", "dynamic_quantize_linear", "lsq_initial_scale")


def length(operation: Operation, symbol: str, parameters: dict) -> int:
    """Return the length of an axis: what follows from the others, where it does."""
    derived, whole = operation.derived.get(symbol), operation.multiples(parameters)
    sizes = {other: -(-size // whole.get(other, 1)) * whole.get(other, 1) for other, size in SIZES.items()}
    others = {other: size for other, size in sizes.items() if other != symbol}
    found = derived(others, parameters) if derived else None
    return sizes[symbol] if found is None else found


def small_case(operation: Operation, parameters: dict, seed: int = 60) -> Case:
    """Return a case of random codes and numbers; scales are positive, zero points codes of every format."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray | None] = {}
    for argument in operation.arguments:
        if not argument.present(parameters):
            arrays[argument.name] = None
            continue
        shape = tuple(length(operation, symbol, parameters) for symbol in argument.shape(parameters))
        fmt = FORMATS[argument.format(parameters)]
        if argument.name.endswith("zero_point"):
            array = np.ones(shape)
        elif argument.name.endswith("scale"):
            array = encode(rng.uniform(0.01, 0.1, shape), fmt)
        elif isinstance(fmt, IntegerFormat):
            array = rng.integers(fmt.minimum, FEWER_CODES.get((operation.name, argument.name), fmt.maximum + 1), shape)
        elif fmt.name == "bfloat16":
            array = encode(rng.standard_normal(shape), fmt)
        elif fmt.carrier.kind == "u":
            array = rng.integers(0, 1 << fmt.bits, shape)
        else:
            array = rng.standard_normal(shape)
        array = np.asarray(array).astype(fmt.carrier)
        make = ADMISSIBLE.get((operation.name, argument.name))
        arrays[argument.name] = make(array).astype(fmt.carrier) if make else array
    return Case(operation, parameters, arrays)


def combinations(operation: Operation) -> list[dict]:
    """Return every combination of the variants, the other parameters at their first assumed value."""
    supports = {
        name: parameter.values if name in operation.variants else parameter.assumed[:1]
        for name, parameter in operation.parameters.items()
    } | {name: (8,) for name in ("group_size", "block_size") if name in operation.parameters}
    return list(operation.combinations(supports, tuple(operation.parameters)))


CASES = [(operation, chosen) for operation in OPERATIONS.values() for chosen in combinations(operation)]
IDS = [f"{operation.name}-{'-'.join(map(str, chosen.values()))}" for operation, chosen in CASES]


@pytest.mark.parametrize(("operation", "parameters"), CASES, ids=IDS)
def test_every_operation_encloses_its_results(operation, parameters):
    case = small_case(operation, parameters)
    found = case.enclosures(Semantics())
    assert list(found) == [result.name for result in operation.results]
    for result in operation.results:
        enclosure = found[result.name]
        assert enclosure.shape == case.result_shape(result)
        assert enclosure.admits(enclosure.exact).all()
        assert not enclosure.ratio(enclosure.exact).any()
        with np.errstate(invalid="ignore"):
            assert np.all((enclosure.lo <= enclosure.hi) | np.isnan(enclosure.exact))
    assert operation.work(case) > 0


@pytest.mark.parametrize(("operation", "parameters"), CASES, ids=IDS)
def test_a_cut_along_an_independent_axis_cuts_the_results(operation, parameters):
    """The results of a part are the part of the results: what makes a failing case shrink."""
    semantics = [
        Semantics(),
        Semantics(division="approximate", contraction="either", accumulator="float32", zero_point_correction="float",
                  zero_point_order="inside", dequantize_form="scale_first", scale_rule="half_range",
                  scale_mode="rceil", block_scale_steps="approximate", element_steps="approximate"),
    ]  # fmt: skip
    case = small_case(operation, parameters)
    for chosen in semantics:
        whole = case.enclosures(chosen)
        for symbol in operation.independent(parameters):
            assert symbol in case.sizes
            for indices in (slice(1, 3), [3, 0], slice(0, 0)):
                part = case.take(symbol, indices)
                if 0 in part.sizes.values() and operation.name in NOT_OF_NOTHING:
                    continue  # no minimum of nothing
                cut = part.enclosures(chosen)
                for result in operation.results:
                    axes = result.shape(parameters)
                    index = tuple(indices if axis == symbol else slice(None) for axis in axes)
                    expected = whole[result.name][index]
                    for name in ("exact", "lo", "hi"):
                        np.testing.assert_array_equal(getattr(cut[result.name], name), getattr(expected, name))


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=lambda o: o.name)
def test_a_cut_leaves_the_case_and_its_other_axes_alone(operation):
    parameters = combinations(operation)[0]
    case = small_case(operation, parameters)
    sizes = case.sizes
    for symbol in operation.independent(parameters):
        assert case.take(symbol, slice(0, 2)).sizes == sizes | {symbol: 2}
    assert case.sizes == sizes


def parameters_of(name: str, **changes: object) -> dict:
    operation = OPERATIONS[name]
    chosen = {key: parameter.assumed[0] for key, parameter in operation.parameters.items()} | changes
    return {key: value if operation.parameters[key].needed(chosen) else None for key, value in chosen.items()}


BYTES = [  # operation, parameters, bytes: M 6, K 32, N 5, G 4
    ("matmul_int8", {}, 6 * 32 + 32 * 5 + 4 * 6 * 5),
    ("matmul_w8a8", {}, 6 * 32 + 4 * 6 + 4 * 6 + 32 * 5 + 4 * 5 + 4 * 5 + 4 * 6 * 5),
    ("matmul_w8a8", {"has_bias": False, "activation_granularity": "tensor", "weight_granularity": "tensor",
                     "output_format": "float16"}, 6 * 32 + 4 + 4 + 32 * 5 + 4 + 2 * 6 * 5),
    ("smooth_weights", {}, 4 * 32 + 4 * 5 * 32 + 4 * 32 + 4 * 5 * 32),
    ("awq_scales", {}, 4 * 6 * 32 + 4 * 5 * 32 + 4 + 4 * 32),
    ("awq_clipping", {"group_size": 8}, 4 * 6 * 32 + 4 * 5 * 32 + 8 * 5 * 4),
    ("quantize_gptq", {}, 4 * 5 * 32 + 4 * 32 * 32 + 5 * 32 // 2 + 8 * 5 + 4 * 32),
    ("matmul_integer", {"weight_granularity": "channel"}, 6 * 32 + 4 + 32 * 5 + 4 * 5 + 4 * 6 * 5),
    ("qlinear_matmul", {"activation_granularity": "token"}, 6 * 32 + 8 * 6 + 32 * 5 + 8 + 8 + 6 * 5),
    ("dynamic_quantize_linear", {}, 4 * 6 * 32 + 6 * 32 + 4 + 4),
    ("conv2d_int8", {"pads": (1, 1, 1, 1), "strides": (2, 1), "has_bias": True},  # (6, 7, 16, 9) by (5, 7, 3, 6)
     6 * 7 * 16 * 9 + 8 + 5 * 7 * 18 + 8 * 5 + 8 + 4 * 5 + 6 * 5 * 8 * 6),
    ("quantize_affine", {}, 4 * 6 * 32 + 4 + 4 + 6 * 32),
    ("quantize_affine", {"format": "int4", "input_format": "bfloat16", "granularity": "group", "group_size": 8},
     2 * 6 * 32 + 4 * 6 * 4 + 4 * 6 * 4 + 6 * 32 / 2),
    ("dequantize_affine", {"format": "uint3", "granularity": "axis", "axis": 1},
     6 * 32 * 3 / 8 + 2 * 4 * 32 + 4 * 6 * 32),
    ("fake_quantize_affine", {}, 4 * 6 * 32 + 8 + 4 * 6 * 32),
    ("fake_quantize_gradient", {"granularity": "axis", "axis": 0}, 8 * 6 * 32 + 8 * 6 + 4 * 6 * 32),
    ("lsq_gradient", {}, 8 * 6 * 32 + 4 + 4 + 4 * 6 * 32 + 4),
    ("lsq_gradient", {"granularity": "group", "group_size": 8, "has_zero_point": True},
     8 * 6 * 32 + 8 * 6 * 4 + 4 + 4 * 6 * 32 + 4 * 6 * 4),
    ("lsq_initial_scale", {}, 4 * 6 * 32 + 4),
    ("choose_qparams_affine", {"granularity": "axis", "axis": 0}, 4 * 6 * 32 + 4 * 6 + 4 * 6),
    ("cast_float", {"source": "float16"}, 5 * 2 + 5),
    ("add_int8", {}, 3 * 5 + 6 * 4),
    ("quantize_blockwise", {"block_size": 8}, 4 * 6 * 32 + 6 * 32 / 2 + 4 * 6 * 4),
    ("quantize_blockwise", {"block_size": 8, "codebook": "dynamic8", "input_format": "bfloat16"},
     2 * 6 * 32 + 6 * 32 + 4 * 6 * 4),
    ("dequantize_blockwise", {"block_size": 8, "output_format": "float16"}, 6 * 32 / 2 + 4 * 6 * 4 + 2 * 6 * 32),
    ("double_quantize", {}, 4 * 5 + 4 + 5 + 4),
    ("double_dequantize", {}, 5 + 4 + 4 + 4 * 5),
    ("assign_codebook", {}, 4 * 5 + 4 * 7 + 5 * 3 / 8),  # seven values: three bits
    ("update_codebook", {}, 4 * 5 + 5 * 3 / 8 + 4 * 7 + 4 * 7),
    ("binarize", {"granularity": "axis", "axis": 0}, 4 * 6 * 32 + 6 * 32 / 8 + 4 * 6),
    ("ternarize", {"granularity": "group", "group_size": 8}, 4 * 6 * 32 + 6 * 32 / 4 + 4 * 6 * 4),
    ("pack_codes", {"packing": "awq"}, 6 * 32 + 6 * 32 / 2),
    ("pack_codes", {"packing": "compressed_tensors", "bits": 3, "signed": True}, 6 * 32 + 6 * 3 * 4),
    ("unpack_codes", {"packing": "low_first"}, 6 * 9 + 6 * 18),
    ("swizzle_scales", {}, 6 * 4 + 512),
    ("permute_scales_marlin", {}, 2 * 2 * 4 * 64),
    ("compress_sparse24", {}, 2 * 6 * 32 * (1 + 9 / 16)),
    ("decompress_sparse24", {"format": "int8"}, 6 * 32 * (1 + 5 / 8)),
    ("requantize", {"granularity": "channel"}, 5 * 6 * 5 + 8 * 5),
    ("quantize_mx", {}, 4 * 6 * 32 + 6 * 32 + 6),
    ("dequantize_mx", {"format": "float6_e2m3fn", "output_format": "bfloat16"}, 6 * 32 * 6 / 8 + 6 + 2 * 6 * 32),
    ("choose_global_scale_nvfp4", {}, 4 * 6 * 32 + 4),
    ("quantize_nvfp4", {"input_format": "float16"}, 2 * 6 * 32 + 4 + 6 * 32 / 2 + 6 * 2),
    ("dequantize_nvfp4", {"levels": "one"}, 6 * 32 / 2 + 6 * 2 + 4 * 6 * 32),
    ("quantize_gguf", {}, 4 * 6 * 32 + 6 * 18),
    ("attention_paged", {"block_size": 8, "cache_format": "int8", "grouped": True},
     2 * 6 * 3 * 16 * (10 + 11) + 7 * 8 * 4 * (10 + 11) + 4 * (6 + 6 + 3)),
    ("attention_paged", {"block_size": 8, "cache_format": "int8", "scale_granularity": "kivi"},
     2 * 6 * 3 * 16 * (10 + 11) + 7 * 8 * 16 * (10 + 11) + 4 * 16 * 10 + 4 * 7 * 8 * 16 + 4 * (6 + 6 + 1)),
    ("write_kv_cache", {"block_size": 8, "cache_format": "float8_e5m2"},
     (2 * 9 + 2 * 7 * 8) * 4 * (10 + 11) + 9 * 8 + 4 + 4),
    ("write_kv_cache", {"block_size": 8, "cache_format": "int8", "scale_granularity": "kivi"},
     (2 * 9 + 2 * 7 * 8) * 4 * (10 + 11) + 9 * 8 + 4 * 4 * 10 + 4 * 9 * 4),
    ("matmul_w4a16", {"group_size": 8}, 2 * 6 * 32 + 32 * 5 / 2 + 2 * 4 * 5 + 2 * 6 * 5),
    ("matmul_w4a16", {"group_size": 8, "mapping": "asymmetric", "act_order": True, "has_bias": True},
     2 * 6 * 32 + 32 * 5 / 2 + 2 * 4 * 5 + 4 * 4 * 5 + 4 * 32 + 4 * 5 + 2 * 6 * 5),
    ("matmul_w8a16", {"granularity": "channel", "input_format": "float32"}, 4 * 6 * 32 + 32 * 5 + 4 * 5 + 4 * 6 * 5),
    ("matmul_sparse24", {}, 2 * 6 * 32 * 9 / 16 + 2 * 32 * 5 + 2 * 6 * 5),
    ("linear_low_rank", {}, 2 * (6 * 32 + 32 * 3 + 3 * 5 + 6 * 5)),
    ("linear_lora", {"input_format": "float32"}, 4 * (6 * 32 + 32 * 5 + 32 * 3 + 3 * 5 + 1 + 6 * 5)),
    ("matmul_llm_int8", {}, 2 * 6 * 32 + 5 * 32 + 4 * 5 + 2 * 6 * 5),
    ("matmul_float8", {}, 6 * 32 + 4 + 32 * 5 + 4 + 2 * 6 * 5),
    ("matmul_float8", {"scaling": "block"}, 6 * 32 + 4 * 6 + 32 * 5 + 4 + 2 * 6 * 5),
    ("matmul_mx", {"b_format": "float4_e2m1fn"}, 6 * 32 + 6 + 5 * 32 / 2 + 5 + 2 * 6 * 5),
    ("matmul_nvfp4", {}, 6 * 32 / 2 + 6 * 2 + 4 + 5 * 32 / 2 + 5 * 2 + 4 + 2 * 6 * 5),
    ("linear_nf4", {"block_size": 8}, 2 * 6 * 32 + 5 * 32 / 2 + 4 * 5 * 4 + 2 * 6 * 5),
    ("quantize_hqq", {"group_size": 8}, 4 * 5 * 32 + 5 * 32 // 2 + 8 * 5 * 4),
    ("merge_lora", {}, 2 * (2 * 5 * 32 + 3 * 32 + 5 * 3) + 4),
    ("linear_qlora", {"block_size": 8},
     2 * 6 * 32 + 5 * 32 / 2 + 5 * 4 + 4 + 4 + 2 * (3 * 32 + 5 * 3) + 4 + 2 * 6 * 5),
    ("histogram", {}, 4 * 5 + 4 + 4 + 4 * 64),
    ("widen_histogram", {}, 4 * 160 + 4 * 4 + 4 * 1024 + 4 + 4),
    ("widen_histogram", {"histogram": "magnitudes", "growth": "same_bins"}, 4 * 160 + 2 * 4 + 4 * 160 + 4 + 4),
    ("moving_average_range", {}, 4 * 9 * 5 + 4 + 4 + 4),
    ("percentile_range", {}, 4 * 5 + 4 + 4 + 4),
    ("histogram_percentile_range", {}, 4 * 160 + 4 * 3 + 4 + 4),
    ("mse_range", {"histogram": "magnitudes"}, 4 * 160 + 4 + 4 + 4),
    ("entropy_range", {}, 4 * 160 + 2 * 4 + 4 + 4),
    ("matvec_gguf", {}, 4 * 6 * 32 + 5 * 18 + 4 * 6 * 5),
    ("dequantize_gguf", {"type": "Q6_K", "output_format": "float16"}, 6 * 210 + 2 * 6 * 256),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes", "expected"), BYTES)
def test_bytes_moved_are_arguments_read_once_and_results_written_once(name, changes, expected):
    case = small_case(OPERATIONS[name], parameters_of(name, **changes))
    assert case.operation.bytes_moved(case) == expected


def test_work_counts_a_multiplication_and_an_addition_a_product():
    case = small_case(OPERATIONS["matmul_int8"], parameters_of("matmul_int8"))
    assert case.operation.work(case) == 2 * 6 * 32 * 5


def test_invalid_inputs_are_refused_by_the_reference():
    case = small_case(OPERATIONS["quantize_affine"], parameters_of("quantize_affine"))
    zero = replace(case, arrays={**case.arrays, "scale": np.float32(0)})
    with pytest.raises(ValueError, match="scale: must be positive and finite"):
        zero.enclosures(Semantics())
