"""Several answers as one stream, and the end of all work when the client goes away."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any, Self

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.errors import Ending, ErrorReply, reply_to
from gateway.observation import Observation
from gateway.types import Piece

Indexed = tuple[int, Piece]


async def merge(answers: Sequence[AsyncIterator[Piece]]) -> AsyncGenerator[Indexed]:
    """The pieces of all `answers` as they come, each with the index of its answer.

    An answer that the reader is too slow for is not read ahead of it. When one fails, or the reader stops,
    the others are closed.
    """
    if len(answers) == 1:
        async with closing(answers[0]) as answer:
            async for piece in answer:
                yield 0, piece
        return
    ready: asyncio.Queue[Indexed | Exception | None] = asyncio.Queue(maxsize=len(answers))
    pumps = [asyncio.create_task(_pump(i, answer, ready)) for i, answer in enumerate(answers)]
    try:
        left = len(answers)
        while left:
            match await ready.get():
                case None:
                    left -= 1
                case Exception() as error:
                    raise error
                case indexed:
                    yield indexed
    finally:
        await _end(*pumps)


async def _pump(
    index: int, answer: AsyncIterator[Piece], ready: asyncio.Queue[Indexed | Exception | None]
) -> None:
    try:
        async with closing(answer):
            async for piece in answer:
                await ready.put((index, piece))
    except Exception as error:
        await ready.put(error)
    else:
        await ready.put(None)


@asynccontextmanager
async def closing(pieces: AsyncIterator[Piece]) -> AsyncIterator[AsyncIterator[Piece]]:
    """Closes `pieces` at the end, where they can be closed: their request is cancelled then."""
    try:
        yield pieces
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def until_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Cancels the work within, at once, when the client goes away, and raises ClientDisconnect then.

    `receive` is the ASGI request's, its body read already.
    """
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        # Somebody else may have cancelled the task as well, and then it stays cancelled.
        if gone and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        await _end(watcher)


class EventStream(Response):
    """Server-sent events. An error in mid-stream is the last event: the status has been sent by then.

    https://html.spec.whatwg.org/multipage/server-sent-events.html
    """

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncGenerator[bytes], observation: Observation) -> None:
        self._first = first
        self._events = events
        self._observation = observation
        self.status_code = 200
        self.background = None
        # Proxies must neither keep nor hold back what has come.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    @classmethod
    async def start(cls, receive: Receive, events: AsyncGenerator[bytes], observation: Observation) -> Self:
        """Waits for the first event, so that a request which is refused gets the status it deserves."""
        async with until_disconnect(receive):
            first = await anext(events)
        return cls(first, events, observation)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with until_disconnect(receive):
                await self._send_events(send)
        except asyncio.CancelledError:
            await send({"type": "http.response.body", "body": _event(reply_to(Ending())), "more_body": False})
            raise
        # Out of the block above, for a response that is complete counts as a client that has gone.
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self._first, "more_body": True})
        async with aclosing(self._until_error()) as events:
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})

    async def _until_error(self) -> AsyncGenerator[bytes]:
        async with aclosing(self._events) as events:
            try:
                async for event in events:
                    yield event
            except Exception as error:
                reply = reply_to(error)
                self._observation.failed(reply.name, our_fault=reply.status >= 500)
                yield _event(reply)


def _event(reply: ErrorReply) -> bytes:
    return b"data: " + reply.body() + b"\n\n"
