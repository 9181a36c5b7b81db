"""Linear layers of which an operand is quantized to less than integers of 8 bits, or both to floats.

matmul_w4a16, matmul_w8a16, matmul_float8, matmul_mx, matmul_nvfp4, linear_nf4, matvec_gguf.
"""

from collections.abc import Callable, Mapping

from lowbit_cts.kernels.operation import Argument, Case, Operation, Parameter, Parameters, register
from lowbit_cts.kernels.semantics import Semantics
from lowbit_cts.reference import operands
from lowbit_cts.reference.choices import ActivationQuantization, DequantizeForm
from lowbit_cts.reference.codebooks import CODEBOOKS
from lowbit_cts.reference.enclosure import Enclosure
from lowbit_cts.reference.formats import float_format
from lowbit_cts.reference.gguf.layout import BLOCK_FORMATS, block_format
from lowbit_cts.reference.mx import MX_BLOCK, MX_FORMATS
from lowbit_cts.reference.nvfp4 import NVFP4_BLOCK
from lowbit_cts.reference.operands import SCALE_BLOCK
from lowbit_cts.reference.sums import Operand, enclosed, exactly, inner_products

Sizes = Mapping[str, int]
Length = Callable[[Sizes, Parameters], int | None]

_WIDE = ("float32", "float16", "bfloat16")
#: Roundings of scales, of a product of two scales, and of a result on its way to the output.
_EPILOGUE = 4

INPUT_FORMAT = Parameter(
    ("float16", "bfloat16", "float32"), "the format of a, of the scales of weights in integers, and of y",
    assumed=("float16",),
)  # fmt: skip
_OUTPUT_FORMAT = Parameter(_WIDE, "the format of y", assumed=("bfloat16",))
HAS_BIAS = Parameter((False, True), "whether a bias is added", assumed=(False,))

BIAS = Argument(
    "bias", lambda p: "float32", lambda p: ("N",), "float32, (N,), or None", present=lambda p: p["has_bias"]
)


def products_result(format: Callable[[Parameters], str]) -> tuple[Argument, ...]:
    """Return the result of a product, (M, N)."""
    return (Argument("y", format, lambda p: ("M", "N"), "outputs, (M, N)"),)


def multiply_adds(case: Case) -> float:
    """Return the multiplications and additions of a product of dense matrices."""
    sizes = case.sizes
    return 2.0 * sizes["M"] * sizes["N"] * sizes["K"]


