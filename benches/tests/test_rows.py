"""Rows of the table: what is measured is verified, and what is derived is right."""

import numpy as np
import pytest

from lowbit_cts.benches import rows, table
from lowbit_cts.benches.engine.ceilings import Ceiling
from lowbit_cts.benches.table import Row, extremes, smallest
from lowbit_cts.kernels import OPERATIONS, Backend, Division, Semantics
from lowbit_cts.kernels.discovery import load_backends

NUMPY = load_backends("numpy")[0]
#: A layer whose 768 columns are whole blocks.
BLOCKS = "bert-base/attn.query"
#: Decibels of what has few levels (definitions: 20.22 of 16, 4.40 of two, 5.79 of BitNet's three).
LEAST_DB = {"assign_codebook": 19, "binarize": 4, "ternarize": 5, "matmul_w4a16": 18, "matmul_nvfp4": 17}
#: Parameters of which the first will not do.
OF = {"cast_float": {"source": "float32", "target": "float8_e4m3fn"}, "widen_histogram": {"capacity": 2500}}
LINEAR = {"activation_granularity": "token", "weight_granularity": "channel", "mapping": "symmetric"}


def implementation(operation, backend=NUMPY):
    return next(i for i in backend.implementations if i.operation.name == operation)


def one(operation, parameters=None, layer="lenet-5/f6", batch=4):
    return Row(operation, layer, batch, parameters=parameters or {})


def measured(kernel, row):
    workload = row.workload()
    found, wide = rows.measured(kernel, workload, "hot", 0.05, smoke=True)
    return rows.row(kernel, workload, found, wide, {}), workload


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_has_a_row_that_numpy_passes(operation):
    row = one(operation, OF.get(operation), BLOCKS)
    kernel = next(i for i in NUMPY.implementations if row.runs_on(i))
    facts, _ = measured(kernel, row)
    assert facts["verdict"] in ("exact", "faithful")
    assert facts["bytes"] > 0
    assert facts["operations"] > 0
    assert facts["sqnr_db"] > LEAST_DB.get(operation, 20)


def test_the_timed_buffers_of_a_wrong_kernel_are_a_violation():
    backend = Backend("wrong")

    @backend.implements("quantize_affine")
    def off_by_one(x, scale, zero_point):
        return np.clip(np.rint(x / scale) + zero_point + 1, -128, 127).astype(np.int8)

    facts, _ = measured(backend.implementations[0], one("quantize_affine"))
    assert facts["verdict"] == "violation"
    assert facts["mismatches"] > 0


def test_a_kernel_that_writes_into_out_is_measured_and_verified():
    backend = Backend("out", arrays="numpy")

    @backend.implements("quantize_affine", semantics=Semantics(division=Division.DIVIDE))
    def quantize(x, scale, zero_point, *, out):
        out[...] = np.clip(np.rint(x / scale) + zero_point, -128, 127)

    facts, _ = measured(backend.implementations[0], one("quantize_affine"))
    assert facts["verdict"] == "exact"


@pytest.mark.parametrize(
    ("operation", "parameters", "bits"),
    [
        ("quantize_affine", {"format": "int8", "granularity": "tensor"}, 8 + 64 / (4 * 120)),
        ("quantize_affine", {"format": "int4", "granularity": "group", "group_size": 8}, 4 + 64 / 8),
        ("matmul_w8a8", LINEAR, 8 + 32 / 120),
        ("matmul_int8", {}, 8.0),
        ("cast_float", {"source": "float8_e5m2", "target": "float32"}, 8.0),
        ("pack_codes", {"packing": "low_first", "bits": 3}, 3.0),
        ("pack_codes", {"packing": "compressed_tensors", "bits": 3, "signed": True}, 12 * 32 / 120),
        ("unpack_codes", {"packing": "awq"}, 4.0),
        ("compress_sparse24", {"format": "float16"}, 9.0),
        ("decompress_sparse24", {"format": "int8"}, 5.0),
    ],
)
def test_bits_per_weight_count_scales_and_zero_points(operation, parameters, bits):
    assert rows.bits_per_weight(one(operation, parameters).workload().case) == pytest.approx(bits)


