"""A vendor's codebook kernels: right ones of several semantics, and the same with one planted fault each."""

from functools import partial

import numpy as np

from lowbit_cts.kernels import PRESETS, Backend, Contraction, Division, EmptyCluster, Semantics
from lowbit_cts.kernels.numpy import codebooks as plain
from lowbit_cts.reference.codebooks import CODEBOOKS

right = Backend("right", version="1.0")
wrong = Backend("wrong", version="1.0")

F = np.float32
ONE = F(1)
NF4, FP4, DYNAMIC = CODEBOOKS["nf4"], CODEBOOKS["fp4_bitsandbytes"], CODEBOOKS["dynamic8"]
BNB = PRESETS["bitsandbytes"]
BLOCKS = {"block_size": (64, 32)}
EVERY = {"codebook": tuple(CODEBOOKS), **BLOCKS}


def _blocks(x, block_size):
    return x.reshape(x.shape[0], x.shape[1] // block_size, block_size)


def _absmax(blocks):
    return np.abs(blocks).max(axis=2)


def _sorted(table):
    order = np.argsort(table, kind="stable")
    return (table[order][:-1] + table[order][1:]) * F(0.5), order.astype(np.uint8)


def _bucketize(x, table, side="left"):
    bounds, order = _sorted(table)
    return order[np.searchsorted(bounds, x, side=side)]


def _quantize(x, codebook, block_size, search=_bucketize, least=1e-38):
    blocks = _blocks(x, block_size)
    absmax = _absmax(blocks)
    with np.errstate(all="ignore"):
        quotients = blocks * (ONE / np.maximum(absmax, F(least)))[..., None]
    return search(quotients, CODEBOOKS[codebook]).reshape(x.shape), absmax


# Right kernels ------------------------------------------------------------------------------------------------------


@right.implements("quantize_blockwise", semantics=BNB, supports=EVERY)
def as_bitsandbytes_on_cpu(x, *, codebook, block_size):
    return _quantize(x, codebook, block_size)


@right.implements(
    "quantize_blockwise", semantics=Semantics(tie="upper", equal_values="by_side", epsilon=1e-30), supports=EVERY
)
def ties_upward(x, *, codebook, block_size):
    blocks = _blocks(x, block_size)
    absmax = _absmax(blocks)
    quotients = blocks / np.maximum(absmax, F(1e-30))[..., None]
    codes = _bucketize(quotients, CODEBOOKS[codebook], side="right")
    # Of FP4's two zeros a search to the right gives the second for zero itself, which belongs to the first.
    zero = CODEBOOKS[codebook][codes] == 0
    first = np.flatnonzero(CODEBOOKS[codebook] == 0)[0]
    return np.where(zero & (quotients <= 0), first, codes).astype(np.uint8).reshape(x.shape), absmax


@right.implements(
    "quantize_blockwise",
    semantics=Semantics(tie="lowest_code", boundary="exact", intermediate="float64", zero_scale="one"),
    supports=EVERY,
)
def argmin_of_float64_distances(x, *, codebook, block_size):
    blocks = _blocks(x, block_size).astype(np.float64)
    absmax = _absmax(blocks)
    quotients = blocks / np.where(absmax < 2.0**-126, 1, absmax)[..., None]
    table = CODEBOOKS[codebook].astype(np.float64)
    codes = np.empty(x.size, np.uint8)
    for start in range(0, x.size, 4096):
        part = quotients.reshape(-1)[start : start + 4096, None]
        codes[start : start + 4096] = np.argmin(np.abs(part - table), axis=1)
    return codes.reshape(x.shape), absmax.astype(F)


def _inexact_quotients(x, block_size):
    """Return quotients up to an ulp off, in a pattern, as a fast division would; NaN where 0 / 0."""
    blocks = _blocks(x, block_size)
    absmax = _absmax(blocks)
    with np.errstate(all="ignore"):
        quotients = blocks / absmax[..., None]
    toward = np.resize(F([2, -2, 0]), block_size)
    moved = np.where(toward == 0, quotients, np.nextafter(quotients, toward))
    return np.where(np.isin(quotients, (-1, 0, 1)), quotients, moved).astype(F), absmax


_CUDA = PRESETS["bitsandbytes_cuda"]


@right.implements("quantize_blockwise", semantics=_CUDA, supports=BLOCKS)
def nf4_as_on_cuda(x, *, block_size):
    quotients, absmax = _inexact_quotients(x, block_size)
    codes = np.searchsorted((NF4[:-1] + NF4[1:]) * F(0.5), np.nan_to_num(quotients, nan=-9)).astype(np.uint8)
    return codes.reshape(x.shape), absmax


@right.implements(
    "quantize_blockwise",
    semantics=Semantics(
        division="approximate", equal_values="by_sign", zero_scale="zero", tie="toward_zero", slack=4e-7
    ),
    supports={"codebook": "fp4_bitsandbytes", **BLOCKS},
)
def fp4_as_on_cuda(x, *, block_size):
    quotients, absmax = _inexact_quotients(x, block_size)
    thresholds = F([0.00260417, 0.0859375, 0.20833333, 0.29166667, 0.4166667, 0.583333, 0.8333333])
    magnitudes = np.array([0, 1, 6, 7, 4, 5, 2, 3], np.uint8)[np.searchsorted(thresholds, np.abs(quotients))]
    return np.where(quotients < 0, magnitudes + 8, magnitudes).astype(np.uint8).reshape(x.shape), absmax


@right.implements(
    "quantize_blockwise",
    semantics=Semantics(division="approximate", zero_scale="zero", tie="even_code"),
    supports={"codebook": "dynamic8", **BLOCKS},
)
def dynamic8_by_halves(x, *, block_size):
    quotients, absmax = _inexact_quotients(x, block_size)
    q = np.nan_to_num(quotients, nan=-1).reshape(-1)
    bounds = (DYNAMIC[:-1] + DYNAMIC[1:]) * F(0.5)
    even = 2 * np.searchsorted(DYNAMIC[1:255:2], q)
    up = (q > DYNAMIC[even]) & (q > bounds[np.minimum(even, 254)]) & (even < 255)
    down = (q <= DYNAMIC[even]) & (even > 0) & (q < bounds[np.maximum(even, 1) - 1])
    return (even + up - down).astype(np.uint8).reshape(x.shape), absmax


GRID = Semantics(division="reciprocal", zero_scale="zero", slack=1 / 65535 + 2.0**-22)


def _through_a_grid(q, table):
    """Return the codes of the nearest of 2**16 - 1 points from -1 to 1, zero among them."""
    index = np.rint(np.nan_to_num(np.clip(q, -1, 1)) * F(32767)).astype(np.int64)
    return _bucketize((index / 32767).astype(F), table)


@right.implements("quantize_blockwise", semantics=GRID, supports={"codebook": "dynamic8", **BLOCKS})
def dynamic8_from_a_table(x, *, block_size):
    return _quantize(x, "dynamic8", block_size, _through_a_grid, least=0)


@right.implements("dequantize_blockwise", supports={**EVERY, "output_format": ("float32", "float16")})
def rounds_twice(codes, absmax, *, codebook, block_size, output_format):
    with np.errstate(over="ignore"):
        y = CODEBOOKS[codebook][_blocks(codes, block_size)] * absmax[..., None]
        return y.reshape(codes.shape).astype(output_format)


@right.implements(
    "dequantize_blockwise",
    semantics=Semantics(intermediate="float64"),
    supports={**EVERY, "output_format": ("float32", "float16")},
)
def rounds_once(codes, absmax, *, codebook, block_size, output_format):
    y = CODEBOOKS[codebook].astype(np.float64)[_blocks(codes, block_size)] * absmax[..., None].astype(np.float64)
    with np.errstate(over="ignore"):
        return y.reshape(codes.shape).astype(output_format)


def _double_quantize(absmax, offset, block_size, search=_bucketize, least=1e-38):
    centered = absmax - offset
    padded = np.zeros((1, -(-absmax.size // block_size) * block_size), F)
    padded[0, : absmax.size] = centered
    codes, nested = _quantize(padded, "dynamic8", block_size, search, least)
    return codes[0, : absmax.size], nested[0]


@right.implements("double_quantize", semantics=BNB)
def into_out(absmax, offset, *, block_size, out):
    codes, nested = out
    codes[...], nested[...] = _double_quantize(absmax, offset, block_size)


@right.implements("double_quantize", semantics=GRID)
def from_a_table(absmax, offset, *, block_size):
    return _double_quantize(absmax, offset, block_size, _through_a_grid, least=0)


@right.implements("double_dequantize", semantics=Semantics(contraction=Contraction.FUSED))
def fused(codes, nested_absmax, offset, *, block_size):
    spread = np.repeat(nested_absmax, block_size)[: codes.size].astype(np.float64)
    product = DYNAMIC.astype(np.float64)[codes] * spread  # exact: 48 bits
    total = product + np.float64(offset)
    error = (product - (total - np.float64(offset))) + (offset - (total - (total - np.float64(offset))))
    odd = total.view(np.int64) % 2 == 1  # round to odd, so that the second rounding is the only one
    toward = np.where(error > 0, np.inf, -np.inf)
    return np.where((error != 0) & ~odd, np.nextafter(total, toward), total).astype(F)


@right.implements("double_dequantize", semantics=Semantics(contraction=Contraction.EITHER))
def fused_in_odd_places(codes, nested_absmax, offset, *, block_size):
    separate = plain.double_dequantize(codes, nested_absmax, offset, block_size=block_size)
    odd = np.arange(codes.size) % 2 == 1
    return np.where(odd, fused(codes, nested_absmax, offset, block_size=block_size), separate)


def _argmin(x, codebook, distance):
    if codebook.size == 0:
        raise ValueError("codebook is empty")
    finite = np.clip(x, F(-1e30), F(1e30))
    with np.errstate(all="ignore"):
        return np.argmin(distance(finite[:, None] - codebook), axis=1).astype(np.uint8)


@right.implements("assign_codebook", semantics=Semantics(boundary="exact", tie="lowest_code", distance_roundings=1))
def argmin_of_distances(x, codebook):
    x = np.clip(x, codebook.min(initial=0) - F(1), codebook.max(initial=0) + F(1))
    return _argmin(x, codebook, np.abs)


@right.implements("assign_codebook", semantics=Semantics(boundary="exact", tie="lowest_code"))
def argmin_in_float64(x, codebook):
    x, values = x.astype(np.float64), codebook.astype(np.float64)
    if codebook.size == 0:
        raise ValueError("codebook is empty")
    x = np.clip(x, values.min(), values.max())
    values, first = np.unique(values, return_index=True)
    total = values[:-1] + values[1:]
    error = values[:-1] - (total - values[1:])  # of the rounded sum, where the smaller is first
    middles, ends = total / 2, np.abs(values[1:]) < np.abs(values[:-1])
    error = np.where(ends, values[1:] - (total - values[:-1]), error)
    rank = np.searchsorted(middles, x, side="left")
    at = np.minimum(rank, max(0, middles.size - 1))
    if middles.size:
        tied = (x == middles[at]) & (rank < middles.size)
        lower_wins = np.where(error[at] == 0, first[at] < first[at + 1], error[at] > 0)
        rank = rank + (tied & ~lower_wins)
    return first[rank].astype(np.uint8)


@right.implements("assign_codebook", semantics=Semantics(tie="upper"))
def thresholds_to_the_right(x, codebook):
    if codebook.size == 0:
        raise ValueError("codebook is empty")
    bounds, codes = plain._thresholds(codebook)
    return codes[np.searchsorted(bounds, x, side="right")].astype(np.uint8)


@right.implements("update_codebook", semantics=Semantics(empty_cluster=EmptyCluster.FARTHEST))
def farthest_samples(x, codes, codebook):
    codes = codes.astype(np.int64)
    count = np.bincount(codes, minlength=codebook.size)
    empty = np.flatnonzero(count == 0)[: x.size]
    if empty.size:
        far = np.argsort(-np.abs(x - codebook[codes]), kind="stable")[: empty.size]
        codes = codes.copy()
        codes[far] = empty
    return in_float32(x, codes, codebook)


@right.implements("update_codebook")
def in_float32(x, codes, codebook):
    total = np.zeros(codebook.size, F)
    np.add.at(total, codes, x)
    count = np.bincount(codes, minlength=codebook.size)
    with np.errstate(invalid="ignore"):
        return np.where(count > 0, total / count.astype(F), codebook)


@right.implements("update_codebook", semantics=Semantics(division=Division.RECIPROCAL))
def sorted_and_multiplied(x, codes, codebook):
    if x.shape != codes.shape:
        raise ValueError("x and codes differ in length")
    order = np.argsort(codes, kind="stable")[::-1]
    total = np.zeros(codebook.size, F)
    np.add.at(total, codes[order], x[order])
    count = np.bincount(codes, minlength=codebook.size)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total * (ONE / count.astype(F)), codebook)


# Wrong kernels ------------------------------------------------------------------------------------------------------

#: Wrong kernel to a word that its failure message must hold.
EXPECTED = {}


def _wrong(operation, word="must be", **options):
    def register(function):
        EXPECTED[function.__name__] = word
        return wrong.implements(operation, **options)(function)

    return register


_fault = partial(_wrong, "quantize_blockwise", semantics=BNB)
_nf4 = _fault(supports=BLOCKS)
_every = _fault(supports=EVERY)
_fp4 = _fault(supports={"codebook": "fp4_bitsandbytes", **BLOCKS})
_dynamic8 = _fault(supports={"codebook": "dynamic8", **BLOCKS})


def _with_absmax(x, codebook, block_size, absmax):
    with np.errstate(all="ignore"):
        quotients = _blocks(x, block_size) * (ONE / np.maximum(absmax, F(1e-38)))[..., None]
    return _bucketize(quotients, CODEBOOKS[codebook]).reshape(x.shape)


@_nf4
def absmax_of_the_row(x, *, block_size):
    absmax = _absmax(_blocks(x, block_size))
    row = np.broadcast_to(absmax.max(axis=1, keepdims=True, initial=0), absmax.shape)
    return _with_absmax(x, "nf4", block_size, row), absmax


@_nf4
def absmax_of_the_block_before(x, *, block_size):
    codes, absmax = _quantize(x, "nf4", block_size)
    if absmax.shape[1] > 2:
        codes[:, -block_size:] = _with_absmax(x, "nf4", block_size, np.roll(absmax, 1, axis=1))[:, -block_size:]
    return codes, absmax


@_nf4
def absmax_of_another_block_from_the_64th_on(x, *, block_size):
    absmax = _absmax(_blocks(x, block_size))
    index = np.arange(absmax.shape[1]) % 64
    return _with_absmax(x, "nf4", block_size, absmax[:, index]), absmax


@_nf4
def absmax_without_magnitude(x, *, block_size):
    absmax = np.maximum(_blocks(x, block_size).max(axis=2), 0)
    return _with_absmax(x, "nf4", block_size, absmax), absmax


@_nf4
def absmax_without_the_last_element(x, *, block_size):
    absmax = np.abs(_blocks(x, block_size)[..., :-1]).max(axis=2)
    return np.clip(_with_absmax(x, "nf4", block_size, absmax), 0, 15), absmax


@_nf4
def absmax_in_16_bits(x, *, block_size):
    with np.errstate(over="ignore"):
        absmax = np.clip(_absmax(_blocks(x, block_size)), 0, 65504).astype(np.float16).astype(F)
    return _with_absmax(x, "nf4", block_size, absmax), absmax


@_nf4
def running_absmax(x, *, block_size):
    """Never reset between the blocks of a row."""
    absmax = np.maximum.accumulate(_absmax(_blocks(x, block_size)), axis=1)
    return _with_absmax(x, "nf4", block_size, absmax), absmax


_beside = _fault("a block beside", supports=BLOCKS)


@_beside
def nan_of_a_block_reaches_its_row(x, *, block_size):
    codes, absmax = _quantize(x, "nf4", block_size)
    lost = np.isnan(absmax).any(axis=1, keepdims=True)
    return np.where(lost, 0, codes).astype(np.uint8), absmax


@_beside
def infinity_of_a_block_reaches_the_matrix(x, *, block_size):
    codes, absmax = _quantize(x, "nf4", block_size)
    return codes, absmax if not np.isinf(absmax).any() else np.full_like(absmax, np.inf)


@_nf4
def blocks_of_columns(x, *, block_size):
    if x.shape[0] != x.shape[1]:
        return _quantize(x, "nf4", block_size)
    codes, absmax = _quantize(np.ascontiguousarray(x.T), "nf4", block_size)
    return np.ascontiguousarray(codes.T), absmax


@_nf4
def neighbours_swapped(x, *, block_size):
    codes, absmax = _quantize(x, "nf4", block_size)
    return codes.reshape(x.shape[0], -1, 2)[..., ::-1].reshape(x.shape).copy(), absmax


@_every
def ties_upward_undeclared(x, *, codebook, block_size):
    return _quantize(x, codebook, block_size, partial(_bucketize, side="right"))


@_every
def divides_undeclared(x, *, codebook, block_size):
    absmax = _absmax(_blocks(x, block_size))
    quotients = _blocks(x, block_size) / np.maximum(absmax, F(1e-38))[..., None]
    return _bucketize(quotients, CODEBOOKS[codebook]).reshape(x.shape), absmax


@_nf4
def exact_boundaries_undeclared(x, *, block_size):
    bounds = (NF4[:-1].astype(np.float64) + NF4[1:]) / 2
    return _quantize(x, "nf4", block_size, lambda q, table: np.searchsorted(bounds, q).astype(np.uint8))


@_nf4
def one_threshold_a_last_place_off(x, *, block_size):
    bounds, _ = _sorted(NF4)
    bounds[11] = np.nextafter(bounds[11], F(1))
    return _quantize(x, "nf4", block_size, lambda q, table: np.searchsorted(bounds, q).astype(np.uint8))


@_nf4
def thresholds_of_few_digits(x, *, block_size):
    bounds = np.round(_sorted(NF4)[0], 6)
    return _quantize(x, "nf4", block_size, lambda q, table: np.searchsorted(bounds, q).astype(np.uint8))


@_fp4
def ranks_for_codes(x, *, block_size):
    order = np.argsort(np.argsort(FP4, kind="stable"), kind="stable")
    codes, absmax = _quantize(x, "fp4_bitsandbytes", block_size)
    return order[codes].astype(np.uint8), absmax


@_fp4
def the_other_zero(x, *, block_size):
    codes, absmax = _quantize(x, "fp4_bitsandbytes", block_size)
    return np.where(codes == 8, 0, codes).astype(np.uint8), absmax


@_fp4
def zero_by_sign_undeclared(x, *, block_size):
    codes, absmax = _quantize(x, "fp4_bitsandbytes", block_size)
    zero = FP4[codes] == 0
    return np.where(zero, np.where(x < 0, 8, 0), codes).astype(np.uint8), absmax


@_fp4
def ties_toward_zero_undeclared(x, *, block_size):
    """Trap: on CUDA bitsandbytes compares magnitudes, on the CPU it does not."""
    bounds, order = _sorted(FP4)

    def by_magnitude(q, table):
        lower = order[np.searchsorted(bounds, q)]
        upper = order[np.searchsorted(bounds, q, side="right")]
        chosen = np.where(np.abs(table[upper]) < np.abs(table[lower]), upper, lower)
        return np.where(table[lower] == 0, lower, chosen).astype(np.uint8)

    return _quantize(x, "fp4_bitsandbytes", block_size, by_magnitude)


@_dynamic8
def grid_without_slack(x, *, block_size):
    return _quantize(x, "dynamic8", block_size, _through_a_grid)


@_wrong("quantize_blockwise", "must be a code of 0", semantics=GRID, supports={"codebook": "dynamic8", **BLOCKS})
def grid_without_zero(x, *, block_size):
    """bitsandbytes on the CPU: 65536 points from -1 to 1, zero between two of them."""

    def through(q, table):
        index = ((np.nan_to_num(np.clip(q, -1, 1)) + ONE) * F(0.5) * F(65535) + F(0.5)).astype(np.int64)
        return _bucketize((F(2) * index.astype(F)) / F(65535) - ONE, table)

    return _quantize(x, "dynamic8", block_size, through, least=0)


@_wrong("quantize_blockwise", semantics=GRID, supports={"codebook": "dynamic8", **BLOCKS})
def grid_half_a_step_off(x, *, block_size):
    def through(q, table):
        index = np.floor(np.nan_to_num(np.clip(q, -1, 1)) * F(8192))
        return _bucketize((index / 8192).astype(F), table)

    return _quantize(x, "dynamic8", block_size, through, least=0)


@_dynamic8
def signed_codes(x, *, block_size):
    codes, absmax = _quantize(x, "dynamic8", block_size)
    return np.minimum(codes, 254).astype(np.uint8), absmax


@_dynamic8
def one_code_of_256_wrong(x, *, block_size):
    codes, absmax = _quantize(x, "dynamic8", block_size)
    return np.where(codes == 200, 201, codes).astype(np.uint8), absmax


@_dynamic8
def dynamic_map_without_fma(x, *, block_size):
    from lowbit_cts.reference.codebooks import dynamic_map

    table = dynamic_map(contraction="separate")
    return _quantize(x, "dynamic8", block_size, lambda q, _: _bucketize(q, table))


@_nf4
def zero_block_divided_by_zero(x, *, block_size):
    codes, absmax = _quantize(x, "nf4", block_size)
    lost = np.repeat(absmax == 0, block_size, axis=1)
    return np.where(lost, 0, codes).astype(np.uint8), absmax


@_nf4
def negative_zero_block(x, *, block_size):
    codes, absmax = _quantize(x, "nf4", block_size)
    lost = np.repeat(absmax == 0, block_size, axis=1) & np.signbit(x)
    return np.where(lost, 6, codes).astype(np.uint8), absmax


@_nf4
def epsilon_as_absmax(x, *, block_size):
    codes, absmax = _quantize(x, "nf4", block_size)
    return codes, np.maximum(absmax, F(1e-38))


@_nf4
def large_epsilon(x, *, block_size):
    return _quantize(x, "nf4", block_size, least=1e-12)


@_nf4
def flushes_subnormal_blocks(x, *, block_size):
    return _quantize(np.where(np.abs(x) < 2.0**-126, F(0), x), "nf4", block_size)


@_nf4
def reciprocal_overflows(x, *, block_size):
    absmax = _absmax(_blocks(x, block_size))
    with np.errstate(all="ignore"):
        quotients = _blocks(x, block_size) * (ONE / absmax)[..., None]
    quotients = np.where(absmax[..., None] == 0, F(0), quotients)
    return _bucketize(np.nan_to_num(quotients, nan=0.0), NF4).reshape(x.shape), absmax


@_nf4
def wrong_in_the_last_block_of_a_long_row(x, *, block_size):
    codes, absmax = _quantize(x, "nf4", block_size)
    if x.shape[1] > 40 * block_size:
        absmax[:, -1] = absmax[:, -2]
    return codes, absmax


@_nf4
def wrong_beyond_32_rows(x, *, block_size):
    codes, absmax = _quantize(x, "nf4", block_size)
    codes[32:] = codes[31:-1].copy() if len(codes) > 32 else codes[32:]
    return codes, absmax


@_fault(supports={**BLOCKS, "input_format": ("float32", "float16")})
def overflows_in_float16(x, *, block_size, input_format):
    """Squares instead of magnitudes, in the type of x."""
    blocks = _blocks(x, block_size)
    with np.errstate(all="ignore"):
        absmax = np.sqrt((blocks * blocks).max(axis=2)).astype(F)
    return _with_absmax(x.astype(F), "nf4", block_size, absmax), absmax


_decodes = partial(_wrong, "dequantize_blockwise")
_READS = {**EVERY, "output_format": ("float32", "float16", "bfloat16")}


def _decoded(codes, absmax, codebook, block_size, table=None):
    table = CODEBOOKS[codebook] if table is None else table
    with np.errstate(over="ignore"):
        return (table[_blocks(codes, block_size)] * absmax[..., None]).reshape(codes.shape)


@_decodes(supports=EVERY)
def scale_of_the_block_after(codes, absmax, *, codebook, block_size):
    """Off by one element at the border of two blocks."""
    index = np.minimum((np.arange(codes.shape[1]) + 1) // block_size, max(0, absmax.shape[1] - 1))
    return CODEBOOKS[codebook][codes] * absmax[:, index]


@_decodes(supports=EVERY)
def blocks_numbered_by_whole_rows(codes, absmax, *, codebook, block_size):
    """The absmax of a row found by its number of blocks rounded down to a power of two."""
    blocks = absmax.shape[1]
    step = 1 << max(0, blocks.bit_length() - 1)
    flat = absmax.reshape(-1)
    index = np.minimum(np.arange(len(absmax))[:, None] * step + np.arange(blocks), max(0, flat.size - 1))
    return _decoded(codes, flat[index] if flat.size else absmax, codebook, block_size)


@_decodes(supports=EVERY)
def codes_swapped_in_pairs(codes, absmax, *, codebook, block_size):
    swapped = codes.reshape(codes.shape[0], -1, 2)[..., ::-1].reshape(codes.shape)
    return _decoded(swapped, absmax, codebook, block_size)


@_decodes(supports={"codebook": "dynamic8", **BLOCKS})
def codes_as_int8(codes, absmax, *, block_size):
    return _decoded(np.minimum(codes, 127), absmax, "dynamic8", block_size)


@_decodes(supports={"codebook": "fp4_bitsandbytes", **BLOCKS})
def fp4_as_e2m1(codes, absmax, *, block_size):
    values = F([0, 0.5, 1, 1.5, 2, 3, 4, 6]) / F(6)
    return _decoded(codes, absmax, "", block_size, np.concatenate([values, -values]))


@_decodes(supports=BLOCKS)
def literals_of_four_digits(codes, absmax, *, block_size):
    return _decoded(codes, absmax, "", block_size, np.round(NF4, 4))


@_decodes(supports=BLOCKS)
def one_value_a_last_place_off(codes, absmax, *, block_size):
    table = NF4.copy()
    table[9] = np.nextafter(table[9], ONE)
    return _decoded(codes, absmax, "", block_size, table)


@_decodes(supports={**EVERY, "output_format": "float16"})
def product_in_float16(codes, absmax, *, codebook, block_size):
    table = CODEBOOKS[codebook].astype(np.float16)
    with np.errstate(over="ignore"):
        return _decoded(codes, absmax.astype(np.float16), "", block_size, table)


@_decodes(supports={**EVERY, "output_format": "float16"})
def saturates_in_float16(codes, absmax, *, codebook, block_size):
    return np.clip(_decoded(codes, absmax, codebook, block_size), -65504, 65504).astype(np.float16)


@_decodes(supports={**EVERY, "output_format": "bfloat16"})
def truncates_to_bfloat16(codes, absmax, *, codebook, block_size):
    return (_decoded(codes, absmax, codebook, block_size).view(np.uint32) >> 16).astype(np.uint16)


@_decodes(supports=EVERY)
def flushes_subnormal_products(codes, absmax, *, codebook, block_size):
    y = _decoded(codes, absmax, codebook, block_size)
    return np.where(np.abs(y) < 2.0**-126, F(0), y)


@_decodes("must raise", supports=EVERY)
def makes_up_the_last_absmax(codes, absmax, *, codebook, block_size):
    if codes.shape[1] % block_size:
        raise ValueError("columns")
    blocks = codes.shape[1] // block_size
    full = np.zeros((codes.shape[0], blocks), F)
    full[:, : absmax.shape[1]] = absmax
    return _decoded(codes, full, codebook, block_size)


@_decodes("must raise", supports=EVERY)
def leaves_out_a_short_block(codes, absmax, *, codebook, block_size):
    if absmax.shape[1] != codes.shape[1] // block_size and codes.shape[1] % block_size == 0:
        raise ValueError("absmax")
    whole = codes.shape[1] // block_size * block_size
    y = np.zeros(codes.shape, F)
    y[:, :whole] = _decoded(codes[:, :whole], absmax[:, : whole // block_size], codebook, block_size)
    return y


@_decodes("a block beside", supports=EVERY)
def nan_absmax_reaches_the_row(codes, absmax, *, codebook, block_size):
    y = _decoded(codes, absmax, codebook, block_size)
    return y + F(0) * np.where(np.isnan(absmax), absmax, F(0)).sum(axis=1, keepdims=True)


_nests = partial(_wrong, "double_quantize", semantics=BNB)


@_nests()
def offset_left_out(absmax, offset, *, block_size):
    return _double_quantize(absmax, F(0), block_size)


@_nests()
def offset_in_float64(absmax, offset, *, block_size):
    """Subtracted without a rounding, and divided in float64."""
    centered = absmax.astype(np.float64) - np.float64(offset)
    _, nested = _double_quantize(absmax, offset, block_size)
    spread = np.repeat(nested, block_size)[: absmax.size].astype(np.float64)
    return _bucketize(centered / np.maximum(spread, 1e-38), DYNAMIC), nested


@_nests()
def short_tail_divides(absmax, offset, *, block_size):
    """bitsandbytes: whole blocks multiply by the reciprocal, the short last one divides."""
    codes, nested = _double_quantize(absmax, offset, block_size)
    whole = absmax.size // block_size * block_size
    if whole < absmax.size:
        codes[whole:] = _bucketize((absmax[whole:] - offset) / np.maximum(nested[-1], F(1e-38)), DYNAMIC)
    return codes, nested


@_nests()
def tail_of_the_whole(absmax, offset, *, block_size):
    codes, nested = _double_quantize(absmax, offset, block_size)
    if absmax.size % block_size and nested.size > 1:
        nested[-1] = nested[-2]
    return codes, nested


@_nests()
def tail_filled_up_before_the_offset(absmax, offset, *, block_size):
    """Zeros that fill up the last block become -offset, which may be its absmax."""
    padded = np.zeros(-(-absmax.size // block_size) * block_size, F)
    padded[: absmax.size] = absmax
    codes, nested = _double_quantize(padded, offset, block_size)
    return codes[: absmax.size], nested


@_nests()
def absmax_never_below_zero(absmax, offset, *, block_size):
    return _double_quantize(np.maximum(absmax, offset), offset, block_size)


_unnests = partial(_wrong, "double_dequantize")


@_unnests()
def fused_undeclared(codes, nested_absmax, offset, *, block_size):
    return fused(codes, nested_absmax, offset, block_size=block_size)


@_unnests()
def offset_forgotten(codes, nested_absmax, offset, *, block_size):
    return plain.double_dequantize(codes, nested_absmax, F(0), block_size=block_size)


@_unnests()
def offset_scaled(codes, nested_absmax, offset, *, block_size):
    spread = np.repeat(nested_absmax, block_size)[: codes.size]
    return (DYNAMIC[codes] + offset) * spread


@_unnests()
def blocks_of_256(codes, nested_absmax, offset, *, block_size):
    index = np.minimum(np.arange(codes.size) // 256, max(0, nested_absmax.size - 1))
    return DYNAMIC[codes] * nested_absmax[index] + offset if codes.size else codes.astype(F)


_assigns = partial(_wrong, "assign_codebook")


def _need(codebook):
    if codebook.size == 0:
        raise ValueError("codebook is empty")


@_assigns()
def takes_the_codebook_for_sorted(x, codebook):
    _need(codebook)
    return np.searchsorted((codebook[:-1] + codebook[1:]) * F(0.5), x).astype(np.uint8)


@_assigns()
def last_of_equal_values(x, codebook):
    _need(codebook)
    values, first = np.unique(codebook[::-1], return_index=True)
    codes = codebook.size - 1 - first
    return codes[np.searchsorted((values[:-1] + values[1:]) * F(0.5), x)].astype(np.uint8)


@_assigns()
def equal_values_by_side_undeclared(x, codebook):
    _need(codebook)
    return _bucketize(x, codebook)


@_assigns()
def nan_beyond_the_codebook(x, codebook):
    _need(codebook)
    bounds, codes = plain._thresholds(codebook)
    found = codes[np.searchsorted(bounds, x)].astype(np.uint8)
    return np.where(np.isnan(x), codebook.size, found).astype(np.uint8)


@_assigns(semantics=Semantics(boundary="exact", tie="lowest_code", distance_roundings=2))
def infinitely_far_from_all(x, codebook):
    """An infinity is infinitely far from every value, so the first is as good as any."""
    _need(codebook)
    with np.errstate(all="ignore"):
        return np.argmin((x[:, None] - codebook) ** 2, axis=1).astype(np.uint8)


@_assigns(semantics=Semantics(boundary="exact", tie="lowest_code", distance_roundings=1))
def expanded_square(x, codebook):
    """x**2 - 2 x c + c**2, which cancels."""
    _need(codebook)
    x = np.clip(x, -2 * np.abs(codebook).max() - 1, 2 * np.abs(codebook).max() + 1)
    with np.errstate(all="ignore"):
        return np.argmin(x[:, None] ** 2 - F(2) * x[:, None] * codebook + codebook**2, axis=1).astype(np.uint8)


@_assigns()
def codebook_in_16_bits(x, codebook):
    _need(codebook)
    values, codes = np.unique(codebook, return_index=True)
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16).astype(F)
    return codes[np.searchsorted((narrow[:-1] + narrow[1:]) * F(0.5), x)].astype(np.uint8)


@_assigns()
def never_the_greatest(x, codebook):
    _need(codebook)
    bounds, codes = plain._thresholds(codebook)
    return codes[np.minimum(np.searchsorted(bounds, x), max(0, codes.size - 2))].astype(np.uint8)


@_assigns()
def sixteen_values_at_most(x, codebook):
    _need(codebook)
    bounds, codes = plain._thresholds(codebook[:16])
    return codes[np.searchsorted(bounds, x)].astype(np.uint8)


@_assigns()
def ties_to_the_even_code(x, codebook):
    _need(codebook)
    bounds, codes = plain._thresholds(codebook)
    lower, upper = (codes[np.searchsorted(bounds, x, side=side)] for side in ("left", "right"))
    return np.where(upper % 2 == 0, upper, lower).astype(np.uint8)


_kept: list = []


@_assigns(prepare=lambda codebook: _kept.append(codebook) or len(_kept))
def codebook_of_the_first_call(x, *, prepared):
    return plain.assign_codebook(x, prepared=plain._prepare(_kept[0]))


_updates = partial(_wrong, "update_codebook")


def _sums(x, codes, size):
    return np.bincount(codes, x, minlength=size), np.bincount(codes, minlength=size)


@_updates()
def empty_becomes_nan(x, codes, codebook):
    total, count = _sums(x, codes, codebook.size)
    with np.errstate(invalid="ignore"):
        return (total / count).astype(F)


@_updates()
def empty_becomes_zero(x, codes, codebook):
    total, count = _sums(x, codes, codebook.size)
    return (total / np.maximum(count, 1)).astype(F)


@_updates()
def empty_becomes_the_farthest(x, codes, codebook):
    return farthest_samples(x, codes, codebook)


@_updates(semantics=Semantics(empty_cluster="farthest"))
def the_last_of_equally_far(x, codes, codebook):
    codes = codes.astype(np.int64)
    empty = np.flatnonzero(np.bincount(codes, minlength=codebook.size) == 0)[: x.size]
    if empty.size:
        far = np.argsort(np.abs(x - codebook[codes]), kind="stable")[::-1][: empty.size]
        codes[far] = empty
    return in_float32(x, codes, codebook)


@_updates(semantics=Semantics(empty_cluster="farthest"))
def counted_where_it_was_too(x, codes, codebook):
    total, count = _sums(x, codes, codebook.size)
    empty = np.flatnonzero(count == 0)[: x.size]
    far = np.argsort(-np.abs(x - codebook[codes]), kind="stable")[: empty.size]
    found = np.where(count > 0, total / np.maximum(count, 1), codebook).astype(F)
    found[empty] = x[far]
    return found


@_updates()
def counts_one_too_many(x, codes, codebook):
    total, count = _sums(x, codes, codebook.size)
    return np.where(count > 0, total / (count + (count > 30)), codebook).astype(F)


@_updates()
def one_sample_a_code(x, codes, codebook):
    """``total[codes] += x`` adds once, however often a code occurs."""
    total, (_, count) = np.zeros(codebook.size, F), _sums(x, codes, codebook.size)
    total[codes] += x
    return np.where(count > 0, total / np.maximum(count, 1).astype(F), codebook).astype(F)


@_updates()
def codes_from_128_on_lost(x, codes, codebook):
    low = codes < 128
    total, count = _sums(x[low], codes[low], codebook.size)
    return np.where(count > 0, total / np.maximum(count, 1), codebook).astype(F)


@_updates()
def last_sample_lost(x, codes, codebook):
    kept = x.size // 4 * 4
    total, count = _sums(x[:kept], codes[:kept], codebook.size)
    return np.where(count > 0, total / np.maximum(count, 1), codebook).astype(F)


@_updates()
def sums_in_bfloat16(x, codes, codebook):
    narrow = ((x.view(np.uint32) + 0x8000) & 0xFFFF0000).view(F)
    total, count = _sums(narrow, codes, codebook.size)
    return np.where(count > 0, total / np.maximum(count, 1), codebook).astype(F)


@_updates()
def median(x, codes, codebook):
    found = codebook.copy()
    for code in np.unique(codes):
        found[code] = np.median(x[codes == code])
    return found
