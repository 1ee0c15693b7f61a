"""Launch shapes: enough programs, never too many, in sizes that kernels can be compiled for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_worker.kernels.launch_shapes import (
    MAX_SEGMENTS,
    chunk_tile,
    decode_tile,
    matmul_tile,
    next_power_of_two,
    num_query_blocks,
    num_segments,
    row_tile,
)

SHARED_MEMORY = 227 << 10
GROUPS = [1, 2, 3, 4, 7, 8, 12, 16, 32]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=40), st.integers(1, 128))
def test_every_sequence_has_its_query_blocks(query_lens, block_q):
    """The rule that kernels find their sequence by, and the grid that must cover it."""
    first_blocks, before = [], 0
    for s, query_len in enumerate([*query_lens, 0]):
        first_blocks.append((before + s * (block_q - 1)) // block_q)
        before += query_len
    for s, query_len in enumerate(query_lens):
        assert first_blocks[s] + -(-query_len // block_q) <= first_blocks[s + 1]
    assert first_blocks[-1] <= num_query_blocks(sum(query_lens), len(query_lens), block_q)


def test_a_decode_is_one_block():
    assert num_query_blocks(37, 37, block_q=1) == 37


@given(st.sampled_from(GROUPS), st.sampled_from([64, 80, 96, 128, 256]), st.sampled_from([2, 4]))
def test_tiles(group, head_dim, itemsize):
    decode = decode_tile(group, head_dim, itemsize)
    chunk = chunk_tile(group, head_dim, itemsize, SHARED_MEMORY)
    for tile in (decode, chunk):
        for size in (tile.block_m, tile.block_n, tile.block_d, tile.num_warps):
            assert size == next_power_of_two(size)
        # The matrix unit takes 16 rows at least.
        assert tile.block_m >= max(16, tile.block_q * group)
        assert tile.block_d >= head_dim
    assert decode.block_q == 1
    # One token to a block would be taken for decodes.
    assert chunk.block_q > 1
    assert chunk.num_stages >= 1


@pytest.mark.parametrize(("shared_memory", "stages"), [(227 << 10, 3), (163 << 10, 2), (99 << 10, 1)])
def test_as_many_tiles_on_their_way_as_there_is_room_for(shared_memory, stages):
    assert chunk_tile(4, 128, 2, shared_memory).num_stages == stages


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs", "gated", "split"),
    [
        (1, 6144, 4096, False, 2),
        (1, 4096, 4096, False, 4),
        (32, 4096, 14336, False, 4),
        (8, 14336, 4096, True, 1),
        (1, 128_256, 4096, False, 1),
        (1, 1024, 2048, False, 2),
        (1, 4096, 1024, False, 1),
    ],
)
def test_products_of_few_rows_are_split_to_fill_the_device(rows, outputs, inputs, gated, split):
    tile = matmul_tile(rows, outputs, inputs, gated=gated, num_multiprocessors=132)
    assert tile.split == split
    assert inputs % (tile.split * tile.block_k) == 0
    assert tile.block_m >= rows


@pytest.mark.parametrize(
    ("rows", "outputs", "inputs"), [(33, 64, 128), (0, 64, 128), (1, 65, 128), (1, 64, 100)]
)
def test_other_products_are_left_to_pytorch(rows, outputs, inputs):
    assert matmul_tile(rows, outputs, inputs, gated=False, num_multiprocessors=132) is None


@pytest.mark.parametrize("hidden", [32, 64, 128, 100, 1024, 2880, 4096, 8192, 16384])
def test_row_tile(hidden):
    tile = row_tile(hidden)
    assert tile.columns >= hidden
    assert tile.rows * tile.columns >= 1024
    assert tile.num_warps == next_power_of_two(tile.num_warps) <= 16


@pytest.mark.parametrize(("n", "power"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_next_power_of_two(n, power):
    assert next_power_of_two(n) == power


def test_a_full_device_is_not_split():
    tile = decode_tile(4, 128, 2)
    assert num_segments(132 * tile.programs_per_multiprocessor, 100_000, tile, 132) == 1


def test_short_sequences_are_not_split():
    assert num_segments(8, 100, decode_tile(4, 128, 2), 132) == 1
    assert num_segments(8, 500, chunk_tile(4, 128, 2, SHARED_MEMORY), 132) == 1


def test_a_lone_long_decode_is_split():
    segments = num_segments(8, 100_000, decode_tile(4, 128, 2), 132)
    assert segments == MAX_SEGMENTS
