"""Who is let in, and how soon that changes."""

import asyncio
import contextlib
from datetime import UTC, datetime

import pytest
import structlog

from batchyard.errors import ConfigError
from gateway.errors import KeysUnread, Unauthenticated
from gateway.keys import ring as ring_module
from gateway.keys.records import ANYBODY, record_for
from gateway.keys.ring import KeyRing
from gateway.keys.stores import FileKeys, RedisKeys

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KEY = "s3cret-schlüssel"
ALICE = record_for("a", NOW, "alice")
BOB = record_for("b", NOW, "bob")


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(ring_module, "POLL_S", 0.01)


@contextlib.asynccontextmanager
async def running(ring):
    task = asyncio.create_task(ring.run())
    try:
        async with asyncio.timeout(10):
            yield
    finally:
        task.cancel()
        await asyncio.wait([task])


def name_of(ring, key):
    try:
        return ring.tenant(b"Bearer " + key).name
    except Unauthenticated:
        return None


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_right_key(scheme):
    assert KeyRing(fixed=KEY).tenant(f"{scheme} {KEY}".encode()) is ANYBODY


@pytest.mark.parametrize(
    "header",
    [
        None,
        b"",
        b"Bearer",
        b"Bearer ",
        KEY.encode(),
        b"Basic " + KEY.encode(),
        b"Bearer wrong",
        b"Bearer \xff",
    ],
)
def test_anything_else(header):
    with pytest.raises(Unauthenticated):
        KeyRing(fixed=KEY).tenant(header)


def test_without_a_key_all_are_welcome():
    assert KeyRing().tenant(None) is ANYBODY
    assert not KeyRing().required


async def test_keys_are_given_and_taken_while_it_runs(tmp_path):
    store = FileKeys(tmp_path / "keys.json")
    await store.add(ALICE)
    ring = KeyRing(FileKeys(tmp_path / "keys.json"), fixed="own")
    await ring.read()
    assert (name_of(ring, b"a"), name_of(ring, b"b"), name_of(ring, b"own")) == ("alice", None, "")
    async with running(ring):
        await store.add(BOB)
        await until(lambda: name_of(ring, b"b") == "bob")
        await store.revoke("alice")
        await until(lambda: name_of(ring, b"a") is None)
    assert name_of(ring, b"own") == ""


async def test_a_broken_file_changes_nothing(tmp_path):
    path = tmp_path / "keys.json"
    store = FileKeys(path)
    await store.add(ALICE)
    ring = KeyRing(FileKeys(path))
    await ring.read()
    with structlog.testing.capture_logs() as lines:
        async with running(ring):
            path.write_text("{")
            await until(lambda: any(line["log_level"] == "error" for line in lines))
            assert name_of(ring, b"a") == "alice"
            path.write_bytes(b'{"keys": []}')
            await until(lambda: name_of(ring, b"a") is None)
    errors = [line["reason"] for line in lines if line["log_level"] == "error"]
    assert len(errors) == len(set(errors))  # each is said once, not every second
    assert lines[-2]["revoked"] == ["alice"]
    assert lines[-1]["event"] == "API keys can be read again"


async def test_a_broken_file_at_the_start(tmp_path):
    (tmp_path / "keys.json").write_text("{")
    with pytest.raises(ConfigError, match=r"keys\.json"):
        await KeyRing(FileKeys(tmp_path / "keys.json")).read()


async def test_redis_goes_and_comes(redis_server):
    store = RedisKeys(redis_server.url)
    ring = KeyRing(store)
    await redis_server.kill()
    await ring.read()
    with pytest.raises(KeysUnread):
        ring.tenant(b"Bearer a")
    with pytest.raises(Unauthenticated):
        ring.tenant(None)
    async with running(ring):
        await redis_server.start()
        other = RedisKeys(redis_server.url)
        await other.add(BOB)
        await other.close()
        await until(lambda: len(ring) == 1)
        await redis_server.kill()
        assert name_of(ring, b"b") == "bob"
    await store.close()
