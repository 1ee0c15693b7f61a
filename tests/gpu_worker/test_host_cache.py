"""Copies between the device's blocks and the host's."""

import threading

import numpy as np
import pytest
import torch

from batchyard.errors import ConfigError, ProtocolError
from gpu_worker import host_cache
from gpu_worker.host_cache import host_cache_for
from gpu_worker.kv_cache import CacheShape
from gpu_worker.mover import Mover
from protos.packing import pack_i32
from protos.step_pb2 import StepBatch
from tests.gpu_worker.helpers import batch, greedy, make_runner, new_row, random_prompts, run_step, sampled_of

SHAPE = CacheShape(num_layers=3, block_size=8, num_kv_heads=2, head_dim=4, dtype=torch.bfloat16)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
        ],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_what_was_saved_is_loaded_to_the_last_bit(device, monkeypatch):
    monkeypatch.setattr(host_cache, "STAGING_BYTES", 5 * SHAPE.block_bytes)  # several rounds
    memory = SHAPE.allocate(40, torch.device(device))
    memory.copy_(torch.randn(memory.shape))
    before = memory.clone()
    random = np.random.default_rng(0)
    cache = host_cache_for(memory, 30)
    for host_blocks in (np.arange(17), random.permutation(30)[:17], np.array([3, 4, 5, 9, 8, 7])):
        blocks = random.permutation(40)[: len(host_blocks)].astype(np.int32)
        targets = random.permutation(40)[: len(host_blocks)].astype(np.int32)
        cache.save(blocks, host_blocks.astype(np.int32))
        cache.load(targets, host_blocks.astype(np.int32))
        before[:, :, targets] = before[:, :, blocks]
        assert torch.equal(memory, before)
    cache.close()


def test_more_than_there_is_memory_is_refused():
    with pytest.raises(ConfigError, match="lower --host-cache-gb"):
        host_cache_for(SHAPE.allocate(1, torch.device("cpu")), 1 << 40)


class BrokenCache:
    num_blocks = 4

    def save(self, blocks, host_blocks):
        raise RuntimeError("no copy")

    load = save

    def close(self):
        pass


def test_news_come_in_order_and_so_do_failures():
    memory = SHAPE.allocate(4, torch.device("cpu"))
    mover = Mover(host_cache_for(memory, 4))
    news, failures, done = [], [], threading.Semaphore(0)

    def tell(result):
        news.append((result.step, result.moved.saved, result.moved.loaded))
        done.release()

    for step in (3, 4, 7):
        moves = {"saved_blocks": pack_i32([1, 2]), "saved_to": pack_i32([2, 1])}
        mover.start(StepBatch(step=step, **moves), tell, failures.append)
    mover.start(StepBatch(step=8), tell, failures.append)
    mover.drain()
    mover.start(
        StepBatch(step=9, loaded_blocks=pack_i32([0]), loaded_from=pack_i32([2])), tell, failures.append
    )
    for _ in range(4):
        assert done.acquire(timeout=5)
    mover.shutdown()
    assert news == [(0, 3, 0), (0, 4, 0), (0, 7, 0), (0, 0, 9)]
    broken = Mover(BrokenCache())
    broken.start(StepBatch(step=1, saved_blocks=pack_i32([0]), saved_to=pack_i32([0])), tell, failures.append)
    broken.shutdown()
    assert [str(failure) for failure in failures] == ["no copy"]


def test_a_row_reads_blocks_that_were_moved(tiny_model, tiny_llama):
    runner = make_runner(tiny_model, num_host_blocks=4)
    mover = Mover(host_cache_for(runner.memory, 4))
    prompt, other = random_prompts(16, 5)
    steps = [
        batch(1, [new_row(0, prompt, [3, 4, 5])], chunks=[(0, 16)]),
        batch(2, freed=[0]),
        batch(3, [new_row(1, [5] * 16, [3, 4, 5])], chunks=[(1, 16)]),  # overwrites them
        batch(4, freed=[1]),
        batch(5, [new_row(2, prompt + other, [9, 8, 7], computed=16)], chunks=[(2, 5)]),
    ]
    steps[1].saved_blocks, steps[1].saved_to = pack_i32([3, 4]), pack_i32([2, 0])
    steps[3].loaded_blocks, steps[3].loaded_from = pack_i32([9, 8]), pack_i32([2, 0])
    for message in steps:
        result = run_step(runner, message)
        mover.start(message, lambda _: None, pytest.fail)
        mover.drain()
    mover.shutdown()
    assert sampled_of(result)[2] == greedy(tiny_llama[1], prompt + other, 1)[0]
    assert runner.rows.block_generations[[3, 4, 8, 9]].tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("moves", "complaint"),
    [
        ({"saved_blocks": [1], "saved_to": []}, "1 saved blocks, but 0 on the host"),
        ({"saved_blocks": [99], "saved_to": [0]}, "block 99 is outside the 32 blocks"),
        ({"loaded_blocks": [0], "loaded_from": [4]}, "host block 4 is outside the 4 host blocks"),
    ],
)
def test_moves_that_are_not_allowed(tiny_model, moves, complaint):
    runner = make_runner(tiny_model, num_host_blocks=4)
    with pytest.raises(ProtocolError, match=complaint):
        run_step(runner, StepBatch(step=1, **{name: pack_i32(ids) for name, ids in moves.items()}))
