"""gRPC servers and channels as all of Batchyard makes them: health, reflection, TLS, no size limits."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from batchyard.errors import AddressInUse
from batchyard.tls import Renewing, TlsFiles

_OPTIONS: Sequence[tuple[str, Any]] = (
    # A request may carry a prompt of any length: the model bounds the size of a message, not gRPC.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_permit_without_calls", 1),
    # Else those after the second in a row without data come a minute apart.
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    # Our peers are named one by one; a proxy from the environment is not meant for them.
    ("grpc.enable_http_proxy", 0),
)


class Keepalive(NamedTuple):
    """How a peer that vanished without closing its socket, or stands still, is noticed. In milliseconds."""

    after: int  # without data it is pinged
    within: int  # it must answer

    @property
    def options(self) -> Sequence[tuple[str, int]]:
        """As gRPC wants them: without the third, an answer may take a minute."""
        return (
            ("grpc.keepalive_time_ms", self.after),
            ("grpc.keepalive_timeout_ms", self.within),
            ("grpc.http2.ping_timeout_ms", self.within),
        )


AMONG_US = Keepalive(2_000, 3_000)
OF_CLIENTS = Keepalive(10_000, 60_000)  # their answer may be behind a long prompt, on a slow line


class RpcServer:
    """One gRPC server with standard health checking and reflection on it."""

    def __init__(
        self,
        address: str,
        *,
        share_port: bool = False,
        max_request: int = -1,
        tls: TlsFiles | None = None,
        keepalive: Keepalive = AMONG_US,
    ) -> None:
        """`address` is host:port (port 0 picks one) or unix:/path. `share_port` lets processes share it.

        `max_request` is the largest message taken, in bytes; -1 for any, as among ourselves. A Unix socket is
        not served by `tls`: the permissions of its folder say who may connect.
        """
        self.address = address
        self._tls = None if _is_unix(address) else tls
        options = {
            **dict(_OPTIONS),
            **dict(keepalive.options),
            "grpc.so_reuseport": int(share_port),
            "grpc.max_receive_message_length": max_request,
        }
        self._server = grpc.aio.server(options=list(options.items()))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._services = [health.SERVICE_NAME, reflection.SERVICE_NAME]

    def add(self, register: Callable[[Any, Any], None], servicer: object, service: str) -> None:
        """Adds a servicer by its generated `add_…_to_server`; `service` is its full name."""
        register(servicer, self._server)
        self._services.append(service)

    async def start(self) -> None:
        """Binds and serves; health says NOT_SERVING until `set_serving`. Raises AddressInUse."""
        reflection.enable_server_reflection(self._services, self._server)
        try:
            port = self._bind()
        except RuntimeError as error:
            raise AddressInUse(
                f"cannot serve gRPC on {self.address}: the address is in use or not ours"
            ) from error
        if not _is_unix(self.address) and self.address.endswith(":0"):
            self.address = f"{self.address.rsplit(':', 1)[0]}:{port}"
        await self.set_serving(False)
        await self._server.start()

    def _bind(self) -> int:
        if self._tls is None:
            return self._server.add_insecure_port(self.address)
        return self._server.add_secure_port(self.address, _server_credentials(self._tls))

    async def set_serving(self, serving: bool) -> None:
        """What the health service answers, for the server and for each of its services."""
        status = health_pb2.HealthCheckResponse
        for name in ["", *self._services]:
            await self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    async def stop(self, grace: float) -> None:
        """Stops taking calls; those running get `grace` seconds to end."""
        await self._server.stop(grace)

    async def wait(self) -> None:
        """Returns when the server has stopped."""
        await self._server.wait_for_termination()


def connect(address: str, tls: TlsFiles | None = None) -> grpc.aio.Channel:
    """A channel to host:port or unix:/path that keeps trying with short waits while the peer is away.

    With `tls` a peer at host:port must have a certificate from `tls.ca_certs`, and is shown ours. Raises
    ConfigError where the files cannot be read any more.
    """
    options = [
        *_OPTIONS,
        *AMONG_US.options,
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 250),
    ]
    if tls is None or _is_unix(address):
        return grpc.aio.insecure_channel(address, options=options)
    if tls.peer_name:
        options.append(("grpc.ssl_target_name_override", tls.peer_name))
    pem = tls.read()
    credentials = grpc.ssl_channel_credentials(pem.authorities, pem.key, pem.chain)
    return grpc.aio.secure_channel(address, credentials, options=options)


def _is_unix(address: str) -> bool:
    return address.startswith("unix:")


def _server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files: gRPC asks before each handshake."""
    renewing = Renewing(tls, _certificate)
    return grpc.dynamic_ssl_server_credentials(
        renewing.current(), renewing.current, require_client_authentication=tls.ca_certs is not None
    )


def _certificate(tls: TlsFiles) -> grpc.ServerCertificateConfiguration:
    pem = tls.read()
    return grpc.ssl_server_certificate_configuration([(pem.key, pem.chain)], pem.authorities)
