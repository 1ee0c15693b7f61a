"""What requests leave behind in a scheduler: nothing that grows with their number."""

import asyncio
import gc
import random
import sys

import pytest

from prefix_cache.mirror import PrefixMirror
from tests.scheduler.helpers import Client, make_scheduler
from tests.scheduler.simulated_worker import VOCAB, SimulatedTransport, SimulatedWorker

REQUESTS, AT_ONCE = 1000, 50


async def serve(scheduler, first):
    """Requests of prompts that nobody has asked before."""
    client, chance = Client(scheduler), random.Random(first)
    for start in range(first, first + REQUESTS, AT_ONCE):
        for id in range(start, start + AT_ONCE):
            client.submit(id, chance.choices(range(VOCAB), k=24), 4, tenant=f"tenant-{id % 5}")
        await client.until(lambda: len(client.finished) + len(client.refused) == AT_ONCE)
        assert not client.refused
        client.finished.clear()
    scheduler.close(client.session)


async def objects(scheduler):
    """How many the interpreter has, once all that is to be written has been."""
    while scheduler.mirror and scheduler.mirror.lag:
        await asyncio.sleep(0.01)
    gc.collect()
    return sys.getallocatedblocks()


@pytest.mark.parametrize("mirrored", [False, True])
async def test_nothing_grows_with_requests(redis_server, mirrored):
    mirror = PrefixMirror(redis_server.url) if mirrored else None
    scheduler = make_scheduler(SimulatedTransport(SimulatedWorker(num_blocks=200)), mirror=mirror)
    task = asyncio.create_task(scheduler.run())
    try:
        while not scheduler.lanes[0].connected:
            await asyncio.sleep(0)
        await serve(scheduler, 0)
        before = await objects(scheduler)
        await serve(scheduler, REQUESTS)
        assert await objects(scheduler) - before < REQUESTS / 2  # others come and go in this process too
    finally:
        task.cancel()
        await asyncio.wait([task])
        if mirror:
            await mirror.close()
