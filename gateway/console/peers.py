"""Gateways that share a port, as one: whichever a console happens to ask tells what all of them remember.

Each listens on a Unix socket in one folder. Whoever connects is sent what it remembers, and that is all.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import structlog
from pydantic import BaseModel, ValidationError

from gateway.console.journal import Journal, Remembered, RequestRecord, together
from gateway.console.latencies import Counts

log = structlog.get_logger()

_PATIENCE_S = 0.5
_GOOD_FOR_S = 1.0


class _Message(BaseModel):
    requests: list[RequestRecord]
    ttft: list[tuple[str, int, int]]
    itl: list[tuple[str, int, int]]


class Peers:
    """This gateway's journal, with those of the others."""

    def __init__(self, journal: Journal, folder: Path | None = None) -> None:
        """Without a `folder` there are no others."""
        self.journal = journal
        self._folder = folder
        self._others: list[Remembered] = []
        self._asked_at = -_GOOD_FOR_S
        self._asking = asyncio.Lock()

    @asynccontextmanager
    async def served(self) -> AsyncIterator[None]:
        """The others can ask, until the end of the block."""
        if self._folder is None:
            yield
            return
        server = await asyncio.start_unix_server(self._tell, self._socket(self._folder))
        try:
            yield
        finally:
            server.close()

    async def remembered(self) -> tuple[Remembered, int]:
        """What all remember, and how many told. The others are asked once a second at most."""
        if self._folder is None:
            return self.journal.remembered(), 1
        async with self._asking:
            now = asyncio.get_running_loop().time()
            if now - self._asked_at >= _GOOD_FOR_S:
                self._others = await self._ask_all(self._folder)
                self._asked_at = now
        return together([self.journal.remembered(), *self._others]), 1 + len(self._others)

    async def _ask_all(self, folder: Path) -> list[Remembered]:
        told = await asyncio.gather(*(_ask(path) for path in self._others_in(folder)))
        return [each for each in told if each is not None]

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer):
            writer.write(_encode(self.journal.remembered()))
            await writer.drain()

    def _others_in(self, folder: Path) -> list[Path]:
        own = self._socket(folder)
        return [path for path in folder.glob("gw-*.sock") if path != own]

    def _socket(self, folder: Path) -> Path:
        return folder / f"gw-{os.getpid()}.sock"  # short: a socket's path may have 107 bytes


async def _ask(path: Path) -> Remembered | None:
    """What the gateway behind `path` remembers; None of one that is gone, or stands still."""
    try:
        async with asyncio.timeout(_PATIENCE_S):
            reader, writer = await asyncio.open_unix_connection(path)
            with closing(writer):
                return _decode(await reader.read())
    except (OSError, TimeoutError, ValidationError) as error:
        log.debug("another gateway does not tell what it remembers", socket=path.name, reason=str(error))
        return None


def _encode(remembered: Remembered) -> bytes:
    message = _Message(
        requests=list(remembered.requests), ttft=_listed(remembered.ttft), itl=_listed(remembered.itl)
    )
    return message.model_dump_json().encode()


def _decode(data: bytes) -> Remembered:
    message = _Message.model_validate_json(data)
    return Remembered(message.requests, _counted(message.ttft), _counted(message.itl))


def _listed(counts: Counts) -> list[tuple[str, int, int]]:
    return [(tenant, bucket, count) for (tenant, bucket), count in counts.items()]


def _counted(listed: list[tuple[str, int, int]]) -> Counts:
    return Counts({(tenant, bucket): count for tenant, bucket, count in listed})
