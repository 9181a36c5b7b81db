"""Orders of scales: scalar loops over the documented layouts, what a lane loads, and torchao."""

import numpy as np
import pytest

from lowbit_cts.reference.packing.scales import (
    permute_marlin_scales,
    swizzle_scales,
    unpermute_marlin_scales,
    unswizzle_scales,
)

SHAPES = [(128, 4), (1, 1), (127, 3), (129, 5), (256, 8), (300, 13), (32, 4), (384, 1)]
RNG = np.random.default_rng(7)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_scale_stands_where_cublas_documents_it(shape):
    m, c = shape
    scales = RNG.integers(1, 256, shape).astype(np.uint8)
    flat = swizzle_scales(scales).ravel()
    columns_of_tiles = -(-c // 4)
    assert flat.size == -(-m // 128) * columns_of_tiles * 512
    for outer in range(m):
        for inner in range(c):
            tile = outer // 128 * columns_of_tiles + inner // 4
            offset = 512 * tile + outer % 32 * 16 + outer % 128 // 32 * 4 + inner % 4
            assert flat[offset] == scales[outer, inner]
    assert np.count_nonzero(flat) == m * c  # all else is 0


@pytest.mark.parametrize("shape", [*SHAPES, (0, 4), (128, 0)])
def test_scales_return_whatever_the_padding_holds(shape):
    scales = RNG.integers(0, 255, shape).astype(np.uint8)
    swizzled = swizzle_scales(scales)
    unused = swizzle_scales(np.ones(shape, np.uint8)) == 0
    swizzled[unused] = 255
    np.testing.assert_array_equal(unswizzle_scales(swizzled, shape), scales)
    np.testing.assert_array_equal(unswizzle_scales(swizzled.ravel(), shape), scales)


def test_each_place_of_a_tile_is_used_once():
    swizzled = swizzle_scales(np.arange(256 * 8).reshape(256, 8))
    assert swizzled.shape == (4, 32, 16)
    assert sorted(swizzled.ravel()) == list(range(2048))


@pytest.mark.parametrize("shape", SHAPES)
def test_swizzled_scales_are_those_of_torchao(shape):
    torch = pytest.importorskip("torch")
    utils = pytest.importorskip("torchao.prototype.mx_formats.utils")
    scales = RNG.integers(0, 256, shape).astype(np.uint8)
    blocked = utils.to_blocked(torch.from_numpy(scales)).numpy()
    np.testing.assert_array_equal(swizzle_scales(scales).ravel(), blocked.ravel())
    np.testing.assert_array_equal(utils.from_blocked(torch.from_numpy(blocked.ravel()), *shape).numpy(), scales)


def test_a_lane_loads_the_scales_of_its_columns_of_the_weight():
    """Marlin, several groups: eight scales from place 8 g on, for columns g of the 8 fragments of 64 columns."""
    scales = RNG.standard_normal((3, 128)).astype(np.float16)
    permuted = permute_marlin_scales(scales)
    for group in range(3):
        for run in range(2):
            for lane in range(32):
                load = permuted[group, 64 * run + 8 * (lane // 4) :][:8]
                columns = [64 * run + 16 * tile + 8 * half + lane // 4 for tile in range(4) for half in range(2)]
                np.testing.assert_array_equal(load, scales[group, columns])


def test_a_lane_loads_the_scales_of_its_columns_of_the_accumulator():
    """Marlin, one group: eight scales from place 8 t on, for columns 2t and 2t + 1 of 4 accumulators of 8 columns."""
    scales = RNG.standard_normal((1, 96)).astype(np.float16)
    permuted = permute_marlin_scales(scales)
    for run in range(3):
        for lane in range(32):
            member = lane % 4
            load = permuted[0, 32 * run + 8 * member :][:8]
            columns = [32 * run + 8 * tile + 2 * member + i for tile in range(4) for i in range(2)]
            np.testing.assert_array_equal(load, scales[0, columns])


def test_marlin_orders_are_those_of_its_authors():
    grouped = permute_marlin_scales(np.tile(np.arange(64), (2, 1)))[0]
    assert grouped.tolist() == [i + 8 * j for i in range(8) for j in range(8)]
    single = permute_marlin_scales(np.arange(32)[None])[0]
    assert single.tolist() == [2 * i + j for i in range(4) for j in [0, 1, 8, 9, 16, 17, 24, 25]]


@pytest.mark.parametrize("shape", [(1, 32), (1, 256), (2, 64), (8, 256)])
def test_marlin_scales_return(shape):
    scales = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
    permuted = permute_marlin_scales(scales)
    assert sorted(permuted.ravel()) == sorted(scales.ravel())
    np.testing.assert_array_equal(unpermute_marlin_scales(permuted), scales)


def test_bad_input_is_one_message():
    for call, message in [
        (lambda: swizzle_scales(np.zeros(4)), "^scales: has 1 dimensions, must have 2"),
        (lambda: unswizzle_scales(np.zeros(511), (1, 1)), "^swizzled: has 511 elements, must have 512"),
        (lambda: permute_marlin_scales(np.zeros(64)), "^scales: has 1 dimensions, must have 2"),
        (lambda: permute_marlin_scales(np.zeros((2, 32))), "^scales: have 32 columns, must be a multiple of 64"),
        (lambda: permute_marlin_scales(np.zeros((1, 16))), "^scales: have 16 columns, must be a multiple of 32"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