@pytest.mark.parametrize(
    ("operation", "parameters", "bits"),
    [
        ("quantize_mx", {"format": "float8_e5m2"}, 8.25),
        ("quantize_mx", {"format": "float6_e3m2fn", "input_format": "bfloat16"}, 6.25),
        ("dequantize_mx", {"format": "float4_e2m1fn"}, 4.25),
        ("quantize_nvfp4", {"levels": "one"}, 4.5),
        ("dequantize_nvfp4", {"levels": "two"}, 4.5 + 32 / (4 * 768)),
        ("quantize_gguf", {"type": "Q3_K"}, 3.4375),
        ("dequantize_gguf", {"type": "TQ1_0", "output_format": "float16"}, 1.6875),
        ("quantize_blockwise", {"block_size": 64}, 4.5),
        ("quantize_blockwise", {"codebook": "dynamic8", "block_size": 256, "input_format": "float16"}, 8.125),
        ("dequantize_blockwise", {"codebook": "fp4_bitsandbytes", "block_size": 32}, 5.0),
        ("double_quantize", {}, 8 + 32 / 48 + 32 / 48),  # 48 blocks of 64: one nested absmax, one offset
        ("double_dequantize", {"block_size": 16}, 8 + 3 * 32 / 48 + 32 / 48),
        ("assign_codebook", {}, 4 + 16 * 32 / (4 * 768)),
        ("update_codebook", {}, 4 + 16 * 32 / (4 * 768)),
        ("binarize", {"granularity": "axis", "axis": 0}, 1 + 32 / 768),
        ("ternarize", {"granularity": "group", "group_size": 64}, 2 + 32 / 64),
    ],
)
def test_bits_per_weight_of_blocks(operation, parameters, bits):
    assert rows.bits_per_weight(one(operation, parameters, BLOCKS).workload().case) == pytest.approx(bits)


def test_the_share_of_the_ceiling_is_the_rooflines():
    kernel, row = implementation("matmul_w8a8"), one("matmul_w8a8", LINEAR)
    workload = row.workload()
    found, _ = rows.measured(kernel, workload, "hot", 0.05, smoke=True)
    moved, work = workload.case.operation.bytes_moved(workload.case), workload.case.operation.work(workload.case)
    ceilings = {
        "copy": Ceiling("copy", moved / 1e-3, "byte/s", 0, 0, ""),
        "matmul_int8": Ceiling("matmul_int8", work / 1e-6, "operation/s", 0, 0, ""),
    }
    facts = rows.row(kernel, workload, found, {}, ceilings)
    assert facts["ceiling_name"] == "copy"
    assert facts["ceiling_share"] == pytest.approx(1e-3 / found.median_s)


def test_a_product_is_measured_beside_the_wide_products():
    kernel, row = implementation("matmul_w8a8"), one("matmul_w8a8", LINEAR)
    workload = row.workload()
    found, wide = rows.measured(kernel, workload, "hot", 0.3, smoke=False)
    facts = rows.row(kernel, workload, found, wide, {})
    assert list(wide) == list(facts["speedups"]) == list(facts["ideal_speedups"]) == ["float32", "bfloat16"]
    assert facts["speedups"]["float32"] == pytest.approx(wide["float32"].median_s / found.median_s)
    assert facts["ideal_speedups"] == pytest.approx({"float32": 32 / (8 + 32 / 120), "bfloat16": 16 / (8 + 32 / 120)})


def test_cold_copies_have_buffers_of_their_own():
    kernel = implementation("quantize_affine")
    seen = []
    backend = Backend("spy")

    @backend.implements("quantize_affine")
    def spy(x, scale, zero_point):
        seen.append(x.ctypes.data)
        return kernel.run(
            x, scale, zero_point, format="int8", input_format="float32", granularity="tensor", axis=None,
            group_size=None, narrow_range=False,
        )  # fmt: skip

    case = one("quantize_affine").workload().case
    for call in rows.bound_calls(backend.implementations[0], case, 3):
        call()
    assert len(set(seen)) == 3


def test_a_row_runs_only_where_its_parameters_are_declared():
    groups = {"format": "int4", "granularity": "group", "group_size": 8}
    narrow = Backend("narrow")
    narrow.implements("quantize_affine")(lambda x, scale, zero_point: x)
    assert one("quantize_affine", groups).runs_on(implementation("quantize_affine"))
    assert not one("quantize_affine", groups).runs_on(narrow.implementations[0])
    assert not one("matmul_int8").runs_on(implementation("quantize_affine"))


@pytest.mark.parametrize("name", ["bench_affine", "bench_codebooks", "bench_products", "bench_elementwise"])
def test_every_row_of_the_benches_can_be_built_and_runs_somewhere(name):
    module = __import__(f"lowbit_cts.benches.{name}", fromlist=["ROWS"])
    for row in module.ROWS:
        assert any(row.runs_on(i) for i in NUMPY.implementations), row.id
    assert len({(row.operation, row.id) for row in module.ROWS}) == len(module.ROWS)
    assert table.ROW_SECONDS > 0


def test_of_rows_that_differ_in_their_shape_the_smallest_stays():
    rows_ = [Row("matmul_w8a8", "lenet-5/c3", batch, fill) for fill in ("normal", "outliers") for batch in (4, 1, 2)]
    wide, other = Row("matmul_w8a8", "bert-base/attn.output", 1), Row("matmul_w8a16", "lenet-5/c3", 8)
    assert smallest([wide, *rows_, other]) == [rows_[1], rows_[4], other]
    assert extremes([*rows_, other]) == [rows_[1], rows_[0], rows_[4], rows_[3], other]
    assert extremes([other]) == [other]
