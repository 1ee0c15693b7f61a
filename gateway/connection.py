"""One client's connection: how long it may take to send a request, and to read its answer.

reading   the head of a request, and then its body, have a bounded time and the head a bounded length
writing   uvicorn stops taking an answer's text when 64 KiB of it wait for the client. The tokens of a
          request then gather as integers, and its next event has them all; so what a client that does not
          read can make us keep is bounded by its max_tokens. After a while it is cut off.
"""

import asyncio
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from batchyard.tls import TlsFiles, renewing_server_context
from gateway.errors import ErrorReply

MAX_HEAD = 64 * 1024  # bytes of a request's line and headers
_FAREWELL_S = 0.5


class ConnectionConfig(uvicorn.Config):
    """uvicorn's, the patience with clients, and certificates that may be renewed."""

    def __init__(self, app: ASGIApp, client_timeout_s: float, tls: TlsFiles | None, **settings: Any) -> None:
        super().__init__(app, **settings, http=Connection)
        self.client_timeout_s = client_timeout_s
        self._tls = tls

    def load(self) -> None:
        super().load()
        self.ssl = renewing_server_context(self._tls) if self._tls else None


class Connection(HttpToolsProtocol):
    """uvicorn's connection with limits for the client."""

    config: ConnectionConfig

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._head = 0  # bytes of the head being read; -1 between heads
        self._reading = self._limit()
        self._writing: asyncio.TimerHandle | None = None
        self._ending = False

    def connection_lost(self, exc: Exception | None) -> None:
        self._reading.cancel()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts what comes of a head that is not complete even with all of `data`."""
        super().data_received(data)
        if self._head >= 0:
            self._head += len(data)
            if self._head > MAX_HEAD and not self.transport.is_closing():
                self.send_400_response("The headers are too long.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head = 0
        self._reading.cancel()
        self._reading = self._limit()

    def on_headers_complete(self) -> None:
        self._head = -1
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._reading.cancel()
        super().on_message_complete()

    def shutdown(self) -> None:
        super().shutdown()
        self._ending = True
        self._part()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._ending:
            self._part()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP. In the middle of an answer only cuts it off: its bytes are not ours."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = ErrorReply(400, msg, code="invalid_http").body()
            head = (
                "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._writing is None:
            self._writing = self._limit()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None

    def _part(self) -> None:
        # TLS is closed by both sides, and a client that only keeps its connection may never look at it again.
        if self.transport.is_closing() and self.transport.get_extra_info("sslcontext"):
            self.loop.call_later(_FAREWELL_S, self.transport.abort)

    def _limit(self) -> asyncio.TimerHandle:
        # Aborted, not closed: to close is to wait until the client has read what there is for it.
        return self.loop.call_later(self.config.client_timeout_s, self.transport.abort)
