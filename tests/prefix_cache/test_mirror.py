"""The mirror against a real Redis."""

import asyncio
import time

import pytest
from redis.asyncio import Redis

from prefix_cache.hashing import Digest
from prefix_cache.mirror import PrefixMirror, Remembered, key_of

KEY = key_of("demo", 16, "worker-0", 255)


def digest(n):
    return Digest(n.to_bytes(16, "big"))


@pytest.fixture
async def mirror(redis_server, monkeypatch):
    monkeypatch.setattr("prefix_cache.mirror.FLUSH_SECONDS", 0.001)
    monkeypatch.setattr("prefix_cache.mirror._RETRY_SECONDS", 0.01)
    mirror = PrefixMirror(redis_server.url)
    task = asyncio.create_task(mirror.run())
    yield mirror
    task.cancel()
    await asyncio.wait([task])
    await mirror.close()


async def written(mirror):
    async with asyncio.timeout(10):
        while mirror.lag or mirror.away:
            await asyncio.sleep(0.001)


def test_the_key_names_all_that_must_agree():
    assert KEY == "batchyard:prefix:2:demo:16:worker-0:00000000000000ff"


async def test_what_is_noted_can_be_loaded_by_another(mirror, redis_server):
    for block in range(10_000):
        mirror.note(KEY, block, Remembered(digest(block), 1, block))
    mirror.note(KEY, 5, Remembered(digest(99), 2, 5))
    await written(mirror)
    other = PrefixMirror(redis_server.url)
    loaded = await other.load(KEY)
    await other.close()
    assert len(loaded) == 10_000
    assert loaded[5] == (digest(99), 2, 5)
    assert loaded[9_999] == (digest(9_999), 1, 9_999)
    async with Redis.from_url(redis_server.url) as client:
        assert 0 < await client.ttl(KEY) <= 3600


async def test_redis_goes_away_and_comes_back_empty(mirror, redis_server):
    mirror.note(KEY, 1, Remembered(digest(1), 1, 1))
    await written(mirror)
    await redis_server.kill()
    mirror.note(KEY, 2, Remembered(digest(2), 1, 2))
    async with asyncio.timeout(10):
        while not mirror.away:
            await asyncio.sleep(0.001)
    mirror.note(KEY, 2, Remembered(digest(3), 2, 2))
    assert await mirror.load(KEY) == {}
    await redis_server.start()
    await written(mirror)
    assert await mirror.load(KEY) == {2: (digest(3), 2, 2)}


async def test_closing_without_redis_is_quiet():
    mirror = PrefixMirror("redis://127.0.0.1:1/0")
    mirror.note(KEY, 1, Remembered(digest(1), 1, 1))
    await mirror.close()
    assert mirror.away


async def test_the_lag_is_as_old_as_the_first_block_that_was_not_written(mirror, redis_server):
    assert mirror.lag_seconds == 0
    mirror.note(KEY, 1, Remembered(digest(1), 1, 1))
    await written(mirror)
    assert mirror.lag_seconds == 0
    await redis_server.kill()
    noted = time.monotonic()
    mirror.note(KEY, 2, Remembered(digest(2), 1, 2))
    async with asyncio.timeout(10):
        while mirror.lag_seconds < 0.1:  # over several tries to write it
            await asyncio.sleep(0.01)
    mirror.note(KEY, 3, Remembered(digest(3), 1, 3))
    assert mirror.away
    assert 0.1 <= mirror.lag_seconds <= time.monotonic() - noted
    await redis_server.start()
    await written(mirror)
    assert mirror.lag_seconds == 0
