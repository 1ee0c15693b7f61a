"""Where API keys are kept: a JSON file, or Redis for gateways on several machines.

file    {"keys": [{"name": ..., "sha256": ..., ...}]}, written whole and moved into place
Redis   batchyard:keys           hash: name -> the same record as JSON
        batchyard:keys:version   counts changes, so that gateways read the hash only after one
"""

import asyncio
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from batchyard.errors import ConfigError, UserError
from batchyard.redis_url import check_redis_url
from gateway.keys.records import KeyRecord, Records, dump_records, parse_records

_HASH = "batchyard:keys"
_VERSION = "batchyard:keys:version"
_PATIENCE_S = 2.0


class KeysAway(UserError):
    """Redis cannot be asked for the keys now, or has lost them."""


class KeyStore(Protocol):
    """Keeps records of keys."""

    async def poll(self) -> Records | None:
        """All records; None where nothing changed since the last poll that gave some.

        Raises KeysAway, and ConfigError for a file that is not there and records that are malformed.
        """

    async def add(self, record: KeyRecord) -> None:
        """Raises ConfigError where the name is taken, and what `poll` does."""

    async def revoke(self, name: str) -> bool:
        """Whether there was such a key. Raises what `poll` does."""

    async def close(self) -> None:
        """Disconnects."""


def open_store(where: str) -> KeyStore:
    """The store at a Redis URL or in a file; nothing is read yet. Raises ConfigError for a bad URL."""
    if "://" not in where:
        return FileKeys(Path(where).expanduser())
    try:
        return RedisKeys(check_redis_url(where))
    except ValueError as error:
        raise ConfigError(f"api_keys: {error}") from error


class FileKeys:
    """Keys in a file, of which one knows by its modification time whether it changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    async def poll(self) -> Records | None:
        return await asyncio.to_thread(self._poll)

    async def add(self, record: KeyRecord) -> None:
        with self._locked():
            records = self._read() if self._path.exists() else ()
            if any(record.name == other.name for other in records):
                raise _taken(record.name)
            self._write((*records, record))

    async def revoke(self, name: str) -> bool:
        with self._locked():
            records = self._read()
            left = tuple(record for record in records if record.name != name)
            if len(left) < len(records):
                self._write(left)
            return len(left) < len(records)

    async def close(self) -> None:
        pass

    def _poll(self) -> Records | None:
        try:
            status = self._path.stat()
        except OSError as error:
            raise ConfigError(f"api_keys: cannot read {self._path}: {error.strerror}") from error
        # A file that was moved into place has another inode, even within one tick of the clock.
        identity = (status.st_mtime_ns, status.st_ino, status.st_size)
        if identity == self._seen:
            return None
        records = self._read()
        self._seen = identity
        return records

    def _read(self) -> Records:
        try:
            text = self._path.read_bytes()
        except OSError as error:
            raise ConfigError(f"api_keys: cannot read {self._path}: {error.strerror}") from error
        return parse_records(text, str(self._path))

    def _write(self, records: Records) -> None:
        """All or nothing, whatever happens: a gateway never reads half a file."""
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(dump_records(records))
                file.flush()
                os.fsync(file.fileno())
            if self._path.exists():
                os.chmod(name, self._path.stat().st_mode)
            os.replace(name, self._path)
        except BaseException:
            os.unlink(name)
            raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other commands out; the folder is what is locked, for the file itself is replaced."""
        try:
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ConfigError(f"api_keys: no folder for {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


class RedisKeys:
    """Keys in Redis."""

    def __init__(self, url: str) -> None:
        """Raises ValueError for a URL of another form."""
        self._redis = Redis.from_url(
            url,
            socket_timeout=_PATIENCE_S,
            socket_connect_timeout=_PATIENCE_S,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        self._seen: str | None = None

    async def poll(self) -> Records | None:
        try:
            version = cast("str | None", await self._redis.get(_VERSION))
            if version == self._seen and version is not None:
                return None
            if version is None and self._seen is not None:
                # Nobody revokes keys by taking the count away: Redis came back empty.
                raise KeysAway("Redis has lost the keys")
            found = await self._redis.hgetall(_HASH)
        except (RedisError, OSError, TimeoutError) as error:
            raise _away(error) from error
        records = parse_records(f'{{"keys": [{",".join(map(str, found.values()))}]}}'.encode(), _HASH)
        self._seen = version
        return records

    async def add(self, record: KeyRecord) -> None:
        text = record.model_dump_json(exclude_defaults=True)
        try:
            if not await self._redis.hsetnx(_HASH, record.name, text):
                raise _taken(record.name)
            await self._redis.incr(_VERSION)
        except (RedisError, OSError, TimeoutError) as error:
            raise _away(error) from error

    async def revoke(self, name: str) -> bool:
        try:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hdel(_HASH, name)
                pipe.incr(_VERSION)
                removed, _ = await pipe.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise _away(error) from error
        return bool(removed)

    async def close(self) -> None:
        await self._redis.aclose()


def _away(error: Exception) -> KeysAway:
    return KeysAway(f"Redis does not answer: {str(error) or type(error).__name__}")


def _taken(name: str) -> ConfigError:
    return ConfigError(f"there is a key named {name!r} already: revoke it first, or take another name")