def _rounded_up(length: str, block: Callable[[Parameters], int | None]) -> Length:
    """Return the number of blocks along an axis, the last one perhaps shorter; None where there are none."""

    def count(sizes: Sizes, parameters: Parameters) -> int | None:
        size = block(parameters)
        return -(-sizes[length] // size) if size and length in sizes else None

    return count


def sum_of_products(case: Case, semantics: Semantics, a: Operand, b: Operand, groups: int = 0) -> dict[str, Enclosure]:
    """Return the enclosure of the sums over groups of products, a bias, and one rounding to the output."""
    bias = case.arrays.get("bias")
    output = float_format(case.operation.results[0].format(case.parameters))
    sums = inner_products(a, b).plus(bias)
    whole = semantics.dequantize_form is DequantizeForm.SUBTRACT_FIRST
    return {"y": enclosed(sums, semantics.float_accumulator, output, _EPILOGUE + groups, propagates=whole)}


# Weights in integers ------------------------------------------------------------------------------------------------


def _per_group(parameters: Parameters) -> tuple[str, ...]:
    return ("P", "N") if parameters["granularity"] == "group" else ("N",)


def _weight_only(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    chosen = case.parameters
    weights = operands.affine_weights(
        case.array("codes"), case.decoded("scale", case.array("scale")), case.arrays["zero_point"],
        case.arrays["group_index"], format=chosen["format"], group_size=chosen["group_size"],
        activations=chosen["input_format"], weight_precision=semantics.weight_precision,
        dequantize_form=semantics.dequantize_form,
    )  # fmt: skip
    a = exactly(case.decoded("a", case.array("a")))
    return sum_of_products(case, semantics, a, weights, case.sizes.get("P", 0))


def _weight_only_operation(bits: int, formats: tuple[str, ...]) -> Operation:
    return Operation(
        name=f"matmul_w{bits}a16",
        summary=f"linear layer of {bits}-bit integer weights: a @ ((codes - zero_point) scale) + bias",
        source="Frantar et al., GPTQ, arXiv:2210.17323; Lin et al., AWQ, arXiv:2306.00978; ONNX Runtime, MatMulNBits",
        arguments=(
            Argument("a", lambda p: p["input_format"], lambda p: ("M", "K"), "activations, (M, K)"),
            Argument("codes", lambda p: p["format"], lambda p: ("K", "N"), "weight codes, one an element, (K, N)"),
            Argument(
                "scale", lambda p: p["input_format"], _per_group,
                "in the format of a: (N,) a channel, (ceil(K / group_size), N) groups",
            ),
            Argument(
                "zero_point", lambda p: "int32", _per_group, "int32, the shape of scale, or None",
                present=lambda p: p["mapping"] == "asymmetric",
            ),
            Argument(
                "group_index", lambda p: "int32", lambda p: ("K",), "int32, (K,): the group of each row, or None",
                present=lambda p: bool(p.get("act_order")),
            ),
            BIAS,
        ),
        results=products_result(lambda p: p["input_format"]),
        parameters={
            "format": Parameter(formats, "the format of the codes", assumed=formats[:1]),
            "granularity": Parameter(
                ("group", "channel"), "a scale a group of rows in a column, or one a column", assumed=("group",)
            ),
            "group_size": Parameter(
                (128, 64, 32, 48), "rows in a group, the last of which may be shorter", assumed=(128, 64, 32),
                open=True, needed=lambda p: p["granularity"] == "group",
            ),
            "mapping": Parameter(
                ("symmetric", "asymmetric"), "symmetric: no zero_point, the middle of the codes stands for 0",
                assumed=("symmetric",),
            ),
            "act_order": Parameter(
                (False, True), "whether a group_index says which group a row is of", assumed=(False,),
                needed=lambda p: p["granularity"] == "group",
            ),
            "has_bias": HAS_BIAS,
            "input_format": INPUT_FORMAT,
        },
        semantics=("float_accumulator", "weight_precision", "dequantize_form"),
        evaluate=_weight_only,
        independent=lambda p: ("M", "N"),
        variants=("granularity", "mapping", "act_order"),
        constant=("codes", "scale", "zero_point", "group_index"),
        work=multiply_adds,
        derived={"P": _rounded_up("K", lambda p: p["group_size"])},
        weights=("codes",),
        stored=("codes", "scale", "zero_point", "group_index"),
    )  # fmt: skip


matmul_w4a16 = register(_weight_only_operation(4, ("uint4", "int4")))
matmul_w8a16 = register(_weight_only_operation(8, ("int8", "uint8")))


# Both operands in floats of 8 bits or fewer -------------------------------------------------------------------------

_FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_A_SCALE = {"tensor": (), "row": ("M",), "block": ("M", "P")}
_B_SCALE = {"tensor": (), "row": ("N",), "block": ("P", "Q")}


def _matmul_float8(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    blocked = case.parameters["scaling"] == "block"
    scalings = ("tile", "block") if blocked else (case.parameters["scaling"],) * 2
    a, b = (
        operands.dequantized(
            operands.float8_matrix(
                case.array(name), case.array(f"{name}_scale"), format=case.parameters[f"{name}_format"],
                scaling=scaling, axis=axis,
            ),
            semantics.weight_precision, case.parameters["output_format"],
        )
        for name, scaling, axis in zip("ab", scalings, (0, 1), strict=True)
    )  # fmt: skip
    return sum_of_products(case, semantics, a, b, case.sizes.get("P", 0) if blocked else 0)


matmul_float8 = register(
    Operation(
        name="matmul_float8",
        summary="product of float8 matrices with scales a tensor, a row and column, or 1 x 128 and 128 x 128 blocks",
        source="Micikevicius et al., FP8 Formats for Deep Learning, arXiv:2209.05433; DeepSeek-V3, arXiv:2412.19437",
        arguments=(
            Argument("a", lambda p: p["a_format"], lambda p: ("M", "K"), "codes, (M, K)"),
            Argument(
                "a_scale",
                lambda p: "float32",
                lambda p: _A_SCALE[p["scaling"]],
                "float32: () a tensor, (M,) rows, (M, ceil(K / 128)) blocks",
            ),
            Argument("b", lambda p: p["b_format"], lambda p: ("K", "N"), "codes, (K, N)"),
            Argument(
                "b_scale",
                lambda p: "float32",
                lambda p: _B_SCALE[p["scaling"]],
                "float32: () a tensor, (N,) rows, (ceil(K / 128), ceil(N / 128)) blocks",
            ),
            BIAS,
        ),
        results=products_result(lambda p: p["output_format"]),
        parameters={
            "a_format": Parameter(_FLOAT8, "the format of a", assumed=_FLOAT8[:1]),
            "b_format": Parameter(_FLOAT8, "the format of b", assumed=_FLOAT8[:1]),
            "scaling": Parameter(("tensor", "row", "block"), "what shares a scale", assumed=("tensor",)),
            "has_bias": HAS_BIAS,
            "output_format": _OUTPUT_FORMAT,
        },
        semantics=("float_accumulator", "weight_precision"),
        evaluate=_matmul_float8,
        independent=lambda p: ("M",) if p["scaling"] == "block" else ("M", "N"),
        variants=("a_format", "scaling"),
        constant=("b", "b_scale"),
        work=multiply_adds,
        derived={
            "P": _rounded_up("K", lambda p: SCALE_BLOCK if p["scaling"] == "block" else None),
            "Q": _rounded_up("N", lambda p: SCALE_BLOCK if p["scaling"] == "block" else None),
        },
    )
)


def _whole_blocks(size: int) -> Length:
    return lambda sizes, parameters: sizes["K"] // size if "K" in sizes else None


def _blocked(name: str, rows: str, format: Callable[[Parameters], str], scale: str) -> tuple[Argument, Argument]:
    return (
        Argument(name, format, lambda p: (rows, "K"), f"codes, one an element, ({rows}, K)"),
        Argument(f"{name}_scale", lambda p: scale, lambda p: (rows, "G"), f"scales of blocks along K, ({rows}, G)"),
    )


def _matmul_mx(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    a, b = (
        operands.mx_matrix(
            case.array(name), case.array(f"{name}_scale"), format=case.parameters[f"{name}_format"]
        )
        for name in ("a", "b")
    )  # fmt: skip
    return sum_of_products(case, semantics, a, b.T, case.sizes["G"])


matmul_mx = register(
    Operation(
        name="matmul_mx",
        summary="product of MX matrices, a (M, K) and the transposed b (N, K), blocks of 32 along K",
        source="OCP Microscaling Formats (MX) v1.0, §6.2, Dot products",
        arguments=(
            *_blocked("a", "M", lambda p: p["a_format"], "float8_e8m0fnu"),
            *_blocked("b", "N", lambda p: p["b_format"], "float8_e8m0fnu"),
            BIAS,
        ),
        results=products_result(lambda p: p["output_format"]),
        parameters={
            "a_format": Parameter(MX_FORMATS, "the format of a's elements", assumed=MX_FORMATS[:1]),
            "b_format": Parameter(MX_FORMATS, "the format of b's elements", assumed=MX_FORMATS[:1]),
            "has_bias": HAS_BIAS,
            "output_format": _OUTPUT_FORMAT,
        },
        semantics=("float_accumulator",),
        evaluate=_matmul_mx,
        independent=lambda p: ("M", "N"),
        variants=("a_format",),
        constant=("b", "b_scale"),
        work=multiply_adds,
        derived={"G": _whole_blocks(MX_BLOCK)},
        multiples=lambda p: {"K": MX_BLOCK},
    )
)


def _matmul_nvfp4(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    a, b = (
        operands.nvfp4_matrix(case.array(name), case.array(f"{name}_scale"), case.array(f"{name}_global_scale"))
        for name in ("a", "b")
    )
    return sum_of_products(case, semantics, a, b.T, case.sizes["G"])


_GLOBAL = "float32, (): what the blocks' scales are multiplied by"

matmul_nvfp4 = register(
    Operation(
        name="matmul_nvfp4",
        summary="product of NVFP4 matrices, a (M, K) and the transposed b (N, K), blocks of 16 along K",
        source="NVIDIA, arXiv:2509.25149; cuBLAS, 1D Block Scaling for FP8 and FP4 Data Types",
        arguments=(
            *_blocked("a", "M", lambda p: "float4_e2m1fn", "float8_e4m3fn"),
            Argument("a_global_scale", lambda p: "float32", lambda p: (), _GLOBAL),
            *_blocked("b", "N", lambda p: "float4_e2m1fn", "float8_e4m3fn"),
            Argument("b_global_scale", lambda p: "float32", lambda p: (), _GLOBAL),
            BIAS,
        ),
        results=products_result(lambda p: p["output_format"]),
        parameters={"has_bias": HAS_BIAS, "output_format": _OUTPUT_FORMAT},
        semantics=("float_accumulator",),
        evaluate=_matmul_nvfp4,
        independent=lambda p: ("M", "N"),
        variants=("output_format",),
        constant=("b", "b_scale", "b_global_scale"),
        work=multiply_adds,
        derived={"G": _whole_blocks(NVFP4_BLOCK)},
        multiples=lambda p: {"K": NVFP4_BLOCK},
        stored=("b", "b_scale", "b_global_scale"),
    )
)


# Weights under codebooks, and in GGUF blocks ------------------------------------------------------------------------

_CODEBOOKS = tuple(name for name, table in CODEBOOKS.items() if table.size == 16)


def _linear_nf4(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    chosen = case.parameters
    weights = operands.codebook_weights(
        case.array("codes"), case.array("absmax"), codebook=chosen["codebook"], block_size=chosen["block_size"],
        activations=chosen["input_format"], weight_precision=semantics.weight_precision,
        part_precision=semantics.part_precision,
    )  # fmt: skip
    a = exactly(case.decoded("a", case.array("a")))
    return sum_of_products(case, semantics, a, weights.T, case.sizes["G"])


linear_nf4 = register(
    Operation(
        name="linear_nf4",
        summary="linear layer of weights (N, K) in NF4 or another codebook of 16 values, blocks along K",
        source="Dettmers et al., QLoRA, arXiv:2305.14314, eq. (5); bitsandbytes, matmul_4bit",
        arguments=(
            Argument("a", lambda p: p["input_format"], lambda p: ("M", "K"), "activations, (M, K)"),
            Argument("codes", lambda p: "uint4", lambda p: ("N", "K"), "weight codes, one an element, (N, K)"),
            Argument("absmax", lambda p: "float32", lambda p: ("N", "G"), "float32, (N, K / block_size)"),
            BIAS,
        ),
        results=products_result(lambda p: p["input_format"]),
        parameters={
            "codebook": Parameter(_CODEBOOKS, "the values by code", assumed=("nf4",)),
            "block_size": Parameter(
                (64, 128, 32), "neighbours in a row that share an absmax", assumed=(64, 128, 32), open=True
            ),
            "has_bias": HAS_BIAS,
            "input_format": INPUT_FORMAT,
        },
        semantics=("float_accumulator", "weight_precision", "part_precision"),
        evaluate=_linear_nf4,
        independent=lambda p: ("M", "N"),
        variants=("codebook",),
        constant=("codes", "absmax"),
        work=multiply_adds,
        derived={"G": lambda sizes, p: sizes["K"] // p["block_size"] if "K" in sizes else None},
        multiples=lambda p: {"K": p["block_size"]},
        weights=("codes",),
        stored=("codes", "absmax"),
    )
)


def _matvec_gguf(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    if semantics.activation_quantization is ActivationQuantization.GGML:
        return _matvec_ggml(case, semantics)
    weights = operands.gguf_weights(
        case.array("blocks"), type=case.parameters["type"], activations="float32",
        weight_precision=semantics.weight_precision, dequantize_form=semantics.dequantize_form,
    )  # fmt: skip
    groups = weights.values.shape[1] // block_format(case.parameters["type"]).group
    return sum_of_products(case, semantics, exactly(case.array("a")), weights.T, groups)


def _matvec_ggml(case: Case, semantics: Semantics) -> dict[str, Enclosure]:
    a, weights = operands.ggml_factors(
        case.array("a"), case.array("blocks"), type=case.parameters["type"], dequantize_form=semantics.dequantize_form
    )
    sums = inner_products(a, weights.T)
    groups = case.sizes["K"] // block_format(case.parameters["type"]).group
    # Of activations that are NaN or infinite nothing is said, nor of sums beyond float16.
    output = float_format("float32")
    return {"y": enclosed(sums, semantics.float_accumulator, output, _EPILOGUE + groups, propagates=False)}


def _bytes_in_row(sizes: Sizes, parameters: Parameters) -> int | None:
    fmt = block_format(parameters["type"])
    return sizes["K"] // fmt.elements * fmt.bytes if "K" in sizes else None


matvec_gguf = register(
    Operation(
        name="matvec_gguf",
        summary="vectors times weights in GGUF blocks: a @ dequantize(blocks).T",
        source="ggml-org/ggml, version 0.25.3: ggml_mul_mat of a quantized and a float32 tensor",
        arguments=(
            Argument("a", lambda p: "float32", lambda p: ("M", "K"), "activations, (M, K)"),
            Argument("blocks", lambda p: "uint8", lambda p: ("N", "B"), "bytes of blocks, row by row, (N, B)"),
        ),
        results=products_result(lambda p: "float32"),
        parameters={"type": Parameter(tuple(BLOCK_FORMATS), "the block format, by ggml's name", assumed=("Q4_0",))},
        semantics=("float_accumulator", "weight_precision", "dequantize_form", "activation_quantization"),
        evaluate=_matvec_gguf,
        independent=lambda p: ("M", "N"),
        variants=("type",),
        constant=("blocks",),
        work=multiply_adds,
        derived={"B": _bytes_in_row},
        multiples=lambda p: {"K": block_format(p["type"]).elements, "B": block_format(p["type"]).bytes},
        weights=(),
        stored=("blocks",),
    )
)
