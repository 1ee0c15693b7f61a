"""Who is active, by a clock or by a real Redis."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from batchyard.errors import WorkerLost
from protos.step_pb2 import WorkerDescription
from scheduler import redis_lease
from scheduler.lease import Lease, clock_fence, keep_alone
from scheduler.redis_lease import RedisLease, nobody_steps

TTL = 0.3


@pytest.fixture(autouse=True)
async def in_time():
    async with asyncio.timeout(20):
        yield


@asynccontextmanager
async def background(coroutine):
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


class Contender:
    """A scheduler, as far as the lease is concerned."""

    def __init__(self, url, unattended=False):
        self.lease = Lease()
        self.unattended = unattended
        self.keeper = RedisLease(url, TTL, self._unattended)
        self.task = None

    async def _unattended(self):
        return self.unattended

    def start(self):
        self.task = asyncio.create_task(self.keeper.keep(self.lease))

    async def stop(self):
        """As SIGSTOP does it: nothing is said, and nothing noticed."""
        self.task.cancel()
        await asyncio.wait([self.task])


@pytest.fixture
async def contend(redis_server):
    made = []

    def make(**options):
        made.append(Contender(redis_server.url, **options))
        made[-1].start()
        return made[-1]

    yield make
    for contender in made:
        await contender.stop()
        await contender.keeper.close()


async def test_one_at_a_time_and_the_next_one_outranks_it(contend):
    first = contend()
    fence = await first.lease.held()
    second = contend()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(second.lease.held(), 3 * TTL)
    assert first.lease.fence == fence
    await first.stop()
    assert await second.lease.held() > fence
    # Stopped, it does not know; going on, it learns.
    assert first.lease.fence == fence
    first.start()
    await first.lease.ended(fence)
    assert (first.lease.fence, second.lease.fence > fence) == (0, True)


async def test_a_scheduler_that_ends_leaves_at_once(contend):
    loop = asyncio.get_running_loop()
    first = contend()
    await first.lease.held()
    second = contend()
    await first.stop()
    await first.keeper.release()
    since = loop.time()
    await second.lease.held()
    assert loop.time() - since < TTL


async def test_a_pause_nobody_used_changes_nothing(contend):
    first = contend()
    fence = await first.lease.held()
    await first.stop()
    await asyncio.sleep(2 * TTL)
    first.start()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(first.lease.ended(fence), 2 * TTL)


async def test_who_is_active_outlives_redis(contend, redis_server):
    first = contend()
    fence = await first.lease.held()
    second = contend()
    for _ in range(2):
        await redis_server.kill()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(first.lease.ended(fence), 2 * TTL)
        await redis_server.start()  # empty
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(second.lease.held(), 3 * TTL)
        assert first.lease.fence == fence
        async with Redis.from_url(redis_server.url, decode_responses=True) as client:
            assert await client.hget(redis_lease.KEY, "fence") == str(fence)
    await first.stop()
    assert await second.lease.held() > fence


async def test_without_redis_a_standby_takes_workers_that_nobody_steps(contend, redis_server):
    first = contend()
    fence = await first.lease.held()
    second = contend(unattended=False)
    await redis_server.kill()
    await first.stop()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(second.lease.held(), 3 * TTL)
    second.unattended = True
    taken = await second.lease.held()
    assert taken > fence
    # A worker that has seen a higher fence is word enough that somebody else is active.
    second.unattended = False
    second.lease.outranked(taken + 1)
    await second.lease.ended(taken)
    second.unattended = True
    taken = await second.lease.held()
    # Redis comes back and knows nothing, or the one before.
    await redis_server.start()
    first.start()
    await first.lease.ended(fence)
    assert second.lease.fence == taken


async def test_who_is_outranked_though_redis_knows_of_nobody_outranks_again(contend):
    first = contend()
    fence = await first.lease.held()
    first.lease.outranked(fence - 1)
    first.lease.outranked(fence + 10**12)
    await first.lease.ended(fence)
    assert await first.lease.held() > fence + 10**12


async def test_alone_the_last_to_start_has_the_workers():
    before = clock_fence()
    first = Lease()
    async with background(keep_alone(first)):
        fence = await first.held()
        assert before <= fence <= clock_fence()
        first.outranked(fence + 1)
        await first.ended(fence)
        # Nothing brings it back: there is nobody who could say that the other one is gone.
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(first.held(), 0.05)


async def test_alone_a_clock_that_was_put_back_is_outdone():
    lease = Lease()
    async with background(keep_alone(lease)):
        fence = await lease.held()
        lease.outranked(fence + 10**12)
        await lease.ended(fence)
        assert await lease.held() == fence + 10**12 + 1


class Told:
    """A transport to a worker that says whether it is stepped; None: it does not answer."""

    def __init__(self, stepped):
        self.stepped = stepped

    async def describe(self):
        if self.stepped is None:
            raise WorkerLost("away")
        return WorkerDescription(stepped=self.stepped)


@pytest.mark.parametrize(
    ("workers", "unattended"),
    [
        ([False, None], True),
        ([False, True], False),
        ([None, None], False),  # it may be us who cannot be reached
        ([], False),
    ],
)
async def test_workers_that_nobody_steps(workers, unattended):
    assert await nobody_steps([Told(stepped) for stepped in workers]) is unattended
