"""Whatever happens to Redis and to schedulers: no false hit, no step that waits, and warm again afterwards.

A false hit would be seen: simulated workers read their whole context back before they sample.
"""

import asyncio
import random
import time
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from prefix_cache.mirror import PrefixMirror, Remembered
from protos.packing import pack_i32
from tests.scheduler.helpers import Client, make_scheduler
from tests.scheduler.simulated_worker import SimulatedTransport, SimulatedWorker, answer


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("prefix_cache.mirror.FLUSH_SECONDS", 0.001)
    monkeypatch.setattr("prefix_cache.mirror._RETRY_SECONDS", 0.01)


class Cell:
    """A scheduler with a mirror, and a client of it."""

    def __init__(self, worker, url):
        self.mirror = PrefixMirror(url)
        self.transport = SimulatedTransport(worker)
        self.scheduler = make_scheduler(self.transport, mirror=self.mirror)
        self.client = Client(self.scheduler)
        self._task = asyncio.create_task(self.scheduler.run())
        self._asked = 0

    async def ready(self):
        async with asyncio.timeout(10):
            while not self.scheduler.lanes[0].connected:
                await asyncio.sleep(0.001)

    async def ask(self, prompt, max_tokens=3):
        self._asked += 1
        self.client.submit(self._asked, prompt, max_tokens)
        await self.client.until(lambda: self._asked in self.client.finished)
        assert self.client.tokens[self._asked] == answer(prompt, max_tokens)
        return self.client.cached[self._asked]

    async def written(self):
        async with asyncio.timeout(10):
            while self.mirror.lag or self.mirror.away:
                await asyncio.sleep(0.001)

    async def end(self, *, written=True):
        """`written` or not: a scheduler that is killed leaves the mirror behind the truth."""
        self._task.cancel()
        await asyncio.wait([self._task])
        if written:
            await self.mirror.close()
        else:
            await self.mirror._redis.aclose()


@asynccontextmanager
async def cell(worker, url):
    cell = Cell(worker, url)
    await cell.ready()
    try:
        yield cell
    finally:
        await cell.end()


@asynccontextmanager
async def longest_turn():
    """How long the event loop, and so the next step, was kept waiting at most, in seconds."""
    waits = [0.0]

    async def beat():
        while True:
            before = time.thread_time()  # this thread's own work: other processes do not count
            await asyncio.sleep(0)
            waits.append(time.thread_time() - before)

    task = asyncio.create_task(beat())
    yield waits
    task.cancel()


PROMPT = list(range(20))


async def test_redis_cut_off_delays_nothing_and_is_caught_up_with(redis_server, monkeypatch):
    monkeypatch.setattr("prefix_cache.mirror.LOAD_SECONDS", 0.2)
    worker = SimulatedWorker()
    async with cell(worker, redis_server.url) as one:
        await one.ask([9] * 20)
        await one.written()
        redis_server.freeze()
        try:
            started = time.monotonic()
            assert await one.ask(PROMPT) == 0
            assert await one.ask(PROMPT) == 16
            assert time.monotonic() - started < 0.2  # what Redis would have been waited for
            async with asyncio.timeout(10):
                while not one.mirror.away:
                    await one.ask([8] * 8)
        finally:
            redis_server.thaw()
        await one.written()
    async with cell(worker, redis_server.url) as two:
        assert await two.ask(PROMPT) == 16


async def test_a_backlog_is_written_without_a_long_turn(redis_server):
    mirror = PrefixMirror(redis_server.url)
    for block in range(50_000):
        mirror.note("key", block, Remembered(block.to_bytes(16, "big"), 1, 0))
    task = asyncio.create_task(mirror.run())
    async with longest_turn() as waits, asyncio.timeout(30):
        while mirror.lag:
            await asyncio.sleep(0)
        loaded = await mirror.load("key")
    assert len(loaded) == 50_000
    assert sorted(waits)[len(waits) * 99 // 100] < 0.02
    task.cancel()
    await asyncio.wait([task])
    await mirror.close()


async def test_a_full_redis_is_as_good_as_none(redis_server):
    worker = SimulatedWorker()
    async with cell(worker, redis_server.url) as one, Redis.from_url(redis_server.url) as admin:
        await admin.config_set("maxmemory", 1)
        await one.ask(PROMPT)
        async with asyncio.timeout(10):
            while not one.mirror.away:
                await asyncio.sleep(0.001)
        assert await one.ask(PROMPT) == 16
        await admin.config_set("maxmemory", 0)
        await one.written()
    async with cell(worker, redis_server.url) as two:
        assert await two.ask(PROMPT) == 16


async def test_a_redis_that_came_back_empty_is_told_everything_again(redis_server):
    worker = SimulatedWorker(num_blocks=64)
    async with cell(worker, redis_server.url) as one:
        await one.ask(PROMPT)
        await one.written()
        await redis_server.kill()
        await redis_server.start()
        for n in range(6):  # a write finds the loss, the steps after it repair it
            await one.ask([n + 30] * 8)
            await one.written()
    async with cell(worker, redis_server.url) as two:
        assert await two.ask(PROMPT) == 16


async def test_what_a_replaced_scheduler_writes_late_is_not_believed(redis_server):
    worker = SimulatedWorker(num_blocks=8)
    late = Cell(worker, redis_server.url)
    await late.ready()
    redis_server.freeze()
    await late.ask(PROMPT)  # noted, and not written
    async with asyncio.timeout(10):
        while not late.mirror.lag:
            await asyncio.sleep(0.001)
    late.transport.stream.break_off()
    late.transport.lost = True  # the worker is another's now
    redis_server.thaw()
    async with cell(worker, redis_server.url) as new:
        await new.ask([7] * 20, max_tokens=12)  # needs all blocks
        await new.written()
        await late.end()  # writes what it had
    async with cell(worker, redis_server.url) as third:
        assert await third.ask(PROMPT) == 0


@pytest.mark.parametrize("seed", range(12))
async def test_no_history_makes_a_false_hit(redis_server, seed):
    chance = random.Random(seed)
    worker = SimulatedWorker(num_blocks=12)
    async with Redis.from_url(redis_server.url) as admin, asyncio.timeout(20):
        now = Cell(worker, redis_server.url)
        await now.ready()
        for _ in range(40):
            event = chance.choice(["ask"] * 6 + ["replace", "kill", "worker restarts", "flush Redis"])
            if event == "ask":
                await now.ask([chance.randrange(4)] * chance.randint(1, 24))
                continue
            if event == "flush Redis":
                await admin.flushall()
                continue
            await now.end(written=event == "replace")
            if event == "worker restarts":
                worker.worker.epoch += 1
                worker.slots.clear()
                worker.generations = [0] * 12
            now = Cell(worker, redis_server.url)
            await now.ready()
        await now.end()


async def test_what_a_worker_wrote_that_talks_nonsense_is_not_found_again(redis_server):
    worker = SimulatedWorker()
    async with cell(worker, redis_server.url) as one:
        await one.ask(PROMPT)
        await one.written()
        sane = worker.execute

        def without_numbers(batch):
            worker.execute = sane
            result = sane(batch)
            result.tokens = pack_i32([-1])
            return result

        worker.execute = without_numbers
        assert await one.ask([7, *PROMPT]) == 0
        assert one.scheduler.lanes[0].tally.losses == 1
        assert await one.ask(PROMPT) == 0
        await one.written()
    async with cell(worker, redis_server.url) as two:  # what came after that is believed
        assert await two.ask(PROMPT) == 16
