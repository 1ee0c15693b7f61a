"""Under different salts nothing is shared, and nothing can be told; under one salt everything is."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_cache.hashing import chain, root
from tests.scheduler.helpers import Client
from tests.scheduler.simulated_worker import SimulatedWorker, answer
from tests.scheduler.test_core import running, settled

prompts = st.lists(st.integers(0, 1), min_size=1, max_size=24)
requests = st.lists(
    st.tuples(st.sampled_from(["", "a", "b"]), prompts, st.integers(1, 6), st.booleans()),
    min_size=2,
    max_size=12,
)


def common_blocks(a, b, size=4):
    most = min(len(a), len(b)) // size
    return next((n for n in range(most, 0, -1) if a[: n * size] == b[: n * size]), 0)


@given(requests)
@settings(max_examples=60)
async def test_tenants_neither_share_nor_see_each_other(asked):
    """Every block that a row was given belongs to a sequence of its own salt, whatever runs beside it."""
    worker = SimulatedWorker(num_blocks=24)
    owners = {}  # which salts a block has been given to since it was last written

    async with running(worker) as (scheduler, _):
        execute = worker.execute
        salts = {f"request-{n}": salt for n, (salt, *_) in enumerate(asked)}

        def watched(batch):
            for new in batch.new_rows:
                blocks = list(memoryview(new.block_ids).cast("i"))
                shared = blocks[: new.computed // 4]
                assert all(owners[block] == salts[new.request_id] for block in shared)
                owners.update(dict.fromkeys(blocks, salts[new.request_id]))
            for row, block in zip(
                memoryview(batch.grown_rows).cast("i"), memoryview(batch.grown_blocks).cast("i"), strict=True
            ):
                owners[block] = salts[scheduler.lanes[0].batcher.rows.requests[row].request_id]
            return execute(batch)

        worker.execute = watched
        client, earlier = Client(scheduler), {}
        for n, (salt, prompt, max_tokens, wait) in enumerate(asked):
            client.submit(n, prompt, max_tokens, salt=salt)
            if wait:
                await client.all_finished()
        await client.all_finished()
        await settled(scheduler)
        for n, (salt, prompt, max_tokens, _) in enumerate(asked):
            assert client.tokens[n] == answer(prompt, max_tokens)
            most = max((4 * common_blocks(prompt, other) for other in earlier.get(salt, [])), default=0)
            assert client.cached[n] <= most
            earlier.setdefault(salt, []).append([*prompt, *client.tokens[n]])


async def test_the_same_prompt_under_each_salt_is_computed_once_each():
    async with running(SimulatedWorker(num_blocks=64)) as (scheduler, _):
        client = Client(scheduler)
        for n in range(12):
            client.submit(n, [7] * 17, 2, salt=("", "a", "ab")[n % 3])
            await client.all_finished()
        assert [client.cached[n] for n in range(12)] == [0] * 3 + [16] * 9
        index = scheduler.lanes[0].batcher.pool.index
        prompt = np.full(16, 7, np.int32)
        matches = [index.match(list(chain(root(salt), prompt, 4))) for salt in ("", "a", "ab")]
        assert len({block for blocks in matches for block in blocks}) == 12


async def test_workers_with_blocks_of_other_sizes_do_not_mix_up_digests():
    async with running(SimulatedWorker(block_size=4), SimulatedWorker(block_size=8)) as (scheduler, _):
        client = Client(scheduler)
        for n in range(30):
            client.submit(n, [n % 3] * 30, 6)
        await client.all_finished()
        assert client.tokens == {n: answer([n % 3] * 30, 6) for n in range(30)}
        found = []
        await settled(scheduler)
        for lane in scheduler.lanes:
            index, size = lane.batcher.pool.index, lane.worker.block_size
            tokens = np.array([1] * 30 + answer([1] * 30, 6), np.int32)
            other = set(chain(root(""), tokens, 12 - size))
            assert not other & {index.digest_of(block) for block in range(64)}
            found += index.match(list(chain(root(""), tokens, size)))
        assert found
