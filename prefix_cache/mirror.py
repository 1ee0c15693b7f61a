"""The prefix index, mirrored in Redis, so that a restarted scheduler finds its workers' caches warm.

One Redis hash per worker epoch, a field per block:

    batchyard:prefix:2:{model}:{block_size}:{worker}:{epoch}
        block (u32 LE)  ->  digest (16 bytes), generation (u32 LE), depth in its chain (u32 LE)

2 is the version of this form: a scheduler that writes another one shares no key with us.

A hit is never false: the generation counts how often the block was given out to be written, the worker keeps
the same count, and an entry whose count differs from the worker's is ignored. So nothing has to be deleted
when a block is reused, and an entry that was never written costs a hit, not a wrong token.

Writing is behind: `note` only fills a dictionary, bounded by the number of blocks, and `run` sends it. While
Redis is away it fills up; when Redis is back it is sent, a little at a time, so that no step waits for the
packing. A key that was there and is gone (Redis came back empty, or a replica without it took over) is
reported by `lost`, for its owner to note everything again.
"""

import asyncio
import itertools
import struct
import time
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import structlog
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from prefix_cache.hashing import DIGEST_BYTES, Digest

log = structlog.get_logger()

FLUSH_SECONDS = 0.1
LOAD_SECONDS = 2.0  # a scheduler starts cold rather than late
EXPIRE_SECONDS = 3600  # after the last change: an epoch nobody serves any more leaves nothing behind
_RETRY_SECONDS = 1.0
_BATCH = 512  # fields in one command: packing or reading so many takes a millisecond or two
_FIELD = struct.Struct("<I")
_VALUE = struct.Struct(f"<{DIGEST_BYTES}sII")
_VERSION = 2


class Remembered(NamedTuple):
    """What a block of some generation holds, and how many blocks stand before it in its chain."""

    digest: Digest
    generation: int
    depth: int


def key_of(model: str, block_size: int, worker_id: str, epoch: int) -> str:
    """The Redis key of one worker's mirror."""
    return f"batchyard:prefix:{_VERSION}:{model}:{block_size}:{worker_id}:{epoch:016x}"


class PrefixMirror:
    """What is yet to be written, and the connection it goes over. All on one event loop."""

    def __init__(self, url: str) -> None:
        """`url` as redis://host:port/db; nothing is connected yet. Raises ValueError for another form."""
        # No retries inside the client: while Redis is away, `run` is what tries again.
        self._redis = Redis.from_url(
            url,
            socket_timeout=LOAD_SECONDS,
            socket_connect_timeout=LOAD_SECONDS,
            retry=Retry(NoBackoff(), 0),
        )
        self._pending: dict[str, dict[bytes, bytes]] = {}
        self._writing: dict[str, dict[bytes, bytes]] = {}
        self._pending_since: float | None = None  # by `time.monotonic`, and the same of what is being written
        self._writing_since: float | None = None
        self._noted = asyncio.Event()
        self._written: set[str] = set()
        self._lost: set[str] = set()
        self._forgotten: set[str] = set()
        self.away = False

    @property
    def lag(self) -> int:
        """Blocks noted and not written yet."""
        return sum(len(fields) for part in (self._pending, self._writing) for fields in part.values())

    @property
    def lag_seconds(self) -> float:
        """How long ago the oldest of them was noted; 0 without any."""
        since = [at for at in (self._writing_since, self._pending_since) if at is not None]
        return time.monotonic() - min(since) if since and self.lag else 0.0

    def note(self, key: str, block: int, contents: Remembered) -> None:
        """`block` holds `contents` for sure. Never waits."""
        self._pending.setdefault(key, {})[_FIELD.pack(block)] = _VALUE.pack(*contents)
        if self._pending_since is None:
            self._pending_since = time.monotonic()
        self._noted.set()

    def forget(self, key: str) -> None:
        """Nothing noted under `key` is to be believed: the next `load` deletes it, and finds nothing."""
        self._forgotten.add(key)
        for part in (self._pending, self._writing):
            if key in part:
                part[key].clear()

    def lost(self, key: str) -> bool:
        """Whether Redis has lost what was written under `key`. Says so once."""
        if key not in self._lost:
            return False
        self._lost.discard(key)
        return True

    async def load(self, key: str) -> Mapping[int, Remembered]:
        """By block, as mirrored last; what has come in time when Redis is away or slow.

        Read in small parts: meanwhile other workers are stepped.
        """
        loaded: dict[int, Remembered] = {}
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                if key in self._forgotten:
                    await self._redis.delete(key)
                    self._forgotten.discard(key)
                    self._written.discard(key)
                    return loaded
                async for field, value in self._redis.hscan_iter(key, count=_BATCH):
                    digest, generation, depth = _VALUE.unpack(cast(bytes, value))
                    block = _FIELD.unpack(cast(bytes, field))[0]
                    loaded[block] = Remembered(Digest(digest), generation, depth)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("mirror_not_loaded", error=str(error) or type(error).__name__, blocks=len(loaded))
        if loaded:
            self._written.add(key)
        return loaded

    async def run(self) -> None:
        """Writes behind until cancelled."""
        while True:
            await self._noted.wait()
            self._noted.clear()
            written = await self._flush()
            # The Redis client may keep to itself that it was cancelled; whoever waits for our end must not.
            if (task := asyncio.current_task()) and task.cancelling():
                raise asyncio.CancelledError
            if not written:
                self._noted.set()
            await asyncio.sleep(FLUSH_SECONDS if written else _RETRY_SECONDS)

    async def close(self) -> None:
        """Writes what is left, if Redis is there, and disconnects."""
        await self._flush()
        await self._redis.aclose()

    async def _flush(self) -> bool:
        """Writes what has been noted. False, and nothing forgotten, when Redis does not take it."""
        self._take_back()  # what was left when an earlier call was cancelled
        self._writing, self._pending = self._pending, {}
        self._writing_since, self._pending_since = self._pending_since, None
        try:
            for key, fields in self._writing.items():
                while fields:
                    part = dict(itertools.islice(fields.items(), _BATCH))
                    await self._write(key, part)
                    for field in part:
                        fields.pop(field, None)  # forgotten meanwhile, it is gone already
        except (RedisError, OSError, TimeoutError) as error:
            if not self.away:
                log.warning("mirror_away", error=str(error) or type(error).__name__)
            self.away = True
            self._take_back()
            return False
        self._writing, self._writing_since = {}, None
        if self.away:
            log.info("mirror_back")
        self.away = False
        return True

    def _take_back(self) -> None:
        for key, fields in self._writing.items():  # what was noted meanwhile is newer
            self._pending[key] = fields | self._pending.get(key, {})
        if self._writing_since is not None:
            self._pending_since, self._writing_since = self._writing_since, None
        self._writing = {}

    async def _write(self, key: str, fields: dict[bytes, bytes]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.exists(key)
            pipe.hset(key, mapping=cast(Mapping[Any, Any], fields))
            pipe.expire(key, EXPIRE_SECONDS)
            existed, *_ = await pipe.execute()
        if key in self._written and not existed:
            log.warning("mirror_lost", key=key)
            self._lost.add(key)
        self._written.add(key)
