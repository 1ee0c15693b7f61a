"""Whether a process serves now, as an exit code: a container's health check.

    python -m batchyard.probe ADDRESS

ADDRESS is host:port or unix:/path of a gRPC server with standard health checking, or an http:// URL.
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import NoReturn

TIMEOUT_S = 3.0

SERVING = 0
NOT_SERVING = 1
USAGE = 2


async def grpc_problem(address: str, timeout_s: float = TIMEOUT_S) -> str | None:
    """Why the gRPC server at `address` (host:port or unix:/path) does not serve; None where it does."""
    # Imported here: a probe runs every few seconds, and the one over HTTP need not pay for gRPC.
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from batchyard.rpc import connect

    async with connect(address) as channel:
        try:
            check = health_pb2_grpc.HealthStub(channel).Check
            answer = await check(health_pb2.HealthCheckRequest(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
    serving = answer.status == health_pb2.HealthCheckResponse.SERVING
    return None if serving else health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)


def http_problem(url: str, timeout_s: float = TIMEOUT_S) -> str | None:
    """Why a GET of `url` is not answered by 2xx; None where it is."""
    from urllib.error import URLError
    from urllib.request import ProxyHandler, build_opener

    try:
        # A proxy from the environment is not meant for our own processes.
        build_opener(ProxyHandler({})).open(url, timeout=timeout_s).close()
    except (URLError, OSError) as error:
        return str(error)
    return None


def main(argv: Sequence[str]) -> NoReturn:
    """Ends the process: 0 it serves, 1 it does not (one line on standard error says why), 2 wrong usage."""
    if len(argv) != 1:
        print("usage: python -m batchyard.probe ADDRESS", file=sys.stderr)
        sys.exit(USAGE)
    (address,) = argv
    is_url = address.startswith("http://")
    problem = http_problem(address) if is_url else asyncio.run(grpc_problem(address))
    if problem:
        print(f"{address}: {problem}", file=sys.stderr)
    sys.exit(NOT_SERVING if problem else SERVING)


if __name__ == "__main__":
    main(sys.argv[1:])
