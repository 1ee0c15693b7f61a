"""HTTP/1.1 for load tests: asks, and notes when each piece of the answer came.

Pieces are kept as they are and read when the answer is over, so that five hundred streams cost one core
little (docs/load-testing.md has the figures, beside aiohttp's and httpx's).
"""

import asyncio
import ssl
import time
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from batchyard.errors import ConfigError

_CONNECT_S = 30.0
_IDLE_S = 2.0  # less than after what servers close a connection that nobody uses


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is. `tls` is None for plain HTTP; `path` is what the API's paths are appended to."""

    host: str
    port: int
    path: str = ""
    tls: ssl.SSLContext | None = None

    @property
    def netloc(self) -> str:
        """For the Host header."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_url(url: str, ca_file: str | None = None) -> Address:
    """The address in `url`, with or without /v1 at its end. Raises ConfigError."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"--url {url}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--url {url}: should look like http://127.0.0.1:8000")
    secure = parts.scheme == "https"
    tls = _tls(ca_file) if secure else None
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Address(parts.hostname, port or (443 if secure else 80), path, tls)


def _tls(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        raise ConfigError(f"--ca-file {ca_file}: {error.strerror or error}") from error


@dataclass(slots=True)
class Exchange:
    """A request and what came back, unread. Times are those of `time.perf_counter`."""

    sent: float
    status: int = 0  # 0: there was no answer
    headers: dict[str, str] = field(default_factory=dict)  # by names in lower case
    pieces: list[tuple[float, bytes]] = field(default_factory=list)  # of the body, and when each came
    end: float = 0.0
    error: str | None = None  # of the connection; None where the answer is whole

    @property
    def body(self) -> bytes:
        """All pieces."""
        return b"".join(piece for _, piece in self.pieces)


class _Connection(asyncio.Protocol):
    """One request at a time. The parser calls the methods that begin with `on_`."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._exchange: Exchange | None = None
        self._done: asyncio.Future[None] | None = None
        self._keep_alive = True
        self.idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not say so

    @property
    def usable(self) -> bool:
        """Whether another request may be sent."""
        alive = self._transport is not None and not self._transport.is_closing()
        return alive and self._keep_alive and time.perf_counter() - self.idle_since < _IDLE_S

    async def ask(self, request: bytes, exchange: Exchange) -> None:
        assert self._transport is not None
        self._exchange, self._done = exchange, asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)
        await self._done

    def close(self) -> None:
        if self._transport:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._now = time.perf_counter()
        if self._exchange is None:
            return self.close()  # nobody has asked
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error}")
            self.close()

    def on_header(self, name: bytes, value: bytes) -> None:
        assert self._exchange
        self._exchange.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._exchange
        self._exchange.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        assert self._exchange
        self._exchange.pieces.append((self._now, body))

    def on_message_complete(self) -> None:
        self._keep_alive = self._parser.should_keep_alive()
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end("the server closed the connection" + (f": {exc}" if exc else " before the end"))

    def _end(self, error: str | None) -> None:
        if self._exchange is None or self._done is None:
            return
        self.idle_since = self._exchange.end = time.perf_counter()
        self._exchange.error = error
        self._exchange = None
        if not self._done.done():
            self._done.set_result(None)


class Client:
    """Connections to one server, opened as they are needed."""

    def __init__(self, address: Address, api_key: str | None, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        key = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._common = f"Host: {address.netloc}\r\nUser-Agent: batchyard-bench\r\nAccept: */*\r\n{key}"

    async def post(self, path: str, body: bytes) -> Exchange:
        """POSTs JSON. Whatever goes wrong is the exchange's `error`."""
        length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        return await self._ask(self._head("POST", path, length) + body)

    async def get(self, path: str) -> Exchange:
        """GETs. Whatever goes wrong is the exchange's `error`."""
        return await self._ask(self._head("GET", path, "\r\n"))

    def close(self) -> None:
        """Closes what is idle."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _head(self, method: str, path: str, end: str) -> bytes:
        return f"{method} {self._address.path}{path} HTTP/1.1\r\n{self._common}{end}".encode("latin-1")

    async def _ask(self, request: bytes) -> Exchange:
        exchange = Exchange(time.perf_counter())
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send(request, exchange)
        except TimeoutError:
            exchange.error = f"no full answer within {self._timeout_s:g} s"
        except OSError as error:
            exchange.error = _reason(error)
        exchange.end = exchange.end or time.perf_counter()
        return exchange

    async def _send(self, request: bytes, exchange: Exchange) -> None:
        while connection := self._idle_connection():
            await self._on(connection, request, exchange)
            if exchange.status or not exchange.error:
                return
            exchange.error = None  # closed in the moment we sent: the server has not seen the request
        await self._on(await self._connect(), request, exchange)

    async def _on(self, connection: _Connection, request: bytes, exchange: Exchange) -> None:
        try:
            await connection.ask(request, exchange)
        except BaseException:
            connection.close()
            raise
        if connection.usable:
            self._idle.append(connection)
        else:
            connection.close()

    def _idle_connection(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.usable:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        loop, address = asyncio.get_running_loop(), self._address
        async with asyncio.timeout(_CONNECT_S):
            _, connection = await loop.create_connection(
                _Connection, address.host, address.port, ssl=address.tls
            )
        return connection


def _reason(error: OSError) -> str:
    """One line; asyncio's own message for a refused connection lists every address it has tried."""
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    return f"{type(error).__name__}: {error.strerror or error}"
