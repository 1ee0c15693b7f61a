"""uvicorn, with a socket of our own and under signals that are not its business."""

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from batchyard.errors import AddressInUse, ConfigError
from batchyard.tls import TlsFiles
from gateway.connection import ConnectionConfig

_BACKLOG = 2048  # connections not yet accepted: thousands of clients may come at once
CLIENT_TIMEOUT_S = 60.0


def bind(host: str, port: int, share_port: bool) -> socket.socket:
    """A socket bound to host:port; with `share_port` other processes may bind it too.

    Raises AddressInUse when another process serves there, ConfigError when we cannot.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"host: there is no such address as {host}") from error
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share_port:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"port {port} on {host} is in use by another process; choose another"
            ) from error
        raise ConfigError(f"cannot serve on port {port} of {host}: {error.strerror}") from error
    return bound


class _Uvicorn(uvicorn.Server):
    """Leaves signals to the process, which has more to end than this server."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves an ASGI application on a bound socket."""

    def __init__(
        self,
        app: ASGIApp,
        bound: socket.socket,
        grace_s: float,
        client_timeout_s: float = CLIENT_TIMEOUT_S,
        tls: TlsFiles | None = None,
    ) -> None:
        """At the end, answers under way get `grace_s` seconds; those still under way then are cut off.

        So are clients that take longer than `client_timeout_s` to send a request or to read on.
        """
        self._socket = bound
        self._scheme = "https" if tls else "http"
        config = ConnectionConfig(
            app,
            client_timeout_s,
            tls,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,  # structlog has them all
            log_level="warning",
            server_header=False,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=round(grace_s),
        )
        self._server = _Uvicorn(config)
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it can be reached."""
        host, port, *_ = self._socket.getsockname()
        return f"{self._scheme}://[{host}]:{port}" if ":" in host else f"{self._scheme}://{host}:{port}"

    def start(self) -> None:
        """From here on clients may connect."""
        self._socket.listen(_BACKLOG)
        self._serving = asyncio.create_task(self._server.serve([self._socket]))

    async def stop(self) -> None:
        """Takes no more requests, and returns when the last one has ended or the grace is over."""
        self._server.should_exit = True
        if self._serving:
            await self._serving
        # uvicorn cancels what is left without waiting for it to end.
        await asyncio.gather(*self._server.server_state.tasks, return_exceptions=True)
