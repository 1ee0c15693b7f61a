"""A scheduler that starts again finds its workers' caches warm, and never a false hit."""

import asyncio
from contextlib import asynccontextmanager

from prefix_cache.mirror import PrefixMirror
from tests.scheduler.helpers import Client, make_scheduler
from tests.scheduler.simulated_worker import SimulatedTransport, SimulatedWorker, answer


@asynccontextmanager
async def scheduler_on(worker, url):
    mirror = PrefixMirror(url) if url else None
    scheduler = make_scheduler(SimulatedTransport(worker), mirror=mirror)
    task = asyncio.create_task(scheduler.run())
    async with asyncio.timeout(10):
        while not scheduler.lanes[0].connected:
            await asyncio.sleep(0.001)
    yield Client(scheduler)
    task.cancel()
    await asyncio.wait([task])
    if mirror:
        await mirror.close()


async def ask(client, id, prompt, max_tokens=6):
    client.submit(id, prompt, max_tokens)
    await client.until(lambda: id in client.finished)
    assert client.tokens[id] == answer(prompt, max_tokens)
    return client.cached[id]


async def test_the_cache_is_warm_after_a_restart(redis_server):
    worker = SimulatedWorker()
    async with scheduler_on(worker, redis_server.url) as client:
        assert await ask(client, 1, range(20)) == 0
    async with scheduler_on(worker, redis_server.url) as client:
        assert await ask(client, 1, range(20)) == 16


async def test_blocks_written_since_are_not_believed(redis_server):
    worker = SimulatedWorker(num_blocks=8)
    async with scheduler_on(worker, redis_server.url) as client:
        await ask(client, 1, range(20))
    async with scheduler_on(worker, None) as client:  # writes all blocks, and mirrors nothing
        await ask(client, 1, [7] * 20, max_tokens=12)
    async with scheduler_on(worker, redis_server.url) as client:
        assert await ask(client, 1, range(20)) == 0


async def test_another_epoch_starts_cold(redis_server):
    worker = SimulatedWorker()
    async with scheduler_on(worker, redis_server.url) as client:
        await ask(client, 1, range(20))
    worker.worker.epoch += 1
    async with scheduler_on(worker, redis_server.url) as client:
        assert await ask(client, 1, range(20)) == 0


async def test_a_scheduler_starts_without_redis():
    async with scheduler_on(SimulatedWorker(), "redis://127.0.0.1:1/0") as client:
        await ask(client, 1, range(20))
