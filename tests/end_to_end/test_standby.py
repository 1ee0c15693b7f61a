"""Two schedulers and a Redis, each of which fails in its ways while streams of all kinds run."""

import asyncio
import signal

from tests.end_to_end.stack import Stack
from tests.end_to_end.streams import difference, play_all, under_way

COUNT = 8


class Faults:
    """Each happens to the active scheduler, and leaves two schedulers and a Redis behind."""

    def __init__(self, stack, redis):
        self._stack = stack
        self._redis = redis

    async def killed(self, streams):
        name = await self._stack.active()
        self._stack.kill(name)
        await under_way(streams, 10)
        self._stack.start(name)
        assert await self._stack.active() != name

    async def ended(self, streams):
        name = await self._stack.active()
        await asyncio.to_thread(self._stack.kill, name, signal.SIGTERM)
        await under_way(streams, 10)
        self._stack.start(name)

    async def stopped(self, streams):
        """Past its lease; what it says when it goes on, nobody hears."""
        name = await self._stack.active()
        self._stack.signal(name, signal.SIGSTOP)
        await under_way(streams, 10)
        self._stack.signal(name, signal.SIGCONT)
        await under_way(streams, 10)
        assert await self._stack.active() != name

    async def killed_without_redis(self, streams):
        name = await self._stack.active()
        await self._redis.kill()
        await under_way(streams, 10)
        assert await self._stack.active() == name
        self._stack.kill(name)
        await under_way(streams, 10)
        await self._redis.start()  # empty
        self._stack.start(name)
        await under_way(streams, 10)


async def test_streams_outlive_the_active_scheduler(tmp_path, redis_server):
    stack = Stack(tmp_path, scheduler=("--redis", redis_server.url), standbys=1)
    await asyncio.to_thread(stack.__enter__)
    try:
        calm = await play_all(stack.base_url, COUNT)
        faults = Faults(stack, redis_server)
        for fault in (faults.killed, faults.ended, faults.stopped, faults.killed_without_redis):

            async def disturb(streams, fault=fault):
                await under_way(streams, 5)
                await fault(streams)

            async with asyncio.timeout(60):
                streams = await play_all(stack.base_url, COUNT, disturb)
            assert (fault.__name__, difference(streams, calm)) == (fault.__name__, [])
            await stack.idle()
    finally:
        await asyncio.to_thread(stack.__exit__)
