"""A client for thousands of requests a second: HTTP/1.1 that asks, and notes when the answer came.

An answer is not read beyond what tells its end, for a client that shares the machine must cost little. One
connection has one request at a time and is used again.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

_HEAD_END, _CHUNKS_END = b"\r\n\r\n", b"0\r\n\r\n"
_CONNECT_S = 30.0
_IDLE_S = 2.0  # less than after what a server closes a connection


@dataclass(slots=True)
class Reply:
    """How a request went. Times of `time.perf_counter`; 0 for what did not happen."""

    name: str
    sent: float = 0.0
    first: float = 0.0  # byte of the body: of an event stream, the first token
    last: float = 0.0  # byte
    status: int = 0  # 0: the connection broke
    retry_after: float = 0.0  # seconds
    broken: bool = False  # in the middle of the answer, or with an error as its last event


@dataclass(slots=True)
class _Answer:
    """An answer that is being received."""

    reply: Reply
    done: asyncio.Future[None]
    head: bytes | None = b""  # what there is of it; None: all of it has been read
    left: int | None = None  # bytes of the body to come; None: it is in chunks
    tail: bytes = field(default=b"")


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self) -> None:
        self._answer: _Answer | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not say so

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes, reply: Reply) -> None:
        assert self._transport is not None
        self._answer = _Answer(reply, asyncio.get_running_loop().create_future())
        reply.sent = time.perf_counter()
        self._transport.write(request)
        await self._answer.done

    def close(self) -> None:
        if self._transport:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        answer, now = self._answer, time.perf_counter()
        if answer is None:
            return
        if answer.head is not None:
            answer.head += data
            head, found, data = answer.head.partition(_HEAD_END)
            if not found:
                return
            answer.head = None
            _read_head(head, answer)
        if data and not answer.reply.first:
            answer.reply.first = now
        if answer.left is None:
            answer.tail = (answer.tail + data)[-160:]
            over = answer.tail.endswith(_CHUNKS_END)
        else:
            answer.left -= len(data)
            over = answer.left <= 0
        if over:
            answer.reply.last = now
            answer.reply.broken = answer.left is None and b"[DONE]" not in answer.tail
            self._end(answer)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer:
            self._answer.reply.last = time.perf_counter()
            self._answer.reply.broken = True
            self._end(self._answer)

    def _end(self, answer: _Answer) -> None:
        self._answer = None
        if not answer.done.done():
            answer.done.set_result(None)


def _read_head(head: bytes, answer: _Answer) -> None:
    lines = head.split(b"\r\n")
    answer.reply.status = int(lines[0].split()[1])
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        match name.lower():
            case b"content-length":
                answer.left = int(value)
            case b"retry-after":
                answer.reply.retry_after = float(value)


class Client:
    """Connections to one server, opened as they are needed."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._idle: list[tuple[float, _Connection]] = []  # since when

    async def ask(self, name: str, body: bytes) -> Reply:
        """POSTs `body`, JSON, to /v1/completions with `name` as X-Request-Id."""
        reply = Reply(name)
        connection = await self._connection(reply)
        if connection is None:
            return reply
        try:
            await connection.ask(post(name, body), reply)
        except BaseException:
            connection.close()
            raise
        if connection.usable:
            self._idle.append((reply.last, connection))
        return reply

    def close(self) -> None:
        """Closes what is idle."""
        for _, connection in self._idle:
            connection.close()

    async def _connection(self, reply: Reply) -> _Connection | None:
        while self._idle:
            since, connection = self._idle.pop()
            if connection.usable and time.perf_counter() - since < _IDLE_S:
                return connection
            connection.close()
        try:
            return await self._open()
        except (OSError, TimeoutError):
            reply.sent = reply.last = time.perf_counter()
            return None

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_CONNECT_S):
            _, connection = await loop.create_connection(_Connection, self._host, self._port)
        return connection


def completion_body(prompt: str, max_tokens: int) -> bytes:
    """A streamed completion of so many tokens, as JSON."""
    asked = {"model": "demo", "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
    return json.dumps(asked).encode()


def post(name: str, body: bytes) -> bytes:
    """A request to /v1/completions, with `name` as its id."""
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        f"X-Request-Id: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def in_time(
    times: Sequence[float], start: float, ask: Callable[[int], Awaitable[Reply]]
) -> list[Reply]:
    """Asks number n at `start + times[n]`, whatever the answers take; `start` by the event loop's clock."""
    loop = asyncio.get_running_loop()
    asking = []
    for number, at in enumerate(times):
        if (wait := start + at - loop.time()) > 0:
            await asyncio.sleep(wait)
        asking.append(asyncio.ensure_future(ask(number)))
    return await asyncio.gather(*asking)
