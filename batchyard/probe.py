"""Whether a process serves now, as an exit code: a container's health check.

    python -m batchyard.probe ADDRESS

ADDRESS is host:port or unix:/path of a scheduler or a worker, or an http:// or https:// URL of a gateway. The
process is on this machine, and where TLS is configured (in the environment or a file, as for that process)
it is asked over TLS, with its own certificate.
"""

import asyncio
import dataclasses
import os
import ssl
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from batchyard.tls import TlsFiles

TIMEOUT_S = 3.0

SERVING = 0
NOT_SERVING = 1
USAGE = 2


async def grpc_problem(
    address: str, timeout_s: float = TIMEOUT_S, tls: "TlsFiles | None" = None
) -> str | None:
    """Why the gRPC server at `address` (host:port or unix:/path) does not serve; None where it does."""
    # Imported here: a probe runs every few seconds, and the one over HTTP need not pay for gRPC.
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from batchyard.rpc import connect

    async with connect(address, tls) as channel:
        try:
            check = health_pb2_grpc.HealthStub(channel).Check
            answer = await check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return None if serving else health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def http_problem(url: str, timeout_s: float = TIMEOUT_S, context: ssl.SSLContext | None = None) -> str | None:
    """Why a GET of `url` is not answered by 2xx; None where it is."""
    from urllib.error import URLError
    from urllib.request import HTTPSHandler, ProxyHandler, build_opener

    try:
        # A proxy from the environment is not meant for our own processes.
        build_opener(ProxyHandler({}), HTTPSHandler(context=context)).open(url, timeout=timeout_s).close()
    except (URLError, OSError) as error:
        return str(error)
    return None


def main(argv: Sequence[str]) -> NoReturn:
    """Ends the process: 0 it serves, 1 it does not (one line on standard error says why), 2 wrong usage."""
    if len(argv) != 1:
        print("usage: python -m batchyard.probe ADDRESS", file=sys.stderr)
        sys.exit(USAGE)
    (address,) = argv
    problem = _problem(address)
    if problem:
        print(f"{address}: {problem}", file=sys.stderr)
    sys.exit(NOT_SERVING if problem else SERVING)


def _problem(address: str) -> str | None:
    if address.startswith("http://"):
        return http_problem(address)
    configured = any(name.startswith(("BATCHYARD_INTERNAL_SSL_", "BATCHYARD_CONFIG")) for name in os.environ)
    if not address.startswith("https://") and not configured:
        return asyncio.run(grpc_problem(address))
    from batchyard.errors import ConfigError

    try:
        if address.startswith("https://"):
            return http_problem(address, context=_api_context())
        return asyncio.run(grpc_problem(address, tls=_internal_tls()))
    except ConfigError as error:
        return str(error)


def _api_context() -> ssl.SSLContext:
    from batchyard.config import GatewaySettings
    from batchyard.errors import ConfigError
    from batchyard.settings import load
    from batchyard.tls import api_tls

    files = api_tls(load(GatewaySettings, [], os.environ))
    if files is None:
        raise ConfigError("ssl_certfile and ssl_keyfile are not set here")
    return files.loopback_context()


def _internal_tls() -> "TlsFiles | None":
    from batchyard.config import Settings
    from batchyard.settings import load
    from batchyard.tls import internal_tls

    files = internal_tls(load(Settings, [], os.environ))
    if files is None or files.peer_name:
        return files
    # It need not be for the address of this machine that the probe was given.
    return dataclasses.replace(files, peer_name=next(iter(files.names()), None))


if __name__ == "__main__":
    main(sys.argv[1:])
