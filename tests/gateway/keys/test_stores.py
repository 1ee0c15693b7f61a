"""Keys in a real file and in a real Redis."""

import asyncio
import os
from datetime import UTC, datetime

import pytest
from redis.asyncio import Redis

from batchyard.errors import ConfigError
from gateway.keys.records import record_for
from gateway.keys.stores import FileKeys, KeysAway, RedisKeys, open_store

NOW = datetime(2026, 1, 2, tzinfo=UTC)
ALICE = record_for("a", NOW, "alice", requests_per_minute=5)
BOB = record_for("b", NOW, "bob")


@pytest.fixture(params=["file", "redis"])
def where(request, tmp_path):
    if request.param == "file":
        return str(tmp_path / "keys.json")
    return request.getfixturevalue("redis_server").url


@pytest.fixture
async def stores(where):
    """Opens as many as one wants, as so many processes would."""
    opened = []

    def opens():
        opened.append(open_store(where))
        return opened[-1]

    yield opens
    for store in opened:
        await store.close()


async def test_what_one_process_writes_another_reads(stores):
    writer, reader = stores(), stores()
    await writer.add(ALICE)
    assert await reader.poll() == (ALICE,)
    assert await reader.poll() is None
    await writer.add(BOB)
    assert sorted(await reader.poll(), key=lambda record: record.name) == [ALICE, BOB]
    assert await writer.revoke("alice")
    assert await reader.poll() == (BOB,)
    assert await writer.revoke("bob")
    assert await reader.poll() == ()


async def test_a_name_is_given_once(stores):
    store = stores()
    await store.add(ALICE)
    with pytest.raises(ConfigError, match="'alice' already"):
        await store.add(record_for("c", NOW, "alice"))
    assert await store.poll() == (ALICE,)


async def test_who_is_not_there_cannot_be_revoked(stores):
    store = stores()
    await store.add(ALICE)
    assert not await store.revoke("bob")


async def test_many_processes_add_at_once(stores):
    records = [record_for(str(i), NOW, f"k{i}") for i in range(20)]
    await asyncio.gather(*(stores().add(record) for record in records))
    assert set(await stores().poll()) == set(records)


async def test_a_file_keeps_its_mode_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "keys.json"
    store = FileKeys(path)
    await store.add(ALICE)
    assert path.stat().st_mode & 0o777 == 0o600
    os.chmod(path, 0o640)
    await store.add(BOB)
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["keys.json"]


async def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        await FileKeys(tmp_path / "none.json").poll()
    with pytest.raises(ConfigError, match="no folder"):
        await FileKeys(tmp_path / "none" / "keys.json").add(ALICE)


async def test_redis_is_away():
    store = RedisKeys("redis://127.0.0.1:1/0")
    for call in (store.poll(), store.add(ALICE), store.revoke("a")):
        with pytest.raises(KeysAway, match="does not answer"):
            await call
    await store.close()


async def test_a_redis_that_lost_the_keys_revokes_none(redis_server):
    store = RedisKeys(redis_server.url)
    await store.add(ALICE)
    await store.poll()
    async with Redis.from_url(redis_server.url) as client:
        await client.flushall()
    with pytest.raises(KeysAway, match="lost"):
        await store.poll()
    await store.close()


def test_a_url_that_is_none():
    with pytest.raises(ConfigError, match="not a Redis URL"):
        open_store("redis://host:port/0")
