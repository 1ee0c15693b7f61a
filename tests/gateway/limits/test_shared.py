"""Limits over a real Redis, and without it."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from redis.asyncio import Redis

from gateway.limits import shared as shared_module
from gateway.limits.ledger import Ask, Change, Quota
from gateway.limits.limiter import LocalLimiter
from gateway.limits.shared import SharedLimiter

HUNDRED = Quota(tokens=100)
DEADLINE_S = 10


@asynccontextmanager
async def gateway(url, gateways=2):
    """A gateway's limiter, as its process runs it."""
    limiter = SharedLimiter(url, LocalLimiter(gateways))
    task = asyncio.create_task(limiter.run())
    try:
        async with asyncio.timeout(DEADLINE_S):
            yield limiter
    finally:
        task.cancel()
        await asyncio.wait([task])
        await limiter.close()


@pytest.fixture
async def two(redis_server):
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(gateway(redis_server.url)) for _ in range(2)]


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(shared_module, "TELL_EVERY_S", 0.02)


def release(limiter, tokens, name="k"):
    limiter.tell(name, Change(held=-tokens, running=-1))


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


async def granted_at_last(limiter, quota, ask):
    while not (await limiter.ask("k", quota, ask)).granted:
        await asyncio.sleep(0.005)


async def test_gateways_share_a_limit(two):
    one, other = two
    assert (await one.ask("k", HUNDRED, Ask(60, 1))).granted
    refused = await other.ask("k", HUNDRED, Ask(60, 1))
    assert (refused.granted, refused.cause, refused.tokens) == (False, "tokens", 60)
    assert (await other.ask("another", HUNDRED, Ask(60, 1))).granted
    assert (await other.ask("k", HUNDRED, Ask(40, 1))).granted
    release(one, 60)
    await granted_at_last(other, HUNDRED, Ask(60, 1))


async def test_what_ended_is_given_back_before_the_next_request_is_asked_for(two):
    one, _ = two
    alone = Quota(running=1)
    for _ in range(50):
        assert (await one.ask("k", alone, Ask(10, 1))).granted
        release(one, 10)


async def test_asks_at_once_are_decided_one_by_one(two):
    answers = await asyncio.gather(*(each.ask("k", HUNDRED, Ask(3, 1)) for _ in range(50) for each in two))
    assert sum(answer.granted for answer in answers) == 33


async def test_use_is_told_in_time(two):
    one, other = two
    await one.ask("k", HUNDRED, Ask(60, 1))
    one.tell("k", Change(used=10, held=-10))
    release(one, 50)
    await granted_at_last(other, HUNDRED, Ask(90, 1))
    assert (await other.ask("k", HUNDRED, Ask(1, 1))).tokens == 100


async def test_a_client_that_goes_while_it_asks_holds_nothing(two):
    one, other = two
    for _ in range(20):
        task = asyncio.create_task(one.ask("k", HUNDRED, Ask(100, 1)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    await granted_at_last(other, HUNDRED, Ask(100, 1))


async def test_without_redis_each_gateway_grants_its_share(redis_server, two):
    one, other = two
    assert (await one.ask("k", HUNDRED, Ask(40, 1))).granted
    await redis_server.kill()
    # What it granted before counts: of its share of 50 there are 10 left.
    assert not (await one.ask("k", HUNDRED, Ask(11, 1))).granted
    assert one.away
    assert (await one.ask("k", HUNDRED, Ask(10, 1))).granted
    assert (await other.ask("k", HUNDRED, Ask(50, 1))).granted
    assert not (await other.ask("k", HUNDRED, Ask(1, 1))).granted


async def test_redis_that_comes_back_is_told_everything(redis_server, two):
    one, other = two
    await redis_server.kill()
    assert (await one.ask("k", HUNDRED, Ask(40, 1))).granted
    one.tell("k", Change(used=15, held=-15))
    assert (await other.ask("k", HUNDRED, Ask(30, 1))).granted
    await redis_server.start()
    await until(lambda: not one.away and not other.away)
    standing = await other.ask("k", HUNDRED, Ask(31, 1))
    assert (standing.granted, standing.tokens, standing.running) == (False, 70, 2)
    release(one, 25)
    await granted_at_last(other, HUNDRED, Ask(55, 1))


async def test_a_redis_that_says_nothing_is_not_waited_for(redis_server, two):
    one, _ = two
    await one.ask("k", HUNDRED, Ask(1, 1))
    redis_server.freeze()
    try:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.gather(*(one.ask("k", HUNDRED, Ask(1, 1)) for _ in range(10)))
        assert loop.time() - began < 4 * shared_module.PATIENCE_S
        began = loop.time()
        await one.ask("k", HUNDRED, Ask(1, 1))
        assert loop.time() - began < 0.05  # nobody waits any more
    finally:
        redis_server.thaw()
    await until(lambda: not one.away)
    assert (await one.ask("k", HUNDRED, Ask(1, 1))).granted


async def test_a_script_that_redis_forgot_is_loaded_again(redis_server, two):
    one, _ = two
    await one.ask("k", HUNDRED, Ask(1, 1))
    async with Redis.from_url(redis_server.url) as client:
        await client.script_flush()
    assert (await one.ask("k", HUNDRED, Ask(1, 1))).tokens == 2
    assert not one.away


async def test_leases_are_renewed_while_a_request_runs(redis_server, two, monkeypatch):
    monkeypatch.setattr(shared_module, "LEASE_MS", 200)
    one, other = two
    assert (await one.ask("k", HUNDRED, Ask(100, 1))).granted
    began = asyncio.get_running_loop().time()
    while asyncio.get_running_loop().time() - began < 0.6:
        assert not (await other.ask("k", HUNDRED, Ask(1, 1))).granted
        await asyncio.sleep(0.01)


async def test_the_end_of_a_process_tells_what_is_left(redis_server):
    async with gateway(redis_server.url) as one:
        await one.ask("k", HUNDRED, Ask(60, 1))
        one.tell("k", Change(used=60, held=-60))
    async with gateway(redis_server.url) as next_one:
        assert (await next_one.ask("k", HUNDRED, Ask(50, 1))).tokens == 60


async def test_closing_without_redis_is_quiet():
    async with gateway("redis://127.0.0.1:1/0") as limiter:
        assert (await limiter.ask("k", HUNDRED, Ask(50, 1))).granted
        assert limiter.away


async def test_an_end_is_told_to_the_other_gateways_at_once(redis_server, monkeypatch):
    monkeypatch.setattr(shared_module, "TELL_EVERY_S", 2 * DEADLINE_S)
    async with gateway(redis_server.url) as one, gateway(redis_server.url) as other:
        assert (await one.ask("k", HUNDRED, Ask(100, 1))).granted
        release(one, 100)
        async with asyncio.timeout(shared_module.LEASE_MS / 2000):
            await granted_at_last(other, HUNDRED, Ask(100, 1))
