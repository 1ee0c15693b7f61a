"""How many blocks a cache has, and what is said when there are too few."""

import pytest
import torch

from batchyard.config import WorkerSettings
from batchyard.errors import ConfigError
from gpu_worker.kv_cache import CacheShape, by_layer, count_blocks

SHAPE = CacheShape(num_layers=2, block_size=16, num_kv_heads=4, head_dim=8, dtype=torch.bfloat16)
MIB = 1 << 20


def count(available, max_model_len=100, **settings):
    settings = WorkerSettings(max_num_seqs=8, **settings)
    return count_blocks(SHAPE, settings, max_model_len, available, "--the-flag")


def test_a_block_has_keys_and_values_of_all_layers():
    assert SHAPE.block_bytes == 2 * 2 * 16 * 4 * 8 * 2
    memory = SHAPE.allocate(5, torch.device("cpu"))
    caches = by_layer(memory)
    assert [(k.shape, v.shape) for k, v in caches] == [((5, 16, 4, 8),) * 2] * 2
    assert all(k.is_contiguous() and v.is_contiguous() for k, v in caches)
    assert memory.nbytes == sum(k.nbytes + v.nbytes for k, v in caches) == 5 * SHAPE.block_bytes
    assert not memory.any()


def test_what_fits_but_not_more_than_all_rows_can_hold():
    assert count(20 * SHAPE.block_bytes + 1) == 20
    assert count(7 * SHAPE.block_bytes) == 7  # one sequence: ceil(100 / 16)
    assert count(1000 * MIB) == 8 * 7


def test_too_small_for_one_sequence_is_refused_with_advice():
    with pytest.raises(ConfigError) as refused:
        count(6 * SHAPE.block_bytes)
    message = str(refused.value)
    assert "one sequence of --max-model-len 100 needs 0.03 MiB of KV cache, but there are 0.02 MiB" in message
    assert "enough for 96 tokens: lower --max-model-len or raise --the-flag" in message
    with pytest.raises(ConfigError, match="enough for 0 tokens"):
        count(-5)


def test_num_gpu_blocks_overrides():
    assert count(0, num_gpu_blocks=7) == 7
    assert count(0, num_gpu_blocks=5000) == 5000
    with pytest.raises(ConfigError, match=r"--num-gpu-blocks 6 holds 96 tokens.*at least 7 blocks"):
        count(1000 * MIB, num_gpu_blocks=6)


def test_memory_that_is_not_there_is_one_line():
    with pytest.raises(ConfigError, match=r"blocks of KV cache .* do not fit in the memory of cpu: lower"):
        SHAPE.allocate(1 << 40, torch.device("cpu"))
